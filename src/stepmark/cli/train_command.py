"""``stepmark train``."""

import dataclasses
import shlex
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from stepmark import machine, store, suite
from stepmark.choices import Task
from stepmark.cli.interrupt import INTERRUPTED, interrupt_once
from stepmark.cli.progress import StatusLine
from stepmark.console import show
from stepmark.errors import CheckpointError, UsageError
from stepmark.result import Outcome
from stepmark.runner import EpochDone, Runner, TrainingBegun
from stepmark.runner.messages import Stage
from stepmark.scenario import Plan, Scenario
from stepmark.training import EndOfTraining, Schedule, TrainingRecord, TrainOrder, TrainPlan, output
from stepmark.units import format_rate


def train(
    scenarios: list[Scenario],
    plan: TrainPlan,
    *,
    name: str | None,
    results: Path,
    download: bool,
    json: bool,
) -> int:
    """Train a scenario's model and save what came of every epoch.

    Args:
        scenarios: one; what it says of evaluation goes for the validation.
        plan: how.
        name: of the run; ``None`` takes the time.
        results: folder of runs.
        download: datasets may be fetched.
        json: print JSON at the end, and epochs on the error stream.

    Returns:
        The exit code: 0, 1 if it failed or cannot be done here, 130 if it was interrupted.

    Raises:
        UsageError: it is not one scenario of training, or the name is taken.
        CheckpointError: no checkpoint can be written.
        StoreError: something cannot be written.
    """
    scenario, plan = _checked(scenarios, plan)
    name = store.new_name() if name is None else name
    store.unused_path(results, name)
    with _Session(download=download, json=json) as session:
        return session.begin(scenario, plan, results, name)


def resume(
    name: str | None,
    results: Path,
    *,
    epochs: int | None,
    timeout: float | None,
    download: bool,
    json: bool,
) -> int:
    """Go on with a training where its last checkpoint left it.

    Args:
        name: of the run.
        results: folder of runs.
        epochs: the last one's number, if it is to be another one than was planned.
        timeout: as of `TrainPlan`, if it is to be another one.
        download, json: see `train`.

    Returns:
        As `train`.

    Raises:
        UsageError: there is no such training, or it cannot be gone on with.
        CheckpointError: the checkpoint is missing, damaged, or of another training.
        StoreError: something cannot be read or written.
    """
    if name is None:
        raise UsageError("--resume: say which run with --save NAME")
    folder = store.RunFolder.reopen(results, name)
    record = folder.find_training()
    if record is None:
        raise UsageError(f"{folder.path}: holds no training; resume it with 'stepmark run'")
    record = _extended(record, epochs)
    if timeout is not None:
        plan = dataclasses.replace(record.plan, timeout=timeout)
        record = dataclasses.replace(record, plan=plan)
    with _Session(download=download, json=json) as session:
        return session.go_on(record, folder)


def _checked(scenarios: list[Scenario], plan: TrainPlan) -> tuple[Scenario, TrainPlan]:
    if len(scenarios) != 1:
        raise UsageError(
            f"train: these axes make {len(scenarios)} scenarios; give one value to each"
        )
    (scenario,) = scenarios
    if scenario.task is not Task.TRAIN:
        raise UsageError(f"--task {scenario.task}: a training trains; measure it with stepmark run")
    if scenario.pipeline_stages > 1 or scenario.split_layers:
        how = "--pipeline-stages" if scenario.pipeline_stages > 1 else "--split-layers"
        raise UsageError(f"{how}: not with train; measure it with stepmark run")
    plan = dataclasses.replace(
        plan, no_grad=scenario.no_grad, inference_mode=scenario.inference_mode
    )
    suite.check(scenarios)
    return dataclasses.replace(scenario, no_grad=True, inference_mode=False), plan


def _extended(record: TrainingRecord, epochs: int | None) -> TrainingRecord:
    plan, done = record.plan, len(record.epochs)
    if done and not plan.checkpoint and not _is_at_its_end(record, epochs):
        raise UsageError("--resume: this training was begun with --no-checkpoint; train anew")
    if epochs is None or epochs == plan.epochs:
        return record
    if epochs < done:
        raise UsageError(f"--epochs {epochs}: {done} epochs are done already; give at least {done}")
    if plan.schedule is Schedule.ONE_CYCLE:
        raise UsageError(
            f"--epochs {epochs}: the one-cycle schedule was laid out for {plan.epochs} epochs; "
            "leave --epochs out, or train anew"
        )
    return dataclasses.replace(record, plan=dataclasses.replace(plan, epochs=epochs))


def _is_at_its_end(record: TrainingRecord, epochs: int | None = None) -> bool:
    """Whether nothing is left to train, also if it is to have so many epochs."""
    if record.ended_by is EndOfTraining.PATIENCE:
        return True
    wanted = record.plan.epochs if epochs is None else epochs
    return record.ended_by is not None and len(record.epochs) >= wanted


class _Display(StatusLine):
    """How far a training is."""

    def __init__(self, stream: TextIO, lines: TextIO) -> None:
        super().__init__(stream)
        self._lines = lines
        self.name = ""

    def on_stage(self, stage: Stage) -> None:
        """What the ranks do next, and how fast the last epoch was."""
        rate = f"{format_rate(stage.samples_per_s)} samples/s" if stage.samples_per_s else ""
        self.draw(stage.stage, rate, self.name)

    def on_epoch(self, line: str) -> None:
        """Leave a line."""
        if self.is_shown and self._lines.isatty():
            self.print(line)
        else:
            print(line, file=self._lines, flush=True)


# Facts that a training which is gone on with has in common with its beginning.
_SAME = ("data", "num_train_samples", "num_valid_samples", "num_parameters", "steps_per_epoch")


class _Session:
    """One call of the command, from its first process to its last. Use as a context."""

    def __init__(self, *, download: bool, json: bool) -> None:
        self._json = json
        self._display = _Display(sys.stderr, sys.stderr if json else sys.stdout)
        environment = {"STEPMARK_DOWNLOAD": "1"} if download else {}
        self._runner = Runner(self._display.on_stage, environment)
        interrupt_once(signal.SIGINT)

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def begin(self, scenario: Scenario, plan: TrainPlan, results: Path, name: str) -> int:
        """Train from the start."""
        try:
            with self._display:
                self._display.draw("starting the training processes")
                (scenario,) = suite.resolve([scenario], self._runner)
                for remark in self._runner.machine.unfit:
                    self._display.warn(f"this machine is unfit to measure on: {remark}")
                record = TrainingRecord(
                    scenario=scenario,
                    plan=plan,
                    machine=self._runner.machine,
                    commit=machine.commit(Path.cwd()),
                    started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                )
                folder = suite.begin(results, name, [], Plan(timeout=plan.timeout))
                folder.save_training(record)
        except KeyboardInterrupt:
            print("interrupted: nothing was trained", file=sys.stderr)
            return INTERRUPTED
        return self._train(record, folder, resumes=False)

    def go_on(self, record: TrainingRecord, folder: store.RunFolder) -> int:
        """Train the epochs that are missing."""
        if _is_at_its_end(record):
            for epoch in record.epochs:
                self._display.on_epoch(output.as_line(epoch))
            if record.ended_by is EndOfTraining.EPOCHS:
                plan, text = record.plan, f"all {len(record.epochs)} epochs are done"
                if plan.checkpoint and plan.schedule is not Schedule.ONE_CYCLE:
                    text += "; --epochs trains more"
                print(text, file=sys.stderr)
            return self._show(record, folder)
        try:
            suite.check_machine(record.machine, folder, self._runner)
        except KeyboardInterrupt:
            print("interrupted: nothing more was trained", file=sys.stderr)
            return INTERRUPTED
        if record.commit != machine.commit(Path.cwd()):
            print(
                "warning: the code changed before the training was resumed: its epochs are not of "
                "one commit",
                file=sys.stderr,
            )
        record = dataclasses.replace(
            record, ended_by=None, outcome=None, reason="", detail="",
            num_resumed=record.num_resumed + 1,
        )  # fmt: skip
        return self._train(record, folder, resumes=True)

    def _train(self, record: TrainingRecord, folder: store.RunFolder, *, resumes: bool) -> int:
        prefix = folder.training_prefix(record.scenario).absolute()
        order = TrainOrder(plan=record.plan, save_to=str(prefix))
        # There is no checkpoint if the first one could not be written. And a training that was
        # killed just after the first was saved has one without any epoch.
        was_saved = any(epoch.checkpoint_bytes is not None for epoch in record.epochs)
        if resumes and (was_saved or order.last_path.exists()):
            order = dataclasses.replace(order, resume=True)
        begun_s, before_s = time.monotonic(), record.wall_s
        has_begun = False
        self._display.name = record.scenario.id

        def on_training(message: TrainingBegun | EpochDone) -> None:
            nonlocal record, has_begun
            if isinstance(message, TrainingBegun):
                record = _begun(record, message)
                has_begun = True
            else:
                record = record.with_epoch(message.epoch)
            record = dataclasses.replace(record, wall_s=before_s + time.monotonic() - begun_s)
            folder.save_training(record)
            if isinstance(message, EpochDone):
                self._display.on_epoch(output.as_line(message.epoch))

        try:
            with self._display:
                ending, wall_s = self._runner.train(record.scenario, order, on_training)
        except KeyboardInterrupt:
            folder.save_training(record)  # it may have come while an epoch was being saved
            return self._interrupted(record, folder)
        if ending.is_usage and not has_begun:
            if not resumes:  # it holds nothing
                shutil.rmtree(folder.path)
            raise UsageError(ending.reason)
        if ending.answers and record.facts is not None:
            notes = (*record.facts.notes, *ending.answers[0].notes)
            record = dataclasses.replace(
                record, facts=dataclasses.replace(record.facts, notes=notes)
            )
        record = dataclasses.replace(
            record,
            ended_by=ending.answers[0].ended_by if ending.answers else None,
            outcome=ending.outcome,
            reason=ending.reason,
            detail=ending.detail,
            wall_s=before_s + wall_s,
        )
        folder.save_training(record)
        if ending.is_usage:
            raise CheckpointError(ending.reason)
        return self._show(record, folder)

    def _interrupted(self, record: TrainingRecord, folder: store.RunFolder) -> int:
        if self._json:
            show(output.as_json(record, folder.path))
        done, planned = len(record.epochs), record.plan.epochs
        text = f"interrupted: {done} of {planned} epochs are saved in {folder.path}"
        words = ["stepmark", "train", "--resume", "--save", folder.path.name]
        words += ["--results", str(folder.path.parent)]
        if record.plan.checkpoint or not done:
            text += f"; go on with: {shlex.join(words)}"
        print(text, file=sys.stderr)
        return INTERRUPTED

    def _show(self, record: TrainingRecord, folder: store.RunFolder) -> int:
        """What came of it; the exit code."""
        if self._json:
            show(output.as_json(record, folder.path))
        else:
            show("".join(f"{line}\n" for line in ["", *output.as_table(record)]))
        for remark in output.remarks(record):
            print(f"note: {remark}", file=sys.stderr)
        if record.ended_by is EndOfTraining.PATIENCE:
            print(
                f"stopped after epoch {len(record.epochs)}: no lower loss for "
                f"--patience {record.plan.patience}",
                file=sys.stderr,
            )
        if record.outcome is not Outcome.OK:
            print(f"{record.scenario.id}: {record.outcome}: {record.reason}", file=sys.stderr)
        print(f"saved: {folder.path}", file=sys.stderr)
        return int(record.outcome is not Outcome.OK)


def _begun(record: TrainingRecord, message: TrainingBegun) -> TrainingRecord:
    """With the epochs of the checkpoint: as they were told, where that was still possible.

    Raises:
        UsageError: these were trained on other data, or by steps of another number.
    """
    then, now = record.facts, message.facts
    if then is not None and message.epochs:
        for name in _SAME:
            if getattr(then, name) != getattr(now, name):
                raise UsageError(
                    f"--resume: {name} is {getattr(now, name)!r}, and was {getattr(then, name)!r} "
                    f"in the {len(message.epochs)} epochs that are done; put it back, or begin the "
                    "training again under another name"
                )
    told = {epoch.epoch: epoch for epoch in record.epochs}
    epochs = tuple(told.get(epoch.epoch, epoch) for epoch in message.epochs)
    return dataclasses.replace(record, facts=message.facts, epochs=epochs)

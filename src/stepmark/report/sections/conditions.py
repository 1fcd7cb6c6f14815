"""On what, with what and when the numbers were made, and how to make them again."""

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from stepmark.advice import ADVICE
from stepmark.fingerprint import Commit, Machine
from stepmark.record import RankRecord
from stepmark.report.advised import Advised, commits_of
from stepmark.report.blocks import Block, Code, Heading, Paragraph, Table
from stepmark.report.cells import AXES, axis_default, axis_key
from stepmark.report.material import Material
from stepmark.report.wording import EMPTY, count, from_to, listed
from stepmark.result import Result
from stepmark.scenario import Plan, Scenario
from stepmark.store import Run
from stepmark.training import TrainingRecord, TrainPlan
from stepmark.units import format_bytes, format_seconds

_BOTH_WORDS = frozenset({0, 1})


def conditions(material: Material) -> Sequence[Block]:
    """Machine, software, threads and settings, commit, time, and the command, for each run."""
    blocks: list[Block] = []
    for label, run in material.runs.items():
        if material.several_runs:
            blocks.append(Heading(text=label))
        blocks += _of_run(run)
    return blocks


def _of_run(run: Run) -> list[Block]:
    done: list[Result | TrainingRecord] = [*run.results, *run.trainings]
    machines = list({repr(r.machine): r.machine for r in done}.values())
    blocks: list[Block] = []
    for number, machine in enumerate(machines, 1):
        name = f"Machine {number} of {len(machines)}" if len(machines) > 1 else "Machine"
        blocks.append(
            Table(header=(name, ""), rows=_machine_rows(machine), text_columns=_BOTH_WORDS)
        )
    ranks = [rank for result in run.results for rank in result.ranks]
    if ranks:
        rows = _settings_rows(run.results, ranks)
        blocks.append(
            Table(header=("Threads and settings", ""), rows=rows, text_columns=_BOTH_WORDS)
        )
    rows = _time_rows(run)
    blocks.append(Table(header=("Run", ""), rows=rows, text_columns=_BOTH_WORDS))
    text = "To measure this again"
    if any(result.commit for result in done):
        text += ", at the commit above"
    if run.by_pytest:
        text += ", with the tests that measured it (stepmark's own are in bench/)"
    blocks += [Paragraph(text=f"{text}:"), Code(text=_again(run))]
    return blocks


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    facts = {"host": machine.host, **machine.hardware, **machine.software}
    rows = [(name, _fact(name, value)) for name, value in facts.items()]
    for device in machine.devices:
        limits = [f"no {p}: {why}" for p, why in device.precisions.items() if why]
        what = listed(list(dict.fromkeys(device.names))) or device.kind
        if len(device.names) > 1:
            what = f"{len(device.names)} × {what}"
        rows.append((f"device {device.kind}", "; ".join([what, *limits])))
    return rows


def _fact(name: str, value: str) -> str:
    return format_bytes(int(value)) if name.endswith("_bytes") and value.isdigit() else value


def _settings_rows(results: Sequence[Result], ranks: Sequence[RankRecord]) -> list[tuple[str, str]]:
    threads: dict[int, set[int]] = {}
    for result in results:
        for rank in result.ranks:
            threads.setdefault(result.scenario.num_processes, set()).add(rank.num_threads)
    rows = [
        (
            f"threads per rank, {count(num_processes, 'rank')}",
            listed([str(number) for number in sorted(numbers)]),
        )
        for num_processes, numbers in sorted(threads.items())
    ]
    names = dict.fromkeys(name for rank in ranks for name in rank.settings)
    for name in names:
        values = dict.fromkeys(rank.settings.get(name, EMPTY) for rank in ranks)
        rows.append((name, _varied(list(values))))
    rows.append(("data", "; ".join(dict.fromkeys(rank.data for rank in ranks))))
    return rows


def _varied(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{listed(values)} (differs between scenarios)"


def _time_rows(run: Run) -> list[tuple[str, str]]:
    done: list[Result | TrainingRecord] = [*run.results, *run.trainings]
    started = sorted(result.started_at for result in done)
    commits = list(dict.fromkeys([result.commit for result in done] + list(commits_of(run.trials))))
    # A combination has the pairs of its advice where these are of the same two scenarios.
    pairs = dict.fromkeys(pair for trial in run.trials for pair in trial.pairs)
    measuring_s = sum(result.wall_s for result in done) + sum(pair.wall_s for pair in pairs)
    plans = dict.fromkeys(dataclasses.replace(result.plan, repeats=1) for result in run.results)
    which = "plan of the fresh processes" if run.trials else "plan"
    return [
        ("name", run.name),
        ("commit", listed([_commit(commit) for commit in commits])),
        ("scenarios started (first to last)", from_to(started, str)),
        ("measuring time", format_seconds(measuring_s)),
        *([("pairs in turns", str(len(pairs)))] if pairs else []),
        *([(which, listed([_plan(plan) for plan in plans]))] if plans else []),
    ]


def _commit(commit: Commit | None) -> str:
    if commit is None:
        return "none: the working directory was no git repository"
    dirty = "with uncommitted changes" if commit.dirty else "clean"
    branch = f" on {commit.branch}" if commit.branch else ""
    return f"{commit.id}{branch}, {dirty}, of {commit.time}"


def _plan(plan: Plan) -> str:
    return (
        f"{count(plan.steps, 'step')} or {plan.max_seconds:g} s per window, at least "
        f"{count(plan.warmup, 'warm-up step')}, killed after {plan.timeout:g} s"
    )


def _again(run: Run) -> str:
    """The commands that measure the run's scenarios once more."""
    if run.by_pytest:
        return "pytest bench/ --benchmark-save"
    if run.trials:
        return _advice_again(run)
    scenarios = list(dict.fromkeys(result.scenario for result in run.results))
    commands = [
        _command("run", axes, _settings(run.results[0].plan)) for axes in _products(scenarios)
    ]
    commands += [
        _command("train", axes, _settings(training.plan))
        for training in run.trainings
        for axes in _products([training.scenario])
    ]
    return "\n".join(commands)


def _advice_again(run: Run) -> str:
    """The command that tries the same advice once more; its budget is the user's to choose."""
    advised = Advised(run)
    (axes,) = _products([advised.scenario])
    words = [_command("advice", axes, {})]
    if set(advised.names) != {advice.name for advice in ADVICE}:
        words.append(f"--only {','.join(advised.names)}")
    timeouts = {result.plan.timeout for result in run.results} - {Plan.timeout}
    words += [_setting("timeout", seconds) for seconds in timeouts]
    return " ".join(words)


def _settings(plan: Plan | TrainPlan) -> dict[str, Any]:
    """What of a plan is not its default."""
    values = {f.name: (getattr(plan, f.name), f.default) for f in dataclasses.fields(plan)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _products(scenarios: Sequence[Scenario]) -> list[dict[str, tuple[Any, ...]]]:
    """The scenarios as few products of axes, since one command measures one product.

    Axis by axis, products that are equal on all other axes are joined.
    """
    names = (*AXES, "device", "workload")
    products = [{name: (getattr(scenario, name),) for name in names} for scenario in scenarios]
    for axis in names:
        joined: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
        for product in products:
            rest = tuple(product[name] for name in names if name != axis)
            into = joined.setdefault(rest, {**product, axis: ()})
            into[axis] += product[axis]
        products = list(joined.values())
    return products


def _command(name: str, axes: dict[str, tuple[Any, ...]], settings: dict[str, Any]) -> str:
    words = [f"stepmark {name}", *(f"--workload {shlex.quote(w)}" for w in axes["workload"])]
    for axis, values in axes.items():
        # The default batch size is the workload's own, and the default device the best one.
        if axis != "workload" and (
            values != (axis_default(axis),) or axis in ("device", "batch_size")
        ):
            written = ",".join(_written(axis, value) for value in sorted(values, key=axis_key))
            words.append(f"{_option(axis)} {written}")
    words += [_setting(name, value) for name, value in settings.items()]
    return " ".join(words)


def _setting(name: str, value: Any) -> str:
    """An option of a plan; a switch of a training's is written without a value."""
    if isinstance(value, bool) and name not in AXES:
        return _option(name if value else f"no_{name}")
    if isinstance(value, bool | str):
        return f"{_option(name)} {_written(name, value)}"
    return f"{_option(name)} {value:g}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _written(name: str, value: Any) -> str:
    if value is None:
        return "auto" if name == "threads" else "own"
    return str(value).lower() if isinstance(value, bool) else str(value)

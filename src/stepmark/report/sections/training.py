"""Trainings: what each epoch came to, and what it took."""

from collections.abc import Iterator, Sequence

from stepmark.record import PHASES
from stepmark.report.blocks import Block, Finding, Findings, Heading, Paragraph, Plot, Table
from stepmark.report.drawing import draw_epochs, draw_stacked_bars
from stepmark.report.material import Material
from stepmark.report.wording import EMPTY, count, known, sentence, shorten
from stepmark.training import EndOfTraining, Epoch, TrainingRecord
from stepmark.training.output import remarks
from stepmark.units import format_bytes, format_percent, format_rate, format_seconds

# More bars than these say little more; the table has them all.
_MOST_BARS = 12


def training(material: Material) -> Sequence[Block]:
    """Losses and accuracies over the epochs of each training, and where its time went."""
    blocks: list[Block] = []
    for label, run in material.runs.items():
        for record in run.trainings:
            title = _title(record)
            if material.several_runs:
                title = f"{label}: {title}"
            blocks.append(Heading(text=title))
            blocks.append(Findings(items=list(_findings(record))))
            if record.epochs:
                figure = draw_epochs(record.epochs, title=title)
                blocks.append(Plot(title=f"Learning: {title}", figure=figure, wide=True))
                blocks.append(_learning_table(title, record))
                blocks += _time(title, record)
                blocks.append(_time_table(title, record))
    explained = Paragraph(
        text="Whole epochs, from before the loader starts until the last step is done: samples/s "
        "is lower here than in a measured window, which meets no epoch's end and leaves warm-up "
        "out, and it includes what losses and accuracies cost (as part of the forward, in a step's "
        "phases). The training loss is the mean over the epoch, each sample's at the parameters of "
        "its own step; so it may lie above the validation loss, which is of the parameters after "
        "the epoch."
    )
    return (explained, *blocks) if blocks else ()


def _title(record: TrainingRecord) -> str:
    scenario = record.scenario
    own = scenario.id.removeprefix(f"{scenario.workload}-{scenario.device}-")
    return f"{shorten(scenario.workload)} on {scenario.device}, {own}"


def _findings(record: TrainingRecord) -> Iterator[Finding]:
    best = record.best
    if best is not None:
        losses = ("validation loss", best.valid_loss), ("training loss", best.train_loss)
        text = ", ".join(f"{name} {value:.4g}" for name, value in losses if value is not None)
        if best.valid_accuracy is not None:
            text += f", validation accuracy {format_percent(best.valid_accuracy)}"
        yield Finding(lead=f"Best epoch: {best.epoch}", text=f"{text}.")
    yield Finding(lead="Ended", text=_ended(record))
    if record.facts is not None:
        facts = record.facts
        valid = f", {facts.num_valid_samples:,} to validate" if facts.num_valid_samples else ""
        text = (
            f"{facts.data}: {facts.num_train_samples:,} samples to train on{valid}; "
            f"{count(facts.num_parameters, 'parameter')}, "
            f"{count(facts.steps_per_epoch, 'step')} an epoch."
        )
        yield Finding(lead="Data and model", text=text)
    for text in remarks(record):
        yield Finding(lead="Note", text=f"{sentence(text)}.")
    for remark in record.machine.unfit:
        yield Finding(lead="Doubt", text=f"This machine is unfit to measure on: {remark}.")


def _ended(record: TrainingRecord) -> str:
    done, plan = count(len(record.epochs), "epoch"), record.plan
    if record.ended_by is EndOfTraining.EPOCHS:
        text = f"After {done}, as planned."
    elif record.ended_by is EndOfTraining.PATIENCE:
        assert plan.patience is not None
        text = (
            f"After {done} of {plan.epochs}: {count(plan.patience, 'epoch')} without a lower loss."
        )
    elif record.outcome is not None and not record.epochs:
        text = f"Before its first epoch was done: {record.outcome}: {record.reason}."
    elif record.outcome is not None:
        text = f"After {done} of {plan.epochs}: {record.outcome}: {record.reason}."
    else:
        text = f"Interrupted after {done} of {plan.epochs}."
    return text + (f" Resumed {count(record.num_resumed, 'time')}." if record.num_resumed else "")


def _time(title: str, record: TrainingRecord) -> Iterator[Block]:
    """Phases of the steps, and what validation and checkpoints took beside them."""
    epochs = [epoch for epoch in record.epochs if epoch.phases is not None]
    if epochs:
        shown = epochs[:: -(-len(epochs) // _MOST_BARS)]
        figure = draw_stacked_bars(
            [f"epoch {epoch.epoch}" for epoch in shown],
            {name: [getattr(epoch.phases, f"{name}_s") for epoch in shown] for name in PHASES},
            title=title,
            quantity="mean step of the epoch",
        )
        yield Plot(title=f"Phases of a step by epoch: {title}", figure=figure, wide=True)
        yield _phases_table(title, record)
    whole_s = sum(_whole_s(epoch) for epoch in record.epochs)
    parts = {
        "training": sum(epoch.train_s for epoch in record.epochs),
        "validation": sum(epoch.valid_s or 0.0 for epoch in record.epochs),
        "checkpoints": sum(epoch.checkpoint_s or 0.0 for epoch in record.epochs),
    }
    text = ", ".join(
        f"{name} {format_percent(seconds / whole_s)} ({format_seconds(seconds)})"
        for name, seconds in parts.items()
        if seconds
    )
    yield Findings(items=[Finding(lead="Time of all epochs", text=f"{text}.")])


def _whole_s(epoch: Epoch) -> float:
    return epoch.train_s + (epoch.valid_s or 0.0) + (epoch.checkpoint_s or 0.0)


def _learning_table(title: str, record: TrainingRecord) -> Table:
    header = (
        "epoch", "train loss", "smoothed", "train accuracy", "valid loss", "valid accuracy", "rate",
        "skipped steps",
    )  # fmt: skip
    rows = [_learned(epoch, epoch is record.best) for epoch in record.epochs]
    caption = f"{title}: what was learned"
    return Table(header=header, rows=rows, caption=caption, foldable=True).without_empty_columns()


def _time_table(title: str, record: TrainingRecord) -> Table:
    header = (
        "epoch", "samples/s", "training", "validation", "compiling", "checkpoint", "written",
    )  # fmt: skip
    rows = [
        (
            str(epoch.epoch),
            format_rate(epoch.samples_per_s),
            format_seconds(epoch.train_s),
            known(epoch.valid_s, format_seconds),
            known(epoch.compile_s or None, format_seconds),
            known(epoch.checkpoint_s, format_seconds),
            known(epoch.checkpoint_bytes, format_bytes),
        )
        for epoch in record.epochs
    ]
    caption = f"{title}: what it took"
    return Table(header=header, rows=rows, caption=caption, foldable=True).without_empty_columns()


def _phases_table(title: str, record: TrainingRecord) -> Table:
    names = (*PHASES, "step")
    rows = [
        (
            str(epoch.epoch),
            *(
                EMPTY if epoch.phases is None else format_seconds(getattr(epoch.phases, f"{n}_s"))
                for n in names
            ),
        )
        for epoch in record.epochs
    ]
    header = ("epoch", *(name.replace("_", " ") for name in names))
    where = ", of the first rank" if record.scenario.world_size > 1 else ""
    caption = f"{title}: phases of a mean step, over {_marked(record)}{where}"
    return Table(header=header, rows=rows, caption=caption, foldable=True)


def _marked(record: TrainingRecord) -> str:
    marked = {epoch.num_phase_steps for epoch in record.epochs}
    whole = marked == {epoch.num_steps for epoch in record.epochs}
    return "whole epochs" if whole else f"their first {max(marked):,} steps"


def _learned(epoch: Epoch, is_best: bool) -> tuple[str, ...]:
    def loss(value: float | None) -> str:
        return known(value, lambda v: f"{v:.4g}")

    def accuracy(value: float | None) -> str:
        return known(value, lambda v: f"{v:.4f}")

    return (
        f"{epoch.epoch} (best)" if is_best else str(epoch.epoch),
        loss(epoch.train_loss),
        loss(epoch.smoothed_loss),
        accuracy(epoch.train_accuracy),
        loss(epoch.valid_loss),
        accuracy(epoch.valid_accuracy),
        known(epoch.learning_rate, lambda rate: f"{rate:.4g}"),
        "unknown" if epoch.skipped_steps is None else str(epoch.skipped_steps or EMPTY),
    )

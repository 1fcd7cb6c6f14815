"""Whether common advice holds on this machine."""

from collections.abc import Sequence

from stepmark.advice import Judgement, Quantity, Trial, find, title_of
from stepmark.advice.catalogue import ARTICLES
from stepmark.advice.output import amount, command, notes
from stepmark.report.advised import Advised
from stepmark.report.blocks import Block, Code, Heading, Paragraph, Plot, Table
from stepmark.report.drawing import Interval, draw_intervals
from stepmark.report.material import Material
from stepmark.report.wording import EMPTY, known
from stepmark.units import format_change

_EXPLAINED = (
    "Each piece of advice as pairs of fresh processes, one without it and one with it, that took "
    "turns on this machine. The change is the mean over pairs with its 99 % interval. A claim "
    "holds, or does not, where the interval leaves out no change and the change is at least 3 %. "
    "Throughput is that of warm steps; peak memory is what warm steps hold. The articles: "
    + "; ".join(f"{letter}, {title}" for letter, title in ARTICLES.items())
    + "."
)
_PANELS = {
    (Quantity.THROUGHPUT, Quantity.EPOCH): ("Throughput", "throughput with it over without it"),
    (Quantity.MEMORY,): ("Peak memory", "peak memory with it over without it (less is better)"),
}


def advice(material: Material) -> Sequence[Block]:
    """A plot and a table for each run that tried advice, and the best that was found."""
    blocks: list[Block] = []
    for label, run in material.runs.items():
        if not run.trials:
            continue
        advised = Advised(run)
        scenario_id = advised.scenario.id
        blocks.append(Heading(text=f"{label}: {scenario_id}"))
        blocks += _plots(scenario_id, [*advised.claims, *advised.combined])
        blocks.append(_table([*advised.claims, *advised.combined]))
        blocks += _best(material, label, advised)
    if not blocks:
        return ()
    return (Paragraph(text=_EXPLAINED), *blocks)


def _plots(title: str, found: Sequence[tuple[Trial, Judgement]]) -> list[Block]:
    plots: list[Block] = []
    for quantities, (name, x_label) in _PANELS.items():
        rows = [
            Interval(
                label=title_of(trial.advice),
                ratio=1 + judged.change,
                low=1 + judged.low,
                high=1 + judged.high,
                standing=judged.standing,
            )
            for trial, judged in found
            if judged.claim.quantity in quantities
            and judged.change is not None
            and judged.low is not None
            and judged.high is not None
        ]
        if rows:
            figure = draw_intervals(rows, title=f"{name}: {title}", x_label=x_label)
            plots.append(Plot(title=f"{name} by advice: {title}", figure=figure, wide=True))
    return plots


def _table(found: Sequence[tuple[Trial, Judgement]]) -> Table:
    rows = [
        (
            title_of(trial.advice),
            f"{judged.claim.says} ({_source(trial)})",
            str(judged.standing),
            known(judged.change, format_change),
            _interval(judged),
            _amount(judged.without, judged),
            _amount(judged.with_it, judged),
            str(judged.num_pairs or EMPTY),
            notes(judged) if judged.change is not None else judged.reason,
        )
        for trial, judged in found
    ]
    header = (
        "advice", "what is said", "here", "change", "99 % interval", "without", "with", "pairs",
        "remarks",
    )  # fmt: skip
    return Table(
        header=header, rows=rows, caption="What is said, and what was found",
        text_columns=frozenset({0, 1, 2, 8}),
    ).without_empty_columns()  # fmt: skip


def _source(trial: Trial) -> str:
    """Who says it; of a combination, what it is."""
    advice = find(trial.advice)
    return trial.with_it.id if advice is None else advice.source


def _interval(judged: Judgement) -> str:
    if judged.low is None or judged.high is None:
        return EMPTY
    return f"{format_change(judged.low)} to {format_change(judged.high)}"


def _amount(value: float | None, judged: Judgement) -> str:
    return EMPTY if value is None else amount(value, judged.claim.quantity)


def _best(material: Material, label: str, advised: Advised) -> list[Block]:
    """The combination that gained most, with its processes of their own."""
    if advised.best is None:
        if not advised.combined or not advised.is_decided:
            return []
        text = "Nothing of it makes this training faster without changing what is trained."
        return [Paragraph(text=text)]
    trial, change = advised.best
    text = f"The best that was found, of what trains the same: throughput {format_change(change)}"
    text += " in turns with the scenario itself"
    rates = {cell.scenario: cell.samples_per_s for cell in material.cells if cell.run == label}
    if trial.with_it in rates and trial.without in rates:
        again = rates[trial.with_it] / rates[trial.without] - 1
        text += f"; {format_change(again)} in fresh processes of their own, one after the other"
    return [
        Paragraph(text=f"{text}. The command that measures it:"),
        Code(text=command(trial.with_it)),
    ]

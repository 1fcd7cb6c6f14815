"""Statements about one workload on one device, for the summary.

A statement rests on matched pairs alone: two scenarios of one run, measured on the same machine,
software and commit, that differ in what the statement is about and are equal in every other
field. Scenarios whose gradient scaler skipped steps take part in none, for a skipped step is a
fast one.
"""

from collections.abc import Iterator

from stepmark.record import PHASES
from stepmark.report.axis_findings import axis_findings
from stepmark.report.blocks import Finding
from stepmark.report.cells import AXES, SETTING, Cell, Group, axis_default
from stepmark.report.contrast import THROUGHPUT, contrast
from stepmark.report.material import Material
from stepmark.report.wording import axis_words, from_to, listed, percent, sentence
from stepmark.units import format_rate, format_seconds

# From this share on, waiting for data is worth a sentence; from one half on it is the bottleneck.
_NOTABLE_WAIT = 0.2
_LOADER_BOUND = 0.5
_NOTABLE_PART = 0.1


def group_findings(material: Material, group: Group) -> Iterator[Finding]:
    """All statements that the cells of a group support, the most wanted first."""
    yield _fastest(material, group)
    yield from _time(material, group)
    by_lead: dict[str, list[str]] = {}
    for finding in axis_findings(material, group):
        by_lead.setdefault(finding.lead, []).append(finding.text)
    for lead, texts in by_lead.items():
        yield Finding(lead=lead, text=" ".join(texts))


def _rate(cell: Cell) -> str:
    """``1,234 samples/s (3 processes: 1,200 to 1,250)``."""
    rate = f"{format_rate(cell.samples_per_s)} samples/s"
    values = cell.values(THROUGHPUT)
    if len(values) == 1:
        return f"{rate} (one process)"
    return f"{rate} ({len(values)} processes: {from_to(values, format_rate)})"


def _fastest(material: Material, group: Group) -> Finding:
    best = group.fastest
    if best is None:
        text = "Not said, since the gradient scaler skipped steps in every scenario."
        return Finding(lead="Fastest", text=text)
    others = [cell for cell in group.trusted if cell is not best]
    text = f"{sentence(group.label(best))}: {_rate(best)}"
    text += f", {format_seconds(best.mean_step_s)} a step."
    if not others:
        return Finding(lead="One scenario", text=text)
    slowest = min(others, key=lambda cell: cell.samples_per_s)
    against_slowest = contrast(best, slowest, group.cells)
    found = [against_slowest.in_words(f"the slowest ({_named(group, slowest)})")]
    plain = plain_partner(material, best)
    if plain is not None and plain is not slowest:
        name = f"the plain loop at that batch size ({_named(group, plain)})"
        found.append(contrast(best, plain, group.cells).in_words(name))
    text += f" That is {' and '.join(found)}."
    near = [_named(group, cell) for cell in as_fast(group)]
    if near and against_slowest.is_shown:
        more = f"; and {len(near) - 3} more" if len(near) > 3 else ""
        text += f" Too close to the fastest to be told from it: {'; '.join(near[:3])}{more}."
    return Finding(lead="Fastest", text=text)


def as_fast(group: Group) -> list[Cell]:
    """Cells that cannot be told from the fastest, the faster ones first."""
    best = group.fastest
    if best is None:
        return []
    near = [c for c in group.trusted if c is not best]
    near = [c for c in near if not contrast(best, c, group.cells).is_shown]
    return sorted(near, key=lambda cell: -cell.samples_per_s)


def _named(group: Group, cell: Cell) -> str:
    return f"{group.label(cell)}: {format_rate(cell.samples_per_s)}"


def plain_partner(material: Material, cell: Cell) -> Cell | None:
    """The plain loop at a cell's batch size and threads: every other axis at its default."""
    plain = {axis: axis_default(axis) for axis in AXES if axis not in SETTING}
    return material.partner(cell, **plain)


def _time(material: Material, group: Group) -> Iterator[Finding]:
    best = group.fastest
    if best is None:
        return
    largest = sorted(PHASES, key=best.share, reverse=True)
    shown = [p for p in largest if best.share(p) >= _NOTABLE_PART or p == "data_wait"]
    shares = listed([f"{p.replace('_', ' ')} {percent(best.share(p))}" for p in shown])
    what = " of the fastest" if len(group.cells) > 1 else ""
    step = format_seconds(best.typical.row()["phase_step_s"])
    yield Finding(lead="Time", text=f"With phase marks, a step{what} takes {step}: {shares}.")
    waiting = max(group.trusted, key=lambda cell: cell.share("data_wait"))
    if waiting.share("data_wait") >= _NOTABLE_WAIT:
        yield Finding(lead="Data wait", text=_waiting(material, group, waiting))


def _waiting(material: Material, group: Group, most: Cell) -> str:
    share = most.share("data_wait")
    bound = "loader-bound" if share >= _LOADER_BOUND else "notable, but not most of it"
    text = f"At most {percent(share)} of the step, at {group.label(most)}: {bound}."
    counts = {c.scenario.num_workers for c in group.cells}
    remedies = [
        (cell, other)
        for cell in group.trusted
        for num_workers in counts
        if cell.share("data_wait") >= _NOTABLE_WAIT
        and (other := material.partner(cell, num_workers=num_workers)) is not None
        and not other.skipped_steps
    ]
    if not remedies:
        return f"{text} Not measured with another number of workers, all else equal."
    # The scenario that waits most, with the number of workers that it waits least with.
    cell, other = max(
        remedies, key=lambda pair: (pair[0].share("data_wait"), -pair[1].share("data_wait"))
    )
    where = "" if cell is most else f" at {group.label(cell)}"
    workers = axis_words("num_workers", other.scenario.num_workers)
    before, after = cell.share("data_wait"), other.share("data_wait")
    return (
        f"{text} With {workers} in place of {cell.scenario.num_workers}{where}, all else equal, it "
        f"goes from {percent(before)} to {percent(after)}; throughput: "
        f"{contrast(other, cell, group.cells).in_words()}."
    )

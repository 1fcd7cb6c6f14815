"""Statements about one axis each: what changing it, and nothing else, did."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from stepmark.choices import CompileMode, Task
from stepmark.report.blocks import Finding
from stepmark.report.break_even import compile_cost_s, paid_after_steps
from stepmark.report.cells import AXES, Cell, Group, axis_default, axis_key, neutral
from stepmark.report.contrast import Contrast, Verdict, contrast, contrast_in, tally
from stepmark.report.material import Material
from stepmark.report.readings import DDP_SYNC, median_of, per_process
from stepmark.report.wording import axis_lead, axis_words, count, from_to, percent, sentence
from stepmark.units import format_seconds

_MEMORY_COLUMNS = {
    "peak_allocated_bytes": "peak allocated memory",
    "peak_host_bytes": "peak host memory",
}
Pair = tuple[Cell, Cell]


def axis_findings(material: Material, group: Group) -> Iterator[Finding]:
    """Statements on every axis that varies, and on the device; a new axis gets its own too."""
    for axis in AXES:
        if axis in group.varying:
            yield from _OF_AXIS.get(axis, _any_axis)(material, group, axis)
    yield from _device(material, group)
    yield from _task(material, group)


def _batch_size(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    series: dict[object, list[Cell]] = {}
    for cell in group.trusted:
        series.setdefault((neutral(cell.scenario, [axis]), cell.conditions), []).append(cell)
    longest = max(series.values(), key=lambda s: (len(s), group.fastest in s), default=[])
    if len(longest) < 2:
        return
    cells = sorted(longest, key=lambda cell: cell.scenario.batch_size)
    smallest, largest = cells[0].scenario.batch_size, cells[-1].scenario.batch_size
    top = max(cells, key=lambda cell: cell.samples_per_s)
    rest = group.axes_label(cells[0].scenario, leave_out=[axis])
    setting = f" ({rest})" if rest else ""
    whole = contrast(cells[-1], cells[0], group.cells).in_words()
    text = f"Throughput from {smallest} to {largest}{setting}: {whole}."
    if top is not cells[-1]:
        beyond = contrast(cells[-1], top, group.cells)
        if beyond.is_shown:
            text += f" Above {top.scenario.batch_size} it falls: {beyond.in_words()} at {largest}."
    elif len(cells) > 2:
        last = contrast(cells[-1], cells[-2], group.cells).in_words()
        text += f" From {cells[-2].scenario.batch_size} to {largest} alone: {last}."
    for column, name in _MEMORY_COLUMNS.items():
        memory = contrast_in(column, cells[-1], cells[0], group.cells)
        if memory is not None:
            text += f" {sentence(name)} from {smallest} to {largest}: {memory.in_words()}."
            break
    text += " A larger batch also trains in fewer, larger steps: this says nothing on learning."
    yield Finding(lead="Batch size", text=text)


def _values(group: Group, axis: str) -> tuple[Any, list[Any]]:
    """The value that the others of an axis are held against, and the others."""
    values = sorted({getattr(cell.scenario, axis) for cell in group.cells}, key=axis_key)
    base = axis_default(axis) if axis_default(axis) in values else values[0]
    return base, [value for value in values if value != base]


def _pairs(
    material: Material, group: Group, change: Callable[[Cell], dict[str, Any] | None]
) -> list[Pair]:
    """Trusted cells, each with the trusted one that has these fields and is equal otherwise.

    Args:
        material: holds the partners.
        group: whose cells are tested.
        change: the partner's fields; ``None`` leaves a cell out.
    """
    return [
        (cell, other)
        for cell in group.trusted
        if (fields := change(cell)) is not None
        and (other := material.partner(cell, **fields)) is not None
        and not other.skipped_steps
    ]


def _pairs_along(material: Material, group: Group, axis: str, value: Any, base: Any) -> list[Pair]:
    """Cells with ``value`` on the axis, each with the one that has ``base`` there."""
    return _pairs(
        material, group, lambda c: {axis: base} if getattr(c.scenario, axis) == value else None
    )


def _tally(pairs: Sequence[Pair], group: Group) -> str:
    found = [contrast(tested, against, group.cells) for tested, against in pairs]
    return tally(found, group.label, more="faster", less="slower")


def _memory(pairs: Sequence[Pair], group: Group) -> str:
    """A sentence on the first kind of memory that is known; empty if none is."""
    name, known = _memory_contrasts(pairs, group)
    text = tally(known, group.label, more="more", less="less") if known else ""
    return f" {sentence(name)}: {text}." if text else ""


def _memory_contrasts(pairs: Sequence[Pair], group: Group) -> tuple[str, list[Contrast]]:
    for column, name in _MEMORY_COLUMNS.items():
        found = [contrast_in(column, tested, against, group.cells) for tested, against in pairs]
        known = [c for c in found if c is not None]
        if known:
            return name, known
    return "", []


def _any_axis(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    base, values = _values(group, axis)
    for value in values:
        pairs = _pairs_along(material, group, axis, value, base)
        if pairs:
            text = _against(pairs, group, axis, value, base)
            yield Finding(lead=axis_lead(axis), text=text)


def _against(pairs: Sequence[Pair], group: Group, axis: str, value: Any, base: Any) -> str:
    names = f"{axis_words(axis, value)} against {axis_words(axis, base)}"
    found = [contrast(tested, against, group.cells) for tested, against in pairs]
    label = partial(group.label, leave_out=[axis])
    return f"{sentence(names)}: {tally(found, label, more='faster', less='slower')}."


def _compile(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    base, values = _values(group, axis)
    for value in values:
        pairs = _pairs_along(material, group, axis, value, base)
        if pairs:
            text = _against(pairs, group, axis, value, base)
            if base is CompileMode.OFF:
                text += f" {_paid_after(pairs, group)}"
            yield Finding(lead=axis_lead(axis), text=text)


def _paid_after(pairs: Sequence[Pair], group: Group) -> str:
    costs_s = [cost_s for compiled, _ in pairs if (cost_s := compile_cost_s(compiled)) is not None]
    if not costs_s:
        return ""
    text = f"Compiling takes {from_to(costs_s, format_seconds)}"
    found = [paid_after_steps(compiled, eager, group.cells) for compiled, eager in pairs]
    steps = [float(number) for number in found if number is not None]
    if not steps:
        return f"{text}; this run does not show that it is ever paid back."
    where = "" if len(steps) == len(found) else f", in {len(steps)} of {len(found)} pairs"
    return f"{text}, paid back after {from_to(steps, '{:,.0f}'.format)} steps{where}."


def _axis_with_memory(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    """As `_any_axis`, with memory where it differs."""
    base, values = _values(group, axis)
    for value in values:
        pairs = _pairs_along(material, group, axis, value, base)
        if pairs:
            text = _against(pairs, group, axis, value, base)
            name, known = _memory_contrasts(pairs, group)
            if any(c.is_shown for c in known):
                label = partial(group.label, leave_out=[axis])
                text += f" {sentence(name)}: {tally(known, label, more='more', less='less')}."
            yield Finding(lead=axis_lead(axis), text=text)


def _num_workers(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    base, values = _values(group, axis)
    for value in values:
        pairs = _pairs_along(material, group, axis, value, base)
        if pairs:
            before = from_to([against.share("data_wait") for _, against in pairs], percent)
            after = from_to([tested.share("data_wait") for tested, _ in pairs], percent)
            text = (
                f"{axis_words(axis, value)} against {base}: {_tally(pairs, group)}. "
                f"Data wait is {after} of the step, against {before}."
            )
            yield Finding(lead="Workers", text=text)


def _precision(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    base, values = _values(group, axis)
    for value in values:
        pairs = _pairs_along(material, group, axis, value, base)
        skipping = [c for c in group.cells if c.skipped_steps and c.scenario.precision == value]
        text = (
            f"{value} against {base} {_pays(pairs, group)}: {_tally(pairs, group)}."
            f"{_memory(pairs, group)}"
            if pairs
            else f"{value} against {base}: not compared."
        )
        if skipping:
            number = count(len(skipping), "scenario")
            text += f" Left out: {number} in which the gradient scaler skipped steps."
        if pairs or skipping:
            yield Finding(lead="Precision", text=text)


def _pays(pairs: Sequence[Pair], group: Group) -> str:
    verdicts = {contrast(tested, against, group.cells).verdict for tested, against in pairs}
    if verdicts == {Verdict.MORE}:
        return "pays here"
    if Verdict.MORE in verdicts:
        return "pays in part"
    return "does not pay here" if verdicts == {Verdict.LESS} else "is not shown to pay here"


def _accumulation(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    base, values = _values(group, axis)
    for value in values:
        pairs = _pairs_along(material, group, axis, value, base)
        if pairs:
            text = f"{value} micro-batches a step against {base}: {_tally(pairs, group)}."
            yield Finding(lead="Accumulation", text=f"{text}{_memory(pairs, group)}")
        # The same samples per step as one batch: what accumulation is for.
        pairs = _pairs(material, group, partial(_as_one_batch, accumulation=value))
        if pairs:
            names = f"{value} micro-batches a step against one batch of as many samples"
            text = f"{names}: {_tally(pairs, group)}.{_memory(pairs, group)}"
            yield Finding(lead="Accumulation", text=text)


def _as_one_batch(cell: Cell, accumulation: int) -> dict[str, Any] | None:
    if cell.scenario.accumulation != accumulation:
        return None
    return {"accumulation": 1, "batch_size": cell.scenario.batch_size * accumulation}


def _world_size(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    _, values = _values(group, axis)
    for value in values:
        pairs = _pairs_along(material, group, axis, value, 1)
        if pairs:
            text = (
                f"{value} ranks against one process: {_tally(pairs, group)}. "
                f"Efficiency, the throughput over {value} times that of one: "
                f"{_efficiency(pairs, value, group)}."
            )
            text += _shared_threads(pairs) if group.device == "cpu" else ""
            yield Finding(lead="DDP", text=text + _sync([ranks for ranks, _ in pairs]))


def _efficiency(pairs: Sequence[Pair], world_size: int, group: Group) -> str:
    """With how far noise may have moved it, both ways, where repeats tell."""
    found = [contrast(ranks, one, group.cells) for ranks, one in pairs]
    written = from_to([c.ratio / world_size for c in found], percent)
    if any(len(cell.results) == 1 for pair in pairs for cell in pair):
        return written
    low = min(c.ratio / (1 + c.band) for c in found) / world_size
    high = max(c.ratio * (1 + c.band) for c in found) / world_size
    text = f"{written} (as far as this run can tell, {from_to([low, high], percent)})"
    if low > 1:
        text += ", which is more than linear: see what held up the one process"
    return text


def _shared_threads(pairs: Sequence[Pair]) -> str:
    ranks, one = (
        from_to([rank.num_threads for cell in cells for r in cell.results for rank in r.ranks], str)
        for cells in zip(*pairs, strict=True)
    )
    return (
        f" The ranks share this machine's CPUs: compute threads per rank {ranks}, in one process "
        f"{one}."
    )


def _sync(cells: Sequence[Cell]) -> str:
    known = [cell for cell in cells if median_of(cell, DDP_SYNC) is not None]
    if not known:
        return ""
    costs_s = [cost_s for cell in known for cost_s in per_process(cell, DDP_SYNC)]
    span = from_to(costs_s, format_seconds)
    text = f" Synchronizing gradients costs {span} a step"
    costly = [cell for cell in known if min(per_process(cell, DDP_SYNC)) > 0]
    if not costly:
        return f" Synchronizing gradients: no cost that this run can show ({span} a step)."
    if len(costly) < len(known):
        return f"{text}, a cost that this run shows in {len(costly)} of {len(known)} scenarios."
    shares = [(median_of(cell, DDP_SYNC) or 0.0) / cell.mean_step_s for cell in known]
    return f"{text}, {from_to(shares, percent)} of it."


def _ddp(material: Material, group: Group, axis: str) -> Iterator[Finding]:
    pairs = _pairs(
        material,
        group,
        lambda c: {axis: False} if c.scenario.ddp and c.scenario.world_size == 1 else None,
    )
    if pairs:
        text = f"One process wrapped in DDP against the plain loop: {_tally(pairs, group)}."
        yield Finding(lead="DDP", text=text)


def _device(material: Material, group: Group) -> Iterator[Finding]:
    pairs = _pairs(
        material, group, lambda c: {"device": "cpu"} if c.scenario.device != "cpu" else None
    )
    if pairs:
        yield Finding(lead="Device", text=f"{group.device} against cpu: {_tally(pairs, group)}.")


def _task(material: Material, group: Group) -> Iterator[Finding]:
    if group.task is Task.TRAIN:
        return
    pairs = _pairs(
        material,
        group,
        lambda c: {"task": Task.TRAIN, "no_grad": True, "inference_mode": False},
    )
    if pairs:
        text = f"{sentence(axis_words('task', group.task))} against training: "
        text += f"{_tally(pairs, group)}.{_memory(pairs, group)}"
        yield Finding(lead="Task", text=text)


_OF_AXIS: dict[str, Callable[[Material, Group, str], Iterator[Finding]]] = {
    "batch_size": _batch_size,
    "num_workers": _num_workers,
    "precision": _precision,
    "accumulation": _accumulation,
    "world_size": _world_size,
    "ddp": _ddp,
    "no_grad": _axis_with_memory,
    "inference_mode": _axis_with_memory,
    "compile": _compile,
    "optimizer": _axis_with_memory,
    "set_to_none": _axis_with_memory,
}

"""What scenarios reach of what this machine can attain, and what holds them back."""

from collections.abc import Sequence

from stepmark.report.blocks import Block, Paragraph, Plot, Table
from stepmark.report.cells import Cell, Group
from stepmark.report.drawing import MOST_LINES, Roof, chunks, draw_roofline
from stepmark.report.material import Material
from stepmark.report.readings import write_value
from stepmark.report.wording import EMPTY, known, percent
from stepmark.result import Result
from stepmark.units import format_bytes, format_flops

# Where neither ceiling accounts for so much of a step, something else holds it back.
_BINDING = 0.3
_MOST_ROOFS = 3


def roofline(material: Material) -> Sequence[Block]:
    """Fractions of the attainable, the roofline, and which ceiling binds."""
    blocks: list[Block] = []
    for group in material.groups():
        cells = [cell for cell in group.cells if cell.typical.attainable_fraction is not None]
        if not cells:
            continue
        blocks += _plots(group, cells)
        header = (
            "scenario", "reached", "attainable", "part of it", "FLOP per byte", "of the datasheet",
            "held back by",
        )  # fmt: skip
        rows = [_row(group.label(cell), cell.typical) for cell in cells]
        table = Table(
            header=header,
            rows=rows,
            caption=f"{group.title}: reached and attainable",
            text_columns=frozenset({0, len(header) - 1}),
            foldable=True,
        )
        blocks.append(table.without_empty_columns())
    explained = Paragraph(
        text="Attainable is what 'stepmark calibrate' measured on this machine: FLOP/s of a large "
        "matrix product or convolution in the same precision with no fewer threads, and memory "
        "bandwidth. FLOP per byte is the step's operations over the least that it must move if no "
        "cache helps. A step is held back by data if it waits for batches in more than "
        f"{percent(_BINDING)} of its time; by compute or memory if that ceiling alone accounts "
        "for as much; by neither where both account for less: launches, Python, small operators, "
        "or more traffic than the least. With autocast the least traffic is not known."
    )
    return (explained, *blocks) if blocks else ()


def _plots(group: Group, cells: Sequence[Cell]) -> list[Plot]:
    placed = [cell for cell in cells if _intensity(cell.typical) is not None]
    plots = []
    for number, some in enumerate(chunks(placed, MOST_LINES)):
        roofs: dict[tuple[float, float], str] = {}
        points = {}
        for cell in some:
            result = cell.typical
            ceilings = (
                _reading(result, "attainable_compute"),
                _reading(result, "attainable_memory"),
            )
            flops, bytes_per_s = ceilings
            label = f"{format_flops(flops)}/s, {format_bytes(bytes_per_s)}/s attainable"
            roofs.setdefault(ceilings, label)
            intensity, achieved = _intensity(result), result.achieved_flops
            assert intensity is not None
            assert achieved is not None
            points[group.label(cell)] = (intensity, achieved)
        drawn = [
            Roof(label=label, flops=flops, bytes_per_s=bytes_per_s)
            for (flops, bytes_per_s), label in list(roofs.items())[:_MOST_ROOFS]
        ]
        title = f"Roofline: {group.title}" + (f", part {number + 1}" if number else "")
        figure = draw_roofline(points, drawn, title=group.title)
        plots.append(Plot(title=title, figure=figure, wide=True))
    return plots


def _row(label: str, result: Result) -> tuple[str, ...]:
    def rate(value: float | None) -> str:
        return known(value, lambda v: f"{format_flops(v)}/s")

    return (
        label,
        rate(result.achieved_flops),
        rate(result.reading_of_any("attainable_compute")),
        known(result.attainable_fraction, percent),
        known(_intensity(result), lambda value: f"{value:.3g}"),
        known(result.reading_of_any("mfu_datasheet"), lambda value: write_value(value, "fraction")),
        binding(result) or EMPTY,
    )


def binding(result: Result) -> str:
    """What a step is held back by, in a word; empty where nothing is known."""
    row = result.row()
    step_s = row["window_s"] / row["steps"]
    if row["data_wait_s"] > _BINDING * row["phase_step_s"]:
        return "data"
    fraction = result.attainable_fraction
    if fraction is None:
        return ""
    moved, bandwidth = (
        result.reading_of_any(name) for name in ("least_bytes_per_step", "attainable_memory")
    )
    if fraction >= _BINDING and not (moved and bandwidth):
        return "compute"
    if not (moved and bandwidth):
        return ""
    memory = moved / bandwidth / step_s
    if memory > 1:
        # It moves less, since caches hold much of it.
        memory = 0.0
    if max(fraction, memory) < _BINDING:
        return "neither"
    return "compute" if fraction >= memory else "memory"


def _intensity(result: Result) -> float | None:
    """Operations per byte; ``None`` where one of them, or a ceiling, is not known."""
    flops, moved = (
        result.reading_of_any(name) for name in ("flops_per_step", "least_bytes_per_step")
    )
    if not flops or not moved or result.reading_of_any("attainable_memory") is None:
        return None
    return flops / moved


def _reading(result: Result, name: str) -> float:
    value = result.reading_of_any(name)
    assert value is not None
    return value

"""What scenarios reach of what this machine can attain, and what holds them back."""

from collections.abc import Sequence

from stepmark.report.binding import BINDING, LIMITS, binding, shares
from stepmark.report.blocks import Block, Paragraph, Plot, Table
from stepmark.report.cells import Cell, Group
from stepmark.report.drawing import MOST_LINES, Roof, chunks, draw_roofline
from stepmark.report.material import Material
from stepmark.report.readings import write_value
from stepmark.report.wording import EMPTY, known, percent
from stepmark.result import Result
from stepmark.units import format_bytes, format_flops

_MOST_ROOFS = 3


def roofline(material: Material) -> Sequence[Block]:
    """Fractions of the attainable, the roofline, and which ceiling binds."""
    blocks: list[Block] = []
    for group in material.groups():
        cells = [cell for cell in group.cells if shares(cell.typical)]
        if not cells:
            continue
        blocks += _plots(group, cells)
        header = (
            "scenario", "reached", "attainable", *LIMITS, "FLOP per byte", "of the datasheet",
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
        "cache helps. Each ceiling alone accounts for a part of the step: compute, memory, copies "
        "to the device, all-reduce of the gradients, decoding of JPEG files. A step is held back "
        f"by data if it waits for batches in more than {percent(BINDING)} of its time; else by the "
        "ceiling that accounts for most, and for as much; by none of these where all account for "
        "less: launches, Python, small operators, or more traffic than the least. Decoding goes on "
        "beside the step, and counts only where that waits for data. With autocast "
        "the least traffic is not known."
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

    found = shares(result)
    return (
        label,
        rate(result.achieved_flops),
        rate(result.reading_of_any("attainable_compute")),
        *(known(found.get(name), percent) for name in LIMITS),
        known(_intensity(result), lambda value: f"{value:.3g}"),
        known(result.reading_of_any("mfu_datasheet"), lambda value: write_value(value, "fraction")),
        binding(result) or EMPTY,
    )


def _intensity(result: Result) -> float | None:
    """Operations per byte; ``None`` where one of them, or a ceiling, is not known."""
    flops, moved = (
        result.reading_of_any(name) for name in ("flops_per_step", "least_bytes_per_step")
    )
    ceilings = [result.reading_of_any(f"attainable_{name}") for name in ("compute", "memory")]
    if not flops or not moved or None in ceilings:
        return None
    return flops / moved


def _reading(result: Result, name: str) -> float:
    value = result.reading_of_any(name)
    assert value is not None
    return value

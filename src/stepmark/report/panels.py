"""Small plots along one axis: one for each workload, device and setting of the other axes."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepmark.report.blocks import Block, Paragraph, Plot
from stepmark.report.cells import Cell, Group, axis_key, neutral, num_off_default
from stepmark.report.drawing import MOST_LINES, Line, chunks, draw_lines
from stepmark.report.material import Material
from stepmark.report.wording import axis_words, count
from stepmark.scenario import Scenario

# More panels of one kind than this say little more; the table of every scenario has them all.
_MOST_PANELS = 6


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What is drawn upwards.

    Attributes:
        name: without its unit.
        unit: of its values.
        values: of a cell's repeats; empty leaves the cell out.
        ideal: a level to hold the lines against.
    """

    name: str
    unit: str
    values: Callable[[Cell], Sequence[float]]
    ideal: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is drawn along, and what makes a line.

    Attributes:
        axis: along which.
        label: its name, with what is counted.
        lines: the axis that has a line for each value.
        log2: the axis is drawn in doublings.
    """

    axis: str
    label: str
    lines: str
    log2: bool = False


def panels(material: Material, sweep: Sweep, quantities: Sequence[Quantity]) -> list[Block]:
    """The plots of a sweep; none where no two measured scenarios differ along it."""
    blocks: list[Block] = []
    num_left_out = 0
    for group in material.groups():
        settings = sorted(_settings(group, sweep).items(), key=lambda s: num_off_default(s[0]))
        num_left_out += max(0, len(settings) - _MOST_PANELS)
        for rest, cells in settings[:_MOST_PANELS]:
            setting = group.axes_label(rest, leave_out=(sweep.axis, sweep.lines, "ddp"))
            for quantity in quantities:
                blocks += _plots(group, setting, cells, sweep, quantity)
    if num_left_out:
        text = f"{count(num_left_out, 'more setting')} of the other axes left out here; "
        blocks.append(Paragraph(text=f"{text}they are in the table of every scenario."))
    return blocks


def _plots(
    group: Group, setting: str, cells: Sequence[Cell], sweep: Sweep, quantity: Quantity
) -> list[Plot]:
    return [
        Plot(
            title=f"{quantity.name} against {sweep.axis.replace('_', ' ')}: "
            + ", ".join(filter(None, [group.title, setting])),
            figure=draw_lines(
                lines,
                title="\n".join(filter(None, [group.title, setting])),
                x_label=sweep.label,
                y_label=f"{quantity.name} ({quantity.unit})",
                x_log2=sweep.log2,
                ideal=quantity.ideal,
            ),
        )
        for lines in chunks(_lines(group, cells, sweep, quantity), MOST_LINES)
    ]


def _settings(group: Group, sweep: Sweep) -> dict[Scenario, list[Cell]]:
    """Cells that differ only along the sweep and its lines, where two differ along it."""
    gathered: dict[Scenario, list[Cell]] = {}
    for cell in group.cells:
        rest = cell.scenario
        if sweep.axis == "world_size":
            if rest.world_size == 1 and rest.ddp:
                continue  # stands beside the plain loop, not on its line: it is in the table
            rest = dataclasses.replace(rest, ddp=False)
        gathered.setdefault(neutral(rest, (sweep.axis, sweep.lines)), []).append(cell)
    return {
        rest: cells
        for rest, cells in gathered.items()
        if len({getattr(cell.scenario, sweep.axis) for cell in cells}) > 1
    }


def _lines(group: Group, cells: Sequence[Cell], sweep: Sweep, quantity: Quantity) -> list[Line]:
    points: dict[tuple[str, object], dict[float, Sequence[float]]] = {}
    for cell in cells:
        values = quantity.values(cell)
        if values:
            line = points.setdefault((cell.run, getattr(cell.scenario, sweep.lines)), {})
            line[getattr(cell.scenario, sweep.axis)] = values
    runs = list(dict.fromkeys(cell.run for cell in cells))
    ordered = sorted(points, key=lambda key: (runs.index(key[0]), axis_key(key[1])))
    return [
        Line(
            label=(f"{run}: " if group.several_runs else "") + axis_words(sweep.lines, value),
            points=points[run, value],
        )
        for run, value in ordered
        if len(points[run, value]) > 1
    ]

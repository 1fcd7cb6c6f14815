"""What a step, memory and start-up are made of."""

import statistics
from collections.abc import Callable, Sequence

from stepmark.record import PHASES, StartUp
from stepmark.report.blocks import Block, Paragraph, Plot, Table
from stepmark.report.cells import Cell, Group
from stepmark.report.drawing import chunks, draw_grouped_bars, draw_stacked_bars
from stepmark.report.material import Material
from stepmark.report.readings import EPOCH_TURN, median_of
from stepmark.report.wording import known, percent
from stepmark.units import format_bytes, format_seconds

# As many bars as one image carries with readable labels.
_MOST_BARS = 24
_MEMORY = {
    "peak_allocated_bytes": "allocated",
    "peak_reserved_bytes": "reserved",
    "nvml_used_bytes": "device in use (NVML)",
    "peak_host_bytes": "host (with workers)",
}
_START_UP = {
    "process": "process_s",
    "import": "import_s",
    "build": "build_s",
    "process group": "process_group_s",
    "first batch": "first_batch_s",
    "first step": "first_step_s",
}


def phases(material: Material) -> Sequence[Block]:
    """The phases of a step as stacked bars in seconds, and as fractions."""
    blocks: list[Block] = [
        Paragraph(
            text="Mean seconds per optimizer step on the slowest rank, from the window with phase "
            "marks, of the process with the median throughput. The phases sum to the step. "
            "Backward includes DDP's gradient all-reduce; other is what no phase claims."
        )
    ]
    for group in material.groups():
        blocks += _stacked(
            group,
            title="Phases of a step",
            quantity="time per optimizer step",
            parts=lambda cell: {p: cell.typical.row()[f"{p}_s"] for p in PHASES},
        )
        rows = [
            (
                group.label(cell),
                format_seconds(cell.typical.row()["phase_step_s"]),
                *(percent(cell.share(phase)) for phase in PHASES),
            )
            for cell in group.cells
        ]
        header = ("scenario", "step", *(phase.replace("_", " ") for phase in PHASES))
        blocks.append(_table(header, rows, f"{group.title}: shares of a step"))
    return blocks if material.cells else ()


def memory(material: Material) -> Sequence[Block]:
    """Every kind of memory that was read, as bars and as a table."""
    blocks: list[Block] = []
    for group in material.groups():
        names = {
            column: name
            for column, name in _MEMORY.items()
            if any(cell.median(column) is not None for cell in group.cells)
        }
        if not names:
            continue
        highest = max(max(c.values(column), default=0.0) for c in group.cells for column in names)
        scale, unit = (1 << 30, "GiB") if highest >= 4 << 30 else (1 << 20, "MiB")
        for number, cells in enumerate(chunks(group.cells, _MOST_BARS)):
            figure = draw_grouped_bars(
                [group.label(cell) for cell in cells],
                {
                    name: [_scaled(cell.median(column), scale) for cell in cells]
                    for column, name in names.items()
                },
                title=group.title,
                x_label=f"peak memory ({unit})",
            )
            title = f"Peak memory: {group.title}" + (f", part {number + 1}" if number else "")
            blocks.append(Plot(title=title, figure=figure, wide=True))
        rows = [
            (
                group.label(cell),
                *(known(cell.median(column), format_bytes) for column in _MEMORY),
                known(_workers_bytes(cell), format_bytes),
            )
            for cell in group.cells
        ]
        header = ("scenario", *_MEMORY.values(), "of it loader workers")
        blocks.append(_table(header, rows, f"{group.title}: peak memory"))
    explained = Paragraph(
        text="Medians over repeats. Allocated and reserved are the worst rank's tensors and the "
        "caching allocator's hold on the accelerator; device in use is by anyone. Host is the "
        "growth over the rank's own start, summed over ranks, with what loader workers have to "
        "themselves."
    )
    return (explained, *blocks) if blocks else ()


def start_up(material: Material) -> Sequence[Block]:
    """The ledger of the time before the first step's end, and the cost of an epoch's turn."""
    blocks: list[Block] = [
        Paragraph(
            text="From the request for a scenario until its first step was done, on the rank that "
            "took longest, of the process with the median throughput. None of it is in the "
            "throughput."
        )
    ]
    for group in material.groups():
        blocks += _stacked(
            group,
            title="Start-up",
            quantity="time until the first step was done",
            parts=lambda cell: {
                name: getattr(_ledger(cell), field) for name, field in _START_UP.items()
            },
        )
        rows = [
            (
                group.label(cell),
                format_seconds(_ledger(cell).total_s),
                # A part that does not exist, such as a process group without ranks, took 0 seconds.
                *(
                    known(getattr(_ledger(cell), field) or None, format_seconds)
                    for field in _START_UP.values()
                ),
                known(median_of(cell, EPOCH_TURN), format_seconds),
            )
            for cell in group.cells
        ]
        header = ("scenario", "total", *_START_UP, "turn of an epoch")
        blocks.append(_table(header, rows, f"{group.title}: start-up"))
    return blocks if material.cells else ()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Table:
    table = Table(header=header, rows=rows, caption=caption, foldable=True)
    return table.without_empty_columns()


def _stacked(
    group: Group, *, title: str, quantity: str, parts: Callable[[Cell], dict[str, float]]
) -> list[Plot]:
    plots = []
    for number, cells in enumerate(chunks(group.cells, _MOST_BARS)):
        by_cell = [parts(cell) for cell in cells]
        columns = {name: [values[name] for values in by_cell] for name in by_cell[0]}
        figure = draw_stacked_bars(
            [group.label(cell) for cell in cells],
            {name: column for name, column in columns.items() if any(column)},
            title=group.title,
            quantity=quantity,
        )
        name = f"{title}: {group.title}" + (f", part {number + 1}" if number else "")
        plots.append(Plot(title=name, figure=figure, wide=True))
    return plots


def _ledger(cell: Cell) -> StartUp:
    return max((rank.startup for rank in cell.typical.ranks), key=lambda s: s.total_s)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def _workers_bytes(cell: Cell) -> float | None:
    """Memory of all ranks' loader workers, as the median over repeats."""
    sums = []
    for result in cell.results:
        parts = [rank.memory.workers_bytes for rank in result.ranks]
        if None not in parts:
            sums.append(sum(part for part in parts if part is not None))
    return statistics.median(sums) if sums else None

"""Readings (whatever was measured beside time), gathered over ranks and repeats."""

import statistics
from collections.abc import Callable, Iterable

from stepmark.record import Reading
from stepmark.report.cells import Cell
from stepmark.units import format_bytes, format_flops, format_percent, format_rate, format_seconds

_WRITERS: dict[str, Callable[[float], str]] = {
    "s": format_seconds,
    "bytes": format_bytes,
    "fraction": format_percent,
    "flop": format_flops,
}
# Shown beside the ledger of start-up: what a turn of the epoch costs.
EPOCH_TURN = "epoch_turn"
# Seconds of a step that synchronizing gradients costs.
DDP_SYNC = "ddp_sync"
# What compiling a model costs.
COMPILER_START = "compiler_start"
COMPILE_TIME = "compile_time"
# Of the layers that a rank of a pipeline has.
STAGE_PARAMETERS = "stage_parameters"


def write_value(value: float, unit: str) -> str:
    """A reading's value with its unit."""
    if unit in _WRITERS:
        return _WRITERS[unit](value)
    number = format_rate(value) if abs(value) >= 100 else f"{value:.4g}"
    return number if unit in ("count", "ratio", "") else f"{number} {unit}"


def is_ddp(name: str) -> bool:
    """Whether a reading belongs to the section on DDP."""
    return name.startswith(("ddp_", "straggler"))


def all_readings(cell: Cell) -> list[Reading]:
    """Every reading of every rank and repeat."""
    return [
        reading for result in cell.results for rank in result.ranks for reading in rank.readings
    ]


def values_of(cell: Cell, name: str) -> list[float]:
    """A reading's values over ranks and repeats, those that could be read."""
    return [r.value for r in all_readings(cell) if r.name == name and r.value is not None]


def per_process(cell: Cell, name: str) -> list[float]:
    """A reading of the slowest rank in each repeat that has it."""
    return [v for result in cell.results if (v := result.reading(name)) is not None]


def median_of(cell: Cell, name: str) -> float | None:
    """A reading of the slowest rank, as the median over repeats; ``None`` if there is none."""
    values = per_process(cell, name)
    return statistics.median(values) if values else None


def names_and_units(cells: Iterable[Cell], wanted: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Names with units of the readings there are, in order of appearance."""
    found = (
        (reading.name, reading.unit)
        for cell in cells
        for reading in all_readings(cell)
        if wanted(reading.name)
    )
    return list(dict.fromkeys(found))

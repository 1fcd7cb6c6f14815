"""Throughput along one axis at a time: batch size, workers, accumulation, ranks."""

from collections.abc import Callable, Sequence
from functools import partial

from stepmark.report.blocks import Block, Paragraph, Table
from stepmark.report.cells import Cell, Group
from stepmark.report.material import Material
from stepmark.report.panels import Quantity, Sweep, panels
from stepmark.report.readings import is_ddp, median_of, names_and_units, write_value
from stepmark.report.wording import known
from stepmark.units import format_percent, format_rate, format_seconds


def _column(column: str, scale: float = 1.0) -> Callable[[Cell], Sequence[float]]:
    return lambda cell: [value / scale for value in cell.values(column)]


_MIB = 1 << 20
_THROUGHPUT = Quantity(name="throughput", unit="samples/s", values=_column("samples_per_s"))
_HOST_MEMORY = Quantity(
    name="peak host memory", unit="MiB", values=_column("peak_host_bytes", _MIB)
)
_DEVICE_MEMORY = Quantity(
    name="peak allocated memory", unit="MiB", values=_column("peak_allocated_bytes", _MIB)
)


def batch_size(material: Material) -> Sequence[Block]:
    """Throughput against batch size, a line per precision."""
    sweep = Sweep(
        axis="batch_size",
        label="batch size (samples per rank and micro-batch)",
        lines="precision",
        log2=True,
    )
    return panels(material, sweep, [_THROUGHPUT])


def num_workers(material: Material) -> Sequence[Block]:
    """Throughput against loader workers, a line per batch size."""
    sweep = Sweep(axis="num_workers", label="data-loader workers (per rank)", lines="batch_size")
    return panels(material, sweep, [_THROUGHPUT])


def accumulation(material: Material) -> Sequence[Block]:
    """Throughput and peak memory against accumulation, a line per batch size."""
    sweep = Sweep(
        axis="accumulation",
        label="accumulation (micro-batches per optimizer step)",
        lines="batch_size",
        log2=True,
    )
    return panels(material, sweep, [_THROUGHPUT, _DEVICE_MEMORY, _HOST_MEMORY])


def ddp(material: Material) -> Sequence[Block]:
    """Throughput and efficiency against world size, and what DDP itself was seen to cost."""
    tables = [
        table for group in material.groups() if (table := _ddp_table(material, group)) is not None
    ]
    if not tables:
        return ()
    explained = Paragraph(
        text="Each rank keeps its own batch size, so a step of more ranks has more samples (weak "
        "scaling). Efficiency is samples/s over world size times samples/s of one process: of "
        "the plain loop, and of one process wrapped in DDP where that was measured. Ranks on a "
        "CPU share its cores: see the threads per rank."
    )
    efficiency = Quantity(
        name="efficiency",
        unit="%",
        values=lambda cell: _efficiencies(material, cell),
        ideal=100.0,
    )
    sweep = Sweep(axis="world_size", label="world size (ranks)", lines="batch_size")
    return (explained, *panels(material, sweep, [_THROUGHPUT, efficiency]), *tables)


def _efficiencies(material: Material, cell: Cell) -> Sequence[float]:
    if cell.scenario.world_size == 1:
        return (100.0,)
    one = material.partner(cell, world_size=1, ddp=False)
    if one is None:
        return ()
    ideal = cell.scenario.world_size * one.samples_per_s
    return [100.0 * value / ideal for value in cell.values("samples_per_s")]


def _ddp_table(material: Material, group: Group) -> Table | None:
    cells = [cell for cell in group.cells if cell.scenario.wraps_in_ddp]
    if not cells:
        return None
    readings = names_and_units(cells, is_ddp)
    rows = []
    for cell in cells:
        slowest = cell.typical.slowest
        assert slowest is not None, "a cell has records"
        rows.append(
            (
                group.label(cell),
                str(slowest.num_threads),
                format_rate(cell.samples_per_s),
                known(material.efficiency(cell, ddp=False), format_percent),
                known(material.efficiency(cell, ddp=True), format_percent),
                format_seconds(cell.mean_step_s),
                *(
                    known(median_of(cell, name), partial(write_value, unit=unit))
                    for name, unit in readings
                ),
            )
        )
    header = (
        "scenario",
        "threads per rank",
        "samples/s",
        "efficiency against plain",
        "efficiency against DDP at 1",
        "mean step",
        *(name for name, _ in readings),
    )
    return Table(header=header, rows=rows, caption=group.title).without_empty_columns()

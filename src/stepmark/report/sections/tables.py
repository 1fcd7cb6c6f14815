"""Tables of everything: every scenario with its spread, other readings, what did not run."""

import statistics
from collections.abc import Sequence
from functools import partial

from stepmark.record import PHASES
from stepmark.report.blocks import Block, Code, Finding, Findings, Heading, Paragraph, Table
from stepmark.report.cells import Cell
from stepmark.report.material import Failure, Material
from stepmark.report.readings import (
    COMPILE_TIME,
    COMPILER_START,
    EPOCH_TURN,
    STAGE_PARAMETERS,
    all_readings,
    is_ddp,
    names_and_units,
    values_of,
    write_value,
)
from stepmark.report.wording import EMPTY, from_to, known, spanned
from stepmark.result import COLUMNS, Outcome
from stepmark.units import format_rate, format_seconds

# Columns of the flat table that other sections show; any other one is shown as a reading.
_SHOWN_COLUMNS = {
    "scenario_id", "workload", "device", "batch_size", "num_workers", "precision",
    "accumulation", "world_size", "repeat", "outcome", "reason", "samples_per_s", "steps",
    "window_s", "step_s_median", "step_s_p90", "step_s_p99", "step_s_min", "phase_step_s",
    "peak_allocated_bytes", "peak_reserved_bytes", "peak_host_bytes", "nvml_used_bytes",
    "first_step_s", "final_loss", "energy_j", "attainable_fraction",
    *(f"{phase}_s" for phase in PHASES),
}  # fmt: skip
_SHOWN_READINGS = {
    EPOCH_TURN, "energy", "mfu_datasheet", STAGE_PARAMETERS,
    COMPILER_START, COMPILE_TIME, "compiled_graphs", "graph_breaks", "recompilations",
}  # fmt: skip
_COLUMN_UNITS = {"s": "s", "bytes": "bytes", "j": "J", "fraction": "fraction", "step": "flop"}
# The alarming ones first.
_OUTCOMES = (Outcome.FAILED, Outcome.OOM, Outcome.TIMEOUT, Outcome.OK, Outcome.SKIPPED)
_MOST_DETAIL_CHARS = 20_000


def every_scenario(material: Material) -> Sequence[Block]:
    """One row per scenario, over its repeats."""
    if not material.cells:
        return ()
    rows = [
        (
            cell.scenario.id,
            cell.run if material.several_runs else EMPTY,
            format_rate(cell.samples_per_s),
            from_to(cell.values("samples_per_s"), format_rate) if len(cell.results) > 1 else EMPTY,
            str(len(cell.results)),
            *(
                known(cell.median(column), format_seconds)
                for column in ("step_s_median", "step_s_p90", "step_s_p99")
            ),
            known(_observer_effect(cell), _near_one),
            _losses(cell),
            from_to([r.warmup.num_steps for result in cell.results for r in result.ranks], str),
        )
        for group in material.groups()
        for cell in group.cells
    ]
    header = (
        "scenario",
        "run",
        "samples/s",
        "smallest to largest",
        "processes",
        "median step",
        "p90 step",
        "p99 step",
        "step with marks",
        "loss, first to last",
        "warm-up steps",
    )
    explained = Paragraph(
        text="Samples/s and step times are medians over the processes (fresh repeats); smallest "
        "to largest is the range of samples/s. Step with marks is the observer effect: the mean "
        "step with phase marks over the one without, where 1.00 is no effect."
    )
    table = Table(header=header, rows=rows, text_columns=frozenset({0, 1}))
    return (explained, table.without_empty_columns())


def _near_one(ratio: float) -> str:
    """A ratio near one: ``1.02×``."""
    return f"{ratio:.2f}×"


def other_readings(material: Material) -> Sequence[Block]:
    """Whatever was measured that no other section shows; a new probe needs no change here."""
    table = _readings_table(material)
    blocks: list[Block] = [table] if table else []
    notes = {
        (reading.name, reading.note): None
        for cell in material.cells
        for reading in all_readings(cell)
        if reading.note
    }
    if notes:
        items = [Finding(lead=name, text=note) for name, note in notes]
        blocks += [Heading(text="Notes on readings"), Findings(items=items)]
    return blocks


def _is_other(name: str) -> bool:
    """Whether a reading is shown neither by another section nor by a column of its own."""
    shown = name in _SHOWN_READINGS or name in COLUMNS or is_ddp(name)
    return not shown and not name.startswith("attainable_")


def _readings_table(material: Material) -> Table | None:
    cells = [cell for group in material.groups() for cell in group.cells]
    readings = names_and_units(cells, _is_other)
    columns = [
        column
        for column in COLUMNS
        if column not in _SHOWN_COLUMNS and any(cell.values(column) for cell in cells)
    ]
    if not readings and not columns:
        return None
    rows = [
        (
            cell.scenario.id,
            cell.run if material.several_runs else EMPTY,
            *(_written(cell.values(column), _column_unit(column)) for column in columns),
            *(_written(values_of(cell, name), unit) for name, unit in readings),
        )
        for cell in cells
    ]
    header = ("scenario", "run", *columns, *(name for name, _ in readings))
    table = Table(
        header=header,
        rows=rows,
        caption="Median (smallest to largest over ranks and repeats)",
        text_columns=frozenset({0, 1}),
        foldable=True,
    )
    return table.without_empty_columns()


def _written(values: Sequence[float], unit: str) -> str:
    if not values:
        return EMPTY
    return spanned(statistics.median(values), values, partial(write_value, unit=unit))


def _column_unit(column: str) -> str:
    return _COLUMN_UNITS.get(column.rpartition("_")[2], "")


def did_not_run(material: Material) -> Sequence[Block]:
    """Every measurement without numbers, with its reason, and those never reached."""
    repeats: dict[tuple[str, Outcome, str, str], list[int]] = {}
    for failure in sorted(material.failures, key=lambda f: _OUTCOMES.index(f.result.outcome)):
        result = failure.result
        key = (failure.run, result.outcome, result.scenario.id, result.reason)
        repeats.setdefault(key, []).append(result.repeat)
    rows = [
        (scenario, run if material.several_runs else EMPTY, outcome.value, _numbers(numbers), why)
        for (run, outcome, scenario, why), numbers in repeats.items()
    ]
    missing: dict[tuple[str, str], list[int]] = {}
    for run, read in material.runs.items():
        for scenario, repeat in read.missing:
            missing.setdefault((run, scenario), []).append(repeat)
    why = "planned, but the run was interrupted before it; --resume completes the run"
    rows += [
        (scenario, run if material.several_runs else EMPTY, "missing", _numbers(numbers), why)
        for (run, scenario), numbers in missing.items()
    ]
    if not rows:
        return ()
    header = ("scenario", "run", "outcome", "repeats", "reason")
    table = Table(header=header, rows=rows, text_columns=frozenset(range(5)))
    return (table.without_empty_columns(), *_details(material.failures))


def _numbers(repeats: Sequence[int]) -> str:
    return ", ".join(str(number) for number in sorted(repeats))


def _details(failures: Sequence[Failure]) -> list[Code]:
    first_with: dict[str, Failure] = {}
    for failure in failures:
        is_error = failure.result.outcome is not Outcome.SKIPPED
        if is_error and failure.result.detail.strip():
            first_with.setdefault(failure.result.detail.strip(), failure)
    return [
        Code(
            text=detail[-_MOST_DETAIL_CHARS:],
            folded_under=f"{failure.result.scenario.id}, repeat {failure.result.repeat}: "
            f"{failure.result.outcome.value}, {failure.result.reason}",
        )
        for detail, failure in first_with.items()
    ]


def _observer_effect(cell: Cell) -> float | None:
    effects = [e for result in cell.results if (e := result.observer_effect) is not None]
    return statistics.median(effects) if effects else None


def _losses(cell: Cell) -> str:
    first = [rank.first_loss for rank in cell.typical.ranks_with_loss]
    last = cell.typical.row()["final_loss"]
    losses = [loss for loss in first if loss is not None]
    if last is None or len(losses) < len(first):
        return EMPTY
    return f"{statistics.fmean(losses):.4g} → {last:.4g}"

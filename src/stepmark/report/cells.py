"""Cells (a scenario over its repeats) and groups of them (one workload on one device)."""

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from stepmark import stats
from stepmark.choices import Task
from stepmark.report.wording import axis_words
from stepmark.result import Result
from stepmark.scenario import Scenario

AXES = tuple(f.name for f in dataclasses.fields(Scenario) if f.name not in ("workload", "device"))
# Axes that say what is done, how large it is and what it runs on, not how its loop is written.
SETTING = ("batch_size", "threads", "task")
# Axes whose default is a choice like any other; for the rest, the default is their absence.
_NAMED_AT_DEFAULT = ("num_workers", "precision")
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Scenario)}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One scenario of one run, with its measured repeats (fresh processes).

    Attributes:
        run: the run's label.
        scenario: what was measured.
        results: those with records, at least one.
    """

    run: str
    scenario: Scenario
    results: tuple[Result, ...]

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return [result.row() for result in self.results]

    def values(self, column: str) -> tuple[float, ...]:
        """A column of the flat table over the repeats, those that know it."""
        return tuple(row[column] for row in self._rows if row[column] is not None)

    def median(self, column: str) -> float | None:
        """The column's median over the repeats; ``None`` if none knows it."""
        values = self.values(column)
        return statistics.median(values) if values else None

    def spread(self, column: str) -> float | None:
        """Largest minus smallest repeat over their median; ``None`` for fewer than two."""
        values = self.values(column)
        return stats.spread(values) if len(values) > 1 and self.median(column) else None

    @property
    def samples_per_s(self) -> float:
        """Median throughput over the repeats."""
        return statistics.median(self.values("samples_per_s"))

    @cached_property
    def typical(self) -> Result:
        """The repeat with the (lower) median throughput.

        Breakdowns are taken from it whole, since medians of the parts of a step would not sum
        to a step.
        """
        by_rate = sorted(self.results, key=lambda result: result.samples_per_s or 0.0)
        return by_rate[(len(by_rate) - 1) // 2]

    def share(self, phase: str) -> float:
        """A phase's fraction of the step, in the typical repeat."""
        row = self.typical.row()
        return float(row[f"{phase}_s"] / row["phase_step_s"])

    @property
    def mean_step_s(self) -> float:
        """Seconds per optimizer step, at the cell's throughput."""
        return self.scenario.samples_per_step / self.samples_per_s

    @property
    def joules_per_sample(self) -> float | None:
        """As the median over repeats; ``None`` if no device told."""
        found = [v for result in self.results if (v := result.joules_per_sample) is not None]
        return statistics.median(found) if found else None

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps that gradient scalers are known to have skipped, over all processes."""
        skipped = (rank.skipped_steps for result in self.results for rank in result.ranks)
        return sum(number for number in skipped if number is not None)

    @cached_property
    def conditions(self) -> frozenset[Any]:
        """What the repeats ran on and with; cells are only compared where these are equal."""
        return frozenset(_conditions(result) for result in self.results)


def _conditions(result: Result) -> tuple[Any, ...]:
    return (
        frozenset(result.machine.hardware.items()),
        frozenset(result.machine.software.items()),
        (result.commit.id, result.commit.dirty) if result.commit else None,
    )


@dataclass(frozen=True, kw_only=True)
class Group:
    """All cells of one workload and task on one device.

    Attributes:
        workload, device, task: what they have in common.
        name: the workload's name, short where that is unambiguous.
        cells: in order of the axes, then of the runs.
        several_runs: labels must name the run.
    """

    workload: str
    device: str
    task: Task
    name: str
    cells: tuple[Cell, ...]
    several_runs: bool

    @property
    def title(self) -> str:
        """Such as ``mlp-toy on cpu``; training goes without saying."""
        what = "" if self.task is Task.TRAIN else f", {axis_words('task', self.task)}"
        return f"{self.name} on {self.device}{what}"

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Axes with more than one value here."""
        return tuple(
            axis for axis in AXES if len({getattr(c.scenario, axis) for c in self.cells}) > 1
        )

    @cached_property
    def trusted(self) -> tuple[Cell, ...]:
        """The cells to compare: those whose gradient scaler skipped no step, which looks fast."""
        return tuple(cell for cell in self.cells if not cell.skipped_steps)

    @property
    def fastest(self) -> Cell | None:
        """The trusted cell with the highest throughput; ``None`` if none is trusted."""
        return max(self.trusted, key=lambda cell: cell.samples_per_s, default=None)

    def axes_label(self, scenario: Scenario, leave_out: Iterable[str] = ()) -> str:
        """The axes that tell a scenario from the others: ``batch 64, 2 workers, bf16``.

        Args:
            scenario: one of this group, or one made by `neutral`.
            leave_out: axes that are said elsewhere.
        """
        named = (axis for axis in AXES if axis not in leave_out and self._is_named(scenario, axis))
        return ", ".join(axis_words(axis, getattr(scenario, axis)) for axis in named)

    def _is_named(self, scenario: Scenario, axis: str) -> bool:
        if axis == "task":
            return False  # the group's title says it
        if axis == "ddp":
            # More ranks are always wrapped in DDP; only at one process is it worth a word.
            return scenario.ddp and scenario.world_size == 1
        if axis in _NAMED_AT_DEFAULT and axis in self.varying:
            return True
        return axis == "batch_size" or bool(getattr(scenario, axis) != _DEFAULTS[axis])

    def label(self, cell: Cell, leave_out: Iterable[str] = ()) -> str:
        """A cell's name inside its group, with its run where there are several."""
        label = self.axes_label(cell.scenario, leave_out)
        return f"{cell.run}: {label}" if self.several_runs else label


def neutral(scenario: Scenario, axes: Iterable[str]) -> Scenario:
    """The scenario with these axes at their default: equal for all that differ in them alone."""
    return dataclasses.replace(scenario, **{axis: _DEFAULTS[axis] for axis in axes})


def axis_default(axis: str) -> Any:
    """The value of a scenario's field that nobody gave."""
    return _DEFAULTS[axis]


def num_off_default(scenario: Scenario) -> int:
    """How many axes are off their default, those of the `SETTING` aside."""
    return sum(getattr(scenario, a) != _DEFAULTS[a] for a in AXES if a not in SETTING)


def axis_key(value: Any) -> tuple[int, Any]:
    """A key that sorts the values of an axis: choices as declared, ``None`` first."""
    if isinstance(value, StrEnum):
        return (1, list(type(value)).index(value))
    return (0, 0) if value is None else (1, value)


def axes_key(scenario: Scenario) -> tuple[Any, ...]:
    """A key that sorts scenarios of one workload and device."""
    return tuple(axis_key(getattr(scenario, axis)) for axis in AXES)

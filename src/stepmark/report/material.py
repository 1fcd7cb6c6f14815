"""What a report is made from: runs gathered into cells, with what failed and what is missing."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepmark.choices import Task
from stepmark.profile import Profile
from stepmark.report.cells import Cell, Group, axes_key
from stepmark.report.wording import shorten
from stepmark.result import Result
from stepmark.scenario import Scenario
from stepmark.store import Run


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A measurement that gave no numbers.

    Attributes:
        run: the run's label.
        result: with its outcome, reason and detail.
    """

    run: str
    result: Result


class Material:
    """Everything a report shows: the cells, what failed, what is missing."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = _labelled(runs)
        gathered: dict[tuple[str, Scenario], list[Result]] = {}
        self.failures: list[Failure] = []
        for label, run in self.runs.items():
            for result in run.results:
                if result.slowest is None:
                    self.failures.append(Failure(run=label, result=result))
                else:
                    gathered.setdefault((label, result.scenario), []).append(result)
        cells = [
            Cell(run=label, scenario=scenario, results=tuple(results))
            for (label, scenario), results in gathered.items()
        ]
        places = {label: place for place, label in enumerate(self.runs)}
        self.cells = sorted(cells, key=lambda cell: (axes_key(cell.scenario), places[cell.run]))
        self._profiles = {
            (label, profile.scenario): profile
            for label, run in self.runs.items()
            for profile in run.profiles
        }
        self._by_scenario = {(cell.run, cell.scenario): cell for cell in self.cells}

    @property
    def results(self) -> list[Result]:
        """Every result of every run."""
        return [result for run in self.runs.values() for result in run.results]

    @property
    def several_runs(self) -> bool:
        """Whether names must say the run."""
        return len(self.runs) > 1

    def groups(self, run: str | None = None) -> list[Group]:
        """The cells by workload, device and task, in the order in which they were first measured.

        Args:
            run: the cells of this run alone, without naming it in labels.
        """
        short = Counter(shorten(name) for name in {r.scenario.workload for r in self.results})
        members: dict[tuple[str, str, Task], list[Cell]] = {}
        for result in self.results:
            members.setdefault(_kind(result.scenario), [])
        for cell in self.cells:
            if run in (None, cell.run):
                members[_kind(cell.scenario)].append(cell)
        return [
            Group(
                workload=workload,
                device=device,
                task=task,
                name=shorten(workload) if short[shorten(workload)] == 1 else workload,
                cells=tuple(cells),
                several_runs=self.several_runs and run is None,
            )
            for (workload, device, task), cells in members.items()
            if cells
        ]

    def profile(self, cell: Cell) -> Profile | None:
        """What the profiler found of a cell; ``None`` if it was not asked."""
        return self._profiles.get((cell.run, cell.scenario))

    def partner(self, cell: Cell, **changes: Any) -> Cell | None:
        """The cell of the same run that differs in exactly these fields.

        ``None`` if it was not measured, or on another machine, software or commit.
        """
        wanted = dataclasses.replace(cell.scenario, **changes)
        other = self._by_scenario.get((cell.run, wanted))
        if other is None or other is cell or other.conditions != cell.conditions:
            return None
        return other

    def efficiency(self, cell: Cell, *, ddp: bool) -> float | None:
        """Samples/s over world size times samples/s of one process.

        Args:
            cell: the one asked about.
            ddp: hold it against one process wrapped in DDP, not against the plain loop.

        Returns:
            ``None`` where that one process was not measured.
        """
        one = self.partner(cell, world_size=1, ddp=ddp)
        if one is None:
            return None
        return cell.samples_per_s / (cell.scenario.world_size * one.samples_per_s)


def _kind(scenario: Scenario) -> tuple[str, str, Task]:
    return scenario.workload, scenario.device, scenario.task


def _labelled(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by a label each: the name, or the path where two have the same name."""
    distinct = {run.path.resolve(): run for run in runs}
    names = Counter(run.name for run in distinct.values())
    return {run.name if names[run.name] == 1 else str(run.path): run for run in distinct.values()}

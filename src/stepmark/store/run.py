"""What a run is: what it set out to measure, and what of it was measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepmark.advice import Trial
from stepmark.profile import Profile
from stepmark.result import AXIS_COLUMNS, COLUMNS, Result
from stepmark.scenario import Plan, Scenario
from stepmark.training import TrainingRecord

if TYPE_CHECKING:
    import pandas as pd

RUN_FILE = "run.json"
PROFILES = "profiles"
TRIALS = "advice"
TRAININGS = "trainings"
INTEGER_COLUMNS = tuple(c for c in COLUMNS if c.endswith("_bytes") or c == "steps")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run set out to measure.

    Attributes:
        created_at: ISO 8601 with time zone.
        plan: how long each scenario is measured.
        scenarios: in measuring order; the plan's repeats multiply them. Empty for a run whose
            scenarios are only known one by one (pytest).
    """

    created_at: str
    plan: Plan
    scenarios: tuple[Scenario, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A saved run, read back.

    Attributes:
        name: the folder's name, or the file's stem.
        path: where it was read from.
        results: in the order in which they were measured.
        profiles: of scenarios that were profiled.
        trials: of advice.
        trainings: that have finished an epoch, or ended without one.
        by_pytest: its scenarios came from tests, which alone can measure it again whole.
        missing: planned scenario ids and repeats without a result: the run was interrupted.
    """

    name: str
    path: Path
    results: tuple[Result, ...]
    profiles: tuple[Profile, ...] = ()
    trials: tuple[Trial, ...] = ()
    trainings: tuple[TrainingRecord, ...] = ()
    by_pytest: bool = False
    missing: tuple[tuple[str, int], ...] = ()

    def table(self, *, all_axes: bool = False) -> "pd.DataFrame":
        """The flat table: one row per scenario and repeat, columns as in `table`."""
        return table(self.results, all_axes=all_axes)


def table(results: Iterable[Result], *, all_axes: bool = False) -> "pd.DataFrame":
    """The flat table of results, unknown cells empty.

    Args:
        results: of a run.
        all_axes: `AXIS_COLUMNS` behind `COLUMNS`.
    """
    import pandas as pd

    columns = [*COLUMNS, *AXIS_COLUMNS] if all_axes else list(COLUMNS)
    rows = [result.row_with_axes() if all_axes else result.row() for result in results]
    frame = pd.DataFrame(rows, columns=columns)
    # Whole numbers stay whole where a cell is empty; NumPy would make them floats.
    whole = [column for column in (*INTEGER_COLUMNS, "threads") if column in columns]
    return frame.astype(dict.fromkeys(whole, "Int64"))

"""What a gate has measured, in a file of its own as soon as it was."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stepmark import store
from stepmark.compare import output
from stepmark.compare.verdict import Comparison, Verdict
from stepmark.errors import StoreError
from stepmark.fingerprint import Machine
from stepmark.gate.pairs import Pair, SideRecord
from stepmark.gate.trial import Trial, step_s
from stepmark.scenario import Scenario

# Below the folder of results.
FOLDER = "gates"


class Record:
    """A gate's file: every window of every pair, and what came of them.

    Args:
        results: folder of results.
        title: what is compared.
        machines: this machine, as base's and head's processes see it.
        facts: what else to tell.

    Attributes:
        title: what is compared.
        path: the file.
        skipped: why scenarios can run on neither side, by id.

    Raises:
        StoreError: (from everything) the file cannot be written.
    """

    def __init__(
        self,
        results: Path,
        title: str,
        machines: tuple[Machine, Machine],
        facts: Mapping[str, object],
    ) -> None:
        folder = results / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be made ({error.strerror})") from None
        self.title = title
        self.path = folder / f"{store.new_name()}.json"
        self._facts = {
            **facts,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": machines[1].hardware,
            "software": {"base": machines[0].software, "head": machines[1].software},
        }
        self._is_finished = False
        self.skipped: dict[str, str] = {}
        self._comparisons: dict[str, Comparison] = {}
        self._trials: dict[str, Trial] = {}
        self._unfinished: list[Pair] = []
        self._save()

    @property
    def comparisons(self) -> list[Comparison]:
        """Of all scenarios, as they were tried last."""
        return list(self._comparisons.values())

    def plan(self, scenarios: Iterable[Scenario]) -> None:
        """What is to be tried; until it was, it is missing."""
        for scenario in scenarios:
            self.miss(scenario, "not measured: the gate was interrupted")

    def finish(self) -> None:
        """All that was planned has been tried."""
        self._is_finished = True
        self._save()

    def skip(self, scenario: Scenario, reason: str) -> None:
        """A scenario that can run on neither side."""
        self.skipped[scenario.id] = reason
        self._save()

    def miss(self, scenario: Scenario, reason: str) -> None:
        """A scenario that can run on one side alone."""
        self._comparisons[scenario.id] = Comparison(
            scenario_id=scenario.id, verdict=Verdict.MISSING, reason=reason
        )
        self._save()

    def add_pair(self, pair: Pair) -> None:
        """Take in a pair of a trial that is not over."""
        self._unfinished.append(pair)
        self._save()

    def add(self, trial: Trial) -> None:
        """Take in a trial; the same scenario's earlier one is replaced."""
        self._comparisons[trial.scenario.id] = trial.comparison
        self._trials[trial.scenario.id] = trial
        self._unfinished.clear()
        self._save()

    def write(self, format: str) -> str:
        """All of it, in one of the formats of `stepmark.compare.output`."""
        if format == "json":
            return output.as_json(self._data())
        return output.write(self.comparisons, format, title=self.title, skipped=self.skipped)

    def _data(self) -> dict[str, Any]:
        data = output.as_data(self.comparisons, self.title, self.skipped)
        for comparison in data["comparisons"]:
            trial = self._trials.get(comparison["scenario_id"])
            comparison |= {"wall_s": 0.0, "pairs": []}
            if trial is not None:
                pairs = [_judged(pair, trial) for pair in trial.pairs]
                comparison |= {"wall_s": trial.wall_s, "pairs": pairs}
        unfinished = [_pair(pair) for pair in self._unfinished]
        return {
            **self._facts,
            "finished": self._is_finished,
            **data,
            "unfinished": unfinished,
        }

    def _save(self) -> None:
        store.write_text(self.path, output.as_json(self._data()))


def _judged(pair: Pair, trial: Trial) -> dict[str, Any]:
    data = _pair(pair)
    for name, record in (("base", pair.base), ("head", pair.head)):
        data[name]["step_s"] = step_s(record, trial.scenario, trial.percentile)
    return data


def _pair(pair: Pair) -> dict[str, Any]:
    return {"wall_s": pair.wall_s, "base": _side(pair.base), "head": _side(pair.head)}


def _side(record: SideRecord) -> dict[str, Any]:
    return {
        "num_steps": record.num_steps,
        "windows_s": record.windows_s,
        "counters": record.counters,
    }

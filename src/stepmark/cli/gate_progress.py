"""What a gate shows while it measures: how far it is on a terminal, lines alone elsewhere."""

import sys

from stepmark.cli.progress import StatusLine, time_left
from stepmark.gate.decision import FEWEST_PAIRS, NUM_SCREEN
from stepmark.gate.pairs import Pair
from stepmark.gate.trial import Trial
from stepmark.scenario import Scenario
from stepmark.units import format_change


class GateDisplay(StatusLine):
    """A line on how far a gate is. Use as a context."""

    _num_scenarios = _num_done = 0
    _num_fixed: int | None = None
    _scenario_id = ""
    _num_pairs = 0  # of the scenario on trial
    _pairs_done = 0
    _pairs_s = 0.0

    def begin(self, num_scenarios: int, num_fixed: int | None) -> None:
        """So many scenarios there are; of a fixed number of pairs each, if there is one."""
        self._num_scenarios, self._num_fixed = num_scenarios, num_fixed

    def on_pair(self, scenario: Scenario) -> None:
        """One more pair of a scenario is measured."""
        if scenario.id != self._scenario_id:
            self._scenario_id, self._num_pairs = scenario.id, 0
        self._num_pairs += 1
        number = min(self._num_done + 1, self._num_scenarios)
        self.draw(
            f"scenario {number} of {self._num_scenarios}", self._left(), self._what(), scenario.id
        )

    def on_pair_done(self, pair: Pair) -> None:
        """It was measured."""
        self._pairs_done += 1
        self._pairs_s += pair.wall_s

    def on_trial(self, trial: Trial) -> None:
        """A scenario has its verdict."""
        self._num_done += 1
        self._scenario_id, self._num_pairs = "", 0
        comparison = trial.comparison
        change = "" if comparison.change is None else f" {format_change(comparison.change)}"
        left = f"; {self._left()}" if self._num_done < self._num_scenarios else ""
        self.tell(
            f"{trial.scenario.id}: {comparison.verdict}{change} ({len(trial.pairs)} pairs, "
            f"{trial.wall_s:.0f} s){left}"
        )

    def tell(self, line: str) -> None:
        """A line that stays; in a log, where there is no terminal, too."""
        if self.is_shown:
            self.print(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def _what(self) -> str:
        if self._num_fixed is not None:
            return f"pair {self._num_pairs} of {self._num_fixed}"
        if self._num_pairs <= NUM_SCREEN:
            return f"pair {self._num_pairs} of {NUM_SCREEN}"
        return f"not clear yet: pair {self._num_pairs}"

    def _left(self) -> str:
        """If the scenarios to come are like those that were."""
        if not self._pairs_done:
            return ""
        each = self._num_fixed or NUM_SCREEN
        if self._num_done:
            each = max(each, (self._pairs_done - self._num_pairs) // self._num_done)
        here = self._num_fixed or NUM_SCREEN
        if self._num_pairs > here:
            here += FEWEST_PAIRS
        left = max(1, here - self._num_pairs + 1) if self._num_pairs else 0
        to_come = self._num_scenarios - self._num_done - (1 if self._num_pairs else 0)
        return time_left((left + each * max(0, to_come)) * self._pairs_s / self._pairs_done)

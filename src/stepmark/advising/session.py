"""One run of advice, from the scenario itself to the best combination."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stepmark import ceilings, machine, stats, store
from stepmark.advice import Trial, find
from stepmark.advice.catalogue import COMBINATIONS
from stepmark.advice.judgement import FEWEST_PAIRS, MOST_PAIRS, fewest_pairs
from stepmark.advising.combination import best as best_of
from stepmark.advising.combination import combination
from stepmark.advising.pairs import Pairs
from stepmark.advising.pursuit import needed_s, pursue, scatter
from stepmark.advising.trials import plan_trials
from stepmark.result import Outcome, Result
from stepmark.runner import Runner
from stepmark.scenario import Scenario

# Fresh processes of the scenario and of the best combination, for the figures at the end.
REPEATS = 3
# Part of the budget that is kept for combinations and for these.
_MOST_RESERVED = 0.4
# An interval that reaches further leaves room for gains that people would want.
_VAGUE = 0.1


class Watch:
    """Told how far a run of advice is; never called while something is measured."""

    def on_measuring(self, scenario: Scenario) -> None:
        """A scenario is measured in a fresh process."""

    def on_pair(self, trial: Trial, names: Sequence[str], left_s: float) -> None:
        """One more pair of a trial is measured; these are tried with it."""

    def on_estimate(self, needed_s: float, left_s: float) -> None:
        """What is to be decided takes about so long, of which there is less."""

    def warn(self, text: str) -> None:
        """Something to know before numbers come."""


class AdviceSession:
    """One run of advice.

    Args:
        folder: of the run; all that is measured goes there at once.
        runner: measures in fresh processes.
        watch: told how far it is.
        end_s: when the budget is over, by ``time.monotonic``.

    Attributes:
        scenario: what advice is tried on.
        trials, combinations: by name, with the pairs that they have.
        best: the combination that gains most, or the scenario; ``None`` until that is known.
        results: of the scenario and the best, in fresh processes.
    """

    def __init__(self, folder: store.RunFolder, runner: Runner, watch: Watch, end_s: float) -> None:
        self.folder = folder
        self.scenario = folder.planned.scenarios[0]
        self.trials: dict[str, Trial] = {}
        self.combinations: dict[str, Trial] = {}
        self.best: Scenario | None = None
        self.results: list[Result] = []
        self._runner = runner
        self._watch = watch
        self._end_s = end_s
        self._most_reserved_s = _MOST_RESERVED * (end_s - time.monotonic())
        self._has_estimated = False
        self._known = ceilings.load(folder.path.parent, runner.machine)

    def result(self, scenario: Scenario, repeat: int) -> Result:
        """Measured in a fresh process, or found; what failed before is tried once more."""
        found = self.folder.find(scenario, repeat)
        if found is None or found.outcome is not Outcome.OK:
            self._watch.on_measuring(scenario)
            found = self._runner.run(scenario, self.folder.planned.plan, repeat=repeat)
            found = ceilings.attach(found, self._known)
            self.folder.save(found)
        self.results.append(found)
        return found

    def plan(self, only: Sequence[str] | None) -> None:
        """What is to be tried: what was planned before, or all that was asked for.

        What failed before is tried once more.
        """
        commit = machine.commit(Path.cwd())
        trials = [trial for trial in self.folder.trials() if find(trial.advice)]
        if not trials:
            trials = plan_trials(self.scenario, self._runner.machine, only, commit)
            for trial in trials:
                self.folder.save_trial(trial)
        elif any(found != commit for trial in trials for found in trial.commits):
            self._watch.warn(
                "the code is of another commit than when this run was begun: its pairs are not all "
                "of one state"
            )
        self.trials = {t.advice: dataclasses.replace(t, failure="") for t in trials}

    def pursue(self, pairs: Pairs) -> None:
        """Measure pairs of the advice, and of what held together."""
        for trial in self._pursued(pairs, self.trials, self._reserve_s):
            self.trials[trial.advice] = trial
        wanted = self._combination()
        if not wanted:  # what was kept for it is free
            for trial in self._pursued(pairs, self.trials, self._remeasure_s):
                self.trials[trial.advice] = trial
            wanted = self._combination()
        saved = {trial.with_it: trial for trial in self.folder.trials() if not find(trial.advice)}
        self.folder.remove_trials(COMBINATIONS)
        for trial in wanted:
            then = saved.get(trial.with_it, trial)
            if len(then.pairs) > len(trial.pairs):
                trial = dataclasses.replace(then, advice=trial.advice, failure="")
            self.folder.save_trial(trial)
            self.combinations[trial.advice] = trial
        for trial in self._pursued(pairs, self.combinations, self._remeasure_s):
            self.combinations[trial.advice] = trial

    def _combination(self) -> list[Trial]:
        return combination(self.scenario, list(self.trials.values()), self._runner.machine)

    def _pursued(
        self, pairs: Pairs, trials: dict[str, Trial], reserve_s: Callable[[], float]
    ) -> Iterator[Trial]:
        def add(trial: Trial) -> Trial:
            self._watch.on_pair(trial, list(trials), self._end_s - time.monotonic())
            found = pairs.add_to(trial)
            self.folder.save_trial(found)
            if not self._has_estimated:
                self._has_estimated = True
                needed = needed_s({**trials, found.advice: found}.values())
                if needed > left_s():
                    self._watch.on_estimate(needed, max(0.0, left_s()))
            return found

        def left_s() -> float:
            return self._end_s - time.monotonic() - reserve_s()

        yield from pursue(list(trials.values()), add, left_s)

    def _remeasure_s(self) -> float:
        return (2 * REPEATS - 1) * self.results[0].wall_s

    def _reserve_s(self) -> float:
        """Seconds that combinations and the figures at the end will take, as far as is known."""
        walls = [pair.wall_s for trial in self.trials.values() for pair in trial.pairs]
        each_s = stats.median(walls) if walls else 0.0
        # The pairs of the best alone are those of its advice, as a rule.
        return min(FEWEST_PAIRS * each_s + self._remeasure_s(), self._most_reserved_s)

    def measure_best(self) -> None:
        """The scenario and the best combination in fresh processes, by turns.

        Nothing, while more time could show another one to be the best.
        """
        best = best_of(self.scenario, list(self.combinations.values()))
        if best == self.scenario and self.is_unfinished:
            return
        self.best = best
        for repeat in range(REPEATS):
            for scenario in dict.fromkeys((self.scenario, self.best)):
                if (scenario, repeat) != (self.scenario, 0):
                    self.result(scenario, repeat)

    @property
    def needed_s(self) -> float:
        """Seconds that what is left will take, about; 0 if nothing is, or nothing is known."""
        return needed_s([*self.trials.values(), *self.combinations.values()])

    @property
    def is_unfinished(self) -> bool:
        """Whether something is left that more time would decide."""
        trials = [*self.trials.values(), *self.combinations.values()]
        return any(
            not (trial.obstacle or trial.failure) and len(trial.pairs) < fewest_pairs(trial)
            for trial in trials
        )

    @property
    def is_vague(self) -> bool:
        """Whether pairs lie so far apart that more of them could still show something."""
        return any(
            not (trial.obstacle or trial.failure)
            and len(trial.pairs) < MOST_PAIRS
            and scatter(trial) > math.log1p(_VAGUE)
            for trial in self.trials.values()
        )

    @property
    def gain(self) -> float | None:
        """Median throughput of the best over the scenario's, in fresh processes.

        ``None`` if one of the best's was not measured, or its gradient scaler skipped steps.
        """
        best = [result for result in self.results if result.scenario == self.best]
        skipped = (rank.skipped_steps for result in best for rank in result.ranks)
        if any(result.outcome is not Outcome.OK for result in best) or any(skipped):
            return None
        rates = self.rates()
        then, now = (rates.get(s.id) for s in (self.scenario, self.best) if s is not None)
        return stats.median(now) / stats.median(then) if then and now else None

    def rates(self) -> dict[str, list[float]]:
        """Samples per second in fresh processes, by scenario id."""
        rates: dict[str, list[float]] = {}
        for result in self.results:
            if result.samples_per_s is not None:
                rates.setdefault(result.scenario.id, []).append(result.samples_per_s)
        return rates

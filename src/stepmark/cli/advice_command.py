"""``stepmark advice``."""

import dataclasses
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepmark import advising, ceilings, machine, stats, store, suite
from stepmark.advice import ADVICE, Trial, find
from stepmark.advice import output as written
from stepmark.advice.catalogue import COMBINATIONS
from stepmark.advice.judgement import FEWEST_PAIRS
from stepmark.choices import Task
from stepmark.cli.interrupt import INTERRUPTED, interrupt_once
from stepmark.cli.progress import StatusLine, time_left
from stepmark.console import show
from stepmark.errors import UsageError
from stepmark.result import Outcome, Result
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario
from stepmark.units import format_percent, format_rate

DEFAULT_WORKLOAD = "mlp-fashion-mnist"
# Fresh processes of the scenario and of the best combination, for the figures at the end.
_REPEATS = 3
_STEPS, _MAX_SECONDS = 200, 3.0
_TIMEOUT_S = 300.0
# Part of the budget that is kept for combinations and for these.
_MOST_RESERVED = 0.4


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for; the options of the command.

    Attributes:
        only: names of the advice to try; ``None`` tries all.
        budget_s: seconds for all of it.
        timeout: seconds that a process may take to get ready, and for a turn; ``None`` is what a
            run was begun with, or the default.
        name: of the run; ``None`` takes the time.
        results: folder of runs.
        resume: go on with the run of that name.
        json: print JSON.
    """

    only: tuple[str, ...] | None
    budget_s: float
    timeout: float | None
    name: str | None
    results: Path
    resume: bool
    json: bool


def advise(scenarios: list[Scenario] | None, asked: Asked) -> int:
    """Try advice on a scenario, save all that is measured, print what came out.

    Args:
        scenarios: one; ``None`` goes on with a run's own.
        asked: see there.

    Returns:
        The exit code: 0; 1 if the scenario itself cannot be measured; 130 if it was interrupted.

    Raises:
        UsageError: an option is wrong, or the run cannot be begun or gone on with.
        RunnerError: no process can be started.
        StoreError: something cannot be written or read.
    """
    _check(scenarios, asked)
    end_s = time.monotonic() + asked.budget_s
    interrupt_once(signal.SIGINT)
    session: _Session | None = None
    try:
        with AdviceDisplay(sys.stderr) as display, Runner() as runner:
            display.draw("starting the measuring processes")
            folder = _open(scenarios, asked, runner)
            session = _Session(folder, runner, display, end_s)
            session.plan(asked.only)
            base = session.result(session.scenario, 0)
            if base.outcome is not Outcome.OK:
                return _cannot_be_measured(base, asked)
            timeout = folder.planned.plan.timeout if asked.timeout is None else asked.timeout
            with advising.Pairs(timeout) as pairs:
                session.pursue(pairs)
            session.measure_best()
    except KeyboardInterrupt:
        if session is None:
            print("interrupted: nothing was measured", file=sys.stderr)
            return INTERRUPTED
        _show(session, asked)
        print(f"interrupted; go on with: {_resume_command(session.folder)}", file=sys.stderr)
        return INTERRUPTED
    _show(session, asked)
    if session.is_unfinished:
        print(
            "the budget ran out before all was decided; go on with: "
            + _resume_command(session.folder),
            file=sys.stderr,
        )
    return 0


def _cannot_be_measured(base: Result, asked: Asked) -> int:
    if asked.json:
        outcome = {"scenario_id": base.scenario.id, "outcome": base.outcome, "reason": base.reason}
        show(json.dumps(outcome, indent=2) + "\n")
    print(f"{base.scenario.id}: {base.outcome}: {base.reason}", file=sys.stderr)
    return 1


def _check(scenarios: list[Scenario] | None, asked: Asked) -> None:
    if asked.resume and asked.name is None:
        raise UsageError("--resume: say which run with --save NAME")
    for name in asked.only or ():
        if find(name) is None:
            known = ", ".join(advice.name for advice in ADVICE)
            raise UsageError(f"--only {name!r}: choose from {known}")
    if scenarios is None:
        return
    if len(scenarios) != 1:
        raise UsageError(
            f"advice: these axes make {len(scenarios)} scenarios; give one value to each"
        )
    if scenarios[0].task is not Task.TRAIN:
        raise UsageError(f"--task {scenarios[0].task}: advice is tried on training")
    suite.check(scenarios)


def _open(scenarios: list[Scenario] | None, asked: Asked, runner: Runner) -> store.RunFolder:
    if scenarios is None:
        assert asked.name is not None
        folder = store.RunFolder.reopen(asked.results, asked.name)
        if not folder.trials():
            raise UsageError(f"{folder.path}: is no run of 'stepmark advice'")
        for scenario in folder.planned.scenarios:
            saved = folder.find(scenario, 0)
            if saved is not None:
                suite.check_resumable(saved, folder, folder.planned.plan, runner)
        return folder
    name = store.new_name() if asked.name is None else asked.name
    store.unused_path(asked.results, name)
    plan = Plan(
        steps=_STEPS,
        max_seconds=_MAX_SECONDS,
        repeats=_REPEATS,
        timeout=_TIMEOUT_S if asked.timeout is None else asked.timeout,
    )
    return suite.begin(asked.results, name, suite.resolve(scenarios, runner), plan)


class _Session:
    """One run of advice, from the scenario itself to the best combination."""

    def __init__(
        self, folder: store.RunFolder, runner: Runner, display: "AdviceDisplay", end_s: float
    ) -> None:
        self.folder = folder
        self.scenario = folder.planned.scenarios[0]
        self.trials: dict[str, Trial] = {}
        self.combinations: dict[str, Trial] = {}
        self.best: Scenario | None = None
        self.results: list[Result] = []
        self._runner = runner
        self._display = display
        self._end_s = end_s
        self._most_reserved_s = _MOST_RESERVED * (end_s - time.monotonic())
        self._known = ceilings.load(folder.path.parent, runner.machine)

    def result(self, scenario: Scenario, repeat: int) -> Result:
        """Measured in a fresh process, or found."""
        found = self.folder.find(scenario, repeat)
        if found is None:
            self._display.draw("measuring", scenario.id)
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
            trials = advising.plan_trials(self.scenario, self._runner.machine, only, commit)
            for trial in trials:
                self.folder.save_trial(trial)
        elif any(trial.commit != commit for trial in trials if trial.pairs):
            self._display.warn(
                "the code is of another commit than when this run was begun: its pairs are not all "
                "of one state"
            )
        self.trials = {t.advice: dataclasses.replace(t, failure="") for t in trials}

    def pursue(self, pairs: advising.Pairs) -> None:
        """Measure pairs of the advice, and of what held together."""
        for trial in self._pursued(pairs, self.trials, self._reserve_s):
            self.trials[trial.advice] = trial
        wanted = advising.combination(
            self.scenario, list(self.trials.values()), self._runner.machine
        )
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

    def _pursued(
        self, pairs: advising.Pairs, trials: dict[str, Trial], reserve_s: Callable[[], float]
    ) -> Iterator[Trial]:
        def add(trial: Trial) -> Trial:
            self._display.on_pair(trial, list(trials), self._end_s - time.monotonic())
            found = pairs.add_to(trial)
            self.folder.save_trial(found)
            return found

        def left_s() -> float:
            return self._end_s - time.monotonic() - reserve_s()

        yield from advising.pursue(list(trials.values()), add, left_s)

    def _remeasure_s(self) -> float:
        return 2 * _REPEATS * self.results[0].wall_s

    def _reserve_s(self) -> float:
        """Seconds that combinations and the figures at the end will take, as far as is known."""
        walls = [pair.wall_s for trial in self.trials.values() for pair in trial.pairs]
        each_s = stats.median(walls) if walls else 0.0
        return min(2 * FEWEST_PAIRS * each_s + self._remeasure_s(), self._most_reserved_s)

    def measure_best(self) -> None:
        """The scenario and the best combination in fresh processes, by turns.

        Nothing, while more time could show another one to be the best.
        """
        best = advising.best(self.scenario, list(self.combinations.values()))
        if best == self.scenario and self.is_unfinished:
            return
        self.best = best
        for repeat in range(_REPEATS):
            for scenario in dict.fromkeys((self.scenario, self.best)):
                if (scenario, repeat) != (self.scenario, 0):
                    self.result(scenario, repeat)

    @property
    def is_unfinished(self) -> bool:
        """Whether something is left that more time would decide."""
        trials = [*self.trials.values(), *self.combinations.values()]
        return any(
            not (trial.obstacle or trial.failure) and len(trial.pairs) < FEWEST_PAIRS
            for trial in trials
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


def _show(session: _Session, asked: Asked) -> None:
    trials = [*session.trials.values(), *session.combinations.values()]
    if asked.json:
        best = None if session.best is None else written.Best(session.best, session.gain)
        show(written.as_json(trials, session.scenario, best, session.rates()))
    else:
        show(f"{session.scenario.id}\n\n{written.as_text(trials)}{_ending(session)}")
    print(f"saved: {session.folder.path}", file=sys.stderr)


def _ending(session: _Session) -> str:
    """What the best combination came to in fresh processes, and the command that measures it."""
    if session.best is None:
        return ""
    if session.best == session.scenario:
        return "nothing that was tried makes this training faster without changing it\n"
    rates = session.rates()
    lines = ["in fresh processes, samples per second:"]
    for scenario in (session.scenario, session.best):
        found = rates.get(scenario.id, [])
        if found:
            apart = f"{format_percent(stats.spread(found))} apart"
            middle = format_rate(stats.median(found))
            lines.append(f"  {middle}  ({len(found)} processes, {apart})  {scenario.id}")
    gain = session.gain
    if gain is None or gain <= 1:
        failed = [r for r in session.results if r.scenario == session.best and r.reason]
        why = f"{failed[0].outcome}: {failed[0].reason}" if failed else "no gain there"
        lines.append(f"the best that was found in turns was not confirmed by these: {why}")
    else:
        lines.append(f"the best that was found, {gain:.2f} times as fast in these:")
    lines += [f"  {written.command(session.best)}", ""]
    return "\n".join(lines)


def _resume_command(folder: store.RunFolder) -> str:
    words = ["stepmark", "advice", "--resume", "--save", folder.path.name]
    return shlex.join([*words, "--results", str(folder.path.parent)])


class AdviceDisplay(StatusLine):
    """A line on how far it is. Use as a context."""

    def on_pair(self, trial: Trial, names: Sequence[str], left_s: float) -> None:
        """One more pair of a trial is measured."""
        self.draw(
            f"{names.index(trial.advice) + 1} of {len(names)}",
            time_left(max(0.0, left_s)),
            trial.advice,
            f"pair {len(trial.pairs) + 1}",
        )

    def warn(self, text: str) -> None:
        """Something to know before numbers come; in a log, where there is no terminal, too."""
        if self.is_shown:
            self.print(f"warning: {text}")
        else:
            print(f"warning: {text}", file=sys.stderr)

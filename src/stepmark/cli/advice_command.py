"""``stepmark advice``."""

import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepmark import stats, store, suite
from stepmark.advice import ADVICE, FASTER, Trial, find, judge
from stepmark.advice import output as written
from stepmark.advising import AdviceSession, Pairs, Watch
from stepmark.advising.session import REPEATS
from stepmark.choices import Task
from stepmark.cli.interrupt import INTERRUPTED, interrupt_once
from stepmark.cli.progress import StatusLine, about, time_left
from stepmark.console import show
from stepmark.errors import UsageError, choose_from
from stepmark.result import Outcome, Result
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario
from stepmark.units import format_change, format_percent, format_rate

DEFAULT_WORKLOAD = "mlp-fashion-mnist"
_STEPS, _MAX_SECONDS = 200, 3.0
_TIMEOUT_S = 300.0


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
    session: AdviceSession | None = None
    try:
        with AdviceDisplay(sys.stderr) as display, Runner() as runner:
            display.draw("starting the measuring processes")
            folder = _open(scenarios, asked, runner)
            session = AdviceSession(folder, runner, display, end_s)
            session.plan(asked.only)
            base = session.result(session.scenario, 0)
            if base.outcome is not Outcome.OK:
                return _cannot_be_measured(base, asked)
            timeout = folder.planned.plan.timeout if asked.timeout is None else asked.timeout
            with Pairs(timeout) as pairs:
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
        more = f" ({about(session.needed_s)} more)" if session.needed_s else ""
        print(
            f"the budget ran out before all was decided{more}; go on with: "
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
            known = [advice.name for advice in ADVICE]
            raise UsageError(f"--only {name!r}: {choose_from(name, known)}")
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
        repeats=REPEATS,
        timeout=_TIMEOUT_S if asked.timeout is None else asked.timeout,
    )
    return suite.begin(asked.results, name, suite.resolve(scenarios, runner), plan)


def _show(session: AdviceSession, asked: Asked) -> None:
    trials = [*session.trials.values(), *session.combinations.values()]
    if asked.json:
        best = None if session.best is None else written.Best(session.best, session.gain)
        show(written.as_json(trials, session.scenario, best, session.rates()))
    else:
        show(f"{session.scenario.id}\n\n{written.as_text(trials)}{ending(session)}")
    print(f"saved: {session.folder.path}", file=sys.stderr)


def ending(session: AdviceSession) -> str:
    """What the best combination came to, and the command that measures it."""
    if session.best is None:
        return ""
    if session.best == session.scenario:
        text = "nothing that was tried is shown to make this training faster without changing it\n"
        if session.is_vague:
            text += (
                "pairs lie far apart, and more of them may show what these do not; go on with:\n"
            )
            text += f"  {_resume_command(session.folder)}\n"
        return text
    lines = [
        f"the best that was found, {_in_turns(session)} in turns with the scenario itself:",
        f"  {written.command(session.best)}",
        f"in fresh processes one after the other, {_confirmed(session)}:",
    ]
    rates = session.rates()
    for scenario in (session.scenario, session.best):
        found = rates.get(scenario.id, [])
        if found:
            apart = f"{format_percent(stats.spread(found))} apart"
            middle = f"{format_rate(stats.median(found))} samples/s"
            lines.append(f"  {middle}  ({len(found)} processes, {apart})  {scenario.id}")
    return "\n".join([*lines, ""])


def _in_turns(session: AdviceSession) -> str:
    trial = next(t for t in session.combinations.values() if t.with_it == session.best)
    found = judge(trial, FASTER)
    assert found.change is not None, "it is the best"
    assert found.low is not None
    assert found.high is not None
    interval = f"99 %: {format_change(found.low)} to {format_change(found.high)}"
    return f"throughput {format_change(found.change)} ({interval})"


def _confirmed(session: AdviceSession) -> str:
    if session.gain is not None and session.gain > 1:
        return f"{session.gain:.2f} times as fast"
    failed = [r for r in session.results if r.scenario == session.best and r.reason]
    why = f"{failed[0].outcome}: {failed[0].reason}" if failed else "no gain there"
    return f"it is not confirmed ({why})"


def _resume_command(folder: store.RunFolder) -> str:
    words = ["stepmark", "advice", "--resume", "--save", folder.path.name]
    return shlex.join([*words, "--results", str(folder.path.parent)])


class AdviceDisplay(StatusLine, Watch):
    """A line on how far it is. Use as a context."""

    def on_measuring(self, scenario: Scenario) -> None:
        """See `Watch`."""
        self.draw("measuring", scenario.id)

    def on_pair(self, trial: Trial, names: Sequence[str], left_s: float) -> None:
        """See `Watch`."""
        self.draw(
            f"{names.index(trial.advice) + 1} of {len(names)}",
            time_left(max(0.0, left_s)),
            trial.advice,
            f"pair {len(trial.pairs) + 1}",
        )

    def on_estimate(self, needed_s: float, left_s: float) -> None:
        """See `Watch`."""
        self.warn(
            f"to decide all of it takes {about(needed_s)}, and the budget leaves {about(left_s)} "
            "beside what the best combination will take: the rest will be left undecided, for "
            "--resume to go on with"
        )

    def warn(self, text: str) -> None:
        """See `Watch`; in a log, where there is no terminal, too."""
        if self.is_shown:
            self.print(f"warning: {text}")
        else:
            print(f"warning: {text}", file=sys.stderr)

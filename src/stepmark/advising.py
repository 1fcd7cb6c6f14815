"""Trying advice: pairs of processes in turns, as many as there is time for; then what held at once.

`docs/decisions/advice.md` gives the reasons.
"""

import contextlib
import dataclasses
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from stepmark.advice import ADVICE, FASTER, Quantity, Standing, claims_of, find, judge
from stepmark.advice.catalogue import COMBINATIONS
from stepmark.advice.judgement import FEWEST_PAIRS, MOST_PAIRS, THRESHOLD, log_ratios, reach
from stepmark.advice.record import Measured, MeasuredPair, Trial
from stepmark.fingerprint import Commit, Machine
from stepmark.gate import interpreters
from stepmark.gate.pairs import STEADY_MEMORY, PairFailedError, SideRecord, measure_pair
from stepmark.result import Outcome
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario

# Of the warm-up, and of an epoch's turn.
_WARM_UP_S = 2.0


def plan_trials(
    scenario: Scenario,
    machine: Machine,
    names: Sequence[str] | None = None,
    commit: Commit | None = None,
) -> list[Trial]:
    """A trial for each piece of advice, not yet begun.

    Args:
        scenario: what it is tried on, its device resolved.
        machine: this one.
        names: of the advice that is wanted; all of it by default.
        commit: of the code that is measured.
    """
    return [
        begin(advice.name, advice.sides(scenario, machine), machine, commit)
        for advice in ADVICE
        if names is None or advice.name in names
    ]


def begin(
    name: str,
    sides: tuple[Scenario, Scenario],
    machine: Machine,
    commit: Commit | None = None,
) -> Trial:
    """A trial without pairs, with the reason if it cannot have any."""
    without, with_it = sides
    obstacles = (side.obstacle(machine) for side in sides)
    return Trial(
        advice=name,
        without=without,
        with_it=with_it,
        machine=machine,
        commit=commit,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        obstacle=next(filter(None, obstacles), ""),
    )


class Pairs:
    """Measures pairs of scenarios, all forked from one server. Use as a context.

    Args:
        timeout: seconds that a process may take to get ready, and for a turn.

    Raises:
        RunnerError: no process can be started.
    """

    def __init__(self, timeout: float) -> None:
        self._open = contextlib.ExitStack()
        # What one process has compiled, the next one need not compile again.
        cache = self._open.enter_context(tempfile.TemporaryDirectory(prefix="stepmark-compiled-"))
        environment = {name: os.environ.get(name, v) for name, v in STEADY_MEMORY.items()}
        environment["TORCHINDUCTOR_CACHE_DIR"] = f"{cache}/inductor"
        environment["TRITON_CACHE_DIR"] = f"{cache}/triton"
        self._runner = self._open.enter_context(Runner(environment=environment))
        # Now, so that the first pair does not wait for the server.
        self.machine = self._runner.machine
        self._plan = Plan(steps=1, warmup=5, max_seconds=_WARM_UP_S, timeout=timeout)
        self._order = random.Random()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add_to(self, trial: Trial) -> Trial:
        """The trial with one more pair, or with the reason why it has none.

        Raises:
            RunnerError: no process can be started.
        """
        here = interpreters.this_one()
        sides = tuple(interpreters.side(name, here, Path.cwd()) for name in ("without", "with"))
        scenarios = (trial.without, trial.with_it)
        try:
            pair = measure_pair(
                (self._runner, self._runner),
                (sides[0], sides[1]),
                scenarios,
                self._plan,
                (),
                self._order,
                with_costs=True,
            )
        except PairFailedError as error:
            if error.ending.outcome is Outcome.SKIPPED:
                return dataclasses.replace(trial, obstacle=error.ending.reason)
            return dataclasses.replace(trial, failure=_why(error, trial))
        measured = MeasuredPair(
            without=_measured(pair.base, trial.without),
            with_it=_measured(pair.head, trial.with_it),
            wall_s=pair.wall_s,
        )
        return dataclasses.replace(trial, pairs=(*trial.pairs, measured))


def _why(error: PairFailedError, trial: Trial) -> str:
    ending = error.ending
    who = {"without": "without it: ", "with": "with it: "}.get(error.side, "")
    text = f"{who}{ending.outcome}: {ending.reason}"
    if ending.outcome is Outcome.OOM and trial.with_it.device != "cpu":
        text += "; both sides are on the device together, where one of them may fit"
    return f"{text} (pair {len(trial.pairs) + 1})" if trial.pairs else text


def _measured(record: SideRecord, scenario: Scenario) -> Measured:
    costs = record.costs
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    turns = [cost.epoch_turn_s for cost in costs if cost.epoch_turn_s is not None]
    is_whole = len(peaks) == len(costs) and len(turns) == len(costs)
    return Measured(
        windows_s=record.windows_s,
        samples_per_turn=scenario.samples_per_step * record.num_steps,
        peak_bytes=sum(peaks) if len(peaks) == len(costs) else None,
        epoch_turn_s=max(turns) if is_whole else None,
        num_samples=costs[0].num_samples,
        first_step_s=max(cost.first_step_s for cost in costs),
        num_steps=record.num_steps * len(record.windows_s),
        skipped_steps=record.skipped_steps,
        diverges=any(cost.diverges for cost in costs),
    )


def pursue(
    trials: Sequence[Trial], add_pair: Callable[[Trial], Trial], time_left: Callable[[], float]
) -> Iterator[Trial]:
    """Measure pairs while there is time: first some of each trial, then more where they scatter.

    Args:
        trials: those that have pairs are gone on with.
        add_pair: measures one more pair.
        time_left: seconds.

    Returns:
        (As an iterator) each trial whenever something came to it.
    """
    current = {trial.advice: trial for trial in trials}

    def add(name: str) -> Trial:
        current[name] = add_pair(current[name])
        return current[name]

    for name in current:
        while _is_open(current[name], FEWEST_PAIRS) and _fits(current[name], time_left()):
            yield add(name)
    while True:
        # How far apart pairs lie asks for more of them, never where they lie.
        unclear = [
            (scatter(trial), name)
            for name, trial in current.items()
            if _is_open(trial, MOST_PAIRS)
            and len(trial.pairs) >= FEWEST_PAIRS
            and scatter(trial) > math.log1p(THRESHOLD)
            and _fits(trial, time_left())
        ]
        if not unclear:
            return
        yield add(max(unclear)[1])


def _is_open(trial: Trial, most: int) -> bool:
    return not trial.obstacle and not trial.failure and len(trial.pairs) < most


def _fits(trial: Trial, left_s: float) -> bool:
    """Whether there is time for the pair, or for all that are needed to say anything."""
    if not trial.pairs:
        return left_s > 0
    each_s = sum(pair.wall_s for pair in trial.pairs) / len(trial.pairs)
    return each_s * max(1, FEWEST_PAIRS - len(trial.pairs)) <= left_s


def scatter(trial: Trial) -> float:
    """How far off the widest of its claims' log ratios may be."""
    quantities = {claim.quantity for claim in claims_of(trial.advice)}
    found = (log_ratios(trial, quantity) for quantity in quantities)
    return max((reach(ratios) for ratios in found if len(ratios) > 1), default=0.0)


def combination(scenario: Scenario, trials: Sequence[Trial], machine: Machine) -> list[Trial]:
    """What held at once; first all of it, then the best of it alone if that is something else.

    Only what trains the same; of several that set the same field, the one that gains most.

    Args:
        scenario: what the advice was tried on.
        trials: of the advice.
        machine: this one.

    Returns:
        Trials, with pairs where these two scenarios have taken turns already; none where nothing
        held.
    """
    found = [_gain(trial, scenario, Quantity.THROUGHPUT) for trial in trials]
    gains = sorted((gain for gain in found if gain), key=lambda gain: gain[0], reverse=True)
    # What an epoch as a whole gains costs no step anything; it comes with what steps gain by.
    gains += [g for trial in trials if (g := _gain(trial, scenario, Quantity.EPOCH)) and gains]
    own = _fields(scenario)
    steps = [scenario]
    for _, fields in gains:
        taken = _fields(steps[-1])
        if all(taken[name] == own[name] for name in fields):
            tried = dataclasses.replace(steps[-1], **fields)
            if tried.obstacle(machine) is None:
                steps.append(tried)
    wanted = dict.fromkeys([steps[-1], *steps[1:2]]) if len(steps) > 1 else ()
    known = {trial.with_it: trial for trial in trials if trial.without == scenario}
    return [
        dataclasses.replace(known[side], advice=name)
        if side in known
        else begin(name, (scenario, side), machine)
        for name, side in zip(COMBINATIONS, wanted, strict=False)
    ]


def _gain(
    trial: Trial, scenario: Scenario, quantity: Quantity
) -> tuple[float, dict[str, Any]] | None:
    """The log ratio that the better side gains, and what of the scenario it changes.

    ``None`` where the worse side is not how the scenario is: then nothing is known of what the
    scenario itself would gain.
    """
    advice = find(trial.advice)
    if advice is None or not advice.keeps_training or trial.without.task != scenario.task:
        return None
    claim = next((c for c in advice.claims if c.quantity is quantity), None)
    if claim is None:
        return None
    found = judge(trial, claim)
    if found.standing is Standing.HOLDS:
        better, worse = trial.with_it, trial.without
    elif found.standing is Standing.DOES_NOT_HOLD:
        better, worse = trial.without, trial.with_it
    else:
        return None
    then, own = _fields(worse), _fields(scenario)
    fields = {name: value for name, value in _fields(better).items() if value != then[name]}
    if any(then[name] != own[name] for name in fields):
        return None
    assert found.change is not None
    return abs(math.log1p(found.change)), fields


def best(scenario: Scenario, trials: Sequence[Trial]) -> Scenario:
    """The combination that gains most; the scenario itself where none is known to gain."""
    gains = {
        trial.with_it: found.change
        for trial in trials
        if trial.advice in COMBINATIONS
        and (found := judge(trial, FASTER)).standing is Standing.HOLDS
    }
    return max(gains, key=lambda side: gains[side] or 0.0, default=scenario)


def _fields(scenario: Scenario) -> dict[str, Any]:
    return {field.name: getattr(scenario, field.name) for field in dataclasses.fields(scenario)}

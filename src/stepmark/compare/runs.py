"""Two saved runs, scenario by scenario: processes are the samples."""

import math
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from stepmark import stats
from stepmark.compare.floors import Rules, judge_floors
from stepmark.compare.verdict import (
    ADVISORY,
    Comparison,
    Counter,
    Verdict,
    advice,
    peak_memory,
)
from stepmark.fingerprint import Machine
from stepmark.result import Outcome, Result
from stepmark.store import Run
from stepmark.units import format_percent


def compare_runs(base: Run, head: Run, rules: Rules) -> list[Comparison]:
    """Compare all scenarios of two runs, in the order of base.

    Scenarios that both sides skipped are left out; `skips` has them.
    """
    sides = [_by_scenario(run) for run in (base, head)]
    skipped = skips(base, head)
    cut = tuple(_cut(name, run) for name, run in (("base", base), ("head", head)))
    comparisons = []
    for scenario_id in dict.fromkeys([*sides[0], *sides[1]]):
        if scenario_id not in skipped:
            of_base, of_head = (side[scenario_id] for side in sides)
            found = _compare(scenario_id, of_base, of_head, rules)
            remarks = tuple(side[scenario_id] for side in cut if scenario_id in side)
            comparisons.append(replace(found, remarks=(*remarks, *found.remarks)))
    return comparisons


def skips(base: Run, head: Run) -> dict[str, str]:
    """Why scenarios could run on neither side, by id."""
    sides = [_by_scenario(run) for run in (base, head)]
    return {
        scenario_id: results[0].reason
        for scenario_id in sides[0]
        if (results := [*sides[0][scenario_id], *sides[1][scenario_id]])
        and all(result.outcome is Outcome.SKIPPED for result in results)
    }


def _by_scenario(run: Run) -> defaultdict[str, list[Result]]:
    """Results by scenario; none of one that was planned, and never measured."""
    gathered: defaultdict[str, list[Result]] = defaultdict(list)
    for result in run.results:
        gathered[result.scenario.id].append(result)
    for scenario_id, _ in run.missing:
        gathered[scenario_id] += []
    return gathered


def _cut(name: str, run: Run) -> dict[str, str]:
    """Of which scenarios a run that was interrupted lacks repeats, in words."""
    lacking = Counts(scenario_id for scenario_id, _ in run.missing)
    return {
        scenario_id: f"{name} was interrupted, {number} of its repeats lack here"
        for scenario_id, number in lacking.items()
    }


def _compare(
    scenario_id: str, base: Sequence[Result], head: Sequence[Result], rules: Rules
) -> Comparison:
    for side, results in (("base", base), ("head", head)):
        problem = _problem(results)
        if problem:
            return Comparison(
                scenario_id=scenario_id, verdict=Verdict.MISSING, reason=f"{side}: {problem}"
            )
    obstacle = _obstacle(base, head, rules)
    if obstacle:
        return Comparison(scenario_id=scenario_id, verdict=Verdict.INCOMPARABLE, reason=obstacle)
    base_s, head_s = ([_floor_s(result) for result in results] for results in (base, head))
    if min(*base_s, *head_s) <= 0:
        return Comparison(
            scenario_id=scenario_id, verdict=Verdict.MISSING, reason="a step of 0 s is no figure"
        )
    judged = judge_floors(base_s, head_s, rules)
    verdict, reason = judged.verdict, judged.reason
    unfit = _unfit(base, head)
    if unfit:
        verdict, reason = Verdict.INCONCLUSIVE, unfit
    hosts = _hosts(base, head)
    if hosts and verdict is not Verdict.INCONCLUSIVE:
        verdict = Verdict.INCONCLUSIVE
        reason = f"{judged.verdict}, but {hosts}: advisory only; measure both on one"
    return replace(
        judged,
        scenario_id=scenario_id,
        verdict=verdict,
        reason=reason,
        counters=tuple(_counters(base, head, rules)),
        remarks=(*_software(base, head), *_remarks(base, head)),
    )


def _problem(results: Sequence[Result]) -> str:
    """Why one side has no figures; empty if it has."""
    if not results:
        return "was not measured"
    for result in results:
        if result.outcome is not Outcome.OK:
            return f"{result.outcome}: {result.reason}"
        if not result.ranks:
            return "a result without a figure"
    return ""


def _obstacle(base: Sequence[Result], head: Sequence[Result], rules: Rules) -> str:
    """Why figures of the two sides cannot be held against each other; empty if they can."""
    for what, of_base, of_head in (
        ("hardware", _facts(base, "hardware"), _facts(head, "hardware")),
        ("software", _facts(base, "software"), _facts(head, "software")),
        ("setting", _settings(base), _settings(head)),
        ("plan", _plans(base), _plans(head)),
    ):
        for key in sorted({*of_base, *of_head}):
            then, now = of_base.get(key, set()), of_head.get(key, set())
            on_purpose = what == "software" and key in rules.compared_software
            if then != now and not on_purpose:
                text = f"other {what}: {key} is {_listed(then)} in base and {_listed(now)} in head"
                remedy = "; if that is what you compare, give --across " + key
                return text + (remedy if what == "software" else "")
    if any(rank.skipped_steps for result in (*base, *head) for rank in result.ranks):
        return "the gradient scaler skipped steps, and a skipped step is a fast one"
    return ""


def _facts(results: Sequence[Result], kind: str) -> dict[str, set[str]]:
    gathered: dict[str, set[str]] = {}
    for result in results:
        machine: Machine = result.machine
        for key, value in getattr(machine, kind).items():
            gathered.setdefault(key, set()).add(value)
    return gathered


def _settings(results: Sequence[Result]) -> dict[str, set[str]]:
    """Threads, switches and data, as the ranks read them back."""
    gathered: dict[str, set[str]] = {}
    for rank in (rank for result in results for rank in result.ranks):
        known = {"threads": str(rank.num_threads), "data": rank.data, **rank.settings}
        for key, value in known.items():
            gathered.setdefault(key, set()).add(value)
    return gathered


def _plans(results: Sequence[Result]) -> dict[str, set[str]]:
    """How long windows were to be: the fastest of more steps is faster."""
    plans = [result.plan for result in results]
    return {
        "steps": {str(plan.steps) for plan in plans},
        "max_seconds": {f"{plan.max_seconds:g}" for plan in plans},
    }


def _listed(values: set[str]) -> str:
    return " and ".join(sorted(values)) or "unknown"


def _unfit(base: Sequence[Result], head: Sequence[Result]) -> str:
    """That some windows are not to be trusted; empty if all are."""
    spoilt = [result for result in (*base, *head) if result.unfit]
    if not spoilt:
        return ""
    total = len(base) + len(head)
    return f"{len(spoilt)} of {total} windows are unfit ({spoilt[0].unfit[0]}); measure again"


def _hosts(base: Sequence[Result], head: Sequence[Result]) -> str:
    """That the sides were measured on two hosts; empty if not."""
    names = [{result.machine.host for result in side} for side in (base, head)]
    if names[0] == names[1]:
        return ""
    return f"base was measured on {_listed(names[0])}, head on {_listed(names[1])}"


def _floor_s(result: Result) -> float:
    """The fastest stretch of steps of a process, per step; what neighbours disturb least.

    A single step where every step does all of its work by itself. Batches that loader workers
    have ready, and steps that an accelerator has queued, make single steps look fast: there the
    stretch is long enough to hold them all.
    """
    slowest = result.slowest
    assert slowest is not None
    window = slowest.window
    scenario = result.scenario
    num_steps = math.ceil(scenario.lead_in_batches / scenario.accumulation)
    if scenario.device != "cpu":
        num_steps = max(num_steps, 5)
    num_steps = max(1, num_steps)
    if len(window.step_s) < num_steps:
        return window.window_s / window.num_steps
    ends = np.concatenate([[0.0], np.cumsum(window.step_s)])
    return float(np.min(ends[num_steps:] - ends[:-num_steps])) / num_steps


def _counters(base: Sequence[Result], head: Sequence[Result], rules: Rules) -> Iterator[Counter]:
    """Exact figures that are one number in all processes of a side, and differ."""
    then, now = ({result.row()["peak_allocated_bytes"] for result in side} for side in (base, head))
    if len(then) == len(now) == 1 and then != now:
        (before,), (after,) = then, now
        if before and after:
            yield peak_memory(before, after, rules.threshold)
    losses = [
        {tuple(rank.first_loss for rank in result.ranks) for result in side}
        for side in (base, head)
    ]
    if len(losses[0]) == len(losses[1]) == 1 and losses[0] != losses[1]:
        before, after = (", ".join(map(str, next(iter(side)))) for side in losses)
        yield Counter(name="first_loss", base=before, head=after)


def _software(base: Sequence[Result], head: Sequence[Result]) -> Iterator[str]:
    """What was compared on purpose."""
    then, now = _facts(base, "software"), _facts(head, "software")
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            yield f"{key} {_listed(then.get(key, set()))} -> {_listed(now.get(key, set()))}"


def _remarks(base: Sequence[Result], head: Sequence[Result]) -> Iterator[str]:
    """What a floor is blind to: stalls, tails, and waiting for data."""
    for column, what in (("mean", "mean step"), ("step_s_p99", "p99 step")):
        then, now = (
            stats.median([_column(result, column) for result in side]) for side in (base, head)
        )
        yield from advice(what, then, now)
    then, now = (stats.median([_waiting_part(result) for result in side]) for side in (base, head))
    if abs(now - then) > ADVISORY:
        yield f"{format_percent(now)} of a step is waiting for data, {format_percent(then)} in base"


def _waiting_part(result: Result) -> float:
    assert result.slowest is not None
    phases = result.slowest.phases
    return phases.data_wait_s / phases.step_s if phases.step_s else 0.0


def _column(result: Result, column: str) -> float:
    if column == "mean":
        assert result.samples_per_s is not None
        return result.scenario.samples_per_step / result.samples_per_s
    return float(result.row()[column] or 0.0)

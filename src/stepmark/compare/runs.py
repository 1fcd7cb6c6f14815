"""Two saved runs, scenario by scenario: processes are the samples."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from stepmark import stats
from stepmark.compare.floors import Rules, judge_floors
from stepmark.compare.verdict import Comparison, Counter, Verdict, advice, peak_memory
from stepmark.fingerprint import Machine
from stepmark.result import Outcome, Result
from stepmark.store import Run


def compare_runs(base: Run, head: Run, rules: Rules) -> list[Comparison]:
    """Compare all scenarios of two runs, in the order of base.

    Scenarios that both sides skipped are left out.
    """
    sides = [_by_scenario(run) for run in (base, head)]
    comparisons = []
    for scenario_id in dict.fromkeys([*sides[0], *sides[1]]):
        of_base, of_head = (side.get(scenario_id, []) for side in sides)
        found = _compare(scenario_id, of_base, of_head, rules)
        if found is not None:
            comparisons.append(found)
    return comparisons


def _by_scenario(run: Run) -> dict[str, list[Result]]:
    gathered: dict[str, list[Result]] = {}
    for result in run.results:
        gathered.setdefault(result.scenario.id, []).append(result)
    return gathered


def _compare(
    scenario_id: str, base: Sequence[Result], head: Sequence[Result], rules: Rules
) -> Comparison | None:
    if all(result.outcome is Outcome.SKIPPED for result in (*base, *head)):
        return None
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
    judged = judge_floors(base_s, head_s, rules)
    verdict, reason = judged.verdict, judged.reason
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
    return ""


def _obstacle(base: Sequence[Result], head: Sequence[Result], rules: Rules) -> str:
    """Why figures of the two sides cannot be held against each other; empty if they can."""
    for what, of_base, of_head in (
        ("hardware", _facts(base, "hardware"), _facts(head, "hardware")),
        ("software", _facts(base, "software"), _facts(head, "software")),
        ("setting", _settings(base), _settings(head)),
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


def _listed(values: set[str]) -> str:
    return " and ".join(sorted(values)) or "unknown"


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
        before, after = (next(iter(side)) for side in losses)
        yield Counter(name="first_loss", base=str(before[0]), head=str(after[0]))


def _software(base: Sequence[Result], head: Sequence[Result]) -> Iterator[str]:
    """What was compared on purpose."""
    then, now = _facts(base, "software"), _facts(head, "software")
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            yield f"{key} {_listed(then.get(key, set()))} -> {_listed(now.get(key, set()))}"


def _remarks(base: Sequence[Result], head: Sequence[Result]) -> Iterator[str]:
    """What a floor is blind to: stalls and tails."""
    for column, what in (("mean", "mean step"), ("step_s_p99", "p99 step")):
        then, now = (
            stats.median([_column(result, column) for result in side]) for side in (base, head)
        )
        yield from advice(what, then, now)


def _column(result: Result, column: str) -> float:
    if column == "mean":
        assert result.samples_per_s is not None
        return result.scenario.samples_per_step / result.samples_per_s
    return float(result.row()[column] or 0.0)

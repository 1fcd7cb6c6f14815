"""A scenario on trial: pairs are measured until they decide, and exact figures compared."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stepmark import stats
from stepmark.compare.verdict import Comparison, Counter, Verdict, advice, peak_memory
from stepmark.gate.decision import Decision, decide
from stepmark.gate.noise import Noise
from stepmark.gate.pairs import Pair, PairFailedError, SideRecord
from stepmark.result import Outcome
from stepmark.runner.messages import PEAK
from stepmark.scenario import Scenario
from stepmark.units import format_change

# Which of a process's steps, or turns, it counts by, in percent: few enough were disturbed to be
# that short, and enough are to be no accident.
PERCENTILE = 25.0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a gate judges.

    Attributes:
        threshold: changes up to this fraction do not matter.
        same_loss: sides that come to other losses cannot be compared.
    """

    threshold: float = 0.03
    same_loss: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A scenario that was tried.

    Attributes:
        scenario: which.
        comparison: what came of it.
        pairs: all that were measured; the screen's come first.
        wall_s: how long it took.
        percentile: of its steps, or turns, that a process counted by.
    """

    scenario: Scenario
    comparison: Comparison
    pairs: tuple[Pair, ...]
    wall_s: float
    percentile: float


class _IncomparableError(Exception):
    """The sides do different work."""


def step_s(record: SideRecord, scenario: Scenario, percentile: float = PERCENTILE) -> float:
    """What a side's process counts by: seconds of a step.

    A low percentile of its single steps, where each does all of its work by itself: neighbours
    only ever add time. Steps that find their batch ready in a loader do not, nor do whole turns of
    them: there it is the time of all steps together. Steps of an accelerator are queued: it counts
    by its quicker turns.
    """
    turns_s = [window_s / record.num_steps for window_s in record.windows_s]
    if scenario.num_workers:
        return math.fsum(turns_s) / len(turns_s)
    if scenario.device != "cpu" or not all(record.steps_s):
        return stats.percentile(turns_s, percentile)
    return stats.percentile([s for turn_s in record.steps_s for s in turn_s], percentile)


def log_ratio(pair: Pair, scenario: Scenario, percentile: float = PERCENTILE) -> float:
    """The logarithm of head's step over base's."""
    return math.log(
        step_s(pair.head, scenario, percentile) / step_s(pair.base, scenario, percentile)
    )


def try_scenario(
    scenario: Scenario,
    measure: Callable[[], Pair],
    rules: Rules,
    known: Noise | None = None,
) -> Trial:
    """Measure pairs of a scenario until there is a verdict.

    Args:
        scenario: which.
        measure: measures one more pair.
        rules: see there.
        known: its noise on this machine, if a self-test found it.
    """
    start_s = time.monotonic()
    pairs: list[Pair] = []
    spread, percentile = (None, PERCENTILE) if known is None else (known.spread, known.percentile)

    def draw() -> float:
        pairs.append(measure())
        _refuse_different_work(pairs)
        return log_ratio(pairs[-1], scenario, percentile)

    try:
        decision = decide(draw, rules.threshold, spread)
        comparison = _comparison(scenario, pairs, decision, rules, percentile)
    except PairFailedError as error:
        comparison = failed(scenario, error)
    except _IncomparableError as error:
        comparison = Comparison(
            scenario_id=scenario.id, verdict=Verdict.INCOMPARABLE, reason=str(error)
        )
    return Trial(
        scenario=scenario,
        comparison=comparison,
        pairs=tuple(pairs),
        wall_s=time.monotonic() - start_s,
        percentile=percentile,
    )


def failed(scenario: Scenario, error: PairFailedError) -> Comparison:
    """What a scenario comes to that one side cannot run."""
    reason = str(error)
    if error.ending.outcome is Outcome.OOM and scenario.device != "cpu":
        reason += "; both sides are on the device together: try a smaller batch"
    return Comparison(scenario_id=scenario.id, verdict=Verdict.MISSING, reason=reason)


def sides_s(
    pairs: Sequence[Pair], scenario: Scenario, percentile: float = PERCENTILE
) -> tuple[float, float]:
    """Seconds of a step on base and on head, medians over pairs."""
    return (
        stats.median([step_s(pair.base, scenario, percentile) for pair in pairs]),
        stats.median([step_s(pair.head, scenario, percentile) for pair in pairs]),
    )


def _comparison(
    scenario: Scenario,
    pairs: Sequence[Pair],
    decision: Decision,
    rules: Rules,
    percentile: float,
) -> Comparison:
    judged = pairs[len(decision.screened) :] if decision.confirmed else pairs
    base_s, head_s = sides_s(judged, scenario, percentile)
    counters = tuple(_counters(pairs, rules.threshold))
    verdict, reason = decision.verdict, decision.reason
    if rules.same_loss and verdict is not Verdict.SLOWER:
        differing = _differing_loss(pairs)
        verdict, reason = (Verdict.INCOMPARABLE, differing) if differing else (verdict, reason)
    return Comparison(
        scenario_id=scenario.id,
        verdict=verdict,
        reason=reason,
        base_s=base_s,
        head_s=head_s,
        change=decision.change,
        low=decision.low,
        high=decision.high,
        detectable=decision.detectable,
        num_base=len(judged),
        num_head=len(judged),
        counters=counters,
        remarks=(*_medians_apart(base_s, head_s, decision, rules), *_remarks(judged)),
    )


def _medians_apart(base_s: float, head_s: float, decision: Decision, rules: Rules) -> Iterator[str]:
    """That what is shown of the sides does not come to the change, if it does not."""
    apart = head_s / base_s - 1
    if abs(apart - decision.change) > rules.threshold:
        yield (
            f"the medians of base and head are {format_change(apart)} apart: the change is from "
            "pair to pair, in which both sides met the same neighbours"
        )


def _refuse_different_work(pairs: Sequence[Pair]) -> None:
    """What a step is fed is the code's doing, never the machine's: one pair is enough.

    Another type of numbers may be the very improvement that is judged; other shapes are not.
    """
    base, head = (record.counters["batch"] for record in (pairs[-1].base, pairs[-1].head))
    if _shapes(base) != _shapes(head):
        raise _IncomparableError(f"a batch is {base} in base and {head} in head")


def _shapes(batch: str) -> list[str]:
    return [tensor.partition(" ")[0] for tensor in batch.split(", ")]


def _counters(pairs: Sequence[Pair], threshold: float) -> Iterator[Counter]:
    """Exact figures that differ between the sides and never within one."""
    for name in sorted(pairs[0].base.counters):
        then = {pair.base.counters.get(name, "") for pair in pairs}
        now = {pair.head.counters.get(name, "") for pair in pairs}
        if len(then) != 1 or len(now) != 1 or then == now:
            continue
        (before,), (after,) = then, now
        if name != PEAK:
            yield Counter(name=name, base=before, head=after)
        elif before and after:
            yield peak_memory(int(before), int(after), threshold)


def _differing_loss(pairs: Sequence[Pair]) -> str:
    """Why losses are not one number; empty if they are."""
    then = {pair.base.counters["loss"] for pair in pairs}
    now = {pair.head.counters["loss"] for pair in pairs}
    if len(then | now) == 1:
        return ""
    if len(then) == len(now) == 1:
        return "the sides do not come to the same loss"
    return "the loss is not the same from process to process: something is not seeded"


def _remarks(pairs: Sequence[Pair]) -> Iterator[str]:
    """What a low percentile is blind to: stalls and tails."""
    for percent, what in ((None, "mean step"), (95.0, "p95 step")):
        then, now = (
            stats.median([_advisory_s(record, percent) for record in side])
            for side in ([pair.base for pair in pairs], [pair.head for pair in pairs])
        )
        yield from advice(what, then, now)


def _advisory_s(record: SideRecord, percent: float | None) -> float:
    steps = [s for turn_s in record.steps_s for s in turn_s]
    steps = steps or [window_s / record.num_steps for window_s in record.windows_s]
    return float(np.mean(steps)) if percent is None else stats.percentile(steps, percent)

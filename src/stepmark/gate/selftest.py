"""The same code on both sides: how much pairs of a scenario scatter on this machine."""

import math
import time
from collections.abc import Callable

from stepmark import stats
from stepmark.compare.verdict import Comparison, Verdict
from stepmark.gate.decision import CONFIDENCE, MOST_PAIRS, TRIMMED, detectable, reach
from stepmark.gate.pairs import Pair, PairFailedError
from stepmark.gate.trial import Trial, failed, log_ratio, sides_s
from stepmark.scenario import Scenario
from stepmark.units import format_change, format_percent

NUM_PAIRS = 20


def try_same_code(
    scenario: Scenario, measure: Callable[[], Pair], threshold: float
) -> tuple[Trial, float | None]:
    """Measure pairs of the same code.

    Args:
        scenario: which.
        measure: measures one more pair.
        threshold: the gate's.

    Returns:
        The trial, SAME where the gate can judge the scenario here, and how much its log ratios
        scatter; ``None`` if it could not be measured.
    """
    start_s = time.monotonic()
    pairs: list[Pair] = []
    spread = None
    try:
        pairs += (measure() for _ in range(NUM_PAIRS))
    except PairFailedError as error:
        comparison = failed(scenario, error)
    else:
        comparison, spread = _judge(scenario, pairs, threshold)
    wall_s = time.monotonic() - start_s
    trial = Trial(scenario=scenario, comparison=comparison, pairs=tuple(pairs), wall_s=wall_s)
    return trial, spread


def _judge(scenario: Scenario, pairs: list[Pair], threshold: float) -> tuple[Comparison, float]:
    center = stats.center([log_ratio(pair, scenario) for pair in pairs], TRIMMED)
    spread = center.standard_error * math.sqrt(len(pairs))
    bar = math.log1p(threshold)
    uncertainty = center.reach(CONFIDENCE)
    found = math.expm1(detectable(spread, bar))
    change = math.expm1(center.estimate)
    if abs(center.estimate) > uncertainty and abs(center.estimate) > bar / 3:
        verdict = Verdict.INCONCLUSIVE
        reason = f"the same code came out {format_change(change)}: the sides are not treated alike"
    elif reach(spread, MOST_PAIRS) > bar:
        verdict = Verdict.INCONCLUSIVE
        reason = f"cannot be judged here at {format_percent(threshold)}: changes below "
        reason += f"{format_percent(found)} may hide in the noise"
    else:
        verdict, reason = Verdict.SAME, "can be judged here"
    base_s, head_s = sides_s(pairs, scenario)
    comparison = Comparison(
        scenario_id=scenario.id,
        verdict=verdict,
        reason=f"{reason}; single pairs scatter by {format_percent(spread)}",
        base_s=base_s,
        head_s=head_s,
        change=change,
        low=math.expm1(center.estimate - uncertainty),
        high=math.expm1(center.estimate + uncertainty),
        detectable=found,
        num_base=len(pairs),
        num_head=len(pairs),
    )
    return comparison, spread

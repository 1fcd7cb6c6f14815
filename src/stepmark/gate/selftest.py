"""The same code on both sides: how much pairs of a scenario scatter on this machine."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime

from stepmark import stats
from stepmark.compare.verdict import Comparison, Verdict
from stepmark.gate.decision import CONFIDENCE, MOST_PAIRS, TRIMMED, detectable, reach
from stepmark.gate.noise import Noise
from stepmark.gate.pairs import Pair, PairFailedError
from stepmark.gate.trial import PERCENTILE, Trial, failed, log_ratio, sides_s
from stepmark.scenario import Scenario
from stepmark.units import format_change, format_percent

NUM_PAIRS = 20
# Of an accelerator's turns: which is steadiest depends on what shares it.
_ACCELERATOR_PERCENTILES = (PERCENTILE, 0.0, 10.0, 50.0)


def try_same_code(
    scenario: Scenario, measure: Callable[[], Pair], threshold: float
) -> tuple[Trial, Noise | None]:
    """Measure pairs of the same code.

    Args:
        scenario: which.
        measure: measures one more pair.
        threshold: the gate's.

    Returns:
        The trial, SAME where the gate can judge the scenario here, and its noise; ``None`` if it
        could not be measured.
    """
    start_s = time.monotonic()
    pairs: list[Pair] = []
    noise = None
    try:
        pairs += (measure() for _ in range(NUM_PAIRS))
    except PairFailedError as error:
        comparison = failed(scenario, error)
    else:
        noise = _noise(scenario, pairs)
        comparison = _judge(scenario, pairs, threshold, noise)
    trial = Trial(
        scenario=scenario,
        comparison=comparison,
        pairs=tuple(pairs),
        wall_s=time.monotonic() - start_s,
        percentile=PERCENTILE if noise is None else noise.percentile,
    )
    return trial, noise


def _noise(scenario: Scenario, pairs: list[Pair]) -> Noise:
    candidates = (PERCENTILE,) if scenario.device == "cpu" else _ACCELERATOR_PERCENTILES
    errors = {p: _center(scenario, pairs, p).standard_error for p in candidates}
    steadiest = min(errors, key=lambda percentile: errors[percentile])
    return Noise(
        spread=errors[steadiest] * math.sqrt(len(pairs)),
        percentile=steadiest,
        num_pairs=len(pairs),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _center(scenario: Scenario, pairs: list[Pair], percentile: float) -> stats.Center:
    return stats.center([log_ratio(pair, scenario, percentile) for pair in pairs], TRIMMED)


def _judge(scenario: Scenario, pairs: list[Pair], threshold: float, noise: Noise) -> Comparison:
    spread = noise.spread
    center = _center(scenario, pairs, noise.percentile)
    bar = math.log1p(threshold)
    uncertainty = center.reach(CONFIDENCE)
    found = stats.change_of(detectable(spread, bar))
    change = stats.change_of(center.estimate)
    if abs(center.estimate) > uncertainty and abs(center.estimate) > bar / 3:
        verdict = Verdict.INCONCLUSIVE
        reason = f"the same code came out {format_change(change)}: the sides are not treated alike"
    elif reach(spread, MOST_PAIRS) > bar:
        verdict = Verdict.INCONCLUSIVE
        reason = f"cannot be judged here at {format_percent(threshold)}: changes below "
        reason += f"{format_percent(found)} may hide in the noise"
    else:
        verdict, reason = Verdict.SAME, "can be judged here"
    base_s, head_s = sides_s(pairs, scenario, noise.percentile)
    return Comparison(
        scenario_id=scenario.id,
        verdict=verdict,
        reason=f"{reason}; single pairs scatter by {format_percent(spread)}",
        base_s=base_s,
        head_s=head_s,
        change=change,
        low=stats.change_of(center.estimate - uncertainty),
        high=stats.change_of(center.estimate + uncertainty),
        detectable=found,
        num_base=len(pairs),
        num_head=len(pairs),
    )

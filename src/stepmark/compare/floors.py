"""Floors of processes on two sides to a verdict: the rule alone, without files around it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from stepmark import stats
from stepmark.compare.verdict import Comparison, Verdict
from stepmark.units import format_percent

# See docs/decisions/compare.md for how often it calls a difference between unchanged processes.
CONFIDENCE = 0.99
# By so much a real change must exceed what is called one, to be found nineteen times in twenty, in
# half-widths of the interval: 1.64 / 2.58, if its ends lie as those of a normal distribution.
_HALF_WIDTHS_TO_FIND = 0.64
# Repeats beyond these add little.
_MANY_PROCESSES = 20


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How two runs are compared.

    Attributes:
        threshold: changes up to this fraction do not matter.
        compared_software: keys of the software that differ on purpose, such as ``torch``.
    """

    threshold: float = 0.03
    compared_software: frozenset[str] = field(default_factory=frozenset)


def judge_floors(base_s: Sequence[float], head_s: Sequence[float], rules: Rules) -> Comparison:
    """Compare the fastest steps of processes.

    Args:
        base_s, head_s: one floor per process, in seconds or any other unit.
        rules: see there.

    Returns:
        A comparison without a scenario.
    """
    shift = stats.shift(
        [math.log(value) for value in base_s], [math.log(value) for value in head_s], CONFIDENCE
    )
    middles = stats.median(base_s), stats.median(head_s)
    change, low, high, detectable = middles[1] / middles[0] - 1, None, None, None
    if shift is None:
        verdict = Verdict.INCONCLUSIVE
        reason = (
            "a single process on a side: how much processes differ is unknown; measure with "
            "--repeats 5"
        )
    else:
        change, low, high = (stats.change_of(v) for v in (shift.estimate, shift.low, shift.high))
        called = max(math.log1p(rules.threshold), shift.half_width)
        detectable = stats.change_of(called + _HALF_WIDTHS_TO_FIND * shift.half_width)
        if low > 0 and change > rules.threshold:
            verdict, reason = Verdict.SLOWER, f"the step takes {format_percent(change)} longer"
        elif high < 0 and change < -rules.threshold:
            verdict, reason = Verdict.FASTER, f"the step takes {format_percent(-change)} less"
        elif -rules.threshold < low and high < rules.threshold:
            verdict = Verdict.SAME
            reason = f"any change is within {format_percent(rules.threshold)}"
        else:
            verdict = Verdict.INCONCLUSIVE
            reason = f"changes below {format_percent(detectable)} may hide in the noise"
            if min(len(base_s), len(head_s)) < _MANY_PROCESSES:
                reason += "; more --repeats tell more"
    return Comparison(
        scenario_id="",
        verdict=verdict,
        reason=reason,
        base_s=middles[0],
        head_s=middles[1],
        change=change,
        low=low,
        high=high,
        detectable=detectable,
        num_base=len(base_s),
        num_head=len(head_s),
    )

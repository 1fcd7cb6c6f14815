"""From pairs to a verdict: a screen, and a confirmation of what it suspects.

A pair counts by the logarithm of head's step over base's. The decision only ever asks for one
more of these, so it is the same over pairs that are measured now and over recorded ones.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from stepmark import stats
from stepmark.compare.verdict import Verdict
from stepmark.units import format_change, format_percent

BoolArray = npt.NDArray[np.bool_]

# docs/decisions/gate.md says why these, docs/validation/gate.md what they were measured to give.
#
# The screen looks at so many pairs, and, where these leave it unsure, at so many more.
NUM_SCREEN = 3
# In parts of the threshold. The first look clears a middle pair below QUIET with no pair as far
# out as FAR, and suspects a middle one from LOUD on; the second look suspects a middle one from
# SUSPECT on, and pairs whose standard deviation is WILD: of such a scatter nothing can be cleared.
QUIET, FAR, LOUD, SUSPECT, WILD = 0.4, 4 / 3, 1.0, 0.5, 1.5
FEWEST_PAIRS, MORE_PAIRS, MOST_PAIRS = 10, 5, 40
TRIMMED = 0.2
CONFIDENCE = 0.9998
AGREEING = 0.8
# How often the smallest detectable change is found.
POWER = 0.95


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What pairs of a scenario say.

    Attributes:
        verdict: SLOWER, FASTER, SAME or INCONCLUSIVE.
        reason: why, in a sentence.
        change: of the step's time, as a fraction.
        low, high: its interval (99.98 %); ``None`` for a screen, which has too few pairs.
        detectable: the smallest slowdown that is found nineteen times in twenty.
        screened, confirmed: log ratios of the pairs measured, in their order.
    """

    verdict: Verdict
    reason: str
    change: float
    low: float | None
    high: float | None
    detectable: float
    screened: tuple[float, ...]
    confirmed: tuple[float, ...] = ()


def decide(draw: Callable[[], float], threshold: float, spread: float | None = None) -> Decision:
    """Ask for pairs until there is a verdict.

    Args:
        draw: measures one more pair; the logarithm of head's step over base's.
        threshold: changes up to this fraction do not matter.
        spread: how much pairs of this scenario scatter on this machine, if it is known.
    """
    bar = math.log1p(threshold)
    screened = tuple(draw() for _ in range(NUM_SCREEN))
    first = np.array(screened)
    if not _clears(first, bar):
        if not _is_loud(first, bar):
            screened += tuple(draw() for _ in range(NUM_SCREEN))
        if _is_suspect(np.array(screened), bar):
            return _confirm(draw, threshold, spread, screened)
    middle = stats.median(screened)
    known = spread if spread is not None else _spread(screened, trimmed=0.0)
    found = stats.change_of(detectable(known, bar))
    verdict, reason = Verdict.SAME, f"no sign of a change in {len(screened)} pairs"
    reason += f", where a slowdown of {format_percent(found)} would most likely have shown"
    if spread is not None and reach(spread, MOST_PAIRS) > bar:
        verdict = Verdict.INCONCLUSIVE
        reason = f"changes below {format_percent(found)} may hide in this scenario's noise"
    return Decision(
        verdict=verdict,
        reason=reason,
        change=stats.change_of(middle),
        low=None,
        high=None,
        detectable=found,
        screened=screened,
    )


# Each along the last axis, so that many screens can be looked at together.


def _clears(first: stats.FloatArray, bar: float) -> BoolArray:
    far = np.max(np.abs(first), axis=-1) >= FAR * bar
    return np.asarray(~far & (_middle(first) < QUIET * bar))


def _is_loud(first: stats.FloatArray, bar: float) -> BoolArray:
    return np.asarray(_middle(first) >= LOUD * bar)


def _is_suspect(ratios: stats.FloatArray, bar: float) -> BoolArray:
    wild = np.std(ratios, axis=-1, ddof=1) >= WILD * bar
    return np.asarray(wild | (_middle(ratios) >= SUSPECT * bar))


def suspects(ratios: stats.FloatArray, bar: float) -> BoolArray:
    """Which screens end in suspicion.

    Args:
        ratios: of as many pairs as both looks may take, ``[screens, 2 * NUM_SCREEN]``.
        bar: the threshold's log ratio.
    """
    first = ratios[:, :NUM_SCREEN]
    return ~_clears(first, bar) & (_is_loud(first, bar) | _is_suspect(ratios, bar))


def pairs_screened(ratios: stats.FloatArray, bar: float) -> npt.NDArray[np.int_]:
    """How many of these pairs each screen looks at."""
    first = ratios[:, :NUM_SCREEN]
    return np.where(_clears(first, bar) | _is_loud(first, bar), NUM_SCREEN, 2 * NUM_SCREEN)


def _middle(ratios: stats.FloatArray) -> stats.FloatArray:
    return np.asarray(np.abs(np.median(ratios, axis=-1)))


def _confirm(
    draw: Callable[[], float], threshold: float, spread: float | None, screened: tuple[float, ...]
) -> Decision:
    """Judge by new pairs alone: those of the screen were picked for what they showed."""
    bar = math.log1p(threshold)
    num_pairs = FEWEST_PAIRS if spread is None else pairs_needed(spread, bar)
    ratios: list[float] = []
    while True:
        ratios += [draw() for _ in range(num_pairs - len(ratios))]
        center = stats.center(ratios, TRIMMED)
        uncertainty = center.reach(CONFIDENCE)
        # More pairs are asked for by how much they scatter, never by where they lie.
        if uncertainty <= bar or num_pairs >= MOST_PAIRS:
            break
        num_pairs += MORE_PAIRS
    low, high = (stats.change_of(center.estimate + side * uncertainty) for side in (-1, 1))
    change = stats.change_of(center.estimate)
    found = stats.change_of(detectable(_spread(ratios, TRIMMED), bar))
    num_slower = sum(ratio > 0 for ratio in ratios)
    beyond = abs(center.estimate) > max(bar, uncertainty)
    enough = AGREEING * len(ratios)
    if beyond and center.estimate > 0 and num_slower >= enough:
        verdict = Verdict.SLOWER
        reason = f"the step takes {format_percent(change)} longer; so said {num_slower} of"
        reason += f" {len(ratios)} new pairs"
    elif beyond and center.estimate < 0 and len(ratios) - num_slower >= enough:
        verdict = Verdict.FASTER
        reason = f"the step takes {format_percent(-change)} less"
    elif beyond or uncertainty > bar:
        verdict = Verdict.INCONCLUSIVE
        reason = f"{len(ratios)} new pairs scatter too much: changes below {format_percent(found)}"
        reason += " may hide in the noise"
    else:
        verdict = Verdict.SAME
        reason = f"was suspected, and {len(ratios)} new pairs showed {format_change(change)}"
    return Decision(
        verdict=verdict,
        reason=reason,
        change=change,
        low=low,
        high=high,
        detectable=found,
        screened=screened,
        confirmed=tuple(ratios),
    )


def reach(spread: float, num_pairs: int) -> float:
    """How far off the mean of so many pairs may be, if single ones scatter by ``spread``."""
    num_out = int(TRIMMED * num_pairs)
    center = stats.Center(
        estimate=0.0,
        standard_error=spread / math.sqrt(num_pairs),
        degrees=num_pairs - 2 * num_out - 1,
    )
    return center.reach(CONFIDENCE)


def pairs_needed(spread: float, bar: float) -> int:
    """How many pairs tell a change of ``bar`` (a log ratio) from the noise; or the most allowed."""
    tried = range(FEWEST_PAIRS, MOST_PAIRS, MORE_PAIRS)
    return next((number for number in tried if reach(spread, number) <= bar), MOST_PAIRS)


def power(slowdown: float, spread: float, bar: float) -> float:
    """How often a slowdown is found, if pairs scatter normally.

    Args:
        slowdown: the true log ratio.
        spread: standard deviation of a pair's.
        bar: the threshold's.
    """
    if spread == 0:
        return float(slowdown > bar)
    suspected = suspects(slowdown + spread * _many_screens(), bar)
    num_pairs = pairs_needed(spread, bar)
    edge = max(bar, reach(spread, num_pairs))
    confirmed = float(ndtr((slowdown - edge) / (spread / math.sqrt(num_pairs))))
    return float(np.mean(suspected)) * confirmed


@functools.cache
def _many_screens() -> stats.FloatArray:
    """Normal pairs of 2000 screens; always the same, so that power grows with the slowdown."""
    return np.random.default_rng(0).standard_normal((2000, 2 * NUM_SCREEN))


def detectable(spread: float, bar: float) -> float:
    """The smallest log ratio that is found nineteen times in twenty, to some hundredths of it."""
    return bar * _detectable_in_bars(math.ceil(100 * spread / bar) / 100)


@functools.cache
def _detectable_in_bars(spread: float) -> float:
    """Both in parts of the threshold: all that is decided depends on these parts alone."""
    low, high = 1.0, 1.0
    while power(high, spread, 1.0) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, spread, 1.0) < POWER else (low, middle)
    return high


def _spread(ratios: Sequence[float], trimmed: float) -> float:
    return stats.center(ratios, trimmed).standard_error * math.sqrt(len(ratios))

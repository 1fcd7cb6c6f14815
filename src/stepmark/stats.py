"""Statistics of step times, defined once."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
_LARGEST_LOG = 100.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The ``percent``-th percentile with linear interpolation between order statistics.

    This is definition 7 of Hyndman and Fan (1996), NumPy's default.

    Raises:
        ValueError: ``values`` is empty.
    """
    if not values:
        raise ValueError("percentile of no values")
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def median(values: Sequence[float]) -> float:
    """The middle value; the mean of the two middle ones where their number is even."""
    return percentile(values, 50.0)


def spread(values: Sequence[float]) -> float:
    """Largest minus smallest, over the median.

    Raises:
        ValueError: ``values`` is empty.
    """
    return (max(values) - min(values)) / median(values)


def change_of(log_ratio: float) -> float:
    """The fraction that a logarithm of a ratio stands for; finite, however far apart they are."""
    return math.expm1(min(log_ratio, _LARGEST_LOG))


@dataclass(frozen=True, kw_only=True)
class Shift:
    """By how much one sample lies above another.

    Attributes:
        estimate: the shift.
        low, high: ends of its confidence interval.
    """

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2


def shift(base: Sequence[float], head: Sequence[float], confidence: float) -> Shift | None:
    """By how much ``head`` lies above ``base``, taking their values for independent.

    Where ranks can give the confidence (for 99 % from five values a side on): the estimate of
    Hodges and Lehmann (1963), with the interval that inverts the exact test of Mann and Whitney
    (1947). It holds for every distribution, and single values far off move it little. With fewer
    values: the difference of means with the interval of Welch (1947).

    Returns:
        ``None`` where a side has fewer than two values.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1")
    if min(len(base), len(head)) < 2:
        return None
    return _rank_shift(base, head, confidence) or _welch_shift(base, head, confidence)


def _rank_shift(base: Sequence[float], head: Sequence[float], confidence: float) -> Shift | None:
    differences = np.sort(np.subtract.outer(np.asarray(head), np.asarray(base)).ravel())
    tail = (1 - confidence) / 2
    # How many differences may be left out at each end.
    num_outside = int(np.searchsorted(_mann_whitney_cdf(len(base), len(head)), tail, side="right"))
    if num_outside == 0:
        return None
    return Shift(
        estimate=float(np.median(differences)),
        low=float(differences[num_outside - 1]),
        high=float(differences[-num_outside]),
    )


@functools.cache
def _mann_whitney_cdf(num_base: int, num_head: int) -> FloatArray:
    """Probabilities that U is at most 0, 1, 2, ... if all orders of the values are as likely."""
    # The number of orders with U = u is the coefficient of q^u in a Gaussian binomial, the
    # product of (1 - q^(num_head + i)) / (1 - q^i) for i = 1 ... num_base.
    orders = [1] + [0] * (num_base * num_head)
    for i in range(1, num_base + 1):
        for u in range(len(orders) - 1, num_head + i - 1, -1):
            orders[u] -= orders[u - num_head - i]
        for u in range(i, len(orders)):
            orders[u] += orders[u - i]
    total = sum(orders)
    return np.array([below / total for below in itertools.accumulate(orders)])


def _welch_shift(base: Sequence[float], head: Sequence[float], confidence: float) -> Shift:
    parts = [np.var(side, ddof=1) / len(side) for side in (base, head)]
    variance = float(sum(parts))
    estimate = float(np.mean(head) - np.mean(base))
    if variance == 0:
        return Shift(estimate=estimate, low=estimate, high=estimate)
    weights = [p**2 / (len(side) - 1) for p, side in zip(parts, (base, head), strict=True)]
    degrees = variance**2 / float(sum(weights))
    reach = _student_quantile(degrees, confidence) * math.sqrt(variance)
    return Shift(estimate=estimate, low=estimate - reach, high=estimate + reach)


@dataclass(frozen=True, kw_only=True)
class Center:
    """Where a sample lies.

    Attributes:
        estimate: its trimmed mean.
        standard_error: how much that would scatter from sample to sample.
        degrees: degrees of freedom of the standard error.
    """

    estimate: float
    standard_error: float
    degrees: int

    def reach(self, confidence: float) -> float:
        """Half the length of the interval that covers the true center so often."""
        return _student_quantile(self.degrees, confidence) * self.standard_error


def center(values: Sequence[float], trimmed: float) -> Center:
    """Trimmed mean, with its standard error as in Yuen (1974).

    Args:
        values: independent of each other.
        trimmed: the part of them that is left out at each end; these count as if they were as far
            out as the next ones.

    Raises:
        ValueError: fewer than two values remain, or ``trimmed`` is not from 0 to below 0.5.
    """
    if not 0 <= trimmed < 0.5:
        raise ValueError(f"trimmed={trimmed}: must be at least 0 and below 0.5")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    num_out = int(trimmed * len(ordered))
    kept = ordered[num_out : len(ordered) - num_out]
    if len(kept) < 2:
        raise ValueError(f"{len(values)} values: too few for a center of those that remain")
    winsorized = np.clip(ordered, kept[0], kept[-1])
    squares = float(np.sum((winsorized - np.mean(winsorized)) ** 2))
    return Center(
        estimate=float(np.mean(kept)),
        standard_error=math.sqrt(squares / (len(kept) * (len(kept) - 1))),
        degrees=len(kept) - 1,
    )


def _student_quantile(degrees: float, confidence: float) -> float:
    """How many standard errors Student's distribution reaches to either side."""
    from scipy.special import stdtrit  # here, since it takes half of a command's start

    return float(stdtrit(degrees, (1 + confidence) / 2))

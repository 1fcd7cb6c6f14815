"""Statistics of step times, defined once."""

from collections.abc import Sequence

import numpy as np


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

"""The usual gates, on processes of the pool as if these had been run one after the other.

Each says whether head is slower than base, from one process a side.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

Side = dict[str, Any]
_SIGNIFICANT = 0.05
_BAND = 0.01
_RESAMPLES = 400
_source = np.random.default_rng(0)


def mean_5(base: Side, head: Side) -> bool:
    """pytest-benchmark's ``mean:5%``."""
    return float(np.mean(head["turn_means_us"])) > 1.05 * float(np.mean(base["turn_means_us"]))


def min_5(base: Side, head: Side) -> bool:
    """pytest-benchmark's ``min:5%``."""
    shortest = [side["step_quantiles_us"][-1][0] for side in (base, head)]
    return bool(shortest[1] > 1.05 * shortest[0])


def mann_whitney(base: Side, head: Side) -> bool:
    """Mann and Whitney's test on 40 steps a side, as if these were independent; 5 %."""
    test = scipy.stats.mannwhitneyu(head["steps_us"], base["steps_us"], alternative="two-sided")
    slower = np.median(head["steps_us"]) > np.median(base["steps_us"])
    return bool(test.pvalue < _SIGNIFICANT and slower)


def bootstrap(base: Side, head: Side) -> bool:
    """The bootstrapped mean of 40 steps: its 95 % interval lies above a band of 1 % of noise."""
    means = [
        _source.choice(side["steps_us"], (_RESAMPLES, len(side["steps_us"]))).mean(axis=1)
        for side in (base, head)
    ]
    return bool(np.percentile(means[1] / means[0] - 1, 2.5) > _BAND)


GATES: dict[str, Callable[[Side, Side], bool]] = {
    "pytest-benchmark mean:5%": mean_5,
    "pytest-benchmark min:5%": min_5,
    "Mann-Whitney on steps": mann_whitney,
    "bootstrap of the mean": bootstrap,
}

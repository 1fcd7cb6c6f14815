"""In which order pairs are measured, and when there are enough."""

import math
from collections.abc import Callable, Iterator, Sequence

from stepmark.advice import Trial, claims_of
from stepmark.advice.judgement import FEWEST_PAIRS, MOST_PAIRS, THRESHOLD, log_ratios, reach


def pursue(
    trials: Sequence[Trial], add_pair: Callable[[Trial], Trial], time_left: Callable[[], float]
) -> Iterator[Trial]:
    """Measure pairs while there is time: first some of each trial, then more where they scatter.

    Args:
        trials: those that have pairs are gone on with.
        add_pair: measures one more pair.
        time_left: seconds.

    Returns:
        (As an iterator) each trial whenever something came to it.
    """
    current = {trial.advice: trial for trial in trials}

    def add(name: str) -> Trial:
        current[name] = add_pair(current[name])
        return current[name]

    for name in current:
        while _is_open(current[name], FEWEST_PAIRS) and _fits(current[name], time_left()):
            yield add(name)
    while True:
        # How far apart pairs lie asks for more of them, never where they lie.
        unclear = [
            (scatter(trial), name)
            for name, trial in current.items()
            if _is_open(trial, MOST_PAIRS)
            and len(trial.pairs) >= FEWEST_PAIRS
            and scatter(trial) > math.log1p(THRESHOLD)
            and _fits(trial, time_left())
        ]
        if not unclear:
            return
        yield add(max(unclear)[1])


def _is_open(trial: Trial, most: int) -> bool:
    return not trial.obstacle and not trial.failure and len(trial.pairs) < most


def _fits(trial: Trial, left_s: float) -> bool:
    """Whether there is time for the pair, or for all that are needed to say anything."""
    if not trial.pairs:
        return left_s > 0
    each_s = sum(pair.wall_s for pair in trial.pairs) / len(trial.pairs)
    return each_s * max(1, FEWEST_PAIRS - len(trial.pairs)) <= left_s


def scatter(trial: Trial) -> float:
    """How far off the widest of its claims' log ratios may be."""
    quantities = {claim.quantity for claim in claims_of(trial.advice)}
    found = (log_ratios(trial, quantity) for quantity in quantities)
    return max((reach(ratios) for ratios in found if len(ratios) > 1), default=0.0)

"""In which order pairs are measured, and when there are enough."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence

from stepmark import stats
from stepmark.advice import Trial, claims_of
from stepmark.advice.judgement import (
    MOST_PAIRS,
    THRESHOLD,
    fewest_pairs,
    is_gross,
    log_ratios,
    reach,
)

# A trial whose pairs take so many times as long as the others' has to wait for them.
_DEAR = 2.0


def pursue(
    trials: Sequence[Trial], add_pair: Callable[[Trial], Trial], time_left: Callable[[], float]
) -> Iterator[Trial]:
    """Measure pairs while there is time: first some of each trial, then more where they scatter.

    Trials whose pairs turn out to take long are put off until the others have theirs, so that a
    precision that this processor does not have, say, does not use up the time for all else.

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

    for puts_off in (True, False):
        for name in current if puts_off else sorted(current, key=lambda n: _pair_s(current[n])):
            while _lacks_pairs(current[name]) and _fits(current[name], time_left()):
                if puts_off and _is_dear(current[name], current.values()):
                    break
                yield add(name)
    # What cannot be brought to its end now, a later run may go on with.
    for name in sorted(current, key=lambda n: _pair_s(current[n])):
        while current[name].pairs and _lacks_pairs(current[name]):
            if _pair_s(current[name]) > time_left():
                break
            yield add(name)
    while unclear := [
        (scatter(trial), name)
        for name, trial in current.items()
        if _is_unclear(trial) and _fits(trial, time_left())
    ]:
        yield add(max(unclear)[1])


def needed_s(trials: Collection[Trial]) -> float:
    """Seconds that pairs will take, about, until something can be said of each trial.

    Args:
        trials: one without pairs is taken to be like the others; 0 if none has any.
    """
    known_s = [_pair_s(trial) for trial in trials if trial.pairs]
    if not known_s:
        return 0.0
    usual_s = stats.median(known_s)
    return sum(
        (fewest_pairs(trial) - len(trial.pairs)) * (_pair_s(trial) if trial.pairs else usual_s)
        for trial in trials
        if _lacks_pairs(trial)
    )


def _is_unclear(trial: Trial) -> bool:
    """Whether more pairs could say more: how far apart they lie asks for them, never where."""
    is_begun = _is_open(trial, MOST_PAIRS) and not _lacks_pairs(trial)
    return is_begun and not is_gross(trial) and scatter(trial) > math.log1p(THRESHOLD)


def _is_open(trial: Trial, most: int) -> bool:
    return not trial.obstacle and not trial.failure and len(trial.pairs) < most


def _lacks_pairs(trial: Trial) -> bool:
    return _is_open(trial, fewest_pairs(trial))


def _fits(trial: Trial, left_s: float) -> bool:
    """Whether there is time for the pair, or for all that are needed to say anything."""
    if not trial.pairs:
        return left_s > 0
    return _pair_s(trial) * max(1, fewest_pairs(trial) - len(trial.pairs)) <= left_s


def _pair_s(trial: Trial) -> float:
    """What a pair of it takes, 0 if there is none yet.

    The least of them: one may have stalled, and the first one may have compiled what others find.
    """
    return min((pair.wall_s for pair in trial.pairs), default=0.0)


def _is_dear(trial: Trial, trials: Collection[Trial]) -> bool:
    others = [_pair_s(t) for t in trials if t.pairs and t.advice != trial.advice]
    return bool(others) and _pair_s(trial) > _DEAR * stats.median(others)


def scatter(trial: Trial) -> float:
    """How far off the widest of its claims' log ratios may be."""
    quantities = {claim.quantity for claim in claims_of(trial.advice)}
    found = (log_ratios(trial, quantity) for quantity in quantities)
    return max((reach(ratios) for ratios in found if len(ratios) > 1), default=0.0)

"""From the pairs of a trial to what can be said of each claim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from stepmark import stats
from stepmark.advice.catalogue import Claim, Quantity
from stepmark.advice.record import Measured, Trial
from stepmark.units import format_change, format_percent

# docs/decisions/advice.md says why these, and what they were found to give.
FEWEST_PAIRS, MOST_PAIRS = 5, 15
CONFIDENCE = 0.99
# Smaller differences do not matter.
THRESHOLD = 0.03
# Nor do smaller ones in memory: allocators round.
_LEAST_BYTES = 2 << 20


class Standing(StrEnum):
    """What a claim has come to on this machine."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NO_DIFFERENCE = "no difference seen"
    CANNOT_BE_TRIED = "cannot be tried"
    NOT_DECIDED = "not decided"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a trial says on one claim.

    Attributes:
        claim: which.
        standing: see there.
        reason: why, in a sentence.
        change: of the claim's quantity with the advice, as a fraction; ``None`` without pairs.
        low, high: its interval (99 %).
        without, with_it: medians over pairs, samples per second or bytes.
        num_pairs: that it rests on.
    """

    claim: Claim
    standing: Standing
    reason: str
    change: float | None = None
    low: float | None = None
    high: float | None = None
    without: float | None = None
    with_it: float | None = None
    num_pairs: int = 0


def judge(trial: Trial, claim: Claim) -> Judgement:
    """What a trial says on a claim of its advice."""
    if trial.obstacle:
        return Judgement(claim=claim, standing=Standing.CANNOT_BE_TRIED, reason=trial.obstacle)
    found = [
        (_value(pair.without, claim.quantity), _value(pair.with_it, claim.quantity))
        for pair in trial.pairs
    ]
    known = [(a, b) for a, b in found if a and b]
    if trial.pairs and len(known) < len(found):
        reason = f"{_NAMES[claim.quantity]} of these scenarios is not known here"
        return Judgement(claim=claim, standing=Standing.CANNOT_BE_TRIED, reason=reason)
    if len(known) < FEWEST_PAIRS:
        return Judgement(
            claim=claim,
            standing=Standing.NOT_DECIDED,
            reason=f"{len(known)} of at least {FEWEST_PAIRS} pairs measured",
            num_pairs=len(known),
        )
    return _judge(claim, known)


def reach(ratios: Sequence[float]) -> float:
    """How far off the middle of these log ratios may be."""
    return stats.center(ratios, 0.0).reach(CONFIDENCE)


def log_ratios(trial: Trial, quantity: Quantity) -> list[float]:
    """Logarithms of what each pair has with the advice over what it has without."""
    sides = (
        (_value(pair.without, quantity), _value(pair.with_it, quantity)) for pair in trial.pairs
    )
    return [math.log(b / a) for a, b in sides if a and b]


def _judge(claim: Claim, known: Sequence[tuple[float, float]]) -> Judgement:
    ratios = [math.log(b / a) for a, b in known]
    middle, off = stats.center(ratios, 0.0).estimate, reach(ratios)
    low, high = stats.change_of(middle - off), stats.change_of(middle + off)
    change = stats.change_of(middle)
    without, with_it = (stats.median(side) for side in zip(*known, strict=True))
    is_memory = claim.quantity is Quantity.MEMORY
    better = -middle if is_memory else middle
    matters = abs(change) >= THRESHOLD
    if is_memory:
        matters = matters and abs(with_it - without) >= _LEAST_BYTES
    what = _NAMES[claim.quantity]
    if off < abs(middle) and matters:
        standing = Standing.HOLDS if better > 0 else Standing.DOES_NOT_HOLD
        reason = (
            f"{what} {format_change(change)}, as {_agreeing(ratios)} of {len(ratios)} pairs say"
        )
    else:
        standing = Standing.NO_DIFFERENCE
        reason = f"{what} {format_change(change)}"
        if off < abs(middle):
            reason += f", less than the {format_percent(THRESHOLD)} that matter"
            if is_memory and abs(change) >= THRESHOLD:
                reason = f"{what} {format_change(change)}, less than the 2 MiB that matter"
        else:
            reason += f"; {format_percent(stats.change_of(off))} would have shown"
    return Judgement(
        claim=claim,
        standing=standing,
        reason=reason,
        change=change,
        low=low,
        high=high,
        without=without,
        with_it=with_it,
        num_pairs=len(ratios),
    )


def _agreeing(ratios: Sequence[float]) -> int:
    rising = sum(ratio > 0 for ratio in ratios)
    return max(rising, len(ratios) - rising)


def _value(measured: Measured, quantity: Quantity) -> float | None:
    match quantity:
        case Quantity.THROUGHPUT:
            return measured.samples_per_s
        case Quantity.MEMORY:
            return measured.peak_bytes
        case Quantity.EPOCH:
            return measured.epoch_samples_per_s


_NAMES = {
    Quantity.THROUGHPUT: "throughput",
    Quantity.MEMORY: "peak memory",
    Quantity.EPOCH: "throughput over an epoch",
}

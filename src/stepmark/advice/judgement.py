"""From the pairs of a trial to what can be said of each claim."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stepmark import stats
from stepmark.advice.catalogue import Claim, Quantity, find
from stepmark.advice.record import Measured, Trial
from stepmark.choices import CompileMode
from stepmark.record import HOST_MEMORY_BAND
from stepmark.units import format_change, format_percent, format_seconds

# docs/decisions/advice.md says why these, and what they were found to give.
FEWEST_PAIRS, MOST_PAIRS = 5, 15
# A few pairs are enough where each says that a side is so many times as fast as the other.
_FEWEST_GROSS_PAIRS, _GROSS = 3, 3.0
CONFIDENCE = 0.99
# Smaller differences do not matter.
THRESHOLD = 0.03
# Nor do smaller ones in memory: allocators round.
_LEAST_BYTES = 2 << 20
# Part of the steps that a gradient scaler may skip: it tries a larger scale now and then.
_MOST_SKIPPED = 0.01


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
        detectable: what would have shown where no difference is seen; empty otherwise.
        remark: what else to know of it; empty if there is nothing.
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
    detectable: str = ""
    remark: str = ""


def judge(trial: Trial, claim: Claim) -> Judgement:
    """What a trial says on a claim of its advice."""
    obstacle = trial.obstacle or _spoilt(trial)
    if obstacle:
        return Judgement(claim=claim, standing=Standing.CANNOT_BE_TRIED, reason=obstacle)
    found = [
        (_value(pair.without, claim.quantity), _value(pair.with_it, claim.quantity))
        for pair in trial.pairs
    ]
    known = [(a, b) for a, b in found if a and b]
    if trial.pairs and len(known) < len(found):
        reason = f"{_NAMES[claim.quantity]} of these scenarios is not known here"
        return Judgement(claim=claim, standing=Standing.CANNOT_BE_TRIED, reason=reason)
    fewest = fewest_pairs(trial)
    if len(known) < fewest:
        reason = f"{len(known)} of at least {fewest} pairs measured"
        return Judgement(
            claim=claim,
            standing=Standing.NOT_DECIDED,
            reason=trial.failure or reason,
            num_pairs=len(known),
        )
    in_host = claim.quantity is Quantity.MEMORY and "cpu" in (
        trial.without.device,
        trial.with_it.device,
    )
    judged = _judge(claim, known, least_reach=math.log1p(HOST_MEMORY_BAND) if in_host else 0.0)
    remarks = [trial.failure, _compiling(trial) if claim.quantity is Quantity.THROUGHPUT else ""]
    return dataclasses.replace(judged, remark="; ".join(filter(None, remarks)))


def is_gross(trial: Trial) -> bool:
    """Whether each of its pairs says the same, and so much that more could not say otherwise."""
    ratios = log_ratios(trial, Quantity.THROUGHPUT)
    least = math.log(_GROSS)
    return bool(ratios) and (min(ratios) > least or max(ratios) < -least)


def fewest_pairs(trial: Trial) -> int:
    """How many pairs a trial needs before anything is said, as far as is known by now."""
    if _hopeless(trial):
        return len(trial.pairs)  # which no more of them would change
    return _FEWEST_GROSS_PAIRS if is_gross(trial) else FEWEST_PAIRS


def _hopeless(trial: Trial) -> str:
    """Why its figures are not those of a training, whatever follows; empty if they may be."""
    for who, found in _sides(trial):
        if any(measured.diverges for measured in found):
            return f"{who} the loss is not finite"
        if any(measured.skipped_steps is None for measured in found):
            return (
                f"{who} an optimizer takes the gradient scale itself: steps skipped are not known"
            )
    return ""


def _sides(trial: Trial) -> Iterator[tuple[str, list[Measured]]]:
    yield "without it", [pair.without for pair in trial.pairs]
    yield "with it", [pair.with_it for pair in trial.pairs]


def _spoilt(trial: Trial) -> str:
    """Why its figures are not those of a training; empty if they are."""
    if hopeless := _hopeless(trial):
        return hopeless
    for who, found in _sides(trial):
        skipped = sum(measured.skipped_steps or 0 for measured in found)
        num_steps = sum(measured.num_steps for measured in found)
        if skipped > _MOST_SKIPPED * num_steps:
            return (
                f"{who} the gradient scaler skipped {skipped:,} of {num_steps:,} steps, which "
                "update nothing and look fast"
            )
    return ""


def _compiling(trial: Trial) -> str:
    """What the first step costs where it compiles, and when that has paid."""
    if trial.with_it.compile is CompileMode.OFF or trial.without.compile is not CompileMode.OFF:
        return ""
    if find(trial.advice) is None:
        return ""  # of a combination some may have been compiled for its parts
    # The first pair's compiler found nothing that another one had left.
    costs_s = max(pair.with_it.first_step_s for pair in trial.pairs)
    costs_s -= stats.median([pair.without.first_step_s for pair in trial.pairs])
    then, now = (
        stats.median([getattr(pair, side).samples_per_s for pair in trial.pairs])
        for side in ("without", "with_it")
    )
    text = (
        f"the first step takes {format_seconds(costs_s)} longer, with nothing compiled before "
        "(starting the compiler is not counted)"
    )
    if now > then:
        return f"{text}: made good after {costs_s / (1 / then - 1 / now):,.0f} samples"
    return text


def reach(ratios: Sequence[float]) -> float:
    """How far off the middle of these log ratios may be."""
    return stats.center(ratios, 0.0).reach(CONFIDENCE)


def log_ratios(trial: Trial, quantity: Quantity) -> list[float]:
    """Logarithms of what each pair has with the advice over what it has without."""
    sides = (
        (_value(pair.without, quantity), _value(pair.with_it, quantity)) for pair in trial.pairs
    )
    return [math.log(b / a) for a, b in sides if a and b]


def _judge(claim: Claim, known: Sequence[tuple[float, float]], *, least_reach: float) -> Judgement:
    ratios = [math.log(b / a) for a, b in known]
    middle, off = stats.center(ratios, 0.0).estimate, max(reach(ratios), least_reach)
    low, high = stats.change_of(middle - off), stats.change_of(middle + off)
    change = stats.change_of(middle)
    without, with_it = (stats.median(side) for side in zip(*known, strict=True))
    is_memory = claim.quantity is Quantity.MEMORY
    better = -middle if is_memory else middle
    matters = abs(change) >= THRESHOLD
    if is_memory:
        matters = matters and abs(with_it - without) >= _LEAST_BYTES
    what, detectable = _NAMES[claim.quantity], ""
    if off < abs(middle) and matters:
        standing = Standing.HOLDS if better > 0 else Standing.DOES_NOT_HOLD
        reason = (
            f"{what} {format_change(change)}, as {_agreeing(ratios)} of {len(ratios)} pairs say"
        )
    else:
        standing = Standing.NO_DIFFERENCE
        if off >= abs(middle):
            # To the side where it lies: of ratios, what is +15 % upwards is -13 % downwards.
            least = stats.change_of(math.copysign(off, middle))
            detectable = f"{format_percent(abs(least))} would have shown"
        elif is_memory and abs(change) >= THRESHOLD:
            detectable = "less than the 2 MiB that matter"
        else:
            detectable = f"less than the {format_percent(THRESHOLD)} that matter"
        reason = f"{what} {format_change(change)}; {detectable}"
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
        detectable=detectable,
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

"""What can be said of a scenario measured on two sides, and what that makes of a command."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stepmark.units import format_bytes, format_change


class Verdict(StrEnum):
    """What became of a scenario's step, from base to head."""

    SLOWER = "SLOWER"
    FASTER = "FASTER"
    SAME = "SAME"
    INCONCLUSIVE = "INCONCLUSIVE"
    INCOMPARABLE = "INCOMPARABLE"
    MISSING = "MISSING"


@dataclass(frozen=True, kw_only=True)
class Counter:
    """Something exact that differs between the sides.

    Attributes:
        name: what it is, such as ``peak_allocated_bytes``.
        base, head: its values, as text.
        is_regression: it is a cost that grew by more than the threshold.
    """

    name: str
    base: str
    head: str
    is_regression: bool = False


def peak_memory(base_bytes: int, head_bytes: int, threshold: float) -> Counter:
    """Peak allocated bytes that differ: more of them, beyond the threshold, is a regression."""
    return Counter(
        name="peak_allocated_bytes",
        base=_exactly(base_bytes),
        head=_exactly(head_bytes),
        is_regression=head_bytes > base_bytes * (1 + threshold),
    )


def _exactly(size_bytes: int) -> str:
    """Rounded alone, two that differ may look the same."""
    return f"{format_bytes(size_bytes)} ({size_bytes} bytes)"


# What does not decide is told when it moved by so much.
ADVISORY = 0.25


def advice(what: str, base: float, head: float) -> Iterator[str]:
    """That a figure moved which does not decide, if it moved far."""
    if base and head and abs(head / base - 1) > ADVISORY:
        yield f"{what} {format_change(head / base - 1)} (not judged)"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A scenario on two sides.

    Changes are fractions of base's step time: 0.05 is a step that takes 5 % longer.

    Attributes:
        scenario_id: the scenario's.
        verdict: see there.
        reason: why, in a sentence.
        base_s, head_s: seconds of a step on each side; ``None`` where it was not measured.
        change: the estimate.
        low, high: its interval.
        detectable: the smallest change that would have been found; ``None`` where unknown.
        num_base, num_head: processes measured.
        counters: exact figures that differ.
        remarks: advisory: what does not decide.
    """

    scenario_id: str
    verdict: Verdict
    reason: str
    base_s: float | None = None
    head_s: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    num_base: int = 0
    num_head: int = 0
    counters: tuple[Counter, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        """It got worse, beyond doubt."""
        grew = any(counter.is_regression for counter in self.counters)
        return self.verdict is Verdict.SLOWER or grew


CLEAN, REGRESSION, NOT_COMPARABLE, INCONCLUSIVE, NOTHING_MEASURED = 0, 1, 3, 4, 5


def exit_code(comparisons: Sequence[Comparison]) -> int:
    """The exit code of a command: what is worst to miss comes first.

    1 a confirmed regression, 3 something not comparable or missing, 4 something inconclusive,
    0 neither; 5 nothing was measured at all.
    """
    verdicts = {comparison.verdict for comparison in comparisons}
    if not comparisons:
        return NOTHING_MEASURED
    if any(comparison.is_regression for comparison in comparisons):
        return REGRESSION
    if verdicts & {Verdict.INCOMPARABLE, Verdict.MISSING}:
        return NOT_COMPARABLE
    return INCONCLUSIVE if Verdict.INCONCLUSIVE in verdicts else CLEAN


# A machine that drifts moves many scenarios the same way; code seldom does.
_DRIFTING_PART = 0.3
_FEWEST_TO_DRIFT = 4


def moved_together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """So many that moved the same way that the machine may have; none if there are not so many."""
    judged = [c for c in comparisons if c.change is not None]
    for verdict in (Verdict.SLOWER, Verdict.FASTER):
        moved = [c for c in judged if c.verdict is verdict]
        if len(judged) >= _FEWEST_TO_DRIFT and len(moved) > _DRIFTING_PART * len(judged):
            return moved
    return []


def drift(comparisons: Sequence[Comparison]) -> str:
    """That the machine may have moved, in words; empty if nothing says so."""
    moved = moved_together(comparisons)
    if not moved:
        return ""
    return (
        f"{len(moved)} of {len(comparisons)} scenarios are {moved[0].verdict}: unless what changed "
        "concerns them all, the machine drifted"
    )

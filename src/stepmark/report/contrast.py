"""Two scenarios that differ in one thing: by how much, and whether this run can tell.

This is a reader's guard against noise, not the gate: it answers from whatever repeats a run
happens to have, and errs towards "no clear difference".
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stepmark.record import HOST_MEMORY_BAND
from stepmark.report.cells import Cell
from stepmark.report.wording import from_to, times

# How many times the spread of the processes a difference must exceed, by how many processes the
# smaller side has; and the ratio that is asked for where one side has a single process.
# Tried on 50 blocks of processes of unchanged code on a noisy two-core machine, drawn at random
# as two sides, in three scenarios: this rule saw a difference in 3-8 % of the draws with two
# processes a side, in 1-2 % with three, in under 1 % with five. With one a side it saw one in
# 5-8 % (44 % where threads fought over the cores); a ratio of 1.15 in its place, in 38-77 %.
_SPREADS_BY_PROCESSES = {2: 2.0, 3: 1.5}
SINGLE_PROCESS_BAND = 0.5
# An accelerator's memory does not depend on the neighbours' load.
_SINGLE_PROCESS_MEMORY_BAND = 0.1
# Repeats can agree by chance, and the order of measuring leaves a trace; less is not claimed.
_SMALLEST_BAND = 0.01

THROUGHPUT = "samples_per_s"
HOST_MEMORY = "peak_host_bytes"
_NOT_SHOWN = "no clear difference"


class Verdict(StrEnum):
    """What a run can say about two scenarios."""

    MORE = "more"
    LESS = "less"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One scenario against another in one column of the flat table.

    Attributes:
        tested, against: the two cells.
        ratio: median of ``tested`` over median of ``against``.
        band: ratios up to ``1 + band`` (and down to its inverse) are not told from 1.
    """

    tested: Cell
    against: Cell
    ratio: float
    band: float

    @property
    def verdict(self) -> Verdict:
        """Whether the ratio is outside its band, and to which side."""
        if max(self.ratio, 1 / self.ratio) - 1 <= self.band:
            return Verdict.NOT_SHOWN
        return Verdict.MORE if self.ratio > 1 else Verdict.LESS

    @property
    def is_shown(self) -> bool:
        """Whether this run can tell the two apart."""
        return self.verdict is not Verdict.NOT_SHOWN

    def in_words(self, than: str = "") -> str:
        """``1.42× the plain loop``, or that no difference can be shown.

        Args:
            than: what ``against`` is called; empty leaves it out.
        """
        if self.is_shown:
            return f"{times(self.ratio)} {than}".strip()
        what = f"{_NOT_SHOWN} from {than}" if than else _NOT_SHOWN
        needed = 1 + self.band if self.ratio >= 1 else 1 / (1 + self.band)
        side = "above" if self.ratio >= 1 else "below"
        if times(self.ratio) == times(needed):
            return f"{what} ({times(self.ratio)}, which is where it begins to be clear)"
        return f"{what} ({times(self.ratio)}; clear only {side} {times(needed)})"


def typical_spread(cells: Iterable[Cell], column: str = THROUGHPUT) -> float | None:
    """Median over cells of the spread between their processes; ``None`` without repeats."""
    spreads = [spread for cell in cells if (spread := cell.spread(column)) is not None]
    return statistics.median(spreads) if spreads else None


def contrast(tested: Cell, against: Cell, cells: Iterable[Cell]) -> Contrast:
    """Compare the throughput of two cells; see `contrast_in`."""
    found = contrast_in(THROUGHPUT, tested, against, cells)
    assert found is not None, "every cell has a throughput"
    return found


def contrast_in(column: str, tested: Cell, against: Cell, cells: Iterable[Cell]) -> Contrast | None:
    """Compare two cells in one column.

    The spread of two or three processes may be small by chance, so the typical one of all cells
    counts too, if it is larger.

    Args:
        column: of the flat table.
        tested: the cell asked about.
        against: what it is compared with.
        cells: of the same run and workload, for the typical spread.

    Returns:
        ``None`` where one of them lacks the column.
    """
    first, second = tested.median(column), against.median(column)
    if not first or not second:
        return None
    num_processes = min(len(tested.values(column)), len(against.values(column)))
    if num_processes < 2:
        band = SINGLE_PROCESS_BAND if column == THROUGHPUT else _SINGLE_PROCESS_MEMORY_BAND
    else:
        spreads = [c.spread(column) for c in (tested, against)]
        spreads.append(typical_spread(cells, column))
        widest = max(spread for spread in spreads if spread is not None)
        band = max(_SMALLEST_BAND, _SPREADS_BY_PROCESSES.get(num_processes, 1.0) * widest)
    if column == HOST_MEMORY:
        band = max(band, HOST_MEMORY_BAND)
    return Contrast(tested=tested, against=against, ratio=first / second, band=band)


def tally(
    contrasts: Sequence[Contrast],
    label: Callable[[Cell], str],
    *,
    more: str = "faster",
    less: str = "slower",
) -> str:
    """Many contrasts of one kind in a clause without its subject.

    One pair is told with its label; more are counted by verdict, with their ratios:
    ``faster in 6 of 8 matched pairs (1.12× to 1.80×, most at batch 64, bf16); no clear
    difference in 2 (0.99× to 1.01×)``.
    """
    if len(contrasts) == 1:
        only = contrasts[0]
        words = {Verdict.MORE: f"{more}, ", Verdict.LESS: f"{less}, "}.get(only.verdict, "")
        return f"{words}{only.in_words()}, at {label(only.tested)}"
    by_verdict = {Verdict.MORE: more, Verdict.LESS: less, Verdict.NOT_SHOWN: _NOT_SHOWN}
    parts = []
    of_all = f" of {len(contrasts)} matched pairs"
    for verdict, word in by_verdict.items():
        some = [c for c in contrasts if c.verdict is verdict]
        if some:
            where = f"{len(some)}{of_all}"
            if len(some) == len(contrasts):
                where = "both matched pairs" if len(some) == 2 else f"all {len(some)} matched pairs"
            parts.append(f"{word} in {where} ({_ratios(some, label)})")
            of_all = ""
    if len(contrasts) > 2 and any(not c.is_shown for c in contrasts):
        middle = statistics.median(c.ratio for c in contrasts)
        parts.append(f"median of all {times(middle)}")
    return "; ".join(parts)


def _ratios(contrasts: Sequence[Contrast], label: Callable[[Cell], str]) -> str:
    """Ratios of one verdict from smallest to largest, with the place of the most extreme."""
    ratios = from_to([c.ratio for c in contrasts], times)
    extreme = max(contrasts, key=lambda c: max(c.ratio, 1 / c.ratio))
    if not extreme.is_shown or (len(contrasts) > 1 and " to " not in ratios):
        return ratios
    return f"{ratios}{', most' if len(contrasts) > 1 else ''} at {label(extreme.tested)}"

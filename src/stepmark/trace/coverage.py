"""Sets of time as merged intervals."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


class Coverage:
    """The time that at least one of some intervals covers.

    Args:
        start_ns, end_ns: the intervals, in any order; they may overlap.
    """

    def __init__(self, start_ns: IntArray, end_ns: IntArray) -> None:
        order = np.argsort(start_ns, kind="stable")
        starts, ends = start_ns[order], np.maximum.accumulate(end_ns[order])
        # A group ends where the next interval begins after all before it have ended.
        begins = np.ones(len(starts), dtype=bool)
        begins[1:] = starts[1:] > ends[:-1]
        last = np.append(begins[1:], True)[: len(starts)]
        self.start_ns, self.end_ns = starts[begins], ends[last]
        lengths = self.end_ns - self.start_ns
        self._covered_before = np.concatenate([[0], np.cumsum(lengths)])

    def before(self, times_ns: IntArray) -> IntArray:
        """Covered nanoseconds before each of these times."""
        group = np.searchsorted(self.start_ns, times_ns, side="right")
        covered = self._covered_before[group]
        begun = group > 0
        beyond = self.end_ns[group[begun] - 1] - times_ns[begun]
        covered[begun] -= np.maximum(0, beyond)
        return covered

"""Memory over a step, from a trace that was recorded with allocations."""

from dataclasses import dataclass

import numpy as np

from stepmark.trace.attribution import DRAIN, PHASE
from stepmark.trace.breakdown import step_edges
from stepmark.trace.events import IntArray, Trace

# A plot has room for no more; each keeps the highest of its piece of the step.
_MOST_POINTS = 300
_HOST = -1


@dataclass(frozen=True, kw_only=True)
class Span:
    """A phase of the step: where it begins and ends, in seconds from the step's beginning."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What tensors held over the last profiled step.

    Attributes:
        at_s: seconds from the step's beginning, by the host's clock: when it was asked for.
        allocated_bytes: held then; of thousands of points the highest ones are kept.
        reserved_bytes: held by the caching allocator; empty on the host, which has none.
        device: index of the accelerator; ``None`` on the host, where only what was allocated
            since the profiler began counts.
        phases: in order.
    """

    at_s: tuple[float, ...]
    allocated_bytes: tuple[int, ...]
    reserved_bytes: tuple[int, ...]
    device: int | None
    phases: tuple[Span, ...]

    @property
    def peak_bytes(self) -> int:
        """The highest point."""
        return max(self.allocated_bytes)

    @property
    def peak_phase(self) -> str:
        """Where the highest point lies; ``other`` outside of all phases."""
        at_s = self.at_s[self.allocated_bytes.index(self.peak_bytes)]
        return next((p.name for p in self.phases if p.start_s <= at_s < p.end_s), "other")


def memory_timeline(trace: Trace) -> Timeline | None:
    """Memory over the last step; ``None`` if the trace has no allocations in it."""
    begin, end = step_edges(trace)[-2:]
    log = trace.allocations
    inside = (log.time_ns >= begin) & (log.time_ns < end)
    devices, counts = np.unique(log.device[inside & (log.device != _HOST)], return_counts=True)
    device = int(devices[np.argmax(counts)]) if len(devices) else _HOST
    found = np.flatnonzero(inside & (log.device == device))
    if not len(found):
        return None
    kept = _highest(log.allocated_bytes, found)
    reserved = log.reserved_bytes[kept].tolist() if device != _HOST else ()
    return Timeline(
        at_s=tuple(((log.time_ns[kept] - begin) / 1e9).tolist()),
        allocated_bytes=tuple(log.allocated_bytes[kept].tolist()),
        reserved_bytes=tuple(reserved),
        device=None if device == _HOST else device,
        phases=_phases(trace, int(begin), int(end)),
    )


def _highest(values: IntArray, which: IntArray) -> IntArray:
    """Of each of some pieces of about equal length, the first and the highest one; and the last."""
    pieces = np.array_split(which, min(len(which), _MOST_POINTS // 2 - 1))
    highest = [int(piece[np.argmax(values[piece])]) for piece in pieces]
    return np.unique([*highest, *(int(piece[0]) for piece in pieces), int(which[-1])])


def _phases(trace: Trace, begin: int, end: int) -> tuple[Span, ...]:
    marks = trace.of("user_annotation") & trace.named(PHASE) & ~trace.named(DRAIN)
    inside = marks & (trace.start_ns >= begin) & (trace.start_ns < end)
    return tuple(
        Span(
            name=trace.names[trace.name[k]].removeprefix(PHASE),
            start_s=float(trace.start_ns[k] - begin) / 1e9,
            end_s=float(trace.end_ns[k] - begin) / 1e9,
        )
        for k in np.flatnonzero(inside).tolist()
    )

"""What on the host happened inside of what."""

from dataclasses import dataclass

import numpy as np

from stepmark.trace.events import DEVICE_CATEGORIES, BoolArray, IntArray, Trace

_NONE = -1


@dataclass(frozen=True, kw_only=True)
class Nesting:
    """Host events as trees, one for each thread.

    Attributes:
        parent: index of the event that each one lies in; -1 for none, and on the device.
        self_ns: duration less that of the events directly inside.
        levels: host events by how many others they lie in, from none.
    """

    parent: IntArray
    self_ns: IntArray
    levels: tuple[IntArray, ...]

    def nearest(self, which: BoolArray) -> IntArray:
        """Of each event, itself or the nearest one around it that is one of these; -1 for none."""
        found = np.where(which, np.arange(len(which)), _NONE)
        for level in self.levels[1:]:
            open_ones = level[found[level] < 0]
            found[open_ones] = found[self.parent[open_ones]]
        return found


def nest(trace: Trace) -> Nesting:
    """Find out which host events lie in which.

    Events of a thread are properly nested, but for rounding: one that ends a little after the one
    it began in is taken to lie in it.
    """
    parent = np.full(len(trace), _NONE, dtype=np.int64)
    duration_ns = trace.end_ns - trace.start_ns
    self_ns = duration_ns.copy()
    host = np.flatnonzero(~trace.of(*DEVICE_CATEGORIES, "gpu_user_annotation", "cuda_sync"))
    # The longer one of two that begin together is around the other.
    order = host[np.lexsort((-duration_ns[host], trace.start_ns[host], trace.thread[host]))]
    parents, depths = _parents(
        trace.start_ns[order].tolist(), trace.end_ns[order].tolist(), trace.thread[order].tolist()
    )
    inner = np.flatnonzero(parents >= 0)
    events, outer = order[inner], order[parents[inner]]
    parent[events] = outer
    within_ns = np.minimum(trace.end_ns[events], trace.end_ns[outer]) - trace.start_ns[events]
    np.subtract.at(self_ns, outer, within_ns)
    by_depth = order[np.argsort(depths, kind="stable")]
    edges = np.cumsum(np.bincount(depths)) if len(depths) else np.zeros(1, dtype=np.int64)
    return Nesting(parent=parent, self_ns=self_ns, levels=tuple(np.split(by_depth, edges[:-1])))


def _parents(starts: list[int], ends: list[int], threads: list[int]) -> tuple[IntArray, IntArray]:
    """Places of the events that others lie in, -1 for none, and in how many; outer ones first."""
    parents, depths = [_NONE] * len(starts), [0] * len(starts)
    around: list[int] = []
    thread = _NONE
    for place, start in enumerate(starts):
        if threads[place] != thread:
            around.clear()
            thread = threads[place]
        while around and ends[around[-1]] <= start:
            around.pop()
        if around:
            parents[place] = around[-1]
            depths[place] = len(around)
        around.append(place)
    return np.array(parents, dtype=np.int64), np.array(depths, dtype=np.int64)

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
        order: host events, each after the one it lies in.
    """

    parent: IntArray
    self_ns: IntArray
    order: IntArray

    def nearest(self, which: BoolArray) -> IntArray:
        """Of each event, itself or the nearest one around it that is one of these; -1 for none."""
        found = np.where(which, np.arange(len(which)), _NONE).tolist()
        parent = self.parent.tolist()
        for event in self.order.tolist():
            if found[event] < 0 and parent[event] >= 0:
                found[event] = found[parent[event]]
        return np.array(found, dtype=np.int64)


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
    around: list[int] = []
    starts, ends = trace.start_ns.tolist(), trace.end_ns.tolist()
    threads = trace.thread.tolist()
    for event in order.tolist():
        while around and (
            threads[around[-1]] != threads[event] or ends[around[-1]] <= starts[event]
        ):
            around.pop()
        if around:
            parent[event] = around[-1]
            self_ns[around[-1]] -= min(ends[event], ends[around[-1]]) - starts[event]
        around.append(event)
    return Nesting(parent=parent, self_ns=self_ns, order=order)

"""Marks on the timeline: steps alone, or every phase of a step."""

import time

from stepmark.devices import Marks
from stepmark.loop import Callback
from stepmark.record import Phases


class StepMarks(Callback):
    """One mark at each step's end; the window sets the first at its start."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def on_step_end(self) -> None:
        """See `Callback`."""
        self._marks.mark()


class PhaseMarks(Callback):
    """A mark at each phase's end. The phases telescope: they sum to the time between the marks.

    ``other`` lies between one step's end and the next one's start.
    """

    def __init__(self, marks: Marks, accumulation: int) -> None:
        self._marks = marks
        micro_batch = ["data_wait_s", "h2d_s", "forward_s", "backward_s"]
        self._pattern = ["other_s", *(micro_batch * accumulation), "optimizer_s"]
        self._waiting_since_ns = 0
        self._host_wait_ns = 0

    @staticmethod
    def marks_per_step(accumulation: int) -> int:
        """How many marks one step sets."""
        return 4 * accumulation + 2

    def begin(self) -> None:
        """The window starts here."""
        self._marks.mark()

    def on_step_start(self) -> None:
        """See `Callback`."""
        self._marks.mark()
        self._waiting_since_ns = time.perf_counter_ns()

    def on_batch(self) -> None:
        """See `Callback`."""
        self._host_wait_ns += time.perf_counter_ns() - self._waiting_since_ns
        self._marks.mark()

    def on_transfer(self) -> None:
        """See `Callback`."""
        self._marks.mark()

    def on_forward(self) -> None:
        """See `Callback`."""
        self._marks.mark()

    def on_backward(self) -> None:
        """See `Callback`."""
        self._marks.mark()
        self._waiting_since_ns = time.perf_counter_ns()

    def on_step_end(self) -> None:
        """See `Callback`."""
        self._marks.mark()

    def phases(self, num_steps: int) -> Phases:
        """Mean seconds per step in each phase, from one mark before the first step to the last.

        Call it after the device was synchronized.
        """
        intervals = self._marks.intervals_s()
        assert len(intervals) == len(self._pattern) * num_steps, "one interval for every phase"
        totals = dict.fromkeys(self._pattern, 0.0)
        for i, seconds in enumerate(intervals):
            totals[self._pattern[i % len(self._pattern)]] += seconds
        means = {name: total / num_steps for name, total in totals.items()}
        return Phases(**means, step_s=sum(means.values()))

    def host_wait_s(self, num_steps: int) -> float:
        """Mean seconds per step in which the host waited in ``next()``.

        On an accelerator this and ``data_wait`` differ: while the host waits, the device may
        still be busy with earlier work.
        """
        return self._host_wait_ns / 1e9 / num_steps

"""Marks on the timeline: steps alone, or every phase of a step."""

import time
from collections.abc import Sequence

from stepmark.choices import Task
from stepmark.devices import Marks
from stepmark.loop import Callback
from stepmark.record import PHASES, Phases
from stepmark.scenario import Scenario


def phase_order(scenario: Scenario) -> list[str]:
    """The phases of a step in their order, which is that of the marks that end them."""
    micro_batch = ["data_wait", "h2d", "forward"]
    if scenario.task is not Task.TRAIN:
        return ["other", *micro_batch, "other"]
    if scenario.pipeline_stages > 1:  # each phase over all micro-batches
        return ["other", *micro_batch, "backward", "optimizer"]
    return ["other", *([*micro_batch, "backward"] * scenario.accumulation), "optimizer"]


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

    Args:
        marks: room for as many as the steps have phases, and one.
        order: of a step's phases.
    """

    def __init__(self, marks: Marks, order: Sequence[str]) -> None:
        self._marks = marks
        self._order = order
        self._waiting_since_ns = 0
        self._host_wait_ns = 0

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
        assert len(intervals) == len(self._order) * num_steps, "one interval for every phase"
        totals = dict.fromkeys(PHASES, 0.0)
        for i, seconds in enumerate(intervals):
            totals[self._order[i % len(self._order)]] += seconds
        means = {f"{name}_s": total / num_steps for name, total in totals.items()}
        return Phases(**means, step_s=sum(means.values()))

    def host_wait_s(self, num_steps: int) -> float:
        """Mean seconds per step in which the host waited in ``next()``.

        On an accelerator this and ``data_wait`` differ: while the host waits, the device may
        still be busy with earlier work.
        """
        return self._host_wait_ns / 1e9 / num_steps

"""Warm-up and measured windows of one rank, on a loop that has done its first step."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from stepmark.loop import Callback, Loop, Training
from stepmark.place import Place
from stepmark.probes.scaler import AppliedSteps
from stepmark.probes.timing import PhaseMarks, StepMarks, phase_order
from stepmark.record import EndedBy, Phases, Reading, WarmUp, Window
from stepmark.scenario import Plan, Scenario
from stepmark.windows import Budget, Stretch, settled, stretch_steps


class Measurement:
    """The stretches of steps that a rank runs, one after another, on the same loop."""

    def __init__(
        self,
        scenario: Scenario,
        plan: Plan,
        place: Place,
        training: Training,
        batches: Iterator[Any],
        loop: Loop,
    ) -> None:
        self.scenario = scenario
        self.plan = plan
        self.place = place
        self.device = place.device
        self.training = training
        self.batches = batches
        self.loop = loop
        self.expected_step_s = 0.0
        self.lead_in_cut = False
        # Batches that lie ready after a pause would make a window's first steps look fast; and
        # the first step after a pause is slow, its caches being cold.
        self.lead_in_steps = max(1, math.ceil(scenario.lead_in_batches / scenario.accumulation))

    @property
    def samples_per_s(self) -> float | None:
        """What the last stretch or window suggests, for the progress display."""
        if not self.expected_step_s:
            return None
        return self.scenario.samples_per_step / self.expected_step_s

    def warm_up(self) -> WarmUp:
        """Steps until neighbouring stretches agree, within one window's budget of seconds."""
        num_steps = max(self.plan.warmup, self.lead_in_steps)
        stretches: list[Stretch] = []
        is_settled = False
        while not is_settled:
            left_s = self.plan.max_seconds - sum(s.seconds for s in stretches)
            if left_s <= 0:
                break
            stretches.append(self.stretch(num_steps, left_s))
            self.expected_step_s = stretches[-1].step_s
            num_steps = stretch_steps(self.expected_step_s)
            is_settled = len(stretches) > 1 and settled(*stretches[-2:])
        return WarmUp(
            num_steps=sum(s.num_steps for s in stretches),
            seconds=sum(s.seconds for s in stretches),
            settled=is_settled,
        )

    def stretch(self, num_steps: int, max_seconds: float) -> Stretch:
        """Some unmarked steps, timed as a whole; the slowest rank's time."""
        window, _ = self.window(self.training, self.budget(num_steps, max_seconds))
        scaler = self.training.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        return Stretch(
            num_steps=window.num_steps,
            seconds=self.place.agree(window.window_s),
            scale=-self.place.agree(-scale),
        )

    def steps(self) -> tuple[Window, float | None, int | None]:
        """The window that throughput comes from; its last loss; steps the scaler skipped."""
        applied = AppliedSteps(self.training)
        marks = self.device.marks(self.plan.steps + 1)
        callbacks: list[Callback] = [StepMarks(marks)] if self.device.marks_steps else []

        def begin() -> None:
            applied.begin()
            marks.mark()

        self.lead_in()
        window, losses = self.window(self.training, self.planned(), callbacks, begin)
        skipped_steps = applied.end(window.num_steps)
        if self.device.marks_steps:
            window = dataclasses.replace(
                window, step_s=tuple(round(s, 9) for s in marks.intervals_s())
            )
        # Agreed: from it ranks work out when to ask each other, and must come to the same answer.
        self.expected_step_s = self.place.agree(window.window_s) / window.num_steps
        return window, value_of(losses), skipped_steps

    def turn(self, num_lead: int, num_steps: int) -> tuple[Window, float | None, int | None]:
        """A few steps with marks, after some without; as `steps`."""
        applied = AppliedSteps(self.training)
        marks = self.device.marks(num_steps + 1)
        callbacks = [StepMarks(marks)] if self.device.marks_steps else []
        self.loop(self.training, self.batches, range(num_lead), ())

        def begin() -> None:
            applied.begin()
            marks.mark()

        budget = Budget(num_steps, math.inf, now_s=self.device.now_s)
        window, losses = self.window(self.training, budget, callbacks, begin)
        if self.device.marks_steps:
            step_s = tuple(round(s, 9) for s in marks.intervals_s())
            window = dataclasses.replace(window, step_s=step_s)
        return window, value_of(losses), applied.end(num_steps)

    def phases(self) -> tuple[Window, Phases, Reading]:
        """The same steps with a mark at every phase; and what the host waited for batches."""
        order = phase_order(self.scenario)
        marks = PhaseMarks(self.device.marks(len(order) * self.plan.steps + 1), order)
        self.lead_in()
        window, _ = self.window(self.training, self.planned(), [marks], marks.begin)
        host_wait = Reading(
            name="data_wait_host",
            unit="s",
            scope="rank",
            value=marks.host_wait_s(window.num_steps),
            note="mean per step; the host waiting in next(), whatever the device does",
        )
        return window, marks.phases(window.num_steps), host_wait

    def free_running(self, window: Window) -> list[Reading]:
        """What synchronizing gradients costs, and how unequal ranks are when left alone."""
        alone_training = dataclasses.replace(self.training, sync_gradients=False)
        # No agreeing on the way: it would make the fast ranks wait for the slow ones.
        budget = Budget(window.num_steps, math.inf, now_s=self.device.now_s)
        self.lead_in()
        free, _ = self.window(alone_training, budget)
        free_s = free.window_s / free.num_steps
        slowest_s = self.place.agree(free_s)
        fastest_s = -self.place.agree(-free_s)
        return [
            Reading(
                name="free_step",
                unit="s",
                scope="rank",
                value=free_s,
                note="mean step of this rank alone, under no_sync",
            ),
            Reading(
                name="ddp_sync",
                unit="s",
                scope="node",
                value=self.expected_step_s - slowest_s,
                note="mean step less the slowest rank's step under no_sync: what all-reduce costs "
                "beside waiting for that rank",
            ),
            Reading(
                name="straggler_skew",
                unit="ratio",
                scope="node",
                value=slowest_s / fastest_s,
                note="slowest rank's step over the fastest one's, each left alone under no_sync",
            ),
        ]

    def budget(self, num_steps: int, max_seconds: float) -> Budget:
        """A budget that all ranks end together."""
        return Budget(
            num_steps,
            max_seconds,
            now_s=self.device.now_s,
            agree=self.place.agree,
            expected_step_s=self.expected_step_s,
        )

    def planned(self) -> Budget:
        """The budget of a measured window."""
        return self.budget(self.plan.steps, self.plan.max_seconds)

    def window(
        self,
        training: Training,
        budget: Budget,
        callbacks: Sequence[Callback] = (),
        begin: Callable[[], None] = lambda: None,
    ) -> tuple[Window, list[Tensor]]:
        """Run one stretch of steps, synchronized at its two edges only.

        Returns:
            The window without step times, and the losses of its last step.
        """
        device = self.device
        self.place.barrier()
        device.synchronize()
        began_s = time.monotonic()
        start_s = device.now_s()
        begin()
        losses = self.loop(training, self.batches, budget, callbacks)
        device.synchronize()
        window_s = device.now_s() - start_s
        window = Window(
            num_steps=budget.done,
            window_s=window_s,
            step_s=(),
            ended_by=budget.ended_by,
            began_s=began_s,
        )
        return window, losses

    def lead_in(self) -> None:
        """Steps between a pause and a window, which follows at once; at most a window's budget."""
        budget = self.budget(self.lead_in_steps, self.plan.max_seconds)
        self.loop(self.training, self.batches, budget, ())
        self.lead_in_cut = self.lead_in_cut or budget.ended_by is EndedBy.SECONDS


def value_of(losses: list[Tensor]) -> float | None:
    """The loss of a step from those of its micro-batches, if it has any; waits for the device."""
    return float(sum(loss.item() for loss in losses)) if losses else None

"""Schedules of the learning rate, and of other parameters of an optimizer; all are torch's."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from stepmark.errors import UsageError
from stepmark.loop import Callback, Training
from stepmark.training import Schedule, TrainPlan

MakeScheduler = Callable[[Optimizer], lr_scheduler.LRScheduler]


class ParameterScheduler(Callback):
    """Sets a parameter of an optimizer's groups after every step, as torch sets learning rates.

    torch's schedulers know learning rates alone. So one of them works on an optimizer that trains
    nothing, whose rates are the parameter's values.

    Args:
        optimizer: whose groups.
        name: of the parameter, such as ``momentum``.
        make: makes the scheduler.

    Raises:
        UsageError: the optimizer has no such number.
    """

    def __init__(self, optimizer: Optimizer, name: str, make: MakeScheduler) -> None:
        # The optimizer, not its groups: loading a state makes new ones.
        self._optimizer = optimizer
        self._name = name
        groups = optimizer.param_groups
        for group in groups:
            value = group.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                numbers = [k for k, v in group.items() if type(v) in (int, float) and v > 0]
                raise UsageError(
                    f"schedule_of={name}: {type(optimizer).__name__} has {value!r} for it; choose "
                    f"a number above 0: {', '.join(numbers)}"
                )
        stand_ins = [{"params": [torch.zeros(0)], "lr": group[name]} for group in groups]
        self._stand_in = torch.optim.SGD(stand_ins)
        self._scheduler = make(self._stand_in)
        self._set()

    def on_step_end(self) -> None:
        """See `Callback`."""
        self._stand_in.step()  # of nothing; torch warns of schedulers that run ahead
        self._scheduler.step()
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "scheduler": self._scheduler.state_dict(),
            "values": [group["lr"] for group in self._stand_in.param_groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._scheduler.load_state_dict(state["scheduler"])
        for group, value in zip(self._stand_in.param_groups, state["values"], strict=True):
            group["lr"] = value
        self._set()

    def _set(self) -> None:
        for group, stand_in in zip(
            self._optimizer.param_groups, self._stand_in.param_groups, strict=True
        ):
            group[self._name] = stand_in["lr"]


class Scheduling:
    """The schedule of a training: what the loop steps, what it is observed by, what epochs step.

    Attributes:
        training: with the schedule where the loop steps it.
        callbacks: to be attached to the loop.

    Args:
        plan: which schedule.
        training: its optimizer, and the workload's own scheduler, if there is one.
        steps_per_epoch: optimizer steps.
    """

    def __init__(self, plan: TrainPlan, training: Training, steps_per_epoch: int) -> None:
        self.training = training
        self.callbacks: Sequence[Callback] = ()
        self._by_epochs: Any = None
        self._kept: Any = training.scheduler
        if plan.schedule in (None, Schedule.CONSTANT):
            return
        make = _maker(plan, steps_per_epoch)
        if plan.schedule_of != "lr":
            observer = ParameterScheduler(training.optimizer, plan.schedule_of, make)
            self.callbacks = (observer,)
            self._kept = observer
            return
        self._kept = make(training.optimizer)
        if plan.schedule.is_by_steps:
            self.training = dataclasses.replace(training, scheduler=self._kept)
        else:
            self._by_epochs = self._kept

    def on_epoch_end(self, watched_loss: float | None) -> None:
        """An epoch and its evaluation are done."""
        if isinstance(self._by_epochs, lr_scheduler.ReduceLROnPlateau):
            # A loss that is not finite is no improvement.
            self._by_epochs.step(math.inf if watched_loss is None else watched_loss)
        elif self._by_epochs is not None:
            self._by_epochs.step()

    def state_dict(self) -> dict[str, Any] | None:
        """For a checkpoint; ``None`` without a schedule."""
        return None if self._kept is None else self._kept.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """From a checkpoint.

        Raises:
            ValueError: one of both has a schedule, and the other has not.
        """
        if (self._kept is None) is not (state is None):
            raise ValueError("there is a schedule now or was one then, not both")
        if self._kept is not None:
            self._kept.load_state_dict(state)


def _maker(plan: TrainPlan, steps_per_epoch: int) -> MakeScheduler:
    match plan.schedule:
        case Schedule.STEP:
            return functools.partial(
                lr_scheduler.StepLR, step_size=plan.step_size, gamma=plan.gamma
            )
        case Schedule.PLATEAU:
            return functools.partial(
                lr_scheduler.ReduceLROnPlateau, factor=plan.gamma, patience=plan.plateau_patience
            )
        case Schedule.COSINE:
            return functools.partial(
                lr_scheduler.CosineAnnealingWarmRestarts,
                T_0=plan.first_period * steps_per_epoch,
                T_mult=2,
            )
        case _:
            return functools.partial(_one_cycle, plan.peak, plan.epochs * steps_per_epoch)


def _one_cycle(peak: float | None, num_steps: int, optimizer: Optimizer) -> Any:
    """As torch's own: from a 25th of the peak, and momentum the other way where there is any."""
    groups = optimizer.param_groups
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] if peak is None else peak for group in groups],
        total_steps=num_steps,
        cycle_momentum=all(group.get("momentum") or "betas" in group for group in groups),
    )

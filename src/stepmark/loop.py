"""The training loop, the loop of evaluation, and the observers that may watch them. Nothing else.

A *step* is one optimizer step: ``accumulation`` micro-batches, each with forward and backward,
then one update. The loop never reads a tensor's value, prints or synchronizes; neither may a
callback that is attached while time is measured.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

_UNCHANGED = nullcontext()


def unchanged() -> AbstractContextManager[Any]:
    """A context that changes nothing; one for all, since making one takes longer than using it."""
    return _UNCHANGED


class Callback:
    """Observer of the loop. A method that its class does not override is not called.

    An exception propagates.
    """

    def on_step_start(self) -> None:
        """An optimizer step begins."""

    def on_batch(self) -> None:
        """The next micro-batch has arrived on the host."""

    def on_transfer(self) -> None:
        """The micro-batch has been sent to the device."""

    def on_forward(self) -> None:
        """Forward and loss of the micro-batch are done (on an accelerator: launched)."""

    def on_backward(self) -> None:
        """Its backward is done, gradient all-reduce included where it is the last one."""

    def on_step_end(self) -> None:
        """Update, zeroing of gradients and schedule are done."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a loop works on.

    Attributes:
        model: on its device, wrapped in DistributedDataParallel where there are ranks.
        loss: ``loss(model, micro_batch)``, the mean over the micro-batch, a scalar tensor; for
            inference, which has none, ``None``.
        optimizer: over the model's parameters.
        to_device: moves a micro-batch to the device.
        scaler: gradient scaler, or ``None``; a disabled one costs a step its detours all the same.
        accumulation: micro-batches per optimizer step.
        autocast: gives the context of forward and loss; not of backward.
        clip_norm: largest gradient norm; ``None`` does not clip.
        scheduler: stepped after every optimizer step.
        set_to_none: ``zero_grad`` drops gradients; ``False`` fills them with zeros.
        sync_gradients: ``False`` leaves out DDP's all-reduce altogether, to see what it costs.
        recording: gives the context of evaluation, which says whether gradients are recorded.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Any]
    optimizer: torch.optim.Optimizer
    to_device: Callable[[Any], Any]
    scaler: torch.amp.GradScaler | None = None
    accumulation: int = 1
    autocast: Callable[[], AbstractContextManager[Any]] = unchanged
    clip_norm: float | None = None
    scheduler: Any = None
    set_to_none: bool = True
    sync_gradients: bool = True
    recording: Callable[[], AbstractContextManager[Any]] = torch.no_grad

    def gradient_sync(self, *, last: bool) -> AbstractContextManager[Any]:
        """Holds back DDP's all-reduce on every micro-batch but the last."""
        if isinstance(self.model, DistributedDataParallel) and not (last and self.sync_gradients):
            return self.model.no_sync()
        return _UNCHANGED


def train(
    training: Training,
    batches: Iterator[Any],
    steps: Iterable[Any],
    callbacks: Sequence[Callback] = (),
) -> list[Tensor]:
    """Run one optimizer step for every item of ``steps``.

    Returns:
        The losses of the last step's micro-batches, each already divided by ``accumulation``
        (their sum is the step's loss), on the device and not waited for.
    """
    model, optimizer, scaler = training.model, training.optimizer, training.scaler
    accumulation = training.accumulation
    micro_batches = range(1, accumulation + 1)
    on_step_start = overridden(callbacks, "on_step_start")
    on_batch = overridden(callbacks, "on_batch")
    on_transfer = overridden(callbacks, "on_transfer")
    on_forward = overridden(callbacks, "on_forward")
    on_backward = overridden(callbacks, "on_backward")
    on_step_end = overridden(callbacks, "on_step_end")
    losses: list[Tensor] = []
    for _ in steps:
        for observe in on_step_start:
            observe()
        losses = []
        for number in micro_batches:
            batch = next(batches)
            for observe in on_batch:
                observe()
            batch = training.to_device(batch)
            for observe in on_transfer:
                observe()
            with training.gradient_sync(last=number == accumulation):
                with training.autocast():
                    loss = training.loss(model, batch)
                    if accumulation > 1:
                        loss = loss / accumulation
                for observe in on_forward:
                    observe()
                scaled_loss = loss if scaler is None else scaler.scale(loss)
                scaled_loss.backward()
            for observe in on_backward:
                observe()
            losses.append(loss.detach())
        if training.clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), training.clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=training.set_to_none)
        if training.scheduler is not None:
            training.scheduler.step()
        for observe in on_step_end:
            observe()
    return losses


def evaluate(
    training: Training,
    batches: Iterator[Any],
    steps: Iterable[Any],
    callbacks: Sequence[Callback] = (),
) -> list[Tensor]:
    """Run forward and loss of one batch for every item of ``steps``, without training.

    Returns:
        The loss of the last one, on the device and not waited for; none of inference.
    """
    model = training.model
    on_step_start = overridden(callbacks, "on_step_start")
    on_batch = overridden(callbacks, "on_batch")
    on_transfer = overridden(callbacks, "on_transfer")
    on_forward = overridden(callbacks, "on_forward")
    on_step_end = overridden(callbacks, "on_step_end")
    losses: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        with training.recording():
            for _ in steps:
                for observe in on_step_start:
                    observe()
                batch = next(batches)
                for observe in on_batch:
                    observe()
                batch = training.to_device(batch)
                for observe in on_transfer:
                    observe()
                with training.autocast():
                    loss = training.loss(model, batch)
                for observe in on_forward:
                    observe()
                losses = [] if loss is None else [loss.detach()]
                for observe in on_step_end:
                    observe()
    finally:
        model.train(was_training)
    return losses


Loop = Callable[[Training, Iterator[Any], Iterable[Any], Sequence[Callback]], list[Tensor]]


def overridden(callbacks: Sequence[Callback], event: str) -> list[Callable[[], None]]:
    """The methods for this event of those callbacks that have one of their own."""
    return [
        getattr(callback, event)
        for callback in callbacks
        if getattr(type(callback), event) is not getattr(Callback, event)
    ]

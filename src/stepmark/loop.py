"""The training loop, and the observers that may watch it. Nothing else.

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


class Callback:
    """Observer of the loop. Methods do nothing until overridden; an exception propagates."""

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
        loss: ``loss(model, micro_batch)``, the mean over the micro-batch, a scalar tensor.
        optimizer: over the model's parameters.
        to_device: moves a micro-batch to the device.
        scaler: gradient scaler; passes everything through where it is disabled.
        accumulation: micro-batches per optimizer step.
        autocast: makes the context of forward and loss; not of backward.
        clip_norm: largest gradient norm; ``None`` does not clip.
        scheduler: stepped after every optimizer step.
        sync_gradients: ``False`` leaves out DDP's all-reduce altogether, to see what it costs.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: torch.optim.Optimizer
    to_device: Callable[[Any], Any]
    scaler: torch.amp.GradScaler
    accumulation: int = 1
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    clip_norm: float | None = None
    scheduler: Any = None
    sync_gradients: bool = True

    def gradient_sync(self, *, last: bool) -> AbstractContextManager[Any]:
        """Holds back DDP's all-reduce on every micro-batch but the last."""
        if isinstance(self.model, DistributedDataParallel) and not (last and self.sync_gradients):
            return self.model.no_sync()
        return nullcontext()


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
    losses: list[Tensor] = []
    for _ in steps:
        for callback in callbacks:
            callback.on_step_start()
        losses = []
        for remaining in reversed(range(training.accumulation)):
            batch = next(batches)
            for callback in callbacks:
                callback.on_batch()
            batch = training.to_device(batch)
            for callback in callbacks:
                callback.on_transfer()
            with training.gradient_sync(last=remaining == 0):
                with training.autocast():
                    loss = training.loss(model, batch)
                    if training.accumulation > 1:
                        loss = loss / training.accumulation
                for callback in callbacks:
                    callback.on_forward()
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            for callback in callbacks:
                callback.on_backward()
            losses.append(loss.detach())
        if training.clip_norm is not None:
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), training.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if training.scheduler is not None:
            training.scheduler.step()
        for callback in callbacks:
            callback.on_step_end()
    return losses

"""Training of one stage of a model whose layers are spread over processes.

Micro-batches go forward from stage to stage, all of them, and then back (GPipe, as
``torch.distributed.pipelining`` has it).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from stepmark.loop import Callback, Training, overridden


class Pipeline:
    """One process's stage, and its loop. Make it when the process group has been joined.

    Args:
        stage: the module of this stage, on its device.
        device: that it is on.
        num_micro_batches: of a step.
        loss_fn: ``loss_fn(outputs, targets)``, the mean over a micro-batch.
    """

    def __init__(
        self,
        stage: nn.Module,
        device: torch.device,
        num_micro_batches: int,
        loss_fn: Callable[[Any, Any], Tensor],
    ) -> None:
        number, num_stages = dist.get_rank(), dist.get_world_size()
        self._is_first, self._is_last = number == 0, number == num_stages - 1
        self._num_micro_batches = num_micro_batches
        self._num_forwards_left = 0
        self._on_forward: list[Callable[[], None]] = []

        def loss(outputs: Any, targets: Any) -> Tensor:
            value = loss_fn(outputs, targets)
            self._count_forward()
            return value

        if not self._is_last:  # the last one's forward ends with the loss
            stage.register_forward_hook(lambda *_: self._count_forward())
        # It divides gradients by the number of micro-batches: those of their mean loss.
        self._schedule = ScheduleGPipe(
            PipelineStage(stage, number, num_stages, device), num_micro_batches, loss_fn=loss
        )

    def train(
        self,
        training: Training,
        batches: Iterator[Any],
        steps: Iterable[Any],
        callbacks: Sequence[Callback] = (),
    ) -> list[Tensor]:
        """Run one optimizer step for every item of ``steps``; see `stepmark.loop.train`.

        A callback is told once a step that batches have arrived, were moved, that all of this
        stage's forwards are done, and all of its backwards. In both of these it also waits for its
        neighbours.

        Returns:
            The losses as `stepmark.loop.train` does, on the last stage; none on the others.
        """
        optimizer = training.optimizer
        parameters = list(training.model.parameters())
        on_step_start = overridden(callbacks, "on_step_start")
        on_batch = overridden(callbacks, "on_batch")
        on_transfer = overridden(callbacks, "on_transfer")
        on_backward = overridden(callbacks, "on_backward")
        on_step_end = overridden(callbacks, "on_step_end")
        self._on_forward = overridden(callbacks, "on_forward")
        losses: list[Tensor] = []
        for _ in steps:
            for observe in on_step_start:
                observe()
            step = self._load(batches)
            for observe in on_batch:
                observe()
            inputs, targets = training.to_device(step)
            for observe in on_transfer:
                observe()
            self._num_forwards_left = self._num_micro_batches
            losses = []
            self._schedule.step(*inputs, target=targets, losses=losses, return_outputs=False)
            for observe in on_backward:
                observe()
            if training.clip_norm is not None:
                _clip(parameters, training.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=training.set_to_none)
            if training.scheduler is not None:
                training.scheduler.step()
            for observe in on_step_end:
                observe()
        return [loss.detach() / self._num_micro_batches for loss in losses]

    def _load(self, batches: Iterator[Any]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """What this stage needs of a step's samples: the first the inputs, the last the targets.

        Every process's loader gives the same samples in the same order, also where they are drawn
        at random: all are seeded alike. Without workers a layer that draws, as dropout does, draws
        from the same source, and samples that are drawn at random are then no longer the same.
        """
        if not self._is_first and not self._is_last:
            return (), None
        step = [next(batches) for _ in range(self._num_micro_batches)]
        place = 0 if self._is_first else 1
        whole = step[0][place] if len(step) == 1 else torch.cat([batch[place] for batch in step])
        return ((whole,), None) if self._is_first else ((), whole)

    def _count_forward(self) -> None:
        self._num_forwards_left -= 1
        if self._num_forwards_left == 0:
            for observe in self._on_forward:
                observe()


def _clip(parameters: Sequence[nn.Parameter], clip_norm: float) -> None:
    """Clip to the norm over all stages, which exchange the squares of theirs."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    squares = norm.square()
    dist.all_reduce(squares)
    clip_grads_with_norm_(parameters, clip_norm, squares.sqrt())

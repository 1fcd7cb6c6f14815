"""Observers of what a loop learns: losses and accuracy, as tensors until an epoch's end.

They are callbacks like any other. What they look at is not in the loop's events, so while they
are attached the loop's loss is a `WatchedLoss`. Nothing is read from the device before `value`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stepmark.building import checked
from stepmark.loop import Callback
from stepmark.preparing import check_suits
from stepmark.scenario import Scenario
from stepmark.workload import Workload

# Which of a batch's samples a network got right, of outputs and targets.
Judge = Callable[[Tensor, Tensor], Tensor]

# Of the smoothed loss: about fifty batches count.
SMOOTHING = 0.98


class WatchedLoss:
    """A workload's loss that keeps what it last saw.

    The first batch of all is looked at more closely, which waits for the device.

    Attributes:
        loss, outputs, targets: of the last batch; the latter two only where there is a judge.
        num_samples: in it.
        judge: says which samples are right; ``None`` where there are no classes.

    Args:
        workload: whose loss.
        scenario: what its batches must suit.

    Raises:
        WorkloadError: (when called) the loss cannot be trained on.
        ObstacleError: (when called) the batch lacks what the scenario is about.
    """

    def __init__(self, workload: Workload, scenario: Scenario) -> None:
        self.loss: Tensor
        self.outputs: Tensor
        self.targets: Tensor
        self.num_samples = 0
        self.judge: Judge | None = None
        self._workload = workload
        self._scenario = scenario
        self._has_begun = False
        self._num_left = 0

    def begin(self, num_samples: int) -> None:
        """An epoch of so many samples follows."""
        self._num_left = num_samples

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """See `stepmark.loop.Training.loss`."""
        # Counted, since what a batch's first dimension is, a workload's collate_fn alone knows.
        self.num_samples = min(self._scenario.batch_size, self._num_left)
        self._num_left -= self.num_samples
        outputs = None
        if self._workload.compute_loss is not None:
            loss = self._workload.loss(model, batch)
        else:
            outputs = self._workload.forward(model, batch)
            loss = self._workload.loss_of(outputs, batch)
        if not self._has_begun:
            self._has_begun = True
            check_suits(self._scenario, batch)
            checked(loss)
            self.judge = judge_of(outputs, batch)
        if self.judge is not None:
            assert isinstance(outputs, Tensor), "judge_of() found classes in them"
            self.outputs, self.targets = outputs.detach(), batch[1]
        self.loss = loss.detach().reshape(())
        return loss


class MeanLoss(Callback):
    """Mean loss over samples; a batch counts by its size."""

    def __init__(self, watched: WatchedLoss, device: torch.device) -> None:
        self._watched = watched
        self._mean = torch.zeros((), device=device)
        self.num_samples = 0

    def on_forward(self) -> None:
        """See `Callback`."""
        watched = self._watched
        self.num_samples += watched.num_samples
        self._mean.lerp_(watched.loss.float(), watched.num_samples / self.num_samples)

    def value(self) -> float | None:
        """Waits for the device; ``None`` if there was no batch."""
        return self._mean.item() if self.num_samples else None


class SmoothedLoss(Callback):
    """Exponential moving average over batches, corrected for having begun at 0.

    ``average = beta * average + (1 - beta) * loss``, and its value is
    ``average / (1 - beta ** num_batches)``.
    """

    def __init__(self, watched: WatchedLoss, device: torch.device, beta: float = SMOOTHING) -> None:
        self._watched = watched
        self._beta = beta
        self._average = torch.zeros((), device=device)
        self._num_batches = 0

    def on_forward(self) -> None:
        """See `Callback`."""
        self._num_batches += 1
        self._average.lerp_(self._watched.loss.float(), 1 - self._beta)

    def value(self) -> float | None:
        """Waits for the device; ``None`` if there was no batch."""
        if not self._num_batches:
            return None
        return self._average.item() / (1 - self._beta**self._num_batches)


class Accuracy(Callback):
    """How many samples were right, where there are classes.

    Targets that look one-hot in the first batch may turn out to be of several classes each: what
    is not one-hot is counted, and where there is such a sample there is no accuracy.
    """

    def __init__(self, watched: WatchedLoss, device: torch.device) -> None:
        self._watched = watched
        self._num_right = torch.zeros((), dtype=torch.int64, device=device)
        self._num_unclear = torch.zeros((), dtype=torch.int64, device=device)

    def on_forward(self) -> None:
        """See `Callback`."""
        watched = self._watched
        if watched.judge is not None:
            self._num_right.add_(watched.judge(watched.outputs, watched.targets).sum())
            if watched.judge is _right_one_hot:
                self._num_unclear.add_((~_are_one_hot(watched.targets)).sum())

    def value(self) -> int | None:
        """Samples; waits for the device. ``None`` where there are no classes."""
        if self._num_unclear.item():
            self._watched.judge = None
        return None if self._watched.judge is None else int(self._num_right.item())


def judge_of(outputs: Any, batch: Any) -> Judge | None:
    """What tells right samples from wrong ones; ``None`` if outputs are no scores of classes.

    Targets are one class index per sample, or one-hot. Their values are looked at, which waits
    for the device.

    Args:
        outputs: of a batch, ``[batch, classes]``.
        batch: a pair whose second part are targets, ``[batch]`` or ``[batch, classes]``.
    """
    if not isinstance(batch, (list, tuple)) or len(batch) != 2:
        return None
    targets = batch[1]
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    if targets.shape == outputs.shape[:1] and _is_whole(targets.dtype):
        return _right_index
    if targets.shape == outputs.shape and bool(_are_one_hot(targets).all()):
        return _right_one_hot
    return None


def _is_whole(kind: torch.dtype) -> bool:
    return not (kind.is_floating_point or kind.is_complex or kind is torch.bool)


def _are_one_hot(targets: Tensor) -> Tensor:
    """Which of the samples, of targets ``[batch, classes]``."""
    ones, zeros = targets == 1, targets == 0
    return (ones | zeros).all(dim=1) & (ones.sum(dim=1) == 1)


def _right_index(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(dim=1) == targets


def _right_one_hot(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(dim=1) == targets.argmax(dim=1)

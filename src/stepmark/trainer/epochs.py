"""One epoch on one rank: train on all of the data, then evaluate."""

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from stepmark.building import recording_of
from stepmark.loop import evaluate, train
from stepmark.place import Place
from stepmark.probes.scaler import AppliedSteps
from stepmark.probes.timing import PhaseMarks, phase_order
from stepmark.scenario import Scenario
from stepmark.trainer.loaders import EpochLoader
from stepmark.trainer.schedules import Scheduling
from stepmark.trainer.watching import Accuracy, MeanLoss, SmoothedLoss, WatchedLoss
from stepmark.training import Epoch, TrainPlan

# Marks of phases, at an epoch's beginning: a CUDA event costs memory, and an epoch may have
# millions of steps.
MOST_MARKS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Learned:
    """What metrics came to, over all ranks; ``None`` as in `Epoch`."""

    num_samples: int
    loss: float | None
    accuracy: float | None


class Epochs:
    """Runs epochs of one training.

    Args:
        scenario: what is trained.
        plan: how.
        place: this rank's.
        scheduling: the training with its schedule.
        watched: the workload's loss.
        loader: of the training data.
        valid: of the validation data, or ``None``.
    """

    def __init__(
        self,
        scenario: Scenario,
        plan: TrainPlan,
        place: Place,
        scheduling: Scheduling,
        watched: WatchedLoss,
        loader: EpochLoader,
        valid: EpochLoader | None,
    ) -> None:
        self._accumulation = scenario.accumulation
        self._order = phase_order(scenario)
        self._place = place
        self._device = place.device
        self._scheduling = scheduling
        self._watched = watched
        self._loader = loader
        self._valid = valid
        self._training = dataclasses.replace(scheduling.training, loss=watched)
        model = self._training.model
        # Evaluating needs no other rank, and ranks may have different numbers of batches.
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        self._evaluated = dataclasses.replace(
            self._training, model=bare, recording=recording_of(plan)
        )

    def train(self, number: int) -> Epoch:
        """Train for one epoch; what it holds of the evaluation is left empty."""
        device, loader = self._device, self._loader
        num_full, rest = divmod(loader.num_batches, self._accumulation)
        # A mark that waits would serialise the steps, and their time with them.
        most_marked = max(1, MOST_MARKS // len(self._order)) if device.marks_steps else 0
        num_marked = min(num_full, most_marked)
        marks = PhaseMarks(device.marks(len(self._order) * num_marked + 1), self._order)
        metrics = self._metrics()
        smoothed = SmoothedLoss(self._watched, device.torch_device)
        callbacks = [*metrics, smoothed, *self._scheduling.callbacks]
        learning_rate = self._training.optimizer.param_groups[0].get("lr")
        applied = AppliedSteps(self._training)
        num_steps = loader.num_steps(self._accumulation)
        loader.set_epoch(number)
        self._watched.begin(loader.num_samples)
        batches = loader.batches()
        start_s = self._now_s()
        applied.begin()
        if num_marked:
            marks.begin()
            train(self._training, batches, range(num_marked), [*callbacks, marks])
        train(self._training, batches, range(num_full - num_marked), callbacks)
        if rest:
            shorter = dataclasses.replace(self._training, accumulation=rest)
            train(shorter, batches, range(1), callbacks)
        next(batches, None)  # the loader's end, at which it stops its workers
        device.synchronize()
        train_s = self._place.agree(device.now_s() - start_s)
        learned = self._learned(*metrics)
        smoothed_loss = self._sums([smoothed.value() or 0.0])[0] / self._num_ranks
        return Epoch(
            epoch=number,
            num_steps=num_steps,
            num_samples=learned.num_samples,
            train_loss=learned.loss,
            smoothed_loss=_finite(smoothed_loss),
            train_accuracy=learned.accuracy,
            valid_loss=None,
            valid_accuracy=None,
            num_valid_samples=None,
            learning_rate=None if learning_rate is None else float(learning_rate),
            train_s=train_s,
            valid_s=None,
            phases=marks.phases(num_marked) if num_marked else None,
            num_phase_steps=num_marked,
            skipped_steps=applied.end(num_steps),
        )

    def evaluate(self, epoch: Epoch) -> Epoch:
        """The epoch with the evaluation after it; there must be validation data."""
        assert self._valid is not None
        metrics = self._metrics()
        self._watched.begin(self._valid.num_samples)
        batches = self._valid.batches()
        start_s = self._now_s()
        self._synchronize_buffers()
        evaluate(self._evaluated, batches, range(self._valid.num_batches), metrics)
        next(batches, None)
        self._device.synchronize()
        valid_s = self._place.agree(self._device.now_s() - start_s)
        learned = self._learned(*metrics)
        return dataclasses.replace(
            epoch,
            valid_loss=learned.loss,
            valid_accuracy=learned.accuracy,
            num_valid_samples=learned.num_samples,
            valid_s=valid_s,
        )

    def _now_s(self) -> float:
        self._place.barrier()
        self._device.synchronize()
        return self._device.now_s()

    def _metrics(self) -> tuple[MeanLoss, Accuracy]:
        where = self._device.torch_device
        return MeanLoss(self._watched, where), Accuracy(self._watched, where)

    def _learned(self, loss: MeanLoss, accuracy: Accuracy) -> _Learned:
        """Of all ranks; waits for the device."""
        num_right = accuracy.value()
        total = (loss.value() or 0.0) * loss.num_samples
        num_samples, total, all_right, num_without = self._sums(
            [loss.num_samples, total, num_right or 0, num_right is None]
        )
        return _Learned(
            num_samples=int(num_samples),
            loss=_finite(total / num_samples),
            accuracy=None if num_without else all_right / num_samples,
        )

    def _synchronize_buffers(self) -> None:
        """Of a model on several ranks: those of the first one, as in each forward of a training.

        Since the last of these each rank's running statistics have gone their own way, and what is
        saved are the first one's.
        """
        if self._evaluated.model is not self._training.model:
            for buffer in self._evaluated.model.buffers():
                dist.broadcast(buffer, src=0)

    @property
    def _num_ranks(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    def _sums(self, values: Sequence[float]) -> list[float]:
        """Of each value over all ranks, the same on all of them."""
        if not dist.is_initialized():
            return list(values)
        box = torch.tensor(values, dtype=torch.float64, device=self._device.torch_device)
        dist.all_reduce(box)
        return [float(value) for value in box.tolist()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

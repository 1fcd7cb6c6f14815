"""What came of a training, epoch by epoch.

Times are seconds, sizes are bytes. What was not measured is ``None``, never 0.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from stepmark.fingerprint import Commit, Machine
from stepmark.record import Phases
from stepmark.result import Outcome
from stepmark.scenario import Scenario
from stepmark.training.plan import TrainPlan


class EndOfTraining(StrEnum):
    """What ended a training: its number of epochs, or the patience with its loss."""

    EPOCHS = "epochs"
    PATIENCE = "patience"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training data, and the evaluation after it.

    Attributes:
        epoch: its number, from 1.
        num_steps: optimizer steps.
        num_samples: that were trained on, over all ranks.
        train_loss: mean over them, each at the parameters of its own step; ``None`` if it was not
            finite.
        smoothed_loss: exponentially smoothed over the epoch's batches, corrected for its start.
        train_accuracy: right ones among them; ``None`` where there are no classes.
        valid_loss, valid_accuracy: of the validation data after the epoch; ``None`` without.
        num_valid_samples: that were evaluated on; ``None`` without.
        learning_rate: at the epoch's first step, of the first group of parameters; ``None`` for an
            optimizer without one.
        train_s: from before its loader was started until its last step was done, of the slowest
            rank.
        valid_s: the same of the evaluation.
        phases: mean per step over its first ``num_phase_steps`` steps, of the first rank; what
            observing losses and accuracy takes is part of ``forward_s``. ``None`` where its steps
            all had fewer micro-batches than ``accumulation``, or the device cannot mark phases
            without waiting.
        num_phase_steps: how many these are.
        skipped_steps: that the gradient scaler skipped; ``None`` where that is not known.
        checkpoint_s: saving the model; ``None`` if it was not saved, or the training was killed
            before this could be told.
        checkpoint_bytes: size of the files written, or ``None`` as before.
        is_best: no epoch before it has a watched loss as low.
        compile_s: of ``train_s`` and ``valid_s``, in which torch.compile was at work on the first
            rank; ``None`` where the model is not compiled.
    """

    epoch: int
    num_steps: int
    num_samples: int
    train_loss: float | None
    smoothed_loss: float | None
    train_accuracy: float | None
    valid_loss: float | None
    valid_accuracy: float | None
    num_valid_samples: int | None
    learning_rate: float | None
    train_s: float
    valid_s: float | None
    phases: Phases | None
    num_phase_steps: int
    skipped_steps: int | None
    checkpoint_s: float | None = None
    checkpoint_bytes: int | None = None
    is_best: bool = False
    compile_s: float | None = None

    @property
    def samples_per_s(self) -> float:
        """Samples of all ranks over the training part's time, its loader's start included."""
        return self.num_samples / self.train_s

    @property
    def is_finite(self) -> bool:
        """Whether its losses are."""
        validates = self.num_valid_samples is not None
        return self.train_loss is not None and (self.valid_loss is not None or not validates)

    @property
    def watched_loss(self) -> float | None:
        """What schedules, checkpoints and patience go by: the validation loss where there is one.

        ``None`` if it was not finite.
        """
        return self.train_loss if self.num_valid_samples is None else self.valid_loss


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a rank says of a training before its first epoch.

    Attributes:
        device_name: the first rank's device.
        num_threads: compute threads per rank, read back from torch.
        settings: switches read back from torch after they were set.
        data: where the samples come from.
        num_parameters: of the model.
        num_train_samples, num_valid_samples: in the datasets; ``None`` without validation.
        steps_per_epoch: optimizer steps.
        notes: remarks a reader of the numbers should see.
    """

    device_name: str
    num_threads: int
    settings: dict[str, str]
    data: str
    num_parameters: int
    num_train_samples: int
    num_valid_samples: int | None
    steps_per_epoch: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """A training, or as much of it as there was until now.

    Attributes:
        scenario: with its device resolved.
        plan: see there.
        machine, commit: as of a `stepmark.Result`.
        started_at: ISO 8601 with time zone.
        wall_s: from the request to the end or the last epoch, over all resumptions.
        facts: see there; ``None`` until a rank has told them.
        epochs: those that are finished.
        ended_by: ``None`` while it is not at its end.
        outcome, reason, detail: as of a `stepmark.Result`; without an outcome it was interrupted.
        num_resumed: how often it was gone on with.
    """

    scenario: Scenario
    plan: TrainPlan
    machine: Machine
    commit: Commit | None
    started_at: str
    wall_s: float = 0.0
    facts: Facts | None = None
    epochs: tuple[Epoch, ...] = ()
    ended_by: EndOfTraining | None = None
    outcome: Outcome | None = None
    reason: str = ""
    detail: str = ""
    num_resumed: int = 0

    @property
    def best(self) -> Epoch | None:
        """The epoch with the lowest watched loss, the first of equals; ``None`` without any."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.is_best), None)

    def with_epoch(self, epoch: Epoch) -> "TrainingRecord":
        """With this epoch after those before it; later ones are of a past that was given up."""
        before = tuple(e for e in self.epochs if e.epoch < epoch.epoch)
        return dataclasses.replace(self, epochs=(*before, epoch))


def improves(loss: float | None, before: Sequence[float | None]) -> bool:
    """Whether a loss is lower than all before it; one that was not finite never is."""
    known = [value for value in before if value is not None]
    return loss is not None and loss < min(known, default=math.inf)


def has_stalled(losses: Sequence[float | None], patience: int | None) -> bool:
    """Whether none of the last ``patience`` losses is lower than all before it."""
    if patience is None or len(losses) <= patience:
        return False
    return not any(
        improves(losses[i], losses[:i]) for i in range(len(losses) - patience, len(losses))
    )

"""How a model is trained: epochs, schedule, validation, when to stop, what to keep."""

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from stepmark.errors import UsageError, choose_from
from stepmark.scenario import require_count


class Schedule(StrEnum):
    """How the learning rate, or another parameter of the optimizer, changes.

    By epochs: ``step`` multiplies it by ``gamma`` every ``step_size`` epochs (``StepLR``),
    ``plateau`` multiplies it by ``gamma`` once the watched loss has not improved for more than
    ``plateau_patience`` epochs (``ReduceLROnPlateau``). By optimizer steps: ``cosine`` anneals to 0
    and starts again, each period twice as long as the one before
    (``CosineAnnealingWarmRestarts``), ``one-cycle`` rises to ``peak`` and falls over the whole
    training (``OneCycleLR``). ``constant`` leaves it.
    """

    CONSTANT = "constant"
    STEP = "step"
    PLATEAU = "plateau"
    COSINE = "cosine"
    ONE_CYCLE = "one-cycle"

    @property
    def is_by_steps(self) -> bool:
        """Whether it counts optimizer steps; the others count epochs."""
        return self in (Schedule.COSINE, Schedule.ONE_CYCLE)


# The schedules that each setting of a schedule is of.
_SETTINGS: dict[str, tuple[Schedule, ...]] = {
    "schedule_of": (Schedule.COSINE, Schedule.ONE_CYCLE),
    "step_size": (Schedule.STEP,),
    "gamma": (Schedule.STEP, Schedule.PLATEAU),
    "plateau_patience": (Schedule.PLATEAU,),
    "first_period": (Schedule.COSINE,),
    "peak": (Schedule.ONE_CYCLE,),
}


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """How a scenario's model is trained.

    Attributes:
        epochs: passes over the training data, the last one's number.
        schedule: see `Schedule`; ``None`` is the workload's own scheduler, if it has one.
        schedule_of: what the schedule changes: ``lr``, or another parameter of the optimizer,
            such as ``momentum``.
        step_size: epochs from one fall to the next.
        gamma: factor of a fall.
        plateau_patience: epochs without improvement that are put up with.
        first_period: epochs of the first period of ``cosine``.
        peak: highest value of ``one-cycle``; ``None`` is the one that the optimizer begins with.
        patience: the training ends after so many epochs without a lower watched loss; ``None``
            goes on.
        validate: evaluate on the validation data after each epoch.
        no_grad: evaluation records no gradients.
        inference_mode: it runs under ``torch.inference_mode`` instead of ``torch.no_grad``.
        drop_last: leave out, at an epoch's end, what does not fill a batch; otherwise the last
            batch is smaller.
        checkpoint: save the model as training goes; what is not saved cannot be resumed.
        timeout: seconds for start-up, and for each epoch; then it is killed.

    Raises:
        UsageError: a field is out of range, of the wrong type, or of another schedule.
    """

    epochs: int
    schedule: Schedule | None = None
    schedule_of: str = "lr"
    step_size: int = 1
    gamma: float = 0.1
    plateau_patience: int = 2
    first_period: int = 1
    peak: float | None = None
    patience: int | None = None
    validate: bool = True
    no_grad: bool = True
    inference_mode: bool = False
    drop_last: bool = False
    checkpoint: bool = True
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        if self.schedule is not None:
            object.__setattr__(self, "schedule", named_schedule(self.schedule))
        for name in ("epochs", "step_size", "first_period"):
            require_count(name, getattr(self, name), at_least=1)
        require_count("plateau_patience", self.plateau_patience, at_least=0)
        if self.patience is not None:
            require_count("patience", self.patience, at_least=1)
        for name in ("gamma", "peak", "timeout"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _above_zero(name, getattr(self, name)))
        if self.gamma >= 1:
            raise UsageError(f"gamma={self.gamma:g}: must be below 1; the rate is to fall")
        if self.inference_mode and not self.no_grad:
            raise UsageError("inference_mode records no gradients, which no_grad=False asks for")
        for name, schedules in _SETTINGS.items():
            if getattr(self, name) != _DEFAULTS[name] and self.schedule not in schedules:
                raise UsageError(
                    f"{name}={getattr(self, name)}: is a setting of schedule "
                    f"{' and '.join(schedules)}; the schedule here is {self.schedule or 'none'}"
                )


_DEFAULTS = {field.name: field.default for field in fields(TrainPlan)}


@dataclass(frozen=True, kw_only=True)
class TrainOrder:
    """What ranks are to do.

    Attributes:
        plan: see there.
        save_to: beginning of the paths of checkpoints; their folder exists.
        resume: go on from the last checkpoint.
    """

    plan: TrainPlan
    save_to: str
    resume: bool = False

    @property
    def last_path(self) -> Path:
        """Of the checkpoint to go on from."""
        return Path(f"{self.save_to}.last.pt")

    @property
    def best_path(self) -> Path:
        """Of the best epoch's model."""
        return Path(f"{self.save_to}.best.pt")


def named_schedule(value: str) -> Schedule:
    """A schedule by its name.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return Schedule(value)
    except ValueError:
        raise UsageError(f"schedule={value!r}: {choose_from(value, Schedule)}") from None


def _above_zero(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{name}={value!r}: must be a number")
    if not 0 < value < float("inf"):
        raise UsageError(f"{name}={value}: must be above 0, finite")
    return float(value)

"""A training from its first epoch to its last: what is asked for and what came of it, as data.

Imports no torch. The training itself is done in processes of its own (`stepmark.trainer`).
"""

from stepmark.training.plan import Schedule, TrainOrder, TrainPlan, named_schedule
from stepmark.training.record import (
    EndOfTraining,
    Epoch,
    Facts,
    TrainingRecord,
    has_stalled,
    improves,
)

__all__ = [
    "EndOfTraining",
    "Epoch",
    "Facts",
    "Schedule",
    "TrainOrder",
    "TrainPlan",
    "TrainingRecord",
    "has_stalled",
    "improves",
    "named_schedule",
]

"""What can go wrong, as one tree.

    StepmarkError
    |-- UsageError        the caller asked for something that cannot be: exit code 2
    |   |-- WorkloadError    a workload that cannot be found, or does not build
    |   `-- CheckpointError  a saved model that is damaged, or of another training
    |-- ObstacleError     a scenario that this workload or machine cannot have: it is skipped
    |-- StoreError        a file of results that cannot be written or read: exit code 2
    `-- RunnerError       a measuring process that cannot be started at all

A message gives the value, what was expected and what to do:
``batch_size=0: must be at least 1``.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class StepmarkError(Exception):
    """Root of every error that stepmark raises on purpose."""


class UsageError(StepmarkError, ValueError):
    """The caller asked for something that cannot be."""


class WorkloadError(UsageError):
    """A workload that cannot be found, or that does not build."""


class CheckpointError(UsageError):
    """A saved model that is damaged, missing, or of another training."""


class ObstacleError(StepmarkError):
    """A scenario that this workload, or this machine, cannot have: a reason to skip it."""


class StoreError(StepmarkError):
    """A file of results that cannot be written or read."""


class RunnerError(StepmarkError):
    """A measuring process that cannot be started at all."""


def suggestion(value: Any, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` where one of the allowed names is close, otherwise nothing."""
    # As text: names may be of an enumeration.
    close = difflib.get_close_matches(str(value), map(str, allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def choose_from(value: Any, allowed: Iterable[str]) -> str:
    """``choose from a, b``, for a message on a value that is none of them."""
    names = list(allowed)
    return f"choose from {', '.join(names)}{suggestion(value, names)}"

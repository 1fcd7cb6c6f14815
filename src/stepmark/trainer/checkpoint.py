"""A model on disk while it is trained: the last epoch, to go on from, and the best one.

    SAVE_TO.best.pt  epoch, model, optimizer, loss
    SAVE_TO.last.pt  the same, and what else the next epoch begins with

Both are dictionaries of tensors and plain values, which ``torch.load(weights_only=True)`` reads.
Random states are not in them: what an epoch draws depends on its number alone. Loader workers
that live on from epoch to epoch are the exception: those of a training that is gone on with draw
what they would not have drawn without the interruption.
"""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepmark.codec import decode, encode
from stepmark.errors import CheckpointError
from stepmark.loop import Training
from stepmark.scenario import Scenario
from stepmark.trainer.schedules import Scheduling
from stepmark.training import Epoch, TrainOrder

_FORMAT = 1
_REMEDY = "begin the training again under another name"
_WITHOUT = "begin it under another name with --no-checkpoint"
# Of a terminal: torch sets part of its message in bold.
_ESCAPE_CODE = re.compile(r"\x1b\[[0-9;]*m")
# What torch says of an object that it does not load, amid advice for those who call it.
_REFUSED = re.compile(r"Unsupported \w+: .*? was not an allowed global")
_LONGEST_TEXT = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a checkpoint is of.

    Attributes:
        scenario: what is trained.
        model: bare, neither wrapped nor compiled.
        training: its optimizer and scaler.
        scheduling: its schedule.
    """

    scenario: Scenario
    model: torch.nn.Module
    training: Training
    scheduling: Scheduling


def save(trained: Trained, epochs: Sequence[Epoch], order: TrainOrder) -> int:
    """Save the last epoch, and if it is the best one also as that.

    Args:
        trained: as it is now.
        epochs: all that are finished.
        order: where to.

    Returns:
        Bytes written.

    Raises:
        CheckpointError: it cannot be written.
    """
    last = epochs[-1]
    best = {
        "epoch": last.epoch,
        "model": trained.model.state_dict(),
        "optimizer": trained.training.optimizer.state_dict(),
        "loss": last.watched_loss,
    }
    scaler = trained.training.scaler
    content = {
        **best,
        "format": _FORMAT,
        "scenario": json.dumps(encode(trained.scenario)),
        "scheduler": trained.scheduling.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        # A training may be killed after it was saved and before anybody heard of the epoch.
        "epochs": json.dumps(encode(epochs)),
    }
    num_bytes = 0
    if last.is_best:
        num_bytes += write(order.best_path, best)
    return num_bytes + write(order.last_path, content)


def load(trained: Trained, order: TrainOrder) -> tuple[Epoch, ...]:
    """Put a training back where its last checkpoint left it.

    Returns:
        The epochs that are done.

    Raises:
        CheckpointError: it is missing, damaged, or of another scenario.
    """
    path = order.last_path
    content = read(path)
    if content.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: is no checkpoint to go on from; {_REMEDY}")
    try:
        scenario = decode(Scenario, json.loads(content["scenario"]))
        epochs = decode(tuple[Epoch, ...], json.loads(content["epochs"]))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is of another stepmark ({error}); {_REMEDY}") from error
    if scenario != trained.scenario:
        raise CheckpointError(
            f"{path}: is of {scenario.id}, not of {trained.scenario.id}; {_REMEDY}"
        )
    try:
        trained.model.load_state_dict(content["model"])
        trained.training.optimizer.load_state_dict(content["optimizer"])
        trained.scheduling.load_state_dict(content["scheduler"])
        if trained.training.scaler is not None:
            trained.training.scaler.load_state_dict(content["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        # The workload's code has changed.
        raise CheckpointError(
            f"{path}: does not fit the workload ({_one_line(error)}); {_REMEDY}"
        ) from error
    return epochs


def write(path: Path, content: dict[str, Any]) -> int:
    """Write a whole file, or leave the one that is there; its size in bytes.

    Raises:
        CheckpointError: it cannot be written.
    """
    # Always the same name: what a killed process left is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        num_bytes = temporary.stat().st_size
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch makes the latter of a full disk
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({_one_line(error)}); make room and go on with --resume, "
            f"or {_WITHOUT}"
        ) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: the training's state cannot be saved ({_one_line(error)}); {_WITHOUT}"
        ) from error
    return num_bytes


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU; no code in it is run.

    Raises:
        CheckpointError: it is missing or damaged, or holds more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is not there; {_REMEDY}") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # A whole file, and yet refused: it will be so under any name.
        refused = isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path)
        remedy = _WITHOUT if refused else _REMEDY
        raise CheckpointError(f"{path}: cannot be loaded ({_one_line(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no checkpoint of this suite; {_REMEDY}")
    return content


def _one_line(error: Exception) -> str:
    text = " ".join(_ESCAPE_CODE.sub("", str(error)).split())
    refused = _REFUSED.search(text)
    return refused[0] if refused else text[:_LONGEST_TEXT]

"""A training as lines for people, as JSON and as CSV for programs."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepmark.codec import encode
from stepmark.columns import aligned
from stepmark.record import PHASES
from stepmark.training.record import Epoch, TrainingRecord
from stepmark.units import format_bytes, format_rate, format_seconds

_FIGURES = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")


def as_line(epoch: Epoch) -> str:
    """``Epoch:    1 | train_loss=0.6931, ...``.

    What there is not is left out; a loss that is not finite is ``nan``.
    """
    figures = [(name, getattr(epoch, name)) for name in _FIGURES]
    is_known = {"train_loss": True, "valid_loss": epoch.num_valid_samples is not None}
    text = ", ".join(
        f"{name}=nan" if value is None else f"{name}={value:.4f}"
        for name, value in figures
        if value is not None or is_known.get(name)
    )
    return f"Epoch: {epoch.epoch:4d} | {text}"


def remarks(record: TrainingRecord) -> list[str]:
    """What a reader of the figures should know."""
    epochs = record.epochs
    found = list(record.facts.notes) if record.facts else []
    diverged = next((epoch for epoch in epochs if not epoch.is_finite), None)
    if diverged is not None:
        text = f"the loss is not finite in epoch {diverged.epoch}: this training diverges"
        found.append(text if record.best else f"{text}; there is no best epoch, and none is saved")
    num_steps = sum(epoch.num_steps for epoch in epochs)
    skipped = [epoch.skipped_steps for epoch in epochs]
    if None in skipped:
        found.append(
            "this optimizer takes the gradient scale itself; steps it skipped are not counted"
        )
    elif total := sum(number or 0 for number in skipped):
        found.append(
            f"the gradient scaler skipped {total:,} of {num_steps:,} steps: they update nothing "
            "and look fast"
        )
    return found


def as_json(record: TrainingRecord, folder: Path) -> str:
    """The whole record; ``null`` for what is not known.

    Args:
        record: with its epochs.
        folder: the run's.
    """
    best = record.best
    data = {
        "scenario_id": record.scenario.id,
        "run": str(folder),
        "best_epoch": best.epoch if best else None,
        **encode(record),
        "epochs": [_row(epoch) for epoch in record.epochs],
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def as_csv(epochs: Sequence[Epoch]) -> str:
    """The history, a row for each epoch; an empty cell for what is not known."""
    text = io.StringIO()
    rows = [_flat(epoch) for epoch in epochs]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_table(record: TrainingRecord) -> list[str]:
    """What epochs took, for a terminal."""
    header = ("epoch", "rate", "samples/s", "training", "validation", "saving", "saved", "")
    rows = [
        (
            str(epoch.epoch),
            "" if epoch.learning_rate is None else f"{epoch.learning_rate:.4g}",
            format_rate(epoch.samples_per_s),
            format_seconds(epoch.train_s),
            "" if epoch.valid_s is None else format_seconds(epoch.valid_s),
            "" if epoch.checkpoint_s is None else format_seconds(epoch.checkpoint_s),
            "" if epoch.checkpoint_bytes is None else format_bytes(epoch.checkpoint_bytes),
            "best" if epoch is record.best else "",
        )
        for epoch in record.epochs
    ]
    return aligned(header, rows, left=(len(header) - 1,))


def _row(epoch: Epoch) -> dict[str, Any]:
    return {**encode(epoch), "samples_per_s": epoch.samples_per_s}


def _flat(epoch: Epoch) -> dict[str, Any]:
    row = _row(epoch)
    phases = row.pop("phases") or {}
    return row | {f"{name}_s": phases.get(f"{name}_s") for name in PHASES}

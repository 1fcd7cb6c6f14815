"""Words for scenarios and numbers, the same everywhere in a report."""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

EMPTY = "—"
T = TypeVar("T", float, str)

_TASKS = {"train": "training", "evaluate": "evaluation", "infer": "inference"}
_OPTIMIZERS = {
    "sgd": "SGD",
    "sgd-momentum": "SGD with momentum",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adamw": "AdamW",
}
_COMPILED = {"off": "not compiled", "default": "compiled"}
_AXIS_WORDS: dict[str, Callable[[Any], str]] = {
    "batch_size": lambda v: f"batch {v}",
    "num_workers": lambda v: count(v, "worker"),
    "precision": str,
    "accumulation": lambda v: f"accumulation {v}",
    "world_size": lambda v: "1 process" if v == 1 else f"{v} ranks",
    "pin_memory": lambda v: "pinned memory" if v else "pageable memory",
    "prefetch_factor": lambda v: f"prefetch {v}",
    "persistent_workers": lambda v: "persistent workers" if v else "workers anew each epoch",
    "threads": lambda v: "threads shared out" if v is None else count(v, "thread"),
    "ddp": lambda v: "DDP wrapper" if v else "no DDP wrapper at one process",
    "task": lambda v: _TASKS[v],
    "no_grad": lambda v: "no gradients recorded" if v else "gradients recorded",
    "inference_mode": lambda v: "inference mode" if v else "no_grad",
    "compile": lambda v: _COMPILED.get(v) or f"compiled ({v})",
    "channels_last": lambda v: "channels last" if v else "channels first",
    "optimizer": lambda v: "the workload's optimizer" if v is None else _OPTIMIZERS[v],
    "lr": lambda v: "torch's learning rate" if v is None else f"lr {v:g}",
    "optimizer_impl": lambda v: "torch's choice" if v == "default" else f"{v} optimizer",
    "loss": lambda v: "the workload's loss" if v is None else f"{v} loss",
    "clip_norm": lambda v: _clipping(v),
    "set_to_none": lambda v: "gradients dropped" if v else "gradients filled with zeros",
    "pipeline_stages": lambda v: "the model whole" if v == 1 else f"{v} stages",
    "split_layers": lambda v: "layers on two devices" if v else "one device",
}
# What a statement on an axis is about, where its name in words does not say it.
_AXIS_LEADS = {
    "compile": "torch.compile",
    "no_grad": "no_grad",
    "lr": "Learning rate",
    "optimizer_impl": "Optimizer's step",
    "clip_norm": "Clipping",
    "set_to_none": "Zeroing gradients",
    "pipeline_stages": "Pipeline",
    "split_layers": "Two devices",
}


def _clipping(norm: float | None) -> str:
    if norm is None:
        return "clipped as the workload says"
    return f"clipped to {norm:g}" if norm else "not clipped"


def axis_lead(axis: str) -> str:
    """The word that a statement on an axis begins with."""
    return _AXIS_LEADS.get(axis) or sentence(axis.replace("_", " "))


def axis_words(axis: str, value: Any) -> str:
    """A scenario's field in words: ``num_workers`` 2 gives ``2 workers``."""
    write = _AXIS_WORDS.get(axis)
    return write(value) if write else f"{axis.replace('_', ' ')} {value}"


def sentence(text: str) -> str:
    """The text with a capital at its front; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def count(number: int, noun: str) -> str:
    """``2 workers``, ``1 worker``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(items: Sequence[str], *, most: int = 8) -> str:
    """``a, b and c``; beyond ``most`` the rest is counted."""
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def shorten(name: str, most: int = 40) -> str:
    """A workload's name for titles: no folders, the middle of a long one left out."""
    name = PurePath(name).name or name
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def times(ratio: float) -> str:
    """A ratio: ``1.42×``, ``12×``."""
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.2f}×"


def percent(fraction: float) -> str:
    """A share in whole percent: ``62 %``."""
    return f"{fraction * 100:.0f} %"


def known(value: float | None, write: Callable[[float], str]) -> str:
    """The number written, or a dash where there is none."""
    return EMPTY if value is None else write(value)


def spanned(middle: float, values: Sequence[float], write: Callable[[float], str]) -> str:
    """A middle with its span: ``1.5 (1.2 to 2.1)``, or the one number where all read the same."""
    written, span = write(middle), from_to(values, write)
    return written if span == written else f"{written} ({span})"


def from_to(values: Sequence[T], write: Callable[[T], str]) -> str:
    """``1.2 to 2.1``, or the one number where both ends read the same."""
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low} to {high}"

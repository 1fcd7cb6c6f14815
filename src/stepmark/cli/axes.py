"""Comma lists on the command line to scenarios."""

from collections.abc import Callable, Mapping
from typing import Any

from stepmark.errors import UsageError
from stepmark.scenario import Scenario, matrix
from stepmark.workloads import BUILTIN


def words(_name: str, text: str) -> list[str]:
    """``"fp32,bf16"`` to its words."""
    return [word.strip() for word in text.split(",")]


def counts(name: str, text: str) -> list[int]:
    """``"16,64"`` to whole numbers; their range is the scenario's to check.

    Raises:
        UsageError: one is no whole number.
    """
    return [_count(name, word) for word in words(name, text)]


def counts_or_auto(name: str, text: str) -> list[int | None]:
    """As `counts`, with ``auto`` for ``None``."""
    return [None if word == "auto" else _count(name, word) for word in words(name, text)]


def switches(name: str, text: str) -> list[bool]:
    """``"true,false"`` to booleans.

    Raises:
        UsageError: one is neither.
    """
    known = {"true": True, "false": False}
    for word in words(name, text):
        if word not in known:
            raise UsageError(f"{_option(name)} {word!r}: must be true or false")
    return [known[word] for word in words(name, text)]


def scenarios(options: Mapping[str, Any]) -> list[Scenario]:
    """The product of the axes that options name; without a batch size, each workload's own.

    Raises:
        UsageError: there is no workload, or a value is out of range.
    """
    if not options["workload"]:
        raise UsageError(
            "no workload: give --workload W, such as --workload mlp-fashion-mnist or "
            "--workload my_train.py:build"
        )
    axes = {name: parse(name, options[name]) for name, parse in _PARSERS.items()}
    batch_size = options["batch_size"]
    product: list[Scenario] = []
    for spec in options["workload"]:
        builtin = BUILTIN.get(spec.partition("?")[0])
        own = builtin.batch_size if builtin else 64
        sizes = [own] if batch_size is None else counts("batch_size", batch_size)
        product += matrix(workload=spec, batch_size=sizes, **axes)
    return list(dict.fromkeys(product))


def _count(name: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise UsageError(
            f"{_option(name)} {word!r}: must be a whole number, or several separated by commas"
        ) from None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


# Of every axis but workload and batch size.
_PARSERS: dict[str, Callable[[str, str], list[Any]]] = {
    "device": words,
    "num_workers": counts,
    "precision": words,
    "accumulation": counts,
    "world_size": counts,
    "pin_memory": switches,
    "prefetch_factor": counts,
    "persistent_workers": switches,
    "threads": counts_or_auto,
    "ddp": switches,
}

"""Comma lists on the command line to scenarios."""

from typing import Any

from stepmark.errors import UsageError
from stepmark.scenario import Scenario, matrix
from stepmark.workloads import BUILTIN


def words(text: str) -> list[str]:
    """``"fp32,bf16"`` to its words."""
    return [word.strip() for word in text.split(",")]


def counts(option: str, text: str) -> list[int]:
    """``"16,64"`` to whole numbers; their range is the scenario's to check.

    Raises:
        UsageError: one is no whole number.
    """
    return [_count(option, word) for word in words(text)]


def counts_or_auto(option: str, text: str) -> list[int | None]:
    """As `counts`, with ``auto`` for ``None``."""
    return [None if word == "auto" else _count(option, word) for word in words(text)]


def switches(option: str, text: str) -> list[bool]:
    """``"true,false"`` to booleans.

    Raises:
        UsageError: one is neither.
    """
    known = {"true": True, "false": False}
    for word in words(text):
        if word not in known:
            raise UsageError(f"{option} {word!r}: must be true or false")
    return [known[word] for word in words(text)]


def scenarios(
    workload_specs: list[str], *, batch_size: list[int] | None, **axes: Any
) -> list[Scenario]:
    """The product of the axes; without a batch size, each workload's own.

    Raises:
        UsageError: a value is out of range.
    """
    product: list[Scenario] = []
    for spec in workload_specs:
        builtin = BUILTIN.get(spec.partition("?")[0])
        own = [builtin.batch_size] if builtin else [64]
        product += matrix(workload=spec, batch_size=batch_size or own, **axes)
    return list(dict.fromkeys(product))


def _count(option: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise UsageError(
            f"{option} {word!r}: must be a whole number, or several separated by commas"
        ) from None

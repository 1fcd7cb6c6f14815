"""Results inside another program's file, and runs in files that pytest-benchmark saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepmark.codec import DecodeError, decode, encode
from stepmark.errors import StoreError, UsageError
from stepmark.result import Result
from stepmark.store.files import SCHEMA, check_schema, parse
from stepmark.store.run import Run


def pack(results: Sequence[Result]) -> dict[str, Any]:
    """Results as JSON data for another program's file; `unpack` reads it."""
    return {"schema": SCHEMA, "results": [encode(result) for result in results]}


def unpack(data: Any, path: Path) -> list[Result]:
    """Results that `pack` wrote.

    Raises:
        StoreError: the data is of another shape or a newer format.
    """
    check_schema(data, path, "run the tests again")
    if not isinstance(data.get("results"), list):
        raise StoreError(f"{path}: not a list of results of this suite (it has no 'results')")
    try:
        return [decode(Result, item) for item in data["results"]]
    except DecodeError as error:
        raise StoreError(f"{path}: not a result of this suite ({error})") from None


def read_pytest_benchmark(path: Path) -> Run:
    data = parse(path, "and so no pytest-benchmark file")
    foreign = StoreError(f"{path}: not a pytest-benchmark file")
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list):
        raise foreign
    try:
        packed = [bench["extra_info"].get("stepmark") for bench in data["benchmarks"]]
    except (AttributeError, KeyError, TypeError):
        raise foreign from None
    packed.append(data.get("stepmark"))
    results = [result for item in packed if item is not None for result in unpack(item, path)]
    if not results:
        raise UsageError(f"{path}: none of its benchmarks was measured by stepmark's fixture")
    results.sort(key=lambda r: (r.started_at, r.scenario.id, r.repeat))
    return Run(name=path.stem, path=path, results=tuple(results), by_pytest=True)

"""``stepmark export``."""

import io
import json
from pathlib import Path

from stepmark import store
from stepmark.console import show
from stepmark.errors import StoreError, UsageError


def export(run: str, format: str, output: Path | None, results: Path) -> None:
    """Write a run's flat table.

    Raises:
        UsageError: the format or the run is unknown, or parquet has no file to go to.
        StoreError: a file cannot be read or written.
    """
    if format not in _FORMATS:
        raise UsageError(f"--format {format!r}: choose from {', '.join(_FORMATS)}")
    if format == "parquet" and output is None:
        raise UsageError("--format parquet: is binary; say where to with -o FILE")
    opened = store.open_run(run, results)
    if not opened.results:
        if not any(training.epochs for training in opened.trainings):
            raise UsageError(f"{opened.path}: holds a training that failed in its first epoch")
        histories = opened.path / store.TRAININGS
        raise UsageError(f"{opened.path}: holds a training, whose history is in {histories}/*.csv")
    data = _FORMATS[format](opened)
    if output is None:
        show(data.decode())
        return
    try:
        # In place: the output may be a device or a pipe, which must not be replaced by a file.
        output.write_bytes(data)
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from None


def _csv(run: store.Run) -> bytes:
    return run.table().to_csv(index=False).encode()


def _json(run: store.Run) -> bytes:
    # From the rows: pandas would round to a number of decimals, which short times do not survive.
    rows = [result.row() for result in run.results]
    return (json.dumps(rows, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _parquet(run: store.Run) -> bytes:
    buffer = io.BytesIO()
    run.table().to_parquet(buffer, index=False)
    return buffer.getvalue()


_FORMATS = {"csv": _csv, "json": _json, "parquet": _parquet}

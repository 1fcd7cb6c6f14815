"""``stepmark export``."""

import io
import json
from pathlib import Path

from stepmark import store
from stepmark.console import show
from stepmark.errors import StoreError, UsageError, choose_from


def export(
    run: str, format: str, output: Path | None, results: Path, *, all_axes: bool = False
) -> None:
    """Write a run's flat table.

    Args:
        run: name, folder or file.
        format: csv, json or parquet.
        output: file to write; ``None`` is standard output.
        results: folder of runs.
        all_axes: with a column for every axis.

    Raises:
        UsageError: the format or the run is unknown, or parquet has no file to go to.
        StoreError: a file cannot be read or written.
    """
    if format not in _FORMATS:
        raise UsageError(f"--format {format!r}: {choose_from(format, _FORMATS)}")
    if format == "parquet" and output is None:
        raise UsageError("--format parquet: is binary; say where to with -o FILE")
    opened = store.open_run(run, results)
    if not opened.results:
        if not any(training.epochs for training in opened.trainings):
            raise UsageError(f"{opened.path}: holds a training that failed in its first epoch")
        histories = opened.path / store.TRAININGS
        raise UsageError(f"{opened.path}: holds a training, whose history is in {histories}/*.csv")
    data = _FORMATS[format](opened, all_axes)
    if output is None:
        show(data.decode())
        return
    try:
        # In place: the output may be a device or a pipe, which must not be replaced by a file.
        output.write_bytes(data)
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from None


def _csv(run: store.Run, all_axes: bool) -> bytes:
    return run.table(all_axes=all_axes).to_csv(index=False).encode()


def _json(run: store.Run, all_axes: bool) -> bytes:
    # From the rows: pandas would round to a number of decimals, which short times do not survive.
    rows = [result.row_with_axes() if all_axes else result.row() for result in run.results]
    return (json.dumps(rows, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _parquet(run: store.Run, all_axes: bool) -> bytes:
    buffer = io.BytesIO()
    run.table(all_axes=all_axes).to_parquet(buffer, index=False)
    return buffer.getvalue()


_FORMATS = {"csv": _csv, "json": _json, "parquet": _parquet}

"""``stepmark export``."""

import io
import sys
from pathlib import Path

from stepmark import store
from stepmark.errors import StoreError, UsageError

FORMATS = ("csv", "json", "parquet")


def export(run: str, format: str, output: Path | None, results: Path) -> None:
    """Write a run's flat table.

    Raises:
        UsageError: the format or the run is unknown, or parquet would go to a terminal.
        StoreError: a file cannot be read or written.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format!r}: choose from {', '.join(FORMATS)}")
    if format == "parquet" and output is None:
        raise UsageError("--format parquet: is binary; say where to with -o FILE")
    frame = store.open_run(run, results).table()
    if format == "parquet":
        assert output is not None
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        try:
            output.write_bytes(buffer.getvalue())
        except OSError as error:
            raise StoreError(f"{output}: cannot be written ({error.strerror})") from None
        return
    if format == "csv":
        text = frame.to_csv(index=False)
    else:
        text = (
            frame.to_json(orient="records", indent=2, force_ascii=False, double_precision=15) + "\n"
        )
    if output is None:
        sys.stdout.write(text)
    else:
        store.write_text(output, text)

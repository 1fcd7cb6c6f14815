"""One value, one JSON file: written whole or not at all, read back strictly.

Format history (`SCHEMA`): 1, first version; 2, when a window began, the device's UUID and power
limit, why a window is unfit; 3, profiles with the parts of all ranks and memory over a step (of
results nothing changed; older profiles are not read); 4, more axes of a scenario.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from stepmark.codec import DecodeError, decode, encode
from stepmark.errors import StoreError

SCHEMA = 4
T = TypeVar("T")


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or nothing: beside its final name first, then renamed.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files for the owner alone; results are for everybody.
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from None


def write(path: Path, value: Any) -> None:
    """Write a dataclass with the format's number.

    Raises:
        StoreError: it cannot be written.
    """
    data = {"schema": SCHEMA, **encode(value)}
    write_text(path, json.dumps(data, allow_nan=False) + "\n")


def read(path: Path, kind: type[T], remedy: str, *, numbered: bool = True) -> T:
    """A value of this kind that `write` wrote.

    Args:
        path: the file.
        kind: a dataclass.
        remedy: what to do if it is damaged.
        numbered: it has a format's number; files of this kind were once written without.

    Raises:
        StoreError: it cannot be read, is damaged, of another shape or of a newer format.
    """
    data = parse(path, remedy)
    if numbered or (isinstance(data, dict) and "schema" in data):
        check_schema(data, path, remedy)
        data.pop("schema")
    try:
        return decode(kind, data)
    except DecodeError as error:
        raise StoreError(f"{path}: not a file of this suite ({error}); {remedy}") from None


def parse(path: Path, remedy: str) -> Any:
    """JSON data.

    Raises:
        StoreError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise StoreError(f"{path}: damaged, not JSON; {remedy}") from None


def check_schema(data: Any, path: Path, remedy: str) -> None:
    """Check the format's number.

    Raises:
        StoreError: there is none, or it is newer than `SCHEMA`.
    """
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is not int or schema < 1:
        raise StoreError(f"{path}: not a file of this suite (it has no 'schema'); {remedy}")
    if schema > SCHEMA:
        raise StoreError(
            f"{path}: format {schema} is newer than {SCHEMA}, the newest known here; "
            "update stepmark to read it"
        )

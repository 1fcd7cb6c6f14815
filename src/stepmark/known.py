"""What was found of a machine, kept in a file that is named after its fingerprint.

results/FOLDER/KEY.json     KEY is of hardware and software; other ones have files of their own
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from stepmark.errors import StoreError
from stepmark.fingerprint import Machine
from stepmark.store import files

T = TypeVar("T")


def load(kind: type[T], results: Path, folder: str, machine: Machine, remedy: str) -> T | None:
    """What is known of a machine; ``None`` if nothing is.

    Args:
        kind: a dataclass.
        results: folder of results.
        folder: below it.
        machine: which.
        remedy: what makes the file anew.

    Raises:
        StoreError: the file cannot be read.
    """
    path = _path(results, folder, machine)
    if not path.exists():
        return None
    return files.read(path, kind, f"remove it, and {remedy}", numbered=False)


def save(value: Any, results: Path, folder: str, machine: Machine) -> Path:
    """Keep what was found of a machine; the file's path.

    Raises:
        StoreError: it cannot be written.
    """
    path = _path(results, folder, machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be made ({error.strerror})") from None
    files.write(path, value)
    return path


def _path(results: Path, folder: str, machine: Machine) -> Path:
    facts = json.dumps([machine.hardware, machine.software], sort_keys=True)
    return results / folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"

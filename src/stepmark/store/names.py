"""Names of runs, and of the files in them."""

import hashlib
import itertools
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from stepmark.errors import StoreError, UsageError

# File systems allow 255 bytes; a repeat, a suffix and a temporary name must fit too.
LONGEST_NAME = 200


def file_name(scenario_id: str) -> str:
    # quote() keeps two different ids apart whatever characters a workload's path holds; a dot at
    # the front would hide the file.
    name = re.sub(r"^\.", "%2E", quote(scenario_id, safe=""))
    if len(name) > LONGEST_NAME:
        name = name[:LONGEST_NAME] + "~" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name


def check_name(name: str) -> str:
    """A run's name, checked.

    Raises:
        UsageError: it would not be a plain folder name.
    """
    if not re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9._+-]{{,{LONGEST_NAME - 1}}}", name):
        raise UsageError(
            f"name {name!r}: use up to {LONGEST_NAME} letters, digits, '.', '_', '+' and '-', "
            "beginning with a letter, a digit or '_'"
        )
    return name


def unused_path(results: Path, name: str) -> Path:
    """The folder that a new run of this name will get; makes the folder around it.

    Raises:
        UsageError: the name is no file name, or is taken.
        StoreError: the folder of runs cannot be made.
    """
    path = results / check_name(name)
    if path.exists():
        raise UsageError(
            f"{path}: exists already; choose another name, or give --resume to complete it"
        )
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{results}: no folder of runs can be made here ({error.strerror})"
        ) from None
    return path


def new_name() -> str:
    """A name for a run that was given none: the time in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d_%H%M%S_%f")[:-3]


def free_name(results: Path, name: str) -> str:
    """The name, or where it is taken the name with the next free number: ``base-2``.

    Raises:
        UsageError: it would not be a plain folder name.
    """
    check_name(name)
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if not (results / n).exists())

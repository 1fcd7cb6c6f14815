"""The directory of data files, and how a set of files appears in it: whole or not at all."""

import contextlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from stepmark.errors import WorkloadError

_STALE_S = 3600.0  # no writer takes this long; one that was killed cannot clean up


def data_root() -> Path:
    """Where data files lie: ``STEPMARK_DATA``, otherwise the user's cache directory."""
    if chosen := os.environ.get("STEPMARK_DATA"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stepmark"
    # The XDG specification has relative paths ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "stepmark"


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Make the directory ``target`` unless it is there.

    ``write(folder)`` fills an empty directory of the same name elsewhere on the file system,
    which is moved into place when complete: an interrupted writer leaves nothing behind, and of
    two writers at once both succeed.

    Raises:
        WorkloadError: the files cannot be written.
    """
    if target.is_dir():
        return
    partial = target.parent / f".partial-{uuid.uuid4().hex}"
    folder = partial / target.name
    try:
        _remove_stale(target.parent)
        folder.mkdir(parents=True)
        write(folder)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another writer was first
                raise
    except OSError as error:
        raise WorkloadError(
            f"{target}: cannot write data there ({error.strerror or error}); set STEPMARK_DATA "
            "to a directory with room that you may write to"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    for partial in parent.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just finished
            if time.time() - partial.stat().st_mtime > _STALE_S:
                shutil.rmtree(partial, ignore_errors=True)

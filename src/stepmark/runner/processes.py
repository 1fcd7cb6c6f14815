"""Finding the processes of a measurement, what they printed last, and ending them."""

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# How long processes get to disappear after SIGKILL: the kernel takes its time over a large
# memory, a driver over a device.
GRACE_S = 10.0

LOG_TAIL_BYTES = 4000

# Stands in the environment of a host and of all that it starts, with the host's folder as value.
MARK = "STEPMARK_HOST"


def end(find: Callable[[], list[psutil.Process]]) -> None:
    """Kill what ``find`` finds, until it finds nothing; give up after `GRACE_S`.

    Once is not enough: a process may fork while it is being killed. Resource trackers are left
    alone: they remove the semaphores of the killed, and end when the last of their users has gone.
    """
    deadline_s = time.monotonic() + GRACE_S
    while time.monotonic() < deadline_s:
        found = [process for process in find() if not is_resource_tracker(process)]
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.1)


def end_all(find: Callable[[], list[psutil.Process]]) -> None:
    """As `end`; then give resource trackers time to end by themselves, and kill those that stay."""
    end(find)
    _, staying = psutil.wait_procs(find(), timeout=GRACE_S)
    for process in staying:
        with contextlib.suppress(psutil.Error):
            process.kill()


def is_resource_tracker(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's, which unlinks what dead processes have left behind."""
    with contextlib.suppress(psutil.Error):
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    return False


def descendants() -> list[psutil.Process]:
    """All processes below this one."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def marked(folder: Path) -> list[psutil.Process]:
    """Processes of the host with that folder, wherever they hang in the tree by now.

    For when the host itself is gone. A process that replaced its environment is not found.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(folder):
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def adopt_orphans() -> None:
    """Make processes whose parents died children of this one (Linux).

    Then a daemon that a workload started is found among the `descendants`.
    """
    if sys.platform == "linux":
        pr_set_child_subreaper = 36  # from <sys/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def tail(path: Path) -> str:
    """The end of a file; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

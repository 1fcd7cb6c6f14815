"""Host memory of a rank and of its loader workers, from the kernel's own accounts (Linux).

``ru_maxrss`` is inherited across exec and useless here; resident sets of forked workers count the
rank's pages again in each. So: the rank's high-water mark, reset by the process itself, and what
each worker has to itself. Elsewhere than on Linux the answers are ``None``.
"""

import os
from pathlib import Path

import psutil


class HostMemory:
    """Growth of this process's resident set since this object was made."""

    def __init__(self) -> None:
        self._start_bytes = _status_bytes("VmRSS")

    def reset_peak(self) -> None:
        """Begin a new period for `peak_growth_bytes`."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._start_bytes = None  # a peak of unknown age is no reading

    def peak_growth_bytes(self) -> int | None:
        """Highest resident set of the period less the one at the start; ``None`` if unknown."""
        peak = _status_bytes("VmHWM")
        if peak is None or self._start_bytes is None:
            return None
        return max(0, peak - self._start_bytes)


def workers_bytes() -> int | None:
    """Pages that this process's children have to themselves; ``None`` if unknown.

    What they share with this process counts in its own resident set already; a proportional set
    size would count a part of it again.
    """
    total = 0
    for child in psutil.Process(os.getpid()).children(recursive=True):
        try:
            lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return None
        total += sum(_kib(line) for line in lines if line.startswith("Private_"))
    return total


def num_oom_kills() -> int:
    """Processes that the kernel has killed on this machine for want of memory, since its boot."""
    return _vmstat().get("oom_kill", 0)


def swapped_bytes() -> int:
    """Memory that the kernel has moved to and from swap on this machine, since its boot."""
    counters = _vmstat()
    num_pages = counters.get("pswpin", 0) + counters.get("pswpout", 0)
    return num_pages * os.sysconf("SC_PAGE_SIZE")


def _vmstat() -> dict[str, int]:
    """The kernel's own counters (Linux); elsewhere there are none."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, value in (line.split() for line in lines)}


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((_kib(line) for line in lines if line.startswith(f"{field}:")), None)


def _kib(line: str) -> int:
    return int(line.split()[1]) * 1024

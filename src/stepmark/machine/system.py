"""What the system tells: the kernel's files, what it grants this process, other programs' words."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path("/")  # where /proc and /sys are

_SUBPROCESS_S = 20.0


def read_text(path: Path) -> str:
    """Text of a file of the kernel's; empty where there is none or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def cpuinfo(name: str, root: Path) -> str:
    """A field of the first processor in ``/proc/cpuinfo``; empty where there is none."""
    found = re.search(rf"^{name}\s*:\s*(.*)$", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def affinity() -> set[int]:
    """CPUs that this process may be scheduled on."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the cgroups grant; ``None`` where nothing bounds it.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and
    Documentation/scheduler/sched-bwc.rst (version 1, ``cpu.cfs_*_us``).
    """
    quotas = []
    for folder in cgroup_folders("cpu", root):
        version_1 = (read_text(folder / f"cpu.cfs_{x}_us") for x in ("quota", "period"))
        quota, _, period = (read_text(folder / "cpu.max") or " ".join(version_1)).partition(" ")
        # Without a bound the quota reads "max" in version 2 and -1 in version 1.
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's cgroup and of those above it, which bound it too.

    Version 2 has one tree for all controllers, version 1 one for each. In a container the path
    may be the host's, of which only the top can be seen; what cannot is read as empty.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = PurePosixPath(path.lstrip("/"))
        yield from (base / folder for folder in (inner, *inner.parents))


def sysctl(name: str) -> str:
    """A value of macOS's kernel; empty where it has none of that name."""
    return (output_of("sysctl", "-n", name) or "").strip()


def output_of(*command: str, environment: Mapping[str, str] | None = None) -> str | None:
    """What a program prints; ``None`` if it is missing, fails, or takes too long."""
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=_SUBPROCESS_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None

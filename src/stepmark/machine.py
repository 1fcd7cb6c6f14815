"""The machine that is measured on: its fingerprint, what makes it unfit right now, the commit.

Linux tells most of it in files under ``/proc`` and ``/sys``; other systems have fewer of them,
and where a file is missing its fact or remark is left out. Imports no torch.
"""

import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from stepmark.fingerprint import Commit, DeviceInfo, Machine
from stepmark.units import format_bytes, format_percent

ROOT = Path("/")
PACKAGES = ("stepmark", "torch", "torchvision", "numpy", "pillow", "triton")

# Limits beyond which a machine is called unfit.
BUSY_FRACTION = 0.3  # of the usable CPUs, taken by others
STEAL_FRACTION = 0.01
THROTTLED_FRACTION = 0.01  # of the cgroup's scheduling periods
MEMORY_FRACTION = 0.1  # least available; also the most that may be swapped out
HEADROOM_C = 5.0  # below the temperature at which the kernel slows the CPU down
NUM_NAMED = 3  # processes named as the busiest

_INTERVAL_S = 0.3
_TICK_S = 0.01  # the kernel counts CPU time in ticks of 1/100 s
_SUBPROCESS_S = 20.0
_MARKS_OF_HYPERVISORS = {
    "vmware": "vmware",
    "virtualbox": "virtualbox",
    "hyperv": "hyper-v",
    "microsoft corporation virtual machine": "hyper-v",
    "xen": "xen",
    "kvm": "kvm",
    "amazon ec2": "kvm",
    "google compute engine": "kvm",
    "qemu": "qemu",
    "parallels": "parallels",
    "apple virtualization": "apple",
}


def fingerprint(
    devices: tuple[DeviceInfo, ...],
    accelerator: Mapping[str, str] = {},
    *,
    root: Path = ROOT,
) -> Machine:
    """What this machine is, in steady facts, and what makes it unfit to measure on right now.

    Args:
        devices: what can be measured on, the preferred kind first.
        accelerator: versions that only the device backends know, such as CUDA and the driver.
        root: where ``/proc`` and ``/sys`` are looked for.
    """
    hardware = {
        "cpu": _cpu_model(root),
        "cpus": str(_num_usable_cpus(root)),
        "cpus_installed": str(os.cpu_count() or 1),
        "memory_bytes": str(_memory_bytes(root)),
        "architecture": platform.machine(),
        "virtualised": _virtualised(root),
    }
    for device in devices:
        # The CPU has its place already.
        hardware.setdefault(device.kind, _counted(device.names))
    software = {"python": platform.python_version(), **_package_versions()}
    software |= {"os": _os_name(), "kernel": platform.release()}
    libc = " ".join(platform.libc_ver()).strip()
    if libc:
        software["libc"] = libc
    return Machine(
        host=platform.node(),
        hardware=hardware,
        software={**software, **accelerator},
        devices=devices,
        unfit=unfit(root=root),
    )


def unfit(*, root: Path = ROOT) -> tuple[str, ...]:
    """What makes this machine unfit to measure on right now, each with a remedy.

    Watches the machine for 0.3 s; this process and its children are not held against it.
    """
    before = _counters(root)
    time.sleep(_INTERVAL_S)
    return (*_going_on(before, _counters(root)), *_standing(root))


def commit(directory: Path) -> Commit | None:
    """The git commit of a directory; ``None`` without git, a repository, or a commit in it."""
    status = _git(directory, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if status is None:
        return None
    lines = status.splitlines()
    header = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    commit_id, branch = header["branch.oid"], header["branch.head"]
    if commit_id == "(initial)":
        return None
    log = _git(directory, "log", "-1", "--no-show-signature", "--format=%cI", commit_id)
    if log is None:
        return None
    return Commit(
        id=commit_id,
        branch="" if branch == "(detached)" else branch,
        dirty=any(not line.startswith("# ") for line in lines),
        time=log.strip(),
    )


def describe(machine: Machine) -> str:
    """The machine in words, for a terminal."""
    hardware = {
        key: format_bytes(int(value)) if key == "memory_bytes" else value
        for key, value in machine.hardware.items()
    }
    sections = [
        ("machine", {"host": machine.host, **hardware}),
        ("software", machine.software),
        *((f"device {device.kind}", _about(device)) for device in machine.devices),
    ]
    width = max(len(key) for _, facts in sections for key in facts)
    lines: list[str] = []
    for title, facts in sections:
        lines += [title, *(f"  {key:<{width}}  {value}" for key, value in facts.items()), ""]
    if machine.unfit:
        lines += ["unfit to measure on", *(f"  - {remark}" for remark in machine.unfit)]
    else:
        lines.append("fit to measure on: nothing was found that disturbs a measurement")
    return "\n".join(lines)


def _about(device: DeviceInfo) -> dict[str, str]:
    ranks = "any number" if device.max_ranks is None else f"at most {device.max_ranks}"
    precisions = {p: f"no: {why}" if why else "yes" for p, why in device.precisions.items()}
    return {"found": _counted(device.names), "ranks": ranks, **precisions}


def _counted(names: Iterable[str]) -> str:
    """Equal names together: ``2 x NVIDIA H200``."""
    return ", ".join(f"{number} x {name}" for name, number in Counter(names).items())


# --- steady facts


def _read(path: Path) -> str:
    """Text of a file of the kernel's; empty where there is none or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _cpuinfo(name: str, root: Path) -> str:
    """A field of the first processor in ``/proc/cpuinfo``; empty where there is none."""
    found = re.search(rf"^{name}\s*:\s*(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else ""


def _cpu_model(root: Path) -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    # ARM kernels give no name, only the numbers of designer and part.
    arm = f"{_cpuinfo('CPU implementer', root)} {_cpuinfo('CPU part', root)}".strip()
    return (
        _cpuinfo("model name", root)
        or _read(root / "proc/device-tree/model")
        or (f"ARM {arm}" if arm else platform.processor() or platform.machine())
    )


def _affinity() -> set[int]:
    """CPUs that this process may be scheduled on."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _num_usable_cpus(root: Path) -> int:
    """CPUs this process may keep busy at once: by affinity, and by whole CPUs of its quota."""
    quota = _cpu_quota(root)
    allowed = len(_affinity())
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the cgroups grant; ``None`` where nothing bounds it.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and
    Documentation/scheduler/sched-bwc.rst (version 1, ``cpu.cfs_*_us``).
    """
    quotas = []
    for folder in _cgroup_folders("cpu", root):
        version_1 = (_read(folder / f"cpu.cfs_{x}_us") for x in ("quota", "period"))
        quota, _, period = (_read(folder / "cpu.max") or " ".join(version_1)).partition(" ")
        # Without a bound the quota reads "max" in version 2 and -1 in version 1.
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_bytes(root: Path) -> int:
    """Memory this process may use: installed, or less where the cgroups say so.

    Installed memory is rounded to a GiB: the kernel keeps some MiB, more or fewer with its
    version, and equal machines must have equal fingerprints.
    """
    gib = 1 << 30
    installed: int = psutil.virtual_memory().total
    bounds = [max(1, round(installed / gib)) * gib]
    for folder in _cgroup_folders("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            bounds += [int(text)] if text.isdigit() else []
    return min(bounds)


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's cgroup and of those above it, which bound it too.

    Version 2 has one tree for all controllers, version 1 one for each. In a container the path
    may be the host's, of which only the top can be seen; what cannot is read as empty.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = PurePosixPath(path.lstrip("/"))
        yield from (base / folder for folder in (inner, *inner.parents))


def _virtualised(root: Path) -> str:
    """``yes (kvm)``, ``no`` or ``unknown``, with the container if this is one."""
    marks = " ".join(
        _read(root / path)
        for path in (
            "sys/class/dmi/id/sys_vendor",
            "sys/class/dmi/id/product_name",
            "sys/hypervisor/type",
            "sys/devices/system/clocksource/clocksource0/available_clocksource",
            "proc/device-tree/hypervisor/compatible",
        )
    ).lower()
    name = next((name for mark, name in _MARKS_OF_HYPERVISORS.items() if mark in marks), "")
    flags = _cpuinfo("flags", root).split()
    is_virtual: bool | None
    if sys.platform == "darwin":
        is_virtual = _sysctl("kern.hv_vmm_present") == "1"
    elif flags:
        is_virtual = "hypervisor" in flags
    else:
        # Other processors than x86 have no such flag; "metal" is a cloud's unshared machine.
        is_virtual = False if "metal" in marks else True if name else None
    answer = {True: f"yes ({name})" if name else "yes", False: "no", None: "unknown"}[is_virtual]
    container = _container(root)
    return f"{answer}, in a container ({container})" if container else answer


def _container(root: Path) -> str:
    """The container's kind; empty outside of one, or where nothing gives it away."""
    if "kubepods" in _read(root / "proc/self/cgroup"):
        return "kubernetes"
    for path, kind in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / path).exists():
            return kind
    return _read(root / "run/systemd/container")


def _package_versions() -> dict[str, str]:
    """Versions as installed; a package that is not is left out."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _os_name() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


# --- what disturbs


@dataclass(frozen=True, kw_only=True)
class _Counters:
    """Counters that only grow, at one moment; two of them tell what went on in between.

    Attributes:
        at_s: the moment, on a clock of no particular start.
        num_cpus: CPUs that this process may be scheduled on; the next two are theirs.
        busy_s: CPU time spent by anyone.
        stolen_s: time in which the hypervisor ran somebody else.
        processes_s: CPU time of every process, by id.
        names: of every process, by id; a kernel thread changes its own with its work.
        own_pids: this process and its children.
        num_throttled: times that a CPU was slowed down because of heat.
        swapped_bytes: memory moved to and from swap.
    """

    at_s: float
    num_cpus: int
    busy_s: float
    stolen_s: float
    processes_s: dict[int, float]
    names: dict[int, str]
    own_pids: frozenset[int]
    num_throttled: int
    swapped_bytes: int


def _counters(root: Path) -> _Counters:
    affinity = _affinity()
    cpus = [t for i, t in enumerate(psutil.cpu_times(percpu=True)) if i in affinity]
    processes_s, names = {}, {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:  # another user's, on a system that keeps them secret
            processes_s[process.pid] = times.user + times.system
            names[process.pid] = process.info["name"]
    children = psutil.Process().children(recursive=True)
    throttles = (root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")
    swap = psutil.swap_memory()
    return _Counters(
        at_s=time.monotonic(),
        num_cpus=len(cpus),
        busy_s=sum(t.user + t.nice + t.system for t in cpus),
        stolen_s=sum(getattr(t, "steal", 0.0) for t in cpus),
        processes_s=processes_s,
        names=names,
        own_pids=frozenset({os.getpid(), *(child.pid for child in children)}),
        num_throttled=sum(int(_read(path) or 0) for path in throttles),
        swapped_bytes=swap.sin + swap.sout,
    )


def _going_on(before: _Counters, after: _Counters) -> Iterator[str]:
    """What went on between two moments."""
    elapsed_s = after.at_s - before.at_s
    capacity_s = elapsed_s * after.num_cpus
    used_s = {pid: s - before.processes_s.get(pid, 0.0) for pid, s in after.processes_s.items()}
    own_s = sum(used_s.pop(pid, 0.0) for pid in after.own_pids)
    others_s = after.busy_s - before.busy_s - own_s
    if others_s > BUSY_FRACTION * capacity_s:
        busiest = sorted((pid for pid in used_s if used_s[pid] > 0), key=lambda p: -used_s[p])
        named = [f"{after.names[p]} {used_s[p] / elapsed_s:.0%}" for p in busiest[:NUM_NAMED]]
        yield (
            f"other processes use {format_percent(min(1.0, others_s / capacity_s))} of the "
            f"{after.num_cpus} CPUs (load average {psutil.getloadavg()[0]:.1f}; busiest: "
            f"{', '.join(named) or 'none that can be seen'}): stop them, or wait for their end"
        )
    stolen_s = after.stolen_s - before.stolen_s
    # One tick alone may be the clock's granularity.
    if stolen_s > max(1.5 * _TICK_S, STEAL_FRACTION * capacity_s):
        yield (
            f"the hypervisor gave {format_percent(stolen_s / capacity_s)} of this machine's CPU "
            "time to others (steal): use a dedicated instance, or measure at another time"
        )
    if after.num_throttled > before.num_throttled:
        yield "CPUs are being slowed down because of heat: let the machine cool down"
    if after.swapped_bytes > before.swapped_bytes:
        yield "memory is being moved to or from swap: close programs that use much memory"


def _standing(root: Path) -> Iterator[str]:
    """Settings and states that disturb as long as they last."""
    governors = {
        _read(path)
        for path in (root / "sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")
    }
    for governor in sorted(governors & {"powersave", "ondemand", "conservative"}):
        yield (
            f"CPU frequency governor {governor!r} lets clocks wander: "
            "set it with 'sudo cpupower frequency-set -g performance'"
        )
    quota, num_cpus = _cpu_quota(root), len(_affinity())
    if quota is not None and quota < num_cpus:
        yield (
            f"the cgroup grants {quota:g} CPUs' worth of time on {num_cpus} visible CPUs, and "
            "stops processes that spent it: bind to whole CPUs instead (docker: --cpuset-cpus)"
        )
    throttled = max(_throttled_fractions(root), default=0.0)
    if throttled > THROTTLED_FRACTION:
        yield (
            f"the cgroup's CPU quota stopped this container in {format_percent(throttled)} of its "
            "periods so far: raise the quota, or use fewer threads and workers"
        )
    for zone, celsius, limit in _hot_zones(root):
        yield (
            f"thermal zone {zone} is at {celsius:.0f} °C, and is slowed down at {limit:.0f} °C: "
            "let the machine cool down"
        )
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    if memory.available < MEMORY_FRACTION * memory.total:
        yield (
            f"{format_bytes(memory.available)} of {format_bytes(memory.total)} memory are "
            "available: close programs that use much memory"
        )
    if swap.used > MEMORY_FRACTION * memory.total:
        yield (
            f"{format_bytes(swap.used)} are swapped out: close programs that use much memory, "
            "then turn swap off and on again ('sudo swapoff -a && sudo swapon -a')"
        )
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None and battery.power_plugged is False:
        yield "the machine runs on battery, which slows it down: plug it in"
    virtualised = _virtualised(root)
    if virtualised.startswith("yes"):
        yield (
            f"virtualised: {virtualised}; neighbours share the hardware: "
            "compare only what was measured interleaved ('stepmark gate')"
        )


def _throttled_fractions(root: Path) -> Iterator[float]:
    """Fraction of its periods in which each cgroup had spent its quota."""
    for folder in _cgroup_folders("cpu", root):
        lines = _read(folder / "cpu.stat").splitlines()
        stat = {name: int(value) for name, value in (line.split() for line in lines)}
        if stat.get("nr_periods"):
            yield stat["nr_throttled"] / stat["nr_periods"]


def _hot_zones(root: Path) -> Iterator[tuple[str, float, float]]:
    """Name, temperature and limit of each thermal zone near its limit, in degrees Celsius."""
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        celsius = _celsius(zone / "temp")
        limits = [
            _celsius(path.with_name(path.name.replace("_type", "_temp")))
            for path in zone.glob("trip_point_*_type")
            if _read(path) in ("passive", "hot", "critical")
        ]
        # A trip point that was never set reads 0 or below.
        limit = min((known for known in limits if known is not None and known > 0), default=None)
        if celsius is not None and limit is not None and celsius > limit - HEADROOM_C:
            yield _read(zone / "type") or zone.name, celsius, limit


def _celsius(path: Path) -> float | None:
    text = _read(path)
    return int(text) / 1000 if re.fullmatch(r"-?\d+", text) else None


# --- other programs


def _git(directory: Path, *arguments: str) -> str | None:
    """Output of a git command that changes and asks nothing; ``None`` if it fails."""
    # A hook of git's own points these at its repository, whatever the directory.
    pointers = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in pointers}
    # Without locks 'status' leaves the index as it is.
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    # A file-system monitor would stay behind as a process, beside the measurement.
    return _output(
        "git",
        "-c",
        "core.fsmonitor=false",
        "-C",
        str(directory),
        *arguments,
        environment=environment,
    )


def _sysctl(name: str) -> str:
    """A value of macOS's kernel; empty where it has none of that name."""
    return (_output("sysctl", "-n", name) or "").strip()


def _output(*command: str, environment: Mapping[str, str] | None = None) -> str | None:
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

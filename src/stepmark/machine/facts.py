"""The machine's fingerprint: steady facts about its hardware and software."""

import importlib.metadata
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from stepmark.fingerprint import DeviceInfo, Machine
from stepmark.machine.fitness import unfit
from stepmark.machine.system import (
    ROOT,
    affinity,
    cgroup_folders,
    cpu_quota,
    cpuinfo,
    read_text,
    sysctl,
)
from stepmark.machine.virtual import virtualised

PACKAGES = ("stepmark", "torch", "torchvision", "numpy", "pillow", "triton")


def fingerprint(
    devices: tuple[DeviceInfo, ...],
    software: Mapping[str, str] = {},
    *,
    root: Path = ROOT,
) -> Machine:
    """What this machine is, in steady facts, and what makes it unfit to measure on right now.

    Args:
        devices: what can be measured on, the preferred kind first.
        software: versions that only the measuring processes know: of the interpreter and its
            packages (see `installed`), of CUDA and the driver.
        root: where ``/proc`` and ``/sys`` are looked for.
    """
    hardware = {
        "cpu": _cpu_model(root),
        "cpus": str(_num_usable_cpus(root)),
        "cpus_installed": str(os.cpu_count() or 1),
        "memory_bytes": str(_memory_bytes(root)),
        "architecture": platform.machine(),
        "virtualised": virtualised(root),
    }
    for device in devices:
        # The CPU has its place already.
        hardware.setdefault(device.kind, counted(device.names))
        if device.power_limits_w:
            limits = (f"{watts} W" for watts in device.power_limits_w)
            hardware[f"{device.kind}_power_limit"] = counted(limits)
    system = {"os": _os_name(), "kernel": platform.release()}
    libc = " ".join(platform.libc_ver()).strip()
    if libc:
        system["libc"] = libc
    return Machine(
        host=platform.node(),
        hardware=hardware,
        software={**system, **software},
        devices=devices,
        unfit=unfit(root=root),
    )


def counted(names: Iterable[str]) -> str:
    """Equal names together: ``2 x NVIDIA H200``."""
    return ", ".join(f"{number} x {name}" for name, number in Counter(names).items())


def _cpu_model(root: Path) -> str:
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string") or platform.machine()
    # ARM kernels give no name, only the numbers of designer and part.
    arm = f"{cpuinfo('CPU implementer', root)} {cpuinfo('CPU part', root)}".strip()
    return (
        cpuinfo("model name", root)
        or read_text(root / "proc/device-tree/model")
        or (f"ARM {arm}" if arm else platform.processor() or platform.machine())
    )


def _num_usable_cpus(root: Path) -> int:
    """CPUs this process may keep busy at once: by affinity, and by whole CPUs of its quota."""
    quota = cpu_quota(root)
    allowed = len(affinity())
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def _memory_bytes(root: Path) -> int:
    """Memory this process may use: installed, or less where the cgroups say so.

    Installed memory is rounded to a GiB: the kernel keeps some MiB, more or fewer with its
    version, and equal machines must have equal fingerprints.
    """
    gib = 1 << 30
    installed: int = psutil.virtual_memory().total
    bounds = [max(1, round(installed / gib)) * gib]
    for folder in cgroup_folders("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = read_text(folder / name)
            bounds += [int(text)] if text.isdigit() else []
    return min(bounds)


def installed() -> dict[str, str]:
    """Versions of this interpreter and its packages; a package that is missing is left out."""
    versions = {"python": platform.python_version()}
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

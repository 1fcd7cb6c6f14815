"""What disturbs measuring on this machine right now, each with a remedy."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from stepmark.machine.activity import counters, going_on
from stepmark.machine.system import ROOT, affinity, cgroup_folders, cpu_quota, read_text
from stepmark.machine.virtual import virtualised
from stepmark.units import format_bytes, format_percent

# Limits beyond which a machine is called unfit; those on what goes on are in `activity`.
THROTTLED_FRACTION = 0.01  # of the cgroup's scheduling periods
MEMORY_FRACTION = 0.1  # least available; also the most that may be swapped out
HEADROOM_C = 5.0  # below the temperature at which the kernel slows the CPU down

_INTERVAL_S = 0.3


def unfit(*, root: Path = ROOT) -> tuple[str, ...]:
    """What makes this machine unfit to measure on right now, each with a remedy.

    Watches the machine for 0.3 s; this process and its children are not held against it.
    """
    before = counters(root)
    time.sleep(_INTERVAL_S)
    return (*going_on(before, counters(root)), *_standing(root))


def _standing(root: Path) -> Iterator[str]:
    """Settings and states that disturb as long as they last."""
    governors = {
        read_text(path)
        for path in (root / "sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")
    }
    for governor in sorted(governors & {"powersave", "ondemand", "conservative"}):
        yield (
            f"CPU frequency governor {governor!r} lets clocks wander: "
            "set it with 'sudo cpupower frequency-set -g performance'"
        )
    quota, num_cpus = cpu_quota(root), len(affinity())
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
    answer = virtualised(root)
    if answer.startswith("yes"):
        yield (
            f"virtualised: {answer}; neighbours share the hardware: "
            "repeat in fresh processes (--repeats), and compare only what was measured in turns"
        )


def _throttled_fractions(root: Path) -> Iterator[float]:
    """Fraction of its periods in which each cgroup had spent its quota."""
    for folder in cgroup_folders("cpu", root):
        lines = read_text(folder / "cpu.stat").splitlines()
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
            if read_text(path) in ("passive", "hot", "critical")
        ]
        # A trip point that was never set reads 0 or below.
        limit = min((known for known in limits if known is not None and known > 0), default=None)
        if celsius is not None and limit is not None and celsius > limit - HEADROOM_C:
            yield read_text(zone / "type") or zone.name, celsius, limit


def _celsius(path: Path) -> float | None:
    text = read_text(path)
    return int(text) / 1000 if re.fullmatch(r"-?\d+", text) else None

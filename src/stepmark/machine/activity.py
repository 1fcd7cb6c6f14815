"""What else goes on, on the machine, while a measurement would: counters at two moments."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from stepmark.machine.system import affinity, read_text
from stepmark.units import format_percent

# Limits beyond which a machine is called unfit.
BUSY_FRACTION = 0.3  # of the usable CPUs, taken by others
STEAL_FRACTION = 0.01
NUM_NAMED = 3  # processes named as the busiest

_TICK_S = 0.01  # the kernel counts CPU time in ticks of 1/100 s


@dataclass(frozen=True, kw_only=True)
class Counters:
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


def counters(root: Path) -> Counters:
    usable = affinity()
    cpus = [t for i, t in enumerate(psutil.cpu_times(percpu=True)) if i in usable]
    processes_s, names = {}, {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:  # another user's, on a system that keeps them secret
            processes_s[process.pid] = times.user + times.system
            names[process.pid] = process.info["name"]
    children = psutil.Process().children(recursive=True)
    throttles = (root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")
    swap = psutil.swap_memory()
    return Counters(
        at_s=time.monotonic(),
        num_cpus=len(cpus),
        busy_s=sum(t.user + t.nice + t.system for t in cpus),
        stolen_s=sum(getattr(t, "steal", 0.0) for t in cpus),
        processes_s=processes_s,
        names=names,
        own_pids=frozenset({os.getpid(), *(child.pid for child in children)}),
        num_throttled=sum(int(read_text(path) or 0) for path in throttles),
        swapped_bytes=swap.sin + swap.sout,
    )


def going_on(before: Counters, after: Counters) -> Iterator[str]:
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

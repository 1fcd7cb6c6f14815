"""What this machine can attain at most, as calibrated, and what a result reaches of it.

Kept in ``results/ceilings``; no datasheet stands in for a ceiling that was not measured.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stepmark import known
from stepmark.fingerprint import Machine
from stepmark.record import Reading
from stepmark.result import Result
from stepmark.scenario import Scenario

FOLDER = "ceilings"
COMPUTE, MEMORY = "compute", "memory"
H2D_PINNED, H2D_PAGEABLE = "h2d_pinned", "h2d_pageable"
ALL_REDUCE = "all_reduce"
JPEG_DECODE = "jpeg_decode"

# Dense FLOP/s of NVIDIA's datasheets, by precision. Others are not known here, and stay empty.
_DATASHEETS: dict[str, dict[str, float]] = {
    "A100": {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12},
    "H100 80GB HBM3": {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
    "H200": {"fp32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
    "L4": {"fp32": 30.3e12, "tf32": 60e12, "bf16": 121e12, "fp16": 121e12},
    "V100-SXM2": {"fp32": 15.7e12, "fp16": 125e12},
    "T4": {"fp32": 8.1e12, "fp16": 65e12},
}


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One of them.

    Attributes:
        name: ``compute``, ``memory``, ``h2d_pinned``, ``h2d_pageable``, ``all_reduce`` or
            ``jpeg_decode``.
        unit: of the value.
        value: ``None`` where it could not be measured.
        device: kind of device.
        precision: of ``compute``; empty otherwise.
        threads: it was measured with; 0 where they do not matter.
        note: how, or why not.
    """

    name: str
    unit: str
    value: float | None
    device: str
    precision: str = ""
    threads: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """All of a machine.

    Attributes:
        hardware, software: of its fingerprint.
        measured_at: ISO 8601 with time zone.
        items: what was found.
    """

    hardware: dict[str, str]
    software: dict[str, str]
    measured_at: str
    items: tuple[Ceiling, ...]

    def compute(self, scenario: Scenario, num_threads: int) -> float | None:
        """FLOP/s that all ranks together can attain; ``None`` if it was not calibrated.

        With autocast some operators stay in fp32, which may be the faster one: the higher counts.
        """
        precisions = {scenario.precision.value}
        if scenario.precision.autocasts:
            precisions.add("fp32")
        found = [self._value(COMPUTE, p, scenario, num_threads) for p in sorted(precisions)]
        values = [value for value in found if value is not None]
        return max(values, default=None)

    def memory(self, scenario: Scenario, num_threads: int) -> float | None:
        """Bytes/s that all ranks together can move; ``None`` if it was not calibrated."""
        return self._value(MEMORY, "", scenario, num_threads)

    def h2d(self, scenario: Scenario) -> float | None:
        """Bytes/s that one rank can copy to its device; ``None`` if it was not calibrated."""
        name = H2D_PINNED if scenario.pin_memory else H2D_PAGEABLE
        return self._of_one_rank(name, scenario.device)

    def all_reduce(self, scenario: Scenario) -> float | None:
        """Bytes/s of its gradients that a rank can exchange; ``None`` if it was not calibrated.

        Between two ranks: more of them are no faster.
        """
        return self._of_one_rank(ALL_REDUCE, scenario.device) if scenario.world_size > 1 else None

    def jpeg(self, scenario: Scenario, num_cpus: int) -> float | None:
        """Pixels/s that one rank can decode, each loader worker on a core of its own."""
        rate = self._of_one_rank(JPEG_DECODE, "cpu")
        at_once = min(max(1, scenario.num_workers), max(1.0, num_cpus / scenario.num_processes))
        return None if rate is None else rate * at_once

    def _of_one_rank(self, name: str, device: str) -> float | None:
        return next((i.value for i in self.items if (i.name, i.device) == (name, device)), None)

    def _value(
        self, name: str, precision: str, scenario: Scenario, num_threads: int
    ) -> float | None:
        """On CPUs, of the ranks' threads together; a device belongs to one rank."""
        on_cpu = scenario.device == "cpu"
        wanted = num_threads * scenario.num_processes if on_cpu else 0
        by_threads = {
            item.threads: item.value
            for item in self.items
            if (item.name, item.precision, item.device) == (name, precision, scenario.device)
            and item.value is not None
        }
        if not by_threads:
            return None
        # Of no fewer threads than are used, so that no more than all of it is ever reached.
        enough = min((t for t in by_threads if t >= wanted), default=max(by_threads))
        # What fewer threads attain, more do: of two that differ, the lower one was disturbed.
        value = max(v for t, v in by_threads.items() if t <= enough)
        return value if on_cpu else value * scenario.num_processes


def load(results: Path, machine: Machine) -> Ceilings | None:
    """What was calibrated on a machine; ``None`` if nothing was.

    Raises:
        StoreError: the file cannot be read.
    """
    return known.load(Ceilings, results, FOLDER, machine, "run 'stepmark calibrate' again")


def save(results: Path, machine: Machine, ceilings: Ceilings) -> Path:
    """Keep what was calibrated.

    Raises:
        StoreError: it cannot be written.
    """
    return known.save(ceilings, results, FOLDER, machine)


def merged(known: Ceilings | None, found: Ceilings) -> Ceilings:
    """What was found, and of what was known before all that was not measured again."""
    if known is None:
        return found

    def place(item: Ceiling) -> tuple[str, str, str, int]:
        return item.name, item.device, item.precision, item.threads

    again = {place(item) for item in found.items}
    kept = tuple(item for item in known.items if place(item) not in again)
    return replace(found, items=(*kept, *found.items))


def attach(result: Result, ceilings: Ceilings | None) -> Result:
    """A result with what it could attain at most; as it is, if nothing was calibrated."""
    if ceilings is None or not result.ranks:
        return result
    first, *others = result.ranks
    extra = tuple(_readings(result, ceilings))
    return replace(result, ranks=(replace(first, readings=(*first.readings, *extra)), *others))


def _readings(result: Result, ceilings: Ceilings) -> Iterator[Reading]:
    scenario, num_threads = result.scenario, result.ranks[0].num_threads
    note = f"as calibrated on this machine (last on {ceilings.measured_at[:10]})"
    for name, unit, scope, value in (
        ("attainable_compute", "flop/s", "node", ceilings.compute(scenario, num_threads)),
        ("attainable_memory", "bytes/s", "node", ceilings.memory(scenario, num_threads)),
        ("attainable_h2d", "bytes/s", "rank", ceilings.h2d(scenario)),
        ("attainable_all_reduce", "bytes/s", "rank", ceilings.all_reduce(scenario)),
        (
            "attainable_jpeg_decode",
            "pixels/s",
            "rank",
            ceilings.jpeg(scenario, result.machine.num_cpus),
        ),
    ):
        if value is not None:
            yield Reading(name=name, unit=unit, scope=scope, value=value, note=note)
    peak = datasheet_peak(result.ranks[0].device_name, scenario.precision.value)
    achieved = result.achieved_flops
    if peak is not None and achieved is not None:
        yield Reading(
            name="mfu_datasheet",
            unit="fraction",
            scope="node",
            value=achieved / (peak * scenario.num_processes),
            note="FLOPs of the datasheet's dense peak that were reached; not an attainable one",
        )


def datasheet_peak(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s of a known GPU; ``None`` for any other."""
    if re.search(r"\b(MIG|NVL|PCIe)\b", device_name):
        return None  # a part of a device, or one with another sheet
    for name, peaks in _DATASHEETS.items():
        if re.search(rf"\b{re.escape(name)}\b", device_name):
            return peaks.get(precision)
    return None

"""``stepmark calibrate``."""

import dataclasses
import json as json_module
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from stepmark import ceilings
from stepmark.ceilings import Ceiling, Ceilings
from stepmark.cli.interrupt import INTERRUPTED, interrupt_once
from stepmark.cli.progress import Display
from stepmark.codec import encode
from stepmark.columns import aligned
from stepmark.console import show
from stepmark.errors import UsageError
from stepmark.fingerprint import Machine
from stepmark.result import Outcome
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario
from stepmark.units import format_bytes, format_flops, format_rate

_RANKS = 2


def calibrate(device: str, results: Path, timeout: float, *, json: bool) -> int:
    """Measure this machine's ceilings, keep them, and print them.

    Args:
        device: kinds of device, by commas; ``auto`` takes all that are there.
        results: folder of results.
        timeout: seconds until a process is killed.
        json: print JSON.

    Returns:
        The exit code: 0, 1 if something could not be calibrated, 130 if it was interrupted.

    Raises:
        UsageError: there is no such device here.
        StoreError: the file cannot be written.
    """
    plan = Plan(timeout=timeout)
    interrupt_once(signal.SIGINT)
    found: list[Ceiling] = []
    failures: list[str] = []
    warnings: list[str] = []
    path: Path | None = None
    try:
        with Display(sys.stderr) as display, Runner(display.on_stage) as runner:
            display.on_start()
            machine = runner.machine
            asked = list(_scenarios(_kinds(device, machine), machine))
            display.begin(len(asked))
            warnings += [f"this machine is unfit to measure on: {r}" for r in machine.unfit]
            known = ceilings.load(results, machine)
            measured_at = datetime.now(UTC).isoformat(timespec="seconds")
            for scenario in asked:
                display.on_begin(f"calibrating {scenario.device}", 0)
                ending, remarks = runner.calibrate(scenario, plan)
                display.on_done()
                warnings += [f"calibrating {scenario.device}: {remark}" for remark in remarks]
                if ending.outcome is not Outcome.OK:
                    failures.append(f"{scenario.device}: {ending.outcome}: {ending.reason}")
                    continue
                found += (_noted(ceiling, remarks) for ceiling in ending.answers[0])
                now = Ceilings(
                    hardware=machine.hardware,
                    software=machine.software,
                    measured_at=measured_at,
                    items=tuple(found),
                )
                path = ceilings.save(results, machine, ceilings.merged(known, now))
    except KeyboardInterrupt:
        print(f"interrupted{f'; what was found is in {path}' if path else ''}", file=sys.stderr)
        return INTERRUPTED
    show(_as_json(found) if json else "\n".join(_table(found)) + "\n")
    for line in (*(f"warning: {warning}" for warning in dict.fromkeys(warnings)), *failures):
        print(line, file=sys.stderr)
    if path is not None:
        print(f"saved: {path}", file=sys.stderr)
    return int(bool(failures))


def _noted(ceiling: Ceiling, remarks: Sequence[str]) -> Ceiling:
    """A ceiling with what may have disturbed its measuring."""
    return dataclasses.replace(ceiling, note="; ".join([ceiling.note, *remarks]))


def _kinds(device: str, machine: Machine) -> list[str]:
    there = [info.kind for info in machine.devices]
    if device == "auto":
        return there
    wanted = [word.strip() for word in device.split(",")]
    for kind in wanted:
        if kind not in there:
            raise UsageError(f"--device {kind!r}: this machine has {', '.join(there)}")
    return wanted


def _scenarios(kinds: list[str], machine: Machine) -> Iterator[Scenario]:
    """One for each process: a device, or a number of threads; then ranks."""
    for kind in kinds:
        threads = sorted({1, machine.num_cpus}) if kind == "cpu" else [None]
        for number in threads:
            yield Scenario(workload="calibrate", device=kind, threads=number)
        ranks = Scenario(workload="calibrate", device=kind, world_size=_RANKS)
        if ranks.obstacle(machine) is None:
            yield ranks


def _table(found: list[Ceiling]) -> list[str]:
    header = ("ceiling", "device", "precision", "threads", "attainable", "how")
    rows = [
        (c.name, c.device, c.precision or "-", str(c.threads or "-"), _written(c), c.note)
        for c in found
    ]
    return aligned(header, rows, left=(0, 1, 2, 5))


def _written(ceiling: Ceiling) -> str:
    if ceiling.value is None:
        return "-"
    if ceiling.unit == "flop/s":
        return f"{format_flops(ceiling.value)}/s"
    if ceiling.unit == "bytes/s":
        return f"{format_bytes(ceiling.value)}/s"
    return f"{format_rate(ceiling.value)} {ceiling.unit}"


def _as_json(found: list[Ceiling]) -> str:
    return json_module.dumps([encode(c) for c in found], indent=2, allow_nan=False) + "\n"

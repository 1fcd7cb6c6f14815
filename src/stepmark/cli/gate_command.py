"""``stepmark gate`` and ``stepmark gate selftest``."""

import contextlib
import functools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepmark.cli.gate_progress import GateDisplay
from stepmark.cli.interrupt import INTERRUPTED, interrupt_once
from stepmark.compare import exit_code
from stepmark.compare.command import parse_fraction
from stepmark.compare.output import FORMATS, add_to_job_summary
from stepmark.console import show
from stepmark.errors import StoreError, UsageError, choose_from
from stepmark.fingerprint import Machine
from stepmark.gate import noise, selftest
from stepmark.gate.pairs import Pair, cpus_for, measure_pair
from stepmark.gate.record import Record
from stepmark.gate.servers import Servers
from stepmark.gate.sides import Opened, open_sides
from stepmark.gate.suite import try_all
from stepmark.gate.trial import Rules, Trial
from stepmark.machine.system import affinity
from stepmark.scenario import Plan, Scenario

# As many names as a line can hold and still be read.
_SHOWN = 5
# A warm-up beside which nothing is measured.
_WARM_UP_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for; the options of the command."""

    selftest: bool
    base: str | None
    head: str | None
    base_python: str | None
    head_python: str | None
    links: tuple[Path, ...]
    threshold: str
    same_loss: bool
    warmup: int
    timeout: float
    format: str
    output: Path | None
    results: Path


def is_selftest(word: str | None) -> bool:
    """Whether the command's argument asks for the self-test.

    Raises:
        UsageError: it is another word.
    """
    if word not in (None, "selftest"):
        raise UsageError(f"gate {word}: give --base REF, or the word selftest")
    return word is not None


def gate(scenarios: list[Scenario], asked: Asked) -> int:
    """Try both sides, save what was measured, print what came out.

    Returns:
        Exit code: 0 clean, 1 a regression, 3 not comparable, 4 inconclusive, 5 nothing measured;
        130 if it was interrupted.

    Raises:
        UsageError: an option is wrong, or both sides lack the workload.
        RunnerError: no process can be started.
        StoreError: results cannot be written.
    """
    _check(asked)
    rules = Rules(
        threshold=parse_fraction("--threshold", asked.threshold), same_loss=asked.same_loss
    )
    plan = Plan(steps=1, warmup=asked.warmup, max_seconds=_WARM_UP_S, timeout=asked.timeout)
    # A CI job that is cancelled gets SIGTERM, one whose terminal closes SIGHUP; the checkouts must
    # go then, too.
    interrupt_once(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    record: Record | None = None
    try:
        with GateDisplay(sys.stderr) as display, _open_sides(scenarios, asked) as sides:
            if sides.left_out:
                display.tell(_left_out(sides.left_out))
            display.draw("starting the measuring processes")
            with Servers((sides.base, sides.head)) as servers:
                title = "self-test" if asked.selftest else sides.title
                title += _differing_software(servers.machines)
                record = Record(
                    asked.results, title, servers.machines, {"threshold": asked.threshold}
                )
                runnable = _runnable(sides.scenarios, servers, record, display)
                record.plan(runnable)
                display.begin(len(runnable), selftest.NUM_PAIRS if asked.selftest else None)
                measure = _measurer(servers, sides, plan, record, display)
                for trial in _trials(runnable, measure, rules, servers, asked):
                    record.add(trial)
                    display.on_trial(trial)
                record.finish()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        if record is not None:
            _show(record, asked)
        return INTERRUPTED
    except BaseException:
        if record is not None and record.comparisons:
            _show(record, asked)
        raise
    assert record is not None
    _show(record, asked)
    if asked.selftest:
        print(f"noise, for later gates: {asked.results / noise.FOLDER}", file=sys.stderr)
    return exit_code(record.comparisons)


def _check(asked: Asked) -> None:
    """Find mistakes before the first process starts."""
    if asked.format not in FORMATS:
        raise UsageError(f"--format {asked.format!r}: {choose_from(asked.format, FORMATS)}")
    if asked.output is not None and not asked.output.parent.is_dir():
        raise UsageError(f"--output {asked.output}: there is no folder {asked.output.parent}")
    if asked.output is not None and asked.output.is_dir():
        raise UsageError(f"--output {asked.output}: is a folder; name a file")
    pythons = asked.base_python, asked.head_python
    if asked.selftest:
        given = {"--base": asked.base, "--head": asked.head, "--base-python": asked.base_python}
        wrong = next((option for option, value in given.items() if value is not None), None)
        if wrong or asked.links:
            raise UsageError(f"{wrong or '--link'}: the self-test has the working tree twice")
    elif asked.base is None and pythons == (None, None):
        raise UsageError(
            "gate: what shall head be compared with? Give --base REF (such as main), or "
            "--base-python and --head-python; 'gate selftest' shows this machine's noise"
        )
    elif asked.base is None and (asked.head is not None or asked.links):
        option = "--head" if asked.head is not None else "--link"
        raise UsageError(f"{option}: needs --base REF; without it both sides are the working tree")


def _open_sides(
    scenarios: list[Scenario], asked: Asked
) -> contextlib.AbstractContextManager[Opened]:
    pythons = (asked.base_python, asked.head_python)
    if asked.selftest:
        pythons = (asked.head_python, asked.head_python)
    return open_sides(
        scenarios, base=asked.base, head=asked.head, pythons=pythons, links=asked.links
    )


def _differing_software(machines: tuple[Machine, Machine]) -> str:
    """Versions that are not the same on both sides, in brackets; empty if all are."""
    then, now = (machine.software for machine in machines)
    differing = [
        f"{key} {then.get(key, 'none')} -> {now.get(key, 'none')}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    return f" ({', '.join(differing)})" if differing else ""


def _left_out(names: list[str]) -> str:
    shown = ", ".join([*names[:_SHOWN], *(["..."] if names[_SHOWN:] else [])])
    return f"warning: not in git, and so on neither side: {shown}"


def _runnable(
    scenarios: Sequence[Scenario], servers: Servers, record: Record, display: GateDisplay
) -> list[Scenario]:
    """Scenarios with their devices that can run on both sides; keeps note of the others."""
    runnable = []
    for asked in scenarios:
        on_sides = [asked.on(machine) for machine in servers.machines]
        scenario = on_sides[1]
        pairs = zip(on_sides, servers.machines, strict=True)
        reasons = [side.obstacle(machine) for side, machine in pairs]
        if all(reasons):
            record.skip(scenario, reasons[1] or "")
            display.tell(f"{scenario.id}: skipped: {reasons[1]}")
        elif on_sides[0] != scenario:
            record.miss(
                scenario, f"base would run on {on_sides[0].device}, head on {scenario.device}"
            )
        elif any(reasons):
            name, reason = next((n, r) for n, r in zip(("base", "head"), reasons, strict=True) if r)
            record.miss(scenario, f"{name}: {reason}")
        else:
            runnable.append(scenario)
    for remark in servers.machines[1].unfit:
        # Neighbours are what measuring in turns is for.
        if not remark.startswith("virtualised"):
            display.tell(f"warning: this machine is unfit to measure on: {remark}")
    return list(dict.fromkeys(runnable))


def _measurer(
    servers: Servers, sides: Opened, plan: Plan, record: Record, display: GateDisplay
) -> Callable[[Scenario], Pair]:
    """What measures one more pair of a scenario."""
    both = (sides.base, sides.head)
    order = random.Random()
    # Not every system can keep processes to CPUs.
    usable = sorted(affinity()) if hasattr(os, "sched_setaffinity") else []
    num_cpus = servers.machines[1].num_cpus
    num_pairs = 0

    def measure(scenario: Scenario) -> Pair:
        nonlocal num_pairs
        display.on_pair(scenario)
        cpus = cpus_for(scenario, scenario.threads_per_rank(num_cpus), usable, num_pairs)
        num_pairs += 1
        with servers.for_pair() as runners:
            pair = measure_pair(runners, both, (scenario, scenario), plan, cpus, order)
        record.add_pair(pair)
        display.on_pair_done(pair)
        return pair

    return measure


def _trials(
    scenarios: list[Scenario],
    measure: Callable[[Scenario], Pair],
    rules: Rules,
    servers: Servers,
    asked: Asked,
) -> Iterator[Trial]:
    machine = servers.machines[1]
    if not asked.selftest:
        # Servers of their own add to the noise, and the self-test had one for both.
        known = noise.load(asked.results, machine).scenarios if servers.are_shared else {}
        yield from try_all(scenarios, measure, rules, known)
        return
    for scenario in scenarios:
        measure_one = functools.partial(measure, scenario)
        trial, found = selftest.try_same_code(scenario, measure_one, rules.threshold)
        if found is not None:
            noise.save(asked.results, machine, {scenario.id: found})
        yield trial


def _show(record: Record, asked: Asked) -> None:
    """Print it, and write it where it was asked for."""
    print(f"saved: {record.path}", file=sys.stderr)
    show(record.write("table" if asked.output else asked.format))
    add_to_job_summary(record.comparisons, title=record.title, skipped=record.skipped)
    if asked.output is not None:
        try:
            asked.output.write_text(record.write(asked.format), encoding="utf-8")
        except OSError as error:
            raise StoreError(
                f"{asked.output}: cannot be written ({error.strerror}); everything is in "
                f"{record.path}"
            ) from None

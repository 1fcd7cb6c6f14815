"""``stepmark gate`` and ``stepmark gate selftest``."""

import contextlib
import dataclasses
import functools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stepmark import store, workloads
from stepmark.cli.gate_progress import GateDisplay
from stepmark.cli.interrupt import INTERRUPTED, interrupt_once
from stepmark.compare import exit_code
from stepmark.compare.command import parse_fraction
from stepmark.compare.output import FORMATS, add_to_job_summary, as_json, write
from stepmark.compare.verdict import Comparison
from stepmark.errors import StepmarkError, StoreError, UsageError, WorkloadError
from stepmark.gate import interpreters, noise, selftest
from stepmark.gate.output import as_data
from stepmark.gate.pairs import Pair, Side, cpus_for, measure_pair
from stepmark.gate.revisions import Repository
from stepmark.gate.servers import Servers
from stepmark.gate.suite import try_all
from stepmark.gate.trial import Rules, Trial
from stepmark.machine.system import affinity
from stepmark.scenario import Plan, Scenario
from stepmark.workloads.spec import parse

# Where everything that a gate measured is kept, below the folder of results.
FOLDER = "gates"
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
    record = _Record(asked)
    # In CI a job that is cancelled gets SIGTERM; the checkouts must go then, too.
    interrupt_once(signal.SIGINT, signal.SIGTERM)
    try:
        with (
            GateDisplay(sys.stderr) as display,
            _sides(scenarios, asked) as (scenarios, sides, record.title),
        ):
            display.draw("starting the measuring processes")
            with Servers(sides) as servers:
                record.begin(servers)
                runnable = _runnable(scenarios, servers, display)
                display.begin(len(runnable), selftest.NUM_PAIRS if asked.selftest else None)
                measure = _measurer(servers, sides, plan, display)
                for trial in _trials(runnable, measure, rules, record, servers, asked):
                    record.add(trial)
                    display.on_trial(trial)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        record.show(asked)
        return INTERRUPTED
    except StepmarkError:
        if record.comparisons:
            record.show(asked)
        raise
    record.show(asked)
    add_to_job_summary(record.comparisons, title=record.title)
    return exit_code(record.comparisons)


def _check(asked: Asked) -> None:
    """Find mistakes before the first process starts."""
    if asked.format not in FORMATS:
        raise UsageError(f"--format {asked.format!r}: choose from {', '.join(FORMATS)}")
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


@contextlib.contextmanager
def _sides(
    scenarios: list[Scenario], asked: Asked
) -> Iterator[tuple[list[Scenario], tuple[Side, Side], str]]:
    """Both sides, for as long as this is open; the scenarios as they see them; a title."""
    options = (("--base-python", asked.base_python), ("--head-python", asked.head_python))
    if asked.selftest:
        options = (("--head-python", asked.head_python),) * 2
    base, head = (
        interpreters.this_one() if python is None else interpreters.ask(option, python)
        for option, python in options
    )
    names = [f" with {python}" if python else "" for _, python in options]
    here = Path.cwd()
    if asked.base is None:
        sides = interpreters.side("base", base, here), interpreters.side("head", head, here)
        _check_workloads(scenarios, sides)
        title = "the working tree"
        title = f"{title}{names[0]} -> {title}{names[1]}"
        yield scenarios, sides, "self-test" if asked.selftest else title
        return
    repository = Repository(here)
    revisions = (
        repository.revision(asked.base),
        repository.working_tree() if asked.head is None else repository.revision(asked.head),
    )
    title = f"{revisions[0].label}{names[0]} -> {revisions[1].label}{names[1]}"
    scenarios = [_inside(scenario, repository) for scenario in scenarios]
    with repository.sides(revisions, (base, head), asked.links) as sides:
        _check_workloads(scenarios, sides)
        yield scenarios, sides, title


def _inside(scenario: Scenario, repository: Repository) -> Scenario:
    """A file that is named by its whole path, by the path that it has in every checkout."""
    file = parse(scenario.workload).file
    if file is None:
        return scenario
    workload = scenario.workload.replace(os.fspath(file), os.fspath(repository.relative(file)), 1)
    return dataclasses.replace(scenario, workload=workload)


def _check_workloads(scenarios: Sequence[Scenario], sides: tuple[Side, Side]) -> None:
    """Find workloads that neither side has; one that a single side lacks is a verdict.

    Raises:
        WorkloadError: there is one.
    """
    for workload in dict.fromkeys(scenario.workload for scenario in scenarios):
        mistakes = []
        for side in sides:
            try:
                with contextlib.chdir(side.directory):
                    workloads.check(workload)
            except WorkloadError as error:
                mistakes.append(error)
        if len(mistakes) == len(sides):
            raise mistakes[-1]


def _runnable(
    scenarios: Sequence[Scenario], servers: Servers, display: GateDisplay
) -> list[Scenario]:
    """Scenarios with their devices that can run on both sides; says so of the others."""
    resolved = dict.fromkeys(scenario.on(servers.machines[1]) for scenario in scenarios)
    runnable = []
    for scenario in resolved:
        reasons = [scenario.obstacle(machine) for machine in servers.machines]
        reason = next(filter(None, reasons), None)
        if reason is None:
            runnable.append(scenario)
        else:
            display.tell(f"{scenario.id}: skipped: {reason}")
    for remark in servers.machines[1].unfit:
        display.tell(f"warning: this machine is unfit to measure on: {remark}")
    return runnable


def _measurer(
    servers: Servers, sides: tuple[Side, Side], plan: Plan, display: GateDisplay
) -> Callable[[Scenario], Pair]:
    """What measures one more pair of a scenario."""
    order = random.Random()
    usable = sorted(affinity())
    num_pairs = 0

    def measure(scenario: Scenario) -> Pair:
        nonlocal num_pairs
        display.on_pair(scenario)
        cpus = cpus_for(scenario, usable, num_pairs)
        num_pairs += 1
        with servers.for_pair() as runners:
            pair = measure_pair(runners, sides, scenario, plan, cpus, order)
        display.on_pair_done(pair)
        return pair

    return measure


def _trials(
    scenarios: list[Scenario],
    measure: Callable[[Scenario], Pair],
    rules: Rules,
    record: "_Record",
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
            record.saved_also = noise.save(asked.results, machine, {scenario.id: found})
        yield trial


class _Record:
    """What has been tried, in a file of its own as soon as it was."""

    def __init__(self, asked: Asked) -> None:
        self.title = ""
        self.saved_also: Path | None = None
        self._folder = asked.results / FOLDER
        self._path: Path | None = None
        self._trials: dict[str, Trial] = {}
        self._facts: dict[str, object] = {"threshold": asked.threshold}

    @property
    def comparisons(self) -> list[Comparison]:
        """Of all scenarios, as they were tried last."""
        return [trial.comparison for trial in self._trials.values()]

    def begin(self, servers: Servers) -> None:
        """Make the file, before anything is measured that could not be saved."""
        base, head = servers.machines
        self._facts |= {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": head.hardware,
            "software": {"base": base.software, "head": head.software},
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._folder}: cannot be made ({error.strerror})") from None
        self._path = self._folder / f"{store.new_name()}.json"
        self._save()

    def add(self, trial: Trial) -> None:
        """Take in a trial; the same scenario's earlier one is replaced."""
        self._trials[trial.scenario.id] = trial
        self._save()

    def show(self, asked: Asked) -> None:
        """Print it, and write it where it was asked for."""
        if self._path is None:
            print("nothing was measured", file=sys.stderr)
            return
        if asked.output is None:
            sys.stdout.write(self._written(asked.format))
        else:
            sys.stdout.write(self._written("table"))
            try:
                asked.output.write_text(self._written(asked.format), encoding="utf-8")
            except OSError as error:
                raise StoreError(
                    f"{asked.output}: cannot be written ({error.strerror}); everything is in "
                    f"{self._path}"
                ) from None
        saved = " and ".join(str(path) for path in (self._path, self.saved_also) if path)
        print(f"saved: {saved}", file=sys.stderr)

    def _written(self, format: str) -> str:
        if format == "json":
            return as_json(self._data())
        return write(self.comparisons, format, title=self.title)

    def _data(self) -> dict[str, object]:
        return as_data(list(self._trials.values()), self.title, self._facts)

    def _save(self) -> None:
        assert self._path is not None
        store.write_text(self._path, as_json(self._data()))

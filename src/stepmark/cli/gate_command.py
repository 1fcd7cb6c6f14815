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
from stepmark.compare.verdict import Comparison, Verdict
from stepmark.errors import StoreError, UsageError, WorkloadError
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
    record = _Record(asked)
    # A CI job that is cancelled gets SIGTERM, one whose terminal closes SIGHUP; the checkouts must
    # go then, too.
    interrupt_once(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        with (
            GateDisplay(sys.stderr) as display,
            _sides(scenarios, asked) as (scenarios, sides, record.title),
        ):
            display.draw("starting the measuring processes")
            with Servers(sides) as servers:
                record.begin(servers)
                runnable = _runnable(scenarios, servers, record, display)
                display.begin(len(runnable), selftest.NUM_PAIRS if asked.selftest else None)
                measure = _measurer(servers, sides, plan, record, display)
                for trial in _trials(runnable, measure, rules, record, servers, asked):
                    record.add(trial)
                    display.on_trial(trial)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        record.show(asked)
        return INTERRUPTED
    except BaseException:
        if record.comparisons:
            record.show(asked)
        raise
    record.show(asked)
    return exit_code(record.comparisons)


def _check(asked: Asked) -> None:
    """Find mistakes before the first process starts."""
    if asked.format not in FORMATS:
        raise UsageError(f"--format {asked.format!r}: choose from {', '.join(FORMATS)}")
    if asked.output is not None and not asked.output.parent.is_dir():
        raise UsageError(f"--output {asked.output}: there is no folder {asked.output.parent}")
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
    repository = _repository(here, is_needed=asked.base is not None)
    if repository is not None:
        scenarios = [_inside(scenario, repository) for scenario in scenarios]
    if repository is None or asked.base is None:
        sides = interpreters.side("base", base, here), interpreters.side("head", head, here)
        _check_workloads(scenarios, sides)
        title = "the working tree"
        title = f"{title}{names[0]} -> {title}{names[1]}"
        yield scenarios, sides, "self-test" if asked.selftest else title
        return
    revisions = (
        repository.revision(asked.base),
        repository.working_tree() if asked.head is None else repository.revision(asked.head),
    )
    untracked = repository.untracked_modules(asked.links) if asked.head is None else []
    if untracked:
        names_shown = ", ".join([*untracked[:_SHOWN], *(["..."] if untracked[_SHOWN:] else [])])
        print(f"warning: not in git, and so on neither side: {names_shown}", file=sys.stderr)
    title = f"{revisions[0].label}{names[0]} -> {revisions[1].label}{names[1]}"
    with repository.sides(revisions, (base, head), asked.links) as sides:
        _check_workloads(scenarios, sides)
        yield scenarios, sides, title


def _repository(directory: Path, *, is_needed: bool) -> Repository | None:
    try:
        return Repository(directory)
    except UsageError:
        if is_needed:
            raise
        return None


def _inside(scenario: Scenario, repository: Repository) -> Scenario:
    """A file that is named by its whole path, by the path that it has in every checkout."""
    target = parse(scenario.workload)
    if target.file is None:
        return scenario
    _, question, query = scenario.workload.partition("?")
    file = os.fspath(repository.relative(target.file))
    workload = f"{file}:{target.function}{question}{query}"
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
                with _as_seen_from(side):
                    workloads.check(workload)
            except WorkloadError as error:
                mistakes.append(error)
        if len(mistakes) < len(sides):
            continue
        file = parse(workload).file
        if file is not None and file.is_file():
            raise WorkloadError(
                f"{workload}: {file} is not in git, and so on neither side; commit it, or give "
                f"--link {file}"
            )
        raise mistakes[-1]


@contextlib.contextmanager
def _as_seen_from(side: Side) -> Iterator[None]:
    """Look for files and modules where a side does."""
    own = sys.path
    with contextlib.chdir(side.directory):
        sys.path = list(side.sys_path)
        try:
            yield
        finally:
            sys.path = own


def _runnable(
    scenarios: Sequence[Scenario], servers: Servers, record: "_Record", display: GateDisplay
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
        display.tell(f"warning: this machine is unfit to measure on: {remark}")
    return list(dict.fromkeys(runnable))


def _measurer(
    servers: Servers, sides: tuple[Side, Side], plan: Plan, record: "_Record", display: GateDisplay
) -> Callable[[Scenario], Pair]:
    """What measures one more pair of a scenario."""
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
            pair = measure_pair(runners, sides, scenario, plan, cpus, order)
        record.add_pair(pair)
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
    """What has been measured, in a file of its own as soon as it was."""

    def __init__(self, asked: Asked) -> None:
        self.title = ""
        self.saved_also: Path | None = None
        self._folder = asked.results / FOLDER
        self._path: Path | None = None
        self._comparisons: dict[str, Comparison] = {}
        self._trials: dict[str, Trial] = {}
        # Of the trial that is not over.
        self._pairs: list[Pair] = []
        self._facts: dict[str, object] = {"threshold": asked.threshold}
        self._skipped: dict[str, str] = {}

    @property
    def comparisons(self) -> list[Comparison]:
        """Of all scenarios, as they were tried last."""
        return list(self._comparisons.values())

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

    def skip(self, scenario: Scenario, reason: str) -> None:
        """A scenario that can run on neither side."""
        self._skipped[scenario.id] = reason
        self._save()

    def miss(self, scenario: Scenario, reason: str) -> None:
        """A scenario that can run on one side alone."""
        self._comparisons[scenario.id] = Comparison(
            scenario_id=scenario.id, verdict=Verdict.MISSING, reason=reason
        )
        self._save()

    def add_pair(self, pair: Pair) -> None:
        """Take in a pair of a trial that is not over."""
        self._pairs.append(pair)
        self._save()

    def add(self, trial: Trial) -> None:
        """Take in a trial; the same scenario's earlier one is replaced."""
        self._comparisons[trial.scenario.id] = trial.comparison
        self._trials[trial.scenario.id] = trial
        self._pairs.clear()
        self._save()

    def show(self, asked: Asked) -> None:
        """Print it, and write it where it was asked for."""
        if self._path is None:
            print("nothing was measured", file=sys.stderr)
            return
        print(
            f"saved: {' and '.join(map(str, filter(None, (self._path, self.saved_also))))}",
            file=sys.stderr,
        )
        add_to_job_summary(self.comparisons, title=self.title)
        if asked.output is not None:
            try:
                asked.output.write_text(self._written(asked.format), encoding="utf-8")
            except OSError as error:
                raise StoreError(
                    f"{asked.output}: cannot be written ({error.strerror}); everything is in "
                    f"{self._path}"
                ) from None
        try:
            print(self._written("table" if asked.output else asked.format), end="", flush=True)
        except BrokenPipeError:
            # Whoever read it has seen enough; the exit code still says what came out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _written(self, format: str) -> str:
        if format == "json":
            return as_json(self._data())
        return write(self.comparisons, format, title=self.title)

    def _data(self) -> dict[str, object]:
        facts = {**self._facts, "skipped": self._skipped}
        return as_data(self.comparisons, self._trials, self._pairs, title=self.title, facts=facts)

    def _save(self) -> None:
        assert self._path is not None
        store.write_text(self._path, as_json(self._data()))

"""Measuring a list of scenarios into a run folder, in order, with resume."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stepmark import ceilings, store, workloads
from stepmark.errors import UsageError
from stepmark.fingerprint import Machine
from stepmark.result import Result
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario


@dataclass(frozen=True, kw_only=True)
class Task:
    """One scenario, one of its repeats."""

    scenario: Scenario
    repeat: int


def check(scenarios: list[Scenario]) -> None:
    """Find out what is wrong before the first process starts.

    Raises:
        WorkloadError: a workload is known not to exist.
    """
    for workload in dict.fromkeys(scenario.workload for scenario in scenarios):
        workloads.check(workload)


def begin(results: Path, name: str, scenarios: list[Scenario], plan: Plan) -> store.RunFolder:
    """Make a run's folder, before anything is measured that could not be saved.

    Raises:
        UsageError: the name is no name, or taken.
        StoreError: the folder cannot be written.
    """
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    planned = store.RunPlan(created_at=created_at, plan=plan, scenarios=tuple(scenarios))
    return store.RunFolder.create(results, name, planned)


def tasks(planned: store.RunPlan) -> list[Task]:
    """Everything a run set out to measure, a whole round of scenarios after another.

    A machine that drifts then shows up as spread between repeats, not as a difference between
    the first and the last scenario.
    """
    rounds = range(planned.plan.repeats)
    return [Task(scenario=s, repeat=r) for r in rounds for s in planned.scenarios]


def resolve(scenarios: list[Scenario], runner: Runner) -> list[Scenario]:
    """Scenarios with ``auto`` resolved; two that become the same are one."""
    return list(dict.fromkeys(scenario.on(runner.machine) for scenario in scenarios))


def measure(folder: store.RunFolder, runner: Runner) -> Iterator[tuple[Task, Result | None]]:
    """Measure what a run still lacks, saving each result before the next begins.

    Returns:
        Each task twice: before it is measured with ``None``, and with its result after it was
        saved. A task that had its result already comes once, with it.

    Raises:
        UsageError: the run was begun on other hardware or software, or with another plan.
        StoreError: a result cannot be read, or (from the iterator) saved.
    """
    # All of them, now: a damaged result shall not be found after hours of measuring.
    saved = {task: folder.find(task.scenario, task.repeat) for task in tasks(folder.planned)}
    for result in saved.values():
        if result is not None:
            check_resumable(result, folder, folder.planned.plan, runner)
    known = ceilings.load(folder.path.parent, runner.machine)
    return _measure(folder, runner, saved, known)


def _measure(
    folder: store.RunFolder,
    runner: Runner,
    saved: dict[Task, Result | None],
    known: ceilings.Ceilings | None,
) -> Iterator[tuple[Task, Result | None]]:
    for task, result in saved.items():
        if result is None:
            yield task, None
            result = runner.run(task.scenario, folder.planned.plan, repeat=task.repeat)
            result = ceilings.attach(result, known)
            folder.save(result)
        yield task, result


def check_resumable(saved: Result, folder: store.RunFolder, plan: Plan, runner: Runner) -> None:
    """Find out whether what would be measured now may stand beside a saved result.

    Raises:
        UsageError: it was measured on other hardware or software, or with another plan.
    """
    if saved.plan != plan:
        raise UsageError(
            f"{folder.path}: has {saved.scenario.id} measured with another plan ({saved.plan}); "
            "measure a new run under another name"
        )
    check_machine(saved.machine, folder, runner)


def check_machine(then_on: Machine, folder: store.RunFolder, runner: Runner) -> None:
    """Find out whether this is still the machine that a run was begun on.

    Raises:
        UsageError: its hardware or software is another one.
    """
    machine = runner.machine
    for what, then, now in (
        ("hardware", then_on.hardware, machine.hardware),
        ("software", then_on.software, machine.software),
    ):
        for key in sorted({*then, *now}):
            if then.get(key) != now.get(key):
                raise UsageError(
                    f"{folder.path}: was begun on other {what} ({key}: {then.get(key)} then, "
                    f"{now.get(key)} now); measure a new run under another name"
                )

"""Both sides of a gate: where their code is, for as long as it is needed."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepmark import workloads
from stepmark.errors import UsageError, WorkloadError
from stepmark.gate import interpreters
from stepmark.gate.pairs import Side
from stepmark.gate.revisions import Repository
from stepmark.scenario import Scenario
from stepmark.workloads.spec import parse


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Both sides, and what is measured on them.

    Attributes:
        base, head: the sides.
        scenarios: as both sides can find them.
        title: what is compared.
        left_out: Python files of the working tree that are on neither side.
    """

    base: Side
    head: Side
    scenarios: list[Scenario]
    title: str
    left_out: list[str]


@contextlib.contextmanager
def open_sides(
    scenarios: Sequence[Scenario],
    *,
    base: str | None,
    head: str | None,
    pythons: tuple[str | None, str | None],
    links: Sequence[Path] = (),
) -> Iterator[Opened]:
    """Both sides, until the context is closed.

    Args:
        scenarios: as they were asked for.
        base: the revision; without one both sides are the working tree itself.
        head: the revision; without one, the working tree with its uncommitted changes.
        pythons: interpreters of base and head; ``None`` is this one.
        links: what is not in git, and both sides have all the same.

    Raises:
        UsageError: there is no such revision or interpreter, or both sides lack a workload.
    """
    options = zip(("--base-python", "--head-python"), pythons, strict=True)
    base_python, head_python = (
        interpreters.this_one() if python is None else interpreters.ask(option, python)
        for option, python in options
    )
    names = [f" with {python}" if python else "" for python in pythons]
    here = Path.cwd()
    repository = _repository(here, is_needed=base is not None)
    if repository is not None:
        scenarios = [_inside(scenario, repository) for scenario in scenarios]
    if repository is None or base is None:
        sides = (
            interpreters.side("base", base_python, here),
            interpreters.side("head", head_python, here),
        )
        title = f"the working tree{names[0]} -> the working tree{names[1]}"
        yield _opened(sides, scenarios, title)
        return
    revisions = (
        repository.revision(base),
        repository.working_tree() if head is None else repository.revision(head),
    )
    left_out = repository.untracked_modules(links) if head is None else []
    title = f"{revisions[0].label}{names[0]} -> {revisions[1].label}{names[1]}"
    with repository.sides(revisions, (base_python, head_python), links) as sides:
        yield _opened(sides, scenarios, title, left_out)


def _opened(
    sides: tuple[Side, Side],
    scenarios: Sequence[Scenario],
    title: str,
    left_out: Sequence[str] = (),
) -> Opened:
    _check_workloads(scenarios, sides)
    return Opened(
        base=sides[0],
        head=sides[1],
        scenarios=list(scenarios),
        title=title,
        left_out=list(left_out),
    )


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
        if file is not None and not any((side.directory / file).exists() for side in sides):
            raise WorkloadError(f"{workload}: there is no {file}, neither in base nor in head")
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

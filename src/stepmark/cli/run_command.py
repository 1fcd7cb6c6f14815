"""``stepmark run``."""

import shlex
import signal
import sys
from pathlib import Path

from stepmark import stats, store, suite
from stepmark.choices import CompileMode
from stepmark.cli.interrupt import INTERRUPTED, interrupt_once
from stepmark.cli.progress import Display
from stepmark.columns import aligned
from stepmark.console import show
from stepmark.errors import UsageError
from stepmark.result import Outcome, Result
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario
from stepmark.units import format_percent, format_rate, format_seconds

# A window that takes less is told of.
_BRIEF_S = 0.1


def run(
    scenarios: list[Scenario] | None,
    plan: Plan,
    *,
    name: str | None,
    results: Path,
    resume: bool,
    download: bool,
) -> int:
    """Measure, save, and print what came out.

    Args:
        scenarios: what to measure; ``None`` takes a resumed run's own.
        plan: how long.
        name: of the run; ``None`` takes the time.
        results: folder of runs.
        resume: complete the run of that name.
        download: datasets may be fetched.

    Returns:
        The exit code.

    Raises:
        UsageError: the run cannot be begun or resumed.
        StoreError: results cannot be written or read.
    """
    if resume and name is None:
        raise UsageError("--resume: say which run with --save NAME")
    environment = {"STEPMARK_DOWNLOAD": "1"} if download else {}
    folder: store.RunFolder | None = None
    done: list[Result] = []
    interrupted = False
    interrupt_once(signal.SIGINT)
    try:
        with Display(sys.stderr) as display, Runner(display.on_stage, environment) as runner:
            display.on_start()
            folder = _open(scenarios, plan, name, results, resume=resume, runner=runner)
            display.begin(len(suite.tasks(folder.planned)))
            measured = suite.measure(folder, runner)
            for remark in runner.machine.unfit:
                display.warn(f"this machine is unfit to measure on: {remark}")
            for task, result in measured:
                if result is None:
                    display.on_begin(task.scenario.id, task.repeat)
                else:
                    done.append(result)
                    display.on_result(result)
    except KeyboardInterrupt:
        interrupted = True
    if folder is None:
        print("interrupted: nothing was measured", file=sys.stderr)
        return INTERRUPTED
    print_table(done)
    if interrupted:
        total = len(suite.tasks(folder.planned))
        print(
            f"interrupted: {len(done)} of {total} results are saved in {folder.path}; go on with: "
            + _resume_command(folder.path),
            file=sys.stderr,
        )
        return INTERRUPTED
    if resume:
        _warn_of_changes(done)
    show(f"saved: {folder.path}\n")
    return int(any(result.outcome not in (Outcome.OK, Outcome.SKIPPED) for result in done))


def _open(
    scenarios: list[Scenario] | None,
    plan: Plan,
    name: str | None,
    results: Path,
    *,
    resume: bool,
    runner: Runner,
) -> store.RunFolder:
    if not resume:
        assert scenarios is not None
        suite.check(scenarios)
        name = store.new_name() if name is None else name
        # Now, rather than after the seconds that measuring processes take to start.
        store.unused_path(results, name)
        resolved = suite.resolve(scenarios, runner)
        return suite.begin(results, name, resolved, plan)
    assert name is not None
    folder = store.RunFolder.reopen(results, name)
    if folder.find_training() is not None:
        raise UsageError(
            f"{folder.path}: is of a training; go on with 'stepmark train --resume --save {name}'"
        )
    if not folder.planned.scenarios:
        raise UsageError(
            f"{folder.path}: was begun by pytest, which alone knows its scenarios; go on with "
            f"'pytest --stepmark-resume {name}'"
        )
    if scenarios is not None:
        planned = folder.planned
        # The plan first: resolving scenarios takes the seconds that measuring processes start in.
        same = plan == planned.plan
        same = same and set(suite.resolve(scenarios, runner)) == set(planned.scenarios)
        if not same:
            raise UsageError(
                f"{folder.path}: was begun with other axes or another plan; resume it with "
                f"'{_resume_command(folder.path)}', or measure under another name"
            )
    return folder


def _warn_of_changes(results: list[Result]) -> None:
    """Say so where a resumed run's results are not, or perhaps not, of the same code."""
    commits = [result.commit for result in results if result.commit]
    states = dict.fromkeys(f"{c.id[:12]}{' with changes' if c.dirty else ''}" for c in commits)
    warning = ""
    if len(states) > 1:
        warning = f"the code changed before the run was resumed ({', '.join(states)}): its results"
        warning += " are not of one commit"
    elif any(commit.dirty for commit in commits):
        warning = "the run was begun and resumed with changes that are not committed: whether they"
        warning += " are the same is not known"
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


def _resume_command(path: Path) -> str:
    words = ["stepmark", "run", "--resume", "--save", path.name, "--results", str(path.parent)]
    return shlex.join(words)


def print_table(results: list[Result]) -> None:
    """What came of each, then remarks; with the first step's time where that compiles."""
    header = ["scenario", "repeat", "samples/s", "median step", "p99 step", "outcome"]
    rows = [[*_cells(result)] for result in results]
    if any(result.scenario.compile is not CompileMode.OFF for result in results):
        header.insert(-1, "first step")
        for row, result in zip(rows, results, strict=True):
            row.insert(-1, _first_step(result))
    lines = aligned(header, rows, left=(0, len(header) - 1))
    lines += _summary(results)
    remarks = dict.fromkeys(remark for result in results for remark in result.machine.unfit)
    lines += [f"note: this machine is unfit to measure on: {remark}" for remark in remarks]
    for result in results:
        which = f"{result.scenario.id}, repeat {result.repeat}"
        lines += [f"unfit: {which}: {reason}" for reason in result.unfit]
        lines += [f"note: {which}: {note}" for note in result.notes]
    show("".join(f"{line}\n" for line in lines))


def _summary(results: list[Result]) -> list[str]:
    """Each scenario that has repeats over them; and that windows are brief, if some are."""
    rates: dict[str, list[float]] = {}
    for result in results:
        if result.samples_per_s is not None:
            rates.setdefault(result.scenario.id, []).append(result.samples_per_s)
    rows = [
        (
            scenario_id,
            str(len(found)),
            format_rate(stats.median(found)),
            f"{format_rate(min(found))} to {format_rate(max(found))}",
            format_percent(stats.spread(found)),
        )
        for scenario_id, found in rates.items()
        if len(found) > 1
    ]
    lines = []
    if rows:
        header = ("scenario", "repeats", "median samples/s", "range", "apart")
        lines += ["", *aligned(header, rows)]
    windows_s = [result.row()["window_s"] for result in results if result.ranks]
    num_brief = sum(window_s < _BRIEF_S for window_s in windows_s)
    if num_brief:
        lines.append(
            f"{num_brief} of {len(windows_s)} windows are brief (the briefest took "
            f"{format_seconds(min(windows_s))}), so a single stall weighs much: give more --steps"
        )
    return lines


def _first_step(result: Result) -> str:
    """How long it took; a model is compiled there, and the compiler was started before."""
    first_step_s = result.row()["first_step_s"]
    return format_seconds(first_step_s) if first_step_s else ""


def _cells(result: Result) -> tuple[str, ...]:
    row = result.row()
    rate = format_rate(row["samples_per_s"]) if row["samples_per_s"] else ""
    median, p99 = (
        format_seconds(row[name]) if row[name] else "" for name in ("step_s_median", "step_s_p99")
    )
    ending = f"{row['outcome']}: {row['reason']}" if row["reason"] else row["outcome"]
    return result.scenario.id, str(result.repeat), rate, median, p99, ending

"""``stepmark run``."""

import sys
from pathlib import Path

from stepmark import store, suite
from stepmark.cli.progress import Display
from stepmark.errors import UsageError
from stepmark.result import Outcome, Result
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario
from stepmark.units import format_rate, format_seconds

INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C


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
        UsageError: nothing to measure, or a run that cannot be begun or resumed.
        StoreError: results cannot be written or read.
    """
    if scenarios is None and not resume:
        raise UsageError(
            "no workload: give --workload W, such as --workload mlp-fashion-mnist or "
            "--workload my_train.py:build"
        )
    if resume and name is None:
        raise UsageError("--resume: say which run with --save NAME")
    environment = {"STEPMARK_DOWNLOAD": "1"} if download else {}
    with Display(sys.stderr) as display, Runner(display.on_stage, environment) as runner:
        folder = _open(scenarios, plan, name, results, resume=resume, runner=runner)
        display.begin(len(suite.tasks(folder.planned)))
        done: list[Result] = []
        interrupted = False
        try:
            for task, result in suite.measure(folder, runner):
                if result is None:
                    display.on_begin(task.scenario.id, task.repeat)
                else:
                    done.append(result)
                    display.on_result(result)
        except KeyboardInterrupt:
            interrupted = True
    _print_table(done)
    if interrupted:
        total = len(suite.tasks(folder.planned))
        print(
            f"interrupted: {len(done)} of {total} results are saved in {folder.path}; go on with: "
            f"stepmark run --resume --save {folder.path.name} --results {results}",
            file=sys.stderr,
        )
        return INTERRUPTED
    print(f"saved: {folder.path}")
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
        resolved = suite.resolve(scenarios, runner)
        return suite.begin(results, name or store.new_name(), resolved, plan)
    assert name is not None
    folder = store.RunFolder.reopen(results, name)
    if scenarios is not None:
        resolved = suite.resolve(scenarios, runner)
        planned = folder.planned
        if set(resolved) != set(planned.scenarios) or plan != planned.plan:
            raise UsageError(
                f"{folder.path}: was begun with other axes or another plan; resume it with "
                f"'stepmark run --resume --save {name}' alone, or measure under another name"
            )
    return folder


def _print_table(results: list[Result]) -> None:
    if not results:
        return
    width = max(len(result.scenario.id) for result in results)
    print(f"{'scenario':<{width}}  repeat  {'samples/s':>12}  {'step':>9}  {'p99':>9}  outcome")
    for result in results:
        row = result.row()
        rate = format_rate(row["samples_per_s"]) if row["samples_per_s"] else ""
        median, p99 = (
            format_seconds(row[name]) if row[name] else ""
            for name in ("step_s_median", "step_s_p99")
        )
        ending = f"{row['outcome']}: {row['reason']}" if row["reason"] else row["outcome"]
        print(
            f"{result.scenario.id:<{width}}  {result.repeat:>6}  {rate:>12}  {median:>9}  "
            f"{p99:>9}  {ending}"
        )

"""``stepmark profile``."""

import signal
import sys
from pathlib import Path

from stepmark import ceilings, store, suite
from stepmark.choices import Task
from stepmark.cli.interrupt import INTERRUPTED, interrupt_once
from stepmark.cli.progress import Display
from stepmark.console import show
from stepmark.errors import UsageError
from stepmark.profile import Profile, output
from stepmark.result import Outcome, Result
from stepmark.runner import Runner
from stepmark.scenario import Plan, Scenario
from stepmark.units import format_rate


def profile(
    scenarios: list[Scenario], plan: Plan, *, name: str | None, results: Path, json: bool
) -> int:
    """Measure a scenario, then profile it in other processes; save both, and print what came out.

    Args:
        scenarios: one.
        plan: how long it is measured.
        name: of the run; ``None`` takes the time.
        results: folder of runs.
        json: print JSON.

    Returns:
        The exit code: 0, 1 if it failed, 130 if it was interrupted.

    Raises:
        UsageError: it is not one scenario, or the name is taken.
        StoreError: something cannot be written or read.
    """
    if len(scenarios) != 1:
        raise UsageError(
            f"profile: these axes make {len(scenarios)} scenarios; give one value to each"
        )
    if scenarios[0].task is not Task.TRAIN:
        raise UsageError(f"--task {scenarios[0].task}: a profile is of a step of training")
    suite.check(scenarios)
    name = store.new_name() if name is None else name
    store.unused_path(results, name)
    interrupt_once(signal.SIGINT)
    folder: store.RunFolder | None = None
    try:
        with Display(sys.stderr) as display, Runner(display.on_stage) as runner:
            display.on_start()
            (scenario,) = suite.resolve(scenarios, runner)
            folder = suite.begin(results, name, [scenario], plan)
            known = ceilings.load(results, runner.machine)
            display.begin(1)
            display.on_begin(scenario.id, 0)
            result = ceilings.attach(runner.run(scenario, plan), known)
            folder.save(result)
            if result.outcome is not Outcome.OK:
                return _failed(result)
            prefix = folder.profile_prefix(scenario)
            found = runner.profile(scenario, plan, prefix)
            folder.save_profile(found)
    except KeyboardInterrupt:
        where = "" if folder is None else f"; what was measured is in {folder.path}"
        print(f"interrupted{where}", file=sys.stderr)
        return INTERRUPTED
    if found.outcome is not Outcome.OK:
        print(f"what was measured without the profiler is in {folder.path}", file=sys.stderr)
        return _failed(found)
    if json:
        show(output.as_json(found, prefix.parent))
    else:
        assert result.samples_per_s is not None
        rate = format_rate(result.samples_per_s)
        show(f"{scenario.id}: {rate} samples/s without the profiler\n\n")
        show(output.as_text(found, prefix.parent))
    print(f"saved: {folder.path}", file=sys.stderr)
    return 0


def _failed(found: Result | Profile) -> int:
    print(f"{found.scenario.id}: {found.outcome}: {found.reason}", file=sys.stderr)
    if found.detail:
        print(found.detail, file=sys.stderr)
    return int(found.outcome is not Outcome.SKIPPED)

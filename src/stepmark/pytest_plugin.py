"""The ``measure`` fixture, and pytest-benchmark made to record what it measured.

pytest-benchmark is recorder, table and file format here, never the clock: it is handed the step
times that a fresh process measured. This module is imported in every pytest run of every project
that has stepmark installed, so it imports nothing beyond pytest until its fixture is used.

Results go to a run folder at once when ``--benchmark-save`` or ``--benchmark-autosave`` is given;
pytest-benchmark's own file, with every result inside, follows at the end of the session.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

    from stepmark.baseline import Baseline
    from stepmark.result import Result
    from stepmark.runner import Runner
    from stepmark.scenario import Plan, Scenario
    from stepmark.store import RunFolder

BARE_SAVE = "stepmark:unnamed"
BENCHMARK_PLUGIN = "pytest_benchmark.plugin"
COMPARE_FAIL = "--benchmark-compare-fail"
SPOILT = "its test failed"  # how the reason begins of a result whose test failed afterwards
SMOKE_S = 0.01  # any budget does: the first step of a window is always run


class Measure(Protocol):
    """What the fixture gives: ``measure(scenario, plan)``, a `Result`."""

    def __call__(self, scenario: Scenario, plan: Plan | None = None, *, repeat: int = 0) -> Result:
        """Measure a scenario once, in a fresh process; at most once in a test."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """``--benchmark-save`` without a name, and where runs go."""
    group = parser.getgroup("stepmark", "stepmark (training-loop benchmarks)")
    group.addoption(
        "--stepmark-results",
        metavar="DIR",
        default="results",
        help="Folder for runs saved by --benchmark-save. Default: results",
    )
    group.addoption(
        "--stepmark-resume",
        metavar="NAME",
        help="Go on with an interrupted run: what it has is taken, the rest is measured into it.",
    )
    pluginmanager.register(_BareSave(parser), "stepmark-bare-save")


class _BareSave:
    """Lets ``pytest bench/ --benchmark-save`` work; pytest-benchmark's parser wants a name."""

    def __init__(self, parser: pytest.Parser) -> None:
        self._parser = parser

    def pytest_plugin_registered(self, plugin: object, manager: pytest.PytestPluginManager) -> None:
        """pytest tells of every plugin, of those that came before too; order is not defined."""
        if getattr(plugin, "__name__", "") == BENCHMARK_PLUGIN:
            self._make_name_optional()

    def _make_name_optional(self) -> None:
        parser: Any = self._parser
        if hasattr(parser, "optparser"):  # pytest 9.1 and later: options are argparse's own
            for action in parser.optparser._actions:
                if "--benchmark-save" in action.option_strings:
                    action.nargs, action.const = "?", BARE_SAVE
                    action.type = _name_parser(action.type)
            return
        for group in [parser._anonymous, *parser._groups]:
            for option in group.options:
                if "--benchmark-save" in option.names():
                    attributes = option._attrs
                    attributes.update(nargs="?", const=BARE_SAVE)
                    attributes["type"] = _name_parser(attributes["type"])


def _name_parser(parse_name: Callable[[str], str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        import argparse

        if text == BARE_SAVE:
            return text
        if os.sep in text or "::" in text:
            raise argparse.ArgumentTypeError(_path_as_name(text))
        return parse_name(text)

    return parse


def _path_as_name(text: str) -> str:
    return (
        f"{text!r} is a path, and was read as the NAME to save under; put paths first, as in "
        f"'pytest {text} --benchmark-save', or write --benchmark-save=NAME"
    )


# How often it was given: pytest-benchmark knows the last one alone.
_NUM_CONDITIONS = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Refuse ``--benchmark-save bench``, which would measure everything but bench, as "bench"."""
    early_config.stash[_NUM_CONDITIONS] = sum(
        argument.partition("=")[0] == COMPARE_FAIL for argument in args
    )
    for option, value in itertools.pairwise(args):
        if option == "--benchmark-save" and value[:1] != "-" and Path(value).exists():
            raise pytest.UsageError(f"argument --benchmark-save: {_path_as_name(value)}")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give an unnamed save its name, and start the record of this session."""
    if not hasattr(config.option, "benchmark_save"):
        return  # pytest-benchmark is switched off; so are we
    if config.option.benchmark_save == BARE_SAVE:
        from stepmark.store import new_name

        config.option.benchmark_save = new_name()
    config.pluginmanager.register(_Session(config), "stepmark-session")


class _Session:
    """Everything measured in one pytest session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results: Path = config.invocation_params.dir / config.option.stepmark_results
        self._runner: Runner | None = None
        self._folder = self._reopen_folder()
        self._not_ok: list[Result] = []
        self._baseline: Baseline | None = None
        self._gaps = ""

    @property
    def smoke(self) -> bool:
        """``--benchmark-disable``: run once to see that it works; nothing is recorded."""
        option = self._config.option
        return bool(option.benchmark_disable and not option.benchmark_enable)

    @property
    def parallel(self) -> bool:
        """pytest-xdist runs tests side by side."""
        return "PYTEST_XDIST_WORKER" in os.environ

    def measure(self, test: str, scenario: Scenario, plan: Plan, repeat: int) -> Result:
        """Measure, or take a resumed run's result; save it at once."""
        baseline = self._open_baseline()
        runner = self._ready_runner()
        baseline.check(test, runner.machine)
        folder = self._open_folder(plan)
        if folder is not None:
            from stepmark import suite

            scenario = scenario.on(runner.machine)
            saved = folder.find(scenario, repeat)
            # What a failed test spoilt is measured again when the test is.
            if saved is not None and not saved.reason.startswith(SPOILT):
                suite.check_resumable(saved, folder, plan, runner)
                return self._keep(saved)
        result = runner.run(scenario, plan, repeat=repeat)
        if folder is not None:
            folder.save(result)
        return self._keep(result)

    def regressions(self, test: str, figures: Any) -> list[str]:
        """How a test is slower than an earlier run allows, in words."""
        return [] if self._baseline is None else self._baseline.regressions(test, figures)

    def spoil(self, result: Result, reason: str) -> None:
        """A result is not good after all: its test failed."""
        import dataclasses

        from stepmark.result import Outcome

        if result.outcome is not Outcome.OK or self.smoke:
            return
        spoilt = dataclasses.replace(
            result, outcome=Outcome.FAILED, reason=f"{SPOILT}: {reason}", ranks=()
        )
        if self._folder is not None:
            self._folder.save(spoilt)
        self._keep(spoilt)

    def _keep(self, result: Result) -> Result:
        if not result.ranks:
            self._not_ok.append(result)
        return result

    def _ready_runner(self) -> Runner:
        if self._runner is None:
            from stepmark.runner import Runner

            self._runner = Runner()
        return self._runner

    def _reopen_folder(self) -> RunFolder | None:
        name = self._config.option.stepmark_resume
        if name is None or self.smoke:
            return None
        from stepmark.errors import StepmarkError
        from stepmark.store import RunFolder

        try:
            return RunFolder.reopen(self._results, name)
        except StepmarkError as error:
            raise pytest.UsageError(f"--stepmark-resume: {error}") from None

    def _open_folder(self, plan: Plan) -> RunFolder | None:
        wanted = self._config.option.benchmark_save or self._config.option.benchmark_autosave
        if self._folder is None and wanted and not self.smoke:
            from datetime import UTC, datetime

            from stepmark.store import RunFolder, RunPlan, free_name

            created_at = datetime.now(UTC).isoformat(timespec="seconds")
            planned = RunPlan(created_at=created_at, plan=plan, scenarios=())
            name = free_name(self._results, wanted)
            self._folder = RunFolder.create(self._results, name, planned)
        return self._folder

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Make the clock before ``benchmark``, whichever of its fixtures a test names first."""
        for item in items:
            names = getattr(item, "fixturenames", [])
            if CLOCK_FIXTURE in names:
                names.remove(CLOCK_FIXTURE)
                names.insert(0, CLOCK_FIXTURE)
                self._find_useless_options()

    def _open_baseline(self) -> Baseline:
        """Now that something is to be measured, see what it will be compared with.

        Raises:
            UsageError: the options would let anything pass.
        """
        if self._baseline is None:
            from stepmark.baseline import Baseline

            baseline = Baseline(self._config)
            baseline.check_options(self._config.stash.get(_NUM_CONDITIONS, 0))
            self._baseline = baseline
        return self._baseline

    def _find_useless_options(self) -> None:
        """Before the first test runs; side by side, where a worker cannot end it all, later."""
        from stepmark.errors import UsageError

        try:
            if not self.parallel:
                self._open_baseline()
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A comparison that compared nothing does not pass."""
        if self._baseline is not None:
            self._gaps = self._baseline.gaps()
        if self._gaps and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.CallInfo[None], None]:
        """What a failed test measured is not saved as good."""
        outcome: Any = yield
        report = outcome.get_result()
        # A test that is expected to fail, and did, is reported as skipped.
        failed = report.failed or (report.skipped and hasattr(report, "wasxfail"))
        if failed and _MEASURED in item.stash:
            result, benchmark = item.stash[_MEASURED]
            del item.stash[_MEASURED]
            benchmark.has_error = True
            crash = getattr(report.longrepr, "reprcrash", None)
            text = report.longreprtext if crash is None else crash.message
            lines = text.removeprefix("Failed: ").strip().splitlines()
            self.spoil(result, lines[0] if lines else "no reason given")

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """What did not run stands in pytest-benchmark's file too, each with its reason."""
        if self._not_ok:
            from stepmark.store import pack

            output_json["stepmark"] = pack(self._not_ok)

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, exitstatus: int
    ) -> None:
        """Say where the run is, and how to go on with it if it was interrupted."""
        if self._gaps:
            terminalreporter.write_line(f"stepmark: {self._gaps}", red=True)
        if self._folder is not None:
            path = Path(os.path.relpath(self._folder.path, self._config.invocation_params.dir))
            line = f"stepmark: run saved in {path}"
            if exitstatus == pytest.ExitCode.INTERRUPTED:
                line += f"; go on with --stepmark-resume {path.name}"
            terminalreporter.write_line(line)

    def pytest_unconfigure(self) -> None:
        """End the measuring processes."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


CLOCK_FIXTURE = "_stepmark_clock"
# What a test measured, and where it was recorded.
_MEASURED = pytest.StashKey["tuple[Result, BenchmarkFixture]"]()


class _RecordedClock:
    """A timer for pytest-benchmark that replays measured step times.

    pytest-benchmark reads its timer before and after each round; every second reading is
    the duration of a step after the first one, which is 0.
    """

    __name__ = "measured_steps"  # what pytest-benchmark calls its timer in a saved file

    def __init__(self) -> None:
        self.is_used = False
        self._readings: list[float] = []

    @property
    def is_read(self) -> bool:
        """All of it was asked for; otherwise another clock was."""
        return not self._readings

    def set(self, step_s: Sequence[float]) -> None:
        """Go through these steps."""
        self._readings = [reading for seconds in reversed(step_s) for reading in (seconds, 0.0)]

    def __call__(self) -> float:
        if not self._readings:
            pytest.fail(
                "benchmark: its times come from measure in this test; time a function of your "
                "own in another test",
                pytrace=False,
            )
        return self._readings.pop()


@pytest.fixture(name=CLOCK_FIXTURE)
def _stepmark_clock(request: pytest.FixtureRequest) -> _RecordedClock:
    """Must come before ``benchmark``, which reads its timer from this marker when it is made."""
    clock = _RecordedClock()
    own = request.node.get_closest_marker("benchmark")
    options = {**({} if own is None else own.kwargs), "timer": clock}
    request.node.add_marker(pytest.mark.benchmark(**options), append=False)
    return clock


@pytest.fixture
def measure(
    request: pytest.FixtureRequest,
    _stepmark_clock: _RecordedClock,
    benchmark: BenchmarkFixture,
) -> Measure:
    """Measure one scenario in a fresh process and record it with pytest-benchmark.

    ``measure(scenario, plan)`` returns the `Result`. A scenario that cannot run here skips the
    test with its reason; one that fails, runs out of memory or time fails it; both are saved.
    """
    session = request.config.pluginmanager.get_plugin("stepmark-session")
    assert isinstance(session, _Session)

    def measure_once(scenario: Scenario, plan: Plan | None = None, *, repeat: int = 0) -> Result:
        from stepmark.errors import StepmarkError

        if _stepmark_clock.is_used:
            pytest.fail(
                "measure: was used in this test already; one test is one result", pytrace=False
            )
        _stepmark_clock.is_used = True
        try:
            return _measure(
                session, request.node, benchmark, _stepmark_clock, scenario, plan, repeat
            )
        except StepmarkError as error:
            message = str(error)
        _leave_out(benchmark)
        pytest.fail(message, pytrace=False)

    return measure_once


def _measure(
    session: _Session,
    test: pytest.Item,
    benchmark: BenchmarkFixture,
    clock: _RecordedClock,
    scenario: Scenario,
    plan: Plan | None,
    repeat: int,
) -> Result:
    from stepmark.errors import UsageError
    from stepmark.result import Outcome
    from stepmark.scenario import Plan
    from stepmark.store import pack

    plan = plan or Plan()
    if plan.repeats != 1:
        raise UsageError(
            f"repeats={plan.repeats}: a test measures one fresh process; parametrize it by "
            "repeat and call measure(scenario, plan, repeat=repeat)"
        )
    if session.smoke:
        plan = Plan(steps=1, warmup=0, max_seconds=SMOKE_S, timeout=plan.timeout)
    elif session.parallel:
        raise UsageError(
            "measure: tests run side by side (pytest-xdist), and measurements would disturb each "
            "other; run without -n, or with --benchmark-disable to see only that they work"
        )
    result = session.measure(benchmark.fullname, scenario, plan, repeat)
    test.stash[_MEASURED] = (result, benchmark)
    if result.outcome is not Outcome.OK:
        _leave_out(benchmark)
    if result.outcome is Outcome.SKIPPED:
        pytest.skip(result.reason)
    if result.outcome is not Outcome.OK:
        pytest.fail(f"{result.outcome}: {result.reason}\n{result.detail}", pytrace=False)
    assert result.slowest is not None
    window = result.slowest.window
    # Where a device cannot mark steps, the window's mean step stands for them all.
    step_s = window.step_s or (window.window_s / window.num_steps,)
    if benchmark.group is None:
        benchmark.group = f"{scenario.workload} on {result.scenario.device}"
    benchmark.extra_info["samples_per_s"] = result.samples_per_s
    benchmark.extra_info["stepmark"] = pack([result])
    clock.set(step_s)
    benchmark.pedantic(lambda: None, rounds=len(step_s))  # type: ignore[no-untyped-call]
    if benchmark.enabled and not clock.is_read:
        benchmark.has_error = True  # keeps what it recorded out of its file
        pytest.fail(
            "measure: was made after benchmark, which thus kept a clock of its own; name measure "
            "first, as an argument of the test",
            pytrace=False,
        )
    if benchmark.enabled:
        regressions = session.regressions(benchmark.fullname, benchmark.stats)
        if regressions:
            pytest.fail(f"slower than the earlier run: {'; '.join(regressions)}", pytrace=False)
    return result


def _leave_out(benchmark: BenchmarkFixture) -> None:
    """Record nothing, with no warning from pytest-benchmark that its fixture was not used."""
    benchmark.disabled = True
    benchmark.pedantic(lambda: None)  # type: ignore[no-untyped-call]

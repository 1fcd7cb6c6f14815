"""Everything measured in one pytest session: where it is kept, and what it is compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stepmark.pytest_plugin.clock import CLOCK_FIXTURE

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_benchmark.fixture import BenchmarkFixture

    from stepmark.pytest_plugin.baseline import Baseline
    from stepmark.result import Result
    from stepmark.runner import Runner
    from stepmark.scenario import Plan, Scenario
    from stepmark.store import RunFolder

SPOILT = "its test failed"  # how the reason begins of a result whose test failed afterwards
# How often --benchmark-compare-fail was given: pytest-benchmark knows the last one alone.
NUM_CONDITIONS = pytest.StashKey[int]()
# What a test measured, and where it was recorded.
MEASURED: pytest.StashKey[tuple[Result, BenchmarkFixture]] = pytest.StashKey()


class Session:
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
        from stepmark import ceilings, suite

        if folder is not None:
            scenario = scenario.on(runner.machine)
            saved = folder.find(scenario, repeat)
            # What a failed test spoilt is measured again when the test is.
            if saved is not None and not saved.reason.startswith(SPOILT):
                suite.check_resumable(saved, folder, plan, runner)
                return self._keep(saved)
        known = ceilings.load(self._results, runner.machine)
        result = ceilings.attach(runner.run(scenario, plan, repeat=repeat), known)
        if folder is not None:
            folder.save(result)
        return self._keep(result)

    def regressions(self, test: str, figures: Any) -> list[str]:
        """How a test is slower than an earlier run allows, in words."""
        return [] if self._baseline is None else self._baseline.regressions(test, figures)

    def skip(self, test: str) -> None:
        """A test cannot measure here."""
        if self._baseline is not None:
            self._baseline.skip(test)

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
            from stepmark.pytest_plugin.baseline import Baseline

            baseline = Baseline(self._config)
            baseline.check_options(self._config.stash.get(NUM_CONDITIONS, 0))
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
        if failed and MEASURED in item.stash:
            result, benchmark = item.stash[MEASURED]
            del item.stash[MEASURED]
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

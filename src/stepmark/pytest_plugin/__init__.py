"""The ``measure`` fixture, and pytest-benchmark made to record what it measured.

pytest-benchmark is recorder, table and file format here, never the clock: it is handed the step
times that a fresh process measured. This module is imported in every pytest run of every project
that has stepmark installed, so it imports nothing beyond pytest until its fixture is used.

Results go to a run folder at once when ``--benchmark-save`` or ``--benchmark-autosave`` is given;
pytest-benchmark's own file, with every result inside, follows at the end of the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from stepmark.pytest_plugin.bare_save import BARE_SAVE, BareSave, refuse_path_as_name
from stepmark.pytest_plugin.clock import CLOCK_FIXTURE, RecordedClock
from stepmark.pytest_plugin.session import MEASURED, NUM_CONDITIONS, Session

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from stepmark.result import Result
    from stepmark.scenario import Plan, Scenario

_COMPARE_FAIL = "--benchmark-compare-fail"
_SMOKE_S = 0.01  # any budget does: the first step of a window is always run


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
    pluginmanager.register(BareSave(parser), "stepmark-bare-save")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Look at the options as they were typed, before they are parsed."""
    early_config.stash[NUM_CONDITIONS] = sum(
        argument.partition("=")[0] == _COMPARE_FAIL for argument in args
    )
    refuse_path_as_name(args)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give an unnamed save its name, and start the record of this session."""
    if not hasattr(config.option, "benchmark_save"):
        return  # pytest-benchmark is switched off; so are we
    if config.option.benchmark_save == BARE_SAVE:
        from stepmark.store import new_name

        config.option.benchmark_save = new_name()
    config.pluginmanager.register(Session(config), "stepmark-session")


@pytest.fixture(name=CLOCK_FIXTURE)
def _stepmark_clock(request: pytest.FixtureRequest) -> RecordedClock:
    """Must come before ``benchmark``, which reads its timer from this marker when it is made."""
    clock = RecordedClock()
    own = request.node.get_closest_marker("benchmark")
    options = {**({} if own is None else own.kwargs), "timer": clock}
    request.node.add_marker(pytest.mark.benchmark(**options), append=False)
    return clock


@pytest.fixture
def measure(
    request: pytest.FixtureRequest,
    _stepmark_clock: RecordedClock,
    benchmark: BenchmarkFixture,
) -> Measure:
    """Measure one scenario in a fresh process and record it with pytest-benchmark.

    ``measure(scenario, plan)`` returns the `Result`. A scenario that cannot run here skips the
    test with its reason; one that fails, runs out of memory or time fails it; both are saved.
    """
    session = request.config.pluginmanager.get_plugin("stepmark-session")
    assert isinstance(session, Session)

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
    session: Session,
    test: pytest.Item,
    benchmark: BenchmarkFixture,
    clock: RecordedClock,
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
        plan = Plan(steps=1, warmup=0, max_seconds=_SMOKE_S, timeout=plan.timeout)
    elif session.parallel:
        raise UsageError(
            "measure: tests run side by side (pytest-xdist), and measurements would disturb each "
            "other; run without -n, or with --benchmark-disable to see only that they work"
        )
    result = session.measure(benchmark.fullname, scenario, plan, repeat)
    test.stash[MEASURED] = (result, benchmark)
    if result.outcome is not Outcome.OK:
        _leave_out(benchmark)
    if result.outcome is Outcome.SKIPPED:
        session.skip(benchmark.fullname)
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

"""The pytest route, in test suites of their own as other people have them."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import python

from stepmark import store

pytest_plugins = "pytester"


@pytest.fixture(autouse=True)
def _not_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs are no part of the outer one, which may be side by side."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


# Scenarios of every ending, and every way to use the fixture rightly and wrongly.
SUITE = """
import pytest
from stepmark import Plan, Scenario, matrix

PLAN = Plan(steps=7, max_seconds=0.5)
TOY = Scenario(workload="mlp-toy", device="cpu", batch_size=2)


@pytest.mark.parametrize("scenario", matrix(workload="mlp-toy", device="cpu", batch_size=[1, 3]),
                         ids=lambda scenario: scenario.id)
def test_measured(measure, scenario):
    assert measure(scenario, PLAN).samples_per_s > 0


def test_skipped(measure):
    measure(Scenario(workload="mlp-toy", device="cuda", world_size=1000), PLAN)


def test_failing(measure):
    measure(Scenario(workload="broken.py:build", device="cpu"), PLAN)


def test_unknown(measure):
    measure(Scenario(workload="mlp-toi", device="cpu"), PLAN)


def test_twice(measure):
    measure(TOY, PLAN, repeat=1)
    measure(TOY, PLAN, repeat=2)


def test_repeats(measure):
    measure(TOY, Plan(repeats=2))


def test_benchmark_named_first(benchmark, measure):
    measure(TOY, PLAN, repeat=3)


@pytest.mark.benchmark(group="mine", min_rounds=3)
def test_marked(benchmark, measure):
    benchmark.extra_info["ticket"] = 7
    measure(TOY, PLAN, repeat=4)


def test_too_late(benchmark, request):
    request.getfixturevalue("measure")(TOY, PLAN, repeat=5)


def test_own_function_before(measure, benchmark):
    benchmark(len, "abc")


def test_own_function_after(measure, benchmark):
    measure(TOY, PLAN, repeat=6)
    benchmark(len, "abc")


def test_own_function_alone(benchmark):
    assert benchmark.pedantic(len, ("abc",), rounds=2) == 3
"""
OUTCOMES = {
    "test_measured[mlp-toy-cpu-bs1]": "passed",
    "test_measured[mlp-toy-cpu-bs3]": "passed",
    "test_skipped": "skipped",
    "test_failing": "failed",
    "test_unknown": "failed",
    "test_twice": "failed",
    "test_repeats": "failed",
    "test_benchmark_named_first": "passed",
    "test_marked": "passed",
    "test_too_late": "failed",
    "test_own_function_before": "failed",
    "test_own_function_after": "failed",
    "test_own_function_alone": "passed",
}
BROKEN = "def build():\n    raise RuntimeError('no weights')\n"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that has stepmark installed, and no configuration for it."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "broken.py").write_text(BROKEN)
    return folder


@pytest.fixture(scope="module")
def saved(suite: Path) -> subprocess.CompletedProcess[str]:
    """The suite, measured and saved as ``base`` with raw data."""
    return python(
        *("-m", "pytest", "--benchmark-save", "base", "--benchmark-save-data", "-v"),
        cwd=suite,
    )


@pytest.fixture(scope="module")
def file(suite: Path, saved: subprocess.CompletedProcess[str]) -> Path:
    """pytest-benchmark's file of that run."""
    (file,) = suite.glob(".benchmarks/*/0001_base.json")
    return file


@pytest.fixture(scope="module")
def benches(file: Path) -> dict[str, Any]:
    """Its benchmarks by name."""
    return {bench["name"]: bench for bench in json.loads(file.read_text())["benchmarks"]}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_test_ends_as_its_scenario_does(
    saved: subprocess.CompletedProcess[str], name: str
) -> None:
    pattern = rf"^test_suite.py::{re.escape(name)} {OUTCOMES[name].upper()}"
    assert re.search(pattern, saved.stdout, re.MULTILINE), saved.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_failing", "failed: broken.py:build raised RuntimeError: no weights"),
        ("test_unknown", "'mlp-toi': no such built-in workload (did you mean 'mlp-toy'?)"),
        ("test_twice", "measure: was used in this test already; one test is one result"),
        ("test_repeats", "repeats=2: a test measures one fresh process; parametrize it by repeat"),
        ("test_too_late", "measure: was made after benchmark, which thus kept a clock of its own"),
        ("test_own_function_before", "benchmark: its times come from measure in this test"),
        ("test_own_function_after", "Fixture can only be used once"),
    ],
)
def test_a_test_that_fails_says_why(
    saved: subprocess.CompletedProcess[str], name: str, reason: str
) -> None:
    _, _, report = saved.stdout.partition(f"_ {name} _")
    assert reason in report.partition("\n____")[0]
    assert "INTERNALERROR" not in saved.stdout


def test_pytest_benchmark_has_nothing_to_complain_of(
    saved: subprocess.CompletedProcess[str],
) -> None:
    assert "PytestBenchmarkWarning" not in saved.stdout


def test_a_skip_shows_its_reason(suite: Path, saved: subprocess.CompletedProcess[str]) -> None:
    assert "no cuda device" in saved.stdout or "1000 ranks need 1000 cuda devices" in saved.stdout


def test_the_saved_file_has_every_measured_step_as_its_data(benches: dict[str, Any]) -> None:
    for name in ("test_measured[mlp-toy-cpu-bs1]", "test_benchmark_named_first", "test_marked"):
        bench = benches[name]
        (result,) = store.unpack(bench["extra_info"]["stepmark"], Path(name))
        assert bench["stats"]["data"] == list(result.ranks[0].window.step_s)
        assert bench["stats"]["rounds"] == 7
        assert bench["extra_info"]["samples_per_s"] == result.samples_per_s
        assert bench["options"]["timer"] == "measured_steps"


def test_only_what_was_measured_is_recorded(benches: dict[str, Any]) -> None:
    assert set(benches) == {name for name, outcome in OUTCOMES.items() if outcome == "passed"}


def test_a_tests_own_group_and_extra_info_are_kept(benches: dict[str, Any]) -> None:
    assert benches["test_marked"]["group"] == "mine"
    assert benches["test_marked"]["extra_info"]["ticket"] == 7
    assert benches["test_marked"]["options"]["min_rounds"] == 3
    assert benches["test_benchmark_named_first"]["group"] == "mlp-toy on cpu"


def test_the_file_is_a_run_with_skipped_and_failed_ones_in_it(suite: Path, file: Path) -> None:
    from_file = store.open_run(str(file), suite)
    outcomes = {result.scenario.workload: result.outcome for result in from_file.results}
    assert outcomes["broken.py:build"] == "failed"
    assert "skipped" in {result.outcome for result in from_file.results}
    in_folder = store.open_run("base", suite / "results").results
    assert all(result in in_folder for result in from_file.results)
    assert len(from_file.results) == len(in_folder)
    reasons = [result.reason for result in in_folder if result.outcome == "failed"]
    assert any(reason.startswith("its test failed: measure: was used") for reason in reasons)


def test_the_summary_says_where_the_run_is(saved: subprocess.CompletedProcess[str]) -> None:
    assert "stepmark: run saved in results/base\n" in saved.stdout


def test_a_taken_name_is_numbered_and_a_first_failure_ends_the_run(
    suite: Path, saved: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(suite, tmp_path / "copy"))
    before = sorted((copy / "results" / "base").iterdir())
    done = python(
        *("-m", "pytest", "-x", "-k", "measured or failing or marked", "--benchmark-save=base"),
        cwd=copy,
    )
    assert "1 failed, 2 passed" in done.stdout
    assert sorted((copy / "results" / "base").iterdir()) == before
    run = store.open_run("base-2", copy / "results")
    assert [result.outcome for result in run.results] == ["ok", "ok", "failed"]
    (file,) = copy.glob(".benchmarks/*/0002_base.json")
    assert len(json.loads(file.read_text())["benchmarks"]) == 2


def test_a_run_is_resumed_with_what_it_lacks(
    suite: Path, saved: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(suite, tmp_path / "copy"))
    lost = copy / "results" / "base" / "mlp-toy-cpu-bs1.r0.json"
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in lost.parent.iterdir()}
    (copy / "test_plan.py").write_text(
        "from stepmark import Plan, Scenario\n"
        "def test_other_plan(measure):\n"
        "    scenario = Scenario(workload='mlp-toy', device='cpu', batch_size=3)\n"
        "    measure(scenario, Plan(steps=8))\n"
    )
    (copy / "test_stop.py").write_text("def test_stop(): raise KeyboardInterrupt\n")
    done = python(
        *("-m", "pytest", "test_plan.py", "test_suite.py", "test_stop.py"),
        *("-k", "measured or skipped or failing or plan or stop", "--stepmark-resume", "base"),
        cwd=copy,
    )
    assert "2 failed, 2 passed, 1 skipped" in done.stdout
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "run saved in results/base; go on with --stepmark-resume base\n" in done.stdout
    assert "results/base: has mlp-toy-cpu-bs3 measured with another plan" in done.stdout
    assert "failed: broken.py:build raised RuntimeError: no weights" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in lost.parent.iterdir()}
    assert after.keys() - before.keys() == {lost}
    assert {path: after[path] for path in before} == before


def test_a_smoke_run_records_nothing(pytester: pytest.Pytester) -> None:
    write_suite(pytester)
    words = ("-k", "measured or skipped or failing", "--benchmark-save=base")
    done = pytester.runpytest_subprocess("--benchmark-disable", *words)
    done.assert_outcomes(passed=2, skipped=1, failed=1)
    assert not (pytester.path / "results").exists()
    assert not list(pytester.path.glob(".benchmarks/*/*"))


def write_suite(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite=SUITE, broken=BROKEN)


def test_measuring_side_by_side_is_refused(pytester: pytest.Pytester) -> None:
    write_suite(pytester)
    done = pytester.runpytest_subprocess("-n", "2", "-k", "measured or repeats")
    done.assert_outcomes(failed=3)
    done.stdout.fnmatch_lines(
        ["measure: tests run side by side (pytest-xdist), and measurements would disturb each *"]
    )


def test_a_smoke_run_may_go_side_by_side(pytester: pytest.Pytester) -> None:
    write_suite(pytester)
    done = pytester.runpytest_subprocess("-n", "2", "-k", "measured", "--benchmark-disable")
    done.assert_outcomes(passed=2)


PLAIN = """
import sys

def test_plain(benchmark):
    benchmark.pedantic(len, ("abc",), rounds=2)
"""


@pytest.mark.parametrize(
    "plugins",
    [
        None,
        ["stepmark", "benchmark"],
        ["benchmark", "stepmark"],
        ["stepmark.pytest_plugin", "pytest_benchmark.plugin"],
        ["pytest_benchmark.plugin", "stepmark.pytest_plugin"],
    ],
    ids=str,
)
def test_saving_needs_no_name_in_whatever_order_plugins_come(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, plugins: list[str] | None
) -> None:
    pytester.makepyfile(PLAIN)
    words: list[str] = []
    if plugins is not None:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        words = [word for plugin in plugins for word in ("-p", plugin)]
    done = pytester.runpytest_subprocess(*words, "--benchmark-save", "-q")
    done.assert_outcomes(passed=1)
    (file,) = pytester.path.glob(".benchmarks/*/*.json")
    assert re.fullmatch(r"0001_\d{8}_\d{6}_\d{3}\.json", file.name)


def test_the_documented_command_saves_everything_under_the_time(pytester: pytest.Pytester) -> None:
    bench = pytester.mkdir("bench")
    (bench / "test_loop.py").write_text(SUITE.partition("def test_skipped")[0])
    done = pytester.runpytest_subprocess("bench/", "--benchmark-save")
    done.assert_outcomes(passed=2)
    (file,) = pytester.path.glob(".benchmarks/*/*.json")
    (run,) = (pytester.path / "results").iterdir()
    assert file.stem == f"0001_{run.name}"


def test_a_name_that_is_a_folder_too_is_taken_where_it_is_spelt_out(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(PLAIN)
    pytester.mkdir("main")
    pytester.runpytest_subprocess("--benchmark-save=main").assert_outcomes(passed=1)
    assert list(pytester.path.glob(".benchmarks/*/0001_main.json"))


def test_a_run_that_does_not_measure_loads_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_loaded():
            heavy = {"torch", "pandas", "numpy", "stepmark.runner", "stepmark.store"}
            assert "stepmark.pytest_plugin" in sys.modules
            assert not heavy & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_without_pytest_benchmark_other_tests_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_plain(): ...\ndef test_measured(measure): ...\n")
    done = pytester.runpytest_subprocess("-p", "no:benchmark")
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*fixture 'benchmark' not found*"])


def test_other_peoples_fixture_of_the_same_name_is_theirs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def measure():
            return 3

        def test_own(measure, benchmark):
            assert benchmark.pedantic(lambda: measure, rounds=2) == 3
        """
    )
    done = pytester.runpytest_subprocess("--benchmark-save=own", "--benchmark-save-data")
    done.assert_outcomes(passed=1)
    (file,) = pytester.path.glob(".benchmarks/*/*.json")
    (bench,) = json.loads(file.read_text())["benchmarks"]
    assert "perf_counter" in bench["options"]["timer"]


def test_a_fixture_may_be_built_on_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from stepmark import Plan, Scenario

        @pytest.fixture
        def measure(measure, benchmark):
            return lambda size: measure(
                Scenario(workload="mlp-toy", device="cpu", batch_size=size), Plan(steps=4)
            )

        def test_own(measure):
            measure(1)
        """
    )
    done = pytester.runpytest_subprocess("--benchmark-json=own.json")
    done.assert_outcomes(passed=1)
    (result,) = store.open_run("own.json", pytester.path).results
    (bench,) = json.loads((pytester.path / "own.json").read_text())["benchmarks"]
    assert bench["stats"]["data"] == list(result.ranks[0].window.step_s)

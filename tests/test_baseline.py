"""pytest-benchmark's comparison, which must not pass where nothing was compared."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from commands import python

from stepmark.result import Outcome
from stepmark.store import open_run

WORKLOAD = """
import os, time
import torch
from stepmark import Workload

def build():
    def compute_loss(model, batch):
        time.sleep(float(os.environ.get("SLEEP_S", "0.002")))
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    data = torch.utils.data.TensorDataset(torch.ones(64, 4), torch.zeros(64, dtype=torch.long))
    return Workload(
        model=torch.nn.Linear(4, 2),
        dataset=data,
        compute_loss=compute_loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
"""

SUITE = """
import os
import pytest
from stepmark import Plan, Scenario

def test_step(measure):
    if "SKIP" in os.environ:
        pytest.skip("the test says so")
    scenario = Scenario(workload="train.py:build", device="cpu", batch_size=2, threads=1)
    result = measure(scenario, Plan(steps=5, max_seconds=0.5))
    assert "FAIL" not in os.environ, "the test says no"
"""

PLAIN = """
def test_plain(benchmark):
    benchmark(len, "abc")
"""

COMPARE = "--benchmark-compare"
FAIL = "--benchmark-compare-fail=min:50%"
# Far more than a step takes while other tests keep the machine busy.
SLOW_S = "0.2"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one saved run."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "train.py").write_text(WORKLOAD)
    (folder / "test_suite.py").write_text(SUITE)
    done = run_pytest(folder, "--benchmark-save", "base")
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def suite(measured: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(measured, tmp_path / "suite"))


def run_pytest(folder: Path, *words: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "pytest", "-p", "no:cacheprovider", *words, cwd=folder, **variables)


def base_file(suite: Path) -> Path:
    (file,) = suite.glob(".benchmarks/*/0001_base.json")
    return file


def test_what_is_no_slower_passes(suite: Path) -> None:
    run_pytest(suite, "--benchmark-save", "slow", SLEEP_S=SLOW_S)
    done = run_pytest(suite, f"{COMPARE}=0002", FAIL)
    assert done.returncode == 0, done.stdout


def test_a_regression_fails_its_test_and_is_no_baseline(suite: Path) -> None:
    junit = suite / "junit.xml"
    words = (COMPARE, FAIL, "--benchmark-save", "slow", f"--junit-xml={junit}")
    done = run_pytest(suite, *words, SLEEP_S=SLOW_S)
    assert done.returncode != 0
    assert "slower than the earlier run: Field 'min'" in done.stdout
    cases = ElementTree.parse(junit).getroot().iter("testcase")
    assert [[child.tag for child in case] for case in cases] == [["failure"]]
    (result,) = open_run("slow", suite / "results").results
    assert result.outcome is Outcome.FAILED
    assert result.reason.startswith("its test failed: slower")
    # pytest-benchmark's own bare comparison takes the latest file, which has no good result.
    again = run_pytest(suite, COMPARE, FAIL, SLEEP_S=SLOW_S)
    assert again.returncode != 0
    assert "none of these tests is in the earlier run" in again.stdout


def test_what_a_failed_test_measured_is_not_saved_as_good(suite: Path) -> None:
    done = run_pytest(suite, "--benchmark-save", "bad", FAIL="1")
    assert done.returncode == 1
    (file,) = suite.glob(".benchmarks/*/0002_bad.json")
    data = json.loads(file.read_text())
    assert data["benchmarks"] == []
    for run in (open_run("bad", suite / "results"), open_run(str(file), suite)):
        (result,) = run.results
        assert result.outcome is Outcome.FAILED
        assert "the test says no" in result.reason
        assert result.ranks == ()


def test_a_run_of_another_machine_is_refused(suite: Path) -> None:
    file = base_file(suite)
    data = json.loads(file.read_text())
    machine = data["benchmarks"][0]["extra_info"]["stepmark"]["results"][0]["machine"]
    machine["hardware"]["cpu"] = "Another CPU"
    file.write_text(json.dumps(data))
    done = run_pytest(suite, COMPARE, FAIL)
    assert done.returncode == 1
    assert "was measured on other hardware (cpu: Another CPU then, " in done.stdout


def test_a_run_of_another_host_is_refused(suite: Path) -> None:
    file = base_file(suite)
    data = json.loads(file.read_text())
    machine = data["benchmarks"][0]["extra_info"]["stepmark"]["results"][0]["machine"]
    machine["host"] = "elsewhere"
    file.write_text(json.dumps(data))
    done = run_pytest(suite, COMPARE, FAIL)
    assert done.returncode == 1
    assert "was measured on other hosts (host: elsewhere then, " in done.stdout


@pytest.mark.parametrize("also", ["def", "@pytest.mark.xfail\ndef"], ids=["fails", "xfails"])
def test_what_a_failed_test_measured_is_measured_again_when_resumed(suite: Path, also: str) -> None:
    text = "import pytest\n" + SUITE.replace("def", also)
    (suite / "test_suite.py").write_text(text)
    run_pytest(suite, "--benchmark-save", "bad", FAIL="1")
    (result,) = open_run("bad", suite / "results").results
    assert result.outcome is Outcome.FAILED, "an expected failure is one, too"
    run_pytest(suite, "--stepmark-resume", "bad")
    (result,) = open_run("bad", suite / "results").results
    assert result.outcome is Outcome.OK


def test_where_all_is_skipped_nothing_was_compared(suite: Path) -> None:
    (suite / "test_suite.py").write_text(
        SUITE.replace('device="cpu"', 'device="mps", world_size=9')
    )
    done = run_pytest(suite, COMPARE, FAIL)
    assert done.returncode == 1
    assert "in the earlier run, and skipped now: test_suite.py::test_step" in done.stdout


def test_where_no_test_is_left_nothing_was_compared(suite: Path) -> None:
    done = run_pytest(suite, COMPARE, FAIL, SKIP="1")
    assert done.returncode == 1
    assert "no test measured anything: nothing was compared" in done.stdout


LATE = """
from stepmark import Plan, Scenario

def test_late(request):
    measure = request.getfixturevalue("measure")
    measure(Scenario(workload="train.py:build", device="cpu", batch_size=2), Plan(steps=5))
    assert False, "no"
"""


def test_a_fixture_asked_for_late_is_guarded_too(suite: Path) -> None:
    (suite / "test_suite.py").write_text(LATE)
    done = run_pytest(suite, FAIL)
    assert done.returncode == 1
    assert "say what to compare with" in done.stdout
    assert "INTERNALERROR" not in done.stdout
    done = run_pytest(suite, "--benchmark-save", "late")
    assert "INTERNALERROR" not in done.stdout
    (result,) = open_run("late", suite / "results").results
    assert result.outcome is Outcome.FAILED


def test_tests_that_the_earlier_run_lacks_do_not_pass(suite: Path) -> None:
    (suite / "test_suite.py").write_text(SUITE + SUITE.replace("test_step", "test_new"))
    done = run_pytest(suite, COMPARE, FAIL)
    assert done.returncode == 1
    assert "not in the earlier run, and so not compared: test_suite.py::test_new" in done.stdout
    (suite / "test_suite.py").write_text(SUITE.replace("test_step", "test_new"))
    done = run_pytest(suite, COMPARE, FAIL)
    assert done.returncode == 1
    assert "none of these tests is in the earlier run: nothing was compared" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((FAIL,), "say what to compare with"),
        ((COMPARE, FAIL, "--benchmark-compare-fail=mean:5%"), "was given 2 times"),
        ((COMPARE, FAIL, "--benchmark-disable"), "nothing would be measured"),
        ((COMPARE, FAIL, "--benchmark-skip"), "nothing would be measured"),
        ((f"{COMPARE}=0009", FAIL), "no saved run was found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_would_pass_anything_are_refused(
    suite: Path, words: tuple[str, ...], message: str
) -> None:
    done = run_pytest(suite, *words)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert message in done.stderr + done.stdout
    assert "INTERNALERROR" not in done.stdout + done.stderr


def test_side_by_side_nothing_is_compared_and_nothing_passes(suite: Path) -> None:
    for words in ((), ("--benchmark-disable",)):
        done = run_pytest(suite, "-n", "2", COMPARE, FAIL, *words)
        assert done.returncode != 0


def test_suites_without_measure_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text(PLAIN)
    assert run_pytest(tmp_path, "--benchmark-save", "base").returncode == 0
    wide = "--benchmark-compare-fail=min:100000%"
    done = run_pytest(tmp_path, COMPARE, wide, wide)
    assert done.returncode == 0, done.stdout

"""The worked examples, measured through the command line as their pages say."""

import difflib
import importlib.util
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import python, stepmark

from stepmark import Scenario, Workload
from stepmark.choices import Task
from stepmark.loading import make_loader
from stepmark.record import RankRecord
from stepmark.result import Outcome, Result
from stepmark.store import open_run

REPOSITORY = Path(__file__).parent.parent
EXAMPLES = REPOSITORY / "examples"
PLAIN = "examples/plain_script/after.py:workload"
TORCHVISION = "examples/torchvision_model.py:build"
TIMM = "examples/timm_model.py:build"
TRANSFORMER = "examples/hf_transformer.py:build"
WORKLOADS = (PLAIN, TORCHVISION, TIMM, TRANSFORMER)
# What an example needs beyond stepmark's own dependencies: the extra "examples".
NEEDS = {TIMM: "timm", TRANSFORMER: "transformers"}
SMALL = {TIMM: "?size=32", TORCHVISION: "?size=32"}
BRIEF = ("--steps", 3, "--batch-size", 8, "--device", "cpu")
LEARNING_STEPS = 30  # from here on a single batch's loss is safely below the first one's


Measured = dict[tuple[str, Task], Result]


def is_there(workload: str) -> bool:
    return workload not in NEEDS or importlib.util.find_spec(NEEDS[workload]) is not None


def required(workload: str) -> str:
    """The workload with small options; skips the test where it cannot be imported."""
    if not is_there(workload):
        pytest.skip(f"{NEEDS[workload]} is not installed: pip install '.[examples]'")
    return workload + SMALL.get(workload, "")


def measured(results: Path, workloads: list[str], *options: Any) -> Measured:
    """One run of several workloads, by workload without its options and by task."""
    named = [word for workload in workloads for word in ("--workload", workload)]
    done = stepmark(
        *("run", *named, *BRIEF, *options, "--results", results, "--save", "run"), cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scenarios = {result.scenario: result for result in open_run("run", results).results}
    return {(s.workload.partition("?")[0], s.task): result for s, result in scenarios.items()}


@pytest.fixture(scope="module")
def plainly(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Every example that can be imported here, trained and evaluated on one thread."""
    return measured(
        tmp_path_factory.mktemp("results"),
        [workload + SMALL.get(workload, "") for workload in WORKLOADS if is_there(workload)],
        *("--threads", 1, "--task", "train,evaluate", "--warmup", LEARNING_STEPS),
    )


def rank_of(result: Result) -> RankRecord:
    assert result.outcome is Outcome.OK, result.reason
    return result.ranks[0]


def test_the_page_lists_every_example() -> None:
    rows = re.findall(
        r"^\| \[`([\w./]+)`\]\(([\w./]+)\)", (EXAMPLES / "README.md").read_text(), re.M
    )
    listed = {name.rstrip("/") for name, _ in rows}
    ignored = {"README.md", "__pycache__", "results", "reports"}
    assert listed == {path.name for path in EXAMPLES.iterdir()} - ignored
    for _, link in rows:
        assert (EXAMPLES / link).exists(), link


@pytest.mark.parametrize("workload", [TORCHVISION, TIMM, TRANSFORMER])
def test_it_is_measured_and_learns(workload: str, plainly: Measured) -> None:
    required(workload)
    rank = rank_of(plainly[workload, Task.TRAIN])
    assert rank.window.num_steps == 3
    assert rank.first_loss is not None
    assert rank.final_loss is not None
    assert rank.final_loss < rank.first_loss
    assert rank.data.endswith("(generated)")


@pytest.mark.parametrize("workload", WORKLOADS)
def test_it_is_evaluated(workload: str, plainly: Measured) -> None:
    required(workload)
    final_loss = rank_of(plainly[workload, Task.EVALUATE]).final_loss
    assert final_loss is not None
    assert 0 < final_loss < 3, "that of a model that knows nothing"


@pytest.mark.parametrize("workload", WORKLOADS)
def test_its_operations_and_bytes_are_counted(workload: str, plainly: Measured) -> None:
    """With parameter groups made from the model, masks, and a loss of the model's own."""
    required(workload)
    rank = rank_of(plainly[workload, Task.TRAIN])
    values = {reading.name: reading.value for reading in rank.readings}
    for name in ("flops_per_step", "least_bytes_per_step"):
        value = values[name]
        assert value is not None
        assert value > 0


def test_two_ranks_with_loader_workers_in_bf16(tmp_path: Path) -> None:
    """Of models with buffers and a drop path, and batches that are padded dictionaries."""
    workloads = [required(TIMM), required(TRANSFORMER)]
    found = measured(
        tmp_path,
        workloads,
        *("--world-size", 2, "--num-workers", 1, "--precision", "bf16"),
        *("--warmup", 1, "--max-seconds", 0.5),
    )
    assert len(found) == 2
    for result in found.values():
        assert result.outcome is Outcome.OK, result.reason
        first_losses = [rank.first_loss for rank in result.ranks]
        assert None not in first_losses
        assert len(set(first_losses)) == 2, "each rank has samples of its own"


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
class TestPlainScript:
    def test_about_ten_lines_are_added_and_none_is_changed(self) -> None:
        before, after = (
            (EXAMPLES / "plain_script" / name).read_text().splitlines()
            for name in ("before.py", "after.py")
        )
        changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
        assert not [line for line in changes if line[0] == "-"]
        assert len([line for line in changes if line[2:].strip()]) <= 10

    def test_both_still_train_and_print_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        printed = []
        for name in ("before.py", "after.py"):
            runpy.run_path(str(EXAMPLES / "plain_script" / name), run_name="__main__")
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1]
        losses = [float(line.split()[-1]) for line in printed[0].splitlines()]
        assert len(losses) == 3
        assert losses[-1] < losses[0]

    def test_what_is_measured_is_the_scripts_own_training(self, plainly: Measured) -> None:
        """From the same seed and batches its loop comes to the same losses, first and last."""
        result = plainly[PLAIN, Task.TRAIN]
        rank = rank_of(result)
        # The first step, warm-up, and the step that leads in to the window.
        num_steps = 1 + rank.warmup.num_steps + 1 + rank.window.num_steps
        assert self._loss(result.scenario, 1) == pytest.approx(rank.first_loss)
        found = self._loss(result.scenario, num_steps)
        assert found == pytest.approx(rank.final_loss, rel=1e-3)

    def _loss(self, scenario: Scenario, num_steps: int) -> float:
        script = runpy.run_path(str(EXAMPLES / "plain_script" / "after.py"))
        torch.manual_seed(0)
        workload: Workload = script["workload"]()
        model = workload.model
        optimizer = workload.optimizer(model.parameters())
        batches = make_loader(workload, scenario, 0, num_batches=num_steps)
        return float(script["train_epoch"](batches, model, workload.loss_fn, optimizer))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, somewhere else on disk."""
    folder = tmp_path_factory.mktemp("elsewhere") / "repository"
    shutil.copytree(EXAMPLES / "user_repository", folder)
    return folder


@pytest.fixture(scope="module")
def saved(repository: Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "pytest", "bench/", "--benchmark-save", "first", cwd=repository)


class TestUserRepository:
    def test_its_suite_is_measured_and_saved(
        self, repository: Path, saved: subprocess.CompletedProcess[str]
    ) -> None:
        assert saved.returncode == 0, saved.stdout
        results = open_run("first", repository / "results").results
        assert [result.outcome for result in results] == [Outcome.OK] * 2
        assert {result.scenario.batch_size for result in results} == {64, 256}
        assert len(list(repository.glob(".benchmarks/*/*_first.json"))) == 1

    @pytest.mark.usefixtures("saved")
    def test_it_is_reported(self, repository: Path) -> None:
        done = stepmark("report", cwd=repository)
        assert done.returncode == 0, done.stderr
        assert "bench/workload.py:build" in (repository / "reports/index.html").read_text()

    def test_its_suite_can_be_tried_without_measuring(self, repository: Path) -> None:
        done = python("-m", "pytest", "bench/", "--benchmark-disable", "-q", cwd=repository)
        assert done.returncode == 0, done.stdout
        assert "2 passed" in done.stdout

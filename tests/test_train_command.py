"""``stepmark train`` as users run it: real processes, from the first epoch to the report."""

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import learned_workload
import psutil
import pytest
import torch
from commands import STEPMARK, environment, stepmark
from factories import make_result, make_run, make_training, save_run

from stepmark import Plan, store
from stepmark.report import page
from stepmark.result import Outcome
from stepmark.runner.processes import is_alive
from stepmark.training import EndOfTraining, TrainPlan

LINE = r"Epoch: {:4d} \| train_loss=\d+\.\d{{4}}, train_accuracy=\d\.\d{{4}}, "
LINE += r"valid_loss=\d+\.\d{{4}}, valid_accuracy=\d\.\d{{4}}"

# Deterministic, large enough for two ranks, and slow enough to be interrupted.
MINE = """
import time
from pathlib import Path
import torch
from learned_workload import Clouds, build as made
from stepmark import Workload


class Slow(Clouds):
    def __getitem__(self, index):
        time.sleep(0.01)
        return super().__getitem__(index)


def build():
    return made()


def slow():
    workload = made()
    return Workload(
        model=workload.model, dataset=Slow(40, 0.0, seed=1), loss_fn=workload.loss_fn,
        optimizer=workload.optimizer,
    )


def breaks():
    workload = made()
    hits = []

    def loss(outputs, targets):
        hits.append(1)
        if len(hits) > 20:
            raise RuntimeError("no more")
        return torch.nn.functional.cross_entropy(outputs, targets)

    return Workload(
        model=workload.model, dataset=workload.dataset, loss_fn=loss, optimizer=workload.optimizer
    )


class Kept:
    pass


class Odd(torch.optim.SGD):
    def state_dict(self):
        return super().state_dict() | {"kept": Kept()}


def odd():
    workload = made()
    return Workload(
        model=workload.model, dataset=workload.dataset, loss_fn=workload.loss_fn,
        optimizer=lambda parameters: Odd(parameters, lr=0.1),
    )


def normed():
    return made(noise=0.3)


def growing():
    return made(length=48 if Path("grown").exists() else 40)


def full():
    def save(*_):
        raise OSError(28, "No space left on device")

    if Path("full").exists():
        torch.save = save
    return made()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    shutil.copy(Path(__file__).with_name("learned_workload.py"), folder)
    (folder / "mine.py").write_text(MINE)
    return folder


@pytest.fixture(scope="module")
def toy(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Article B's network for three epochs, saved as ``toy``."""
    words = ["train", "--workload", "mlp-toy", "--epochs", 3, "--device", "cpu", "--save", "toy"]
    return stepmark(*words, "--json", "--optimizer", "sgd", "--lr", 0.5, cwd=folder)


def test_the_output_is_one_json_object_with_an_entry_for_each_epoch(
    toy: "subprocess.CompletedProcess[str]",
) -> None:
    assert toy.returncode == 0, toy.stderr
    data = json.loads(toy.stdout)
    assert [epoch["epoch"] for epoch in data["epochs"]] == [1, 2, 3]
    last = data["epochs"][-1]
    assert last["train_accuracy"] == last["valid_accuracy"] == 1.0
    for epoch in data["epochs"]:
        assert epoch["train_loss"] > 0
        assert epoch["valid_loss"] > 0
        assert epoch["learning_rate"] == 0.5
        assert epoch["samples_per_s"] == pytest.approx(5 / epoch["train_s"])
        assert epoch["valid_s"] > 0
        assert epoch["checkpoint_s"] > 0
        assert epoch["checkpoint_bytes"] > 0
        phases = dict(epoch["phases"])
        step_s = phases.pop("step_s")
        assert sum(phases.values()) == pytest.approx(step_s)
    assert (data["ended_by"], data["outcome"]) == ("epochs", "ok")
    for number in (1, 2, 3):
        assert re.search(LINE.format(number), toy.stderr)


def test_the_run_holds_the_training_its_history_and_its_checkpoints(
    toy: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    run = store.open_run("toy", folder / "results")
    (training,) = run.trainings
    assert not run.results
    assert not run.by_pytest
    assert len(training.epochs) == 3
    assert training.ended_by is EndOfTraining.EPOCHS
    trainings = folder / "results" / "toy" / "trainings"
    with next(trainings.glob("*.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [e.train_loss for e in training.epochs]
    assert {"valid_accuracy", "samples_per_s", "forward_s"} <= set(rows[0])
    names = sorted(path.name.removeprefix(training.scenario.id) for path in trainings.iterdir())
    assert names == [".best.pt", ".csv", ".json", ".last.pt"]


def test_a_report_of_a_training_alone_shows_its_epochs(
    toy: "subprocess.CompletedProcess[str]", folder: Path, tmp_path: Path
) -> None:
    run = store.open_run("toy", folder / "results")
    page.render([run], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Training" in text
    assert "**Best epoch: 3:** validation loss" in text
    assert "validation accuracy 100.0 %" in text
    assert "| 3 (best) |" in text
    assert "stepmark train --workload mlp-toy" in text
    assert "## Summary" not in text
    assert "## Doubts" not in text
    assert len(list((tmp_path / "plots").glob("*.png"))) == 2


def test_a_training_stands_beside_measured_results_in_one_report(
    toy: "subprocess.CompletedProcess[str]", folder: Path, tmp_path: Path
) -> None:
    save_run(tmp_path, make_run(make_result(), name="measured"))
    runs = [store.open_run("toy", folder / "results"), store.open_run("measured", tmp_path)]
    page.render(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Summary" in text
    assert "### toy: mlp-toy on cpu" in text


def test_a_finished_training_is_shown_again_or_goes_on(
    toy: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    shutil.copytree(folder / "results" / "toy", folder / "results" / "more")
    again = stepmark("train", "--resume", "--save", "more", "--json", cwd=folder)
    assert json.loads(again.stdout)["epochs"] == json.loads(toy.stdout)["epochs"]
    assert "all 3 epochs are done; --epochs trains more" in again.stderr
    assert len(re.findall("Epoch: .*", again.stderr)) == 3
    more = stepmark("train", "--resume", "--save", "more", "--epochs", 4, cwd=folder)
    assert more.returncode == 0, more.stderr
    (line,) = re.findall("Epoch: .*", more.stdout)
    assert re.fullmatch(LINE.format(4), line)
    (training,) = store.open_run("more", folder / "results").trainings
    assert training.num_resumed == 1
    before = json.loads(toy.stdout)["epochs"]
    assert [e.train_s for e in training.epochs[:3]] == [epoch["train_s"] for epoch in before]


def test_a_damaged_checkpoint_is_bad_usage(
    toy: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    shutil.copytree(folder / "results" / "toy", folder / "results" / "damaged")
    (last,) = (folder / "results" / "damaged" / "trainings").glob("*.last.pt")
    last.write_bytes(last.read_bytes()[:2000])
    done = stepmark("train", "--resume", "--save", "damaged", "--epochs", 4, cwd=folder)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.fullmatch(r"error: .*last\.pt: cannot be loaded \(.*\); begin .*\n", done.stderr)
    (training,) = store.open_run("damaged", folder / "results").trainings
    assert len(training.epochs) == 3, "nothing of it is lost"


def epochs_of(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    epochs: list[dict[str, Any]] = json.loads(done.stdout)["epochs"]
    return epochs


def test_two_ranks_train_and_validate_as_one_process_with_twice_the_batch(folder: Path) -> None:
    words = ["train", "--workload", "mine.py:build", "--epochs", 2, "--device", "cpu", "--json"]
    both = epochs_of(stepmark(*words, "--world-size", 2, "--batch-size", 4, cwd=folder))
    alone = epochs_of(stepmark(*words, "--batch-size", 8, "--threads", 1, cwd=folder))
    for two, one in zip(both, alone, strict=True):
        for name in ("train_loss", "valid_loss"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)
        for name in ("train_accuracy", "valid_accuracy", "num_samples", "num_valid_samples"):
            assert two[name] == one[name], "every sample is counted once"
        assert two["num_steps"] == one["num_steps"] == 5


def test_two_ranks_validate_the_model_that_is_saved(folder: Path) -> None:
    """Each rank has running statistics of its own; those of the first one are saved."""
    words = ["train", "--workload", "mine.py:normed", "--epochs", 1, "--device", "cpu", "--json"]
    (epoch,) = epochs_of(
        stepmark(*words, "--world-size", 2, "--batch-size", 4, "--save", "normed", cwd=folder)
    )
    (path,) = (folder / "results" / "normed" / "trainings").glob("*.best.pt")
    workload = learned_workload.build(noise=0.3)
    workload.model.load_state_dict(torch.load(path, weights_only=True)["model"])
    workload.model.eval()
    assert isinstance(workload.valid_dataset, learned_workload.Clouds)
    points, labels = workload.valid_dataset.points, workload.valid_dataset.labels
    loss = torch.nn.functional.cross_entropy(workload.model(points), labels).item()
    assert epoch["valid_loss"] == pytest.approx(loss, rel=1e-5)
    assert epoch["train_loss"] != pytest.approx(loss, rel=1e-2)


def test_a_training_that_diverges_says_so(folder: Path) -> None:
    words = ["train", "--workload", "mine.py:build", "--epochs", 2, "--device", "cpu"]
    words += ["--optimizer", "sgd", "--lr", "1e30", "--batch-size", 8, "--loss", "mse"]
    words += ["--save", "wild"]
    done = stepmark(*words, cwd=folder)
    assert "Epoch:    1 | train_loss=nan, " in done.stdout
    assert "valid_loss=nan" in done.stdout
    assert "the loss is not finite in epoch 1: this training diverges" in done.stderr
    assert "there is no best epoch" in done.stderr


def test_what_the_optimizer_has_not_is_bad_usage_and_leaves_the_name_free(folder: Path) -> None:
    words = ["train", "--workload", "mine.py:build", "--epochs", 1, "--device", "cpu"]
    words += ["--optimizer", "adam", "--batch-size", 8, "--save", "typo"]
    done = stepmark(*words, "--schedule", "cosine", "--schedule-of", "momentum", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: schedule_of=momentum: Adam has None for it")
    assert "Traceback" not in done.stderr
    assert not (folder / "results" / "typo").exists()


def test_a_training_that_took_too_long_goes_on_with_more_time(folder: Path) -> None:
    words = ["train", "--workload", "mine.py:slow", "--epochs", 1, "--device", "cpu"]
    done = stepmark(*words, "--batch-size", 8, "--timeout", 0.2, "--save", "late", cwd=folder)
    assert done.returncode == 1
    assert "raise --timeout" in done.stderr
    more = stepmark("train", "--resume", "--save", "late", "--timeout", 60, cwd=folder)
    assert more.returncode == 0, more.stderr
    (training,) = store.open_run("late", folder / "results").trainings
    assert (training.plan.timeout, len(training.epochs)) == (60, 1)


def test_what_patience_has_ended_is_shown_and_not_gone_on_with(folder: Path) -> None:
    words = ["train", "--workload", "mine.py:build", "--epochs", 5, "--device", "cpu"]
    words += ["--optimizer", "sgd", "--lr", "1e-30", "--patience", 1, "--batch-size", 8]
    done = stepmark(*words, "--save", "idle", cwd=folder)
    assert "stopped after epoch 2: no lower loss for --patience 1" in done.stderr
    for more in ([], ["--epochs", 9]):
        again = stepmark("train", "--resume", "--save", "idle", *more, cwd=folder)
        assert again.returncode == 0
        assert "stopped after epoch 2" in again.stderr
    (training,) = store.open_run("idle", folder / "results").trainings
    assert (training.num_resumed, len(training.epochs)) == (0, 2)


def test_a_training_does_not_go_on_with_other_data(folder: Path) -> None:
    words = ["train", "--workload", "mine.py:growing", "--epochs", 1, "--device", "cpu"]
    assert stepmark(*words, "--batch-size", 8, "--save", "grown", cwd=folder).returncode == 0
    (folder / "grown").touch()
    done = stepmark("train", "--resume", "--save", "grown", "--epochs", 2, cwd=folder)
    assert done.returncode == 2
    assert "num_train_samples is 48, and was 40 in the 1 epochs that are done" in done.stderr
    (training,) = store.open_run("grown", folder / "results").trainings
    assert (len(training.epochs), training.outcome) == (1, Outcome.OK)


def test_an_interrupt_keeps_finished_epochs_no_process_and_the_words_to_go_on(
    folder: Path,
) -> None:
    words = ["train", "--workload", "mine.py:slow", "--epochs", "9", "--device", "cpu"]
    process = subprocess.Popen(
        [*STEPMARK, *words, "--batch-size", "8", "--save", "cut"],
        cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A background job of a shell inherits SIGINT ignored; a terminal's command does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Epoch:    2"):
            break
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    found = re.search(r"interrupted: (\d) of 9 epochs are saved in \S+; go on with: (.*)", errors)
    assert found, errors
    assert family
    assert not list(filter(is_alive, family))
    (training,) = store.open_run("cut", folder / "results").trainings
    assert len(training.epochs) == int(found[1])
    assert training.outcome is None
    done = stepmark(*shlex.split(found[2])[1:], "--json", cwd=folder)
    epochs = epochs_of(done)
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 10))
    # Nothing is validated, and left out is not 0.
    assert {(epoch["valid_loss"], epoch["valid_s"]) for epoch in epochs} == {(None, None)}
    assert "valid_loss" not in done.stderr


def test_a_training_that_fails_keeps_its_finished_epochs_and_says_where(folder: Path) -> None:
    words = ["train", "--workload", "mine.py:breaks", "--epochs", 9, "--batch-size", 8]
    done = stepmark(*words, "--save", "broken", "--device", "cpu", cwd=folder)
    assert done.returncode == 1
    assert "failed: RuntimeError: no more (mine.py, line " in done.stderr
    (training,) = store.open_run("broken", folder / "results").trainings
    assert len(training.epochs) == 4
    assert training.outcome is Outcome.FAILED


def test_state_that_cannot_be_loaded_back_ends_the_training_and_the_record_says_why(
    folder: Path, tmp_path: Path
) -> None:
    words = ["train", "--workload", "mine.py:odd", "--epochs", 3, "--batch-size", 8]
    done = stepmark(*words, "--save", "odd", "--device", "cpu", cwd=folder)
    assert done.returncode == 2
    assert "Epoch:    1" in done.stdout
    assert re.search(r"error: .*last\.pt: cannot be loaded \(Unsupported.*Kept.*\)", done.stderr)
    assert "begin it under another name with --no-checkpoint" in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
    run = store.open_run("odd", folder / "results")
    (training,) = run.trainings
    assert [epoch.epoch for epoch in training.epochs] == [1]
    assert training.outcome is Outcome.FAILED
    page.render([run], tmp_path)
    assert "After 1 epoch of 3: failed: " in (tmp_path / "report.md").read_text()


def test_a_training_whose_first_epoch_found_a_full_disk_goes_on_once_there_is_room(
    folder: Path,
) -> None:
    (folder / "full").touch()
    words = ["train", "--workload", "mine.py:full", "--epochs", 2, "--batch-size", 8]
    done = stepmark(*words, "--save", "full", "--device", "cpu", cwd=folder)
    assert done.returncode == 2
    (training,) = store.open_run("full", folder / "results").trainings
    assert (training.outcome, len(training.epochs)) == (Outcome.FAILED, 1)
    assert "No space left on device" in training.reason
    (folder / "full").unlink()
    more = stepmark("train", "--resume", "--save", "full", cwd=folder)
    assert more.returncode == 0, more.stderr
    (training,) = store.open_run("full", folder / "results").trainings
    assert (training.outcome, training.reason) == (Outcome.OK, "")
    assert len(training.epochs) == 2


def test_a_training_that_failed_before_its_first_epoch_is_in_the_report(tmp_path: Path) -> None:
    planned = store.RunPlan(created_at="2026-01-02", plan=Plan(), scenarios=())
    folder = store.RunFolder.create(tmp_path, "early", planned)
    failed = make_training(
        epochs=(), plan=TrainPlan(epochs=3), facts=None, ended_by=None,
        outcome=Outcome.FAILED, reason="no such data",
    )  # fmt: skip
    folder.save_training(failed)
    run = store.latest_run(tmp_path)
    page.render([run], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Before its first epoch was done: failed: no such data." in text
    done = stepmark("export", "early", "--results", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "holds a training that failed in its first epoch" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", "mlp-toy"], "no epochs: give --epochs N"),
        (["--epochs", "2"], "no workload: give --workload W"),
        (["--workload", "mlp-toy", "--epochs", "0"], "epochs=0: must be at least 1"),
        (["--workload", "mlp-toy", "--epochs", "1", "--schedule", "x"], "schedule='x': choose"),
        (["--workload", "mlp-toy", "--epochs", "1", "--batch-size", "1,2"], "2 scenarios; give"),
        (["--workload", "mlp-toy", "--epochs", "1", "--task", "infer"], "a training trains"),
        (["--workload", "gpt", "--epochs", "1", "--pipeline-stages", "2"], "--pipeline-stages"),
        (["--resume"], "--resume: say which run with --save NAME"),
        (["--resume", "--save", "nothing"], "no run to resume"),
        (["--resume", "--save", "toy", "--lr", "1"], "--lr: a resumed training has its own"),
        (["--resume", "--save", "toy", "--epochs", "2"], "--epochs 2: 3 epochs are done already"),
        (["--workload", "mlp-toy", "--epochs", "1", "--save", "toy"], "exists already"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    words: list[str], message: str, toy: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    done = stepmark("train", *words, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_of_a_training_is_not_measured_on(
    toy: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    done = stepmark("run", "--resume", "--save", "toy", cwd=folder)
    assert done.returncode == 2
    assert "is of a training; go on with 'stepmark train --resume --save toy'" in done.stderr


def test_a_training_has_a_history_and_no_table_of_results(
    toy: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    done = stepmark("export", "toy", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds a training, whose history is in results/toy/trainings/*.csv" in done.stderr

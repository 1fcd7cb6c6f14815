"""The command line as users see it: every command here is a process of its own."""

import csv
import dataclasses
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from commands import STEPMARK, environment, git, python, stepmark

from stepmark import __version__
from stepmark.record import PHASES
from stepmark.result import COLUMNS
from stepmark.runner.processes import is_alive
from stepmark.scenario import Scenario

# What the interface promises users, character for character.
MY_TRAIN = """
import torch
from stepmark import Workload


class MyDataset(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return torch.randn(10), index % 2


def build() -> Workload:
    print("loading", end="")
    return Workload(
        model=torch.nn.Linear(10, 2),
        dataset=MyDataset(),
        loss_fn=torch.nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
"""

# Layouts of batches that people have: what a model takes and what comes out of it.
LAYOUTS = """
from types import SimpleNamespace

import torch
from my_train import MyDataset
from stepmark import Workload


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


class Siamese(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(10, 2)

    def forward(self, left, right):
        return self.linear(left) - self.linear(right)


class Pairs(MyDataset):
    def __getitem__(self, index):
        features, target = super().__getitem__(index)
        return (features, -features), target


def tuple_inputs():
    loss = torch.nn.CrossEntropyLoss()
    return Workload(model=Siamese(), dataset=Pairs(), loss_fn=loss, optimizer=sgd)


class Named(MyDataset):
    def __getitem__(self, index):
        features, target = super().__getitem__(index)
        return {"input_ids": features, "labels": target}


class Transformer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(10, 2)

    def forward(self, input_ids, labels):
        logits = self.linear(input_ids)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


def own_loss():
    return Workload(model=Transformer(), dataset=Named(), optimizer=sgd)


def dictionaries():
    def loss(model, batch):
        return model(batch["input_ids"]).square().mean()

    return Workload(
        model=torch.nn.Linear(10, 2), dataset=Named(), compute_loss=loss, optimizer=sgd
    )


def collated():
    def collate(samples):
        features = torch.stack([features for features, _ in samples])
        return features.flatten(1), torch.tensor([target for _, target in samples])

    return Workload(
        model=torch.nn.Linear(10, 2),
        dataset=MyDataset(),
        collate_fn=collate,
        loss_fn=torch.nn.CrossEntropyLoss(),
        optimizer=sgd,
    )
"""

SHORT = ("--device", "cpu", "--max-seconds", "0.5")
BASE = (
    *("run", "--workload", "my_train.py:build", *SHORT, "--steps", "4", "--save", "base"),
    *("--batch-size", "4", "--accumulation", "1,3", "--world-size", "1,2", "--repeats", "2"),
)


def write_workloads(folder: Path) -> None:
    (folder / "my_train.py").write_text(MY_TRAIN)
    (folder / "layouts.py").write_text(LAYOUTS)
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "training.py").write_text(MY_TRAIN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user works."""
    folder = tmp_path_factory.mktemp("user")
    write_workloads(folder)
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> subprocess.CompletedProcess[str]:
    """The run ``base``: two accumulations, with and without a second rank, two repeats."""
    return stepmark(*BASE, cwd=folder)


@pytest.fixture(scope="module")
def rows(folder: Path, measured: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Its flat table."""
    assert measured.returncode == 0, measured.stderr
    exported = stepmark("export", "base", "--format", "json", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    return json.loads(exported.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def copy(folder: Path, rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of the user's folder with the run in it, for tests that change it."""
    assert rows
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_run_measures_the_full_product_of_axes_and_repeats(rows: list[dict[str, Any]]) -> None:
    product = {(row["accumulation"], row["world_size"], row["repeat"]) for row in rows}
    assert len(product) == len(rows) == 2 * 2 * 2
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["reason"] for row in rows} == {None}
    assert [row["repeat"] for row in rows] == [0] * 4 + [1] * 4, "one round after another"


def test_the_columns_are_those_of_the_interface(rows: list[dict[str, Any]]) -> None:
    assert all(tuple(row) == COLUMNS for row in rows)


def test_throughput_counts_every_sample_of_every_micro_batch_and_rank(
    rows: list[dict[str, Any]],
) -> None:
    for row in rows:
        per_step = row["batch_size"] * row["accumulation"] * row["world_size"]
        assert row["samples_per_s"] == pytest.approx(per_step * row["steps"] / row["window_s"])


def test_the_six_phases_sum_to_the_step(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        total_s = sum(row[f"{phase}_s"] for phase in PHASES)
        assert total_s == pytest.approx(row["phase_step_s"], rel=1e-9)


def test_what_was_not_measured_is_empty_in_every_format(
    folder: Path, rows: list[dict[str, Any]]
) -> None:
    assert all(row["energy_j"] is None and row["nvml_used_bytes"] is None for row in rows)
    table = csv.DictReader(io.StringIO(stepmark("export", "base", cwd=folder).stdout))
    assert {row["energy_j"] for row in table} == {""}


def test_csv_json_and_parquet_hold_the_same_numbers_to_the_last_digit(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for format in ("csv", "parquet"):
        arguments = ("--format", format, "-o", tmp_path / f"table.{format}")
        done = stepmark("export", folder / "results" / "base", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    from_csv = list(csv.DictReader((tmp_path / "table.csv").open()))
    from_parquet = pd.read_parquet(tmp_path / "table.parquet").to_dict("records")
    for row, text, cells in zip(rows, from_csv, from_parquet, strict=True):
        assert tuple(text) == tuple(cells) == COLUMNS
        for column, value in row.items():
            if value is None:
                assert text[column] == "", column
                assert pd.isna(cells[column]), column
            else:
                assert type(value)(text[column]) == cells[column] == value, column


def test_export_has_a_column_for_every_axis_where_it_is_asked_to(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for format in ("csv", "json", "parquet"):
        arguments = ("--all-axes", "--format", format, "-o", tmp_path / f"table.{format}")
        done = stepmark("export", "base", *arguments, cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
    in_full = json.loads((tmp_path / "table.json").read_text())
    axes = {field.name for field in dataclasses.fields(Scenario)}
    assert [dict(list(row.items())[: len(COLUMNS)]) for row in in_full] == rows
    assert all(axes < set(row) for row in in_full)
    (first, *_), (other, *_) = in_full, csv.DictReader((tmp_path / "table.csv").open())
    names = ("prefetch_factor", "task", "ddp", "threads", "lr")
    assert [first[name] for name in names] == [2, "train", False, None, None]
    assert [other[name] for name in names] == ["2", "train", "False", "", ""]
    cells = pd.read_parquet(tmp_path / "table.parquet").to_dict("records")[0]
    assert tuple(cells) == tuple(first) == tuple(other)
    assert {name: value for name, value in cells.items() if not pd.isna(value)} == {
        name: value for name, value in first.items() if value is not None
    }


def test_export_writes_into_a_device_and_leaves_it_one(
    folder: Path, rows: list[dict[str, Any]]
) -> None:
    assert rows
    assert stepmark("export", "base", "-o", os.devnull, cwd=folder).returncode == 0
    assert not Path(os.devnull).is_file()


def test_a_run_says_what_it_found_and_where_it_is(
    folder: Path, measured: subprocess.CompletedProcess[str]
) -> None:
    heading, *lines, saved = (
        line for line in measured.stdout.splitlines() if not line.startswith("note: ")
    )
    columns = ["scenario", "repeat", "samples/s", "median step", "p99 step", "outcome"]
    assert re.split(" {2,}", heading) == columns
    rows = [re.split(" {2,}", line) for line in lines]
    found = [row for row in rows if row[0] == "my_train.py:build-cpu-bs4-acc3-ws2"]
    assert [row[1] for row in found] == ["0", "1", "2"], "two repeats; and that there are two"
    assert re.fullmatch(r"[\d,.]+ to [\d,.]+", found[-1][3])
    assert re.search(r"\d+ of \d+ windows are brief .* give more --steps", lines[-1])
    assert saved == "saved: results/base"
    assert (folder / "results" / "base" / "run.json").is_file()


def test_nothing_is_on_standard_error_without_a_terminal(
    measured: subprocess.CompletedProcess[str],
) -> None:
    steps = [line for line in measured.stderr.splitlines() if "  |  " not in line]
    assert not steps, "how far it is, in a log that takes long; nothing else"
    assert "loading" not in measured.stdout, "what a workload prints is not our output"


def test_resuming_measures_what_is_missing_and_touches_nothing_else(copy: Path) -> None:
    run = copy / "results" / "base"
    before = {file: file.stat().st_mtime_ns for file in run.iterdir()}
    lost = run / "my_train.py%3Abuild-cpu-bs4.r1.json"
    lost.unlink()
    done = stepmark(*BASE, "--resume", cwd=copy)
    assert (done.returncode, done.stderr) == (0, "")
    after = {file: file.stat().st_mtime_ns for file in run.iterdir()}
    assert set(after) == set(before)
    assert {file for file in after if after[file] != before[file]} == {lost}
    assert done.stdout.count("my_train.py:build-cpu-bs4") >= 8, "the table is of the whole run"


def test_resuming_with_other_code_says_so(copy: Path) -> None:
    git(copy, "init", "-b", "main")
    git(copy, "add", "my_train.py")
    git(copy, "commit", "-m", "one")
    words = ["--workload", "my_train.py:build", *SHORT, "--repeats", "2", "--save", "coded"]
    assert stepmark("run", *words, cwd=copy).stderr == ""
    first, last = sorted((copy / "results" / "coded").glob("my_train*.json"))
    last.unlink()
    resume = ("run", "--resume", "--save", "coded")
    with (copy / "my_train.py").open("a") as file:
        file.write("\n# changed\n")
    git(copy, "commit", "-a", "-m", "two")
    assert (
        "warning: the code changed before the run was resumed" in stepmark(*resume, cwd=copy).stderr
    )
    first.unlink()
    last.unlink()
    with (copy / "my_train.py").open("a") as file:
        file.write("\n# changed, and not committed\n")
    done = stepmark(*resume, cwd=copy)
    assert "changes that are not committed" in done.stderr


def test_a_damaged_result_is_found_before_anything_is_measured(copy: Path) -> None:
    run = copy / "results" / "base"
    first, *_, last = sorted(run.glob("*.r?.json"), key=lambda f: (f.stem[-1], f.stem))
    first.unlink()
    last.write_text("{")
    done = stepmark(*BASE, "--resume", cwd=copy)
    assert done.returncode == 2
    assert last.name in done.stderr
    assert not first.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workload", "my_train.py:build", *SHORT, "--repeats", "2"), "other axes or another"),
        (
            ("--workload", "my_train.py:build", *SHORT, "--repeats", "2", "--steps", "4"),
            "other axes or another plan; resume it with 'stepmark run --resume --save base",
        ),
        (("--steps", "5"), "--steps: a resumed run has its own axes and plan; leave it out"),
        (("--batch-size", "4"), "--batch-size: a resumed run has its own"),
    ],
    ids=["another plan", "other axes", "a plan alone", "an axis alone"],
)
def test_resuming_refuses_other_axes_and_another_plan(
    copy: Path, words: tuple[str, ...], message: str
) -> None:
    before = {f: f.stat().st_mtime_ns for f in (copy / "results" / "base").iterdir()}
    done = stepmark("run", "--resume", "--save", "base", *words, cwd=copy)
    assert done.returncode == 2
    assert message in done.stderr
    assert {f: f.stat().st_mtime_ns for f in (copy / "results" / "base").iterdir()} == before


def test_workloads_come_from_files_and_modules_in_every_layout_of_batch(folder: Path) -> None:
    # Together longer than a file's name may be, and alike for longer than that.
    deep = folder / ("проекты-" * 6) / ("обучение-" * 6)
    deep.mkdir(parents=True)
    (deep / "модель.py").write_text(f"{MY_TRAIN}\n\nbuild_again = build\n")
    workloads = [
        f"{deep}/модель.py:build",
        f"{deep}/модель.py:build_again",
        "./my_train.py:build",
        f"{folder / 'my_train.py'}:build",
        "my_train:build",
        "package.training:build",
        "package/training.py:build",
        *(f"layouts.py:{name}" for name in ("tuple_inputs", "own_loss", "dictionaries")),
        "layouts.py:collated",
    ]
    options = [word for workload in workloads for word in ("--workload", workload)]
    done = stepmark(
        *("run", *options, *SHORT, "--steps", 3, "--batch-size", 4, "--save", "layouts"),
        cwd=folder,
        FORCE_COLOR="1",
    )
    assert done.stderr == "", "no progress: FORCE_COLOR makes no terminal of a pipe"
    exported = stepmark("export", "layouts", "--format", "json", cwd=folder)
    outcomes = {row["workload"]: row["outcome"] for row in json.loads(exported.stdout)}
    assert outcomes == dict.fromkeys(workloads, "ok"), done.stdout
    assert done.returncode == 0


@dataclass
class Terminal:
    """What a command wrote on a terminal of 80 columns, and how it ended.

    Attributes:
        shown: everything it wrote, standard output and error in one.
        exit_code: its own.
        family: its descendants at the moment when it was interrupted.
    """

    shown: str
    exit_code: int
    family: list[psutil.Process]


def on_terminal(words: list[str], cwd: Path, *, interrupt_at: str | None = None) -> Terminal:
    """Run a command on a terminal; interrupt it once it shows that text."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env=environment(TERM="xterm"),
        stdin=side,
        stdout=side,
        stderr=side,
        # A background job of a shell inherits SIGINT ignored; a terminal's command does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(side)
    shown = b""
    family: list[psutil.Process] = []
    while True:
        try:
            data = os.read(main, 1 << 16)
        except OSError:  # how Linux says that nobody holds the other side any more
            break
        shown += data
        if interrupt_at is not None and interrupt_at in shown.decode(errors="ignore"):
            interrupt_at = None
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)  # people are impatient
    os.close(main)
    text = shown.decode().replace("\r\n", "\n")
    return Terminal(shown=text, exit_code=process.wait(timeout=60), family=family)


def test_a_terminal_shows_how_far_the_run_is_how_fast_and_what_is_left(folder: Path) -> None:
    words = ["run", "--workload", "my_train.py:build", *SHORT, "--batch-size", "1,2"]
    seen = on_terminal([*STEPMARK, *words, "--steps", "20000", "--save", "t"], folder)
    assert seen.exit_code == 0
    assert "starting the measuring processes" in seen.shown
    assert re.search(r"scenario 1 of 2  \|  [\d,.]+ samples/s, measuring steps  \|", seen.shown)
    assert re.search(r"scenario 2 of 2  \|  about \d+ s left  \|", seen.shown)
    lines = re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", seen.shown).replace("\r", "\n").splitlines()
    assert max(len(line) for line in lines if "scenario " in line) <= 80, "redrawn in place"
    assert lines[-1] == "saved: results/t"
    told = json.loads(stepmark("machine", "--json", cwd=folder).stdout)["unfit"]
    # Load comes and goes; a virtual machine or a container stays one.
    for remark in [remark for remark in told if remark.startswith("virtualised")]:
        assert f"warning: this machine is unfit to measure on: {remark}" in lines


def test_an_interrupt_leaves_results_no_process_and_the_words_to_go_on(tmp_path: Path) -> None:
    write_workloads(tmp_path)
    results = tmp_path / "my results"
    words = ["run", "--workload", "my_train.py:build", *SHORT, "--batch-size", "1,2,3"]
    seen = on_terminal(
        [*STEPMARK, *words, "--steps", "20000", "--save", "a", "--results", str(results)],
        tmp_path,
        interrupt_at="scenario 2 of 3",
    )
    assert seen.exit_code == 130
    assert "saved:" not in seen.shown
    found = re.search(
        rf"interrupted: 1 of 3 results are saved in {re.escape(str(results / 'a'))}; "
        r"go on with: (stepmark .*)\n",
        seen.shown,
    )
    assert found, seen.shown
    assert seen.family, "it measures in other processes"
    assert not list(filter(is_alive, seen.family))
    assert len(list((results / "a").glob("*.r0.json"))) == 1

    done = stepmark(*shlex.split(found[1])[1:], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((results / "a").glob("*.r0.json"))) == 3


def test_an_interrupt_before_the_first_measurement_says_so(tmp_path: Path) -> None:
    words = [*STEPMARK, "run", "--workload", "mlp-toy", "--save", "a"]
    seen = on_terminal(words, tmp_path, interrupt_at="starting the measuring processes")
    assert seen.exit_code == 130
    assert seen.shown.endswith("interrupted: nothing was measured\n")


def test_machine_is_told_in_words_and_as_json(tmp_path: Path) -> None:
    words = stepmark("machine", cwd=tmp_path)
    assert words.returncode == 0
    assert "device cpu" in words.stdout
    found = json.loads(stepmark("machine", "--json", cwd=tmp_path).stdout)
    assert {"host", "hardware", "software", "devices", "unfit"} <= set(found)
    assert found["software"]["python"] in words.stdout


def test_the_version_is_told(tmp_path: Path) -> None:
    done = stepmark("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"stepmark {__version__}\n")


def test_help_names_every_axis_and_every_part_of_the_plan(tmp_path: Path) -> None:
    shown = stepmark("run", "--help", cwd=tmp_path).stdout
    for option in (
        *("--workload", "--device", "--batch-size", "--num-workers", "--precision"),
        *("--accumulation", "--world-size", "--steps", "--warmup", "--max-seconds"),
        *("--repeats", "--timeout", "--save", "--results", "--resume"),
    ):
        assert f"  {option} " in shown, option


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["export", "-h"]], ids=" ".join)
def test_help_loads_neither_torch_nor_pandas(words: list[str], tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        "from stepmark.cli import main\n"
        "heavy = ('torch', 'pandas', 'numpy', 'matplotlib')\n"
        "atexit.register(lambda: print(*(m for m in heavy if m in sys.modules), file=sys.stderr))\n"
        f"sys.argv[1:] = {words!r}\n"
        "main()\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "\n")
    assert "Usage:" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(
    folder: Path, rows: list[dict[str, Any]]
) -> None:
    assert rows
    line = f"{shlex.join(STEPMARK)} export base --format json | head -1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_the_package_can_be_imported_without_torch(tmp_path: Path) -> None:
    done = python("-c", "import stepmark, sys; print('torch' in sys.modules)", cwd=tmp_path)
    assert done.stdout == "False\n", done.stderr

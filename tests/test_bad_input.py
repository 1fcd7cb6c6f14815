"""What users get wrong, through the real command: one clear message, and never a traceback.

What can be seen before anything starts ends with exit code 2. What only the measuring process
sees is a ``failed`` row with a reason of one line, and exit code 1.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import python, stepmark
from factories import make_result, make_run, save_run

from stepmark import Scenario

# Functions that build what cannot be measured.
BROKEN = """
import os, sys
import torch
from stepmark import Workload


class Data(torch.utils.data.Dataset):
    def __init__(self, length=64, item=lambda index: (torch.randn(10), index % 2)):
        self.length, self.item = length, item

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.item(index)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield 1


class EndlessWithLength(Endless):
    def __len__(self):
        return 64


def workload(**changes):
    fields = dict(
        model=torch.nn.Linear(10, 2),
        dataset=Data(),
        loss_fn=torch.nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
    return Workload(**{**fields, **changes})


def fine():
    print("chatter on standard output")
    print("chatter on standard error", file=sys.stderr)
    os.system("echo chatter of a child")
    return workload()


def not_a_number():
    return workload(loss_fn=lambda outputs, targets: outputs.mean() * float("nan"))


def raises():
    raise RuntimeError("no weights\\nfor this [/model]")


def returns_model():
    return torch.nn.Linear(10, 2)


def needs(width):
    return workload()


def exits():
    sys.exit("usage: train.py --data DIR")


def dies():
    os._exit(7)


def half():
    return Workload(model=torch.nn.Linear(10, 2))


def no_module():
    return workload(model=lambda inputs: inputs)


def empty():
    return workload(dataset=Data(length=0))


def small():
    return workload(dataset=Data(length=3))


def iterable():
    return workload(dataset=Endless())


def iterable_with_length():
    return workload(dataset=EndlessWithLength())


def item_raises():
    def item(index):
        raise ValueError("sample is\\n    broken")

    return workload(dataset=Data(item=item))


def item_key_error():
    return workload(dataset=Data(item=lambda index: {}["label"]))


def item_exits():
    return workload(dataset=Data(item=lambda index: sys.exit(3)))


def ragged():
    return workload(dataset=Data(item=lambda index: (torch.randn(index + 1), 0)))


def three():
    return workload(dataset=Data(item=lambda index: (torch.randn(10), 0, 0)))


def wrong_width():
    return workload(model=torch.nn.Linear(11, 2))


def vector_loss():
    return workload(loss_fn=torch.nn.CrossEntropyLoss(reduction="none"))


def number_loss():
    return workload(loss_fn=lambda outputs, targets: 1.0)


def no_loss():
    return workload(loss_fn=lambda outputs, targets: None)


def frozen():
    return workload(model=torch.nn.Linear(10, 2).requires_grad_(False), optimizer=two)


def two(params):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def nothing_to_train():
    return workload(model=torch.nn.ReLU())


def no_optimizer():
    return workload(optimizer=lambda params: None)


def loud():
    raise ValueError("x" * 5000)
"""

# Workloads that only measuring finds out about, each with the reason that its row must give.
REASONS = {
    "broken.py:raises": "broken.py:raises raised RuntimeError: no weights for this [/model]",
    "broken.py:returns_model": "returned Linear: it must return a stepmark.Workload",
    "broken.py:exits": "broken.py:exits raised SystemExit: usage: train.py --data DIR",
    "broken.py:dies": "exit code 7",
    "broken.py:half": "TypeError: Workload.__init__() missing 2 required keyword-only",
    "broken.py:no_module": "model=function: must be a torch.nn.Module",
    "broken.py:empty": "the dataset of broken.py:empty is empty: its length is 0",
    "broken.py:small": "batch_size=4: the dataset of broken.py:small has 3 samples, a",
    "broken.py:iterable": "dataset=Endless: has no __len__; stepmark measures map-style datasets",
    "broken.py:iterable_with_length": "EndlessWithLength: is an IterableDataset; stepmark",
    "broken.py:item_raises": "ValueError: sample is broken",
    "broken.py:item_key_error": "KeyError: 'label'",
    "broken.py:ragged": "RuntimeError: ",
    "broken.py:three": "batches must be pairs (inputs, targets) with a loss_fn, or dictionaries",
    "broken.py:wrong_width": "shapes cannot be multiplied (4x10 and 11x2)",
    "broken.py:vector_loss": "the loss is a tensor of shape (4,): must be a scalar, the mean",
    "broken.py:number_loss": "the loss is of type float: must be a scalar tensor",
    "broken.py:no_loss": "the loss is of type NoneType: must be a scalar tensor",
    "broken.py:frozen": "the loss needs no gradient, so nothing would be trained: it must",
    "broken.py:nothing_to_train": "ValueError: optimizer got an empty parameter list",
    "broken.py:no_optimizer": "returned NoneType: must be a torch.optim.Optimizer",
    "broken.py:loud": "raised ValueError: ",
    "broken.py:needs": "missing a required argument: 'width'; give it as ?key=value",
    "broken.py:Data": "broken.py:Data returned Data: it must return a stepmark.Workload",
    "options.py:build?width=wide": "options.py:build: width='wide' must be a whole number",
    "imports.py:build": (
        "imports.py: its import raised ModuleNotFoundError: No module named 'no_such_package'"
    ),
}
RAISED_BY_DATASET = ("broken.py:item_raises", "broken.py:item_key_error", "broken.py:ragged")

LONG = "x" * 300

# What users type, and parts of the message that they get.
MISTAKES = {
    # Workloads
    "run": ["no workload: give --workload W, such as --workload mlp-fashion-mnist"],
    "run --workload=": ["workload=''", "give a built-in name"],
    "run --workload resnet": ["'resnet': no such built-in workload", "built in are"],
    "run --workload mlp-toi": ["'mlp-toi'", "did you mean 'mlp-toy'?"],
    "run --workload torchvision:resnet81": ["did you mean 'resnet18'?"],
    "run --workload nowhere.py:build": ["no file /", "/nowhere.py"],
    "run --workload folder.py:build": ["no file /", "/folder.py"],
    "run --workload ./notes.txt:build": ["notes.txt is not a .py file"],
    "run --workload broken.py": ["which function of it? Write broken.py:FUNCTION"],
    "run --workload broken.py:": ["'' is no function name"],
    "run --workload broken.py:fin": ["defines no 'fin'", "did you mean 'fine'?"],
    "run --workload syntax.py:build": ["syntax.py, line 2: '(' was never closed"],
    "run --workload no_such:build": ["no module 'no_such' in /"],
    "run --workload os.pat:build": ["no module 'os.pat'"],
    "run --workload 'a b:build'": ["'a b' is neither a module nor a .py file"],
    "run --workload __main__:build": ["write path/to/file.py:build"],
    "run --workload ~nobody-here/x.py:f": ["'~nobody-here'"],
    f"run --workload {LONG}.py:build": ["File name too long"],
    "run --workload options.py:build?widht=4": ["did you mean 'width'?"],
    "run --workload options.py:build?width": ["'width' must be written key=value"],
    # Axes
    "run --workload mlp-toy --device gpu": ["device='gpu': choose from cpu, cuda, mps, auto"],
    "run --workload mlp-toy --device cpu,": ["device='': choose from"],
    "run --workload mlp-toy --batch-size 0": ["batch_size=0: must be at least 1"],
    "run --workload mlp-toy --batch-size -4": ["batch_size=-4: must be at least 1"],
    "run --workload mlp-toy --batch-size big": ["--batch-size 'big': must be a whole number"],
    "run --workload mlp-toy --batch-size=": ["--batch-size '': must be a whole number"],
    "run --workload mlp-toy --batch-size 1.5": ["--batch-size '1.5': must be a whole number"],
    "run --workload mlp-toy --batch-size 8,,16": ["--batch-size '': must be a whole number"],
    "run --workload mlp-toy --num-workers -1": ["num_workers=-1: must be at least 0"],
    "run --workload mlp-toy --num-workers two": ["--num-workers 'two': must be a whole number"],
    "run --workload mlp-toy --num-workers 0.5": ["--num-workers '0.5': must be a whole number"],
    "run --workload mlp-toy --num-workers=": ["--num-workers '': must be a whole number"],
    "run --workload mlp-toy --precision fp8": [
        "precision='fp8': choose from fp32, tf32, bf16, fp16"
    ],
    "run --workload mlp-toy --precision=": ["precision='': choose from"],
    "run --workload mlp-toy --accumulation 0": ["accumulation=0: must be at least 1"],
    "run --workload mlp-toy --accumulation x": ["--accumulation 'x'"],
    "run --workload mlp-toy --world-size 0": ["world_size=0: must be at least 1"],
    "run --workload mlp-toy --world-size 1.0": ["--world-size '1.0'"],
    "run --workload mlp-toy --prefetch-factor 0": ["prefetch_factor=0: must be at least 1"],
    "run --workload mlp-toy --threads 0": ["threads=0: must be at least 1"],
    "run --workload mlp-toy --threads many": ["--threads 'many'"],
    "run --workload mlp-toy --pin-memory yes": ["--pin-memory 'yes': must be true or false"],
    "run --workload mlp-toy --ddp 1": ["--ddp '1': must be true or false"],
    # Plan
    "run --workload mlp-toy --steps 0": ["steps=0: must be at least 1"],
    "run --workload mlp-toy --steps ten": ["--steps"],
    "run --workload mlp-toy --steps": ["--steps"],
    "run --workload mlp-toy --warmup -1": ["warmup=-1: must be at least 0"],
    "run --workload mlp-toy --max-seconds 0": [
        "max_seconds=0.0: must be above 0 seconds, and finite"
    ],
    "run --workload mlp-toy --max-seconds nan": ["max_seconds=nan: must be above 0"],
    "run --workload mlp-toy --max-seconds inf": [
        "max_seconds=inf: must be above 0 seconds, and finite"
    ],
    "run --workload mlp-toy --max-seconds -1": ["max_seconds=-1.0: must be above 0"],
    "run --workload mlp-toy --max-seconds soon": ["--max-seconds"],
    "run --workload mlp-toy --repeats 0": ["repeats=0: must be at least 1"],
    "run --workload mlp-toy --timeout 0": ["timeout=0.0: must be above 0"],
    # Saving
    "run --workload mlp-toy --save=": ["name ''"],
    "run --workload mlp-toy --save a/b": ["name 'a/b': use up to 200 letters, digits"],
    "run --workload mlp-toy --save ..": ["name '..'"],
    "run --workload mlp-toy --save 'my run'": ["name 'my run'"],
    f"run --workload mlp-toy --save {LONG}": ["name 'xxx", "use up to 200 letters"],
    "run --workload mlp-toy --save base": [
        "results/base: exists already; choose another name, or give"
    ],
    "run --workload mlp-toy --results notes.txt": ["notes.txt: no folder of runs can be made here"],
    "run --workload mlp-toy --results notes.txt/runs": [
        "notes.txt/runs: no folder of runs can be made"
    ],
    "run --workload mlp-toy --results /proc/runs": [
        "/proc/runs: no folder of runs can be made here"
    ],
    # Resuming
    "run --resume": ["--resume: say which run with --save NAME"],
    "run --resume --save nope": ["results/nope: no run to resume; runs here: "],
    "run --resume --save by-pytest": ["pytest --stepmark-resume by-pytest"],
    "run --resume --save no-plan": ["run.json: damaged, not JSON"],
    "run --resume --save damaged": [
        "damaged, not JSON; delete it, then measure it again with --resume"
    ],
    "run --resume --save newer": ["format 99 is newer than ", "update stepmark"],
    # Export
    "export": ["Missing argument"],
    "export nope": ["'nope': no such run; give a name under results/ ("],
    f"export {LONG}": ["no such run"],
    "export notes.txt": ["notes.txt: damaged, not JSON"],
    "export other.json": ["none of its benchmarks was measured by stepmark"],
    "export damaged": ["damaged, not JSON; delete it"],
    "export newer": ["format 99 is newer than ", "update stepmark"],
    "export empty": ["the run holds no results yet; resume it with --resume"],
    "export base --format xlsx": ["'xlsx': choose from csv, json, parquet"],
    "export base --format parquet": ["is binary; say where to with -o FILE"],
    "export base -o no/such/table.csv": ["no/such/table.csv: cannot be written"],
    "export base -o results": ["results: cannot be written (Is a directory)"],
    # The command line itself
    "measure": ["measure"],
    "run --batchsize 4": ["--batchsize"],
    "run mlp-toy": ["mlp-toy"],
    "export base base": ["base"],
}


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert that a command was refused with one message, which has these parts."""
    assert done.returncode == 2, done
    assert "Traceback" not in done.stdout + done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.lower().startswith("error: ")]
    for part in parts:
        assert part in message
    others = done.stderr.replace(message, "").strip()
    assert not others or others.startswith("Usage: "), "nothing beside it"
    assert done.stdout == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user works; commands that are refused leave it as it is."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "broken.py").write_text(BROKEN)
    (folder / "notes.txt").write_text("def build(): ...")
    (folder / "syntax.py").write_text("def build():\n    return (\n")
    (folder / "imports.py").write_text("import no_such_package\n\ndef build(): ...\n")
    (folder / "options.py").write_text("def build(width: int = 3, *, depth: int = 1): ...\n")
    (folder / "folder.py").mkdir()
    save_run(folder / "results", make_run(make_result(), name="base"))
    damaged = save_run(folder / "results", make_run(make_result(), name="damaged"))
    next(damaged.glob("*.r0.json")).write_text('{"schema": 1, "scena')
    newer = save_run(folder / "results", make_run(make_result(), name="newer"))
    result = next(newer.glob("*.r0.json"))
    result.write_text(json.dumps({**json.loads(result.read_text()), "schema": 99}))
    no_plan = save_run(folder / "results", make_run(make_result(), name="no-plan"))
    (no_plan / "run.json").write_text("")
    by_pytest = save_run(folder / "results", make_run(make_result(), name="by-pytest"))
    plan = json.loads((by_pytest / "run.json").read_text())
    (by_pytest / "run.json").write_text(json.dumps({**plan, "scenarios": []}))
    for file in save_run(folder / "results", make_run(make_result(), name="empty")).glob("*.r0.*"):
        file.unlink()
    (folder / "other.json").write_text('{"benchmarks": [{"name": "test_x", "extra_info": {}}]}')
    return folder


@pytest.mark.parametrize("line", MISTAKES, ids=lambda line: line.replace(LONG, "xxx"))
def test_a_mistake_is_one_message_and_exit_code_2(folder: Path, line: str) -> None:
    refused(stepmark(*shlex.split(line), cwd=folder), *MISTAKES[line])


def test_one_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("base", "damaged"):
        run = save_run(tmp_path / "results", make_run(make_result(), name=name))
    (run / "run.json").write_text("{")
    refused(stepmark("export", "nope", cwd=tmp_path), "give a name under results/ (base)")


@pytest.fixture(scope="module")
def broken(folder: Path) -> tuple[subprocess.CompletedProcess[str], dict[tuple[str, int], Any]]:
    """Everything broken measured in one run: the command, and its rows by workload and workers."""
    others = ("fine", "not_a_number", "item_exits")
    workloads = [*(f"broken.py:{name}" for name in others), *REASONS]
    done = stepmark(
        *("run", *(word for workload in workloads for word in ("--workload", workload))),
        *("--device", "cpu", "--batch-size", 4, "--num-workers", "0,2"),
        *("--steps", 3, "--max-seconds", "0.2", "--save", "broken"),
        cwd=folder,
    )
    exported = stepmark("export", "broken", "--format", "json", cwd=folder)
    rows = json.loads(exported.stdout, parse_constant=pytest.fail)
    return done, {(row["workload"], row["num_workers"]): row for row in rows}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("workload", REASONS)
def test_what_only_measuring_shows_is_a_failed_row_with_its_reason(
    broken: tuple[Any, dict[tuple[str, int], Any]], workload: str, num_workers: int
) -> None:
    row = broken[1][workload, num_workers]
    assert row["outcome"] == "failed"
    assert REASONS[workload] in row["reason"]
    assert "\n" not in row["reason"]
    assert len(row["reason"]) < 500
    assert row["samples_per_s"] is None
    assert ("(in a loader worker" in row["reason"]) == (
        workload in RAISED_BY_DATASET and num_workers > 0
    )


def test_a_dataset_that_exits_is_a_failed_row_too(
    broken: tuple[Any, dict[tuple[str, int], Any]],
) -> None:
    rows = [broken[1]["broken.py:item_exits", num_workers] for num_workers in (0, 2)]
    assert [row["outcome"] for row in rows] == ["failed", "failed"]
    assert re.search(r"SystemExit: 3|exit code 3", rows[0]["reason"])
    assert re.search(r"DataLoader worker \(pid.*\) exited unexpectedly", rows[1]["reason"])


def test_failures_end_with_exit_code_1_each_on_one_line_and_without_a_traceback(
    broken: tuple[subprocess.CompletedProcess[str], Any],
) -> None:
    done = broken[0]
    assert done.returncode == 1
    assert done.stderr == ""
    assert "Traceback" not in done.stdout
    lines = done.stdout.splitlines()
    assert sum("  failed: " in line for line in lines) == 2 * (len(REASONS) + 1)


def test_what_a_workload_prints_stays_out_of_the_output(
    broken: tuple[subprocess.CompletedProcess[str], dict[tuple[str, int], Any]],
) -> None:
    done, rows = broken
    assert "chatter" not in done.stdout + done.stderr
    assert rows["broken.py:fine", 0]["outcome"] == "ok"


def test_a_loss_that_is_no_number_is_measured_with_a_note(
    broken: tuple[subprocess.CompletedProcess[str], dict[tuple[str, int], Any]],
) -> None:
    done, rows = broken
    row = rows["broken.py:not_a_number", 0]
    assert (row["outcome"], row["final_loss"]) == ("ok", None)
    assert "the loss ended at nan: this training diverges" in done.stdout


def test_what_this_machine_lacks_is_skipped_with_its_reason(folder: Path) -> None:
    done = stepmark(
        *(
            "run",
            "--workload",
            "mlp-toy",
            "--device",
            "cpu,cuda,mps",
            "--world-size",
            "1000",
            "--save",
            "absent",
        ),
        *("--precision", "tf32"),
        cwd=folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(stepmark("export", "absent", "--format", "json", cwd=folder).stdout)
    assert {row["outcome"] for row in rows} == {"skipped"}
    reasons = {row["device"]: row["reason"] for row in rows}
    assert "tf32 needs a CUDA device" in reasons["cpu"]
    for kind in ("cuda", "mps"):
        assert reasons[kind] == f"no {kind} device on this machine" or (
            reasons[kind].startswith(f"1000 ranks need 1000 {kind} devices, found ")
        )


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--benchmark-save", "tests"], ["'tests' is a path", "put paths first"]),
        (["--benchmark-save", "tests/"], ["'tests/' is a path", "put paths first"]),
        (["--benchmark-save", "tests/test_x.py::test_x"], ["is a path"]),
        (["--benchmark-save="], ["Can't be empty"]),
        (["--stepmark-resume", "nope"], ["no run to resume; runs here: none"]),
        (["--stepmark-resume", ".."], ["name '..'"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_a_mistake_on_pytests_command_line_is_its_usage_error(
    tmp_path: Path, words: Sequence[str], parts: Sequence[str]
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_x(): ...")
    done = python("-m", "pytest", *words, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in done.stdout + done.stderr
    for part in parts:
        assert part in done.stderr


def test_a_scenario_that_cannot_be_is_refused_when_it_is_made_in_python() -> None:
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        Scenario(workload="mlp-toy", batch_size=0)

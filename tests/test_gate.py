"""The gate as a whole: real revisions, real processes, with pairs cut short."""

import dataclasses
import getpass
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import STEPMARK, environment, git, stepmark
from factories import make_machine

import stepmark as package
from stepmark.cli import gate_command
from stepmark.cli.app import app
from stepmark.errors import StoreError
from stepmark.gate import interpreters, noise, pairs, selftest
from stepmark.gate.servers import Servers
from stepmark.runner.host_process import Installation
from stepmark.scenario import Plan, Scenario

TRAIN = """
import time
import torch
from stepmark import Workload
from data import SLEEP_S

class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep(SLEEP_S)
        return torch.ones(4), 0

def build():
    return Workload(
        model=torch.nn.Linear(4, 2),
        dataset=Points(),
        loss_fn=torch.nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
"""
WORKLOAD = ("--workload", "train.py:build", "--device", "cpu", "--batch-size", "1")


def commit(folder: Path, message: str, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "--allow-empty", "-m", message)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``empty``, ``first`` with a workload, and ``same``; the gate's folders are watched."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-b", "main")
    (folder / ".gitignore").write_text("results/\n__pycache__/\n")
    commit(folder, "empty")
    git(folder, "tag", "empty")
    commit(folder, "first", train=TRAIN, data="SLEEP_S = 0.003")
    git(folder, "tag", "first")
    commit(folder, "same")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of some tenths of a second, in this process."""
    monkeypatch.setattr(pairs, "_PAIR_S", 0.3)
    monkeypatch.setattr(pairs, "_FEWEST_ROUNDS", 4)
    monkeypatch.setattr(selftest, "NUM_PAIRS", 5)
    monkeypatch.setattr(gate_command, "interrupt_once", lambda *_: None)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def gate(*words: Any) -> int:
    """``stepmark gate`` in this process; its exit code."""
    return int(app(["gate", *map(str, words)], standalone_mode=False))


def state(folder: Path) -> tuple[str, ...]:
    """All that a gate must leave as it was."""
    return (
        git(folder, "status", "--porcelain"),
        git(folder, "for-each-ref"),
        git(folder, "stash", "list"),
        git(folder, "worktree", "list"),
    )


def saved(folder: Path) -> dict[str, Any]:
    """What the only gate so far has kept."""
    (path,) = (folder / "results" / "gates").glob("*.json")
    data: dict[str, Any] = json.loads(path.read_text())
    return data


@pytest.mark.usefixtures("short")
def test_a_slower_working_tree_is_found_and_shown_everywhere(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (repository / "data.py").write_text("SLEEP_S = 0.006")
    before = state(repository)
    summary, junit = tmp_path / "summary.md", tmp_path / "gate.xml"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert gate("--base", "main", *WORKLOAD, "--format", "junit", "-o", junit) == 1
    printed = capsys.readouterr()
    assert "SLOWER" in printed.out
    assert "with uncommitted changes" in printed.out.splitlines()[0]
    assert "train.py:build-cpu-bs1: SLOWER +" in printed.err, "a log shows how far it is"
    assert "| SLOWER |" in summary.read_text()
    (case,) = ElementTree.parse(junit).getroot()
    assert [child.tag for child in case] == ["failure"]
    data = saved(repository)
    (comparison,) = data["comparisons"]
    assert (data["exit_code"], data["finished"]) == (1, True)
    assert comparison["change"] > 0.4
    assert len(comparison["pairs"]) >= 13
    assert all(pair["head"]["windows_s"] for pair in comparison["pairs"])
    assert state(repository) == before


@pytest.mark.usefixtures("short")
def test_the_same_code_is_never_slower(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Beside other tests the machine may be too noisy to say that it is clean.
    assert gate("--base", "first", "--head", "main", *WORKLOAD, "--format", "json") in (0, 4)
    data = json.loads(capsys.readouterr().out)
    assert data["title"].startswith("first (")
    assert data["comparisons"] == saved(repository)["comparisons"]
    assert data["hardware"]["cpu"]
    assert data["software"]["base"] == data["software"]["head"]


@pytest.mark.usefixtures("short")
def test_a_workload_that_one_side_lacks_is_missing(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate("--base", "empty", *WORKLOAD) == 3
    assert "MISSING" in capsys.readouterr().out
    (comparison,) = saved(repository)["comparisons"]
    assert comparison["reason"].startswith("base: failed: train.py")


@pytest.mark.usefixtures("short")
def test_what_was_measured_of_a_scenario_is_kept_whatever_ends_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = gate_command.measure_pair
    calls: list[int] = []

    def stop_at_the_third(*arguments: Any) -> pairs.Pair:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(gate_command, "measure_pair", stop_at_the_third)
    assert gate("--base", "first", *WORKLOAD) == 130
    assert len(saved(repository)["unfinished"]) == 2
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_what_one_side_alone_can_run_is_missing(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = make_machine()
    unable = make_machine(
        devices=(dataclasses.replace(able.devices[0], precisions={"fp32": "no, not here"}),)
    )
    monkeypatch.setattr(Servers, "machines", property(lambda _: (able, unable)))
    assert gate("--base", "first", *WORKLOAD) == 3
    (comparison,) = saved(repository)["comparisons"]
    assert comparison["verdict"] == "MISSING"
    assert comparison["reason"] == "head: no, not here"


@pytest.mark.usefixtures("short")
def test_what_cannot_run_here_is_skipped_and_nothing_measured_is_no_pass(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--base", "first", "--workload", "train.py:build", "--device", "cuda")
    assert gate(*words, "--world-size", "1000") == 5
    printed = capsys.readouterr()
    assert "skipped: " in printed.err
    assert "skipped: " in printed.out
    (reason,) = saved(repository)["skipped"].values()
    assert "cuda" in reason


@pytest.mark.usefixtures("short")
def test_a_file_by_its_whole_path_is_each_sides_own(repository: Path) -> None:
    (repository / "train.py").write_text("def build(): raise ValueError('changed')")
    words = ("--workload", f"{repository / 'train.py'}:build", "--device", "cpu")
    assert gate("--base", "first", *words) == 3
    (comparison,) = saved(repository)["comparisons"]
    assert comparison["scenario_id"].startswith("train.py:build-cpu")
    assert comparison["reason"].startswith("head: ")
    assert "changed" in comparison["reason"]


@pytest.mark.usefixtures("short")
def test_a_file_outside_of_the_repository_is_the_same_on_both_sides(repository: Path) -> None:
    outside = TRAIN.replace("from data import SLEEP_S", "SLEEP_S = 0.003")
    (repository.parent / "outside.py").write_text(outside)
    words = ("--workload", "../outside.py:build", "--device", "cpu", "--batch-size", "1")
    assert gate("--base", "first", *words) == 3
    (comparison,) = saved(repository)["comparisons"]
    assert comparison["reason"].startswith("both sides: ")
    assert "would run the same code" in comparison["reason"]


@pytest.mark.usefixtures("short")
def test_the_self_test_keeps_the_noise_and_the_gate_knows_it(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(repository / ".git")  # it needs none
    assert gate("selftest", *WORKLOAD) in (0, 4)
    printed = capsys.readouterr()
    assert "single pairs scatter by" in printed.out
    (file,) = (repository / "results" / "noise").glob("*.json")
    known = json.loads(file.read_text())["scenarios"]
    assert list(known) == ["train.py:build-cpu-bs1"]
    assert known["train.py:build-cpu-bs1"]["num_pairs"] == 5
    given: dict[str, noise.Noise] = {}

    def note(_scenarios: object, _measure: object, _rules: object, known: Any) -> list[object]:
        given.update(known)
        return []

    monkeypatch.setattr(gate_command, "try_all", note)
    git(repository, "init", "-b", "main")
    commit(repository, "again")
    assert gate("--base", "main", *WORKLOAD) == 3, "nothing was tried here"
    assert {k: dataclasses.asdict(found) for k, found in given.items()} == known


def test_noise_is_of_one_hardware_and_software(tmp_path: Path) -> None:
    here = make_machine()
    elsewhere = make_machine(software={"torch": "2.99"})
    found = noise.Noise(
        spread=0.01, percentile=25.0, num_pairs=20, measured_at="2026-01-02T03:04:05+00:00"
    )
    noise.save(tmp_path, here, {"a": found})
    path = noise.save(tmp_path, here, {"b": found})
    assert set(noise.load(tmp_path, here).scenarios) == {"a", "b"}
    assert noise.load(tmp_path, elsewhere).scenarios == {}
    path.write_text("{}")
    with pytest.raises(StoreError, match="remove it, and run the self-test again"):
        noise.load(tmp_path, here)


def test_sides_of_two_installations_get_fresh_servers_for_every_pair(tmp_path: Path) -> None:
    """An interpreter by another name, and a stepmark of its own."""
    source = Path(package.__file__).parent
    copied = tmp_path / "other" / "stepmark"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    sides = []
    for name, home in (("base", source), ("head", copied)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "data.py").write_text("SLEEP_S = 0.001")
        check = f"import stepmark, pathlib\nassert pathlib.Path(stepmark.__file__).resolve().is_relative_to({str(home)!r})\n"  # noqa: E501
        (folder / "train.py").write_text(check + TRAIN)
        interpreter = interpreters.this_one()
        if name == "head":
            interpreter = interpreters.ask("--head-python", str(python))
        side = interpreters.side(name, interpreter, folder)
        installation = Installation(python=side.installation.python, package=home)
        sides.append(dataclasses.replace(side, installation=installation))
    scenario = Scenario(workload="train.py:build", device="cpu", batch_size=1, threads=1)
    plan = Plan(steps=1, warmup=1, max_seconds=0.1, timeout=60)
    seen = []
    with Servers((sides[0], sides[1])) as servers:
        assert not servers.are_shared
        for _ in range(2):
            with servers.for_pair() as runners:
                seen.append(runners)
                if len(seen) == 1:
                    pair = pairs.measure_pair(
                        runners,
                        (sides[0], sides[1]),
                        (scenario, scenario),
                        plan,
                        (),
                        random.Random(0),
                    )
    assert pair.head.windows_s
    assert len({id(runner) for runners in seen for runner in runners}) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_gate_leaves_nothing_behind(
    repository: Path, tmp_path: Path, number: int
) -> None:
    before = state(repository)
    checkouts = tmp_path / "checkouts"
    checkouts.mkdir()
    process = subprocess.Popen(
        [*STEPMARK, "gate", "--base", "first", *WORKLOAD],
        cwd=repository,
        env=environment(TMPDIR=str(checkouts)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline_s = time.monotonic() + 60
    # A pair takes turns when a process of it is stopped.
    while not any(map(_is_stopped, _descendants(process.pid))):
        assert time.monotonic() < deadline_s, "no pair was begun"
        time.sleep(0.02)
    children = _descendants(process.pid)
    assert list(checkouts.iterdir())
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "saved: results/gates/" in err
    assert "Traceback" not in err
    data = saved(repository)
    (comparison,) = data["comparisons"]
    assert (comparison["verdict"], data["exit_code"]) == ("MISSING", 3)
    assert comparison["reason"] == "not measured: the gate was interrupted"
    assert data["finished"] is False
    assert isinstance(data["unfinished"], list)
    assert state(repository) == before
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    # But for a cache, which importing torch may make.
    left = [path.name for path in checkouts.iterdir()]
    assert left in ([], [f"torchinductor_{getpass.getuser()}"]), (
        "but for a cache that importing torch may make"
    )
    assert out.startswith("first (")


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (WORKLOAD, "Give --base REF"),
        (("--base", "main"), "no workload: give --workload W"),
        (("--base", "nope", *WORKLOAD), "no such revision"),
        (("--base", "main", "--head", "nope", *WORKLOAD), "no such revision"),
        (("--base", "main", "--workload", "nope.py:build"), "nope.py"),
        (("--base", "main", "--workload", "mlp-toi"), "did you mean 'mlp-toy'"),
        (("--base", "main", *WORKLOAD, "--threshold", "3"), "--threshold '3'"),
        (("--base", "main", *WORKLOAD, "--format", "xml"), "choose from table"),
        (("--base", "main", *WORKLOAD, "--num-workers", "two"), "--num-workers 'two'"),
        (("--base", "main", *WORKLOAD, "--link", "nope"), "--link nope"),
        (("--base", "main", *WORKLOAD, "--timeout", "0"), "timeout"),
        (("--base", "main", *WORKLOAD, "-o", "no/such/file"), "--output no/such/file: there is no"),
        (("--base", "main", *WORKLOAD, "-o", "."), "--output .: is a folder"),
        (("self-test", *WORKLOAD), "gate self-test: give --base REF"),
        (("selftest", "--base", "main", *WORKLOAD), "--base: the self-test has the working tree"),
        (("--head", "main", "--head-python", "python", *WORKLOAD), "--head: needs --base REF"),
        (("--head-python", "no-such-python", *WORKLOAD), "no-such-python: cannot be run"),
        (("--head-python", "git", *WORKLOAD), "git: is no Python from 3.11 on"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_usage_is_one_line_and_exit_code_2(
    repository: Path, words: tuple[str, ...], message: str
) -> None:
    before = state(repository)
    done = stepmark("gate", *words, cwd=repository)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert state(repository) == before
    assert not (repository / "results").exists()


def test_a_workload_that_is_not_in_git_is_said_to_be_so(repository: Path) -> None:
    (repository / "mine.py").write_text(TRAIN)
    done = stepmark("gate", "--base", "main", "--workload", "mine.py:build", cwd=repository)
    assert done.returncode == 2
    assert "not in git, and so on neither side; commit it, or give --link mine.py" in done.stderr


@pytest.mark.usefixtures("short")
def test_a_workload_may_be_linked_to(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the same for both sides then; what it imports is each side's own."""
    (repository / "mine.py").write_text(TRAIN)
    (repository / "stray.py").write_text("")
    (repository / ".git" / "info" / "exclude").write_text("mine.py\nstray.py\n")
    commit(repository, "slower", data="SLEEP_S = 0.006")
    (repository / ".git" / "info" / "exclude").write_text("")
    words = ("--base", "first", "--link", "mine.py", "--workload", "mine.py:build")
    assert gate(*words, "--device", "cpu", "--batch-size", "1") == 1
    assert "warning: not in git, and so on neither side: stray.py\n" in capsys.readouterr().err


def test_an_interpreter_without_torch_is_refused(repository: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    done = stepmark("gate", "--head-python", python, *WORKLOAD, cwd=repository)
    assert done.returncode == 2
    assert "lacks torch, torchvision" in done.stderr
    assert "pip install stepmark" in done.stderr


def test_outside_of_a_repository_there_is_nothing_to_check_out(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    done = stepmark("gate", "--base", "main", *WORKLOAD, cwd=tmp_path)
    assert done.returncode == 2
    assert "not a git repository" in done.stderr


def test_the_ci_script_finds_the_base_of_a_pull_request(repository: Path, tmp_path: Path) -> None:
    """The very script of action.yml, with a stepmark that only says what it was asked for."""
    script = Path(__file__).parents[1] / "scripts" / "ci_gate"
    clone, asked, output = tmp_path / "clone", tmp_path / "asked", tmp_path / "output"
    git(repository, "checkout", "-q", "-b", "change", "first")
    commit(repository, "changed", data="SLEEP_S = 0.004")
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", str(clone))
    python = tmp_path / "python"

    def run(code: int, **variables: str) -> subprocess.CompletedProcess[str]:
        python.write_text(f'#!/bin/sh\nfor word; do echo "$word"; done > {asked}\nexit {code}\n')
        python.chmod(0o755)
        return subprocess.run(
            [script],
            cwd=clone,
            env=environment(
                PYTHON=str(python), WORKLOAD="a.py:b c.py:d", GITHUB_OUTPUT=str(output), **variables
            ),
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(1, GITHUB_BASE_REF="main", AXES="--threads 1")
    assert done.returncode == 1, done.stderr
    words = asked.read_text().split()
    assert words[:3] == ["-m", "stepmark", "gate"]
    assert words[words.index("--base") + 1] == git(repository, "rev-parse", "first")
    assert words.count("--workload") == 2
    assert words[words.index("--threads") + 1] == "1"
    assert output.read_text() == "exit-code=1\n"
    inconclusive = run(4, BASE="main~1")
    assert inconclusive.returncode == 0
    assert "::warning" in inconclusive.stdout
    assert "main~1" in asked.read_text().split()
    assert run(4, FAIL_ON_INCONCLUSIVE="true").returncode == 4
    assert "HEAD^" in asked.read_text().split()
    assert run(3).returncode == 3

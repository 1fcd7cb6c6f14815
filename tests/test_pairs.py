"""Real pairs of processes that take turns."""

import dataclasses
import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stepmark.gate.pairs import (
    Pair,
    PairFailedError,
    Rhythm,
    Side,
    _of_all_ranks,
    cpus_for,
    measure_pair,
    rhythm,
)
from stepmark.result import Outcome
from stepmark.runner import Runner
from stepmark.runner.messages import Origins
from stepmark.scenario import Plan, Scenario

PLAN = Plan(steps=1, warmup=2, max_seconds=0.2, timeout=30)

WORKLOAD = """
import json, os, signal, time
import torch
from helper import SLEEP_S
from stepmark import Workload

log = open({log!r}, "a", buffering=1)
calls = 0

class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        start_s = time.monotonic()
        time.sleep(SLEEP_S)
        log.write(json.dumps([start_s, time.monotonic(), os.getpid()]) + "\\n")
        return torch.ones(4), 0

def build():
    def compute_loss(model, batch):
        global calls
        calls += 1
        {loss}
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    return Workload(
        model=torch.nn.Linear(4, 2),
        dataset=Points(),
        compute_loss=compute_loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
"""


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as runner:
        yield runner


def make_side(folder: Path, name: str, *, sleep_s: float = 0.001, loss: str = "pass") -> Side:
    """A folder with a workload and a module that it imports: code of one side."""
    directory = folder / name
    (directory / "lib").mkdir(parents=True)
    log = str(directory / "log")
    (directory / "train.py").write_text(WORKLOAD.format(log=log, loss=loss))
    (directory / "lib" / "helper.py").write_text(f"SLEEP_S = {sleep_s}")
    return Side(name=name, directory=directory, sys_path=(str(directory / "lib"), *sys.path))


def confined(
    folder: Path, name: str, *, opened: Path | None = None, own_code: bool = False
) -> Side:
    """A side that is a checkout of the repository in the folder ``working``."""
    side = Side(name=name, directory=folder / name, sys_path=())
    if not side.directory.exists():
        side = make_side(folder, name)
    places = tuple(str(path) for path in (side.directory, opened) if path is not None)
    origins = Origins(closed=str(folder / "working"), opened=places, own_code=own_code)
    return dataclasses.replace(side, origins=origins)


def run(runner: Runner, base: Side, head: Side, **axes: int) -> Pair:
    axes = {"batch_size": 2, "threads": 1, **axes}
    scenario = Scenario(workload="train.py:build", device="cpu", **axes)
    return measure_pair(
        (runner, runner), (base, head), (scenario, scenario), PLAN, (), random.Random(0)
    )


def intervals(side: Side) -> list[tuple[float, float]]:
    lines = (side.directory / "log").read_text().splitlines()
    return sorted((start_s, end_s) for start_s, end_s, _ in map(json.loads, lines))


@pytest.mark.parametrize("axes", [{}, {"num_workers": 2}, {"world_size": 2}], ids=str)
def test_each_side_runs_its_own_code_and_only_in_its_turn(
    runner: Runner, tmp_path: Path, axes: dict[str, int]
) -> None:
    base = make_side(tmp_path, "base", sleep_s=0.004)
    head = make_side(tmp_path, "head", sleep_s=0.008)
    pair = run(runner, base, head, **axes)
    assert len(pair.base.windows_s) == len(pair.head.windows_s) >= 8
    for side in (pair.base, pair.head):
        assert {len(steps) for steps in side.steps_s} == {side.num_steps}
        for window_s, steps in zip(side.windows_s, side.steps_s, strict=True):
            assert sum(steps) == pytest.approx(window_s, rel=0.05, abs=0.001)
    fastest = [min(min(steps) for steps in s.steps_s) for s in (pair.base, pair.head)]
    if not axes.get("num_workers"):
        # A step loads two samples.
        assert fastest[0] >= 0.008
        assert fastest[1] >= 0.016
    assert pair.base.counters == pair.head.counters
    assert pair.base.counters["batch"] == "2x4 float32, 2 int64"
    # A sample that was begun when its side was paused ends in a later turn; all others lie
    # within a turn, so that two of two sides do not overlap.
    events = sorted(
        (start_s, end_s, side.name)
        for side, sample_s in ((base, 0.004), (head, 0.008))
        for start_s, end_s in intervals(side)
        if end_s - start_s < 2 * sample_s
    )
    assert len(events) > 100
    overlaps_s = [
        first[1] - second[0]
        for first, second in itertools.pairwise(events)
        if first[2] != second[2]
    ]
    assert max(overlaps_s) < 0.002


def test_a_side_whose_loss_is_lost_on_the_way_says_so(runner: Runner, tmp_path: Path) -> None:
    """Not in the first steps, which are looked at anyway."""
    base = make_side(tmp_path, "base")
    head = make_side(
        tmp_path, "head", loss="if calls > 150: return (model.weight * float('nan')).sum()"
    )
    pair = run(runner, base, head)
    assert (pair.base.diverges, pair.head.diverges) == (False, True)


@pytest.mark.parametrize(
    ("loss", "outcome", "reason"),
    [
        (
            "if calls == 30: raise ValueError('the reason')",
            Outcome.FAILED,
            "ValueError: the reason",
        ),
        ("if calls == 30: os.kill(os.getpid(), signal.SIGKILL)", Outcome.FAILED, "SIGKILL"),
        ("if calls == 30: time.sleep(1000)", Outcome.TIMEOUT, "not finished after 12 s"),
    ],
    ids=["raises", "killed", "hangs"],
)
def test_a_side_that_dies_is_named_with_its_reason(
    runner: Runner, tmp_path: Path, loss: str, outcome: Outcome, reason: str
) -> None:
    base, head = make_side(tmp_path, "base"), make_side(tmp_path, "head", loss=loss)
    scenario = Scenario(workload="train.py:build", device="cpu", batch_size=2, threads=1)
    plan = Plan(steps=1, warmup=2, max_seconds=0.1, timeout=12)
    with pytest.raises(PairFailedError) as failed:
        measure_pair(
            (runner, runner), (base, head), (scenario, scenario), plan, (), random.Random(0)
        )
    assert failed.value.side == "head"
    assert failed.value.ending.outcome is outcome
    assert reason in failed.value.ending.reason


def test_a_side_killed_while_it_is_paused_is_named(runner: Runner, tmp_path: Path) -> None:
    base = make_side(tmp_path, "base", loss="if calls == 40: " + (
        f"os.kill(int(open({str(tmp_path / 'pid')!r}).read()), signal.SIGKILL)"
    ))  # fmt: skip
    head = make_side(
        tmp_path, "head", loss=f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    )
    with pytest.raises(PairFailedError) as failed:
        run(runner, base, head)
    assert failed.value.side == "head"
    assert "SIGKILL" in failed.value.ending.reason


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A background job of a shell inherits SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_ends_both_sides(runner: Runner, tmp_path: Path) -> None:
    base, once = make_side(tmp_path, "base"), tmp_path / "once"
    # Once both have begun, whichever came first, and however fast this machine is.
    both = f"os.path.exists({str(base.directory / 'log')!r}) and not os.path.exists({str(once)!r})"
    loss = f"if calls > 40 and {both}: "
    loss += f"open({str(once)!r}, 'w').close(); os.kill({os.getpid()}, signal.SIGINT)"
    head = make_side(tmp_path, "head", loss=loss)
    with pytest.raises(KeyboardInterrupt):
        run(runner, base, head)
    pids = {json.loads(line)[2] for s in (base, head)
            for line in (s.directory / "log").read_text().splitlines()}  # fmt: skip
    assert len(pids) >= 2
    assert not any(map(psutil.pid_exists, pids))
    pair = run(runner, *(make_side(tmp_path, name) for name in ("again-base", "again-head")))
    assert pair.base.windows_s, "the runner serves on"


def test_the_working_tree_on_the_search_path_does_not_hide_a_sides_own_modules(
    tmp_path: Path,
) -> None:
    # As an editable install or PYTHONPATH puts it there, for the server too.
    working = make_side(tmp_path, "working", sleep_s=5.0)
    base, head = make_side(tmp_path, "base"), make_side(tmp_path, "head")
    with Runner(environment={"PYTHONPATH": working.sys_path[0]}) as runner:
        pair = run(runner, base, head)
    assert min(min(steps) for steps in pair.head.steps_s) < 1


def test_both_sides_keep_to_their_cpus(runner: Runner, tmp_path: Path) -> None:
    cpu = sorted(os.sched_getaffinity(0))[-1]
    loss = f"assert os.sched_getaffinity(0) == {{{cpu}}}"
    base, head = (make_side(tmp_path, name, loss=loss) for name in ("base", "head"))
    scenario = Scenario(workload="train.py:build", device="cpu", batch_size=2, threads=1)
    pair = measure_pair(
        (runner, runner), (base, head), (scenario, scenario), PLAN, (cpu,), random.Random(0)
    )
    assert pair.head.windows_s


@pytest.mark.parametrize(
    ("step_s", "expected"),
    [
        (0.0001, Rhythm(num_rounds=40, num_lead=1, num_steps=300)),
        (0.001, Rhythm(num_rounds=40, num_lead=1, num_steps=30)),
        (0.01, Rhythm(num_rounds=25, num_lead=1, num_steps=5)),
        (0.05, Rhythm(num_rounds=10, num_lead=1, num_steps=2)),
        (2.0, Rhythm(num_rounds=8, num_lead=1, num_steps=1)),
    ],
)
def test_turns_fit_the_step(step_s: float, expected: Rhythm) -> None:
    assert rhythm(Scenario(workload="mlp-toy", device="cpu"), step_s) == expected


def test_every_worker_has_its_share_of_a_turn() -> None:
    scenario = Scenario(workload="mlp-toy", device="cpu", num_workers=4)
    assert rhythm(scenario, 0.01) == Rhythm(num_rounds=19, num_lead=0, num_steps=8)


@pytest.mark.parametrize(
    ("axes", "num_threads", "usable", "expected"),
    [
        ({}, 1, (0, 1), [(0,), (1,), (0,)]),
        ({}, 2, (0, 1, 2, 3, 4), [(0, 1), (2, 3), (0, 1)]),
        ({}, 2, (4, 6), [(4, 6)] * 3),
        ({}, 4, (4, 6), [(4, 6)] * 3),
        ({"num_workers": 2}, 1, (0, 1), [(0, 1)] * 3),
        ({"num_workers": 1}, 1, (0, 1, 2, 3), [(0, 1), (2, 3), (0, 1)]),
        ({"world_size": 2}, 1, (0, 1, 2, 3), [(0, 1), (2, 3), (0, 1)]),
        ({"world_size": 2}, 2, (0, 1, 2, 3, 4), [(0, 1, 2, 3)] * 3),
        ({"world_size": 4}, 1, (0, 1), [()] * 3),
        ({}, 1, (), [()] * 3),
        ({"device": "cuda"}, 1, (0, 1), [()] * 3),
    ],
    ids=str,
)
def test_pairs_keep_to_as_many_cpus_as_they_compute_on(
    axes: dict[str, Any],
    num_threads: int,
    usable: tuple[int, ...],
    expected: list[tuple[int, ...]],
) -> None:
    scenario = Scenario(**{"workload": "mlp-toy", "device": "cpu", **axes})
    found = [cpus_for(scenario, num_threads, usable, number) for number in range(3)]
    assert found == expected


def test_a_module_from_the_working_tree_is_no_sides_own(runner: Runner, tmp_path: Path) -> None:
    working = make_side(tmp_path, "working")
    base, head = (confined(tmp_path, name) for name in ("base", "head"))
    assert run(runner, base, head).base.windows_s
    # As an import hook of an editable install finds it, wherever the search path leads.
    head = dataclasses.replace(head, sys_path=working.sys_path)
    with pytest.raises(PairFailedError, match=r"module 'helper' came from .*working/lib/helper"):
        run(runner, base, head)
    # What was linked to on purpose is the same for both sides on purpose.
    head = confined(tmp_path, "head", opened=tmp_path / "working" / "lib")
    head = dataclasses.replace(head, sys_path=working.sys_path)
    base = make_side(tmp_path, "again")
    assert run(runner, base, head).head.windows_s


def test_an_installed_copy_of_the_sides_own_code_is_refused(runner: Runner, tmp_path: Path) -> None:
    """Here the copy is of a package that certainly is installed."""
    base, head = (confined(tmp_path, name) for name in ("base", "head"))
    (head.directory / ".git").touch()
    (head.directory / "src" / "psutil").mkdir(parents=True)
    (head.directory / "src" / "psutil" / "__init__.py").touch()
    with pytest.raises(PairFailedError, match=r"module 'psutil' came from .*has its own"):
        run(runner, base, head)


def test_a_copy_of_the_sides_own_code_is_refused_wherever_it_lies(
    runner: Runner, tmp_path: Path
) -> None:
    """As an editable install of another clone puts it on the search path, first of all."""
    other = make_side(tmp_path, "other")
    base, head = (confined(tmp_path, name) for name in ("base", "head"))
    (head.directory / ".git").touch()
    (head.directory / "src").mkdir()
    (head.directory / "lib" / "helper.py").rename(head.directory / "src" / "helper.py")
    head = dataclasses.replace(head, sys_path=other.sys_path)
    with pytest.raises(PairFailedError, match=r"'helper' came from .*other/lib/helper\.py"):
        run(runner, base, head)


def test_sides_that_both_run_code_from_elsewhere_are_refused(
    runner: Runner, tmp_path: Path
) -> None:
    base, head = (confined(tmp_path, name, own_code=True) for name in ("base", "head"))
    assert run(runner, base, head).base.windows_s
    scenario = Scenario(workload="mlp-toy", device="cpu", batch_size=2, threads=1)
    with pytest.raises(PairFailedError, match=r"both sides: .*would run the same code") as caught:
        measure_pair(
            (runner, runner), (base, head), (scenario, scenario), PLAN, (), random.Random(0)
        )
    assert caught.value.ending.outcome is Outcome.FAILED


def test_what_runs_on_neither_side_is_blamed_on_none(runner: Runner, tmp_path: Path) -> None:
    base, head = (make_side(tmp_path, name, loss="1 / 0") for name in ("base", "head"))
    with pytest.raises(PairFailedError, match="both sides: failed: ZeroDivisionError"):
        run(runner, base, head)
    sound = make_side(tmp_path, "sound")
    with pytest.raises(PairFailedError, match="base: failed: ZeroDivisionError"):
        run(runner, base, sound)


def test_figures_of_all_ranks_are_kept() -> None:
    first = {"batch": "2x4 float32", "loss": "1.5", "peak_allocated_bytes": "900"}
    second = {"batch": "2x4 float32", "loss": "2.5", "peak_allocated_bytes": "1000"}
    assert _of_all_ranks([first, second]) == {
        "batch": "2x4 float32",
        "loss": "1.5; 2.5",
        "peak_allocated_bytes": "1000",
    }

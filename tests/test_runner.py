"""Real processes, really killed: every end becomes a result, the next one runs, nothing stays."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stepmark import Outcome, Plan, Result, Scenario, measure
from stepmark.errors import RunnerError, UsageError
from stepmark.runner import Runner, errand, host_process, processes
from stepmark.runner.host_process import HostProcess
from stepmark.runner.messages import Channel, Order, Stage, dumps
from stepmark.store import RunFolder, RunPlan

SHORT = Plan(steps=3, warmup=0, max_seconds=2, timeout=30)
REPOSITORY = Path(__file__).parent.parent

WORKLOAD = """
import ctypes, json, os, pathlib, signal, sys, threading, time
import torch
from torch import nn
from torch.utils.data import Dataset, get_worker_info
from stepmark import Workload

HERE = pathlib.Path(__file__).parent
RANK = int(os.environ.get("RANK", "0"))

{top}

class Points(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        {item}
        return torch.ones(4), 0

class Net(nn.Linear):
    def forward(self, inputs):
        {forward}
        return super().forward(inputs)

def build():
    model = Net(4, 2)
    {build}
    return Workload(
        model=model,
        dataset=Points(),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
"""


class Bench:
    """A runner, a folder for workloads, and what to do when a measurement reaches a stage."""

    def __init__(self) -> None:
        self.on_stage: Callable[[Stage], None] | None = None
        self.runner = Runner(self._watch)
        self.folder = Path()

    def _watch(self, stage: Stage) -> None:
        if self.on_stage is not None:
            self.on_stage(stage)

    def write(self, **code: str) -> str:
        """A workload with code at some of its places; its address."""
        path = self.folder / f"workload_{uuid.uuid4().hex[:8]}.py"
        indents = {"top": 0, "item": 8, "forward": 8, "build": 4}
        places = {
            place: textwrap.indent(textwrap.dedent(code.get(place, "pass")), " " * spaces).lstrip()
            for place, spaces in indents.items()
        }
        path.write_text(WORKLOAD.format(**places))
        return f"{path}:build"

    def run(self, plan: Plan = SHORT, axes: dict[str, Any] | None = None, **code: str) -> Result:
        axes = {"device": "cpu", "batch_size": 4, "threads": 1, **(axes or {})}
        return self.runner.run(Scenario(workload=self.write(**code), **axes), plan)

    @property
    def host(self) -> psutil.Process:
        (host,) = [p for p in psutil.Process().children() if is_host(p)]
        return host


def is_host(process: psutil.Process) -> bool:
    try:
        return processes.MARK in process.environ()
    except psutil.Error:
        return False


def with_variable(name: str, value: str) -> list[psutil.Process]:
    """Every process with that variable in its environment; dead ones have none."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def left_in(folder: Path) -> list[Path]:
    """What a folder holds, less the folder of torch.compile, which torch makes when imported."""
    return [path for path in folder.iterdir() if not path.name.startswith("torchinductor_")]


def eventually(condition: Callable[[], Any], within_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    shared = Bench()
    with shared.runner:
        yield shared


@pytest.fixture
def bench(shared: Bench, tmp_path: Path) -> Iterator[Bench]:
    """The shared runner; afterwards a plain scenario must work, and no process be left over."""
    shared.folder = tmp_path
    yield shared
    shared.on_stage = None
    after = shared.run()
    assert (after.outcome, after.reason) == (Outcome.OK, "")
    # The forkserver and multiprocessing's resource tracker.
    assert len(shared.host.children(recursive=True)) == 2


@pytest.fixture
def same_host(bench: Bench) -> Iterator[Bench]:
    """As `bench`, and the warm server must be the same afterwards."""
    machine = bench.runner.machine
    before = {bench.host, *bench.host.children(recursive=True)}
    yield bench
    assert {bench.host, *bench.host.children(recursive=True)} == before
    assert bench.runner.machine is machine


# --- What goes well


def test_a_scenario_is_measured(same_host: Bench) -> None:
    result = same_host.run()
    assert (result.outcome, result.reason, result.detail) == (Outcome.OK, "", "")
    assert [record.window.num_steps for record in result.ranks] == [3]
    assert 0 < result.ranks[0].startup.total_s < result.wall_s


def test_two_ranks_are_measured_and_told_apart(same_host: Bench) -> None:
    result = same_host.run(axes={"world_size": 2})
    assert (result.outcome, result.reason) == (Outcome.OK, "")
    assert [record.rank for record in result.ranks] == [0, 1]


def test_ddp_at_world_size_1_goes_through_elastic_too(same_host: Bench) -> None:
    result = same_host.run(
        axes={"ddp": True}, build="(HERE / 'run_id').write_text(os.environ['TORCHELASTIC_RUN_ID'])"
    )
    assert result.outcome is Outcome.OK
    assert (same_host.folder / "run_id").read_text()


def test_a_scenario_that_cannot_run_here_is_skipped_with_a_reason(same_host: Bench) -> None:
    device = next(d for d in ("cuda", "mps") if same_host.runner.machine.device(d) is None)
    result = same_host.run(axes={"device": device})
    assert (result.outcome, result.reason) == (
        Outcome.SKIPPED,
        f"no {device} device on this machine",
    )


def test_what_a_workload_prints_stays_out_of_the_supervisors_output(
    same_host: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    result = same_host.run(
        forward="""
        print("x" * 1_000_000)
        print("y" * 1_000_000, file=sys.stderr)
        os.write(1, b"z" * 1_000_000)
        os.system("echo from a shell")
        """
    )
    assert result.outcome is Outcome.OK
    assert capfd.readouterr() == ("", "")


def test_the_watcher_hears_the_stages_of_rank_0(same_host: Bench) -> None:
    heard: list[Stage] = []
    same_host.on_stage = heard.append
    assert same_host.run(axes={"world_size": 2}).outcome is Outcome.OK
    assert [stage.rank for stage in heard] == [0] * len(heard)
    assert [stage.stage for stage in heard][:2] == ["building", "warming up"]


# --- Every measurement is fresh

REPORT = """
count = getattr(torch, "runs_seen_by_test", 0)
torch.runs_seen_by_test = count + 1
os.environ["SEEN_BY_TEST"] = os.environ.get("SEEN_BY_TEST", "") + "x"
(HERE / "report.json").write_text(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "runs": count,
    "seen": os.environ["SEEN_BY_TEST"], "num_threads": len(os.listdir("/proc/self/task")),
    "torch_threads": torch.get_num_threads(), "cuda": torch.cuda.is_initialized(),
    "grad": torch.is_grad_enabled(), "seed": torch.initial_seed(),
    "path": sys.path, "cwd": os.getcwd(), "environment": dict(os.environ),
}))
"""


def report(bench: Bench, top: str = "", axes: dict[str, Any] | None = None) -> dict[str, Any]:
    result = bench.run(top=REPORT + textwrap.dedent(top), axes=axes)
    assert (result.outcome, result.reason) == (Outcome.OK, "")
    return json.loads((bench.folder / "report.json").read_text())  # type: ignore[no-any-return]


def test_every_run_has_a_process_of_its_own_from_one_server(same_host: Bench) -> None:
    first, second = report(same_host), report(same_host)
    assert first["pid"] != second["pid"]
    assert first["parent"] == second["parent"]
    server = psutil.Process(first["parent"])
    assert server.parent() == same_host.host
    assert first["group"] == first["pid"]


def test_a_run_sees_nothing_of_the_one_before(same_host: Bench) -> None:
    # Computing on three threads makes an OpenMP pool, which no other process may inherit.
    first = report(
        same_host,
        "torch.ones(300, 300) @ torch.ones(300, 300); torch.set_grad_enabled(True)",
        axes={"threads": 3},
    )
    second = report(same_host, axes={"threads": 1})
    assert (first["torch_threads"], second["torch_threads"]) == (3, 1)
    assert second["num_threads"] == 1
    for seen in (first, second):
        assert seen["runs"] == 0
        assert seen["seen"] == "x"
        assert not seen["cuda"]


def test_the_preloaded_server_has_one_thread_and_is_no_user_of_a_device(same_host: Bench) -> None:
    server = psutil.Process(report(same_host)["parent"])
    assert server.num_threads() == 1
    assert not [f.path for f in server.open_files() if f.path.startswith("/dev/")]


def test_a_rank_sees_the_supervisors_directory_and_modules(
    same_host: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, library = same_host.folder / "place", same_host.folder / "library"
    place.mkdir()
    library.mkdir()
    (library / "only_here_for_a_test.py").write_text("ANSWER = 42\n")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path, str(library)])
    seen = report(same_host, "import only_here_for_a_test")
    assert seen["cwd"] == str(place)
    assert str(library) in seen["path"]


def test_neither_modules_beside_the_user_nor_a_long_temporary_path_keep_it_from_starting(
    tmp_path: Path,
) -> None:
    (tmp_path / "queue.py").write_text("raise ImportError('the wrong queue')\n")
    temporary = tmp_path / ("too long for a socket " * 5)
    temporary.mkdir()
    script = """
        from stepmark import Plan, Scenario, measure
        scenario = Scenario(workload="mlp-toy", device="cpu", batch_size=2)
        print(measure(scenario, Plan(steps=2, warmup=0)).outcome)
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")
    assert [path for path in left_in(temporary) if path.name.startswith("stepmark")] == []


def test_a_changed_environment_gets_a_server_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(bench)
    before = bench.host
    monkeypatch.setenv("STEPMARK_TEST_VARIABLE", "new")
    # As where the supervisor itself was started by torchrun, or by a cluster's scheduler.
    monkeypatch.setenv("RANK", "7")
    assert report(bench)["environment"]["STEPMARK_TEST_VARIABLE"] == "new"
    assert bench.host != before
    assert not before.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="maps of a process are Linux's")
def test_a_host_imports_torch_for_several_ranks_alone_and_before_their_clock_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []
    prepared_s: list[float] = []
    tell, prepare = HostProcess.tell, HostProcess.prepare_for_ranks

    def noted(host: HostProcess, message: Any) -> None:
        orders.extend([message] if isinstance(message, Order) else [])
        tell(host, message)

    def timed(host: HostProcess) -> None:
        prepare(host)
        prepared_s.append(time.monotonic())

    monkeypatch.setattr(HostProcess, "tell", noted)
    monkeypatch.setattr(HostProcess, "prepare_for_ranks", timed)
    monkeypatch.setenv("STEPMARK_TEST_VARIABLE", "a host of its own")

    def has_torch() -> bool:
        return any("libtorch" in part.path for part in bench.host.memory_maps())

    report(bench)
    assert not has_torch()
    assert not prepared_s
    assert bench.run(axes={"world_size": 2}).outcome is Outcome.OK
    assert has_torch()
    assert orders[-1].requested_s >= prepared_s[0]


def test_what_ranks_cannot_be_started_with_is_said_and_no_timeout(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hook = "import sys; sys.modules['torch.distributed.launcher.api'] = None"
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = bench.run(axes={"world_size": 2})
    assert result.outcome is Outcome.FAILED
    assert "torch.distributed.launcher.api" in result.reason


# --- What goes wrong inside one process

RAISE = "raise ValueError('the reason')"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("code", "axes", "reason"),
    [
        ({"build": RAISE}, {}, "raised ValueError: the reason"),
        ({"forward": RAISE}, {}, "ValueError: the reason"),
        (
            {
                "build": """
                def hook(gradient):
                    raise ValueError("the reason")
                model.weight.register_hook(hook)
                """
            },
            {},
            "ValueError: the reason",
        ),
        ({"item": RAISE}, {}, "ValueError: the reason"),
        ({"item": RAISE}, {"num_workers": 1}, "ValueError: the reason (in a loader worker, "),
        ({"forward": "sys.exit()"}, {}, "SystemExit"),
        ({"forward": "sys.exit(3)"}, {}, "SystemExit: 3"),
        ({"forward": "raise KeyboardInterrupt"}, {}, "KeyboardInterrupt"),
        ({"forward": "input()"}, {}, "EOFError: EOF when reading a line"),
    ],
    ids=lambda value: None,
)
def test_an_exception_is_a_failure_with_its_text_and_traceback(
    same_host: Bench, code: dict[str, str], axes: dict[str, Any], reason: str
) -> None:
    result = same_host.run(axes=axes, **code)
    assert result.outcome is Outcome.FAILED
    assert reason in result.reason
    assert "\n" not in result.reason
    if "the reason" in reason:
        assert re.search(r"workload_\w+\.py, line \d+\)$", result.reason)
    assert "Traceback (most recent call last)" in result.detail
    assert "workload_" in result.detail
    assert result.ranks == ()


def test_an_exception_with_a_text_of_any_kind_can_be_saved(same_host: Bench) -> None:
    result = same_host.run(forward=r"raise ValueError('bad name \udcff' + 'x' * 1_000_000)")
    assert result.reason.startswith(r"ValueError: bad name \udcffxxx")
    assert re.search(r"xxx \.\.\. \(workload_\w+\.py, line \d+\)$", result.reason)
    assert len(result.reason) < 1000
    assert len(result.detail) < 50_000
    RunFolder.create(
        same_host.folder,
        "run",
        RunPlan(created_at="2020-01-01T00:00:00+00:00", plan=SHORT, scenarios=()),
    ).save(result)


def test_what_a_failed_workload_printed_is_in_the_detail(same_host: Bench) -> None:
    result = same_host.run(forward="print('last words')\n" + RAISE)
    assert "--- output of rank 0 ---\nlast words" in result.detail


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (KILL, "the measuring process was killed by SIGKILL"),
        ("ctypes.string_at(0)", "the measuring process was killed by SIGSEGV"),
        ("os.abort()", "the measuring process was killed by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "the measuring process was killed by SIGTERM"),
        ("os.kill(0, signal.SIGKILL)", "the measuring process was killed by SIGKILL"),
        ("os.kill(os.getpid(), 40)", "the measuring process was killed by signal 40"),
        ("os._exit(3)", "the measuring process ended with exit code 3 before it was measured"),
        ("os._exit(0)", "ended with exit code 0 before it was measured"),
    ],
)
def test_a_process_that_dies_is_a_failure_that_says_how(
    same_host: Bench, code: str, reason: str
) -> None:
    result = same_host.run(forward="print('last words')\n" + code)
    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)
    assert "last words" in result.detail


def test_a_crash_shows_where_in_python_it_happened(same_host: Bench) -> None:
    result = same_host.run(forward="ctypes.string_at(0)")
    assert "Fatal Python error: Segmentation fault" in result.detail
    assert "in forward" in result.detail


def test_a_killed_loader_worker_is_a_failure_that_says_so(same_host: Bench) -> None:
    result = same_host.run(item=KILL, axes={"num_workers": 2})
    assert result.outcome is Outcome.FAILED
    # torch says "killed by signal: Killed", or, if it looks a moment later, "unexpectedly".
    assert "DataLoader worker" in result.reason


@pytest.mark.parametrize("place", ["build", "item", "forward"])
@pytest.mark.parametrize(
    "code", ["torch.empty(2**50, dtype=torch.uint8)", "raise MemoryError"], ids=["torch", "python"]
)
def test_running_out_of_memory_is_an_outcome_of_its_own(
    same_host: Bench, place: str, code: str
) -> None:
    axes = {"num_workers": 1} if place == "item" else {}
    result = same_host.run(axes=axes, **{place: code})
    assert result.outcome is Outcome.OOM
    assert result.reason
    assert result.ranks == ()


@pytest.mark.skipif(sys.platform != "linux", reason="how the kernel chooses is Linux's own")
def test_the_kernel_would_rather_kill_a_rank_than_what_started_it(same_host: Bench) -> None:
    place = "(HERE / 'score').write_text(pathlib.Path('/proc/self/oom_score_adj').read_text())"
    assert same_host.run(item=place, axes={"num_workers": 1}).outcome is Outcome.OK
    assert int((same_host.folder / "score").read_text()) == 1000
    for process in (same_host.host, *same_host.host.children(recursive=True)):
        assert int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()) < 1000


@pytest.mark.parametrize(
    "code",
    [
        {"forward": "time.sleep(1000)"},
        {"forward": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"},
        {"top": "time.sleep(1000)"},
    ],
    ids=["forward", "ignores SIGTERM", "import"],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_hang_is_a_timeout_soon_after_the_deadline(
    same_host: Bench, code: dict[str, str], world_size: int
) -> None:
    plan = Plan(steps=3, warmup=0, timeout=1.5)
    result = same_host.run(plan, axes={"world_size": world_size}, **code)
    assert result.outcome is Outcome.TIMEOUT
    assert result.reason.startswith("not finished after 1.5 s (while ")
    assert 1.5 <= result.wall_s < 5


def test_a_loader_that_hangs_is_a_timeout(same_host: Bench) -> None:
    plan = Plan(steps=3, warmup=0, timeout=1.5)
    result = same_host.run(plan, axes={"num_workers": 2}, item="time.sleep(1000)")
    assert result.outcome is Outcome.TIMEOUT
    assert result.wall_s < 5


def test_a_deadline_that_is_over_before_anything_runs_is_a_timeout(same_host: Bench) -> None:
    for world_size in (1, 2):
        plan = Plan(steps=3, warmup=0, timeout=0.001)
        result = same_host.run(plan, axes={"world_size": world_size})
        assert result.outcome is Outcome.TIMEOUT
        assert result.wall_s < 5


# --- What goes wrong among ranks


@pytest.mark.parametrize("place", ["top", "build", "item", "forward"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (KILL, "rank 1 was killed by SIGKILL"),
        ("os._exit(3)", "rank 1 ended with exit code 3 before it was measured"),
    ],
    ids=["killed", "exits"],
)
def test_of_two_ranks_the_one_that_died_is_named(
    same_host: Bench, place: str, code: str, reason: str
) -> None:
    result = same_host.run(axes={"world_size": 2}, **{place: f"if RANK == 1: {code}"})
    assert (result.outcome, result.reason) == (Outcome.FAILED, reason)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("place", ["build", "forward"])
def test_of_two_ranks_the_one_that_raised_is_named(same_host: Bench, place: str, rank: int) -> None:
    result = same_host.run(axes={"world_size": 2}, **{place: f"if RANK == {rank}: {RAISE}"})
    assert result.outcome is Outcome.FAILED
    assert result.reason.startswith(f"rank {rank}: ")
    assert re.search(r"ValueError: the reason \(workload_\w+\.py, line \d+\)$", result.reason)


def test_a_rank_killed_in_the_middle_of_the_steps_is_named(same_host: Bench) -> None:
    result = same_host.run(
        Plan(steps=200, warmup=0, timeout=30),
        axes={"world_size": 2},
        top="calls = []",
        forward=f"""
        calls.append(1)
        if RANK == 1 and len(calls) == 50: {KILL}
        """,
    )
    assert result.reason == "rank 1 was killed by SIGKILL"


def test_the_other_rank_ignoring_sigterm_does_not_hold_up_a_failure(
    same_host: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errand, "GRACE_S", 2.0)
    result = same_host.run(
        axes={"world_size": 2},
        forward=f"""
        if RANK == 1: {RAISE}
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
        """,
    )
    assert result.outcome is Outcome.FAILED
    assert result.reason.startswith("rank 1: ValueError: the reason (")
    assert result.wall_s < 8


@pytest.mark.parametrize("place", ["build", "forward"])
def test_one_rank_hanging_is_a_timeout(same_host: Bench, place: str) -> None:
    # In build: the other one waits for it in the process group's making.
    plan = Plan(steps=3, warmup=0, timeout=2)
    code = {place: "if RANK == 1: time.sleep(1000)"}
    result = same_host.run(plan, axes={"world_size": 2}, **code)
    assert result.outcome is Outcome.TIMEOUT
    assert result.wall_s < 6


# --- What a workload leaves behind

DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (HERE / f"daemon{RANK}").write_text(str(os.getpid()))
        time.sleep(1000)
    os._exit(0)
os.wait()
while not (HERE / f"daemon{RANK}").exists():
    time.sleep(0.01)
"""


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("end", ["pass", RAISE, KILL], ids=["well", "raises", "killed"])
def test_a_daemon_of_the_workload_is_gone_and_not_waited_for(
    same_host: Bench, world_size: int, end: str
) -> None:
    # The daemon holds a copy of the rank's socket, and of its output.
    result = same_host.run(axes={"world_size": world_size}, build=DAEMON + end)
    assert result.outcome is (Outcome.OK if end == "pass" else Outcome.FAILED)
    assert result.wall_s < 8
    daemons = [int(path.read_text()) for path in same_host.folder.glob("daemon*")]
    assert daemons
    assert not any(map(psutil.pid_exists, daemons))


def test_a_rank_that_dies_while_parting_takes_no_other_ones_record_along(same_host: Bench) -> None:
    # Rank 1 has workers to join before it can report; gloo's teardown was seen to abort.
    result = same_host.run(
        axes={"world_size": 2, "num_workers": 1},
        item="time.sleep(0.2 * RANK)",
        build="if RANK == 0: torch.distributed.destroy_process_group = os.abort",
    )
    assert (result.outcome, result.reason) == (Outcome.OK, "")


def test_a_thread_that_never_ends_does_not_hold_up_a_measurement(
    same_host: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errand, "GRACE_S", 1.0)
    result = same_host.run(build="threading.Thread(target=time.sleep, args=(1000,)).start()")
    assert (result.outcome, result.reason) == (Outcome.OK, "")
    assert result.wall_s < 5


def test_a_fork_of_the_rank_does_not_speak_for_it(same_host: Bench) -> None:
    result = same_host.run(
        top="forked = []",
        forward=f"""
        if not forked:
            forked.append(1)
            child = os.fork()
            if child == 0:
                {RAISE}
            os.waitpid(child, 0)
        """,
    )
    assert (result.outcome, result.reason) == (Outcome.OK, "")


# --- What goes wrong with the host


def test_a_host_killed_while_measuring_is_a_failure_and_replaced(bench: Bench) -> None:
    before = bench.host
    bench.on_stage = lambda stage: before.kill() if stage.stage == "warming up" else None
    folder = Path(before.environ()[processes.MARK])
    result = bench.run(axes={"world_size": 2, "num_workers": 1}, build=DAEMON)
    assert (result.outcome, result.reason) == (Outcome.FAILED, "the measuring host died")
    assert not folder.exists()
    assert with_variable(processes.MARK, str(folder)) == []


def interrupt(_stage: Stage, _host: psutil.Process) -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(sys.platform != "linux", reason="semaphores are files on Linux alone")
@pytest.mark.parametrize("end", [interrupt, lambda _stage, host: host.kill()], ids=["int", "kill"])
def test_no_semaphore_is_left_behind(
    bench: Bench, end: Callable[[Stage, psutil.Process], None]
) -> None:
    def semaphores() -> set[Path]:
        return set(Path("/dev/shm").glob("sem.mp-*"))

    before, host = semaphores(), bench.host
    made: set[Path] = set()

    def on_stage(stage: Stage) -> None:
        if stage.stage == "warming up":
            made.update(semaphores() - before)
            end(stage, host)

    bench.on_stage = on_stage
    with contextlib.suppress(KeyboardInterrupt):
        bench.run(axes={"world_size": 2})
    assert made, "elastic makes some"
    assert not made & semaphores()


def test_a_host_killed_in_between_is_replaced_without_a_trace(bench: Bench) -> None:
    before = bench.host
    before.kill()
    # Dead, but not reaped: that is the runner's to do.
    assert eventually(lambda: not processes.is_alive(before))
    result = bench.run()
    assert (result.outcome, result.reason) == (Outcome.OK, "")


def test_a_host_that_no_longer_answers_is_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errand, "GRACE_S", 1.0)
    before = bench.host
    bench.on_stage = lambda stage: before.suspend() if stage.stage == "building" else None
    result = bench.run(Plan(steps=3, warmup=0, timeout=2), forward="time.sleep(1000)")
    assert result.outcome is Outcome.TIMEOUT
    assert not before.is_running()


def test_a_workload_that_kills_the_server_fails_and_the_next_one_runs(bench: Bench) -> None:
    result = bench.run(forward="os.kill(os.getppid(), signal.SIGKILL); time.sleep(1000)")
    assert result.outcome is Outcome.FAILED
    assert result.reason == (
        "the measuring processes were lost: the server they are forked from died"
    )


def test_an_interrupt_leaves_nothing_behind(bench: Bench) -> None:
    def interrupt(stage: Stage) -> None:
        if stage.stage == "warming up":
            raise KeyboardInterrupt

    folder = bench.host.environ()[processes.MARK]
    bench.on_stage = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.run(axes={"num_workers": 2}, build=DAEMON)
    assert with_variable(processes.MARK, folder) == []
    assert not Path(folder).exists()


def test_a_host_that_cannot_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('no host today')\n")
    with (
        Runner(environment={"PYTHONPATH": str(tmp_path)}) as runner,
        pytest.raises(RunnerError, match="died at its start: SystemExit: no host today"),
    ):
        _ = runner.machine


def test_a_temporary_folder_that_cannot_be_written_to_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_process, "LONGEST_TEMPORARY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with Runner() as runner, pytest.raises(RunnerError, match="set TMPDIR to a folder"):
        _ = runner.machine


def test_measure_refuses_repeats_instead_of_ignoring_them() -> None:
    with pytest.raises(UsageError, match="repeats=2: measure"):
        measure(Scenario(workload="mlp-toy", device="cpu", batch_size=2), Plan(repeats=2))


# --- Messages


def test_a_message_that_comes_in_pieces_comes_whole_and_half_a_message_not_at_all() -> None:
    here, there = socket.socketpair()
    channel = Channel(here)
    first, second = (Stage(rank=rank, stage="s", samples_per_s=None) for rank in (0, 1))
    line = dumps(first).encode() + b"\n"
    there.sendall(line[:10])
    assert channel.receive() == []
    there.sendall(line[10:] + dumps(second).encode() + b"\n" + line[:-1])
    assert channel.receive() == [first, second]
    there.close()
    assert channel.receive() is None
    channel.close()


# --- What is left behind

SUPERVISOR = """
import os, sys
from stepmark import Plan, Scenario
from stepmark.runner import Runner

def tell(stage):
    print(stage.stage, flush=True)

print("started", flush=True)
with Runner(tell) as runner:
    runner.machine
    print("ready", flush=True)
    for workload in sys.argv[1:]:
        for axes in ({}, {"num_workers": 2}, {"world_size": 2, "num_workers": 1}):
            result = runner.run(
                Scenario(workload=workload, device="cpu", batch_size=4, threads=1, **axes),
                Plan(steps=3, warmup=0, max_seconds=2, timeout=30),
            )
            print(result.outcome, flush=True)
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "0"])
    os.wait()
print("closed", flush=True)
"""


@pytest.fixture
def places() -> Iterator[dict[str, Path]]:
    """Folders for a supervisor to run in and to put temporary files into, with short paths."""
    with tempfile.TemporaryDirectory() as base:
        folders = {name: Path(base) / name for name in ("cwd", "tmp", "workloads")}
        for folder in folders.values():
            folder.mkdir()
        yield folders


def supervise(
    places: dict[str, Path], *workloads: str, script: str = SUPERVISOR
) -> "tuple[subprocess.Popen[str], str]":
    """Start a supervisor; with it, the mark that all of its processes carry."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-c", script, *workloads],
        cwd=places["cwd"],
        env={**os.environ, "TMPDIR": str(places["tmp"]), "STEPMARK_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, mark


def test_a_closed_runner_leaves_no_process_and_no_file(places: dict[str, Path]) -> None:
    bench = Bench()
    bench.folder = places["workloads"]
    workloads = bench.write(), bench.write(build="if RANK == 0: " + RAISE)
    process, mark = supervise(places, *workloads)
    output, _ = process.communicate(timeout=120)
    lines = output.splitlines()
    assert lines.count("ok") == 3
    assert lines.count("failed") == 3
    assert lines[-1] == "closed"
    assert with_variable("STEPMARK_TEST_MARK", mark) == []
    assert left_in(places["cwd"]) == []
    assert left_in(places["tmp"]) == []


MOMENTS: dict[str, Callable[[subprocess.Popen[str], Path], Any]] = {
    "before the host": lambda process, tmp: read_until(process, "started"),
    "host begins": lambda process, tmp: eventually(
        lambda: psutil.Process(process.pid).children(recursive=True)
    ),
    "host connects": lambda process, tmp: eventually(
        lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2
    ),
    "with two ranks": lambda process, tmp: read_until(process, "ok", "ok", "warming up"),
    "a daemon": lambda process, tmp: eventually(
        lambda: list((tmp.parent / "workloads").glob("daemon*"))
    ),
}


def read_until(process: "subprocess.Popen[str]", *lines: str) -> None:
    assert process.stdout is not None
    for wanted in lines:
        assert any(line.strip() == wanted for line in process.stdout), wanted


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_supervisor_takes_everything_with_it(places: dict[str, Path], moment: str) -> None:
    bench = Bench()
    bench.folder = places["workloads"]
    build = DAEMON + "time.sleep(1000)" if moment == "a daemon" else "pass"
    process, mark = supervise(places, bench.write(build=build, item="time.sleep(0.01)"))
    try:
        MOMENTS[moment](process, places["tmp"])
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert eventually(lambda: not with_variable("STEPMARK_TEST_MARK", mark)), [
        p.cmdline() for p in with_variable("STEPMARK_TEST_MARK", mark)
    ]
    assert left_in(places["cwd"]) == []
    # The kernel may not give the supervisor the time to start who would remove its folder.
    if moment != "before the host":
        assert left_in(places["tmp"]) == []


def test_a_fork_of_a_killed_supervisor_does_not_keep_the_host_alive(
    places: dict[str, Path],
) -> None:
    script = """
        import os, time
        from stepmark.runner import Runner
        runner = Runner()
        runner.machine
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(1000)
        os.wait()
    """
    process, mark = supervise(places, script=textwrap.dedent(script))
    assert process.stdout is not None
    fork = psutil.Process(int(process.stdout.readline()))
    try:
        process.kill()
        process.wait()
        assert eventually(lambda: with_variable("STEPMARK_TEST_MARK", mark) == [fork])
        assert left_in(places["tmp"]) == []
    finally:
        fork.kill()
        process.stdout.close()


def test_a_run_killed_again_and_again_is_completed_in_the_end() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "kill_test"), "2"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(
        "0 processes and 0 semaphores left, all runs completed"
    )

"""The side that asks for measurements: sets the deadline, kills, and turns any end into a result.

It imports no torch, and while a window is measured it sleeps in ``select``.
"""

import atexit
import functools
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from stepmark import machine, workloads
from stepmark.errors import RunnerError, UsageError
from stepmark.fingerprint import Commit, Machine
from stepmark.probes.memory import num_oom_kills
from stepmark.result import Outcome, RankRecord, Result
from stepmark.runner.messages import Channel, Done, Ended, Failed, Hello, Order, Stage, Started
from stepmark.scenario import Plan, Scenario

Watcher = Callable[[Stage], None]

# How long processes get to disappear after SIGKILL, and a fresh host to import torch.
GRACE_S = 10.0
HOST_START_S = 180.0

LOG_TAIL_CHARS = 4000

# Each stands unless the user's own environment says otherwise.
# - An OpenMP thread that waits for ever in a spin loop steals the core from whoever it waits
#   for; one that sleeps at once makes every small operation pay for waking it. A bounded spin
#   has the first one's speed on a quiet machine and the second one's robustness.
# - gloo finds its network interface by the host's name, which need not resolve.
ENVIRONMENT = {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "1"}
if sys.platform == "linux":
    ENVIRONMENT["GLOO_SOCKET_IFNAME"] = "lo"


@dataclass
class _Progress:
    """What is known of a running order."""

    pids: dict[int, int] = field(default_factory=dict)
    records: dict[int, RankRecord] = field(default_factory=dict)
    failures: list[Failed] = field(default_factory=list)
    stage: str = "starting"
    ended: Ended | None = None
    host_lost: bool = False
    timed_out: bool = False


class Runner:
    """Measures scenarios, each in fresh processes from one warm server. Use as a context.

    Args:
        watch: told what a running measurement does next; never called inside a window.
        environment: variables for the measuring processes, on top of the own environment.

    Raises:
        RunnerError: (from `machine` or `run`) the measuring host cannot be started.
    """

    def __init__(
        self, watch: Watcher | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._watch = watch
        self._environment = dict(environment or {})
        self._host: _Host | None = None
        self._machine: Machine | None = None

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def machine(self) -> Machine:
        """This machine, seen once per runner."""
        if self._machine is None:
            hello = self._ready_host().hello
            self._machine = machine.fingerprint(hello.devices, hello.software)
        return self._machine

    def run(self, scenario: Scenario, plan: Plan, *, repeat: int = 0) -> Result:
        """Measure a scenario once, in fresh processes. Whatever happens to them is a result.

        Raises:
            WorkloadError: the workload is known beforehand not to exist.
            RunnerError: no process can be started.
        """
        workloads.check(scenario.workload)
        scenario = scenario.on(self.machine)
        started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        start_s = time.monotonic()
        obstacle = scenario.obstacle(self.machine)
        if obstacle is not None:
            ending = _Ending(Outcome.SKIPPED, obstacle)
        else:
            ending = self._measure(scenario, plan)
        return Result(
            scenario=scenario,
            plan=plan,
            repeat=repeat,
            outcome=ending.outcome,
            reason=ending.reason,
            ranks=ending.records,
            machine=self.machine,
            commit=_commit(Path.cwd()),
            started_at=started_at,
            wall_s=time.monotonic() - start_s,
            detail=ending.detail,
        )

    def close(self) -> None:
        """End every process that this runner started."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def _ready_host(self) -> "_Host":
        if self._host is None:
            self._host = _Host({**ENVIRONMENT, **os.environ, **self._environment})
        return self._host

    def _measure(self, scenario: Scenario, plan: Plan) -> "_Ending":
        host = self._ready_host()
        folder = Path(tempfile.mkdtemp(dir=host.folder))
        order = Order(
            scenario=scenario,
            plan=plan,
            threads=scenario.threads_per_rank(self.machine.num_cpus),
            requested_s=time.monotonic(),
            sys_path=tuple(str(Path(entry).absolute()) for entry in ["", *sys.path]),
            folder=str(folder),
            address=str(host.address),
        )
        oom_kills = num_oom_kills()
        try:
            progress = host.carry_out(order, self._watch)
        except BaseException:
            # Ctrl-C, most likely: nothing of a half-done order may stay behind.
            self.close()
            raise
        if progress.host_lost:
            self.close()
        ending = _judge(
            progress,
            order,
            host_log=host.log_tail(),
            oom_killed=num_oom_kills() > oom_kills,
        )
        shutil.rmtree(folder, ignore_errors=True)
        return ending


def measure(scenario: Scenario, plan: Plan | None = None, *, repeat: int = 0) -> Result:
    """Measure a scenario once, in a fresh process; failures are outcomes, not exceptions.

    The first call starts a server that imports torch (some seconds); it serves all later calls
    and ends with this process.

    Args:
        scenario: what to measure.
        plan: how long; by default `Plan()`.
        repeat: recorded in the result, for callers that measure a scenario several times.

    Raises:
        UsageError: the workload does not exist, or the plan asks for repeats: call `measure`
            once for each and compare the results.
        RunnerError: no process can be started.
    """
    plan = plan or Plan()
    if plan.repeats != 1:
        raise UsageError(
            f"repeats={plan.repeats}: measure() is one fresh process with one Result; call it "
            "once per repeat, or use 'stepmark run --repeats'"
        )
    return _shared_runner().run(scenario, plan, repeat=repeat)


@functools.cache
def _shared_runner() -> Runner:
    runner = Runner()
    atexit.register(runner.close)
    return runner


@functools.cache
def _commit(directory: Path) -> Commit | None:
    return machine.commit(directory)


class _Host:
    """The host process and the socket that it and its ranks connect to."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stepmark-"))
        self.address = self.folder / "socket"
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.address))
        self._listener.listen()
        self._listener.settimeout(0.2)
        self._log = self.folder / "host.log"
        package_root = str(Path(__file__).parents[2])
        # The path goes last: what the interpreter would import by itself comes first.
        code = (
            f"import sys; sys.path.append({package_root!r}); "
            f"from stepmark.runner.host import main; main({str(self.address)!r})"
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._channel = self._accept()
            self.hello = self._greet()
        except BaseException:
            self.close()
            raise

    def carry_out(self, order: Order, watch: Watcher | None) -> _Progress:
        """Have an order done, or killed at its deadline."""
        progress = _Progress()
        deadline_s = time.monotonic() + order.plan.timeout
        ranks: set[Channel] = set()
        self._channel.send(order)
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._channel, selectors.EVENT_READ)
            while progress.ended is None or ranks:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 and progress.timed_out:
                    progress.host_lost = True
                    break
                if left_s <= 0:
                    progress.timed_out = True
                    _kill_groups(progress.pids.values())
                    deadline_s = time.monotonic() + GRACE_S
                    continue
                ready = [key.fileobj for key, _ in selector.select(left_s)]
                if self._listener in ready:
                    ranks.add(channel := Channel(self._listener.accept()[0]))
                    selector.register(channel, selectors.EVENT_READ)
                for channel in [c for c in ranks if c in ready]:
                    if not _hear(channel, progress, watch):
                        selector.unregister(channel)
                        ranks.discard(channel)
                        channel.close()
                if self._channel in ready and not _hear(self._channel, progress, watch):
                    progress.host_lost = True
                    break
        # A workload may leave processes of its own in a rank's group.
        _kill_groups(progress.pids.values())
        return progress

    def log_tail(self) -> str:
        """The end of what the host printed."""
        return _tail(self._log)

    def close(self) -> None:
        """Hang up, which makes the host kill its descendants and leave; then make sure."""
        self._listener.close()
        if hasattr(self, "_channel"):
            self._channel.close()
        try:
            self._process.wait(GRACE_S if hasattr(self, "_channel") else 0)
        except subprocess.TimeoutExpired:
            _kill_groups([self._process.pid])
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _accept(self) -> Channel:
        deadline_s = time.monotonic() + HOST_START_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                return Channel(self._listener.accept()[0])
            except TimeoutError:
                continue
        raise RunnerError(f"the measuring process did not start: {self._last_words()}")

    def _greet(self) -> Hello:
        messages = self._channel.receive()
        if not messages or not isinstance(messages[0], Hello):
            raise RunnerError(f"the measuring process died at its start: {self._last_words()}")
        return messages[0]

    def _last_words(self) -> str:
        return (_tail(self._log).strip().splitlines() or ["it printed nothing"])[-1]


def _hear(channel: Channel, progress: _Progress, watch: Watcher | None) -> bool:
    """Take in what a channel has to say; ``False`` once it is closed."""
    messages = channel.receive()
    for message in messages or ():
        match message:
            case Started(rank=rank, pid=pid):
                progress.pids[rank] = pid
            case Stage(stage=stage):
                progress.stage = stage
                if watch is not None and message.rank == 0:
                    watch(message)
            case Done(record=record):
                progress.records[record.rank] = record
            case Failed():
                progress.failures.append(message)
            case Ended():
                progress.ended = message
            case Hello() | Order():
                raise AssertionError(f"{type(message).__name__} is never sent here")
    return messages is not None


@dataclass(frozen=True)
class _Ending:
    outcome: Outcome
    reason: str
    detail: str = ""
    records: tuple[RankRecord, ...] = ()


def _judge(progress: _Progress, order: Order, *, host_log: str, oom_killed: bool) -> _Ending:
    """What became of an order. The first cause wins: a rank that dies makes the others fail."""
    world_size = order.scenario.world_size
    if len(progress.records) == world_size and progress.ended is not None:
        records = tuple(progress.records[rank] for rank in range(world_size))
        return _Ending(Outcome.OK, "", records=records)
    logs = "\n".join(
        f"--- output of rank {log.stem.removeprefix('rank')} ---\n{text}"
        for log in sorted(Path(order.folder).glob("rank*.log"))
        if (text := _tail(log))
    )
    if progress.timed_out:
        limit = f"{order.plan.timeout:g} s"
        reason = f"not finished after {limit} (while {progress.stage}); raise --timeout"
        return _Ending(Outcome.TIMEOUT, reason, logs)
    if progress.host_lost or progress.ended is None:
        return _Ending(Outcome.FAILED, "the measuring host died", f"{logs}\n{host_log}")
    # SIGTERM is how elastic ends the ranks that survived another's death.
    killed = {
        rank: -code
        for rank, code in progress.ended.exit_codes.items()
        if code < 0 and code != -signal.SIGTERM
    }
    for failure in sorted(progress.failures, key=lambda f: f.outcome is not Outcome.OOM):
        if killed and failure.outcome is not Outcome.OOM:
            break
        where = f"rank {failure.rank}: " if world_size > 1 else ""
        return _Ending(failure.outcome, where + failure.reason, f"{failure.detail}\n{logs}".strip())
    for rank, number in killed.items():
        name = signal.Signals(number).name
        if number == signal.SIGKILL and oom_killed:
            reason = f"rank {rank} was killed by the kernel: out of host memory"
            return _Ending(Outcome.OOM, reason, logs)
        return _Ending(Outcome.FAILED, f"rank {rank} was killed by {name}", logs)
    if progress.ended.error:
        return _Ending(Outcome.FAILED, f"ranks not started: {progress.ended.error}", host_log)
    codes = ", ".join(f"{code}" for code in progress.ended.exit_codes.values())
    reason = f"ended with exit code {codes} before it was measured"
    return _Ending(Outcome.FAILED, reason, logs)


def _kill_groups(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-LOG_TAIL_CHARS:]
    except OSError:
        return ""

"""The host and its ranks as the supervisor sees them: a process, a socket, and a deadline."""

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stepmark.errors import RunnerError
from stepmark.result import RankRecord
from stepmark.runner import processes
from stepmark.runner.messages import Channel, Done, Ended, Failed, Hello, Order, Stage, Stop
from stepmark.runner.processes import GRACE_S, MARK

Watcher = Callable[[Stage], None]

# A fresh host imports torch and wakes the devices.
START_S = 180.0

# A socket's path has at most 103 characters on macOS (107 on Linux), and multiprocessing makes one
# in a folder of its own inside of the host's.
LONGEST_TEMPORARY = 103 - len("/stepmark-12345678/pymp-12345678/listener-12345678")

LOG_TAIL_BYTES = 4000


@dataclass
class Progress:
    """What is known of an order.

    Attributes:
        records: of the ranks that are done.
        failures: of the ranks that ended by an exception.
        begun: a rank was heard of; before that, nothing of the workload was run.
        stage: what a rank did last.
        ended: the host's word that all processes are gone.
        stopped: they were killed because they took too long.
        host_lost: the host died, or was killed because it no longer answered.
    """

    records: dict[int, RankRecord] = field(default_factory=dict)
    failures: list[Failed] = field(default_factory=list)
    begun: bool = False
    stage: str = "starting"
    ended: Ended | None = None
    stopped: bool = False
    host_lost: bool = False

    def is_decided(self, world_size: int) -> bool:
        """Whether the outcome is known, even if processes still run."""
        return bool(self.failures) or len(self.records) == world_size


class HostProcess:
    """A running host.

    Args:
        environment: of the host and of everything it starts.

    Raises:
        RunnerError: it cannot be started.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.folder = _make_folder()
        self.address = self.folder / "socket"
        self._owner_pid = os.getpid()
        self._log = self.folder / "host.log"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._listener.bind(str(self.address))
            self._listener.listen()
            self._process = self._start()
            self.hello = self._greet()
        except BaseException:
            self.close(patience_s=0)
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def carry_out(self, order: Order, watch: Watcher | None) -> Progress:
        """Have an order done, or killed at its deadline."""
        assert self._channel is not None
        progress = Progress()
        deadline_s = order.requested_s + order.plan.timeout
        is_decided = False
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as ranks:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._channel, selectors.EVENT_READ, self._channel)
            self._tell(order, progress)
            while not progress.host_lost:
                left_s = 0 if progress.ended else deadline_s - time.monotonic()
                if left_s < 0:
                    if progress.stopped:
                        progress.host_lost = True  # it does not do as it is told
                    progress.stopped = True
                    deadline_s = time.monotonic() + GRACE_S
                    self._tell(Stop(), progress)
                    continue
                ready = selector.select(left_s)
                if progress.ended and not ready:
                    # What a rank said before its death lies in its socket when the host says
                    # that it ended. That the socket be closed is not waited for: a process that
                    # the workload forked may hold it.
                    break
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        rank = Channel(self._listener.accept()[0])
                        ranks.callback(rank.close)
                        selector.register(rank, selectors.EVENT_READ, rank)
                    elif not _hear(key.data, progress, watch):
                        progress.host_lost |= key.data is self._channel
                        selector.unregister(key.data)
                if not is_decided and progress.is_decided(order.scenario.world_size):
                    # What still runs has nothing to do but to leave.
                    is_decided = True
                    deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
        return progress

    def log_tail(self) -> str:
        """The end of what the host printed."""
        return tail(self._log)

    def close(self, patience_s: float = GRACE_S) -> None:
        """Hang up, which makes the host kill its descendants and leave; then make sure."""
        if os.getpid() != self._owner_pid:
            return  # a forked copy of the supervisor has no say
        self._listener.close()
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
            processes.end_all(lambda: processes.marked(self.folder))
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> "subprocess.Popen[bytes]":
        # The path goes last: what the interpreter would import by itself comes first. And with
        # -P a module in the current directory cannot hide one of the standard library.
        package_root = str(Path(__file__).parents[2])
        code = (
            f"import sys; sys.path.append({package_root!r}); "
            f"from stepmark.runner.host import main; main({str(self.address)!r}, {os.getpid()})"
        )
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                env={**self.environment, MARK: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _greet(self) -> Hello:
        """Wait until the host has connected and says what it found."""
        deadline_s = time.monotonic() + START_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while self.is_alive and time.monotonic() < deadline_s:
                for key, _ in selector.select(0.2):
                    if key.fileobj is self._listener:
                        self._channel = Channel(self._listener.accept()[0])
                        selector.register(self._channel, selectors.EVENT_READ)
                        selector.unregister(self._listener)
                        continue
                    assert self._channel is not None
                    messages = self._channel.receive()
                    if messages is None:
                        selector.unregister(self._channel)  # it is about to die
                    for message in messages or ():
                        assert isinstance(message, Hello)
                        return message
        last_words = (self.log_tail().strip().splitlines() or ["it printed nothing"])[-1]
        state = "does not answer" if self.is_alive else "died at its start"
        raise RunnerError(f"the measuring process {state}: {last_words}")

    def _tell(self, message: Order | Stop, progress: Progress) -> None:
        assert self._channel is not None
        try:
            self._channel.send(message)
        except OSError:
            progress.host_lost = True


def _make_folder() -> Path:
    """A host's folder.

    Raises:
        RunnerError: none can be made.
    """
    temporary = tempfile.gettempdir()
    if len(temporary) > LONGEST_TEMPORARY:
        temporary = "/tmp"
    try:
        return Path(tempfile.mkdtemp(prefix="stepmark-", dir=temporary))
    except OSError as error:
        raise RunnerError(
            f"{temporary}: no folder can be made in it ({error.strerror}); set TMPDIR to a folder "
            "that may be written to"
        ) from None


def _hear(channel: Channel, progress: Progress, watch: Watcher | None) -> bool:
    """Take in what a channel has to say; ``False`` once it is closed."""
    messages = channel.receive()
    for message in messages or ():
        match message:
            case Stage(stage=stage):
                progress.begun = True
                progress.stage = stage
                if watch is not None and message.rank == 0:
                    watch(message)
            case Done(record=record):
                progress.records[record.rank] = record
            case Failed():
                progress.failures.append(message)
            case Ended():
                progress.ended = message
            case Hello() | Order() | Stop():
                raise AssertionError(f"{type(message).__name__} is never sent here")
    return messages is not None


def tail(path: Path) -> str:
    """The end of a file; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

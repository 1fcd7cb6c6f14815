"""The host as the supervisor sees it: a process and its socket."""

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stepmark.codec import DecodeError
from stepmark.errors import RunnerError
from stepmark.runner import processes
from stepmark.runner.messages import (
    PROTOCOL,
    Channel,
    Ended,
    Hello,
    Order,
    Prepare,
    Prepared,
    Stop,
)
from stepmark.runner.processes import GRACE_S, MARK, tail

# A fresh host imports torch and wakes the devices.
START_S = 180.0

# A socket's path has at most 103 characters on macOS (107 on Linux), and multiprocessing makes one
# in a folder of its own inside of the host's.
LONGEST_TEMPORARY = 103 - len("/stepmark-12345678/pymp-12345678/listener-12345678")


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What measuring processes run with.

    Attributes:
        python: the interpreter; it has torch, and all else that stepmark needs.
        package: the folder of stepmark's modules.
    """

    python: str = sys.executable
    package: Path = Path(__file__).resolve().parents[1]


OWN = Installation()


class HostProcess:
    """A running host.

    Args:
        environment: of the host and of everything it starts.
        installation: what it runs with.

    Raises:
        RunnerError: it cannot be started.
    """

    def __init__(self, environment: Mapping[str, str], installation: Installation = OWN) -> None:
        self.environment = dict(environment)
        self._installation = installation
        # Orders that have ended, by their folders; who waits for one takes it out.
        self.ended: dict[str, Ended] = {}
        self._is_prepared = False
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

    def fileno(self) -> int:
        """For selectors: its channel."""
        return self._connected().fileno()

    def prepare_for_ranks(self) -> None:
        """Wait until it has imported what several ranks are started with: seconds, once.

        If it dies of that, or hangs, whoever gives it an order will see.
        """
        if self._is_prepared:
            return
        with contextlib.suppress(OSError):
            self.tell(Prepare())
        deadline_s = time.monotonic() + START_S
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while not self._is_prepared and time.monotonic() < deadline_s:
                if selector.select(0.2) and not self.hear():
                    return

    def tell(self, message: Prepare | Order | Stop) -> None:
        """Send it a message.

        Raises:
            OSError: it is gone.
        """
        self._connected().send(message)

    def hear(self) -> bool:
        """Take in what it has to say, into `ended`; ``False`` once it is gone."""
        messages = self._connected().receive()
        for message in messages or ():
            if isinstance(message, Prepared):
                self._is_prepared = True
                continue
            assert isinstance(message, Ended), "a host says nothing else after its greeting"
            self.ended[message.folder] = message
        return messages is not None

    def _connected(self) -> Channel:
        assert self._channel is not None
        return self._channel

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
        package_root = str(self._installation.package.parent)
        code = (
            f"import sys; sys.path.append({package_root!r}); "
            f"from stepmark.runner.host import main; main({str(self.address)!r}, {os.getpid()})"
        )
        environment = {**self.environment, MARK: str(self.folder)}
        if self._installation != OWN:
            # The interpreter may have a stepmark of its own, which speaks another language; and
            # beside the one meant there may be a torch, which is not.
            alone = self.folder / "code"
            alone.mkdir()
            (alone / "stepmark").symlink_to(self._installation.package)
            paths = [str(alone), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with self._log.open("wb") as log:
            try:
                return subprocess.Popen(
                    [self._installation.python, "-P", "-c", code],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                raise RunnerError(
                    f"{self._installation.python}: cannot be run ({error.strerror})"
                ) from None

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
                    try:
                        messages = self._channel.receive()
                    except DecodeError:
                        raise RunnerError(self._foreign()) from None
                    if messages is None:
                        selector.unregister(self._channel)  # it is about to die
                    for message in messages or ():
                        if not isinstance(message, Hello) or message.protocol != PROTOCOL:
                            raise RunnerError(self._foreign())
                        return message
        last_words = (self.log_tail().strip().splitlines() or ["it printed nothing"])[-1]
        state = "does not answer" if self.is_alive else "died at its start"
        with_what = "" if self._installation == OWN else f" of {self._installation.python}"
        raise RunnerError(f"the measuring process{with_what} {state}: {last_words}")

    def _foreign(self) -> str:
        return (
            f"{self._installation.package}: this stepmark speaks another protocol than the one "
            "that runs; its revisions cannot be measured by each other"
        )


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

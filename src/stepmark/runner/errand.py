"""One order on its way: what is heard of it, and its deadline."""

import contextlib
import selectors
import shutil
import socket
import time
from collections.abc import Callable
from typing import Self, TypeVar

from stepmark.probes.memory import num_oom_kills
from stepmark.runner.ending import Ending, Progress, judge
from stepmark.runner.host_process import HostProcess
from stepmark.runner.messages import (
    Calibrated,
    Channel,
    Done,
    EpochDone,
    Failed,
    Message,
    Opened,
    Order,
    Profiled,
    Ready,
    Stage,
    Stop,
    Trained,
    TrainingBegun,
    Turn,
    Turned,
)
from stepmark.runner.processes import GRACE_S

_Answer = TypeVar("_Answer", Ready, Turned)

Watcher = Callable[[Stage], None]
TrainingWatcher = Callable[[TrainingBegun | EpochDone], None]


class ErrandOverError(Exception):
    """A side that takes turns is no more."""


class Errand:
    """An order that a host carries out. Use as a context.

    Args:
        host: who carries it out.
        order: what to measure.
        watch: told what a rank does next.
        on_device: told the UUIDs of devices that ranks have.
        on_training: told how far a training is.
    """

    def __init__(
        self,
        host: HostProcess,
        order: Order,
        watch: Watcher | None = None,
        on_device: Callable[[str], None] | None = None,
        on_training: TrainingWatcher | None = None,
    ) -> None:
        self.progress = Progress()
        self._on_device = on_device
        self._on_training = on_training
        self._host = host
        self._order = order
        self._watch = watch
        self._num_oom_kills = num_oom_kills()
        self._ranks: list[Channel] = []
        self._open = contextlib.ExitStack()
        self._selector = self._open.enter_context(selectors.DefaultSelector())
        self._listener = self._open.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            self._listener.bind(order.address)
            self._listener.listen()
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._selector.register(host, selectors.EVENT_READ)
        except BaseException:
            self._open.close()
            raise
        self._tell(order)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        shutil.rmtree(self._order.folder, ignore_errors=True)

    def stop(self) -> None:
        """Have the host kill it, and what runs beside it; `finish` waits for that."""
        self._tell(Stop(folder=self._order.folder))

    def finish(self) -> Ending:
        """Wait until all of it is over, or killed at its deadline; what became of it."""
        progress = self.progress
        deadline_s = self._order.requested_s + self._order.plan.timeout
        is_decided = False
        while not progress.host_lost and progress.ended is None:
            if not self.listen(deadline_s):
                if progress.stopped:
                    progress.host_lost = True  # it does not do as it is told
                progress.stopped = True
                deadline_s = time.monotonic() + GRACE_S
                self.stop()
            elif not is_decided and progress.is_decided(self._order.scenario.num_processes):
                # What still runs has nothing to do but to leave.
                is_decided = True
                deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
            elif not is_decided and progress.renewed_s is not None and not progress.stopped:
                deadline_s = progress.renewed_s + self._order.plan.timeout
        # What a rank said before its death lies in its socket when the host says that it ended.
        # That the socket be closed is not waited for: a process that the workload forked may hold
        # it.
        while self.listen(0.0):
            pass
        return judge(
            progress,
            self._order,
            host_log=self._host.log_tail(),
            oom_killed=num_oom_kills() > self._num_oom_kills,
        )

    def start(self) -> dict[int, Ready]:
        """Wait until all ranks are ready to take turns.

        Raises:
            ErrandOverError: they never will be; `progress` says more.
        """
        return self._gather(self.progress.ready)

    def turn(self, turn: Turn) -> dict[int, Turned]:
        """Have all ranks take a turn, and wait for it.

        Raises:
            ErrandOverError: one of them is no more, or takes longer than the plan's timeout.
        """
        self.progress.turned.clear()
        for rank in self._ranks:
            with contextlib.suppress(OSError):  # it is dead: the host will say so
                rank.send(turn)
        return self._gather(self.progress.turned)

    def _gather(self, answers: dict[int, _Answer]) -> dict[int, _Answer]:
        deadline_s = time.monotonic() + self._order.plan.timeout
        while len(answers) < self._order.scenario.num_processes:
            if self.progress.is_over:
                raise ErrandOverError
            if not self.listen(deadline_s):
                self.progress.stopped = True
                raise ErrandOverError
        return dict(answers)

    def listen(self, deadline_s: float) -> bool:
        """Hear what comes next; ``False`` if nothing did until then (by ``time.monotonic``)."""
        if self._has_ended():  # another errand of the same host heard of it
            return True
        ready = self._selector.select(max(0.0, deadline_s - time.monotonic()))
        for key, _ in ready:
            if key.fileobj is self._listener:
                rank = Channel(self._listener.accept()[0])
                self._open.callback(rank.close)
                self._selector.register(rank, selectors.EVENT_READ)
                self._ranks.append(rank)
            elif key.fileobj is self._host:
                if not self._host.hear():
                    self.progress.host_lost = True
                    self._selector.unregister(self._host)
            else:
                assert isinstance(key.fileobj, Channel)
                self._hear(key.fileobj)
        return self._has_ended() or bool(ready)

    def _has_ended(self) -> bool:
        """Whether the end has come since this was last asked."""
        ended = self._host.ended.pop(self._order.folder, None)
        if ended is not None:
            self.progress.ended = ended
        return ended is not None

    def _hear(self, rank: Channel) -> None:
        messages = rank.receive()
        if messages is None:
            self._selector.unregister(rank)
        for message in messages or ():
            self._take(message)

    def _take(self, message: Message) -> None:
        progress = self.progress
        match message:
            case Opened(device_uuid=uuid):
                if uuid and self._on_device is not None:
                    self._on_device(uuid)
            case Stage(stage=stage):
                progress.begun = True
                progress.stage = stage
                if self._watch is not None and message.rank == 0:
                    self._watch(message)
            case Done(record=record):
                progress.answers[record.rank] = record
            case Profiled(profile=profile):
                progress.answers[profile.rank] = profile
            case Calibrated(ceilings=ceilings):
                progress.answers[message.rank] = ceilings
            case TrainingBegun() | EpochDone():
                progress.renewed_s = time.monotonic()
                if self._on_training is not None:
                    self._on_training(message)
            case Trained():
                progress.answers[message.rank] = message
            case Failed():
                progress.failures.append(message)
            case Ready():
                progress.ready[message.rank] = message
            case Turned():
                progress.turned[message.rank] = message
            case _:
                raise AssertionError(f"{type(message).__name__} is never sent here")

    def _tell(self, message: Order | Stop) -> None:
        try:
            self._host.tell(message)
        except OSError:
            self.progress.host_lost = True

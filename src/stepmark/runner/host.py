"""The process between supervisor and ranks: keeps a forkserver warm, starts ranks, reaps them.

It lives in a session of its own, so a terminal's Ctrl-C reaches the supervisor alone. When the
supervisor is gone, however it went, the host kills what it started and leaves.
"""

import contextlib
import multiprocessing
import os
import queue
import select
import shutil
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import psutil

from stepmark.codec import DecodeError
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
    dumps,
)


def main(address: str, supervisor_pid: int) -> None:
    """Serve the supervisor at ``address`` until it is gone."""
    folder = Path(address).parent
    processes.adopt_orphans()
    try:
        channel = Channel.connect(address)
    except OSError:
        _leave(folder)
    # Temporary files of multiprocessing and elastic; what the host leaves behind goes with it.
    tempfile.tempdir = str(folder)
    host = _Host(channel, folder, supervisor_pid)
    # First of all: the imports that follow take seconds, in which the supervisor may die.
    listener = threading.Thread(target=host.listen, daemon=True)
    listener.start()
    try:
        host.serve()
    finally:
        # Whatever it was: if it is because the supervisor has gone, the listener is at it,
        # and must be let finish.
        if host.leaving.wait(1.0) or os.getppid() != supervisor_pid:
            listener.join()


class _Host:
    """Two threads: `serve` sees to orders, `listen` hears of new ones and of the end."""

    def __init__(self, channel: Channel, folder: Path, supervisor_pid: int) -> None:
        self._channel = channel
        self._folder = folder
        self._supervisor_pid = supervisor_pid
        self._events: queue.SimpleQueue[Prepare | Order | Ended] = queue.SimpleQueue()
        self._permanent: set[psutil.Process] = set()
        # Both threads' own: which orders are on their way, and that they are to be killed.
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._stopping = False
        self.leaving = threading.Event()

    def serve(self) -> NoReturn:
        """Carry out orders, each in a thread: sides that take turns are two at a time.

        All else is done here, in the main thread: the server would end with a thread it was
        started from.
        """
        self._channel.send(self._warm_up())
        while True:
            event = self._events.get()
            if self.leaving.is_set():
                sys.exit("the supervisor is gone")
            if isinstance(event, Prepare):
                # What is wrong with it, who starts ranks will say.
                with contextlib.suppress(Exception):
                    import torch.distributed.launcher.api  # noqa: F401
                self._channel.send(Prepared())
                continue
            if isinstance(event, Order):
                threading.Thread(target=self._carry_out, args=(event,), daemon=True).start()
                continue
            if self._running == {event.folder}:
                self._sweep()
            with self._lock:
                self._running.remove(event.folder)
                self._stopping = self._stopping and bool(self._running)
            if not all(map(processes.is_alive, self._permanent)):
                error = "the server they are forked from died"
                event = Ended(folder=event.folder, exit_codes={}, error=error)
                # Now, so that the next one need not wait for it.
                self._warm_up()
            self._channel.send(event)

    def _carry_out(self, order: Order) -> None:
        self._events.put(_run_elastic(order) if order.scenario.distributed else _run_single(order))

    def listen(self) -> NoReturn:
        """Hand orders on; at the supervisor's end, end everything."""
        while True:
            # More may be starting while it is being stopped.
            patience_s = 0.05 if self._stopping else 1.0
            if select.select([self._channel], [], [], patience_s)[0]:
                try:
                    messages = self._channel.receive()
                except DecodeError as error:  # the supervisor is of another stepmark
                    print(error, file=sys.stderr, flush=True)
                    break
                if messages is None:
                    break
                for message in messages:
                    if isinstance(message, Prepare):
                        self._events.put(message)
                    elif isinstance(message, Order):
                        with self._lock:
                            self._running.add(message.folder)
                        self._events.put(message)
                    elif isinstance(message, Stop):
                        with self._lock:  # what has ended meanwhile is not to be stopped
                            self._stopping |= message.folder in self._running
            # A process that the supervisor forked may hold the connection open for it.
            elif os.getppid() != self._supervisor_pid:
                break
            if self._stopping:
                self._sweep()
        self.leaving.set()
        _leave(self._folder)

    def _warm_up(self) -> Hello:
        """Start the server, and a first process from it, which waits until it is warm."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["stepmark.runner.preload"])
        receiver, sender = context.Pipe(duplex=False)
        # In a process of its own, because asking for devices initializes CUDA.
        probe = context.Process(target=_describe, args=(sender,))
        probe.start()
        sender.close()
        # Where the supervisor was started may be deleted one day; this folder stays. Only now,
        # because the server looks for its modules from there if PYTHONPATH is relative.
        os.chdir(self._folder)
        try:
            hello = receiver.recv()
        except EOFError:
            probe.join()
            sys.exit(f"looking for devices ended with exit code {probe.exitcode}")
        probe.join()
        self._permanent = set(processes.descendants())
        assert isinstance(hello, Hello)
        return hello

    def _sweep(self) -> None:
        """Kill every descendant but the permanent ones."""
        processes.end(lambda: [p for p in processes.descendants() if p not in self._permanent])


def _leave(folder: Path) -> NoReturn:
    """End what was started, remove the folder, exit: whatever the other threads are doing.

    Resource trackers outlive this process, their last user, by the moment they take to clean up.
    """
    processes.end(processes.descendants)
    deadline_s = time.monotonic() + processes.GRACE_S
    while folder.exists() and time.monotonic() < deadline_s:
        # Another thread may be making files there, seeing its processes die.
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.01)
    os._exit(0)


def _describe(answer: "Connection[Hello, None]") -> None:
    from stepmark import devices, machine

    software = {**machine.installed(), **devices.software()}
    answer.send(Hello(protocol=PROTOCOL, devices=devices.describe(), software=software))


def _rank(order: str) -> None:
    """What a rank runs; here, so that the host need not import torch to name it."""
    from stepmark.runner import rank

    rank.main(order)


def _run_single(order: Order) -> Ended:
    """World size 1 without DDP: one process, no rendezvous."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_rank, args=(dumps(order),))
    process.start()
    process.join()
    assert process.exitcode is not None
    return Ended(folder=order.folder, exit_codes={"0": process.exitcode})


def _run_elastic(order: Order) -> Ended:
    """Ranks through torch.distributed.elastic, started from the same warm server."""
    try:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    except Exception as error:  # noqa: BLE001 - whatever comes of importing torch
        return Ended(folder=order.folder, exit_codes={}, error=_words(error))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=order.scenario.num_processes,
        run_id=Path(order.folder).name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
        local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=order.folder),
    )
    try:
        elastic_launch(config, _rank)(dumps(order))
    except ChildFailedError as error:
        exit_codes = {str(i): f.exitcode for i, f in error.failures.items()}
        return Ended(folder=order.folder, exit_codes=exit_codes)
    except Exception as error:  # noqa: BLE001 - the rendezvous may fail in many ways
        return Ended(folder=order.folder, exit_codes={}, error=_words(error))
    return Ended(folder=order.folder, exit_codes={})


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

"""The process between supervisor and ranks: keeps a forkserver warm, starts ranks, reaps them.

It lives in a session of its own, so a terminal's Ctrl-C reaches the supervisor alone. When the
supervisor is gone, however it went, the host kills what it started and leaves.
"""

import multiprocessing
import os
import queue
import shutil
import sys
import threading
from pathlib import Path

import psutil

from stepmark.runner import rank
from stepmark.runner.messages import Channel, Ended, Hello, Message, Order, dumps


def main(address: str) -> None:
    """Serve the supervisor at ``address`` until it hangs up."""
    channel = Channel.connect(address)
    orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, orders, Path(address)), daemon=True).start()
    _adopt_orphans()
    multiprocessing.set_forkserver_preload(["stepmark.runner.preload"])
    context = multiprocessing.get_context("forkserver")
    devices = context.SimpleQueue()
    # In a process of its own, because asking for devices initializes CUDA; and a first process
    # started is a server that is warm.
    probe = context.Process(target=_describe, args=(devices,))
    probe.start()
    # Meanwhile: elastic takes as long to import as the server takes to get warm.
    import torch.distributed.launcher.api  # noqa: F401

    found, software = devices.get()
    probe.join()
    permanent = {process.pid for process in psutil.Process().children(recursive=True)}
    channel.send(Hello(devices=found, software=software))
    while True:
        order = orders.get()
        assert isinstance(order, Order)
        ended = _run_elastic(order) if order.scenario.distributed else _run_single(order)
        _sweep(permanent)
        channel.send(ended)


def _listen(channel: Channel, orders: "queue.SimpleQueue[Message]", address: Path) -> None:
    """Hand orders on; at the supervisor's end, end everything."""
    while (messages := channel.receive()) is not None:
        for message in messages:
            orders.put(message)
    _sweep(set())
    shutil.rmtree(address.parent, ignore_errors=True)
    os._exit(0)


def _describe(answer: "multiprocessing.SimpleQueue[object]") -> None:
    from stepmark import devices

    answer.put((devices.describe(), devices.software()))


def _run_single(order: Order) -> Ended:
    """World size 1 without DDP: one process, no rendezvous."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=rank.main, args=(dumps(order),))
    process.start()
    process.join()
    assert process.exitcode is not None
    return Ended(exit_codes={"0": process.exitcode})


def _run_elastic(order: Order) -> Ended:
    """Ranks through torch.distributed.elastic, started from the same warm server."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    world_size = order.scenario.world_size
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=Path(order.folder).name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
        local_addr="127.0.0.1",
    )
    exit_codes = {str(i): 0 for i in range(world_size)}
    try:
        elastic_launch(config, rank.main)(dumps(order))
    except ChildFailedError as error:
        exit_codes |= {str(i): failure.exitcode for i, failure in error.failures.items()}
    except Exception as error:  # noqa: BLE001 - the rendezvous may fail in many ways
        return Ended(exit_codes={}, error=f"{type(error).__name__}: {error}")
    return Ended(exit_codes=exit_codes)


def _adopt_orphans() -> None:
    """Make processes whose parents died children of this one (Linux), so `_sweep` finds them."""
    if sys.platform == "linux":
        import ctypes

        pr_set_child_subreaper = 36  # from <sys/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def _sweep(spared: set[int]) -> None:
    """Kill every descendant but the spared ones, and wait until they are gone."""
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in spared]
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=5)

"""One rank's process: from its first line of Python to its last message."""

import faulthandler
import os
import sys
import traceback
from pathlib import Path

import torch

from stepmark import session
from stepmark.errors import StepmarkError
from stepmark.loading import die_with_parent
from stepmark.result import Outcome
from stepmark.runner.messages import Channel, Done, Failed, Order, Stage, Started, loads


def main(order_json: str) -> None:
    """Measure what the order says and report it. Every way to fail becomes a message."""
    order = loads(order_json)
    assert isinstance(order, Order)
    die_with_parent()
    # A group of its own: stopping or killing it takes the loader's workers along.
    os.setpgid(0, 0)
    rank = int(os.environ.get("RANK", "0"))
    _redirect_output(Path(order.folder) / f"rank{rank}.log")
    channel = Channel.connect(order.address)
    channel.send(Started(rank=rank, pid=os.getpid()))
    # After the server's own, so that a module there cannot hide the standard library's.
    sys.path += [entry for entry in order.sys_path if entry not in sys.path]
    try:
        place = session.open_place(
            order.scenario, threads=order.threads, requested_s=order.requested_s
        )
        record = session.run(
            order.scenario,
            order.plan,
            place,
            lambda stage, rate: channel.send(Stage(rank=rank, stage=stage, samples_per_s=rate)),
        )
    except Exception as error:  # noqa: BLE001 - here a rank's death becomes an outcome
        channel.send(
            Failed(
                rank=rank,
                outcome=Outcome.OOM if _out_of_memory(error) else Outcome.FAILED,
                reason=_reason(error),
                detail=traceback.format_exc(),
            )
        )
        sys.exit(1)
    channel.send(Done(record=record))
    channel.close()


def _redirect_output(log: Path) -> None:
    """Everything the workload prints, native code included, goes to a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.enable()


def _out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a plain RuntimeError; its text is all there is to go by.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _reason(error: BaseException) -> str:
    """One line."""
    text = " ".join(str(error).split())
    if isinstance(error, StepmarkError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

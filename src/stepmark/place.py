"""Where a rank stands among the others, and how it agrees with them."""

import dataclasses
import datetime
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from stepmark.devices import BACKENDS, Backend, Device, DevicePair
from stepmark.errors import ObstacleError
from stepmark.scenario import Plan, Scenario
from stepmark.windows import Agree, alone


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank stands.

    Attributes:
        rank: its number.
        device: its device.
        threads: its compute threads.
        requested_s: when the scenario was asked for, by ``time.monotonic``.
        agree: largest of a value over all ranks.
        barrier: waits for all ranks.
    """

    rank: int
    device: Device
    threads: int
    requested_s: float
    agree: Agree = alone
    barrier: Callable[[], None] = lambda: None


def open_place(scenario: Scenario, *, threads: int, requested_s: float) -> Place:
    """The place of this process: rank 0 of 1, or one of the ranks that elastic started.

    Raises:
        ObstacleError: the scenario needs a second device, and there is none.
    """
    # RANK, LOCAL_RANK and WORLD_SIZE are how torch.distributed.elastic tells a rank its place.
    rank = int(os.environ.get("RANK", "0")) if scenario.distributed else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if scenario.distributed else 0
    # Before anything computes: a thread pool that once ran cannot be made smaller.
    torch.set_num_threads(threads)
    backend = BACKENDS[scenario.device]
    return Place(
        rank=rank,
        device=_open_pair(backend) if scenario.split_layers else backend.open(local_rank),
        threads=threads,
        requested_s=requested_s,
    )


def _open_pair(backend: Backend) -> DevicePair:
    pair = backend.open_pair()
    if pair is None:
        raise ObstacleError(
            "split_layers needs a second device: two accelerators, or the CPU and one (--device "
            "cuda or mps)"
        )
    return DevicePair(*pair)


def join_process_group(place: Place, scenario: Scenario, plan: Plan) -> Place:
    """Meet the other ranks."""
    dist.init_process_group(
        BACKENDS[scenario.device].process_group,
        timeout=datetime.timedelta(seconds=plan.timeout),
    )
    # Agreeing goes over the CPU, so that it never waits for an accelerator's queue.
    control: Any = dist.new_group(backend="gloo")

    def agree(value: float) -> float:
        box = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(box, dist.ReduceOp.MAX, group=control)
        return box.item()

    def barrier() -> None:
        dist.barrier(group=control)

    return dataclasses.replace(place, agree=agree, barrier=barrier)


def leave_process_group() -> None:
    """Part from the other ranks, if there are any, once all of them have come here.

    Not before their records are sent: gloo sometimes aborts the process here, most often with a
    `DistributedDataParallel` still alive (torch 2.15), and that ends the others too. And not after
    a failure: the others would notice, fail too, and perhaps be heard of before the rank that
    failed first.
    """
    if dist.is_initialized():
        gc.collect()  # the model, which nothing refers to any more but its own cycles
        dist.barrier()
        dist.destroy_process_group()

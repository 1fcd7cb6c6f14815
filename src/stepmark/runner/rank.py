"""One rank's process: from its first line of Python to its last message."""

import contextlib
import faulthandler
import io
import itertools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from stepmark import profiling, session, trainer
from stepmark.calibration import calibrate
from stepmark.errors import ObstacleError, StepmarkError, UsageError, WorkloadError
from stepmark.loading import die_with_parent
from stepmark.place import Place, leave_process_group, open_place
from stepmark.preparing import Progress
from stepmark.result import Outcome
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
    Stage,
    Trained,
    TrainingBegun,
    Turn,
    Work,
    loads,
)
from stepmark.runner.turns import take_turns

# A rank that is killed makes the others fail within milliseconds, by an exception of gloo or
# NCCL. They stay for so long, that elastic, which looks every 0.1 s, sees the killed one first.
LINGER_S = 1.0

# Some allocators raise a plain RuntimeError, and its text is all there is to go by: the CPU's,
# CUDA's runtime, cuBLAS, cuDNN and NCCL, MPS.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)

# Files of code that nobody who reads a reason has written: stepmark, torch and what it uses,
# Python's own, and what is in no file.
_NOT_THEIR_OWN = (
    f"{Path(__file__).parents[1]}{os.sep}",
    f"{Path(traceback.__file__).parent}{os.sep}",
    f"{Path(torch.__file__).parents[1]}{os.sep}",
    "<",
)

# Of a frame, in a traceback as text.
_PLACE = re.compile(r'^ *File "(.*)", line (\d+)', re.MULTILINE)

LONGEST_REASON = 400  # characters; the detail holds the rest of it
LONGEST_DETAIL = 20_000  # characters; what is cut off is the beginning, which is stepmark's own


def main(order_json: str) -> None:
    """Measure what the order says and report it. Every way to fail becomes a message."""
    die_with_parent()
    # What a workload does to its own process group must not reach the server.
    os.setpgid(0, 0)
    _volunteer_to_be_killed()
    order = loads(order_json)
    assert isinstance(order, Order)
    # Outside of elastic the variable may be there as well, from whatever started the supervisor.
    rank = int(os.environ["RANK"]) if order.scenario.distributed else 0
    _redirect_output(Path(order.folder) / f"rank{rank}.log")
    pid = os.getpid()
    channel = Channel.connect(order.address)

    def say(message: Message) -> None:
        # A child that the workload forked may come by here; it must not speak for the rank.
        if os.getpid() != pid:
            os._exit(1)
        channel.send(message)

    def progress(stage: str, samples_per_s: float | None) -> None:
        say(Stage(rank=rank, stage=stage, samples_per_s=samples_per_s))

    try:
        place = _open(order, rank)
        say(Opened(rank=rank, device_uuid=place.device.uuid))
        _do(order, place, progress, say, channel)
    except BaseException as error:  # noqa: BLE001 - here a rank's death becomes an outcome
        say(
            Failed(
                rank=rank,
                at_s=time.monotonic(),
                outcome=_outcome(error),
                reason=_writable(_reason(error)),
                detail=_writable(traceback.format_exc()[-LONGEST_DETAIL:]),
                is_usage=isinstance(error, UsageError) and not isinstance(error, WorkloadError),
            )
        )
        if order.scenario.distributed:
            time.sleep(LINGER_S)
        # Not by way of the interpreter's end: it waits for threads and processes of a workload
        # that has failed anyway.
        os._exit(1)
    channel.close()
    leave_process_group()


def _do(
    order: Order,
    place: Place,
    progress: Progress,
    say: Callable[[Message], None],
    channel: Channel,
) -> None:
    scenario, plan = order.scenario, order.plan
    match order.work:
        case Work.MEASURE:
            say(Done(record=session.run(scenario, plan, place, progress)))
        case Work.TURNS:
            take_turns(order, place, progress, _turns(channel), say)
        case Work.PROFILE:
            prefix = Path(order.profile_to)
            say(Profiled(profile=profiling.profile(scenario, plan, place, progress, prefix)))
        case Work.CALIBRATE:
            found = calibrate(scenario, plan, place, lambda stage: progress(stage, None))
            say(Calibrated(rank=place.rank, ceilings=found))
        case Work.TRAIN:
            assert order.training is not None
            first = place.rank == 0
            ended_by, notes = trainer.fit(
                scenario, plan, order.training, place, progress,
                lambda facts, done: say(TrainingBegun(facts=facts, epochs=tuple(done)))
                if first else None,
                lambda epoch: say(EpochDone(epoch=epoch)) if first else None,
            )  # fmt: skip
            say(Trained(rank=place.rank, ended_by=ended_by, notes=notes))


def _turns(channel: Channel) -> Iterator[Turn]:
    """What the supervisor asks for, until it hangs up."""
    while (messages := channel.receive()) is not None:
        for message in messages:
            assert isinstance(message, Turn), "a rank is told nothing else"
            yield message


def _open(order: Order, rank: int) -> Place:
    """Make this process the rank that the order asks for."""
    if order.cpus:
        share = len(order.cpus) // order.scenario.num_processes
        os.sched_setaffinity(0, order.cpus[rank * share : (rank + 1) * share])
    cache = _compiled_code(order, rank)
    if cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{cache}.compiled"
        os.environ["TRITON_CACHE_DIR"] = f"{cache}.triton"
    os.chdir(order.directory)
    if order.work is Work.TURNS:
        # The server's own entries may lead to the working tree; a side has its revision's.
        sys.path[:] = order.sys_path
    else:
        # After the server's own, so that a module there cannot hide the standard library's.
        sys.path += [entry for entry in order.sys_path if entry not in sys.path]
    return open_place(order.scenario, threads=order.threads, requested_s=order.requested_s)


def _compiled_code(order: Order, rank: int) -> Path | None:
    """Where compiled code is kept; ``None`` is torch's own place."""
    match order.work:
        case Work.MEASURE | Work.TRAIN:
            # Empty: what was compiled before would be found there, in no time.
            return Path(order.folder) / f"rank{rank}"
        case Work.TURNS:
            # The host's: what one pair has compiled, the next one need not compile again.
            return Path(order.folder).parent / "pairs"
        case _:
            return None


def _volunteer_to_be_killed() -> None:
    """If memory runs out, the kernel (Linux) shall take this process or its workers.

    Not the server, which looks larger because it holds all that was preloaded, nor a program that
    has nothing to do with it.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _redirect_output(log: Path) -> None:
    """Everything the workload prints, native code included, goes to a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    # Line by line, as on a terminal: a rank that is killed loses nothing it said before.
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, ObstacleError):
        return Outcome.SKIPPED
    return Outcome.OOM if _out_of_memory(error) else Outcome.FAILED


def _out_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(cause, (torch.OutOfMemoryError, MemoryError))
        or (isinstance(cause, RuntimeError) and any(text in str(cause) for text in OUT_OF_MEMORY))
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those it was raised from, the latest first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _reason(error: BaseException) -> str:
    """One line, with the line of somebody's own code that raised it.

    Of an error in a loader worker, what the dataset raised there.
    """
    text = str(error)
    first = list(_causes(error))[-1]
    places = [(f.filename, str(f.lineno)) for f in traceback.extract_tb(first.__traceback__)]
    remarks = []
    # torch raises it again here, with the worker's traceback for its message.
    where, original, last = text.rpartition("Traceback (most recent call last):\n")
    if original and where.startswith("Caught "):
        text = " ".join(itertools.dropwhile(lambda line: line[:1] == " ", last.splitlines()))
        places = _PLACE.findall(last)
        remarks.append("in a loader worker")
    elif not isinstance(error, StepmarkError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    own = [(file, line) for file, line in places if not file.startswith(_NOT_THEIR_OWN)]
    remarks += [f"{Path(file).name}, line {line}" for file, line in own[-1:]]
    text = " ".join(text.split())
    text = text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + " ..."
    return text + (f" ({', '.join(remarks)})" if remarks else "")


def _writable(text: str) -> str:
    """The text without what a file cannot hold, such as the bytes of a misnamed file."""
    return text.encode(errors="backslashreplace").decode()

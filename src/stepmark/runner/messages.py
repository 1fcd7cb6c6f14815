"""What the processes of a measurement say to each other: dataclasses as lines of JSON.

    supervisor  --Prepare, Order, Stop-->  host  --(forkserver, elastic)-->  ranks
    supervisor  <--Hello, Prepared, Ended--  host
    supervisor  <--Opened, Stage, Done, Profiled, Calibrated, Failed--  ranks
    supervisor  <--TrainingBegun, EpochDone, Trained--  ranks    (of a training)
    supervisor  --Turn-->  ranks  --Ready, Turned-->  supervisor    (by turns only)

Host and ranks connect to sockets of the supervisor's. A host notices by a closed connection that
its supervisor is gone, and the other way round.
"""

import contextlib
import dataclasses
import json
import socket
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, get_args

from stepmark.ceilings import Ceiling
from stepmark.codec import DecodeError, decode, encode
from stepmark.fingerprint import DeviceInfo
from stepmark.profile import RankProfile
from stepmark.record import RankRecord
from stepmark.result import Outcome
from stepmark.scenario import Plan, Scenario
from stepmark.training import EndOfTraining, Epoch, Facts, TrainOrder

# To be raised with every change of a message, but for fields that have a default, which are left
# out where they have it: a side of the gate may have another stepmark.
PROTOCOL = 7

# The counter of most bytes held by tensors on an accelerator; a number as text.
PEAK = "peak_allocated_bytes"


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The host is ready; what it speaks, what devices it found, what it runs with."""

    devices: tuple[DeviceInfo, ...]
    software: dict[str, str]
    protocol: int = 0


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Import what several ranks are started with: it takes seconds, once."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The host has done what it could about that."""


class Work(StrEnum):
    """What ranks do with a scenario.

    ``measure`` it by the plan, run its steps by ``turns`` at the supervisor's word, ``profile`` it,
    ``calibrate`` its device, for which it names no workload, or ``train`` its model to the end.
    """

    MEASURE = "measure"
    TURNS = "turns"
    PROFILE = "profile"
    CALIBRATE = "calibrate"
    TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where the code of a side must come from.

    Attributes:
        closed: a folder that no module may come from: the working tree that both sides left.
        opened: folders of the side's own; what is in ``closed`` may be imported from all the same.
        own_code: something must come from these, or both sides run the same code.
    """

    closed: str
    opened: tuple[str, ...]
    own_code: bool


@dataclass(frozen=True, kw_only=True)
class Order:
    """Measure this.

    Attributes:
        scenario: with its device resolved.
        plan: how long.
        threads: compute threads per rank.
        requested_s: ``time.monotonic`` at the request.
        directory: the supervisor's current one; becomes the ranks'.
        sys_path: where the supervisor finds modules; a user's workload may need it. By turns it
            is all of the ranks' search path.
        folder: for the ranks' output and the socket they report to; no other order has it.
        work: what to do with it.
        profile_to: beginning of the paths of the profiler's files.
        cpus: the ranks keep to these, an equal share each; empty leaves them where they are.
        origins: by turns, where code must come from; ``None`` if that does not matter.
        with_costs: by turns, also tell what the scenario costs beside its steps.
        training: how to train; ``None`` if that is not the work.
    """

    scenario: Scenario
    plan: Plan
    threads: int
    requested_s: float
    directory: str
    sys_path: tuple[str, ...]
    folder: str
    work: Work = Work.MEASURE
    profile_to: str = ""
    cpus: tuple[int, ...] = ()
    origins: Origins | None = None
    with_costs: bool = False
    training: TrainOrder | None = None

    @property
    def address(self) -> str:
        """The socket that ranks report to."""
        return f"{self.folder}/socket"


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Kill an order, and with it those that run beside it; an `Ended` of each follows.

    Attributes:
        folder: the order's; one that has ended is not stopped again.
    """

    folder: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """All processes of an order are gone.

    Attributes:
        folder: the order's.
        exit_codes: by rank; negative is the number of the signal that killed it. Of several
            ranks, elastic tells of the one that failed first; if none failed, of none.
        error: why ranks could not be started, or be watched until their end; empty otherwise.
    """

    folder: str
    exit_codes: dict[str, int]
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A rank has its device; by its UUID, which is empty where it has none."""

    rank: int
    device_uuid: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a rank does next, and its samples per second where known."""

    rank: int
    stage: str
    samples_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a scenario costs one rank beside its steps.

    Attributes:
        first_step_s: the first optimizer step, synchronized, after its first batch was there.
        epoch_turn_s: from an epoch's last batch to the next one's first; ``None`` if not tried,
            as without loader workers, whose start is what takes time.
        num_samples: of an epoch, over all ranks.
        peak_bytes: most that warm steps held: of the accelerator's memory, or, on a CPU, growth of
            the resident set with what loader workers have to themselves; ``None`` if unknown.
    """

    first_step_s: float
    epoch_turn_s: float | None
    num_samples: int
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A rank is warm and waits for its first turn.

    Attributes:
        rank: its number.
        process_group: it and its loader workers, as the system's signals reach them.
        step_s: how long a step takes, agreed among the ranks.
        counters: what is exact, so that one number is enough: text, or numbers.
        costs: if they were asked for; `Costs` has what they mean.
    """

    rank: int
    process_group: int
    step_s: float
    counters: dict[str, str]
    costs: Costs | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Run ``num_lead`` steps, then time ``num_steps``."""

    num_lead: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Turned:
    """A turn is over.

    Attributes:
        rank: its number.
        window_s: from the first timed step's start to the last one's end, synchronized.
        step_s: each step; empty where the device cannot mark steps.
        skipped_steps: that the gradient scaler skipped; ``None`` where that is not known.
        diverges: the last step's loss is not finite.
    """

    rank: int
    window_s: float
    step_s: tuple[float, ...]
    skipped_steps: int | None = 0
    diverges: bool = False


@dataclass(frozen=True, kw_only=True)
class Done:
    """A rank's measurement."""

    record: RankRecord


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """A rank's profile."""

    profile: RankProfile


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What a rank found of its device."""

    rank: int
    ceilings: tuple[Ceiling, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingBegun:
    """What is trained on, and the epochs that a checkpoint says are done; of the first rank."""

    facts: Facts
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """All ranks have finished an epoch, and have done about it what they can; of the first one."""

    epoch: Epoch


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A rank's training is at its end.

    Attributes:
        rank: its number.
        ended_by: see there.
        notes: remarks on what came up meanwhile.
    """

    rank: int
    ended_by: EndOfTraining
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A rank ended by an exception.

    Attributes:
        rank: its number.
        at_s: when, by ``time.monotonic``, which is one clock for all processes.
        outcome: what that makes of the scenario.
        reason: one line.
        detail: the traceback.
        is_usage: it was asked for what cannot be, other than by a workload: a checkpoint that
            cannot be gone on from or be written, a parameter that cannot be scheduled.
    """

    rank: int
    at_s: float
    outcome: Outcome
    reason: str
    detail: str
    is_usage: bool = False


Message = (
    Hello
    | Prepare
    | Prepared
    | Order
    | Stop
    | Ended
    | Opened
    | Stage
    | Ready
    | Turn
    | Turned
    | Done
    | Profiled
    | Calibrated
    | TrainingBegun
    | EpochDone
    | Trained
    | Failed
)
_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def dumps(message: Message) -> str:
    """A message as one line of JSON."""
    assert dataclasses.is_dataclass(message)
    body = encode(message, sparse=True)
    return json.dumps({"kind": type(message).__name__, "body": body}, allow_nan=False)


def loads(line: str | bytes) -> Message:
    """A message from its line.

    Raises:
        DecodeError: another stepmark has sent it, which speaks otherwise.
    """
    data: dict[str, Any] = json.loads(line)
    if data["kind"] not in _KINDS:
        raise DecodeError(f"{data['kind']}: no message of this protocol ({PROTOCOL})")
    return decode(_KINDS[data["kind"]], data["body"])


class Channel:
    """Messages over a stream socket."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._buffer = b""

    @classmethod
    def connect(cls, address: str) -> "Channel":
        """To the supervisor.

        Raises:
            OSError: it is gone.
        """
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(address)
        return cls(stream)

    def fileno(self) -> int:
        """For selectors."""
        return self._stream.fileno()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone.
        """
        self._stream.sendall(dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """Wait for data; the messages it completes, or ``None`` once the other side is gone."""
        try:
            data = self._stream.recv(1 << 20)
        except ConnectionError:
            return None
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [loads(line) for line in lines]

    def close(self) -> None:
        """Hang up, for forked children that share the socket too."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()

"""What one rank measured; a `Result` holds one record per rank.

Times are seconds, sizes are bytes. What was not measured is ``None``, never 0.
"""

from dataclasses import dataclass
from enum import StrEnum

PHASES = ("data_wait", "h2d", "forward", "backward", "optimizer", "other")


class EndedBy(StrEnum):
    """What ended a window: its number of steps, or its budget of seconds."""

    STEPS = "steps"
    SECONDS = "seconds"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The one shape of everything measured beside time.

    Attributes:
        name: what it is, such as ``epoch_turn``.
        unit: ``s``, ``bytes``, ``ratio``, ``fraction``, ``count``, ``J``, ...
        scope: what one value stands for: ``rank``, ``node`` or ``device``.
        value: the number; ``None`` when it could not be read.
        series: raw values behind it, if any.
        note: how it was read, or why it could not be.
    """

    name: str
    unit: str
    scope: str
    value: float | None
    series: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StartUp:
    """Where the time before the first step's end went, on one rank, in seconds.

    Attributes:
        process_s: from the request for this scenario until code of the rank ran.
        import_s: importing and resolving the workload's module.
        build_s: building model, dataset and optimizer, and moving the model to its device.
        process_group_s: joining the process group and wrapping in DDP; 0 without ranks.
        first_batch_s: making the loader's iterator (starting its workers) and waiting for the
            first batch.
        first_step_s: the first optimizer step, synchronized, after its first batch was there.
    """

    process_s: float
    import_s: float
    build_s: float
    process_group_s: float
    first_batch_s: float
    first_step_s: float

    @property
    def total_s(self) -> float:
        """From the request until the first step was done."""
        return (
            self.process_s
            + self.import_s
            + self.build_s
            + self.process_group_s
            + self.first_batch_s
            + self.first_step_s
        )


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """The steps before the first window.

    Attributes:
        num_steps: optimizer steps discarded.
        seconds: how long they took.
        settled: step times (and the gradient scaler's scale) were stable at its end.
    """

    num_steps: int
    seconds: float
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Window:
    """One measured stretch of steps on one rank.

    Attributes:
        num_steps: optimizer steps in it.
        window_s: wall time between the synchronizations at its two edges.
        step_s: time of every step, by marks; empty where the device cannot mark steps.
        ended_by: its steps, or its budget of seconds.
        began_s: by the machine's monotonic clock, which all processes share.
    """

    num_steps: int
    window_s: float
    step_s: tuple[float, ...]
    ended_by: EndedBy
    began_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Mean seconds per optimizer step in each phase; they sum to ``step_s``.

    ``data_wait`` is waiting for the next batch, ``h2d`` moving it to the device, ``forward``
    includes the loss, ``backward`` includes DDP's gradient all-reduce, ``optimizer`` is
    unscaling, clipping, the step, zeroing gradients and the schedule, ``other`` is the rest.
    """

    data_wait_s: float
    h2d_s: float
    forward_s: float
    backward_s: float
    optimizer_s: float
    other_s: float
    step_s: float


# By what resident sets of one scenario may differ from server to server (docs/decisions/memory.md).
# Processes of one server lay out their memory alike, and do not show it.
HOST_MEMORY_BAND = 0.15


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peaks of one rank, in bytes; ``None`` where the device has no such figure.

    Attributes:
        peak_allocated_bytes: most bytes held by tensors on the accelerator.
        peak_reserved_bytes: most bytes held by its caching allocator.
        peak_host_bytes: growth of the rank's resident set from its own start to its peak, plus
            what its loader workers have to themselves at the window's end.
        workers_bytes: the loader workers' part of it.
        nvml_used_bytes: memory in use on the whole device as NVML tells, by anyone.
    """

    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    peak_host_bytes: int | None
    workers_bytes: int | None
    nvml_used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class RankRecord:
    """Everything one rank measured.

    Attributes:
        rank: its number.
        device_name: the device it ran on.
        num_threads: compute threads, read back from torch.
        settings: switches read back from torch after they were set (precision flags, OpenMP).
        data: where the samples came from, such as ``FashionMNIST (generated)``.
        startup, warmup: see there.
        window: steps alone, with a mark at each step's end. Throughput comes from here.
        phase_window: the same steps again, with a mark at each phase; ``phases`` is its mean.
        memory: peaks over both windows.
        first_loss: loss of the first step (mean over its micro-batches).
        final_loss: loss of the last step of ``window``.
        skipped_steps: optimizer steps in ``window`` that the gradient scaler skipped; ``None``
            where the optimizer takes the scale itself and does not tell.
        readings: whatever else was read.
        notes: remarks a reader of the numbers should see.
        device_uuid: as CUDA tells it; empty where there is none.
        unfit: why ``window`` is not to be trusted.
    """

    rank: int
    device_name: str
    num_threads: int
    settings: dict[str, str]
    data: str
    startup: StartUp
    warmup: WarmUp
    window: Window
    phase_window: Window
    phases: Phases
    memory: Memory
    first_loss: float | None
    final_loss: float | None
    skipped_steps: int | None
    readings: tuple[Reading, ...] = ()
    notes: tuple[str, ...] = ()
    device_uuid: str = ""
    unfit: tuple[str, ...] = ()

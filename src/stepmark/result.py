"""What came back from a measurement: one `Result` per scenario and repeat.

Times are seconds, sizes are bytes. What was not measured is ``None``, never 0.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from stepmark import stats
from stepmark.fingerprint import Commit, Machine
from stepmark.scenario import Plan, Scenario

PHASES = ("data_wait", "h2d", "forward", "backward", "optimizer", "other")


class Outcome(StrEnum):
    """How a scenario ended."""

    OK = "ok"
    SKIPPED = "skipped"
    OOM = "oom"
    TIMEOUT = "timeout"
    FAILED = "failed"


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


@dataclass(frozen=True, kw_only=True)
class Result:
    """One scenario, measured once in fresh processes, or the reason why it was not.

    Attributes:
        scenario: with ``auto`` already resolved to a device.
        plan: how long it was measured.
        repeat: which of the plan's repeats, from 0.
        outcome: see `Outcome`.
        reason: one line for anything but ``ok``; empty otherwise.
        ranks: one record per rank; empty unless ``ok``.
        machine: what it ran on.
        commit: the git commit of the working directory; ``None`` outside a repository.
        started_at: ISO 8601 with time zone.
        wall_s: from the request until the last process of it was gone.
        detail: a traceback or the last output of a process that died; empty if ``ok``.
    """

    scenario: Scenario
    plan: Plan
    repeat: int
    outcome: Outcome
    reason: str
    ranks: tuple[RankRecord, ...]
    machine: Machine
    commit: Commit | None
    started_at: str
    wall_s: float
    detail: str = ""

    @property
    def slowest(self) -> RankRecord | None:
        """The rank that the others wait for; steps, phases and readings are shown of it.

        Ranks that exchange gradients have windows of one length, so it is the one whose step is
        longest when it is left alone (reading ``free_step``).
        """

        def alone_s(rank: RankRecord) -> tuple[float, float]:
            free_s = next((r.value for r in rank.readings if r.name == "free_step"), None)
            return (free_s or 0.0, rank.window.window_s)

        return max(self.ranks, key=alone_s, default=None)

    @property
    def samples_per_s(self) -> float | None:
        """Throughput: samples of all ranks over the longest window of any rank.

        ``batch_size * accumulation * world_size * steps / max over ranks of window_s``. Every
        rank runs the same number of steps.
        """
        if not self.ranks:
            return None
        num_steps = self.ranks[0].window.num_steps
        return self.scenario.samples_per_step * num_steps / self._window_s

    @property
    def achieved_flops(self) -> float | None:
        """FLOP/s of all ranks together over the window; ``None`` if they are not counted."""
        flops = self.reading_of_any("flops_per_step")
        if flops is None:
            return None
        return flops * self.ranks[0].window.num_steps / self._window_s

    @property
    def attainable_fraction(self) -> float | None:
        """Of the FLOP/s that this machine can attain; ``None`` if it was not calibrated."""
        achieved = self.achieved_flops
        attainable = self.reading_of_any("attainable_compute")
        return achieved / attainable if achieved is not None and attainable else None

    def reading_of_any(self, name: str) -> float | None:
        """A reading of the node, which any rank may have."""
        found = (r.value for rank in self.ranks for r in rank.readings if r.name == name)
        return next(found, None)

    @property
    def joules_per_sample(self) -> float | None:
        """Energy of all ranks' devices over the window, over its samples; ``None`` if unknown."""
        energy_j = self.row()["energy_j"]
        if energy_j is None:
            return None
        return float(energy_j / (self.scenario.samples_per_step * self.ranks[0].window.num_steps))

    @property
    def observer_effect(self) -> float | None:
        """Mean step with phase marks over mean step without them; about 1 is good."""
        slowest = self.slowest
        if slowest is None:
            return None
        with_marks = slowest.phase_window.window_s / slowest.phase_window.num_steps
        return with_marks / (slowest.window.window_s / slowest.window.num_steps)

    def reading(self, name: str) -> float | None:
        """A reading of the slowest rank by name; ``None`` if it has none."""
        slowest = self.slowest
        if slowest is None:
            return None
        return next((r.value for r in slowest.readings if r.name == name), None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks of all ranks, each once."""
        return tuple(dict.fromkeys(note for rank in self.ranks for note in rank.notes))

    @property
    def unfit(self) -> tuple[str, ...]:
        """Why its windows are not to be trusted, each reason once; empty if they are."""
        return tuple(dict.fromkeys(reason for rank in self.ranks for reason in rank.unfit))

    def row(self) -> dict[str, Any]:
        """The flat table's row; its keys are `COLUMNS`, in order."""
        scenario = self.scenario
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row.update(
            scenario_id=scenario.id,
            workload=scenario.workload,
            device=scenario.device,
            batch_size=scenario.batch_size,
            num_workers=scenario.num_workers,
            precision=scenario.precision.value,
            accumulation=scenario.accumulation,
            world_size=scenario.world_size,
            repeat=self.repeat,
            outcome=self.outcome.value,
            reason=self.reason or None,
        )
        slowest = self.slowest
        if slowest is not None:
            row.update(self._measured(slowest))
        assert tuple(row) == COLUMNS, "a row has the contract's columns"
        return row

    @property
    def _window_s(self) -> float:
        return max(rank.window.window_s for rank in self.ranks)

    @property
    def _energy_j(self) -> float | None:
        counted = self._total("energy")
        return self._total("energy_integral") if counted is None else counted

    def _total(self, name: str) -> float | None:
        """A reading's sum over ranks, if all have it."""
        found = [[r.value for r in rank.readings if r.name == name] for rank in self.ranks]
        return _total(values[0] if values else None for values in found)

    def _measured(self, slowest: RankRecord) -> dict[str, Any]:
        steps_s = slowest.window.step_s
        phases = slowest.phases
        memory = [rank.memory for rank in self.ranks]
        return {
            "samples_per_s": self.samples_per_s,
            "steps": slowest.window.num_steps,
            "window_s": self._window_s,
            "step_s_median": stats.median(steps_s) if steps_s else None,
            "step_s_p90": stats.percentile(steps_s, 90) if steps_s else None,
            "step_s_p99": stats.percentile(steps_s, 99) if steps_s else None,
            "step_s_min": min(steps_s, default=None),
            **{f"{phase}_s": getattr(phases, f"{phase}_s") for phase in PHASES},
            "phase_step_s": phases.step_s,
            # A device belongs to one rank, so its peak is the worst rank's; host memory is
            # shared by all ranks, so theirs add up.
            "peak_allocated_bytes": _worst(m.peak_allocated_bytes for m in memory),
            "peak_reserved_bytes": _worst(m.peak_reserved_bytes for m in memory),
            "peak_host_bytes": _total(m.peak_host_bytes for m in memory),
            "nvml_used_bytes": _worst(m.nvml_used_bytes for m in memory),
            # By the devices' counters; one without has its power integrated.
            "energy_j": self._energy_j,
            "first_step_s": max(rank.startup.first_step_s for rank in self.ranks),
            "final_loss": _mean(rank.final_loss for rank in self.ranks),
            "flops_per_step": self.reading_of_any("flops_per_step"),
            "attainable_fraction": self.attainable_fraction,
        }


COLUMNS = (
    "scenario_id",
    "workload",
    "device",
    "batch_size",
    "num_workers",
    "precision",
    "accumulation",
    "world_size",
    "repeat",
    "outcome",
    "reason",
    "samples_per_s",
    "steps",
    "window_s",
    "step_s_median",
    "step_s_p90",
    "step_s_p99",
    "step_s_min",
    *(f"{phase}_s" for phase in PHASES),
    "phase_step_s",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "peak_host_bytes",
    "nvml_used_bytes",
    "energy_j",
    "first_step_s",
    "final_loss",
    "flops_per_step",
    "attainable_fraction",
)


def _known(values: Any) -> list[float] | None:
    """All values, or ``None`` if any rank lacks its own: part of a total is no total."""
    listed = list(values)
    return None if not listed or None in listed else listed


def _worst(values: Any) -> float | None:
    known = _known(values)
    return None if known is None else max(known)


def _total(values: Any) -> float | None:
    known = _known(values)
    return None if known is None else sum(known)


def _mean(values: Any) -> float | None:
    known = _known(values)
    return None if known is None else sum(known) / len(known)

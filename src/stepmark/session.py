"""One rank's life: build, warm up, measure windows, record."""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from stepmark import workloads
from stepmark.devices import BACKENDS, Device
from stepmark.loading import SEED, make_loader, to_device
from stepmark.loop import Callback, Training, train
from stepmark.probes.memory import HostMemory, workers_bytes
from stepmark.probes.scaler import AppliedSteps
from stepmark.probes.timing import PhaseMarks, StepMarks
from stepmark.result import Memory, RankRecord, Reading, StartUp, WarmUp, Window
from stepmark.scenario import Plan, Precision, Scenario
from stepmark.windows import Agree, Budget, Stretch, alone, settled, stretch_steps
from stepmark.workload import Workload

AUTOCAST_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}

# What shapes a CPU step from outside torch; recorded with every result.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank stands.

    Attributes:
        rank: its number.
        world_size: how many there are.
        device: its device.
        threads: its compute threads.
        requested_s: when the scenario was asked for, by ``time.monotonic``.
        agree: largest of a value over all ranks.
        barrier: waits for all ranks.
    """

    rank: int
    world_size: int
    device: Device
    threads: int
    requested_s: float
    agree: Agree = alone
    barrier: Callable[[], None] = lambda: None


def open_place(scenario: Scenario, *, threads: int, requested_s: float) -> Place:
    """The place of this process: rank 0 of 1, or one of the ranks that elastic started."""
    # RANK, LOCAL_RANK and WORLD_SIZE are how torch.distributed.elastic tells a rank its place.
    rank = int(os.environ.get("RANK", "0")) if scenario.distributed else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if scenario.distributed else 0
    # Before anything computes: a thread pool that once ran cannot be made smaller.
    torch.set_num_threads(threads)
    return Place(
        rank=rank,
        world_size=scenario.world_size,
        device=BACKENDS[scenario.device].open(local_rank),
        threads=threads,
        requested_s=requested_s,
    )


def run(scenario: Scenario, plan: Plan, place: Place, progress: Progress) -> RankRecord:
    """Measure a scenario on one rank.

    Args:
        scenario: with its device resolved.
        plan: how long.
        place: this rank's.
        progress: told the stage and, when known, samples per second of this rank; never
            called inside a window.

    Raises:
        WorkloadError: the workload cannot be found or built, or does not suit the scenario.
    """
    process_s = time.monotonic() - place.requested_s
    device = place.device
    host_memory = HostMemory()
    settings = device.configure(tf32=scenario.precision is Precision.TF32)
    settings |= {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    device.reset_peaks()

    progress("building", None)
    clock = Stopwatch(device)
    build = workloads.load(scenario.workload)
    import_s = clock.lap_s()
    torch.manual_seed(SEED)
    workload = build()
    training = make_training(workload, scenario, device)
    loader = make_loader(workload, scenario, place.rank)
    build_s = clock.lap_s()
    with contextlib.ExitStack() as ending:
        if scenario.distributed:
            ending.callback(dist.destroy_process_group)
            place = join_process_group(place, scenario, plan)
            training = dataclasses.replace(training, model=wrap_ddp(training.model, device))
        process_group_s = clock.lap_s()
        # Dropout and augmentation in the main process differ from rank to rank.
        torch.manual_seed(SEED + place.rank)
        batches = iter(loader)
        first = next(batches)
        first_batch_s = clock.lap_s()
        losses = train(training, itertools.chain([first], batches), range(1))
        device.synchronize()
        first_step_s = clock.lap_s()
        startup = StartUp(
            process_s=process_s,
            import_s=import_s,
            build_s=build_s,
            process_group_s=process_group_s,
            first_batch_s=first_batch_s,
            first_step_s=first_step_s,
        )
        first_loss = _value(losses)
        return _Measurement(scenario, plan, place, training, batches, progress).record(
            startup=startup,
            first_loss=first_loss,
            settings=settings,
            workload=workload,
            host_memory=host_memory,
        )


class _Measurement:
    """Warm-up and windows of one rank, on a loop that has done its first step."""

    def __init__(
        self,
        scenario: Scenario,
        plan: Plan,
        place: Place,
        training: Training,
        batches: Iterator[Any],
        progress: Progress,
    ) -> None:
        self.scenario = scenario
        self.plan = plan
        self.place = place
        self.device = place.device
        self.training = training
        self.batches = batches
        self.progress = progress
        self.expected_step_s = 0.0
        # Batches that lie ready after a pause would make a window's first steps look fast; and
        # the first step after a pause is slow, its caches being cold.
        self.lead_in_steps = max(1, math.ceil(scenario.lead_in_batches / scenario.accumulation))

    def record(
        self,
        *,
        startup: StartUp,
        first_loss: float,
        settings: dict[str, str],
        workload: Workload,
        host_memory: HostMemory,
    ) -> RankRecord:
        scenario, device = self.scenario, self.device
        self.progress("warming up", None)
        warmup = self.warm_up()
        device.reset_peaks()
        host_memory.reset_peak()

        self.progress("measuring steps", self.samples_per_s)
        window, final_loss, skipped_steps = self.step_window()
        workers = workers_bytes() if scenario.num_workers else 0
        self.expected_step_s = window.window_s / window.num_steps

        self.progress("measuring phases", self.samples_per_s)
        marks = PhaseMarks(
            device.marks(PhaseMarks.marks_per_step(scenario.accumulation) * self.plan.steps + 1),
            scenario.accumulation,
        )
        self.lead_in()
        phase_window, _ = self.window(self.training, self.planned(), [marks], marks.begin)
        host_peak = host_memory.peak_growth_bytes()
        peaks = device.memory()

        readings = [
            Reading(
                name="data_wait_host",
                unit="s",
                scope="rank",
                value=marks.host_wait_s(phase_window.num_steps),
                note="mean per step; the host waiting in next(), whatever the device does",
            )
        ]
        if scenario.distributed:
            self.progress("measuring without gradient synchronization", self.samples_per_s)
            readings += self.free_running(window.num_steps)
        readings.append(self.epoch_turn(workload, startup.first_batch_s))
        self.place.barrier()
        return RankRecord(
            rank=self.place.rank,
            device_name=device.name,
            num_threads=torch.get_num_threads(),
            settings=settings,
            data=workload.data,
            startup=startup,
            warmup=warmup,
            window=window,
            phase_window=phase_window,
            phases=marks.phases(phase_window.num_steps),
            memory=Memory(
                peak_allocated_bytes=peaks.peak_allocated_bytes,
                peak_reserved_bytes=peaks.peak_reserved_bytes,
                nvml_used_bytes=peaks.nvml_used_bytes,
                peak_host_bytes=(
                    None if host_peak is None or workers is None else host_peak + workers
                ),
                workers_bytes=workers,
            ),
            first_loss=first_loss if math.isfinite(first_loss) else None,
            final_loss=final_loss if math.isfinite(final_loss) else None,
            skipped_steps=skipped_steps,
            readings=tuple(readings),
            notes=tuple(self.notes(warmup, final_loss)),
        )

    @property
    def samples_per_s(self) -> float | None:
        """What the last stretch or window suggests, for the progress display."""
        if not self.expected_step_s:
            return None
        return self.scenario.samples_per_step / self.expected_step_s

    def warm_up(self) -> WarmUp:
        """Steps until neighbouring stretches agree, within one window's budget of seconds."""
        num_steps = max(self.plan.warmup, self.lead_in_steps)
        stretches: list[Stretch] = []
        is_settled = False
        while not is_settled:
            left_s = self.plan.max_seconds - sum(s.seconds for s in stretches)
            if left_s <= 0:
                break
            stretches.append(self.stretch(num_steps, left_s))
            self.expected_step_s = stretches[-1].step_s
            num_steps = stretch_steps(self.expected_step_s)
            is_settled = len(stretches) > 1 and settled(*stretches[-2:])
        return WarmUp(
            num_steps=1 + sum(s.num_steps for s in stretches),
            seconds=sum(s.seconds for s in stretches),
            settled=is_settled,
        )

    def stretch(self, num_steps: int, max_seconds: float) -> Stretch:
        """Some unmarked steps, timed as a whole; the slowest rank's time."""
        window, _ = self.window(self.training, self.budget(num_steps, max_seconds))
        return Stretch(
            num_steps=window.num_steps,
            seconds=self.place.agree(window.window_s),
            scale=-self.place.agree(-float(self.training.scaler.get_scale())),
        )

    def step_window(self) -> tuple[Window, float, int | None]:
        """The window that throughput comes from; its last loss; steps the scaler skipped."""
        applied = AppliedSteps(self.training)
        marks = self.device.marks(self.plan.steps + 1)
        callbacks: list[Callback] = [StepMarks(marks)] if self.device.marks_steps else []

        def begin() -> None:
            applied.begin()
            marks.mark()

        self.lead_in()
        window, losses = self.window(self.training, self.planned(), callbacks, begin)
        skipped_steps = applied.end(window.num_steps)
        if self.device.marks_steps:
            window = dataclasses.replace(
                window, step_s=tuple(round(s, 9) for s in marks.intervals_s())
            )
        return window, _value(losses), skipped_steps

    def budget(self, num_steps: int, max_seconds: float) -> Budget:
        """A budget that all ranks end together."""
        return Budget(
            num_steps,
            max_seconds,
            now_s=self.device.now_s,
            agree=self.place.agree,
            expected_step_s=self.expected_step_s,
        )

    def planned(self) -> Budget:
        """The budget of a measured window."""
        return self.budget(self.plan.steps, self.plan.max_seconds)

    def window(
        self,
        training: Training,
        budget: Budget,
        callbacks: Sequence[Callback] = (),
        begin: Callable[[], None] = lambda: None,
    ) -> tuple[Window, list[torch.Tensor]]:
        """Run one stretch of steps, synchronized at its two edges only.

        Returns:
            The window without step times, and the losses of its last step.
        """
        device = self.device
        self.place.barrier()
        device.synchronize()
        start_s = device.now_s()
        begin()
        losses = train(training, self.batches, budget, callbacks)
        device.synchronize()
        window_s = device.now_s() - start_s
        window = Window(
            num_steps=budget.done, window_s=window_s, step_s=(), ended_by=budget.ended_by
        )
        return window, losses

    def lead_in(self) -> None:
        """Steps between a pause and a window, which follows at once."""
        train(self.training, self.batches, range(self.lead_in_steps))

    def free_running(self, num_steps: int) -> list[Reading]:
        """What synchronizing gradients costs, and how unequal ranks are when left alone."""
        alone_training = dataclasses.replace(self.training, sync_gradients=False)
        # No agreeing on the way: it would make the fast ranks wait for the slow ones.
        budget = Budget(num_steps, math.inf, now_s=self.device.now_s)
        self.lead_in()
        window, _ = self.window(alone_training, budget)
        free_s = window.window_s / window.num_steps
        slowest_s = self.place.agree(free_s)
        fastest_s = -self.place.agree(-free_s)
        return [
            Reading(
                name="ddp_sync",
                unit="s",
                scope="rank",
                value=self.expected_step_s - free_s,
                note="mean step less the mean step under no_sync: all that DDP's all-reduce costs",
            ),
            Reading(
                name="straggler_skew",
                unit="ratio",
                scope="node",
                value=slowest_s / fastest_s,
                note="slowest rank's step over the fastest one's, each left alone under no_sync",
            ),
        ]

    def epoch_turn(self, workload: Workload, first_batch_s: float) -> Reading:
        """Seconds from an epoch's last batch to the next one's first; windows leave it out."""
        reading = Reading(
            name="epoch_turn",
            unit="s",
            scope="rank",
            value=None,
            note="from an epoch's last batch to the next epoch's first one",
        )
        if 4 * first_batch_s > self.plan.max_seconds:
            note = f"not tried: its batches would take longer than {self.plan.max_seconds:g} s"
            return dataclasses.replace(reading, note=note)
        num_batches = 2
        loader = make_loader(workload, self.scenario, self.place.rank, num_batches=num_batches)
        epoch = iter(loader)
        for _ in range(num_batches):
            next(epoch)
        start_s = self.device.now_s()
        next(epoch, None)
        next(iter(loader))
        return dataclasses.replace(reading, value=self.device.now_s() - start_s)

    def notes(self, warmup: WarmUp, final_loss: float) -> Iterator[str]:
        """Remarks on this rank's numbers."""
        if not warmup.settled:
            yield (
                f"step times had not settled after {warmup.num_steps} steps of warm-up "
                f"({warmup.seconds:.1f} s); raise --max-seconds, which bounds warm-up too"
            )
        if not math.isfinite(final_loss):
            yield f"the loss ended at {final_loss}: this training diverges"
        if not self.device.marks_steps:
            yield f"{self.device.name}: phases come from a serialised pass, waiting at each mark"


class Stopwatch:
    """Laps of start-up, each ended by a synchronization."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._last_s = device.now_s()

    def lap_s(self) -> float:
        """Seconds since the last lap."""
        self._device.synchronize()
        now_s = self._device.now_s()
        lap_s, self._last_s = now_s - self._last_s, now_s
        return lap_s


def make_training(workload: Workload, scenario: Scenario, device: Device) -> Training:
    """What the loop works on, before any DDP wrapping."""
    model = workload.model.to(device.torch_device)
    model.train()
    optimizer = workload.optimizer(model.parameters())
    dtype = AUTOCAST_DTYPES.get(scenario.precision)
    autocast = {} if dtype is None else {"autocast": functools.partial(device.autocast, dtype)}
    return Training(
        model=model,
        loss=workload.loss,
        optimizer=optimizer,
        to_device=functools.partial(to_device, device=device.torch_device),
        scaler=device.scaler(enabled=scenario.precision is Precision.FP16),
        accumulation=scenario.accumulation,
        clip_norm=workload.clip_norm,
        scheduler=None if workload.scheduler is None else workload.scheduler(optimizer),
        **autocast,
    )


def join_process_group(place: Place, scenario: Scenario, plan: Plan) -> Place:
    """Meet the other ranks."""
    dist.init_process_group(
        BACKENDS[scenario.device].process_group,
        timeout=datetime.timedelta(seconds=plan.timeout),
    )
    # Agreeing goes over the CPU, so that it never waits for an accelerator's queue.
    control = dist.new_group(backend="gloo")

    def agree(value: float) -> float:
        box = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(box, dist.ReduceOp.MAX, group=control)
        return box.item()

    def barrier() -> None:
        dist.barrier(group=control)

    return dataclasses.replace(place, agree=agree, barrier=barrier)


def wrap_ddp(model: torch.nn.Module, device: Device) -> DistributedDataParallel:
    """DistributedDataParallel on this rank's device."""
    on_accelerator = device.torch_device.index is not None
    return DistributedDataParallel(
        model, device_ids=[device.torch_device.index] if on_accelerator else None
    )


def _value(losses: list[torch.Tensor]) -> float:
    """The loss of a step from those of its micro-batches; waits for the device."""
    return float(sum(loss.item() for loss in losses))

"""One rank's life: prepare, warm up, measure, record."""

import dataclasses
import math
from collections.abc import Iterator

import torch

from stepmark.devices import Device, DevicePair
from stepmark.loading import make_loader
from stepmark.loop import Training
from stepmark.measurement import Measurement
from stepmark.place import Place
from stepmark.preparing import Progress, prepare
from stepmark.probes.flops import count_work
from stepmark.probes.memory import HostMemory, swapped_bytes, workers_bytes
from stepmark.probes.traffic import count_traffic
from stepmark.record import Memory, RankRecord, Reading, WarmUp, Window
from stepmark.scenario import Plan, Scenario
from stepmark.units import format_bytes
from stepmark.workload import Workload

LEAD_IN_CUT = (
    "steps are so long that a window may have begun with batches that lay ready in the loader; "
    "raise --max-seconds, which bounds the steps before a window too"
)
COMPILED_INSIDE = "torch.compile was still at work in the window: something of a step's changes"


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
    device = place.device
    host_memory = HostMemory()
    prepared = prepare(scenario, plan, place, progress)
    place, workload, compiler = prepared.place, prepared.workload, prepared.compiler
    measurement = Measurement(
        scenario, plan, place, prepared.training, prepared.batches, prepared.loop
    )

    progress("warming up", None)
    warmup = measurement.warm_up()
    readings = list(startup_peak(device))
    if compiler is not None:
        compiler.rest()
        compiler.take_new()
        readings += compiler.readings()
    device.reset_peaks()
    host_memory.reset_peak()
    progress("measuring steps", measurement.samples_per_s)
    swapped_before = swapped_bytes()
    window, final_loss, skipped_steps = measurement.steps()
    swapped = swapped_bytes() - swapped_before
    num_compiled = 0 if compiler is None else compiler.take_new()
    workers = workers_bytes() if scenario.num_workers else 0
    progress("measuring phases", measurement.samples_per_s)
    phase_window, phases, host_wait = measurement.phases()
    readings.append(host_wait)
    if scenario.wraps_in_ddp:
        progress("measuring without gradient synchronization", measurement.samples_per_s)
        readings += measurement.free_running(window)
    memory = read_memory(device, host_memory, workers)
    readings.append(epoch_turn(workload, scenario, plan, place, prepared.startup.first_batch_s))
    if scenario.pipeline_stages > 1:
        readings.append(stage_size(prepared.training))
    if place.rank == 0:
        progress("counting operations", measurement.samples_per_s)
        readings += count_work(workload, scenario, prepared.bare_batch)
        readings += count_traffic(workload, scenario, prepared.bare_batch)
    place.barrier()
    first_loss = prepared.first_loss
    return RankRecord(
        rank=place.rank,
        device_name=device.name,
        num_threads=torch.get_num_threads(),
        settings=prepared.switches.final(),
        data=workload.data,
        startup=prepared.startup,
        warmup=warmup,
        window=window,
        phase_window=phase_window,
        phases=phases,
        memory=memory,
        first_loss=_finite(first_loss),
        final_loss=_finite(final_loss),
        skipped_steps=skipped_steps,
        readings=tuple(readings),
        notes=(
            *prepared.switches.notes,
            *remarks(device, warmup, first_loss, final_loss, skipped_steps, window),
            *([LEAD_IN_CUT] if measurement.lead_in_cut else []),
        ),
        device_uuid=device.uuid,
        unfit=(
            *([f"{format_bytes(swapped)} were moved to or from swap"] if swapped else []),
            *([COMPILED_INSIDE] if num_compiled else []),
        ),
    )


def startup_peak(device: Device) -> Iterator[Reading]:
    """The peak from before the model was built to the end of warm-up; windows may stay below."""
    peak_bytes = device.memory().peak_allocated_bytes
    if peak_bytes is not None:
        yield Reading(
            name="startup_peak_allocated",
            unit="bytes",
            scope="rank",
            value=float(peak_bytes),
            note="most bytes held by tensors while building, in the first step and in warm-up",
        )


def stage_size(training: Training) -> Reading:
    """How much of the model this rank has."""
    return Reading(
        name="stage_parameters",
        unit="count",
        scope="rank",
        value=float(sum(parameter.numel() for parameter in training.model.parameters())),
        note="of the layers that this rank has; the first rank has the first ones",
    )


def read_memory(device: Device, host_memory: HostMemory, workers: int | None) -> Memory:
    """Peaks since the last reset; ``workers`` is the loader workers' part, in bytes."""
    host_peak = host_memory.peak_growth_bytes()
    peaks = device.memory()
    return Memory(
        peak_allocated_bytes=peaks.peak_allocated_bytes,
        peak_reserved_bytes=peaks.peak_reserved_bytes,
        nvml_used_bytes=None,
        peak_host_bytes=None if host_peak is None or workers is None else host_peak + workers,
        workers_bytes=workers,
    )


def epoch_turn(
    workload: Workload, scenario: Scenario, plan: Plan, place: Place, first_batch_s: float
) -> Reading:
    """Seconds from an epoch's last batch to the next one's first; windows leave it out."""
    reading = Reading(
        name="epoch_turn",
        unit="s",
        scope="rank",
        value=None,
        note="from an epoch's last batch to the next epoch's first one",
    )
    if 4 * first_batch_s > plan.max_seconds:
        note = f"not tried: its batches would take longer than {plan.max_seconds:g} s"
        return dataclasses.replace(reading, note=note)
    num_batches = 2
    loader = make_loader(workload, scenario, place.rank, num_batches=num_batches)
    epoch = iter(loader)
    for _ in range(num_batches):
        next(epoch)
    start_s = place.device.now_s()
    next(epoch, None)
    next(iter(loader))
    return dataclasses.replace(reading, value=place.device.now_s() - start_s)


def remarks(
    device: Device,
    warmup: WarmUp,
    first_loss: float | None,
    final_loss: float | None,
    skipped_steps: int | None,
    window: Window,
) -> Iterator[str]:
    """Remarks on this rank's numbers."""
    if not warmup.settled:
        yield (
            f"step times had not settled after {warmup.num_steps} steps of warm-up "
            f"({warmup.seconds:.1f} s); raise --max-seconds, which bounds warm-up too"
        )
    for name, loss in (("began", first_loss), ("ended", final_loss)):
        if loss is not None and not math.isfinite(loss):
            yield f"the loss {name} at {loss}: this training diverges"
    if skipped_steps is None:
        yield "this optimizer takes the gradient scale itself; steps it skipped are not counted"
    elif skipped_steps:
        yield (
            f"the gradient scaler skipped {skipped_steps} of {window.num_steps} steps of the "
            "window: they update nothing and look fast"
        )
    if not device.marks_steps:
        yield f"{device.name}: phases come from a serialised pass, waiting at each mark"
    if isinstance(device, DevicePair) and device.memory().peak_allocated_bytes is not None:
        yield (
            f"{device.name}: peaks of device memory are those of one device, the one whose tensors "
            "take more; the other one's are not added"
        )


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None

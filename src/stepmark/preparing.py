"""From a scenario to a training that has begun: everything built, the first step done."""

import dataclasses
import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stepmark import recipe, workloads
from stepmark.building import (
    checked_loss,
    has_images,
    loop_of,
    make_training,
    own_part,
    wrap_ddp,
)
from stepmark.choices import CompileMode, Precision, Task
from stepmark.compiling import Compiler
from stepmark.devices import Device
from stepmark.errors import ObstacleError
from stepmark.loading import SEED, describe_batch, make_loader
from stepmark.loop import Loop, Training
from stepmark.measurement import value_of
from stepmark.parts import check_batch
from stepmark.place import Place, join_process_group
from stepmark.probes.flops import on_meta
from stepmark.record import StartUp
from stepmark.scenario import Plan, Scenario
from stepmark.switches import Switches
from stepmark.workload import Workload

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that has begun.

    Attributes:
        scenario: which.
        place: this rank's, among the others if there are any.
        workload: what is trained.
        training: what the loop works on.
        batches: where the next micro-batch comes from, without end.
        loop: runs its steps.
        switches: of precision and threads, as stepmark set them.
        startup: how long it took.
        first_batch: shapes and types of its tensors.
        bare_batch: the same on the meta device.
        first_loss: of the first step; ``None`` where there is none, as on a pipeline's first stage.
        compiler: of the model; ``None`` where it is not compiled.
    """

    scenario: Scenario
    place: Place
    workload: Workload
    training: Training
    batches: Iterator[Any]
    loop: Loop
    switches: Switches
    startup: StartUp
    first_batch: str
    bare_batch: Any
    first_loss: float | None
    compiler: Compiler | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """A training before its first batch.

    Attributes:
        place, workload, training, switches, compiler: as of `Prepared`.
        process_s, import_s, build_s, process_group_s: as of `StartUp`.
        clock: of the laps that follow.
    """

    place: Place
    workload: Workload
    training: Training
    switches: Switches
    process_s: float
    import_s: float
    build_s: float
    process_group_s: float
    clock: "Stopwatch"
    compiler: Compiler | None


def build(
    scenario: Scenario,
    plan: Plan,
    place: Place,
    progress: Progress,
    *,
    own_scheduler: bool = True,
) -> Built:
    """Build everything and meet the other ranks; the workload's scheduler may be left out.

    Raises:
        WorkloadError: the workload cannot be found or built, or does not suit the scenario.
    """
    process_s = time.monotonic() - place.requested_s
    device = place.device
    switches = Switches(place, tf32=scenario.precision is Precision.TF32)
    device.reset_peaks()

    progress("building", None)
    clock = Stopwatch(device)
    make = workloads.load(scenario.workload)
    import_s = clock.lap_s()
    seed(SEED)
    workload = recipe.apply(make(), scenario)
    if not own_scheduler:
        workload = dataclasses.replace(workload, scheduler=None)
    switches.set_back()
    training = make_training(own_part(workload, scenario, place.rank), scenario, device)
    compiler = None
    if scenario.compile is not CompileMode.OFF:
        progress("waking the compiler", None)
        compiler = Compiler(device)
        # Before DDP wraps it: DDP's own code stays as it is, and its buckets still part the graph.
        model = compiler.compiled(training.model, scenario.compile)
        training = dataclasses.replace(training, model=model)
    build_s = clock.lap_s()
    if scenario.distributed:
        place = join_process_group(place, scenario, plan)
    if scenario.wraps_in_ddp:
        model = wrap_ddp(
            training.model,
            device,
            find_unused_parameters=workload.find_unused_parameters,
        )
        training = dataclasses.replace(training, model=model)
    return Built(
        place=place,
        workload=workload,
        training=training,
        switches=switches,
        process_s=process_s,
        import_s=import_s,
        build_s=build_s,
        process_group_s=clock.lap_s(),
        clock=clock,
        compiler=compiler,
    )


def prepare(scenario: Scenario, plan: Plan, place: Place, progress: Progress) -> Prepared:
    """Build everything, meet the other ranks and do the first step.

    Raises:
        WorkloadError: the workload cannot be found or built, or does not suit the scenario.
    """
    built = build(scenario, plan, place, progress)
    place, workload, training, clock = built.place, built.workload, built.training, built.clock
    # Dropout and augmentation in the main process differ from rank to rank. Stages of one model
    # load the same samples: the first one their inputs, the last one their targets.
    seed(SEED + (place.rank if scenario.pipeline_stages == 1 else 0))
    batches = iter(make_loader(workload, scenario, place.rank))
    first = next(batches)
    first_batch_s = clock.lap_s()
    check_suits(scenario, first)
    loop, checked = loop_of(scenario, workload, training, place.device), training
    if scenario.task is Task.TRAIN:
        checked = dataclasses.replace(training, loss=functools.partial(checked_loss, workload))
    if built.compiler is not None:
        progress("compiling", None)
    losses = loop(checked, itertools.chain([first], batches), range(1), ())
    place.device.synchronize()
    startup = StartUp(
        process_s=built.process_s,
        import_s=built.import_s,
        build_s=built.build_s,
        process_group_s=built.process_group_s,
        first_batch_s=first_batch_s,
        first_step_s=clock.lap_s(),
    )
    return Prepared(
        scenario=scenario,
        place=place,
        workload=workload,
        training=training,
        batches=batches,
        loop=loop,
        switches=built.switches,
        startup=startup,
        first_batch=describe_batch(first),
        bare_batch=on_meta(first),
        first_loss=value_of(losses),
        compiler=built.compiler,
    )


def check_suits(scenario: Scenario, batch: Any) -> None:
    """Check that a workload's batches have what the scenario is about.

    Raises:
        ObstacleError: they have not.
    """
    if scenario.pipeline_stages > 1 or scenario.split_layers:
        check_batch(batch)
    if scenario.loss is not None and isinstance(batch, Mapping):
        raise ObstacleError(
            f"loss={scenario.loss}: of batches that are dictionaries the model returns its own loss"
        )
    if scenario.channels_last and not has_images(batch):
        raise ObstacleError(
            f"channels_last: no tensor of a batch has four dimensions ({describe_batch(batch)})"
        )


def seed(number: int) -> None:
    """Of whatever a workload may draw from; a forked process draws Python's own anew."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


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

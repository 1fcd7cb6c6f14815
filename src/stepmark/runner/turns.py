"""One rank of a side that takes turns with another one: warm up, then steps at its word."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from stepmark.measurement import Measurement, value_of
from stepmark.place import Place
from stepmark.preparing import Progress, prepare
from stepmark.probes.memory import HostMemory, workers_bytes
from stepmark.runner.messages import PEAK, Costs, Order, Ready, Turn, Turned
from stepmark.runner.origins import check_origins
from stepmark.scenario import Scenario
from stepmark.session import epoch_turn, read_memory

# Loss after the first step says that data and forward pass are the same, after the third one that
# backward pass and optimizer are.
_CHECKED_STEPS = 3
# The batches of an epoch's turn may take so long.
_EPOCH_TURN_S = 30.0


def take_turns(
    order: Order,
    place: Place,
    progress: Progress,
    turns: Iterator[Turn],
    say: Callable[[Ready | Turned], None],
) -> None:
    """Prepare a scenario on one rank, and run its steps turn by turn until there are no more.

    Raises:
        WorkloadError: the workload cannot be found or built, does not suit the scenario, or is
            not the side's own.
    """
    scenario, plan = order.scenario, order.plan
    host_memory = HostMemory()
    prepared = prepare(scenario, plan, place, progress)
    if order.origins is not None:
        check_origins(order.origins, Path(order.directory))
    place, training = prepared.place, prepared.training
    measurement = Measurement(scenario, plan, place, training, prepared.batches, prepared.loop)
    losses = prepared.loop(training, prepared.batches, range(_CHECKED_STEPS - 1), ())
    counters = {
        "batch": prepared.first_batch,
        "loss": f"{prepared.first_loss!r}, {value_of(losses)!r} after {_CHECKED_STEPS} steps",
    }
    epoch_turn_s = None
    if order.with_costs:
        if scenario.num_workers:
            # Before the warm-up, which uses up the batches that lie ready in the loader after it.
            patient = dataclasses.replace(plan, max_seconds=_EPOCH_TURN_S)
            first_batch_s = prepared.startup.first_batch_s
            epoch = epoch_turn(prepared.workload, scenario, patient, place, first_batch_s)
            epoch_turn_s = epoch.value
        place.device.reset_peaks()
        host_memory.reset_peak()
    progress("warming up", None)
    measurement.warm_up()
    if prepared.compiler is not None:
        prepared.compiler.rest()
    peak_bytes = place.device.memory().peak_allocated_bytes
    if peak_bytes is not None:
        counters[PEAK] = str(peak_bytes)
    say(
        Ready(
            rank=place.rank,
            process_group=os.getpgid(0),
            step_s=measurement.expected_step_s,
            counters=counters,
            costs=None
            if not order.with_costs
            else Costs(
                first_step_s=prepared.startup.first_step_s,
                epoch_turn_s=epoch_turn_s,
                num_samples=len(prepared.workload.dataset),  # type: ignore[arg-type]
                peak_bytes=_peak_bytes(scenario, place, host_memory),
            ),
        )
    )
    for turn in turns:
        window, loss, skipped_steps = measurement.turn(turn.num_lead, turn.num_steps)
        say(
            Turned(
                rank=place.rank,
                window_s=window.window_s,
                step_s=window.step_s,
                skipped_steps=skipped_steps,
                diverges=loss is not None and not math.isfinite(loss),
            )
        )


def _peak_bytes(scenario: Scenario, place: Place, host_memory: HostMemory) -> int | None:
    workers = workers_bytes() if scenario.num_workers else 0
    found = read_memory(place.device, host_memory, workers)
    on_device = found.peak_allocated_bytes
    return found.peak_host_bytes if on_device is None else on_device

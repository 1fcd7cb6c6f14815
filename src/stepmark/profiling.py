"""One rank under torch.profiler: traces of some steps, and the ledger of its memory."""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.profiler import record_function

from stepmark.loop import Callback
from stepmark.measurement import Measurement
from stepmark.place import Place
from stepmark.preparing import Prepared, Progress, prepare
from stepmark.probes.ledger import HeldMemory
from stepmark.probes.timing import phase_order
from stepmark.profile import RankProfile
from stepmark.scenario import Plan, Scenario
from stepmark.trace.attribution import DRAIN, PHASE

# Of the profiler, before the steps that count: its first ones are slow.
_WARM_UP = 2
_SECONDS = 0.5
_FEWEST_STEPS, _MOST_STEPS = 3, 10
_STEPS_IN_DETAIL = 2
_PLAIN_STEPS = 10


def profile(
    scenario: Scenario, plan: Plan, place: Place, progress: Progress, prefix: Path
) -> RankProfile:
    """Profile a scenario on one rank.

    Args:
        scenario: with its device resolved.
        plan: of the warm-up.
        place: this rank's.
        progress: told the stage.
        prefix: of the names of files that are written.

    Raises:
        WorkloadError: the workload cannot be found or built, or does not suit the scenario.
    """
    prepared = prepare(scenario, plan, place, progress)
    place, device = prepared.place, prepared.place.device
    measurement = Measurement(
        scenario, plan, place, prepared.training, prepared.batches, prepared.loop
    )
    progress("warming up", None)
    measurement.warm_up()
    plain = measurement.stretch(_PLAIN_STEPS, plan.max_seconds)
    progress("counting memory", None)
    held = HeldMemory(
        prepared.training.model,
        prepared.training.optimizer,
        prepared.workload.optimizer,
        device,
    )
    with held.watching():
        prepared.loop(prepared.training, prepared.batches, range(1), [held])
    device.synchronize()
    ledger = held.holdings()

    num_steps = min(max(_FEWEST_STEPS, round(_SECONDS / plain.step_s)), _MOST_STEPS)
    base = prefix.with_name(f"{prefix.name}.rank{place.rank}")
    progress("profiling", None)
    trace = base.with_name(f"{base.name}.trace.json.gz")
    profiled_s = _trace(prepared, num_steps, trace)
    progress("profiling in detail", None)
    detail = base.with_name(f"{base.name}.detail.json.gz")
    on_accelerator = len(device.activities) > 1
    # The host alone never waits for itself.
    _trace(prepared, _STEPS_IN_DETAIL, detail, with_stack=on_accelerator, profile_memory=True)
    snapshot = ""
    if on_accelerator:
        file = base.with_name(f"{base.name}.memory.pickle")
        with device.memory_history(file) as is_recorded:
            prepared.loop(prepared.training, prepared.batches, range(1), ())
        snapshot = file.name if is_recorded else ""
    place.barrier()
    return RankProfile(
        rank=place.rank,
        device_name=device.name,
        trace=trace.name,
        detailed_trace=detail.name,
        snapshot=snapshot,
        num_steps=num_steps,
        profiled_step_s=profiled_s / num_steps,
        plain_step_s=plain.step_s,
        ledger=ledger,
        notes=tuple(prepared.switches.notes),
    )


def _trace(
    prepared: Prepared,
    num_steps: int,
    file: Path,
    *,
    with_stack: bool = False,
    profile_memory: bool = False,
) -> float:
    """Profile some steps into a file, with these options of the profiler; how long they took."""
    place, device = prepared.place, prepared.place.device
    edges_s: list[float] = []
    done = 0
    on_host_alone = len(device.activities) == 1
    drain = nullcontext if on_host_alone else functools.partial(record_function, DRAIN)
    schedule = torch.profiler.schedule(wait=0, warmup=_WARM_UP, active=num_steps, repeat=1)
    with torch.profiler.profile(
        activities=device.activities,
        schedule=schedule,
        with_stack=with_stack,
        profile_memory=profile_memory,
    ) as profiler:

        def on_step() -> None:
            nonlocal done
            done += 1
            if done == _WARM_UP + num_steps:
                # Its tail is the last step's. Named, since no step waits there by itself.
                with drain():
                    device.synchronize()
                edges_s.append(device.now_s())
            profiler.step()
            if done == _WARM_UP:
                # What was queued before the first step is not its own.
                device.synchronize()
                edges_s.append(device.now_s())

        place.barrier()
        annotations = PhaseAnnotations(phase_order(prepared.scenario), on_step)
        prepared.loop(
            prepared.training, prepared.batches, range(_WARM_UP + num_steps), [annotations]
        )
    profiler.export_chrome_trace(str(file))
    return edges_s[1] - edges_s[0]


class PhaseAnnotations(Callback):
    """Names each phase in the trace, without a gap between them; ``other`` is what has no name.

    Args:
        order: of the phases, from one step's end to the next one's.
        on_step: called after each step.
    """

    def __init__(self, order: Sequence[str], on_step: Callable[[], None]) -> None:
        self._order = order
        self._on_step = on_step
        self._next = iter(order)
        self._open: record_function | None = None

    def on_step_start(self) -> None:
        """See `Callback`."""
        self._next = iter(self._order[1:])  # the first one is what lies between steps
        self._switch()

    def on_batch(self) -> None:
        """See `Callback`."""
        self._switch()

    def on_transfer(self) -> None:
        """See `Callback`."""
        self._switch()

    def on_forward(self) -> None:
        """See `Callback`."""
        self._switch()

    def on_backward(self) -> None:
        """See `Callback`."""
        self._switch()

    def on_step_end(self) -> None:
        """See `Callback`."""
        self._switch()
        self._on_step()

    def _switch(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        phase = next(self._next, "other")
        self._open = None if phase == "other" else record_function(PHASE + phase)
        if self._open is not None:
            self._open.__enter__()  # type: ignore[no-untyped-call]

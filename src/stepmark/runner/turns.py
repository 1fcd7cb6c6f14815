"""One rank of a side that takes turns with another one: warm up, then steps at its word."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from stepmark.errors import WorkloadError
from stepmark.loop import train
from stepmark.measurement import Measurement, value_of
from stepmark.place import Place
from stepmark.runner.messages import Order, Ready, Turn, Turned
from stepmark.session import Progress, prepare

# Loss after the first step says that data and forward pass are the same, after the third one that
# backward pass and optimizer are.
_CHECKED_STEPS = 3


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
    prepared = prepare(scenario, plan, place, progress)
    if order.closed:
        _refuse_modules_from(Path(order.closed))
    place, training = prepared.place, prepared.training
    first_loss = value_of(prepared.losses)
    measurement = Measurement(scenario, plan, place, training, prepared.batches)
    losses = train(training, prepared.batches, range(_CHECKED_STEPS - 1))
    counters = {
        "batch": prepared.first_batch,
        "loss": f"{first_loss!r}, {value_of(losses)!r} after {_CHECKED_STEPS} steps",
    }
    progress("warming up", None)
    measurement.warm_up()
    peak_bytes = place.device.memory().peak_allocated_bytes
    if peak_bytes is not None:
        counters["peak_allocated_bytes"] = str(peak_bytes)
    say(
        Ready(
            rank=place.rank,
            process_group=os.getpgid(0),
            step_s=measurement.expected_step_s,
            counters=counters,
        )
    )
    for turn in turns:
        window = measurement.turn(turn.num_lead, turn.num_steps)
        say(Turned(rank=place.rank, window_s=window.window_s, step_s=window.step_s))


def _refuse_modules_from(closed: Path) -> None:
    """Find out whether something was imported from where no side has its code.

    An environment may lie in there, and stepmark itself.
    """
    environments = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name.partition(".")[0] == "stepmark":
            continue
        path = Path(file).resolve()
        inside = path.is_relative_to(closed)
        if inside and not any(path.is_relative_to(e) for e in environments):
            raise WorkloadError(
                f"module {name!r} came from {path}, the same file for both sides, and not from "
                "the side's own checkout; it is probably installed in editable mode through an "
                "import hook: uninstall it, or install it with 'pip install -e . --config-settings"
                " editable_mode=compat'"
            )

"""What the observers of a training cost a step: each attached alone, all of them, and none.

All sides run the same loop on the same model in this process, in rounds of one stretch of steps
each, in an order that turns from round to round; a side's cost is its step less that of the loop
with nothing attached in the same round. That loop runs as a second side too: how far it is from
itself is what these figures can tell. On a machine with neighbours, which only add time, floors
tell more: the fastest stretch of a side less that of the loop with nothing attached.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator
from statistics import median, quantiles
from typing import Any

import networks
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from stepmark import Scenario
from stepmark.building import make_training
from stepmark.devices import BACKENDS
from stepmark.loop import Callback, Training, train
from stepmark.probes.timing import PhaseMarks, phase_order
from stepmark.trainer.schedules import ParameterScheduler
from stepmark.trainer.watching import Accuracy, MeanLoss, SmoothedLoss, WatchedLoss

CPU = torch.device("cpu")
NOTHING = "nothing attached"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """A loop with something attached, or nothing."""

    training: Training
    callbacks: tuple[Callback, ...] = ()


def sides(width: int, most_steps: int) -> dict[str, Side]:
    """By name; all on one model and optimizer."""
    workload = networks.mlp(width)
    scenario = Scenario(workload="networks", device="cpu", threads=1)
    device = BACKENDS["cpu"].open(0)
    bare = make_training(workload, scenario, device)
    watched = WatchedLoss(workload, scenario)
    watched.begin(1 << 60)
    seen = dataclasses.replace(bare, loss=watched)
    order = phase_order(scenario)
    schedule = ParameterScheduler(
        bare.optimizer, "lr", lambda o: CosineAnnealingWarmRestarts(o, T_0=1000, T_mult=2)
    )
    marks = PhaseMarks(device.marks(len(order) * most_steps + 1), order)
    mean, smoothed = MeanLoss(watched, CPU), SmoothedLoss(watched, CPU)
    accuracy = Accuracy(watched, CPU)
    return {
        NOTHING: Side(training=bare),
        f"{NOTHING}, again": Side(training=bare),
        "watched loss alone": Side(training=seen),
        "mean loss": Side(training=seen, callbacks=(mean,)),
        "smoothed loss": Side(training=seen, callbacks=(smoothed,)),
        "accuracy": Side(training=seen, callbacks=(accuracy,)),
        "parameter schedule": Side(training=bare, callbacks=(schedule,)),
        "phase marks": Side(training=bare, callbacks=(marks,)),
        "all of a training's": Side(training=seen, callbacks=(mean, smoothed, accuracy, marks)),
    }


def batches() -> Iterator[Any]:
    """A few batches again and again, so that loading is no part of it."""
    loader = torch.utils.data.DataLoader(networks.make_dataset(), batch_size=networks.BATCH_SIZE)
    return itertools.cycle(list(itertools.islice(loader, 16)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--steps", type=int, default=20, help="of a stretch")
    parser.add_argument("--width", type=int, default=290, help="of the network: length of a step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = sides(options.width, 2 * options.rounds * options.steps)
    following = batches()
    steps_s: dict[str, list[float]] = {name: [] for name in found}
    for number in range(options.rounds + 1):
        names = list(found)
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            side = found[name]
            start_s = time.perf_counter()
            train(side.training, following, range(options.steps), side.callbacks)
            if number:  # the first round warms up
                steps_s[name].append((time.perf_counter() - start_s) / options.steps)
    plain_s = steps_s[NOTHING]
    print(
        f"step of {median(plain_s) * 1e3:.3f} ms with nothing attached, {options.rounds} rounds of "
        f"{options.steps} steps, one thread (fastest {min(plain_s) * 1e3:.3f} ms)\n"
        f"  {'cost of a step':<24}   floors     median (middle half of the rounds)"
    )
    for name in list(found)[1:]:
        costs_us = [(s - p) * 1e6 for s, p in zip(steps_s[name], plain_s, strict=True)]
        low, _, high = quantiles(costs_us, n=4)
        floor_us = (min(steps_s[name]) - min(plain_s)) * 1e6
        spread = f"({low:.1f} to {high:.1f})"
        print(f"  {name:<24} {floor_us:6.1f} µs  {median(costs_us):6.1f} µs {spread}")


if __name__ == "__main__":
    main()

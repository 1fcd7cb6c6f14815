"""What marks cost a step that is bound by launches: windows without, with step and phase marks.

The windows take turns in one process; medians over rounds, against windows without marks. Exit
code 1 if a target is missed.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from stepmark.devices import BACKENDS
from stepmark.loop import Callback, Training, train
from stepmark.probes.timing import PhaseMarks, StepMarks, phase_order
from stepmark.scenario import Scenario

ROUNDS, STEPS, LAYERS = 30, 100, 40
TARGETS = {"step marks": 0.5, "phase marks": 2.0}  # per cent of a launch-bound step


def main() -> int:
    device = BACKENDS["cuda"].open(0)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(LAYERS)]
    model = nn.Sequential(*layers, nn.Linear(32, 10)).to(device.torch_device)
    batch = torch.randn(16, 32), torch.randint(0, 10, (16,))
    training = Training(
        model=model,
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        to_device=device.to_device,
    )
    batches = itertools.repeat(batch)
    kinds: dict[str, Callable[[], tuple[Sequence[Callback], Callable[[], None]]]] = {
        "without marks": lambda: ((), lambda: None),
        "step marks": lambda: _step_marks(device),
        "phase marks": lambda: _phase_marks(device),
        "without marks, again": lambda: ((), lambda: None),
    }
    train(training, batches, range(5 * STEPS))
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, make in kinds.items():
            seconds[kind].append(_window_s(training, batches, device, *make()))
    plain = statistics.median(seconds["without marks"])
    print(f"launch-bound step of {LAYERS} layers: {1e3 * plain / STEPS:.3f} ms, {device.name}")
    missed = False
    for kind, values in seconds.items():
        ratios = sorted(v / p for v, p in zip(values, seconds["without marks"], strict=True))
        middle = statistics.median(ratios)
        low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        part, least, most = (100 * (ratio - 1) for ratio in (middle, low, high))
        target = TARGETS.get(kind)
        judged = ""
        if target is not None:
            judged = f"; target {target} %: {'met' if part <= target else 'missed'}"
            missed |= part > target
        print(f"{kind:<22} {part:+.2f} % ({least:+.2f} to {most:+.2f}){judged}")
    return int(missed)


def _step_marks(device: Any) -> tuple[Sequence[Callback], Callable[[], None]]:
    marks = device.marks(STEPS + 1)
    return [StepMarks(marks)], marks.mark


def _phase_marks(device: Any) -> tuple[Sequence[Callback], Callable[[], None]]:
    order = phase_order(Scenario(workload="the model above"))
    marks = PhaseMarks(device.marks(len(order) * STEPS + 1), order)
    return [marks], marks.begin


def _window_s(
    training: Training,
    batches: Iterator[Any],
    device: Any,
    callbacks: Sequence[Callback],
    begin: Callable[[], None],
) -> float:
    device.synchronize()
    start_s = time.perf_counter()
    begin()
    train(training, batches, range(STEPS), callbacks)
    device.synchronize()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    sys.exit(main())

"""Throughput under `measure` against the same loop written by hand, in alternating processes.

Floors are compared, since neighbours on the machine only add time: the fastest stretch of steps of
all processes of a side. The loop by hand runs as a third side too: how far it is from itself is
what these figures can tell.
"""

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

NETWORKS = Path(__file__).parent / "networks.py"
# Width of the network, steps of a window, steps of a stretch.
CASES = {"1 ms": (290, 1000, 50), "20 ms": (2600, 100, 5)}


def by_hand(width: int, num_steps: int, stretch: int, threads: int) -> None:
    """The article's loop; prints mean seconds per step of its fastest stretch."""
    import networks
    import torch
    import torchvision  # noqa: F401 - as training scripts do; imports alone slow a step of 1 ms
    from torch.utils.data import DataLoader

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = networks.make_model(width).to(device)
    loss_fn = torch.nn.CrossEntropyLoss()
    optimizer = networks.make_optimizer(model.parameters())
    loader = DataLoader(networks.make_dataset(), batch_size=networks.BATCH_SIZE, shuffle=True)
    num_warmup = num_steps // 4
    marks_s = []
    for step, (inputs, targets) in enumerate(loader):
        if step >= num_warmup and (step - num_warmup) % stretch == 0:
            marks_s.append(time.perf_counter())
        if step == num_warmup + num_steps:
            break
        inputs, targets = inputs.to(device), targets.to(device)
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    stretches_s = [(b - a) / stretch for a, b in itertools.pairwise(marks_s)]
    print(min(stretches_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8, help="processes a side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--by-hand", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.by_hand:
        by_hand(*options.by_hand, options.threads)
        return

    from stepmark import Plan, Scenario, measure

    for name, (width, num_steps, stretch) in CASES.items():
        scenario = Scenario(
            workload=f"{NETWORKS}:mlp?width={width}", device="cpu", threads=options.threads
        )
        plan = Plan(steps=num_steps, max_seconds=60)
        command = [sys.executable, __file__, "--threads", str(options.threads)]
        command += ["--by-hand", str(width), str(num_steps), str(stretch)]

        def floor_by_hand(command: list[str] = command) -> float:
            return float(subprocess.run(command, check=True, capture_output=True).stdout)

        floors_s: dict[str, list[float]] = {"by hand": [], "measure": [], "by hand again": []}
        for _ in range(options.processes):
            floors_s["by hand"].append(floor_by_hand())
            result = measure(scenario, plan)
            assert result.slowest is not None, result.reason
            step_s = result.slowest.window.step_s
            starts = range(0, num_steps, stretch)
            floors_s["measure"].append(min(sum(step_s[i : i + stretch]) for i in starts) / stretch)
            floors_s["by hand again"].append(floor_by_hand())
        by_hand_s = floors_s["by hand"]
        print(
            f"{name} step, {options.threads} thread(s), {options.processes} processes a side: "
            f"floor by hand {min(by_hand_s) * 1e3:.4f} ms"
        )
        for side in ("measure", "by hand again"):
            floors = floors_s[side]
            print(
                f"  {side:<13}  ratio of floors {min(floors) / min(by_hand_s):.4f}, of medians of "
                f"the processes' floors {median(floors) / median(by_hand_s):.4f}"
            )


if __name__ == "__main__":
    main()

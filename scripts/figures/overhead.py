"""Throughput under `measure` against the same loop written by hand, in alternating processes.

Floors are compared, since neighbours on the machine only add time: the fastest stretch of steps of
all processes of a side. The median over processes of the whole window is printed beside it.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

NETWORKS = Path(__file__).parent / "networks.py"
# Width of the network, steps of a window, steps of a stretch.
CASES = {"1 ms": (128, 1000, 50), "20 ms": (2600, 100, 5)}


def by_hand(width: int, num_steps: int, stretch: int, threads: int) -> None:
    """The article's loop; prints mean seconds per step of its fastest stretch, and of all."""
    import networks
    import torch
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
    print(min(stretches_s), (marks_s[-1] - marks_s[0]) / num_steps)


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
        floors_s: dict[str, list[float]] = {"by hand": [], "measure": []}
        windows_s: dict[str, list[float]] = {"by hand": [], "measure": []}
        for _ in range(options.processes):
            command = [sys.executable, __file__, "--threads", str(options.threads)]
            command += ["--by-hand", str(width), str(num_steps), str(stretch)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            floor_s, window_s = map(float, output.split())
            floors_s["by hand"].append(floor_s)
            windows_s["by hand"].append(window_s)
            result = measure(scenario, plan)
            assert result.slowest is not None, result.reason
            step_s = result.slowest.window.step_s
            starts = range(0, num_steps, stretch)
            floors_s["measure"].append(min(sum(step_s[i : i + stretch]) for i in starts) / stretch)
            windows_s["measure"].append(result.slowest.window.window_s / num_steps)
        floor = {side: min(values) for side, values in floors_s.items()}
        median = {side: statistics.median(values) for side, values in windows_s.items()}
        ratio = floor["measure"] / floor["by hand"]
        print(
            f"{name} step, {options.threads} thread(s), {options.processes} processes a side: "
            f"floor by hand {floor['by hand'] * 1e3:.4f} ms, "
            f"measure {floor['measure'] * 1e3:.4f} ms, ratio {ratio:.4f} (target 0.99 to 1.01); "
            f"medians of windows {median['by hand'] * 1e3:.4f} and "
            f"{median['measure'] * 1e3:.4f} ms"
        )


if __name__ == "__main__":
    main()

"""Throughput under `measure` against the same loop written by hand, in alternating processes.

The floor (fastest process of each side) is compared: neighbours on the machine only add time.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

NETWORKS = Path(__file__).parent / "networks.py"
CASES = {"1 ms": (128, 1000), "20 ms": (2600, 100)}  # width of the network, steps of a window


def by_hand(width: int, num_steps: int, threads: int) -> None:
    """The article's loop; prints samples per second."""
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
    start_s = 0.0
    for step, (inputs, targets) in enumerate(loader):
        if step == num_warmup:
            start_s = time.perf_counter()
        if step == num_warmup + num_steps:
            break
        inputs, targets = inputs.to(device), targets.to(device)
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(networks.BATCH_SIZE * num_steps / (time.perf_counter() - start_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8, help="processes a side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--by-hand", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.by_hand:
        by_hand(*options.by_hand, options.threads)
        return

    from stepmark import Plan, Scenario, measure

    for name, (width, num_steps) in CASES.items():
        scenario = Scenario(
            workload=f"{NETWORKS}:mlp?width={width}", device="cpu", threads=options.threads
        )
        plan = Plan(steps=num_steps, max_seconds=60)
        rates: dict[str, list[float]] = {"measure": [], "by hand": []}
        for _ in range(options.processes):
            command = [sys.executable, __file__, "--threads", str(options.threads)]
            command += ["--by-hand", str(width), str(num_steps)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rates["by hand"].append(float(output))
            result = measure(scenario, plan)
            assert result.samples_per_s is not None, result.reason
            rates["measure"].append(result.samples_per_s)
        floors_s = {side: 64 / max(values) for side, values in rates.items()}
        medians_s = {side: 64 / statistics.median(values) for side, values in rates.items()}
        print(
            f"{name} step, {options.threads} thread(s), {options.processes} processes a side: "
            f"by hand {floors_s['by hand'] * 1e3:.4f} ms, measure {floors_s['measure'] * 1e3:.4f} "
            f"ms, ratio {floors_s['measure'] / floors_s['by hand']:.4f} (target 0.99 to 1.01); "
            f"of medians {medians_s['measure'] / medians_s['by hand']:.4f}"
        )


if __name__ == "__main__":
    main()

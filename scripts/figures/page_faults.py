"""What glibc's handing back of memory costs a step, in fresh processes with and without it."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from stepmark.gate.pairs import STEADY_MEMORY

NUM_PROCESSES, NUM_STEPS, WARM_UP = 5, 400, 50


def measure() -> None:
    """Steps of the validation's CNN in this process: milliseconds and page faults."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "validation"))
    import planted
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    workload = planted.cnn()
    optimizer = workload.optimizer(workload.model.parameters())
    times_ms: list[float] = []
    faults: list[int] = []
    while len(times_ms) < NUM_STEPS:
        for batch in DataLoader(workload.dataset, batch_size=planted.BATCH_SIZE):
            faults_before, start_s = _faults(), time.perf_counter()
            workload.loss(workload.model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            times_ms.append(1e3 * (time.perf_counter() - start_s))
            faults.append(_faults() - faults_before)
    quantiles = [np.percentile(values[WARM_UP:], (5, 50, 95)) for values in (times_ms, faults)]
    print("  step {:.2f} {:.2f} {:.2f} ms   page faults {:.0f} {:.0f} {:.0f}".format(
        *quantiles[0], *quantiles[1]
    ))  # fmt: skip


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    print("5th, 50th and 95th percentile of a process's steps")
    for title, variables in (("glibc as it is", {}), ("memory kept", STEADY_MEMORY)):
        print(title, flush=True)
        for _ in range(NUM_PROCESSES):
            environment = {**os.environ, **variables}
            subprocess.run([sys.executable, __file__, "measure"], env=environment, check=True)


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["measure"] else main()

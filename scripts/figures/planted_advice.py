"""Truths planted for ``stepmark advice`` to find: what workers gain, what accumulation saves.

A dataset whose samples take 3 ms each, so that workers help by what theory says; a step that waits
for nothing that workers could do, so that they gain nothing; and a network whose activations are
nearly all of its memory, so that accumulation saves those of the larger batch.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from stepmark import Workload

BATCH_SIZE = 16
SAMPLE_S = 0.003
# Values of a sample, and layers that each keep one copy of them for backward.
WIDTH, LAYERS = 1 << 16, 16
# Of a step whose batches cost nothing.
STEP_S = 0.05
NEAR = 0.15


class Slow(Dataset[tuple[Tensor, int]]):
    """Samples of four values that take 3 ms each."""

    def __len__(self) -> int:
        return 1024

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(SAMPLE_S)
        return torch.zeros(4), index % 2


def slow() -> Workload:
    """Hardly any arithmetic."""
    return Workload(
        model=nn.Linear(4, 2),
        dataset=Slow(),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


class Waiting(nn.Linear):
    """A layer that takes as long as a step of a larger network."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[batch, 2]``."""
        time.sleep(STEP_S)
        return super().forward(inputs)


def busy() -> Workload:
    """All of a step's time is the model's."""
    return Workload(
        model=Waiting(4, 2),
        dataset=TensorDataset(torch.zeros(1024, 4), torch.zeros(1024, dtype=torch.int64)),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


class Scaled(nn.Module):
    """One factor a layer: sigmoid keeps its output for backward, and hardly any parameter is."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(LAYERS))

    def forward(self, inputs: Tensor) -> Tensor:
        """Means ``[batch, 1]`` of inputs ``[batch, WIDTH]``."""
        for factor in self.factors:
            inputs = torch.sigmoid(inputs) + factor
        return inputs.mean(dim=1, keepdim=True)


def heavy() -> Workload:
    """Hardly anything but activations."""
    return Workload(
        model=Scaled(),
        dataset=TensorDataset(torch.zeros(256, WIDTH), torch.zeros(256, 1)),
        loss_fn=nn.MSELoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


def main() -> None:
    taken = []
    for _ in range(200):
        start_s = time.perf_counter()
        time.sleep(SAMPLE_S)
        taken.append(time.perf_counter() - start_s)
    print(f"a sleep of 3 ms takes {statistics.median(taken) * 1e3:.2f} ms here")
    entry = advise("slow", "workers")
    (claim,) = entry["claims"]
    num_workers = int(entry["with"].split("workers")[1].split("-")[0])
    found, expected = 1 + claim["change"], float(num_workers)
    print(
        f"workers: {claim['verdict']}, {found:.3f} times as fast ({1 + claim['low']:.3f} to "
        f"{1 + claim['high']:.3f}, {claim['num_pairs']} pairs); {num_workers} workers by theory "
        f"{expected:.3f}: {found / expected - 1:+.1%} (target 15 %)"
    )
    missed = abs(found / expected - 1) > NEAR or claim["verdict"] != "holds"
    entry = advise("busy", "workers")
    (claim,) = entry["claims"]
    print(
        f"workers with nothing to do: {claim['verdict']}, {1 + claim['change']:.3f} times as fast "
        f"({1 + claim['low']:.3f} to {1 + claim['high']:.3f}, {claim['num_pairs']} pairs)"
    )
    missed = missed or claim["verdict"] != "no difference seen"
    entry = advise("heavy", "accumulation")
    (claim,) = entry["claims"]
    saved = claim["without"] - claim["with"]
    # What backward keeps of the larger batch's other three quarters: the least that is saved, since
    # what lies between layers, and how an allocator parts its memory, come on top.
    least = 3 * BATCH_SIZE * LAYERS * WIDTH * 4
    print(
        f"accumulation: {claim['verdict']}, peak memory {claim['change']:+.1%} "
        f"({claim['without'] / 2**20:.0f} MiB to {claim['with'] / 2**20:.0f} MiB): "
        f"{saved / 2**20:.0f} MiB saved, of activations alone at least {least / 2**20:.0f} MiB"
    )
    missed = missed or claim["verdict"] != "holds" or saved < (1 - NEAR) * least
    sys.exit(int(missed))


def advise(function: str, name: str) -> dict[str, Any]:
    """What ``stepmark advice`` says of one piece of advice."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).parent / "stepmark", "advice", "--json"]
        command += ["--workload", f"{Path(__file__).resolve()}:{function}", "--only", name]
        command += ["--batch-size", str(BATCH_SIZE), "--device", "cpu", "--threads", "1"]
        command += ["--results", folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return next(entry for entry in json.loads(done.stdout)["advice"] if entry["name"] == name)


if __name__ == "__main__":
    main()

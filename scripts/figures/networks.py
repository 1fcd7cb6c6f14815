"""Workloads of known step length, for the scripts beside this file."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from stepmark import Workload

BATCH_SIZE = 64
NUM_SAMPLES = 100_000


def make_model(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(100, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def make_dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(NUM_SAMPLES, 100, generator=generator),
        torch.randint(0, 10, (NUM_SAMPLES,), generator=generator),
    )


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


def mlp(width: int) -> Workload:
    """Compute alone; the width sets the step's length."""
    return Workload(
        model=make_model(width),
        dataset=make_dataset(),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=make_optimizer,
    )


class SleepyDataset(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.seconds)
        return torch.zeros(4), torch.zeros(1)


class _SleepyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return gradient, None


class SleepyModel(nn.Module):
    def __init__(self, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.forward_s, self.backward_s = forward_s, backward_s

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(self.forward_s)
        outputs: Tensor = _SleepyBackward.apply(self.linear(inputs), self.backward_s)
        return outputs


class SleepySGD(torch.optim.SGD):
    def __init__(self, parameters: Any, seconds: float) -> None:
        super().__init__(parameters, lr=0.1)
        self.seconds = seconds

    def step(self, closure: Any = None) -> Any:
        time.sleep(self.seconds)
        return super().step(closure)


def sleepy(sample_s: float, forward_s: float, backward_s: float, optimizer_s: float) -> Workload:
    """Sleeps of known length in every phase."""
    return Workload(
        model=SleepyModel(forward_s, backward_s),
        dataset=SleepyDataset(sample_s),
        loss_fn=nn.MSELoss(),
        optimizer=lambda parameters: SleepySGD(parameters, optimizer_s),
    )


def tiny() -> Workload:
    """Next to nothing to do: what remains is starting up."""
    return Workload(
        model=nn.Linear(4, 1),
        dataset=TensorDataset(torch.zeros(64, 4), torch.zeros(64, 1)),
        loss_fn=nn.MSELoss(),
        optimizer=make_optimizer,
    )

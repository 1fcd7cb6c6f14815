"""A workload whose every part lets a scripted clock advance by a known time."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stepmark import Workload
from stepmark.devices.scripted import ScriptedClock


@dataclass
class Script:
    """Seconds that each part takes; a list is used up item by item, its last one stays."""

    sample_s: float = 0.0
    forward_s: float | list[float] = 0.0
    backward_s: float = 0.0
    optimizer_s: float = 0.0
    clock: ScriptedClock = field(default_factory=ScriptedClock)
    num_forwards: int = 0

    def advance_forward(self) -> None:
        seconds = self.forward_s
        if isinstance(seconds, list):
            seconds = seconds[min(self.num_forwards, len(seconds) - 1)]
        self.num_forwards += 1
        self.clock.advance(seconds)


SCRIPT = Script()


class ScriptedDataset(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        SCRIPT.clock.advance(SCRIPT.sample_s)
        return torch.full((3,), float(index)), torch.tensor([1.0])


class _SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        SCRIPT.clock.advance(SCRIPT.backward_s)
        return gradient


class ScriptedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        SCRIPT.advance_forward()
        return _SlowBackward.apply(self.linear(inputs * 0.01))


class ScriptedSGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        SCRIPT.clock.advance(SCRIPT.optimizer_s)
        return super().step(closure)


def build() -> Workload:
    return Workload(
        model=ScriptedModel(),
        dataset=ScriptedDataset(),
        loss_fn=nn.MSELoss(),
        optimizer=lambda parameters: ScriptedSGD(parameters, lr=0.01),
    )

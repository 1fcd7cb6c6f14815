"""Small workloads that learn, with everything random that a training may have."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stepmark import Workload


class Clouds(Dataset[tuple[Tensor, Tensor]]):
    """Two clouds of points; ``noise`` is drawn anew whenever one is asked for."""

    def __init__(self, length: int, noise: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(length) % 2
        centres = torch.tensor([[-1.0, -1, 0, 0], [1, 1, 0, 0]])
        self.points = centres[self.labels] + torch.randn(length, 4, generator=generator)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index] + self.noise * torch.randn(4), self.labels[index]


def build(
    *, length: int = 40, dropout: float = 0.0, noise: float = 0.0, adam: bool = False
) -> Workload:
    """A network of two layers on the clouds."""
    return Workload(
        model=nn.Sequential(
            nn.Linear(4, 8), nn.Tanh(), nn.BatchNorm1d(8) if noise else nn.Identity(),
            nn.Dropout(dropout), nn.Linear(8, 2),
        ),
        dataset=Clouds(length, noise, seed=1),
        valid_dataset=Clouds(21, 0.0, seed=2),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=(lambda p: torch.optim.Adam(p, lr=0.01))
        if adam
        else (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    )  # fmt: skip


def scheduled() -> Workload:
    """With a scheduler of its own, which halves the rate at every step."""
    workload = build()
    return Workload(
        model=workload.model,
        dataset=workload.dataset,
        valid_dataset=workload.valid_dataset,
        loss_fn=workload.loss_fn,
        optimizer=workload.optimizer,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    )


SEEN: list[tuple[bool, bool, bool]] = []


def spied() -> Workload:
    """Says in `SEEN` how its forward is run: training, gradients recorded, inference mode."""
    workload = build()

    def spy(module: nn.Module, _inputs: Any) -> None:
        SEEN.append((module.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    workload.model.register_forward_pre_hook(spy)
    return workload


class OnlyTrains(nn.Linear):
    """Gives a loss while it is trained, and something else otherwise."""

    def forward(self, points: Tensor) -> Any:
        """Its mean square."""
        return super().forward(points).square().mean() if self.training else ["boxes"]


def only_trains() -> Workload:
    """A model that cannot be evaluated."""
    return Workload(
        model=OnlyTrains(4, 2),
        dataset=Clouds(40, 0.0, seed=1),
        compute_loss=lambda model, batch: model(batch[0]),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


def restless() -> Workload:
    """Changes the number of threads while it is trained."""
    workload = build()
    workload.model.register_forward_pre_hook(lambda *_: torch.set_num_threads(3))
    return workload

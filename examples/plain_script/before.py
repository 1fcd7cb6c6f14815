"""Train a classifier of points on two spirals: a plain PyTorch script."""

import math

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE = 64
EPOCHS = 3
LEARNING_RATE = 0.01


class Spirals(Dataset):
    def __init__(self, num_points: int) -> None:
        turns = torch.linspace(0.25, 2.0, num_points)
        self.labels = torch.arange(num_points) % 2
        angles = turns * math.pi + self.labels * math.pi
        self.points = turns[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.labels[index]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
        )

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)


def train_epoch(loader, model, loss_fn, optimizer) -> Tensor:
    for points, labels in loader:
        loss = loss_fn(model(points), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def main() -> None:
    torch.manual_seed(0)
    model = Network()
    loader = DataLoader(Spirals(4096), batch_size=BATCH_SIZE, shuffle=True)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for epoch in range(EPOCHS):
        loss = train_epoch(loader, model, loss_fn, optimizer)
        print(f"epoch {epoch + 1}: loss {loss.item():.6f}")


if __name__ == "__main__":
    main()

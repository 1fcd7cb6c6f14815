"""The networks of the five articles on PyTorch training, A to E."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision import datasets, transforms

from stepmark.data.idx import image_set
from stepmark.data.tensors import class_vectors
from stepmark.parts import parts_of
from stepmark.workload import Workload

_NUM_TRAIN, _NUM_VALID = 16_384, 2_048
_TRAIN_SEED, _VALID_SEED = 1, 2
# Mean and standard deviation of MNIST's pixels, as in the PyTorch examples.
_MNIST_MEAN, _MNIST_STD = 0.1307, 0.3081


def mlp_mse() -> Workload:
    """Article A: 100-200-ReLU-10-Softmax, MSE against one-hot targets, SGD with momentum."""
    return Workload(
        model=nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10), nn.Softmax(dim=1)),
        dataset=_one_hot_dataset(_NUM_TRAIN, _TRAIN_SEED),
        valid_dataset=_one_hot_dataset(_NUM_VALID, _VALID_SEED),
        loss_fn=nn.MSELoss(),
        optimizer=functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
        data="tensors (generated)",
    )


class ToyDataset(Dataset[tuple[Tensor, Tensor]]):
    """Article B's dataset: features ``[points, 2]`` and labels ``[points]``, held in memory."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.features[index], self.labels[index]


class ToyNetwork(nn.Module):
    """Article B's network: two hidden layers of 30 and 20; it gives logits."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_inputs, 30),
            nn.ReLU(),
            nn.Linear(30, 20),
            nn.ReLU(),
            nn.Linear(20, num_outputs),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[batch, outputs]`` of inputs ``[batch, inputs]``."""
        return self.layers(inputs)  # type: ignore[no-any-return]


def mlp_toy() -> Workload:
    """Article B: five points to train on, two to test with, SGD with a learning rate of 0.5."""
    train_points = [[-1.5, 2.5], [-1.0, 3.5], [-2.0, 2.0], [2.0, -1.0], [3.0, -2.0]]
    test_points = [[-1.2, 2.8], [2.4, -1.4]]
    return Workload(
        model=ToyNetwork(num_inputs=2, num_outputs=2),
        dataset=ToyDataset(torch.tensor(train_points), torch.tensor([0, 0, 0, 1, 1])),
        valid_dataset=ToyDataset(torch.tensor(test_points), torch.tensor([0, 1])),
        loss_fn=nn.functional.cross_entropy,
        stages=lambda model, number: parts_of(model.layers, number),
        optimizer=functools.partial(torch.optim.SGD, lr=0.5),
        data="toy points, 5 to train and 2 to test",
    )


def mlp_fashion_mnist() -> Workload:
    """Article C: 784-512-512-10 on FashionMNIST, cross entropy, SGD."""
    images = image_set(
        datasets.FashionMNIST,
        train_transform=transforms.ToTensor(),
        valid_transform=transforms.ToTensor(),
    )
    return Workload(
        model=nn.Sequential(
            nn.Flatten(),
            nn.Linear(28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        ),
        dataset=images.train,
        valid_dataset=images.valid,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.SGD, lr=1e-3),
        data=images.source,
    )


class RegressionDataset(Dataset[tuple[Tensor, Tensor]]):
    """Article D's custom dataset: ten features, and a noisy linear function of them."""

    def __init__(self, num_samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(num_samples, 10, generator=generator)
        noise = torch.randn(num_samples, 1, generator=generator)
        self.targets = self.features @ torch.linspace(-1, 1, 10).unsqueeze(1) + 0.1 * noise

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.features[index], self.targets[index]


def mlp_regression() -> Workload:
    """Article D: 10-20-1, MSE, SGD.

    The article's ``StepLR(1, 0.1)`` counts epochs. A workload's scheduler is stepped with the
    optimizer, where it would stop the training within a few steps; it is left out.
    """
    return Workload(
        model=nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1)),
        dataset=RegressionDataset(_NUM_TRAIN, _TRAIN_SEED),
        valid_dataset=RegressionDataset(_NUM_VALID, _VALID_SEED),
        loss_fn=nn.MSELoss(),
        optimizer=functools.partial(torch.optim.SGD, lr=0.01),
        data="tensors (generated)",
    )


def cnn_mnist() -> Workload:
    """Article E: convolutions and linear layers on MNIST, with two augmentations, Adam."""
    to_input = [transforms.ToTensor(), transforms.Normalize((_MNIST_MEAN,), (_MNIST_STD,))]
    augmentations = [transforms.RandomRotation(10), transforms.RandomCrop(28, padding=2)]
    images = image_set(
        datasets.MNIST,
        train_transform=transforms.Compose(augmentations + to_input),
        valid_transform=transforms.Compose(to_input),
    )
    return Workload(
        model=nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        ),
        dataset=images.train,
        valid_dataset=images.valid,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3),
        data=images.source,
    )


def _one_hot_dataset(num_samples: int, seed: int) -> Dataset[Any]:
    features, labels = class_vectors(
        num_samples=num_samples, num_classes=10, num_features=100, seed=seed
    )
    return TensorDataset(features, nn.functional.one_hot(labels, 10).float())

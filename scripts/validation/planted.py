"""Workloads to validate the gate on, each with a slowdown of known size where it is asked for.

``part=0.05`` makes a step take 5 % longer by real work: matrix products after the forward pass,
or, where the loader is what the step waits for, in every sample. How many it takes is calibrated
in the same process, with and without them in turns.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from stepmark import Workload

BATCH_SIZE = 64
_CALIBRATION_S = 0.4


class Extra:
    """Small matrix products; one takes some microseconds."""

    def __init__(self) -> None:
        self.num_products = 0
        self._matrix = torch.randn(48, 48)

    def __call__(self) -> None:
        for _ in range(self.num_products):
            torch.mm(self._matrix, self._matrix)

    def calibrate(self, part: float, step: Callable[[], None]) -> None:
        """Find the number of products that make ``step``, which calls this, longer by ``part``."""
        for _ in range(20):
            step()
        many = max(1, round(0.2 * _typical_s(step) / self._product_s()))
        plain_s, slow_s = [], []
        deadline_s = time.perf_counter() + _CALIBRATION_S
        while time.perf_counter() < deadline_s:
            for times_s, self.num_products in ((plain_s, 0), (slow_s, many)):
                start_s = time.perf_counter()
                step()
                times_s.append(time.perf_counter() - start_s)
        plain, slow = (statistics.quantiles(times_s, n=10)[0] for times_s in (plain_s, slow_s))
        self.num_products = round(many * part / max(slow / plain - 1, 0.02))

    def _product_s(self) -> float:
        self.num_products = 20
        product_s = _typical_s(self) / self.num_products
        self.num_products = 0
        return product_s


def _typical_s(work: Callable[[], None]) -> float:
    times_s = []
    for _ in range(20):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s)


def mlp(part: float = 0.0) -> Workload:
    """A step of about 1 ms."""
    model = nn.Sequential(
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    return _planted(model, torch.randn(4096, 256), part)


# A step of two ranks on two CPUs takes about so many times as long as the same one alone.
_TWO_RANKS = 2.0


def ddp(part: float = 0.0) -> Workload:
    """The same for two ranks; what they exchange is not there yet to calibrate with."""
    return mlp(_TWO_RANKS * part)


def cnn(part: float = 0.0) -> Workload:
    """A step of about 5 ms."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 10),
    )  # fmt: skip
    return _planted(model, torch.randn(4096, 1, 28, 28), part)


def _planted(model: nn.Module, inputs: Tensor, part: float) -> Workload:
    labels = torch.randint(0, 10, (len(inputs),))
    cross_entropy = nn.CrossEntropyLoss()
    extra = Extra()

    def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss: Tensor = cross_entropy(model(batch[0]), batch[1])
        extra()
        return loss

    def optimizer(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-3)  # type: ignore[arg-type]

    dataset = TensorDataset(inputs, labels)
    twin = copy.deepcopy(model)
    twin_optimizer = optimizer(twin.parameters())

    def step() -> None:
        samples = [dataset[index] for index in range(BATCH_SIZE)]
        batch = torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])
        compute_loss(twin, batch).backward()  # type: ignore[no-untyped-call]
        twin_optimizer.step()
        twin_optimizer.zero_grad()

    # On both sides: what a process allocated before decides how often its later steps fault in
    # pages, which was seen to make a side that had calibrated faster than one that had not.
    extra.calibrate(part, step)
    return Workload(model=model, dataset=dataset, compute_loss=compute_loss, optimizer=optimizer)


class Slow(Dataset[tuple[Tensor, int]]):
    """Samples that take a known number of matrix products each."""

    def __init__(self, num_products: int) -> None:
        self._num_products = num_products
        self._matrix = torch.randn(64, 64)

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for _ in range(self._num_products):
            torch.mm(self._matrix, self._matrix)
        return torch.full((64,), float(index)), index % 10


def loader(part: float = 0.0) -> Workload:
    """A step that waits for its loader; its work is the samples' alone, but for some percent."""
    return Workload(
        model=nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        dataset=Slow(round(200 * (1 + part))),
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    )

"""Loaders that end: the training data shuffled by the epoch's number, the validation data once."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from stepmark.errors import WorkloadError
from stepmark.loading import SEED, load, require_batch
from stepmark.scenario import Scenario
from stepmark.workload import Workload


@dataclass(frozen=True, kw_only=True)
class EpochLoader:
    """One rank's part of a dataset, once an epoch.

    Attributes:
        loader: kept from epoch to epoch, and its workers with it if they are persistent.
        num_samples: that it gives in an epoch.
    """

    loader: "DataLoader[Any]"
    num_samples: int

    @property
    def num_batches(self) -> int:
        """In an epoch."""
        return len(self.loader)

    def num_steps(self, accumulation: int) -> int:
        """Of the optimizer in an epoch; the last one may have fewer micro-batches."""
        return -(-self.num_batches // accumulation)

    def batches(self) -> Iterator[Any]:
        """An epoch's; the loader starts at the first ``next()``, which waits for its workers."""
        return chain.from_iterable([self.loader])

    def set_epoch(self, epoch: int) -> None:
        """Which shuffle comes next."""
        assert isinstance(self.loader.sampler, DistributedSampler)
        self.loader.sampler.set_epoch(epoch)


def train_loader(
    workload: Workload, scenario: Scenario, rank: int, *, drop_last: bool
) -> EpochLoader:
    """Of the training data.

    torch's sampler for ranks deals out a shuffle that the seed and the epoch's number give. Where
    it does not come out even it gives some samples twice, or none of them with ``drop_last``, so
    that no rank runs more steps than the others.

    Raises:
        WorkloadError: the dataset is too small for one batch on each rank, or not indexed.
    """
    dataset: Dataset[Any] = workload.dataset
    require_batch(dataset, scenario)
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, scenario.world_size, rank, seed=SEED, drop_last=drop_last
    )
    loader = load(dataset, workload, scenario, sampler, drop_last=drop_last)
    num_samples = len(sampler)
    if drop_last:
        num_samples -= num_samples % scenario.batch_size
    return EpochLoader(loader=loader, num_samples=num_samples)


def valid_loader(workload: Workload, scenario: Scenario, rank: int) -> EpochLoader | None:
    """Of the validation data, every sample once on one of the ranks; ``None`` without any.

    Raises:
        WorkloadError: it is not indexed, or empty.
    """
    dataset = workload.valid_dataset
    if dataset is None:
        return None
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
        raise WorkloadError(
            f"valid_dataset={type(dataset).__name__}: must have a length above 0 and be indexed; "
            "or give --no-validate"
        )
    own = range(rank, len(dataset), scenario.world_size)
    loader = load(dataset, workload, scenario, own, drop_last=False)
    return EpochLoader(loader=loader, num_samples=len(own))

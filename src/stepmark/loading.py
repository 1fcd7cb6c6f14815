"""From a dataset to an endless stream of batches, as torch's own DataLoader makes them."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
)

from stepmark.errors import WorkloadError
from stepmark.scenario import Scenario
from stepmark.workload import Workload

SEED = 0


class EndlessSampler(Sampler[int]):
    """Indices of one shuffled epoch after another, so that a window meets no epoch's end.

    Restarting the loader costs from nothing to seconds (its workers start anew) and would fall
    into some windows and not into others; it is measured on its own instead. What does not fill
    a batch at the end of an epoch is dropped, as ``drop_last=True`` does.
    """

    def __init__(self, epochs: "RandomSampler | DistributedSampler[Any]", batch_size: int) -> None:
        self._epochs = epochs
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        epoch = 0
        while True:
            if isinstance(self._epochs, DistributedSampler):
                self._epochs.set_epoch(epoch)
            indices = list(self._epochs)
            yield from indices[: len(indices) - len(indices) % self._batch_size]
            epoch += 1


def make_loader(
    workload: Workload, scenario: Scenario, rank: int, *, num_batches: int | None = None
) -> "DataLoader[Any]":
    """The loader of one rank.

    Args:
        workload: its dataset and collate function.
        scenario: batch size, workers and the loader's other settings.
        rank: which part of the dataset.
        num_batches: end after so many batches; ``None`` never ends.

    Raises:
        WorkloadError: the dataset is too small for one batch on each rank, or not indexed.
    """
    dataset: Dataset[Any] = workload.dataset
    require_batch(dataset, scenario)
    epochs: RandomSampler | DistributedSampler[Any]
    if scenario.world_size > 1:
        epochs = DistributedSampler(dataset, scenario.world_size, rank, seed=SEED, drop_last=True)
    else:
        epochs = RandomSampler(
            dataset,  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(SEED),
        )
    sampler: Any = EndlessSampler(epochs, scenario.batch_size)
    if num_batches is not None:
        indices = iter(sampler)
        sampler = [next(indices) for _ in range(num_batches * scenario.batch_size)]
    return load(dataset, workload, scenario, sampler, drop_last=True)


def require_batch(dataset: "Dataset[Any]", scenario: Scenario) -> None:
    """Check that a dataset can be loaded from.

    Raises:
        WorkloadError: it is too small for one batch on each rank, or not indexed.
    """
    if isinstance(dataset, IterableDataset):
        raise WorkloadError(
            f"dataset={type(dataset).__name__}: is an IterableDataset; stepmark measures map-style "
            "datasets, which have a length and are indexed"
        )
    num_samples = len(dataset)  # type: ignore[arg-type]
    need = scenario.batch_size * scenario.world_size
    if num_samples < need:
        each = f" on each of {scenario.world_size} ranks" if scenario.world_size > 1 else ""
        raise WorkloadError(
            f"batch_size={scenario.batch_size}: the dataset of {scenario.workload} has "
            f"{num_samples} samples, a batch{each} needs {need}; "
            f"use at most {num_samples // scenario.world_size}, or a larger dataset"
            if num_samples
            else f"the dataset of {scenario.workload} is empty: its length is 0"
        )


def load(
    dataset: "Dataset[Any]",
    workload: Workload,
    scenario: Scenario,
    sampler: Any,
    *,
    drop_last: bool,
) -> "DataLoader[Any]":
    """Batches of a dataset, in a sampler's order, with the scenario's settings of loading.

    Args:
        dataset: the workload's, for training or for validation.
        workload: its collate function.
        scenario: batch size, workers and the loader's other settings.
        sampler: gives indices.
        drop_last: leave out what does not fill a batch.
    """
    workers: dict[str, Any] = {}
    if scenario.num_workers:
        workers = {
            "prefetch_factor": scenario.prefetch_factor,
            "persistent_workers": scenario.persistent_workers,
            "worker_init_fn": die_with_parent,
            # What torch has always done on Linux; from Python 3.14 the default is another one.
            "multiprocessing_context": "fork" if sys.platform == "linux" else None,
        }
    return DataLoader(
        dataset,
        batch_size=scenario.batch_size,
        sampler=sampler,
        num_workers=scenario.num_workers,
        collate_fn=workload.collate_fn,
        pin_memory=scenario.pin_memory,
        drop_last=drop_last,
        **workers,
    )


def die_with_parent(_worker: int = 0) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies, however it dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # from <sys/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():  # it died before it was asked for
            os._exit(1)


def describe_batch(batch: Any) -> str:
    """Shapes and types of a batch's tensors, in order: ``64x1x28x28 float32, 64 int64``."""
    return ", ".join(_tensors_of(batch))


def _tensors_of(batch: Any) -> Iterator[str]:
    if isinstance(batch, torch.Tensor):
        shape = "x".join(map(str, batch.shape)) or "scalar"
        yield f"{shape} {str(batch.dtype).removeprefix('torch.')}"
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors_of(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors_of(value)

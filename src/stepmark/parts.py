"""A model in consecutive parts, for several processes or devices."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stepmark.devices import DevicePair
from stepmark.devices.base import moved
from stepmark.errors import ObstacleError
from stepmark.workload import Workload


def parts(workload: Workload, number: int) -> list[nn.Module]:
    """The workload's model in as many parts, each of which takes what the one before it gives.

    As ``Workload.stages`` parts it; otherwise, an ``nn.Sequential`` between its layers.

    Raises:
        ObstacleError: it cannot be parted so, or has no loss that the last part's outputs give.
    """
    if workload.loss_fn is None or workload.compute_loss is not None:
        raise ObstacleError("this workload computes its loss itself, from the whole model")
    if workload.stages is not None:
        found = list(workload.stages(workload.model, number))
        if len(found) != number:
            raise ObstacleError(f"stages(model, {number}) returned {len(found)} parts")
    elif isinstance(workload.model, nn.Sequential):
        found = parts_of(workload.model, number)
    else:
        raise ObstacleError(
            f"a model of type {type(workload.model).__name__} cannot be parted by itself: make it "
            "an nn.Sequential, or give Workload(stages=...)"
        )
    _check(found)
    return found


class OnTwoDevices(nn.Module):
    """Two parts of a model, each on its device; what the first one gives moves to the second."""

    def __init__(self, workload: Workload, pair: DevicePair) -> None:
        super().__init__()
        first, second = parts(workload, 2)
        self.first = first.to(pair.first.torch_device)
        self.second = second.to(pair.second.torch_device)
        self._second_device = pair.second.torch_device

    def forward(self, inputs: Any) -> Any:
        """What the model gives, on the second device."""
        return self.second(moved(self.first(inputs), self._second_device))


def check_batch(batch: Any) -> None:
    """Find out whether a micro-batch can go through parts of a model.

    Raises:
        ObstacleError: it is no pair of tensors.
    """
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if not is_pair or not all(isinstance(item, torch.Tensor) for item in batch):
        raise ObstacleError(
            f"a batch of type {type(batch).__name__}: a model in parts needs pairs of tensors, "
            "inputs and targets"
        )


def parts_of(layers: nn.Sequential, number: int) -> list[nn.Module]:
    """Parts of consecutive layers, the largest of them with as few parameters as can be.

    Raises:
        ObstacleError: there are fewer layers with parameters than parts.
    """
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    num_trained = sum(size > 0 for size in sizes)
    if num_trained < number:
        raise ObstacleError(
            f"{number} parts of a model whose layers with parameters are {num_trained}: use at "
            f"most {num_trained}"
        )
    ends = [*_cuts(sizes, number), len(sizes)]
    cuts = itertools.pairwise([0, *ends])
    return [nn.Sequential(*itertools.islice(layers, a, b)) for a, b in cuts]


def _cuts(sizes: Sequence[int], number: int) -> tuple[int, ...]:
    """Where to cut, so that the largest part is as small as can be, and none is empty."""

    @functools.cache
    def best(start: int, number: int) -> tuple[float, tuple[int, ...]]:
        if number == 1:
            return sum(sizes[start:]) or math.inf, ()
        found: tuple[float, tuple[int, ...]] = (math.inf, ())
        for cut in range(start + 1, len(sizes)):
            largest, cuts = best(cut, number - 1)
            largest = max(largest, sum(sizes[start:cut]) or math.inf)
            # Of equal ones the last: what has no parameters stays with the layer before it.
            if largest <= found[0]:
                found = (largest, (cut, *cuts))
        return found

    return best(0, number)[1]


def _check(found: Sequence[nn.Module]) -> None:
    owners: dict[int, int] = {}
    for number, part in enumerate(found):
        if next(part.parameters(), None) is None:
            raise ObstacleError(f"part {number} of the model has no parameters to train")
        for parameter in part.parameters():
            if owners.setdefault(id(parameter), number) != number:
                raise ObstacleError(
                    f"parts {owners[id(parameter)]} and {number} of the model share a parameter: "
                    "each must have its own"
                )

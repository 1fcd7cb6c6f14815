"""What one rank's step moves and decodes beside its arithmetic, from shapes and files' headers."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from stepmark.probes.ledger import size_of
from stepmark.record import Reading
from stepmark.scenario import Scenario
from stepmark.workload import Workload

# Headers of so many files, spread over all of them, tell how large the others are.
_READ = 16
_JPEG = (".jpg", ".jpeg")
# Datasets around datasets that are looked into.
_DEEPEST = 10
# What a batch may hold for its tensors to be all that is copied.
_OPEN = (torch.Tensor, str, bytes, int, float, complex, bool, type(None))


def count_traffic(workload: Workload, scenario: Scenario, batch: Any) -> Iterator[Reading]:
    """Readings of what this scenario moves and decodes; none of what it does not.

    Args:
        workload: model and dataset.
        scenario: multiplies what a micro-batch takes.
        batch: one micro-batch, or its like on the meta device.
    """
    if scenario.device != "cpu":
        # Of a pipeline, rank 0 is the first stage, which needs no targets.
        leaves = tree_leaves(batch[0] if scenario.pipeline_stages > 1 else batch)
        closed = {type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _OPEN)}
        tensors = (leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        counted = Reading(
            name="h2d_bytes_per_step",
            unit="bytes",
            scope="rank",
            value=float(scenario.accumulation * size_of(tensors)),
            note="batches of one rank that are copied to its device",
        )
        if closed:
            note = f"not counted: a batch has parts that cannot be looked into ({min(closed)})"
            counted = dataclasses.replace(counted, value=None, note=note)
        yield counted
    if scenario.world_size > 1:
        trained = (p for p in workload.model.parameters() if p.requires_grad)
        yield Reading(
            name="all_reduce_bytes_per_step",
            unit="bytes",
            scope="rank",
            value=float(size_of(trained)),
            note="gradients of one rank, which are exchanged once in a step",
        )
    pixels = _jpeg_pixels(workload.dataset)
    if pixels is not None:
        yield Reading(
            name="jpeg_pixels_per_step",
            unit="count",
            scope="rank",
            value=scenario.accumulation * scenario.batch_size * pixels,
            note=f"pixels of the JPEG files of one rank's samples, by {_READ} files' headers",
        )


def _jpeg_pixels(dataset: Dataset[Any]) -> float | None:
    """Mean number of pixels of a sample; ``None`` unless the dataset lists JPEG files.

    As torchvision's ``ImageFolder`` does, in ``samples``; also inside of a ``Subset`` or another
    one that keeps what it wraps in ``dataset``.
    """
    try:
        for _ in range(_DEEPEST):
            if hasattr(dataset, "samples"):
                break
            dataset = dataset.dataset  # type: ignore[attr-defined]
        paths = [path for path, _ in dataset.samples]  # type: ignore[attr-defined]
        if not paths or not all(str(path).lower().endswith(_JPEG) for path in paths):
            return None
        num_read = min(len(paths), _READ)
        sizes = []
        for path in (paths[k * len(paths) // num_read] for k in range(num_read)):
            with Image.open(path) as image:
                sizes.append(image.width * image.height)
    except Exception:  # noqa: BLE001 - it may call anything its samples, and any file a JPEG
        return None
    return sum(sizes) / len(sizes)

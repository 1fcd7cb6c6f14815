"""Any of torchvision's classifiers, on tensors in memory or on JPEG files."""

import functools
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from stepmark.data.jpeg import generate_jpeg_folder
from stepmark.data.tensors import Repeated, class_images
from stepmark.errors import WorkloadError, choose_from
from stepmark.scenario import require_count
from stepmark.workload import Workload

_NUM_TRAIN, _NUM_VALID = 8_192, 512  # samples of an epoch, fewer of them distinct
_TRAIN_SEED, _VALID_SEED = 1, 2
_MOST_VALUES = 1 << 24  # of the distinct training images in memory: 64 MiB
_JPEG_TRAIN, _JPEG_VALID = 240, 40  # distinct images over all classes
# ImageNet's, which torchvision's own training recipes normalize with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Share of each auxiliary head in the training loss: Szegedy et al., 2014 (section 5) for
# GoogLeNet; torchvision's reference training for Inception v3.
_AUXILIARY_WEIGHTS = {"googlenet": 0.3, "inception_v3": 0.4}


class Source(StrEnum):
    """Where the images come from: made in memory, or decoded from files by every sample."""

    TENSORS = "tensors"
    JPEG = "jpeg"


def build(
    name: str, /, *, size: int | None = None, classes: int = 10, data: str = Source.TENSORS
) -> Workload:
    """``torchvision:NAME``, untrained.

    Args:
        name: one of ``torchvision.models.list_models(module=torchvision.models)``.
        size: side of the square input in pixels; ``None`` for the model's usual one.
        classes: outputs of the model.
        data: a `Source`.

    Raises:
        WorkloadError: an option is out of range, or data cannot be written.
    """
    if size is None:
        size = models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    require_count("size", size, at_least=1)
    require_count("classes", classes, at_least=1)
    if data not in list(Source):
        raise WorkloadError(f"data={data!r}: {choose_from(data, Source)}")
    from_files = data == Source.JPEG
    train, valid = (_jpeg_datasets if from_files else _tensor_datasets)(size, classes)
    weight = _AUXILIARY_WEIGHTS.get(name)
    return Workload(
        model=_model(name, size, classes),
        dataset=Repeated(train, _NUM_TRAIN),
        valid_dataset=Repeated(valid, _NUM_VALID),
        loss_fn=nn.functional.cross_entropy,
        compute_loss=functools.partial(loss_with_auxiliary_heads, weight=weight)
        if weight
        else None,
        optimizer=functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        data="JPEG folder (generated)" if from_files else "tensors (generated)",
    )


def loss_with_auxiliary_heads(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, weight: float
) -> Tensor:
    """Cross entropy of the main output plus ``weight`` times that of each auxiliary one."""
    inputs, targets = batch
    outputs = model(inputs)
    if isinstance(outputs, Tensor):  # in evaluation there is no other
        return nn.functional.cross_entropy(outputs, targets)
    main, *auxiliary = (nn.functional.cross_entropy(output, targets) for output in outputs)
    return main + weight * torch.stack(auxiliary).sum()


def _model(name: str, size: int, classes: int) -> nn.Module:
    keywords: dict[str, Any] = {"num_classes": classes}
    if name in _AUXILIARY_WEIGHTS:
        keywords["init_weights"] = True  # torchvision's default, but unsaid it warns
    if name.startswith("vit_"):
        keywords["image_size"] = size
    if name.startswith("maxvit_"):
        keywords["input_size"] = (size, size)
    return models.get_model(name, weights=None, **keywords)  # type: ignore[no-any-return]


def _tensor_datasets(size: int, classes: int) -> tuple[Dataset[Any], Dataset[Any]]:
    num_distinct = max(16, min(256, _MOST_VALUES // (3 * size * size)))
    images = functools.partial(class_images, num_classes=classes, size=size)
    return (
        TensorDataset(*images(num_samples=num_distinct, seed=_TRAIN_SEED)),
        TensorDataset(*images(num_samples=num_distinct // 4, seed=_VALID_SEED)),
    )


def _jpeg_datasets(size: int, classes: int) -> tuple[Dataset[Any], Dataset[Any]]:
    folder = generate_jpeg_folder(
        num_classes=classes,
        num_train=max(1, _JPEG_TRAIN // classes),
        num_valid=max(1, _JPEG_VALID // classes),
    )
    to_input = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
    train = transforms.Compose([transforms.RandomResizedCrop(size), *to_input])
    valid = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), *to_input])
    return ImageFolder(folder / "train", train), ImageFolder(folder / "valid", valid)

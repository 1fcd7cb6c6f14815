"""Fine-tune a torchvision network: a head of its own, augmented images, two learning rates.

    stepmark run --workload examples/torchvision_model.py:build --batch-size 16,32 --num-workers 0,2
    stepmark run --workload 'examples/torchvision_model.py:build?name=resnet50&size=224'

Every argument of ``build`` is an option. ``weights=DEFAULT`` lets torchvision fetch what it has
learned on ImageNet; the time of a step does not depend on it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset
from torchvision import models
from torchvision.transforms import v2

from stepmark import Workload

AUGMENT = [v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=0.2, contrast=0.2)]
TO_INPUT = [
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
]


class Colours(Dataset[tuple[Tensor, int]]):
    """Noise about one colour per class: images ``[3, 72, 72]`` of bytes before the transform."""

    def __init__(self, length: int, classes: int, transform: v2.Transform) -> None:
        self.length = length
        self.transform = transform
        colours = torch.rand(classes, 3, 1, 1, generator=torch.Generator().manual_seed(0))
        noise = torch.rand(classes, 3, 72, 72, generator=torch.Generator().manual_seed(1))
        self.images = ((colours + noise) * 127.5).to(torch.uint8)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % len(self.images)
        return self.transform(self.images[label]), label


def build(
    name: str = "resnet18",
    size: int = 64,
    classes: int = 5,
    lr: float = 1e-4,
    weights: str | None = None,
    frozen: bool = False,
) -> Workload:
    """A ResNet (or any other that ends in ``fc``); ``frozen`` trains its new head alone."""
    model = models.get_model(name, weights=weights)
    model.requires_grad_(not frozen)
    model.fc = nn.Linear(model.fc.in_features, classes)

    def optimizer(_: Iterable[nn.Parameter]) -> Optimizer:
        """The head, which has everything to learn, ten times as fast as the rest."""
        head = list(model.fc.parameters())
        body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
        return AdamW([{"params": body}, {"params": head, "lr": 10 * lr}], lr=lr)

    train = v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1.0)), *AUGMENT, *TO_INPUT])
    valid = v2.Compose([v2.Resize(size), *TO_INPUT])
    return Workload(
        model=model,
        dataset=Colours(4096, classes, train),
        valid_dataset=Colours(512, classes, valid),
        loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer=optimizer,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000),
        clip_norm=1.0,
        data="coloured noise (generated)",
    )

"""Train a timm model with timm's own transforms, optimizer and schedule.

    pip install '.[examples]'
    stepmark run --workload examples/timm_model.py:build --batch-size 16 --channels-last false,true
    stepmark run --workload 'examples/timm_model.py:build?name=vit_tiny_patch16_224&size=224'

Every argument of ``build`` is an option. Nothing is fetched: the model is untrained.
"""

import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

from stepmark import Workload


class Colours(Dataset[tuple[Tensor, int]]):
    """Noise about one colour per class, as pictures of 72 pixels before the transform."""

    def __init__(self, length: int, classes: int, size: int, *, is_training: bool) -> None:
        self.length = length
        self.transform = create_transform(input_size=(3, size, size), is_training=is_training)
        colours = torch.rand(classes, 1, 1, 3, generator=torch.Generator().manual_seed(0))
        noise = torch.rand(classes, 72, 72, 3, generator=torch.Generator().manual_seed(1))
        images = ((colours + noise) * 127.5).to(torch.uint8)
        self.pictures = [Image.fromarray(image.numpy()) for image in images]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % len(self.pictures)
        return self.transform(self.pictures[label]), label


class EveryStep:
    """timm's schedules are told the number of updates; stepmark calls ``step()`` after each."""

    def __init__(self, schedule: Scheduler) -> None:
        self.schedule = schedule
        self.num_updates = 0

    def step(self) -> None:
        self.num_updates += 1
        self.schedule.step_update(self.num_updates)


def build(
    name: str = "convnext_atto",
    size: int = 64,
    classes: int = 5,
    opt: str = "adamw",
    lr: float = 1e-3,
    drop_path: float = 0.1,
) -> Workload:
    """Any of ``timm.list_models()`` that takes images of this size."""
    model = timm.create_model(name, pretrained=False, num_classes=classes, drop_path_rate=drop_path)
    return Workload(
        model=model,
        dataset=Colours(4096, classes, size, is_training=True),
        valid_dataset=Colours(512, classes, size, is_training=False),
        loss_fn=nn.CrossEntropyLoss(),
        # From the model, not from its parameters: biases and norms get no weight decay.
        optimizer=lambda _: create_optimizer_v2(model, opt=opt, lr=lr, weight_decay=0.05),
        scheduler=lambda optimizer: EveryStep(
            CosineLRScheduler(optimizer, t_initial=1000, lr_min=1e-5, t_in_epochs=False)
        ),
        clip_norm=1.0,
        data="coloured noise (generated)",
    )

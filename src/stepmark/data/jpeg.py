"""A generated folder of JPEG photographs, for workloads whose cost is decoding."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from stepmark.data.cache import data_root, publish

WIDTH, HEIGHT = 400, 300
QUALITY = 90
_VERSION = 1  # of the generated images; raise it when they change, so that old files are left


def smooth_colours(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """What photographs of one class have in common; ``[HEIGHT, WIDTH, 3]``."""
    coarse = Image.fromarray(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def photograph(rng: np.random.Generator, smooth: npt.NDArray[np.uint8]) -> Image.Image:
    """These colours with grain, so that its file is as large as a photograph's."""
    grain = rng.integers(40, size=(HEIGHT // 2, WIDTH // 2, 1), dtype=np.uint8)
    return Image.fromarray(smooth // 2 + 40 + grain.repeat(2, axis=0).repeat(2, axis=1))


def generate_jpeg_folder(*, num_classes: int, num_train: int, num_valid: int) -> Path:
    """Write images once and return their folder, with ``train`` and ``valid`` below it.

    Each of the two is laid out for ``torchvision.datasets.ImageFolder``: one folder per class.
    An image is its class's smooth colours with noise, so that it can be learnt and so that a
    file is as large as a photograph of its size.

    Args:
        num_classes: folders.
        num_train: images per class for training.
        num_valid: images per class for validation.

    Raises:
        WorkloadError: the files cannot be written.
    """

    def write(folder: Path) -> None:
        rng = np.random.default_rng(_VERSION)
        for label in range(num_classes):
            smooth = smooth_colours(rng)
            for split, num_images in (("train", num_train), ("valid", num_valid)):
                directory = folder / split / f"{label:04d}"
                directory.mkdir(parents=True)
                for index in range(num_images):
                    image = photograph(rng, smooth)
                    image.save(directory / f"{index:04d}.jpg", quality=QUALITY)

    home = data_root() / "generated" / f"jpeg-{num_classes}-{num_train}-{num_valid}-v{_VERSION}"
    publish(home, write)
    return home

"""MNIST and FashionMNIST in their own file format, read by torchvision: real or generated.

The format is described at http://yann.lecun.com/exdb/mnist: big-endian 32-bit words (a magic
number, then one size per dimension) followed by unsigned bytes.
"""

import gzip
import os
import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchvision import datasets

from stepmark.data.cache import data_root, publish
from stepmark.errors import WorkloadError

_TRAIN, _VALID = "train", "t10k"
_FILES = tuple(
    f"{p}-{kind}-ubyte" for p in (_TRAIN, _VALID) for kind in ("images-idx3", "labels-idx1")
)
_MAGIC_IMAGES, _MAGIC_LABELS = 2051, 2049
_SIDE, _NUM_CLASSES = 28, 10
_SHIFTS = range(-2, 3)  # pixels, along each axis
_VERSION = 1  # of the generated images; raise it when they change, so that old files are left


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Training and validation images, and where they come from in words."""

    train: "Dataset[Any]"
    valid: "Dataset[Any]"
    source: str


def image_set(
    kind: type[datasets.MNIST],
    *,
    train_transform: Callable[[Any], Any],
    valid_transform: Callable[[Any], Any],
    num_train: int = 60_000,
    num_valid: int = 10_000,
) -> ImageSet:
    """``torchvision.datasets.MNIST`` or ``FashionMNIST``.

    Real files are taken from the data directory or ``./data``, in torchvision's layout. If there
    are none, ``STEPMARK_DOWNLOAD=1`` downloads them; otherwise ``num_train`` and ``num_valid``
    images of the same format are generated, once.

    Raises:
        WorkloadError: files cannot be read, downloaded or written.
    """
    name = kind.__name__
    home = _find_real(name)
    if home is None and os.environ.get("STEPMARK_DOWNLOAD") == "1":
        home = _download(kind)
    source = name if home else f"{name} (generated)"
    home = home or generate(name, num_train=num_train, num_valid=num_valid)
    try:
        train = kind(home, train=True, transform=train_transform)
        valid = kind(home, train=False, transform=valid_transform)
    except (AssertionError, RuntimeError, ValueError) as error:  # what torchvision's reader raises
        raise WorkloadError(
            f"{home / name / 'raw'}: its files are damaged or incomplete; remove or replace them"
        ) from error
    return ImageSet(train=train, valid=valid, source=source)


def generate(name: str, *, num_train: int, num_valid: int) -> Path:
    """Write learnable images of ten classes, and return torchvision's ``root`` for them.

    An image is its class's smooth pattern, shifted by up to two pixels, with noise. The same
    name and sizes give the same bytes.
    """

    def write(folder: Path) -> None:
        raw = folder / "raw"
        raw.mkdir()
        rng = np.random.default_rng([_VERSION, *name.encode()])
        patterns = _shifted_patterns(rng)
        _write_split(raw, _TRAIN, num_train, patterns, rng)
        _write_split(raw, _VALID, num_valid, patterns, rng)

    home = data_root() / "generated" / f"idx-{num_train}-{num_valid}-v{_VERSION}"
    publish(home / name, write)
    return home


def _find_real(name: str) -> Path | None:
    for home in (data_root(), Path("data").absolute()):
        raw = home / name / "raw"
        packed = [raw / f"{file}.gz" for file in _FILES if not (raw / file).is_file()]
        if all(path.is_file() for path in packed):
            for path in packed:
                _unpack(path)
            return home
    return None


def _unpack(packed: Path) -> None:
    """Unpack one ``.gz`` beside itself, where torchvision reads it."""
    partial = packed.with_name(f".{uuid.uuid4().hex}")
    try:
        partial.write_bytes(gzip.decompress(packed.read_bytes()))
        partial.rename(packed.with_suffix(""))
    except (OSError, EOFError, zlib.error) as error:
        raise WorkloadError(
            f"{packed}: cannot be unpacked in its directory ({error}); "
            "replace it, or put the unpacked file there"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _download(kind: type[datasets.MNIST]) -> Path:
    target = data_root() / kind.__name__
    remedy = (
        f"put {', '.join(_FILES)} into {target / 'raw'}, "
        "or leave out --download (STEPMARK_DOWNLOAD) to train on generated images"
    )
    if target.exists():
        raise WorkloadError(f"{target}: there, but without all its files; remove it, or {remedy}")

    def write(folder: Path) -> None:
        try:
            kind(folder.parent, download=True)
        except (OSError, RuntimeError) as error:
            cause = " ".join(str(error).split())
            raise WorkloadError(f"{target}: the download failed; {remedy} ({cause})") from error

    publish(target, write)
    return data_root()


def _shifted_patterns(rng: np.random.Generator) -> NDArray[np.uint8]:
    """One pattern of low spatial frequencies per class, at every shift.

    Returns:
        Values of 0 to 191, ``[classes, shifts, pixels]``.
    """
    turns = np.arange(_SIDE) / _SIDE
    patterns = np.zeros((_NUM_CLASSES, _SIDE, _SIDE))
    for y_waves in range(4):
        for x_waves in range(4):
            phase, weight = rng.random((_NUM_CLASSES, 1, 1)), rng.normal(size=(_NUM_CLASSES, 1, 1))
            waves = y_waves * turns[:, None] + x_waves * turns[None, :]
            patterns += weight * np.cos(2 * np.pi * (waves + phase))
    # Mostly dark or bright, as clothes and digits are.
    scaled = (191 / (1 + np.exp(-4 * patterns / patterns.std()))).astype(np.uint8)
    shifted = [np.roll(scaled, (dy, dx), axis=(1, 2)) for dy in _SHIFTS for dx in _SHIFTS]
    return np.stack(shifted, axis=1).reshape(_NUM_CLASSES, len(shifted), _SIDE * _SIDE)


def _write_split(
    folder: Path,
    prefix: str,
    num_images: int,
    patterns: NDArray[np.uint8],
    rng: np.random.Generator,
) -> None:
    labels = rng.integers(_NUM_CLASSES, size=num_images, dtype=np.uint8)
    images = patterns[labels, rng.integers(patterns.shape[1], size=num_images)]
    # 191 and 63 add up to no more than a byte holds.
    images += np.frombuffer(rng.bytes(images.size), np.uint8).reshape(images.shape) >> 2
    header = struct.pack(">4I", _MAGIC_IMAGES, num_images, _SIDE, _SIDE)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">2I", _MAGIC_LABELS, num_images)
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())

"""Learnable data made in memory from fixed seeds; cheap per sample.

Every function leaves torch's global random state alone, so that a seed set by the caller governs
the model alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

_PATTERN_SEED = 0  # of what train and validation data share


class Repeated(Dataset[Any]):
    """A map-style dataset of ``length`` samples that goes round a smaller one."""

    def __init__(self, dataset: Dataset[Any], length: int) -> None:
        self.dataset = dataset
        self.length = length
        self._num_distinct = len(dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index}: there are {self.length} samples")
        return self.dataset[index % self._num_distinct]


def class_vectors(
    *, num_samples: int, num_classes: int, num_features: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Gaussian clouds around one centre per class.

    Returns:
        Features ``[samples, features]`` and labels ``[samples]`` (int64). Another ``seed`` gives
        other samples of the same clouds.
    """
    centres = torch.randn(num_classes, num_features, generator=_generator(_PATTERN_SEED))
    generator = _generator(seed)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    noise = torch.randn(num_samples, num_features, generator=generator)
    return centres[labels] + noise, labels


def class_images(
    *, num_samples: int, num_classes: int, size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Square images: one smooth pattern per class, with noise; about zero mean, unit variance.

    Returns:
        Images ``[samples, 3, size, size]`` and labels ``[samples]`` (int64), the classes in
        turn. Another ``seed`` gives other noise on the same patterns.
    """
    coarse = torch.randn(num_classes, 3, 4, 4, generator=_generator(_PATTERN_SEED))
    labels = torch.arange(num_samples) % num_classes
    patterns = torch.nn.functional.interpolate(coarse[labels], size=(size, size), mode="bilinear")
    noise = torch.randn(patterns.shape, generator=_generator(seed))
    return noise.mul_(0.5).add_(patterns), labels


def markov_tokens(*, num_sequences: int, length: int, vocab: int, seed: int) -> Tensor:
    """Token sequences in which each token is followed by one of four, one of them mostly.

    Predicting them as well as can be done costs 0.94 nats per token (the entropy of
    probabilities 0.7, 0.1, 0.1, 0.1), against ``log(vocab)`` for a model that knows nothing.

    Returns:
        ``[sequences, length]``, int64. Another ``seed`` gives other walks of the same chain.
    """
    pattern = _generator(_PATTERN_SEED)
    successors = torch.stack([torch.randperm(vocab, generator=pattern) for _ in range(4)], dim=1)
    generator = _generator(seed)
    chances = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(num_sequences, -1)
    choices = torch.multinomial(chances, length, replacement=True, generator=generator)
    tokens = torch.empty(num_sequences, length, dtype=torch.int64)
    tokens[:, 0] = torch.randint(vocab, (num_sequences,), generator=generator)
    for position in range(1, length):
        tokens[:, position] = successors[tokens[:, position - 1], choices[:, position]]
    return tokens


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

"""Train a BERT classifier of Hugging Face's on sentences of unequal length.

    pip install '.[examples]'
    stepmark run --workload examples/hf_transformer.py:build --batch-size 8,32 --precision fp32,bf16
    stepmark run --workload 'examples/hf_transformer.py:build?layers=12&width=768&longest=512'

Every argument of ``build`` is an option. Nothing is fetched: the model comes from a configuration,
and tokens are generated. A batch is a dictionary, and the model, given ``labels``, returns its
own loss; so the workload names none. Batches differ in length, so steps do; operations are
counted on the first one.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW, Optimizer
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification
from transformers import get_constant_schedule_with_warmup as constant_with_warmup

from stepmark import Workload

NUM_TOKENS, PADDING = 1000, 0


class Sentences(Dataset[dict[str, Tensor]]):
    """Token sequences of 8 to ``longest``; each class prefers a part of the vocabulary."""

    def __init__(self, length: int, longest: int, classes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(classes, (length,), generator=generator)
        self.lengths = torch.randint(8, longest + 1, (length,), generator=generator).tolist()
        part = NUM_TOKENS // classes
        tokens = torch.randint(1, part, (length, longest), generator=generator)
        self.tokens = tokens + part * self.labels[:, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.tokens[index, : self.lengths[index]]
        return {"input_ids": tokens, "labels": self.labels[index]}


def pad(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch as long as its longest sentence."""
    sentences = [sample["input_ids"] for sample in samples]
    tokens = pad_sequence(sentences, batch_first=True, padding_value=PADDING)
    return {
        "input_ids": tokens,
        "attention_mask": (tokens != PADDING).long(),
        "labels": torch.stack([sample["labels"] for sample in samples]),
    }


def optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Weight decay for matrices, none for biases and norms."""
    parameters = list(parameters)
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return AdamW(groups, lr=1e-3)


def build(layers: int = 2, width: int = 128, longest: int = 64, classes: int = 4) -> Workload:
    """A BERT with heads of 64, on sentences of up to ``longest`` tokens."""
    config = BertConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=longest,
        num_labels=classes,
        pad_token_id=PADDING,
    )
    return Workload(
        model=BertForSequenceClassification(config),
        dataset=Sentences(4096, longest, classes, seed=1),
        valid_dataset=Sentences(512, longest, classes, seed=2),
        collate_fn=pad,
        optimizer=optimizer,
        scheduler=lambda optimizer: constant_with_warmup(optimizer, num_warmup_steps=5),
        clip_norm=1.0,
        data="sentences (generated)",
    )

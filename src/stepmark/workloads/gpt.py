"""A small decoder-only transformer with generated tokens.

The architecture is GPT-2's (Radford et al., 2019): learnt positions, layer norm before each
sublayer, causal attention, an MLP of four times the width with GELU.
"""

import functools

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from stepmark.data.tensors import markov_tokens
from stepmark.errors import WorkloadError
from stepmark.scenario import require_count
from stepmark.workload import Workload

_NUM_TRAIN, _NUM_VALID = 4_096, 256
_TRAIN_SEED, _VALID_SEED = 1, 2
_INIT_STD = 0.02  # GPT-2's


class Block(nn.Module):
    """One layer: causal self-attention, then an MLP, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, context, width]`` to the same."""
        hidden = hidden + self._attend(self.attention_norm(hidden))
        return hidden + self.mlp(self.mlp_norm(hidden))  # type: ignore[no-any-return]

    def _attend(self, hidden: Tensor) -> Tensor:
        # [batch, context, 3 * width] to three of [batch, heads, context, width / heads]
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(hidden).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Embedding(nn.Module):
    """Tokens and their positions as vectors."""

    def __init__(self, *, width: int, context: int, vocab: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab, width)
        self.position = nn.Embedding(context, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[batch, context]`` of int64 to ``[batch, context, width]``."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.token(tokens) + self.position(positions)  # type: ignore[no-any-return]


class GPT(nn.Sequential):
    """From tokens ``[batch, context]`` to logits of the next one, ``[batch, context, vocab]``."""

    def __init__(self, *, layers: int, width: int, heads: int, context: int, vocab: int) -> None:
        super().__init__(
            Embedding(width=width, context=context, vocab=vocab),
            *(Block(width, heads) for _ in range(layers)),
            nn.LayerNorm(width),
            nn.Linear(width, vocab, bias=False),
        )
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=_INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def build(
    *, layers: int = 4, width: int = 128, heads: int = 4, context: int = 128, vocab: int = 256
) -> Workload:
    """The built-in workload ``gpt``.

    Args:
        layers: transformer blocks.
        width: features per token; a multiple of ``heads``.
        heads: attention heads per block.
        context: tokens per sample.
        vocab: distinct tokens.

    Raises:
        WorkloadError: an option is out of range.
    """
    options = {"layers": layers, "width": width, "heads": heads, "context": context}
    for name, value in options.items():
        require_count(name, value, at_least=1)
    require_count("vocab", vocab, at_least=2)
    if width % heads:
        raise WorkloadError(f"width={width}: must be a multiple of heads={heads}")
    return Workload(
        model=GPT(layers=layers, width=width, heads=heads, context=context, vocab=vocab),
        dataset=_next_token_dataset(_NUM_TRAIN, context, vocab, _TRAIN_SEED),
        valid_dataset=_next_token_dataset(_NUM_VALID, context, vocab, _VALID_SEED),
        loss_fn=token_loss,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3),
        clip_norm=1.0,
        data="tokens of a Markov chain (generated)",
    )


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, the mean over all positions, of ``[batch, context, vocab]``."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _next_token_dataset(
    num_sequences: int, context: int, vocab: int, seed: int
) -> Dataset[tuple[Tensor, ...]]:
    tokens = markov_tokens(num_sequences=num_sequences, length=context + 1, vocab=vocab, seed=seed)
    return TensorDataset(tokens[:, :-1], tokens[:, 1:])

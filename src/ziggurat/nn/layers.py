"""Norms, the feed-forward layer, embeddings and the Transformer block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.attention import AttentionLayer
from ziggurat.nn.visibility import Plan
from ziggurat.types import Stream

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


def norm_layer(part: spec.LayerNorm, width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=part.eps)


class MlpLayer(nn.Module):
    """up, activation, down: [T, width] -> [T, width]."""

    def __init__(self, part: spec.Mlp, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=part.bias)
        self.down = nn.Linear(hidden, width, bias=part.bias)
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class BlockLayer(nn.Module):
    """One Transformer layer, norm before (GPT-2) or after (BERT) each residual part: [T, width] -> [T, width].

    With `read` (int64[R]) only these rows come out, [R, width], and nothing is computed for the others that these do not need.
    """

    def __init__(self, part: spec.Block, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention = AttentionLayer(part.attention, width, heads)
        self.attention_norm = norm_layer(part.norm, width)
        self.mlp = MlpLayer(part.mlp, width, hidden)
        self.mlp_norm = norm_layer(part.norm, width)
        self.pre = part.norm_at == "pre"
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, plan: Plan, read: Tensor | None = None) -> Tensor:
        rows = x if read is None else x[read]
        if self.pre:
            x = rows + self.drop(self.attention(self.attention_norm(x), plan, read))
            return x + self.drop(self.mlp(self.mlp_norm(x)))
        x = self.attention_norm(rows + self.drop(self.attention(x, plan, read)))
        return self.mlp_norm(x + self.drop(self.mlp(x)))


class EmbedLayer(nn.Module):
    """Token + position + segment embeddings of a stream: [T] -> [T, width]."""

    def __init__(self, part: spec.Embed, vocab: int, width: int):
        super().__init__()
        self.token = nn.Embedding(vocab, width)
        self.offset = part.positions.offset
        self.position = nn.Embedding(part.positions.length + self.offset, width)
        self.segment = nn.Embedding(part.segments, width) if part.segments else None
        self.norm = norm_layer(part.norm, width) if part.norm else None
        self.drop = nn.Dropout(0.0)

    def forward(self, stream: Stream) -> Tensor:
        x = self.token(stream.content) + self.position(stream.position + self.offset)
        if self.segment is not None:
            x = x + self.segment(stream.segment)
        if self.norm is not None:
            x = self.norm(x)
        return self.drop(x)

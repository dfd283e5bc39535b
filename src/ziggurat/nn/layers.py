"""Norms, the feed-forward layer, embeddings and the Transformer block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Source:
    """What a decoder reads beside itself."""

    hidden: Tensor
    """[S, width]: the encoder's last state"""
    plan: Plan


class BlockLayer(nn.Module):
    """One Transformer layer, norm before (GPT-2) or after (BERT) each residual part: [T, width] -> [T, width].

    With `cross`, a second attention between the two parts reads an encoder. With `read` (int64[R]) only these rows come out,
    [R, width], and nothing is computed for the others that these do not need.
    """

    def __init__(self, part: spec.Block, width: int, heads: int, hidden: int, *, cross: bool = False):
        super().__init__()
        self.attention = AttentionLayer(part.attention, width, heads)
        self.attention_norm = norm_layer(part.norm, width)
        self.cross = AttentionLayer(part.attention, width, heads) if cross else None
        self.cross_norm = norm_layer(part.norm, width) if cross else None
        self.mlp = MlpLayer(part.mlp, width, hidden)
        self.mlp_norm = norm_layer(part.norm, width)
        self.pre = part.norm_at == "pre"
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, plan: Plan, read: Tensor | None = None, source: Source | None = None) -> Tensor:
        rows = x if read is None else x[read]
        normed = self.attention_norm(x) if self.pre else x
        x = self._add(rows, self.attention(normed, plan, read), self.attention_norm)
        if self.cross is not None and self.cross_norm is not None and source is not None:
            normed = self.cross_norm(x) if self.pre else x
            layout = source.plan if read is None else source.plan.only(read)
            x = self._add(x, self.cross(normed, layout, source=source.hidden), self.cross_norm)
        return self._add(x, self.mlp(self.mlp_norm(x) if self.pre else x), self.mlp_norm)

    def _add(self, x: Tensor, part: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.drop(part)
        return x if self.pre else norm(x)


class EmbedLayer(nn.Module):
    """Token + position + segment embeddings of a stream: [T] -> [T, width].

    A layer without a token table of its own (`own=False`: a decoder's) is given the one it shares, [V, width].
    """

    def __init__(self, part: spec.Embed, vocab: int, width: int, *, own: bool = True, extra: bool = True):
        super().__init__()
        self.token = nn.Embedding(vocab, width) if own else None
        self.extra = nn.Embedding(part.extra, width) if part.extra and extra else None
        self.offset = part.positions.offset
        self.position = nn.Embedding(part.positions.length + self.offset, width)
        self.segment = nn.Embedding(part.segments, width) if part.segments else None
        self.norm = norm_layer(part.norm, width) if part.norm else None
        self.drop = nn.Dropout(0.0)

    def forward(self, stream: Stream, table: Tensor | None = None) -> Tensor:
        table = table if self.token is None else self.token.weight
        assert table is not None, "a layer without a table must be given one"
        if self.extra is None:
            x = F.embedding(stream.content, table)
        else:
            added = stream.content < 0
            x = F.embedding(stream.content.clamp(min=0), table)
            x = torch.where(added[:, None], self.extra((-1 - stream.content).clamp(min=0)), x)
        x = x + self.position(stream.position + self.offset)
        if self.segment is not None:
            x = x + self.segment(stream.segment)
        if self.norm is not None:
            x = self.norm(x)
        return self.drop(x)

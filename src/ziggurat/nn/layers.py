"""Norms, the feed-forward layer, embeddings and the Transformer block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ziggurat.nn import spec
from ziggurat.nn.attention import AttentionLayer
from ziggurat.nn.cache import LayerPast
from ziggurat.nn.dropout import Dropout
from ziggurat.nn.positions import sinusoid
from ziggurat.nn.visibility import Plan
from ziggurat.types import Stream

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class RMSNormLayer(nn.RMSNorm):
    """RMS norm, [T, width] -> the same. On a CPU the library makes it of single operations and takes six times as long as for a layer norm;
    while it trains, float32 and float64 take half of that here."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != self.weight.dtype or not torch.is_grad_enabled():
            return super().forward(x)
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """y = x r w with r = (mean(x^2) + eps) ** -0.5; x [T, width], w [width]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            ctx.save_for_backward(x, weight, r)
            return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, r = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            product = grad * x
            grad_weight = torch.mv(product.t(), r[:, 0])
            along = torch.mv(product, weight)[:, None] * r.pow(3).div_(-x.shape[-1])
            return torch.mul(grad, weight, out=product).mul_(r).addcmul_(x, along), grad_weight, None


def norm_layer(part: spec.Norm, width: int) -> nn.Module:
    """A norm over the last dimension, [T, width] -> the same."""
    if isinstance(part, spec.RMSNorm):
        return RMSNormLayer(width, eps=part.eps)
    return nn.LayerNorm(width, eps=part.eps, bias=part.bias)


class MlpLayer(nn.Module):
    """up, activation (times the gate, if there is one), down: [T, width] -> [T, width]."""

    def __init__(self, part: spec.Mlp, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=part.bias)
        self.gate = nn.Linear(width, hidden, bias=part.bias) if part.gated else None
        self.down = nn.Linear(hidden, width, bias=part.bias)
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.up(x))
        return self.down(inner if self.gate is None else inner * self.gate(x))


@dataclass(frozen=True, slots=True)
class Source:
    """What a decoder reads beside itself."""

    hidden: Tensor
    """[S, width]: the encoder's last state"""
    plan: Plan


class BlockLayer(nn.Module):
    """One Transformer layer, norm before (GPT-2) or after (BERT) each residual part: [T, width] -> [T, width].

    With `cross`, a second attention between the two parts reads an encoder. `opening`: there is no norm before the attention.
    With `read` (int64[R]) only these rows come out, [R, width], and nothing is computed for the others that these do not need.
    With `memory` [M, width] attention reads these rows too, before its own, as the plan says.
    """

    def __init__(self, part: spec.Block, width: int, heads: int, hidden: int, *, cross: bool = False, opening: bool = False):
        super().__init__()
        self.attention = AttentionLayer(part.attention, width, heads)
        self.attention_norm = nn.Identity() if opening else norm_layer(part.norm, width)
        self.cross = AttentionLayer(part.attention, width, heads, cross=True) if cross else None
        self.cross_norm = norm_layer(part.norm, width) if cross else None
        self.mlp = MlpLayer(part.mlp, width, hidden)
        self.mlp_norm = norm_layer(part.norm, width)
        self.pre = part.norm_at == "pre"
        self.drop = Dropout(0.0)

    def forward(
        self,
        x: Tensor,
        plan: Plan,
        read: Tensor | None = None,
        source: Source | None = None,
        past: LayerPast | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        rows = x if read is None else x[read]
        normed = self.attention_norm(x) if self.pre else x
        keys = None
        if memory is not None:
            keys = torch.cat([self.attention_norm(memory) if self.pre else memory, normed])
        own, other = (None, None) if past is None else (past.own, past.cross)
        x = self._add(rows, self.attention(normed, plan, read, keys, own), self.attention_norm)
        if self.cross is not None and self.cross_norm is not None and source is not None:
            normed = self.cross_norm(x) if self.pre else x
            layout = source.plan if read is None else source.plan.only(read)
            x = self._add(x, self.cross(normed, layout, source=source.hidden, past=other), self.cross_norm)
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
        inner = part.width or width
        self.token = nn.Embedding(vocab, inner) if own else None
        self.scale = inner**0.5 if part.scale == "root" else None
        self.extra = nn.Embedding(part.extra, inner) if part.extra and extra else None
        places = part.positions
        self.offset = places.offset
        self.position = nn.Embedding(places.length + self.offset, inner) if isinstance(places, spec.Learned) else None
        self.waves = isinstance(places, spec.Sinusoidal)
        self.segment = nn.Embedding(part.segments, inner) if part.segments else None
        self.task = nn.Embedding(part.tasks, inner) if part.tasks else None
        self.norm = norm_layer(part.norm, inner) if part.norm else None
        self.widen = nn.Linear(inner, width) if inner != width or part.widen == "always" else None
        self.drop = Dropout(0.0)

    def forward(self, stream: Stream, table: Tensor | None = None) -> Tensor:
        x = self.drop(self.summed(stream, table))
        return x if self.widen is None else self.widen(x)

    def summed(self, stream: Stream, table: Tensor | None = None) -> Tensor:
        """[T, width of the tables]: the normed sum, before it is brought to the model's width."""
        table = table if self.token is None else self.token.weight
        assert table is not None, "a layer without a table must be given one"
        if self.extra is None:
            x = self._tokens(stream.content, table)
        else:
            added = stream.content < 0
            x = self._tokens(stream.content.clamp(min=0), table)
            x = torch.where(added[:, None], self.extra((-1 - stream.content).clamp(min=0)), x)
        if self.position is not None:
            x = x + self.position(stream.position + self.offset)
        elif self.waves:
            x = x + sinusoid(stream.position, x.shape[1]).to(x.dtype)
        segment = stream.segment
        if self.task is not None:
            kinds = self.segment.num_embeddings if self.segment is not None else 1
            x = x + self.task(torch.div(segment, kinds, rounding_mode="floor"))
            segment = segment % kinds
        if self.segment is not None:
            x = x + self.segment(segment)
        return x if self.norm is None else self.norm(x)

    def _tokens(self, ids: Tensor, table: Tensor) -> Tensor:
        x = F.embedding(ids, table)
        return x if self.scale is None else x * self.scale

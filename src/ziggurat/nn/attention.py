"""Attention below one function: everything above `attend` is packed, and `pick` says which kernel runs.

On CPU the choice was measured (docs/results/speed.md): in bf16 plain matmul-softmax beats the library's kernel 2x to 3x up to 1,024 tokens; in
float32 the library's is faster by a third at every length, but it has no gradient for what is added to the scores and no dropout.
Dense is the definition; the CUDA kernels are tested against it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.cache import Past
from ziggurat.nn.dropout import dropout as drop
from ziggurat.nn.positions import FunctionalLayer, HubBucketLayer, RelativeLayer, RotaryLayer, build_distances
from ziggurat.nn.visibility import Plan, allow

Kernel = Literal["plain", "sdpa", "varlen", "flex"]


def pick(
    kind: str, *, device: str, dtype: torch.dtype, length: int, dropout: float, masked: bool, biased: bool = False
) -> Kernel:
    """The kernel for a visibility kind on a device: a pure function, so that a table can test it.

    `masked`: rows hold more than one document, or the rule is custom. `biased`: something is added to the scores.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    if device == "cpu":
        return "plain" if biased or dropout or (half and length <= 1024) else "sdpa"
    if not masked or dropout or biased:
        return "sdpa"
    if kind in ("full", "causal") and half and _varlen() is not None:
        return "varlen"
    return "flex"


def kernel_of(plan: Plan, device: torch.device, dtype: torch.dtype, dropout: float, *, biased: bool = False) -> Kernel:
    masked, length, biased = (
        plan.mask is not None,
        plan.key.length,
        biased or plan.stepwise or plan.bias is not None or plan.own is not None,
    )
    return pick(plan.kind, device=device.type, dtype=dtype, length=length, dropout=dropout, masked=masked, biased=biased)


Mix = Callable[[Tensor, Plan], Tensor]
"""What is added to the output [rows, heads, queries, dim], of the weights [rows, heads, queries, keys]."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    bias: Tensor | None = None,
    mix: Mix | None = None,
) -> Tensor:
    """Attention over packed tokens: q [Q, heads, dim], k, v [T, heads, dim] -> [Q, heads, dim].

    A query that sees no key returns 0. `scale` defaults to 1 / sqrt(dim); `dropout` applies to the weights. `bias`
    [rows or 1, heads, queries, keys], a layer's own beside the plan's, is added to the scaled scores; `mix` adds to the output.
    """
    kernel = kernel_of(plan, q.device, q.dtype, dropout, biased=bias is not None)
    scale = scale if scale is not None else 1.0 / math.sqrt(q.shape[-1])
    if kernel == "varlen" and mix is None:
        return _varlen_attend(q, k, v, plan, scale)
    own = None if plan.own is None else tuple(plan.query.spread(x[plan.own]).transpose(1, 2) for x in (k, v))
    q, k, v = (side.spread(x).transpose(1, 2) for side, x in ((plan.query, q), (plan.key, k), (plan.key, v)))
    if kernel == "plain" or mix is not None or own is not None:
        out = plain(q, k, v, plan, scale, dropout, bias, mix, own)
    elif kernel == "flex":
        out = _flex_attend(q, k, v, plan, scale)
    else:
        seen = None if plan.causal and bias is None and plan.bias is None else _summed(plan.added(q.dtype), bias)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=seen is None and plan.causal, scale=scale, dropout_p=dropout
        )
    if plan.empty is not None:
        out = out.masked_fill(plan.empty, 0.0)
    return plan.query.gather(out.transpose(1, 2))


def plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    scale: float,
    dropout: float,
    bias: Tensor | None = None,
    mix: Mix | None = None,
    own: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """softmax(q k' * scale + bias) v by matmuls: q [rows, heads, queries, dim], k, v [rows, heads, keys, dim] -> as q.

    `own`: key and value of each query, as q, that stand for the last key of every row.
    """
    rows, heads = q.shape[:2]
    mine = None if own is None else (q * own[0]).sum(-1, keepdim=True) * scale
    q, k, v = (x.reshape(rows * heads, *x.shape[2:]) for x in (q, k, v))
    # one pass makes the product and scales it; the first argument is not read
    scores = torch.baddbmm(q.new_zeros(1), q, k.transpose(1, 2), beta=0, alpha=scale).view(rows, heads, q.shape[1], k.shape[1])
    scores = scores if mine is None else torch.cat([scores, mine], -1)
    for more in (bias, plan.added(scores.dtype)):
        scores = scores if more is None else scores + more.to(scores.dtype)
    weights = torch.softmax(scores, -1, dtype=scores.dtype)
    if dropout:
        weights = drop(weights, dropout)
    upon, upon_own = (weights, None) if own is None else weights.split([k.shape[1], 1], -1)
    out = torch.bmm(upon.flatten(0, 1), v).view(rows, heads, q.shape[1], v.shape[2])
    out = out if own is None or upon_own is None else torch.addcmul(out, upon_own, own[1])
    return out if mix is None else out + mix(weights, plan)


def _summed(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b.to(a.dtype)


@cache
def _varlen() -> Any:
    """torch's variable-length kernel, where this version has one."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _varlen_attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
    # The only place that knows the kernel's signature, which changed between torch 2.10 and 2.12.
    kernel, causal = _varlen(), plan.kind == "causal"
    known = inspect.signature(kernel).parameters
    how: dict[str, Any] = {"window_size": (-1, 0 if causal else -1)} if "window_size" in known else {"is_causal": causal}
    if "scale" in known:
        how["scale"] = scale
    else:
        q = q * (scale * math.sqrt(q.shape[-1]))
    return kernel(
        q.contiguous(), k.contiguous(), v.contiguous(), plan.bounds, plan.bounds, plan.query.length, plan.key.length, **how
    )


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def block_mask(plan: Plan) -> Any:
    """The plan's rule as a FlexAttention block mask over [rows, length, length]; made once for all layers."""
    return plan.once("block mask", lambda: _block_mask(plan))


def _block_mask(plan: Plan) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    mask, rule = plan.mask, plan.rule
    assert mask is not None

    if rule is None:

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return mask[b, 0, i, j]
    else:

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return allow(tuple(r[b, i] for r in rule), tuple(r[b, j] for r in rule)) & (rule[0][b, j] >= 0)

    return create_block_mask(visible, plan.query.rows, None, plan.query.length, plan.key.length, device=mask.device.type)


def _flex_attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
    return _flex()(q, k, v, block_mask=block_mask(plan), scale=scale)


class AttentionLayer(nn.Module):
    """Multi-head attention over packed tokens: [T, width] -> [T, width], or [R, width] for the rows int64[R] in `read`.

    It reads itself, or with `source` [S, width] another stack's vectors (`cross=True`: neither distances nor a window). With a
    `past`, keys and values are those of tokens read before, too.
    """

    def __init__(self, part: spec.Attention, width: int, heads: int, *, cross: bool = False):
        super().__init__()
        self.heads = heads
        dim = part.head_width or width // heads
        self.scale = 1.0 if part.scale == "one" else 1.0 / math.sqrt(dim)
        self.q, self.k, self.v = (nn.Linear(width, heads * dim, bias=part.bias) for _ in range(3))
        self.out = nn.Linear(heads * dim, width, bias=part.bias)
        self.distances = None if cross else build_distances(part.distances, heads, dim, width)
        self.window = None if cross else part.window
        self.dropout = 0.0

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, width] -> keys and values, [T, heads, dim] each."""
        k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.k, self.v))
        return k, v

    def forward(
        self, x: Tensor, plan: Plan, read: Tensor | None = None, source: Tensor | None = None, past: Past | None = None
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        plan = plan.near(self.window)
        seen = x if source is None else source
        k, v = self.project(seen) if past is None else past.keys(self, seen)
        biased = not isinstance(self.distances, RotaryLayer | None)
        few = read is not None and not isinstance(self.distances, HubBucketLayer)
        if few and kernel_of(plan, k.device, k.dtype, dropout, biased=biased) in ("plain", "sdpa"):
            assert read is not None
            x, plan, read = x[read], plan.only(read), None
        q = self.q(x).unflatten(-1, (self.heads, -1))
        bias, mix, far = None, None, self.distances
        if isinstance(far, RotaryLayer):
            q, k = far.turn(q, k, plan)
        elif far is not None:
            bias = far.score(q, x, plan, self.scale)
            q = far.query(q) if isinstance(far, RelativeLayer) else q
            mix = far.mix if isinstance(far, FunctionalLayer) else None
        mixed = attend(q, k, v, plan, scale=self.scale, dropout=dropout, bias=bias, mix=mix).flatten(1)
        return self.out(mixed if read is None else mixed[read])

"""Losses as (sum, count) pairs; never a mean."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512
"""Rows whose scores over the vocabulary exist at once."""


def vocab_cross_entropy(hidden: Tensor, table: Tensor, bias: Tensor | None, value: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of cross entropies of `hidden @ table.T + bias` against `value`.

    hidden [K, width], table [V, width], bias [V], value int64[K], weight float32[K] -> float32 scalar.
    Scores live for CHUNK rows at a time and gradients are made in the same pass, so K x V never exists at once. Weights, and the factor that
    comes back, are multiplied into what is K rows long; nothing passes over the scores or the table's gradient for them.
    """
    bias = bias if bias is not None else table.new_zeros(0)
    return _VocabCrossEntropy.apply(hidden, table, bias, value, weight)


class _VocabCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, bias: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        needs = any(ctx.needs_input_grad[:3])
        with torch.autocast(device, enabled=False):
            h, w = hidden.detach().to(dtype), table.detach().to(dtype)
            b = bias.detach().to(dtype) if len(bias) else None
            total = torch.zeros((), dtype=torch.promote_types(torch.float32, hidden.dtype), device=hidden.device)
            weight = weight.to(total.dtype)
            weighted = (h * weight[:, None]).to(dtype) if needs else h
            grad_hidden = torch.empty_like(h) if needs else None
            grad_table: Tensor | None = None  # of all chunks but the last
            grad_bias = torch.zeros_like(bias) if needs and b is not None else None
            last = h.new_zeros(0, len(w)), weighted
            for start in range(0, len(h), CHUNK):
                rows = slice(start, start + CHUNK)
                if start and ctx.needs_input_grad[1]:  # mostly there is one chunk, and the table is large
                    grad_table = _added(grad_table, *last, table.dtype)
                scores = torch.mm(h[rows], w.t()) if b is None else torch.addmm(b, h[rows], w.t())
                logs = torch.log_softmax(scores, -1, dtype=total.dtype)
                picked = logs.gather(1, value[rows, None])[:, 0]
                total -= (picked * weight[rows]).sum()
                if not needs:
                    continue
                slope = logs.exp_()
                slope.scatter_add_(1, value[rows, None], slope.new_full((len(slope), 1), -1.0))
                if grad_bias is not None:
                    grad_bias += torch.mv(slope.t(), weight[rows])
                slope = slope.to(dtype)
                assert grad_hidden is not None
                torch.mm(slope, w, out=grad_hidden[rows])
                last = slope, weighted[rows]
        if needs:
            ctx.save_for_backward(grad_hidden, weight, grad_bias, grad_table, *last)
            ctx.hidden_dtype, ctx.table_dtype = hidden.dtype, table.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight, bias, table, slope, h = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(ctx.hidden_dtype) * (weight * grad)[:, None].to(ctx.hidden_dtype)
            # the product of the last chunk is made here, where the factor is known
            table = _added(table, slope, h, ctx.table_dtype, grad) if ctx.needs_input_grad[1] else None
        return hidden, table, None if bias is None else bias * grad, None, None


def _added(table: Tensor | None, slope: Tensor, h: Tensor, dtype: torch.dtype, factor: Tensor | None = None) -> Tensor:
    """(table + slope' h) times the factor, [V, width] of `dtype`: slope [K, V], h [K, width]."""
    if factor is not None:
        h = (h * factor).to(h.dtype)
        table = None if table is None else table * factor
    if table is None:
        return torch.mm(slope.t(), h).to(dtype)
    if slope.dtype == dtype:
        return table.addmm_(slope.t(), h)
    return table.add_(torch.mm(slope.t(), h))


def cross_entropy(scores: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of cross entropies: scores [K, classes], value int64[K], weight [K] -> float32 scalar."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    return (F.cross_entropy(scores, value, reduction="none") * weight).sum()


def group_cross_entropy(scores: Tensor, group: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of -log p, p the softmax over the rows of one group: scores [K], group int64[K], weight [K] -> float32 scalar."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    count = int(group.max()) + 1 if len(group) else 0
    with torch.no_grad():
        top = scores.new_full((count,), -torch.inf).scatter_reduce(0, group, scores, "amax")
    total = scores.new_zeros(count).index_add(0, group, (scores - top[group]).exp())
    return ((total.log() + top)[group].sub(scores) * weight).sum()


def binary_cross_entropy(scores: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of binary cross entropies: scores [K, 1] for class 1 against 0, value int64[K], weight [K] -> float32 scalar."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    scores = scores[:, 0]
    return (F.binary_cross_entropy_with_logits(scores, value.to(scores.dtype), reduction="none") * weight).sum()


def squared_error(scores: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of squared differences: scores [K, 1], value float[K], weight [K] -> float32 scalar."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    return ((scores[:, 0] - value) ** 2 * weight).sum()

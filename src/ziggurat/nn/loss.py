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
    Scores live for CHUNK rows at a time and gradients are made in the same pass, so K x V never exists at once.
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
            grad_hidden = torch.empty_like(h) if needs else None
            grad_table: Tensor | None = None
            grad_bias = torch.zeros_like(bias) if needs and b is not None else None
            for start in range(0, len(h), CHUNK):
                rows = slice(start, start + CHUNK)
                scores = torch.mm(h[rows], w.t()) if b is None else torch.addmm(b, h[rows], w.t())
                logs = torch.log_softmax(scores, -1, dtype=total.dtype)
                picked = logs.gather(1, value[rows, None])[:, 0]
                total -= (picked * weight[rows]).sum()
                if not needs:
                    continue
                slope = logs.exp_()
                slope.scatter_add_(1, value[rows, None], slope.new_full((len(slope), 1), -1.0))
                slope *= weight[rows, None]
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                slope = slope.to(dtype)
                assert grad_hidden is not None
                torch.mm(slope, w, out=grad_hidden[rows])
                if not ctx.needs_input_grad[1]:  # a frozen table
                    continue
                if grad_table is None:  # mostly there is one chunk, and the table is large
                    grad_table = torch.mm(slope.t(), h[rows]).to(table.dtype)
                elif dtype == grad_table.dtype:
                    grad_table.addmm_(slope.t(), h[rows])
                else:
                    grad_table += torch.mm(slope.t(), h[rows])
        if needs:
            if grad_table is None:
                grad_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else table.new_zeros(0)
            ctx.save_for_backward(grad_hidden, grad_table, *([] if grad_bias is None else [grad_bias]))
            ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, table, *bias = ctx.saved_tensors
        of_table = table * grad if ctx.needs_input_grad[1] else None
        return hidden.to(ctx.hidden_dtype) * grad, of_table, bias[0] * grad if bias else None, None, None


def cross_entropy(scores: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of cross entropies: scores [K, classes], value int64[K], weight [K] -> float32 scalar."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    return (F.cross_entropy(scores, value, reduction="none") * weight).sum()


def group_cross_entropy(scores: Tensor, group: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of -log p, p the softmax over the rows of one group: scores [K], group int64[K], weight [K] -> float32 scalar."""
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    count = int(group.max()) + 1
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

"""Distillation from the model that a stage began with: what it said at the same rows is part of what is to be learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziggurat.errors import check
from ziggurat.nn.boundary import BoundaryHeadLayer
from ziggurat.nn.heads import VocabHeadLayer
from ziggurat.nn.loss import CHUNK
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Asked, Objective
from ziggurat.types import Batch, Loss, Losses

BEHIND = "_distilled"
"""What is put behind a target's name for its distillation loss."""


class Distilled:
    """An objective and, at the rows it asks for, the divergence from its teacher (learning without forgetting: Li and Hoiem, 2016).

    Of each target's weight 1 - w is its own loss and w is T^2 KL(teacher || student) at temperature T (Hinton et al., 2015). Raises
    `UserError` where a target's answers are no words: there is no distribution over the vocabulary to keep.
    """

    def __init__(self, objective: Objective, teacher: NetworkModel, weight: float, temperature: float):
        self.objective, self.teacher, self.weight, self.temperature = (
            objective,
            teacher.eval().requires_grad_(False),
            weight,
            temperature,
        )

    def counts(self, batch: Batch) -> dict[str, float]:
        own = self.objective.counts(batch)
        return own | {name + BEHIND: own[name] for name in batch.targets}

    def remembered(self, batch: Batch) -> np.ndarray:
        return self.objective.remembered(batch)

    def step_weights(self, counts: Mapping[str, float]) -> dict[str, float]:
        own = self.objective.step_weights({name: count for name, count in counts.items() if not name.endswith(BEHIND)})
        return {name: (1 - self.weight) * w for name, w in own.items()} | {
            name + BEHIND: self.weight * w for name, w in own.items()
        }

    def losses(self, network: NetworkModel, batch: Batch) -> Losses:
        found: dict[str, Loss] = {}
        with torch.no_grad():
            said = self.objective.asked(self.teacher, batch)
        for name, asked in self.objective.asked(network, batch).items():
            found[name] = network.loss(*asked)
            count = asked.target.weight.sum()
            if len(asked.target.index) == 0:
                found[name + BEHIND] = Loss(found[name].total * 0.0, count)
                continue
            student, teacher = scored(network, asked), scored(self.teacher, said[name])
            total = divergence(student, teacher, asked.target.weight, self.temperature)
            found[name + BEHIND] = Loss(total, count)
        return found


def scored(network: NetworkModel, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [K, width], table [V, width] and bias [V] (or []) whose product are a target's scores over the vocabulary."""
    head = network.heads[asked.head]
    check(
        isinstance(head, VocabHeadLayer | BoundaryHeadLayer),
        f"distill keeps what the model says over its vocabulary, and the head '{asked.head}' says something else",
        "leave `distill` out, or train with an objective such as mlm or clm",
    )
    assert isinstance(head, VocabHeadLayer | BoundaryHeadLayer)
    table = network.table_of(head)
    bias = head.bias if head.bias is not None else table.new_zeros(0)
    return head(network.rows(asked.head, asked.hidden, asked.streams, asked.target)), table, bias


def divergence(
    student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor], weight: Tensor, temperature: float
) -> Tensor:
    """The weighted sum over rows of T^2 KL(softmax(teacher / T) || softmax(student / T)), float32 scalar.

    Each side is hidden [K, width], table [V, width], bias [V] (or []). Scores live for CHUNK rows at a time, and gradients (of the
    student's side) are made in the same pass.
    """
    total: Tensor = _Divergence.apply(*student, *teacher, weight, temperature)
    return total


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        bias: Tensor,
        t_hidden: Tensor,
        t_table: Tensor,
        t_bias: Tensor,
        weight: Tensor,
        temperature: float,
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            h, w, b = (x.detach().to(dtype) for x in (hidden, table, bias))
            th, tw, tb = (x.detach().to(dtype) for x in (t_hidden, t_table, t_bias))
            wide = torch.promote_types(torch.float32, hidden.dtype)
            total = torch.zeros((), dtype=wide, device=hidden.device)
            grad_hidden, grad_bias = torch.empty_like(h), torch.zeros_like(bias)
            grad_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None  # not of a frozen one
            for start in range(0, len(h), CHUNK):
                rows = slice(start, start + CHUNK)
                logs = _logs(h[rows], w, b, temperature, wide)
                known = _logs(th[rows], tw, tb, temperature, wide)
                p = known.exp()
                share = weight[rows, None] * temperature**2
                total += (p * (known - logs) * share).sum()
                slope = (logs.exp() - p) * (share / temperature)  # d total / d scores
                if len(bias):
                    grad_bias += slope.sum(0).to(grad_bias.dtype)
                slope = slope.to(dtype)
                grad_hidden[rows] = slope @ w
                if grad_table is not None:
                    grad_table += (slope.t() @ h[rows]).to(table.dtype)
        ctx.save_for_backward(grad_hidden, grad_table, grad_bias)
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, table, bias = ctx.saved_tensors
        of_table, of_bias = None if table is None else table * grad, bias * grad if len(bias) else None
        return hidden.to(ctx.hidden_dtype) * grad, of_table, of_bias, None, None, None, None, None


def _logs(hidden: Tensor, table: Tensor, bias: Tensor, temperature: float, wide: torch.dtype) -> Tensor:
    scores = hidden @ table.t()
    return F.log_softmax((scores + bias if len(bias) else scores).to(wide) / temperature, -1)


def teacher_of(network: NetworkModel, start: Mapping[str, Tensor]) -> NetworkModel:
    """A network of the same shape with the weights of the start; what those lack is as in `network` now."""
    teacher = NetworkModel(network.spec).to(next(network.parameters()).device)
    own = {name: start.get(name, tensor) for name, tensor in network.state_dict().items() if name in teacher.state_dict()}
    teacher.load_state_dict(own)
    return teacher

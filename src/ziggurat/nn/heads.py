"""Heads: hidden vectors in, scores out, at the rows a target names and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.boundary import BoundaryHeadLayer
from ziggurat.nn.dropout import Dropout
from ziggurat.nn.layers import ACTIVATIONS, norm_layer


class VocabHeadLayer(nn.Module):
    """[K, width] -> [K, width of the tables] before the projection, and the projection's bias and (untied) table.

    Without a transform a plain matrix leads from the model's width to the tables', where the two differ.
    """

    def __init__(self, model: spec.Model):
        super().__init__()
        if isinstance(model, spec.Adversaries):  # the generator fills the masks
            model = model.generator_model
        project, inner = model.project, model.embed.width or model.width
        self.activation = ACTIVATIONS[project.activation]
        self.dense = nn.Linear(model.width, inner, bias=project.dense_bias) if project.transform else None
        self.norm = norm_layer(model.block.norm, inner) if project.transform else None
        self.narrow = nn.Linear(model.width, inner, bias=False) if not project.transform and inner != model.width else None
        self.bias = nn.Parameter(torch.zeros(model.vocab)) if project.bias else None
        self.table = None if project.tied else nn.Parameter(torch.zeros(model.vocab, inner))
        self.scale = model.width**-0.5 if project.scale == "width" else None

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden if self.scale is None else hidden * self.scale
        if self.narrow is not None:
            x = self.narrow(x)
        if self.dense is None or self.norm is None:
            return x
        return self.norm(self.activation(self.dense(x)))


class PoolerHeadLayer(nn.Module):
    """BERT's pooler: [D, width] summary vectors -> [D, width]."""

    def __init__(self, model: spec.Model):
        super().__init__()
        self.dense = nn.Linear(model.width, model.width)

    def forward(self, summary: Tensor) -> Tensor:
        return torch.tanh(self.dense(summary))


class TransformLayer(nn.Module):
    """Dense layer, activation and norm, as before a vocabulary projection: [K, width] -> [K, width]."""

    def __init__(self, model: spec.Model):
        super().__init__()
        self.dense = nn.Linear(model.width, model.width, bias=model.project.dense_bias)
        self.activation = ACTIVATIONS[model.project.activation]
        self.norm = norm_layer(model.block.norm, model.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))


class ClassHeadLayer(nn.Module):
    """[K, width] summary vectors (already pooled when `by: pooler`) -> [K, outputs]."""

    def __init__(self, head: spec.ClassHead, model: spec.Model):
        super().__init__()
        self.dense = nn.Linear(model.width, model.width) if head.by == "dense" else None
        self.transform = TransformLayer(model) if head.by == "transform" else None
        self.activation = ACTIVATIONS[model.pool.activation]
        self.out = nn.Linear(model.width, head.outputs, bias=head.bias)
        self.drop = Dropout(0.0)

    def forward(self, summary: Tensor) -> Tensor:
        x = self.drop(summary if self.transform is None else self.transform(summary))
        if self.dense is not None:
            x = self.drop(self.activation(self.dense(x)))
        return self.out(x)


class TokenHeadLayer(nn.Module):
    """[K, width] -> [K, outputs]."""

    def __init__(self, head: spec.TokenHead, model: spec.Model):
        super().__init__()
        self.transform = TransformLayer(model) if model.pool.by == "transform" else None
        self.out = nn.Linear(model.width, head.outputs)
        self.drop = Dropout(0.0)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.drop(hidden if self.transform is None else self.transform(hidden)))


class ReplacedHeadLayer(nn.Module):
    """[K, width] -> [K, 1]: the score that a token was put in by the generator."""

    def __init__(self, model: spec.Model):
        super().__init__()
        self.dense = nn.Linear(model.width, model.width)
        self.activation = ACTIVATIONS[model.block.mlp.activation]
        self.out = nn.Linear(model.width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.activation(self.dense(hidden)))


def build_head(head: spec.Head, model: spec.Model) -> nn.Module:
    match head:
        case spec.VocabHead():
            return VocabHeadLayer(model)
        case spec.PoolerHead():
            return PoolerHeadLayer(model)
        case spec.ClassHead():
            return ClassHeadLayer(head, model)
        case spec.TokenHead():
            return TokenHeadLayer(head, model)
        case spec.ReplacedHead():
            return ReplacedHeadLayer(model)
        case spec.BoundaryHead():
            return BoundaryHeadLayer(head, model)


def summary(hidden: Tensor, bounds: Tensor, documents: Tensor, at: str) -> Tensor:
    """What stands for each chosen document, the summary token's vector or a mean: hidden [T, width], documents int64[K] -> [K, width]."""
    rows = summary_rows(bounds, documents, at)
    if at != "mean":
        return hidden[rows]
    lengths = bounds[documents + 1] - bounds[documents]
    owner = torch.repeat_interleave(torch.arange(len(documents), device=hidden.device), lengths)
    total = torch.zeros(len(documents), hidden.shape[1], device=hidden.device).index_add(0, owner, hidden[rows].float())
    return (total / lengths[:, None]).to(hidden.dtype)


def summary_rows(bounds: Tensor, documents: Tensor, at: str) -> Tensor:
    """int64: the rows that stand for the chosen documents, one each, or all of them for a mean."""
    if at != "mean":
        return bounds[documents] if at == "first" else bounds[documents + 1] - 1
    lengths = bounds[documents + 1] - bounds[documents]
    first = bounds[documents] - (lengths.cumsum(0) - lengths)
    return torch.repeat_interleave(first, lengths) + torch.arange(int(lengths.sum()), device=bounds.device)

"""The span-boundary head: a hidden token is told from the two tokens around its span and its place in it (SpanBERT, 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.layers import ACTIVATIONS, norm_layer


class BoundaryHeadLayer(nn.Module):
    """[K, 2 width + size] as `around` gives it -> [K, width of the tables] before the tied projection, and the bias behind it.

    Two dense layers, each with its activation and norm.
    """

    def __init__(self, head: spec.BoundaryHead, model: spec.Model):
        super().__init__()
        width, inner = model.width, model.embed.width or model.width
        self.place = nn.Embedding(head.places, head.size)
        self.activation = ACTIVATIONS[model.project.activation]
        self.inner = nn.Linear(2 * width + head.size, width)
        self.inner_norm = norm_layer(model.block.norm, width)
        self.outer = nn.Linear(width, inner)
        self.outer_norm = norm_layer(model.block.norm, inner)
        self.bias = nn.Parameter(torch.zeros(model.vocab))

    def around(self, hidden: Tensor, index: Tensor) -> Tensor:
        """[K, 2 width + size]: hidden [T, width] left and right of each row's run, and the vector of its place; `index` as in `boundaries`."""
        left, right, place = boundaries(index)
        near = self.place(place.clamp(max=self.place.num_embeddings - 1))
        return torch.cat([hidden[left], hidden[right], near.to(hidden.dtype)], -1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner_norm(self.activation(self.inner(x)))
        return self.outer_norm(self.activation(self.outer(x)))


def boundaries(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The row left of each token's span, the row right of it, and the token's place in it from 0, int64[K] each.

    `index` int64[K] are the rows of whole spans, ascending; between two spans lies at least one row that is in none.
    """
    first, last = torch.ones_like(index, dtype=torch.bool), torch.ones_like(index, dtype=torch.bool)
    first[1:] = index[1:] != index[:-1] + 1
    last[:-1] = first[1:]
    left = torch.where(first, index, -1).cummax(0).values - 1 if len(index) else index
    right = torch.where(last, index, torch.iinfo(index.dtype).max).flip(0).cummin(0).values.flip(0) + 1 if len(index) else index
    return left, right, index - left - 1

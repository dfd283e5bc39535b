"""A network with a larger vocabulary: the same weights, and rows for new tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel


def with_vocabulary(model: spec.Model, size: int) -> spec.Model:
    """The model with `size` token rows."""
    if isinstance(model, spec.Adversaries):
        return model.model_copy(update={"discriminator": model.discriminator.model_copy(update={"vocab": size})})
    return model.model_copy(update={"vocab": size})


def vocabulary_tensors(network: spec.Network) -> frozenset[str]:
    """The parameters with one row (or number) a token: tables, untied projections, their biases."""
    more = network.model_copy(update={"model": with_vocabulary(network.model, network.model.vocab + 1)})
    with torch.device("meta"):
        now, then = (NetworkModel(part).state_dict() for part in (network, more))
    return frozenset(name for name, tensor in now.items() if tensor.shape != then[name].shape)


def grown(
    network: spec.Network, tensors: Mapping[str, Tensor], rows: Mapping[int, Sequence[int]], size: int
) -> tuple[spec.Network, dict[str, Tensor]]:
    """The network with `size` tokens or more and its tensors: the row of each token in `rows` (id -> the old ids of its pieces) is the
    mean of its pieces' rows, in every table; so are its output biases (Hewitt, 2021, takes the mean of all rows; pieces
    say more). All other rows are what they were.

    `rows` may name rows that are there already: tables are often longer than their tokenizers.
    """
    size = max(size, network.model.vocab)
    larger = network.model_copy(update={"model": with_vocabulary(network.model, size)})
    found = dict(tensors)
    for name in vocabulary_tensors(network) & set(tensors):
        old = tensors[name]
        new = old.new_zeros(size, *old.shape[1:])
        new[: len(old)] = old
        for number, pieces in rows.items():
            new[number] = old[list(pieces)].mean(0)
        found[name] = new
    return larger, found

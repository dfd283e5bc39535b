"""A generator and a discriminator taken apart: each half as a model of its own, with its share of the heads and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ziggurat.nn import spec

GENERATOR_HEADS = ("lm",)
"""The heads that read the generator; all others read the discriminator."""
EMBED, OWN = "model.discriminator.embed.", "model.discriminator.embed.widen."
"""Both halves read the embeddings; the matrix that brings them to a half's width is its own."""


class Half(NamedTuple):
    """A network of one stack and its tensors by name."""

    network: spec.Network
    tensors: dict[str, Tensor]


def discriminator(network: spec.Network, tensors: Mapping[str, Tensor]) -> Half:
    """The discriminator alone: what later stages train and most of the Hub's classes hold. A single model stays as it is."""
    model = network.model
    if not isinstance(model, spec.Adversaries):
        return Half(network, dict(tensors))
    heads = {name: head for name, head in network.heads.items() if name not in GENERATOR_HEADS}
    names = {name: name.replace("model.discriminator.", "model.", 1) for name in tensors if _kept(name, "discriminator", heads)}
    return Half(spec.Network(model=model.discriminator, heads=heads), {new: tensors[old] for old, new in names.items()})


def generator(network: spec.Network, tensors: Mapping[str, Tensor]) -> Half:
    """The generator alone, with the embeddings: a masked language model. A single model stays as it is."""
    model = network.model
    if not isinstance(model, spec.Adversaries):
        return Half(network, dict(tensors))
    heads = {name: head for name, head in network.heads.items() if name in GENERATOR_HEADS}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(EMBED) and not name.startswith(OWN):
            found[name.replace("model.discriminator.", "model.", 1)] = tensor
        elif name.startswith("model.generator.widen."):
            found[name.replace("model.generator.", "model.embed.", 1)] = tensor
        elif _kept(name, "generator", heads):
            found[name.replace("model.generator.", "model.", 1)] = tensor
    return Half(spec.Network(model=model.generator_model, heads=heads), found)


def _kept(name: str, half: str, heads: Mapping[str, spec.Head]) -> bool:
    return name.startswith(f"model.{half}.") or (name.startswith("heads.") and name.split(".")[1] in heads)

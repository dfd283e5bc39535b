"""How deep a parameter lies: 0 = embeddings, then the layers in the order that a text passes them, last the heads."""

from __future__ import annotations

import re

from torch import nn

from ziggurat.nn import spec

BLOCK = re.compile(r"model\.(?:(\w+)\.)?blocks\.(\d+)\.")
STACK = re.compile(r"model\.(?:(\w+)\.)?final_norm\.")


def layers_of(model: spec.Model) -> dict[str, tuple[int, int]]:
    """Stack -> (depth of its first layer, its layers); one stack is called "". Layers with shared weights count once a group.

    A decoder lies above its encoder; a generator's top is level with the discriminator's.
    """
    if isinstance(model, spec.EncoderDecoder):
        return {"encoder": (1, model.layers), "decoder": (model.layers + 1, model.decoder_layers)}
    if isinstance(model, spec.Adversaries):
        whole, small = model.discriminator.layers, model.generator.layers
        return {"discriminator": (1, whole), "generator": (max(1, whole - small + 1), small)}
    return {"": (1, model.share.groups if model.share else model.layers)}


def top_of(model: spec.Model) -> int:
    """Depth of the heads, which is the greatest: one more than that of the last layer."""
    return max(first + layers for first, layers in layers_of(model).values())


def depths(network: nn.Module, model: spec.Model) -> tuple[dict[str, int], int]:
    """Depth of every parameter by its name, and the depth of the heads."""
    stacks, top = layers_of(model), top_of(model)
    found = {}
    for name, _ in network.named_parameters():
        block, norm = BLOCK.match(name), STACK.match(name)
        if block:
            first, _ = stacks[block[1] or ""]
            found[name] = first + int(block[2])
        elif norm:
            first, layers = stacks[norm[1] or ""]
            found[name] = first + layers - 1
        else:
            found[name] = top if name.startswith("heads.") else 0
    return found, top

"""Where two implementations of one model part: the first module whose output differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ziggurat.nn.network import NetworkModel
from ziggurat.nn.structures import EncoderDecoderModel, SingleModel
from ziggurat.types import Stream

Theirs = Sequence[Tensor] | Mapping[str, Sequence[Tensor]]


@torch.no_grad()
def first_drift(ours: NetworkModel, streams: Mapping[str, Stream], theirs: Theirs, tolerance: float = 1e-4) -> str | None:
    """Name and size of the first difference between our hidden states and `theirs`; None if there is none.

    `theirs`: the embeddings' and every layer's output, [T, width] each, the T tokens in the order of `streams["text"]`
    (`output_hidden_states` of `transformers`, pads removed); of an encoder-decoder such a list for each stream. The last one
    stands behind the final norm, if there is one.
    """
    if isinstance(theirs, Mapping):
        model = ours.model
        assert isinstance(model, EncoderDecoderModel)
        stacks = {name: getattr(model, name) for name in theirs}
        hidden = ours(streams, keep=[f"{name}.blocks.{i}" for name, stack in stacks.items() for i in range(len(stack.order))])
        steps = []
        for name, stack in stacks.items():
            outputs = [(f"{name}.blocks.{i}", hidden[f"{name}.blocks.{i}"]) for i in range(len(stack.order))]
            steps += _ended([(f"{name}.embed", stack.embed(streams[name], model.table)), *outputs], stack, hidden[name])
        theirs = [vectors for name in theirs for vectors in theirs[name]]
    else:
        assert isinstance(ours.model, SingleModel)
        layers = range(len(ours.model.order))
        hidden = ours(streams, keep=[f"blocks.{i}" for i in layers])
        outputs = [(f"blocks.{i}", hidden[f"blocks.{i}"]) for i in layers]
        steps = _ended([("embed", ours.model.embedded(streams["text"])), *outputs], ours.model, hidden["text"])
    for (name, mine), other in zip(steps, theirs, strict=True):
        gap = (mine - other).abs().max().item()
        if not gap <= tolerance:  # a NaN is a drift too
            return f"{name} drifts by {gap:.2g}"
    return None


def _ended(steps: list[tuple[str, Tensor]], stack: torch.nn.Module, last: Tensor) -> list[tuple[str, Tensor]]:
    """The steps of one stack, of which the last is what leaves it."""
    if getattr(stack, "final_norm", None) is not None:
        steps[-1] = (f"{steps[-1][0]} or final_norm", last)
    return steps

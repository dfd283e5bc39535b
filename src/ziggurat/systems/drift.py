"""Where two implementations of one model part: the first module whose output differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ziggurat.nn.network import NetworkModel
from ziggurat.nn.structures import SingleModel
from ziggurat.types import Stream


@torch.no_grad()
def first_drift(
    ours: NetworkModel, streams: Mapping[str, Stream], theirs: Sequence[Tensor], tolerance: float = 1e-4
) -> str | None:
    """Name and size of the first difference between our hidden states and `theirs`; None if there is none.

    `theirs`: the embeddings' and every layer's output, [T, width] each, the T tokens in the order of `streams["text"]`
    (`output_hidden_states` of `transformers`, pads removed). Its last one stands behind the final norm, if there is one.
    """
    assert isinstance(ours.model, SingleModel)
    layers = range(len(ours.model.order))
    hidden = ours(streams, keep=[f"blocks.{i}" for i in layers])
    steps = [("embed", ours.model.embedded(streams["text"])), *((f"blocks.{i}", hidden[f"blocks.{i}"]) for i in layers)]
    if ours.model.final_norm is not None:
        steps[-1] = (f"{steps[-1][0]} or final_norm", hidden["text"])
    for (name, mine), other in zip(steps, theirs, strict=True):
        gap = (mine - other).abs().max().item()
        if not gap <= tolerance:  # a NaN is a drift too
            return f"{name} drifts by {gap:.2g}"
    return None

"""Whether a model uses the text before a token: its loss by the token's place in the example."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from ziggurat.evaluate.heldout import autocast, to_device
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.types import Batch, Target


class Span(NamedTuple):
    """The predictions between two places of an example."""

    start: int
    stop: int
    """The first place after it."""
    loss: float
    """Mean in nats a prediction; nan without one."""
    predictions: float
    """Summed weights of what was asked there."""


@torch.no_grad()
def by_position(
    network: NetworkModel,
    objective: Objective,
    batches: Iterable[Batch],
    name: str,
    edges: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> list[Span]:
    """The loss of target `name` between each two neighbours of `edges` (ascending), over all batches.

    A prediction stands at the position of the row that makes it: in a causal model the token before the one that is said, and what it has seen
    are the tokens up to there.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    sums = np.zeros((len(edges) - 1, 2))
    for batch in batches:
        if name not in batch.targets:
            continue
        place = np.asarray(batch.streams[batch.targets[name].stream].position)
        with autocast(device, dtype):
            asked = objective.asked(network, to_device(batch, device))[name]
            target: Target = asked.target
            at = place[target.index.cpu().numpy()]
            for n, (start, stop) in enumerate(pairwise(edges)):
                rows = torch.from_numpy(np.flatnonzero((at >= start) & (at < stop))).to(device)
                some = replace(target, index=target.index[rows], value=target.value[rows], weight=target.weight[rows])
                loss = network.loss(asked.head, asked.hidden, asked.streams, some)
                sums[n] += float(loss.total), float(loss.count)
    network.train(was_training)
    return [
        Span(start, stop, total / count if count else float("nan"), count)
        for (total, count), (start, stop) in zip(sums.tolist(), pairwise(edges), strict=True)
    ]

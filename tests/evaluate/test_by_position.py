"""The loss by position of packed batches, against each document by itself, prediction by prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ziggurat.context import Context, Layout, Vocab, mix
from ziggurat.data.pack import pack, take
from ziggurat.evaluate.by_position import by_position
from ziggurat.evaluate.heldout import held_out, to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import OBJECTIVES
from ziggurat.systems import model_of
from ziggurat.types import Part, Tokens

VOCAB = Vocab(60, 0, 4, 1, 3, (0, 1, 2, 3, 4))
LENGTH = 24


def tokens(n: int = 14) -> Tokens:
    rng = np.random.default_rng(0)
    bounds = np.concatenate([[0], np.cumsum(rng.integers(4, 60, n))]).astype(np.int64)
    total = int(bounds[-1])
    first = np.ones(total, bool)
    ids = rng.integers(5, 60, total).astype(np.int32)
    part = Part(ids, bounds, first, first, np.zeros((0, 3), np.int64), np.zeros(n + 1, np.int64))
    return Tokens({"text": part}, mix(np.arange(n, dtype=np.uint64)))


@pytest.mark.parametrize("system, kind", [("gpt2", "clm"), ("bert", "mlm"), ("bart", "denoise")])
def test_every_span_has_the_mean_over_its_own_predictions(system: str, kind: str) -> None:
    objective = OBJECTIVES[kind].model_validate({"rate": 0.4} if kind == "mlm" else {})
    model = model_of(f"{system}/tiny", {"layers": 1, "width": 16, "heads": 2, "mlp": 24}, VOCAB.size)
    network = NetworkModel(spec.Network(model=model, heads=dict(objective.heads(model)))).double()
    network.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in network.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64)
    layout = Layout((2,), (3,), (3,))
    if isinstance(model, spec.EncoderDecoder):
        ctx = Context(VOCAB, layout, LENGTH, start=3, streams=("encoder", "decoder"), words=model.words)
    else:
        assert isinstance(model, spec.Single)
        ctx = Context(VOCAB, layout, LENGTH, visibility=model.visibility)
    batch = objective.corrupt(objective.form(tokens(), ctx), ctx)
    packed = pack(batch, dict(objective.rows(ctx)), VOCAB.pad)
    edges = [0, 5, 16, 20, max(objective.rows(ctx).values())]
    found = by_position(network, objective, [packed, packed], kind, edges)
    losses: dict[int, list[float]] = {}
    network.eval()
    with torch.no_grad():
        for d in range(len(batch)):
            alone = to_device(take(batch, np.array([d])), torch.device("cpu"))
            if kind not in alone.targets:
                continue
            target = alone.targets[kind]
            scores = network.logits(objective.head_of(kind), network(alone.streams), alone.streams, target).log_softmax(-1)
            for at, value, row in zip(target.index.tolist(), target.value.tolist(), scores, strict=True):
                losses.setdefault(at, []).append(-float(row[value]))  # alone, a row's number is its position
    for span in found:
        inside = [loss for at, some in losses.items() for loss in some if span.start <= at < span.stop]
        assert span.predictions == 2 * len(inside)
        assert span.loss == pytest.approx(np.mean(inside), rel=1e-9) if inside else math.isnan(span.loss)
    whole = sum(s.loss * s.predictions for s in found if s.predictions) / sum(s.predictions for s in found)
    assert whole == pytest.approx(held_out(network, objective, [packed])[kind], rel=1e-9)
    assert sum(s.predictions > 0 for s in found) >= 3

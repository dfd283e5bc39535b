"""Held-out losses and predictions of packed batches of two streams, against each document by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ziggurat.context import Context, Layout, Vocab, mix
from ziggurat.data.pack import pack, take
from ziggurat.evaluate.heldout import held_out, main_loss, predict, to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import OBJECTIVES
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.types import Part, Tokens

SENTINELS = {f"<extra_id_{n}>": 50 + n for n in range(9)}
VOCAB = Vocab(60, 0, 4, 1, 3, (0, 1, 2, 3, 4, *range(50, 60)), SENTINELS)
LENGTH = 24


def tokens(n: int = 14) -> Tokens:
    rng = np.random.default_rng(0)
    sizes = rng.integers(4, 30, n)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    total = int(bounds[-1])
    first = rng.random(total) < 0.5
    first[bounds[:-1]] = True
    at = np.flatnonzero(first)
    owner = np.searchsorted(bounds, at, side="right") - 1
    start = at - bounds[owner]
    marks = np.stack([start, start + 1, rng.integers(0, 2, len(at))], 1)
    counts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))])
    part = Part(rng.integers(5, 50, total).astype(np.int32), bounds, first, first, marks, counts, ("O", "B"))
    fields = {"label": rng.choice(["a", "b"], n).tolist(), "id": [str(i) for i in range(n)]}
    return Tokens({"text": part}, mix(np.arange(n, dtype=np.uint64)), fields)


@pytest.mark.parametrize("system", ["t5", "bart", "mass"])
@pytest.mark.parametrize("kind", ["own", "classify", "tag"])
def test_packed_rows_answer_as_single_documents(system: str, kind: str) -> None:
    about: dict[str, Any] = {"classify": {"labels": ["a", "b"]}, "tag": {"labels": ["O", "B"]}}.get(kind, {})
    objective = OBJECTIVES[SYSTEMS[system].objective["kind"] if kind == "own" else kind].model_validate(about)
    model = model_of(f"{system}/tiny", {"layers": 1, "width": 16, "heads": 2, "mlp": 24}, VOCAB.size)
    assert isinstance(model, spec.EncoderDecoder)
    network = NetworkModel(spec.Network(model=model, heads=dict(objective.heads(model)))).double()
    network.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in network.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=torch.float64)
    start = {"pad": VOCAB.pad, "end": 3, "first": 2}[model.start]
    layout = Layout((2,), (3,), (3,))
    ctx = Context(VOCAB, layout, LENGTH, start=start, streams=("encoder", "decoder"), words=model.words)
    batch = objective.corrupt(objective.form(tokens(), ctx), ctx)
    packed = pack(batch, dict(objective.rows(ctx)), VOCAB.pad)
    found = held_out(network, objective, [packed])
    sums: dict[str, np.ndarray] = {}
    network.eval()
    with torch.no_grad():
        for d in range(len(batch)):
            alone = to_device(take(batch, np.array([d])), torch.device("cpu"))
            hidden = network(alone.streams)
            for name, target in alone.targets.items():
                loss = network.loss(objective.head_of(name), hidden, alone.streams, target)
                right = (network.logits(objective.head_of(name), hidden, alone.streams, target).argmax(-1) == target.value).sum()
                sums[name] = sums.get(name, np.zeros(3)) + np.array([float(loss.total), float(right), float(loss.count)])
    want = {name: total / count for name, (total, _, count) in sums.items()}
    want |= {f"{name}_accuracy": right / count for name, (_, right, count) in sums.items()}
    assert found == pytest.approx(want, rel=1e-9)
    if kind == "own":
        return
    predictions = predict(network, objective, [packed])
    right = sum(np.sum(np.asarray(g) == np.asarray(p)) for g, p in zip(predictions.gold, predictions.predicted, strict=True))
    assert len(predictions.gold) == len(batch) and right / sums[kind][2] == pytest.approx(want[f"{kind}_accuracy"])


def test_the_order_of_sentences_is_no_language_model_loss() -> None:
    assert main_loss({"sop": 0.69, "sop_accuracy": 0.5, "mac": 5.7, "mac_accuracy": 0.1}) == "mac"
    assert main_loss({"nsp": 0.6, "word_order": 4.0, "mlm": 5.0}) == "mlm" and main_loss({"sop": 0.6}) == "sop"
    assert main_loss({"bits_per_byte": 2.0, "mac_accuracy": 0.1}) == ""

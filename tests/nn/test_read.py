"""Rows that nobody reads are not computed, and nothing that is read changes: losses and gradients, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ziggurat.nn.network import NetworkModel
from ziggurat.nn.spec import ClassHead, Network, PoolerHead, VocabHead
from ziggurat.systems import SYSTEMS
from ziggurat.types import CAUSAL, FULL, Batch, Stream, text_target

LENGTHS = (7, 1, 12, 4, 8, 16)
ROW, VOCAB = 16, 31


def batch(causal: bool, share: float) -> Batch:
    """Three rows of 16 tokens; token predictions at `share` of the tokens, and a document prediction for two documents."""
    rng = np.random.default_rng(0)
    total = sum(LENGTHS)
    position = np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32)
    ids = rng.integers(0, VOCAB, total).astype(np.int32)
    bounds = np.concatenate([[0], np.cumsum(LENGTHS)])
    stream = Stream(ids, bounds, position, np.zeros(total, np.int32), CAUSAL if causal else FULL, row=ROW)
    at = np.flatnonzero(rng.random(total) < share)
    targets = {"lm": text_target(at, ids[at]), "pick": text_target(np.array([2, 5]), np.array([0, 2]), at="document")}
    return Batch({"text": stream}, targets, np.arange(len(LENGTHS), dtype=np.uint64)).map(torch.from_numpy)


def network(system: str) -> NetworkModel:
    model = SYSTEMS[system].sized("tiny", {"layers": 2, "width": 16, "heads": 2, "mlp": 32}, VOCAB)
    by = model.pool.by
    heads = {"lm": VocabHead(), "pick": ClassHead(outputs=3, by=by), **({"pooler": PoolerHead()} if by == "pooler" else {})}
    net = NetworkModel(Network(model=model, heads=heads))
    net.initialise(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net.double()


def answers(net: NetworkModel, data: Batch, read: Any) -> tuple[list[float], dict[str, torch.Tensor], torch.Tensor]:
    net.zero_grad(set_to_none=True)
    hidden = net(data.streams, read=read)
    losses = [net.loss(name, hidden, data.streams, target).total for name, target in data.targets.items()]
    torch.stack(losses).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return [float(loss.detach()) for loss in losses], gradients, hidden["text"].detach()


@pytest.mark.parametrize("system", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
def test_reading_few_rows_gives_the_same_losses_and_gradients(system: str, share: float) -> None:
    net, data = network(system), batch(system == "gpt2", share)
    read = net.read(data.streams, data.targets.values())
    few, gradients, hidden = answers(net, data, read)
    whole, expected, complete = answers(net, data, None)
    assert few == pytest.approx(whole, rel=1e-12)
    assert set(gradients) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hidden[read["text"]], complete[read["text"]], rtol=1e-9, atol=1e-12)
    if share < 0.5:  # else all rows are computed, and this compares nothing
        untouched = np.setdiff1d(np.arange(len(hidden)), read["text"].numpy())
        assert (hidden[untouched] == 0).all() and (complete[untouched] != 0).any(1).all()


def test_rows_read_are_those_of_all_targets_once() -> None:
    net, data = network("bert"), batch(False, 0.3)
    lm = data.targets["lm"]
    twice = replace(lm, index=torch.cat([lm.index, lm.index]))
    first = np.cumsum((0, *LENGTHS))[[2, 5]]
    found = net.read(data.streams, [lm, twice, data.targets["pick"]])
    assert found["text"].tolist() == sorted({*lm.index.tolist(), *first.tolist()})

"""Laws of the loss, for every objective on every system: how a batch is packed, split or accumulated changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import CPU, VOCAB, context, every_case, every_system, made, network_of, objective_of, part_of, rows_of, torched
from pydantic import TypeAdapter

from ziggurat.context import mix
from ziggurat.data.pack import examples_of, pack, take
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import AnyObjective, Objective
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.train.loop import backward
from ziggurat.types import Batch, Tokens, join


def numbers(objective: Objective, network: NetworkModel, batch: Batch) -> dict[str, tuple[float, float]]:
    with torch.no_grad():
        return {name: (float(x.total), float(x.count)) for name, x in objective.losses(network, torched(batch)).items()}


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Two parts of uneven size and uneven counts; no example is divided."""
    example = examples_of(batch)
    cut = int(np.searchsorted(example, example[len(batch) // 3]))
    return take(batch, np.arange(cut)), take(batch, np.arange(cut, len(batch)))


@every_case
def test_losses_of_a_joined_batch_are_the_sums_of_its_parts(name: str, system: str) -> None:
    objective = objective_of(name)
    network = network_of(system, objective)
    whole = made(name, system)
    a, b = halves(whole)
    sums: dict[str, np.ndarray] = {}
    for piece in a, b:
        for key, loss in numbers(objective, network, piece).items():
            sums[key] = sums.get(key, np.zeros(2)) + loss
    layouts = {
        "joined": join(a, b),
        "packed": pack(whole, rows_of(name, system), VOCAB.pad),
        "wide": pack(whole, rows_of(name, system, 5), VOCAB.pad),
    }
    layouts["backwards"] = take(whole, np.arange(len(whole))[::-1])
    for how, batch in layouts.items():
        found = numbers(objective, network, batch)
        assert set(found) == set(sums)
        for key in sums:
            assert found[key] == pytest.approx(tuple(sums[key]), rel=1e-11), how
    counts = objective.counts(whole)
    assert {key: counts[key] for key in sums} == {key: value[1] for key, value in sums.items()}


def gradient(network: NetworkModel, objective: Objective, micro: Sequence[Batch]) -> tuple[torch.Tensor, dict[str, float]]:
    network.zero_grad()
    means = backward(network, objective, list(micro), CPU, torch.float32)  # no autocast: the network computes in float64
    return flat(network), means


def flat(network: NetworkModel) -> torch.Tensor:
    """All gradients end to end; 0 where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()])


@every_case
def test_accumulation_is_the_big_batch(name: str, system: str) -> None:
    """Two micro-batches of uneven counts give the gradient of both at once; a mean of their means would not."""
    objective = objective_of(name)
    network = network_of(system, objective)
    whole = made(name, system)
    a, b = (pack(half, rows_of(name, system), VOCAB.pad) for half in halves(whole))
    assert objective.counts(a) != objective.counts(b)
    together, means = gradient(network, objective, [whole])
    network.zero_grad()
    losses = objective.losses(network, torched(whole))
    weights = objective.step_weights(objective.counts(whole))
    sum(weights[key] * total / count for key, (total, count) in losses.items()).backward()
    written_out = flat(network)
    torch.testing.assert_close(together, written_out, rtol=1e-9, atol=1e-12)
    split, split_means = gradient(network, objective, [a, b])
    assert float((split - together).norm()) < 1e-10 * float(together.norm())
    assert split_means == pytest.approx(means, rel=1e-10)
    of_means = (gradient(network, objective, [a])[0] + gradient(network, objective, [b])[0]) / 2
    assert float((of_means - together).norm()) > 1e-3 * float(together.norm())
    by_hand = {key: total / count for key, (total, count) in numbers(objective, network, whole).items()}
    by_hand["loss"] = sum(weights[key] * value for key, value in by_hand.items())
    assert means == pytest.approx(by_hand, rel=1e-10)


def test_a_micro_batch_without_questions_changes_nothing() -> None:
    objective = objective_of("joint-order")
    network = network_of("bert", objective)
    whole = made("joint-order")
    silent = Batch(whole.streams, {k: replace(t, index=t.index[:0], value=t.value[:0], weight=t.weight[:0]) for k, t in whole.targets.items()}, whole.keys)  # fmt: skip
    alone, _ = gradient(network, objective, [whole])
    for micro in [whole, silent], [silent, whole]:
        torch.testing.assert_close(gradient(network, objective, micro)[0], alone, rtol=1e-12, atol=1e-14)


@every_system
def test_each_system_memorises(system: str) -> None:
    """64 tokens, under the system's own objective, in fewer than 200 steps: no gradient is dead."""
    objective = TypeAdapter(AnyObjective).validate_python(SYSTEMS[system].objective)
    body = model_of(f"{system}/tiny", {"layers": 2, "width": 32, "heads": 2, "mlp": 64}, VOCAB.size)
    network = NetworkModel(spec.Network(model=body, heads=dict(objective.heads(body))))
    network.initialise(torch.Generator().manual_seed(0))
    rng = np.random.default_rng(3)
    block = Tokens({"text": part_of(rng, np.full(8, 12))}, mix(np.arange(8, dtype=np.uint64)))
    ctx = context(system)
    every = objective.corrupt(objective.form(block, ctx), ctx)
    most = 3 * 64 if system == "prophetnet_lm" else 64  # two rows more for each token
    kept = int(np.searchsorted(sum(stream.bounds for stream in every.streams.values()), most, side="right")) - 1
    batch = take(every, np.arange(kept))
    least = 0 if system == "unilm" else 2  # whether B follows A is asked of one example in three
    assert 0.68 * most < batch.live_tokens() <= most and all(len(t.index) > least for t in batch.targets.values())
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.0)
    start = loss = backward(network, objective, [batch], CPU, torch.float32)["loss"]
    optimizer.zero_grad()
    steps = 0
    while loss > 0.02 and steps < 199:
        loss = backward(network, objective, [batch], CPU, torch.float32)["loss"]
        assert all(p.grad is not None for p in network.parameters())
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    assert start > 3 and loss <= 0.02

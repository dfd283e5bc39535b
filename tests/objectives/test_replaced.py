"""Replaced token detection against ELECTRA's rule, restated slowly: one document, one token, one draw at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from blocks import MASK, VOCAB, batch_of, context, keys, random_documents, tokens
from lawful import check_laws
from torch import Tensor

from ziggurat.context import Context
from ziggurat.data.pack import pack, take
from ziggurat.errors import UserError
from ziggurat.evaluate.heldout import held_out, to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Asked
from ziggurat.objectives.replaced import Replaced, sampled
from ziggurat.systems import model_of
from ziggurat.train.loop import backward
from ziggurat.types import DEAD, Batch, Target

CPU = torch.device("cpu")
DIALS = {"layers": 2, "width": 16, "heads": 2, "mlp": 24, "embedding": 12, "generator_width": 8, "generator_heads": 2}


def number(ctx: Context, key: Any, n: int, purpose: str) -> float:
    return float(ctx.uniform(np.array([key]), np.zeros(1, np.int64), np.array([n]), purpose)[0])


def network_of(objective: Replaced | None = None, seed: int = 0, shake: float = 0.3, **more: Any) -> NetworkModel:
    body = model_of("electra/tiny", {**DIALS, **more}, VOCAB.size)
    network = NetworkModel(spec.Network(model=body, heads=dict((objective or Replaced()).heads(body)))).double()
    generator = torch.Generator().manual_seed(seed)
    network.initialise(generator)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(shake * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return network.eval()


def formed(seed: int = 0, n: int = 9) -> Batch:
    rng = np.random.default_rng(seed)
    return Replaced().form(tokens(random_documents(rng, n), seed), context(20))


@pytest.mark.parametrize("more", [{}, {"unit": "word", "rate": 0.4}, {"intact": 0.5, "rate": 0.5}, {"unit": "span", "rate": 0.3}])
def test_the_laws_and_what_is_drawn(more: dict[str, Any]) -> None:
    """Of each document a rounded share of its length is drawn, none twice and no special token; all of it is masked but the intact
    share; the generator must say every drawn token, the discriminator answers at every token; each drawn token has its number."""
    objective, ctx = Replaced(**more), context(20, seed=3)
    rng = np.random.default_rng(1)
    block = tokens(random_documents(rng, 12), 1)
    done = check_laws(objective, block, ctx)
    before, stream = objective.form(block, ctx).streams["text"], done.streams["text"]
    lm, rtd = done.targets["lm"], done.targets["rtd"]
    assert rtd.index.tolist() == list(range(len(stream.content))) and not rtd.value.any() and (rtd.weight == 1).all()
    assert lm.value.tolist() == before.content[lm.index].tolist() and lm.noise is not None and lm.noise.dtype == np.float64
    noise = dict(zip(lm.index.tolist(), lm.noise.tolist(), strict=True))
    assert len(noise) == len(lm.index)  # no place twice
    for d, (low, high) in enumerate(pairwise(before.bounds.tolist())):
        free = [i for i in range(low, high) if before.unit is not None and before.unit[i] >= 0]
        mine = [i for i in range(low, high) if i in noise]
        wanted = min(max(1, round(objective.rate * (high - low))), len(free))  # type: ignore[operator]
        assert set(mine) <= set(free)
        assert len(mine) == wanted if objective.unit == "token" else len(mine) <= wanted
        if objective.unit == "token":
            ranked = sorted(free, key=lambda i: number(ctx, done.keys[d], i - low, "mlm.choose"))
            assert mine == sorted(ranked[:wanted])
        for i in range(low, high):
            masked = i in noise and number(ctx, done.keys[d], i - low, "rtd.replace") < 1 - objective.intact
            assert stream.content[i] == (MASK if masked else before.content[i])
        assert all(noise[i] == number(ctx, done.keys[d], i - low, "rtd.sample") for i in mine)


def test_the_released_codes_intact_share() -> None:
    batch = batch_of([[-1, *range(400), -1]] * 50)
    done = Replaced(rate=0.5, intact=0.15).corrupt(batch, context(402))
    at = done.targets["lm"].index
    kept = (done.streams["text"].content[at] != MASK).mean()
    assert len(at) == 50 * 201 and abs(kept - 0.15) < 4 * np.sqrt(0.15 * 0.85 / len(at))
    assert (Replaced().corrupt(batch, context(402)).streams["text"].content == MASK).sum() == 50 * 60


def test_padding_is_asked_nothing() -> None:
    done = Replaced().corrupt(pack(formed(), 24, 0), context(20))
    dead = np.repeat(done.keys == DEAD, done.streams["text"].lengths)
    assert dead.any() and set(done.targets["rtd"].index.tolist()) == set(np.flatnonzero(~dead).tolist())
    assert Replaced().counts(done) == {"lm": len(done.targets["lm"].index), "rtd": (~dead).sum()}


def test_it_needs_a_mask_and_two_halves() -> None:
    with pytest.raises(UserError, match="needs a mask token"):
        Replaced().needs(replace(context(), vocab=replace(VOCAB, mask=None)))
    assert "adversaries" in Replaced().misfits(model_of("bert/tiny"))[0]
    assert not Replaced().misfits(model_of("electra/tiny"))


class Fixed:
    """A network whose scores over the vocabulary are given, for every row alike."""

    def __init__(self, scores: Tensor):
        self.scores = scores

    def logits(self, name: str, hidden: Any, streams: Any, target: Target) -> Tensor:
        return self.scores.expand(len(target.index), -1)


def test_samples_follow_the_generators_distribution() -> None:
    """100,000 draws by the keyed numbers of as many tokens: each id as often as its probability says, and as a slow walk up the
    distribution function finds it."""
    count = 100_000
    scores = torch.tensor([0.0, 2.0, -30.0, 1.0, -1.0, 3.0, 0.5, -2.0], dtype=torch.float64)
    ctx = context(seed=11)
    owner = np.repeat(np.arange(200), count // 200)
    noise = ctx.uniform(keys(200), owner, np.arange(count) % (count // 200), "rtd.sample")
    target = Target(
        "text", *(torch.zeros(count, dtype=torch.long) for _ in range(2)), torch.ones(count), noise=torch.tensor(noise)
    )
    ids = sampled(Fixed(scores), Asked("lm", {}, {}, target))  # type: ignore[arg-type]
    p = np.exp(scores.numpy()) / np.exp(scores.numpy()).sum()
    found = np.bincount(ids.numpy(), minlength=len(p)) / count
    assert np.all(np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / count) + 1e-12) and found[2] == 0
    for n in range(0, count, 997):
        below, walk = 0.0, 0
        while below + p[walk] <= noise[n]:
            below += p[walk]
            walk += 1
        assert ids[n] == walk
    edges = replace(target, index=target.index[:2], noise=torch.tensor([0.0, np.nextafter(1.0, 0.0)]))
    assert sampled(Fixed(scores), Asked("lm", {}, {}, edges)).tolist() == [0, 7]  # type: ignore[arg-type]


@torch.no_grad()
def by_hand(network: NetworkModel, before: Batch, batch: Batch) -> tuple[float, float, list[int], list[int]]:
    """The paper's rule for one batch, document by document: the losses' totals, the discriminator's input and its labels."""
    halves: Any = network.model
    lm = rtd = 0.0
    seen: list[int] = []
    labels: list[int] = []
    target = batch.targets["lm"]
    asked = dict(zip(target.index.tolist(), target.noise.tolist(), strict=True))  # type: ignore[union-attr]
    for d in range(len(batch)):
        low, high = batch.streams["text"].bounds[d : d + 2].tolist()
        alone = to_device(take(Batch(batch.streams, {}, batch.keys), np.array([d])), CPU).streams["text"]
        original = before.streams["text"].content[low:high].tolist()
        head: Any = network.heads["lm"]
        vectors = head(halves.generator({"text": alone})["text"])
        chances = (vectors @ network.model.table.T + head.bias).softmax(-1).tolist()
        mine, put_in = list(original), [0] * len(original)
        for i in range(len(original)):
            if low + i not in asked:
                continue
            lm -= np.log(chances[i][original[i]])
            below, walk = chances[i][0], 0
            while asked[low + i] >= below:
                walk += 1
                below += chances[i][walk]
            mine[i], put_in[i] = walk, int(walk != original[i])
        filled = replace(alone, content=torch.tensor(mine))
        scores: Any = network.heads["rtd"](halves.discriminator({"text": filled})["text"])
        chance = torch.sigmoid(scores[:, 0]).tolist()
        rtd -= sum(np.log(c if label else 1 - c) for c, label in zip(chance, put_in, strict=True))
        seen += mine
        labels += put_in
    return lm, rtd, seen, labels


@pytest.mark.parametrize("intact", [0.0, 0.4])
def test_losses_are_the_papers(intact: float) -> None:
    objective, ctx = Replaced(rate=0.4, intact=intact), context(20)
    before = formed()
    batch = objective.corrupt(before, ctx)
    network = network_of(objective)
    lm, rtd, seen, labels = by_hand(network, before, batch)
    asked = objective.asked(network, to_device(batch, CPU))
    assert asked["rtd"].streams["text"].content.tolist() == seen
    assert asked["rtd"].target.value.tolist() == labels and 0 < sum(labels) < len(batch.targets["lm"].index)
    with torch.no_grad():
        losses = objective.losses(network, to_device(batch, CPU))
    assert float(losses["lm"].total) == pytest.approx(lm, rel=1e-10)
    assert float(losses["rtd"].total) == pytest.approx(rtd, rel=1e-10)
    assert {name: float(loss.count) for name, loss in losses.items()} == objective.counts(batch)
    means = backward(network, objective, [batch], CPU, torch.float32)
    counts = objective.counts(batch)
    assert means["loss"] == pytest.approx(lm / counts["lm"] + 50 * rtd / counts["rtd"], rel=1e-10)


def test_a_lucky_sample_counts_as_the_original() -> None:
    """A generator that is sure of one id: where that id stood, its filling is no replacement."""
    objective = Replaced(rate=0.5)
    network = network_of(objective, shake=0.0)
    before = formed()
    batch = objective.corrupt(before, context(20))
    favourite = int(np.bincount(batch.targets["lm"].value).argmax())
    with torch.no_grad():
        network.heads["lm"].bias[favourite] = 100.0  # type: ignore[index, operator]
    asked = objective.asked(network, to_device(batch, CPU))["rtd"]
    at = batch.targets["lm"].index
    assert (asked.streams["text"].content[at] == favourite).all()
    assert asked.target.value[at].tolist() == (batch.targets["lm"].value != favourite).astype(int).tolist()
    assert asked.target.value.sum() == (batch.targets["lm"].value != favourite).sum()


def test_no_gradient_flows_from_the_discriminator_into_the_generator() -> None:
    objective = Replaced(rate=0.4)
    network, batch = network_of(objective), to_device(objective.corrupt(formed(), context(20)), CPU)
    for name, moved in (("rtd", ("model.discriminator.", "heads.rtd.")), ("lm", ("model.generator.", "heads.lm."))):
        network.zero_grad(set_to_none=True)
        objective.losses(network, batch)[name].total.backward()
        touched = {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        shared = {key for key in touched if key.startswith("model.discriminator.embed.") and ".widen." not in key}
        assert shared and all(key.startswith(moved) for key in touched - shared)
        assert any(key.startswith(moved[0]) for key in touched - shared) and any(key.startswith(moved[1]) for key in touched)


def test_accumulation_is_the_big_batch() -> None:
    """Samples hang on the documents' keys: three micro-batches draw what one draws, and give its gradient."""
    objective, ctx = Replaced(rate=0.3), context(20)
    network = network_of(objective)
    whole = objective.corrupt(formed(n=12), ctx)
    parts = [pack(take(whole, np.arange(a, b)), 30, 0) for a, b in ((0, 2), (2, 7), (7, len(whole)))]
    gradients = []
    for micro in ([whole], parts):
        network.zero_grad()
        means = backward(network, objective, micro, CPU, torch.float32)
        gradients.append((torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]), means))
    (one, means), (many, split) = gradients
    assert float((one - many).norm()) < 1e-10 * float(one.norm()) and split == pytest.approx(means, rel=1e-10)


@pytest.mark.parametrize("more", [{}, {"embedding": 16}, {"generator_width": 12}])
def test_both_halves_memorise(more: dict[str, Any]) -> None:
    """A small text: the generator fills it without a mistake, and the discriminator says of every token what it is. Before that there are
    many replacements, and it finds most of them."""
    objective = Replaced(rate=0.3)
    torch.manual_seed(0)
    network = network_of(objective, shake=0.0, **more).float().train()
    batch = objective.corrupt(formed(n=4), context(20))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    seen = []
    for step in range(600):
        means = backward(network, objective, [batch], CPU, torch.float32)
        optimizer.step()
        optimizer.zero_grad()
        if step in (0, 40, 599):
            seen.append(held_out(network, objective, [batch]))
            assert network.training
    assert seen[0]["lm"] > 3 and seen[0]["rtd"] > 0.3
    assert seen[-1]["lm"] < 0.05 and seen[-1]["rtd"] < 0.04 and means["loss"] < 1
    assert seen[-1]["lm_accuracy"] == 1 and seen[-1]["rtd_accuracy"] == 1
    assert seen[1].get("rtd_f1", 0) > 0.5


def test_held_out_scores_are_counted() -> None:
    """Accuracy and F1 of the replaced ones, counted one by one, over batches of uneven size."""
    objective = Replaced(rate=0.4)
    network = network_of(objective)
    batches = [objective.corrupt(formed(seed, n), context(20)) for seed, n in ((1, 5), (2, 2))]
    found = held_out(network, objective, batches)
    said, true, lm_right, lm_count = [], [], 0.0, 0
    with torch.no_grad():
        for batch in batches:
            for name, asked in objective.asked(network, to_device(batch, CPU)).items():
                scores = network.logits(asked.head, asked.hidden, asked.streams, asked.target)
                if name == "rtd":
                    said += (scores[:, 0] > 0).tolist()
                    true += (asked.target.value == 1).tolist()
                else:
                    lm_right += float((scores.argmax(-1) == asked.target.value).sum())
                    lm_count += len(scores)
    hits = sum(a and b for a, b in zip(said, true, strict=True))
    assert 0 < hits < sum(true) and set(found) == {"lm", "lm_accuracy", "rtd", "rtd_accuracy", "rtd_f1"}
    assert found["rtd_accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(said, true, strict=True)]))
    precision, recall = hits / sum(said), hits / sum(true)
    assert found["rtd_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["lm_accuracy"] == pytest.approx(lm_right / lm_count)

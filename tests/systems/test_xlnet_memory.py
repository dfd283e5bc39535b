"""Training with a memory against the Hub's XLNet, one example at a time with its `mems`: losses, gradients, and what is remembered.

The Hub's side is told by lists of examples which text goes on where; it knows nothing of tracks, packing or keys.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_xlnet import CPU, LAYERS, LAYOUT, TOLERANCE, VOCAB, alone, corpus, ours, theirs
from torch import Tensor

from ziggurat.context import Context
from ziggurat.data.loader import Loader, once
from ziggurat.evaluate.heldout import held_out
from ziggurat.nn.memory import Recall
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import Causal, Objective, Permuted
from ziggurat.objectives.mixture import some_texts
from ziggurat.systems import find
from ziggurat.train.loop import backward
from ziggurat.types import DEAD, Batch, Tokens

SIZES = [70, 9, 33, 128, 24, 60, 5, 41, 90, 12, 24, 55]


class Corpus:
    """Documents in memory, as the loader reads them."""

    folder, parts = Path("memory"), ("text",)

    def __init__(self, sizes: list[int] = SIZES, seed: int = 0):
        self.all: Tokens = corpus(sizes, seed)
        self.tokens = len(self.all.parts["text"].ids)

    def __len__(self) -> int:
        return len(self.all)

    def lengths(self, part: str, documents: np.ndarray) -> np.ndarray:
        return np.diff(self.all.parts[part].bounds)[documents]

    def read(self, documents: np.ndarray) -> Tokens:
        return some_texts(self.all, documents)


def loader(objective: Objective, ctx: Context, tokens: int, contiguous: int, sizes: list[int] = SIZES) -> Loader:
    row = objective.rows(ctx)
    rows = tokens * row["text"]
    return Loader({"": Corpus(sizes)}, {"": 1.0}, objective, ctx, row=row, tokens=rows, contiguous=contiguous, ahead=False)


def text_of(batch: Batch, d: int) -> list[int]:
    """The tokens of text of an example, without special ones and queries."""
    s = batch.streams["text"]
    lo, hi = s.bounds[d : d + 2]
    return [int(i) for i in s.content[lo:hi] if i >= 0 and int(i) not in VOCAB.special]


def first_text(batch: Batch, d: int) -> int:
    """Tokens of the first text of an example."""
    s = batch.streams["text"]
    lo, hi = s.bounds[d : d + 2]
    return len(list(takewhile(lambda i: i >= 0 and int(i) not in VOCAB.special, s.content[lo:hi])))


class Slow:
    """The Hub's model, an example at a time, and what each example left: the states of all layers, [tokens, 1, width]."""

    def __init__(self, model: Any, length: int, reuse: int):
        self.model, self.length, self.reuse = model, length, reuse
        model.transformer.mem_len = 0  # the Hub's word for: all of it
        self.left: dict[int, list[Tensor]] = {}
        self.widths: list[int] = []

    def loss(self, batch: Batch, d: int, before: int) -> Tensor:
        """The summed loss of one example that goes on from the one with key `before`."""
        mems = self.left.get(before)
        self.widths.append(0 if mems is None else len(mems[0]))
        ids, given, answers = self.inputs(batch, d)
        out = self.model(**given, mems=mems, use_mems=True)
        text = [i for i, token in enumerate(ids) if token not in VOCAB.special][: self.reuse or None]
        self.left[int(batch.keys[d])] = [
            torch.cat([mem[: -len(ids)], mem[-len(ids) :][text]])[-self.length :].detach() for mem in out.mems
        ]
        return torch.nn.functional.cross_entropy(out.logits[0, : len(answers)], torch.tensor(answers), reduction="sum")

    def inputs(self, batch: Batch, d: int) -> tuple[list[int], dict[str, Tensor], list[int]]:
        if "plm" in batch.targets:
            one, target = alone(batch, d), batch.targets["plm"]
            mine = np.searchsorted(batch.streams["text"].bounds, target.index, side="right") - 1 == d
            return one.ids.tolist(), one.inputs(), target.value[mine].tolist()
        s = batch.streams["text"]
        ids = s.content[s.bounds[d] : s.bounds[d + 1]].tolist()
        return ids, {"input_ids": torch.tensor([ids]), "token_type_ids": torch.zeros(1, len(ids), dtype=torch.long)}, ids[1:]


def gradients(model: Any, network: NetworkModel) -> dict[str, Tensor]:
    """The Hub's, under our names."""
    page = find("xlnet")
    assert page is not None
    named = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return page.named(["lm"], network.spec.model).bind(heads=4).to_ours(named)


CASES: dict[str, tuple[Objective, str, int]] = {
    "windows": (Permuted(pairs=False, rate=0.25), "bi", 20),
    "windows-reuse": (Permuted(pairs=False, rate=0.25, reuse=9, reverse=0), "bi", 20),
    "pairs-reuse": (Permuted(reuse=10, rate=0.25, random=0.7), "bi", 14),
    "causal": (Causal(), "uni", 40),
}


@pytest.mark.parametrize("contiguous", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_hub_one_example_at_a_time(name: str, contiguous: int, tmp_path: Path) -> None:
    objective, kind, length = CASES[name]
    model = theirs(seed=8, attn_type=kind)
    network = ours(model, tmp_path)
    ctx = Context(VOCAB, LAYOUT, 24, seed=3)
    stream = iter(loader(objective, ctx, 2, contiguous))
    recall, slow = Recall(length, contiguous), Slow(model, length, getattr(objective, "reuse", 0))
    forgetting = 0.0
    for _ in range(5):
        micro = list(islice(stream, contiguous))
        network.zero_grad()
        model.zero_grad()
        means = backward(network, objective, micro, CPU, torch.float32, recall)
        total, count = torch.zeros(()), sum(len(t.index) for b in micro for t in b.targets.values())
        for batch in micro:
            assert batch.before is not None
            for d in np.flatnonzero(batch.alive):
                total = total + slow.loss(batch, int(d), int(batch.before[d]))
        (total / count).backward()
        assert means["loss"] == pytest.approx(float(total.detach()) / count, abs=2e-5)
        wanted = gradients(model, network)
        for key, p in network.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(p.grad, wanted[key], atol=2e-4 * float(wanted[key].abs().max()) + 1e-7, rtol=1e-3)
        without = backward(network, objective, micro, CPU, torch.float32)["loss"]
        forgetting = max(forgetting, abs(without - means["loss"]))
    assert forgetting > 0.02 and max(slow.widths) == length  # the memory says something, and was filled
    following = {int(b) for batch in islice(stream, contiguous) if batch.before is not None for b in batch.before} - {int(DEAD)}
    assert following
    for keys, memory in recall.left:  # what is remembered is what the Hub has
        for d, key in enumerate(keys.tolist()):
            if key in following:
                lo, hi = memory.bounds[d : d + 2].tolist()
                for layer in range(LAYERS):
                    torch.testing.assert_close(memory.hidden[layer][lo:hi], slow.left[key][layer][:, 0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_every_text_goes_on_where_it_stopped(name: str) -> None:
    """In the stream of micro-batches, by lists of tokens: an example begins with the token behind what its predecessor leaves, and that
    one came one step earlier; nothing goes on from another text."""
    objective, _, _ = CASES[name]
    ctx, reuse = Context(VOCAB, LAYOUT, 24, seed=1), getattr(objective, "reuse", 0)
    source = Corpus().all.parts["text"]
    texts = [source.ids[a:b].tolist() for a, b in zip(source.bounds[:-1], source.bounds[1:], strict=True)]
    stream = iter(loader(objective, ctx, 2, 2))
    left: list[dict[int, list[int]]] = []
    followed = 0
    for batch in islice(stream, 60):
        assert batch.before is not None
        now = {}
        for d in np.flatnonzero(batch.alive).tolist():
            text, before = text_of(batch, d), int(batch.before[d])
            now[int(batch.keys[d])] = text[: reuse or None]
            if before != int(DEAD):
                past = next(found[before] for found in left[-2:] if before in found)
                followed += 1
                both = past + text[: min(5, first_text(batch, d))]
                runs = (t[i : i + len(both)] for whole in texts for t in (whole, whole[::-1]) for i in range(len(whole)))
                assert both in runs
        left.append(now)
    assert followed > 60


def test_two_micro_batches_are_one_big_batch(tmp_path: Path) -> None:
    """Step by step the same examples with the same memories, so the same gradient."""
    objective = Permuted(pairs=False, rate=0.25)
    network, ctx = ours(theirs(seed=9), tmp_path), Context(VOCAB, LAYOUT, 24, seed=3)
    halves, wholes = iter(loader(objective, ctx, 2, 2)), iter(loader(objective, ctx, 4, 1))
    two, one = Recall(30, 2), Recall(30)
    for _ in range(5):
        micro, big = list(islice(halves, 2)), next(wholes)
        assert sorted(int(k) for b in micro for k in b.keys) == sorted(big.keys.tolist())
        found = []
        for batches, recall in ((micro, two), ([big], one)):
            network.zero_grad()
            means = backward(network, objective, batches, CPU, torch.float32, recall)
            found.append((means["loss"], torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])))
        assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
        torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-3)


def test_no_memory_of_another_text(tmp_path: Path) -> None:
    """What an example leaves depends on the text before the next one alone, in pairs too, whose B comes from elsewhere."""
    network, ctx = ours(theirs(seed=10), tmp_path), Context(VOCAB, LAYOUT, 24, seed=3)
    objective = Permuted(reuse=10, rate=0.25, random=1, reverse=0)
    batches = list(islice(iter(loader(objective, ctx, 2, 1)), 12))

    def remembered(change: int) -> dict[int, list[Tensor]]:
        """What each example leaves, when every token is changed that no memory holds: every B, every example that fills a row."""
        recall, found = Recall(40), {}
        for batch in batches:
            s = batch.streams["text"]
            held = objective.remembered(batch)
            content = s.content.copy()
            other = ~held & (content >= 9)
            content[other] = 9 + (content[other] - 9 + change) % (VOCAB.size - 9)
            changed = replace(batch, streams={"text": replace(s, content=content)})
            backward(network, objective, [changed], CPU, torch.float32, recall)
            keys, memory = recall.left[-1]
            for d, key in enumerate(keys.tolist()):
                lo, hi = memory.bounds[d : d + 2].tolist()
                found[key] = [layer[lo:hi] for layer in memory.hidden]
        return found

    one, two = remembered(0), remembered(7)
    full = {int(b) for batch in batches if batch.before is not None for b in batch.before} - {int(DEAD)}
    assert len(full) > 8
    for key in full & one.keys():
        for a, b in zip(one[key], two[key], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_held_out_losses_with_a_memory(tmp_path: Path) -> None:
    model = theirs(seed=11)
    network, objective = ours(model, tmp_path), Permuted(pairs=False, rate=0.25)
    ctx = Context(VOCAB, LAYOUT, 24)
    row = objective.rows(ctx)
    batches = list(once(Corpus(), objective, ctx, row=row, tokens=3 * row["text"], contiguous=1))
    found, without = (held_out(network, objective, batches, memory=memory) for memory in (25, 0))
    slow, total, count = Slow(model, 25, 0), 0.0, 0
    with torch.no_grad():
        for batch in batches:
            assert batch.before is not None
            total += sum(float(slow.loss(batch, int(d), int(batch.before[d]))) for d in np.flatnonzero(batch.alive))
            count += len(batch.targets["plm"].index)
    assert found["plm"] == pytest.approx(total / count, abs=1e-5) and abs(without["plm"] - found["plm"]) > 0.01

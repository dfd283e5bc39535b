"""What micro-batches leave to those that follow: found by key, restored as it was, forgotten after a bad step; and worth having."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ziggurat.context import Context, Layout, Vocab, mix
from ziggurat.data.loader import Loader, once
from ziggurat.evaluate.heldout import held_out, reading, to_device
from ziggurat.nn import spec
from ziggurat.nn.memory import Memory, Recall
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import Causal, Masked
from ziggurat.objectives.mixture import some_texts
from ziggurat.systems import SYSTEMS
from ziggurat.train.loop import Plan, Progress, backward, train
from ziggurat.types import DEAD, FOREVER, Batch, Part, Stream, Tokens, Visibility

CPU = torch.device("cpu")
VOCAB = Vocab(24, 0, 1, 0, None, (0, 1))
LENGTH = 8


def memory(sizes: list[int], start: float) -> Memory:
    """Two layers of width 1; every row has a number of its own."""
    rows = start + torch.arange(float(sum(sizes)))[:, None]
    return Memory((rows, rows + 0.5), torch.tensor([0, *np.cumsum(sizes).tolist()]))


def keys(*numbers: int) -> np.ndarray:
    return np.array([int(DEAD) if n < 0 else n for n in numbers], np.uint64)


def test_found_by_key_in_whichever_micro_batch() -> None:
    recall = Recall(8, 2)
    recall.add(keys(7, 5), memory([2, 1], 900.0))  # too old when the third comes
    recall.add(keys(5, -1, 9), memory([3, 0, 2], 0.0))
    recall.add(keys(8, 5), memory([1, 2], 100.0))
    found = recall.find(keys(9, -1, 8, 7, 5))
    assert found is not None
    assert found.bounds.tolist() == [0, 2, 2, 3, 3, 5]
    assert found.hidden[0][:, 0].tolist() == [3, 4, 100, 101, 102]  # of two with one key the later
    assert torch.equal(found.hidden[1], found.hidden[0] + 0.5)
    assert recall.find(keys(7, -1)) is None and Recall(8).find(keys(5)) is None
    other = Recall(8, 2)
    other.load(recall.tensors(), CPU)
    again = other.find(keys(9, -1, 8, 7, 5))
    assert again is not None and torch.equal(again.hidden[1], found.hidden[1]) and torch.equal(again.bounds, found.bounds)
    recall.forget()
    assert recall.find(keys(5)) is None and recall.tensors() == {}


class Repeats:
    """Documents in which the same LENGTH tokens come over and over: only who remembers can tell the second window."""

    folder, parts = Path("repeats"), ("text",)

    def __init__(self, documents: int, seed: int):
        rng = np.random.default_rng(seed)
        once = rng.integers(2, VOCAB.size, (documents, LENGTH))
        ids = np.repeat(once[:, None], 4, axis=1).reshape(-1).astype(np.int32)
        bounds = np.arange(0, len(ids) + 1, 4 * LENGTH)
        begins = np.ones(len(ids), bool)
        none = np.zeros((0, 3), np.int64), np.zeros(documents + 1, np.int64)
        self.all = Tokens(
            {"text": Part(ids, bounds, begins, begins, *none)}, mix(np.arange(documents, dtype=np.uint64) + np.uint64(10**6))
        )
        self.tokens = len(ids)

    def __len__(self) -> int:
        return len(self.all)

    def lengths(self, part: str, documents: np.ndarray) -> np.ndarray:
        return np.full(len(documents), 4 * LENGTH)

    def read(self, documents: np.ndarray) -> Tokens:
        return some_texts(self.all, documents)


def network(system: str = "xlnet", seed: int = 1) -> NetworkModel:
    model = SYSTEMS[system].sized("tiny", {"layers": 2, "width": 48, "heads": 4, "mlp": 96}, VOCAB.size)
    made = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()}))
    made.initialise(torch.Generator().manual_seed(seed))
    return made


def test_what_is_remembered_is_learned_from() -> None:
    """A causal model that remembers tells most of the repeated windows; the same model without its memory is at chance, or worse."""
    ctx, objective, model = Context(VOCAB, Layout(), LENGTH, "causal"), Causal(), network()
    args: dict[str, Any] = {"row": LENGTH, "tokens": 24 * LENGTH, "contiguous": 1}
    recall, optimizer = Recall(LENGTH), torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.train()
    for batch in islice(Loader({"": Repeats(2000, 0)}, {"": 1.0}, objective, ctx, **args, ahead=False), 220):
        backward(model, objective, [batch], CPU, torch.float32, recall)
        optimizer.step()
        optimizer.zero_grad()
    test = list(once(Repeats(100, 1), objective, ctx, **args))
    loss, forgetful = (held_out(model, objective, test, memory=length)["clm"] for length in (LENGTH, 0))
    chance = math.log(VOCAB.size - 2)
    print(f"{loss:.2f}, without {forgetful:.2f}, chance {chance:.2f}")
    assert loss < 0.75 * chance and forgetful > 0.95 * chance  # the first of four windows is always by chance


@pytest.mark.parametrize("system", ["modernbert", "nezha"])
def test_other_systems_that_know_distances(system: str) -> None:
    """Reading a text in windows, each with everything before it in memory, is reading it in one with a causal mask over windows."""
    model = network(system).eval()
    ctx, objective = Context(VOCAB, Layout(), LENGTH), Masked()
    assert objective.forgets(model.spec.model, 64) == []
    source = Repeats(6, 3)
    batches = list(once(source, objective, ctx, row=LENGTH, tokens=3 * LENGTH, contiguous=1))
    recall = Recall(64)
    last: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for batch in batches:
            with reading(model, objective, batch, recall) as given:
                hidden = model(given.streams)["text"]
            for d, key in enumerate(batch.keys.tolist()):
                last[key] = hidden[given.streams["text"].bounds[d] : given.streams["text"].bounds[d + 1]]
        whole = objective.corrupt(objective.form(source.read(np.arange(6)), ctx), ctx)
        assert whole.before is not None
        starts = np.flatnonzero(whole.before == DEAD).tolist()
        for start in starts:
            slow = by_windows(model, whole, start)
            for n in range(4):
                torch.testing.assert_close(last[int(whole.keys[start + n])], slow[n], atol=1e-5, rtol=1e-4)


def by_windows(model: NetworkModel, whole: Batch, start: int) -> list[torch.Tensor]:
    """Four windows as one document of running positions, where a token sees its own window and those before: the dense way."""
    s = whole.streams["text"]
    lo, hi = int(s.bounds[start]), int(s.bounds[start + 4])
    window = np.repeat(np.arange(4, dtype=np.int32), LENGTH)
    rule = Visibility("custom", window, window, np.full(hi - lo, FOREVER, np.int32), np.zeros(hi - lo, np.int32))
    one = Stream(s.content[lo:hi], np.array([0, hi - lo]), np.arange(hi - lo, dtype=np.int32), s.segment[lo:hi], rule)
    given = to_device(Batch({"text": one}, {}, keys(1)), CPU)
    return list(model(given.streams)["text"].split(LENGTH))


def test_a_bad_step_is_forgotten() -> None:
    ctx, model, objective = Context(VOCAB, Layout(), LENGTH, "causal"), network(), Causal()
    stream = Loader({"": Repeats(60, 0)}, {"": 1.0}, objective, ctx, row=LENGTH, tokens=64, contiguous=1, ahead=False)
    recall, seen = Recall(LENGTH), []

    def batches() -> Any:
        for n, batch in enumerate(stream):
            seen.append(len(recall.left))
            target = batch.targets["clm"]
            bad = np.full_like(target.weight, np.inf) if n == 2 else target.weight
            yield replace(batch, targets={"clm": replace(target, weight=bad)})

    plan = Plan(6, 1, 1.0, lambda step: 1e-3, 1, 0, 0)
    silent: dict[str, Any] = {n: lambda *a: None for n in ("write", "save", "show")}
    silent |= {"evaluate": lambda n: {}, "stop": lambda: False}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    progress = train(model, objective, batches(), optimizer, plan, Progress(), dtype=torch.float32, recall=recall, **silent)
    assert progress.skipped == 1 and seen == [0, 1, 1, 0, 1, 1]

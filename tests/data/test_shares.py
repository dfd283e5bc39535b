"""Shares of a mixture: by the sizes of its sources, at every place, in every block, and over whole passes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.data import order as module
from ziggurat.data.order import EVEN, Order, shares
from ziggurat.train import budget
from ziggurat.train.budget import mixture
from ziggurat.train.stage import Stage


class Texts:
    """Documents of these lengths."""

    folder, parts = Path("texts"), ("text",)

    def __init__(self, sizes: Sequence[int] | np.ndarray):
        self.sizes = np.asarray(sizes, np.int64)
        self.tokens = int(self.sizes.sum())

    def __len__(self) -> int:
        return len(self.sizes)

    def lengths(self, part: str, documents: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.sizes[documents]
        return found


sources = st.lists(
    st.tuples(st.lists(st.integers(1, 5000), min_size=1, max_size=9), st.floats(0.01, 1.0)), min_size=2, max_size=4
)
"""Lengths of the documents of each source, and its weight."""


def ordered(drawn: list[tuple[list[int], float]], **args: Any) -> Order:
    names = "abcd"[: len(drawn)]
    texts: Any = {n: Texts(sizes) for n, (sizes, _) in zip(names, drawn, strict=True)}
    return Order(texts, {n: w for n, (_, w) in zip(names, drawn, strict=True)}, **args)


class Sized(NamedTuple):
    tokens: int


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(None, 0.5), (1, 0.1), (2, 1 / (1 + 3)), (1.4286, 1 / (1 + 9**0.7)), (1e9, 0.5)],
)
def test_a_temperature_lifts_the_small_source(temperature: float | None, expected: float) -> None:
    """Of 900 and 100 tokens; multilingual BERT's exponent of 0.7 is a temperature of 1.4286."""
    shards: Any = {"large": Sized(900), "small": Sized(100)}
    found = shares(shards, {"large": 1, "small": 1}, temperature)
    assert found["small"] / sum(found.values()) == pytest.approx(expected, rel=1e-4)


def test_weights_come_on_top() -> None:
    shards: Any = {"a": Sized(400), "b": Sized(100)}
    found = shares(shards, {"a": 1, "b": 4}, 1)
    assert found["a"] == found["b"]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25])
def test_replay_has_its_share_of_the_tokens(share: float) -> None:
    """At every block's end, and within a turn of two documents of its due."""
    rng = np.random.default_rng(0)
    shards: Any = {"domain": Texts(rng.integers(1, 900, 5000)), "general": Texts(rng.integers(1, 900, 700))}
    stage = Stage(stage="dapt", data={"domain": {"weight": 3.0}}, replay={"general": share}, steps=1)
    found = mixture(stage, shards)
    assert found == pytest.approx({"domain": 1 - share, "general": share})
    order = Order(shards, found)
    place = order.start()
    for _ in range(30):
        _, place = order.block(place)
        domain, general = (c.tokens for c in place.cursors)
        assert abs(general - share * (domain + general)) <= 900
    assert place.cursors[1].epoch >= 1
    assert general / (domain + general) == pytest.approx(share, rel=0.01)
    two = Stage(stage="dapt", data={"a": {"weight": 1.0}, "b": {"weight": 3.0}}, replay={"c": 0.2}, steps=1)
    assert mixture(two, {n: Sized(10) for n in "abc"}) == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})  # type: ignore[misc]


@settings(deadline=None, max_examples=25)
@given(sources, st.integers(0, 3))
def test_every_prefix_has_the_shares_within_half_a_turn(drawn: list[tuple[list[int], float]], seed: int) -> None:
    """A turn is two documents, so about a document. Blocks are one turn each here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DOCUMENTS", 1)
        patch.setattr(module, "LONGEST", (1, 1))
        order = ordered(drawn, seed=seed)
        place, ends = order.start(), []
        for _ in range(60):
            (draw,), after = order.block(place)
            assert len(draw.documents) == min(len(order.shards[draw.source]), 2) or len(draw.documents) == 3
            ends.append([c.tokens for c in after.cursors])
            place = after
    tokens, weights = np.array(ends), np.array(order.weights) / sum(order.weights)
    most = [sum(sorted(sizes)[-3 if len(sizes) % 2 else -2 :]) / 2 for sizes, _ in drawn]
    for i, weight in enumerate(weights):
        off = np.abs(tokens[:, i] - weight * tokens.sum(1))
        others = sum(most) - most[i]
        assert off.max() <= (1 - weight) * most[i] + weight * others + 1e-6


@settings(deadline=None, max_examples=25)
@given(sources, st.integers(0, 3), st.booleans(), st.sampled_from([2, 5, 20]))
def test_passes_are_whole_blocks(drawn: list[tuple[list[int], float]], seed: int, named: bool, documents: int) -> None:
    """In n epochs of the source that counts, each of its documents comes n times; every epoch of another holds everything once, too; and no
    document stands alone that has a neighbour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DOCUMENTS", documents)
        patch.setattr(module, "AHEAD", 4)
        order = ordered(drawn, seed=seed, passes="a" if named else None)
        place, seen = order.start(), dict[tuple[int, int], list[int]]()
        for _ in range(8):
            draws, after = order.block(place)
            epochs = {d.epoch for d in draws if d.source == 0}
            if named:
                assert len(epochs) <= 1 and after.cursors[0].epoch - place.cursors[0].epoch <= 1
                assert after.cursors[0].epoch == place.cursors[0].epoch or after.cursors[0].position == 0
            for d in draws:
                assert len(d.documents) >= min(2, len(order.shards[d.source]))
                seen.setdefault((d.source, d.epoch), []).extend(d.documents.tolist())
            place = after
    for i, cursor in enumerate(place.cursors):
        for epoch in range(cursor.epoch):
            assert sorted(seen[i, epoch]) == list(range(len(order.shards[i])))
        begun = seen.get((i, cursor.epoch), [])
        assert len(set(begun)) == len(begun) == cursor.position


@pytest.mark.parametrize("words", [600, 1500, 3000, 6000])
def test_long_documents_are_spread_over_a_block_with_their_share(words: int) -> None:
    """Short own documents, long general ones: a block is as long as it must be, and no longer."""
    shards: Any = {"domain": Texts(np.full(60_000, 12)), "general": Texts(np.full(40, words))}
    order = Order(shards, {"domain": 0.9, "general": 0.1}, passes="domain")
    place = order.start()
    for _ in range(5):
        before, (_, place) = place, order.block(place)
        domain, general = (b.tokens - a.tokens for a, b in zip(before.cursors, place.cursors, strict=True))
        assert abs(general / (domain + general) - 0.1) <= 2 / EVEN
        assert domain + general <= 2 * max(1024 * 12, 2 * words / 0.1) + 2 * words


def test_a_block_ends_though_its_shares_cannot_be_had() -> None:
    shards: Any = {"domain": Texts(np.full(60_000, 12)), "books": Texts(np.full(4, 1_000_000))}
    order = Order(shards, {"domain": 0.9, "books": 0.1})
    draws, _ = order.block(order.start())
    assert [d.source for d in draws] == [0] and sum(len(d.documents) for d in draws) == 16 * 1024


def test_a_single_source_comes_as_it_always_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that were begun before go on with the same batches."""
    monkeypatch.setattr(module, "DOCUMENTS", 20)
    monkeypatch.setattr(module, "TOKENS", 400)
    told = hashlib.sha256()
    for n in range(1, 70):
        order = Order({"a": Texts(np.arange(n) * 7 % 41)}, {"a": 2.0}, seed=n)  # type: ignore[dict-item]
        place = order.start()
        for _ in range(9):
            (draw,), place = order.block(place)
            told.update(f"{draw.epoch} {draw.documents.tolist()} {place.cursors[0].tokens};".encode())
    assert told.hexdigest()[:16] == "91cc768376413d1b"


def test_epochs_of_a_mixture_that_were_counted_otherwise_are_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless something was trained by them: then the loader is asked to go on, and refuses."""
    job: Any = SimpleNamespace(stage=Stage(stage="tapt", data={"a": {"weight": 1.0}}, replay={"b": 0.1}, epochs=3, accumulate=2))
    monkeypatch.setattr(budget, "in_epochs", lambda job, objective, ctx, epochs: 9 * epochs)
    rest: Any = (None, None, None, None)
    written = tmp_path / "budget.json"
    written.write_text(json.dumps({"steps": 5, "epochs": 3}), "utf-8")
    assert budget.steps(tmp_path, job, *rest) == 14 == json.loads(written.read_text("utf-8"))["steps"]
    monkeypatch.setattr(budget, "in_epochs", None)
    assert budget.steps(tmp_path, job, *rest) == 14
    written.write_text(json.dumps({"steps": 5, "epochs": 3}), "utf-8")
    job.stage = job.stage.model_copy(update={"replay": {}})
    assert budget.steps(tmp_path, job, *rest) == 5
    job.stage = job.stage.model_copy(update={"replay": {"b": 0.1}})
    (tmp_path / "step-00000002").mkdir()
    assert budget.steps(tmp_path, job, *rest) == 5

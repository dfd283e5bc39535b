"""Near duplicates, against a comparison of all pairs; rows of several texts; and samples against the whole."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from ziggurat.data.near import RUN, SHORTEST, near_duplicates
from ziggurat.data.shards import Shards
from ziggurat.data.writing import write_shards
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import TokenizerSpec, train_tokenizer
from ziggurat.types import Document

WORDS = [a + b for a in "abcdefg" for b in "hijklmn"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    draw = random.Random(1)
    return train_tokenizer(TokenizerSpec(vocab=120), (text(draw, 20) for _ in range(200)), template="bert")


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def changed(draw: random.Random, old: str) -> str:
    """With another word somewhere."""
    words = old.split()
    words[draw.randrange(len(words))] = "zz"
    return " ".join(words)


def shards_of(folder: Path, documents: list[Document], tokenizer: Tokenizer) -> Shards:
    return write_shards(folder / "shards", documents, tokenizer)


def test_near_duplicates_are_those_of_all_pairs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """No pair is named that is none; nearly all that are have been found (the chance at 0.8 is 98%)."""
    draw, texts = random.Random(5), list[str]()
    for n in range(120):
        texts.append(text(draw, 60))
        if n % 3 == 0:
            texts.append(changed(draw, texts[-1]))
    texts += ["ah bi", "ah bi"]
    shards = shards_of(tmp_path, [Document({"text": t}) for t in texts], tokenizer)
    part = shards.read(np.arange(len(shards))).parts["text"]
    sets = []
    for d in range(len(shards)):
        ids = part.ids[part.bounds[d] : part.bounds[d + 1]].tolist()
        sets.append({tuple(ids[i : i + RUN]) for i in range(len(ids) - RUN + 1)} if len(ids) >= SHORTEST else set())
    alike = {
        (b, a): len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        for b in range(len(sets))
        for a in range(b)
        if sets[a] and sets[b] and len(sets[a] & sets[b]) >= 0.8 * len(sets[a] | sets[b])
    }
    found = near_duplicates(shards, shown=10**6)
    assert found.looked == sum(map(bool, sets)) and len(alike) >= 30
    assert all(alike[later, before] == pytest.approx(index) for later, before, index in found.pairs)
    assert 0.9 * len(alike) <= found.later <= len(alike)


def test_rows_are_alike_only_if_each_of_their_texts_is(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Three hypotheses about each premise, and five questions about each long context, are no copies; one with all its texts slightly changed is."""
    draw = random.Random(6)
    premises = [Document({"text": t, "pair": text(draw, 6)}) for t in (text(draw, 30) for _ in range(60)) for _ in range(3)]
    contexts = [Document({"text": text(draw, 6), "pair": t}) for t in (text(draw, 120) for _ in range(20)) for _ in range(5)]
    assert near_duplicates(shards_of(tmp_path / "healthy", [*premises, *contexts], tokenizer)).later == 0
    short = [Document({"text": d.texts["text"], "pair": name}) for d in premises[:90:3] for name in ("ah bi", "cj dk", "el fm")]
    assert near_duplicates(shards_of(tmp_path / "short", short, tokenizer)).later == 0
    pairs = [Document({name: text(draw, 60) for name in ("text", "pair")}) for _ in range(40)]
    copies = [Document({name: changed(draw, t) for name, t in d.texts.items()}) for d in pairs]
    assert near_duplicates(shards_of(tmp_path / "copies", pairs + copies, tokenizer)).later == pytest.approx(40, abs=2)
    lists = [Document({"text": d.texts["text"]}, lists={"choices": (text(draw, 9), text(draw, 9))}) for d in premises]
    assert near_duplicates(shards_of(tmp_path / "lists", lists, tokenizer)).later == 0


@pytest.mark.parametrize("group", [2, 100])
def test_a_sample_finds_as_large_a_share_as_the_whole(tmp_path: Path, tokenizer: Tokenizer, group: int) -> None:
    """Of documents in pairs of near copies, and of a few large groups of them."""
    draw = random.Random(7)
    texts = [changed(draw, t) for t in (text(draw, 200) for _ in range(600 // group)) for _ in range(group)]
    texts += [text(draw, 200) for _ in range(600)]
    draw.shuffle(texts)
    shards = shards_of(tmp_path, [Document({"text": t}) for t in texts], tokenizer)
    whole, some = near_duplicates(shards), near_duplicates(shards, tokens=shards.tokens // 10)
    assert whole.later == pytest.approx(600 - 600 // group, rel=0.1) and not whole.sampled
    assert some.sampled and some.looked == whole.looked == 1200
    assert some.later == pytest.approx(whole.later, rel=1 / 3)


def test_a_sample_of_a_clean_corpus_finds_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    draw = random.Random(8)
    shards = shards_of(tmp_path, [Document({"text": text(draw, 60)}) for _ in range(300)], tokenizer)
    found = near_duplicates(shards, tokens=shards.tokens // 10)
    assert (found.looked, found.later, found.pairs, found.sampled) == (300, 0, [], True)

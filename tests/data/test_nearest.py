"""Nearest documents by TF-IDF of tokens: equal to scikit-learn's, and in a hashed space nearly so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from ziggurat.data import nearest as module
from ziggurat.data.nearest import nearest
from ziggurat.data.runs import bounds_of
from ziggurat.types import Part, Tokens

VOCAB = 300


class Texts:
    """Documents of token ids, as the loader reads them."""

    folder, parts = Path(), ("text",)

    def __init__(self, documents: list[np.ndarray]):
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))

    def lengths(self, part: str, documents: np.ndarray) -> np.ndarray:
        return np.array([len(self.documents[d]) for d in documents])

    def read(self, documents: np.ndarray) -> Tokens:
        some = [self.documents[d] for d in documents]
        ids = np.concatenate(some).astype(np.int32)
        flags, none = np.zeros(len(ids), bool), np.zeros((0, 3), np.int64)
        bounds = bounds_of(np.array([len(s) for s in some]))
        return Tokens(
            {"text": Part(ids, bounds, flags, flags, none, np.zeros(len(some) + 1, np.int64))}, np.zeros(len(some), np.uint64)
        )

    def said(self) -> list[str]:
        return [" ".join(f"w{i}" for i in d) for d in self.documents]


def corpus(seed: int, documents: int, topics: int = 6) -> Texts:
    """Documents of a topic each: most of their words are of its own fiftieth of the vocabulary."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(documents):
        size = int(rng.integers(5, 60))
        own = rng.integers(0, VOCAB // topics, size) + (n % topics) * (VOCAB // topics)
        made.append(np.where(rng.random(size) < 0.6, own, rng.integers(0, VOCAB, size)))
    return Texts(made)


def by_sklearn(texts: Texts, documents: Texts, count: int) -> np.ndarray:
    tfidf = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+", lowercase=False)
    rows = tfidf.fit_transform(documents.said())
    found = (tfidf.transform(texts.said()) @ rows.T).toarray()
    return np.unique(np.argsort(-found, 1, kind="stable")[:, :count])


def test_the_neighbours_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, documents = corpus(1, 30), corpus(2, 700)  # three blocks
    found = nearest([texts], documents, 5, VOCAB)  # type: ignore[list-item]
    assert np.array_equal(found, by_sklearn(texts, documents, 5)) and 5 < len(found) < 150
    parts: list[Any] = [Texts(texts.documents[:7]), Texts(texts.documents[7:])]
    monkeypatch.setattr(module, "QUERIES", 1)
    assert np.array_equal(nearest(parts, documents, 5, VOCAB), found)
    one = Texts([d for n, d in enumerate(texts.documents) if n % 6 == 2])
    near = nearest([one], documents, 5, VOCAB)  # type: ignore[list-item]
    assert np.mean(near % 6 == 2) > 0.95  # of the same topic


def test_a_hashed_space_is_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, documents = corpus(1, 30), corpus(2, 400)
    whole = nearest([texts], documents, 5, VOCAB)  # type: ignore[list-item]
    monkeypatch.setattr(module, "WIDTH", 150)
    hashed = nearest([texts], documents, 5, VOCAB)  # type: ignore[list-item]
    assert len(np.intersect1d(whole, hashed)) > 0.5 * len(whole)  # by chance 0.3
    nothing = nearest([Texts([np.array([7])])], Texts([np.array([1, 2]), np.array([3])]), 2, VOCAB)  # type: ignore[list-item]
    assert len(nothing) == 0

"""Blocks of documents for the tests of objectives: random ids, words and sentences, as shards would give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ziggurat.context import Context, Layout, Vocab, mix
from ziggurat.types import Batch, Part, Stream, Tokens

PAD, UNK, CLS, SEP, MASK = range(5)
VOCAB = Vocab(
    60, PAD, MASK, UNK, SEP, (PAD, UNK, CLS, SEP, MASK), {"[PAD]": PAD, "[UNK]": UNK, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
)
BERT = Layout((CLS,), (SEP,), (SEP,), (0, 1))
GPT = Layout((), (), (SEP,), (0, 0))


def context(length: int = 24, layout: Layout = BERT, **other: Any) -> Context:
    return Context(VOCAB, layout, length, **other)


def keys(n: int, seed: int = 0) -> np.ndarray:
    return mix(np.arange(n, dtype=np.uint64) + np.uint64(1000 * (seed + 1)))


def part(documents: Sequence[Sequence[Sequence[int]]], seed: int = 0) -> Part:
    """Documents as lists of sentences, sentences as lists of word lengths in tokens; ids are random ordinary ones."""
    rng = np.random.default_rng(seed)
    words = [size for document in documents for sentence in document for size in sentence]
    begins = np.zeros(sum(words), bool)
    begins[np.cumsum([0, *words[:-1]])[: len(words)]] = True
    sentences = np.zeros(sum(words), bool)
    sizes = [sum(sentence) for document in documents for sentence in document]
    sentences[np.cumsum([0, *sizes[:-1]])[: len(sizes)]] = True
    bounds = np.cumsum([0, *(sum(sum(s) for s in d) for d in documents)]).astype(np.int64)
    none = np.zeros((0, 3), np.int64)
    ids = rng.integers(5, VOCAB.size, sum(words)).astype(np.int32)
    return Part(ids, bounds, begins, sentences, none, np.zeros(len(documents) + 1, np.int64))


def tokens(documents: Sequence[Sequence[Sequence[int]]], seed: int = 0, **fields: Sequence[Any]) -> Tokens:
    return Tokens({"text": part(documents, seed)}, keys(len(documents), seed), fields)


def random_documents(rng: np.random.Generator, n: int, sentences: int = 6, words: int = 8) -> list[list[list[int]]]:
    """`n` documents of 1 to `sentences` sentences of 1 to `words` words of 1 to 3 tokens."""
    return [
        [rng.integers(1, 4, rng.integers(1, words + 1)).tolist() for _ in range(rng.integers(1, sentences + 1))] for _ in range(n)
    ]


def batch_of(units: Sequence[Sequence[int]], seed: int = 0) -> Batch:
    """One example a list of unit numbers; -1 stands for a special token."""
    rng = np.random.default_rng(seed)
    unit = np.array([u for document in units for u in document], np.int32)
    bounds = np.cumsum([0, *map(len, units)]).astype(np.int64)
    content = np.where(unit < 0, CLS, rng.integers(5, VOCAB.size, len(unit))).astype(np.int32)
    position = (np.arange(len(unit)) - np.repeat(bounds[:-1], np.diff(bounds))).astype(np.int32)
    return Batch({"text": Stream(content, bounds, position, np.zeros_like(position), unit=unit)}, {}, keys(len(units), seed))


def texts(batch: Batch) -> list[list[int]]:
    s = batch.streams["text"]
    return [s.content[a:b].tolist() for a, b in zip(s.bounds[:-1], s.bounds[1:], strict=True)]

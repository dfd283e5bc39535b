"""Documents of a corpus that are nearest to some texts, by the cosine of TF-IDF vectors of their tokens: text for kNN-TAPT.

Gururangan et al. (2020, section 5.2) take neighbours of each of the task's texts from the domain corpus, in the space of a small language model; counts
of tokens need none. Weights are scikit-learn's: (1 + log count) (log((1 + D) / (1 + documents with it)) + 1), rows of length 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ziggurat.context import mix
from ziggurat.data.order import Corpus

WIDTH = 1 << 13
"""Columns of a vector. Token ids beyond it are hashed into it with a sign, which keeps cosines on the mean (Weinberger et al., 2009)."""
BLOCK, QUERIES = 256, 4096
"""Documents, and texts, looked at together."""


def nearest(texts: Sequence[Corpus], corpus: Corpus, count: int, vocab: int) -> np.ndarray:
    """int64[N], ascending: the documents that are among the `count` nearest of at least one text. Of equally near ones the first.

    vocab  number of token ids
    """
    seen = np.zeros(vocab)
    for counts in _counts(corpus, vocab):
        np.add.at(seen, counts[1], 1)
    weight = np.log((1 + len(corpus)) / (1 + seen)) + 1
    queries = [rows for one in texts for rows in _vectors(one, vocab, weight)]
    chosen: list[np.ndarray] = []
    per = max(1, QUERIES // BLOCK)
    for begin in range(0, len(queries), per):
        asked = np.concatenate(queries[begin : begin + per])
        best, which = np.zeros((len(asked), 0), np.float32), np.zeros((len(asked), 0), np.int64)
        first = 0
        for rows in _vectors(corpus, vocab, weight):
            here = np.broadcast_to(np.arange(first, first + len(rows)), (len(asked), len(rows)))
            best, which = np.concatenate([best, asked @ rows.T], 1), np.concatenate([which, here], 1)
            order = np.argsort(-best, 1, kind="stable")[:, :count]
            best, which = np.take_along_axis(best, order, 1), np.take_along_axis(which, order, 1)
            first += len(rows)
        chosen.append(which[best > 0])  # a text without a token in common has no neighbour
    return np.unique(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _counts(corpus: Corpus, vocab: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Blocks of documents: (document within the block, token, how often) of each pair that occurs, and the number of documents."""
    for begin in range(0, len(corpus), BLOCK):
        tokens = corpus.read(np.arange(begin, min(begin + BLOCK, len(corpus))))
        owner, ids, size = [], [], 0
        for part in tokens.parts.values():
            size = len(part.bounds) - 1
            owner.append(np.repeat(np.arange(size), np.diff(part.bounds)))
            ids.append(np.asarray(part.ids, np.int64))
        pairs, times = np.unique(np.concatenate(owner) * vocab + np.concatenate(ids), return_counts=True)
        yield pairs // vocab, pairs % vocab, times, size


def _vectors(corpus: Corpus, vocab: int, weight: np.ndarray) -> Iterator[np.ndarray]:
    """float32[B, WIDTH or vocab] for each block of documents, rows of length 1 (0 of an empty document)."""
    ids = np.arange(vocab)
    column, sign = ids, np.ones(vocab)
    if vocab > WIDTH:
        hashed = mix(ids.astype(np.uint64))
        column, sign = (hashed % np.uint64(WIDTH)).astype(np.int64), np.where(hashed >> np.uint64(63), -1.0, 1.0)
    for document, token, times, size in _counts(corpus, vocab):
        rows = np.zeros((size, min(vocab, WIDTH)))
        np.add.at(rows, (document, column[token]), sign[token] * weight[token] * (1 + np.log(times)))
        yield (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)

"""Which documents come when: a seeded permutation of every source, its epochs, and the weights of a mixture.

Everything is a pure function of (seed, place), and a place is a few integers: nothing is drawn from a generator that advances,
and no array as long as the corpus is ever made.
"""

from __future__ import annotations

import functools
import heapq
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ziggurat.context import key_of, mix
from ziggurat.errors import check
from ziggurat.types import Tokens

DOCUMENTS, TOKENS = 1024, 1 << 18
"""A block closes with so many documents, or with the document that passes this many tokens."""
EVEN = 128
"""A block of a mixture goes on until every source is within 1/128 of the block's tokens of its due: its rows come in any order, so it has
one share from its first step to its last."""
LONGEST = 16, 4
"""It closes without that with so many times as many documents or tokens, which bounds memory: a mixture with whole books."""
AHEAD = 256
"""Documents of a source whose lengths are looked up at once; even."""


class Corpus(Protocol):
    """Documents that can be read by number: `Shards`, or some documents of one (`Subset`)."""

    @property
    def folder(self) -> Path: ...
    @property
    def parts(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def lengths(self, part: str, documents: np.ndarray) -> np.ndarray: ...
    @property
    def tokens(self) -> int: ...
    def read(self, documents: np.ndarray) -> Tokens: ...


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far one source has been read."""

    epoch: int = 0
    position: int = 0
    """Documents of this epoch already drawn."""
    tokens: int = 0
    """Tokens drawn since the beginning, all epochs."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block begins."""

    block: int
    cursors: tuple[Cursor, ...]
    """One a source."""

    @property
    def tokens(self) -> int:
        """Tokens of text before this block."""
        return sum(c.tokens for c in self.cursors)


class Draw(NamedTuple):
    """Documents of one source and one epoch."""

    source: int
    epoch: int
    documents: np.ndarray


class Turn(NamedTuple):
    """What a source of a mixture gives at a time: two documents, for negatives come from neighbours."""

    draw: Draw
    after: Cursor
    due: float
    """Tokens of the whole mixture, in units of the weights, at which half of this is drawn."""


def shares(shards: Mapping[str, Corpus], weights: Mapping[str, float], temperature: float | None) -> dict[str, float]:
    """Each source's share of the tokens: its weight, or with a temperature its weight times tokens ** (1 / temperature).

    1 takes the sources as large as they are; above, small ones (a language with little text) come more often than that (Arivazhagan et
    al., 2019: 5; multilingual BERT's exponent 0.7 is a temperature of 1.43).
    """
    if temperature is None:
        return dict(weights)
    return {name: weight * float(shards[name].tokens) ** (1 / temperature) for name, weight in weights.items()}


class Order:
    """The endless sequence of blocks over a mixture of shards.

    Weights are shares of *tokens* of text. The documents of each source are cut into turns of two (the last of an epoch three where
    one would be left, and one where the source has no other), and the turns of all sources are merged by when the middle of each is
    due. So at every turn a source is within half of one of its turns of its due. Each source counts epochs of its own.

    A block is a stretch of this sequence that has the right shares (`EVEN`) as far as it may grow (`LONGEST`). It always ends with
    an epoch of the source `passes`, if one is named, and with a single source with its epochs: n passes are then whole blocks. A
    block of a single source has no turns: it is as many documents as a block holds, at least 2 where the source has them.
    """

    def __init__(
        self,
        shards: Mapping[str, Corpus],
        weights: Mapping[str, float],
        *,
        seed: int = 0,
        shuffle: bool = True,
        passes: str | None = None,
    ):
        check(shards, "no data to train on", "name at least one source")
        check(set(shards) == set(weights), f"weights are for {sorted(weights)}, the data is {sorted(shards)}")
        for name, one in shards.items():
            check(len(one), f"the source {name!r} is empty: {one.folder} holds no document", "check its path, columns and limit")
            check(
                weights[name] > 0,
                f"the weight of source {name!r} is {weights[name]}",
                "weights must be above 0; leave the source out",
            )
        self.names = tuple(shards)
        self.shards = tuple(shards.values())
        self.weights = tuple(float(weights[name]) for name in self.names)
        self.seed = seed
        self.shuffle = shuffle
        self.mixed = len(self.names) > 1
        self.passes = self.names.index(passes) if passes is not None else None if self.mixed else 0
        """The source whose epochs end blocks."""
        self.block = functools.lru_cache(8)(self._mixture if self.mixed else self._single)
        """The draws of the block at a place, one for each source and epoch in it, and the place of the next block."""

    def start(self) -> Place:
        return Place(0, tuple(Cursor() for _ in self.names))

    def after(self, place: Place, blocks: int) -> Place:
        """The place `blocks` blocks further on; reads document lengths only."""
        for _ in range(blocks):
            place = self.block(place)[1]
        return place

    def _single(self, place: Place) -> tuple[list[Draw], Place]:
        (cursor,) = place.cursors
        documents, ends = self._next(0, cursor, max(2, DOCUMENTS))
        n, rest = max(int(np.searchsorted(ends, TOKENS)) + 1, 2), len(self.shards[0]) - cursor.position
        n = len(documents) if n >= len(documents) - (len(documents) == rest) else n
        after = self._moved(0, cursor, n, int(ends[n - 1]))
        return [Draw(0, cursor.epoch, documents[:n])], Place(place.block + 1, (after,))

    def _mixture(self, place: Place) -> tuple[list[Draw], Place]:
        cursors = list(place.cursors)
        drawn: dict[tuple[int, int], list[np.ndarray]] = {}
        documents, before = 0, place.tokens
        for (i, epoch, found), after, _ in heapq.merge(*map(self._turns, range(len(cursors)), cursors), key=lambda t: t.due):
            drawn.setdefault((i, epoch), []).append(found)
            documents += len(found)
            cursors[i] = after
            if (i == self.passes and not after.position) or self._closes(cursors, documents, before):
                break
        draws = [Draw(i, epoch, np.concatenate(parts)) for (i, epoch), parts in drawn.items()]
        return draws, Place(place.block + 1, tuple(cursors))

    def _closes(self, cursors: Sequence[Cursor], documents: int, before: int) -> bool:
        """Whether a block of so many documents, which began when `before` tokens were drawn, is large enough and has the right shares."""
        whole = sum(c.tokens for c in cursors)
        tokens = whole - before
        if documents < DOCUMENTS and tokens < TOKENS:
            return False
        if documents >= LONGEST[0] * DOCUMENTS or tokens >= LONGEST[1] * TOKENS:
            return True
        due = whole / sum(self.weights)
        return all(abs(c.tokens - w * due) * EVEN <= tokens for c, w in zip(cursors, self.weights, strict=True))

    def _turns(self, source: int, cursor: Cursor) -> Iterator[Turn]:
        while True:
            documents, ends = self._next(source, cursor, AHEAD)
            begin, stops = 0, [*range(2, len(documents) - 1, 2), len(documents)]
            for stop in stops:
                after = self._moved(source, cursor, stop - begin, int(ends[stop - 1]) - (int(ends[begin - 1]) if begin else 0))
                due = (cursor.tokens + after.tokens) / 2 / self.weights[source]
                yield Turn(Draw(source, cursor.epoch, documents[begin:stop]), after, due)
                begin, cursor = stop, after

    def _next(self, source: int, cursor: Cursor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """int64[N] twice: the next `count` documents of the epoch, one more where a single one would be left of it and fewer where there are
        no more, and the tokens up to the end of each."""
        shards = self.shards[source]
        stop = min(cursor.position + count, len(shards))
        if stop == len(shards) - 1:
            stop = len(shards)
        documents = np.arange(cursor.position, stop)
        if self.shuffle:
            name = zlib.crc32(self.names[source].encode())
            documents = permuted(documents, len(shards), key_of(self.seed, cursor.epoch, name))
        return documents, np.cumsum(np.sum([shards.lengths(part, documents) for part in shards.parts], axis=0))

    def _moved(self, source: int, cursor: Cursor, documents: int, tokens: int) -> Cursor:
        """The cursor behind so many more documents, all of one epoch."""
        position = cursor.position + documents
        ended = position == len(self.shards[source])
        return Cursor(cursor.epoch + ended, 0 if ended else position, cursor.tokens + tokens)


def permuted(index: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """int64[N]: where a keyed permutation of 0 ... size - 1 sends each `index`, without making the permutation.

    A four-round Feistel network over the next even power of two, walked until it lands below `size` (Black and
    Rogaway, 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, -(-max(size - 1, 1).bit_length() // 2)))
    low = (np.uint64(1) << half) - np.uint64(1)
    rounds = mix(key + np.arange(4, dtype=np.uint64))
    result = np.asarray(index, np.uint64).copy()
    todo = np.arange(len(result))
    while len(todo):
        x = result[todo]
        left, right = x >> half, x & low
        for k in rounds:
            left, right = right, left ^ (mix(right ^ k) & low)
        x = left << half | right
        result[todo] = x
        todo = todo[x >= np.uint64(size)]
    return result.astype(np.int64)

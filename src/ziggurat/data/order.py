"""Which documents come when: a seeded permutation of every source, its epochs, and the weights of a mixture.

Everything is a pure function of (seed, place), and a place is a few integers: nothing is drawn from a generator that advances,
and no array as long as the corpus is ever made.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ziggurat.context import key_of, mix
from ziggurat.errors import check
from ziggurat.types import Tokens

DOCUMENTS, TOKENS = 1024, 1 << 18
"""A block holds at most this many documents, and closes with the document that passes this many tokens."""
SHARES = 16
"""A block of a mixture is filled in draws of 1/16 block, of a source with less weight as much smaller, each from the source that is
furthest behind its weight."""


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

    Weights are shares of *tokens* of text: every draw goes to the source with the smallest (tokens drawn / weight), the
    first of equals. Each source counts epochs of its own; a draw never crosses from one epoch into the next, and with one
    source neither does a block. A draw has at least 2 documents where the source does (negatives come from neighbours):
    a single last document joins the draw before it.
    """

    def __init__(self, shards: Mapping[str, Corpus], weights: Mapping[str, float], *, seed: int = 0, shuffle: bool = True):
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
        share = SHARES if len(self.names) > 1 else 1
        parts = [weight / max(self.weights) / share for weight in self.weights]
        self._documents, self._tokens = [max(2, int(DOCUMENTS * p)) for p in parts], [int(TOKENS * p) for p in parts]
        self.block = functools.lru_cache(8)(self._block)
        """The draws of the block at a place, one for each source and epoch in it, and the place of the next block."""

    def start(self) -> Place:
        return Place(0, tuple(Cursor() for _ in self.names))

    def _block(self, place: Place) -> tuple[list[Draw], Place]:
        cursors = list(place.cursors)
        drawn: dict[tuple[int, int], list[np.ndarray]] = {}
        documents, until = 0, place.tokens + TOKENS
        while documents < DOCUMENTS and sum(c.tokens for c in cursors) < until:
            i = min(range(len(cursors)), key=lambda i: cursors[i].tokens / self.weights[i])
            found, after = self._draw(i, cursors[i])
            drawn.setdefault((i, cursors[i].epoch), []).append(found)
            documents += len(found)
            ended = after.epoch > cursors[i].epoch
            cursors[i] = after
            if ended and len(cursors) == 1:
                break
        draws = [Draw(i, epoch, np.concatenate(parts)) for (i, epoch), parts in drawn.items()]
        return draws, Place(place.block + 1, tuple(cursors))

    def after(self, place: Place, blocks: int) -> Place:
        """The place `blocks` blocks further on; reads document lengths only."""
        for _ in range(blocks):
            place = self.block(place)[1]
        return place

    def _draw(self, source: int, cursor: Cursor) -> tuple[np.ndarray, Cursor]:
        shards = self.shards[source]
        stop = min(cursor.position + self._documents[source], len(shards))
        if stop == len(shards) - 1:
            stop = len(shards)
        documents = np.arange(cursor.position, stop)
        if self.shuffle:
            name = zlib.crc32(self.names[source].encode())
            documents = permuted(documents, len(shards), key_of(self.seed, cursor.epoch, name))
        lengths = np.sum([shards.lengths(part, documents) for part in shards.parts], axis=0)
        ends = np.cumsum(lengths)
        n = max(int(np.searchsorted(ends, self._tokens[source])) + 1, 2)
        n = len(documents) if n >= len(documents) - (stop == len(shards)) else n
        after = replace(cursor, position=cursor.position + n, tokens=cursor.tokens + int(ends[n - 1]))
        if after.position == len(shards):
            after = replace(after, epoch=cursor.epoch + 1, position=0)
        return documents[:n], after


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

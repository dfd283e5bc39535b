"""Near duplicates among documents, by their token ids: MinHash and banding, every find checked by the exact overlap.

Two documents are near duplicates when they share at least 80% of all different runs of 5 tokens that either has (the Jaccard
index). Of rows with several texts (a pair, choices) each text must be alike by itself: one premise with three hypotheses is three rows.
MinHash (Broder, 1997): the smallest hash over a set is the same for two sets with the probability of their Jaccard index. 8
bands of 4 such numbers find a pair of index 0.8 with a chance of 98%, and one of 0.5 with 40%; candidates are then compared run by
run, so that none is named wrongly.

A large corpus has one such number made of each document. Only documents that share it with another are compared, and of these a sample if they
are still too many: a pair of index 0.8 is seen with a chance of 80%, however small the sample is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ziggurat.context import mix
from ziggurat.data.runs import bounds_of
from ziggurat.data.shards import Shards
from ziggurat.types import Part

RUN = 5
"""Tokens of a run."""
SHORTEST = 8
"""Documents of fewer tokens are not looked at: they are alike by chance."""
ALIKE = 0.8
BANDS, ROWS = 8, 4
FACTOR = np.uint64(0x9E3779B97F4A7C15)
NEIGHBOURS = 8
"""Of documents with one band in common, each is compared with this many before it: groups of copies stay cheap."""
BLOCK = 1 << 17
"""Tokens read together."""
STRETCH = 64
"""A sample is of so many documents in a row, in the order of their smallest hashes: what shares one stays together."""


@dataclass(frozen=True)
class Near:
    """What was found."""

    looked: int
    """Documents that were looked at, the shortest left out."""
    later: int
    """Of them, how many a document before them is a near duplicate of (an exact copy counts)."""
    pairs: list[tuple[int, int, float]]
    """(document, the one before it, Jaccard index of the texts that are least alike) of the first few; numbers in the shards."""
    sampled: bool = False
    """The corpus is large, and `later` is an estimate, rather too low."""


def near_duplicates(shards: Shards, *, tokens: int = 4_000_000, shown: int = 5) -> Near:
    """Near duplicates in these shards; at most `tokens` tokens are compared, and more documents only looked at."""
    lengths = np.sum([shards.lengths(part) for part in shards.parts], axis=0)
    looked = np.flatnonzero(lengths >= SHORTEST)
    sampled = int(lengths[looked].sum()) > tokens
    alike = _sharing(shards, looked, lengths) if sampled else looked
    names = np.sort(_sample(alike, lengths, tokens)) if sampled else looked
    if len(names) < 2:
        return Near(len(looked), 0, [], sampled)
    grams = [each for some in _blocks(names, lengths) for each in _grams(shards, some)]
    later: dict[int, tuple[int, float]] = {}
    for band in _bands(grams):
        order = np.argsort(band, kind="stable")
        same = np.flatnonzero(band[order][1:] == band[order][:-1]) + 1
        for at in same.tolist():
            document = int(order[at])
            if document in later:
                continue
            for back in range(1, NEIGHBOURS + 1):
                if at < back or band[order[at - back]] != band[document]:
                    break
                other = int(order[at - back])
                index = _index(grams[document], grams[other])
                if index >= ALIKE:
                    later[document] = other, index
                    break
    pairs = [(int(names[d]), int(names[o]), index) for d, (o, index) in sorted(later.items())[:shown]]
    return Near(len(looked), round(len(later) * len(alike) / len(names)), pairs, sampled)


def _sharing(shards: Shards, documents: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64[D']: those of the documents whose smallest hash is another's, too, in the order of it."""
    found = [np.zeros(0, np.uint64)]
    for some in _blocks(documents, lengths):
        least = np.full(len(some), np.iinfo(np.uint64).max)
        for runs, bounds in _runs_of(shards, some):
            own = np.flatnonzero(np.diff(bounds))
            least[own] = np.minimum(least[own], np.minimum.reduceat(runs, bounds[own]) if len(own) else runs)
        found.append(least)
    numbers = np.concatenate(found)
    order = np.argsort(
        mix(numbers), kind="stable"
    )  # small numbers are those of long documents: a sample should not see them first
    same = np.diff(numbers[order]) == 0
    return documents[order[np.append(same, False) | np.append(False, same)]]


def _sample(documents: np.ndarray, lengths: np.ndarray, tokens: int) -> np.ndarray:
    """Evenly spaced stretches of the documents, of at most `tokens` tokens."""
    total = int(lengths[documents].sum())
    if total <= tokens:
        return documents
    stretch = np.arange(len(documents)) // STRETCH
    count = int(stretch[-1]) + 1
    kept = np.linspace(0, count - 1, max(1, int(count * tokens / total))).astype(np.int64)
    some = documents[np.isin(stretch, kept)]
    return some[np.cumsum(lengths[some]) <= tokens]


def _blocks(documents: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The documents, about BLOCK tokens at a time."""
    if len(documents):
        yield from np.split(documents, np.flatnonzero(np.diff(np.cumsum(lengths[documents]) // BLOCK)) + 1)


def _grams(shards: Shards, documents: np.ndarray) -> Iterator[list[np.ndarray]]:
    """For each document its different runs, uint64[...] for each of its texts."""
    several = list(_runs_of(shards, documents))
    for n in range(len(documents)):
        yield [np.unique(runs[bounds[n] : bounds[n + 1]]) for runs, bounds in several]


def _runs_of(shards: Shards, documents: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each text that the documents have: as `_runs`, different for different texts."""
    for n, part in enumerate(shards.read(documents).parts.values()):
        yield _runs(part, n)


def _runs(part: Part, salt: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64[M]: one number for each run of RUN ids, and for a text of fewer ids one of them all; int64[D + 1]: where those of a document
    begin."""
    lengths = np.diff(part.bounds)
    left = np.repeat(part.bounds[1:], lengths) - np.arange(len(part.ids))  # tokens to the end of the text
    ids = part.ids.astype(np.uint64) + np.uint64(1)
    total = np.full(len(ids), salt, np.uint64)
    for j in range(RUN):
        total *= FACTOR
        total[: len(ids) - j] += ids[j:] * (left[: len(ids) - j] > j)
    begins = left >= RUN
    begins[part.bounds[:-1][lengths > 0]] = True
    return mix(total[begins]), bounds_of(np.maximum(lengths - RUN + 1, lengths > 0))


def _index(some: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """The Jaccard index of the texts in which two documents are least alike; below ALIKE of the first such."""
    least = 1.0
    for a, b in zip(some, other, strict=True):
        shared = len(np.intersect1d(a, b, assume_unique=True))
        least = min(least, shared / max(len(a) + len(b) - shared, 1)) if len(a) or len(b) else least
        if least < ALIKE:
            break
    return least


def _bands(grams: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """uint64[D] for each band: a hash of its ROWS smallest numbers."""
    flat = np.concatenate([runs for each in grams for runs in each])
    starts = bounds_of(np.array([sum(map(len, each)) for each in grams]))[:-1]
    bands = []
    with np.errstate(over="ignore"):
        for b in range(BANDS):
            band = np.zeros(len(grams), np.uint64)
            for r in range(ROWS):
                salt = mix(np.uint64(b * ROWS + r + 1))
                # an odd factor and an offset permute the 64-bit numbers
                smallest = np.minimum.reduceat(flat * (salt | np.uint64(1)) + salt, starts)
                band = mix(band * FACTOR + smallest)
            bands.append(band)
    return bands

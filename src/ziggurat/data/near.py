"""Near duplicates among documents, by their token ids: MinHash and banding, every find checked by the exact overlap.

Two documents are near duplicates when they share at least 80% of all different runs of 5 tokens that either has (the Jaccard
index). MinHash (Broder, 1997): the smallest hash over a set is the same for two sets with the probability of their Jaccard index. 8
bands of 4 such numbers find a pair of index 0.8 with a chance of 98%, and one of 0.5 with 40%; candidates are then compared run by
run, so that none is named wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ziggurat.context import mix
from ziggurat.data.shards import Shards

RUN = 5
"""Tokens of a run."""
SHORTEST = 8
"""Documents of fewer tokens are not looked at: they are alike by chance."""
ALIKE = 0.8
BANDS, ROWS = 8, 4
FACTOR = np.uint64(0x9E3779B97F4A7C15)
NEIGHBOURS = 8
"""Of documents with one band in common, each is compared with this many before it: groups of copies stay cheap."""


@dataclass(frozen=True)
class Near:
    """What was found."""

    looked: int
    """Documents that were compared, the shortest left out."""
    later: int
    """Of them, how many a document before them is a near duplicate of (an exact copy counts)."""
    pairs: list[tuple[int, int, float]]
    """(document, the one before it, Jaccard index) of the first few; numbers in the shards, laid end to end."""


def near_duplicates(several: Sequence[Shards], *, tokens: int = 4_000_000, shown: int = 5) -> Near:
    """Near duplicates in the part `text` of these shards together, in at most `tokens` tokens of evenly chosen documents of each."""
    grams: list[np.ndarray] = []
    names: list[np.ndarray] = []
    before = 0
    for shards in several:
        chosen = _chosen(shards, tokens)
        for start in range(0, len(chosen), 4096):
            part = shards.read(chosen[start : start + 4096]).parts["text"]
            for n in np.flatnonzero(np.diff(part.bounds) >= SHORTEST).tolist():
                grams.append(np.unique(_runs(part.ids[part.bounds[n] : part.bounds[n + 1]])))
                names.append(chosen[start + n] + before)
        before += len(shards)
    if len(grams) < 2:
        return Near(len(grams), 0, [])
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
                shared = len(np.intersect1d(grams[document], grams[other], assume_unique=True))
                index = shared / (len(grams[document]) + len(grams[other]) - shared)
                if index >= ALIKE:
                    later[document] = other, index
                    break
    pairs = [(int(names[d]), int(names[o]), index) for d, (o, index) in sorted(later.items())[:shown]]
    return Near(len(grams), len(later), pairs)


def _chosen(shards: Shards, tokens: int) -> np.ndarray:
    """Evenly spaced documents of about `tokens` tokens."""
    count = len(shards)
    total = int(shards.lengths("text").sum())
    kept = count if total <= tokens else max(1, int(count * tokens / total))
    return np.unique(np.linspace(0, count - 1, kept).astype(np.int64)) if count else np.zeros(0, np.int64)


def _runs(ids: np.ndarray) -> np.ndarray:
    """uint64: one number for each run of RUN ids."""
    total = np.zeros(len(ids) - RUN + 1, np.uint64)
    with np.errstate(over="ignore"):
        for j in range(RUN):
            total = total * FACTOR + ids[j : j + len(total)].astype(np.uint64)
    return mix(total)


def _bands(grams: Sequence[np.ndarray]) -> list[np.ndarray]:
    """uint64[D] for each band: a hash of its ROWS smallest numbers."""
    flat = np.concatenate(grams)
    starts = np.cumsum([0, *map(len, grams[:-1])])
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

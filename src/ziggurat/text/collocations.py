"""Phrases and names out of a corpus, in any language, by counting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ziggurat.errors import check
from ziggurat.text.boundaries import Segmenter, word_starts

BREAK = -1
"""Stands between words that cannot be of one phrase."""
WHOLE = 0.8
"""A phrase is left out when this share of its occurrences belongs to one that is a word longer: it is a piece of that."""


def collocations(
    texts: Iterable[str], *, least: int, score: float, longest: int, most: int, segmenter: Segmenter = "characters"
) -> list[str]:
    """The phrases of 2 to `longest` words that occur `least` times or more, most frequent first, `most` at most.

    A run of words is a phrase when, wherever it is cut in two, its halves meet far more often than by chance: the normalised pointwise
    mutual information of every cut (Bouma, 2009: ln(p(xy) / (p(x) p(y))) / -ln p(xy)) is `score` or more. That they meet more often than
    their words do is how word2vec's authors find phrases (Mikolov et al., 2013, 4). Words hold a letter or digit and are taken as they
    are written; between them stands nothing or one space, as a dictionary of phrases finds them.

    Raises:
        UserError: no run of words is a phrase.
    """
    names: dict[str, int] = {}
    flat = np.fromiter(_words(texts, names, segmenter), np.int64)
    flat, apart = np.divmod(flat, 2)  # the low bit: a space stands before the word
    counts = np.bincount(flat[flat >= 0], minlength=len(names)).astype(np.float64)
    total = counts.sum()
    words = list(names)
    # grams[k]: at each place the number of the run of k words that begins there, or -1 where it is rare or broken
    grams, times = {1: np.where(flat >= 0, flat, BREAK).astype(np.int32)}, {1: counts}
    found: dict[int, dict[int, str]] = {}  # length -> number of the run -> its text
    for k in range(2, longest + 1):
        if len(flat) < k:
            break
        begin, end = grams[k - 1][: len(flat) - k + 1], grams[k - 1][1 : len(flat) - k + 2]
        space = apart[k - 1 :]
        known = np.flatnonzero((begin >= 0) & (end >= 0))
        # A run is its first k - 1 words, its last word, and whether a space stands between them.
        name = (begin[known].astype(np.int64) * len(names) + flat[known + k - 1]) * 2 + space[known]
        _, first, number, count = np.unique(name, return_index=True, return_inverse=True, return_counts=True)
        keep = count >= least
        if not keep.any():
            break
        renumbered = np.where(keep, np.cumsum(keep) - 1, BREAK)
        grams[k] = np.full(len(flat), BREAK, np.int32)
        grams[k][known] = renumbered[number]
        times[k] = count[keep].astype(np.float64)
        at = known[first[keep]]
        worst = np.ones(len(at))
        for cut in range(1, k):
            left, right = times[cut][grams[cut][at]], times[k - cut][grams[k - cut][at + cut]]
            with np.errstate(divide="ignore", invalid="ignore"):
                likeness = np.log(times[k] * total / (left * right)) / -np.log(times[k] / total)
            worst = np.minimum(worst, np.nan_to_num(likeness))
        found[k] = {}
        for i in np.flatnonzero(worst >= score).tolist():
            run = range(at[i], at[i] + k)
            found[k][i] = "".join(" " * int(apart[j] and j > at[i]) + words[flat[j]] for j in run)
            for part in {grams[k - 1][at[i]], grams[k - 1][at[i] + 1]} if k > 2 else ():
                if times[k][i] >= WHOLE * times[k - 1][part]:
                    found[k - 1].pop(int(part), None)
    ranked = sorted((-times[k][i], text) for k, some in found.items() for i, text in some.items())
    check(
        ranked,
        f"no run of words occurs {least} times and belongs together",
        "give more text, lower `phrases.least` or `phrases.score`, or give `phrases` a dictionary",
    )
    return [text for _, text in ranked[:most]]


def _words(texts: Iterable[str], names: dict[str, int], segmenter: Segmenter) -> Iterator[int]:
    """Twice the number of each word, and 1 more behind a space; `2 * BREAK` between words that cannot be of one phrase."""
    for text in texts:
        yield 2 * BREAK
        starts = np.flatnonzero(word_starts(text, segmenter)).tolist()
        last = 0
        for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
            word = text[start:stop].rstrip()
            gap = text[last:start]
            if gap not in ("", " "):
                yield 2 * BREAK
            last = start + len(word)
            if any(c.isalnum() for c in word):
                yield 2 * names.setdefault(word, len(names)) + (gap == " ")
            else:
                yield 2 * BREAK

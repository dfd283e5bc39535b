"""Similar words out of the corpus itself: vectors of the words that masking hides, and each word's nearest ones of as many tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from pydantic import Field

from ziggurat.config import Spec, spelled
from ziggurat.errors import check
from ziggurat.text.similar import Ids, names_of
from ziggurat.types import Part

LONGEST = 16
"""Tokens; a longer word is none (a line of base64, an address)."""


class Vectors(Spec):
    """Similar words by word vectors that `prepare` trains on the training text of the recipe's sources (extra `similar`)."""

    vocabulary: int = Field(30_000, ge=4)
    """The most words that get a vector, the most frequent ones."""
    least: int = Field(5, ge=1)
    """How often a word must occur to get one."""
    window: int = Field(5, ge=1)
    """Its contexts are so many words on either side."""
    width: int = Field(100, ge=1)
    """Numbers in a vector."""
    most: int = Field(10, ge=1)
    """The most similar words that a word gets."""
    tokens: int = Field(20_000_000, ge=1)
    """Tokens of text read, in whole documents from all over the sources; a larger corpus is thinned out."""

    def place(self, run: Path) -> Path:
        """The table in a run folder: a text file with a line for each word, the word and its similar words, nearest first."""
        return run / "similar" / f"{hashlib.sha256(json.dumps(spelled(self), sort_keys=True).encode()).hexdigest()[:8]}.tsv"


def installed() -> None:
    """Raise `UserError` if the library of the extra is missing."""
    check(
        find_spec("scipy") is not None,
        "similar words from the corpus need scipy, which is not installed",
        "pip install 'ziggurat[similar]', or give `table` a file of words and their similar words",
    )


def similar_words(blocks: Callable[[], Iterable[Part]], decode: Callable[[Ids], str], spec: Vectors) -> dict[str, list[str]]:
    """For each frequent word of the text its nearest words of as many tokens, nearest first.

    Vectors are the truncated singular value decomposition of positive pointwise mutual information (Levy et al., 2015, 3 and 7: context
    counts to the power 0.75, singular values to the power 0.5), by `scipy`; rare words go before windows are laid, as in word2vec.
    MacBERT's authors took word2vec vectors made elsewhere. Words are those of the blocks, so those that masking hides; of them those
    that hold a letter or digit. No random number is drawn.

    `blocks` gives the text, twice the same; `decode` the text of a word's ids.

    Raises:
        UserError: `scipy` is not installed, or the text has too few words.
    """
    installed()
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import svds

    words = _frequent(blocks(), decode, spec)
    few = f"only {len(words)} words occur {spec.least} times or more, too few to learn from which are similar"
    check(len(words) > 3, few, "give more text, lower `table.least`, or give `table` a file")
    shape = (len(words), len(words))
    pairs = coo_array(shape).tocsr()
    for one, other in _near(blocks(), np.array(list(words), np.uint64), spec.window):
        pairs += coo_array((np.ones(len(one)), (one, other)), shape).tocsr()
    pairs = (pairs + pairs.T).tocoo()
    rows, columns = pairs.coords
    total = np.bincount(rows, pairs.data, len(words))
    smooth = total**0.75
    information = np.log(pairs.data * smooth.sum() / (total[rows] * smooth[columns]))
    matrix = coo_array((np.maximum(information, 0), (rows, columns)), shape).tocsr()
    left, values, _ = svds(matrix, k=min(spec.width, len(words) - 1), v0=np.ones(len(words)))
    vectors = left * np.sqrt(values)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    texts, size = [text for text, _ in words.values()], np.array([n for _, n in words.values()])
    found: dict[str, dict[str, None]] = {}
    for n in np.unique(size):
        group = np.flatnonzero(size == n)
        for start in range(0, len(group), 1024):
            block = group[start : start + 1024]
            likeness = vectors[block] @ vectors[group].T
            nearest = np.argsort(-likeness, axis=1, kind="stable")[:, : spec.most + 1]
            for i, row in zip(block.tolist(), nearest, strict=True):
                others = [o for j in group[row].tolist() if (o := texts[j]) != texts[i]][: spec.most]
                if others:  # with and without a space before it, a word may be two
                    found.setdefault(texts[i], {}).update(dict.fromkeys(others))
    return {word: list(others) for word, others in found.items()}


def _frequent(blocks: Iterable[Part], decode: Callable[[Ids], str], spec: Vectors) -> dict[int, tuple[str, int]]:
    """The hashes of the most frequent words, most frequent first, with their texts and numbers of tokens."""
    counts: dict[int, int] = {}
    ids: dict[int, Ids] = {}
    for part in blocks:
        names, first, size, _ = _words(part)
        names, at, times = np.unique(names, return_index=True, return_counts=True)
        for name, i, count in zip(names.tolist(), at.tolist(), times.tolist(), strict=True):
            if name not in ids:
                ids[name] = tuple(part.ids[first[i] : first[i] + size[i]].tolist())
            counts[name] = counts.get(name, 0) + count
    found: dict[int, tuple[str, int]] = {}
    for name in sorted((name for name, n in counts.items() if n >= spec.least), key=lambda name: (-counts[name], name)):
        text = "".join(decode(ids[name]).split())  # a decoder may put spaces between the characters of a Chinese word
        if any(c.isalnum() for c in text):
            found[name] = text, len(ids[name])
            if len(found) == spec.vocabulary:
                break
    return found


def _near(blocks: Iterable[Part], names: np.ndarray, window: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each block the pairs of words, as indices into `names`, that stand at most `window` such words apart in a document."""
    order = np.argsort(names)
    ascending = names[order]
    for part in blocks:
        found, _, _, document = _words(part)
        at = np.minimum(np.searchsorted(ascending, found), len(names) - 1)
        known = ascending[at] == found
        sequence, document = order[at[known]], document[known]
        near = [np.stack([sequence[:-d], sequence[d:]])[:, document[:-d] == document[d:]] for d in range(1, window + 1)]
        one, other = np.concatenate(near, axis=1)
        yield one, other


def _words(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each word of up to LONGEST tokens its hash, its first token, its number of tokens, and its document."""
    begins = part.words.copy()
    begins[part.bounds[:-1][np.diff(part.bounds) > 0]] = True
    first = np.flatnonzero(begins)
    size = np.diff(first, append=len(part.ids))
    first, size = first[size <= LONGEST], size[size <= LONGEST]
    return names_of(part.ids, first, size), first, size, np.searchsorted(part.bounds, first, side="right") - 1

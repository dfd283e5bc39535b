"""Similar words: a table the user gives, or neighbours of vectors trained on the corpus; and the same as token ids.

A table is a `.json` file of one object, `{"word": ["similar", ...], ...}`, or a text file with a line for each word, the word and its
similar words separated by tabs. A word can only stand in for one of the same number of tokens: each place has its own answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ziggurat.context import Vocab, mix
from ziggurat.errors import UserError, check

if TYPE_CHECKING:
    from ziggurat.text.tokenizer import Encoded

Ids = tuple[int, ...]


class Encoder(Protocol):
    """What of a tokenizer is needed here."""

    @property
    def vocab(self) -> Vocab: ...
    def encode(self, texts: Sequence[str]) -> list[Encoded]: ...


@dataclass(frozen=True, slots=True, eq=False)
class SimilarWords:
    """W words and their similar words, as token ids; two tables are equal when their `digest` is."""

    names: np.ndarray
    """uint64[W] ascending: a hash of each word's ids."""
    size: np.ndarray
    """int64[W]: tokens of the word, and of each of its similar words."""
    count: np.ndarray
    """int64[W]: its similar words."""
    start: np.ndarray
    """int64[W]: where they stand in `ids`, end to end."""
    ids: np.ndarray
    """int32[N]"""
    digest: str
    """SHA-256 (hex) of all of it."""

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, rows: Mapping[Ids, Sequence[Ids]]) -> SimilarWords:
        """The table of these words; each has at least one similar word, and all of those have its length."""
        words = list(rows)
        size = np.array([len(word) for word in words], np.int64)
        flat = np.array([i for word in words for i in word], np.int32)
        names = names_of(flat, np.cumsum(size) - size, size)
        order = np.argsort(names)
        assert len(np.unique(names)) == len(names), "two words have one hash"
        found = [rows[words[i]] for i in order.tolist()]
        size, count = size[order], np.array([len(row) for row in found], np.int64)
        assert all(row and all(len(word) == n for word in row) for row, n in zip(found, size.tolist(), strict=True))
        ids = np.array([i for row in found for word in row for i in word], np.int32)
        taken = size * count
        arrays = names[order], size, count, np.cumsum(taken) - taken, ids
        return cls(*arrays, hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest())

    def find(self, content: np.ndarray, first: np.ndarray, size: np.ndarray) -> np.ndarray:
        """int64[N]: the row of each word `content[first[n]:first[n] + size[n]]`, or -1."""
        row = np.full(len(first), -1, np.int64)
        if len(self):
            known = np.flatnonzero(size <= self.size.max())
            names = names_of(content, first[known], size[known])
            at = np.minimum(np.searchsorted(self.names, names), len(self) - 1)
            same = (self.names[at] == names) & (self.size[at] == size[known])
            row[known[same]] = at[same]
        return row


def names_of(ids: np.ndarray, first: np.ndarray, size: np.ndarray) -> np.ndarray:
    """uint64[N]: a hash of each of the words `ids[first[n]:first[n] + size[n]]`."""
    names = mix(size.astype(np.uint64))
    for j in range(int(size.max(initial=0))):
        longer = np.flatnonzero(size > j)
        names[longer] = mix(names[longer] ^ ids[first[longer] + j].astype(np.uint64))
    return names


def read_words(path: str | Path) -> dict[str, list[str]]:
    """The words of a table file (see above) with their similar words, in the order of the file.

    Raises:
        UserError: a file that cannot be read or is not of that form, with the line or word.
    """
    path = Path(path)
    hint = 'a table is {"word": ["similar", ...]} in a .json file, or lines of word<tab>similar<tab>similar ...'
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"the table of similar words {path} cannot be read: {e}", hint) from e
    words: dict[str, list[str]] = {}
    if path.suffix == ".json":
        try:
            table = json.loads(text)
        except ValueError as e:
            raise UserError(f"{path} is not JSON: {e}", hint) from e
        check(isinstance(table, dict), f"{path} holds no object", hint)
        for word, similar in table.items():
            good = isinstance(similar, list) and all(isinstance(s, str) for s in similar)
            check(good, f"{path}: the similar words of {word!r} are no list of texts", hint)
            words[word] = similar
    else:
        for n, line in enumerate(text.splitlines(), 1):
            word, *similar = (part.strip() for part in line.split("\t"))
            check(word or not line.strip(), f"{path}:{n} begins with a tab", hint)
            check(similar or not word, f"{path}:{n} has no tab and names no similar word", hint)
            if word:
                words.setdefault(word, []).extend(filter(None, similar))
    return words


def compiled(words: Mapping[str, Sequence[str]], tokenizer: Encoder) -> SimilarWords:
    """The table as token ids: of each word those similar words that the tokenizer writes with as many tokens, without repetition.

    Words are encoded as they stand at a text's beginning and as they stand behind a space, which may differ. Words with unknown or
    special tokens are left out, and so are words to which nothing similar is left.
    """
    texts = list(dict.fromkeys(text for word, similar in words.items() for text in (word, *similar)))
    bad = {*tokenizer.vocab.special, tokenizer.vocab.unk}
    rows: dict[Ids, dict[Ids, None]] = {}
    for before in ("", " "):
        encoded = tokenizer.encode([before + text for text in texts])
        ids = {text: tuple(e.ids.tolist()) for text, e in zip(texts, encoded, strict=True)}
        for word, similar in words.items():
            own = ids[word]
            others = [o for s in similar if len(o := ids[s]) == len(own) and o != own and not bad & {*o}]
            if own and others and not bad & {*own}:
                rows.setdefault(own, {}).update(dict.fromkeys(others))
    check(
        rows,
        f"none of the {len(words)} words of the table has a similar word of as many tokens",
        "give words that the tokenizer of this run writes with equally many tokens; in Chinese, words of as many characters",
    )
    return SimilarWords.of({word: list(others) for word, others in rows.items()})


def similar_words(
    texts: Iterable[str],
    tokenizer: Encoder,
    *,
    vocabulary: int = 30_000,
    least: int = 5,
    window: int = 5,
    width: int = 100,
    most: int = 10,
) -> dict[str, list[str]]:
    """A table made from the texts themselves: for each word its nearest words of as many tokens, nearest first.

    Vectors are the truncated singular value decomposition of positive pointwise mutual information (Levy et al., 2015, 3 and 7: context
    counts to the power 0.75, singular values to the power 0.5), by `scipy`. Words are those of the tokenizer, so those that masking
    hides; `vocabulary` of them at most, which occur `least` times or more; contexts are the `window` words on either side; vectors
    have `width` numbers; a word gets `most` similar ones at most. MacBERT's authors took word2vec vectors made elsewhere.

    Raises:
        UserError: `scipy` is not installed, or the texts have too few words.
    """
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.linalg import svds
    except ImportError:
        raise UserError("similar words from the corpus need scipy, which is not installed", "pip install scipy") from None
    numbers: dict[str, int] = {}
    sizes: list[int] = []
    runs = []
    for word_list in _words(texts, tokenizer):
        for word, size in word_list:
            if numbers.setdefault(word, len(numbers)) == len(sizes):
                sizes.append(size)
        runs.append(np.array([numbers[word] for word, _ in word_list], np.int64))
    sequence = np.concatenate([*runs, np.zeros(0, np.int64)])
    text = np.repeat(np.arange(len(runs)), [len(r) for r in runs])
    frequent = [n for n, count in Counter(sequence.tolist()).most_common(vocabulary) if count >= least]
    check(len(frequent) > 3, f"only {len(frequent)} words occur {least} times", "give more text, or a table of your own")
    new = np.full(len(numbers), -1)
    new[frequent] = np.arange(len(frequent))
    kept = new[sequence] >= 0  # rare words go before windows are laid, as in word2vec
    sequence, text = new[sequence[kept]], text[kept]
    near = [np.stack([sequence[:-d], sequence[d:]])[:, text[:-d] == text[d:]] for d in range(1, window + 1)]
    one, other = np.concatenate(near, axis=1)
    shape = (len(frequent), len(frequent))
    pairs = coo_array((np.ones(2 * len(one)), (np.append(one, other), np.append(other, one))), shape).tocsr().tocoo()
    rows, columns = pairs.coords
    total = np.bincount(rows, pairs.data, shape[0])
    smooth = total**0.75
    information = np.log(pairs.data * smooth.sum() / (total[rows] * smooth[columns]))
    matrix = coo_array((np.maximum(information, 0), (rows, columns)), shape).tocsr()
    left, values, _ = svds(matrix, k=min(width, shape[0] - 1), v0=np.ones(shape[0]))
    vectors = left * np.sqrt(values)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    words, length = list(numbers), np.array(sizes)[frequent]
    found: dict[str, list[str]] = {}
    for size in np.unique(length):
        group = np.flatnonzero(length == size)
        for start in range(0, len(group), 1024):
            block = group[start : start + 1024]
            likeness = vectors[block] @ vectors[group].T
            nearest = np.argsort(-likeness, axis=1, kind="stable")[:, : most + 1]
            for i, row in zip(block.tolist(), nearest, strict=True):
                others = [words[frequent[j]] for j in group[row].tolist() if j != i][:most]
                if others:
                    found[words[frequent[i]]] = others
    return found


def _words(texts: Iterable[str], tokenizer: Encoder) -> Iterator[list[tuple[str, int]]]:
    """For each text its words that hold a letter or digit, with their numbers of tokens."""
    texts = iter(texts)
    while some := list(islice(texts, 1024)):
        for text, encoded in zip(some, tokenizer.encode(some), strict=True):
            first = np.flatnonzero(encoded.words)
            last = np.append(first[1:], len(encoded.ids)) - 1
            spans = zip(
                encoded.offsets[first, 0].tolist(), encoded.offsets[last, 1].tolist(), (last - first + 1).tolist(), strict=True
            )
            words = ((text[a:b].strip(), size) for a, b, size in spans)
            yield [(word, size) for word, size in words if any(c.isalnum() for c in word)]

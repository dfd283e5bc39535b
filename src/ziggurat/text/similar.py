"""Tables of similar words: as files, and as token ids.

A table is a `.json` file of one object, `{"word": ["similar", ...], ...}`, or a text file with a line for each word, the word and its
similar words separated by tabs. A word can only stand in for one of the same number of tokens: each place has its own answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

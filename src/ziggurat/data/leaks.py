"""Test texts that stand in pre-training text: found by shared word n-grams, and kept out.

A document leaks a test text when it holds at least half (`containment`) of the text's word n-grams, all within a
stretch of twice the text's length. n is 8 (as in the decontamination of GPT-3's and PaLM's test sets), less for
short texts so that one changed word does not hide them: (words + 1) // 3, at least 4. Half of a text of fewer than 8
words is a turn of phrase ("the current state of the"): a document more than twice as long must hold all of it. One of fewer
than 5 words stands in too many places by chance; only a document that says nothing else leaks it.

A document that is a piece of a test text leaks it, too, for a corpus may be cut smaller than the test: at least two thirds of the
document's n-grams stand in the one test text, and so many different ones as 13 words in a row have (24 Han characters).

Words are compared in lower case without punctuation (after NFKC); a Han character is a word by itself.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ziggurat.context import mix
from ziggurat.types import Document

HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(f"[{HAN}]|[^\\W_{HAN}]+")
FEWEST = 5
"""Words of the shortest test text that is looked for inside longer documents."""
SHORT = 8
"""Words from which on half of a test text in a longer document is no chance."""
SMALLEST_GRAM = 4
PIECE, HAN_PIECE = 13, 24
"""Words and Han characters that a piece of a test text has in common with it at least: fewer are a turn of phrase."""
PIECE_SHARE = 2 / 3
"""Of a document's n-grams, how many stand in a test text that it is a piece of: of a form that is filled in, fewer do."""
BLOCK_CHARACTERS = 1 << 20
"""Documents are examined together up to this size: the arrays stay small, the calls few."""
KEPT_WORDS = 1 << 20
BUCKETS = np.uint64((1 << 22) - 1)
FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Leak:
    """A document that was left out, and the test document on account of which."""

    document: str
    test: str
    share: float
    """Of the test text's n-grams, how many the document holds; 1 when the test text was taken out of it."""
    piece: bool = False
    """The document is a piece of the test text: `share` is of its own n-grams."""

    def __str__(self) -> str:
        return (
            f"{self.share:.0%} of {self.document} stands in {self.test}"
            if self.piece
            else f"{self.document} holds {self.share:.0%} of {self.test}"
        )


class _Hashes(dict[str, int]):
    """64-bit hash of each word, computed once per word and the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) >= KEPT_WORDS:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        self[word] = value
        return value


def words(text: str) -> list[str]:
    """The words of a text as they are compared: lower case, no punctuation, Han characters one by one."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return WORD.findall(text.lower())


def _grams(hashes: np.ndarray, n: int) -> np.ndarray:
    """uint64[N - n + 1]: one number for each run of n words of uint64[N]."""
    total = np.zeros(max(0, len(hashes) - n + 1), np.uint64)
    with np.errstate(over="ignore"):
        for j in range(n):
            total = total * FACTOR + hashes[j : j + len(total)]
    return mix(total) if len(total) else total


@dataclass(frozen=True, slots=True)
class _Grams:
    """The n-grams of one length of all test texts, sorted, with the texts that hold them."""

    values: np.ndarray
    """uint64[G], sorted, without repetition"""
    starts: np.ndarray
    """int64[G + 1]: the texts with n-gram g are `owners[starts[g]:starts[g + 1]]`."""
    owners: np.ndarray
    """int64[...]"""
    buckets: np.ndarray
    """bool[2**22]: a first, coarse look-up"""

    @classmethod
    def of(cls, grams: np.ndarray, owners: np.ndarray) -> _Grams:
        order = np.argsort(grams, kind="stable")
        values, starts = np.unique(grams[order], return_index=True)
        buckets = np.zeros(int(BUCKETS) + 1, bool)
        buckets[values & BUCKETS] = True
        return cls(values, np.append(starts, len(grams)), owners[order], buckets)


def telling(test: Document) -> Sequence[str]:
    """The texts that give a test document away. Who says what was asked has not said of which text: "What is it about?" stands in many
    rows of a reading task, and so does an answer to it."""
    if "answers" in test.fields:
        return (test.texts["pair"],)
    return (test.texts["text"],) if "choices" in test.lists or "group" in test.fields else tuple(test.texts.values())


class LeakIndex:
    """Finds the documents that hold one of the test texts or a near duplicate of it.

    `tests` are all test documents; each of a document's texts counts by itself, but not a question that is asked about a text. Test
    documents cut out of a larger document name it in `fields["document"]`: the document of that id leaks too, whatever it says.
    Without `pieces` only a document that holds half of a test text leaks it, and none that is a piece of one.
    """

    def __init__(self, tests: Iterable[Document], *, ngram: int = 8, containment: float = 0.5, pieces: bool = True):
        assert ngram >= SMALLEST_GRAM and 0 < containment <= 1
        self.containment, self.pieces = containment, pieces
        self._hashes = _Hashes()
        self._names: list[str] = []
        self._lengths: list[int] = []
        self._counts: list[int] = []
        self._ngrams: list[int] = []
        self._whole: dict[bytes, int] = {}
        self._origins: dict[str, str] = {}
        grams: dict[int, list[np.ndarray]] = defaultdict(list)
        owners: dict[int, list[np.ndarray]] = defaultdict(list)
        for test in tests:
            if origin := test.fields.get("document"):
                self._origins.setdefault(str(origin), test.id)
            for text in telling(test):
                hashes = self._hash(words(text))
                if not len(hashes):
                    continue
                number = len(self._names)
                self._names.append(test.id)
                self._lengths.append(len(hashes))
                if len(hashes) < FEWEST:
                    self._counts.append(0)
                    self._ngrams.append(0)
                    self._whole.setdefault(hashes.tobytes(), number)
                    continue
                n = min(ngram, max(SMALLEST_GRAM, (len(hashes) + 1) // 3))
                found = np.unique(_grams(hashes, n))
                self._counts.append(len(found))
                self._ngrams.append(n)
                grams[n].append(found)
                owners[n].append(np.full(len(found), number))
        self._grams = {n: _Grams.of(np.concatenate(grams[n]), np.concatenate(owners[n])) for n in sorted(grams)}

    def __len__(self) -> int:
        return len(self._names)

    def _hash(self, found: Sequence[str]) -> np.ndarray:
        return np.fromiter(map(self._hashes.__getitem__, found), np.uint64, len(found))

    def leaks(self, documents: Sequence[Document]) -> list[Leak | None]:
        """For each document the test text it gives away, or None."""
        hashes: list[np.ndarray] = []
        owner: list[int] = []
        texts: list[str] = []
        result: list[Leak | None] = [None] * len(documents)
        for d, document in enumerate(documents):
            if document.id in self._origins:
                result[d] = Leak(document.id, self._origins[document.id], 1.0)
                continue
            said = [self._hash(words(text)) for text in document.texts.values()]
            short = [self._whole.get(found.tobytes()) if len(found) < FEWEST else None for found in said if len(found)]
            if short and None not in short:  # the document says nothing else
                result[d] = Leak(document.id, self._names[short[0] or 0], 1.0)
            hashes += said
            owner += [d] * len(said)
            texts += document.texts.values()
        if not hashes or not self._grams:
            return result
        flat = np.concatenate(hashes)
        run = np.repeat(np.arange(len(hashes)), [len(h) for h in hashes])
        # (run, test) -> the places where the run holds an n-gram of the test text
        hits: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for n, known in self._grams.items():
            grams = _grams(flat, n)
            at = np.flatnonzero(known.buckets[grams & BUCKETS])
            at = at[run[at] == run[at + n - 1]]
            place = np.minimum(np.searchsorted(known.values, grams[at]), len(known.values) - 1)
            sure = known.values[place] == grams[at]
            for where, which in zip(at[sure].tolist(), place[sure].tolist(), strict=True):
                for test in known.owners[known.starts[which] : known.starts[which + 1]].tolist():
                    hits[int(run[where]), test].append((where, which))
        for (r, test), places in hits.items():
            long = self._lengths[test] >= SHORT or len(hashes[r]) <= 2 * self._lengths[test]
            wanted = self.containment if long else 1.0
            if len(places) < wanted * self._counts[test]:  # there are many of these
                continue
            d = owner[r]
            share = self._most(places, 2 * self._lengths[test]) / self._counts[test]
            best = result[d]
            if share >= wanted and (best is None or share > best.share):
                result[d] = Leak(documents[d].id, self._names[test], share)
        for (r, test), places in hits.items() if self.pieces else ():
            d = owner[r]
            share = len(places) / (len(hashes[r]) - self._ngrams[test] + 1)
            if result[d] is None and share >= PIECE_SHARE and self._long(places, test, texts[r]):
                result[d] = Leak(documents[d].id, self._names[test], share, piece=True)
        return result

    def _long(self, places: list[tuple[int, int]], test: int, text: str) -> bool:
        """Whether a document has enough in common with a test text to be a piece of it: different n-grams, for a list repeats itself."""
        shared = len({which for _, which in places}) + self._ngrams[test] - 1
        if shared < PIECE:
            return False
        found = words(text)
        return shared >= HAN_PIECE or 2 * sum(re.match(f"[{HAN}]", word) is not None for word in found) < len(found)

    @staticmethod
    def _most(places: list[tuple[int, int]], stretch: int) -> int:
        """The most different n-grams within `stretch` words; `places` are in the order of the text."""
        inside: dict[int, int] = defaultdict(int)
        most = first = 0
        for where, which in places:
            inside[which] += 1
            while where - places[first][0] >= stretch:
                gone = places[first][1]
                inside[gone] -= 1
                if not inside[gone]:
                    del inside[gone]
                first += 1
            most = max(most, len(inside))
        return most

    def clean(self, documents: Iterable[Document], left_out: list[Leak] | None = None) -> Iterator[Document]:
        """The documents that give no test text away, streamed. What was left out and why goes to `left_out`."""
        for block in _blocks(documents):
            for document, leak in zip(block, self.leaks(block), strict=True):
                if leak is None:
                    yield document
                elif left_out is not None:
                    left_out.append(leak)

    def assert_clean(self, documents: Iterable[Document]) -> int:
        """How many documents were examined; `AssertionError` at the first that gives a test text away."""
        count = 0
        for block in _blocks(documents):
            for leak in self.leaks(block):
                if leak is not None:
                    raise AssertionError(f"a test text is in the training text: {leak}")
            count += len(block)
        return count


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    block: list[Document] = []
    size = 0
    for document in documents:
        block.append(document)
        size += sum(map(len, document.texts.values()))
        if size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block

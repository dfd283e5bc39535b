"""A tokenizer for tests: a word is a token, its id a hash, its first letter's case says whether a sentence begins."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ziggurat.context import Context, Layout, Vocab


class Encoded(NamedTuple):
    ids: np.ndarray
    words: np.ndarray
    sentences: np.ndarray
    offsets: np.ndarray
    units: int = 0


class Whitespace:
    """Words of more than 6 letters are two tokens; `~` is dropped, as tokenizers drop control characters."""

    fingerprint = "whitespace"
    vocab: Vocab = Vocab(size=1000, pad=0, mask=1, end=3, special=(0, 1, 2, 3))
    layout = Layout((2,), (3,), (3,), (0, 1))

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Encoded:
        spans, words, sentences = [], [], []
        for found in re.finditer(r"[^\s~]+", text):
            a, b = found.span()
            spans += [(a, b)] if b - a <= 6 else [(a, a + 6), (a + 6, b)]
            words += [True] if b - a <= 6 else [True, False]
            sentences += [found[0][0].isupper()] + [False] * (b - a > 6)
        ids = [4 + zlib.crc32(text[a:b].encode()) % 996 for a, b in spans]
        offsets = np.array(spans, np.int64).reshape(-1, 2)
        return Encoded(np.array(ids, np.int32), np.array(words, bool), np.array(sentences, bool), offsets, sum(words))

    def context(self, length: int = 16, **other: object) -> Context:
        return Context(self.vocab, self.layout, length, **other)  # type: ignore[arg-type]

"""What a corpus is made of, counted while its documents go by: characters, letters of each script, sentences, copies.

`Census` reads texts and costs little beside tokenizing them; the rest is read off finished shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ziggurat.context import mix
from ziggurat.data.shards import Shards
from ziggurat.data.subset import Subset
from ziggurat.types import Document

SCRIPTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    "Han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    "Kana": ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "Hangul": ((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Arabic": ((0x620, 0x64A), (0x66E, 0x6D3), (0x750, 0x77F), (0x8A0, 0x8C7), (0xFB50, 0xFDFB), (0xFE70, 0xFEFC)),
    "Hebrew": ((0x5D0, 0x5EA),),
    "Devanagari": ((0x904, 0x939), (0x958, 0x961)),
    "Thai": ((0xE01, 0xE30), (0xE32, 0xE33), (0xE40, 0xE46)),
}  # fmt: skip
"""Letters of the scripts that are told apart, as Unicode has them (Scripts.txt, blocks coarsely). Other characters are of none."""
NAMES = tuple(SCRIPTS)
_ranges = sorted((low, high + 1, number) for number, spans in enumerate(SCRIPTS.values()) for low, high in spans)
EDGES = np.array([edge for low, high, _ in _ranges for edge in (low, high)], np.uint32)
OWNERS = np.array([len(NAMES), *(owner for _, _, number in _ranges for owner in (number, len(NAMES)))])
AT_ONCE = 1 << 18
"""Characters looked at together."""


@dataclass
class Census:
    """Characters of the documents that went by, and how many of them are letters of each script."""

    documents: int = 0
    characters: int = 0
    letters: np.ndarray = field(default_factory=lambda: np.zeros(len(NAMES), np.int64))
    _waiting: list[str] = field(default_factory=list)
    _size: int = 0

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents."""
        for document in documents:
            self.documents += 1
            for text in document.texts.values():
                self._waiting.append(text)
                self._size += len(text)
            if self._size >= AT_ONCE:
                self._count()
            yield document
        self._count()

    def _count(self) -> None:
        text, self._waiting, self._size = "".join(self._waiting), [], 0
        self.characters += len(text)
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        owners = OWNERS[np.searchsorted(EDGES, points, side="right")]
        self.letters += np.bincount(owners, minlength=len(NAMES) + 1)[:-1]

    def facts(self) -> dict[str, Any]:
        """`characters`, and `scripts` {name: letters}, most frequent first."""
        order = np.argsort(-self.letters, kind="stable")
        return {"characters": self.characters, "scripts": {NAMES[i]: int(self.letters[i]) for i in order if self.letters[i]}}


def several_sentences(shards: Shards | Subset, tokens: int = 3_000_000) -> tuple[int, int]:
    """Of the first documents: how many were looked at, and how many of their texts have two sentences or more. `tokens` tokens are
    enough once there is one."""
    looked = several = seen = 0
    while looked < len(shards) and (seen < tokens or not several):
        part = shards.read(np.arange(looked, min(looked + 1024, len(shards)))).parts["text"]
        begins = np.append(0, np.cumsum(part.sentences))
        several += int(np.count_nonzero(np.diff(begins[part.bounds]) > 1))
        looked, seen = looked + len(part.bounds) - 1, seen + len(part.ids)
    return looked, several


def copies(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(copy, original), int64[C] each: the documents whose text an earlier one has, by their `Shards.keys`.

    The n-th copy of a text has the text's key mixed with n, so the originals' keys tell what their copies' keys are.
    """
    order = np.argsort(keys)
    ordered = keys[order]
    found: list[tuple[np.ndarray, np.ndarray]] = []
    originals, n = np.arange(len(keys)), 1
    while len(originals):
        wanted = mix(keys[originals] ^ mix(np.full(len(originals), n, np.uint64)))
        at = np.minimum(np.searchsorted(ordered, wanted), max(len(ordered) - 1, 0))
        hit = ordered[at] == wanted
        found.append((order[at[hit]], originals[hit]))
        originals, n = originals[hit], n + 1
    pairs = [np.concatenate(column) for column in zip(*found, strict=True)] if found else [np.zeros(0, np.int64)] * 2
    return pairs[0], pairs[1]

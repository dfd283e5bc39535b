"""What an objective may know while it forms and corrupts examples: vocabulary, layout, and seeded randomness.

Randomness is a keyed hash of (seed, epoch, document key, index, purpose), never a generator that is advanced: the
sample at a step is a pure function, so masks do not depend on workers, packing, batch size or resumption.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Vocab:
    """The numbers of a vocabulary that objectives need."""

    size: int
    pad: int
    mask: int | None = None
    unk: int | None = None
    end: int | None = None
    """The token that ends a document (`[SEP]`, `</s>`, `<|endoftext|>`), if there is one."""
    special: tuple[int, ...] = ()
    """Ids of all special tokens."""
    names: Mapping[str, int] = field(default_factory=dict)
    """Special tokens by their text, extra ones of objectives included."""

    def ordinary(self) -> np.ndarray:
        """int32[V - specials]: the ids a random replacement is drawn from."""
        keep = np.ones(self.size, bool)
        keep[list(self.special)] = False
        return np.flatnonzero(keep).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where special tokens stand: `first A last` and `first A between B last`, read off the tokenizer's own template."""

    first: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    segments: tuple[int, int] = (0, 0)
    """Segment number of A (with `first`, `between`) and of B (with the `last` of a pair)."""
    summary: int | None = None
    """Segment number of the very last token where it has one of its own (XLNet's class token: 2)."""

    def room(self, length: int, *, pair: bool = False) -> int:
        """Tokens of text that fit beside the special ones in `length` tokens."""
        return length - len(self.first) - len(self.last) - (len(self.between) if pair else 0)


@dataclass(frozen=True, slots=True)
class Context:
    """Everything `form` and `corrupt` may depend on besides their input."""

    vocab: Vocab
    layout: Layout
    length: int
    """Longest example in tokens, special tokens included."""
    visibility: Literal["full", "causal"] = "full"
    """The system's habit; an objective overrules it when its meaning demands."""
    seed: int = 0
    epoch: int = 0
    progress: float = 0.0
    """How much of the stage is done, 0 to 1, as of this block: for rates with a schedule."""
    start: int = 0
    """The token a decoder begins with (T5: the pad, BART: the end token)."""
    streams: tuple[str, ...] = ("text",)
    """What the model reads: `text`, or `encoder` and `decoder`. The last one's summary token stands for the document."""
    words: str = "text"
    """The stream whose vectors stand for single words."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """What objectives read from files of their own, by name (`Objective.tables`)."""

    @property
    def structure(self) -> Literal["single", "encoder_decoder"]:
        """The model's."""
        return "encoder_decoder" if "decoder" in self.streams else "single"

    def at_epoch(self, epoch: int) -> Context:
        return replace(self, epoch=epoch)

    def uniform(self, keys: np.ndarray, owner: np.ndarray, index: np.ndarray, purpose: str) -> np.ndarray:
        """float64[N] in [0, 1): the draw of document `owner[n]` (int[N], into `keys` uint64[D]) with number `index[n]`.

        It depends on (seed, epoch, the document's key, the number, the purpose) and on nothing else.
        """
        hashed = mix(keys ^ _start(self.seed, self.epoch, purpose))[owner]
        number = index.astype(np.uint64)
        number *= GOLDEN
        hashed ^= number
        hashed = mix(hashed)
        hashed >>= np.uint64(11)
        return hashed * 2.0**-53


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((np.uint64(27), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(31), np.uint64(0x94D049BB133111EB)))


BLOCK = 16384
"""Numbers mixed at once: they stay in the cache, and the system need not find a page for every temporary."""


def mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64's finaliser: uint64 -> uint64, every bit of the input moves half of the output's."""
    with np.errstate(over="ignore"):
        mixed = np.atleast_1d(np.asarray(x, np.uint64)) + GOLDEN
        room = np.empty(min(BLOCK, len(mixed)), np.uint64)
        for start in range(0, len(mixed), BLOCK):
            part = mixed[start : start + BLOCK]
            shifted = np.right_shift(part, np.uint64(30), out=room[: len(part)])
            for shift, factor in MIXERS:
                part ^= shifted
                part *= factor
                np.right_shift(part, shift, out=shifted)
            part ^= shifted
        return mixed


def key_of(*parts: int) -> np.uint64:
    """One key from several numbers (source, document, window ...)."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key ^ mix(np.uint64(part)))
    return key[0]


@lru_cache(maxsize=256)
def _start(seed: int, epoch: int, purpose: str) -> np.uint64:
    return key_of(seed, epoch, zlib.crc32(purpose.encode()))

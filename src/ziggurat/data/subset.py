"""Some of a folder's documents, read as if there were no others."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.data.shards import Shards
from ziggurat.errors import check
from ziggurat.types import Tokens


class Subset:
    """The documents `chosen` (int64[D']) of `shards`, in that order; has what the loader reads of `Shards`. `key` identifies the choice
    where a checkpoint says what it was trained on."""

    def __init__(self, shards: Shards, chosen: np.ndarray, key: str = ""):
        self._shards, self._chosen, self._key = shards, np.asarray(chosen, np.int64), key

    @property
    def folder(self) -> Path:
        return self._shards.folder

    @property
    def parts(self) -> tuple[str, ...]:
        return self._shards.parts

    @property
    def meta(self) -> dict[str, Any]:
        return {**self._shards.meta, "chosen": self._key} if self._key else self._shards.meta

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def tokens(self) -> int:
        return int(sum(self.lengths(part).sum() for part in self.parts))

    @property
    def bytes(self) -> np.ndarray:
        """uint32[D']: UTF-8 bytes of each document's texts."""
        return self._shards.bytes[self._chosen]

    def lengths(self, part: str = "text", documents: np.ndarray | slice = slice(None)) -> np.ndarray:
        return self._shards.lengths(part, self._chosen[documents])

    def read(self, documents: np.ndarray) -> Tokens:
        return self._shards.read(self._chosen[documents])

    def ids(self, documents: np.ndarray) -> list[str]:
        return self._shards.ids(self._chosen[documents])


def draw(shards: Shards, examples: int, seed: int) -> Subset:
    """`examples` documents of the shards, drawn by the seed; raises `UserError` when there are fewer."""
    too_few(shards, examples)
    chosen = np.sort(np.random.default_rng([seed, 7]).permutation(len(shards))[:examples])
    return Subset(shards, chosen, hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()[:16])


def too_few(shards: Shards, examples: int) -> None:
    """Raise `UserError` when the shards have fewer documents than `examples`."""
    check(
        examples <= len(shards),
        f"{shards.folder} has {len(shards):,} rows, fewer than `examples: {examples}`",
        "lower `examples`, or leave it out to use all rows",
    )

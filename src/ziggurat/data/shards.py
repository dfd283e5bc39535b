"""Tokenized documents on disk: written once, in a stream, then read through memory maps.

A folder of raw little-endian arrays and `meta.json`, which is written last and holds sizes and SHA-256 of all others.
Per part (`text`, `pair`): `ids` (uint16 or uint32), `flags` (uint8: bit 0 a word begins, bit 1 a sentence begins),
`bounds` (int64[D + 1]), and only if the source has marks `marks` (int64[M, 3]) and `mark_bounds` (int64[D + 1]). Per
document: `bytes` (uint32, UTF-8 length), `keys` (uint64) and, only for sources with fields or marks, a line in
`fields.jsonl` with `line_bounds` (int64[D + 1]). Special tokens, windows and masks are not in here: they are made at reading time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.data.runs import bounds_of, ranges
from ziggurat.errors import UserError, check
from ziggurat.types import Part, Tokens

FORMAT = 1
WORD, SENTENCE = 1, 2
DTYPES = {
    "flags": "<u1",
    "bounds": "<i8",
    "marks": "<i8",
    "mark_bounds": "<i8",
    "bytes": "<u4",
    "keys": "<u8",
    "line_bounds": "<i8",
}


class Shards:
    """One folder of shards, memory-mapped: opening reads `meta.json` and file sizes, nothing else."""

    def __init__(self, folder: Path, meta: dict[str, Any]):
        self.folder = folder
        self.meta = meta
        self.parts: tuple[str, ...] = tuple(meta["parts"])
        self.mark_labels: tuple[str, ...] = tuple(meta["mark_labels"])
        """Names of the label indices in `Part.marks`."""
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | Path, fingerprint: str | None = None) -> Shards:
        """Open a finished folder; checks format, file sizes and, if given, the tokenizer's `fingerprint`."""
        folder = Path(folder)
        path = folder / "meta.json"
        check(path.exists(), f"{folder} holds no finished shards", "run prepare")
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            known = meta["format"] == FORMAT
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{path} cannot be read: {error}", "delete the folder and run prepare again") from error
        check(known, f"{folder} has shards of format {meta['format']}, this version reads format {FORMAT}", "run prepare again")
        for name, facts in meta["files"].items():
            size = (folder / name).stat().st_size if (folder / name).exists() else -1
            damage = "is missing" if size < 0 else f"has {size} bytes instead of {facts['bytes']}"
            check(size == facts["bytes"], f"{folder / name} {damage}", "delete the folder and run prepare again")
        check(
            fingerprint is None or fingerprint == meta["tokenizer"],
            f"the shards in {folder} were made with another tokenizer",
            "run prepare again, or point the recipe at the tokenizer they were made with",
        )
        return cls(folder, meta)

    def verify(self) -> None:
        """Compare every file with its SHA-256; reads everything once. A flipped bit is a `UserError` that names the file."""
        for name, facts in self.meta["files"].items():
            good = sha256_of(self.folder / name) == facts["sha256"]
            check(good, f"{self.folder / name} is damaged (its checksum differs)", "delete the folder and run prepare again")

    def __len__(self) -> int:
        return int(self.meta["documents"])

    @property
    def tokens(self) -> int:
        """Tokens of all parts, without special tokens."""
        return sum(self.meta["parts"].values())

    @property
    def fertility(self) -> dict[str, float]:
        """How the tokenizer fits the text: `words` and `unknown` tokens, `tokens_per_word` and `unknown_share` (of the tokens). Empty for shards
        that were written before this was counted, and where there is no word."""
        words, unknown = self.meta.get("words", 0), self.meta.get("unknown", 0)
        if not words:
            return {}
        shares = {"tokens_per_word": self.tokens / words, "unknown_share": unknown / max(self.tokens, 1)}
        return {"words": words, "unknown": unknown, **shares}

    @property
    def bytes(self) -> np.ndarray:
        """uint32[D]: UTF-8 bytes of each document's texts, for bits per byte."""
        return self._map("bytes")

    @property
    def keys(self) -> np.ndarray:
        """uint64[D]: hash of the texts; the n-th copy of the same text has the key mixed with n, so keys are unique."""
        return self._map("keys")

    def lengths(self, part: str = "text", documents: np.ndarray | slice = slice(None)) -> np.ndarray:
        """int64[D']: tokens of these documents' `part` (all documents by default)."""
        bounds = self._map(f"{part}.bounds")
        return np.asarray(bounds[1:][documents] - bounds[:-1][documents])

    def read(self, documents: np.ndarray) -> Tokens:
        """These documents (int[D'], any order), copied into memory."""
        documents = np.asarray(documents, np.int64)
        return Tokens(
            {part: self._read_part(part, documents) for part in self.parts}, self.keys[documents], self.fields(documents)
        )

    def fields(self, documents: np.ndarray) -> dict[str, list[Any]]:
        """The supervised columns of these documents, and `id`, what errors call them (`file:line`); empty if there are none."""
        if not self.meta["labelled"]:
            return {}
        text, bounds = self._map("fields", ".jsonl"), self._map("line_bounds")
        lines = [json.loads(text[bounds[d] : bounds[d + 1]].tobytes()) for d in documents]
        return {"id": [x["id"] for x in lines]} | {name: [x["fields"][name] for x in lines] for name in self.meta["fields"]}

    def ids(self, documents: np.ndarray) -> list[str]:
        """What errors call these documents: the source's name for them if it is labelled, else their number in the shards."""
        return self.fields(documents).get("id") or [f"{self.folder}:{d}" for d in documents]

    def _read_part(self, part: str, documents: np.ndarray) -> Part:
        bounds = self._map(f"{part}.bounds")
        starts = np.asarray(bounds[documents])
        lengths = np.asarray(bounds[documents + 1]) - starts
        at = ranges(starts, lengths)
        flags = self._map(f"{part}.flags")[at]
        marks, mark_bounds = np.zeros((0, 3), np.int64), np.zeros(len(documents) + 1, np.int64)
        if f"{part}.marks.bin" in self.meta["files"]:
            of = self._map(f"{part}.mark_bounds")
            first, counts = of[documents], of[documents + 1] - of[documents]
            marks, mark_bounds = self._map(f"{part}.marks").reshape(-1, 3)[ranges(first, counts)], bounds_of(counts)
        ids = self._map(f"{part}.ids")[at].astype(np.int32)
        words, sentences = (flags & WORD).view(bool), (flags & SENTENCE) != 0
        return Part(ids, bounds_of(lengths), words, sentences, marks, mark_bounds, self.mark_labels)

    def _map(self, name: str, suffix: str = ".bin") -> np.ndarray:
        if name not in self._maps:
            kind = name.rpartition(".")[2]
            dtype = "u1" if suffix == ".jsonl" else self.meta["ids"] if kind == "ids" else DTYPES[kind]
            file = self.folder / (name + suffix)
            empty = not file.exists() or not file.stat().st_size
            self._maps[name] = np.zeros(0, dtype) if empty else np.memmap(file, dtype, "r").view(np.ndarray)
        return self._maps[name]


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

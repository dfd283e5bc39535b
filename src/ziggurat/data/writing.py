"""Documents -> shards, in a stream: what is held in memory does not grow with the corpus."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import numpy as np

from ziggurat.context import Vocab, mix
from ziggurat.data.runs import bounds_of
from ziggurat.data.shards import DTYPES, FORMAT, SENTENCE, WORD, Shards, sha256_of
from ziggurat.errors import UserError
from ziggurat.types import Document

log = logging.getLogger(__name__)
CHUNK = 1 << 19
"""Characters tokenized at a time; it bounds the memory of writing."""


OUTSIDE = "O"
"""The label of words outside all spans: it counts as said of a word whose characters the tokenizer drops."""


class CoversNothing(UserError):
    """A mark on characters that the tokenizer drops: another tokenizer may keep them."""


class Encoded(Protocol):
    """One text as token ids, without special tokens."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def words(self) -> np.ndarray: ...
    @property
    def sentences(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def units(self) -> int: ...


class Encoder(Protocol):
    """What of a tokenizer is needed here."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def vocab(self) -> Vocab: ...
    def encode(self, texts: Sequence[str]) -> Sequence[Encoded]: ...


def write_shards(folder: str | Path, documents: Iterable[Document], tokenizer: Encoder, *, source: str = "") -> Shards:
    """Tokenize `documents` into `folder` and open it. `source` is any text that names the origin; see `ShardWriter`."""
    with ShardWriter(folder, tokenizer, source=source) as writer:
        for document in documents:
            writer.add(document)
    return Shards.open(folder, tokenizer.fingerprint)


class ShardWriter:
    """Writes one folder of shards; memory does not grow with the corpus.

    A context manager: everything goes to `<folder>.writing`, and only a clean exit gives it its name (replacing what was
    there). All documents must have the same parts (texts and lists) and the same field names. A document without a single token is
    dropped and counted. A mark covers every token that shares a character with it; a mark that is empty or covers no
    token is an error, unless it says `OUTSIDE`: such words are left out, with a warning. Texts of more than `CHUNK` characters without marks are tokenized in stretches cut at white space.
    """

    def __init__(self, folder: str | Path, tokenizer: Encoder, *, source: str = ""):
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.source = source
        self.count = self.dropped = 0
        self._waiting: list[Document] = []
        self._size = 0
        self._tmp = self.folder.with_name(self.folder.name + ".writing")
        self._files: dict[str, BinaryIO] = {}
        self._parts: tuple[str, ...] = ()
        self._fields: tuple[str, ...] = ()
        self._labelled = False
        self._totals: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._words = self._unknown = 0
        self._outside: list[str] = []
        self._ids = np.dtype("<u2" if tokenizer.vocab.size <= 1 << 16 else "<u4")

    def __enter__(self) -> Self:
        shutil.rmtree(self._tmp, ignore_errors=True)
        self._tmp.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None:
                with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
                    self._close()
                shutil.rmtree(self._tmp, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk is full while writing {self.folder}", "make room and run the same command again"
                ) from error

    def add(self, document: Document) -> None:
        """Take one more document."""
        self._waiting.append(document)
        self._size += sum(map(len, document.texts.values())) + sum(
            len(text) for texts in document.lists.values() for text in texts
        )
        if self._size >= CHUNK or len(self._waiting) >= 4096:
            self._flush()

    def _flush(self) -> None:
        documents, self._waiting, self._size = self._waiting, [], 0
        if not documents:
            return
        if not self._parts:
            self._parts = (*documents[0].texts, *documents[0].lists)
            self._fields = tuple(documents[0].fields)
            self._labelled = bool(documents[0].fields or documents[0].marks or len(self._parts) > 1)
        for d in documents:
            if {*d.texts, *d.lists} != set(self._parts) or d.fields.keys() != set(self._fields):
                have, first = sorted({*d.texts, *d.lists, *d.fields}), sorted({*self._parts, *self._fields})
                message = f"{d.id or 'a document'} has {have}, but the first document has {first}"
                raise UserError(message, "give all rows the same columns")
        texts = {part: self._encode(documents, part) for part in self._parts}
        lengths = np.array([[len(e.ids) for e in texts[part]] for part in self._parts])
        keep = np.flatnonzero(lengths.sum(axis=0))
        self.dropped += len(documents) - len(keep)
        if not len(keep):
            return
        for part, sizes in zip(self._parts, lengths, strict=True):
            self._write_part(part, [documents[i] for i in keep], [texts[part][i] for i in keep], sizes[keep])
        kept = [documents[i] for i in keep]
        utf8 = [[text.encode("utf-8", "surrogatepass") for part in self._parts for text in _texts(d, part)] for d in kept]
        self._append("bytes", np.array([sum(map(len, parts)) for parts in utf8]))
        digests = [hashlib.blake2b(b"\0".join(parts), digest_size=8).digest() for parts in utf8]
        self._append("keys", np.frombuffer(b"".join(digests), "<u8"))
        if self._labelled:
            lines = [json.dumps({"id": d.id, "fields": dict(d.fields)}, ensure_ascii=False).encode() + b"\n" for d in kept]
            self._file("fields", ".jsonl").write(b"".join(lines))
            self._append_bounds("line_bounds", np.array([len(line) for line in lines]))
        self.count += len(kept)

    def _encode(self, documents: list[Document], part: str) -> list[Encoded]:
        if part in documents[0].lists:
            each = iter(self.tokenizer.encode([text for d in documents for text in d.lists[part]]))
            return [_Listed([next(each) for _ in d.lists[part]]) for d in documents]
        whole = [d.texts[part] for d in documents if not _long(d, part)]
        encoded = iter(self.tokenizer.encode(whole) if whole else ())
        return [self._encode_long(d.texts[part]) if _long(d, part) else next(encoded) for d in documents]

    def _encode_long(self, text: str) -> Encoded:
        return _Stretched([self.tokenizer.encode([stretch])[0] for stretch in _stretches(text)])

    def _write_part(self, part: str, documents: list[Document], encoded: list[Encoded], lengths: np.ndarray) -> None:
        ids = np.concatenate([e.ids for e in encoded])
        self._append(f"{part}.ids", ids)
        self._words += sum(e.units for e in encoded)
        unknown = self.tokenizer.vocab.unk
        self._unknown += 0 if unknown is None else int(np.count_nonzero(ids == unknown))
        words, sentences = (np.concatenate([getattr(e, name) for e in encoded]) for name in ("words", "sentences"))
        self._append(f"{part}.flags", words * np.uint8(WORD) | sentences * np.uint8(SENTENCE))
        self._append_bounds(f"{part}.bounds", lengths)
        marks = [self._token_marks(d, part, e) for d, e in zip(documents, encoded, strict=True)]
        if any(map(len, marks)) or f"{part}.mark_bounds" in self._files:
            if f"{part}.mark_bounds" not in self._files:
                for n in _steps(self.count):  # the documents before the first mark
                    self._append_bounds(f"{part}.mark_bounds", np.zeros(n, np.int64))
            self._append_bounds(f"{part}.mark_bounds", np.array([len(m) for m in marks]))
            self._append(f"{part}.marks", np.array([m for one in marks for m in one], np.int64).reshape(-1, 3))

    def _token_marks(self, document: Document, part: str, encoded: Encoded) -> list[tuple[int, int, int]]:
        if isinstance(encoded, _Listed):
            return self._list_marks(document, part, encoded)
        marks = [m for m in document.marks if m.part == part]
        if not marks:
            return []
        starts, ends = (np.array([m[i] for m in marks]) for i in (0, 1))
        first, last = covered(starts, ends, encoded.offsets)
        found = []
        for m, begin, end in zip(marks, first.tolist(), last.tolist(), strict=True):
            if m.start < m.end and begin < end:
                found.append((begin, end, self._labels.setdefault(m.label, len(self._labels))))
            elif m.start < m.end and m.label == OUTSIDE:
                self._outside.append(f"{document.texts[part][m.start : m.end]!r} ({document.id or 'a document'})")
            else:
                raise CoversNothing(
                    f"{document.id or 'a document'}: the mark {m.label!r} on characters {m.start} to {m.end} "
                    f"({document.texts[part][m.start : m.end]!r}) covers no token",
                    "the tokenizer drops these characters; take the word out of the row or write something visible in its place",
                )
        return found

    def _list_marks(self, document: Document, part: str, encoded: _Listed) -> list[tuple[int, int, int]]:
        """One mark a text."""
        for text, size in zip(document.lists[part], encoded.lengths.tolist(), strict=True):
            if not size:
                message = f"{document.id or 'a document'}: {text!r} among its {part} has no token"
                raise UserError(message, "the tokenizer drops these characters; write something visible in their place")
        label, ends = self._labels.setdefault(part, len(self._labels)), np.cumsum(encoded.lengths)
        return [(end - size, end, label) for end, size in zip(ends.tolist(), encoded.lengths.tolist(), strict=True)]

    def _file(self, name: str, suffix: str = ".bin") -> BinaryIO:
        if name not in self._files:
            self._files[name] = open(self._tmp / (name + suffix), "wb")  # noqa: SIM115
        return self._files[name]

    def _append(self, name: str, values: np.ndarray) -> None:
        kind = name.rpartition(".")[2]
        self._file(name).write(np.ascontiguousarray(values, self._ids if kind == "ids" else DTYPES[kind]).data)

    def _append_bounds(self, name: str, lengths: np.ndarray) -> None:
        bounds = bounds_of(lengths) + self._totals.get(name, 0)
        self._append(name, bounds if name not in self._totals else bounds[1:])
        self._totals[name] = int(bounds[-1])

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _finish(self) -> None:
        self._flush()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._close()
        if self._outside:
            log.warning("left out %d word(s) tagged O that the tokenizer drops, as %s", len(self._outside), self._outside[0])
        if self.count:
            _number_duplicates(self._tmp / "keys.bin", self.count)
        meta = {
            "format": FORMAT,
            "documents": self.count,
            "dropped": self.dropped,
            "parts": {part: self._totals.get(f"{part}.bounds", 0) for part in self._parts} if self.count else {},
            "words": self._words,
            "unknown": self._unknown,
            "labelled": self._labelled,
            "fields": list(self._fields),
            "mark_labels": list(self._labels),
            "tokenizer": self.tokenizer.fingerprint,
            "vocab": self.tokenizer.vocab.size,
            "ids": self._ids.str,
            "source": self.source,
            "files": {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(self._tmp.iterdir())},
        }
        with open(self._tmp / "meta.json", "w", encoding="utf-8") as header:
            json.dump(meta, header, indent=1, ensure_ascii=False)
            header.flush()
            os.fsync(header.fileno())
        old = self.folder.with_name(self.folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self._tmp.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)


def with_tokens(document: Document, tokenizer: Encoder, part: str = "text") -> list[bool]:
    """Of each mark of `part` whether a token stands under it. The others are left out of shards, or refused: see `ShardWriter`."""
    marks = [m for m in document.marks if m.part == part]
    first, last = covered([m.start for m in marks], [m.end for m in marks], tokenizer.encode([document.texts[part]])[0].offsets)
    return (first < last).tolist()


def covered(
    starts: Sequence[int] | np.ndarray, ends: Sequence[int] | np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int64[N] twice: first token that shares a character with [start, end) and one after the last; they do not ascend where there is none."""
    return np.searchsorted(offsets[:, 1], starts, "right"), np.searchsorted(offsets[:, 0], ends, "left")


class _Stretched:
    """A text tokenized in stretches. It has no offsets; nothing asks for them where there are no marks."""

    def __init__(self, parts: list[Encoded]):
        self.ids, self.words, self.sentences = (
            np.concatenate([getattr(p, n) for p in parts]) for n in ("ids", "words", "sentences")
        )
        self.offsets = np.zeros((0, 2), np.int64)
        self.units = sum(p.units for p in parts)


class _Listed(_Stretched):
    """Several texts, each tokenized by itself."""

    def __init__(self, parts: list[Encoded]):
        super().__init__(parts)
        self.lengths = np.array([len(p.ids) for p in parts], np.int64)


def _texts(document: Document, part: str) -> tuple[str, ...]:
    return document.lists[part] if part in document.lists else (document.texts[part],)


def _long(document: Document, part: str) -> bool:
    return len(document.texts[part]) > 2 * CHUNK and not document.marks


def _stretches(text: str) -> Iterator[str]:
    """`text` in pieces of about CHUNK characters that end before a line break or else white space, where no token is cut."""
    start = 0
    while start < len(text):
        stop = text.rfind("\n", start + CHUNK // 2, start + CHUNK)
        stop = start + CHUNK if stop < 0 else stop
        while stop < len(text) and stop < start + 2 * CHUNK and not text[stop].isspace():
            stop += 1
        yield text[start:stop]
        start = stop


def _number_duplicates(path: Path, count: int, at_once: int = 1 << 18) -> None:
    """Mix n into the key of the n-th copy of a text, in place. Keys are sorted one slice of their range at a time: flat memory."""
    ranges_ = -(-count // at_once)
    edges = [(i << 64) // ranges_ for i in range(ranges_ + 1)]
    for lo, hi in itertools.pairwise(edges):
        found: list[tuple[np.ndarray, np.ndarray]] = []
        with open(path, "r+b") as file:
            for first in range(0, count, at_once):
                keys = np.fromfile(file, "<u8", min(at_once, count - first))
                mine = np.flatnonzero((keys >= np.uint64(lo)) & (keys <= np.uint64(hi - 1)))
                found.append((mine + first, keys[mine]))
            where, keys = (np.concatenate(column) for column in zip(*found, strict=True))
            order = np.argsort(keys, kind="stable")
            where, keys = where[order], keys[order]
            fresh = np.append(True, keys[1:] != keys[:-1]) if len(keys) else np.zeros(0, bool)
            copy = np.arange(len(keys)) - np.maximum.accumulate(np.where(fresh, np.arange(len(keys)), 0))
            again = np.flatnonzero(copy)
            again = again[np.argsort(where[again])]
            changed = mix(keys[again] ^ mix(copy[again].astype(np.uint64)))
            for first in range(0, count, at_once):
                a, b = np.searchsorted(where[again], [first, first + at_once])
                if a < b:
                    file.seek(first * 8)
                    block = np.fromfile(file, "<u8", min(at_once, count - first))
                    block[where[again[a:b]] - first] = changed[a:b]
                    file.seek(first * 8)
                    file.write(block.data)


def _steps(total: int, size: int = 1 << 16) -> Iterator[int]:
    for first in range(0, total, size):
        yield min(size, total - first)

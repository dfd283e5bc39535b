"""The nouns everyone shares: Document, Tokens, Stream, Visibility, Target, Batch, Loss.

numpy on the data side, torch on the model side; the classes are the same and `Batch.map` converts. This file
imports neither torch nor any other room. Letters in shapes: `T` tokens of a stream, `D` documents, `K` predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np

Array = Any
"""A numpy array (data side) or a torch tensor (model side)."""

NEVER = FOREVER = 2**30
"""A time no clock reaches: `opens = NEVER` is a key for nobody, `closes = FOREVER` stays a key to the end."""

DEAD = np.uint64(2**64 - 1)
"""The key of a dead document: padding that fills the gap of a packed row. It has no target, and nothing goes on from it."""

EMPTY: Mapping[str, Any] = {}


class Mark(NamedTuple):
    """A labelled stretch of a document's text: characters [start, end) of `part`."""

    start: int
    end: int
    label: str
    part: str = "text"


@dataclass(frozen=True, slots=True)
class Document:
    """Raw text, straight from a source."""

    texts: Mapping[str, str]
    """`text`, and for a sentence pair also `pair`."""
    id: str = ""
    """What errors and reports call it: usually `file:line`."""
    marks: tuple[Mark, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Supervised columns: `label` (str, int or float; of a multiple choice also a list), `answers` (list of str), `group`."""
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Several texts under one name, each a text by itself: `choices`."""


@dataclass(frozen=True, slots=True)
class Part:
    """One text of each of D documents, as token ids laid end to end (no special tokens). Of several texts under one name
    (`choices`) each is marked."""

    ids: Array
    """int32[N]"""
    bounds: Array
    """int64[D + 1]: document d is `ids[bounds[d]:bounds[d + 1]]`."""
    words: Array
    """bool[N]: True where a word begins."""
    sentences: Array
    """bool[N]: True where a sentence begins."""
    marks: Array
    """int64[M, 3]: (start, end, label index) in tokens, counted from the document's first token."""
    mark_bounds: Array
    """int64[D + 1]: the marks of document d are `marks[mark_bounds[d]:mark_bounds[d + 1]]`."""
    labels: tuple[str, ...] = ()
    """The names behind the marks' label indices."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A block of D documents read back from shards. Marks, labels and texts stay together by document."""

    parts: Mapping[str, Part]
    keys: Array
    """uint64[D]: the identity of each document, the root of all its randomness."""
    fields: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """One value a document."""
    source: str = ""
    """What the stage calls the source that all of them are from; the loader knows."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Visibility:
    """Who may look at whom: a key has a lifetime, a query has a time, and there are lanes.

    Query q may look at key k iff they are of one document and
    `opens[k] <= clock[q] < closes[k]` or `lane[k] == lane[q] != 0`.
    `full` and `causal` spell nothing out, so that kernels are chosen without looking at tensors.
    """

    kind: Literal["full", "causal", "custom"] = "full"
    clock: Array | None = None
    opens: Array | None = None
    closes: Array | None = None
    lane: Array | None = None

    def spelled(self, lengths: np.ndarray) -> Visibility:
        """The same rule as explicit int32[T] arrays; `lengths` are the documents' token counts."""
        if self.kind == "custom":
            return self
        total = int(lengths.sum())
        if self.kind == "full":
            time = np.zeros(total, np.int32)
        else:
            starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
            time = (np.arange(total) - starts).astype(np.int32)
        return Visibility("custom", time, time, np.full(total, FOREVER, np.int32), np.zeros(total, np.int32))


FULL = Visibility("full")
CAUSAL = Visibility("causal")
SPELLED = ("clock", "opens", "closes", "lane")


@dataclass(frozen=True, slots=True)
class Stream:
    """The tokens of one modality, documents laid end to end. There is no padded twin."""

    content: Array
    """int32[T] ids (or float[T, F] features)"""
    bounds: Array
    """int64[D + 1]: where documents begin (`cu_seqlens`)"""
    position: Array
    """int32[T]: restarts in every document; data, never assumed"""
    segment: Array
    """int32[T]: sentence A/B, language, stream number; 0 if unused"""
    visibility: Visibility = FULL
    unit: Array | None = None
    """int32[T]: tokens hidden together (a word) share a number within their document; -1 = never hidden. CPU only."""
    row: int = 0
    """Documents are packed in rows of this many tokens and none crosses a row; 0 = not packed."""

    @property
    def lengths(self) -> Array:
        return self.bounds[1:] - self.bounds[:-1]

    def document(self) -> np.ndarray:
        """int64[T]: the number of each token's document (numpy side)."""
        return np.repeat(np.arange(len(self.bounds) - 1), self.lengths)

    def inside(self) -> np.ndarray:
        """int64[T]: each token's index within its document (numpy side)."""
        return np.arange(len(self.content)) - np.repeat(self.bounds[:-1], self.lengths)


@dataclass(frozen=True, slots=True)
class Target:
    """What to predict, and only there."""

    stream: str
    index: Array
    """int64[K]: rows of that stream, or documents (at = "document")"""
    value: Array
    """int64[K] classes or float32[K] numbers"""
    weight: Array
    """float32[K]"""
    at: Literal["token", "document", "around"] = "token"
    """`around`: `index` lists whole runs of rows, and each is answered from the two rows around its run (span boundaries)."""
    group: Array | None = None
    """int64[K]: rows that compete with each other (choices, the places where an answer may begin), numbered from 0 within the batch.
    `value` is then the output of the head that scores a row, and the right rows of a group are those with a weight."""
    noise: Array | None = None
    """float64[K] in [0, 1): a keyed draw for each prediction, where the model half must sample (replaced token detection)"""


@dataclass(frozen=True, slots=True)
class Batch:
    """One example and one batch are the same type: `join` is associative with identity `Batch()`."""

    streams: Mapping[str, Stream] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    keys: Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """uint64[D]: document j of every stream belongs together and has this key. Neighbours of one key are one example, which no
    batch divides (the choices of a question, the windows of a long text). CPU only."""
    before: Array | None = None
    """uint64[D]: the key of the example whose text each one goes on with, `DEAD` = it begins anew; None = nobody says. CPU only."""

    def __len__(self) -> int:
        return len(self.keys)

    def map(self, convert: Callable[[Array], Array]) -> Batch:
        """The same batch with `convert` applied to every array the model reads (keys and units stay behind)."""
        streams = {name: _map(replace(s, unit=None), convert) for name, s in self.streams.items()}
        return replace(self, streams=streams, targets={name: _map(t, convert) for name, t in self.targets.items()})

    @property
    def alive(self) -> np.ndarray:
        """bool[D]: documents that are not padding (numpy side)."""
        found: np.ndarray = self.keys != DEAD
        return found

    def live_tokens(self) -> int:
        """Tokens of all streams that are not padding (numpy side)."""
        return int(sum(np.diff(s.bounds)[self.alive].sum() for s in self.streams.values()))


class Loss(NamedTuple):
    """A sum and the weight it is over; never a mean. Divided once, by the global count."""

    total: Array
    count: Array


Losses = Mapping[str, Loss]


def _map(value: Any, convert: Callable[[Array], Array]) -> Any:
    changed: dict[str, Any] = {}
    for f in fields(value):
        old = getattr(value, f.name)
        if isinstance(old, Visibility):
            changed[f.name] = _map(old, convert)
        elif old is not None and not isinstance(old, (str, int)):
            changed[f.name] = convert(old)
    return replace(value, **changed)


def text_target(
    index: Array, value: Array, *, at: Literal["token", "document", "around"] = "token", stream: str = "text"
) -> Target:
    """A target of weight 1 on the stream `text`."""
    index, value = np.asarray(index, np.int64), np.asarray(value)
    value = value.astype(np.float32 if value.dtype.kind == "f" else np.int64)
    return Target(stream, index, value, np.ones(len(index), np.float32), at)


def join(a: Batch, b: Batch) -> Batch:
    """Batch `b` after batch `a`."""
    return join_all([a, b])


def join_all(batches: Iterable[Batch]) -> Batch:
    """All batches end to end. A stream that a batch lacks is an empty run in each of its documents."""
    parts = [b for b in batches if len(b)]
    if not parts:
        return Batch()
    if len(parts) == 1:
        return parts[0]
    names = list(dict.fromkeys(name for b in parts for name in b.streams))
    streams = {name: _join_streams([b.streams.get(name) or _absent(b, name, parts) for b in parts]) for name in names}
    offsets: dict[str, int] = dict.fromkeys(names, 0)
    documents = 0
    groups: dict[str, int] = {}
    collected: dict[str, list[Target]] = {}
    for b in parts:
        for name, t in b.targets.items():
            by = documents if t.at == "document" else offsets[t.stream]
            group = None
            if t.group is not None:
                group = t.group + groups.get(name, 0)
                groups[name] = groups.get(name, 0) + (int(t.group.max()) + 1 if len(t.group) else 0)
            collected.setdefault(name, []).append(replace(t, index=t.index + by, group=group))
        documents += len(b)
        for name in names:
            offsets[name] += len(b.streams[name].content) if name in b.streams else 0
    targets = {name: _join_targets(ts) for name, ts in collected.items()}
    before = [b.before for b in parts if b.before is not None]
    joined = np.concatenate(before) if len(before) == len(parts) else None
    return Batch(streams, targets, np.concatenate([b.keys for b in parts]), joined)


def _absent(batch: Batch, name: str, parts: list[Batch]) -> Stream:
    like = next(b.streams[name] for b in parts if name in b.streams)
    none = np.zeros(0, np.int32)
    visibility = like.visibility if like.visibility.kind != "custom" else FULL
    unit = none if like.unit is not None else None
    return Stream(like.content[:0], np.zeros(len(batch) + 1, np.int64), none, none, visibility, unit)


def _join_streams(streams: list[Stream]) -> Stream:
    kinds = {s.visibility.kind for s in streams if len(s.content)} or {streams[0].visibility.kind}
    if len(kinds) == 1 and "custom" not in kinds:
        visibility = Visibility(next(iter(kinds)))
    else:
        spelled = [s.visibility.spelled(s.lengths) for s in streams]
        visibility = Visibility("custom", *(np.concatenate([getattr(v, f) for v in spelled]) for f in SPELLED))
    starts = np.cumsum([0, *(len(s.content) for s in streams)])
    bounds = [s.bounds[1:] + start for s, start in zip(streams, starts, strict=False)]
    rows = {s.row for s in streams}
    units = [s.unit for s in streams]
    return Stream(
        content=np.concatenate([s.content for s in streams]),
        bounds=np.concatenate([np.zeros(1, np.int64), *bounds]),
        position=np.concatenate([s.position for s in streams]),
        segment=np.concatenate([s.segment for s in streams]),
        visibility=visibility,
        unit=None if any(u is None for u in units) else np.concatenate([u for u in units if u is not None]),
        row=rows.pop() if len(rows) == 1 else 0,
    )


def _join_targets(targets: list[Target]) -> Target:
    first = targets[0]
    assert all((t.stream, t.at) == (first.stream, first.at) for t in targets), "targets of one name differ in kind"
    groups = [t.group for t in targets if t.group is not None]
    noises = [t.noise for t in targets if t.noise is not None]
    return replace(
        first,
        index=np.concatenate([t.index for t in targets]),
        value=np.concatenate([t.value for t in targets]),
        weight=np.concatenate([t.weight for t in targets]),
        group=np.concatenate(groups) if groups else None,
        noise=np.concatenate(noises) if noises else None,
    )

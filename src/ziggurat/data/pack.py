"""Examples -> rows: documents are packed first-fit so that none crosses a row, and each row's gap is one dead document.

Letters in shapes: `D` documents, `T` tokens of a stream, `K` predictions, `R` rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ziggurat.data.runs import bounds_of, ranges
from ziggurat.types import DEAD, FOREVER, SPELLED, Batch, Stream, Target, Visibility, join

EIGHTH, LEAST = 8, 8
"""A row is as long as some eighths of the longest that it may be, each at least so many tokens: a kernel that is compiled for a length
meets few of them."""
Rows = int | Mapping[str, int]
"""Tokens of a row: one number for all streams, or one for each."""


def take(batch: Batch, documents: np.ndarray) -> Batch:
    """These documents, in this order (int[D'], repeats allowed), with their targets. The result is not packed (`row` 0).

    Groups of targets are numbered anew; a document that is repeated stays in one group with itself.
    """
    documents = np.asarray(documents, np.int64)
    streams = {name: _take_stream(s, documents, s.lengths[documents]) for name, s in batch.streams.items()}
    before = None if batch.before is None else batch.before[documents]
    return Batch(streams, _take_targets(batch, streams, documents), batch.keys[documents], before)


def split(batch: Batch, cuts: np.ndarray) -> list[Batch]:
    """The batch in consecutive pieces: piece i is documents `cuts[i]` to `cuts[i + 1]`; arrays are views.

    Targets must be in the order of their documents, as `take` and `pack` leave them, and no group may be cut.
    """
    found = {}
    for name, t in batch.targets.items():
        owner = _owner(t, batch)
        assert np.all(owner[1:] >= owner[:-1]), f"targets {name!r} are not in the order of their documents"
        found[name] = np.searchsorted(owner, cuts)
        assert t.group is None or _whole(t.group, found[name]), f"a group of competing examples would be cut apart ({name})"
    pieces = []
    for i in range(len(cuts) - 1):
        lo, hi = int(cuts[i]), int(cuts[i + 1])
        streams = {name: _slice(s, lo, hi) for name, s in batch.streams.items()}
        targets = {}
        for name, t in batch.targets.items():
            at = slice(int(found[name][i]), int(found[name][i + 1]))
            by = lo if t.at == "document" else int(batch.streams[t.stream].bounds[lo])
            noise = None if t.noise is None else t.noise[at]
            group = None if t.group is None else np.unique(t.group[at], return_inverse=True)[1].astype(np.int64)
            targets[name] = replace(t, index=t.index[at] - by, value=t.value[at], weight=t.weight[at], noise=noise, group=group)
        before = None if batch.before is None else batch.before[lo:hi]
        pieces.append(Batch(streams, targets, batch.keys[lo:hi], before))
    return pieces


def examples_of(batch: Batch) -> np.ndarray:
    """int64[D]: the number of each document's example, from 0 in their order. Neighbours of one key are one example."""
    if not len(batch):
        return np.zeros(0, np.int64)
    other = (batch.keys[1:] != batch.keys[:-1]) | (batch.keys[1:] == DEAD)
    return np.concatenate([[0], np.cumsum(other)]).astype(np.int64)


def pack(batch: Batch, row: Rows, pad: int) -> Batch:
    """All documents, in as few rows of `row` tokens as best-fit decreasing finds; see `lay` for what the result holds."""
    return lay(batch, fit(lengths_of(batch), row), row, pad)[0] if len(batch) else batch


def lengths_of(batch: Batch, documents: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
    """For each stream the tokens of these documents (all by default), int64[D]."""
    return {name: stream.lengths[documents] for name, stream in batch.streams.items()}


def fit(lengths: Mapping[str, np.ndarray], row: Rows) -> np.ndarray:
    """int64[D]: the row of each document, given its tokens in each stream. It has the same row number in all streams."""
    sizes = _sizes(lengths, row)
    for name, own in lengths.items():
        longest = int(own.max(initial=0))
        assert longest <= sizes[name], f"an example of {longest} tokens does not fit a row of {sizes[name]} ({name})"
    if len(sizes) == 1:
        (name,) = sizes
        return first_fit(lengths[name], sizes[name])
    return _fit_together(np.stack([lengths[name] / sizes[name] for name in sizes], axis=1))


def first_fit(lengths: np.ndarray, row: int) -> np.ndarray:
    """Best-fit decreasing: documents of `lengths` (int[D], each at most `row`) -> row numbers, int64[D], 0 to R - 1.

    Free space is a small integer, so open rows stand in one stack per amount of free space, and a bit mask tells the
    smallest stack that suffices. Documents of one length are placed together, as many to a row as fit: the work is
    about proportional to the number of *rows that change*, not documents times rows.
    """
    result = np.zeros(len(lengths), np.int64)
    whole = np.flatnonzero(lengths == row)
    result[whole] = np.arange(len(whole))
    rest = np.flatnonzero((lengths < row) & (lengths > 0))
    rest = rest[np.argsort(-lengths[rest], kind="stable")]
    values, counts = np.unique(-lengths[rest], return_counts=True)
    free: list[list[int]] = [[] for _ in range(row + 1)]
    mask, rows, placed = 0, len(whole), list[int]()
    for length, n in zip((-values).tolist(), counts.tolist(), strict=True):
        while n:
            enough = mask >> length
            space = length + (enough & -enough).bit_length() - 1 if enough else row
            per = space // length
            used = -(-n // per)
            if enough:
                stack = free[space]
                chosen = stack[-used:]
                del stack[-used:]
                if not stack:
                    mask ^= 1 << space
            else:
                chosen = list(range(rows, rows + used))
                rows += used
            full = min(n // per, len(chosen))
            left = space - per * length
            for number in chosen[:full]:
                placed.extend([number] * per)
            if full and left:
                free[left].extend(chosen[:full])
                mask |= 1 << left
            n -= full * per
            if full < len(chosen):  # the last row takes what remains of this length
                placed.extend([chosen[-1]] * n)
                left = space - n * length
                free[left].append(chosen[-1])
                mask |= 1 << left
                n = 0
    result[rest] = placed
    return result


def lay(batch: Batch, rows: np.ndarray, row: Rows, pad: int) -> tuple[Batch, np.ndarray]:
    """Lay document j into row `rows[j]` (int64[D]); rows come in the order of their numbers, documents keep theirs.

    Returns the packed batch, whose streams say their `row` (at most the given one, and no longer than the fullest needs), and
    int64[R + 1]: the document at which each row begins.
    The gap of a row is one dead document: key `DEAD`, `pad` ids, segment 0, unit -1, no targets. Its positions count from
    0 but not past those in use, so that every position table has them.
    """
    if not len(batch):
        return batch, np.zeros(1, np.int64)
    sizes = _sizes(batch.streams, row)
    count = int(rows.max()) + 1
    filled = {n: np.bincount(rows, s.lengths, count).astype(np.int64) for n, s in batch.streams.items()}
    # no longer than the fullest: an encoder's row is never full where spans give way to masks
    part = {n: max(LEAST, size // EIGHTH) for n, size in sizes.items()}
    sizes = {n: min(size, -(-int(filled[n].max()) // part[n]) * part[n]) for n, size in sizes.items()}
    gaps = {name: sizes[name] - full for name, full in filled.items()}
    assert all(gap.min() >= 0 for gap in gaps.values()), "a row is overfull"
    holes = np.flatnonzero(np.any(np.stack(list(gaps.values())) > 0, axis=0))
    documents = np.concatenate([np.arange(len(batch)), np.full(len(holes), len(batch))])
    where = np.concatenate([rows, holes])
    order = np.argsort(where, kind="stable")
    padded = join(batch, _dead(batch, {name: int(gap.max()) for name, gap in gaps.items()}, pad))
    streams = {}
    for name, stream in padded.streams.items():
        lengths = np.concatenate([batch.streams[name].lengths, gaps[name][holes]])
        streams[name] = replace(_take_stream(stream, documents[order], lengths[order]), row=sizes[name])
    targets = _take_targets(padded, streams, documents[order])
    starts = np.searchsorted(where[order], np.arange(count + 1))
    before = None if padded.before is None else padded.before[documents[order]]
    return Batch(streams, targets, padded.keys[documents[order]], before), starts


def _dead(batch: Batch, lengths: Mapping[str, int], pad: int) -> Batch:
    """One dead document of these lengths; shorter ones are its beginnings."""
    streams = {}
    for name, s in batch.streams.items():
        n = lengths[name]
        content = np.full((n, *s.content.shape[1:]), pad if s.content.dtype.kind in "iu" else 0, s.content.dtype)
        position = np.minimum(np.arange(n), s.position.max(initial=0)).astype(s.position.dtype)
        if s.position.ndim > 1:
            position = np.zeros((n, *s.position.shape[1:]), s.position.dtype)
        zero, unit = np.zeros(n, np.int32), None if s.unit is None else np.full(n, -1, np.int32)
        visibility = s.visibility
        if visibility.kind == "custom":
            visibility = Visibility("custom", zero, zero, np.full(n, FOREVER, np.int32), zero)
        streams[name] = Stream(content, np.array([0, n]), position, zero, visibility, unit)
    return Batch(streams, {}, np.array([DEAD]), np.array([DEAD]))


def _fit_together(parts: np.ndarray) -> np.ndarray:
    """First-fit decreasing of float[D, S] shares of S streams' rows: a row is as full as its fullest stream."""
    result = np.zeros(len(parts), np.int64)
    space = np.zeros((len(parts), parts.shape[1]))
    rows = 0
    for j in np.argsort(-parts.max(axis=1), kind="stable"):
        fits = np.all(space[:rows] >= parts[j] - 1e-9, axis=1)
        number = int(fits.argmax()) if fits.any() else rows
        if number == rows:
            space[rows], rows = 1.0, rows + 1
        space[number] -= parts[j]
        result[j] = number
    return result


def _sizes(streams: Mapping[str, object], row: Rows) -> dict[str, int]:
    return {name: row if isinstance(row, int) else row[name] for name in streams}


def _take_stream(stream: Stream, documents: np.ndarray, lengths: np.ndarray) -> Stream:
    """The first `lengths[j]` tokens of each document, end to end."""
    at = ranges(stream.bounds[documents], lengths)
    visibility = stream.visibility
    if visibility.kind == "custom":
        visibility = Visibility("custom", *(getattr(visibility, name)[at] for name in SPELLED))
    unit = None if stream.unit is None else stream.unit[at]
    return Stream(stream.content[at], bounds_of(lengths), stream.position[at], stream.segment[at], visibility, unit)


def _take_targets(batch: Batch, streams: Mapping[str, Stream], documents: np.ndarray) -> dict[str, Target]:
    """The targets of `documents`, pointing into `streams`, which were gathered in that order."""
    taken = {}
    for name, t in batch.targets.items():
        owner = _owner(t, batch)
        order = None if np.all(owner[1:] >= owner[:-1]) else np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=len(batch))
        pick = ranges((np.cumsum(counts) - counts)[documents], counts[documents])
        pick = pick if order is None else order[pick]
        if t.at == "document":
            shift = np.arange(len(documents)) - documents
        else:
            shift = streams[t.stream].bounds[:-1] - batch.streams[t.stream].bounds[documents]
        index = t.index[pick] + np.repeat(shift, counts[documents])
        group = None if t.group is None else np.unique(t.group[pick], return_inverse=True)[1].astype(np.int64)
        noise = None if t.noise is None else t.noise[pick]
        taken[name] = replace(t, index=index, value=t.value[pick], weight=t.weight[pick], group=group, noise=noise)
    return taken


def _owner(target: Target, batch: Batch) -> np.ndarray:
    """int64[K]: the document of each prediction."""
    return target.index if target.at == "document" else batch.streams[target.stream].document()[target.index]


def _slice(stream: Stream, lo: int, hi: int) -> Stream:
    bounds = stream.bounds[lo : hi + 1]
    at = slice(int(bounds[0]), int(bounds[-1]))
    visibility = stream.visibility
    if visibility.kind == "custom":
        visibility = Visibility("custom", *(getattr(visibility, name)[at] for name in SPELLED))
    unit = None if stream.unit is None else stream.unit[at]
    parts = stream.content[at], bounds - bounds[0], stream.position[at], stream.segment[at], visibility, unit
    return Stream(*parts, row=stream.row)


def _whole(group: np.ndarray, cuts: np.ndarray) -> bool:
    """Whether no group has predictions on both sides of a cut."""
    order = np.argsort(group, kind="stable")
    piece = np.searchsorted(cuts, np.arange(len(group)), side="right")[order]
    return bool(np.all((group[order][1:] != group[order][:-1]) | (piece[1:] == piece[:-1])))

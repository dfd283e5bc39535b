"""Documents -> examples: windows of running text, and single or paired texts cut to fit. Everything is one block at a time.

Letters in shapes: `E` examples, `N` tokens of a text, `T` tokens of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ziggurat.context import Context, mix
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.errors import check
from ziggurat.types import DEAD, Batch, Stream, Tokens, Visibility, join_all


@dataclass(frozen=True, slots=True)
class Piece:
    """What one slot of the layout holds in each of E examples: a run of `ids`, possibly empty."""

    ids: np.ndarray
    """int32[N]"""
    start: np.ndarray
    """int64[E]: where example e's run begins in `ids`"""
    length: np.ndarray
    """int64[E]"""
    words: np.ndarray | None = None
    """bool[N]: True where a word begins. Without it the tokens belong to no word (unit -1), as special tokens do."""


class Marks(NamedTuple):
    """Marks that survived the cut, in the coordinates of the batch: `int64[M']` each."""

    document: np.ndarray
    start: np.ndarray
    """Row of the stream `text` where the mark begins."""
    end: np.ndarray
    """Row after its last one."""
    label: np.ndarray


def windows(tokens: Tokens, ctx: Context, *, end: int | None = None, step: int | None = None) -> Batch:
    """Every text cut greedily into windows of `ctx.layout.room(ctx.length)` tokens, special tokens around each.

    The last window of a document is shorter; no token is lost and none is used twice. In documents of several parts (`text`,
    `pair`) every part gives windows of its own. With `end`, that token follows the last token of each text, in the last window;
    where the text fills its last window exactly, there is no room for it and it is left out. With `step`, a window begins so many
    tokens behind the one before, and they overlap.
    Returns a batch of one stream `text`, one document per window, keyed by (document, part, window number); each goes on from the
    window before (`before`).
    """
    room = room_of(ctx)
    step = room if step is None else step
    check(0 < step <= room, f"windows of {room} tokens cannot begin {step} tokens apart", f"give it 1 to {room}")
    made = []
    for number, part in enumerate(tokens.parts.values()):
        lengths = np.diff(part.bounds)
        count = np.where(lengths > 0, 1 + np.maximum(0, -(-(lengths - room) // step)), 0)
        document = np.repeat(np.arange(len(count)), count)
        window = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
        start = part.bounds[document] + window * step
        length = np.minimum(room, part.bounds[document + 1] - start)
        keys = mix(tokens.keys[document] ^ mix(window.astype(np.uint64) | np.uint64(number << 48)))
        before = np.where(window > 0, np.roll(keys, 1), DEAD)
        slots: list[Piece | tuple[int, ...]] = [ctx.layout.first, Piece(part.ids, start, length, part.words)]
        if end is not None:
            closes = (start + length == part.bounds[document + 1]) & (length < room)
            slots.append(Piece(np.array([end], np.int32), np.zeros(len(start), np.int64), closes.astype(np.int64)))
        slots.append(ctx.layout.last)
        made.append(replace(assemble(slots, [ctx.layout.segments[0]] * len(slots), keys, ctx), before=before))
    return made[0] if len(made) == 1 else join_all(made)


def single(tokens: Tokens, ctx: Context, part: str = "text") -> Batch:
    """One example a document, in the same order and with the same key: `first A last`, A cut at the end to fit."""
    a = tokens.parts[part]
    length = np.minimum(np.diff(a.bounds), room_of(ctx))
    slots = (ctx.layout.first, Piece(a.ids, a.bounds[:-1], length, a.words), ctx.layout.last)
    return assemble(slots, [ctx.layout.segments[0]] * 3, tokens.keys, ctx)


def pairs(tokens: Tokens, ctx: Context, first: str = "text", second: str = "pair") -> Batch:
    """One example a document, in the same order and with the same key: `first A between B last`, cut longest first."""
    missing = [name for name in (first, second) if name not in tokens.parts]
    check(
        not missing, f"the data has no column {missing and missing[0]!r}", "declare both texts: columns: {text: ..., pair: ...}"
    )
    a, b = tokens.parts[first], tokens.parts[second]
    keep_a, keep_b = longest_first(np.diff(a.bounds), np.diff(b.bounds), room_of(ctx, pair=True))
    return pair_up(Piece(a.ids, a.bounds[:-1], keep_a, a.words), Piece(b.ids, b.bounds[:-1], keep_b, b.words), tokens.keys, ctx)


def pair_up(a: Piece, b: Piece, keys: np.ndarray, ctx: Context) -> Batch:
    """`first A between B last` for every example; A and B must already fit (`longest_first`)."""
    layout = ctx.layout
    one, two = layout.segments
    return assemble([layout.first, a, layout.between, b, layout.last], [one, one, one, two, two], keys, ctx)


def longest_first(a: np.ndarray, b: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of A and B stay when together they may have `room`: the longer one is cut first.

    The rule of Hugging Face's `truncation="longest_first"`: when both must be cut each gets half, and an odd token goes
    to the longer one (to B when they are equal).
    """
    short, long = np.minimum(a, b), np.maximum(a, b)
    long = np.minimum(long, np.maximum(short, room - short))
    both = short + long > room
    short, long = np.where(both, room // 2, short), np.where(both, room - room // 2, long)
    return np.where(a > b, long, short), np.where(a > b, short, long)


def marks_in(tokens: Tokens, batch: Batch, ctx: Context, part: str = "text") -> Marks:
    """The marks of `part` where `single(tokens, ctx, part)` put them. Marks that the cut took away or split are left out."""
    p = tokens.parts[part]
    document = np.repeat(np.arange(len(tokens)), np.diff(p.mark_bounds))
    bounds = batch.streams["text"].bounds
    shift = bounds[document] + len(ctx.layout.first)
    start, end = p.marks[:, 0] + shift, p.marks[:, 1] + shift
    kept = end <= bounds[document + 1] - len(ctx.layout.last)
    return Marks(document[kept], start[kept], end[kept], p.marks[kept, 2])


def assemble(slots: Sequence[Piece | tuple[int, ...]], segments: Sequence[int], keys: np.ndarray, ctx: Context) -> Batch:
    """E examples, each the slots in their order: fixed special tokens (a tuple) or a run of text (a `Piece`).

    `segments` has the segment number of each slot, `keys` (uint64[E]) become the documents' keys. Returns a batch of one
    stream `text` without targets. Its `unit` numbers the words 0, 1, 2 ... within the example and is -1 for special tokens;
    a word never crosses from one slot into another, and a run that begins inside a word begins a unit. Where the layout has a
    segment number for its last token, and the last slot is the layout's, that token gets it.
    """
    sizes = [np.full(len(keys), len(s), np.int64) if isinstance(s, tuple) else s.length for s in slots]
    bounds = bounds_of(np.sum(sizes, axis=0))
    lengths, total = np.diff(bounds), int(bounds[-1])
    content = np.empty(total, np.int32)
    segment = np.full(total, segments[0], np.int32)
    begins, wordless = np.zeros(total, bool), np.ones(total, bool)
    at = bounds[:-1].copy()
    for slot, size, number in zip(slots, sizes, segments, strict=True):
        if isinstance(slot, tuple):
            where = (at[:, None] + np.arange(len(slot))).ravel()
            content[where] = np.tile(np.array(slot, np.int32), len(keys))
        else:
            where = ranges(at, size)
            source = _source(slot)
            content[where] = slot.ids[source]
            if slot.words is not None:
                wordless[where] = False
                begins[where] = slot.words[source]
                begins[at[size > 0]] = True
        if number != segments[0]:
            segment[where] = number
        at = at + size
    layout = ctx.layout
    if layout.summary is not None and layout.last and slots[-1] == layout.last:
        segment[bounds[1:] - 1] = layout.summary
    words = np.cumsum(begins, dtype=np.int32)
    nonempty = lengths > 0
    before = np.zeros(len(keys), np.int32)
    before[nonempty] = words[bounds[:-1][nonempty]] - begins[bounds[:-1][nonempty]] + 1
    words -= np.repeat(before, lengths)
    words[wordless] = -1
    position = ranges(np.zeros(len(keys), np.int64), lengths).astype(np.int32)
    stream = Stream(content, bounds, position, segment, Visibility(ctx.visibility), words)
    return Batch({"text": stream}, {}, keys)


def _source(piece: Piece) -> np.ndarray | slice:
    """The index of all runs of a piece; a plain slice (no copy) when they lie end to end, as windows do."""
    stops = piece.start + piece.length
    if len(stops) and np.array_equal(piece.start[1:], stops[:-1]):
        return slice(int(piece.start[0]), int(stops[-1]))
    return ranges(piece.start, piece.length)


def room_of(ctx: Context, *, pair: bool = False) -> int:
    """Tokens of text in an example of one text, or of two; raises `UserError` when there are none."""
    room = ctx.layout.room(ctx.length, pair=pair)
    needed, special = (2, "two texts") if pair else (1, "text")
    check(
        room >= needed,
        f"length {ctx.length} leaves no room for {special} beside the {ctx.length - room} special tokens of the tokenizer",
        f"set length to at least {ctx.length - room + needed}",
    )
    return room

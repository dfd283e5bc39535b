"""What the denoisers of encoder-decoders share: the text of an example, draws without replacement, and the two streams.

Letters in shapes: `D` documents, `N` tokens of text (special tokens are none of them).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ziggurat.context import Context
from ziggurat.data.cut import Piece, assemble
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.types import CAUSAL, DEAD, FULL, Batch, Stream, Target, Visibility


class Text(NamedTuple):
    """The run of text in each of D examples; special tokens stand around it."""

    at: np.ndarray
    """int64[N]: its rows of the stream `text`"""
    counts: np.ndarray
    """int64[D]"""
    owner: np.ndarray
    """int64[N]: the document of each token"""
    inside: np.ndarray
    """int64[N]: 0, 1, 2 ... within each document's text"""


def text_of(stream: Stream) -> Text:
    """The tokens that belong to words; one unbroken run a document, as `cut.windows` lays it."""
    assert stream.unit is not None, "the text is told from special tokens by its units"
    at = np.flatnonzero(stream.unit >= 0)
    counts = np.diff(np.searchsorted(at, stream.bounds))
    starts = (np.cumsum(counts) - counts)[counts > 0]
    assert (at[starts + counts[counts > 0] - 1] - at[starts] == counts[counts > 0] - 1).all(), "special tokens inside the text"
    owner = np.repeat(np.arange(len(counts)), counts)
    return Text(at, counts, owner, ranges(np.zeros(len(counts), np.int64), counts))


def choose(keys: np.ndarray, counts: np.ndarray, wanted: np.ndarray, purpose: str, ctx: Context) -> np.ndarray:
    """Of `counts[d]` things of each document, numbered from 0, `wanted[d] <= counts[d]` at random without replacement.

    Returns their numbers, int64[sum(wanted)]: document after document, in a random order within each (all of them:
    a permutation). Thing i has the draw i of `purpose`, and the smallest draws win.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    number = ranges(np.zeros(len(counts), np.int64), counts)
    draw = ctx.uniform(keys, owner, number, purpose)
    # Only small draws can win: 3 deviations more than needed. A document with too few of them is looked at whole.
    likely = (wanted + 3 * np.sqrt(wanted) + 1) / np.maximum(counts, 1) * (wanted > 0)
    few = np.flatnonzero(draw < np.repeat(likely, counts))
    found = np.bincount(owner[few], minlength=len(counts))
    if (found < wanted).any():
        few = np.flatnonzero(draw < np.repeat(np.where(found < wanted, 1.0, likely), counts))
        found = np.bincount(owner[few], minlength=len(counts))
    order = few[np.argsort(owner[few] + draw[few])]
    return number[order[ranges(np.cumsum(found) - found, wanted)]]


def echoed(batch: Batch, ctx: Context) -> Batch:
    """The examples of the stream `text` for a model of two stacks: both read the same text, the decoder one step later, after
    `ctx.start` (BART; Lewis et al., 2020, 3.1 and 3.2). Targets stay behind; a model of one stack keeps its batch.
    """
    if ctx.streams == ("text",):
        return batch
    text = batch.streams["text"]
    content, begins = np.empty_like(text.content), text.bounds[:-1][text.lengths > 0]
    content[1:] = text.content[:-1]
    content[begins] = ctx.start
    unit = None if text.unit is None else np.full_like(text.unit, -1)
    decoder = replace(text, content=content, visibility=CAUSAL, unit=unit)
    return Batch({"encoder": replace(text, visibility=FULL), "decoder": decoder}, {}, batch.keys)


class Sequences(NamedTuple):
    """One run of token ids a document."""

    ids: np.ndarray
    """int32[N]"""
    counts: np.ndarray
    """int64[D]"""

    def piece(self) -> Piece:
        return Piece(self.ids, bounds_of(self.counts)[:-1], self.counts)


def rewritten(batch: Batch, text: Text, shown: Sequences, gold: Sequences, kind: str, ctx: Context) -> Batch:
    """The example of an encoder-decoder: stream `encoder` has `shown` in the place of the text, between the same special
    tokens; stream `decoder` starts with `ctx.start` and must say `gold`, whose tokens it reads one step later.

    Dead documents become empty in both streams. The target has the name `kind`; the result is not packed.
    """
    old = batch.streams["text"]
    # Special tokens before the text; all of them where there is no text.
    front = np.where(batch.keys != DEAD, old.lengths, 0)
    first = (np.cumsum(text.counts) - text.counts)[text.counts > 0]
    front[text.counts > 0] = text.at[first] - old.bounds[:-1][text.counts > 0]
    after = front + text.counts
    back = np.where(batch.keys != DEAD, old.lengths - after, 0)
    slots = [Piece(old.content, old.bounds[:-1], front), shown.piece(), Piece(old.content, old.bounds[:-1] + after, back)]
    read = np.empty_like(gold.ids)
    read[1:] = gold.ids[:-1]
    read[bounds_of(gold.counts)[:-1][gold.counts > 0]] = ctx.start
    streams = {name: s for name, s in batch.streams.items() if name != "text"}
    streams["encoder"] = _stream(slots, FULL, batch.keys, ctx)
    streams["decoder"] = _stream([Sequences(read, gold.counts).piece()], CAUSAL, batch.keys, ctx)
    target = Target("decoder", np.arange(len(read)), gold.ids.astype(np.int64), np.ones(len(read), np.float32))
    return Batch(streams, {**batch.targets, kind: target}, batch.keys)


def _stream(slots: list[Piece], visibility: Visibility, keys: np.ndarray, ctx: Context) -> Stream:
    return replace(assemble(slots, [0] * len(slots), keys, ctx).streams["text"], visibility=visibility)

"""Permuted language modelling: predict some tokens one by one, in a random order, each from the text and the tokens before it.

Paper: XLNet (Yang et al., 2019, 2.2-2.5); released code: `_sample_mask`, `_split_a_and_b`, `_local_perm`.
Needs: one learned vector that is no vocabulary item (content -1). Feeds: stream "text", target "plm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from ziggurat.context import Context, mix
from ziggurat.data.cut import pair_up, windows
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.masked import choose_tokens
from ziggurat.objectives.segments import segments
from ziggurat.types import DEAD, FOREVER, NEVER, Batch, Part, Stream, Tokens, Visibility, text_target

QUERY = -1
"""The content of a query token: the first learned vector (the release's `mask_emb`)."""


class Permuted(Objective):
    """Permuted LM with two streams: content tokens, and after them one query token for each token to predict.

    Every token of an example is *ordinary* (not chosen), a *target*, or *functional* (a separator or the class token). Targets
    and functional tokens stand in a random order. Ordinary tokens see ordinary tokens; a functional token or a target also
    sees whatever stands before it in the order, and itself; the query of a target sees what the target sees but the target itself.
    As in the release (and not in the paper, which knows no functional tokens) ordinary tokens do not see separators.

    In numbers: an ordinary token has rank 0, others ranks from 1 on; `clock = opens = rank`; a query has `clock = rank - 1`,
    `opens = NEVER`, the position and segment of its target and the content -1.
    """

    kind: Literal["plm"] = "plm"
    extra: ClassVar[int] = 1
    chained: ClassVar[bool] = True
    rate: float = Field(1 / 6, gt=0, lt=1)
    """Share of an example's tokens to predict (K = 6; 85 of 512). Special tokens count towards the length, as in the release;
    there they also use up predictions when they are chosen, here never."""
    longest: int = Field(5, gt=0)
    """Spans have 1 to `longest` units with probability 1/n each."""
    alpha: int = Field(6, gt=0)
    """A span of n units stands at a random place among `alpha` * n units of context. In the release (followed here) the span
    comes on top of that context, in the paper it is part of it; single tokens fill up what is missing to `rate`."""
    unit: Literal["token", "word"] = "token"
    """What spans and their context count. The release means words, but tests the wrong index while it extends a span and so counts
    tokens, as the paper says: spans begin with a word and may end inside one. `word` is the rule that was meant."""
    perm_size: int = Field(256, gt=0)
    """Tokens are put in order inside blocks of this many; later blocks come after earlier ones. (The release uses one permutation
    for all blocks of a row, here each has its own.)"""
    reuse: int = Field(0, ge=0)
    """The first `reuse` tokens of a full example are the part that the stage's `memory` holds for the next one (256 of 512 in the
    paper): chosen and ordered by themselves; they see nothing of the rest, and the rest sees all of them. The next example begins
    behind them, so the rest is read again. 0 = there is none, and a memory holds the whole text of an example."""
    pairs: bool = True
    """Two segments, `A between B last`; otherwise windows of running text."""
    random: float = Field(0.5, ge=0, le=1)
    """Of the pairs, the share whose B comes from elsewhere."""
    reverse: float = Field(0.5, ge=0, le=1)
    """Share of documents whose text runs backwards (the release's `bi_data`)."""

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        if self.reverse:
            drawn = ctx.uniform(tokens.keys, np.arange(len(tokens)), np.zeros(len(tokens), np.int64), "plm.reverse")
            tokens = reversed_texts(tokens, drawn < self.reverse)
        lead = max(self.reuse - len(ctx.layout.first), 0)  # tokens of text among the first `reuse`
        if not self.pairs:
            return windows(tokens, ctx, step=lead or None)

        def wish(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.ones(len(keys), bool), np.full(len(keys), self.random)

        cut = segments(tokens, ctx, wish, "plm.pairs", lead)
        return replace(pair_up(cut.a, cut.b, cut.keys, ctx), before=cut.before)

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        assert stream.unit is not None, "permuted LM needs units"
        each, bounds, keys = self._stretches(batch, ctx)
        asked = self._choose(batch, bounds, keys, ctx)
        live = np.repeat(batch.keys != DEAD, stream.lengths)
        member = np.flatnonzero(asked | ((stream.unit < 0) & live))
        sizes = np.diff(np.searchsorted(member, bounds))
        owner = np.repeat(np.arange(len(sizes)), sizes)
        inside = member - bounds[owner]
        blocks = int(np.diff(bounds).max(initial=0)) // self.perm_size + 1
        draw = ctx.uniform(keys, owner, inside, "plm.order")
        order = np.argsort(owner * blocks + inside // self.perm_size + draw)
        rank = np.zeros(len(stream.content), np.int32)
        rank[member[order]] = ranges(np.ones(len(sizes), np.int64), sizes)
        if each == 2:  # the second stretch begins after every rank of the first, where there is one
            lengths = np.diff(bounds)
            later = np.where(lengths[::2] > 0, sizes[::2] + 1, 0)
            rank += np.repeat(np.stack([np.zeros_like(later), later], axis=1).ravel(), lengths).astype(np.int32)
        return _with_queries(batch, stream, np.flatnonzero(asked), rank)

    def forgets(self, model: parts.Model, memory: int) -> list[str]:
        found = super().forgets(model, memory)
        if memory and self.pairs and not self.reuse:
            found.append(
                "the pairs of plm may hold text from elsewhere: say by `reuse` how much of an example is remembered, or set pairs: false"
            )
        if self.reuse and not memory:
            found.append("`reuse` reads text again for the sake of a memory: give the stage a `memory`, or leave `reuse` out")
        return found

    def remembered(self, batch: Batch) -> np.ndarray:
        text = super().remembered(batch)
        return text & (batch.streams["text"].inside() < self.reuse) if self.reuse else text

    def rows(self, ctx: Context) -> Mapping[str, int]:
        full = ctx.length - self.reuse
        most = max(self._budget(np.array(n)).sum() for n in ([ctx.length], [self.reuse, full] if self.reuse and full > 0 else []))
        return {"text": ctx.length + int(most)}

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def _budget(self, lengths: np.ndarray) -> np.ndarray:
        return np.maximum(1, np.rint(self.rate * lengths)).astype(np.int64)

    def _stretches(self, batch: Batch, ctx: Context) -> tuple[int, np.ndarray, np.ndarray]:
        """What is chosen and ordered by itself: the documents, or with `reuse` two stretches of each, the second or the first empty.
        (stretches a document, their bounds int64[S + 1], their keys uint64[S])"""
        stream = batch.streams["text"]
        if not self.reuse:
            return 1, stream.bounds, batch.keys
        dead = batch.keys == DEAD
        held = np.where((stream.lengths == ctx.length) & ~dead, min(self.reuse, ctx.length), 0)
        lengths = np.stack([held, stream.lengths - held], axis=1).ravel()
        keys = np.stack([np.where(dead, DEAD, mix(batch.keys ^ np.uint64(1))), batch.keys], axis=1).ravel()
        return 2, bounds_of(lengths), keys

    def _choose(self, batch: Batch, bounds: np.ndarray, keys: np.ndarray, ctx: Context) -> np.ndarray:
        """bool[T]: the targets: spans first, then single tokens until each stretch has its share."""
        stream = batch.streams["text"]
        unit = stream.unit
        assert unit is not None
        lengths = np.diff(bounds)
        left = np.where((lengths > 0) & (keys != DEAD), self._budget(lengths), 0)
        asked = self._spans(unit, bounds, keys, left, ctx)
        free = np.where(asked | np.repeat(left == 0, lengths), -1, unit)
        singles = Batch({"text": replace(stream, bounds=bounds)}, {}, keys)
        asked[choose_tokens(singles, free, left, ctx)] = True
        return asked

    def _spans(self, unit: np.ndarray, bounds: np.ndarray, keys: np.ndarray, left: np.ndarray, ctx: Context) -> np.ndarray:
        """bool[T]: the tokens of the spans. All stretches are walked at once, a span a round; `left` (int64[S]) is what each may still
        choose and is counted down.

        A round draws n, then a place among the `alpha` * n units that follow; the span begins with the next word from there on,
        the rest of that context lies behind it. A span that would pass the end ends the walk. Units in which no word
        stands (special tokens) are counted but not chosen.
        """
        begins = np.ones(len(unit) + 1, bool)
        begins[1:-1] = (unit[1:] != unit[:-1]) | (unit[1:] < 0)
        begins[bounds] = True
        item = np.flatnonzero(begins) if self.unit == "word" else np.arange(len(unit) + 1)
        edges = np.searchsorted(item, bounds) if self.unit == "word" else bounds
        starts = np.append(begins[:-1] & (unit >= 0), True)[item]
        following = np.minimum.accumulate(np.where(starts, np.arange(len(item)), len(item))[::-1])[::-1]
        spent = bounds_of(unit >= 0)[item]
        chance = np.cumsum(1 / np.arange(1, self.longest + 1))
        chance /= chance[-1]
        mark = np.zeros(len(unit) + 1, np.int8)
        at, stop = edges[:-1].copy(), edges[1:]
        active = np.flatnonzero((left > 0) & (at < stop))
        number = 0
        while len(active):
            owner, index = np.arange(len(active)), np.full(len(active), number)
            length = ctx.uniform(keys[active], owner, index, "plm.length")
            n = np.minimum(1 + np.searchsorted(chance[:-1], length, side="right"), left[active])
            context = self.alpha * n
            before = (ctx.uniform(keys[active], owner, index, "plm.place") * context).astype(np.int64)
            begin = following[np.minimum(at[active] + before, len(item) - 1)]
            fits = begin + n <= stop[active]
            active, begin, n, behind = active[fits], begin[fits], n[fits], (context - before)[fits]
            end = begin + n
            if self.unit == "word":  # words that the budget does not hold are left out
                end = np.minimum(end, np.searchsorted(spent, spent[begin] + left[active], side="right") - 1)
            mark[item[begin]] += 1
            mark[item[end]] -= 1
            left[active] -= spent[end] - spent[begin]
            at[active] = end + behind
            active = active[(left[active] > 0) & (at[active] < stop[active])]
            number += 1
        return np.cumsum(mark[:-1], dtype=np.int8).astype(bool) & (unit >= 0)


def reversed_texts(tokens: Tokens, chosen: np.ndarray) -> Tokens:
    """The same documents, those `chosen` (bool[D]) with their tokens from last to first; words and sentences stay whole. Marks are dropped."""
    return replace(tokens, parts={name: _reversed_part(part, chosen) for name, part in tokens.parts.items()})


def _reversed_part(part: Part, chosen: np.ndarray) -> Part:
    lengths = np.diff(part.bounds)
    flip = np.repeat(chosen, lengths)
    here = np.arange(len(part.ids))
    source = np.where(flip, np.repeat(part.bounds[:-1] + part.bounds[1:] - 1, lengths) - here, here)

    def begins(flags: np.ndarray) -> np.ndarray:
        ends = np.append(flags[1:], True)
        ends[part.bounds[1:][lengths > 0] - 1] = True
        return np.where(flip, ends[source], flags)

    words, sentences = begins(part.words), begins(part.sentences)
    return replace(
        part,
        ids=part.ids[source],
        words=words,
        sentences=sentences,
        marks=np.zeros((0, 3), np.int64),
        mark_bounds=np.zeros(len(part.bounds), np.int64),
    )


def _with_queries(batch: Batch, stream: Stream, asked: np.ndarray, rank: np.ndarray) -> Batch:
    """The batch with a query token for each of `asked` (int64[K], ascending) after the tokens of its document."""
    queries = np.diff(np.searchsorted(asked, stream.bounds))
    bounds = bounds_of(stream.lengths + queries)
    text = ranges(bounds[:-1], stream.lengths)
    extra = ranges(bounds[:-1] + stream.lengths, queries)

    def column(of_text: np.ndarray, of_queries: np.ndarray | int) -> np.ndarray:
        both = np.empty(len(text) + len(extra), np.int32)
        both[text], both[extra] = of_text, of_queries
        return both

    total = len(text) + len(extra)
    visibility = Visibility(
        "custom",
        clock=column(rank, rank[asked] - 1),
        opens=column(rank, NEVER),
        closes=np.full(total, FOREVER, np.int32),
        lane=np.zeros(total, np.int32),
    )
    assert stream.unit is not None
    made = Stream(
        content=column(stream.content, QUERY),
        bounds=bounds,
        position=column(stream.position, stream.position[asked]),
        segment=column(stream.segment, stream.segment[asked]),
        visibility=visibility,
        unit=column(stream.unit, -1),
    )
    return replace(batch, streams={**batch.streams, "text": made}, targets={"plm": text_target(extra, stream.content[asked])})

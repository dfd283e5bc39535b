"""Sentence-level objectives: does B follow A, and are A and B in order.

Paper: BERT (Devlin et al., 2019, 3.1; the released create_pretraining_data rule) and ALBERT (Lan et al., 2020, 3.1).
Needs: sentence boundaries, a pair layout; next sentence also a second document. Feeds: stream "text", targets "nsp", "sop".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from ziggurat.context import Context, mix
from ziggurat.data.cut import Piece, pair_up
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.types import Batch, Part, Tokens, text_target


class Drawn(NamedTuple):
    """One example: the runs of A and B as (start, stop) in the block's tokens, and its class (-1: none to learn)."""

    a: tuple[int, int]
    b: tuple[int, int]
    label: int


class Draws:
    """The keyed random numbers of one document's examples, handed out one by one."""

    def __init__(self, ctx: Context, key: np.uint64, purpose: str):
        self._ctx, self._key, self._purpose, self._next = ctx, np.array([key]), purpose, 0
        self._block: list[float] = []

    def uniform(self) -> float:
        """One number in [0, 1)."""
        if not self._block:
            index = np.arange(self._next, self._next + 64)
            self._block = self._ctx.uniform(self._key, np.zeros(64, np.int64), index, self._purpose).tolist()[::-1]
            self._next += 64
        return self._block.pop()

    def below(self, n: int) -> int:
        return min(int(self.uniform() * n), n - 1)


class Pairs(Objective):
    """Base: gathers sentences of a document up to the target length and splits them at a sentence into A and B."""

    short: float = Field(0.1, ge=0, le=1)
    """Share of examples whose target length is drawn from 2 to the longest, so that the model also sees short ones."""

    def _target(self, room: int, draws: Draws) -> int:
        return 2 + draws.below(room - 1) if draws.uniform() < self.short else room

    def heads(self, model: parts.Single) -> Mapping[str, parts.Head]:
        return parts.class_heads(model, self.kind, 2)

    def _form(
        self,
        tokens: Tokens,
        ctx: Context,
        examples: Callable[[int, list[np.ndarray], int, Draws], list[Drawn]],
    ) -> Batch:
        part, room = tokens.parts["text"], ctx.layout.room(ctx.length, pair=True)
        check(room >= 2, f"length {ctx.length} leaves no room for two sentences", "set a larger length")
        edges = [sentence_edges(part, d) for d in range(len(tokens))]
        drawn: list[Drawn] = []
        keys: list[np.uint64] = []
        for d in range(len(tokens)):
            if len(edges[d]) < 2:
                continue
            draws = Draws(ctx, tokens.keys[d], f"{self.kind}.form")
            mine = [_cut(x, room, draws) for x in examples(d, edges, room, draws)]
            drawn += mine
            numbers = np.arange(len(mine), dtype=np.uint64)
            keys += list(mix(tokens.keys[d] ^ mix(numbers)))
        starts = np.array([[x.a[0], x.a[1], x.b[0], x.b[1]] for x in drawn], np.int64).reshape(-1, 4)
        a = Piece(part.ids, starts[:, 0], starts[:, 1] - starts[:, 0], part.words)
        b = Piece(part.ids, starts[:, 2], starts[:, 3] - starts[:, 2], part.words)
        batch = pair_up(a, b, np.array(keys, np.uint64), ctx)
        labels = np.array([x.label for x in drawn], np.int64)
        asked = np.flatnonzero(labels >= 0)
        return replace(batch, targets={self.kind: text_target(asked, labels[asked], at="document")})


class NextSentence(Pairs):
    """Is B the text after A (class 0) or from a random other document (class 1)? Half and half."""

    kind: Literal["nsp"] = "nsp"

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        filled = np.flatnonzero(np.diff(tokens.parts["text"].bounds))
        check(
            len(filled) > 1,
            "next sentence needs at least two documents to draw its negatives from",
            "split the corpus into documents, or use `sop` or plain `mlm`",
        )

        def examples(d: int, edges: list[np.ndarray], room: int, draws: Draws) -> list[Drawn]:
            mine, found = edges[d], []
            i, last = 0, len(mine) - 1
            while i < last:
                target = self._target(room, draws)
                stop = gather(mine, i, target)
                split = i + 1 + draws.below(stop - i - 1) if stop - i > 1 else stop
                a = (int(mine[i]), int(mine[split]))
                if split == stop or draws.uniform() < 0.5:
                    other = draws.below(len(filled) - 1)
                    theirs = edges[filled[other + (filled[other] >= d)]]
                    start = draws.below(len(theirs) - 1)
                    until = gather(theirs, start, max(1, target - (a[1] - a[0])))
                    found.append(Drawn(a, (int(theirs[start]), int(theirs[until])), 1))
                    i = split  # what was meant for B is used again
                else:
                    found.append(Drawn(a, (int(mine[split]), int(mine[stop])), 0))
                    i = stop
            return found

        return self._form(tokens, ctx, examples)


class SentenceOrder(Pairs):
    """Are the two consecutive segments in order (class 0) or swapped (class 1)? Half and half.

    A document of one sentence has no order: it gives one segment and no question, so that masked LM still reads it.
    """

    kind: Literal["sop"] = "sop"

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        def examples(d: int, edges: list[np.ndarray], room: int, draws: Draws) -> list[Drawn]:
            mine, found = edges[d], []
            i, last = 0, len(mine) - 1
            while i < last:
                stop = gather(mine, i, self._target(room, draws))
                first, end = int(mine[i]), int(mine[stop])
                if stop - i == 1:
                    found.append(Drawn((first, end), (end, end), -1))
                else:
                    middle = int(mine[i + 1 + draws.below(stop - i - 1)])
                    swapped = draws.uniform() < 0.5
                    a, b = (first, middle), (middle, end)
                    found.append(Drawn(b, a, 1) if swapped else Drawn(a, b, 0))
                i = stop
            return found

        batch = self._form(tokens, ctx, examples)
        check(
            len(batch.targets["sop"].index) or len(tokens) < 16,
            f"sentence order finds no two sentences in any of {len(tokens)} documents",
            "documents must hold several sentences; a corpus of one sentence a document has no order to learn",
        )
        return batch


def sentence_edges(part: Part, document: int) -> np.ndarray:
    """int64[S + 1]: where the document's sentences begin in the block's tokens, and where the last one ends."""
    lo, hi = int(part.bounds[document]), int(part.bounds[document + 1])
    if lo == hi:
        return np.zeros(0, np.int64)
    inner = np.flatnonzero(part.sentences[lo + 1 : hi]) + lo + 1
    return np.concatenate([[lo], inner, [hi]])


def gather(edges: np.ndarray, start: int, target: int) -> int:
    """The sentence after the last one needed to reach `target` tokens from sentence `start` (or the end)."""
    stop = int(np.searchsorted(edges, edges[start] + target))
    return min(max(stop, start + 1), len(edges) - 1)


def _cut(example: Drawn, room: int, draws: Draws) -> Drawn:
    """Tokens are taken off the longer side, from a random end each, until both fit in `room`."""
    (a, a_end), (b, b_end), label = example
    while (a_end - a) + (b_end - b) > room:
        front = draws.uniform() < 0.5
        if a_end - a > b_end - b:
            a, a_end = a + front, a_end - (not front)
        else:
            b, b_end = b + front, b_end - (not front)
    return Drawn((a, a_end), (b, b_end), label)

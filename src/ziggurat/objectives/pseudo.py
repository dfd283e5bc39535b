"""Pseudo-masked language modelling: autoencoding and partially autoregressive prediction of the same words in one pass.

Paper: UniLM v2 (Bao et al., 2020, 3; algorithm 1 for the blocks, figure 5 for the mask, 4.1 for the rates, table 6 for the
variants). Needs: a mask token. Feeds: stream "text", targets "pmlm_ae" and "pmlm_par".

A sentence of which the fourth and fifth token are predicted first and the second one after them:

    row        x1 [M] x3 [M] [M] x6   x2 x4 x5   [P] [P] [P]
    position    0  1  2  3  4  5      1  3  4     1   3   4
    clock       0  0  0  0  0  0      2  1  1     1   0   0
    opens       0  0  0  0  0  0      2  1  1     -   -   -
    lane        0  0  0  0  0  0      0  0  0     2   1   1

Everybody sees the context with its masks [M]; original words see the words of their own and of earlier steps; a pseudo mask [P]
sees the words of earlier steps and the other pseudo masks of its own step. No row of the context sees an original word, so
that none can hand it on (the paper's implicit leak).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from ziggurat.context import Context
from ziggurat.data.runs import bounds_of
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.masked import disguised
from ziggurat.types import FOREVER, FULL, NEVER, Batch, Stream, Target, Visibility, text_target


class PseudoMasked(Objective):
    """UniLM v2's objective and the variants of its table 6: AE + PAR (the default), AE + AR (`blocks: 0`), AE (`par: false`),
    PAR (`ae: false`), AR (`ae: false, blocks: 0`).

    Without autoencoding no masks [M] stand in the text, as in the paper's figure 4, and its words stay where they are. A block
    that would touch a special token or leave the text is drawn anew; the paper does not say. The released fine-tuning also shows
    a word or a random one in place of one pseudo mask in five; here, as in the paper's pre-training, all are pseudo masks.
    """

    kind: Literal["pmlm"] = "pmlm"
    rate: float = Field(0.15, gt=0, lt=1)
    """Share of an example's tokens at which no further block is drawn (special tokens count towards the length, as in BERT)."""
    blocks: float = Field(0.4, ge=0, le=1)
    """Share of the draws that take a block of tokens; the others take a single token. 0 = one token a step: autoregressive."""
    shortest: int = Field(2, ge=1)
    """Fewest tokens of a block; its length is uniform."""
    longest: int = Field(6, ge=1)
    """Most tokens of a block."""
    ae: bool = True
    """Autoencoding: a mask stands at every chosen place and predicts its word from the context alone."""
    par: bool = True
    """(Partially) autoregressive prediction by pseudo masks, block after block, in the order in which the blocks were drawn."""
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of the chosen places, the shares at which autoencoding shows the mask token, a random ordinary token, or the word itself.
    A word that stays is seen by everybody, its own pseudo mask included; `[1, 0, 0]` closes this."""
    pseudo: str = ""
    """The special token that pseudo masks are; empty = the mask token, as in the released checkpoints."""

    @model_validator(mode="after")
    def _valid(self) -> PseudoMasked:
        if not (self.ae or self.par):
            raise ValueError("ae and par are both false: nothing would be predicted")
        if self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest}, longest is {self.longest}")
        if abs(sum(self.replace) - 1) > 1e-6 or min(self.replace) < 0:
            raise ValueError("replace must be three shares (mask, random, keep) that sum to 1")
        return self

    def needs(self, ctx: Context) -> None:
        check(
            ctx.vocab.mask is not None,
            "pseudo-masked LM needs a mask token, and the tokenizer has none",
            "use a tokenizer with [MASK] or <mask>",
        )
        check(
            not self.pseudo or self.pseudo in ctx.vocab.names,
            f"the tokenizer has no special token '{self.pseudo}' for pseudo masks",
            "add it to the tokenizer, or leave `pseudo` empty to use the mask token",
        )

    def rows(self, ctx: Context) -> Mapping[str, int]:
        most = min(ctx.length, int(np.ceil(self.rate * ctx.length - 1e-9)) + self._longest() - 1)
        return {"text": ctx.length + (most * (1 + self.ae) if self.par else 0)}

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def _longest(self) -> int:
        return self.longest if self.blocks else 1

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        keys = batch.keys

        def size(owner: np.ndarray, draw: np.ndarray) -> np.ndarray:
            if not self.blocks:
                return np.ones(len(owner), np.int64)
            chance = ctx.uniform(keys, owner, draw, "pmlm.block")
            within = ctx.uniform(keys, owner, draw, "pmlm.length")
            length = self.shortest + (within * (self.longest - self.shortest + 1)).astype(np.int64)
            return np.where(chance < self.blocks, length, 1)

        budget = np.ceil(self.rate * stream.lengths - 1e-9).astype(np.int64)
        step = choose_blocks(batch, budget, size, ctx, "pmlm")
        chosen = np.flatnonzero(step)
        value = stream.content[chosen]
        content = disguised(batch, chosen, self.replace, "pmlm", ctx) if self.ae else stream.content
        if not self.par:
            done = replace(stream, content=content, visibility=FULL)
            return replace(batch, streams={**batch.streams, "text": done}, targets=_targets(batch, pmlm_ae=(chosen, value)))
        counts = np.diff(np.searchsorted(chosen, stream.bounds))
        pick = (stream.position[chosen], stream.segment[chosen])
        mine, none = step[chosen], np.zeros(len(chosen), np.int32)
        ctx_step = np.zeros(len(step), np.int32) if self.ae else step
        groups = [Rows(stream.lengths, content, stream.position, stream.segment, ctx_step, ctx_step, 0 * step, stream.unit)]
        if self.ae:
            groups.append(Rows(counts, value, *pick, mine, mine, none))
        token = ctx.vocab.names[self.pseudo] if self.pseudo else ctx.vocab.mask
        assert token is not None, "needs() was not asked"
        groups.append(Rows(counts, none + np.int32(token), *pick, mine - 1, none + np.int32(NEVER), mine))
        done, places = end_to_end(*groups)
        asked = {"pmlm_ae": (places[0][chosen], value)} if self.ae else {}
        targets = _targets(batch, **asked, pmlm_par=(places[-1], value))
        return replace(batch, streams={**batch.streams, "text": done}, targets=targets)


Size = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(documents int64[A], number of the draw int64[A]) -> tokens of the block int64[A]."""


def choose_blocks(batch: Batch, budget: np.ndarray, size: Size, ctx: Context, purpose: str, *, trim: bool = False) -> np.ndarray:
    """int32[T]: the number of the block that each token was drawn with, from 1 in the order of the draws of its document; 0 = none.

    Algorithm 1 of UniLM v2, all documents a draw at a time: a block begins at a uniform hidable token; it is dropped if it touches
    a chosen or special token or leaves the document; blocks are drawn until `budget` (int64[D]) tokens are reached. The last
    block may go beyond, or with `trim` is drawn no longer than what is left. The paper draws for ever; here a document whose free
    stretches are too short for its blocks keeps what it has after 100 + 4 budget draws.
    """
    stream = batch.streams["text"]
    assert stream.unit is not None, f"{purpose} needs units"
    at = np.flatnonzero(stream.unit >= 0)
    counts = np.diff(np.searchsorted(at, stream.bounds))
    first = np.cumsum(counts) - counts
    ends = np.diff(at, append=-1) != 1  # the last hidable token before a special one
    ends[(first + counts - 1)[counts > 0]] = True
    runs = np.flatnonzero(ends)
    stretch = np.repeat(at[runs] + 1, np.diff(runs, prepend=-1))
    step = np.zeros(len(stream.content), np.int32)
    left, spare, number = budget.copy(), counts.copy(), np.zeros(len(counts), np.int32)
    active, draw = np.flatnonzero((counts > 0) & (budget > 0)), 0
    while len(active):
        turn = np.full(len(active), draw)
        place = first[active] + (ctx.uniform(batch.keys, active, turn, f"{purpose}.start") * counts[active]).astype(np.int64)
        length = size(active, turn)
        length = np.minimum(length, left[active]) if trim else length
        start = at[place]
        few = np.flatnonzero(start + length <= stretch[place])
        reach = np.arange(length[few].max(initial=0))
        covered = start[few, None] + reach
        inside = reach < length[few, None]
        taken = step[np.minimum(covered, len(step) - 1)] > 0
        fits = ~(taken & inside).any(1)
        won, long = active[few[fits]], length[few[fits]]
        number[won] += 1
        step[covered[fits][inside[fits]]] = np.repeat(number[won], long)
        left[won] -= long
        spare[won] -= long
        draw += 1
        active = active[(left[active] > 0) & (spare[active] > 0) & (draw < 100 + 4 * budget[active])]
    return step


class Rows(NamedTuple):
    """N tokens of D documents that are laid out together with other groups of tokens of the same documents."""

    counts: np.ndarray
    """int64[D]: tokens of each document; those of a document stand together, documents in their order."""
    content: np.ndarray
    """int32[N], as all that follow"""
    position: np.ndarray
    segment: np.ndarray
    clock: np.ndarray
    opens: np.ndarray
    lane: np.ndarray
    unit: np.ndarray | None = None
    """None = -1: never hidden."""


def end_to_end(*groups: Rows) -> tuple[Stream, list[np.ndarray]]:
    """Document by document the tokens of the first group, then those of the second, and so on; no token ever closes.

    Returns the stream (not packed) and for each group the places of its tokens, int64[N].
    """
    bounds = bounds_of(np.sum([g.counts for g in groups], axis=0))
    total, start, places = int(bounds[-1]), bounds[:-1].copy(), []
    for g in groups:
        places.append(np.arange(len(g.content)) + np.repeat(start - (np.cumsum(g.counts) - g.counts), g.counts))
        start += g.counts

    def column(name: str) -> np.ndarray:
        made = np.empty(total, np.int32)
        for g, at in zip(groups, places, strict=True):
            made[at] = getattr(g, name) if getattr(g, name) is not None else -1
        return made

    visibility = Visibility("custom", column("clock"), column("opens"), np.full(total, FOREVER, np.int32), column("lane"))
    stream = Stream(column("content"), bounds, column("position"), column("segment"), visibility, column("unit"))
    return stream, places


def _targets(batch: Batch, **asked: tuple[np.ndarray, np.ndarray]) -> dict[str, Target]:
    return {**batch.targets, **{name: text_target(index, value) for name, (index, value) in asked.items()}}

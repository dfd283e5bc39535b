"""Masked language modelling: hide some tokens, predict each of them from everything else.

Paper: BERT (Devlin et al., 2019, 3.1, A.1); whole words: the authors' later release; n-grams: ALBERT (Lan et al., 2020,
4.1); spans: SpanBERT (Joshi et al., 2020, 3.1). Needs: a mask token. Feeds: stream "text", target "mlm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.config import Spec
from ziggurat.context import Context
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.types import Batch, text_target


class Ramp(Spec):
    """A rate that moves in a straight line over the stage."""

    start: float = Field(gt=0, lt=1)
    end: float = Field(gt=0, lt=1)

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)


class Masked(Objective):
    """Masked LM by token, whole word, n-gram or span."""

    kind: Literal["mlm"] = "mlm"
    rate: float | Ramp = Field(0.15)
    """Share of an example's tokens to predict (special tokens count towards the length, as in BERT), or
    `{start, end}` for a rate that changes over the stage."""
    unit: Literal["token", "word", "ngram", "span"] = "token"
    """What is hidden together: single tokens; whole words; 1 to `longest` words with probability 1/n (ALBERT); spans of
    words of geometric length with mean `mean` before the cut at `longest` (SpanBERT)."""
    longest: int = Field(0, ge=0)
    """Most words in an n-gram or span; 0 = the paper's (3 and 10)."""
    mean: float = Field(5.0, gt=1)
    """Mean of the geometric length of spans before the cut (1 / 0.2)."""
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of the chosen tokens, the shares that become the mask token, a random ordinary token, or stay. Drawn for each
    token, for spans once a span."""
    static: int = Field(0, ge=0)
    """0 = fresh masks every epoch (RoBERTa); n = n fixed maskings used in turn (BERT: 10)."""

    @model_validator(mode="after")
    def _valid(self) -> Masked:
        if isinstance(self.rate, float) and not 0 < self.rate < 1:
            raise ValueError("rate must lie between 0 and 1")
        if abs(sum(self.replace) - 1) > 1e-6 or min(self.replace) < 0:
            raise ValueError("replace must be three shares (mask, random, keep) that sum to 1")
        return self

    def needs(self, ctx: Context) -> None:
        check(
            ctx.vocab.mask is not None or self.replace[0] == 0,
            "masked LM needs a mask token, and the tokenizer has none",
            "use a tokenizer with [MASK] or <mask>, or set `replace: [0, 0.5, 0.5]`",
        )

    def heads(self, model: parts.Single) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def lengths(self) -> np.ndarray:
        """float64[longest]: the probability of hiding 1, 2, ... words together."""
        if self.unit in ("token", "word"):
            return np.ones(1)
        n = np.arange(1, (self.longest or {"ngram": 3, "span": 10}[self.unit]) + 1)
        weights = 1.0 / n if self.unit == "ngram" else (1 - 1 / self.mean) ** (n - 1)
        return weights / weights.sum()

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        if self.static:
            ctx = ctx.at_epoch(ctx.epoch % self.static)
        stream = batch.streams["text"]
        assert stream.unit is not None, "masked LM needs units"
        rate = self.rate.at(ctx.progress) if isinstance(self.rate, Ramp) else self.rate
        lengths = np.diff(stream.bounds)
        hidable = stream.unit >= 0
        document = stream.document()
        any_hidable = np.bincount(document[hidable], minlength=len(lengths)) > 0
        budget = np.where(any_hidable, np.maximum(1, np.rint(rate * lengths)), 0).astype(np.int64)
        if self.unit == "token":
            at, together = choose_tokens(batch, hidable, document, budget, ctx), None
        else:
            at, together = choose_phrases(batch, stream.unit, document, budget, self.lengths(), ctx)
        owner = document[at]
        inside = at - stream.bounds[owner]
        draw = ctx.uniform(batch.keys, owner, inside if self.unit != "span" or together is None else together, "mlm.replace")
        content = stream.content.copy()
        masks = draw < self.replace[0]
        if ctx.vocab.mask is not None:
            content[at[masks]] = ctx.vocab.mask
        swaps = ~masks & (draw < self.replace[0] + self.replace[1])
        ordinary = ctx.vocab.ordinary()
        pick = ctx.uniform(batch.keys, owner[swaps], inside[swaps], "mlm.random")
        content[at[swaps]] = ordinary[(pick * len(ordinary)).astype(np.int64)]
        target = text_target(at, stream.content[at])
        return replace(
            batch,
            streams={**batch.streams, "text": replace(stream, content=content)},
            targets={**batch.targets, "mlm": target},
        )


def choose_tokens(batch: Batch, hidable: np.ndarray, document: np.ndarray, budget: np.ndarray, ctx: Context) -> np.ndarray:
    """int64[K] ascending: exactly `budget` hidable tokens of each document (or all of them), without replacement."""
    at = np.flatnonzero(hidable)
    owner = document[at]
    draw = ctx.uniform(batch.keys, owner, at - batch.streams["text"].bounds[owner], "mlm.choose")
    counts = np.bincount(owner, minlength=len(budget))
    # Only small draws can win; a document with too few of them is looked at whole.
    likely = draw < (2 * budget / np.maximum(counts, 1) + 0.05)[owner]
    short = np.bincount(owner[likely], minlength=len(budget)) < np.minimum(budget, counts)
    if short.any():
        likely |= short[owner]
    at, owner, draw = at[likely], owner[likely], draw[likely]
    order = np.argsort(owner + draw)
    counts = np.bincount(owner, minlength=len(budget))
    starts = np.cumsum(counts) - counts
    chosen = order[(np.arange(len(at)) - starts[owner]) < budget[owner]]
    return np.sort(at[chosen])


def choose_phrases(
    batch: Batch, unit: np.ndarray, document: np.ndarray, budget: np.ndarray, lengths: np.ndarray, ctx: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Whole words, n of them at a time with probability `lengths[n - 1]`, until a document's budget of tokens is spent.

    Anchors are visited in random order. A phrase is shortened word by word until it fits what is left, and skipped when
    not even one word fits or when it would touch a chosen word. Returns (tokens int64[K] ascending, the number of each
    token's phrase within its document int64[K]).
    """
    starts_word = unit >= 0
    starts_word[1:] &= (unit[1:] != unit[:-1]) | (document[1:] != document[:-1])
    first = np.flatnonzero(starts_word)
    if not len(first):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    owner = document[first]
    word_of = np.cumsum(starts_word) - 1
    size = np.bincount(word_of[unit >= 0], minlength=len(first))
    number = unit[first]
    order = np.argsort(owner + ctx.uniform(batch.keys, owner, number, "mlm.choose"))
    most = len(lengths)
    if most > 1:
        draw = ctx.uniform(batch.keys, owner, number, "mlm.length")
        wanted = np.minimum(np.searchsorted(np.cumsum(lengths), draw, side="right"), most - 1) + 1
    else:
        wanted = np.ones(len(first), np.int64)
    counts = np.bincount(owner, minlength=len(budget))
    begin = np.cumsum(counts) - counts
    end = begin + counts
    tokens_before = np.concatenate([[0], np.cumsum(size)])
    taken = np.full(len(first), -1, np.int64)
    left = budget.copy()
    active = np.flatnonzero((left > 0) & (counts > 0))
    step = 0
    while len(active):
        anchor = order[begin[active] + step]
        stop = np.minimum(anchor + wanted[anchor], end[active])
        for _ in range(most - 1):
            cost = tokens_before[stop] - tokens_before[anchor]
            torn = first[stop - 1] + size[stop - 1] - first[anchor] > cost  # special tokens stand in between
            stop -= (stop > anchor + 1) & (torn | (cost > left[active]))
        good = tokens_before[stop] - tokens_before[anchor] <= left[active]
        for k in range(most):
            at = np.minimum(anchor + k, stop - 1)
            good &= taken[at] < 0
        for k in range(most):
            at = anchor + k
            fill = good & (at < stop)
            taken[at[fill]] = step
        left[active[good]] -= (tokens_before[stop] - tokens_before[anchor])[good]
        step += 1
        active = active[(left[active] > 0) & (step < counts[active])]
    hidden = np.flatnonzero((unit >= 0) & (taken[np.maximum(word_of, 0)] >= 0))
    return hidden, taken[word_of[hidden]]

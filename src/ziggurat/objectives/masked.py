"""Masked language modelling: hide some tokens, predict each of them from everything else.

Paper: BERT (Devlin et al., 2019, 3.1, A.1); whole words: the authors' later release; n-grams: ALBERT (Lan et al., 2020,
4.1); spans: SpanBERT (Joshi et al., 2020, 3.1); phrases and entities: ERNIE 1.0 (Sun et al., 2019, 3.2). Needs: a mask token. Feeds: stream "text", target "mlm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.config import Spec
from ziggurat.context import Context
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.text.phrases import together
from ziggurat.types import Batch, Stream, Tokens, text_target


class Ramp(Spec):
    """A rate that moves in a straight line over the stage."""

    start: float = Field(gt=0, lt=1)
    """The rate at the first step."""
    end: float = Field(gt=0, lt=1)
    """The rate at the last step."""

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(max(progress, 0.0), 1.0)


class Hiding(Objective):
    """Base: which tokens of an example are asked about, by token, whole word, phrase, n-gram or span."""

    rate: float | Ramp = Field(0.15)
    """Share of an example's tokens to predict (special tokens count towards the length, as in BERT), or
    `{start, end}` for a rate that changes over the stage."""
    unit: Literal["token", "word", "phrase", "ngram", "span"] = "token"
    """What is hidden together: single tokens; whole words; phrases and entities, elsewhere words (ERNIE 1.0); 1 to `longest` words
    with probability 1/n (ALBERT); spans of words of geometric length with mean `mean` before the cut at `longest` (SpanBERT)."""
    labels: tuple[str, ...] = ()
    """unit phrase: which kinds of marks are hidden as one (`phrase`, `PER`, ...); empty = all."""
    longest: int = Field(0, ge=0)
    """Most words in an n-gram or span; 0 = the paper's (3 and 10)."""
    mean: float = Field(5.0, gt=1)
    """Mean of the geometric length of spans before the cut (1 / 0.2)."""

    @model_validator(mode="after")
    def _rated(self) -> Hiding:
        if isinstance(self.rate, float) and not 0 < self.rate < 1:
            raise ValueError("rate must lie between 0 and 1")
        if self.labels and self.unit != "phrase":
            raise ValueError("labels are kinds of phrases: they need unit: phrase")
        return self

    @property
    def marked(self) -> bool:
        return self.unit == "phrase"

    def grouped(self, tokens: Tokens) -> Tokens:
        if not self.marked:
            return tokens
        return replace(tokens, parts={name: together(part, self.labels) for name, part in tokens.parts.items()})

    def lengths(self) -> np.ndarray:
        """float64[longest]: the probability of hiding 1, 2, ... words together."""
        if self.unit in ("token", "word", "phrase"):
            return np.ones(1)
        n = np.arange(1, (self.longest or {"ngram": 3, "span": 10}[self.unit]) + 1)
        weights = 1.0 / n if self.unit == "ngram" else (1 - 1 / self.mean) ** (n - 1)
        return weights / weights.sum()

    def choose(self, batch: Batch, ctx: Context) -> tuple[np.ndarray, np.ndarray | None]:
        """The tokens of the stream `text` to ask about, int64[K] ascending without repeats; and for each the number of what is
        hidden together within its document, int64[K] (None: single tokens)."""
        stream = batch.streams["text"]
        assert stream.unit is not None, f"{self.kind} needs units"
        rate = self.rate.at(ctx.progress) if isinstance(self.rate, Ramp) else self.rate
        budget = np.maximum(1, np.rint(rate * stream.lengths)).astype(np.int64)
        if self.unit == "token":
            return choose_tokens(batch, stream.unit, budget, ctx), None
        return choose_phrases(batch, stream.unit, budget, self.lengths(), ctx)


class Masked(Hiding):
    """Masked LM by token, whole word, phrase, n-gram or span."""

    kind: Literal["mlm"] = "mlm"
    chained: ClassVar[bool] = True
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of the chosen tokens, the shares that become the mask token, a random ordinary token, or stay. Drawn for each
    token, for spans once a span."""
    static: int = Field(0, ge=0)
    """0 = fresh masks every epoch (RoBERTa); n = n fixed maskings used in turn (BERT: 10)."""

    @model_validator(mode="after")
    def _valid(self) -> Masked:
        if abs(sum(self.replace) - 1) > 1e-6 or min(self.replace) < 0:
            raise ValueError("replace must be three shares (mask, random, keep) that sum to 1")
        return self

    def needs(self, ctx: Context) -> None:
        check(
            ctx.vocab.mask is not None or self.replace[0] == 0,
            "masked LM needs a mask token, and the tokenizer has none",
            "use a tokenizer with [MASK] or <mask>, or set `replace: [0, 0.5, 0.5]`",
        )

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        if self.static:
            ctx = ctx.at_epoch(ctx.epoch % self.static)
        stream = batch.streams["text"]
        at, together = self.choose(batch, ctx)
        content = disguised(batch, at, self.replace, "mlm", ctx, together if self.unit == "span" else None)
        target = text_target(at, stream.content[at])
        return replace(
            batch,
            streams={**batch.streams, "text": replace(stream, content=content)},
            targets={**batch.targets, "mlm": target},
        )


def disguised(
    batch: Batch,
    at: np.ndarray,
    shares: tuple[float, float, float],
    purpose: str,
    ctx: Context,
    together: np.ndarray | None = None,
) -> np.ndarray:
    """int32[T]: the stream `text` with the tokens `at` (int64[K], ascending) masked, replaced by a random ordinary token, or kept, in
    these shares. Drawn for each token, or once for all of a document's that have one number in `together` (int64[K])."""
    stream = batch.streams["text"]
    owner = np.repeat(np.arange(len(batch)), np.diff(np.searchsorted(at, stream.bounds)))
    inside = at - stream.bounds[owner]
    draw = ctx.uniform(batch.keys, owner, inside if together is None else together, f"{purpose}.replace")
    content = stream.content.copy()
    masks = draw < shares[0]
    if ctx.vocab.mask is not None:
        content[at[masks]] = ctx.vocab.mask
    swaps = np.flatnonzero(~masks & (draw < shares[0] + shares[1]))
    ordinary = ctx.vocab.ordinary()
    pick = ctx.uniform(batch.keys, owner[swaps], inside[swaps], f"{purpose}.random")
    content[at[swaps]] = ordinary[(pick * len(ordinary)).astype(np.int64)]
    return content


def choose_tokens(batch: Batch, unit: np.ndarray, budget: np.ndarray, ctx: Context) -> np.ndarray:
    """int64[K] ascending: exactly `budget` (int64[D]) hidable tokens of each document (or all of them): those of the smallest draws."""
    bounds = batch.streams["text"].bounds
    at = np.flatnonzero(unit >= 0)
    counts = np.diff(np.searchsorted(at, bounds))
    wanted = np.minimum(budget, counts)
    owner = np.repeat(np.arange(len(counts)), counts)
    draw = ctx.uniform(batch.keys, owner, at - np.repeat(bounds[:-1], counts), "mlm.choose")
    # Only small draws can win: 3 deviations more than needed. A document with too few of them is looked at whole.
    likely = (wanted + 3 * np.sqrt(wanted) + 1) / np.maximum(counts, 1)
    few = np.flatnonzero(draw < np.repeat(likely, counts))
    found = np.bincount(owner[few], minlength=len(counts))
    if (found < wanted).any():
        few = np.flatnonzero(draw < np.repeat(np.where(found < wanted, 1.0, likely), counts))
        found = np.bincount(owner[few], minlength=len(counts))
    ranked = owner[few] + draw[few]  # by document, then by draw
    largest = np.sort(ranked)[(np.cumsum(found) - found + wanted - 1)[counts > 0]]
    return at[few[ranked <= np.repeat(largest, found[counts > 0])]]


def choose_phrases(
    batch: Batch, unit: np.ndarray, budget: np.ndarray, lengths: np.ndarray, ctx: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Whole words, n of them at a time with probability `lengths[n - 1]`, until a document's budget of tokens is spent.

    Anchors are visited in increasing order of their draws. A phrase is shortened word by word until it fits what is left and
    no special token stands in it; it is skipped when not even one word fits or when it would touch a chosen word. Returns
    (tokens int64[K] ascending, the number of each token's phrase within its document int64[K]: how many anchors came before).
    """
    first, size, stretch, counts = find_words(batch.streams["text"], unit)
    owner = np.repeat(np.arange(len(counts)), counts)
    draw = ctx.uniform(batch.keys, owner, unit[first], "mlm.choose")
    reach = np.arange(len(lengths))
    before = bounds_of(np.append(size, np.zeros(len(reach), np.int64)))
    taken = np.full(len(first) + len(reach), -1, np.int32)  # the number of each word's phrase
    left, step = np.where(counts > 0, budget, 0), np.zeros(len(counts), np.int64)
    # Words of small draws are nearly always enough. Documents with budget left then visit their other words.
    likely = draw < np.repeat(0.05 + 2 * budget / np.maximum(counts * (1 + lengths @ reach), 1), counts)
    for rest in (False, True):
        few = np.flatnonzero(~likely & (left > 0)[owner] if rest else likely)
        order = few[np.argsort(owner[few] + draw[few])]
        most = stretch[order] - order
        if len(reach) > 1:
            chance = ctx.uniform(batch.keys, owner[order], unit[first[order]], "mlm.length")
            most = np.minimum(most, 1 + np.searchsorted(np.cumsum(lengths)[:-1], chance, side="right"))
        visits = np.bincount(owner[few], minlength=len(counts))
        begin = np.cumsum(visits) - visits
        active = np.flatnonzero((left > 0) & (visits > 0))
        for number in range(visits.max(initial=0)):
            at = begin[active] + number
            covered = order[at, None] + reach
            cost = before[covered + 1] - before[covered[:, :1]]
            fits = (reach < most[at, None]) & (cost <= left[active, None])
            fits &= ~(fits & (taken[covered] >= 0)).any(1, keepdims=True)
            taken[covered[fits]] = np.repeat(step[active] + number, fits.sum(1))
            left[active] -= np.max(cost * fits, 1)
            active = active[(left[active] > 0) & (visits[active] > number + 1)]
        step += visits
    chosen = np.flatnonzero(taken[: len(first)] >= 0)
    return ranges(first[chosen], size[chosen]), np.repeat(taken[chosen], size[chosen])


def find_words(stream: Stream, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each of W words its first token, its number of tokens, and the end of the unbroken stretch of words it stands in (int64[W]
    each; stretches end with the document and before special tokens); for each document its words, int64[D]."""
    begins = np.ones(len(unit), bool)
    begins[1:] = unit[1:] != unit[:-1]
    begins[stream.bounds[:-1][stream.lengths > 0]] = True
    runs = np.append(np.flatnonzero(begins), len(unit))
    words = np.flatnonzero(unit[runs[:-1]] >= 0)
    first = runs[words]
    counts = np.diff(np.searchsorted(first, stream.bounds))
    ends = np.diff(words, append=len(runs)) > 1  # a special token follows
    ends[(np.cumsum(counts) - 1)[counts > 0]] = True
    stretch = np.flatnonzero(ends) + 1
    return first, runs[words + 1] - first, np.repeat(stretch, np.diff(stretch, prepend=0)), counts

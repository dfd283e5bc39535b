"""Masked LM as correction: hidden words are replaced by similar ones, and never by a mask token.

Paper: MacBERT (Cui et al., 2020, 3.1, 3.2). Needs: a table of similar words. Feeds: stream "text", target "mac". The authors released no
code for it; the model is trained with sentence order: `joint` of `mac` and `sop`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.context import Context
from ziggurat.data.files import expanded
from ziggurat.data.runs import ranges
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.masked import Ramp, choose_phrases
from ziggurat.text.similar import SimilarWords, compiled, read_words
from ziggurat.text.vectors import Vectors
from ziggurat.types import Batch, text_target

if TYPE_CHECKING:
    from ziggurat.text.tokenizer import Tokenizer

NONE = "`mac` has no table of similar words"
HINT = "`ziggurat prepare RECIPE` makes it from the corpus; or give `table` a file of words and their similar words"


class MaskedAsCorrection(Objective):
    """N-grams of whole words are chosen as in masked LM; each of their words becomes a similar word, a random one, or stays.

    A similar word has as many tokens as the word, so that each place has its answer (the paper leaves open what is done about length);
    it is drawn evenly from those the table lists. A word without one becomes random tokens. What a word becomes is drawn once a word.
    """

    kind: Literal["mac"] = "mac"
    rate: float | Ramp = Field(0.15)
    """Share of an example's tokens to predict, or `{start, end}` for a rate that changes over the stage; as in `mlm`."""
    lengths: tuple[float, ...] = Field((0.4, 0.3, 0.2, 0.1), min_length=1)
    """The probability of choosing 1, 2, ... words together."""
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of the chosen words, the shares that become a similar word, random tokens, or stay."""
    table: Path | Vectors = Vectors()
    """Similar words: by vectors that `prepare` trains on the corpus (settings below, `{}` for their defaults); or a `.json` file of one
    object, word -> list of words, or a file of lines of word, tab, similar word, tab, similar word ..."""
    static: int = Field(0, ge=0)
    """0 = fresh words every epoch; n = n fixed choices used in turn."""

    @model_validator(mode="after")
    def _valid(self) -> MaskedAsCorrection:
        if isinstance(self.rate, float) and not 0 < self.rate < 1:
            raise ValueError("rate must lie between 0 and 1")
        for name, shares in ("replace", self.replace), ("lengths", self.lengths):
            if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
                raise ValueError(f"{name} must be shares that sum to 1")
        return self

    @property
    def vectors(self) -> tuple[Vectors, ...]:
        return (self.table,) if isinstance(self.table, Vectors) and self.replace[0] else ()

    def tables(self, tokenizer: Tokenizer, run: Path | None = None) -> dict[str, Any]:
        """What the context must carry besides: the table, read once and written in the tokenizer's ids."""
        if not self.replace[0]:
            return {}
        if isinstance(self.table, Path):
            table = expanded(self.table)
        else:
            check(run is not None and self.table.place(run).exists(), NONE, HINT)
            assert run is not None
            table = self.table.place(run)
        return {"similar": compiled(read_words(table), tokenizer)}

    def needs(self, ctx: Context) -> None:
        check(similar_in(ctx) is not None or self.replace[0] == 0, NONE, HINT)

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        if self.static:
            ctx = ctx.at_epoch(ctx.epoch % self.static)
        stream = batch.streams["text"]
        unit, bounds = stream.unit, stream.bounds
        assert unit is not None, "masked LM as correction needs units"
        rate = self.rate.at(ctx.progress) if isinstance(self.rate, Ramp) else self.rate
        budget = np.maximum(1, np.rint(rate * stream.lengths)).astype(np.int64)
        at, _ = choose_phrases(batch, unit, budget, np.array(self.lengths), ctx)
        owner = np.searchsorted(bounds, at, side="right") - 1
        begins = np.ones(len(at), bool)
        begins[1:] = (np.diff(at) != 1) | (np.diff(unit[at]) != 0) | (np.diff(owner) != 0)
        word = np.flatnonzero(begins)
        first, whose, size = at[word], owner[word], np.diff(word, append=len(at))
        draw = ctx.uniform(batch.keys, whose, first - bounds[whose], "mac.replace")
        content = stream.content.copy()
        alike = np.flatnonzero(draw < self.replace[0])
        random = (draw >= self.replace[0]) & (draw < self.replace[0] + self.replace[1])
        table = similar_in(ctx)
        if table is None:
            random[alike] = True
        else:
            row = table.find(stream.content, first[alike], size[alike])
            random[alike[row < 0]] = True
            alike, row = alike[row >= 0], row[row >= 0]
            pick = ctx.uniform(batch.keys, whose[alike], first[alike] - bounds[whose[alike]], "mac.similar")
            source = table.start[row] + (pick * table.count[row]).astype(np.int64) * size[alike]
            content[ranges(first[alike], size[alike])] = table.ids[ranges(source, size[alike])]
        swaps = np.flatnonzero(np.repeat(random, size))
        ordinary = ctx.vocab.ordinary()
        pick = ctx.uniform(batch.keys, owner[swaps], at[swaps] - bounds[owner[swaps]], "mac.random")
        content[at[swaps]] = ordinary[(pick * len(ordinary)).astype(np.int64)]
        targets = {**batch.targets, self.kind: text_target(at, stream.content[at])}
        return replace(batch, streams={**batch.streams, "text": replace(stream, content=content)}, targets=targets)


def similar_in(ctx: Context) -> SimilarWords | None:
    """The table that the context carries, if it has one."""
    table: SimilarWords | None = ctx.tables.get("similar")
    return table

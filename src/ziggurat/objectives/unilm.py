"""Unified language modelling: one cloze task under four visibilities.

Paper: UniLM (Dong et al., 2019, 2.2-2.4). The pre-training code was never released; what the paper leaves open is said below.
Needs: a mask token; sentence boundaries. Feeds: stream "text", targets "unilm" and "nsp".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.context import Context
from ziggurat.data.cut import Piece, assemble
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.segments import segments
from ziggurat.types import FOREVER, Batch, Stream, Tokens, Visibility, text_target

BOTH_WAYS, TO_SEQUENCE, RIGHTWARD, LEFTWARD = range(4)
"""Bidirectional, sequence-to-sequence, left-to-right, right-to-left."""


class Cloze(Masked):
    """Masked LM of n-grams whose lengths have the given probabilities."""

    chances: tuple[float, ...]
    """Of 1, 2, ... units."""

    def lengths(self) -> np.ndarray:
        return np.array(self.chances)


class UniLM(Objective):
    """Mask tokens and predict each from its own place: from both sides, from its left, from its right, or, in the second of two
    segments, from the first segment and its left.

    Each example draws its mode. Bidirectional ones are pairs whose B follows A or comes from another document, and say
    which (next sentence, class 1 = from elsewhere; not asked in a block of a single document). Sequence-to-sequence ones are
    pairs whose B follows A; masks fall in both, and the token that closes B can be hidden too, so that the model
    learns to stop. One-directional ones are one segment. Right-to-left is a visibility, not a reversed text.
    """

    kind: Literal["unilm"] = "unilm"
    modes: tuple[float, float, float, float] = (1 / 3, 1 / 3, 1 / 6, 1 / 6)
    """Shares of bidirectional, sequence-to-sequence, left-to-right and right-to-left examples. (The paper mixes them over batches,
    or over parts of a batch; here every example draws its own.)"""
    codes: tuple[int, int, int, int, int, int] = (0, 1, 4, 5, 2, 3)
    """Segment ids: bidirectional A and B, source and target, left-to-right, right-to-left. The model needs as many rows; all
    zeros serve a model without segments. (The paper has an id for each objective; the numbers are the released model's table.)"""
    rate: float = Field(0.15, gt=0, lt=1)
    """Share of an example's tokens to predict; special tokens count towards the length, as in BERT."""
    lengths: tuple[float, ...] = Field((0.8, 0.1, 0.1), min_length=1)
    """Probability of hiding 1, 2, ... tokens together: 80% one, 20% a bigram or trigram (evenly, which the paper leaves open)."""
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of the chosen tokens, the shares that become the mask token, a random ordinary token, or stay."""
    random: float = Field(0.5, ge=0, le=1)
    """Of the bidirectional pairs, the share whose B comes from another document."""

    @model_validator(mode="after")
    def _valid(self) -> UniLM:
        for name in ("modes", "lengths", "replace"):
            shares = getattr(self, name)
            if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
                raise ValueError(f"{name} must be shares that sum to 1")
        if min(self.codes) < 0:
            raise ValueError("codes must be segment ids from 0 on")
        return self

    def needs(self, ctx: Context) -> None:
        self._cloze().needs(ctx)

    def misfits(self, model: parts.Model) -> list[str]:
        found, rows = super().misfits(model), model.embed.segments
        if rows and max(self.codes) >= rows:
            found.append(
                f"{self.kind} has segment ids up to {max(self.codes)}, the model's table {rows} rows: give `codes` that fit"
            )
        return found

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        asked = parts.class_heads(model, "nsp", 2) if self.modes[BOTH_WAYS] else {}
        return {"lm": parts.VocabHead(), **asked}

    def head_of(self, target: str) -> str:
        return "lm" if target == "unilm" else target

    def weight_of(self, target: str) -> float:
        """Only bidirectional examples ask for the next sentence: its mean loss weighs as much as their share."""
        return self.modes[BOTH_WAYS] if target == "nsp" else 1.0

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        """Examples `first A last` or `first A between B last` with the visibility and segment ids of their mode."""
        alone = np.count_nonzero(np.diff(tokens.parts["text"].bounds)) < 2

        def wish(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            mode = self._mode(keys, ctx)
            return mode <= TO_SEQUENCE, np.where((mode == BOTH_WAYS) & (not alone), self.random, 0.0)

        cut = segments(tokens, ctx, wish, "unilm.form")
        mode = self._mode(cut.keys, ctx)
        paired = cut.b.length > 0
        layout, none = ctx.layout, np.zeros(len(mode), np.int64)
        between = Piece(np.array(layout.between, np.int32), none, np.where(paired, len(layout.between), 0))
        batch = assemble([layout.first, cut.a, between, cut.b, layout.last], [0, 0, 0, 1, 1], cut.keys, ctx)
        stream = batch.streams["text"]
        source = len(layout.first) + cut.a.length + np.where(paired, len(layout.between), len(layout.last))
        told = np.flatnonzero((mode == BOTH_WAYS) & paired) if self.random and not alone else np.zeros(0, np.int64)
        return replace(
            batch,
            streams={"text": self._seen(stream, mode, source, len(layout.last))},
            targets={"nsp": text_target(told, cut.label[told], at="document")} if self.modes[BOTH_WAYS] else {},
        )

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        assert stream.unit is not None, "the cloze needs units"
        tokens = np.where(stream.unit >= 0, stream.inside(), -1).astype(np.int32)  # every token a unit of its own
        bare = replace(batch, streams={"text": replace(stream, unit=tokens)}, targets={})
        done = self._cloze().corrupt(bare, ctx)
        hidden = replace(done.streams["text"], unit=stream.unit)
        return replace(
            batch,
            streams={**batch.streams, "text": hidden},
            targets={**batch.targets, "unilm": done.targets["mlm"]},
        )

    def _mode(self, keys: np.ndarray, ctx: Context) -> np.ndarray:
        """int64[E]"""
        draw = ctx.uniform(keys, np.arange(len(keys)), np.zeros(len(keys), np.int64), "unilm.mode")
        last = int(np.flatnonzero(self.modes)[-1])  # rounding may leave the sum a hair below 1
        return np.minimum(np.searchsorted(np.cumsum(self.modes), draw, side="right"), last)

    def _cloze(self) -> Cloze:
        return Cloze(rate=self.rate, unit="ngram", replace=self.replace, chances=self.lengths)

    def _seen(self, stream: Stream, mode: np.ndarray, source: np.ndarray, closing: int) -> Stream:
        """The stream with the segment ids, visibility and units of each example's `mode` (int64[E]); `source` (int64[E]) is the
        length of the first segment with the special tokens around it, `closing` the number of special tokens at the end."""
        lengths = stream.lengths
        inside, each = stream.inside(), np.repeat(mode, lengths)
        second = inside >= np.repeat(source, lengths)
        codes = np.array([self.codes[:2], self.codes[2:4], self.codes[4:5] * 2, self.codes[5:6] * 2], np.int32)
        segment = codes[each, second.astype(np.int64)]
        one_way = (each == RIGHTWARD) | ((each == TO_SEQUENCE) & second)
        clock = np.where(one_way, inside, np.where(each == LEFTWARD, np.repeat(lengths, lengths) - 1 - inside, 0)).astype(
            np.int32
        )
        forever, nobody = np.full(len(clock), FOREVER, np.int32), np.zeros(len(clock), np.int32)
        assert stream.unit is not None
        unit = stream.unit.copy()
        if closing:  # the token that ends the target is a word after the target's last
            targets = (mode == TO_SEQUENCE) & (lengths > source)
            at = stream.bounds[1:][targets] - closing
            unit[at] = unit[at - 1] + 1
        return replace(stream, segment=segment, visibility=Visibility("custom", clock, clock, forever, nobody), unit=unit)

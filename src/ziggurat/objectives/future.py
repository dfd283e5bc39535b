"""Future n-gram prediction: at each step n streams predict the same next token, each from a past one token shorter.

Paper: ProphetNet (Qi et al., 2020, 3.2-3.3, and the released code). Needs: for spans a mask token; `ngram` learned input
vectors. Feeds: streams "encoder" and "decoder", target "future"; over running text stream "text", target "future_lm".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.context import Context
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.causal import Causal
from ziggurat.objectives.fragment import Runs, shifted
from ziggurat.objectives.masked import disguised
from ziggurat.types import CAUSAL, FOREVER, FULL, NEVER, Batch, Stream, Target, Tokens, Visibility


class Ahead(Objective):
    """Base: adds the predicting streams to a causal stream.

    Predicting stream s (0 to n - 1) has one row for each step t of the main stream. It holds no token but a learned vector of
    the stream, stands one position further than the main stream's, and is asked for the token after step t. It sees itself, the
    main stream up to step t - s, and the main stream's first step always, so that no row is empty; nobody sees it. So stream 0
    is an ordinary LM and stream 1, one step late, the prediction of two tokens ahead. The main stream is asked nothing. The
    release and the Hub take the vector of stream s from row s - 1 of their table: stream 0 has the last row, and so it has here.
    """

    ngram: int = Field(2, ge=1)
    """Predicting streams: how many tokens ahead are predicted at once."""
    weights: tuple[float, ...] = ()
    """Weight of each stream's predictions in the mean; by default all are equal, as in the release."""

    @model_validator(mode="after")
    def _one_each(self) -> Ahead:
        if self.weights and (len(self.weights) != self.ngram or min(self.weights) < 0 or not sum(self.weights)):
            raise ValueError(f"weights must be {self.ngram} numbers, one a stream, none negative and one above 0")
        return self

    @property
    def extra(self) -> int:  # type: ignore[override]
        """The n-gram vectors."""
        return self.ngram

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def ask(self, main: Stream, answers: np.ndarray, name: str) -> tuple[Stream, Target]:
        """The causal stream `main` (int32[T]) with its predicting streams, (1 + n) T tokens, main stream first in each document;
        and the question for `answers` (int[T]: what follows each main token), once in every predicting stream."""
        n, steps = self.ngram, main.lengths
        own = np.repeat(steps, 1 + n)  # the lengths of each document's main and predicting streams
        source = ranges(np.repeat(main.bounds[:-1], 1 + n), own)
        number = np.repeat(np.tile(np.arange(-1, n), len(steps)), own)
        step, size = main.inside()[source], np.repeat(own, own)
        text = number < 0
        back = np.maximum(number, 0)
        times = (
            step - np.minimum(back, step),
            np.where(text, step, NEVER),
            np.full(len(step), FOREVER),
            np.where(text, 0, 1 + back * size + step),
        )
        stream = Stream(
            content=np.where(text, main.content[source], -1 - (number - 1) % n).astype(np.int32),
            bounds=bounds_of(steps * (1 + n)),
            position=(main.position[source] + ~text).astype(np.int32),
            segment=main.segment[source],
            visibility=Visibility("custom", *(time.astype(np.int32) for time in times)),
        )
        rows = np.flatnonzero(~text)
        weights = np.array(self.weights or [1.0] * n, np.float32)
        return stream, Target(name, rows, answers[source[rows]].astype(np.int64), weights[number[rows]])


class Future(Ahead, Runs):
    """ProphetNet's pre-training: the decoder reconstructs the hidden runs of a text, n tokens ahead.

    In each block of 64 tokens one run of 15% (9 tokens) is hidden; the decoder reads all runs one after the other, each
    token at its position in the text, and sees all of the encoder.
    """

    kind: Literal["future"] = "future"
    ratio: float = Field(0.15, gt=0, le=1)
    """Length of the run as a share of its block, cut to whole tokens; at least one token a text."""
    block: int = Field(64, ge=0)
    """Tokens of a block; 0 = one run a text."""
    starts: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Shares of runs that start with their block, that end with it, and that lie anywhere in it, each place as likely."""

    def rows(self, ctx: Context) -> Mapping[str, int]:
        most = Runs.rows(self, ctx)
        return {**most, "decoder": (1 + self.ngram) * most["decoder"]}

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream, at = batch.streams["text"], self.hidden(batch, ctx)
        content, unit = disguised(batch, at, self.replace, self.kind, ctx), stream.unit
        encoder = Stream(content, stream.bounds, stream.position, stream.segment, FULL, unit)
        decoder, target = self.ask(shifted(stream, at, ctx), stream.content[at], "decoder")
        return Batch({"encoder": encoder, "decoder": decoder}, {self.kind: target}, batch.keys)


class FutureLM(Ahead):
    """The same over running text, without an encoder: a causal LM that looks n tokens ahead."""

    kind: Literal["future_lm"] = "future_lm"
    structures: ClassVar[tuple[str, ...]] = ("single",)

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        return Causal().form(tokens, ctx)

    def rows(self, ctx: Context) -> Mapping[str, int]:
        return {"text": (1 + self.ngram) * (ctx.length - 1)}

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        at = Causal().corrupt(batch, ctx).targets["clm"].index  # the last token of a document is only ever an answer
        bounds = np.searchsorted(at, stream.bounds)
        main = Stream(stream.content[at], bounds, stream.position[at], stream.segment[at], CAUSAL)
        text, target = self.ask(main, stream.content[at + 1], "text")
        return Batch({"text": text}, {self.kind: target}, batch.keys)

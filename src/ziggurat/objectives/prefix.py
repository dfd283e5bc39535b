"""Prefix language modelling: read a prefix in both directions, predict what follows token by token.

Paper: Liu et al. (2018); Raffel et al. (T5, 2020, 3.2.1, 3.3.1: the border is drawn evenly). Needs: nothing. Feeds: stream "text",
target "prefix_lm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.context import Context
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.causal import Causal
from ziggurat.types import DEAD, FOREVER, Batch, Tokens, Visibility, text_target


class Prefix(Objective):
    """Prefix LM: the prefix sees itself both ways, the rest sees the prefix and its own past; only the rest is predicted.

    Examples are those of causal LM: windows of running text, and the end token where a document ends. The last token of the prefix
    predicts the first of the rest, so nothing stands between them. Neither part is ever empty (of the prefix a special token
    before the text may be all there is); an example of one token asks nothing.
    """

    kind: Literal["prefix_lm"] = "prefix_lm"
    share: tuple[float, float] = Field((0.0, 1.0))
    """The prefix is a share of the text drawn evenly between these two. (0, 1) is T5's rule: every border is as likely. Two equal
    numbers fix it; (0, 0) leaves one token, which is causal LM."""

    @model_validator(mode="after")
    def _valid(self) -> Prefix:
        if not 0 <= self.share[0] <= self.share[1] <= 1:
            raise ValueError("share must be two numbers, 0 <= low <= high <= 1")
        return self

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        return Causal().form(tokens, ctx)

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        lengths, documents = stream.lengths, np.arange(len(batch))
        draw = ctx.uniform(batch.keys, documents, np.zeros(len(batch), np.int64), "prefix_lm.border")
        low, high = self.share
        first = np.maximum(1, len(ctx.layout.first))  # special tokens before the text belong to the prefix
        borders = lengths - first  # the possible ones: the prefix is `first` to `lengths - 1` tokens
        border = first + np.floor((low + (high - low) * draw) * borders).astype(np.int64)
        border = np.minimum(border, np.maximum(lengths - 1, 1))
        border[batch.keys == DEAD] = lengths[batch.keys == DEAD]
        inside = stream.inside()
        rest = inside >= np.repeat(border, lengths)
        clock = np.where(rest, inside, 0).astype(np.int32)
        none = np.zeros(len(clock), np.int32)
        visibility = Visibility("custom", clock, clock, np.full(len(clock), FOREVER, np.int32), none)
        at = np.flatnonzero(rest)
        return replace(
            batch,
            streams={**batch.streams, "text": replace(stream, visibility=visibility)},
            targets={**batch.targets, "prefix_lm": text_target(at - 1, stream.content[at])},
        )

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

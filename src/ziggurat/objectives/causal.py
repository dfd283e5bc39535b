"""Causal language modelling: predict every next token.

Paper: GPT-2 (Radford et al., 2019, 2). Needs: nothing. Feeds: stream "text", target "clm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from ziggurat.context import Context
from ziggurat.data.cut import windows
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.types import CAUSAL, DEAD, Batch, Tokens, text_target


class Causal(Objective):
    """Left-to-right LM; each document ends with the vocabulary's end token."""

    kind: Literal["clm"] = "clm"
    chained: ClassVar[bool] = True

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        # Only the end of a document looks like one: windows inside it get no closing token.
        open_ended = replace(ctx, visibility="causal", layout=replace(ctx.layout, last=()))
        batch = windows(tokens, open_ended, end=ctx.vocab.end)
        stream = replace(batch.streams["text"], visibility=CAUSAL)
        return replace(batch, streams={**batch.streams, "text": stream})

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        lengths = np.diff(stream.bounds)
        follows = np.repeat(batch.keys != DEAD, lengths)
        follows[stream.bounds[1:][lengths > 0] - 1] = False
        at = np.flatnonzero(follows)
        return replace(batch, targets={**batch.targets, "clm": text_target(at, stream.content[at + 1])})

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

"""The span-boundary objective: every token of a hidden span is predicted from the tokens around the span.

Paper: SpanBERT (Joshi et al., 2020, 3.2). Needs: a mask token. Feeds: stream "text", target "sbo". The paper adds its loss to that of masked
LM over the same spans: `joint` of `mlm` with `unit: span`, then `sbo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from ziggurat.context import Context
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.order import without_words
from ziggurat.types import Batch, Target, text_target


class SpanBoundary(Objective):
    """Asks about the tokens that masked LM hides, and lets only the two tokens outside their span answer.

    As in the released code, a span is a whole run of hidden tokens (spans that touch are one), a span without a token of text on either
    side is left out, and so are the tokens from place `places` on: they are in the target, so that it lists whole spans, with weight 0.
    The rows of a prediction's two tokens and its place are read off the target (`at: around`) by the head.
    """

    kind: Literal["sbo"] = "sbo"
    hide: Masked = Masked(unit="span")
    """How spans are hidden where no earlier part of a joint has hidden any. With `mlm` before it this is not used."""
    places: int = Field(20, ge=1)
    """Longest part of a span that is asked about."""
    size: int = Field(200, ge=1)
    """Width of the vectors that stand for the places."""

    def needs(self, ctx: Context) -> None:
        self.hide.needs(ctx)

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {self.kind: parts.BoundaryHead(places=self.places, size=self.size)}

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        before = batch.streams["text"]
        hidden = next((batch.targets[kind] for kind in ("mlm", "mac") if kind in batch.targets), None)
        if hidden is None:
            done = self.hide.corrupt(batch, ctx)
            hidden = done.targets["mlm"]
            stream = replace(done.streams["text"], unit=without_words(before, hidden.index))
            batch = replace(batch, streams={**batch.streams, "text": stream})
        assert before.unit is not None, "span boundaries need units"
        return replace(batch, targets={**batch.targets, self.kind: self._target(hidden, before.bounds, before.unit)})

    def _target(self, hidden: Target, bounds: np.ndarray, unit: np.ndarray) -> Target:
        at = np.asarray(hidden.index)
        owner = np.searchsorted(bounds, at, side="right") - 1
        begins = np.ones(len(at), bool)
        begins[1:] = (np.diff(at) != 1) | (np.diff(owner) != 0)
        first = np.flatnonzero(begins)
        size = np.diff(first, append=len(at))
        left, right, whose = at[first] - 1, at[first] + size, owner[first]
        text = np.append(unit >= 0, False)
        enclosed = (left >= bounds[whose]) & (right < bounds[whose + 1]) & text[left] & text[right]
        kept = np.repeat(enclosed, size)
        place = at - np.repeat(at[first], size)
        weight = (place < self.places).astype(np.float32)
        return replace(text_target(at[kept], hidden.value[kept], at="around"), weight=weight[kept])

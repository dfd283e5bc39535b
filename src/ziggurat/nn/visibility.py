"""Who may look at whom, made into what kernels read: once per forward pass, shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ziggurat.types import Stream, Visibility


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A stream's attention layout: T tokens seen as `rows` rows of `length`.

    Packed streams are a plain view. Others are padded here, inside attention only: `slots` says which token fills
    each place of the rows and `places` where each token went.
    """

    rows: int
    length: int
    mask: Tensor | None
    """bool[rows, 1, length, length], True where the query (third) may look at the key (fourth); None = everything."""
    causal: bool
    """The mask is exactly the lower triangle and therefore left out."""
    empty: Tensor | None
    """bool[rows, 1, length, 1]: queries that see nothing; their output is 0. None = there are none."""
    slots: Tensor | None
    """int64[rows, length] or None for a view"""
    places: Tensor | None
    """int64[T] or None for a view"""
    kind: Literal["full", "causal", "custom"]
    bounds: Tensor
    """int32[D + 1] for variable-length kernels"""
    rule: tuple[Tensor, ...] | None = None
    """(document, clock, opens, closes, lane), each int[rows, length], for kernels that evaluate the rule themselves"""

    def spread(self, x: Tensor) -> Tensor:
        """[T, ...] -> [rows, length, ...]"""
        if self.slots is None:
            return x.view(self.rows, self.length, *x.shape[1:])
        return x[self.slots]

    def gather(self, x: Tensor) -> Tensor:
        """[rows, length, ...] -> [T, ...]"""
        flat = x.reshape(self.rows * self.length, *x.shape[2:])
        return flat if self.places is None else flat[self.places]


def allow(query: Any, key: Any) -> Any:
    """The visibility rule on broadcastable (document, clock, opens, closes, lane) of queries and keys -> bool."""
    document_q, clock, _, _, lane_q = query
    document_k, _, opens, closes, lane_k = key
    alive = (opens <= clock) & (clock < closes)
    mates = (lane_q == lane_k) & (lane_k != 0)
    return (document_q == document_k) & (alive | mates)


def plan(stream: Stream) -> Plan:
    """The layout of `stream` (torch side): full and causal rows of one document each carry no mask at all."""
    total, documents = len(stream.content), len(stream.bounds) - 1
    bounds = stream.bounds
    device = bounds.device
    tokens = torch.arange(total, device=device)
    document = torch.searchsorted(bounds, tokens, right=True) - 1
    if stream.row:
        rows, length = total // stream.row, stream.row
        slots = places = None
        one_each = documents == rows
        member = document.view(rows, length)
        inside = tokens.view(rows, length)
    else:
        lengths = bounds[1:] - bounds[:-1]
        rows, length = documents, int(lengths.max()) if documents else 0
        at = torch.arange(length, device=device)
        real = at < lengths[:, None]
        slots = torch.where(real, bounds[:-1, None] + at, 0)
        inside_document = tokens - bounds[document]
        places = document * length + inside_document
        one_each = bool(real.all())
        member = torch.where(real, torch.arange(documents, device=device)[:, None], -1)
        inside = at.expand(rows, length)
        if one_each:
            slots = places = None
    visibility: Visibility = stream.visibility
    layout = dict(rows=rows, length=length, slots=slots, places=places, kind=visibility.kind, bounds=bounds.to(torch.int32))
    if visibility.kind == "custom":
        spelled = (visibility.clock, visibility.opens, visibility.closes, visibility.lane)
        rule = (member, *(_lay(v, slots, rows, length) for v in spelled if v is not None))
        mask = allow(tuple(r[:, :, None] for r in rule), tuple(r[:, None, :] for r in rule)) & (member >= 0)[:, None, :]
        return Plan(mask=mask[:, None], causal=False, empty=~mask.any(-1)[:, None, :, None], rule=rule, **layout)
    causal = visibility.kind == "causal"
    if one_each:
        return Plan(mask=None, causal=causal, empty=None, **layout)
    mask = member[:, :, None] == member[:, None, :]
    if causal:
        mask &= inside[:, :, None] >= inside[:, None, :]
    return Plan(mask=mask[:, None], causal=False, empty=None, **layout)


def _lay(values: Tensor, slots: Tensor | None, rows: int, length: int) -> Tensor:
    return values.view(rows, length) if slots is None else values[slots]

"""Rows that nobody but themselves looks at, taken out of the keys: queries (XLNet), predicting streams (ProphetNet), rows that ask (ERNIE-GEN)."""

from __future__ import annotations

from dataclasses import replace

import torch

from ziggurat.nn.visibility import Plan, Side
from ziggurat.types import NEVER, Stream

LEAST = 8
"""The keys are gathered where at least one row in so many is taken out."""


def few_keys(layout: Plan, stream: Stream) -> Plan:
    """The plan of a stream that reads itself, with as keys the rows alone that others may look at; the same plan where there are few others.

    Such a row has `opens = NEVER`. In lane 0 nobody looks at it. In a lane of its own it looks at itself: then each row of the plan has a
    last key more, which stands for the query's own (`Plan.own`). In a lane with others it must stay, and the plan is as it was.
    A text of n tokens with two streams beside it has n + 1 keys instead of 3 n. On the CPU only: elsewhere kernels skip what is masked.
    """
    see, side, mask = stream.visibility, layout.query, layout.mask
    if see.kind != "custom" or mask is None or mask.device.type != "cpu" or side is not layout.key:
        return layout
    assert see.opens is not None and see.lane is not None
    asks, total = see.opens >= NEVER, len(stream.content)
    if not total or LEAST * int(asks.sum()) < total:
        return layout
    token = torch.arange(total)
    document, lane = torch.searchsorted(stream.bounds, token, right=True) - 1, see.lane.long()
    code = document * (int(lane.max()) + 1) + lane
    alone = asks & (lane != 0)
    if bool((torch.bincount(code)[code][alone] > 1).any()):
        return layout
    rows, length = side.rows, side.length
    real = torch.ones(rows * length, dtype=torch.bool)
    slots = token.view(rows, length) if side.slots is None else side.slots
    if side.places is not None:
        real = torch.zeros_like(real).index_fill(0, side.places, True)
    real = real.view(rows, length)
    stays = real & ~asks[slots]
    counts = stays.sum(1)
    most = int(counts.max())
    at = torch.argsort((~stays).to(torch.int8), dim=1, stable=True)[:, :most]  # those that stay, in their order, and fillers
    mask = mask[:, 0].gather(2, at[:, None, :].expand(rows, length, most)) & (torch.arange(most) < counts[:, None])[:, None, :]
    own = None
    if bool(alone.any()):
        own, mask = slice(None), torch.cat([mask, (real & alone[slots])[:, :, None]], 2)
    key = Side(rows, most, slots.gather(1, at))
    return replace(layout, key=key, mask=mask[:, None], own=own, counting=False, memo={})

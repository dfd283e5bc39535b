"""Who may look at whom, made into what kernels read: once per forward pass, shared by all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ziggurat.types import Stream, Visibility


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """How T packed tokens, as queries or as keys, lie in `rows` rows of `length`.

    Packed streams are a plain view. Others are padded here, inside attention only: `slots` says which token fills
    each place of the rows and `places` where each token went.
    """

    rows: int
    length: int
    slots: Tensor | None = None
    """int64[rows, length] or None for a view"""
    places: Tensor | None = None
    """int64[T] or None for a view"""

    def spread(self, x: Tensor) -> Tensor:
        """[T, ...] -> [rows, length, ...]"""
        if self.slots is None:
            return x.view(self.rows, self.length, *x.shape[1:])
        return x.index_select(0, self.slots.reshape(-1)).view(
            self.rows, self.length, *x.shape[1:]
        )  # a faster gradient than x[slots]

    def gather(self, x: Tensor) -> Tensor:
        """[rows, length, ...] -> [T, ...]"""
        flat = x.reshape(self.rows * self.length, *x.shape[2:])
        return flat if self.places is None else flat.index_select(0, self.places)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Who of the queries looks at whom of the keys, both seen as rows; row r of the queries reads row r of the keys."""

    query: Side
    key: Side
    mask: Tensor | None
    """bool[rows, 1, query.length, key.length], True where the query may look at the key; None = everything."""
    causal: bool
    """The mask is exactly the lower triangle and therefore left out."""
    empty: Tensor | None
    """bool[rows, 1, query.length, 1]: queries that see nothing; their output is 0. None = there are none."""
    kind: Literal["full", "causal", "custom"]
    bounds: Tensor
    """int32[D + 1] for variable-length kernels"""
    rule: tuple[Tensor, ...] | None = None
    """(document, clock, opens, closes, lane), each int[rows, length], for kernels that evaluate the rule themselves"""
    position: tuple[Tensor, Tensor] | None = None
    """int[Q] and int[T]: where the queries and where the keys stand; None in cross attention, which knows no distance"""
    segment: tuple[Tensor, Tensor] | None = None
    """int[Q] and int[T]"""
    counting: bool = False
    """Positions count up along every document, so a distance is a difference of places and one row stands for all."""
    bias: Tensor | None = None
    """float[rows or 1, heads, query.length, key.length] added to the scores of every layer"""
    own: Tensor | slice | None = None
    """Where every row has a last key that is the query's own, besides those of `key`: whose key and value it is, int64[Q] or all in their
    order. Masks and what is added to the scores count it; None = there is none (`nn/lone`)."""
    stepwise: bool = False
    """A step of generation: lengths change with every call, so no kernel may be compiled for them."""
    memo: dict[Any, Any] = field(default_factory=dict)
    """What the layers of one forward pass share, made when it is first asked for."""

    def only(self, read: Tensor) -> Plan:
        """The plan of these queries alone: int64[R], tokens in ascending order. Their keys stay as they are."""
        side = self.query
        place = read if side.places is None else side.places[read]
        row, at = place // side.length, place % side.length
        number = torch.arange(len(read), device=read.device)
        count = torch.bincount(row, minlength=side.rows)
        most = int(count.max()) if len(read) else 0
        places = row * most + number - (count.cumsum(0) - count)[row]
        slots = read.new_zeros(side.rows * most).index_copy(0, places, number).view(side.rows, most)
        pick = read.new_zeros(side.rows * most).index_copy(0, places, at).view(side.rows, most)
        mask, empty, each = self.mask, self.empty, torch.arange(side.rows, device=read.device)[:, None]
        if mask is not None:
            mask = mask[each if len(mask) > 1 else 0 * each, 0, pick][:, None]
        elif self.causal:
            mask = (torch.arange(self.key.length, device=read.device) <= pick[:, :, None])[:, None]
        if empty is not None:
            empty = empty[each, 0, pick][:, None]
        bias = self.bias
        if bias is not None:
            bias = bias[each if len(bias) > 1 else 0 * each, :, pick].transpose(1, 2)
        at_read = {
            name: None if pair is None else (pair[0][read], pair[1])
            for name, pair in (("position", self.position), ("segment", self.segment))
        }
        query, own = Side(side.rows, most, slots, places), self.own
        more: dict[str, Any] = dict(bias=bias, stepwise=self.stepwise, own=read if isinstance(own, slice) else own, **at_read)
        assert not isinstance(own, Tensor), "few of few"
        return Plan(query, self.key, mask, False, empty, "custom", self.bounds, **more)

    def added(self, dtype: torch.dtype) -> Tensor | None:
        """float[rows or 1, heads or 1, query.length, key.length]: what every layer adds to its scores, the bias and, where a query may
        not look, the lowest number; None = nothing. Made once: it is as large as the scores."""
        return self.once(("added", dtype), lambda: self._added(dtype))

    def _added(self, dtype: torch.dtype) -> Tensor | None:
        lowest, hidden = torch.finfo(dtype).min, None
        if self.mask is not None:
            # adding beats masked_fill: its gradient costs nothing
            hidden = torch.zeros_like(self.mask, dtype=dtype).masked_fill_(~self.mask, lowest)
        elif self.causal:
            shape, device = (self.query.length, self.key.length), self.bounds.device
            hidden = torch.full(shape, lowest, dtype=dtype, device=device).triu_(1)[None, None]
        if self.bias is None or hidden is None:
            return hidden if self.bias is None else self.bias.to(dtype)
        return self.bias.to(dtype) + hidden

    def distance(self) -> Tensor:
        """int64[rows or 1, query.length, key.length]: the key's position minus the query's."""
        return self.once("distance", self._distance)

    def _distance(self) -> Tensor:
        assert self.position is not None, "cross attention knows no distance"
        if self.counting:
            at = torch.arange(self.key.length, device=self.bounds.device)
            return (at - at[:, None])[None]
        query, key = self.query.spread(self.position[0]), self.key.spread(self.position[1])
        found = key[:, None, :].long() - query[:, :, None].long()
        return found if self.own is None else torch.nn.functional.pad(found, (0, 1))

    def same_segment(self) -> Tensor:
        """bool[rows, query.length, key.length]: query and key are of one segment."""
        return self.once("same_segment", self._same_segment)

    def _same_segment(self) -> Tensor:
        assert self.segment is not None, "cross attention knows no segments"
        same = self.query.spread(self.segment[0])[:, :, None] == self.key.spread(self.segment[1])[:, None, :]
        return same if self.own is None else torch.nn.functional.pad(same, (0, 1), value=True)

    def near(self, window: int | None) -> Plan:
        """The same plan for a layer that sees at most `window` positions to either side; None = all."""
        return self if window is None else self.once(("near", window), lambda: self._near(window))

    def _near(self, window: int) -> Plan:
        mask = (self.distance().abs() <= window)[:, None]
        if self.mask is not None:
            mask = mask & self.mask
        elif self.causal:
            mask = mask & (self.distance() <= 0)[:, None]
        empty = blind(mask) if self.kind == "custom" else None
        # the rule no longer says it all: kernels must read the mask
        return replace(self, mask=mask, causal=False, empty=empty, kind="custom", rule=None, memo={})

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """What all layers of this pass share under `name`."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]


def allow(query: Any, key: Any) -> Any:
    """The visibility rule on broadcastable (document, clock, opens, closes, lane) of queries and keys -> bool."""
    document_q, clock, _, _, lane_q = query
    document_k, _, opens, closes, lane_k = key
    alive = (opens <= clock) & (clock < closes)
    mates = (lane_q == lane_k) & (lane_k != 0)
    return (document_q == document_k) & (alive | mates)


def plan(stream: Stream) -> Plan:
    """The layout of a stream that reads itself: full and causal rows of one document each carry no mask at all."""
    side, member, inside, whole = lie(stream)
    visibility: Visibility = stream.visibility
    rows, length = side.rows, side.length
    layout: dict[str, Any] = dict(query=side, key=side, kind=visibility.kind, bounds=stream.bounds.to(torch.int32))
    layout |= dict(position=(stream.position,) * 2, segment=(stream.segment,) * 2, counting=_counts(stream))
    if visibility.kind == "custom":
        spelled = (visibility.clock, visibility.opens, visibility.closes, visibility.lane)
        rule = (member, *(_lay(v, side.slots, rows, length) for v in spelled if v is not None))
        mask = allow(tuple(r[:, :, None] for r in rule), tuple(r[:, None, :] for r in rule)) & (member >= 0)[:, None, :]
        mask = mask[:, None]
        return Plan(mask=mask, causal=False, empty=blind(mask), rule=rule, **layout)
    causal = visibility.kind == "causal"
    if whole:
        return Plan(mask=None, causal=causal, empty=None, **layout)
    mask = member[:, :, None] == member[:, None, :]
    if causal:
        mask &= inside[:, :, None] >= inside[:, None, :]
    return Plan(mask=mask[:, None], causal=False, empty=None, **layout)


def cross_plan(reader: Stream, source: Stream) -> Plan:
    """The layout of a decoder that reads an encoder: all tokens of the same document whose `opens` is not after 0.

    (So MASS closes its masked slots to the decoder: they open at 1, and the encoder's own tokens live at clock 1.)
    """
    query, mine, _, whole_q = lie(reader)
    key, theirs, _, whole_k = lie(source)
    bounds = source.bounds.to(torch.int32)
    opens = source.visibility.opens
    if whole_q and whole_k and opens is None:
        return Plan(query, key, None, False, None, "full", bounds)
    mask = mine[:, :, None] == theirs[:, None, :]
    if opens is not None:
        mask &= (_lay(opens, key.slots, key.rows, key.length) <= 0)[:, None, :]
    mask &= (theirs >= 0)[:, None, :]
    mask = mask[:, None]
    return Plan(query, key, mask, False, blind(mask), "custom", bounds)


def blind(mask: Tensor) -> Tensor | None:
    """bool[rows, 1, queries, 1]: the queries to which mask [rows, 1, queries, keys] shows nothing; on a CPU, where asking costs little,
    None if there are none."""
    found = ~mask.any(-1, keepdim=True)
    return None if found.device.type == "cpu" and not found.any() else found


def _counts(stream: Stream) -> bool:
    """Whether positions count up by one along every document; asked on the CPU only, where it saves a gather a layer."""
    if stream.bounds.device.type != "cpu" or not len(stream.content):
        return False
    steps = stream.position[1:] - stream.position[:-1]
    starts = stream.bounds[1:-1]
    steps[starts[(starts > 0) & (starts < len(stream.content))] - 1] = 1  # a new document may begin anywhere
    return bool((steps == 1).all())


def lie(stream: Stream) -> tuple[Side, Tensor, Tensor, bool]:
    """How a stream lies in rows; for each place the number of its document (-1: none) and its place in the row, int[rows, length];
    and whether every row is one document and full."""
    total, documents = len(stream.content), len(stream.bounds) - 1
    bounds = stream.bounds
    device = bounds.device
    tokens = torch.arange(total, device=device)
    document = torch.searchsorted(bounds, tokens, right=True) - 1
    if stream.row:
        rows, length = total // stream.row, stream.row
        at = torch.arange(length, device=device).expand(rows, length)
        return Side(rows, length), document.view(rows, length), at, documents == rows
    lengths = bounds[1:] - bounds[:-1]
    rows, length = documents, int(lengths.max()) if documents else 0
    at = torch.arange(length, device=device)
    real = at < lengths[:, None]
    slots = torch.where(real, bounds[:-1, None] + at, 0)
    whole = bool(real.all())
    member = torch.where(real, torch.arange(documents, device=device)[:, None], -1)
    if whole:
        return Side(rows, length), member, at.expand(rows, length), True
    places = document * length + (tokens - bounds[document])
    return Side(rows, length, slots, places), member, at.expand(rows, length), False


def _lay(values: Tensor, slots: Tensor | None, rows: int, length: int) -> Tensor:
    return values.view(rows, length) if slots is None else values[slots]

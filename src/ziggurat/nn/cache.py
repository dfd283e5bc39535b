"""Keys and values of tokens that were read before: what makes a step of generation cost one token and not the whole text.

One door: an attention layer that is given a `Past` asks it for keys and values instead of projecting what it reads itself.
Two classes stand behind it, `Growing` for a stack that reads itself and `Once` for a decoder that reads an encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ziggurat.nn.visibility import Plan, Side, allow, cross_plan, lie
from ziggurat.types import FOREVER, NEVER, Stream

LEAST = 32
"""Slots that a cache grows by, at least."""


class Projects(Protocol):
    """An attention layer."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, width] -> keys and values, [T, heads, dim] each."""
        ...


class Past(Protocol):
    """What an attention layer asks for its keys and values."""

    def keys(self, layer: Projects, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [N, heads, dim] each, in the order of the plan's key side; x [T, width] is what the layer reads now."""
        ...


class Once:
    """Keys and values that are computed when they are first asked for and never change: an encoder's."""

    def __init__(self) -> None:
        self.found: tuple[Tensor, Tensor] | None = None

    def keys(self, layer: Projects, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.found is None:
            self.found = layer.project(x)
        return self.found


class Growing:
    """Keys and values of one layer in rows of slots, [rows, room, heads, dim]; every step writes its own among them."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.stored: list[Tensor] = []
        """Keys and values."""

    def keys(self, layer: Projects, x: Tensor) -> tuple[Tensor, Tensor]:
        made = layer.project(x)
        rows, room = self.slots.opens.shape
        if not self.stored:
            self.stored = [new.new_zeros(rows, room, *new.shape[1:]) for new in made]
        elif self.stored[0].shape[1] < room:
            self.stored = [torch.cat([old, old.new_zeros(rows, room - old.shape[1], *old.shape[2:])], 1) for old in self.stored]
        k, v = (old.flatten(0, 1) for old in self.stored)  # views
        k[self.slots.place], v[self.slots.place] = (new.to(k.dtype) for new in made)
        return k, v

    def pick(self, rows: Tensor) -> None:
        self.stored = [old[rows] for old in self.stored]


@dataclass(slots=True)
class LayerPast:
    """What one layer remembers."""

    own: Growing
    cross: Once


class Slots:
    """Where the tokens of B hypotheses stand in their rows, and what they are: the key side of a step's plan."""

    def __init__(self, rows: int, device: torch.device):
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        """int64[B]: tokens that stay."""
        self.place = self.lengths[:0]
        """int64[T]: the slot of each token of this step, counted over all rows."""
        none = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        self.opens, self.closes, self.lane, self.position, self.segment = (none for _ in range(5))

    def step(self, stream: Stream) -> Plan:
        """Give the stream's tokens (document b continues row b) slots behind those that stay, and say who of them sees whom.

        Tokens that are keys for nobody later (`opens = NEVER`) get the last slots and lose them with the next step.
        """
        side, _, _, _ = lie(stream)
        bounds, total = stream.bounds, len(stream.content)
        document = torch.searchsorted(bounds, torch.arange(total, device=bounds.device), right=True) - 1
        clock, opens, closes, lane = self._spelled(stream, document)
        passing = (opens >= NEVER).long()
        order = torch.argsort(2 * document + passing, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(total, device=bounds.device) - bounds[:-1][document[order]]
        used = self.lengths + (bounds[1:] - bounds[:-1])
        self._grow(int(used.max()))
        room = self.opens.shape[1]
        self.place = document * room + self.lengths[document] + rank
        columns = (
            ("opens", opens),
            ("closes", closes),
            ("lane", lane),
            ("position", stream.position),
            ("segment", stream.segment),
        )
        for name, values in columns:
            getattr(self, name).view(-1)[self.place] = values.long()
        live = torch.arange(room, device=bounds.device) < used[:, None]
        number = torch.arange(len(self.lengths), device=bounds.device)
        keys = (torch.where(live, number[:, None], -1), self.opens, self.opens, self.closes, self.lane)
        asked = (side.spread(x)[:, :, None] for x in (document, clock, opens, closes, lane))
        mask = allow(tuple(asked), tuple(x[:, None, :] for x in keys))[:, None]
        self.lengths = self.lengths + (bounds[1:] - bounds[:-1]) - torch.bincount(document, passing.double(), len(used)).long()
        return Plan(
            query=side,
            key=Side(len(self.lengths), room),
            mask=mask,
            causal=False,
            empty=~mask.any(-1, keepdim=True),
            kind="custom",
            bounds=bounds.to(torch.int32),
            position=(stream.position, self.position.view(-1)),
            segment=(stream.segment, self.segment.view(-1)),
            stepwise=True,
        )

    def _spelled(self, stream: Stream, document: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        seen = stream.visibility
        if seen.kind == "custom":
            assert seen.clock is not None and seen.opens is not None and seen.closes is not None and seen.lane is not None
            return seen.clock, seen.opens, seen.closes, seen.lane
        nobody = torch.zeros_like(document)
        time = nobody
        if seen.kind == "causal":
            time = self.lengths[document] + torch.arange(len(document), device=document.device) - stream.bounds[:-1][document]
        return time, time, torch.full_like(document, FOREVER), nobody

    def _grow(self, wanted: int) -> None:
        rows, room = self.opens.shape
        if wanted <= room:
            return
        more = max(LEAST, room // 4, wanted - room)
        for name in ("opens", "closes", "lane", "position", "segment"):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, old.new_zeros(rows, more)], 1))

    def pick(self, rows: Tensor) -> None:
        for name in ("lengths", "opens", "closes", "lane", "position", "segment"):
            setattr(self, name, getattr(self, name)[rows])


class Cache:
    """What a stack of `layers` layers remembers of B hypotheses, each a row with a length of its own.

    Given to a network's `forward`, it makes the streams *continue*: document b of the decoding stream stands behind the tokens that
    row b holds already. `causal` streams are numbered on; others must say their clocks. Tokens with `opens = NEVER` (masks that ask
    for a word) are seen in their own step only. An encoder is read once, in the first step.
    """

    def __init__(self, rows: int, layers: int, device: torch.device | str = "cpu"):
        self.slots = Slots(rows, torch.device(device))
        self.layers = [LayerPast(Growing(self.slots), Once()) for _ in range(layers)]
        self.encoder: Stream | None = None
        self.encoded: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """int64[B]: tokens that each row holds."""
        return self.slots.lengths

    def pick(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` (int64[B']) was: beams that go on, or several from one prompt. With an encoder, row i
        reads document i * D // B' of it, so hypotheses of one document must stay together."""
        self.slots.pick(rows)
        for layer in self.layers:
            layer.own.pick(rows)

    def cross(self, stream: Stream) -> Plan:
        """How the step's tokens read the encoder. Where there are more hypotheses than encoded documents, those of one document
        are one row of queries; then all must bring equally many tokens."""
        assert self.encoder is not None
        hypotheses, documents = len(stream.bounds) - 1, len(self.encoder.bounds) - 1
        if hypotheses == documents:
            return replace(cross_plan(stream, self.encoder), stepwise=True)
        total, each = len(stream.content), hypotheses // documents
        first = torch.arange(documents + 1, device=stream.bounds.device) * (total // documents)
        assert torch.equal(stream.bounds[::each], first), "hypotheses of one document must bring equally many tokens"
        return replace(cross_plan(replace(stream, bounds=first, row=0), self.encoder), stepwise=True)

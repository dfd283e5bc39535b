"""Memory (Transformer-XL; Dai et al., 2019, 3.2; XLNet 2.5): the hidden states of an earlier window, as further keys of this one.

Letters in shapes: `M` remembered tokens of all documents, `D` documents, `T` tokens of the window at hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ziggurat.nn.visibility import Plan, Side, lie
from ziggurat.types import DEAD, Stream


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What the documents of a batch remember of the text before them: keys that every query of their document sees.

    No gradient flows into it. Its tokens are of segment 0 and stand before position 0: the last one at -1.
    """

    hidden: tuple[Tensor, ...]
    """[M, width] for each layer: what that layer read"""
    bounds: Tensor
    """int64[D + 1]: document d of the batch remembers the rows [bounds[d], bounds[d + 1]), possibly none"""

    @property
    def position(self) -> Tensor:
        """int64[M]"""
        return torch.arange(int(self.bounds[-1]), device=self.bounds.device) - self.bounds[1:][self.document]

    @property
    def document(self) -> Tensor:
        """int64[M]: whose it is."""
        lengths = self.bounds[1:] - self.bounds[:-1]
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)

    def take(self, documents: Tensor) -> Memory:
        """The memories of these documents, int64[D'], in this order; -1 stands for a document that remembers nothing."""
        known = documents >= 0
        start = torch.where(known, self.bounds[documents], 0)
        lengths = torch.where(known, self.bounds[documents + 1] - start, 0)
        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        rows = start[owner] + torch.arange(len(owner), device=lengths.device) - bounds[owner]
        return Memory(tuple(h[rows] for h in self.hidden), bounds)

    @staticmethod
    def join(memories: Sequence[Memory]) -> Memory:
        """The memories of several batches' documents, end to end."""
        lengths = torch.cat([m.bounds[1:] - m.bounds[:-1] for m in memories])
        hidden = tuple(torch.cat(layer) for layer in zip(*(m.hidden for m in memories), strict=True))
        return Memory(hidden, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


class Recall:
    """What the documents of the last few micro-batches left behind, for those that go on from them; each is found by its key.

    length   tokens a document remembers at most
    batches  micro-batches that are kept: those of one step, for a text goes on in the step after
    """

    def __init__(self, length: int, batches: int = 1):
        self.length = length
        self.left: deque[tuple[np.ndarray, Memory]] = deque(maxlen=batches)
        """Keys of documents, uint64[D], and what these remember; the latest last."""

    def find(self, before: np.ndarray) -> Memory | None:
        """What documents remember that go on from those with the keys `before` (uint64[D], `DEAD` = from none); None = nothing."""
        sources = []
        found, offset = np.full(len(before), -1), 0
        for keys, memory in reversed(self.left):
            order = np.argsort(keys, kind="stable")
            place = order[np.minimum(np.searchsorted(keys, before, sorter=order), len(keys) - 1)]
            mine = (keys[place] == before) & (before != DEAD) & (found < 0)
            if mine.any():
                found[mine] = place[mine] + offset
                sources.append(memory)
                offset += len(keys)
        if not sources:
            return None
        memory = sources[0] if len(sources) == 1 else Memory.join(sources)
        return memory.take(torch.from_numpy(found).to(memory.bounds.device))

    def add(self, keys: np.ndarray, memory: Memory) -> None:
        self.left.append((keys, memory))

    def forget(self) -> None:
        """Everything: whatever comes next begins anew."""
        self.left.clear()

    def tensors(self) -> dict[str, Tensor]:
        """All of it under the names `<batch>.keys`, `<batch>.bounds` and `<batch>.<layer>`, to be saved."""
        named: dict[str, Tensor] = {}
        for n, (keys, memory) in enumerate(self.left):
            named |= {f"{n}.keys": torch.from_numpy(keys.view(np.int64)), f"{n}.bounds": memory.bounds}
            named |= {f"{n}.{layer}": hidden for layer, hidden in enumerate(memory.hidden)}
        return named

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Become what `tensors` was made from."""
        self.forget()
        for n in range(sum(name.endswith(".keys") for name in tensors)):
            layers = sum(name.startswith(f"{n}.") for name in tensors) - 2
            hidden = tuple(tensors[f"{n}.{layer}"].to(device) for layer in range(layers))
            self.add(tensors[f"{n}.keys"].numpy().view(np.uint64), Memory(hidden, tensors[f"{n}.bounds"].to(device)))


def layers_to_keep(layers: int) -> list[str]:
    """The names to `keep` in a forward pass so that `remember` finds what each layer read."""
    return ["embed", *(f"blocks.{i}" for i in range(layers - 1))]


@torch.no_grad()
def remember(
    kept: Mapping[str, Tensor],
    stream: Stream,
    layers: Sequence[str],
    *,
    rows: Tensor | None = None,
    length: int | None = None,
    before: Memory | None = None,
) -> Memory:
    """What the documents of a window will remember of it.

    kept    what the structure returned, with the `layers` (`layers_to_keep`) among it
    rows    int64[R] ascending: the rows that are remembered, for a next window that begins behind them; None = all but query rows
            (negative ids)
    length  tokens a document remembers at most, the latest ones; None = all
    before  the memory that the window itself was read with; its documents are those of `stream`
    """
    if rows is None:
        rows = (stream.content >= 0).nonzero()[:, 0]
    owner = torch.searchsorted(stream.bounds, rows, right=True) - 1
    hidden = [kept[name][rows].detach() for name in layers]
    if before is not None:
        owner, order = torch.sort(torch.cat([before.document, owner]), stable=True)
        hidden = [torch.cat([old, new])[order] for old, new in zip(before.hidden, hidden, strict=True)]
    counts = torch.bincount(owner, minlength=len(stream.bounds) - 1)
    ends = counts.cumsum(0)
    if length is not None:
        late = (ends[owner] - torch.arange(len(owner), device=owner.device) <= length).nonzero()[:, 0]
        hidden, counts = [h[late] for h in hidden], counts.clamp(max=length)
        ends = counts.cumsum(0)
    return Memory(tuple(hidden), torch.cat([ends.new_zeros(1), ends]))


def with_memory(own: Plan, stream: Stream, memory: Memory) -> Plan:
    """The plan of a stream that reads [memory ; itself]: `own` (its plan alone), and all memory of its document besides."""
    side, member, _, _ = lie(stream)
    rows, length, device = side.rows, side.length, member.device
    place = torch.arange(rows * length, device=device)
    at = place if side.slots is None else side.slots.reshape(-1)
    # where each document lies: the row of its first token
    alive = (member >= 0).reshape(-1)
    row_of = torch.zeros(len(stream.bounds), dtype=torch.int64, device=device)
    row_of[member.reshape(-1)[alive]] = torch.div(place, length, rounding_mode="floor")[alive]
    document = memory.document
    row = row_of[document]
    order = torch.argsort(row, stable=True)
    counts = torch.bincount(row, minlength=rows)
    most, total = (int(counts.max()) if len(row) else 0), len(document)
    column = torch.arange(total, device=device) - (counts.cumsum(0) - counts)[row[order]]
    slots = torch.zeros(rows, most, dtype=torch.int64, device=device)
    owners = torch.full((rows, most), -2, dtype=torch.int64, device=device)
    slots[row[order], column], owners[row[order], column] = order, document[order]
    keys = torch.cat([slots, total + at.view(rows, length)], 1)
    places = torch.empty(total + len(stream.content), dtype=torch.int64, device=device)
    places[order] = row[order] * (most + length) + column
    mine = place if side.places is None else side.places
    places[total:] = torch.div(mine, length, rounding_mode="floor") * (most + length) + most + mine % length
    mask = own.mask
    if mask is None:
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device=device)
        mask = mask.tril() if own.causal else mask
    seen = (member[:, :, None] == owners[:, None, :])[:, None]
    mask = torch.cat([seen, mask.expand(rows, 1, length, length)], -1)
    empty = ~mask.any(-1, keepdim=True) if own.kind == "custom" else None
    assert own.position is not None and own.segment is not None
    standing = memory.position
    return replace(
        own,
        key=Side(rows, most + length, keys, places),
        mask=mask,
        causal=False,
        empty=empty,
        kind="custom",
        rule=None,
        position=(own.position[0], torch.cat([standing, own.position[1].to(standing.dtype)])),
        segment=(own.segment[0], torch.cat([torch.zeros_like(standing), own.segment[1].to(standing.dtype)])),
        counting=False,
        memo={},
    )

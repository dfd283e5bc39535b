"""Masks as the papers draw them, and attention as a textbook computes it: loops over positions, no clocks, no kernels.

A `Case` is one document: the visibility our data would carry, and the published mask built without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ziggurat.types import FOREVER, NEVER, SPELLED, Stream, Visibility

Sees = Callable[[int, int], bool]


class Case(NamedTuple):
    rule: Visibility
    """One document, spelled out."""
    mask: np.ndarray
    """bool[n, n]: query, key."""

    def __len__(self) -> int:
        return len(self.mask)


def drawn(n: int, sees: Sees) -> np.ndarray:
    return np.array([[sees(q, k) for k in range(n)] for q in range(n)], bool).reshape(n, n)


def spelled(clock: list[int], opens: list[int], closes: list[int] | None = None, lane: list[int] | None = None) -> Visibility:
    columns = clock, opens, closes or [FOREVER] * len(clock), lane or [0] * len(clock)
    return Visibility("custom", *(np.array(c, np.int32) for c in columns))


def full(n: int) -> Case:
    return Case(spelled([0] * n, [0] * n), drawn(n, lambda q, k: True))


def causal(n: int) -> Case:
    return Case(spelled(list(range(n)), list(range(n))), drawn(n, lambda q, k: k <= q))


def prefix(n: int, source: int) -> Case:
    """UniLM's sequence-to-sequence mask: the source sees the source, the target also its own past (Dong et al., 2019, 2.2)."""
    clock = [0 if i < source else i for i in range(n)]
    return Case(spelled(clock, clock), drawn(n, lambda q, k: k < source if q < source else k <= q))


def xlnet(n: int, predicted: list[int]) -> Case:
    """Two streams (Yang et al., 2019, 2.3). `predicted`: positions in factorisation order; their query tokens follow the text."""
    rank = [predicted.index(i) + 1 if i in predicted else 0 for i in range(n)]
    queries = sorted(predicted)
    clock = rank + [rank[p] - 1 for p in queries]
    opens = rank + [NEVER] * len(queries)
    order = [*(i for i in range(n) if i not in predicted), *predicted]

    def sees(q: int, k: int) -> bool:
        if k >= n:
            return False  # the query stream is a key for nobody
        position = q if q < n else queries[q - n]
        if position not in predicted:
            return k not in predicted
        before = order.index(k) < order.index(position)
        return before or (q < n and k == position)  # content sees itself, the query of the same position does not

    return Case(spelled(clock, opens), drawn(n + len(queries), sees))


def mpnet(n: int, predicted: list[int]) -> Case:
    """MPNet (Song et al., 2020, 2.2): whatever has not been predicted yet is seen as a mask token, so every query knows
    all positions. Text first, then a mask token and a query for each predicted position, in the order of prediction."""
    rank = [predicted.index(i) + 1 if i in predicted else 0 for i in range(n)]
    m = len(predicted)
    clock = [r + 1 for r in rank] + [1] * m + [rank[p] for p in predicted]
    opens = [r + 1 for r in rank] + [0] * m + [NEVER] * m
    closes = [FOREVER] * n + [rank[p] + 1 for p in predicted] + [FOREVER] * m

    def known(k: int, step: int) -> bool:
        """Key k when `step` predicted words stand as text and the rest as masks."""
        done = predicted[:step]
        if k < n:
            return k not in predicted or k in done
        return k < n + m and predicted[k - n] not in done

    def sees(q: int, k: int) -> bool:
        if q < n:
            return known(k, predicted.index(q) + 1 if q in predicted else 0)
        return known(k, 0 if q < n + m else q - n - m)

    return Case(spelled(clock, opens, closes), drawn(n + 2 * m, sees))


def prophet(n: int, streams: int) -> Case:
    """ProphetNet: predicting stream s of token i sees the text up to i - s (its first token always) and itself
    (Qi et al., 2020, 3.2; `ngram_attention_bias` of the release)."""
    clock = [*range(n), *(max(i - s, 0) for s in range(streams) for i in range(n))]
    opens = [*range(n)] + [NEVER] * (n * streams)
    lane = [0] * n + [1 + j for j in range(n * streams)]

    def sees(q: int, k: int) -> bool:
        if q < n:
            return k <= q
        s, i = divmod(q - n, n)
        return k == q or (k < n and (k == 0 or k <= i - s))

    return Case(spelled(clock, opens, None, lane), drawn(n * (1 + streams), sees))


def pseudo_masked(n: int, blocks: list[list[int]]) -> Case:
    """UniLMv2 (Bao et al., 2020, 3.2): blocks of positions are predicted one after the other by pseudo masks, which see the
    context, the words of earlier blocks and each other; words see the context and words up to their own block."""
    masked = [p for block in blocks for p in block]
    step = {p: s for s, block in enumerate(blocks, 1) for p in block}
    clock = [step.get(i, 0) for i in range(n)] + [step[p] - 1 for p in masked]
    opens = [step.get(i, 0) for i in range(n)] + [NEVER] * len(masked)
    lane = [0] * n + [step[p] for p in masked]

    def sees(q: int, k: int) -> bool:
        if q >= n:
            mine = next(b for b in blocks if masked[q - n] in b)
            past = [p for b in blocks[: blocks.index(mine)] for p in b]
            return masked[k - n] in mine if k >= n else k not in masked or k in past
        if k >= n:
            return False
        if q not in masked:
            return k not in masked
        until = blocks[: next(i for i, b in enumerate(blocks) if q in b) + 1]
        return k not in masked or any(k in b for b in until)

    return Case(spelled(clock, opens, None, lane), drawn(n + len(masked), sees))


def diffusion(n: int, size: int) -> Case:
    """Block diffusion (Arriola et al., 2025, 3.1): block diagonal, offset block causal and block causal parts. The clean
    text comes first, its noisy copy second."""
    block = [i // size for i in range(n)]
    clock = block + [b - 1 for b in block]
    opens = block + [NEVER] * n
    lane = [0] * n + [b + 1 for b in block]

    def sees(q: int, k: int) -> bool:
        noisy_q, noisy_k = q >= n, k >= n
        bq, bk = (q % n) // size, (k % n) // size
        diagonal = noisy_q and noisy_k and bq == bk
        offset = noisy_q and not noisy_k and bk < bq
        clean = not noisy_q and not noisy_k and bk <= bq
        return diagonal or offset or clean

    return Case(spelled(clock, opens, None, lane), drawn(2 * n, sees))


def blind(n: int) -> Case:
    """Nobody sees anything."""
    return Case(spelled([0] * n, [NEVER] * n), drawn(n, lambda q, k: False))


def none() -> Case:
    """A document without tokens."""
    return Case(spelled([], []), np.zeros((0, 0), bool))


def random_case(rng: np.random.Generator, n: int) -> Case:
    """Any clocks, lifetimes and lanes; some queries see nothing."""
    clock, opens = rng.integers(0, 5, n).tolist(), rng.integers(0, 6, n).tolist()
    closes = [o + int(rng.integers(0, 4)) if rng.random() < 0.5 else FOREVER for o in opens]
    lane = rng.integers(0, 3, n).tolist()

    def sees(q: int, k: int) -> bool:
        alive = opens[k] <= clock[q] and clock[q] < closes[k]
        return alive or (lane[q] == lane[k] and lane[k] > 0)

    return Case(spelled(clock, opens, closes, lane), drawn(n, sees))


PUBLISHED: dict[str, Case] = {
    "full": full(5),
    "causal": causal(5),
    "prefix": prefix(7, 3),
    "xlnet": xlnet(6, [4, 3]),
    "xlnet_all": xlnet(5, [2, 0, 4, 1, 3]),
    "mpnet": mpnet(6, [4, 1, 3]),
    "prophet_2": prophet(5, 2),
    "prophet_3": prophet(4, 3),
    "unilm2": pseudo_masked(8, [[4, 5], [1], [6, 3]]),
    "diffusion": diffusion(7, 3),
    "blind": blind(3),
    "none": none(),
}


def stream_of(cases: list[Case], *, row: int = 0, kind: str = "custom") -> tuple[Stream, np.ndarray]:
    """Documents end to end (torch side) and the whole mask bool[T, T]. With `row`, rows are filled in order and closed by a
    dead document that sees itself, as the packer leaves them."""
    laid: list[Case] = []
    filled = 0
    for case in cases:
        if row and filled + len(case) > row:
            laid.append(full(row - filled))
            filled = 0
        laid.append(case)
        filled = (filled + len(case)) % row if row else 0
    if row and filled:
        laid.append(full(row - filled))
    bounds = np.cumsum([0, *map(len, laid)])
    total = int(bounds[-1])
    mask = np.zeros((total, total), bool)
    for case, start in zip(laid, bounds, strict=False):
        mask[start : start + len(case), start : start + len(case)] = case.mask
    position = np.concatenate([np.arange(len(c)) for c in laid] or [np.zeros(0, np.int64)])
    visibility = Visibility(kind)  # type: ignore[arg-type]
    if kind == "custom":
        columns = (np.concatenate([getattr(c.rule, name) for c in laid] or [np.zeros(0, np.int64)]) for name in SPELLED)
        visibility = Visibility("custom", *(torch.from_numpy(c.astype(np.int32)) for c in columns))
    ints = torch.from_numpy(position.astype(np.int32))
    stream = Stream(torch.zeros_like(ints), torch.from_numpy(bounds), ints, torch.zeros_like(ints), visibility, None, row)
    return stream, mask


def attention(q: Tensor, k: Tensor, v: Tensor, mask: np.ndarray, scale: float | None = None) -> Tensor:
    """softmax(q k' / sqrt(dim)) v one query and head at a time; a query that sees nothing gives 0. [T, heads, dim]."""
    scale = scale if scale is not None else 1 / math.sqrt(q.shape[-1])
    rows = []
    for i in range(len(q)):
        seen = [j for j in range(len(k)) if mask[i, j]]
        if not seen:
            rows.append(v[i] * 0)
            continue
        heads = []
        for h in range(q.shape[1]):
            scores = (k[seen, h] * q[i, h]).sum(-1) * scale
            weights = torch.exp(scores - scores.max())
            heads.append((weights / weights.sum()) @ v[seen, h])
        rows.append(torch.stack(heads))
    return torch.stack(rows) if rows else v

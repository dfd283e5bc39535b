"""The laws every objective obeys, in a few lines, and the visibility rule as a loop: for the tests of single objectives."""

from __future__ import annotations

from typing import Any

import numpy as np

from ziggurat.context import Context
from ziggurat.data.pack import pack, take
from ziggurat.objectives.base import Objective
from ziggurat.types import DEAD, SPELLED, Batch, Stream, Tokens, join, join_all


def documents(batch: Batch, *, dead: bool = True) -> list[Any]:
    """Each document by itself in plain Python: its streams' columns and its questions."""
    found = []
    for d, key in enumerate(batch.keys.tolist()):
        runs, asked = {}, []
        for name, s in batch.streams.items():
            lo, hi = s.bounds[d : d + 2].tolist()
            seen = s.visibility.spelled(np.diff(s.bounds))
            columns = [s.content, s.position, s.segment, s.unit, *(getattr(seen, f) for f in SPELLED)]
            if hi > lo:
                runs[name] = [c[lo:hi].tolist() for c in columns if c is not None]
        for name, t in sorted(batch.targets.items()):
            for i, value, weight in zip(t.index.tolist(), t.value.tolist(), t.weight.tolist(), strict=True):
                lo, hi = (d, d + 1) if t.at == "document" else batch.streams[t.stream].bounds[d : d + 2].tolist()
                if lo <= i < hi:
                    asked.append((name, i - lo, value, weight))
        if dead or key != int(DEAD):
            found.append((key, runs, asked))
    return found


def check_laws(objective: Objective, block: Tokens, ctx: Context) -> Batch:
    """Pure, blind to neighbours and rows, short enough, nothing asked of the dead; returns the corrupted batch."""
    formed = objective.form(block, ctx)
    done = objective.corrupt(formed, ctx)
    want = documents(done)
    assert documents(objective.corrupt(objective.form(block, ctx), ctx)) == want
    half = len(formed) // 2
    a, b = take(formed, np.arange(half)), take(formed, np.arange(half, len(formed)))
    both, apart = objective.corrupt(join(a, b), ctx), join(objective.corrupt(a, ctx), objective.corrupt(b, ctx))
    assert documents(both) == documents(apart) == want
    order = np.random.default_rng(0).permutation(len(formed))
    assert documents(objective.corrupt(take(formed, order), ctx)) == [want[i] for i in order]
    assert documents(join_all(objective.corrupt(take(formed, np.array([i])), ctx) for i in range(len(formed)))) == want
    rows = objective.rows(ctx)
    packed = objective.corrupt(pack(formed, dict.fromkeys(formed.streams, ctx.length + 7), 0), ctx)
    assert sorted(documents(packed, dead=False), key=repr) == sorted(want, key=repr)
    assert any(key == int(DEAD) and not asked for key, _, asked in documents(packed))
    assert not any(key == int(DEAD) and asked for key, _, asked in documents(packed))
    assert set(rows) == set(done.streams)
    for name, stream in done.streams.items():
        assert stream.lengths.max() <= rows[name], name
        for column in (stream.content, stream.position, stream.segment, stream.unit):
            assert column is not None and column.dtype == np.int32 and len(column) == stream.bounds[-1]
    for target in done.targets.values():
        assert np.all(np.diff(target.index) > 0)
    pack(done, dict(rows), 0)
    return done


def mask_of(stream: Stream, d: int) -> np.ndarray:
    """bool[n, n]: which query of document d sees which key, one pair at a time."""
    lo, hi = stream.bounds[d : d + 2].tolist()
    rule = stream.visibility.spelled(np.diff(stream.bounds))
    clock, opens, closes, lane = ([int(x) for x in getattr(rule, f)[lo:hi]] for f in SPELLED)
    n = hi - lo
    seen = np.zeros((n, n), bool)
    for q in range(n):
        for k in range(n):
            seen[q, k] = opens[k] <= clock[q] < closes[k] or (lane[k] == lane[q] and lane[k] != 0)
    return seen


def reach(seen: np.ndarray) -> np.ndarray:
    """Whose content can have come to whom over any number of layers; everybody carries his own."""
    far = seen | np.eye(len(seen), dtype=bool)
    for _ in range(len(seen)):
        further = (far.astype(int) @ far.astype(int)) > 0
        if np.array_equal(further, far):
            break
        far = further
    return far

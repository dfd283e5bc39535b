"""Laws of batches: `join` is associative with an identity; `take`, `split` and `pack` move whole documents and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.data.pack import fit, lay, lengths_of, pack, split, take
from ziggurat.types import DEAD, FOREVER, NEVER, SPELLED, Batch, Stream, Target, Visibility, join, join_all

ROW = 8
fast = settings(max_examples=120, deadline=None)


@st.composite
def batches(draw: Any, most: int = 4) -> Batch:
    """0 to `most` documents of 0 to ROW tokens, one or two streams, any visibility, targets of both kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(0, most))
    names = draw(st.sampled_from([("text",), ("image",), ("text", "image"), ("image", "text")]))
    streams, targets = {}, {}
    for name in names:
        bounds = np.concatenate([[0], np.cumsum(rng.integers(0, ROW + 1, n))]).astype(np.int64)
        total = int(bounds[-1])

        def ints(low: int, high: int, total: int = total) -> np.ndarray:
            return rng.integers(low, high, total).astype(np.int32)

        kind = draw(st.sampled_from(["full", "causal", "custom"]))
        visibility = Visibility(kind)
        if kind == "custom":
            opens = np.where(rng.random(total) < 0.2, NEVER, ints(0, 5)).astype(np.int32)
            visibility = Visibility(kind, ints(0, 5), opens, np.full(total, FOREVER, np.int32), ints(0, 3))
        position = (np.arange(total) - np.repeat(bounds[:-1], np.diff(bounds))).astype(np.int32)
        streams[name] = Stream(ints(5, 99), bounds, position, ints(0, 2), visibility, ints(-1, 4))
        k = int(rng.integers(0, total + 1))
        at = rng.permutation(total)[:k]  # any order: corruptions need not sort
        targets[f"{name}.mlm"] = Target(name, at, rng.integers(0, 9, k), rng.random(k).astype(np.float32), noise=rng.random(k))
    if draw(st.booleans()):
        value, weight = rng.random(n).astype(np.float32), np.ones(n, np.float32)
        targets["score"] = Target("text", np.arange(n), value, weight, "document", np.arange(n) // 2)
    keys = rng.integers(0, 2**63, n).astype(np.uint64)
    return Batch(streams, targets, keys) if n else Batch()


def same(a: Any, b: Any) -> bool:
    """Equal to the last field, dtypes included."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, (Batch, Stream, Target, Visibility)):
        return type(a) is type(b) and all(same(getattr(a, f), getattr(b, f)) for f in a.__slots__)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


def documents(batch: Batch) -> list[Any]:
    """Each document by itself, in plain Python: what must survive every move. An empty run equals a missing stream."""
    found = []
    for d, key in enumerate(batch.keys):
        runs = {}
        for name, s in batch.streams.items():
            lo, hi = int(s.bounds[d]), int(s.bounds[d + 1])
            seen = s.visibility.spelled(np.diff(s.bounds))
            columns = [s.content, s.position, s.segment, s.unit, *(getattr(seen, f) for f in SPELLED)]
            if hi > lo:
                runs[name] = [c[lo:hi].tolist() for c in columns if c is not None]
        asked = []
        for name, t in sorted(batch.targets.items()):
            noise = [None] * len(t.index) if t.noise is None else t.noise.tolist()
            for i, *answer in zip(t.index.tolist(), t.value.tolist(), t.weight.tolist(), noise):
                if t.at == "document" and i == d:
                    asked.append((name, "whole", *answer))
                elif t.at == "token":
                    lo, hi = batch.streams[t.stream].bounds[d : d + 2].tolist()
                    if lo <= i < hi:
                        asked.append((name, i - lo, *answer))
        found.append((int(key), runs, asked))
    return found


@fast
@given(batches(), batches(), batches())
def test_join_is_associative(a: Batch, b: Batch, c: Batch) -> None:
    left, right = join(join(a, b), c), join(a, join(b, c))
    assert same(left, right)
    assert same(left, join_all([a, b, c]))


@fast
@given(batches())
def test_the_empty_batch_is_the_identity(a: Batch) -> None:
    assert same(join(a, Batch()), a)
    assert same(join(Batch(), a), a)


@fast
@given(batches(), batches())
def test_join_keeps_documents_and_puts_empty_runs_for_missing_streams(a: Batch, b: Batch) -> None:
    both = join(a, b)
    assert documents(both) == documents(a) + documents(b)
    assert all(len(s.bounds) == len(both) + 1 for s in both.streams.values())


def test_join_keeps_groups_apart() -> None:
    one = Batch(
        {},
        {"score": Target("text", np.arange(2), np.ones(2), np.ones(2), "document", np.zeros(2, np.int64))},
        np.ones(2, np.uint64),
    )
    assert join(one, join(one, one)).targets["score"].group.tolist() == [0, 0, 1, 1, 2, 2]


@fast
@given(batches(6), st.data())
def test_take_moves_whole_documents(a: Batch, data: st.DataObject) -> None:
    order = data.draw(st.lists(st.integers(0, len(a) - 1), max_size=8) if len(a) else st.just([]))
    taken, whole = documents(take(a, np.array(order, np.int64))), documents(a)
    assert taken == [whole[i] for i in order]


@fast
@given(batches(6), st.data())
def test_split_undoes_join(a: Batch, data: st.DataObject) -> None:
    a = take(a, np.arange(len(a)))
    even = [2 * i for i in range(1, len(a) // 2)]  # groups are pairs of documents here
    inner = sorted(data.draw(st.sets(st.sampled_from(even)))) if even else []
    pieces = split(a, np.array([0, *inner, len(a)]))
    assert [x for piece in pieces for x in documents(piece)] == documents(a)
    for piece in pieces:
        for t in piece.targets.values():
            assert t.group is None or set(t.group) == set(range(len(set(t.group))))


def test_split_refuses_to_cut_a_group() -> None:
    target = Target("text", np.arange(2), np.ones(2), np.ones(2), "document", np.zeros(2, np.int64))
    with pytest.raises(AssertionError, match="group"):
        split(Batch({}, {"choice": target}, np.ones(2, np.uint64)), np.array([0, 1, 2]))


@fast
@given(batches(9))
def test_pack_keeps_every_document_whole(a: Batch) -> None:
    packed = pack(a, ROW, pad=0)
    alive = [d for d in documents(packed) if d[0] != int(DEAD)]
    assert sorted(alive, key=repr) == sorted(documents(a), key=repr)
    for s in packed.streams.values():
        # no longer than it must be: the fullest row, up to a multiple of 8
        assert 0 <= s.row <= ROW and (len(s.content) % s.row == 0 if s.row else not len(s.content))
        starts, ends = s.bounds[:-1][packed.keys != DEAD], s.bounds[1:][packed.keys != DEAD]
        filled = (
            max((int((ends - starts)[starts // s.row == r].sum()) for r in range(len(s.content) // s.row)), default=0)
            if s.row
            else 0
        )
        assert s.row == min(ROW, -(-filled // 8) * 8)
        crossing = (s.bounds[:-1] // max(s.row, 1) != (s.bounds[1:] - 1) // max(s.row, 1)) & (np.diff(s.bounds) > 0)
        assert not crossing.any()


@fast
@given(batches(9))
def test_gaps_are_dead_documents(a: Batch) -> None:
    packed = pack(a, ROW, pad=3)
    longest = {name: s.position.max(initial=0) for name, s in a.streams.items()}
    for key, runs, asked in documents(packed):
        if key == int(DEAD):
            assert not asked
            for name, (content, position, segment, unit, *_) in runs.items():
                assert set(content) == {3} and set(segment) == {0} and set(unit) == {-1}
                assert position == [min(i, longest[name]) for i in range(len(content))]


@fast
@given(batches(9))
def test_rows_of_all_streams_hold_the_same_documents(a: Batch) -> None:
    row = {"text": ROW, "image": ROW + 3}
    packed, starts = lay(a, fit(lengths_of(a), row), row, 0) if len(a) else (a, np.zeros(1, np.int64))
    for name, s in packed.streams.items():
        assert s.row <= row[name] and s.bounds[starts].tolist() == [s.row * i for i in range(len(starts))]

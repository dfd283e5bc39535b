"""First-fit rows: legal, full, deterministic and fast. That documents stay whole is a law (tests/laws/test_batch.py)."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.data.pack import first_fit, fit


def filled(lengths: np.ndarray, row: int) -> float:
    return float(lengths.sum() / ((first_fit(lengths, row).max() + 1) * row))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.data())
def test_rows_are_never_overfull_and_never_empty(row: int, data: st.DataObject) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(0, row), max_size=60)), np.int64)
    rows = first_fit(lengths, row)
    used = np.bincount(rows, lengths) if len(rows) else np.zeros(0)
    assert len(rows) == len(lengths) and (used <= row).all()
    assert lengths.sum() == 0 or (used > 0).all()
    assert np.array_equal(rows, first_fit(lengths, row))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=40))
def test_as_good_as_best_fit_decreasing_done_one_by_one(sizes: list[int]) -> None:
    space: list[int] = []
    for n in sorted(sizes, reverse=True):
        enough = [(free, i) for i, free in enumerate(space) if free >= n]
        if enough:
            space[min(enough)[1]] -= n
        else:
            space.append(24 - n)
    assert first_fit(np.array(sizes), 24).max() + 1 == len(space)


def test_short_texts_fill_99_percent() -> None:
    rng = np.random.default_rng(0)
    for pool in (np.clip(rng.lognormal(3.2, 0.6, 1024), 3, 128).astype(np.int64) for _ in range(10)):
        assert filled(pool, 128) >= 0.99
    for pool in (np.clip(rng.lognormal(3.2, 0.6, 256), 3, 128).astype(np.int64) for _ in range(10)):
        assert first_fit(pool, 128).max() + 1 <= -(-pool.sum() // 128) + 1  # one row more than any packing needs


def test_windows_of_long_documents_fill_97_percent() -> None:
    rng = np.random.default_rng(0)
    articles = np.maximum(5, rng.lognormal(6, 1.2, 400)).astype(np.int64)
    lengths = np.concatenate([np.full((articles // 126).sum(), 128), articles % 126 + 2])
    assert filled(lengths, 128) >= 0.97


def test_packing_is_no_bottleneck() -> None:
    lengths = np.full(20_000, 128)
    best = min(_seconds(lengths) for _ in range(5))
    assert best < 0.02  # 2 ms when the machine is quiet


def _seconds(lengths: np.ndarray) -> float:
    started = time.process_time()
    first_fit(lengths, 128)
    return time.process_time() - started


def test_two_streams_fit_in_their_rows_together() -> None:
    rng = np.random.default_rng(0)
    lengths = {"encoder": rng.integers(0, 65, 200), "decoder": rng.integers(0, 33, 200)}
    rows = fit(lengths, {"encoder": 64, "decoder": 32})
    assert np.bincount(rows, lengths["encoder"]).max() <= 64
    assert np.bincount(rows, lengths["decoder"]).max() <= 32
    assert rows.max() + 1 <= 1.35 * max(lengths["encoder"].sum() / 64, lengths["decoder"].sum() / 32)


def test_too_long_for_a_row_is_a_bug_that_is_caught() -> None:
    with pytest.raises(AssertionError, match="9 tokens does not fit a row of 8"):
        fit({"text": np.array([9])}, 8)

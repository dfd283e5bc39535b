"""Texts in tracks: everything has one place, texts run down their track without a gap, rows are not overfull."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.context import key_of
from ziggurat.data.tracks import Laid, lay_tracks


def texts(draws: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of examples, and whether each goes on from the one before it."""
    lengths = np.array([n for text in draws for n in text])
    goes_on = np.array([i > 0 for text in draws for i in range(len(text))])
    return lengths, goes_on


def check(laid: Laid, lengths: np.ndarray, goes_on: np.ndarray, row: int, tracks: int) -> None:
    assert laid.track.min() >= 0 and laid.track.max() < tracks and laid.step.min() >= 0
    assert not (laid.goes_on & ~goes_on).any()
    held: dict[tuple[int, int], list[int]] = {}
    for i in range(len(lengths)):
        held.setdefault((int(laid.step[i]), int(laid.track[i])), []).append(i)
        if laid.goes_on[i]:
            assert (laid.step[i], laid.track[i]) == (laid.step[i - 1] + 1, laid.track[i - 1])
    for inside in held.values():
        assert sum(int(lengths[i]) for i in inside) <= row
        assert sum(bool(laid.goes_on[i]) for i in inside) <= 1


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=30), st.integers(1, 5), st.booleans())
def test_laws(draws: list[list[int]], tracks: int, shuffled: bool) -> None:
    lengths, goes_on = texts(draws)
    key = key_of(3) if shuffled else None
    laid = lay_tracks(lengths, goes_on, 9, tracks, key)
    check(laid, lengths, goes_on, 9, tracks)
    again = lay_tracks(lengths, goes_on, 9, tracks, key)
    assert all(np.array_equal(a, b) for a, b in zip(laid, again, strict=True))
    steps = max(1, -(-int(lengths.sum()) // (9 * tracks)))
    longest = max(len(text) for text in draws)
    assert (goes_on & ~laid.goes_on).sum() == sum((len(text) - 1) // steps for text in draws)  # cut only where it must be
    assert longest > steps or np.array_equal(laid.goes_on, goes_on)


def test_by_hand() -> None:
    """Two tracks of rows of 10: a text of three rows, one of two whose end leaves 6, short ones that fit beside the ends."""
    lengths, goes_on = texts([[10, 10, 3], [10, 4], [6], [7], [10]])
    laid = lay_tracks(lengths, goes_on, 10, 2)
    assert list(zip(laid.step.tolist(), laid.track.tolist(), strict=True)) == [
        *((0, 0), (1, 0), (2, 0)),
        *((0, 1), (1, 1)),
        (1, 1),
        (2, 0),
        (2, 1),
    ]


def corpus(rng: np.random.Generator, count: int, mean: float, row: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = (rng.lognormal(np.log(mean), 0.8, count)).astype(int) + 1
    return texts([[row] * (n // row) + ([n % row] if n % row else []) for n in sizes.tolist()])


@pytest.mark.parametrize("mean", [20, 100, 400, 3000])
def test_rows_are_full_and_steps_even(mean: float) -> None:
    lengths, goes_on = corpus(np.random.default_rng(0), min(1024, int(262144 / mean)), mean, 128)
    tracks = 16
    laid = lay_tracks(lengths, goes_on, 128, tracks, key_of(1))
    check(laid, lengths, goes_on, 128, tracks)
    cells = np.unique(laid.step * tracks + laid.track)
    filled = lengths.sum() / (128 * len(cells))
    per_step = np.bincount(cells // tracks, minlength=1)
    print(
        f"mean {mean}: {filled:.1%} of the rows' places, {per_step.mean() / tracks:.1%} of the tracks; cut {(goes_on & ~laid.goes_on).sum()} of {goes_on.sum()}"
    )
    assert filled > 0.85 and per_step.mean() > 0.9 * tracks and (per_step > 0).all()


def test_one_long_text_is_cut_into_tracks() -> None:
    lengths, goes_on = texts([[8] * 40])
    laid = lay_tracks(lengths, goes_on, 8, 4)
    check(laid, lengths, goes_on, 8, 4)
    assert (~laid.goes_on).nonzero()[0].tolist() == [0, 10, 20, 30] and laid.step.max() == 9


def test_texts_change_places_by_the_key() -> None:
    rng = np.random.default_rng(1)
    lengths, goes_on = corpus(rng, 100, 300, 64)
    still, one, two = (lay_tracks(lengths, goes_on, 64, 4, key) for key in (None, key_of(1), key_of(2)))
    assert not np.array_equal(one.step, two.step) and not np.array_equal(one.step, still.step)
    begins = ~goes_on
    sizes = np.bincount(np.cumsum(begins) - 1)
    order = [np.corrcoef(laid.step[begins], sizes)[0, 1] for laid in (still, one, two)]
    assert order[0] < -0.5 and max(map(abs, order[1:])) < 0.35  # long texts do not all come first

"""Span corruption by counting: how often noise falls where, over 1e5 draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from blocks import MASK, SEP, batch_of, tokens
from test_denoise import SENTINELS, T5, t5

from ziggurat.objectives.denoise import SpanCorruption
from ziggurat.types import Batch


def corrupted(how: dict[str, Any], n: int, documents: int, **other: Any) -> tuple[np.ndarray, Batch]:
    """Texts of n tokens, each of which is its own place: what is left of them, as bool[documents, n] of hidden places."""
    batch = batch_of([[*range(n), -1]] * documents)
    s = batch.streams["text"]
    assert s.unit is not None
    batch = replace(batch, streams={"text": replace(s, content=np.where(s.unit < 0, SEP, s.unit + 5).astype(np.int32))})
    done = SpanCorruption(**how).corrupt(batch, t5(**{"length": 1000, "seed": 5, **other}))
    encoder = done.streams["encoder"]
    hidden = np.ones((documents, n), bool)
    seen = (encoder.content >= 5) & (encoder.content < 5 + n)
    hidden[encoder.document()[seen], encoder.content[seen] - 5] = False
    return hidden, done


def compositions(items: int, parts: int) -> list[tuple[int, ...]]:
    return [tuple(b - a for a, b in pairwise((0, *cut, items))) for cut in combinations(range(1, items), parts - 1)]


def even(counts: Sequence[int]) -> bool:
    """Within 4 deviations of a chi-square test against equal shares."""
    found = np.array(counts)
    chi = float(((found - found.mean()) ** 2 / found.mean()).sum())
    return chi < len(found) - 1 + 4 * (2 * (len(found) - 1)) ** 0.5


def test_every_division_into_spans_is_equally_likely() -> None:
    """6 noise tokens in 3 spans: C(5, 2) = 10 divisions, and as many of the 6 others; all 100 pairs are drawn evenly."""
    hidden, _ = corrupted({"rate": 0.5, "mean": 2.0}, 12, 100_000)
    assert (hidden.sum(1) == 6).all() and not hidden[:, 0].any() and hidden[:, -1].all()
    counts = Counter(hidden @ (1 << np.arange(12)))
    assert len(counts) == 100 and even(list(counts.values()))
    patterns = {
        sum(1 << i for i, h in enumerate(x for a, b in zip(clean, noise, strict=True) for x in [0] * a + [1] * b) if h)
        for clean in compositions(6, 3)
        for noise in compositions(6, 3)
    }
    assert set(counts) == patterns


def test_a_random_roll_removes_the_edges() -> None:
    """Unrolled, the first token is never noise and the last always; rolled, all places are alike, and so is the rate."""
    plain, _ = corrupted({}, 20, 20_000)
    assert not plain[:, 0].any() and plain[:, -1].all() and (plain.sum(1) == 3).all()
    rolled, done = corrupted({"roll": True}, 20, 100_000)
    assert (rolled.sum(1) == 3).all() and even(rolled.sum(0).tolist())
    lengths = done.streams["decoder"].lengths
    assert set(lengths.tolist()) == {5, 6}, "one span of 3, which falls apart where it runs over the end"
    assert float((lengths == 6).mean()) == pytest.approx(2 / 20, abs=0.004)


def test_independent_noise_has_its_rate() -> None:
    """1e5 documents: each token by its own coin, neighbours included, and one sentinel for a run."""
    hidden, done = corrupted({"noise": "iid"}, 16, 100_000)
    assert hidden.mean(0) == pytest.approx(0.15, abs=0.005)
    assert float((hidden[:, 1:] & hidden[:, :-1]).mean()) == pytest.approx(0.15**2, abs=0.001)
    runs = hidden[:, 0].astype(int) + (hidden[:, 1:] & ~hidden[:, :-1]).sum(1)
    size = np.where(runs > 0, hidden.sum(1) + runs + 1, 0)
    assert done.streams["decoder"].lengths.tolist() == size.tolist()


def test_what_bert_style_shows() -> None:
    """Nine in ten masked, one in ten a random ordinary token (table 3); MASS-style masks all."""
    _, done = corrupted({"variant": "bert_style", "rate": 0.999}, 50, 2_000)
    encoder = done.streams["encoder"]
    shown = encoder.content[encoder.inside() < 50]
    assert float((shown == SENTINELS[0]).mean()) == pytest.approx(0.9, abs=0.005)
    counts = np.bincount(shown[shown != SENTINELS[0]], minlength=100)
    assert counts[:5].sum() == counts[60:].sum() == 0 and even(counts[5:60].tolist())
    masked, _ = corrupted({"variant": "mass_style", "rate": 0.3}, 50, 2_000)
    assert float(masked.mean()) == pytest.approx(0.3, abs=0.006)


def test_masks_are_the_tokenizers_where_it_has_one() -> None:
    ctx = replace(t5(), vocab=replace(T5, mask=MASK, names={}))
    objective = SpanCorruption(variant="mass_style", rate=0.5)
    objective.needs(ctx)
    done = objective.corrupt(objective.form(tokens([[[1] * 20]]), ctx), ctx)
    assert MASK in done.streams["encoder"].content and not np.isin(SENTINELS, done.streams["encoder"].content).any()


def test_every_shuffle_is_equally_likely() -> None:
    _, done = corrupted({"variant": "deshuffling"}, 4, 100_000)
    orders = Counter(map(tuple, done.streams["encoder"].content.reshape(-1, 5).tolist()))
    assert len(orders) == 24 and {x for order in orders for x in order[:4]} == {5, 6, 7, 8} and even(list(orders.values()))


def test_every_prefix_is_equally_likely() -> None:
    hidden, done = corrupted({"variant": "prefix_lm"}, 12, 100_000)
    cuts = Counter((~hidden).sum(1).tolist())
    assert sorted(cuts) == list(range(1, 12)) and even([cuts[i] for i in sorted(cuts)])
    assert (np.diff(hidden.astype(int), axis=1) >= 0).all() and (done.streams["decoder"].lengths == hidden.sum(1) + 1).all()


def test_spans_beyond_the_last_sentinel_stay_as_they_are() -> None:
    few = replace(T5, names={f"<extra_id_{i}>": SENTINELS[i] for i in range(6)})
    hidden, done = corrupted({"noise": "iid", "rate": 0.5}, 40, 200, vocab=few)
    full, whole = corrupted({"noise": "iid", "rate": 0.5}, 40, 200)
    runs = np.cumsum(np.diff(full.astype(int), axis=1, prepend=0) == 1, axis=1)
    assert (runs[:, -1] > 6).any()
    assert np.array_equal(hidden, full & (runs <= 6))
    assert max(done.targets["span_corruption"].value) == SENTINELS[0]
    assert not np.isin(SENTINELS[6:], done.streams["encoder"].content).any() and SENTINELS[6] in whole.streams["encoder"].content


@pytest.mark.parametrize("closing", [False, True])
def test_targets_are_never_longer_than_the_row(closing: bool) -> None:
    """Texts of more noise than the decoder has room for, here by a text far too long: its first is hidden, the rest stays."""
    how: dict[str, Any] = {"noise": "iid", "rate": 0.5, "closing": closing}
    full, _ = corrupted(how, 40, 300)
    hidden, done = corrupted(how, 40, 300, length=12)
    row = SpanCorruption(**how).rows(t5(12))["decoder"]
    assert row == 13 + closing
    assert set(done.streams["decoder"].lengths.tolist()) == {row - 1, row}, (
        "one place is left where a sentinel and a token follow"
    )
    cost = np.cumsum(full.astype(int) + (np.diff(full.astype(int), axis=1, prepend=0) == 1), axis=1)
    assert np.array_equal(hidden, full & (cost <= 12))

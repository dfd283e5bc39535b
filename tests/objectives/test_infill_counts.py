"""BART's noises by counting: how often what happens, over 1e5 draws."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blocks import CLS, MASK, SEP, VOCAB, tokens
from test_infill import OFF, bart, sequences

from ziggurat.objectives.infill import Denoise
from ziggurat.types import Batch


def corrupted(how: dict[str, Any], sentences: Sequence[Sequence[int]], documents: int) -> tuple[np.ndarray, Batch]:
    """Many equal documents, each token of which is its own place: the encoder's text without boundary tokens."""
    block = tokens([[list(s) for s in sentences]] * documents)
    n = sum(map(sum, sentences))
    part = replace(block.parts["text"], ids=np.tile(np.arange(5, 5 + n, dtype=np.int32), documents))
    vocab = replace(VOCAB, size=1000)
    ctx = replace(bart(n + 12), vocab=vocab)
    objective = Denoise(**how)
    done = objective.corrupt(objective.form(replace(block, parts={"text": part}), ctx), ctx)
    encoder = done.streams["encoder"]
    return encoder.content[(encoder.content != CLS) & (encoder.content != SEP)], done


def even(counts: Sequence[int]) -> bool:
    """Within 4 deviations of a chi-square test against equal shares."""
    found = np.array(counts)
    chi = float(((found - found.mean()) ** 2 / found.mean()).sum())
    return chi < len(found) - 1 + 4 * (2 * (len(found) - 1)) ** 0.5


def test_every_order_of_sentences_is_equally_likely() -> None:
    text, _ = corrupted({"infill": 0.0}, [[1], [2], [1, 1], [1]], 100_000)
    sentences = {(5,): "a", (6, 7): "b", (8, 9): "c", (10,): "d"}
    orders = Counter(map(tuple, text.reshape(-1, 6).tolist()))
    assert len(orders) == 24 and even(list(orders.values()))
    for order in orders:
        joined = "".join(name for i in range(6) for tokens_of, name in sentences.items() if order[i] == tokens_of[0])
        assert sorted(joined) == list("abcd") and len(order) == 6
        assert order.index(7) == order.index(6) + 1 and order.index(9) == order.index(8) + 1


def test_some_sentences_are_permuted() -> None:
    """Half of four: each pair is chosen, and then swapped in half of the cases."""
    text, _ = corrupted({"infill": 0.0, "permute": 0.5}, [[1]] * 4, 60_000)
    orders = Counter(map(tuple, text.reshape(-1, 4).tolist()))
    stay = orders.pop((5, 6, 7, 8))
    assert stay / 60_000 == pytest.approx(0.5, abs=0.01) and len(orders) == 6 and even(list(orders.values()))


def test_span_lengths_are_poisson() -> None:
    """Against numpy's own Poisson numbers under the same rule: draws until the budget, the last one trimmed. Spans are far apart
    here, so that their lengths can be read off; zeros are masks between two neighbours."""
    words, documents = 200, 20_000
    _, done = corrupted({"permute": 0.0, "infill": 0.03}, [[1] * words], documents)  # a budget of 6 words
    shown = done.streams["encoder"].content.astype(np.int64)
    place = np.select([shown == CLS, shown == SEP], [-1, words], shown - 5)
    at = np.flatnonzero(shown == MASK)
    at = at[(shown[at - 1] != MASK) & (shown[at + 1] != MASK)]
    found = np.bincount(place[at + 1] - place[at - 1] - 1, minlength=words)
    assert len(at) > 0.94 * (shown == MASK).sum()
    rng = np.random.default_rng(0)
    left, want = np.full(documents, 6), np.zeros(words)
    while (left > 0).any():
        n = np.minimum(rng.poisson(3.0, documents), left)[left > 0]
        want += np.bincount(n, minlength=words)
        left[left > 0] -= n
    assert 0.98 * want.sum() < (shown == MASK).sum() < want.sum(), "now and then a span swallows another's mask"
    assert found[:7] / len(at) == pytest.approx(want[:7] / want.sum(), abs=0.01)


def test_the_budget_is_in_words_and_hides_no_more() -> None:
    """ceil(0.3 words) words hidden, fewer only where spans overlap or run over the end."""
    for words in (1, 2, 3, 10, 20, 33):
        _, done = corrupted({"permute": 0.0}, [[2] * words], 400)
        budget = math.ceil(round(0.3 * words, 6))
        hidden = [2 * words - sum(x >= 5 for x in shown) for shown in sequences(done, "encoder")]
        assert max(hidden) == 2 * budget and min(hidden) >= 2 and all(h % 2 == 0 for h in hidden)


def test_inserted_masks_fall_anywhere() -> None:
    """One word hidden, spans of mean 1: an empty span before it in e^-1 of the cases, in any of the places with equal chance."""
    _, done = corrupted({"permute": 0.0, "infill": 0.05, "mean": 1.0}, [[1] * 8], 60_000)
    shown = sequences(done, "encoder")
    masks = [[i for i, x in enumerate(s) if x == MASK] for s in shown]
    assert sum(len(m) - 1 for m in masks) / 60_000 == pytest.approx(1 / (math.e - 1), abs=0.01)
    assert len([s for s in shown if s[0] != CLS or s[-1] != SEP]) == 0
    pairs = Counter(tuple(m) for m in masks if len(m) == 2)
    assert len(pairs) == 36 and even(list(pairs.values()))


def test_random_words_in_place_of_masks() -> None:
    _, done = corrupted({**OFF, "mask": 0.5, "random": 0.1}, [[1] * 20], 10_000)
    encoder = done.streams["encoder"].content.reshape(-1, 22)[:, 1:-1]
    changed = encoder != np.arange(5, 25)
    masked = float((encoder == MASK).sum() / 100_000)
    assert masked == pytest.approx(0.9, abs=0.005) and changed.sum(1).max() == 10
    words = encoder[changed & (encoder != MASK)]
    assert len(words) > 9_000 and words.min() >= 5 and even(np.bincount((words - 5) // 5, minlength=199).tolist())


@pytest.mark.parametrize("noise", ["mask", "delete"])
def test_masked_and_deleted_tokens(noise: str) -> None:
    """Exactly ceil(0.25 * 9) = 3 tokens, every three of them equally likely."""
    text, _ = corrupted({**OFF, noise: 0.25}, [[1, 2, 3], [3]], 60_000)
    shown = text.reshape(60_000, -1)
    assert shown.shape[1] == (9 if noise == "mask" else 6)
    if noise == "mask":
        assert ((shown == MASK).sum(1) == 3).all() and ((shown == MASK) | (shown == np.arange(5, 14))).all()
    kept = Counter(tuple(x for x in row if x != MASK) for row in shown.tolist())
    assert len(kept) == 84 and even(list(kept.values()))


def test_rotation_begins_anywhere() -> None:
    text, _ = corrupted({**OFF, "rotate": 1.0}, [[1] * 7], 70_000)
    shown = Counter(map(tuple, text.reshape(-1, 7).tolist()))
    assert set(shown) == {tuple(5 + (i + k) % 7 for i in range(7)) for k in range(7)} and even(list(shown.values()))
    some, _ = corrupted({**OFF, "rotate": 0.4}, [[1] * 7], 70_000)
    assert float((some.reshape(-1, 7)[:, 0] != 5).mean()) == pytest.approx(0.4 * 6 / 7, abs=0.01)

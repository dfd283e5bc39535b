"""Masked LM against the papers' rules, restated slowly: one document, one word, one draw at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from blocks import CLS, MASK, VOCAB, batch_of, context, keys
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ziggurat.context import Context
from ziggurat.errors import UserError
from ziggurat.objectives.masked import Masked, Ramp, choose_phrases
from ziggurat.types import DEAD, Batch, Stream

fast = settings(max_examples=60, deadline=None)
UNITS = ("token", "word", "ngram", "span")


def draw(ctx: Context, key: np.uint64, number: int, purpose: str) -> float:
    return float(ctx.uniform(np.array([key]), np.zeros(1, np.int64), np.array([number]), purpose)[0])


def lengths_of(kind: str) -> list[float]:
    """Probability of 1, 2, ... words: ALBERT p(n) = (1/n) / sum(1/k), n <= 3; SpanBERT geometric 0.2 cut at 10 and scaled up."""
    raw = {"word": [1.0], "ngram": [1, 1 / 2, 1 / 3], "span": [0.2 * 0.8 ** (n - 1) for n in range(1, 11)]}[kind]
    return [x / sum(raw) for x in raw]


def phrases(unit: Sequence[int], budget: int, kind: str, ctx: Context, key: np.uint64) -> list[list[int]]:
    """Tokens of each hidden phrase of one document, in the order they were chosen. BERT's rule for whole words, ALBERT's for
    n-grams: visit anchors in random order, shorten what does not fit, skip what still does not fit or touches a hidden word."""
    words = [[i for i, u in enumerate(unit) if u == number] for number in sorted(set(unit) - {-1})]
    numbers = sorted(set(unit) - {-1})
    order = sorted(range(len(words)), key=lambda w: draw(ctx, key, numbers[w], "mlm.choose"))
    chosen: list[list[int]] = []
    left = budget
    for anchor in order:
        if left <= 0:
            break
        below = draw(ctx, key, numbers[anchor], "mlm.length")
        n = 1 + sum(below >= p for p in np.cumsum(lengths_of(kind))[:-1])
        run = words[anchor : anchor + n]
        while len(run) > 1:
            flat = [i for word in run for i in word]
            if len(flat) <= left and flat == list(range(flat[0], flat[-1] + 1)):
                break
            run.pop()
        flat = [i for word in run for i in word]
        if len(flat) > left or any(i in phrase for phrase in chosen for i in flat):
            continue
        chosen.append(flat)
        left -= len(flat)
    return chosen


def tokens_hidden(unit: Sequence[int], budget: int, ctx: Context, key: np.uint64) -> list[int]:
    hidable = [i for i, u in enumerate(unit) if u >= 0]
    return sorted(sorted(hidable, key=lambda i: draw(ctx, key, i, "mlm.choose"))[:budget])


def budget_of(unit: Sequence[int], rate: float) -> int:
    return max(1, round(rate * len(unit))) if any(u >= 0 for u in unit) else 0


def asked(batch: Batch) -> list[list[int]]:
    """For each document the places asked about, counted from its first token."""
    bounds, index = batch.streams["text"].bounds, batch.targets["mlm"].index
    return [[int(i - a) for i in index if a <= i < b] for a, b in pairwise(bounds)]


@st.composite
def examples(draw: st.DrawFn) -> Batch:
    """Documents of words of 1 to 5 tokens with special tokens in front, behind and in between; some empty, some all special."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    units = []
    for _ in range(draw(st.integers(1, 5))):
        unit: list[int] = []
        number = 0
        for _ in range(rng.integers(0, 40)):
            if rng.random() < 0.12:
                unit.append(-1)
            else:
                unit += [number] * int(rng.integers(1, 6))
                number += 1
        units.append(unit if rng.random() < 0.9 else [-1] * len(unit))
    return batch_of(units, int(rng.integers(0, 1000)))


@fast
@given(examples(), st.sampled_from([0.15, 0.5, 0.01, 0.95]), st.integers(0, 3))
def test_chosen_sets_are_exactly_the_slow_ones(batch: Batch, rate: float, epoch: int) -> None:
    ctx = context(seed=11, epoch=epoch)
    s = batch.streams["text"]
    assert s.unit is not None
    units = [s.unit[a:b].tolist() for a, b in pairwise(s.bounds)]
    for kind in UNITS:
        found = asked(Masked(unit=kind, rate=rate).corrupt(batch, ctx))
        for unit, key, places in zip(units, batch.keys, found, strict=True):
            budget = budget_of(unit, rate)
            if kind == "token":
                want = tokens_hidden(unit, budget, ctx, key)
                assert len(want) == min(budget, sum(u >= 0 for u in unit))
            else:
                want = sorted(i for phrase in phrases(unit, budget, kind, ctx, key) for i in phrase)
            assert places == want, kind


@fast
@given(examples(), st.sampled_from(UNITS))
def test_what_may_be_hidden(batch: Batch, kind: str) -> None:
    """Never a special token, never one twice, whole words only, never above the budget; input and targets restore the source,
    and nothing changed where nothing is asked."""
    objective = Masked(unit=kind, rate=0.3)
    done = objective.corrupt(batch, context(seed=5))
    before, after, target = batch.streams["text"], done.streams["text"], done.targets["mlm"]
    assert before.unit is not None
    assert (before.unit[target.index] >= 0).all() and len(set(target.index.tolist())) == len(target.index)
    restored = after.content.copy()
    restored[target.index] = target.value
    assert np.array_equal(restored, before.content) and restored.dtype == before.content.dtype
    assert set(np.flatnonzero(after.content != before.content)) <= set(target.index)
    assert not np.isin(after.content[target.index], [i for i in VOCAB.special if i != MASK]).any()
    assert (target.weight == 1).all() and target.stream == "text" and target.at == "token"
    for places, (a, b) in zip(asked(done), pairwise(before.bounds), strict=True):
        unit = before.unit[a:b].tolist()
        assert len(places) <= budget_of(unit, 0.3)
        if kind != "token":
            hidden = {unit[i] for i in places}
            assert places == [i for i, u in enumerate(unit) if u in hidden]


@pytest.mark.parametrize("kind", UNITS)
def test_the_count_of_each_document_is_exact(kind: str) -> None:
    """One-token words leave no reason to miss the budget: max(1, round(0.15 length)), special tokens counted as in BERT."""
    sizes = [1, 2, 3, 9, 10, 11, 30, 64, 126, 127, 510]
    done = Masked(unit=kind).corrupt(batch_of([[-1, *range(n), -1] for n in sizes]), context())
    assert [len(x) for x in asked(done)] == [max(1, round(0.15 * (n + 2))) for n in sizes]


def test_documents_with_nothing_to_hide() -> None:
    for kind in UNITS:
        batch = batch_of([[-1, -1], [], [-1, 0, -1], [-1]])
        done = Masked(unit=kind).corrupt(batch, context())
        assert asked(done) == [[], [], [1], []]
        dead = replace(batch_of([[-1, -1, -1]]), keys=np.array([DEAD]))
        assert asked(Masked(unit=kind).corrupt(dead, context())) == [[]]
        none = Masked(unit=kind).corrupt(batch_of([]), context())
        assert len(none.targets["mlm"].index) == 0


def test_a_word_longer_than_the_budget_is_left_alone() -> None:
    done = Masked(unit="word").corrupt(batch_of([[-1, 0, 0, 0, -1], [-1, 0, 0, 0, 1, -1]]), context())
    assert asked(done) == [[], [4]]


@pytest.mark.parametrize("kind,longest", [("ngram", 3), ("span", 10)])
def test_lengths_are_distributed_as_published(kind: str, longest: int) -> None:
    """The first phrase of each document, where neither the document's end nor another phrase can shorten it."""
    words, documents = 2 * longest, 60_000 * 2 if kind == "ngram" else 60_000
    unit = np.tile(np.arange(words, dtype=np.int32), documents)
    bounds = np.arange(documents + 1) * words
    owner = np.repeat(np.arange(documents), words)
    batch = Batch({"text": Stream(unit, bounds, unit, unit, unit=unit)}, {}, keys(documents))
    expected = np.array(lengths_of(kind))
    assert Masked(unit=kind).lengths() == pytest.approx(expected)
    hidden, number = choose_phrases(batch, unit, np.full(documents, longest), expected, context())
    first = hidden[number == 0]
    sizes = np.bincount(owner[first], minlength=documents)
    start = np.full(documents, words)
    np.minimum.at(start, owner[first], unit[first])
    sizes = sizes[start <= words - longest]
    assert len(sizes) > 30_000
    counts = np.bincount(sizes, minlength=longest + 1)[1:]
    chi = float(((counts - len(sizes) * expected) ** 2 / (len(sizes) * expected)).sum())
    assert len(counts) == longest and chi < (longest - 1) + 5 * (2 * (longest - 1)) ** 0.5
    if kind == "ngram":
        assert counts / len(sizes) == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)
    else:
        assert sizes.mean() == pytest.approx(3.797, abs=0.05)  # the paper says "mean 3.8"


def many(kind: str, documents: int = 2500, words: int = 126) -> tuple[Batch, Batch]:
    """1e5 predictions over one-token words, every source token the same."""
    batch = batch_of([[-1, *range(words), -1]] * documents)
    s = batch.streams["text"]
    assert s.unit is not None
    batch = replace(batch, streams={"text": replace(s, content=np.where(s.unit < 0, CLS, 7).astype(np.int32))})
    return batch, Masked(unit=kind, rate=0.32).corrupt(batch, context(seed=2))


def shares(shown: np.ndarray) -> tuple[float, float, float]:
    """Masked, replaced, kept; a random word is the old one by chance in 1 of 55 cases."""
    ordinary = len(VOCAB.ordinary())
    swapped = float(((shown != MASK) & (shown != 7)).mean()) * ordinary / (ordinary - 1)
    masked = float((shown == MASK).mean())
    return masked, swapped, 1 - masked - swapped


@pytest.mark.parametrize("kind", ["token", "word"])
def test_eighty_ten_ten(kind: str) -> None:
    """Within 4 deviations of a share over 1e5 draws (0.005), and random words uniform over all that are not special."""
    _, done = many(kind)
    shown = done.streams["text"].content[done.targets["mlm"].index]
    assert len(shown) > 99_000
    assert shares(shown) == pytest.approx((0.8, 0.1, 0.1), abs=0.005)
    counts = np.bincount(shown, minlength=VOCAB.size)
    assert counts[list(VOCAB.special)].tolist() == [0, 0, 0, 0, counts[MASK]]
    random = np.delete(counts[5:], 2)
    chi = float(((random - random.mean()) ** 2 / random.mean()).sum())
    assert chi < len(random) - 1 + 4 * (2 * (len(random) - 1)) ** 0.5


def test_what_replaces_words_is_drawn_for_each_token() -> None:
    _, done = many("word")
    index = done.targets["mlm"].index
    shown = done.streams["text"].content[index]
    together = np.diff(index) == 1
    both = (shown[:-1] == MASK) & (shown[1:] == MASK)
    assert float(both[together].mean()) == pytest.approx(0.64, abs=0.02)


def test_spans_are_replaced_as_a_whole() -> None:
    """One draw a span: all its tokens masked, all random, or all kept; the shares hold over spans."""
    batch, done = many("span", documents=600)
    ctx = context(seed=2)
    shown = done.streams["text"].content
    whole: list[str] = []
    for d in range(150):
        start, unit = 128 * d, [-1, *range(126), -1]
        for phrase in phrases(unit, budget_of(unit, 0.32), "span", ctx, batch.keys[d]):
            values = [int(shown[start + i]) for i in phrase]
            masked, kept = all(v == MASK for v in values), all(v == 7 for v in values)
            assert masked or MASK not in values
            if len(values) > 3:
                whole.append("mask" if masked else "keep" if kept else "random")
                if whole[-1] == "random":
                    assert values.count(7) <= 2 and len(set(values)) > 1, "random words of a span are drawn one by one"
    assert len(whole) > 500
    for name, share in ("mask", 0.8), ("random", 0.1), ("keep", 0.1):
        assert whole.count(name) / len(whole) == pytest.approx(share, abs=0.06)
    assert shares(shown[done.targets["mlm"].index]) == pytest.approx((0.8, 0.1, 0.1), abs=0.02)


@pytest.mark.parametrize("kind", UNITS)
def test_masks_are_a_function_of_seed_and_epoch(kind: str) -> None:
    batch, objective = batch_of([[-1, *range(60), -1]] * 3), Masked(unit=kind)

    def at(**when: Any) -> list[list[int]]:
        return asked(objective.corrupt(batch, context(**when)))

    assert at(epoch=1) == at(epoch=1)
    assert len({str(x) for x in (at(), at(epoch=1), at(seed=1), at(epoch=2))}) == 4
    assert len({str(x) for x in at()}) == 3, "documents of other keys have other masks"


def test_static_masks_come_in_turns() -> None:
    batch, objective = batch_of([[-1, *range(60), -1]] * 3), Masked(static=3)

    def at(epoch: int) -> tuple[list[list[int]], list[int]]:
        done = objective.corrupt(batch, context(epoch=epoch))
        return asked(done), done.streams["text"].content.tolist()

    assert [at(e) for e in (3, 4, 5, 300)] == [at(0), at(1), at(2), at(0)]
    assert at(0)[0] != at(1)[0] and at(1)[0] != at(2)[0] and at(0)[0] != at(2)[0]
    assert asked(Masked().corrupt(batch, context(epoch=3))) != asked(Masked().corrupt(batch, context()))


def test_a_rate_that_moves() -> None:
    batch, objective = batch_of([[-1, *range(98), -1]]), Masked(rate=Ramp(start=0.3, end=0.1))
    counts = [len(asked(objective.corrupt(batch, context(progress=p)))[0]) for p in (0.0, 0.25, 0.5, 1.0)]
    assert counts == [30, 25, 20, 10]
    assert Ramp(start=0.1, end=0.5).at(2.0) == 0.5 and Ramp(start=0.1, end=0.5).at(-1.0) == 0.1


def test_a_vocabulary_without_a_mask_token() -> None:
    ctx = replace(context(), vocab=replace(VOCAB, mask=None))
    with pytest.raises(UserError, match="mask token"):
        Masked().needs(ctx)
    swaps = Masked(replace=(0, 0.5, 0.5))
    swaps.needs(ctx)
    batch = batch_of([[-1, *range(500), -1]])
    done = swaps.corrupt(batch, ctx)
    at = done.targets["mlm"].index
    assert 0.3 < float((done.streams["text"].content[at] != batch.streams["text"].content[at]).mean()) < 0.7


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0.0}, {"rate": 1}, {"replace": (0.5, 0.5, 0.5)}, {"replace": (1.2, -0.1, -0.1)}, {"unit": "letter"}, {"mean": 1.0}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Masked(**wrong)

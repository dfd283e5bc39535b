"""Permuted LM against XLNet's data and mask rules, restated with loops over the same keyed draws."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blocks import BERT, CLS, GPT, MASK, PAD, SEP, UNK, context, keys, random_documents, tokens
from lawful import check_laws, mask_of, reach
from pydantic import ValidationError

from ziggurat.context import Context, Layout, mix
from ziggurat.data.cut import windows
from ziggurat.errors import UserError
from ziggurat.objectives.permuted import Permuted
from ziggurat.types import NEVER, Batch, Tokens

XLNET = Layout((), (SEP,), (SEP, CLS), (0, 1), 2)
SPECIAL = {PAD, UNK, CLS, SEP, MASK}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "words": {"unit": "word", "rate": 0.3},
    "windows": {"pairs": False, "reverse": 0.0},
    "blocks": {"perm_size": 7, "rate": 0.4, "alpha": 2},
    "reuse": {"reuse": 11, "rate": 0.3},
    "reuse-windows": {"reuse": 9, "pairs": False, "perm_size": 5, "unit": "word"},
    "dense": {"rate": 0.9, "alpha": 1, "longest": 3},
}


class Draws:
    def __init__(self, ctx: Context, key: np.uint64):
        self.ctx, self.key = ctx, np.array([key])

    def __call__(self, purpose: str, number: int) -> float:
        return float(self.ctx.uniform(self.key, np.zeros(1, np.int64), np.array([number]), purpose)[0])


def choose(unit: list[int], o: Permuted, draws: Draws) -> set[int]:
    """`_sample_mask` of the release, its context and snapping; `o.unit` says which way its slip is decided."""
    goal = max(1, round(o.rate * len(unit)))
    begins = [i for i, u in enumerate(unit) if i == 0 or u < 0 or unit[i - 1] != u]
    pieces = begins if o.unit == "word" else list(range(len(unit)))
    ends = [*pieces[1:], len(unit)]
    chances = [1 / n for n in range(1, o.longest + 1)]
    chosen: set[int] = set()
    here, turn = 0, 0
    while here < len(pieces) and len(chosen) < goal:
        u, n = draws("plm.length", turn) * sum(chances), 1
        while n < o.longest and u >= sum(chances[:n]):
            n += 1
        n = min(n, goal - len(chosen))
        around = n * o.alpha
        left = int(draws("plm.place", turn) * around)
        turn += 1
        begin = here + left
        while begin < len(pieces) and not (pieces[begin] in begins and unit[pieces[begin]] >= 0):
            begin += 1
        if begin + n > len(pieces):
            break
        last = begin
        for piece in range(begin, begin + n):
            mine = {i for i in range(pieces[piece], ends[piece]) if unit[i] >= 0}
            if len(chosen | mine) > goal:
                break
            chosen |= mine
            last = piece + 1
        here = last + around - left
    rest = sorted((draws("mlm.choose", i), i) for i in range(len(unit)) if unit[i] >= 0 and i not in chosen)
    return chosen | {i for _, i in rest[: goal - len(chosen)]}


def orders(unit: list[int], targets: set[int], o: Permuted, draws: Draws) -> list[int]:
    """The random rank of targets and functional tokens among themselves, -1 for ordinary ones."""
    rank = [-1] * len(unit)
    line = sorted((i // o.perm_size, draws("plm.order", i), i) for i in range(len(unit)) if i in targets or unit[i] < 0)
    for n, (_, _, i) in enumerate(line):
        rank[i] = n
    return rank


def perm_mask(unit: list[int], targets: set[int], rank: list[int]) -> np.ndarray:
    """`_local_perm`: R(q) = rank of targets, rank + 1 of others; q may not see k if k is no ordinary token and R(q) <= rank(k)."""
    n = len(unit)
    own = [rank[i] if i in targets else rank[i] + 1 for i in range(n)]
    return np.array([[(k in targets or unit[k] < 0) and own[q] <= rank[k] for k in range(n)] for q in range(n)]).reshape(n, n)


def published(unit: list[int], o: Permuted, key: np.uint64, ctx: Context) -> tuple[set[int], np.ndarray]:
    """The targets of one example and bool[n, n] who is blocked for whom in the query stream."""
    n = len(unit)
    first = min(o.reuse, n) if n == ctx.length else 0
    targets: set[int] = set()
    blocked = np.zeros((n, n), bool)
    for low, high, mine in ((0, first, mix(key ^ np.uint64(1))[0]), (first, n, key)):
        if low == high:
            continue
        draws = Draws(ctx, mine)
        chosen = choose(unit[low:high], o, draws)
        blocked[low:high, low:high] = perm_mask(unit[low:high], chosen, orders(unit[low:high], chosen, o, draws))
        targets |= {low + i for i in chosen}
    blocked[:first, first:] = True
    return targets, blocked


@pytest.mark.parametrize("layout", [XLNET, BERT, GPT], ids=["xlnet", "bert", "gpt"])
@pytest.mark.parametrize("name", VARIANTS)
def test_targets_and_the_whole_mask_are_the_published_ones(name: str, layout: Layout) -> None:
    o, ctx = Permuted.model_validate(VARIANTS[name]), context(24, layout, seed=3, epoch=1)
    formed = o.form(tokens(random_documents(np.random.default_rng(1), 14)), ctx)
    done = o.corrupt(formed, ctx)
    before, after, target = formed.streams["text"], done.streams["text"], done.targets["plm"]
    full = 0
    for d, key in enumerate(formed.keys):
        lo, hi = before.bounds[d : d + 2].tolist()
        n, start = hi - lo, int(after.bounds[d])
        assert before.unit is not None and after.unit is not None
        targets, blocked = published(before.unit[lo:hi].tolist(), o, key, ctx)
        at = sorted(targets)
        full += n == ctx.length
        # the content stream is the text as it was, then one query a target
        for column in ("content", "position", "segment", "unit"):
            text = getattr(before, column)[lo:hi].tolist()
            queries = {"content": [-1] * len(at), "unit": [-1] * len(at)}.get(column, [text[i] for i in at])
            assert getattr(after, column)[start : int(after.bounds[d + 1])].tolist() == text + queries, column
        mine = (target.index >= start) & (target.index < after.bounds[d + 1])
        assert (target.index[mine] - start).tolist() == [n + j for j in range(len(at))]
        assert target.value[mine].tolist() == before.content[lo:hi][at].tolist()
        # who sees whom
        want = np.zeros((n + len(at),) * 2, bool)
        want[:n, :n] = ~blocked | np.eye(n, dtype=bool)
        want[n:, :n] = ~blocked[at] & ~np.eye(n, dtype=bool)[at]
        assert np.array_equal(mask_of(after, d), want)
    assert full > 3 and (target.weight == 1).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_laws(name: str) -> None:
    o = Permuted.model_validate(VARIANTS[name])
    check_laws(o, tokens(random_documents(np.random.default_rng(2), 16)), context(24, XLNET, seed=1))


@pytest.mark.parametrize("name", VARIANTS)
def test_no_answer_is_reachable(name: str) -> None:
    """Over any number of layers, the query of a token has nothing from that token, and later targets know earlier ones."""
    o, ctx = Permuted.model_validate(VARIANTS[name]), context(24, XLNET)
    done = o.corrupt(o.form(tokens(random_documents(np.random.default_rng(4), 8)), ctx), ctx)
    s, told = done.streams["text"], 0
    for d in range(len(done)):
        lo, hi = s.bounds[d : d + 2].tolist()
        far, opens = reach(mask_of(s, d)), np.asarray(s.visibility.opens)[lo:hi]
        n = int((opens != NEVER).sum())
        answers = [int(np.flatnonzero(s.position[lo : lo + n] == p)[0]) for p in s.position[lo + n : hi]]
        for j, answer in enumerate(answers):
            assert not far[n + j, answer]
            told += far[n + j, answers].sum()
        assert not far[:, n:][~np.eye(hi - lo, dtype=bool)[:, n:]].any()  # a query is a key for nobody
    assert told


def test_three_classes() -> None:
    """Ordinary tokens see ordinary tokens alone, not even separators; functional ones are never asked for."""
    o, ctx = Permuted(), context(40, XLNET)
    done = o.corrupt(o.form(tokens(random_documents(np.random.default_rng(5), 12)), ctx), ctx)
    s = done.streams["text"]
    assert not SPECIAL & set(done.targets["plm"].value.tolist())
    for d in range(len(done)):
        lo, hi = s.bounds[d : d + 2].tolist()
        seen, content = mask_of(s, d), s.content[lo:hi]
        n = int((content >= 0).sum())
        functional = [i for i in range(n) if content[i] in (SEP, CLS)]
        asked = [int(np.flatnonzero(s.position[lo : lo + n] == p)[0]) for p in s.position[lo + n : hi]]
        ordinary = [i for i in range(n) if i not in functional and i not in asked]
        for q in ordinary:
            assert np.flatnonzero(seen[q]).tolist() == ordinary
        for q in functional:
            assert seen[q, q] and seen[q, ordinary].all()


def test_one_packed_pass_is_the_two_stream_recursion() -> None:
    """Three layers of toy attention: the streams h and g of the paper, and our one stream with query tokens."""
    o, ctx = Permuted(rate=0.3), context(20, XLNET)
    formed = o.form(tokens(random_documents(np.random.default_rng(6), 3)), ctx)
    s = o.corrupt(formed, ctx).streams["text"]
    rng = np.random.default_rng(0)
    width = 8
    table, places, mask_emb = rng.normal(size=(60, width)), rng.normal(size=(64, width)), rng.normal(size=width)
    layers = [rng.normal(size=(3, width, width)) / 3 for _ in range(3)]

    def attend(x: np.ndarray, y: np.ndarray, seen: np.ndarray, w: np.ndarray) -> np.ndarray:
        scores = np.where(seen, (x @ w[0]) @ (y @ w[1]).T, -np.inf)
        top = np.exp(scores - np.where(seen.any(1), scores.max(1), 0)[:, None])
        return x + np.tanh(top / np.maximum(top.sum(1), 1e-300)[:, None] @ (y @ w[2]))

    for d, key in enumerate(formed.keys):
        unit = formed.streams["text"].unit
        assert unit is not None
        lo, hi = s.bounds[d : d + 2].tolist()
        a, b = formed.streams["text"].bounds[d : d + 2].tolist()
        targets, blocked = published(unit[a:b].tolist(), o, key, ctx)
        at, position = sorted(targets), s.position[lo:hi]
        h = table[formed.streams["text"].content[a:b]] + places[: b - a]
        g = mask_emb + places[at]
        x = np.where((s.content[lo:hi] >= 0)[:, None], table[s.content[lo:hi]], mask_emb) + places[position]
        for w in layers:
            h, g = attend(h, h, ~blocked | np.eye(b - a, dtype=bool), w), attend(g, h, ~blocked[at], w)
            x = attend(x, x, mask_of(s, d), w)
        assert np.allclose(x, np.concatenate([h, g]), atol=1e-12)


def runs(targets: set[int]) -> Counter[int]:
    found: Counter[int] = Counter()
    for i in targets:
        if i - 1 not in targets:
            n = 1
            while i + n in targets:
                n += 1
            found[n] += 1
    return found


def released(length: int, goal: int, rng: random.Random) -> set[int]:
    """`_sample_mask` on one-token words, with its own random numbers and its own redrawing of single tokens."""
    chosen: set[int] = set()
    here = 0
    while here < length and len(chosen) < goal:
        n = min(rng.choices(range(1, 6), [1 / k for k in range(1, 6)])[0], goal - len(chosen))
        left = rng.randrange(n * 6)
        if here + left + n > length:
            break
        chosen |= set(range(here + left, here + left + n))
        here = here + left + n + n * 6 - left
    while len(chosen) < goal:
        chosen.add(rng.randrange(length))
    return chosen


def test_choices_have_the_released_distribution() -> None:
    """10^5 targets: how many stand together and where, against the release's rule with independent random numbers."""
    documents, length = 1200, 512
    block = tokens([[[1] * length]] * documents)
    o, ctx = Permuted(pairs=False, reverse=0), context(length, Layout())
    done = o.corrupt(o.form(block, ctx), ctx)
    s, target = done.streams["text"], done.targets["plm"]
    assert len(target.index) == documents * 85
    ours, theirs = Counter[int](), Counter[int]()
    thirds, rng = np.zeros((2, 3)), random.Random(0)
    position = s.position[target.index]
    for d in range(documents):
        for row, (found, chosen) in enumerate(
            ((ours, set(position[d * 85 : (d + 1) * 85].tolist())), (theirs, released(length, 85, rng)))
        ):
            found.update(runs(chosen))
            thirds[row] += np.bincount([i * 3 // length for i in chosen], minlength=3)
    for n in range(1, 7):
        assert abs(ours[n] / ours.total() - theirs[n] / theirs.total()) < 0.01, n
    assert np.abs(thirds[0] - thirds[1]).max() / thirds.sum() < 0.005


def test_every_order_is_as_likely() -> None:
    """Three targets and two functional tokens: each of the 120 orders equally often; a block comes before the next."""
    count, block = 30_000, tokens([[[1, 1, 1]]] * 30_000)
    ctx = context(5, Layout((), (), (SEP, CLS)))
    for size, orders in ((256, 120), (3, 12)):
        o = Permuted(pairs=False, reverse=0, rate=0.6, perm_size=size)
        s = o.corrupt(o.form(block, ctx), ctx).streams["text"]
        opens = np.asarray(s.visibility.opens).reshape(count, 8)[:, :5]
        found = Counter(map(tuple, opens.tolist()))
        assert len(found) == orders and all(sorted(order) == [1, 2, 3, 4, 5] for order in found)
        spread = 5 * (orders / count) ** 0.5  # five deviations of a share, relative to it
        assert all(abs(n * orders / count - 1) < spread for n in found.values())


def test_half_the_documents_run_backwards() -> None:
    """Ids that count up within a document tell the direction. Segments and the class token are XLNet's."""
    block = tokens(random_documents(np.random.default_rng(7), 3000, 4, 4))
    part = block.parts["text"]
    counting = replace(
        part, ids=(100 + np.arange(len(part.ids)) - np.repeat(part.bounds[:-1], np.diff(part.bounds))).astype(np.int32)
    )
    s = Permuted().form(replace(block, parts={"text": counting}), context(60, XLNET)).streams["text"]
    directions = Counter[int]()
    for lo, hi in zip(s.bounds[:-1].tolist(), s.bounds[1:].tolist(), strict=True):
        content, segment = s.content[lo:hi].tolist(), s.segment[lo:hi].tolist()
        a = content.index(SEP) + 1
        assert content[-2:] == [SEP, CLS] and content.count(SEP) == 2
        assert segment == [0] * a + [1] * (hi - lo - a - 1) + [2]
        steps = {y - x for x, y in itertools.pairwise(content[: a - 1])}
        assert len(steps) < 2
        directions.update(steps)
    assert set(directions) == {-1, 1} and abs(directions[1] / directions.total() - 0.5) < 0.03
    for pairs, direction in itertools.product((True, False), (0, 1)):
        o = Permuted(pairs=pairs, reverse=direction, random=0)
        s = o.form(replace(block, parts={"text": counting}), context(60, XLNET)).streams["text"]
        assert s.segment.max() == 2
        step = -1 if direction else 1
        assert all((np.diff(x[x >= 100]) == step).all() for x in np.split(s.content, s.bounds[1:-1]))


def test_reversed_documents_are_the_text_backwards() -> None:
    block, ctx = tokens(random_documents(np.random.default_rng(8), 30)), context(400, GPT)
    part = block.parts["text"]
    forth = Permuted(pairs=False, reverse=0).form(block, ctx)
    back = Permuted(pairs=False, reverse=1).form(block, ctx)
    for d in range(len(block)):
        lo, hi = forth.streams["text"].bounds[d : d + 2].tolist()
        a, b = forth.streams["text"], back.streams["text"]
        assert a.unit is not None and b.unit is not None
        assert b.content[lo:hi].tolist() == [*a.content[lo : hi - 1].tolist()[::-1], SEP]
        last = a.unit[lo : hi - 1].max()
        assert b.unit[lo : hi - 1].tolist() == [last - u for u in a.unit[lo : hi - 1].tolist()[::-1]]  # words stay whole
        assert np.array_equal(part.ids[part.bounds[d] : part.bounds[d + 1]], a.content[lo : hi - 1])


def test_windows_are_those_of_everybody() -> None:
    block, ctx = tokens(random_documents(np.random.default_rng(9), 9)), context(16, GPT)
    one, two = Permuted(pairs=False, reverse=0).form(block, ctx), windows(block, ctx)
    assert np.array_equal(one.streams["text"].content, two.streams["text"].content)


@pytest.mark.parametrize("documents", [[], [[[1]]], [[[1]], [[1]]], [[[2, 1]], [], [[1]]]], ids=str)
@pytest.mark.parametrize("name", ["paper", "reuse", "words", "windows"])
def test_tiny_documents(documents: Any, name: str) -> None:
    o, ctx = Permuted.model_validate(VARIANTS[name]), context(16, XLNET)
    block = Tokens(tokens(documents).parts, keys(len(documents))) if documents else tokens([])
    done: Batch = o.corrupt(o.form(block, ctx), ctx)
    assert len(done.targets.get("plm", done.targets).index if done.targets else []) >= sum(map(bool, documents))


def test_mistakes() -> None:
    for wrong in ({"rate": 0}, {"rate": 1}, {"alpha": 0}, {"unit": "piece"}, {"perm_size": 0}, {"reverse": 2}, {"longest": 0}):
        with pytest.raises(ValidationError):
            Permuted.model_validate(wrong)
    with pytest.raises(UserError, match="no room for two texts"):
        Permuted().form(tokens([[[1, 2]]]), context(4, XLNET))
    with pytest.raises(UserError, match="length to at least 14"):
        Permuted(reuse=9).form(tokens([[[1, 2]]]), context(12, XLNET))

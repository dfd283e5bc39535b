"""ERNIE-GEN against its paper, restated slowly: one document, one draw, one row at a time; nothing of the objective is used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from blocks import BERT, CLS, GPT, SEP, VOCAB, batch_of, context, keys, part
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ziggurat.context import Context
from ziggurat.data.pack import pack
from ziggurat.errors import UserError
from ziggurat.objectives.flows import Fragments, InfillingGeneration, save_lexicon
from ziggurat.types import CAUSAL, DEAD, FOREVER, SPELLED, Batch, Stream, Tokens, join

fast = settings(max_examples=30, deadline=None)
ATTN = 60
NAMED = replace(VOCAB, size=61, special=(*VOCAB.special, ATTN), names={**VOCAB.names, "[ATTN]": ATTN})


def ctx_of(length: int = 24, **other: Any) -> Context:
    return replace(context(length, **other), vocab=NAMED)


# --- the paper's rule --------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A token of the four parts of figure 2: the source S, the noised target T', the rows A_W and A_S of [ATTN]."""

    flow: str
    number: int
    content: int
    position: int
    segment: int


def sees(q: Row, k: Row, spans: Sequence[tuple[int, int]]) -> bool:
    """The matrices M_C, M_W and M_S of figure 2. Target words are numbered from 0, a span is [first, after the last)."""
    if k.flow in ("word", "span"):
        return k == q  # an [ATTN] row is a key for itself alone
    if q.flow == "source":
        return k.flow == "source"
    if k.flow == "source":
        return True
    if q.flow == "target":
        return k.number <= q.number
    if q.flow == "word":
        return k.number < q.number
    return k.number < next(b for b, e in spans if b <= q.number < e)


def draw(ctx: Context, key: np.uint64, number: int, purpose: str) -> float:
    return float(ctx.uniform(np.array([key]), np.zeros(1, np.int64), np.array([number]), f"ernie_gen.{purpose}")[0])


def fragments_of(unit: Sequence[int], objective: InfillingGeneration, ctx: Context, key: np.uint64) -> list[list[int]]:
    """Multi-granularity target fragments: one length distribution an example; fragments are drawn until the budget is spent, the last one cut to it."""
    free = [i for i, u in enumerate(unit) if u >= 0]
    if not free:
        return []
    left = max(1, round(objective.rate * len(free)))
    chance, chosen = draw(ctx, key, 0, "granularity"), objective.fragments[-1]
    shares = np.cumsum([f.share for f in objective.fragments])
    for share, fragments in zip(shares[:-1].tolist(), objective.fragments[:-1], strict=True):
        if chance < share:
            chosen = fragments
            break
    found: list[list[int]] = []
    for n in range(100 + 4 * left):
        start = free[int(draw(ctx, key, n, "start") * len(free))]
        size = chosen.shortest + int(draw(ctx, key, n, "length") * (chosen.longest - chosen.shortest + 1))
        places = list(range(start, start + min(size, left)))
        if all(p in free for p in places) and not any(p in f for f in found for p in places):
            found.append(places)
            left -= len(places)
        if not left:
            break
    return sorted(found)  # the target is sorted by position


def spans_of(
    unit: Sequence[int], fragments: list[list[int]], longest: int, ctx: Context, key: np.uint64, known: Callable[..., bool] | None
) -> list[tuple[int, int]]:
    """Each fragment cut from the left into 1 to `longest` words: drawn, or the longest that `known` has."""
    spans, done = [], 0
    for fragment in fragments:
        words: list[list[int]] = []
        for i in fragment:
            if words and unit[words[-1][-1]] == unit[i]:
                words[-1].append(i)
            else:
                words.append([i])
        at = 0
        while at < len(words):
            if known is None:
                n = 1 + int(draw(ctx, key, words[at][0], "span") * longest)
            else:
                n = next(n for n in range(min(longest, len(words) - at), 0, -1) if n == 1 or known(words[at : at + n]))
            size = sum(map(len, words[at : at + n]))
            spans.append((done, done + size))
            done, at = done + size, at + n
    return spans


def expected(
    batch: Batch, d: int, objective: InfillingGeneration, ctx: Context, known: Any = None, target: list[list[int]] | None = None
) -> tuple[list[Row], list[tuple[int, int]], list[int]]:
    """The rows of document d, the spans of its target, and the clean target words."""
    s, key = batch.streams["text"], batch.keys[d]
    lo, hi = int(s.bounds[d]), int(s.bounds[d + 1])
    assert s.unit is not None
    unit, ids = s.unit[lo:hi].tolist(), s.content[lo:hi].tolist()
    fragments = fragments_of(unit, objective, ctx, key) if target is None else target
    places = [i for f in fragments for i in f]
    spans = spans_of(unit, fragments, objective.phrase, ctx, key, known)
    second = ctx.layout.segments[1] if objective.segment is None else objective.segment
    ordinary = ctx.vocab.ordinary()
    rows = [
        Row("source", n, ids[i], i, int(s.segment[lo + i])) for n, i in enumerate(i for i in range(hi - lo) if i not in places)
    ]
    for n, i in enumerate(places):
        noisy = draw(ctx, key, i, "noise") < objective.noise
        shown = int(ordinary[int(draw(ctx, key, i, "random") * len(ordinary))]) if noisy else ids[i]
        rows.append(Row("target", n, shown, i, second))
    for flow, weight in ("word", objective.weight), ("span", 1 - objective.weight):
        rows += [Row(flow, n, ATTN, i, second) for n, i in enumerate(places) if weight > 0]
    return rows, spans, [ids[i] for i in places]


def allowed(s: Stream, d: int) -> np.ndarray:
    """bool[n, n] of document d, the five-integer rule one pair at a time."""
    lo, hi = int(s.bounds[d]), int(s.bounds[d + 1])
    clock, opens, closes, lane = (getattr(s.visibility, f)[lo:hi].tolist() for f in SPELLED)
    n = hi - lo
    pairs = [[opens[k] <= clock[q] < closes[k] or lane[k] == lane[q] != 0 for k in range(n)] for q in range(n)]
    return np.array(pairs, bool).reshape(n, n)


def closure(seen: np.ndarray) -> np.ndarray:
    """Whose content can have reached whom after any number of layers."""
    reach = seen | np.eye(len(seen), dtype=bool)
    while True:
        further = (reach.astype(int) @ reach.astype(int)) > 0
        if np.array_equal(further, reach):
            return reach
        reach = further


def check_document(batch: Batch, done: Batch, d: int, want: tuple[list[Row], list[tuple[int, int]], list[int]]) -> None:
    rows, spans, answers = want
    s = done.streams["text"]
    lo, hi = int(s.bounds[d]), int(s.bounds[d + 1])
    got = list(zip(s.content[lo:hi].tolist(), s.position[lo:hi].tolist(), s.segment[lo:hi].tolist(), strict=True))
    assert got == [(r.content, r.position, r.segment) for r in rows]
    mask = np.array([[sees(q, k, spans) for k in rows] for q in rows], bool).reshape(len(rows), len(rows))
    assert np.array_equal(allowed(s, d), mask)
    for flow in ("word", "span"):
        mine = [lo + i for i, r in enumerate(rows) if r.flow == flow]
        target = done.targets.get(f"ernie_gen_{flow}")
        if target is None:
            assert not mine
            continue
        here = (target.index >= lo) & (target.index < hi)
        assert target.index[here].tolist() == mine and target.value[here].tolist() == (answers if mine else [])
        assert (target.weight[here] == 1).all()


# --- the tests ---------------------------------------------------------------------------------------------


@st.composite
def examples(draw_from: st.DrawFn) -> Batch:
    """Documents of words of 1 to 4 tokens with special tokens in front, behind and in between; some empty, some all special."""
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    units: list[list[int]] = []
    for _ in range(draw_from(st.integers(1, 4))):
        unit = [-1]
        for number in range(int(rng.integers(0, 14))):
            unit += [number] * int(rng.integers(1, 5))
            unit += [-1] * int(rng.random() < 0.1)
        units.append([[], [-1, -1], [*unit, -1]][int(rng.choice(3, p=[0.05, 0.05, 0.9]))])
    return batch_of(units, int(rng.integers(1000)))


@fast
@given(examples(), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 3))
def test_flows_as_the_paper_draws_them(batch: Batch, weight: float, noise: float, epoch: int) -> None:
    short = (Fragments(share=0.4, shortest=1, longest=4), Fragments(share=0.6, shortest=4, longest=9))
    objective = InfillingGeneration(weight=weight, noise=noise, fragments=short, phrase=2 + epoch % 2, segment=epoch or None)
    ctx = ctx_of(epoch=epoch)
    done = objective.corrupt(batch, ctx)
    for d in range(len(batch)):
        check_document(batch, done, d, expected(batch, d, objective, ctx))


def test_the_matrices_of_figure_2() -> None:
    """A source and four target words of which the second and third are a span: M_W, M_C and M_S as printed."""
    rows = [Row("source", 0, 0, 0, 0), *(Row("target", n, 0, n + 1, 1) for n in range(4))]
    rows += [Row(flow, n, 0, n + 1, 1) for flow in ("word", "span") for n in range(4)]
    spans = [(0, 1), (1, 3), (3, 4)]
    drawn = ["".join(".#"[sees(q, k, spans)] for k in rows) for q in rows]
    contextual = ["#....", "##...", "###..", "####.", "#####"]
    word = ["#....#...", "##....#..", "###....#.", "####....#"]
    span = ["#....#...", "##....#..", "##.....#.", "####....#"]
    assert drawn[:5] == [row + "." * 8 for row in contextual]
    assert drawn[5:9] == [row + "." * 4 for row in word]
    assert drawn[9:] == [row[:5] + "." * 4 + row[5:] for row in span]


@fast
@given(examples(), examples())
def test_corrupt_commutes_with_join(a: Batch, b: Batch) -> None:
    b = replace(b, keys=keys(len(b), 7))
    objective = InfillingGeneration()
    whole, halves = objective.corrupt(join(a, b), ctx_of()), [objective.corrupt(x, ctx_of()) for x in (a, b)]
    one, both = whole.streams["text"], join(*halves)
    two = both.streams["text"]
    for name in ("content", "position", "segment", "bounds", "unit"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert all(np.array_equal(getattr(one.visibility, f), getattr(two.visibility, f)) for f in SPELLED)
    for name, target in whole.targets.items():
        assert np.array_equal(target.index, both.targets[name].index) and np.array_equal(target.value, both.targets[name].value)


@settings(max_examples=10, deadline=None)
@given(examples(), st.booleans())
def test_no_answer_reaches_the_row_that_must_give_it(batch: Batch, noisy: bool) -> None:
    """Each answer is changed in the source text; whatever changes with it is out of reach of the rows that are asked."""
    objective, ctx = InfillingGeneration(noise=0.5 * noisy), ctx_of()
    done = objective.corrupt(batch, ctx)
    s, before = done.streams["text"], batch.streams["text"]
    for d in range(len(batch)):
        lo, hi = s.bounds[d : d + 2].tolist()
        reach = closure(allowed(s, d))
        asked = [(i, v) for t in done.targets.values() for i, v in zip(t.index.tolist(), t.value.tolist()) if lo <= i < hi]
        for row, value in asked:
            source = int(before.bounds[d] + s.position[row])
            assert before.content[source] == value
            content = before.content.copy()
            content[source] = 5 + (value + 1) % 40
            other = objective.corrupt(replace(batch, streams={"text": replace(before, content=content)}), ctx)
            telling = np.flatnonzero(other.streams["text"].content != s.content)
            assert not any(reach[row - lo, k - lo] for k in telling if lo <= k < hi)
            assert ((telling >= lo) & (telling < hi)).all()


def test_rows_of_packed_batches_and_dead_documents() -> None:
    batch = batch_of([[-1, *range(n), -1] for n in (10, 4, 7)])
    objective = InfillingGeneration()
    packed = objective.corrupt(pack(batch, 16, 0), ctx_of())
    assert packed.streams["text"].row == 0 and (packed.keys == DEAD).any()
    alone = objective.corrupt(batch, ctx_of())
    for d, key in enumerate(packed.keys):
        lo, hi = packed.streams["text"].bounds[d : d + 2].tolist()
        if key == DEAD:
            assert not any(((t.index >= lo) & (t.index < hi)).any() for t in packed.targets.values())
            continue
        e = alone.keys.tolist().index(key)
        a, b = alone.streams["text"].bounds[e : e + 2].tolist()
        assert packed.streams["text"].content[lo:hi].tolist() == alone.streams["text"].content[a:b].tolist()


def many(documents: int = 600, words: int = 128, **fields: Any) -> tuple[Batch, Batch, InfillingGeneration]:
    batch = batch_of([[-1, *range(words), -1]] * documents)
    objective = InfillingGeneration(**fields)
    return batch, objective.corrupt(batch, ctx_of()), objective


def chosen_of(done: Batch, name: str = "ernie_gen_word") -> tuple[np.ndarray, np.ndarray]:
    """(document, position) of every word asked for."""
    s, index = done.streams["text"], done.targets[name].index
    return s.document()[index], s.position[index]


def test_a_quarter_of_every_text_is_written() -> None:
    _, done, _ = many(documents=200)
    document, _ = chosen_of(done)
    assert (np.bincount(document, minlength=200) == 32).all()
    sizes = [1, 2, 3, 9, 10, 11, 30, 510]
    short = InfillingGeneration().corrupt(batch_of([[-1, *range(n), -1] for n in sizes]), ctx_of())
    counts = np.bincount(chosen_of(short)[0], minlength=len(sizes)).tolist()
    assert counts == [max(1, round(n / 4)) for n in sizes]


def test_fragments_are_of_two_kinds() -> None:
    """40% of the examples draw 1 to 4 tokens, 60% draw 4 to 32, uniform; the first fragment of each is neither cut to the budget
    nor in another's way, but one that would leave the text is drawn anew: P(n) = (129 - n) / 128 of uniform."""
    documents, words = 20_000, 128
    unit = np.tile(np.arange(words, dtype=np.int32), documents)
    batch = Batch({"text": Stream(unit, np.arange(documents + 1) * words, unit, unit, unit=unit)}, {}, keys(documents))
    number = InfillingGeneration().choose(batch, ctx_of()).reshape(documents, words)
    assert ((number > 0).sum(1) == 32).all()
    first, most = (number == 1).sum(1), number.max(1)
    starts = (number == 1).argmax(1)
    assert starts[:1000].tolist() != sorted(starts[:1000])
    assert np.bincount(starts, minlength=128)[:96] == pytest.approx(np.full(96, np.bincount(starts)[:96].mean()), rel=0.3)
    short = most >= 9  # pieces of at most 4 are at least 8, pieces of at least 4 are at most 8: eight times 4 happens to nobody
    assert float(short.mean()) == pytest.approx(0.4, abs=0.01)
    for chosen, lengths in (short, range(1, 5)), (~short, range(4, 33)):
        counts = np.bincount(first[chosen], minlength=40)
        share = np.array([129.0 - n for n in lengths])
        expect = counts.sum() * share / share.sum()
        got = counts[lengths.start : lengths.stop]
        assert got.sum() == counts.sum()
        chi = float(((got - expect) ** 2 / expect).sum())
        assert chi < len(share) - 1 + 5 * (2 * (len(share) - 1)) ** 0.5


def test_granularity_of_the_objective() -> None:
    """Runs of chosen words over 600 examples: with single tokens only, with 32 only, and the published mixture between them."""
    one = (Fragments(share=1, shortest=1, longest=1),)
    long = (Fragments(share=1, shortest=32, longest=32),)

    def runs(**fields: Any) -> tuple[float, float]:
        document, position = chosen_of(many(**fields)[1])
        starts = np.append(True, (np.diff(position) != 1) | (np.diff(document) != 0))
        return float(len(starts) / starts.sum()), float(np.diff(np.flatnonzero(starts), append=len(starts)).max())

    assert runs(fragments=long) == (32.0, 32.0)
    mean, _ = runs(fragments=one)
    assert mean == pytest.approx(1 / (1 - 31 / 127), rel=0.02), (
        "a uniform choice of 32 of 128: the next is chosen too with 31/127"
    )
    short, most = runs(fragments=(Fragments(share=1, shortest=1, longest=4),))
    both, most_both = runs()
    assert mean < short < both < 32 and most < 32 <= most_both


def test_noise_and_clean_labels() -> None:
    """5% of the target's words, uniform over ordinary ones, are read wrong; source and labels stay what they were."""
    batch, done, _ = many(documents=3200)
    before, s = batch.streams["text"], done.streams["text"]
    document, position = chosen_of(done)
    truth = before.content[before.bounds[document] + position]
    assert len(truth) > 100_000 and np.array_equal(done.targets["ernie_gen_word"].value, truth)
    assert np.array_equal(done.targets["ernie_gen_span"].value, truth)
    assert s.visibility.opens is not None and s.visibility.opens.max() > 2**29
    target = np.flatnonzero((s.visibility.opens > 0) & (s.visibility.opens < 2**29))
    wrong = s.content[target] != truth
    ordinary = len(NAMED.ordinary())
    assert float(wrong.mean()) == pytest.approx(0.05 * (ordinary - 1) / ordinary, abs=0.003)
    assert not np.isin(s.content[target], NAMED.special).any()
    counts = np.bincount(s.content[target[wrong]], minlength=61)[5:60]
    chi = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert chi < len(counts) - 1 + 5 * (2 * (len(counts) - 1)) ** 0.5
    source = np.flatnonzero(s.visibility.opens == 0)
    assert np.array_equal(s.content[source], before.content[before.bounds[s.document()[source]] + s.position[source]])


def test_random_spans_have_one_to_three_words_equally_often() -> None:
    _, done, _ = many(documents=1500, fragments=(Fragments(share=1, shortest=32, longest=32),))
    s, index = done.streams["text"], done.targets["ernie_gen_span"].index
    assert s.visibility.clock is not None
    clock = s.visibility.clock[index].reshape(1500, 32)
    sizes = [np.diff(np.flatnonzero(np.append(True, np.diff(row) != 0)))[:9] for row in clock]  # the end would cut them
    counts = np.bincount(np.concatenate(sizes), minlength=4)[1:]
    assert counts / counts.sum() == pytest.approx([1 / 3] * 3, abs=0.015)


# --- the lexicon, pairs, mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize("bigrams", [1, 3])
def test_a_lexicon_holds_what_stands_together(tmp_path: Path, bigrams: int) -> None:
    """Words 10 20 30 always follow each other and 40 41 often; all else is chance. Student's t, restated with dictionaries."""
    rng = np.random.default_rng(0)
    documents: list[list[list[int]]] = []
    for _ in range(60):
        words = [[58]]  # 59 58 would be the best of all if texts were joined
        for _ in range(30):
            kind = rng.random()
            words += [[10], [20, 21], [30]] if kind < 0.1 else [[40], [41]] if kind < 0.25 else [[int(rng.integers(42, 58))]]
        documents.append([*words, [59]])
    blocks = [documents[:25], documents[25:]]

    def as_part(block: list[list[list[int]]]) -> Any:
        made = part([[[len(w) for w in d]] for d in block])
        return replace(made, ids=np.array([i for d in block for w in d for i in w], np.int32))

    n = save_lexicon([as_part(b) for b in blocks], tmp_path / "spans.npy", most=(bigrams, 1))
    assert n == bigrams + 1

    runs = {k: Counter(tuple(map(tuple, d[i : i + k])) for d in documents for i in range(len(d) - k + 1)) for k in (1, 2, 3)}

    def t(gram: tuple[tuple[int, ...], ...]) -> float:
        total, singles = runs[len(gram)].total(), runs[1].total()
        p, chance = runs[len(gram)][gram] / total, math.prod(runs[1][(w,)] / singles for w in gram)
        return (p - chance) / (p * (1 - p) / total) ** 0.5

    best = {k: sorted(runs[k], key=t)[-m:] for k, m in ((2, bigrams), (3, 1))}
    every = save_lexicon([as_part(documents)], tmp_path / "all.npy", most=(10_000, 10_000))
    assert every == sum(t(gram) > 0 for k in (2, 3) for gram in runs[k]) < len(runs[2]) + len(runs[3])
    assert best[3] == [((10,), (20, 21), (30,))] and ((40,), (41,)) in best[2]

    objective = InfillingGeneration(
        lexicon=tmp_path / "spans.npy", rate=0.7, fragments=(Fragments(share=1, shortest=2, longest=9),)
    )
    ctx = ctx_of()
    objective.needs(ctx)
    batch = batch_of([[-1, *(n for n, w in enumerate(d) for _ in w), -1] for d in documents[:25]])
    s = batch.streams["text"]
    ids = [i for d in documents[:25] for i in [CLS, *(i for w in d for i in w), SEP]]
    batch = replace(batch, streams={"text": replace(s, content=np.array(ids, np.int32))})
    done, wide = objective.corrupt(batch, ctx), 0
    for d in range(25):
        text = ids[int(s.bounds[d]) : int(s.bounds[d + 1])]

        def known(words: list[list[int]], text: list[int] = text) -> bool:
            return tuple(tuple(text[i] for i in w) for w in words) in best.get(len(words), [])

        want = expected(batch, d, objective, ctx, known)
        wide += sum(e - b > 1 for b, e in want[1])
        check_document(batch, done, d, want)
    assert wide > 50


@pytest.mark.parametrize("layout", [BERT, GPT])
def test_the_second_text_is_written_given_the_first(layout: Any) -> None:
    first, second = [[[1, 2, 1]], [[2, 2, 3, 3, 2, 2]], [[1]]], [[[2, 1]], [[1, 1]], [[3, 3, 3, 3]]]
    a, b = part(first), part(second, 1)
    ctx = replace(ctx_of(14), layout=layout)
    objective = InfillingGeneration(target="pair", weight=1, noise=0.5)
    objective.needs(ctx)
    batch = objective.form(Tokens({"text": a, "pair": b}, keys(3)), ctx)
    done = objective.corrupt(batch, ctx)
    specials = len(layout.first) + len(layout.between) + 1
    for d in range(3):
        na, nb = sum(first[d][0]), sum(second[d][0])
        while na + nb > 14 - specials:
            na, nb = (na - 1, nb) if na > nb else (na, nb - 1)
        prefix = len(layout.first) + na + len(layout.between)
        target = list(range(prefix, prefix + nb + 1))
        want = expected(batch, d, objective, ctx, None, [target])
        assert want[2] == [*b.ids[b.bounds[d] : b.bounds[d] + nb].tolist(), SEP], "and then the end"
        check_document(batch, done, d, want)
    assert int(done.streams["text"].lengths.max()) <= objective.rows(ctx)["text"]
    assert "ernie_gen_span" not in done.targets


def test_examples_fit_their_rows() -> None:
    rng = np.random.default_rng(0)
    for length, weight in ((8, 0.5), (24, 0.5), (65, 1.0), (33, 0.0)):
        ctx, objective = ctx_of(length), InfillingGeneration(weight=weight)
        text = part([[rng.integers(1, 4, 60).tolist()] for _ in range(4)])
        done = objective.corrupt(objective.form(Tokens({"text": text}, keys(4)), ctx), ctx)
        assert int(done.streams["text"].lengths.max()) == objective.rows(ctx)["text"], "and none is longer than it must be"


def test_weights_of_the_flows() -> None:
    objective = InfillingGeneration(weight=0.3)
    assert objective.weight_of("ernie_gen_word") == 0.3 and objective.weight_of("ernie_gen_span") == pytest.approx(0.7)
    assert {objective.head_of(f"ernie_gen_{flow}") for flow in ("word", "span")} == {"lm"}


def test_sight_does_not_depend_on_the_systems_habit() -> None:
    batch = batch_of([[-1, *range(10), -1]])
    causal = replace(batch, streams={"text": replace(batch.streams["text"], visibility=CAUSAL)})
    one, two = (InfillingGeneration().corrupt(x, ctx_of()).streams["text"].visibility for x in (batch, causal))
    assert all(np.array_equal(getattr(one, f), getattr(two, f)) for f in SPELLED)
    assert one.closes is not None and (one.closes == FOREVER).all()


def test_mistakes_are_explained() -> None:
    with pytest.raises(UserError, match=r"\[ATTN\]"):
        InfillingGeneration().needs(context())
    with pytest.raises(UserError, match="ends a text"):
        InfillingGeneration(target="pair").needs(replace(ctx_of(), vocab=replace(NAMED, end=None), layout=replace(GPT, last=())))
    with pytest.raises(UserError, match="lexicon"):
        InfillingGeneration(lexicon="nowhere.npy").needs(ctx_of())
    with pytest.raises(UserError, match="pair"):
        InfillingGeneration(target="pair").form(Tokens({"text": part([[[1]]])}, keys(1)), ctx_of())


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0},
        {"noise": 1.5},
        {"weight": -0.1},
        {"fragments": []},
        {"fragments": [{"share": 0.5, "shortest": 1, "longest": 4}]},
        {"fragments": [{"share": 1, "shortest": 5, "longest": 4}]},
        {"phrase": 0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InfillingGeneration(**wrong)

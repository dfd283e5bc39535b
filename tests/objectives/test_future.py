"""Future n-gram prediction against ProphetNet's rules, restated slowly: one row of one predicting stream at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from blocks import BERT, GPT, MASK, SEP, VOCAB, batch_of, context, keys, random_documents, texts, tokens
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ziggurat.context import Context
from ziggurat.data.pack import pack
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.objectives.future import Future, FutureLM
from ziggurat.types import DEAD, Batch, Stream, join

fast = settings(max_examples=40, deadline=None)
SPANS = {
    "paper": Future(),
    "three": Future(ngram=3, ratio=0.3, block=8, weights=(1, 0.5, 0.25)),
    "one": Future(ngram=1, ratio=0.5),
}
TEXTS = {"two": FutureLM(), "four": FutureLM(ngram=4), "weighed": FutureLM(weights=(0.75, 0.25))}


class Row(NamedTuple):
    """One token that goes through the decoder."""

    content: int
    position: int
    step: int
    stream: int
    """-1 = the main stream, 0 .. n - 1 = the predicting streams."""


def rows_of(inputs: list[int], positions: list[int], n: int) -> list[Row]:
    """Main stream: the shifted inputs. Predicting stream s: for each step a vector of its own instead of a token, one position
    further; n-gram embedding `s - 1`, so that stream 0 takes the table's last row (both the release and the Hub's code)."""
    found = [Row(x, p, t, -1) for t, (x, p) in enumerate(zip(inputs, positions, strict=True))]
    table = list(range(n))
    for s in range(n):
        found += [Row(-1 - table[s - 1], p + 1, t, s) for t, p in enumerate(positions)]
    return found


def published(q: Row, k: Row) -> bool:
    """`ngram_attention_bias` of the release and the causal main stream: main to main causal; stream s at row i sees main columns
    up to i - s and column 0 always, of its own stream only itself, of other streams nothing; the main stream sees no other."""
    if q.stream == -1:
        return k.stream == -1 and k.step <= q.step
    if k.stream == -1:
        return k.step <= q.step - q.stream or k.step == 0
    return k.stream == q.stream and k.step == q.step


def draw(ctx: Context, key: np.uint64, number: int, purpose: str) -> float:
    return float(ctx.uniform(np.array([key]), np.zeros(1, np.int64), np.array([number]), purpose)[0])


def hidden(rule: Future, unit: list[int], ctx: Context, key: np.uint64) -> list[int]:
    """In each block of 64 tokens one run of 15% of it, cut to whole tokens, anywhere in the block (as MASS's documents)."""
    text = [i for i, u in enumerate(unit) if u >= 0]
    found: list[int] = []
    for number, lo in enumerate(range(0, len(text), rule.block)):
        block = text[lo : lo + rule.block]
        k = max(int(rule.ratio * len(block)), 1 if number == 0 else 0)
        start = int(draw(ctx, key, number, "future.start") * (len(block) - k + 1))
        found += block[start : start + k]
    return found


def documents(batch: Batch, stream: str) -> list[tuple[list[Row], list[tuple[int, int, float]]]]:
    """For each document its rows and its questions: (row, answer, weight). Step and stream are read off the lanes' order."""
    s, (target,) = batch.streams[stream], batch.targets.values()
    assert target.stream == stream and target.at == "token" and (np.diff(target.index) > 0).all() and s.row == 0
    found = []
    for lo, hi in pairwise(s.bounds.tolist()):
        mine = (target.index >= lo) & (target.index < hi)
        asked = zip((target.index[mine] - lo).tolist(), target.value[mine].tolist(), target.weight[mine].tolist(), strict=True)
        pieces = list(zip(s.content[lo:hi].tolist(), s.position[lo:hi].tolist(), strict=True))
        steps = sum(c >= 0 for c, _ in pieces)
        found.append(([Row(c, p, i % max(steps, 1), i // max(steps, 1) - 1) for i, (c, p) in enumerate(pieces)], list(asked)))
    return found


def weights_of(rule: Future | FutureLM) -> list[float]:
    return list(rule.weights) or [1.0] * rule.ngram


def questions(answers: list[int], rule: Future | FutureLM) -> list[tuple[int, int, float]]:
    """Every predicting stream answers the same word at the same row; the main stream answers nothing."""
    steps = len(answers)
    return [
        (steps * (1 + s) + t, answer, pytest.approx(weight))
        for s, weight in enumerate(weights_of(rule))
        for t, answer in enumerate(answers)
    ]


@st.composite
def examples(draw: st.DrawFn) -> Batch:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    units = []
    for _ in range(draw(st.integers(1, 4))):
        text = np.cumsum(rng.random(int(rng.integers(0, 1 + int(rng.choice([3, 20, 140]))))) < 0.6).tolist()
        units.append(rng.choice([0, 1]) * [-1] + text + rng.choice([0, 1]) * [-1])
    return batch_of(units, int(rng.integers(0, 1000)))


@fast
@given(examples(), st.sampled_from(list(SPANS)), st.integers(0, 3))
def test_spans_are_exactly_the_slow_ones(batch: Batch, name: str, epoch: int) -> None:
    rule, ctx = SPANS[name], context(seed=3, epoch=epoch, start=9)
    done = rule.corrupt(batch, ctx)
    source, encoder = batch.streams["text"], done.streams["encoder"]
    assert source.unit is not None and encoder.visibility.kind == "full" and encoder.row == 0
    ordinary = [i for i in range(VOCAB.size) if i not in VOCAB.special]
    assert np.array_equal(encoder.bounds, source.bounds) and np.array_equal(encoder.position, source.position)
    for (lo, hi), key, (rows, asked) in zip(pairwise(source.bounds), batch.keys, documents(done, "decoder"), strict=True):
        content, unit = source.content[lo:hi].tolist(), source.unit[lo:hi].tolist()
        places = hidden(rule, unit, ctx, key)
        inputs = [content[i - 1] if i else 9 for i in places]
        assert rows == rows_of(inputs, [max(i - 1, 0) for i in places], rule.ngram)
        assert asked == questions([content[i] for i in places], rule)
        shown = list(content)
        for i in places:
            chance = draw(ctx, key, i, "future.replace")
            if chance < 0.8:
                shown[i] = MASK
            elif chance < 0.9:
                shown[i] = ordinary[int(draw(ctx, key, i, "future.random") * len(ordinary))]
        assert encoder.content[lo:hi].tolist() == shown


@pytest.mark.parametrize("layout", [BERT, GPT], ids=["bert", "gpt"])
@pytest.mark.parametrize("name", TEXTS)
def test_running_text(name: str, layout: Any) -> None:
    """A causal LM: the inputs are the text without its last token, the answers the text without its first; documents end with
    the end token, as those of plain causal LM do."""
    rule = TEXTS[name]
    block = tokens(random_documents(np.random.default_rng(2), 7))
    ctx = context(20, layout, visibility="causal")
    formed = rule.form(block, ctx)
    ids = block.parts["text"].ids.tolist()
    seen = [x for text in texts(formed) for x in text if x not in (layout.first[:1] or (-1,)) and x != SEP]
    assert seen == ids and sum(text[-1] == SEP for text in texts(formed)) >= 3
    done = documents(rule.corrupt(formed, ctx), "text")
    for text, (rows, asked) in zip(texts(formed), done, strict=True):
        assert rows == rows_of(text[:-1], list(range(len(text) - 1)), rule.ngram)
        assert asked == questions(text[1:], rule)


def sight(stream: Stream) -> np.ndarray:
    """bool[T, T] from the rule's own words: a key lives from `opens` until `closes`, lanes see themselves, documents are apart."""
    v, owner = stream.visibility, stream.document()
    assert v.clock is not None and v.opens is not None and v.closes is not None and v.lane is not None
    alive = (v.opens[None] <= v.clock[:, None]) & (v.clock[:, None] < v.closes[None])
    return (owner[:, None] == owner[None]) & (alive | ((v.lane[:, None] == v.lane[None]) & (v.lane[None] != 0)))


@pytest.mark.parametrize("name", [*SPANS, *TEXTS])
def test_who_looks_at_whom(name: str) -> None:
    batch = batch_of([[-1, *range(30), -1], [0], [], [-1, *range(11), -1], [-1, 0]])
    objective = {**SPANS, **TEXTS}[name]
    done = objective.corrupt(batch, context())
    stream = "decoder" if name in SPANS else "text"
    seen, s = sight(done.streams[stream]), done.streams[stream]
    for (lo, hi), (rows, _) in zip(pairwise(s.bounds.tolist()), documents(done, stream), strict=True):
        want = [[published(q, k) for k in rows] for q in rows]
        assert seen[lo:hi, lo:hi].tolist() == want
        assert not seen[lo:hi, :lo].any() and not seen[lo:hi, hi:].any()
    for name_of in ("clock", "opens", "closes", "lane"):
        assert getattr(s.visibility, name_of).dtype == np.int32


def closure(seen: np.ndarray) -> np.ndarray:
    reach = seen | np.eye(len(seen), dtype=bool)
    for _ in range(10):
        reach = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    return reach


@pytest.mark.parametrize("name", SPANS)
def test_no_span_is_reachable(name: str) -> None:
    """Each answer is changed in the source: nothing that changes with it reaches a row that must give it, but the encoder's own
    slot where it was drawn to stay. The decoder sees all of the encoder."""
    rule, ctx = SPANS[name], context()
    source = batch_of([[-1, *range(30), -1], [-1, 0, -1], [-1, *range(70), -1]], 8)
    done = rule.corrupt(source, ctx)
    e, d, target = done.streams["encoder"], done.streams["decoder"], done.targets["future"]
    size = len(e.content)
    whole = np.zeros((size + len(d.content),) * 2, bool)
    whole[:size, :size] = e.document()[:, None] == e.document()[None]
    whole[size:, :size] = d.document()[:, None] == e.document()[None]
    whole[size:, size:] = sight(d)
    reach, kept = closure(whole), 0
    for row, value in zip(target.index.tolist(), target.value.tolist(), strict=True):
        place = int(e.bounds[d.document()[row]] + d.position[row])
        content = source.streams["text"].content.copy()
        assert content[place] == value, "a predicting row stands where its answer stands"
        content[place] = 5 + (value + 1) % 40
        again = rule.corrupt(replace(source, streams={"text": replace(source.streams["text"], content=content)}), ctx)
        telling = np.flatnonzero(
            np.concatenate([again.streams[s].content != done.streams[s].content for s in ("encoder", "decoder")])
        )
        if e.content[place] == value:
            kept += 1
            telling = telling[telling != place]
        assert not reach[size + row, telling].any(), (row, telling)
    assert kept < len(target.index) / 2


@pytest.mark.parametrize("name", TEXTS)
def test_no_next_word_is_reachable(name: str) -> None:
    """Stream s knows the text up to s + 1 words before its answer, and the first one."""
    rule, ctx = TEXTS[name], context()
    source = batch_of([[0, 1, 2, 3, 4, 5, 6], [0], [0, 1]], 8)
    done = rule.corrupt(source, ctx)
    s, target = done.streams["text"], done.targets["future_lm"]
    reach = closure(sight(s))
    for row in target.index.tolist():
        d = int(s.document()[row])
        lo, steps = int(s.bounds[d]), int(s.lengths[d]) // (1 + rule.ngram)
        stream, step = divmod(row - lo - steps, steps)
        known = {k for k in range(steps) if reach[row, lo + k]}
        assert known == {0, *range(max(step - stream, 0) + 1)}


@fast
@given(examples(), examples(), st.sampled_from([*SPANS, *TEXTS]))
def test_commutes_with_join_and_packing(a: Batch, b: Batch, name: str) -> None:
    assume(not np.intersect1d(a.keys, b.keys).size)  # documents are found again by their keys, which differ in a corpus
    objective, ctx, stream = {**SPANS, **TEXTS}[name], context(start=9), "decoder" if name in SPANS else "text"
    one, two, both = (objective.corrupt(x, ctx) for x in (a, b, join(a, b)))
    apart = documents(one, stream) + documents(two, stream)
    assert documents(both, stream) == apart
    assert np.array_equal(sight(both.streams[stream]), sight(join(one, two).streams[stream]))
    want = dict(zip(both.keys.tolist(), apart, strict=True))
    again = objective.corrupt(pack(join(a, b), 150, VOCAB.pad), ctx)
    for key, found in zip(again.keys.tolist(), documents(again, stream), strict=True):
        assert found == (want[key] if key != int(DEAD) else ([], []))


@fast
@given(examples(), st.sampled_from([*SPANS, *TEXTS]))
def test_results_can_be_packed(batch: Batch, name: str) -> None:
    """What was made fits its rows, and packing moves documents about without changing who sees whom."""
    objective, ctx, stream = {**SPANS, **TEXTS}[name], context(150), "decoder" if name in SPANS else "text"
    done = objective.corrupt(batch, ctx)
    rows = objective.rows(ctx)
    assert all(int(done.streams[s].lengths.max(initial=0)) <= row for s, row in rows.items()) and stream in rows
    laid = pack(done, rows, VOCAB.pad).streams[stream]
    assert laid.row <= rows[stream] and int(sight(done.streams[stream]).sum()) <= int(sight(laid).sum())


def test_rows_are_the_longest() -> None:
    for length in (4, 20, 130, 514):
        spans = SPANS["paper"].corrupt(batch_of([[-1, *range(length - 2), -1]]), context(length))
        assert SPANS["paper"].rows(context(length)) == {"encoder": length, "decoder": len(spans.streams["decoder"].content)}
        plain = TEXTS["four"].corrupt(batch_of([[*range(length)]]), context(length))
        assert TEXTS["four"].rows(context(length)) == {"text": len(plain.streams["text"].content)} == {"text": 5 * (length - 1)}
    assert SPANS["paper"].rows(context(514))["decoder"] == 3 * 8 * 9, "512 tokens: 8 blocks of 64, 9 tokens of each"


def test_runs_stand_anywhere_in_their_blocks() -> None:
    """One run of 9 in each block of 64, each start as likely: over 4e4 blocks within 4 deviations."""
    documents, n = 20_000, 128
    unit = np.tile(np.arange(n, dtype=np.int32), documents)
    batch = Batch({"text": Stream(unit, np.arange(documents + 1) * n, unit, unit, unit=unit)}, {}, keys(documents))
    done = Future(ngram=1).corrupt(batch, context(n))
    answers = done.targets["future"].value.reshape(documents * 2, 9)
    assert (np.diff(answers, axis=1) == 1).all() and (answers[0::2] < 64).all() and (answers[1::2] >= 64).all()
    counts = np.bincount(answers[:, 0] % 64, minlength=56)
    assert len(counts) == 56
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 55 + 4 * (2 * 55) ** 0.5


def test_the_n_gram_table() -> None:
    assert [x.extra for x in (Future(), Future(ngram=3), FutureLM(ngram=4))] == [2, 3, 4]
    done = Future(ngram=3, ratio=0.5).corrupt(batch_of([[-1, *range(4), -1]]), context())
    assert done.streams["decoder"].content[2:].tolist() == [-3, -3, -1, -1, -2, -2], "stream 0 takes the last row"


def test_weights_needs_and_heads() -> None:
    assert Future().structures == ("encoder_decoder",) and FutureLM().structures == ("single",)
    for objective, target in ((Future(), "future"), (FutureLM(), "future_lm")):
        assert objective.heads(spec.Single()) == {"lm": spec.VocabHead()} and objective.head_of(target) == "lm"
        assert set(objective.corrupt(batch_of([[0, 1, 2]]), context()).targets) == {target}
        objective.needs(context())
    bare = replace(context(), vocab=replace(VOCAB, mask=None))
    with pytest.raises(UserError, match="mask token"):
        Future().needs(bare)
    FutureLM().needs(bare)
    done = SPANS["three"].corrupt(batch_of([[-1, *range(16), -1]]), context())
    assert SPANS["three"].counts(done) == {"future": pytest.approx(4 * 1.75)}


@pytest.mark.parametrize("kind", [Future, FutureLM])
@pytest.mark.parametrize("wrong", [{"ngram": 0}, {"weights": (1.0,)}, {"weights": (0, 0)}, {"weights": (-1, 1)}, {"ngrams": 2}])
def test_impossible_settings_are_refused(kind: type, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind(**wrong)

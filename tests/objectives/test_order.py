"""StructBERT's two objectives against its rules, restated slowly: one document, one trigram, one pair of segments at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise, permutations
from typing import NamedTuple

import numpy as np
import pytest
from blocks import CLS, SEP, batch_of, context, keys, random_documents, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ziggurat.context import Context
from ziggurat.data.pack import pack, take
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.order import SentenceStructure, WordOrder
from ziggurat.types import DEAD, Batch, Tokens, join

fast = settings(max_examples=60, deadline=None)


def draw(ctx: Context, key: np.uint64, number: int, purpose: str) -> float:
    return float(ctx.uniform(np.array([key]), np.zeros(1, np.int64), np.array([number]), purpose)[0])


# --- word order ----------------------------------------------------------------------------------------------------------


def shuffled(
    free: list[bool], ids: list[int], rate: float, size: int, ctx: Context, key: np.uint64
) -> tuple[list[int], list[int]]:
    """One document: the ids that the model sees, and the places it is asked about. Runs of `size` free tokens are visited in
    random order and taken unless they touch one that was taken; `rate` of the free tokens stand in them, on average."""
    exact = rate * sum(free) / size
    count = int(exact) + (draw(ctx, key, 0, "word_order.count") < exact - int(exact))
    anchors = [i for i in range(len(free) - size + 1) if all(free[i : i + size])]
    anchors.sort(key=lambda i: draw(ctx, key, i, "word_order.choose"))
    chosen: list[list[int]] = []
    for i in anchors:
        if len(chosen) == count:
            break
        run = list(range(i, i + size))
        if not any(set(run) & set(other) for other in chosen):
            chosen.append(run)
    seen = list(ids)
    for run in chosen:
        order = sorted(run, key=lambda i: draw(ctx, key, i, "word_order.shuffle"))
        for place, source in zip(run, order, strict=True):
            seen[place] = ids[source]
    return seen, sorted(i for run in chosen for i in run)


def per_document(batch: Batch, target: str) -> list[tuple[list[int], list[int], list[int]]]:
    """(what is seen, places asked, answers) of each document."""
    s, t = batch.streams["text"], batch.targets[target]
    found = []
    for a, b in pairwise(s.bounds):
        mine = (t.index >= a) & (t.index < b)
        found.append((s.content[a:b].tolist(), (t.index[mine] - a).tolist(), t.value[mine].tolist()))
    return found


@st.composite
def examples(draw: st.DrawFn) -> Batch:
    """Words of 1 to 4 tokens with special tokens in front, behind and in between; some documents empty, some all special."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    units = []
    for _ in range(draw(st.integers(1, 5))):
        unit: list[int] = []
        for number in range(rng.integers(0, 40)):
            unit += [-1] if rng.random() < 0.1 else [number] * int(rng.integers(1, 5))
        units.append(unit if rng.random() < 0.9 else [-1] * len(unit))
    return batch_of(units, int(rng.integers(0, 1000)))


@fast
@given(examples(), st.sampled_from([0.05, 0.3, 0.9]), st.integers(2, 5), st.integers(0, 3), st.booleans())
def test_shuffles_are_exactly_those_of_the_slow_rule(batch: Batch, rate: float, size: int, epoch: int, masked: bool) -> None:
    ctx = context(seed=3, epoch=epoch)
    before = Masked(unit="word").corrupt(batch, ctx) if masked else batch
    done = WordOrder(rate=rate, size=size).corrupt(before, ctx)
    s = before.streams["text"]
    assert s.unit is not None
    free = s.unit >= 0
    if masked:
        free[before.targets["mlm"].index] = False
        assert done.targets["mlm"] is before.targets["mlm"]
    for d, (a, b) in enumerate(pairwise(s.bounds)):
        ids = s.content[a:b].tolist()
        seen, asked = shuffled(free[a:b].tolist(), ids, rate, size, ctx, batch.keys[d])
        assert per_document(done, "word_order")[d] == (seen, asked, [ids[i] for i in asked])


@fast
@given(examples(), st.booleans())
def test_word_order_and_masked_lm_never_meet(batch: Batch, first: bool) -> None:
    """In either order: no token is asked about twice, every answer is the source's, and what stands nowhere asked is untouched."""
    ctx, parts = context(seed=4), (Masked(unit="word", rate=0.3), WordOrder(rate=0.4))
    done = batch
    for part in parts if first else parts[::-1]:
        done = part.corrupt(done, ctx)
    source, seen = batch.streams["text"].content, done.streams["text"].content
    asked = np.concatenate([t.index for t in done.targets.values()])
    assert len(np.unique(asked)) == len(asked)
    for target in done.targets.values():
        assert np.array_equal(target.value, source[target.index]) and (np.diff(target.index) > 0).all()
        assert (batch.streams["text"].unit[target.index] >= 0).all()
    assert set(np.flatnonzero(seen != source)) <= set(asked)
    runs = done.targets["word_order"].index.reshape(-1, 3)
    assert np.array_equal(runs, runs[:, :1] + np.arange(3))
    assert np.array_equal(np.sort(seen[runs]), np.sort(source[runs]))


def test_a_word_that_was_touched_is_no_longer_hidden_by_others() -> None:
    batch = batch_of([[-1, 0, 0, 1, 1, 2, 2, -1]])
    done = WordOrder(rate=0.9).corrupt(batch, context(seed=1))
    asked = done.targets["word_order"].index
    unit = done.streams["text"].unit
    assert unit is not None and len(asked) in (3, 6)
    touched = {[-1, 0, 0, 1, 1, 2, 2, -1][i] for i in asked}
    assert unit.tolist() == [-1 if u in touched else u for u in [-1, 0, 0, 1, 1, 2, 2, -1]]


def test_rates_and_permutations_are_as_published() -> None:
    """5% of the unmasked tokens, in trigrams, in all six orders alike: within 4 deviations over 1e5 tokens of trigrams."""
    documents, words = 18_000, 126
    unit = np.tile(np.array([-1, *range(words), -1], np.int32), documents)
    batch = batch_of([[0]])
    n = words + 2
    stream = replace(
        batch.streams["text"],
        content=np.tile(np.arange(n, dtype=np.int32), documents),
        bounds=np.arange(documents + 1) * n,
        position=unit,
        segment=np.zeros_like(unit),
        unit=unit,
    )
    masked = Masked().corrupt(Batch({"text": stream}, {}, keys(documents)), context(seed=1))
    done = WordOrder().corrupt(masked, context(seed=1))
    target = done.targets["word_order"]
    free = documents * words - len(masked.targets["mlm"].index)
    trigrams = len(target.index) / 3
    assert len(target.index) > 95_000
    deviation = 0.5 * documents**0.5  # of one coin a document
    assert trigrams == pytest.approx(0.05 * free / 3, abs=4 * deviation)
    runs = done.streams["text"].content[target.index].reshape(-1, 3) - target.value.reshape(-1, 3)[:, :1]
    counts = Counter(map(tuple, runs.tolist()))
    assert set(counts) == set(permutations(range(3)))
    for count in counts.values():
        assert count == pytest.approx(trigrams / 6, abs=4 * (trigrams * 5 / 36) ** 0.5)


def test_each_document_by_itself_in_any_order_and_in_rows() -> None:
    batch, ctx = batch_of([[-1, *range(n), -1] for n in (30, 5, 60, 0, 17)]), context(seed=6)
    objective = WordOrder(rate=0.4)
    want = per_document(objective.corrupt(batch, ctx), "word_order")
    order = np.array([3, 1, 4, 0, 2])
    assert per_document(objective.corrupt(take(batch, order), ctx), "word_order") == [want[i] for i in order]
    one, two = take(batch, np.array([0, 1])), take(batch, np.array([2, 3, 4]))
    assert per_document(join(objective.corrupt(one, ctx), objective.corrupt(two, ctx)), "word_order") == want
    packed = pack(batch, 70, 0)
    rows = objective.corrupt(packed, ctx)
    again = pack(objective.corrupt(batch, ctx), 70, 0)
    assert rows.streams["text"].row == 70
    assert per_document(rows, "word_order") == per_document(again, "word_order")
    assert any(key == DEAD and not asked for key, (_, asked, _) in zip(rows.keys, per_document(rows, "word_order"), strict=True))


def test_an_answer_is_seen_in_its_own_trigram_and_nowhere_else() -> None:
    batch, ctx = batch_of([[-1, *range(40), -1]] * 3), context(seed=2)
    objective = WordOrder(rate=0.3)
    done = objective.corrupt(batch, ctx)
    target, source = done.targets["word_order"], batch.streams["text"]
    for n, row in enumerate(target.index.tolist()):
        content = source.content.copy()
        content[row] = 59 if content[row] != 59 else 58
        other = objective.corrupt(replace(batch, streams={"text": replace(source, content=content)}), ctx)
        told = np.flatnonzero(other.streams["text"].content != done.streams["text"].content)
        run = target.index[3 * (n // 3) : 3 * (n // 3) + 3]
        assert len(told) == 1 and told[0] in run


def test_fresh_shuffles_every_epoch() -> None:
    batch, objective = batch_of([[-1, *range(90), -1]] * 3), WordOrder(rate=0.3)
    at = [
        str(per_document(objective.corrupt(batch, context(epoch=e, seed=s)), "word_order")) for e, s in ((0, 0), (1, 0), (0, 1))
    ]
    assert len(set(at)) == 3
    assert at[0] == str(per_document(objective.corrupt(batch, context()), "word_order"))


def test_nothing_to_shuffle() -> None:
    for units in ([], [[]], [[-1, -1]], [[-1, 0, 1, -1]], [[0, -1, 1, -1, 2]]):
        done = WordOrder(rate=0.9).corrupt(batch_of(units), context())
        assert len(done.targets["word_order"].index) == 0


def test_heads_and_settings() -> None:
    assert WordOrder().heads(spec.Single()) == {"lm": spec.VocabHead()} and WordOrder().head_of("word_order") == "lm"
    for wrong in ({"rate": 0}, {"rate": 1.0}, {"size": 1}):
        with pytest.raises(ValidationError):
            WordOrder.model_validate(wrong)


# --- sentence structure ----------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    a: list[int]
    b: list[int]
    label: int


class Random:
    """`random.Random` over the document's own keyed draws, which both sides share."""

    def __init__(self, ctx: Context, key: np.uint64):
        self.ctx, self.key, self.n = ctx, key, -1

    def random(self) -> float:
        self.n += 1
        return draw(self.ctx, self.key, self.n, "sentence_structure.form")

    def randrange(self, n: int) -> int:
        return int(self.random() * n)


def sentences_of(block: Tokens) -> list[list[list[int]]]:
    """Documents as lists of sentences of token numbers in the block."""
    part, found = block.parts["text"], []
    for lo, hi in pairwise(part.bounds.tolist()):
        begins = [i for i in range(lo, hi) if i == lo or part.sentences[i]]
        found.append([list(range(a, b)) for a, b in pairwise([*begins, hi])])
    return found


def flat(chunk: list[list[int]]) -> list[int]:
    return [i for sentence in chunk for i in sentence]


def structured(documents: list[list[list[int]]], d: int, room: int, short: float, rng: Random) -> list[Pair]:
    """Gather sentences as BERT does, cut at a random one; then with equal chance S2 is what follows S1, what stands before it, or
    text of another document (and always that when the chunk is one sentence); what was meant for S2 is then used again."""
    document, found = documents[d], []
    others = [x for x in range(len(documents)) if x != d and documents[x]]
    i = 0
    while i < len(document):
        wanted = room
        if rng.random() < short:
            wanted = 2 + rng.randrange(room - 1)
        chunk: list[list[int]] = []
        while i + len(chunk) < len(document) and (not chunk or len(flat(chunk)) < wanted):
            chunk.append(document[i + len(chunk)])
        cut, label = len(chunk), 2
        if len(chunk) > 1:
            cut = 1 + rng.randrange(len(chunk) - 1)
            label = rng.randrange(3)
        before, after = flat(chunk[:cut]), flat(chunk[cut:])
        if label == 0:
            found.append(Pair(before, after, 0))
        elif label == 1:
            found.append(Pair(after, before, 1))
        else:
            other = documents[others[rng.randrange(len(others))]]
            elsewhere: list[int] = []
            for sentence in other[rng.randrange(len(other)) :]:
                elsewhere += sentence
                if len(elsewhere) >= wanted - len(before):
                    break
            found.append(Pair(before, elsewhere, 2))
        i += cut if label == 2 else len(chunk)
    return [truncated(pair, room, rng) for pair in found]


def truncated(pair: Pair, room: int, rng: Random) -> Pair:
    a, b = list(pair.a), list(pair.b)
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        longer.pop(0 if rng.random() < 0.5 else -1)
    return Pair(a, b, pair.label)


def formed(block: Tokens, ctx: Context, short: float) -> list[Pair]:
    """The objective's pairs, as numbers of tokens in the block."""
    part = block.parts["text"]
    numbered = replace(part, ids=np.arange(len(part.ids), dtype=np.int32) + 10)
    batch = SentenceStructure(short=short).form(Tokens({"text": numbered}, block.keys), ctx)
    s, target, found = batch.streams["text"], batch.targets["sentence_structure"], []
    assert target.at == "document" and target.index.tolist() == list(range(len(batch)))
    for label, (lo, hi) in zip(target.value.tolist(), pairwise(s.bounds), strict=True):
        ids, side = s.content[lo:hi], s.segment[lo:hi]
        a, b = ids[side == 0].tolist(), ids[side == 1].tolist()
        assert a[0] == CLS and a[-1] == SEP == b[-1]
        found.append(Pair([i - 10 for i in a[1:-1]], [i - 10 for i in b[:-1]], label))
    return found


@fast
@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(5, 60), st.sampled_from([0.0, 0.1, 1.0]))
def test_pairs_are_exactly_those_of_the_slow_rule(seed: int, n: int, length: int, short: float) -> None:
    rng = np.random.default_rng(seed)
    documents = random_documents(rng, n)
    documents.insert(int(rng.integers(0, n + 1)), [])
    block, ctx = tokens(documents, seed % 100), context(length, seed=3, epoch=seed % 5)
    plain, want = sentences_of(block), []
    for d, key in enumerate(block.keys):
        want += structured(plain, d, length - 3, short, Random(ctx, key))
    assert formed(block, ctx, short) == want


def test_classes_are_thirds_and_mean_what_they_say() -> None:
    """Of all chunks that can have any class each has a third, within 4 deviations."""
    documents = random_documents(np.random.default_rng(0), 5000, sentences=12)
    block = tokens(documents, 1)
    plain = sentences_of(block)
    owner = np.repeat(np.arange(len(plain)), [len(flat(d)) for d in plain])
    last = {sentence[0] for document in plain for sentence in document[-1:]}
    labels = []
    for a, b, label in formed(block, context(400, seed=1), short=0.0):
        if label == 0:
            assert b[0] == a[-1] + 1 and owner[a[0]] == owner[b[0]]
        elif label == 1:
            assert a[0] == b[-1] + 1 and owner[a[0]] == owner[b[0]]
        else:
            assert owner[a[0]] != owner[b[0]]
        first = b[0] if label == 1 else a[0]
        if first not in last:  # a chunk of a document's last sentence alone has no choice
            labels.append(label)
    counts, n = np.bincount(labels), len(labels)
    assert n > 5000
    assert counts / n == pytest.approx([1 / 3] * 3, abs=4 * (2 / 9 / n) ** 0.5)


def test_it_needs_two_documents_and_three_classes() -> None:
    with pytest.raises(UserError, match="sentence structure needs at least two documents"):
        SentenceStructure().form(tokens([[[1, 2], [2]], []]), context())
    heads = SentenceStructure().heads(spec.Single())
    assert heads["sentence_structure"] == spec.ClassHead(outputs=3, by="pooler") and "pooler" in heads

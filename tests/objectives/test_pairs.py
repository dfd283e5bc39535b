"""Next sentence and sentence order against BERT's and ALBERT's data rules, restated with lists of sentences."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from blocks import BERT, CLS, SEP, context, random_documents, texts, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.context import Context
from ziggurat.errors import UserError
from ziggurat.objectives.pairs import NextSentence, SentenceOrder
from ziggurat.types import Batch, Tokens

fast = settings(max_examples=40, deadline=None)


class Pair(NamedTuple):
    a: list[int]
    b: list[int]
    label: int


class Random:
    """`random.Random` over the document's own keyed draws, which both sides share."""

    def __init__(self, ctx: Context, key: np.uint64, purpose: str):
        self.ctx, self.key, self.purpose, self.n = ctx, np.array([key]), purpose, -1

    def random(self) -> float:
        self.n += 1
        return float(self.ctx.uniform(self.key, np.zeros(1, np.int64), np.array([self.n]), self.purpose)[0])

    def randint(self, low: int, high: int) -> int:
        """Both ends included."""
        return low + int(self.random() * (high - low + 1))


def sentences_of(block: Tokens) -> list[list[list[int]]]:
    """Documents as lists of sentences. Ids are replaced by token numbers in the block, so that each is seen once."""
    part, found = block.parts["text"], []
    for lo, hi in pairwise(part.bounds.tolist()):
        document: list[list[int]] = []
        for i in range(lo, hi):
            if i == lo or part.sentences[i]:
                document.append([])
            document[-1].append(i)
        found.append(document)
    return found


def flat(chunk: list[list[int]]) -> list[int]:
    return [i for sentence in chunk for i in sentence]


def truncate(pair: Pair, room: int, rng: Random) -> Pair:
    """create_pretraining_data's truncate_seq_pair."""
    a, b = list(pair.a), list(pair.b)
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()
    return Pair(a, b, pair.label)


def instances(documents: list[list[list[int]]], d: int, kind: str, room: int, short: float, rng: Random) -> list[Pair]:
    """create_instances_from_document (BERT), and its sentence-order variant (ALBERT)."""
    document, found = documents[d], []
    others = [x for x in range(len(documents)) if x != d and documents[x]]

    def target() -> int:
        return rng.randint(2, room) if rng.random() < short else room

    chunk: list[list[int]] = []
    wanted, i = target(), 0
    while i < len(document):
        chunk.append(document[i])
        if i == len(document) - 1 or sum(map(len, chunk)) >= wanted:
            if kind == "nsp":
                a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                a = flat(chunk[:a_end])
                if len(chunk) == 1 or rng.random() < 0.5:
                    other = documents[others[rng.randint(0, len(others) - 1)]]
                    b: list[int] = []
                    for sentence in other[rng.randint(0, len(other) - 1) :]:
                        b += sentence
                        if len(b) >= wanted - len(a):
                            break
                    found.append(Pair(a, b, 1))
                    i -= len(chunk) - a_end
                else:
                    found.append(Pair(a, flat(chunk[a_end:]), 0))
            elif len(chunk) == 1:
                found.append(Pair(chunk[0], [], -1))
            else:
                a_end = rng.randint(1, len(chunk) - 1)
                a, b = flat(chunk[:a_end]), flat(chunk[a_end:])
                found.append(Pair(b, a, 1) if rng.random() < 0.5 else Pair(a, b, 0))
            chunk = []
            if i < len(document) - 1:
                wanted = target()
        i += 1
    return [truncate(pair, room, rng) for pair in found]


def read(batch: Batch, kind: str) -> list[Pair]:
    """The examples, read off [CLS] A [SEP] B [SEP] by their segments."""
    s, target = batch.streams["text"], batch.targets[kind]
    label = dict(zip(target.index.tolist(), target.value.tolist(), strict=True))
    assert target.at == "document"
    found = []
    for d, (lo, hi) in enumerate(pairwise(s.bounds)):
        ids, segment = s.content[lo:hi].tolist(), s.segment[lo:hi].tolist()
        a, b = ([x for x, n in zip(ids, segment, strict=True) if n == side] for side in (0, 1))
        assert a[0] == CLS and a[-1] == SEP and b[-1] == SEP and segment == sorted(segment)
        found.append(Pair(a[1:-1], b[:-1], label.get(d, -1)))
    return found


def numbered(block: Tokens) -> Tokens:
    """The block with ids that say which token each is, above all special ids."""
    part = block.parts["text"]
    ids = np.arange(len(part.ids), dtype=np.int32) + 10
    return Tokens({"text": type(part)(ids, part.bounds, part.words, part.sentences, part.marks, part.mark_bounds)}, block.keys)


def formed(kind: str, block: Tokens, ctx: Context, short: float = 0.1) -> list[Pair]:
    objective = {"nsp": NextSentence, "sop": SentenceOrder}[kind](short=short)
    pairs = read(objective.form(numbered(block), ctx), kind)
    return [Pair([i - 10 for i in a], [i - 10 for i in b], label) for a, b, label in pairs]


@fast
@given(
    st.integers(0, 2**32),
    st.integers(2, 6),
    st.integers(5, 60),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from(["nsp", "sop"]),
)
def test_examples_are_exactly_those_of_the_slow_rule(seed: int, n: int, length: int, short: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    documents = random_documents(rng, n)
    documents.insert(int(rng.integers(0, n + 1)), [])  # a document of no text asks nothing and answers nothing
    block, ctx = tokens(documents, seed % 100), context(length, seed=3, epoch=seed % 5)
    plain, want = sentences_of(block), []
    for d, key in enumerate(block.keys):
        want += instances(plain, d, kind, length - 3, short, Random(ctx, key, f"{kind}.form"))
    assert formed(kind, block, ctx, short) == want


@pytest.fixture(scope="module")
def block() -> Tokens:
    return tokens(random_documents(np.random.default_rng(0), 700, sentences=12), 1)


LONG = 400
"""Nothing is cut at this length, but for documents a target of 40 makes several examples."""


def owners(block: Tokens) -> np.ndarray:
    return np.repeat(np.arange(len(block)), np.diff(block.parts["text"].bounds))


def test_next_sentence_is_the_following_text_or_another_document(block: Tokens) -> None:
    owner, plain = owners(block), sentences_of(block)
    starts = {s[0] for document in plain for s in document}
    ends = {s[-1] for document in plain for s in document}
    pairs = formed("nsp", block, context(LONG, seed=1), short=1.0)
    assert len(pairs) > 1000
    for a, b, label in pairs:
        for run in a, b:
            assert run == list(range(run[0], run[-1] + 1)) and run[0] in starts and run[-1] in ends
            assert len({owner[i] for i in run}) == 1
        if label == 0:
            assert b[0] == a[-1] + 1 and owner[a[0]] == owner[b[0]]
        else:
            assert label == 1 and owner[a[0]] != owner[b[0]]


def test_half_of_the_chunks_that_can_have_a_true_answer_do(block: Tokens) -> None:
    """A document's last single sentence can only be a negative, as in BERT; of all others half are, within 4 deviations."""
    last = {s[-1][0] for s in sentences_of(block)}
    pairs = formed("nsp", block, context(LONG, seed=1), short=0.0)
    free = [label for a, _, label in pairs if a[0] not in last]
    assert len(free) > 600
    assert np.mean(free) == pytest.approx(0.5, abs=4 * 0.5 / len(free) ** 0.5)
    assert all(label == 1 for a, _, label in pairs if a[0] in last)


def test_sentences_set_aside_for_a_negative_are_used_again(block: Tokens) -> None:
    """A's and true B's, one after the other, are each document from its first token to its last."""
    pairs = formed("nsp", block, context(LONG, seed=1), short=1.0)
    used = [i for a, b, label in pairs for i in a + (b if label == 0 else [])]
    assert used == list(range(len(owners(block))))


def test_sentence_order_swaps_neighbours_and_loses_nothing(block: Tokens) -> None:
    pairs = formed("sop", block, context(LONG, seed=1), short=1.0)
    used: list[int] = []
    owner = owners(block)
    for a, b, label in pairs:
        one, two = (b, a) if label == 1 else (a, b)
        assert len({owner[i] for i in a + b}) == 1
        assert (label == -1) == (not two)
        used += one + two
    assert used == list(range(len(owner)))
    labels = [label for *_, label in pairs if label >= 0]
    assert np.mean(labels) == pytest.approx(0.5, abs=4 * 0.5 / len(labels) ** 0.5)


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_long_pairs_lose_tokens_of_the_longer_side_only(kind: str) -> None:
    block, length = tokens([[[30], [2]], [[25], [3]]]), 14
    for a, b, _ in formed(kind, block, context(length), short=0.0):
        assert len(a) + len(b) <= length - 3
        if b:
            short = min((a, b), key=len)
            assert len(short) <= 3 or abs(len(a) - len(b)) <= 1
    same = tokens([[[20], [20]], [[20], [20]]])
    sizes = {(len(a), len(b)) for e in range(9) for a, b, _ in formed(kind, same, context(length, epoch=e), short=0.0) if b}
    assert sizes <= {(6, 5), (5, 6)}
    cut = [a[0] % 20 for e in range(9) for a, b, _ in formed("nsp", same, context(length, epoch=e), short=0.0)]
    assert len(set(cut)) > 2, "tokens go from both ends"


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_examples_fit_and_keys_differ(kind: str, block: Tokens) -> None:
    objective = {"nsp": NextSentence, "sop": SentenceOrder}[kind]()
    batch = objective.form(block, context(32))
    assert max(map(len, texts(batch))) <= 32
    assert len(set(batch.keys.tolist())) == len(batch)
    again, other = objective.form(block, context(32)), objective.form(block, context(32, epoch=1))
    assert texts(again) == texts(batch) != texts(other)


def test_a_corpus_of_one_document_has_no_negatives() -> None:
    for documents in [[[1, 2], [2]]], [[[1, 2], [2]], []]:
        with pytest.raises(UserError, match="at least two documents"):
            NextSentence().form(tokens(documents), context())
    assert len(SentenceOrder().form(tokens([[[1, 2], [2]]]), context()))


def test_documents_of_one_sentence() -> None:
    block = tokens([[[3, 1]], [[2]], [[1, 1, 1]]])
    assert [label for *_, label in formed("nsp", block, context())] == [1, 1, 1]
    pairs = formed("sop", block, context())
    assert [label for *_, label in pairs] == [-1, -1, -1] and all(not b for _, b, _ in pairs)
    with pytest.raises(UserError, match="no two sentences"):
        SentenceOrder().form(tokens([[[3, 1]]] * 20), context())


def test_no_room_for_two_sentences() -> None:
    with pytest.raises(UserError, match="leaves no room"):
        NextSentence().form(tokens([[[1], [1]], [[1]]]), context(4, BERT))

"""Cutting documents into examples, against oracles in plain Python and the tokenizers library."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whitespace import Whitespace

from ziggurat.context import Context, Layout
from ziggurat.data.cut import longest_first, marks_in, pairs, single, windows
from ziggurat.errors import UserError
from ziggurat.types import Batch, Part, Tokens

tokenizer = Whitespace()
fast = settings(max_examples=80, deadline=None)


def block(lengths: list[int], seed: int = 0, **others: list[int]) -> Tokens:
    """Documents of these many tokens; keyword arguments are further parts."""
    rng = np.random.default_rng(seed)
    parts = {}
    for name, sizes in {"text": lengths, **others}.items():
        bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        n = int(bounds[-1])
        ids = rng.integers(4, 1000, n).astype(np.int32)
        words = rng.random(n) < 0.6
        words[bounds[:-1][np.array(sizes) > 0]] = True
        parts[name] = Part(ids, bounds, words, words, np.zeros((0, 3), np.int64), np.zeros(len(sizes) + 1, np.int64))
    return Tokens(parts, rng.integers(0, 2**63, len(lengths)).astype(np.uint64))


def text_of(tokens: Tokens, d: int, part: str = "text") -> tuple[list[int], list[bool]]:
    p = tokens.parts[part]
    return p.ids[p.bounds[d] : p.bounds[d + 1]].tolist(), p.words[p.bounds[d] : p.bounds[d + 1]].tolist()


def examples(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    s = batch.streams["text"]
    assert s.unit is not None
    cuts = list(zip(s.bounds[:-1], s.bounds[1:], strict=True))
    assert all(s.position[a:b].tolist() == list(range(b - a)) for a, b in cuts)
    return [(s.content[a:b].tolist(), s.unit[a:b].tolist(), s.segment[a:b].tolist()) for a, b in cuts]


def units(words: list[bool], first: int = 0) -> list[int]:
    """Words counted one by one; the first token always begins one."""
    out, at = [], first - 1
    for i, begins in enumerate(words):
        at += begins or i == 0
        out.append(at)
    return out


@fast
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(3, 20), st.booleans())
def test_windows_hold_every_token_once(lengths: list[int], length: int, end: bool) -> None:
    tokens, ctx = block(lengths), tokenizer.context(length)
    expected = []
    room = length - 2
    for d in range(len(lengths)):
        ids, words = text_of(tokens, d)
        for i in range(0, len(ids), room):
            closing = [77] if end and len(ids) - i < room else []
            content = [2, *ids[i : i + room], *closing, 3]
            unit = [-1, *units(words[i : i + room]), *[-1] * len(closing), -1]
            expected.append((content, unit, [0] * len(content)))
    assert examples(windows(tokens, ctx, end=77 if end else None)) == expected


def test_windows_of_a_document_have_keys_of_their_own_that_do_not_depend_on_neighbours() -> None:
    tokens, ctx = block([30, 5]), tokenizer.context(12)
    both = windows(tokens, ctx)
    p = tokens.parts["text"]
    alone = Tokens(
        {"text": Part(p.ids[30:], np.array([0, 5]), p.words[30:], p.sentences[30:], p.marks, p.mark_bounds[1:])}, tokens.keys[1:]
    )
    assert len(set(both.keys.tolist())) == len(both) == 4
    assert windows(alone, ctx).keys[0] == both.keys[3]


def test_windows_cut_every_part() -> None:
    tokens = block([5, 12], pair=[3, 0])
    found = examples(windows(tokens, tokenizer.context(12)))
    assert sorted(len(content) - 2 for content, _, _ in found) == [2, 3, 5, 10]
    assert len(set(windows(tokens, tokenizer.context(12)).keys.tolist())) == 4


def test_visibility_is_the_systems_habit() -> None:
    assert windows(block([4]), tokenizer.context(12, visibility="causal")).streams["text"].visibility.kind == "causal"


@fast
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(3, 20))
def test_single_cuts_at_the_end_and_keeps_one_example_a_document(lengths: list[int], length: int) -> None:
    tokens = block(lengths)
    batch = single(tokens, tokenizer.context(length))
    expected = []
    for d in range(len(lengths)):
        ids, words = (x[: length - 2] for x in text_of(tokens, d))
        expected.append(([2, *ids, 3], [-1, *units(words), -1], [0] * (len(ids) + 2)))
    assert examples(batch) == expected
    assert batch.keys.tolist() == tokens.keys.tolist()


@fast
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6), st.integers(5, 24))
def test_pairs_are_laid_out_like_the_template(sizes: list[tuple[int, int]], length: int) -> None:
    tokens = block([a for a, _ in sizes], pair=[b for _, b in sizes])
    batch = pairs(tokens, tokenizer.context(length))
    keep_a, keep_b = longest_first(*np.array(sizes).T, length - 3)
    for d, (content, unit, segment) in enumerate(examples(batch)):
        a, a_words = (x[: keep_a[d]] for x in text_of(tokens, d))
        b, b_words = (x[: keep_b[d]] for x in text_of(tokens, d, "pair"))
        own = units(a_words)
        assert content == [2, *a, 3, *b, 3]
        assert unit == [-1, *own, -1, *units(b_words, max(own, default=-1) + 1), -1]
        assert segment == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert batch.keys.tolist() == tokens.keys.tolist()


@pytest.fixture(scope="module")
def reference() -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "u": 2}, unk_token="u"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def test_longest_first_is_the_librarys_rule(reference: object) -> None:
    for room in (1, 2, 5, 6, 9):
        reference.enable_truncation(room, strategy="longest_first")  # type: ignore[attr-defined]
        grid = [(a, b) for a in range(12) for b in range(12)]
        found = reference.encode_batch([("a " * a, "b " * b) for a, b in grid])  # type: ignore[attr-defined]
        theirs = [(e.ids.count(0), e.ids.count(1)) for e in found]
        ours = longest_first(*np.array(grid).T, room)
        assert list(zip(*(x.tolist() for x in ours), strict=True)) == theirs


def test_marks_follow_their_tokens_and_the_cut() -> None:
    tokens = block([4, 9])
    p = tokens.parts["text"]
    marks = np.array([[0, 1, 7], [1, 3, 8], [0, 2, 9], [5, 6, 7], [5, 7, 1], [8, 9, 8]])
    tokens = Tokens({"text": Part(p.ids, p.bounds, p.words, p.sentences, marks, np.array([0, 2, 6]))}, tokens.keys)
    batch = single(tokens, tokenizer.context(8))  # room for 6 tokens: the last two marks are cut
    found = marks_in(tokens, batch, tokenizer.context(8))
    assert found.document.tolist() == [0, 0, 1, 1] and found.label.tolist() == [7, 8, 9, 7]
    content = batch.streams["text"].content
    assert [content[a:b].tolist() for a, b in zip(found.start, found.end, strict=True)] == [
        p.ids[0:1].tolist(),
        p.ids[1:3].tolist(),
        p.ids[4:6].tolist(),
        p.ids[9:10].tolist(),
    ]


def test_no_room_is_an_error_that_names_the_length() -> None:
    with pytest.raises(UserError, match="length 2 leaves no room"):
        windows(block([4]), tokenizer.context(2))
    with pytest.raises(UserError, match="at least 5"):
        pairs(block([4], pair=[4]), tokenizer.context(4))
    with pytest.raises(UserError, match="no column 'pair'"):
        pairs(block([4]), tokenizer.context(16))


def test_a_layout_without_special_tokens() -> None:
    ctx = Context(tokenizer.vocab, Layout(), 4)
    assert [content for content, _, _ in examples(windows(block([6, 0, 4]), ctx))] == [
        text_of(block([6, 0, 4]), 0)[0][:4],
        text_of(block([6, 0, 4]), 0)[0][4:],
        text_of(block([6, 0, 4]), 2)[0],
    ]

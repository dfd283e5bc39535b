"""Phrases and entities as units of masking: found by a dictionary or marked in the data, through shards to what is hidden."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from blocks import VOCAB, context, keys
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.config import load
from ziggurat.data.cut import windows
from ziggurat.data.files import Row
from ziggurat.data.reading import Reading
from ziggurat.data.rows import Columns, documents
from ziggurat.data.writing import write_shards
from ziggurat.errors import UserError
from ziggurat.objectives.masked import Masked
from ziggurat.pipeline.prepare import prepare
from ziggurat.text.phrases import Dictionary, marked, together
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train.recipe import Recipe
from ziggurat.types import Document, Mark, Part, Tokens

fast = settings(max_examples=100, deadline=None)


# --- finding -----------------------------------------------------------------------------------------------------------------


def slow(text: str, phrases: list[str], starts: list[int]) -> list[tuple[int, int]]:
    """Left to right, at the beginning of each word the longest phrase that ends where a word ends. `starts` also has the end."""
    found, at = [], 0
    while at < len(text):
        longest = max((len(p) for p in phrases if at in starts and text.startswith(p, at) and at + len(p) in starts), default=0)
        if longest:
            found.append((at, at + longest))
        at += longest or 1
    return found


@fast
@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=6), st.text("abc", max_size=30))
def test_the_longest_phrase_from_left_to_right_in_han(phrases: list[str], text: str) -> None:
    """Every Han character is a word."""
    han = str.maketrans("abc", "中国人")
    phrases, text = [p.translate(han) for p in phrases], text.translate(han)
    found = [(m.start, m.end) for m in Dictionary.of(phrases)(text)]
    assert found == slow(text, phrases, list(range(len(text) + 1)))


@fast
@given(st.lists(st.text("ab ", min_size=1, max_size=6), max_size=6), st.text("ab ", max_size=30))
def test_phrases_are_whole_words_in_english(raw: list[str], text: str) -> None:
    phrases = [p.strip() for p in raw if p.strip()]
    edges = [i for i in range(len(text) + 1) if i in (0, len(text)) or (text[i - 1] == " ") != (text[i] == " ")]
    found = [(m.start, m.end) for m in Dictionary.of(phrases)(text)]
    assert found == slow(text, phrases, edges)


def test_labels_and_files(tmp_path: Path) -> None:
    path = tmp_path / "phrases.tsv"
    path.write_text("New York\tplace\nmachine learning\n\n机器学习\tterm\n", "utf-8")
    finder = Dictionary.read(path)
    assert list(finder("New York likes machine learning, 我学机器学习")) == [
        Mark(0, 8, "place"),
        Mark(15, 31, "phrase"),
        Mark(35, 39, "term"),
    ]
    assert list(finder("New Yorker")) == [] and list(finder("")) == []
    assert finder.digest == Dictionary.read(path).digest != Dictionary.of(["New York"]).digest
    for text, why in (("a\tb\tc\n", "phrases.tsv:1"), ("\n\tb\n", "phrases.tsv:2"), ("\n", "no phrase")):
        path.write_text(text, "utf-8")
        with pytest.raises(UserError, match=why):
            Dictionary.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        Dictionary.read(tmp_path / "none")


def test_marks_of_the_data_come_first() -> None:
    document = Document({"text": "New York City", "pair": "New York"}, marks=(Mark(4, 13, "entity"),))
    (done,) = marked([document], Dictionary.of(["New York", "New"]))
    assert done.marks == (Mark(4, 13, "entity"), Mark(0, 8, "phrase", "pair"))
    assert next(marked([replace(document, marks=())], Dictionary.of(["New York"]))).marks[0] == Mark(0, 8, "phrase")
    (same,) = marked([document], lambda text: ())
    assert same is document


# --- hiding together ---------------------------------------------------------------------------------------------------------


def part_with(words: list[list[int]], marks: list[list[tuple[int, int, str]]]) -> Part:
    """Documents as lists of word lengths, with marks in tokens."""
    sizes = [sum(d) for d in words]
    flags = np.array([i == 0 for d in words for n in d for i in range(n)], bool)
    bounds = np.cumsum([0, *sizes])
    labels = tuple(dict.fromkeys(label for d in marks for *_, label in d))
    flat = np.array([(a, b, labels.index(label)) for d in marks for a, b, label in d], np.int64).reshape(-1, 3)
    counts = np.cumsum([0, *map(len, marks)])
    ids = np.random.default_rng(0).integers(5, VOCAB.size, sum(sizes)).astype(np.int32)
    return Part(ids, bounds, flags, flags.copy(), flat, counts, labels)


def words_of(part: Part) -> list[list[int]]:
    """The number of tokens of each unit of each document."""
    found = []
    for a, b in pairwise(part.bounds.tolist()):
        starts = [i for i in range(a, b) if part.words[i]]
        found.append([y - x for x, y in pairwise([*starts, b])] if starts else [])
    return found


def test_a_marked_run_is_one_unit() -> None:
    part = part_with(
        [[1, 2, 1], [1, 1, 1, 1], []], [[(0, 3, "entity")], [(0, 1, "phrase"), (1, 3, "entity"), (3, 4, "entity")], []]
    )
    assert words_of(together(part)) == [[3, 1], [1, 2, 1], []]
    assert words_of(together(part, ("phrase",))) == [[1, 2, 1], [1, 1, 1, 1], []]
    assert words_of(together(part, ("entity",))) == [[3, 1], [1, 2, 1], []]
    assert together(part).ids is part.ids and words_of(part) == [[1, 2, 1], [1, 1, 1, 1], []]


def test_tags_of_single_words() -> None:
    """B, I, I is one entity; an I that continues nothing begins one, and O marks nothing."""
    tags = [(0, 1, "B-PER"), (1, 3, "I-PER"), (3, 4, "O"), (4, 5, "I-LOC"), (5, 6, "I-LOC"), (6, 7, "I-PER"), (7, 8, "B-PER")]
    part = part_with([[1, 2, 1, 1, 1, 1, 1], [1, 1]], [tags, [(0, 1, "I-PER"), (1, 2, "I-PER")]])
    assert words_of(together(part)) == [[3, 1, 2, 1, 1], [2]]
    assert words_of(together(part, ("PER",))) == [[3, 1, 1, 1, 1, 1], [2]]


def test_a_mark_that_cuts_a_word_hides_it_whole() -> None:
    part = part_with([[2, 2, 2]], [[(1, 3, "phrase")]])
    assert words_of(together(part)) == [[4, 2]]


@fast
@given(st.integers(0, 2**32))
def test_a_unit_is_a_word_or_what_marks_join(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [rng.integers(1, 4, rng.integers(0, 12)).tolist() for _ in range(4)]
    marks = []
    for document in words:
        edges = np.cumsum([0, *document]).tolist()
        pairs = [sorted(rng.choice(edges, 2, replace=False).tolist()) for _ in range(rng.integers(0, 4)) if len(edges) > 1]
        marks.append([(a, b, str(rng.choice(["x", "y"]))) for a, b in pairs])
    part = part_with(words, marks)
    for names in ((), ("x",)):
        want = []
        for document, its in zip(words, marks, strict=True):
            joined = {i for a, b, label in its if not names or label in names for i in range(a + 1, b)}
            starts = [i for i in np.cumsum([0, *document])[:-1].tolist() if i not in joined]
            want.append([b - a for a, b in pairwise([*starts, sum(document)])] if document else [])
        assert words_of(together(part, names)) == want


def test_whole_phrases_are_hidden(tmp_path: Path) -> None:
    """From a dictionary through shards to masks: no phrase is ever hidden in part, and each is hidden sometimes."""
    text = "we met in new york city and talked about deep learning with friends from san marino"
    phrases = ["new york city", "deep learning", "san marino"]
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(text.split())])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(made)
    documents = marked([Document({"text": f"{text} {text}"}) for _ in range(3)], Dictionary.of(phrases))
    block = write_shards(tmp_path / "shards", documents, tokenizer).read(np.arange(3))
    block = Tokens({"text": together(block.parts["text"])}, keys(3), block.fields)
    hidden: dict[str, int] = dict.fromkeys(phrases, 0)
    for epoch in range(20):
        ctx = context(64, epoch=epoch)
        done = Masked(unit="word", rate=0.3).corrupt(windows(block, ctx), ctx)
        s, index = done.streams["text"], set(done.targets["mlm"].index.tolist())
        assert s.unit is not None and index
        for a, b in pairwise(s.bounds.tolist()):
            words = (text.split() * 2)[: b - a - 2]
            for phrase in phrases:
                n = len(phrase.split())
                for i in range(len(words) - n + 1):
                    if words[i : i + n] == phrase.split():
                        its = {a + 1 + i + j for j in range(n)}
                        assert its <= index or not its & index
                        hidden[phrase] += its <= index
    assert all(hidden.values())


# --- from a recipe -----------------------------------------------------------------------------------------------------------


def find_caps(text: str) -> list[Mark]:
    """A finder of somebody else's: runs of upper-case letters."""
    return [Mark(m.start(), m.end(), "CAPS") for m in re.finditer("[A-Z]+ [A-Z]+", text)]


def test_phrases_of_a_recipe_are_hidden_together(tmp_path: Path) -> None:
    """Dictionary, spans of the data, and an outside function: prepare finds them, `mlm` with `unit: phrase` takes each as one."""
    (tmp_path / "phrases.txt").write_text("new york\n", "utf-8")
    text = "we fly to new york with NATO FORCES and come home"
    rows = [{"text": text + " " * n + "x" * n, "spans": [[0, 6, "WE"]]} for n in range(1, 6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = {}
    for name, source in {
        "dictionary": {"path": str(tmp_path / "a.jsonl"), "phrases": str(tmp_path / "phrases.txt"), "valid": 0},
        "function": {"path": str(tmp_path / "a.jsonl"), "phrases": "test_phrases:find_caps", "valid": 0},
        "data": {"path": str(tmp_path / "a.jsonl"), "columns": {"spans": "spans"}, "valid": 0},
    }.items():
        recipe = {
            "name": name,
            "system": "bert/tiny",
            "tokenizer": {"kind": "wordpiece", "vocab": 200, "min_frequency": 1},
            "sources": {"text": source},
            "stages": [{"stage": "pretrain", "data": "text", "steps": 1, "objective": {"kind": "mlm", "unit": "phrase"}}],
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe), "utf-8")
        shards = prepare(load(tmp_path / f"{name}.yaml", model=Recipe).resolved(), tmp_path / name).shards["text", "train"]
        part = Masked(unit="phrase").grouped(shards.read(np.arange(1))).parts["text"]
        plain = shards.read(np.arange(1)).parts["text"]
        found[name] = int(plain.words.sum() - part.words.sum())
    assert found == {"dictionary": 1, "function": 1, "data": 1}


def test_a_recipe_without_phrases_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", "utf-8")
    recipe = {
        "name": "r",
        "system": "bert/tiny",
        "tokenizer": {"vocab": 200},
        "sources": {"text": {"path": str(tmp_path / "a.txt")}},
        "stages": [{"stage": "pretrain", "data": "text", "steps": 1, "objective": {"kind": "mlm", "unit": "phrase"}}],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), "utf-8")
    with pytest.raises(UserError, match="hides phrases, and source 'text' has none"):
        load(tmp_path / "r.yaml", model=Recipe).resolved()


@pytest.mark.parametrize(
    "spans", ["x", [[0]], [[2, 1]], [[0, 99]], [[0, 4], [2, 6]], [[0.0, 3]], [[True, 3]]], ids=lambda s: json.dumps(s)
)
def test_spans_that_are_none_are_bad_rows(spans: object) -> None:
    reading = Reading(allowed=5)
    row = Row("here:1", {"text": "some words", "spans": spans})
    assert list(documents([row], Columns(spans="spans"), reading)) == [] and reading.skipped == 1

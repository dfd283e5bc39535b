"""Labelled objectives: the right answer at the right place, and errors that name the row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blocks import BERT, CLS, GPT, SEP, context, part, texts, tokens
from pydantic import ValidationError

from ziggurat.context import Layout
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.objectives.labelled import Classify, Regress, Tag
from ziggurat.systems import SYSTEMS
from ziggurat.types import Tokens

IDS = ["rows.csv:2", "rows.csv:3", "rows.csv:4"]
THREE: list[list[list[int]]] = [[[2, 1]], [[3, 1, 1, 1, 1]], [[1]]]


def labelled(labels: Sequence[Any], documents: Sequence[Sequence[Sequence[int]]] = THREE) -> Tokens:
    return tokens(documents, id=IDS[: len(documents)], label=labels)


def tagged(marks: Sequence[Sequence[tuple[int, int, int]]], labels: tuple[str, ...] = ("O", "B")) -> Tokens:
    """THREE with marks (start, end, label) in tokens of each document."""
    block = labelled([0, 0, 0])
    text = replace(
        block.parts["text"],
        marks=np.array([m for document in marks for m in document], np.int64).reshape(-1, 3),
        mark_bounds=np.cumsum([0, *map(len, marks)]).astype(np.int64),
        labels=labels,
    )
    return replace(block, parts={"text": text}, fields={"id": IDS})


def test_classes_stand_in_the_order_of_the_labels() -> None:
    batch = Classify(labels=("neg", "pos")).form(labelled(["pos", "neg", "pos"]), context())
    target = batch.targets["classify"]
    assert target.at == "document" and target.index.tolist() == [0, 1, 2]
    assert target.value.tolist() == [1, 0, 1] and target.value.dtype == np.int64
    assert target.weight.tolist() == [1, 1, 1]
    assert Classify(labels=("pos", "neg")).form(labelled(["pos", "neg", "pos"]), context()).targets[
        "classify"
    ].value.tolist() == [0, 1, 0]


def test_numbers_and_their_spelling_are_one_label() -> None:
    for labels, rows in ((0, 1), ["1", 0, "0"]), (("0", "1"), [1, "0", 0]):
        batch = Classify(labels=labels).form(labelled(rows), context())
        assert batch.targets["classify"].value.tolist() == [1, 0, 0]


@pytest.mark.parametrize("layout", [BERT, GPT], ids=["bert", "gpt"])
def test_texts_are_cut_at_the_end(layout: Layout) -> None:
    block = labelled(["a", "b", "a"])
    batch = Classify(labels=("a", "b")).form(block, context(6, layout))
    text = block.parts["text"]
    for d, got in enumerate(texts(batch)):
        ids = text.ids[text.bounds[d] : text.bounds[d + 1]].tolist()
        assert got == [*layout.first, *ids[: layout.room(6)], *layout.last]
    assert batch.keys.tolist() == block.keys.tolist()


def test_pairs_are_cut_longest_first() -> None:
    block = labelled(["a", "b", "a"])
    block = replace(block, parts={**block.parts, "pair": part([[[1]], [[2, 2]], [[1] * 9]], 5)})
    batch = Classify(labels=("a", "b")).form(block, context(8))
    a, b = block.parts["text"], block.parts["pair"]
    for d, (got, (n, m)) in enumerate(zip(texts(batch), [(3, 1), (3, 2), (1, 4)], strict=True)):
        one, two = (x.ids[x.bounds[d] : x.bounds[d + 1]].tolist() for x in (a, b))
        assert got == [CLS, *one[:n], SEP, *two[:m], SEP]
    assert batch.streams["text"].segment.tolist() == [0] * 5 + [1] * 2 + [0] * 5 + [1] * 3 + [0] * 3 + [1] * 5


def test_an_unknown_label_names_its_row_and_the_nearest_label() -> None:
    with pytest.raises(UserError) as error:
        Classify(labels=("negative", "positive")).form(labelled(["positive", "postive", "bad"]), context())
    message = str(error.value)
    assert "'postive'" in message and "rows.csv:3" in message and "did you mean 'positive'?" in message
    assert "2 such row(s)" in message and "['negative', 'positive']" in message
    with pytest.raises(UserError, match=r"rows\.csv:4") as error:
        Classify(labels=("negative", "positive")).form(labelled(["positive", "positive", "7"]), context())
    assert "did you mean" not in str(error.value)


def test_a_missing_column_says_how_to_declare_it() -> None:
    for objective in Classify(labels=("a", "b")), Regress():
        with pytest.raises(UserError, match=r"no column 'label'.*\n.*columns: \{label"):
            objective.form(tokens(THREE), context())


def test_numbers() -> None:
    target = Regress().form(labelled([1, "2.5", -3.0]), context()).targets["regress"]
    assert target.value.tolist() == [1.0, 2.5, -3.0] and target.value.dtype == np.float32 and target.at == "document"


@pytest.mark.parametrize("wrong", ["many", None, "nan", float("inf"), 1e39])
def test_what_is_no_number_names_its_row(wrong: object) -> None:
    with pytest.raises(UserError, match="number") as error:
        Regress().form(labelled([1, wrong, 2]), context())
    assert "rows.csv:3" in str(error.value)


MARKS = [[(0, 2, 1), (2, 3, 0)], [(0, 3, 0), (3, 4, 1), (4, 5, 0), (5, 6, 1)], [(0, 1, 1)]]


@pytest.mark.parametrize("layout", [BERT, GPT], ids=["bert", "gpt"])
def test_tags_stand_on_the_first_piece_of_each_word(layout: Layout) -> None:
    block = tagged(MARKS)
    batch = Tag(labels=("B", "O")).form(block, context(24, layout))
    target, s, text = batch.targets["tag"], batch.streams["text"], block.parts["text"]
    want = [
        (int(s.bounds[d]) + len(layout.first) + start, 1 - label) for d, marks in enumerate(MARKS) for start, _, label in marks
    ]
    assert list(zip(target.index.tolist(), target.value.tolist(), strict=True)) == want
    assert target.at == "token" and target.value.dtype == np.int64
    assert s.content[target.index].tolist() == [
        int(text.ids[text.bounds[d] + m[0]]) for d, marks in enumerate(MARKS) for m in marks
    ]
    assert s.unit is not None and (s.unit[target.index] != s.unit[target.index - 1])[1:].all()


def test_words_behind_the_cut_have_no_tag() -> None:
    """Room for 4 tokens: the second text keeps the words at 0-3 and 3-4; in room for 2 its first word is torn and not asked."""
    target = Tag(labels=("O", "B")).form(tagged(MARKS), context(6)).targets["tag"]
    assert target.value.tolist() == [1, 0, 0, 1, 1]
    assert Tag(labels=("O", "B")).form(tagged(MARKS), context(4)).targets["tag"].value.tolist() == [1, 1]


def test_texts_without_marks_ask_nothing() -> None:
    target = Tag(labels=("O", "B")).form(tagged([[], [], []], ()), context()).targets["tag"]
    assert len(target.index) == len(target.value) == 0 and target.value.dtype == np.int64
    assert Tag(labels=("O", "B")).form(tagged([[], [(0, 3, 0)], []]), context()).targets["tag"].value.tolist() == [0]


def test_an_unknown_tag_names_its_row_and_the_nearest_label() -> None:
    marks = [[(0, 2, 1)], [(0, 3, 1), (3, 4, 0)], []]
    with pytest.raises(UserError) as error:
        Tag(labels=("O", "B-CODE")).form(tagged(marks, ("B-COD", "O")), context())
    assert "'B-COD' (rows.csv:3)" in str(error.value) and "did you mean 'B-CODE'?" in str(error.value)


def test_label_lists_are_checked() -> None:
    for labels in (("a",), ("a", "b", "a"), (1, "1")):
        with pytest.raises(ValidationError):
            Classify(labels=labels)
    with pytest.raises(ValidationError, match="names"):
        Classify(labels=("a", "b"), names=("only one",))


@pytest.mark.parametrize("system", SYSTEMS)
def test_heads_are_those_of_the_system(system: str) -> None:
    model = SYSTEMS[system].sized("tiny")
    by = model.pool.by
    for objective, name, outputs in (Classify(labels=("a", "b", "c")), "classify", 3), (Regress(), "regress", 1):
        heads = dict(objective.heads(model))
        assert ("pooler" in heads) == (by == "pooler")
        assert heads[name] == spec.ClassHead(outputs=outputs, by=by, bias=by != "plain")
    assert Tag(labels=("a", "b", "c")).heads(model) == {"tag": spec.TokenHead(outputs=3)}


TWINS: dict[str, Any] = {"streams": ("encoder", "decoder"), "words": "decoder", "start": 9}


@pytest.mark.parametrize("paired", [False, True])
def test_both_stacks_read_the_same_text_and_the_decoder_answers(paired: bool) -> None:
    block = labelled(["a", "b", "a"])
    if paired:
        block = replace(block, parts={**block.parts, "pair": part([[[1]], [[2, 2]], [[1] * 9]], 5)})
    objective, alone, ctx = Classify(labels=("a", "b")), context(8), replace(context(8), **TWINS)
    one, two = objective.form(block, alone), objective.form(block, ctx)
    text, encoder, decoder = one.streams["text"], two.streams["encoder"], two.streams["decoder"]
    assert set(two.streams) == set(objective.rows(ctx)) == {"encoder", "decoder"} and objective.rows(ctx)["decoder"] == 8
    assert (encoder.visibility.kind, decoder.visibility.kind) == ("full", "causal")
    for d in range(3):
        lo, hi = text.bounds[d : d + 2].tolist()
        assert encoder.content[lo:hi].tolist() == text.content[lo:hi].tolist()
        assert decoder.content[lo:hi].tolist() == [9, *text.content[lo : hi - 1].tolist()]
        assert decoder.position[lo:hi].tolist() == encoder.position[lo:hi].tolist() == list(range(hi - lo))
    asked = two.targets["classify"]
    assert (asked.stream, asked.at, asked.value.tolist()) == ("decoder", "document", [0, 1, 0])
    assert Regress().form(labelled([1, 2, 3]), ctx).targets["regress"].stream == "decoder"


def test_tags_are_read_where_the_model_reads_words() -> None:
    one = Tag(labels=("B", "O")).form(tagged(MARKS), context(24))
    for words, streams in ("decoder", {"encoder", "decoder"}), ("encoder", {"encoder"}):
        ctx = replace(context(24), **{**TWINS, "words": words})
        two = Tag(labels=("B", "O")).form(tagged(MARKS), ctx)
        assert set(two.streams) == set(Tag(labels=("B", "O")).rows(ctx)) == streams
        assert two.targets["tag"].stream == words
        assert two.targets["tag"].index.tolist() == one.targets["tag"].index.tolist()
        assert two.targets["tag"].value.tolist() == one.targets["tag"].value.tolist()


def test_names_for_reports() -> None:
    assert Classify(labels=(0, 1)).label_names() == ("0", "1")
    assert Classify(labels=(0, 1), names=("bad", "good")).label_names() == ("bad", "good")

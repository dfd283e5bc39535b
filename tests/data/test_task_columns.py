"""Columns of choices, answers and groups: declared, read as they stand, and what is wrong with a row said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ziggurat.data.files import Row
from ziggurat.data.reading import Reading
from ziggurat.data.rows import Columns
from ziggurat.data.rows import documents as documents_of
from ziggurat.data.sources import Files, documents
from ziggurat.errors import UserError
from ziggurat.types import Document


def read(path: Path, rows: list[dict[str, Any]], **columns: Any) -> tuple[list[Document], Reading]:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    reading = Reading()
    source = Files(path=str(path), columns=Columns(**columns), valid=0, bad_rows=len(rows))
    return list(documents(source, "train", reading)), reading


def test_choices_from_a_list_or_from_columns(tmp_path: Path) -> None:
    found, _ = read(tmp_path / "a.jsonl", [{"q": "sky?", "c": ["blue", "red"], "l": 0}], text="q", choices="c", label="l")
    assert (
        found[0].texts == {"text": "sky?"} and found[0].lists == {"choices": ("blue", "red")} and found[0].fields == {"label": 0}
    )
    found, _ = read(
        tmp_path / "b.jsonl", [{"q": "sky?", "x": "blue", "y": "red", "l": "1"}], text="q", choices=("x", "y"), label="l"
    )
    assert found[0].lists == {"choices": ("blue", "red")} and found[0].fields == {"label": "1"}


def test_a_choice_goes_on_after_the_question(tmp_path: Path) -> None:
    rows = [{"t": "a", "q": q, "c": ["是的", "no"], "l": 0} for q in ("what?", "他是谁？", "so ")]
    found, _ = read(tmp_path / "a.jsonl", rows, text="t", pair="q", choices="c", label="l")
    assert [d.lists["choices"] for d in found] == [(" 是的", " no"), ("是的", " no"), ("是的", "no")]


def test_choices_have_names_in_some_data(tmp_path: Path) -> None:
    """ARC: the key is a letter in some rows and a number in others."""
    rows = [
        {"q": "one", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "key": "C"},
        {"q": "two", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "key": "1"},
        {"q": "three", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "key": "A"},
        {"q": "four", "choices": {"text": ["x", "y"], "label": ["1"]}, "key": "1"},
    ]
    found, reading = read(tmp_path / "a.jsonl", rows, text="q", choices="choices.text", choice_names="choices.label", label="key")
    assert [d.fields["label"] for d in found] == [2, 0] and reading.skipped == 2
    assert "none of 'choices.label'" in reading.examples[0] and "does not name each choice" in reading.examples[1]


def test_choices_may_be_named_by_themselves(tmp_path: Path) -> None:
    """ReCoRD and C3: the label is the text of the right choice, or a list of them."""
    rows = [{"q": "who?", "c": ["Anna ", "Bert", "Cole"], "l": label} for label in ("Anna ", ["Cole", "Bert"])]
    found, _ = read(tmp_path / "a.jsonl", rows, text="q", choices="c", choice_names="c", label="l")
    assert [d.fields["label"] for d in found] == [0, [2, 1]]


def test_bad_choices_name_the_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"q": "one", "c": c, "l": 0} for c in (["x", "y"], ["x"], "x, y", ["x", ""], ["x", 3])]
    found, reading = read(tmp_path / "a.jsonl", rows, text="q", choices="c", label="l")
    assert len(found) == 1 and "leaves no choice" in reading.examples[0] and "is not a list of choices" in reading.examples[1]
    with pytest.raises(UserError, match=r"there is no column 'd\.text'"):
        read(tmp_path / "b.jsonl", rows * 5, text="q", choices="d.text", label="l")


def test_answers_as_squad_has_them(tmp_path: Path) -> None:
    context, place = "李白生于碎叶城，字太白。", 4
    rows: list[dict[str, Any]] = [
        {"q": "哪里？", "c": context, "a": [{"text": "碎叶城", "answer_start": place}, {"text": "碎叶", "answer_start": place}]},
        {"q": "哪里？", "c": context, "a": {"text": ["碎叶城", "碎叶"], "answer_start": [place, place]}},
        {"q": "谁？", "c": context, "a": []},
        {"q": "谁？", "c": context, "a": {"text": [], "answer_start": []}},
        {"q": "谁？", "c": context, "a": [{"text": "诗人", "answer_start": -1}, {"text": "李白", "answer_start": 0}]},
        {"q": "谁？", "c": context, "a": [{"text": "太白", "answer_start": 3}, {"text": "诗人", "answer_start": -1}]},
        {"q": "谁？", "c": context, "a": ["太白"]},
        {"q": "谁？", "c": context, "a": [{"text": "太白"}]},
    ]
    found, reading = read(tmp_path / "a.jsonl", rows, text="q", pair="c", answers="a")
    assert [d.fields["answers"] for d in found] == [["碎叶城", "碎叶"]] * 2 + [[], [], ["诗人", "李白"]]
    assert [[context[m.start : m.end] for m in d.marks] for d in found] == [["碎叶城"], ["碎叶城"], [], [], ["李白"]]
    assert all(m.part == "pair" for d in found for m in d.marks)
    assert reading.skipped == 3 and "no answer stands at its place" in reading.examples[0]


def test_columns_that_do_not_go_together() -> None:
    for columns, message in (
        ({"answers": "a"}, "`answers` needs `pair`"),
        ({"choice_names": "n", "label": "l"}, "needs `choices`"),
        ({"choices": ("one",)}, "two columns and more"),
        ({"tokens": "t", "choices": "c"}, "a tagged row has no"),
    ):
        with pytest.raises(ValidationError, match=message):
            Columns(**columns)


def test_groups_and_lists_of_labels(tmp_path: Path) -> None:
    rows = [{"t": "x", "l": [0, 1], "g": 7}, {"t": "y", "l": 1, "g": "8"}]
    found, reading = read(tmp_path / "a.jsonl", rows, text="t", label="l", group="g")
    assert [d.fields for d in found] == [{"label": 1, "group": "8"}] and "only `choices` may have several" in reading.examples[0]


def test_the_turns_of_a_dialogue_are_lines(tmp_path: Path) -> None:
    found, reading = read(
        tmp_path / "a.jsonl", [{"text": ["男：好。", "女：不好。"]}, {"text": "one"}, {"text": []}, {"text": ["a", 3]}]
    )
    assert [d.texts["text"] for d in found] == ["男：好。\n女：不好。", "one"] and reading.skipped == 2


def test_a_text_of_several_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"w": "bank", "a": "the bank", "b": ["one", "two"], "at": {"p": 3, "q": 0}, "l": 1},
        {"w": "", "a": "a {brace}", "b": "b", "at": {"p": 3, "q": 1}, "l": 0},
        {"w": None, "a": "a", "b": "b", "at": {"p": 3, "q": 1}, "l": 0},
    ]
    found, reading = read(tmp_path / "a.jsonl", rows, text="{w}: {a}", pair="{{{b}}}", group="{at.p}-{at.q}", label="l")
    assert [d.texts for d in found] == [
        {"text": "bank: the bank", "pair": "{one\ntwo}"},
        {"text": ": a {brace}", "pair": "{b}"},
    ]
    assert [d.fields["group"] for d in found] == ["3-0", "3-1"] and "'w' is null" in reading.examples[0]
    assert Columns(text="{w}: {a}", group="{at.p}-{w}").used() == ["w", "a", "at.p"]
    with pytest.raises(UserError, match=r"there is no column 'word'.*\n.*the file has: w, a, b, at, l"):
        read(tmp_path / "b.jsonl", rows * 4, text="{word}: {a}", label="l")
    for wrong, said in (("{w", "is no template"), ("{w!r}", "and nothing else"), ("{}", "and nothing else")):
        with pytest.raises(ValidationError, match=said):
            Columns(text=wrong)


def test_some_of_the_rows(tmp_path: Path) -> None:
    """By values that a file of text writes in letters; a row without the column is a bad one, and none left is an error."""
    rows: list[dict[str, Any]] = [
        {"text": "a", "lang": "en", "sure": False, "n": 1},
        {"text": "b", "lang": "de", "sure": False, "n": 1},
        {"text": "c", "lang": "en", "sure": "FALSE", "n": "1"},
        {"text": "d", "lang": "en", "sure": True, "n": 1},
        {"text": "e", "lang": "en", "sure": 0, "n": 2},
    ]

    def texts(**where: Any) -> str:
        found, reading = read(tmp_path / "a.jsonl", rows, where=where)
        assert reading.elsewhere == len(rows) - len(found) and not reading.skipped
        return "".join(d.texts["text"] for d in found)

    assert texts(sure=False) == "abc" and texts(sure=True) == "d" and texts(lang="en", n=1) == "acd" and texts(n="1") == "abcd"
    found, reading = read(tmp_path / "a.jsonl", [*rows, {"text": "f", "sure": True}], where={"lang": "en"})
    assert len(found) == 4 and reading.skipped == 1
    with pytest.raises(UserError, match="no row is as `where` wants it"):
        texts(lang="fr")
    with pytest.raises(UserError, match=r"no column 'language'; did you mean 'lang'\?"):
        texts(language="en")
    names = {"lang": ["de", "en"]}
    some = documents_of(
        [Row("r:1", {"text": "x", "lang": 1}), Row("r:2", {"text": "y", "lang": 0})],
        Columns(where={"lang": "en"}),
        Reading(),
        names,
    )
    assert [d.texts["text"] for d in some] == ["x"]  # a class of the hub by its name

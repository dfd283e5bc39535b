"""Rows -> documents: which column is the text, the second text, the label, the words and their tags. Declared, never guessed."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self

from pydantic import Field, model_validator

from ziggurat.config import Spec
from ziggurat.data.files import Row
from ziggurat.data.reading import BadRow, Reading, nearest
from ziggurat.errors import UserError
from ziggurat.types import Document, Mark

UNKNOWN_AFTER = 10
"""Rows without a column, and none with it, after which the column counts as unknown rather than the rows as bad."""

GLUED = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))
"""Han characters and the punctuation and kana that stand among them: no space between two of these."""


class Columns(Spec):
    """Which columns of a file hold what. A dot leads into a column that holds several: `choices.text`. `text`, `pair` and `group` may be made of
    several columns, with their names in braces: `{word}: {sentence1}`."""

    text: str = "text"
    """The text; a list of texts (the turns of a dialogue) is joined by line breaks."""
    pair: str | None = None
    """The second text of a sentence pair. For a text to be written it may be a list, all of them right: training then has a row for
    each, and a test row is scored against the one that fits best (several references)."""
    label: str | None = None
    """The label of the row: a name or a number; of `choices` which one is right (or a list of them)."""
    choices: str | tuple[str, ...] | None = None
    """Multiple choice: a column with a list of texts, or one column a choice. The question is `text`, or `pair` about `text`."""
    choice_names: str | None = None
    """A column with what `label` calls each of the row's choices (A, B, C); left out: see the objective's `labels`."""
    answers: str | None = None
    """The answers to the question `text` in the context `pair`, as SQuAD has them: a list of {text, answer_start}, or {text: [...],
    answer_start: [...]}, in characters. An empty list: it cannot be answered."""
    group: str | None = None
    """What rows that are scored together have in common, as the answers to one question (MultiRC). Of texts to be written (`pair`, no
    `label`) these are several right ones: test rows of a group are one, scored against all of them (E2E NLG)."""
    tokens: str | None = None
    """Instead of `text`: the words, as a list or separated by spaces."""
    tags: str | None = None
    """One tag per word of `tokens`."""
    spans: str | None = None
    """Phrases or entities of `text`: a list of [start, end] or [start, end, label], in characters; none may overlap another."""
    where: dict[str, bool | int | str] = Field(default_factory=dict)
    """Only rows in which these columns hold these values, written alike: `{lang: en, is_impossible: false}`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tags and not self.tokens:
            raise ValueError("`tags` needs `tokens`: the column with the words that are tagged")
        if self.tokens and "text" in self.model_fields_set:
            raise ValueError("give `text` or `tokens`, not both: the text of a tagged row is its words, joined")
        if self.tokens and self.spans:
            raise ValueError("`spans` are places in `text`; the words of `tokens` have `tags`")
        if self.tokens and self.pair:
            raise ValueError("a tagged row has no `pair`")
        if self.answers and not self.pair:
            raise ValueError("`answers` needs `pair`: the context that holds them; the question is `text`")
        if self.choice_names and not (self.choices and self.label):
            raise ValueError("`choice_names` needs `choices`, and a `label` that is one of the names")
        if self.tokens and (self.choices or self.answers):
            raise ValueError("a tagged row has no `choices` and no `answers`")
        if not isinstance(self.choices, str) and self.choices is not None and len(self.choices) < 2:
            raise ValueError("`choices`: name the column of a list, or two columns and more")
        for name in ("text", "pair", "group"):
            _check_template(name, getattr(self, name) or "")
        return self

    @property
    def labelled(self) -> bool:
        return bool(self.label or self.tags or self.answers)

    @property
    def alternatives(self) -> bool:
        """Whether rows of a group are several right texts to be written."""
        return bool(self.group and self.pair) and not self.labelled

    def used(self) -> list[str]:
        """The columns that every row must have; those of a template one by one."""
        choices = (self.choices,) if isinstance(self.choices, str) else self.choices or ()
        first = (self.tokens or self.text, self.pair, *choices, self.choice_names, self.label, self.answers, self.group)
        found = [one for name in (*first, self.tags, self.spans, *self.where) if name for one in (_inner(name) or [name])]
        return list(dict.fromkeys(found))


def _check_template(field: str, template: str) -> None:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as e:
        raise ValueError(f"`{field}`: {template!r} is no template: {e}") from None
    for _, name, form, conversion in pieces:
        if name is not None and (not name or form or conversion):
            raise ValueError(f"`{field}`: braces in {template!r} hold the name of a column and nothing else")


def _inner(name: str) -> list[str]:
    """The columns that a template names; none: it is no template."""
    return [inner for _, inner, _, _ in string.Formatter().parse(name) if inner] if "{" in name else []


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """What stands in a column, behind the dots of its name, or what its template gives; `LookupError` where there is none."""
    if name in values:
        return values[name]
    if _inner(name):
        pieces = string.Formatter().parse(name)
        return "".join(before + (_part(value_of(values, inner), inner) if inner else "") for before, inner, _, _ in pieces)
    first, dot, rest = name.partition(".")
    if not dot or not isinstance(values.get(first), Mapping):
        raise LookupError(name)
    return value_of(values[first], rest)


def _part(value: Any, name: str) -> str:
    """A column within a template: a text, which may be empty there, texts, or a whole number."""
    return str(value) if type(value) is int else value if isinstance(value, str) and not value.strip() else _lines(value, name)


def _holds(values: Mapping[str, Any], name: str) -> bool:
    try:
        value_of(values, name)
    except LookupError:
        return False
    return True


def documents(
    rows: Iterable[Row], columns: Columns, reading: Reading, names: Mapping[str, Sequence[str]] | None = None
) -> Iterator[Document]:
    """The documents of one file. Bad rows go to `reading`; a column that the file does not have is a `UserError`.

    `names` maps a column to the names of its integer classes, for sources that declare them.
    """
    used = columns.used()
    seen: set[str] = set()
    lacking: list[tuple[Row, str]] = []
    for row in rows:
        missing = next((name for name in used if not _holds(row.values, name)), None)
        if missing is not None and missing not in seen:
            lacking.append((row, missing))
            if len(lacking) >= UNKNOWN_AFTER:
                break
            continue
        seen.update(name for name in used if _holds(row.values, name))
        try:
            if missing is not None:
                raise BadRow(f"no field {missing!r}", f"it has {', '.join(map(repr, row.values))}")
            if all(_is(value_of(row.values, name), wanted, (names or {}).get(name)) for name, wanted in columns.where.items()):
                yield _document(row, columns, names or {})
            else:
                reading.elsewhere += 1
        except BadRow as e:
            reading.bad(row.where, e)
    for row, missing in lacking:
        if missing not in seen:
            has = list(row.values)
            raise UserError(
                f"{row.where}: there is no column {missing!r}{nearest(missing, has)}",
                f"the file has: {', '.join(has)}; say under columns which one to use",
            )
        reading.bad(row.where, BadRow(f"no field {missing!r}", f"it has {', '.join(map(repr, row.values))}"))


def _is(value: Any, wanted: bool | int | str, names: Sequence[str] | None) -> bool:
    """Whether a column holds a value: a file of text says true and 1 in letters, and a class may be called by its name."""
    if names is not None and type(value) is int and 0 <= value < len(names) and names[value] == wanted:
        return True
    told = str(value).strip()
    return told.lower() == str(wanted).lower() if isinstance(wanted, bool) else told == str(wanted)


def _document(row: Row, columns: Columns, names: Mapping[str, Sequence[str]]) -> Document:
    values = row.values
    marks: tuple[Mark, ...] = ()
    lists, fields = dict[str, tuple[str, ...]](), dict[str, Any]()
    if columns.tokens:
        text, marks = _tagged(values, columns, names)
        texts = {"text": text}
    else:
        texts = {"text": _lines(value_of(values, columns.text), columns.text)}
        marks = _spans(value_of(values, columns.spans), columns.spans, texts["text"]) if columns.spans else ()
        if columns.pair:
            second = value_of(values, columns.pair)
            several = [_text(one, columns.pair) for one in second] if isinstance(second, (list, tuple)) else None
            if several == []:
                raise BadRow(f"{columns.pair!r} is an empty list")
            texts["pair"] = several[0] if several else _text(second, columns.pair)
            if several:
                fields["references"] = several
    if columns.label:
        fields["label"] = _labels(value_of(values, columns.label), columns.label, names)
    if columns.choices:
        lists["choices"] = _choices(values, columns.choices, texts.get("pair", ""))
        if columns.choice_names:
            fields["label"] = _chosen(fields["label"], values, columns.choice_names, len(lists["choices"]))
    if columns.answers:
        fields["answers"], first = _answers(value_of(values, columns.answers), columns.answers, texts["pair"])
        marks += first
    if columns.group:
        fields["group"] = _label(value_of(values, columns.group), columns.group, names)
    if isinstance(fields.get("label"), list) and not columns.choices:
        raise BadRow(f"{columns.label!r} is a list, and only `choices` may have several right ones")
    return Document(texts, row.where, marks, fields, lists)


def _choices(values: Mapping[str, Any], name: str | tuple[str, ...], before: str) -> tuple[str, ...]:
    """The choices as they stand behind the text `before`, if there is one: with a space, but not between Han characters."""
    found = value_of(values, name) if isinstance(name, str) else [value_of(values, one) for one in name]
    shown = name if isinstance(name, str) else ", ".join(name)
    if not isinstance(found, (list, tuple)):
        raise BadRow(f"{shown!r} is not a list of choices", f"it is {_shown(found)}")
    if len(found) < 2:
        raise BadRow(f"{shown!r} leaves no choice", f"it has {len(found)}")
    return tuple(joined(before, _text(one, shown)) for one in found)


def joined(before: str, text: str) -> str:
    """`text` as it goes on after `before`: a space first, unless there is one, nothing to follow, or both are Han."""
    bare = not before or before[-1].isspace() or text[0].isspace() or (_glued(before[-1]) and _glued(text[0]))
    return text if bare else f" {text}"


def _chosen(label: Any, values: Mapping[str, Any], name: str, count: int) -> Any:
    """The label, or list of labels, as numbers of choices."""
    known = value_of(values, name)
    if not isinstance(known, (list, tuple)) or len(known) != count or len({str(one).strip() for one in known}) < count:
        raise BadRow(f"{name!r} does not name each choice", f"it is {_shown(known)} for {count} choices")
    place = {str(one).strip(): n for n, one in enumerate(known)}  # as labels are
    wrong = [one for one in (label if isinstance(label, list) else [label]) if str(one) not in place]
    if wrong:
        raise BadRow(f"the label is none of {name!r}", f"{_shown(wrong[0])} of {_shown(list(known))}")
    return [place[str(one)] for one in label] if isinstance(label, list) else place[str(label)]


def _answers(value: Any, name: str, context: str) -> tuple[list[str], tuple[Mark, ...]]:
    """The texts of the answers, each once, and the first one that stands at its place marked in the context. Where several people
    answered, some in their own words, those count as right too."""
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
    elif isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) for one in value):
        texts, starts = [one.get("text") for one in value], [one.get("answer_start") for one in value]
    else:
        texts = starts = None
    if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)) or len(texts) != len(starts):
        raise BadRow(f"{name!r} is no list of answers with text and answer_start", f"it is {_shown(value)}")
    placed = []
    for text, start in zip(texts, starts):
        if not isinstance(text, str) or type(start) is not int or not text.strip():
            raise BadRow(f"{name!r} has an answer without text or answer_start", f"it is {_shown([text, start])}")
        if start >= 0 and context[start : start + len(text)] == text:
            placed.append((start + len(text) - len(text.lstrip()), text.strip()))
    if not texts:
        return [], ()
    if not placed:
        raise BadRow(f"{name!r}: no answer stands at its place", f"{_shown(texts[0])} at {starts[0]}")
    start, text = placed[0]
    return list(dict.fromkeys(texts)), (Mark(start, start + len(text), "answer", "pair"),)


def _labels(value: Any, name: str, names: Mapping[str, Sequence[str]]) -> Any:
    """A label, or a list of labels where several choices are right."""
    if not isinstance(value, (list, tuple)):
        return _label(value, name, names)
    if not value:
        raise BadRow(f"{name!r} is no label", "it is an empty list")
    return [_label(one, name, names) for one in value]


def one_each(document: Document) -> Iterator[Document]:
    """A document for each of its references, the document itself where it has none."""
    several = document.fields.get("references")
    if several is None:
        yield document
        return
    fields = {name: value for name, value in document.fields.items() if name != "references"}
    for n, text in enumerate(several):
        name = f"{document.id}#{n}" if n else document.id
        yield replace(document, id=name, texts={**document.texts, "pair": text}, fields=fields)


def together(documents: Iterable[Document]) -> Iterator[Document]:
    """A document for each group, with the written texts of all its rows as references. Holds them all in memory."""
    first, texts = dict[Any, Document](), dict[Any, list[str]]()
    for document in documents:
        group = document.fields["group"]
        first.setdefault(group, document)
        texts.setdefault(group, []).extend(document.fields.get("references", [document.texts["pair"]]))
    for group, document in first.items():
        yield replace(document, fields={**document.fields, "references": list(dict.fromkeys(texts[group]))})


def _text(value: Any, name: str) -> str:
    if value is None:
        raise BadRow(f"{name!r} is null")
    if not isinstance(value, str):
        raise BadRow(f"{name!r} is not text", f"it is {_shown(value)}")
    if not value.strip():
        raise BadRow("empty text")
    if "\0" in value:
        raise BadRow("NUL bytes", f"in {name!r}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise BadRow("half a surrogate pair", f"in {name!r}") from e
    return value


def _lines(value: Any, name: str) -> str:
    return "\n".join(_text(one, name) for one in value) if isinstance(value, (list, tuple)) and value else _text(value, name)


def _label(value: Any, name: str, names: Mapping[str, Sequence[str]]) -> str | int | float:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and name in names:
        if 0 <= value < len(names[name]):
            return names[name][value]
        raise BadRow(f"{name!r} is no label", f"class {value} of {len(names[name])}")
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise BadRow(f"{name!r} is no label", f"it is {_shown(value)}")


def _tagged(values: Mapping[str, Any], columns: Columns, names: Mapping[str, Sequence[str]]) -> tuple[str, tuple[Mark, ...]]:
    assert columns.tokens
    words = [_text(word, columns.tokens) for word in _list(values[columns.tokens], columns.tokens)]
    if not words:
        raise BadRow("empty text")
    text, starts = join_words(words)
    if not columns.tags:
        return text, ()
    tags = [str(_label(tag, columns.tags, names)) for tag in _list(values[columns.tags], columns.tags)]
    if len(tags) != len(words):
        raise BadRow("as many tags as words are needed", f"{len(words)} words, {len(tags)} tags")
    return text, tuple(Mark(start, start + len(word), tag) for start, word, tag in zip(starts, words, tags))


def _spans(value: Any, name: str, text: str) -> tuple[Mark, ...]:
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{name!r} is not a list of spans", f"it is {_shown(value)}")
    marks = []
    for span in value:
        good = isinstance(span, (list, tuple)) and len(span) in (2, 3) and all(type(at) is int for at in span[:2])
        if not good or not 0 <= span[0] < span[1] <= len(text) or not text[span[0] : span[1]].strip():
            raise BadRow(f"{name!r} has a span that is no [start, end, label] of the text", f"it is {_shown(span)}")
        marks.append(Mark(span[0], span[1], str(span[2]) if len(span) == 3 else "phrase"))
    marks.sort()
    if any(a.end > b.start for a, b in pairwise(marks)):
        raise BadRow(f"{name!r} has spans that overlap")
    return tuple(marks)


def _list(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{name!r} is not a list of words", f"it is {_shown(value)}")
    return list(value)


def join_words(words: Sequence[str]) -> tuple[str, list[int]]:
    """The text of a list of words, and where each begins: a space between two words, nothing between two Han words."""
    pieces: list[str] = []
    starts: list[int] = []
    at = 0
    for word in words:
        if pieces and not (_glued(pieces[-1][-1]) and _glued(word[0])):
            pieces.append(" ")
            at += 1
        starts.append(at)
        pieces.append(word)
        at += len(word)
    return "".join(pieces), starts


def _glued(character: str) -> bool:
    return character > "\u2e7f" and any(low <= ord(character) <= high for low, high in GLUED)


def _shown(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"

"""Rows -> documents: which column is the text, the second text, the label, the words and their tags. Declared, never guessed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self

from pydantic import model_validator

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
    """Which columns of a file hold what."""

    text: str = "text"
    """The text."""
    pair: str | None = None
    """The second text of a sentence pair. For a text to be written it may be a list, all of them right: training then has a row for
    each, and a test row is scored against the one that fits best (several references)."""
    label: str | None = None
    """The label of the row: a name or a number."""
    tokens: str | None = None
    """Instead of `text`: the words, as a list or separated by spaces."""
    tags: str | None = None
    """One tag per word of `tokens`."""
    spans: str | None = None
    """Phrases or entities of `text`: a list of [start, end] or [start, end, label], in characters; none may overlap another."""

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
        return self

    @property
    def labelled(self) -> bool:
        return bool(self.label or self.tags)

    def used(self) -> list[str]:
        """The columns that every row must have."""
        first = self.tokens or self.text
        return [name for name in (first, self.pair, self.label, self.tags, self.spans) if name]


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
        missing = next((name for name in used if name not in row.values), None)
        if missing is not None and missing not in seen:
            lacking.append((row, missing))
            if len(lacking) >= UNKNOWN_AFTER:
                break
            continue
        seen.update(row.values)
        try:
            if missing is not None:
                raise BadRow(f"no field {missing!r}", f"it has {', '.join(map(repr, row.values))}")
            yield _document(row, columns, names or {})
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


def _document(row: Row, columns: Columns, names: Mapping[str, Sequence[str]]) -> Document:
    values = row.values
    marks: tuple[Mark, ...] = ()
    fields: dict[str, Any] = {}
    if columns.tokens:
        text, marks = _tagged(values, columns, names)
        texts = {"text": text}
    else:
        texts = {"text": _text(values[columns.text], columns.text)}
        marks = _spans(values[columns.spans], columns.spans, texts["text"]) if columns.spans else ()
        if columns.pair and isinstance(values[columns.pair], (list, tuple)):
            several = [_text(one, columns.pair) for one in values[columns.pair]]
            if not several:
                raise BadRow(f"{columns.pair!r} is an empty list")
            texts["pair"], fields["references"] = several[0], several
        elif columns.pair:
            texts["pair"] = _text(values[columns.pair], columns.pair)
    if columns.label:
        fields["label"] = _label(values[columns.label], columns.label, names)
    return Document(texts, row.where, marks, fields)


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

"""Phrases and entities: runs of words that masked LM hides together (ERNIE 1.0: Sun et al., 2019, 3.2).

They are marks of a document's text: from the data, or found while it is prepared by a `Finder`, any function from a text to its marks.
Marks are carried to tokens and kept in the shards; `together` turns those of the wanted labels into units of masking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ziggurat.errors import UserError, check
from ziggurat.named import load_named
from ziggurat.text.boundaries import word_starts
from ziggurat.types import Document, Mark, Part

Finder = Callable[[str], Iterable[Mark]]
"""The marks of a text, none overlapping another."""


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """A finder of listed phrases: from left to right, the longest that begins where a word begins and ends where one ends."""

    labels: Mapping[str, str]
    """phrase -> its label"""
    lengths: Mapping[str, tuple[int, ...]]
    """The first two characters of phrases -> their lengths, longest first."""

    @classmethod
    def of(cls, phrases: Iterable[str] | Mapping[str, str]) -> Dictionary:
        """From phrases and their labels, or from phrases alone, whose label is `phrase`."""
        labels = dict(phrases) if isinstance(phrases, Mapping) else dict.fromkeys(phrases, "phrase")
        lengths: dict[str, set[int]] = {}
        for phrase in labels:
            lengths.setdefault(phrase[:2], set()).add(len(phrase))
        return cls(labels, {begin: tuple(sorted(found, reverse=True)) for begin, found in lengths.items()})

    @classmethod
    def read(cls, path: str | Path) -> Dictionary:
        """From a text file: on each line a phrase and, if it is not to be `phrase`, a tab and its label.

        Raises:
            UserError: the file cannot be read, has no phrase, or a line of another form.
        """
        hint = "a dictionary has one phrase a line: the phrase, or the phrase, a tab and its label"
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"the dictionary {path} cannot be read: {e}", hint) from e
        labels: dict[str, str] = {}
        for n, line in enumerate(lines, 1):
            if line.strip():
                phrase, *label = (field.strip() for field in line.split("\t"))
                check(phrase and len(label) < 2, f"{path}:{n} is not a phrase and its label", hint)
                labels[phrase] = (label[0] if label else "") or "phrase"
        check(labels, f"{path} has no phrase", hint)
        return cls.of(labels)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its phrases and labels: shards made with another dictionary are not the same."""
        return hashlib.sha256(repr(sorted(self.labels.items())).encode()).hexdigest()

    def __call__(self, text: str) -> Iterator[Mark]:
        starts = word_starts(text)
        at = 0
        for start in np.flatnonzero(starts).tolist():
            if start < at:
                continue
            for length in self._lengths(text, start):
                phrase = text[start : start + length]
                end = start + len(phrase)
                if phrase in self.labels and (end == len(text) or starts[end] or text[end].isspace()):
                    yield Mark(start, end, self.labels[phrase])
                    at = end
                    break

    def _lengths(self, text: str, start: int) -> Sequence[int]:
        """Longest first; a phrase of one character is listed under that character."""
        return *self.lengths.get(text[start : start + 2], ()), *(
            self.lengths.get(text[start], ()) if start + 1 < len(text) else ()
        )


def finder_of(named: str) -> Finder:
    """A finder by the name a recipe gives it: the path of a dictionary, or `module:function`.

    Raises:
        UserError: there is no such dictionary, module or function.
    """
    if Path(named).exists() or ":" not in named:
        return Dictionary.read(named)
    try:
        found = load_named(named)
    except ValueError as e:
        raise UserError(
            f"phrases: {e}", "give a dictionary file, or module:function with a function from a text to its marks"
        ) from e
    check(callable(found), f"phrases: {named} is no function", "it takes a text and gives its marks (ziggurat.types.Mark)")
    return found


def identity_of(named: str) -> str:
    """What makes shards with this finder differ from others: a dictionary's contents, or a function's path and its `digest`, if it has one."""
    finder = finder_of(named)
    return finder.digest if isinstance(finder, Dictionary) else f"{named}/{getattr(finder, 'digest', '')}"


def marked(documents: Iterable[Document], finder: Finder) -> Iterator[Document]:
    """The documents with what `finder` finds in each of their texts added to their marks; where it meets a mark of the data it yields."""
    for document in documents:
        found: list[Mark] = []
        for part, text in document.texts.items():
            own = [m for m in document.marks if m.part == part]
            free = (m for m in finder(text) if not any(m.start < o.end and o.start < m.end for o in own))
            found += [m._replace(part=part) for m in free]
        yield replace(document, marks=(*document.marks, *found)) if found else document


def together(part: Part, labels: Sequence[str] = ()) -> Part:
    """The part with every mark of these labels (all by default) as one word, so that what is hidden by the word is hidden by the mark.

    Tags of single words are read as they are meant: `B-PER` and each `I-PER` behind it are one mark `PER`, and `O` is none. A mark that
    cuts a word takes in all of it.
    """
    names = [label[2:] if label[:2] in ("B-", "I-") else label for label in part.labels]
    wanted = np.array(
        [label != "O" and (not labels or name in labels) for label, name in zip(part.labels, names, strict=True)], bool
    )
    inner = np.array([label.startswith("I-") for label in part.labels], bool)
    alike = np.array([names.index(name) for name in names], np.int64)
    owner = np.repeat(np.arange(len(part.bounds) - 1), np.diff(part.mark_bounds))
    start, end, label = part.marks[:, 0] + part.bounds[owner], part.marks[:, 1] + part.bounds[owner], part.marks[:, 2]
    if not len(label):
        return part
    continues = inner[label]
    continues[0] = False
    continues[1:] &= (owner[1:] == owner[:-1]) & (start[1:] == end[:-1]) & (alike[label[1:]] == alike[label[:-1]])
    kept = wanted[label]
    depth = np.zeros(len(part.ids) + 2, np.int64)  # how many marks go on at each token
    np.add.at(depth, (start + ~continues)[kept], 1)
    np.add.at(depth, end[kept], -1)
    return replace(part, words=part.words & (np.cumsum(depth)[: len(part.ids)] == 0))

"""Where text comes from: files, a dataset of the Hugging Face hub, the docstrings of installed packages.

A source has up to three splits, `train`, `valid` and `test`. `valid` and `test` are files of their own or a share of
the source, chosen by a hash of the text: the choice does not depend on the order, and equal texts stay together.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from ziggurat.config import Spec
from ziggurat.data import docstrings, files, rows, versions
from ziggurat.data.found import Collocations
from ziggurat.data.reading import Reading, nearest
from ziggurat.data.rows import Columns
from ziggurat.data.shares import Split, Stream, chosen, hash_of, side
from ziggurat.errors import UserError, check
from ziggurat.types import Document

Fraction = Annotated[float, Field(ge=0, lt=1)]
Paths = str | list[str]

HELD_OUT = 0.01
"""The share of unlabelled text that is held out for the loss when nothing is said."""


class EmptySplit(UserError):
    """A share of a source in which no document fell."""


class Files(Spec):
    """Text files: `.txt .jsonl .csv .tsv .parquet`, plain or with `.gz .xz .zst`, a folder or a pattern of them."""

    kind: Literal["files"] = "files"
    path: Paths
    """A file, a folder, a pattern such as `reviews/*.jsonl`, or a list of these. Files that are also named under
    `valid` or `test` are not read for training."""
    columns: Columns = Columns()
    """Which columns hold what. A `.txt` file has the one column `text`."""
    phrases: str | Collocations | None = None
    """Finds phrases and entities, which `mlm` with `unit: phrase` hides together: a dictionary (a text file, one phrase a line, or
    phrase, tab, label), the import path `module:name` of a function from a text to its marks, or settings (`{}` for their defaults) by
    which `prepare` finds what stands together in the source's own text."""
    txt: Literal["file", "line", "blank"] = "blank"
    """Where a document of a `.txt` file ends: with the file, with each line, or at blank lines. In any case
    one of more than 50,000 characters ends at the next line end."""
    encoding: str = "utf-8"
    """How the characters of text files are written: utf-8, latin-1, gb18030 ..."""
    valid: Fraction | Paths | None = None
    """Files, or a share of `path`, held out for the loss; left out: 0.01 of unlabelled text, nothing of labelled rows."""
    test: Fraction | Paths | None = None
    """Files, or a share of `path`, with which the task is scored."""
    test_rows: int | None = Field(default=None, ge=1)
    """Score only this many test documents, chosen by a hash of their text: the same ones in every run."""
    train_rows: int | None = Field(default=None, ge=1)
    """Learn from only this many training documents, chosen by a hash of their text: the same ones in every run."""
    limit: int | None = Field(default=None, ge=1)
    """Read only the first documents of `path` (before a share is held out)."""
    bad_rows: int | None = Field(default=None, ge=0)
    """How many unreadable rows may be left out of one split; left out: 100 or 0.1%, whichever is more."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            codec = codecs.lookup(name)
            plain = "\n".encode(name) == b"\n"
        except LookupError as e:
            raise ValueError(f"unknown encoding {name!r}") from e
        if not plain:
            raise ValueError(f"{name} cannot be read line by line; convert the file to UTF-8")
        return codec.name


class Hub(Spec):
    """A dataset of the Hugging Face hub, or a folder that `datasets.load_dataset` reads. Needs the extra `data`."""

    kind: Literal["hub"] = "hub"
    id: str
    """The dataset's name on the hub, or a folder."""
    config: str | None = None
    """Which of the dataset's configurations, where it has several."""
    revision: str | None = None
    """A commit, branch or tag; left out: the newest version. Which commit that is the hub is asked once in a process (not for a commit),
    and what was made of an older one is made anew; where it does not answer, the version on this machine counts."""
    streaming: bool = False
    """Read over the network while training data is written, without downloading the whole first."""
    columns: Columns = Columns()
    """Which columns hold what."""
    phrases: str | Collocations | None = None
    """Finds phrases and entities, which `mlm` with `unit: phrase` hides together: a dictionary (a text file, one phrase a line, or
    phrase, tab, label), the import path `module:name` of a function from a text to its marks, or settings (`{}` for their defaults) by
    which `prepare` finds what stands together in the source's own text."""
    train: str = "train"
    """The dataset's split to learn from."""
    valid: Fraction | str | None = None
    """A split of the dataset, or a share of `train`, held out for the loss; left out: 0.01 of unlabelled text."""
    test: Fraction | str | None = None
    """A split of the dataset, or a share of `train`, with which the task is scored."""
    test_rows: int | None = Field(default=None, ge=1)
    """Score only this many test documents, chosen by a hash of their text."""
    train_rows: int | None = Field(default=None, ge=1)
    """Learn from only this many training documents, chosen by a hash of their text."""
    limit: int | None = Field(default=None, ge=1)
    """Read only the first documents of `train` (before a share is held out)."""
    bad_rows: int | None = Field(default=None, ge=0)
    """How many unreadable rows may be left out of one split; left out: 100 or 0.1%, whichever is more."""


class Docstrings(Spec):
    """The English documentation strings of installed packages, read without importing them: text that is always there."""

    kind: Literal["docstrings"] = "docstrings"
    packages: tuple[str, ...] = docstrings.PACKAGES
    """Top-level packages; `python` is the standard library and its language reference."""
    exclude: tuple[str, ...] = ()
    """Packages of the list that are left out."""
    valid: Fraction = HELD_OUT
    """Share of the docstrings held out for the loss."""
    test: Fraction | None = None
    """Share of the docstrings for a test split."""
    limit: int | None = Field(default=None, ge=1)
    """Read only the first docstrings (before a share is held out)."""


class DocstringBackticks(Spec):
    """A tagging task that is always there: which words of a docstring's sentence stood in backticks (`code` or `text`)."""

    kind: Literal["docstring_backticks"] = "docstring_backticks"
    package: str = "sympy"
    """The package whose docstrings are read."""
    valid: Fraction | None = None
    """Share of the training sentences held out for the loss; left out: none."""
    test_rows: int = Field(default=500, ge=1)
    """Sentences in the test split, chosen by a hash of their text; the rest is for training."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first sentences for training and validation."""


def _kind(value: Any) -> Any:
    return value.get("kind", "files") if isinstance(value, dict) else getattr(value, "kind", "files")


Source = Annotated[
    Annotated[Files, Tag("files")]
    | Annotated[Hub, Tag("hub")]
    | Annotated[Docstrings, Tag("docstrings")]
    | Annotated[DocstringBackticks, Tag("docstring_backticks")],
    Discriminator(_kind),
]
"""Any source, told apart by `kind`; `files` when there is none."""


def labelled(source: Source) -> bool:
    """Whether the documents carry labels or tags."""
    return source.kind == "docstring_backticks" or (source.kind in ("files", "hub") and source.columns.labelled)


def marked(source: Source) -> bool:
    """Whether the documents have phrases: found, or marked in the data (spans, tags)."""
    if source.kind not in ("files", "hub"):
        return False
    return source.phrases is not None or bool(source.columns.spans or source.columns.tags)


def writes(source: Source) -> bool:
    """Whether the documents have a second text, which a model can learn to write."""
    return source.kind in ("files", "hub") and source.columns.pair is not None


def splits(source: Source) -> tuple[Split, ...]:
    """The splits that a source has."""
    names: list[Split] = ["train"]
    if _valid(source):
        names.append("valid")
    if source.kind == "docstring_backticks" or source.test:
        names.append("test")
    return tuple(names)


def documents(source: Source, split: Split = "train", reading: Reading | None = None) -> Iterator[Document]:
    """The documents of one split, streamed in a fixed order.

    `reading` is filled with what was read and left out. Mistakes that can be seen beforehand (a missing file, a split
    the source does not have) raise `UserError` now; bad rows beyond the limit, unknown columns, damaged files and an
    empty split while the documents are drawn.
    """
    check(
        split in splits(source),
        f"{_name(source)} has no {split} split",
        f"give it one: `{split}:` with files or a share such as 0.1",
    )
    if source.kind in ("files", "hub"):
        allowed = source.bad_rows
    else:
        allowed = None
    # The choice of test rows reads the split once before it is read for the caller.
    account = reading if reading is not None else Reading()
    account.allowed = allowed
    stream = _split(source, split)
    return _accounted(source, split, stream, account)


def fingerprint(source: Source, split: Split = "train") -> str:
    """Changes when the source does: its spec, the files' names, sizes and times, the hub's commit, the packages' versions."""
    state: list[Any] = [source.model_dump(mode="json"), split]
    match source:
        case Files():
            for path in _paths(source, split):
                stat = path.stat()
                state.append([str(path), stat.st_size, stat.st_mtime_ns])
        case Hub():
            state += versions.version(source.id, source.revision)
        case Docstrings():
            state.append(docstrings.packages_version([p for p in source.packages if p not in source.exclude]))
        case DocstringBackticks():
            state.append(docstrings.packages_version([source.package]))
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _split(source: Source, split: Split) -> Stream:
    valid, test = _valid(source), getattr(source, "test", None)
    rows_wanted = getattr(source, f"{split}_rows", None)
    if apart(source, split) is not None:
        stream = _whole(source, split)
    elif source.kind == "docstring_backticks":
        return _backticks(source, split)
    else:
        shares = (test if isinstance(test, float) else 0.0, valid if isinstance(valid, float) else 0.0)
        whole = _whole(source, "train")

        def stream(reading: Reading) -> Iterator[Document]:
            for document in islice(whole(reading), source.limit):
                if side(document, *shares) == split:
                    yield document

    if split == "test" and source.kind in ("files", "hub") and source.columns.alternatives:
        stream = _together(stream)
    return chosen(stream, rows_wanted) if rows_wanted else stream


def _together(stream: Stream) -> Stream:
    return lambda reading: rows.together(stream(reading))


def _whole(source: Source, split: Split) -> Stream:
    """All documents of the files (or the hub's split) that a split is read from."""
    match source:
        case Files():
            paths = _paths(source, split)
            return lambda reading: _from_files(source, paths, reading)
        case Hub():
            table = _load(source, {"train": source.train, "valid": source.valid, "test": source.test}[split])
            return lambda reading: _from_hub(source, table, reading)
        case Docstrings():
            return lambda reading: _counted(docstrings.docstrings(source.packages, source.exclude), reading)
    raise AssertionError(source)


def _counted(found: Iterator[Document], reading: Reading) -> Iterator[Document]:
    for document in found:
        reading.rows += 1
        yield document


def _backticks(source: DocstringBackticks, split: Split) -> Stream:
    def stream(reading: Reading) -> Iterator[Document]:
        found = list(_counted(docstrings.backticks(source.package), reading))
        check(
            len(found) > source.test_rows,
            f"{source.package} has {len(found)} sentences with backticks, test_rows takes {source.test_rows}",
            "take fewer for the test, or another package",
        )
        last = sorted(map(hash_of, found))[source.test_rows - 1]
        if split == "test":
            yield from (d for d in found if hash_of(d) <= last)
        else:
            pool = [d for d in found if hash_of(d) > last][: source.limit]
            yield from (d for d in pool if side(d, 0.0, source.valid or 0.0) == split)

    return stream


def _accounted(source: Source, split: Split, stream: Stream, reading: Reading) -> Iterator[Document]:
    own = apart(source, split)
    if isinstance(source, Files) and (split == "train" or own is not None):  # a share is of files that are read anyway
        files.say_others(source.path if own is None else own)
    for document in stream(reading):
        for one in [document] if split == "test" else rows.one_each(document):
            reading.documents += 1
            yield one
    name = f"{_name(source, split)} ({split})"
    reading.finish(name)
    if not reading.documents:
        least = reading.rows - reading.skipped - reading.empty - reading.elsewhere
        if reading.elsewhere and not least:
            raise UserError(f"{name}: no row is as `where` wants it", "compare the values under columns.where with the file's")
        if least:
            raise EmptySplit(
                f"{name}: none of the {least} documents fell into this split",
                f"give a larger share or files of its own under `{split}:`",
            )
        raise UserError(f"{name}: there is no text in it", "name files with text")


def _valid(source: Source) -> float | Paths | None:
    return HELD_OUT if source.valid is None and not labelled(source) else source.valid


def apart(source: Source, split: Split) -> Paths | None:
    """The files (or the hub's split) of its own that a `valid` or `test` split is read from; None of a share, and of `train`."""
    own = {"valid": source.valid, "test": getattr(source, "test", None)}.get(split)
    return own if isinstance(own, (str, list)) else None


def file_names(source: Files) -> list[str]:
    """Names of the files that are read for training, without their folders. Raises `UserError` as reading them does."""
    return [path.name for path in _paths(source, "train")]


def _name(source: Source, split: Split = "train") -> str:
    match source:
        case Files():
            own = apart(source, split)
            paths = source.path if own is None else own
            return paths if isinstance(paths, str) else ", ".join(paths)
        case Hub():
            return source.id
        case Docstrings():
            return "docstrings"
        case DocstringBackticks():
            return f"docstrings of {source.package}"


def _paths(source: Files, split: Split) -> list[Any]:
    if (own := apart(source, split)) is not None:
        return files.find(own)
    held = [apart(source, "valid"), apart(source, "test")]
    elsewhere = {path.resolve() for own in held if own is not None for path in files.find(own)}
    paths = [path for path in files.find(source.path) if path.resolve() not in elsewhere]
    check(paths, f"{_name(source)}: every file of it is also named under valid or test", "keep some for training")
    return paths


def _from_files(source: Files, paths: list[Any], reading: Reading) -> Iterator[Document]:
    for path in paths:
        found = files.rows(path, reading, encoding=source.encoding, txt=source.txt)
        columns = source.columns
        if files.format_of(path) == ".txt":
            declared = sorted(columns.model_fields_set - {"text"})
            check(
                not declared,
                f"{path}: a .txt file has no columns, but {', '.join(declared)} is declared",
                "use .jsonl, .csv, .tsv or .parquet",
            )
            columns = Columns()
        yield from rows.documents(found, columns, reading)


def _load(source: Hub, split: Any) -> Any:
    try:
        import datasets
    except ImportError as e:
        raise UserError(f"{source.id}: reading a hub dataset needs the package datasets", "pip install 'ziggurat[data]'") from e
    try:
        return datasets.load_dataset(source.id, source.config, split=split, revision=source.revision, streaming=source.streaming)
    except Exception as e:  # the library raises anything from FileNotFoundError to HTTP errors
        message = str(e).strip().split("\n")[0]
        hint = "check the id, config, revision and split names, and that there is a network"
        raise UserError(f"{source.id}: split {split!r} cannot be loaded ({type(e).__name__}: {message})", hint) from e


def _from_hub(source: Hub, table: Any, reading: Reading) -> Iterator[Document]:
    features = table.features or {}
    for name in source.columns.used():
        check(
            not features or name in features or name.partition(".")[0] in features,
            f"{source.id}: there is no column {name!r}{nearest(name, features)}",
            f"the dataset has: {', '.join(features)}; say under columns which one to use",
        )
    # Integer classes are read by their names; the names of a list's classes are those of its items.
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    names = {name: feature.names for name, feature in inner.items() if getattr(feature, "names", None)}

    def numbered() -> Iterator[files.Row]:
        for n, values in enumerate(table, 1):
            reading.rows += 1
            yield files.Row(f"{source.id}:{n}", values)

    yield from rows.documents(numbered(), source.columns, reading, names)

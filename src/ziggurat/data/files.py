"""Files on disk -> rows: `.txt .jsonl .csv .tsv .parquet`, plain or compressed, streamed, with bad rows named.

A row is a mapping of column names to values, with the place it came from (`file:line`). The format follows from the
file's name and from nothing else.
"""

from __future__ import annotations

import csv
import glob
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ziggurat.data.lines import DAMAGED, LONGEST_LINE, Line, look, read_lines
from ziggurat.data.reading import BadRow, Reading, nearest
from ziggurat.errors import UserError, check

log = logging.getLogger(__name__)

FORMATS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".xz", ".zst")

LONGEST_TEXT = 50_000
"""Characters after which a document of a `.txt` file is closed at the next line end, so that a large file streams."""
SHOWN = 8
"""Names that a message lists."""


class Row(NamedTuple):
    """One row of a file."""

    where: str
    """`file:line`"""
    values: Mapping[str, Any]


def format_of(path: Path) -> str | None:
    """`.txt`, `.jsonl` ... of a name such as `a.jsonl.gz`; None when the name tells none."""
    name = path.name.lower()
    for ending in COMPRESSED:
        if name.endswith(ending):
            kind = Path(name[: -len(ending)]).suffix
            return kind if kind in FORMATS and kind != ".parquet" else None
    return Path(name).suffix if Path(name).suffix in FORMATS else None


def expanded(path: str | Path) -> Path:
    """The path with `$NAME` and `~` replaced; raises `UserError` for a variable that is not set."""
    written = Path(os.path.expandvars(path)).expanduser()
    check("$" not in str(written), f"{path}: the environment variable in this path is not set", "set it, or write the path out")
    return written


def find(paths: str | Sequence[str]) -> list[Path]:
    """The files that paths, folders and globs name: in the order given, each entry's files sorted by name.

    Folders are searched to the bottom for files of a known format, linked ones too; hidden files are left out. A file that
    several entries or links lead to by one name is there once. Raises `UserError` for a path that is not there (naming its
    nearest neighbours), a folder that cannot be read, an empty folder or glob, a file of another format.
    """
    found: dict[Path, Path] = {}
    for entry in [paths] if isinstance(paths, str) else paths:
        path, named = expanded(entry), _named(entry)
        known = [p for p in named if format_of(p)]
        if path.is_dir():
            check(known, f"{entry}: no file of a known format in this folder", f"known: {_known()}")
        elif path.is_file():
            check(known, f"{entry}: the name does not tell a format that can be read", f"known: {_known()}")
        else:
            check(known, f"{entry}: this pattern matches no file of a known format", f"known: {_known()}")
        places = {folder: folder.resolve() for folder in {p.parent for p in known}}
        for p in known:
            found.setdefault(places[p.parent] / p.name, p)
    check(found, "the list of paths is empty", "name a file, a folder or a pattern")
    return list(found.values())


def say_others(paths: str | Sequence[str]) -> None:
    """Log which files in folders and globs `find` passes over, for their names tell no format that can be read."""
    for entry in [paths] if isinstance(paths, str) else paths:
        others = [] if expanded(entry).is_file() else [p.name for p in _named(entry) if not format_of(p)]
        if others:
            some = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
            log.info("%d file(s) of other formats passed over in %s: %s", len(others), entry, some)


def _named(entry: str) -> list[Path]:
    """The files of any format that one path, folder or glob names, sorted. `UserError` if it is none of these."""
    path = expanded(entry)
    if path.is_dir():
        return sorted(inside(path))
    if path.is_file():
        return [path]
    if not glob.has_magic(str(path)):
        raise UserError(f"{entry}: there is no such file or folder", _neighbours(path))
    return sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())


def inside(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, in linked folders too. A folder is entered once, by its own name rather than a link's. Raises
    `UserError` for one that cannot be read."""
    entered, waiting = set[Path](), [folder]
    for start in waiting:  # which grows by the links that are met
        for at, folders, names in os.walk(start, onerror=_closed):
            place = Path(at)
            if (real := place.resolve()) in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [place / name for name in folders if (place / name).is_symlink()]
            yield from (place / name for name in names if not name.startswith(".") and (place / name).is_file())


def _closed(error: OSError) -> None:
    raise UserError(
        f"{error.filename}: this folder cannot be read ({error.strerror})",
        "give it read permission, or name the files by a pattern",
    ) from error


def rows(
    path: Path, reading: Reading, *, encoding: str = "utf-8", txt: Literal["file", "line", "blank"] = "blank"
) -> Iterator[Row]:
    """All rows of a file, one at a time. Bad rows go to `reading`; a damaged or binary file is a `UserError`.

    A `.txt` file gives rows with the single column `text`; `txt` says where its documents end.
    """
    kind = format_of(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path, reading)
            return
        look(path, encoding)
        numbered = read_lines(path, encoding)
        if kind == ".txt":
            yield from _txt(path, numbered, reading, txt)
        elif kind == ".jsonl":
            yield from _jsonl(path, numbered, reading)
        else:
            yield from _table(path, numbered, reading, kind == ".csv")
    except DAMAGED as e:
        raise UserError(f"{path}: the compressed file is damaged or cut short ({e})", "copy or download it again") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e


def _known() -> str:
    return f"{' '.join(FORMATS)}, and with {' '.join(COMPRESSED)} behind (parquet without)"


def _neighbours(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"the folder {parent} is not there either"
    names = sorted(p.name for p in parent.iterdir())
    listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"in {parent} there is: {listed}{nearest(path.name, names)}" if names else f"the folder {parent} is empty"


def _txt(path: Path, lines: Iterator[Line], reading: Reading, end: str) -> Iterator[Row]:
    """A document with a bad line is a bad row: without the line it would be another text."""
    held: list[str] = []
    size = start = 0
    bad: tuple[str, BadRow] | None = None

    def close() -> Iterator[Row]:
        reading.rows += 1
        if bad is not None:
            reading.bad(*bad)
        else:
            yield Row(f"{path}:{start}", {"text": "\n".join(held).rstrip()})

    for number, line, wrong in lines:
        blank = not line.strip() and wrong is None
        if held and (size > LONGEST_TEXT or end == "line" or (end == "blank" and blank)):
            yield from close()
            held, size, bad = [], 0, None
        if held or not blank:
            start = start if held else number
            held.append(line)
            size += len(line)
        if wrong is not None:
            bad = bad or (f"{path}:{number}", wrong)
    if held:
        yield from close()


def _jsonl(path: Path, lines: Iterator[Line], reading: Reading) -> Iterator[Row]:
    for number, line, wrong in lines:
        if not line.strip() and wrong is None:
            continue
        reading.rows += 1
        where = f"{path}:{number}"
        try:
            if wrong is not None:
                raise wrong
            values = json.loads(line)
            if not isinstance(values, dict):
                raise BadRow("not a JSON object", f"it is a {type(values).__name__}")
        except BadRow as e:
            reading.bad(where, e)
        except (ValueError, RecursionError) as e:
            reading.bad(where, BadRow("not valid JSON", str(e)))
        else:
            yield Row(where, values)


def _table(path: Path, lines: Iterator[Line], reading: Reading, quotes: bool) -> Iterator[Row]:
    """CSV: RFC 4180, a quoted field may hold line ends. TSV has no quoting: a quotation mark is text."""
    last = 0
    bad: tuple[str, BadRow] | None = None
    """The first bad line of the row that is read."""

    def physical() -> Iterator[str]:
        nonlocal last, bad
        for last, line, wrong in lines:
            if wrong is not None:
                bad = bad or (f"{path}:{last}", wrong)
            yield line + "\n"

    csv.field_size_limit(LONGEST_LINE)
    table = csv.reader(physical(), strict=True) if quotes else csv.reader(physical(), delimiter="\t", quoting=csv.QUOTE_NONE)
    header: list[str] | None = None
    while True:
        begin, bad = last + 1, None
        try:
            fields = next(table)
        except StopIteration:
            return
        except csv.Error as e:
            if "unexpected end of data" in str(e):
                raise UserError(
                    f"{path}:{begin}: a quotation mark opens here and is never closed",
                    'close it; a quote in a field is written ""',
                ) from e
            reading.rows += 1
            reading.bad(f"{path}:{begin}", BadRow("not valid CSV", str(e)))
            continue
        if bad is not None:
            check(header is not None, f"{bad[0]}: the header cannot be read ({bad[1].reason})", "mend it, or say the `encoding`")
            reading.rows += 1
            reading.bad(*bad)
            continue
        if not fields or (len(fields) == 1 and not fields[0].strip()):
            continue
        if header is None:
            header = [name.strip() for name in fields]
            twice = sorted({name for name in header if header.count(name) > 1})
            check(not twice, f"{path}:{begin}: the header names a column twice: {', '.join(twice)}", "rename one of them")
            continue
        reading.rows += 1
        if len(fields) != len(header):
            reading.bad(f"{path}:{begin}", BadRow("wrong number of fields", f"{len(fields)}, the header has {len(header)}"))
        else:
            yield Row(f"{path}:{begin}", dict(zip(header, fields)))


def _parquet(path: Path, reading: Reading) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise UserError(f"{path}: reading parquet needs the package pyarrow", "pip install 'ziggurat[data]'") from e
    check(os.path.getsize(path), f"{path}: this parquet file is empty", "write or download it again")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    reading.rows += 1
                    yield Row(f"{path}:{number}", values)
    except pa.ArrowException as e:
        raise UserError(f"{path}: this parquet file is damaged after row {number} ({e})", "write or download it again") from e

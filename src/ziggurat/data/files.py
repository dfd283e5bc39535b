"""Files on disk -> rows: `.txt .jsonl .csv .tsv .parquet`, plain or compressed, streamed, with bad rows named.

A row is a mapping of column names to values, with the place it came from (`file:line`). The format follows from the
file's name and from nothing else.
"""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ziggurat.data.lines import DAMAGED, LONGEST_LINE, look, read_lines
from ziggurat.data.reading import BadRow, Reading, nearest
from ziggurat.errors import UserError, check

FORMATS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".xz", ".zst")

LONGEST_TEXT = 50_000
"""Characters after which a document of a `.txt` file is closed at the next line end, so that a large file streams."""


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

    Folders are searched to the bottom for files of a known format; hidden files are left out. Raises `UserError` for
    a path that is not there (naming its nearest neighbours), an empty folder or glob, a file of another format.
    """
    found: dict[Path, None] = {}
    for entry in [paths] if isinstance(paths, str) else paths:
        path = expanded(entry)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and format_of(p) and not _hidden(p.relative_to(path)))
            check(inside, f"{entry}: no file of a known format in this folder", f"known: {_known()}")
        elif path.is_file():
            check(format_of(path), f"{entry}: the name does not tell a format that can be read", f"known: {_known()}")
            inside = [path]
        elif glob.has_magic(str(path)):
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            inside = [p for p in matches if p.is_file() and format_of(p)]
            check(inside, f"{entry}: this pattern matches no file of a known format", f"known: {_known()}")
        else:
            raise UserError(f"{entry}: there is no such file or folder", _neighbours(path))
        found.update(dict.fromkeys(inside))
    check(found, "the list of paths is empty", "name a file, a folder or a pattern")
    return list(found)


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
        numbered = read_lines(path, reading, encoding)
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


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _neighbours(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"the folder {parent} is not there either"
    names = sorted(p.name for p in parent.iterdir())
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"in {parent} there is: {listed}{nearest(path.name, names)}" if names else f"the folder {parent} is empty"


def _txt(path: Path, lines: Iterator[tuple[int, str]], reading: Reading, end: str) -> Iterator[Row]:
    held: list[str] = []
    size = start = 0

    def close() -> Row:
        reading.rows += 1
        return Row(f"{path}:{start}", {"text": "\n".join(held).rstrip()})

    for number, line in lines:
        blank = not line.strip()
        if held and (size > LONGEST_TEXT or end == "line" or (end == "blank" and blank)):
            yield close()
            held, size = [], 0
        if held or not blank:
            start = start if held else number
            held.append(line)
            size += len(line)
    if held:
        yield close()


def _jsonl(path: Path, lines: Iterator[tuple[int, str]], reading: Reading) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        reading.rows += 1
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise BadRow("not a JSON object", f"it is a {type(values).__name__}")
        except BadRow as e:
            reading.bad(where, e)
        except (ValueError, RecursionError) as e:
            reading.bad(where, BadRow("not valid JSON", str(e)))
        else:
            yield Row(where, values)


def _table(path: Path, lines: Iterator[tuple[int, str]], reading: Reading, quotes: bool) -> Iterator[Row]:
    """CSV: RFC 4180, a quoted field may hold line ends. TSV has no quoting: a quotation mark is text."""
    last = 0

    def physical() -> Iterator[str]:
        nonlocal last
        for last, line in lines:  # noqa: B007 (the line number is read outside)
            yield line + "\n"

    csv.field_size_limit(LONGEST_LINE)
    table = csv.reader(physical(), strict=True) if quotes else csv.reader(physical(), delimiter="\t", quoting=csv.QUOTE_NONE)
    header: list[str] | None = None
    while True:
        begin = last + 1
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

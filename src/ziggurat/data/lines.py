"""Bytes on disk -> lines of text: decompressed, decoded, with binary files refused and bad lines named."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ziggurat.data.reading import NOT_UTF8, BadRow
from ziggurat.errors import UserError, check

LONGEST_LINE = 64 << 20
"""Bytes; a longer line is a bad row. It bounds the memory that one row may take."""

HEAD = 1 << 16
CONTROLS = bytes([*range(9), *range(14, 27), *range(28, 32)])
MAGIC = {
    b"\x1f\x8b": "gzip data without the ending .gz",
    b"\xfd7zXZ": "xz data without the ending .xz",
    b"\x28\xb5\x2f\xfd": "zstd data without the ending .zst",
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF",
    b"PAR1": "parquet without the ending .parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}

DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
"""What a compressed file that is damaged or cut short raises."""


def _open(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        case ".xz":
            return lzma.open(path, "rb")  # type: ignore[return-value]
        case ".zst":
            return io.BufferedReader(_Zstd(path), 1 << 20)
        case _:
            return open(path, "rb")


class _Zstd(io.RawIOBase):
    """Reads zstd frames and, unlike the library's own reader, notices that the last one was cut short."""

    def __init__(self, path: Path):
        try:
            import zstandard
        except ImportError as e:
            raise UserError(f"{path}: reading .zst needs the package zstandard", "pip install 'ziggurat[data]'") from e
        self.error = zstandard.ZstdError
        self.make = zstandard.ZstdDecompressor().decompressobj
        self.file = open(path, "rb")  # noqa: SIM115
        self.frame = self.make()
        self.fed = False
        self.waiting = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self.waiting:
            chunk = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame, self.fed = self.make(), False
            chunk = chunk or self.file.read(1 << 17)
            if not chunk:
                if self.fed:
                    raise EOFError("the last frame has no end")
                return 0
            self.fed = True
            try:
                self.waiting = self.frame.decompress(chunk)
            except self.error as e:
                raise EOFError(str(e)) from e
        n = min(len(buffer), len(self.waiting))
        buffer[:n], self.waiting = self.waiting[:n], self.waiting[n:]
        return n


def look(path: Path, encoding: str) -> None:
    """`UserError` when the head of a file shows that it is no text, or text in another encoding."""
    with _open(path) as file:
        head = file.read(HEAD)
    for start, what in MAGIC.items():
        if head.startswith(start):
            todo = (
                "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
                if "UTF-16" in what
                else "give it its true name, or extract its text"
            )
            raise UserError(f"{path}: this is not a {''.join(path.suffixes[-2:])} file but {what}", todo)
    controls = len(head) - len(head.translate(None, CONTROLS))
    check(
        controls < 10 or controls * 100 < len(head),
        f"{path}: this is a binary file (or UTF-16), not text",
        "extract its text, or convert it to UTF-8",
    )
    if encoding == "utf-8":
        # An invalid byte here and there is a bad row; a file whose accents are mostly invalid is in another encoding.
        decoded = head.decode("utf-8", "replace")
        wrong = decoded.count("\ufffd")
        right = sum(c > "\x7f" for c in decoded) - wrong
        check(
            wrong < 10 or wrong < right,
            f"{path}: this file is not UTF-8 ({wrong} invalid places in its first {len(head)} bytes)",
            "say which encoding it has (encoding: latin-1, encoding: gb18030 ...), or convert it to UTF-8",
        )


class Line(NamedTuple):
    """One line of a file, without its end."""

    number: int
    """From 1."""
    text: str
    """Of a bad line what could be made of it: its quotation marks still say where a row of a table ends."""
    wrong: BadRow | None = None
    """Why it is a bad one."""


def read_lines(path: Path, encoding: str) -> Iterator[Line]:
    """Every line. Lines end at `\\n` only: U+2028 and its like are text."""
    with _open(path) as file:
        number = 0
        while raw := file.readline(LONGEST_LINE):
            number += 1
            if len(raw) == LONGEST_LINE and not raw.endswith(b"\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield Line(number, "", BadRow(f"a line of more than {LONGEST_LINE >> 20} MB"))
                continue
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            wrong = BadRow("NUL bytes") if b"\0" in raw else None
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError as e:
                reason = NOT_UTF8 if encoding == "utf-8" else f"not valid {encoding}"
                wrong = wrong or BadRow(reason, f"byte {e.start + 1} of the line is 0x{raw[e.start]:02x}")
                text = raw.decode(encoding, "replace")
            yield Line(number, text.removesuffix("\n").removesuffix("\r"), wrong)

"""Text files that are whole or as they were, and a full disk said plainly."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ziggurat.errors import UserError

MACHINE = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EACCES",
        "EPERM",
        "EROFS",
        "ENOTDIR",
        "EISDIR",
        "EEXIST",
        "EIO",
        "ENAMETOOLONG",
        "EMFILE",
        "ENFILE",
    )
    if hasattr(errno, name)
}
"""What the machine refuses and the user can mend. Other errors of the system are bugs of ours and keep their traceback."""


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one move: whoever reads it, after a crash too, finds the old text or the new one.

    Raises `UserError` when the disk is full or the place cannot be written; the file is then as it was.
    """
    draft = path.with_name(f"{path.name}.part")
    with writing(path):
        try:
            with open(draft, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of plain data."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """An `OSError` of the machine inside becomes a `UserError`: where (`place`, unless it says), why, and the room left."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        where = error.filename or place
        raise UserError(
            f"cannot read or write {where}: {error.strerror} ({room(place)} free)",
            "what was finished before is whole: make room or mend the permissions, then run the same command again",
        ) from error


def room(place: Path) -> str:
    """Free bytes on the disk of `place`, for people."""
    folder = next(p for p in (place, *place.absolute().parents) if p.is_dir())
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"

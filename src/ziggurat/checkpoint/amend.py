"""A checkpoint's card, completed after it was written: what was measured on it stands in it, wherever it is copied to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ziggurat.checkpoint.format import as_json, find, publish
from ziggurat.checkpoint.manifest import MANIFEST, manifest
from ziggurat.errors import UserError


def amend(folder: Path, *, lineage: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> None:
    """Replace the lineage of a checkpoint and add to its `more`; everything else stays, byte for byte.

    The folder is made anew beside itself, of hard links where the disk has them, and takes its own place in one move: a kill leaves
    the old one or the new one. Checksums of other files are carried over, not computed, so that damage stays visible.
    Raises `UserError` when the disk is full or the place cannot be written; the checkpoint is then as it was.
    """
    folder = find(folder)
    raw = json.loads((folder / "spec.json").read_text("utf-8"))
    text = as_json({**raw, "lineage": [dict(entry) for entry in lineage], "more": {**raw["more"], **more}})
    if text == (folder / "spec.json").read_text("utf-8"):
        return
    files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    content = text.encode()
    files["spec.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    temporary = folder.with_name(f"tmp-{folder.name}-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(folder, temporary, copy_function=_link, ignore=shutil.ignore_patterns("spec.json", MANIFEST))
        for name, new in (("spec.json", text), (MANIFEST, manifest(files))):
            with (temporary / name).open("w", encoding="utf-8") as file:
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
        publish(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"cannot write the card of {folder}: {error.strerror or error}",
            "make room or mend the permissions, then run the same command again",
        ) from error


def _link(source: str, target: str) -> None:
    """The same file under a second name; a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

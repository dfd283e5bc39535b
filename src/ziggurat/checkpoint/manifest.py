"""The manifest of a checkpoint: which files it has, their sizes and hashes, and a hash of all that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "MANIFEST.json"


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Path in the folder -> size in bytes and sha256."""
    return {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": digest(p)} for p in files_in(folder)}


def manifest(listed: Mapping[str, Mapping[str, Any]]) -> str:
    """The manifest's text: sealed with a hash of its own, and without a spare byte, so that any change to it shows."""
    seal = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return json.dumps({"format": FORMAT, "files": listed, "seal": seal}, separators=(",", ":"))


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

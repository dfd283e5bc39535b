"""Which version of a dataset is there now: of a folder its files, of the Hugging Face hub a commit."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

from ziggurat.data import files

log = logging.getLogger(__name__)

SECONDS = 10
"""How long the hub is waited for."""


def version(name: str, revision: str | None) -> list[Any]:
    """Changes when what `datasets.load_dataset` reads under this name does: names, sizes and times of a folder's files (hidden ones left
    out), otherwise the commit; empty where that is not known. A revision that is a commit says all by itself, and nothing is asked."""
    folder = Path(name)
    if folder.is_dir():
        return [[str(path), stat.st_size, stat.st_mtime_ns] for path in sorted(files.inside(folder)) for stat in [path.stat()]]
    if re.fullmatch(r"[0-9a-f]{7,40}", revision or ""):
        return []
    commit = _commit(name, revision or "main")
    return [commit] if commit else []


@cache
def _commit(name: str, revision: str) -> str | None:
    """The commit that a branch or a tag is, asked once in a process. Where the hub does not answer, the one that this machine loaded last,
    and the log says so; None if there is none."""
    try:
        from huggingface_hub import dataset_info

        return dataset_info(name, revision=revision, timeout=SECONDS).sha
    except Exception as error:  # no package, no network, no such dataset: if it cannot be loaded either, that is said there
        kept = _kept(name, revision)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        said = f"it is taken to be the one loaded here before, {kept[:12]}" if kept else "whether it changed is not seen"
        log.warning("%s: the hub does not say which version `%s` is (%s); %s", name, revision, reason, said)
        return kept


def _kept(name: str, revision: str) -> str | None:
    """The commit that the hub's own cache has for a branch or a tag: `datasets--<owner>--<name>/refs/<revision>`."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return None
    path = Path(HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}", "refs", revision)
    return path.read_text("utf-8").strip() or None if path.is_file() else None

"""Folders that were begun with other settings, all of them named before anything is trained: one refusal, not one a training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ziggurat.pipeline import run as running
from ziggurat.train import settings
from ziggurat.train.stage import Stage

if TYPE_CHECKING:
    from ziggurat.pipeline.run import Run


@dataclass(frozen=True)
class Asked:
    """A training in a folder, before it is run."""

    stage: Stage
    folder: Path
    seed: int
    init: str
    steps: int | None = None
    """Of a time budget, measured elsewhere."""
    until: int | None = None
    """Where it ends before its schedule does."""


def unchanged(run: Run, asked: Iterable[Asked]) -> None:
    """Raise one `UserError` that names all folders among them in which something was trained with other settings."""
    found = {}
    for one in asked:
        if settings.begun(one.folder):
            job = running.job_of(run, one.stage, one.folder, one.seed, one.init, steps=one.steps, until=one.until)
            if changed := settings.changes(one.folder, settings.of(job)):
                found[one.folder] = changed
    if found:
        raise settings.refused(found)

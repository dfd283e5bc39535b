"""Folders that were begun with other settings, all of them named before anything is trained: one refusal, not one a training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ziggurat.pipeline import run as running
from ziggurat.train import settings

if TYPE_CHECKING:
    from ziggurat.pipeline.run import Run, Training


def unchanged(run: Run, asked: Iterable[Training]) -> None:
    """Raise one `UserError` that names all folders among them in which something was trained with other settings."""
    found = {}
    for one in asked:
        if settings.begun(one.folder):
            job = running.job_of(run, one)
            if changed := settings.changes(one.folder, settings.of(job)):
                found[one.folder] = changed
    if found:
        raise settings.refused(found)

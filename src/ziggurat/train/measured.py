"""What held-out numbers were measured on. They decide no training, so a finished stage whose held-out text is another now is measured again,
not trained again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ziggurat.atomic import write_json
from ziggurat.train.stage import Stage

BEFORE = "before.json"
"""In a stage's folder: {measured: source -> what identifies its held-out text, numbers: source -> those of the start}."""


def other(stage: Stage, then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The sources that a stage must be measured on again: those whose text is another than it was, and those of its gain and forgetting
    that were not measured. Of folders older than this record nothing is known, which is the same.

    then, now: source -> what identifies its held-out text.
    """
    assert stage.objective is not None
    general = (stage.forgetting.general if stage.forgetting is not None else None) or ()
    asked = () if stage.objective.labelled else (*stage.data, *general)
    return [name for name, text in now.items() if then.get(name, text if name not in asked else "") != text]


def write_before(folder: Path, measured: Mapping[str, str], numbers: Mapping[str, Mapping[str, float]]) -> None:
    """Keep the held-out numbers of a stage's start in its folder."""
    write_json(folder / BEFORE, {"measured": dict(measured), "numbers": numbers})


def read_before(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """(what they were measured on, the numbers) of a stage's start; both empty where there are none."""
    path = folder / BEFORE
    kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return (kept["measured"], kept["numbers"]) if kept.keys() == {"measured", "numbers"} else ({}, kept)

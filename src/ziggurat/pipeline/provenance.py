"""What a stage's checkpoint is told when the stage is done: its scores, and where its text is from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import format as checkpoints
from ziggurat.checkpoint.amend import amend
from ziggurat.data.sources import Docstrings, Files, Hub, Source, file_names
from ziggurat.errors import UserError
from ziggurat.evaluate.heldout import Predictions, metric_of
from ziggurat.pipeline.choose import Choice
from ziggurat.train.job import Outcome
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.train.tasks import several, single

SHOWN = 5
"""Files of a source that are named."""


def complete(
    recipe: Recipe,
    stage: Stage,
    checkpoint: Path,
    outcome: Outcome,
    predictions: Mapping[str, Predictions],
    choice: Choice | None,
    new_tokens: int = 0,
) -> None:
    """Write scores, origins and the recipe's `card` into the card of a stage's last checkpoint, and how many tokens it brought."""
    card = checkpoints.card(checkpoint)
    *before, last = card.lineage
    held_out = losses(outcome.held_out)
    own = {
        **last,
        **_asked(stage, last, predictions),
        "recipe": recipe.name,
        "origins": {name: origin(recipe.sources[name]) for name in stage.reads},
        **({"new_tokens": new_tokens} if new_tokens else {}),
        **({"start": choice.why} if choice is not None else {}),
        **({"ended": ending.entry} if (ending := outcome.ending(stage)) else {}),
        **({"held_out": held_out} if held_out else {}),
        **_tests(stage, predictions),
    }
    about = {k: v for k, v in recipe.card.model_dump(mode="json").items() if v}
    amend(checkpoint, lineage=(*before, own), more={"card": {**card.more.get("card", {}), **about}})


def losses(held_out: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Held-out numbers by source as a lineage keeps them: without undefined ones."""
    return {source: kept for source, numbers in held_out.items() if (kept := _finite(numbers))}


def _asked(stage: Stage, last: Mapping[str, Any], predictions: Mapping[str, Predictions]) -> dict[str, Any]:
    """The objective as the model is asked from now on: a tuned threshold of no answer is the number that was found."""
    objective = dict(last.get("objective", {}))
    for source, found in predictions.items():
        if found.threshold is not None and several(stage):
            parts = dict(objective.get("parts", {}))
            objective["parts"] = parts | {source: {**parts.get(source, {}), "threshold": found.threshold}}
        elif found.threshold is not None:
            objective["threshold"] = found.threshold
    return {"objective": objective} if objective else {}


def _tests(stage: Stage, predictions: Mapping[str, Predictions]) -> dict[str, Any]:
    found = {}
    for source, one in single(stage).items() if predictions else ():
        assert one.objective is not None
        metric, value = metric_of(one.objective), predictions[source].score(one.objective)
        found[source] = {"source": source, "metric": metric.name, "rows": len(predictions[source].gold)}
        found[source] |= {"value": float(value)} if math.isfinite(value) else {}
    if not found:
        return {}
    return {"tests": found} if several(stage) else {"test": next(iter(found.values()))}


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def origin(source: Source) -> dict[str, Any]:
    """Where a source's text is from, without the folders of this machine."""
    match source:
        case Files():
            try:
                names = file_names(source)
            except UserError:  # they were there when the stage began
                return {}
            return {"files": [*names[:SHOWN], *([f"and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else [])]}
        case Hub():
            place = {"dataset": "a folder"} if Path(source.id).is_dir() else {"hub": source.id}
            return place | {k: v for k in ("config", "revision") if (v := getattr(source, k))}
        case Docstrings():
            return {"docstrings": [p for p in source.packages if p not in source.exclude]}
    return {"docstrings": [source.package]}

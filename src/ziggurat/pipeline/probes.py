"""What a stage does to tasks that it was not made for: a linear probe on frozen features, before and after it.

Rows are the labelled source's own held-out ones, which no stage trains on; the folds are the same before and after, so the change is judged
fold by fold. A probe asks what is left in the weights, without the luck of a fine-tuning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ziggurat.atomic import write_json
from ziggurat.config import spelled
from ziggurat.data.subset import Subset
from ziggurat.evaluate.frozen import cross_validated, document_features, splits, word_features
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective, context_of
from ziggurat.objectives.labelled import Tag, column_of
from ziggurat.pipeline.choose import paired
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.prepare import content
from ziggurat.pipeline.table import probed
from ziggurat.train import job as jobs
from ziggurat.train import settings

if TYPE_CHECKING:
    from ziggurat.data.shards import Shards
    from ziggurat.pipeline.opened import Opened
    from ziggurat.pipeline.scoring import Scorer
    from ziggurat.train.stage import Stage

log = logging.getLogger(__name__)

FILE = "probes.json"
ROWS = 1000
"""Labelled rows looked at, at most."""


def write(stage: Stage, folder: Path, steps: int, start: Opened | None, before: Scorer, after: Scorer) -> None:
    """Probe the tasks of `forgetting.tasks` on the start and on what the stage handed on: probes.json in its folder, made anew
    where tasks, rows or weights are others. `before` and `after`
    hold the rows as the tokenizer of each cuts them."""
    path = folder / FILE
    tasks = stage.forgetting.tasks if stage.forgetting is not None else {}
    if not tasks or start is None:
        return
    rows_of = [content(scorer.shards[key]) for scorer in (before, after) for key in sorted(scorer.shards) if key[0] in tasks]
    written = {name: spelled(objective) for name, objective in tasks.items()}
    asked = settings.digest([settings.fingerprint(folder), steps, written, rows_of])
    if path.exists() and json.loads(path.read_text("utf-8"))["asked"] == asked:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [start.build().to(device), open_checkpoint(jobs.result(folder, steps)).build().to(device)]
    found: dict[str, Any] = {}
    for name, objective in tasks.items():
        scores = []
        folds: list[tuple[np.ndarray, np.ndarray]] = []
        for network, scorer in zip(networks, (before, after), strict=True):
            x, labels, rows, owner = _features(network, objective, scorer, name, stage.length)
            folds = folds or splits(rows, stratified=objective.kind == "classify", seed=scorer.recipe.seed)
            own = [tuple(np.flatnonzero(np.isin(owner, some)) for some in fold) for fold in folds]
            scores.append(cross_validated(x, labels, objective, own))  # type: ignore[arg-type]
        change, error = paired(scores[1].tolist(), scores[0].tolist())
        found[name] = {
            "rows": len(rows),
            "before": float(scores[0].mean()),
            "after": float(scores[1].mean()),
            "change": change,
            "error": error,
        }
    write_json(path, {"asked": asked, "found": found})
    log.info("%s: probes of general tasks: %s", stage.title, probed(found))


def read(folder: Path) -> dict[str, Any]:
    """What `write` has found; empty if it was not asked."""
    path = folder / FILE
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))["found"] if path.exists() else {}
    return found


def rows_of(shards: Mapping[tuple[str, str], Shards], name: str, seed: int) -> Subset:
    """The held-out rows of a source that are looked at."""
    held = next(shards[name, split] for split in ("test", "valid") if (name, split) in shards)
    return Subset(held, np.sort(np.random.default_rng([seed, 13]).permutation(len(held))[:ROWS]))


def _features(
    network: NetworkModel, objective: Objective, scorer: Scorer, name: str, length: int
) -> tuple[np.ndarray, list[Any], list[Any], np.ndarray]:
    """(features float64[N, F], their labels, a label for each row, int64[N] the row of each feature)."""
    seed = scorer.recipe.seed
    chosen = rows_of(scorer.shards, name, seed)
    tokens = chosen.read(np.arange(len(chosen)))
    model = network.spec.model
    ctx = context_of(model, scorer.tokenizer, min(length, model.embed.positions.length), seed)
    if isinstance(objective, Tag):
        x, labels, owner = word_features(network, tokens, ctx)
        return x, labels, [""] * len(chosen), owner
    rows = list(column_of(tokens, "label"))
    return document_features(network, tokens, ctx), rows, rows, np.arange(len(chosen))

"""A fine-tuned stage, task by task: its test answers, its folders for the Hub, and what the report is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ziggurat.atomic import write_json
from ziggurat.data.shares import Split
from ziggurat.evaluate.heldout import Predictions
from ziggurat.nn.tasks import view
from ziggurat.objectives.labelled import Tag
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.prepare import Prepared, content
from ziggurat.pipeline.worth import Ledger
from ziggurat.systems.base import NoHubClass
from ziggurat.systems.hub import export_checkpoint
from ziggurat.train import job as jobs
from ziggurat.train.job import Outcome
from ziggurat.train.loop import precision_of
from ziggurat.train.stage import Stage
from ziggurat.train.tasks import several, single

if TYPE_CHECKING:
    from ziggurat.pipeline.run import Done, Run

log = logging.getLogger(__name__)


def answers(run: Run, prepared: Prepared, stage: Stage, folder: Path, outcome: Outcome, split: Split) -> dict[str, Predictions]:
    """The answers of a fine-tuned checkpoint on a split by its tasks' sources, kept beside it with what identifies the rows: `predictions.json`
    (of another split than the test rows `predictions-<split>.json`), and of several tasks `predictions/<task>.json`. Where the rows are others
    than those of a finished stage, it is no longer marked as done, for its card has the old score."""
    found: dict[str, Predictions] = {}
    network, device = None, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, one in single(stage).items():
        other = "" if split == "test" else f"-{split}"
        path = folder / f"predictions{other}" / f"{name}.json" if several(stage) else folder / f"predictions{other}.json"
        rows = content(prepared.shards[name, split])
        if getattr(one.objective, "threshold", None) == "tuned" and (name, "valid") in prepared.shards:
            rows += f"/{content(prepared.shards[name, 'valid'])}"
        if isinstance(one.objective, Tag):
            rows += "/words"  # answers of before lacked those that were not read
        if path.exists():
            kept = json.loads(path.read_text("utf-8"))
            if kept.pop("documents", "") == rows:
                found[name] = Predictions(**kept)
                continue
            (folder / "DONE").unlink(missing_ok=True)
        if network is None:
            network = open_checkpoint(jobs.result(folder, outcome.steps)).build().to(device)
        assert one.objective is not None
        asked = view(network, name) if several(stage) else network
        found[name] = run.scorer(prepared).answers(asked, one.objective, one, precision_of(stage.precision, device), split)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"documents": rows, **asdict(found[name])})
    return found


def export_stage(stage: Stage, folder: Path) -> None:
    """Write a finished stage in Hugging Face format into `hf`, of several tasks one folder each into `hf/<task>`: the same body with that
    task's head."""
    for name in single(stage) if several(stage) else [""]:
        try:
            for note in export_checkpoint(folder, folder / "hf" / name, task=name or None).notes:
                log.debug("%s: %s", folder, note)
        except NoHubClass as error:
            log.info("%s: there is no folder hf%s: %s", stage.title, f"/{name}" if name else "", error.message)


def facts(run: Run, stage: Stage, arms: Mapping[str, Mapping[int, Done]], ledgers: Mapping[str, Ledger]) -> list[dict[str, Any]]:
    """What the report says about each task of a stage that has several: {task, kind, rows, test, worth}."""
    if not several(stage):
        return []
    some = next(iter(next(iter(arms.values())).values()))
    found = []
    for name, one in single(stage).items():
        assert one.objective is not None
        rows = stage.examples or len(run.prepared.shards[name, "train"])
        test = len(some.predictions[name].gold)
        found.append({"task": name, "kind": one.objective.kind, "rows": rows, "test": test, "worth": ledgers[name]})
    return found

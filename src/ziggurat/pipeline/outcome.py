"""What a finished run amounts to: baselines, the ledger of the stages, report and table."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ziggurat.config import dump
from ziggurat.data import sources
from ziggurat.data.subset import Subset
from ziggurat.evaluate import baselines
from ziggurat.evaluate.heldout import metric_of
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Labels, Regress, Tag
from ziggurat.pipeline import worth
from ziggurat.pipeline.report import write_report
from ziggurat.pipeline.table import terminal_table
from ziggurat.train.stage import Stage
from ziggurat.types import Document

if TYPE_CHECKING:
    from ziggurat.pipeline.run import Done, Run

log = logging.getLogger(__name__)


def account(run: Run, arms: Mapping[str, Mapping[int, Done]], recipe_path: str | Path) -> None:
    """Write report.html and report.json into the run folder and print the table."""
    ledger = None
    if arms:
        stage = next(iter(next(iter(arms.values())).values())).stage
        assert stage.objective is not None
        ledger = _ledger(run, arms, stage, stage.objective)
    facts = _facts(run, arms, ledger, recipe_path)
    html, _ = write_report(run.folder, facts)
    from rich.console import Console

    console = Console(width=None if os.isatty(1) else 140)
    console.print(terminal_table(facts))
    console.print(f"report: {html}")


def _ledger(run: Run, arms: Mapping[str, Mapping[int, Done]], stage: Stage, objective: Objective) -> worth.Ledger:
    metric = metric_of(objective)
    trials: dict[str, dict[int, worth.Trial | float]] = {}
    gold = None
    for name, row in arms.items():
        trials[name] = {}
        for seed, done in row.items():
            assert done.predictions is not None
            gold = done.predictions.gold
            trials[name][seed] = worth.Trial(done.predictions.score(objective), done.predictions.predicted)
    after = {}
    for title, done in run.done.items():
        if done.stage.stage != "finetune":
            loss = {source: _loss(numbers) for source, numbers in done.outcome.held_out.items()}
            o = done.outcome
            after[f"+{title}"] = worth.After(o.tokens, o.seconds, o.tokens_per_second, loss)
    seeds = list(next(iter(arms.values())))
    return worth.measure(trials, metric, gold=gold, baselines=_baselines(run, stage, objective, seeds), after=after)


def _loss(numbers: Mapping[str, float]) -> float:
    """The language-model loss among a source's held-out numbers."""
    return next((numbers[name] for name in ("mlm", "clm") if name in numbers), float("nan"))


def _baselines(run: Run, stage: Stage, objective: Objective, seeds: list[int]) -> dict[str, float]:
    """Scores of the baselines, each the mean over the same draws of labelled rows that the model had."""
    from ziggurat.pipeline.run import draw

    path = run.folder / "baselines.json"
    settings = {"seeds": seeds, "examples": stage.examples, "objective": objective.model_dump(mode="json")}
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if kept["settings"] == settings:
            return kept["scores"]
    (name,) = stage.data
    source = run.recipe.sources[name]
    train = run.prepared.shards[name, "train"]
    test = list(sources.documents(source, "test"))
    by_id = {d.id: d for d in sources.documents(source, "train")}
    kind: Any = "regress" if isinstance(objective, Regress) else "tag" if isinstance(objective, Tag) else "classify"
    metric = metric_of(objective)
    sums: dict[str, list[float]] = defaultdict(list)
    for seed in seeds if stage.examples else seeds[:1]:
        chosen: Any = draw(train, stage.examples, seed) if stage.examples else Subset(train, np.arange(len(train)))
        rows = [by_id[i] for i in chosen.ids(np.arange(len(chosen)))]
        x, y = _examples(rows, objective)
        x_test, y_test = _examples(test, objective)
        for baseline, score in baselines.baselines(kind, x, y, x_test, y_test, metric).items():
            sums[baseline].append(score)
    scores = {baseline: float(np.mean(values)) for baseline, values in sums.items()}
    path.write_text(json.dumps({"settings": settings, "scores": scores}), "utf-8")
    return scores


def _examples(documents: list[Document], objective: Objective) -> tuple[list[Any], list[Any]]:
    """Inputs and answers as `evaluate.baselines` takes them."""
    if isinstance(objective, Tag):
        names = dict(zip(map(str, objective.labels), objective.label_names()))
        words = [[d.texts["text"][m.start : m.end] for m in d.marks] for d in documents]
        return words, [[names[m.label] for m in d.marks] for d in documents]
    texts = [(d.texts["text"], d.texts["pair"]) if "pair" in d.texts else d.texts["text"] for d in documents]
    labels = [d.fields["label"] for d in documents]
    if isinstance(objective, Labels):
        names = dict(zip(map(str, objective.labels), objective.label_names()))
        return texts, [names[str(label)] for label in labels]
    return texts, [float(label) for label in labels]


def _facts(
    run: Run, arms: Mapping[str, Mapping[int, Done]], ledger: worth.Ledger | None, recipe_path: str | Path
) -> dict[str, Any]:
    recipe = run.recipe
    entries = []
    for title, done in run.done.items():
        o = done.outcome
        heldout = {source: {"loss": _loss(n), **n} for source, n in o.held_out.items()}
        entries.append(
            {
                "name": title,
                "stage": done.stage.stage,
                "data": ", ".join(done.stage.data),
                "steps": o.steps,
                "tokens": o.tokens,
                "seconds": o.seconds,
                "tokens_per_second": o.tokens_per_second,
                "curve": o.curve,
                "heldout": heldout,
            }
        )
    some = next(iter(run.done.values()))
    prepared = run.prepared

    def count(name: str, split: str) -> int:
        return len(prepared.shards[name, split]) if (name, split) in prepared.shards else 0

    data = [
        {
            "source": name,
            "documents": len(shards),
            "tokens": shards.tokens,
            "heldout": count(name, "valid"),
            "test": count(name, "test"),
            "leaks": prepared.facts[name, split].get("leaks", 0),
        }
        for (name, split), shards in prepared.shards.items()
        if split == "train"
    ]
    return {
        "name": recipe.name,
        "system": recipe.system,
        "parameters": some.outcome.parameters,
        "machine": {
            "processor": f"{platform.machine()}, {os.cpu_count()} cores",
            "threads": str(torch.get_num_threads()),
            "precision": some.outcome.precision,
        },
        "metric": ledger.metric if ledger else "",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "numpy")} | {"python": platform.python_version()},
        "stages": entries,
        "worth": ledger,
        "sources": data,
        "config": dump(recipe),
        "commands": [f"ziggurat run {recipe_path}"],
    }

"""What a finished run amounts to: baselines, the ledger of the stages, report and table."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ziggurat import __version__
from ziggurat.atomic import write_json
from ziggurat.config import dump
from ziggurat.data import sources
from ziggurat.data.subset import Subset, draw
from ziggurat.evaluate import baselines
from ziggurat.evaluate.heldout import PER_BYTE, main_loss, metric_of
from ziggurat.log import read_metrics
from ziggurat.objectives.base import Objective
from ziggurat.pipeline import context_use, interpolation, probes, tasks, vocabulary, worth
from ziggurat.pipeline.advice import advice
from ziggurat.pipeline.examples import inputs_and_answers, scored
from ziggurat.pipeline.prepare import content
from ziggurat.pipeline.report import write_report
from ziggurat.pipeline.table import terminal_table
from ziggurat.train.adaptation import shift
from ziggurat.train.stage import Stage
from ziggurat.train.tasks import several, single

if TYPE_CHECKING:
    from ziggurat.pipeline.choose import Choice
    from ziggurat.pipeline.run import Done, Run

log = logging.getLogger(__name__)


def account(
    run: Run, arms: Mapping[str, Mapping[int, Done]], arguments: Sequence[str], control: worth.Control | None = None
) -> None:
    """Write report.html and report.json into the run folder and print the table. `arguments` are those of `ziggurat run`."""
    ledgers: dict[str, worth.Ledger] = {}
    about: list[dict[str, Any]] = []
    if arms:
        stage = next(iter(next(iter(arms.values())).values())).stage
        for name, one in single(stage).items():
            assert one.objective is not None
            ledgers[name] = _ledger(run, arms, one, one.objective, control)
        about = tasks.facts(run, stage, arms, ledgers)
    ledger = next(iter(ledgers.values())) if ledgers and not about else None
    facts = {**_facts(run, arms, ledger, arguments), "tasks": about}
    html, _ = write_report(run.folder, facts)
    from rich.console import Console

    console = Console(width=None if os.isatty(1) else 140)
    console.print(terminal_table(facts))
    console.print(f"report: {html}")


def _ledger(
    run: Run,
    arms: Mapping[str, Mapping[int, Done]],
    stage: Stage,
    objective: Objective,
    control: worth.Control | None,
) -> worth.Ledger:
    metric = metric_of(objective)
    (task,) = stage.data
    trials: dict[str, dict[int, worth.Trial | float]] = {}
    gold, alike = None, True
    for name, row in arms.items():
        trials[name] = {}
        for seed, done in row.items():
            found = done.predictions[task]
            alike = alike and gold in (None, found.gold)
            gold = found.gold
            trials[name][seed] = worth.Trial(found.score(objective), found.predicted)
    after = {}
    for title, done in (*run.done.items(), *((name.lstrip("+"), one) for name, one in run.controls.items())):
        if done.stage.stage != "finetune":
            loss = _losses(done, per_byte(run))
            after[f"+{title}"] = worth.After(*done.outcome.cost, done.outcome.tokens_per_second, loss)
    seeds = list(next(iter(arms.values())))
    if not alike:  # tagged words that one tokenizer still reads stand behind the longest example of another
        log.warning("the arms were asked for different words: their tokenizers cut the test texts in different places")
        trials = {name: {seed: t.score for seed, t in row.items()} for name, row in trials.items()}  # type: ignore[union-attr]
        gold = None
    scores = _baselines(run, stage, objective, seeds)
    return worth.measure(trials, metric, gold=gold, baselines=scores, after=after, control=control)


def per_byte(run: Run) -> bool:
    """Whether the run's stages read other tokens, so that only losses a byte can be compared."""
    return vocabulary.tokenizers_differ(run.read, run.prepared)


def _loss(numbers: Mapping[str, float], per_byte: bool) -> float | None:
    """What is quoted of a source's held-out numbers: the language-model loss, or else the first one; or bits a byte."""
    return numbers.get(PER_BYTE if per_byte else main_loss(numbers))


def _questions(done: Mapping[str, Done]) -> list[str]:
    """A warning if the held-out losses of the text stages answer different questions."""
    asked: dict[str, list[str]] = defaultdict(list)
    for title, one in done.items():
        if one.stage.stage != "finetune" and (names := {main_loss(n) for n in one.outcome.held_out.values()} - {""}):
            asked[", ".join(sorted(names))].append(title)
    if len(asked) < 2:
        return []
    said = "; ".join(f"{name} after {', '.join(titles)}" for name, titles in asked.items())
    return [f"The held-out losses are of different questions and cannot be compared between stages: {said}."]


def _losses(done: Done, per_byte: bool) -> dict[str, float]:
    found = {source: _loss(numbers, per_byte) for source, numbers in done.outcome.held_out.items()}
    return {source: loss for source, loss in found.items() if loss is not None}


def _baselines(run: Run, stage: Stage, objective: Objective, seeds: list[int]) -> dict[str, float]:
    """Scores of the baselines on the test rows that the model answered, each the mean over the same draws of labelled rows that it had."""
    (name,) = stage.data
    train, test_rows = (run.prepared.shards[name, split] for split in ("train", "test"))
    last = next(s for s in reversed(run.recipe.stages) if s.stage == "finetune")
    path = run.folder / (f"baselines-{name}.json" if several(last) else "baselines.json")
    settings = {
        "seeds": seeds,
        "examples": stage.examples,
        "objective": objective.model_dump(mode="json"),
        "rows": [content(train), content(test_rows)],
    }
    if lost := test_rows.meta["dropped"]:  # earlier versions scored these rows, too
        settings["lost"] = lost
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if kept["settings"] == settings:
            return kept["scores"]
    source = run.recipe.sources[name]
    log.info("baselines of %s on the same rows", name)
    tests, by_id = ({d.id: d for d in sources.documents(source, split)} for split in ("test", "train"))
    test = [tests[i] for i in test_rows.ids(np.arange(len(test_rows)))]
    metric = metric_of(objective)
    sums: dict[str, list[float]] = defaultdict(list)
    for seed in seeds if stage.examples else seeds[:1]:
        chosen: Any = draw(train, stage.examples, seed) if stage.examples else Subset(train, np.arange(len(train)))
        rows = [by_id[i] for i in chosen.ids(np.arange(len(chosen)))]
        x, y = inputs_and_answers(rows, objective)
        x_test, y_test = inputs_and_answers(test, objective)
        gold = scored(test, objective, y_test)
        for baseline, guess in baselines.predict(objective.kind, x, y, x_test).items():  # type: ignore[arg-type]
            sums[baseline].append(metric(gold, scored(test, objective, guess)))
    scores = {baseline: float(np.mean(values)) for baseline, values in sums.items()}
    write_json(path, {"settings": settings, "scores": scores})
    return scores


def _facts(
    run: Run, arms: Mapping[str, Mapping[int, Done]], ledger: worth.Ledger | None, arguments: Sequence[str]
) -> dict[str, Any]:
    """What `report` describes, from the run's folder and memory."""
    recipe, prepared = run.recipe, run.prepared
    some = next(iter(run.done.values())).outcome
    vocab = prepared.tokenizer.vocab.size
    return {
        "name": recipe.name,
        "system": recipe.system,
        "parameters": some.parameters,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "task": _task(run, arms),
        "machine": {
            "processor": f"{platform.machine()}, {os.cpu_count()} cores"
            + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
            "threads": str(torch.get_num_threads()),
            "precision": some.precision,
        },
        "tokenizer": f"{prepared.tokenizer.kind}, {vocab:,} entries, {prepared.tokenizer.fingerprint[:12]}",
        "metric": ledger.metric if ledger else "",
        "versions": {"ziggurat": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "tokenizers", "numpy")},
        "stages": [_stage(title, done, per_byte(run)) for title, done in run.done.items()],
        "loss": "bits/byte" if per_byte(run) else "loss",
        "vocabularies": [
            vocabulary.facts(title, done.folder, done.outcome, run.read.get(str(done.stage.init), prepared), run.read[title])
            for title, done in run.done.items()
            if done.stage.vocabulary is not None
        ],
        "worth": ledger,
        "advice": advice(ledger) if ledger is not None else "",
        "sources": [_source(run, name) for name, split in prepared.shards if split == "train"],
        "doctor": run.before,
        "choices": [_choice(choice) for choice in run.choices.values()],
        "notes": [
            *(f"{t}: {end.sentence}" for t, done in run.done.items() if (end := done.outcome.ending(done.stage))),
            *_questions(run.done),
        ],
        "config": dump(recipe),
        "commands": [shlex.join(["ziggurat", "run", *arguments])],
    }


def _task(run: Run, arms: Mapping[str, Mapping[int, Done]]) -> str:
    """What was fine-tuned and tested, in a few words."""
    if not arms:
        return ""
    done = next(iter(next(iter(arms.values())).values()))
    said = []
    for name, one in single(done.stage).items():
        assert one.objective is not None
        rows = one.examples or len(run.prepared.shards[name, "train"])
        said.append(f"{one.objective.kind} {name}: {rows:,} labelled rows, {len(done.predictions[name].gold):,} test rows")
    return "; ".join(said)


def _stage(title: str, done: Done, per_byte: bool) -> dict[str, Any]:
    o = done.outcome
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in read_metrics(done.folder / "metrics.jsonl"):
        by_source: dict[str, dict[str, float]] = defaultdict(dict)
        for key, value in line.items():
            if key.startswith("heldout/") and value is not None:
                _, source, name = key.split("/", 2)
                by_source[source][name] = value
        for source, numbers in by_source.items():
            if (loss := _loss(numbers, per_byte)) is not None:
                curves[source].append((line["step"], loss))
    moved = shift(done.stage, o.before, o.held_out)
    return {
        "name": title,
        "stage": done.stage.stage,
        "data": ", ".join(done.stage.data),
        "shift": asdict(moved) if moved is not None else None,
        "stopped": o.stopped,
        "ended": o.ended,
        "score": o.score,
        "interpolation": _line(done.folder),
        "context": context_use.read(done.folder),
        "probes": probes.read(done.folder),
        "steps": o.steps,
        "skipped": o.skipped,
        "tokens": o.cost[0],
        "seconds": o.cost[1],
        "evaluation_seconds": o.evaluation_seconds,
        "tokens_per_second": o.tokens_per_second,
        "curve": o.curve,
        "heldout": {source: {"loss": _loss(n, per_byte), **n} for source, n in o.held_out.items()},
        "heldout_curve": dict(curves),
    }


def _line(folder: Path) -> dict[str, Any] | None:
    """The losses between a stage's start and what it trained: {points: [{share, losses: {source: nats}}], chosen}."""
    found = interpolation.read(folder)
    if found is None:
        return None
    points = [{"share": p["share"], "losses": {s: n[main_loss(n)] for s, n in p["found"].items()}} for p in found["points"]]
    return {"points": points, "chosen": found["chosen"]}


def _choice(choice: Choice) -> dict[str, Any]:
    header, rows = choice.table()
    return {"stage": choice.stage, "why": choice.why, "header": header, "rows": rows, "text": choice.text}


def _source(run: Run, name: str) -> dict[str, Any]:
    shards = run.prepared.shards

    def count(split: str) -> int:
        return len(shards[name, split]) if (name, split) in shards else 0

    return {
        "source": name,
        "documents": count("train"),
        "tokens": shards[name, "train"].tokens,
        "heldout": count("valid"),
        "test": count("test"),
        "leaks": run.prepared.facts[name, "train"].get("leaks", 0),
        **{k: v for k, v in shards[name, "train"].fertility.items() if k in ("tokens_per_word", "unknown_share")},
    }

"""Answers on the test rows of a suite's task, after a fine-tuning or of a baseline, kept by content.

evaluations/results/<task>-<hash>/seed-<n>/result.json    the answers, with what they came from
evaluations/baselines/<hash>.json                         those of majority, TF-IDF ...

The hash is that of everything that decides the answers: weights, tokenizer, rows, settings, version. So whoever asks the same again,
from another suite or under another name, finds them. Weights of a fine-tuning are removed once its answers are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat import __version__
from ziggurat.atomic import write_json
from ziggurat.config import given, spelled
from ziggurat.data.subset import draw
from ziggurat.evaluate import baselines
from ziggurat.evaluate.heldout import Predictions
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Classify, Regress
from ziggurat.pipeline import run as runs
from ziggurat.pipeline import verbalised
from ziggurat.pipeline.examples import inputs_and_answers, scored
from ziggurat.pipeline.scoring import Scorer
from ziggurat.pipeline.session import Signals
from ziggurat.pipeline.suite_likelihood import choose
from ziggurat.pipeline.suite_question import ROOT, SOURCE, Question, identity
from ziggurat.pipeline.suite_results import Answers
from ziggurat.train.loop import precision_of
from ziggurat.types import Document

log = logging.getLogger(__name__)


def answer(question: Question, seed: int, signals: Signals) -> Answers:
    """The answers after fine-tuning with this seed: found where they are kept, or trained and kept.

    A killed fine-tuning goes on where it was. Raises `Stopped` when a signal came in.
    """
    folder = question.folder / f"seed-{seed}"
    path = folder / "result.json"
    if not path.exists():
        found, steps, seconds = _tuned(question, folder, seed, signals)
        gold, predicted = _whole(question, found)
        test = question.prepared.shards[SOURCE, "test"]
        opened = question.opened
        facts = {
            "task": question.name,
            "checkpoint": str(opened.folder),
            "weights": opened.fingerprint,
            "seed": seed,
            "version": __version__,
            "stage": spelled(question.stage),
            "steps": steps,
            "seconds": seconds,
            "ids": list(test.ids(np.arange(len(test)))),
            "gold": gold,
            "predicted": predicted,
            "more": found.more,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, facts)
    _clear(folder)
    kept = json.loads(path.read_text("utf-8"))
    gold, predicted = _as_scored(question, kept["gold"], kept["predicted"])
    return Answers(gold, predicted, str(folder), kept["steps"], kept["seconds"], kept["more"])


def _tuned(question: Question, folder: Path, seed: int, signals: Signals) -> tuple[Predictions, int, float]:
    """The answers, and the steps and seconds of training."""
    if question.shots is not None:
        log.info("%s: %s by likelihood, %d shots, seed %d", question.name, question.label, question.shots, seed)
        return choose(question, seed, question.shots), 0, 0.0
    if question.task.zero_shot:
        return _as_it_is(question), 0, 0.0
    opened = question.opened
    run = runs.Run(question.recipe, folder, question.prepared, signals, {opened.fingerprint: opened}, {})
    title = f"{question.name}, {question.label}, seed {seed}"
    done = runs.train(run, runs.Training(question.stage, folder, seed, str(question.stage.init), title), export=False)
    (found,) = done.predictions.values()
    return found, done.outcome.steps, done.outcome.seconds


def _clear(folder: Path) -> None:
    """Remove the weights of a fine-tuning whose answers are kept."""
    for weights in (*folder.glob("step-*"), *folder.glob("within")):
        shutil.rmtree(weights)
    (folder / "predictions.json").unlink(missing_ok=True)


def _as_it_is(question: Question) -> Predictions:
    """What the checkpoint answers untrained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert question.opened.tokenizer is not None
    scorer = Scorer(question.recipe, question.prepared.shards, question.opened.tokenizer, question.folder)
    log.info("%s: %s as it is", question.name, question.label)
    network = question.opened.build().to(device)
    return scorer.answers(network, question.trained, question.stage, precision_of(question.stage.precision, device))


def _whole(question: Question, found: Predictions) -> tuple[list[Any], list[Any]]:
    """Gold and answers as they are kept: labels again where they were written as text, row by row."""
    if not question.as_text:
        return found.gold, found.predicted
    objective = question.objective
    gold = [_gold(objective, document) for document in question.documents("test")]
    return gold, [verbalised.understand(objective, text) for text in found.predicted]


def _as_scored(question: Question, *kept: list[Any]) -> tuple[list[Any], ...]:
    """Kept answers as the metric takes them. Which rows are scored together is in the key of a head's answers, but no matter to a text that
    is written: these serve every metric, and are put together here."""
    if not question.as_text or not question.grouped:
        return kept
    rows = question.documents("test")
    return tuple(scored(rows, question.objective, side) for side in kept)


def _gold(objective: Objective, document: Document) -> Any:
    value = document.fields["label"]
    if isinstance(objective, Regress):
        return float(value)
    assert isinstance(objective, Classify)
    return dict(zip(map(str, objective.labels), objective.label_names()))[str(value)]


def baseline_answers(asked: Question, seeds: list[int]) -> dict[str, dict[int, Answers]]:
    """Answers of the baselines on the same rows, by name and seed (one of them, unless the seed draws the rows)."""
    objective, examples = asked.objective, asked.stage.examples
    train, test = (asked.prepared.shards[SOURCE, split] for split in ("train", "test"))
    seeds = seeds if examples else seeds[:1]
    state = [identity(train), identity(test), given(objective), examples, seeds, __version__]
    if asked.as_text and asked.grouped:  # texts to be written do not say to which group they belong
        state.append([document.fields["group"] for document in asked.documents("test")])
    key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]
    path = ROOT / "baselines" / f"{key}.json"
    if not path.exists():
        log.info("%s: baselines on the same rows", asked.name)
        by_id = dict(zip(train.ids(np.arange(len(train))), asked.documents("train"), strict=True))
        test_rows = asked.documents("test")
        x_test, gold = inputs_and_answers(test_rows, objective)
        kind: Any = objective.kind
        made: dict[str, dict[str, Any]] = {}
        for seed in seeds:
            chosen: Any = draw(train, examples, seed) if examples else train
            x, y = inputs_and_answers([by_id[i] for i in chosen.ids(np.arange(len(chosen)))], objective)
            for name, guess in baselines.predict(kind, x, y, x_test).items():
                made.setdefault(name, {})[str(seed)] = scored(test_rows, objective, guess)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"gold": scored(test_rows, objective, gold), "guesses": made})
    kept = json.loads(path.read_text("utf-8"))
    return {
        name: {int(seed): Answers(kept["gold"], guess) for seed, guess in runs.items()} for name, runs in kept["guesses"].items()
    }

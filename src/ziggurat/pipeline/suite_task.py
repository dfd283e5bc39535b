"""One task of a suite as one checkpoint is asked it: rows, recipe, a fine-tuning a seed, and answers that are kept by content.

evaluations/data/<tokenizer>/<task>-<hash>/    shards
evaluations/results/<task>-<hash>/seed-<n>/    result.json: answers on the test rows, with what they came from

The hash of a result is that of everything that decides it: weights, tokenizer, rows, settings, version. So whoever asks the same
again, from another suite or under another name, finds the answers. Weights of a fine-tuning are removed once its answers are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat import __version__
from ziggurat.atomic import write_json
from ziggurat.config import given, spelled
from ziggurat.data import sources
from ziggurat.data.sources import Source
from ziggurat.errors import UserError, check
from ziggurat.evaluate.heldout import Predictions
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Classify, Labels, Regress, Tag
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.pipeline import run as runs
from ziggurat.pipeline import verbalised
from ziggurat.pipeline.opened import Opened
from ziggurat.pipeline.prepare import Prepared, content
from ziggurat.pipeline.prepare import prepare as prepare_data
from ziggurat.pipeline.scoring import Scorer
from ziggurat.pipeline.session import Signals
from ziggurat.pipeline.suite_files import missing
from ziggurat.systems import find
from ziggurat.train.loop import precision_of
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.train.suite import Suite, Task
from ziggurat.types import Document

log = logging.getLogger(__name__)

ROOT = Path("evaluations")
SOURCE = "task"
"""What the one source of a task is called in its recipe, whatever the suite calls the task."""


class CannotAsk(Exception):
    """Why a task is not scored: with these rows, or for this checkpoint."""


@dataclass(frozen=True)
class Result:
    """One fine-tuning's answers on the test rows, and what it took."""

    gold: list[Any]
    predicted: list[Any]
    ids: list[str]
    """Of the test rows: `file:line`."""
    folder: str
    train_rows: int
    leaks: int
    """Training rows left out because they hold a test row."""
    length: int
    steps: int
    seconds: float
    cached: bool = False


@dataclass
class Question:
    """A task for one checkpoint, ready to be run."""

    name: str
    task: Task
    label: str
    """What tables call the checkpoint."""
    opened: Opened
    source: Source
    """Where the rows come from, before labels were written as text."""
    asked: Source
    """What the model reads; the same where a head answers."""
    trained: Objective
    """What the model is trained with: the task's own objective, or `seq2seq` where it writes the label."""
    recipe: Recipe
    prepared: Prepared

    @property
    def objective(self) -> Objective:
        """What is scored."""
        assert self.task.objective is not None
        return self.task.objective

    @property
    def stage(self) -> Stage:
        return self.recipe.stages[0]

    @property
    def as_text(self) -> bool:
        return self.asked is not self.source

    def documents(self, split: str) -> list[Document]:
        """The documents of a split as they were before any tokenizer, in the order of its shards."""
        shards = self.prepared.shards[SOURCE, split]
        read = sources.documents(self.asked, split)  # type: ignore[arg-type]
        first = sources.documents(self.source, split) if self.as_text else None  # type: ignore[arg-type]
        by_id = {d.id: d if first is None else next(first) for d in read}
        return [by_id[i] for i in shards.ids(np.arange(len(shards)))]

    @cached_property
    def key(self) -> str:
        """Of everything that decides the answers but the seed."""
        stage = {k: v for k, v in spelled(self.stage).items() if k not in ("init", "save", "log_every")}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = self.opened.tokenizer
        assert tokenizer is not None
        state = {
            "network": spelled(self.opened.network),
            "weights": self.opened.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "system": self.opened.system,
            "rows": [content(self.prepared.shards[SOURCE, split]) for split in ("train", "test")],
            "stage": stage,
            "scored": self.objective.kind,
            "zero_shot": self.task.zero_shot,
            "precision": str(precision_of(self.stage.precision, device)),
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where answers of this content are, whoever asked first; otherwise where they will be."""
        return next((ROOT / "results").glob(f"*-{self.key}"), ROOT / "results" / f"{self.name}-{self.key}")

    @property
    def rows(self) -> tuple[int, int, int]:
        """Training rows, test rows, and training rows that were left out because they hold a test row."""
        leaks = int(self.prepared.facts[SOURCE, "train"].get("leaks", 0))
        train, test = (len(self.prepared.shards[SOURCE, split]) for split in ("train", "test"))
        return self.stage.examples or train, test, leaks


def question(suite: Suite, name: str, label: str, opened: Opened) -> Question:
    """Task `name` of a suite, with its rows tokenized for the checkpoint.

    Raises:
        CannotAsk: there are no rows, nothing can be learnt from them, or the checkpoint cannot answer.
        UserError: mistakes in the suite: unknown columns, labels that are not declared.
    """
    task = by_names(suite, suite.tasks[name])
    if task.without and not (suite.rows == "hub" and task.hub is not None):
        raise CannotAsk(task.without)
    source, objective = _source(suite, task), task.objective
    assert objective is not None
    if gone := missing(source):
        raise CannotAsk(gone)
    system, tokenizer = find(opened.system), opened.tokenizer
    check(system, f"{opened.folder}: its system {opened.system!r} is not known", "`ziggurat list systems` names those there are")
    check(tokenizer, f"{opened.folder} has no tokenizer: texts cannot be given to it", "put its tokenizer.json into the folder")
    assert tokenizer is not None
    place = ROOT / "data" / tokenizer.fingerprint[:12]
    trained, asked = _way(suite, name, task, objective, source, opened)
    recipe = _recipe(suite, task, asked, trained, opened)
    made = hashlib.sha256(json.dumps(given(asked), sort_keys=True).encode()).hexdigest()[:8]
    try:
        prepared = prepare_data(recipe, place / f"{name}-{made}", tokenizer)
        runs._answerable(recipe.stages[0], prepared)
    except UserError as error:
        if source.kind == "hub" and "cannot be loaded" in error.message:
            raise CannotAsk(f"no data: {error.message}") from None
        raise UserError(f"task {name}: {error.message}", error.hint) from error
    found = Question(name, task, label, opened, source, asked, trained, recipe, prepared)
    if suite.examples and suite.examples >= len(prepared.shards[SOURCE, "train"]):
        found.recipe = _recipe(suite.model_copy(update={"examples": None}), task, asked, trained, opened)
    _learnable(found)
    return found


def by_names(suite: Suite, task: Task) -> Task:
    """The task with its labels called by their names where the rows come from the hub, which gives classes by their names."""
    objective = task.objective
    if suite.rows == "local" or not isinstance(objective, Labels) or not objective.names:
        return task
    return task.model_copy(update={"objective": objective.model_copy(update={"labels": objective.names, "names": ()})})


def _source(suite: Suite, task: Task) -> Source:
    source: Source | None = getattr(task, suite.rows)
    if source is None:
        other = "hub" if suite.rows == "local" else "local"
        raise CannotAsk(f"no data: the task has no `{suite.rows}` rows (`rows={other}` takes those it has)")
    if source.kind not in ("files", "hub"):
        return source
    limits = {k: v for k, v in (("train_rows", suite.train_rows), ("test_rows", suite.test_rows)) if v}
    for name, most in limits.items():
        own = getattr(source, name)
        limits[name] = min(most, own) if own else most
    return source.model_copy(update=limits)


def _way(
    suite: Suite, name: str, task: Task, objective: Objective, source: Source, opened: Opened
) -> tuple[Objective, Source]:
    """What the model is trained with, and the rows it reads."""
    model = objective.part_of(opened.network.model)
    before: Mapping[str, Any] = opened.lineage[-1].get("objective", {}) if opened.lineage else {}
    if suite.answers == "text" and not isinstance(objective, Seq2Seq):
        if not verbalised.can_be_written(objective):
            raise CannotAsk(f"answers of {objective.kind} have no written form (`answers=head` asks a head)")
        writer = verbalised.writer(model, before)
        if writer is None:
            raise CannotAsk("the model does not write: it has never been asked for the next word")
        digest = hashlib.sha256(json.dumps([given(source), given(objective), task.prompt]).encode()).hexdigest()[:8]
        return writer, verbalised.written_source(source, objective, name, task.prompt, ROOT / "data" / "as-text" / f"{name}-{digest}")
    if isinstance(objective, Seq2Seq):
        writer = verbalised.writer(model, before, objective)
        if writer is None:
            raise CannotAsk("the model does not write: it has never been asked for the next word")
        return writer, source
    misfits = objective.misfits(model)
    if misfits:
        raise CannotAsk(f"does not suit the model: {misfits[0]}")
    heads = objective.heads(model)
    if task.zero_shot and any(opened.network.heads.get(n) != head for n, head in heads.items()):
        raise CannotAsk(f"zero-shot needs the head {', '.join(heads)}, and the checkpoint has none like it")
    return objective, source


def _recipe(suite: Suite, task: Task, source: Source, objective: Objective, opened: Opened) -> Recipe:
    """A recipe of the one fine-tuning. It starts from the weights called by their hash, wherever they lie."""
    own: dict[str, Any] = {"stage": "finetune", "data": SOURCE, "init": opened.fingerprint, "objective": given(objective)}
    own |= given(task.settings)
    if suite.examples is not None:
        own["examples"] = suite.examples
    fields = {"name": "suite", "system": opened.system, "sources": {SOURCE: given(source)}, "worth": False}
    most = int(objective.part_of(opened.network.model).embed.positions.length)
    asked = own.get("length", suite.defaults.length)
    if asked > most:
        own["length"] = most
    return Recipe.model_validate({**fields, "defaults": given(suite.defaults), "stages": [own]}).resolved()


def _learnable(question: Question) -> None:
    """Raise `CannotAsk` for training rows of one label only."""
    if question.task.zero_shot or not isinstance(question.objective, Classify):
        return
    seen = set[str]()
    for document in sources.documents(question.source, "train"):
        seen.add(str(document.fields["label"]))
        if len(seen) > 1:
            return
    raise CannotAsk(f"nothing can be learnt: all training rows have the label {seen.pop()}")


def answer(question: Question, seed: int, signals: Signals) -> Result:
    """The answers after fine-tuning with this seed: found where they are kept, or trained and kept.

    A killed fine-tuning goes on where it was. Raises `Stopped` when a signal came in.
    """
    folder = question.folder / (f"seed-{seed}" if not question.task.zero_shot else "zero-shot")
    path = folder / "result.json"
    if path.exists():
        _clear(folder)
        kept = json.loads(path.read_text("utf-8"))["answers"]
        return Result(**kept, folder=str(folder), cached=True)
    train, _, leaks = question.rows
    if question.task.zero_shot:
        predictions, steps, seconds, train = _as_it_is(question), 0, 0.0, 0
    else:
        opened = question.opened
        run = runs.Run(question.recipe, folder, question.prepared, signals, {opened.fingerprint: opened}, {})
        title = f"{question.name}, {question.label}, seed {seed}"
        done = runs._one(run, question.stage, folder, seed, question.stage.init, title, export=False)
        assert done.predictions is not None
        predictions, steps, seconds = done.predictions, done.outcome.steps, done.outcome.seconds
    shards = question.prepared.shards[SOURCE, "test"]
    gold, predicted = _whole(question, predictions)
    facts = {
        "gold": gold,
        "predicted": predicted,
        "ids": list(shards.ids(np.arange(len(shards)))),
        "train_rows": train,
        "leaks": leaks,
        "length": question.stage.length,
        "steps": steps,
        "seconds": seconds,
    }
    about = {"task": question.name, "checkpoint": str(question.opened.folder), "weights": question.opened.fingerprint, "seed": seed}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {**about, "version": __version__, "stage": spelled(question.stage), "answers": facts})
    _clear(folder)
    return Result(**facts, folder=str(folder))


def _clear(folder: Path) -> None:
    """Remove the weights of a fine-tuning whose answers are kept."""
    for step in folder.glob("step-*"):
        shutil.rmtree(step)
    (folder / "predictions.json").unlink(missing_ok=True)


def _as_it_is(question: Question) -> Predictions:
    """What the checkpoint answers untrained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert question.opened.tokenizer is not None
    scorer = Scorer(question.recipe, question.prepared.shards, question.opened.tokenizer)
    log.info("%s: %s as it is", question.name, question.label)
    network = question.opened.build().to(device)
    return scorer.answers(network, question.trained, question.stage, precision_of(question.stage.precision, device))


def _whole(question: Question, found: Predictions) -> tuple[list[Any], list[Any]]:
    """Gold and answers as the official scorers want them: labels again where they were written as text, and a label for words, too,
    that did not fit into `length` (the label of words outside any span)."""
    objective = question.objective
    if question.as_text:
        gold = [_gold(objective, d) for d in question.documents("test")]
        return gold, [verbalised.understand(objective, text) for text in found.predicted]
    if not isinstance(objective, Tag):
        return found.gold, found.predicted
    names = objective.label_names()
    outside = "O" if "O" in names else names[0]
    named = dict(zip(map(str, objective.labels), names))
    whole = [[named[m.label] for m in d.marks] for d in question.documents("test")]
    if len(whole) != len(found.gold) or any(row[: len(cut)] != cut for row, cut in zip(whole, found.gold)):
        return found.gold, found.predicted  # words without tokens stand in the middle
    return whole, [[*cut, *[outside] * (len(row) - len(cut))] for row, cut in zip(whole, found.predicted)]


def _gold(objective: Objective, document: Document) -> Any:
    value = document.fields["label"]
    if isinstance(objective, Regress):
        return float(value)
    assert isinstance(objective, Classify)
    return dict(zip(map(str, objective.labels), objective.label_names()))[str(value)]

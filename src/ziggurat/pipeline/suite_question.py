"""One task of a suite as one checkpoint is asked it: its rows, the recipe of its fine-tuning, and the hash of all that decides the answers.

evaluations/data/<tokenizer>/<task>-<hash>/    shards
evaluations/results/<task>-<hash>/seed-<n>/    see `suite_answers`
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat import __version__
from ziggurat.config import given, spelled
from ziggurat.data import sources
from ziggurat.data.reading import Reading
from ziggurat.data.shards import Shards
from ziggurat.data.sources import Source
from ziggurat.data.writing import CoversNothing
from ziggurat.errors import UserError, check
from ziggurat.evaluate.scores import GROUPED
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Classify, Labels
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.pipeline import run as runs
from ziggurat.pipeline import verbalised
from ziggurat.pipeline.opened import Opened
from ziggurat.pipeline.prepare import Prepared
from ziggurat.pipeline.prepare import prepare as prepare_data
from ziggurat.pipeline.suite_files import missing
from ziggurat.systems import find
from ziggurat.train import settings
from ziggurat.train.loop import precision_of
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.train.suite import Suite, Task
from ziggurat.types import Document

log = logging.getLogger(__name__)

ROOT = Path("evaluations")
SOURCE = "task"
"""What the one source of a task is called in its recipe, whatever the suite calls the task."""


ANSWERS = 4
"""Raised by every change of the code that changes answers, so that those kept before are not taken for new ones."""


LOST = 0.5
"""Share of the rows for the test above which those that are left are not scored."""


class CannotAsk(Exception):
    """Why a task is not scored: with these rows, or for this checkpoint."""


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
    """What the model is trained with: the task's own objective, or `seq2seq` where it writes the label. Asked untrained, the labels are in
    the order of the checkpoint's classes."""
    recipe: Recipe
    prepared: Prepared
    leaks: int = 0
    """Training rows that were left out before labels were written as text."""
    shots: int | None = None
    """Asked by likelihood, with so many solved rows; None = in another way."""

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

    @property
    def grouped(self) -> bool:
        """Whether rows are scored together."""
        return getattr(self.objective, "metric", "") in GROUPED

    def documents(self, split: str) -> list[Document]:
        """The documents of a split as they were before any tokenizer, in the order of its shards."""
        shards = self.prepared.shards[SOURCE, split]
        read = sources.documents(self.asked, split)  # type: ignore[arg-type]
        first = verbalised.original(self.source, split) if self.as_text else None
        by_id = {d.id: d if first is None else next(first) for d in read}
        return [by_id[i] for i in shards.ids(np.arange(len(shards)))]

    @cached_property
    def lost(self) -> tuple[float, str]:
        """Of the rows that test rows are taken from, the share that was left out for what is wrong with them, and how many these are, in
        words; empty for none."""
        facts: Mapping[str, Any] = self.prepared.facts[SOURCE, "test"]
        dropped = facts["documents"] - facts["kept"]
        if self.as_text:  # those written down were whole
            reading = Reading()
            deque(sources.documents(self.source, "test", reading), maxlen=0)
            facts = vars(reading)
        lost, rows = facts["empty"] + facts["skipped"] + dropped, facts["rows"] - facts["elsewhere"]
        if not lost:
            return 0.0, ""
        why = [f"{facts['empty']:,} x empty text"] if facts["empty"] else []
        known = facts.get("reasons", {"cannot be read": facts["skipped"]})  # facts of older shards do not say why
        why += [f"{n:,} x {reason}" for reason, n in known.items() if n]
        why += [f"{dropped:,} x no token of the tokenizer"] if dropped else []
        return lost / rows, f"{lost:,} of the {rows:,} rows that test rows are taken from were left out ({', '.join(why)})"

    @cached_property
    def key(self) -> str:
        """Of everything that decides the answers but the seed."""
        stage = {k: v for k, v in settings.deciding(self.stage).items() if k != "init"}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = self.opened.tokenizer
        assert tokenizer is not None
        chooses = self.stage.evaluate.chooses or getattr(self.trained, "threshold", None) == "tuned"
        splits = ("train", "test", *(("valid",) if chooses else ()))
        state = {
            "network": spelled(self.opened.network),
            "weights": self.opened.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "system": self.opened.system,
            "rows": [identity(self.prepared.shards[SOURCE, s]) for s in splits if (SOURCE, s) in self.prepared.shards],
            "stage": stage,
            "scored": [self.objective.kind, getattr(self.objective, "label_names", tuple)()],
            "zero_shot": self.task.zero_shot,
            "likelihood": None
            if self.shots is None
            else [self.shots, self.task.prompt, spelled(self.task.likelihood), spelled(self.objective), self.before],
            "precision": str(precision_of(self.stage.precision, device)),
            "version": [__version__, ANSWERS],
        }
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def before(self) -> dict[str, Any]:
        """What the checkpoint was trained with last, which says how it is asked; empty for one without a history."""
        return dict(self.opened.lineage[-1].get("objective", {})) if self.opened.lineage else {}

    @property
    def longest(self) -> int:
        """The model's positions."""
        return int(self.trained.part_of(self.opened.network.model).embed.positions.length)

    @property
    def trains(self) -> bool:
        """Whether the checkpoint is fine-tuned."""
        return self.shots is None and not self.task.zero_shot

    @property
    def folder(self) -> Path:
        """Where answers of this content are, whoever asked first; otherwise where they will be."""
        return next((ROOT / "results").glob(f"*-{self.key}"), ROOT / "results" / f"{self.name}-{self.key}")

    @property
    def rows(self) -> tuple[int, int, int]:
        """Training rows, test rows, and training rows that were left out because they hold a test row."""
        leaks = self.leaks + int(self.prepared.facts[SOURCE, "train"].get("leaks", 0))
        train, test = (len(self.prepared.shards[SOURCE, split]) for split in ("train", "test"))
        return self.stage.examples or train, test, leaks


def identity(shards: Shards) -> str:
    """Of tokens, labels and order of the rows, wherever their files lie (their ids say where)."""
    kept = {name: facts for name, facts in shards.meta["files"].items() if name not in ("fields.jsonl", "line_bounds.bin")}
    digest = hashlib.sha256(json.dumps([kept, shards.meta["mark_labels"]], sort_keys=True).encode())
    if (path := shards.folder / "fields.jsonl").exists():
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                digest.update(json.dumps(json.loads(line)["fields"], sort_keys=True).encode())
    return digest.hexdigest()[:16]


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
    try:
        trained, asked, leaks = _way(suite, name, task, objective, source, opened)
        if asked is not source:
            assert isinstance(trained, Seq2Seq)
            length = _recipe(suite, task, asked, trained, opened).stages[0].length
            trained = verbalised.sized(trained, objective, source, tokenizer, length, objective.part_of(opened.network.model))
        recipe = _recipe(suite, task, asked, trained, opened)
        made = hashlib.sha256(json.dumps(given(asked), sort_keys=True).encode()).hexdigest()[:8]
        prepared = prepare_data(recipe, place / f"{name}-{made}", tokenizer, cleaned=asked is not source)
        runs.answerable(recipe.stages[0], prepared, opened.network.model)
    except CoversNothing as error:
        raise CannotAsk(f"not with this tokenizer: {error.message}") from None
    except UserError as error:
        if source.kind == "hub" and "cannot be loaded" in error.message:
            raise CannotAsk(f"no data: {error.message}") from None
        raise UserError(f"task {name}: {error.message}", error.hint) from error
    found = Question(
        name,
        task,
        label,
        opened,
        source,
        asked,
        trained,
        recipe,
        prepared,
        leaks,
        suite.shots if suite.answers == "likelihood" else None,
    )
    if suite.examples and suite.examples >= len(prepared.shards[SOURCE, "train"]):
        found.recipe = _recipe(suite.model_copy(update={"examples": None}), task, asked, trained, opened)
    share, said = found.lost
    if share > LOST:
        raise CannotAsk(f"{said}: a score would not be of this test")
    _learnable(found)
    return found


def by_names(suite: Suite, task: Task) -> Task:
    """The task with its labels called as the rows of the hub call them: by `hub_labels`, or by their names."""
    objective = task.objective
    if suite.rows == "local":
        return task
    if isinstance(objective, (Labels, MultipleChoice)) and task.hub_labels:
        return task.model_copy(update={"objective": objective.model_copy(update={"labels": task.hub_labels})})
    if not isinstance(objective, Labels) or not objective.names:
        return task
    return task.model_copy(update={"objective": objective.model_copy(update={"labels": objective.names, "names": ()})})


def _source(suite: Suite, task: Task) -> Source:
    source: Source | None = getattr(task, suite.rows)
    if source is None:
        other = "hub" if suite.rows == "local" else "local"
        raise CannotAsk(f"no data: the task has no `{suite.rows}` rows (`rows={other}` takes those it has)")
    if source.kind not in ("files", "hub"):
        return source
    limits: dict[str, Any] = {k: v for k, v in (("train_rows", suite.train_rows), ("test_rows", suite.test_rows)) if v}
    for name, most in limits.items():
        own = getattr(source, name)
        limits[name] = min(most, own) if own else most
    if source.valid is None and not sources.labelled(source):
        limits["valid"] = 0.0  # pairs of texts count as text, of which a share would be held out for a loss that nobody asks for
    return source.model_copy(update=limits)


def _way(
    suite: Suite, name: str, task: Task, objective: Objective, source: Source, opened: Opened
) -> tuple[Objective, Source, int]:
    """What the model is trained with, the rows it reads, and how many training rows were left out of these before."""
    model = objective.part_of(opened.network.model)
    before: Mapping[str, Any] = opened.lineage[-1].get("objective", {}) if opened.lineage else {}
    if suite.answers == "text" and not isinstance(objective, Seq2Seq):
        if not verbalised.can_be_written(objective):
            raise CannotAsk(f"answers of {objective.kind} have no written form (`answers=head` asks a head)")
        writer = verbalised.writer(model, before)
        if writer is None:
            raise CannotAsk("the model does not write: it has never been asked for the next word")
        digest = hashlib.sha256(json.dumps([given(source), given(objective), task.prompt]).encode()).hexdigest()[:8]
        place = ROOT / "data" / "as-text" / f"{name}-{digest}"
        return writer, *verbalised.written_source(source, objective, name, task.prompt, place)
    if suite.answers == "likelihood":
        if not isinstance(objective, (Classify, MultipleChoice)):
            raise CannotAsk(f"{objective.kind} has no labels or choices whose likelihood could be asked")
        way = verbalised.writer(model, before) if "lm" in opened.network.heads else None
        if way is None or way.asks in ("mask", "future"):
            raise CannotAsk("the model cannot say how probable a text is after another")
        return objective, source, 0
    if isinstance(objective, Seq2Seq):
        writer = verbalised.writer(model, before, objective)
        if writer is None:
            raise CannotAsk("the model does not write: it has never been asked for the next word")
        return writer, source, 0
    misfits = objective.misfits(model)
    if misfits:
        raise CannotAsk(f"does not suit the model: {misfits[0]}")
    heads = objective.heads(model)
    if task.zero_shot and any(opened.network.heads.get(n) != head for n, head in heads.items()):
        raise CannotAsk(f"zero-shot needs the head {', '.join(heads)}, and the checkpoint has none like it")
    return _as_its_head(objective, opened.labels) if task.zero_shot else objective, source, 0


def _as_its_head(objective: Objective, classes: tuple[str, ...]) -> Objective:
    """The objective with its labels in the order of the checkpoint's classes, found by name or by value. As it is where one side has no
    names, or only the Hub's placeholders; raises `CannotAsk` for a checkpoint of other classes."""
    if not isinstance(objective, Labels) or not (_named(classes) and _named(objective.label_names())):
        return objective
    names, values = objective.label_names(), tuple(map(str, objective.labels))
    known = next((k for k in (names, values) if set(k) == set(classes) and len(set(k)) == len(classes)), None)
    if known is None:
        raise CannotAsk(
            f"zero-shot: the checkpoint's classes are {list(classes)}, the task's {list(names)} "
            "(give the objective `names` as the checkpoint has them, in any order)"
        )
    turns = [known.index(name) for name in classes]
    again = {field: tuple(old[n] for n in turns) for field in ("labels", "names") if (old := getattr(objective, field))}
    return objective.model_copy(update=again)


def _named(classes: tuple[str, ...]) -> bool:
    return any(not re.fullmatch(r"label_\d+", name, re.IGNORECASE) for name in classes)


def _recipe(suite: Suite, task: Task, source: Source, objective: Objective, opened: Opened) -> Recipe:
    """A recipe of the one fine-tuning. It starts from the weights called by their hash, wherever they lie."""
    own: dict[str, Any] = {"stage": "finetune", "data": SOURCE, "init": opened.fingerprint, "objective": given(objective)}
    own |= given(task.settings)
    if suite.examples is not None:
        own["examples"] = suite.examples
    fields = {"name": "suite", "system": opened.system, "sources": {SOURCE: given(source)}, "worth": False}
    most = int(objective.part_of(opened.network.model).embed.positions.length)  # a shorter model reads less of a text
    asked = own.get("length", suite.defaults.length)
    if asked > most:
        own["length"] = most
    return Recipe.model_validate({**fields, "defaults": given(suite.defaults), "stages": [own]}).resolved()


def _learnable(question: Question) -> None:
    """Raise `CannotAsk` for training rows of one label only."""
    if not question.trains or not isinstance(question.objective, Classify):
        return
    seen = set[str]()
    for document in sources.documents(question.source, "train"):
        seen.add(str(document.fields["label"]))
        if len(seen) > 1:
            return
    raise CannotAsk(f"nothing can be learnt: all training rows have the label {seen.pop()}")

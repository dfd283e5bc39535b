"""A recipe, run: prepare, every stage in order, what each was worth, the report. Running it again goes on."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat import __version__
from ziggurat.atomic import write_text
from ziggurat.checkpoint import format as checkpoints
from ziggurat.config import dump, load
from ziggurat.data.shares import Split
from ziggurat.data.subset import draw, too_few
from ziggurat.errors import UserError, check
from ziggurat.evaluate.heldout import Predictions
from ziggurat.log import Sink, tensorboard
from ziggurat.nn.spec import Adversaries, Model
from ziggurat.nn.tasks import alone, named
from ziggurat.objectives.base import context_of
from ziggurat.pipeline import context_use, interpolation, probes
from ziggurat.pipeline.choose import Choice, check_candidates, check_told_apart, choose, choose_folders, starting
from ziggurat.pipeline.findings import lacks
from ziggurat.pipeline.opened import Opened, fits, open_checkpoint, reads_alike
from ziggurat.pipeline.prepare import Prepared, content
from ziggurat.pipeline.prepare import prepare as prepare_data
from ziggurat.pipeline.provenance import complete
from ziggurat.pipeline.scoring import Scorer, leading
from ziggurat.pipeline.session import Signals, session
from ziggurat.pipeline.suite_files import suites_of
from ziggurat.pipeline.tasks import answers, export_stage
from ziggurat.pipeline.vocabulary import before, prepare_stages
from ziggurat.systems import find
from ziggurat.systems.adapter import write_adapter
from ziggurat.systems.hub import of_task
from ziggurat.train import job as jobs
from ziggurat.train import settings
from ziggurat.train.arms import deciding
from ziggurat.train.job import Job, Outcome
from ziggurat.train.lora import A, B
from ziggurat.train.recipe import Recipe, starts_before
from ziggurat.train.retention import ADDED
from ziggurat.train.stage import BestOf, Stage, candidates
from ziggurat.train.start import Start, headed
from ziggurat.train.tasks import several, single

log = logging.getLogger(__name__)

RUNS = Path("runs")
BLOCK = 1024
"""Rows looked at together."""


@dataclass(frozen=True)
class Done:
    """A finished stage."""

    stage: Stage
    folder: Path
    outcome: Outcome
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    """On the test rows of each task, by its source, or on those of another split that was asked; of a fine-tuning."""

    @property
    def checkpoint(self) -> Path:
        """What it hands on."""
        return jobs.result(self.folder, self.outcome.steps)


@dataclass(frozen=True)
class Training:
    """One training of a stage in a folder, before it is run."""

    stage: Stage
    folder: Path
    seed: int
    init: str
    """What it starts from, as in `start_of`."""
    title: str = ""
    """What the console calls it when it is not one of the recipe's stages."""
    steps: int | None = None
    """Of a time budget, measured elsewhere."""
    until: int | None = None
    """The step at which it ends, before its schedule does."""


@dataclass
class Run:
    """What the steps of a run share."""

    recipe: Recipe
    """Resolved."""
    folder: Path
    prepared: Prepared
    signals: Signals
    imported: dict[str, Opened]
    """Checkpoints that stages start from, by what `init` says."""
    done: dict[str, Done]
    controls: dict[str, Done] = field(default_factory=dict)
    """Stages beside the pipeline, by what the ledger calls the fine-tunings from them."""
    choices: dict[str, Choice] = field(default_factory=dict)
    """Starts that were chosen, by the stage's title."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """What the doctor found."""
    read: dict[str, Prepared] = field(default_factory=dict)
    """What each stage reads, by its title; another tokenizer's shards once a stage has extended the vocabulary."""

    def reads(self, stage: Stage, init: str) -> Prepared:
        """What `stage` reads when it starts from `init`."""
        return self.read[stage.title] if stage.vocabulary is not None else self.read.get(init, self.prepared)

    def left(self, stages: Sequence[Stage]) -> list[Stage]:
        """Those that are not finished."""
        return [stage for stage in stages if not jobs.done(self.folder / stage.title)]

    def scorer(self, prepared: Prepared) -> Scorer:
        return Scorer(self.recipe, prepared.shards, prepared.tokenizer, self.folder)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a file; raises `UserError` with all its mistakes at once."""
    return load(path, overrides, model=Recipe).resolved()


def prepare(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Make the tokenizer and shards of a recipe, nothing else; returns the run folder."""
    recipe = load_recipe(path, overrides)
    folder = RUNS / recipe.name
    with session(folder) as signals:
        begin(recipe, folder, signals)
    return folder


def run(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Run a recipe, or go on with it; returns the run folder. Raises `UserError`, and `Stopped` after a signal."""
    from ziggurat.pipeline import doctor, estimate, prefixes
    from ziggurat.pipeline.control import control
    from ziggurat.pipeline.outcome import account

    recipe = load_recipe(path, overrides)
    suites = suites_of(recipe)
    folder = RUNS / recipe.name
    with session(folder) as signals:
        run = begin(recipe, folder, signals)
        estimate.scheduled(run, run.left(recipe.stages))
        run.before = doctor.glance(run)
        doctor.say(run.before)
        ready = recipe.stages.index(last) if (last := prefixes.tuned(recipe)) is not None else len(recipe.stages)
        in_order(run, recipe.stages[:ready])
        prefixes.refuse_changed(run)
        in_order(run, recipe.stages[ready:])
        arms = prefixes.arms(run)
        account(run, arms, [str(path), *overrides], control(run, arms))
    if suites:
        from ziggurat.pipeline.suites import evaluate_run

        evaluate_run(run, suites)
    return folder


def begin(recipe: Recipe, folder: Path, signals: Signals) -> Run:
    """What the steps of a run share; tokenizer and shards are made if they are not there."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "tokenizers"))
    log.info("ziggurat %s, python %s, %s; recipe %s in %s", __version__, platform.python_version(), versions, recipe.name, folder)
    if recipe.tensorboard and find_spec("tensorboard") is None:
        raise UserError("the recipe asks for TensorBoard, which is not installed", "pip install 'ziggurat[tensorboard]'")
    choices, whole = choose_folders(recipe, folder), recipe
    recipe = starting(recipe, choices)
    check_candidates(recipe, folder)
    own = {s.title for s in recipe.stages} | {"scratch"}
    inits = dict.fromkeys(name for s in recipe.stages for name in candidates(s.init) if name not in own)
    imported = {init: open_checkpoint(init) for init in inits}
    fits(recipe, imported, [stage for stage in recipe.stages if not jobs.done(folder / stage.title)])
    tokenizer = next((o.tokenizer for o in imported.values() if o.tokenizer), None)
    prepared = prepare_data(recipe, folder, tokenizer)
    for init, opened in imported.items():
        reads_alike(init, opened, prepared.tokenizer)
    fresh = recipe.body() or next(one.network.model for one in imported.values())
    check_told_apart(recipe, folder, prepared, fresh, imported)
    shapes = {init: one.network.model for init, one in imported.items()}
    for stage in recipe.stages:
        if stage.stage == "finetune" and not jobs.done(folder / stage.title):
            answerable(stage, prepared, starts_before(recipe, stage, fresh, shapes)[0][1])
            enough(stage, prepared)
        if not jobs.done(folder / stage.title):
            decidable(stage, prepared)
    write_text(folder / "recipe.yaml", dump(whole))
    read = prepare_stages(recipe, folder, prepared)
    return Run(recipe, folder, prepared, signals, imported, {}, choices=choices, read=read)


def decidable(stage: Stage, prepared: Prepared) -> None:
    """Raise `UserError` if a stage chooses its weights by a source of which nothing is held out: a share of few documents may be none."""
    for (_, name), asks in deciding(stage).items():
        check(
            len(prepared.shards.get((name, "valid"), ())) > 0,
            f"`{asks}` needs rows to choose by, and none of source '{name}' are held out",
            "give it `valid: file` or a larger share, as in `valid: 0.1`",
        )
        if stage.objective is None or stage.stage == "finetune":
            continue
        for lack in lacks(stage.objective, leading(prepared.shards[name, "valid"], stage.evaluate.tokens)):
            check(
                not lack.fatal,
                f"`{asks}` needs rows to choose by, and those held out of source '{name}' starve its objective: {lack.message}",
                "give it `valid: file`, a larger share, as in `valid: 0.1`, or more `evaluate: {tokens: ...}`",
            )


def enough(stage: Stage, prepared: Prepared) -> None:
    """Raise `UserError` if a fine-tuning asks for more examples than a task has rows."""
    for name in single(stage) if stage.examples is not None else ():
        too_few(prepared.shards[name, "train"], stage.examples or 0)


def in_order(run: Run, stages: Sequence[Stage]) -> None:
    """Run stages of the recipe one after the other, or find them done."""
    for stage in stages:
        stage, init = started(run, stage)
        seed = run.recipe.worth.seeds[0] if run.recipe.worth and stage.stage == "finetune" else run.recipe.seed
        run.done[stage.title] = train(run, Training(stage, run.folder / stage.title, seed, init))


def started(run: Run, stage: Stage) -> tuple[Stage, str]:
    """A stage with its start, chosen now where it is the best of several. The run's recipe then says so, too."""
    if isinstance(stage.init, BestOf) and stage.title not in run.choices:

        def candidate(name: str) -> Opened:
            return run.imported[name] if name in run.imported else open_checkpoint(run.done[name].checkpoint)

        opened = {name: partial(candidate, name) for name in stage.init.best_of}
        run.choices[stage.title] = choose(run.recipe, stage, run.folder, opened)
        run.recipe = starting(run.recipe, run.choices)
    found = next(s for s in run.recipe.stages if s.title == stage.title)
    assert isinstance(found.init, str)
    if stage.title in run.choices:  # only now is it known which text it may forget
        decidable(found, run.prepared)
    return found, found.init


def answerable(stage: Stage, prepared: Prepared, model: Model) -> None:
    """Raise `UserError` now, not after hours of training, if a row of a task has a label that the stage does not know, or its examples
    have no room in a `model` like the one that the stage starts from."""
    tasks = single(stage)
    for (name, _), shards in prepared.shards.items():
        for start in range(0, len(shards), BLOCK) if name in tasks else ():
            objective = tasks[name].objective
            assert objective is not None
            ctx = context_of(objective.part_of(model), prepared.tokenizer, stage.length)
            objective.form(shards.read(np.arange(start, min(start + BLOCK, len(shards)))), ctx)


def start_of(run: Run, init: str) -> Start:
    """What `init` names, whole: `scratch`, an earlier stage, or an imported folder."""
    if init in run.imported:
        opened = run.imported[init]
        *before, newest = opened.lineage or ({"stage": "import"},)
        lineage = (*before, {**newest, "weights": opened.fingerprint} if newest.get("stage") == "import" else newest)
        return Start(opened.network.model, opened.network.heads, lineage, lambda: opened.tensors)
    if init in run.done:
        last = run.done[init].checkpoint
        card = checkpoints.card(last)
        return Start(card.network.model, card.network.heads, card.lineage, lambda: checkpoints.load(last).tensors)
    name, _, size = run.recipe.system.partition("/")
    if run.imported and not size:
        return Start(next(iter(run.imported.values())).network.model)  # without a size the shape is the checkpoint's
    system, vocab = find(name), run.prepared.tokenizer.vocab
    assert system is not None  # the recipe was checked
    model = system.sized(size, {k: v for k, v in run.recipe.model if v is not None}, vocab.size)
    if system.pad_counts and not isinstance(model, Adversaries):
        positions = model.embed.positions.model_copy(update={"offset": vocab.pad + 1})
        model = model.model_copy(update={"embed": model.embed.model_copy(update={"positions": positions})})
    for stage in run.recipe.stages:  # what a later stage's objective needs is there from the start
        model = stage.objective.equipped(model) if stage.objective is not None else model
    return Start(model)


def job_of(run: Run, one: Training, start: Start | None = None) -> Job:
    """A training with everything it needs; `start` is what its `init` names, unless it is given."""
    stage, init = one.stage, one.init
    prepared = run.reads(stage, init)
    shards: dict[str, Any] = prepared.read(stage)
    general = {name: prepared.shards[name, "train"] for name in stage.weighed}
    data = {name: content(rows) for name, rows in [*shards.items(), *general.items()]}
    facts: dict[str, Any] = {"parent": _parent(run, init), "data": data}
    # by the same rows from the first evaluation to the last, and never by test rows; an interpolation is chosen again
    if choosing := {name for field, name in deciding(stage) if field != "interpolate"}:
        facts[settings.CHOSEN_BY] = {name: content(prepared.shards[name, "valid"]) for name in sorted(choosing)}
    if stage.examples is not None:
        shards = {name: draw(rows, stage.examples, one.seed) for name, rows in shards.items()}

    def sinks(after: int) -> list[Sink]:
        return [tensorboard(one.folder / "tensorboard", after=after)] if run.recipe.tensorboard else []

    assert stage.objective is not None
    start = (start or start_of(run, init)).for_objective(stage.objective)
    start_bits: Any = dict
    if stage.vocabulary is not None:
        start_bits = partial(before, one.folder, stage, start, run.scorer(run.read.get(init, run.prepared)), _parent(run, init))
        start = start.grown({a.id: a.pieces for a in prepared.added}, prepared.tokenizer.vocab.size)
    return Job(
        stage.model_copy(update={"init": init}),
        start,
        shards,
        prepared.tokenizer,
        run.recipe.system.partition("/")[0],
        one.seed,
        tables=stage.objective.tables(prepared.tokenizer, run.folder),
        facts=facts,
        held_out=lambda network, objective, dtype: run.scorer(prepared).losses(network, objective, stage, dtype),
        measured=run.scorer(prepared).measured(stage),
        held=run.signals.held,
        general=general,
        start_bits=start_bits,
        steps=one.steps if stage.time is not None else None,
        until=one.until,
        title=one.title,
        sinks=sinks,
    )


def train(run: Run, one: Training, *, export: bool = True, split: Split = "test") -> Done:
    """Run one training, or go on with it, score it on a split if it is a fine-tuning, export it, and mark it done."""
    stage, folder, init = one.stage, one.folder, one.init
    job = job_of(run, one)
    again = stage.interpolate is not None and not interpolation.holds(folder, stage, job)
    if again or not jobs.done(folder):
        headed(stage, job.start)
    if again:  # now, not after hours of training
        decidable(stage, run.prepared)
    prepared = run.reads(stage, init)
    outcome = jobs.run_stage(folder, job)
    if stage.interpolate is not None and not (jobs.done(folder) and interpolation.holds(folder, stage, job)):
        outcome = interpolation.interpolated(stage, job, run.scorer(prepared), folder, outcome)
    context_use.write(run.scorer(prepared), stage, folder, outcome.steps)
    if stage.forgetting is not None and stage.forgetting.tasks:
        opened = open_checkpoint(run.done[init].checkpoint) if init in run.done else run.imported.get(init)
        probes.write(stage, folder, outcome.steps, opened, run.scorer(run.read.get(init, run.prepared)), run.scorer(prepared))
    predictions = answers(run, prepared, stage, folder, outcome, split) if stage.stage == "finetune" else {}
    if not jobs.done(folder):
        if export:
            choice = run.choices.get(stage.title)
            choice = choice if choice and choice.chosen == init else None
            new = len(prepared.added) if stage.vocabulary is not None else 0
            complete(run.recipe, stage, jobs.result(folder, outcome.steps), outcome, predictions, choice, new)
            export_stage(stage, folder)
            if stage.lora is not None and init != "scratch":  # there a fine-tuning's weights are all new, and trained whole
                _adapter(run, stage, folder, job, outcome)
        jobs.finish(folder)
    return Done(stage, folder, outcome, predictions)


def _adapter(run: Run, stage: Stage, folder: Path, job: Job, outcome: Outcome) -> None:
    """Write what LoRA added into the stage's folder `adapter` (of several tasks `adapter/<task>`), in the layout of peft, where
    the Hub has a place for it."""
    assert stage.lora is not None
    saved, (init,) = checkpoints.load(jobs.trained(folder, outcome.steps)), candidates(job.stage.init)
    added = {n.removeprefix(ADDED): t for n, t in saved.optimizer.items() if n.startswith(ADDED)}
    line = interpolation.read(folder)
    # of the way to what was trained: so much of the additions is handed on
    share = 1.0 if line is None else float(line["chosen"])
    pairs = {n.rpartition(".")[0]: (t, share * added[f"{n.rpartition('.')[0]}.{B}"]) for n, t in added.items() if n.endswith(A)}
    fresh = [name for name, head in saved.card.network.heads.items() if job.start.heads.get(name) != head]
    base = init
    if init in run.done:  # any task's folder has the body
        earlier = run.done[init]
        base = str(earlier.folder / "hf" / (next(iter(single(earlier.stage))) if several(earlier.stage) else ""))
    card = checkpoints.card(jobs.result(folder, outcome.steps))
    how: dict[str, Any] = {"rank": stage.lora.rank, "alpha": stage.lora.alpha, "base": base, "about": card.more.get("card", {})}
    for task in single(stage) if several(stage) else [""]:
        network, tensors = alone(saved.card.network, saved.tensors, task) if task else (saved.card.network, saved.tensors)
        new = [name for name in network.heads if (named(name, task) if task else name) in fresh]
        try:
            how["lineage"] = of_task(card.lineage, task) if task else card.lineage
            how["labels"] = card.more.get("tasks", {}).get(task, ()) if task else card.more.get("labels", ())
            write_adapter(folder / "adapter" / task, network, job.system, pairs, new=new, tensors=tensors, **how)
        except UserError as error:
            log.info("%s: there is no folder adapter%s: %s", stage.title, f"/{task}" if task else "", error.message)


def _parent(run: Run, init: str) -> str:
    """What identifies the weights a stage starts from."""
    if init in run.done:
        return settings.fingerprint(run.done[init].folder)
    return run.imported[init].fingerprint if init in run.imported else init

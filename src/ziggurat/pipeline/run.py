"""A recipe, run: prepare, every stage in order, what each was worth, the report. Running it again goes on."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat import __version__
from ziggurat.atomic import write_json, write_text
from ziggurat.checkpoint import format as checkpoints
from ziggurat.config import dump, load, spelled
from ziggurat.context import Context
from ziggurat.data.shards import Shards
from ziggurat.data.subset import Subset
from ziggurat.errors import UserError, check
from ziggurat.evaluate.heldout import Predictions
from ziggurat.log import Sink, tensorboard
from ziggurat.nn.spec import Adversaries
from ziggurat.pipeline.opened import Opened, called, open_checkpoint
from ziggurat.pipeline.prepare import Prepared, content
from ziggurat.pipeline.prepare import prepare as prepare_data
from ziggurat.pipeline.scoring import Scorer
from ziggurat.pipeline.session import Signals, session
from ziggurat.pipeline.vocabulary import before, prepare_stages
from ziggurat.systems import find
from ziggurat.systems.base import DIALS, NoHubClass
from ziggurat.systems.hub import export_checkpoint
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import job as jobs
from ziggurat.train import settings
from ziggurat.train.job import Job, Outcome
from ziggurat.train.loop import precision_of
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.train.start import Start

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
    predictions: Predictions | None = None
    """On the task's test rows, of a fine-tuning."""

    @property
    def checkpoint(self) -> Path:
        """The last one."""
        return checkpoints.at(self.folder, self.outcome.steps)


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
    read: dict[str, Prepared] = field(default_factory=dict)
    """What each stage reads, by its title; another tokenizer's shards once a stage has extended the vocabulary."""

    def reads(self, stage: Stage, init: str) -> Prepared:
        """What `stage` reads when it starts from `init`."""
        return self.read[stage.title] if stage.vocabulary is not None else self.read.get(init, self.prepared)

    def reads_before(self, stage: Stage) -> Prepared:
        """What the stage that `stage` starts from has read."""
        return self.read.get(stage.init, self.prepared)

    def scorer(self, prepared: Prepared) -> Scorer:
        return Scorer(self.recipe, prepared.shards, prepared.tokenizer)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a file; raises `UserError` with all its mistakes at once."""
    return load(path, overrides, model=Recipe).resolved()


def prepare(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Make the tokenizer and shards of a recipe, nothing else; returns the run folder."""
    recipe = load_recipe(path, overrides)
    folder = RUNS / recipe.name
    with session(folder) as signals:
        _begin(recipe, folder, signals)
    return folder


def run(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Run a recipe, or go on with it; returns the run folder. Raises `UserError`, and `Stopped` after a signal."""
    from ziggurat.pipeline.outcome import account

    recipe = load_recipe(path, overrides)
    folder = RUNS / recipe.name
    with session(folder) as signals:
        run = _begin(recipe, folder, signals)
        for stage in recipe.stages:
            seed = recipe.worth.seeds[0] if recipe.worth and stage.stage == "finetune" else recipe.seed
            run.done[stage.title] = _one(run, stage, folder / stage.title, seed, stage.init)
        arms = _arms(run)
        account(run, arms, [str(path), *overrides])
    return folder


def _begin(recipe: Recipe, folder: Path, signals: Signals) -> Run:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "tokenizers"))
    log.info("ziggurat %s, python %s, %s; recipe %s in %s", __version__, platform.python_version(), versions, recipe.name, folder)
    if recipe.tensorboard and find_spec("tensorboard") is None:
        raise UserError("the recipe asks for TensorBoard, which is not installed", "pip install 'ziggurat[tensorboard]'")
    titles = {s.title for s in recipe.stages}
    inits = dict.fromkeys(s.init for s in recipe.stages if s.init not in titles | {"scratch"})
    imported = {init: open_checkpoint(init) for init in inits}
    for init, opened in imported.items():
        _fits(recipe, init, opened)
    tokenizer = next((o.tokenizer for o in imported.values() if o.tokenizer), None)
    prepared = prepare_data(recipe, folder, tokenizer)
    for init, opened in imported.items():
        _reads_alike(init, opened, prepared.tokenizer)
    for stage in recipe.stages:
        if stage.stage == "finetune" and not jobs.done(folder / stage.title):
            _answerable(stage, prepared)
    write_text(folder / "recipe.yaml", dump(recipe))
    return Run(recipe, folder, prepared, signals, imported, {}, prepare_stages(recipe, folder, prepared))


def _fits(recipe: Recipe, init: str, opened: Opened) -> None:
    """Raise `UserError` unless a checkpoint is of the recipe's system, and of its size where it gives one."""
    name = recipe.system.partition("/")[0]
    theirs, ours = find(opened.system), find(name)
    kin = theirs is not None and ours is not None and theirs.model_type == ours.model_type
    check(
        opened.system in ("", name) or kin,
        f"init: {init} is a {opened.system} model, and the recipe's system is {recipe.system}",
        f"write `system: {opened.system}`",
    )
    wanted, found = recipe.body(), opened.network.model
    if wanted is None:
        return
    dials = [k for k in DIALS if getattr(wanted, k, None) is not None]
    pairs = {k: (getattr(found, k, None), getattr(wanted, k)) for k in dials}
    other = [f"{k} {theirs}, not {ours}" for k, (theirs, ours) in pairs.items() if theirs != ours]
    check(
        not other,
        f"init: the checkpoint {init} is of another shape than the recipe's {recipe.system}: {', '.join(other)}",
        f"write `system: {name}` without a size (and no `model`): the shape is then the checkpoint's",
    )


def _reads_alike(init: str, opened: Opened, tokenizer: Tokenizer) -> None:
    """Raise `UserError` unless a checkpoint was trained on the ids that this tokenizer gives."""
    check(
        opened.tokenizer is None or opened.tokenizer.fingerprint == tokenizer.fingerprint,
        f"init: the checkpoint {init} was trained with another tokenizer than this run's",
        "leave `tokenizer` out of the recipe: the checkpoint brings its own",
    )


def _answerable(stage: Stage, prepared: Prepared) -> None:
    """Raise `UserError` now, not after hours of training, if a row of the task has a label that the stage does not know."""
    assert stage.objective is not None
    ctx = Context(prepared.tokenizer.vocab, prepared.tokenizer.layout, stage.length)
    for (name, _), shards in prepared.shards.items():
        for start in range(0, len(shards), BLOCK) if name in stage.data else ():
            stage.objective.form(shards.read(np.arange(start, min(start + BLOCK, len(shards)))), ctx)


def start_of(run: Run, init: str) -> Start:
    """What `init` names, whole: `scratch`, an earlier stage, or an imported folder."""
    if init in run.imported:
        opened = run.imported[init]
        return Start(opened.network.model, opened.network.heads, opened.lineage, lambda: opened.tensors)
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


def _one(run: Run, stage: Stage, folder: Path, seed: int, init: str, title: str = "") -> Done:
    """Run one stage in `folder` from `init`, score it if it is a fine-tuning, export it, and mark it done."""
    prepared = run.reads(stage, init)
    shards: dict[str, Any] = {name: prepared.shards[name, "train"] for name in stage.data}
    data = {name: content(one) for name, one in shards.items()}
    if stage.examples is not None:
        shards = {name: draw(one, stage.examples, seed) for name, one in shards.items()}

    def sinks(after: int) -> list[Sink]:
        return [tensorboard(folder / "tensorboard", after=after)] if run.recipe.tensorboard else []

    assert stage.objective is not None
    start = start_of(run, init).for_objective(stage.objective)
    if stage.vocabulary is not None:
        old, parts = run.reads_before(stage), start
        start = start.grown({a.id: a.pieces for a in prepared.added}, prepared.tokenizer.vocab.size)
        identity = settings.digest([spelled(stage), _parent(run, init), prepared.tokenizer.fingerprint])
        before(folder, stage, (parts, start), (run.scorer(old), run.scorer(prepared)), identity)
    job = Job(
        stage.model_copy(update={"init": init}),
        start,
        shards,
        prepared.tokenizer,
        run.recipe.system.partition("/")[0],
        seed,
        facts={"parent": _parent(run, init), "data": data},
        held_out=lambda network, objective, dtype: run.scorer(prepared).losses(network, objective, stage, dtype),
        held=run.signals.held,
        title=title,
        sinks=sinks,
    )
    outcome = jobs.run_stage(folder, job)
    predictions = _predictions(run, prepared, stage, folder, outcome) if stage.stage == "finetune" else None
    if not jobs.done(folder):
        try:
            for note in export_checkpoint(folder, folder / "hf").notes:
                log.debug("%s: %s", folder, note)
        except NoHubClass as error:
            log.info("%s: there is no folder hf: %s", stage.title, error.message)
        jobs.finish(folder)
    return Done(stage, folder, outcome, predictions)


def _parent(run: Run, init: str) -> str:
    """What identifies the weights a stage starts from."""
    if init in run.done:
        return settings.fingerprint(run.done[init].folder)
    return run.imported[init].fingerprint if init in run.imported else init


def draw(shards: Shards, examples: int, seed: int) -> Subset:
    """`examples` documents of the shards, drawn by the seed; raises `UserError` when there are fewer."""
    check(
        examples <= len(shards),
        f"{shards.folder} has {len(shards):,} rows, fewer than `examples: {examples}`",
        "lower `examples`, or leave it out to use all rows",
    )
    chosen = np.random.default_rng([seed, 7]).permutation(len(shards))[:examples]
    return Subset(shards, np.sort(chosen))


def _predictions(run: Run, prepared: Prepared, stage: Stage, folder: Path, outcome: Outcome) -> Predictions:
    """The test predictions of a fine-tuned checkpoint, kept beside it with what identifies the test rows."""
    path, objective = folder / "predictions.json", stage.objective
    assert objective is not None
    (name,) = stage.data
    rows = content(prepared.shards[name, "test"])
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if kept.pop("documents", "") == rows:
            return Predictions(**kept)
    network = open_checkpoint(checkpoints.at(folder, outcome.steps)).build()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = run.scorer(prepared).answers(network.to(device), objective, stage, precision_of(stage.precision, device))
    write_json(path, {"documents": rows, **asdict(found)})
    return found


def _arms(run: Run) -> dict[str, dict[int, Done]]:
    """The fine-tuning from every prefix of the pipeline with every seed: {prefix: {seed: done}}, in pipeline order."""
    tuned = [s for s in run.recipe.stages if s.stage == "finetune"]
    if not tuned:
        return {}
    last = tuned[-1]
    prefixes = _prefixes(run.recipe, last)
    worth = run.recipe.worth
    if worth is None:
        return {prefixes[-1][0]: {run.recipe.seed: run.done[last.title]}}
    arms: dict[str, dict[int, Done]] = {}
    for name, init in prefixes:
        arms[name] = {}
        for seed in worth.seeds:
            if init == last.init and seed == worth.seeds[0]:
                arms[name][seed] = run.done[last.title]
                continue
            folder = run.folder / "worth" / name.lstrip("+") / f"seed-{seed}"
            arms[name][seed] = _one(run, last, folder, seed, init, f"{last.title} from {name}, seed {seed}")
    return arms


def _prefixes(recipe: Recipe, last: Stage) -> list[tuple[str, str]]:
    """(name, init) of every prefix of the chain of stages that leads to the fine-tuning, shortest first."""
    by_title = {s.title: s for s in recipe.stages}
    chain, init = [], last.init
    while init in by_title:
        chain.append((f"+{init}", init))
        init = by_title[init].init
    first = init if init == "scratch" else called(init)
    return [(f"imported {first}" if first in by_title else first, init), *chain[::-1]]

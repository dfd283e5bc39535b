"""A recipe, run: prepare, every stage in order, what each was worth, the report. Running it again goes on."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from ziggurat.checkpoint import format as checkpoints
from ziggurat.config import dump, load
from ziggurat.data.loader import once
from ziggurat.data.shards import Shards
from ziggurat.data.subset import Subset
from ziggurat.errors import UserError, check
from ziggurat.evaluate.heldout import Predictions, first, held_out, predict
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.pipeline.prepare import Prepared
from ziggurat.pipeline.prepare import prepare as prepare_data
from ziggurat.systems import SYSTEMS
from ziggurat.systems.hub import export_checkpoint, from_hub
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import job as jobs
from ziggurat.train.job import Job, Outcome, Start
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage

log = logging.getLogger(__name__)

RUNS = Path("runs")


@dataclass(frozen=True)
class Done:
    """A finished stage."""

    stage: Stage
    folder: Path
    outcome: Outcome
    predictions: Predictions | None = None
    """On the task's test rows, of a fine-tuning."""


@dataclass
class Run:
    """What the steps of a run share."""

    recipe: Recipe
    """Resolved."""
    folder: Path
    prepared: Prepared
    stop: Callable[[], bool]
    imported: dict[str, Start]
    done: dict[str, Done]

    @property
    def text_objective(self) -> Objective | None:
        """The objective that held-out losses are measured with, the same after every stage."""
        return next((s.objective for s in self.recipe.stages if s.stage != "finetune"), None)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The resolved recipe of a file; raises `UserError` with all its mistakes at once."""
    return load(path, overrides, model=Recipe).resolved()


def prepare(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Make the tokenizer and shards of a recipe, nothing else; returns the run folder."""
    recipe = load_recipe(path, overrides)
    folder = RUNS / recipe.name
    with _locked(folder), _signals() as stop:
        _begin(recipe, folder, stop)
    return folder


def run(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Run a recipe, or go on with it; returns the run folder. Raises `UserError`, and `Stopped` after a signal."""
    from ziggurat.pipeline.outcome import account

    recipe = load_recipe(path, overrides)
    folder = RUNS / recipe.name
    with _locked(folder), _signals() as stop:
        run = _begin(recipe, folder, stop)
        for stage in recipe.stages:
            seed = recipe.worth.seeds[0] if recipe.worth and stage.stage == "finetune" else recipe.seed
            run.done[stage.title] = _one(run, stage, folder / stage.title, seed, stage.init)
        arms = _arms(run)
        account(run, arms, path)
    return folder


def _begin(recipe: Recipe, folder: Path, stop: Callable[[], bool]) -> Run:
    imported: dict[str, Start] = {}
    brought: Tokenizer | None = None
    titles = {s.title for s in recipe.stages}
    for stage in recipe.stages:
        if stage.init not in titles | {"scratch"} and stage.init not in imported:
            imported[stage.init], tokenizer = _import(Path(stage.init))
            brought = brought or tokenizer
    prepared = prepare_data(recipe, folder, brought, stop)
    (folder / "recipe.yaml").write_text(dump(recipe), "utf-8")
    return Run(recipe, folder, prepared, stop, imported, {})


def _import(folder: Path) -> tuple[Start, Tokenizer | None]:
    """The weights (and the tokenizer, if there is one) of a checkpoint of ours or a Hugging Face folder."""
    check(folder.exists(), f"init: there is no folder {folder}", "name an earlier stage, `scratch`, or the folder of a checkpoint")
    if (folder / "config.json").exists() and not (folder / "MANIFEST.json").exists():
        found = from_hub(folder)
        for note in found.notes:
            log.info("%s: %s", folder, note)
        entry = {"stage": "import", "name": folder.name, "system": found.system}
        start = Start(found.network.model, found.network.heads, found.tensors, (entry,))
        return start, Tokenizer.load(found.tokenizer) if found.tokenizer else None
    saved = checkpoints.load(folder)
    tokenizer = Tokenizer.load(saved.tokenizer) if saved.tokenizer else None
    return _start(saved), tokenizer


def _start(saved: checkpoints.Saved) -> Start:
    return Start(saved.card.network.model, saved.card.network.heads, saved.tensors, saved.card.lineage)


def start_of(run: Run, init: str) -> Start:
    """The weights that `init` names: `scratch`, an earlier stage, or an imported folder."""
    if init in run.imported:
        return run.imported[init]
    if init in run.done:
        return _start(checkpoints.load(run.done[init].folder))
    if run.imported and not run.recipe.system.partition("/")[2]:
        # without a size the shape is the imported checkpoint's
        return Start(next(iter(run.imported.values())).model)
    name, _, size = run.recipe.system.partition("/")
    system, vocab = SYSTEMS[name], run.prepared.tokenizer.vocab
    model = system.single(size, {k: v for k, v in run.recipe.model if v is not None}, vocab.size)
    if system.pad_counts:
        positions = model.embed.positions.model_copy(update={"offset": vocab.pad + 1})
        model = model.model_copy(update={"embed": model.embed.model_copy(update={"positions": positions})})
    return Start(model)


def _one(run: Run, stage: Stage, folder: Path, seed: int, init: str, title: str = "") -> Done:
    """Run one stage in `folder` from `init`, score it if it is a fine-tuning, export it, and mark it done."""
    shards: dict[str, Any] = {name: run.prepared.shards[name, "train"] for name in stage.data}
    if stage.examples is not None:
        shards = {name: draw(one, stage.examples, seed) for name, one in shards.items()}
    parent = run.done[init].folder if init in run.done else None
    facts = {
        "parent": jobs.fingerprint(parent) if parent else init,
        "data": {name: one.meta["source"] for name, one in shards.items()},
    }
    job = Job(
        stage.model_copy(update={"init": init}),
        start_of(run, init),
        shards,
        run.prepared.tokenizer,
        run.recipe.system.partition("/")[0],
        seed,
        facts,
        held_out=lambda network, objective, dtype: _held_out(run, network, objective, dtype, stage),
        stop=run.stop,
        title=title or stage.title,
    )
    outcome = jobs.run_stage(folder, job)
    predictions = _predictions(run, stage, folder, job) if stage.stage == "finetune" else None
    if not (folder / "DONE").exists():
        exported = export_checkpoint(folder, folder / "hf")
        for note in exported.notes:
            log.debug("%s: %s", folder, note)
        jobs.finish(folder)
    return Done(stage, folder, outcome, predictions)


def draw(shards: Shards, examples: int, seed: int) -> Subset:
    """`examples` documents of the shards, drawn by the seed; raises `UserError` when there are fewer."""
    check(
        examples <= len(shards),
        f"{shards.folder} has {len(shards):,} rows, fewer than `examples: {examples}`",
        "lower `examples`, or leave it out to use all rows",
    )
    chosen = np.random.default_rng([seed, 7]).permutation(len(shards))[:examples]
    return Subset(shards, np.sort(chosen))


def _held_out(
    run: Run, network: NetworkModel, own: Objective, dtype: torch.dtype, stage: Stage
) -> dict[str, dict[str, float]]:
    """Losses on text that no stage sees: the valid split of plain sources, the test texts of the task."""
    if stage.stage == "finetune":
        return {}
    objective = run.text_objective or own
    if any(name not in network.heads for name in objective.heads(network.spec.model)):
        objective = own
    found = {}
    for name in dict.fromkeys(n for s in run.recipe.stages for n in s.data):
        split = "valid" if (name, "valid") in run.prepared.shards else "test"
        if (name, split) in run.prepared.shards:
            batches = _once(run, run.prepared.shards[name, split], objective, stage, network)
            found[name] = held_out(network, objective, first(batches, stage.evaluate.tokens), dtype)
    return found


def _once(run: Run, shards: Shards, objective: Objective, stage: Stage, network: NetworkModel) -> Iterator[Any]:
    from ziggurat.context import Context

    tokenizer = run.prepared.tokenizer
    ctx = Context(tokenizer.vocab, tokenizer.layout, stage.length, network.spec.model.visibility, run.recipe.seed)
    return once(shards, objective, ctx, row=stage.length, tokens=max(2048, stage.length))


def _predictions(run: Run, stage: Stage, folder: Path, job: Job) -> Predictions:
    """The test predictions of a fine-tuned checkpoint, kept beside it."""
    path = folder / "predictions.json"
    if path.exists():
        return Predictions(**json.loads(path.read_text("utf-8")))
    objective = stage.objective
    assert objective is not None
    saved = checkpoints.load(folder)
    network = NetworkModel(saved.card.network)
    network.load_state_dict(saved.tensors)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    from ziggurat.train.loop import precision_of

    (name,) = stage.data
    batches = _once(run, run.prepared.shards[name, "test"], objective, stage, network)
    found = predict(network, objective, batches, precision_of(stage.precision, device))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"gold": found.gold, "predicted": found.predicted}, ensure_ascii=False), "utf-8")
    temporary.replace(path)
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
            arms[name][seed] = _one(run, replaced(last, init), folder, seed, init, f"{last.title} from {name}, seed {seed}")
    return arms


def replaced(stage: Stage, init: str) -> Stage:
    return stage.model_copy(update={"init": init})


def _prefixes(recipe: Recipe, last: Stage) -> list[tuple[str, str]]:
    """(name, init) of every prefix of the chain of stages that leads to the fine-tuning, shortest first."""
    by_title = {s.title: s for s in recipe.stages}
    chain, init = [], last.init
    while init in by_title:
        chain.append((f"+{init}", init))
        init = by_title[init].init
    return [("scratch" if init == "scratch" else Path(init).name, init), *chain[::-1]]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is running in {folder}", "wait for it, or give this recipe another `name`") from None
        yield


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask the run to save and stop; a second one ends it at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()
        log.warning("stopping after this step; the same command goes on from here (again to stop at once)")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

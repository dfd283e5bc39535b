"""`ziggurat sweep`: one stage with every combination of some values and seeds, compared on held-out rows; running it again goes on.

runs/<name>/sweep/<stage>/  sweep.html  sweep.json  sweep.csv  optim.lr=3e-5/seed-0/ (a stage's folder, as `run` makes them)

Test rows choose nothing: they are scored for the best point alone, after it was chosen.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from ziggurat import __version__
from ziggurat.atomic import write_json
from ziggurat.config import spelled
from ziggurat.errors import UserError, check
from ziggurat.evaluate.heldout import Predictions, main_loss, metric_of
from ziggurat.evaluate.scores import Metric
from ziggurat.pipeline import doctor, estimate
from ziggurat.pipeline import run as running
from ziggurat.pipeline.begun import unchanged
from ziggurat.pipeline.grid import Grid, Place, chosen_stage, places, read, without_valid, written
from ziggurat.pipeline.run import Done, Run, Training
from ziggurat.pipeline.sweep_report import show, write_results
from ziggurat.pipeline.sweep_results import LOSS, Sweep, Trial, compare
from ziggurat.pipeline.table import label
from ziggurat.train import budget, keeping, settings
from ziggurat.train import job as jobs
from ziggurat.train.arms import left_open
from ziggurat.train.loop import Diverged
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import BUDGETS, Stage

log = logging.getLogger(__name__)

FOLDER = "sweep"
DIVERGED = "diverged.json"
COSTS = (*BUDGETS, "batch", "accumulate", "length", "memory", "objective", "precision", "freeze", "lora", "distill")
"""Fields of a stage that decide, with the model, how many steps a time budget has."""


def command(path: Path, stage: str, arguments: Sequence[str], seeds: str = "") -> None:
    """The command line: `arguments` are FIELD=V1,V2 of the stage and KEY=VALUE of the recipe, `seeds` is text such as `0,1,2`."""
    grid, overrides = read(arguments)
    numbers = [part.strip() for part in seeds.split(",")] if seeds else []
    check(all(n.isdecimal() for n in numbers), f"--seeds {seeds} are no whole numbers", "as in --seeds 0,1,2")
    show(sweep(path, stage, grid, list(map(int, numbers)) or None, overrides))


def sweep(path: str | Path, stage: str, grid: Grid, seeds: Sequence[int] | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """Run the stages before `stage` and then every point of the grid with every seed, or find it done; sweep.html, .json and .csv.

    `grid` has values by field of the stage: `{"optim.lr": [1e-5, 3e-5]}`. `seeds` are by default `worth.seeds` for a fine-tuning and the
    recipe's seed for a stage of text. Points are compared on held-out (`valid`) rows: of a fine-tuning by the task's metric, of a stage of text
    by the loss on its own sources, weighted by their shares.

    Raises:
        UserError: a mistake in the recipe or a point, no such stage, nothing held out, or a folder that was begun with other settings.
        Stopped: a signal came in; the same call goes on.
    """
    recipe = running.load_recipe(path, overrides)
    base = chosen_stage(recipe, stage)
    points = places(recipe, base, grid, lambda more: running.load_recipe(path, [*overrides, *more]))
    seeds = _seeds(recipe, base, seeds)
    folder = running.RUNS / recipe.name
    with running.session(folder) as signals:
        run = running.begin(recipe, folder, signals)
        run.before = doctor.glance(run)
        doctor.say(run.before)
        for name in base.data:
            check((name, "valid") in run.prepared.shards, *without_valid(stage, name))
        home, earlier = folder / FOLDER / stage, run.recipe.stages[: [s.title for s in recipe.stages].index(stage)]
        estimate.scheduled(run, run.left(earlier))
        for place in points:
            if not all(jobs.done(_home(home, place, seed)) for seed in seeds):
                _scheduled(run, place)
        running.in_order(run, earlier)
        base, init = running.started(run, base)
        points = [
            replace(p, stage=p.stage.model_copy(update={"forgetting": base.forgetting})) if left_open(p.stage) else p
            for p in points
        ]
        starts = {place.name: _start(run, base, init, place) for place in points}
        alike = _alike(run, points, starts)

        def training(place: Place, seed: int) -> Training:
            return _training(home, place, seed, starts[place.name], _settled(alike[place.name], home, seeds))

        asked = [training(place, seed) for place in points for seed in seeds]
        unchanged(run, [one for one in asked if not (one.folder / DIVERGED).exists()])
        tried = list[tuple[Place, dict[int, Trial]]]()
        metric, measure = _measure(base)
        for n, place in enumerate(points, 1):
            log.info("%s, point %d of %d: %s", stage, n, len(points), place.name)
            tried.append((place, {seed: _trial(run, base, place, training(place, seed)) for seed in seeds}))
        found = compare(recipe.name, stage, measure, metric, grid, tried, [str(home / p.folder) for p in points])
        test = _test(run, base, points, found, home, starts) if base.stage == "finetune" else {}
    found = replace(found, test=test, folder=str(home), facts=_facts(path, stage, grid, seeds, overrides))
    write_results(home, found)
    return found


def _seeds(recipe: Recipe, stage: Stage, seeds: Sequence[int] | None) -> tuple[int, ...]:
    if seeds is None:
        return recipe.worth.seeds if recipe.worth is not None and stage.stage == "finetune" else (recipe.seed,)
    check(
        seeds and min(seeds) >= 0 and len(set(seeds)) == len(seeds),
        f"seeds {list(seeds)}: different whole numbers from 0 on are needed",
    )
    return tuple(seeds)


def _scheduled(run: Run, place: Place) -> None:
    """Raise `UserError` by a point's name if its warm-up does not fit, or it asks for more examples than there are rows."""
    try:
        running.enough(place.stage, run.prepared)
        estimate.scheduled(run, [place.stage])
    except UserError as error:
        raise UserError(f"{place.name}: {error.message}", error.hint) from None


def _measure(stage: Stage) -> tuple[Metric, str]:
    """What the points are compared by, and how tables call it."""
    if stage.stage != "finetune":
        return LOSS, LOSS.name
    assert stage.objective is not None
    metric = metric_of(stage.objective)
    return metric, f"held-out {label(metric.name)}"


def _start(run: Run, base: Stage, init: str, place: Place) -> str:
    """What a point starts from: what the stage does, unless `init` itself is swept; raises `UserError` where that reads other tokens."""
    if "init" not in place.changes:
        return init
    own = str(place.stage.init)
    mine, theirs = (run.reads(s, i).tokenizer.fingerprint for s, i in ((place.stage, own), (base, init)))
    check(
        mine == theirs,
        f"{place.name}: it reads other tokens than {init} does, so points cannot be compared",
        "run it as another recipe",
    )
    return own


def _alike(run: Run, points: Sequence[Place], starts: dict[str, str]) -> dict[str, list[Place]]:
    """By a point's name those that have the steps of one time budget: they differ in nothing that decides what a step costs."""

    def costs(place: Place) -> str:
        told = spelled(place.stage)
        return settings.digest([{f: told.get(f) for f in COSTS}, spelled(running.start_of(run, starts[place.name]).model)])

    keys = {p.name: costs(p) for p in points}
    return {name: [p for p in points if keys[p.name] == key] for name, key in keys.items()}


def _settled(points: Sequence[Place], home: Path, seeds: Sequence[int]) -> int | None:
    """The steps that the first run of these points has measured; None where it is still to begin."""
    found = (budget.settled(_home(home, place, seed), place.stage) for place in points for seed in seeds)
    return next((steps for steps in found if steps is not None), None)


def _trial(run: Run, base: Stage, place: Place, one: Training) -> Trial:
    """One run, or what it has found before; a run that diverged is written down and not tried again."""
    record = one.folder / DIVERGED
    identity = settings.digest([spelled(place.stage), one.seed, one.init, running._parent(run, one.init)])
    if record.exists():
        kept = json.loads(record.read_text("utf-8"))
        if kept["identity"] == identity:
            return Trial(math.nan, diverged=kept["why"])
    try:
        done = running.train(run, one, export=False, split="valid")
    except Diverged as error:
        log.warning("%s, seed %d: %s", place.name, one.seed, error.message)
        write_json(record, {"identity": identity, "why": error.message})
        return Trial(math.nan, diverged=error.message)
    o = done.outcome
    losses = tuple(main_loss(numbers) for name, numbers in o.held_out.items() if name in base.data)
    return Trial(_score(base, done), o.cost[1], o.steps, o.skipped, _predictions(done), losses=losses)


def _home(home: Path, place: Place, seed: int) -> Path:
    return home / place.folder / f"seed-{seed}"


def _training(home: Path, place: Place, seed: int, init: str, steps: int | None = None) -> Training:
    """A point with a seed. `steps`: of a time budget, measured before."""
    title = f"{place.stage.title} with {place.name}, seed {seed}"
    return Training(place.stage, _home(home, place, seed), seed, init, title, steps)


def _predictions(done: Done) -> Predictions | None:
    """Of a fine-tuning its one task's; a stage of several tasks is not swept (`grid`)."""
    return next(iter(done.predictions.values()), None)


def _score(base: Stage, done: Done) -> float:
    """Of a fine-tuning the task's metric, of a stage of text the mean loss on its sources; both on held-out rows."""
    said = _predictions(done)
    if said is not None:
        assert base.objective is not None
        return said.score(base.objective)
    return keeping.score(base, done.outcome.held_out, "loss")


def _test(run: Run, base: Stage, points: Sequence[Place], found: Sweep, home: Path, starts: dict[str, str]) -> dict[int, float]:
    """Test scores of the best point by seed; no other point is ever scored on test rows."""
    best = next((p for p in points if found.best is not None and p.name == found.best.name), None)
    if best is None:
        return {}
    asked = {seed: _training(home, best, seed, starts[best.name]) for seed in found.seeds}
    return {seed: _score(base, running.train(run, one, export=False, split="test")) for seed, one in asked.items()}


def _facts(path: str | Path, stage: str, grid: Grid, seeds: Sequence[int], overrides: Sequence[str]) -> dict[str, object]:
    swept = [f"{field}={','.join(map(written, values))}" for field, values in grid.items()]
    line = ["ziggurat", "sweep", str(path), stage, *swept, *overrides, "--seeds", ",".join(map(str, seeds))]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    machine += f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(line),
        "setting": {"ziggurat": __version__, "torch": torch.__version__, "machine": machine},
    }

"""The prefixes of the pipeline, and the fine-tuning from each with every seed, by which the stages' worth is measured.

They differ in their start and their seed alone: of a time budget all have the steps that the recipe's own fine-tuning measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ziggurat.pipeline import run as running
from ziggurat.pipeline.begun import unchanged
from ziggurat.pipeline.opened import called
from ziggurat.pipeline.run import Training
from ziggurat.train import budget
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage, candidates

if TYPE_CHECKING:
    from ziggurat.pipeline.run import Done, Run


def tuned(recipe: Recipe) -> Stage | None:
    """The fine-tuning that is done from every prefix: the last one."""
    return next((s for s in reversed(recipe.stages) if s.stage == "finetune"), None)


def prefixes(recipe: Recipe, last: Stage) -> list[tuple[str, str]]:
    """(name, init) of every prefix of the chain of stages that leads to the fine-tuning, shortest first; before a start is chosen, the
    last candidate stands for it."""
    by_title = {s.title: s for s in recipe.stages}
    chain, init = [], candidates(last.init)[-1]
    while init in by_title:
        chain.append((f"+{init}", init))
        init = candidates(by_title[init].init)[-1]
    first = init if init == "scratch" else called(init)
    return [(f"imported {first}" if first in by_title else first, init), *chain[::-1]]


def asked(run: Run, last: Stage) -> dict[str, dict[int, Training]]:
    """The fine-tunings by prefix and seed, in pipeline order; of the recipe's own the folder is the stage's. The steps of a time budget are
    there once that one has begun."""
    ways, worth = prefixes(run.recipe, last), run.recipe.worth
    if worth is None:
        return {ways[-1][0]: {run.recipe.seed: Training(last, run.folder / last.title, run.recipe.seed, str(last.init))}}
    found: dict[str, dict[int, Training]] = {}
    for name, init in ways:
        home = run.folder / "worth" / name.lstrip("+")
        found[name] = {
            seed: Training(last, home / f"seed-{seed}", seed, init, f"{last.title} from {name}, seed {seed}", settled(run, last))
            for seed in worth.seeds
        }
    found[ways[-1][0]][worth.seeds[0]] = Training(last, run.folder / last.title, worth.seeds[0], str(last.init))
    return found


def settled(run: Run, last: Stage) -> int | None:
    """The steps of the recipe's own fine-tuning, if it has begun."""
    return budget.settled(run.folder / last.title, last)


def refuse_changed(run: Run) -> None:
    """Raise `UserError` if any of the fine-tunings, or the control beside them, was begun with other settings; the stages before them are
    done."""
    from ziggurat.pipeline.control import begun

    if (last := tuned(run.recipe)) is not None:
        last, _ = running.started(run, last)
        unchanged(run, [*(one for row in asked(run, last).values() for one in row.values()), *begun(run, last)])


def arms(run: Run) -> dict[str, dict[int, Done]]:
    """The fine-tuning from every prefix of the pipeline with every seed: {prefix: {seed: done}}, in pipeline order."""
    last = tuned(run.recipe)
    if last is None:
        return {}
    found: dict[str, dict[int, Done]] = {}
    for name, row in asked(run, last).items():
        found[name] = {}
        for seed, one in row.items():
            if one.folder == run.done[last.title].folder:
                found[name][seed] = run.done[last.title]
                continue
            found[name][seed] = running.train(run, one)
    return found

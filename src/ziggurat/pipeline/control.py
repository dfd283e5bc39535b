"""Adaptation to the wrong domain, as a control: the same stage on other text, and the task fine-tuned from it.

What it adds is what more training adds; what the right domain adds beyond it is the domain's (Gururangan et al., 2020, section 3.3).
It has the right domain's schedule, and ends at the step whose weights that one handed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ziggurat.pipeline import interpolation
from ziggurat.pipeline import run as running
from ziggurat.pipeline.prefixes import prefixes, settled, tuned
from ziggurat.pipeline.run import Done, Training
from ziggurat.pipeline.worth import Control
from ziggurat.train import budget
from ziggurat.train import job as jobs
from ziggurat.train.stage import BUDGETS, Share, Stage

if TYPE_CHECKING:
    from ziggurat.pipeline.run import Run


@dataclass(frozen=True)
class _Beside:
    """The control, before it is run."""

    name: str
    """What its fine-tunings start from: `dapt on news`."""
    right: Stage
    """The stage on the right domain, which is done."""
    asked: Training


def control(run: Run, arms: dict[str, dict[int, Done]]) -> Control | None:
    """Run the control of the last dapt stage that the fine-tuning comes from, and put it among the arms behind that stage. Its place in the
    ledger; None if the recipe asks for none or there is no such stage."""
    last = tuned(run.recipe)
    beside = _beside(run, last) if last is not None else None
    if last is None or beside is None:
        return None
    name, stage, one = beside.name, beside.right, beside.asked
    run.done[name] = running.train(run, one)
    trials = {each.seed: running.train(run, each) for each in _trials(run, last, beside)}
    run.controls[f"+{name}"] = run.done.pop(name)
    before = next(prefix for prefix, start in prefixes(run.recipe, last) if start == stage.init)
    ordered = list(arms.items())
    place = 1 + next(n for n, (prefix, _) in enumerate(ordered) if prefix == f"+{stage.title}")
    arms.clear()
    arms |= dict([*ordered[:place], (f"+{name}", trials), *ordered[place:]])
    return Control(f"+{name}", before, f"+{stage.title}")


def begun(run: Run, last: Stage) -> list[Training]:
    """What the control trains, as far as it may have been begun: its fine-tunings once it is done."""
    beside = _beside(run, last)
    if beside is None:
        return []
    folder = beside.asked.folder
    if not jobs.done(folder):
        return [beside.asked]
    run.done[beside.name] = Done(beside.asked.stage, folder, jobs.outcome_of(folder))  # until `control` is through
    return [beside.asked, *_trials(run, last, beside)]


def _beside(run: Run, last: Stage) -> _Beside | None:
    """The control of the last dapt stage that the fine-tuning `last` comes from."""
    worth = run.recipe.worth
    if worth is None or worth.control is None:
        return None
    by_title = {s.title: s for s in run.recipe.stages}
    chain, init = list[Stage](), last.init
    while isinstance(init, str) and init in by_title:
        chain.append(by_title[init])
        init = chain[-1].init
    stage = next((s for s in chain if s.stage == "dapt"), None)
    if stage is None:
        return None
    name = f"{stage.title} on {worth.control}"
    kept, planned = run.done[stage.title].outcome.steps, budget.settled(run.folder / stage.title, stage)
    assert planned is not None  # the stage is done
    steps = dict.fromkeys(BUDGETS) | {"steps": planned}
    last_weights = stage.evaluate.model_copy(update={"keep": "last", "patience": None})  # or it would have fewer steps
    update: dict[str, Any] = {"data": {worth.control: Share()}, "nearest": {}, "name": name.replace(" ", "-")}
    update |= {"evaluate": last_weights, **steps}
    if stage.forgetting is not None:  # the wrong domain forgets more, and would be stopped sooner
        update["forgetting"] = stage.forgetting.model_copy(update={"stop": False})
    if stage.interpolate is not None:  # as far on the way as the right domain's
        line = interpolation.read(run.folder / stage.title)
        assert line is not None
        update["interpolate"] = stage.interpolate.model_copy(update={"share": line["chosen"]})
    other, folder = stage.model_copy(update=update), run.folder / "worth" / "control" / stage.title
    if stage.title in run.read:  # with the right domain's tokens, if it brought some
        run.read[name] = run.read[other.title] = run.read[stage.title]
    until = kept if kept < planned else None
    return _Beside(name, stage, Training(other, folder, run.recipe.seed, str(stage.init), name, until=until))


def _trials(run: Run, last: Stage, beside: _Beside) -> list[Training]:
    """The fine-tunings from the control."""
    assert run.recipe.worth is not None
    home, steps = beside.asked.folder.parent, settled(run, last)
    return [
        Training(last, home / f"seed-{seed}", seed, beside.name, f"{last.title} from {beside.name}, seed {seed}", steps)
        for seed in run.recipe.worth.seeds
    ]

"""Adaptation to the wrong domain, as a control: the same stage on other text, and the task fine-tuned from it.

What it adds is what more training adds; what the right domain adds beyond it is the domain's (Gururangan et al., 2020, section 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ziggurat.pipeline import interpolation
from ziggurat.pipeline import run as running
from ziggurat.pipeline.worth import Control
from ziggurat.train.stage import BUDGETS, Share, Stage

if TYPE_CHECKING:
    from ziggurat.pipeline.run import Done, Run


def control(run: Run, arms: dict[str, dict[int, Done]]) -> Control | None:
    """Run the control of the last dapt stage that the fine-tuning comes from, and put it among the arms behind that stage. Its place in the
    ledger; None if the recipe asks for none or there is no such stage."""
    worth = run.recipe.worth
    if worth is None or worth.control is None or not arms:
        return None
    last = next(iter(next(iter(arms.values())).values())).stage
    by_title = {s.title: s for s in run.recipe.stages}
    chain, init = list[Stage](), last.init
    while isinstance(init, str) and init in by_title:
        chain.append(by_title[init])
        init = chain[-1].init
    stage = next((s for s in chain if s.stage == "dapt"), None)
    if stage is None:
        return None
    name = f"{stage.title} on {worth.control}"
    steps = dict.fromkeys(BUDGETS) | {"steps": run.done[stage.title].outcome.steps}
    last_weights = stage.evaluate.model_copy(update={"keep": "last", "patience": None})  # or it would have fewer steps
    update: dict[str, Any] = {"data": {worth.control: Share()}, "nearest": {}, "name": name.replace(" ", "-")}
    update |= {"evaluate": last_weights, **steps}
    if stage.forgetting is not None:  # the wrong domain forgets more, and would be stopped sooner
        update["forgetting"] = stage.forgetting.model_copy(update={"stop": False})
    if stage.interpolate is not None:  # as far on the way as the right domain's
        line = interpolation.read(run.folder / stage.title)
        assert line is not None
        update["interpolate"] = stage.interpolate.model_copy(update={"share": line["chosen"]})
    other = stage.model_copy(update=update)
    folder = run.folder / "worth" / "control"
    if stage.title in run.read:  # with the right domain's tokens, if it brought some
        run.read[name] = run.read[other.title] = run.read[stage.title]
    run.done[name] = running._one(run, other, folder / stage.title, run.recipe.seed, str(stage.init), name)
    trials = {
        seed: running._one(run, last, folder / f"seed-{seed}", seed, name, f"{last.title} from {name}, seed {seed}")
        for seed in worth.seeds
    }
    run.controls[f"+{name}"] = run.done.pop(name)
    before = next(prefix for prefix, start in running._prefixes(run.recipe, last) if start == stage.init)
    ordered = list(arms.items())
    place = 1 + next(n for n, (prefix, _) in enumerate(ordered) if prefix == f"+{stage.title}")
    arms.clear()
    arms |= dict([*ordered[:place], (f"+{name}", trials), *ordered[place:]])
    return Control(f"+{name}", before, f"+{stage.title}")

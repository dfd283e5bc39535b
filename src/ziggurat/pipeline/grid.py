"""The points of a sweep: what the command line says, every combination as a recipe of its own, and what cannot be swept.

A field is swept by its name in the stage (`optim.lr=1e-5,3e-5`). What begins with a field of the recipe (`seed=1`,
`stages.pretrain.steps=100`) is laid over the recipe, as `run` does it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ziggurat.data import sources
from ziggurat.errors import UserError, check
from ziggurat.evaluate.heldout import metric_of
from ziggurat.pipeline.prepare import parts
from ziggurat.systems import find
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage, candidates
from ziggurat.train.tasks import several
from ziggurat.tree import nearest, parse

Grid = Mapping[str, Sequence[Any]]
"""Values by field of the stage, in plain data: `{"optim.lr": [1e-5, 3e-5]}`."""

EXAMPLE = "as in optim.lr=1e-5,3e-5, a field of the stage"
LONGEST = 120
"""Characters of a folder's name."""
FIXED = {
    "stage": "makes another stage of it",
    "name": "is only what the stage is called",
    "vocabulary": "needs other tokens, and all text prepared anew",
    "nearest": "needs other text prepared",
    "evaluate": "says how the points are measured, which must be the same for all",
    "save": "changes no result",
    "log_every": "changes no result",
}
"""Fields of a stage that are no hyper-parameters, and why."""


@dataclass(frozen=True)
class Place:
    """One point of the grid, before it is run."""

    name: str
    """`optim.lr=3e-5,batch.documents=16`"""
    folder: str
    """The name as a folder may be called."""
    changes: dict[str, Any]
    """Value by field."""
    overrides: tuple[str, ...]
    """What takes the point into the recipe: `stages.finetune.optim.lr=3e-5`."""
    stage: Stage
    """Resolved."""


def read(arguments: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """The grid and the recipe's overrides among `FIELD=V1,V2` and `KEY=VALUE`.

    Raises:
        UserError: no `=`, a field twice, or several values for what is not the stage's own.
    """
    grid: dict[str, list[Any]] = {}
    overrides = []
    for text in arguments:
        key, equals, written = text.partition("=")
        key = key.strip()
        check(equals and all(key.split(".")), f"'{text}' is no FIELD=VALUES", f"{EXAMPLE}, or seed=1, a value over the recipe's")
        values = _separate(written)
        if key.split(".")[0] in Recipe.model_fields:
            check(len(values) == 1, *_not_swept(key, written))
            overrides.append(text)
            continue
        check(key not in grid, f"{key} is given twice", f"give all its values at once: {key}=V1,V2")
        grid[key] = [parse(value, f"command line ({text})", lines=False).plain() for value in values]
    return grid, overrides


def _not_swept(key: str, written: str) -> tuple[str, str]:
    """What is wrong with several values for a key of the recipe, and what to do."""
    first, *rest = key.split(".")
    if first == "seed":
        return "the seeds of a sweep are an option", f"--seeds {written}"
    if first == "stages" and len(rest) > 1:
        field = ".".join(rest[1:])
        return (
            f"{key}: a sweep changes fields of one stage, by their names in it",
            f"ziggurat sweep RECIPE {rest[0]} {field}={written}",
        )
    return (
        f"{key} is the whole recipe's, and a sweep changes one stage: each value needs a preparation and earlier stages of its own",
        f"run the recipe once for each value, with a `name` for each: ziggurat run RECIPE name=... {key}=...",
    )


def _separate(text: str) -> list[str]:
    """Values between commas, but not those inside brackets or quotation marks: `{kind: cosine}, {kind: linear}` are two."""
    found, depth, quote, part = [], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and not part.strip():
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and not depth and not quote:
            found.append(part)
            part = ""
        else:
            part += character
    return [*found, part]


def chosen_stage(recipe: Recipe, title: str) -> Stage:
    """The stage to sweep; raises `UserError` if there is none of this name, or nothing is held out to compare points on."""
    by_title = {s.title: s for s in recipe.stages}
    check(title in by_title, f"the recipe has no stage '{title}'; {nearest(title, by_title)}")
    check(
        not several(by_title[title]),
        f"points are compared by one number, and {title} has one for each of its tasks",
        "sweep a stage of one of the tasks",
    )
    for name in by_title[title].data:
        held = "valid" in sources.splits(recipe.sources[name])
        check(held, *without_valid(title, name))
    return by_title[title]


def without_valid(title: str, source: str) -> tuple[str, str]:
    """What is wrong with a source that holds nothing out, and what to do."""
    return (
        f"points of {title} are compared on held-out rows, never on test rows, and source '{source}' has no `valid` ones",
        f"give it some, as in `valid: 0.1`, or sources.{source}.valid=0.1 behind the command",
    )


def places(recipe: Recipe, stage: Stage, grid: Grid, load: Any) -> list[Place]:
    """Every combination of the values, in order, each checked like a recipe. `load` gives the recipe under further overrides.

    Raises:
        UserError: nothing to sweep; fields or values that a recipe could not have; the same point twice; a change that needs another
            preparation or other stages before.
    """
    check(grid and all(grid.values()), "there is nothing to sweep", f"name a field and its values, {EXAMPLE}")
    for field in grid:
        first = field.split(".")[0]
        check(first not in FIXED, f"{field} cannot be swept: it {FIXED.get(first)}", f"sweep another field, {EXAMPLE}")
        check(
            first != "length" or stage.stage == "finetune",
            f"{field} cannot be swept: held-out text is read at the stage's own length, so the losses of text stages of other lengths "
            "answer other questions",
            "run the recipe once for each length, with a `name` for each, and compare what is fine-tuned from them",
        )
    found: list[Place] = []
    for values in product(*grid.values()):
        changes = dict(zip(grid, values))
        name = ",".join(f"{field}={said(value)}" for field, value in changes.items())
        overrides = tuple(f"stages.{stage.title}.{field}={written(value)}" for field, value in changes.items())
        whole: Recipe = load(overrides)
        own = next(s for s in whole.stages if s.title == stage.title)
        _fits(recipe, stage, whole, own, changes)
        for field, value in changes.items():
            check(
                value is None or _held(own, field) is not None,
                f"{name}: {field} is undone by another of these fields",
                "sweep one of them",
            )
        twin = next((p for p in found if p.stage == own), None)
        check(
            twin is None,
            f"{twin and twin.name} and {name} are the same point",
            "give each value once",
        )
        found.append(Place(name, _folder(name), changes, overrides, own))
    return found


def _fits(recipe: Recipe, stage: Stage, whole: Recipe, own: Stage, changes: Mapping[str, Any]) -> None:
    """Raise `UserError` where a point needs what the recipe does not prepare, or cannot be measured like the others."""
    fields = ", ".join(changes)
    other = "run it as a recipe with a `name` of its own"
    earlier = [s.title for s in recipe.stages[: [s.title for s in recipe.stages].index(stage.title)]]
    starts = ["scratch", *earlier, *(n for n in candidates(stage.init) if n not in ("scratch", *earlier))]
    init = str(own.init)
    check("init" not in changes or init in starts, f"{fields}: no such start here: {init}", f"there are: {', '.join(starts)}")
    missing = sorted({name for name, _ in set(parts(whole)) - set(parts(recipe))})
    check(not missing, f"{fields}: {', '.join(missing)} would have to be prepared, and the recipe does not read it", other)
    if stage.stage == "finetune":
        check([*own.data] == [*stage.data], f"{fields}: points on other rows cannot be compared", other)
    objectives = [s.objective for s in recipe.stages if s.objective is not None]
    assert stage.objective is not None and own.objective is not None
    asked = {*own.objective.vectors} <= {v for o in objectives for v in o.vectors}
    asked = asked and {*own.objective.tokens()} <= {t for o in objectives for t in o.tokens()}
    check(asked, f"{fields}: the objective needs tokens or tables that the recipe does not prepare", other)
    system = find(recipe.system.partition("/")[0])
    assert system is not None  # the recipe was checked
    model = system.model
    for objective in objectives:
        model = objective.equipped(model)
    check(own.objective.equipped(model) == model, f"{fields}: the objective needs another model to start from", other)
    if stage.objective.labelled:
        before, now = (metric_of(o).name for o in (stage.objective, own.objective))
        check(
            before == now, f"{fields}: points are compared by one metric, not by {before} and {now}", "leave the metric as it is"
        )


def _held(stage: Stage, field: str) -> Any:
    """What the stage has at a dotted place."""
    here: Any = stage
    for key in field.split("."):
        here = (
            here.get(key) if isinstance(here, dict) else here[int(key)] if isinstance(here, tuple) else getattr(here, key, None)
        )
    return here


def said(value: Any) -> str:
    """A value as names and tables have it: 0.00003 and 3e-05 are both `3e-5`."""
    if isinstance(value, float) and np.isfinite(value):
        plain, short = (
            np.format_float_positional(value, trim="-"),
            np.format_float_scientific(value, trim="-", exp_digits=1).replace("e+", "e"),
        )
        return plain if len(plain) <= len(short) else short
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def written(value: Any) -> str:
    """A value as an override has it: YAML that is read back to the same."""
    plain = said(value)
    if isinstance(value, str):
        try:
            return plain if parse(plain, "", lines=False).plain() == value else json.dumps(value, ensure_ascii=False)
        except UserError:
            return json.dumps(value, ensure_ascii=False)
    return plain


def _folder(name: str) -> str:
    """The name without characters that a folder should not have; a hash tells apart what then looks alike."""
    plain = re.sub(r"[^\w.=+,-]+", "_", name)
    if plain == name and len(name) <= LONGEST:
        return name
    return f"{plain[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

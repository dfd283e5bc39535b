"""Suites by name or file, and whether their rows are there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files as resources
from pathlib import Path

from ziggurat.config import complain, load
from ziggurat.data import files
from ziggurat.data.sources import Source
from ziggurat.errors import UserError
from ziggurat.train.recipe import Recipe
from ziggurat.train.suite import Suite
from ziggurat.tree import nearest, parse


def built_in() -> dict[str, Path]:
    """The suites of the package by name."""
    folder = Path(str(resources("ziggurat").joinpath("suites")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def is_suite(what: str) -> bool:
    """Whether `what` names a suite (a built-in one, or a file with `tasks`) and not a recipe (a file with `stages`).

    Raises:
        UserError: a name that is neither a file nor a suite; a file that is not YAML.
    """
    path = Path(what)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return False  # reading it as a recipe says what is wrong with it
        held = parse(text, what).value
        return isinstance(held, dict) and ("suite" in held or "tasks" in held)
    if what in built_in():
        return True
    if path.suffix in (".yaml", ".yml") or path.exists():
        return False
    raise UserError(
        f"there is no suite '{what}' and no such file", f"{nearest(what, built_in())}; a suite of your own is a YAML file"
    )


def load_suite(what: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """The suite called so, or of this file, with `key=value` laid upon it; raises `UserError` with all its mistakes at once."""
    path = Path(what) if Path(what).is_file() else built_in().get(str(what), Path(what))
    return load(path, overrides, model=Suite)


def suites_of(recipe: Recipe) -> list[Suite]:
    """The suites of a recipe with the options given there; raises `UserError` for mistakes in any of them."""
    found = []
    for what, options in (recipe.suites or {}).items():
        suite = load_suite(what)
        suite = suite.model_copy(update={name: getattr(options, name) for name in options.model_fields_set})
        complain(suite.problems(), f"suites.{what}")
        found.append(suite)
    return found


def missing(source: Source) -> str:
    """Why the files of a source cannot be read: which are not there; empty if they are."""
    if source.kind != "files":
        return ""
    for place in (source.path, source.valid, source.test):
        if isinstance(place, (str, list)):
            try:
                files.find(place)
            except UserError as e:
                return f"no data: {e.message}"
    return ""

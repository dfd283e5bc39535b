"""Every field a recipe may have, read off the specs: `python docs/recipe_fields.py > docs/recipe-fields.md`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ziggurat.config import Duration, given
from ziggurat.data import sources
from ziggurat.data.found import Collocations
from ziggurat.data.rows import Columns
from ziggurat.objectives import OBJECTIVES, AnyObjective
from ziggurat.objectives.masked import Ramp
from ziggurat.text.train import TokenizerSpec
from ziggurat.text.vectors import Vectors
from ziggurat.text.vocabulary import VocabularySpec
from ziggurat.train.adaptation import Anchor, Distill, Forgetting, Freeze, Interpolate, Lora
from ziggurat.train.recipe import Dials, ModelCard, Recipe, Worth
from ziggurat.train.stage import BatchLimits, BestOf, Evaluate, Optim, Save, Schedule, Share, Stage
from ziggurat.train.suite import Options, Suite, Task

HEAD = """\
# Recipe fields

Made from the code by `docs/recipe_fields.py`; a test keeps it up to date. In a recipe `a.b: 1` may be written as `a: {b: 1}`; on
the command line any field can be set as `stages.finetune.optim.lr=1e-4`. `ziggurat show RECIPE` prints every value of a recipe
and where it comes from.
"""
ADAPTATION = [Forgetting, Anchor, Distill, Freeze, Lora, Interpolate]
SECTIONS: list[tuple[str, str, list[type[BaseModel]]]] = [
    ("Recipe", "", [Recipe]),
    ("Model", "`model:`", [Dials]),
    ("Tokenizer", "`tokenizer:`", [TokenizerSpec]),
    (
        "Sources",
        "`sources: {name: ...}`",
        [sources.Files, Columns, Collocations, sources.Hub, sources.Docstrings, sources.DocstringBackticks],
    ),
    ("Stages", "`stages:` is a list of these; `defaults:` takes the same fields, all but `stage` and `name`", [Stage]),
    ("Parts of a stage", "", [BestOf, Share, BatchLimits, Optim, Schedule, Evaluate, Save, VocabularySpec, *ADAPTATION]),
    ("Objectives", "`objective:`", [*OBJECTIVES.values(), Ramp, Vectors]),
    ("Worth", "`worth:`", [Worth]),
    ("Model card", "`card:`", [ModelCard]),
    ("Suites", "`suites: {name: ...}`, and [suites of your own](evaluation.md)", [Options, Suite, Task]),
]
PLACES = {
    "Dials": "model",
    "TokenizerSpec": "tokenizer",
    "StageFields": "stages",
    "Stage": "stages",
    "Worth": "worth",
    "ModelCard": "model-card",
}
WORDS = {
    "Dials": "dimensions",
    "TokenizerSpec": "tokenizer",
    "StageFields": "stage fields",
    "Stage": "stages",
    "Worth": "worth",
    "ModelCard": "model card",
}
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", dict: "map", type(None): "null"}


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for title, where, specs in SECTIONS:
        parts.append(f"## {title}\n" + (f"\n{where}.\n" if where else ""))
        parts += ["\n".join(table(spec, alone=len(specs) == 1)) + "\n" for spec in specs]
    return "\n".join(parts)


def table(spec: type[BaseModel], *, alone: bool) -> Iterator[str]:
    fields = {name: field for name, field in spec.model_fields.items() if name != "kind" or not single(field)}
    name = f"`kind: {kind_of(spec)}`" if kind_of(spec) else spec.__name__
    if not alone:
        yield f"### {name}\n"
    yield " ".join((spec.__doc__ or "").split()) + "\n"
    if fields:
        yield "| field | value | default | meaning |"
        yield "|---|---|---|---|"
    for key, field in fields.items():
        meaning = " ".join((field.description or "").split())
        yield f"| `{key}` | {escaped(value(field.annotation))} | {escaped(default(field))} | {escaped(meaning)} |"


def single(field: FieldInfo) -> bool:
    """A tag: the one value it can have."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def value(annotation: Any) -> str:
    """A type in words."""
    if annotation == Duration:
        return "time"
    if annotation == AnyObjective:
        return "[objective](#objectives)"
    if annotation == sources.Source:
        return "[source](#sources)"
    if annotation in PLAIN:
        return PLAIN[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return value(inner[0])
    if origin is Literal:
        return ", ".join(f"`{v}`" for v in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(value(a) for a in inner if a is not type(None)))
    if origin is tuple and Ellipsis not in inner:
        return f"{len(inner)} numbers"
    if origin in (tuple, list):
        named = value(inner[0])
        return "list of " + {"text": "texts", "whole number": "whole numbers"}.get(named, named)
    if origin is dict:
        return "map of name: " + value(inner[1])
    name = getattr(annotation, "__name__", str(annotation))
    kind = kind_of(annotation)
    anchor = PLACES.get(name) or (f"kind-{kind}" if kind else name.lower())
    return f"[{kind or WORDS.get(name, name)}](#{anchor})"


def kind_of(spec: Any) -> str:
    """The tag of a spec that has one."""
    field = getattr(spec, "model_fields", {}).get("kind")
    return str(field.default) if field is not None and single(field) else ""


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    found = field.get_default(call_default_factory=True)
    if found is PydanticUndefined or found is None or found == {} or found == ():
        return ""
    if isinstance(found, BaseModel):
        found = given(found)
        return f"`{flow(found)}`" if found else "its defaults"
    if isinstance(found, tuple):
        found = [given(item) if isinstance(item, BaseModel) else item for item in found]
    return f"`{flow(found.value if isinstance(found, Enum) else found)}`"


def flow(found: Any) -> str:
    found = list(found) if isinstance(found, tuple) else found
    text: str = yaml.safe_dump(found, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def escaped(text: str) -> str:
    """For a cell of a table: no bar, and no tag outside backticks."""
    pieces = text.replace("|", "\\|").split("`")
    return "`".join(piece.replace("<", "&lt;") if n % 2 == 0 else piece for n, piece in enumerate(pieces))


if __name__ == "__main__":
    print(page(), end="")

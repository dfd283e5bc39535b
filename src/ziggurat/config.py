"""Specs: what a user may write, checked at the edge; every mistake at once, each with its place and the nearest valid name."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError, WithJsonSchema

from ziggurat.errors import UserError
from ziggurat.tree import RESOLVERS, Node, PathTo, Shape, kinds, names, nearest, override, read, tree


class Spec(BaseModel):
    """Base of everything a recipe holds: frozen, unknown keys forbidden, attribute docstrings are the help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Problem(NamedTuple):
    """One mistake that needs more than one value to be seen. A spec reports its own by a method `problems()`."""

    path: PathTo
    """Where to send the user: `("stages", 0, "length")`."""
    message: str
    needs: tuple[PathTo, ...] = ()
    """Places it was judged by: when one of them is itself in error, this problem is not reported."""


M = TypeVar("M", bound=BaseModel)
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def seconds(value: Any) -> Any:
    """`"20m"`, `"90s"`, `"1h30m"`, or a plain number of seconds -> seconds."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("needs a length of time such as 90s, 20m or 1h30m")
    if isinstance(value, str):
        text = value.strip().lower().replace(" ", "")
        if DURATION.fullmatch(text):
            value = sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", text))
        else:
            try:
                value = float(text)
            except ValueError:
                raise ValueError("needs a length of time such as 90s, 20m or 1h30m") from None
    if not 0 < value < float("inf"):
        raise ValueError("needs a length of time above zero")
    return float(value)


def written(value: float) -> str | float:
    """Seconds as a recipe writes them: 5400 -> `1h30m`."""
    if value != int(value):
        return f"{value}s"
    parts, left = "", int(value)
    for unit in "dhms":
        n, left = divmod(left, int(UNITS[unit]))
        parts += f"{n}{unit}" if n else ""
    return parts


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    PlainSerializer(written, when_used="json"),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": f"^{DURATION.pattern}$"}, {"type": "number", "exclusiveMinimum": 0}]}
    ),
]
"""A length of time, in seconds; written as `90s`, `20m`, `1h30m` or a number of seconds."""


def load(path: str | Path, overrides: Sequence[str] = (), *, model: type[M]) -> M:
    """Read a recipe file, lay `key=value` overrides upon it, and check all of it.

    Raises:
        UserError: every mistake that can be found at once, each with file:line, dotted path and what would be right.
    """
    return load_tree(path, overrides, model=model)[0]


def load_tree(path: str | Path, overrides: Sequence[str] = (), *, model: type[M]) -> tuple[M, Node]:
    """`load`, and the tree that knows where each value was written."""
    shape = Shape(model)
    root = read(path, shape)
    wrong = []
    for assignment in overrides:
        try:
            override(root, assignment, shape)
        except UserError as e:
            wrong.append(str(e))
    return validate(root, model, str(path), wrong), root


def validate(root: Node, model: type[M], what: str, wrong: Iterable[str] = ()) -> M:
    """A checked spec from a tree. `what` names the whole in errors, `wrong` are mistakes found before.

    Raises:
        UserError: what the types and ranges forbid, and what the specs' own `problems()` report.
    """
    lines, broken = list(wrong), []
    spec: M | None = None
    try:
        spec = model.model_validate(root.plain())
    except ValidationError as e:
        grouped: dict[PathTo, list[str]] = {}
        for error in e.errors(include_url=False):
            path, parent = _trace(model, root, error["loc"])
            grouped.setdefault(path, []).append(_explain(error, path, parent))
            broken.append(path[:-1] if error["type"] == "missing" else path)
        lines += [_line(root, path, _either(messages)) for path, messages in grouped.items()]
        spec = _repaired(root, model, broken)
    if spec is not None:
        lines += [_line(root, path, message) for path, message in _truths(root, spec)]
        for problem in getattr(spec, "problems", tuple)():
            if not any(_near(b, n) for b in broken for n in (problem.path, *problem.needs)):
                lines.append(_line(root, problem.path, problem.message))
    if lines or spec is None:
        lines = sorted(dict.fromkeys(lines), key=_order)
        count = f"{len(lines)} mistakes" if len(lines) > 1 else "a mistake"
        raise UserError(f"{count} in {what}\n" + "\n".join(f"  {line}" for line in lines))
    return spec


def complain(problems: Iterable[Problem], what: str) -> None:
    """Raise one `UserError` for all problems of a spec that was built in Python."""
    lines = [f"  {'.'.join(map(str, p.path))}: {p.message}" if p.path else f"  {p.message}" for p in problems]
    if lines:
        raise UserError(f"{len(lines)} mistake{'s' * (len(lines) > 1)} in {what}\n" + "\n".join(lines))


def check_spec(model: type[M], values: dict[str, Any], what: str) -> M:
    """A spec from plain Python data, with the same errors as a file gives."""
    return validate(tree(values, what), model, what)


def _near(broken: PathTo, judged: PathTo) -> bool:
    """Whether an error at `broken` may be the cause of what is seen at `judged`."""
    inside = broken[: len(judged)] == judged
    return inside or judged[: len(broken)] == broken


def _repaired(root: Node, model: type[M], broken: list[PathTo]) -> M | None:
    """The spec without its broken values, to look for further mistakes; None if it cannot be had."""
    mended = copy.deepcopy(root)
    for path in broken:
        holder = mended.at(path[:-1])
        if not path or not isinstance(holder.value, dict):
            return None
        holder.value.pop(path[-1], None)
    try:
        return model.model_validate(mended.plain())
    except ValidationError:
        return None


def _truths(root: Node, spec: BaseModel) -> Iterable[tuple[PathTo, str]]:
    """`true` where a number stands: pydantic would call it 1."""

    def visit(node: Node, value: Any, path: PathTo) -> Iterable[tuple[PathTo, str]]:
        if isinstance(node.value, bool) and isinstance(value, (int, float)) and not isinstance(value, bool):
            text = str(node.value).lower()
            yield path, f'needs a number or text, not a truth value; for the word {text} write it in quotes: "{text}"'
        elif isinstance(node.value, dict):
            for key, child in node.value.items():
                inner = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
                yield from visit(child, inner, (*path, key))
        elif isinstance(node.value, list) and isinstance(value, (list, tuple)) and len(value) == len(node.value):
            for n, child in enumerate(node.value):
                yield from visit(child, value[n], (*path, n))

    return visit(root, spec, ())


# --- saying what is wrong ----------------------------------------------------------------------------------


def _line(root: Node, path: PathTo, message: str) -> str:
    shown: list[str] = []
    for n, key in enumerate(path):
        node = root.at(path[:n])
        called = names(node) if isinstance(node.value, list) else []
        named = isinstance(key, int) and key < len(called) and called.count(called[key]) == 1
        shown.append(called[key] if named and isinstance(key, int) else str(key))
    return f"{root.at(path).where}  {'.'.join(shown)}{': ' if shown else ''}{message}"


def _order(line: str) -> tuple[str, int]:
    """Command line first, then each file from top to bottom."""
    place = re.match(r"(.*?):(\d+)  ", line)
    return (place[1], int(place[2])) if place and not line.startswith("command line") else ("", 0)


def _either(messages: list[str]) -> str:
    """One value that fits no alternative of a union is one mistake."""
    if len(messages) > 1:
        messages = ["needs text" if QUOTE in m else m for m in messages]
        messages = [re.sub(r" \(got .*\)$", "", m) for m in messages[:-1]] + messages[-1:]
    return " or ".join(dict.fromkeys(messages))


def _trace(model: type[BaseModel], root: Node, loc: tuple[int | str, ...]) -> tuple[PathTo, Shape]:
    """pydantic's location -> the path in the file, and the shape of the value that holds it."""
    shape, parent = Shape(model), Shape()
    path: PathTo = ()
    for part in loc:
        held = root.at(path).value
        if shape.union and isinstance(part, str):
            shape = shape.branch(part)
        elif part == "[key]":
            continue  # stands after the name of a bad key
        elif isinstance(held, dict) or isinstance(part, int) or part in _known(shape, held):
            parent, shape = shape, shape.inside(part, held)
            path = (*path, part)
    return path, parent


def _known(shape: Shape, value: Any) -> list[str]:
    spec = shape.spec(value)
    return list(spec.model_fields) if spec is not None else []


QUOTE = "for text write it in quotes"
COMPARED = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of}",
}
WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a map of `key: value` lines",
    "model": "a map of `key: value` lines",
    "none": "null",
}


def _explain(error: Any, path: PathTo, parent: Shape) -> str:
    """pydantic's complaint in plain words."""
    kind, got, context = error["type"], error.get("input"), error.get("ctx", {})
    shown = f" (got {_shown(got)})"
    if kind == "extra_forbidden":
        return "unknown field; " + nearest(str(path[-1]), _known(parent, None))
    if kind == "missing":
        spec = parent.spec(None)
        field = spec.model_fields.get(str(path[-1])) if spec is not None else None
        return "is missing" + (f": {field.description}" if field is not None and field.description else "")
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"unknown kind '{context['tag']}'; {_choice(str(context['tag']), tags)}"
    if kind in ("union_tag_not_found", "model_attributes_type", "dict_attributes_type"):
        tags = [tag for t in parent.inside(path[-1], None).specs for tag in kinds(t)] if path else []
        return f"needs a map with `kind:`, one of {', '.join(tags)}" if tags else f"needs {WANTED['model']}{shown}"
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return f"{_choice(str(got), choices)}{shown}"
    if kind in COMPARED:
        return f"must be {COMPARED[kind].format(**context)}{shown}"
    if kind in ("too_short", "string_too_short"):
        return f"needs at least {context.get('min_length')} {'characters' if 'string' in kind else 'items'}{shown}"
    if kind in ("too_long", "string_too_long"):
        return f"takes at most {context.get('max_length')} {'characters' if 'string' in kind else 'items'}{shown}"
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}{shown}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", error["msg"])) + ("" if isinstance(got, (dict, list)) else shown)
    if kind == "string_type" and isinstance(got, (bool, int, float)):
        text = str(got).lower() if isinstance(got, bool) else str(got)
        return f'{text} is a {"truth value" if isinstance(got, bool) else "number"} in YAML; {QUOTE}: "{text}"'
    wanted = WANTED.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float"))
    return f"needs {wanted}{shown}" if wanted else f"{error['msg']}{shown}"


def _choice(got: str, choices: list[str]) -> str:
    hint = nearest(got, choices)
    return f"must be one of {', '.join(choices)}" + (f"; {hint}" if hint.startswith("did") else "")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- writing -----------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    pass


for _tag, _pattern, _first in RESOLVERS:  # text that our reader would take for a number is written in quotes
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def dump(spec: BaseModel) -> str:
    """YAML that `load` reads back to an equal spec. Everything is spelled out, but `null` where null is the default."""
    return yaml.dump(spelled(spec), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


FIRST = ("kind", "stage", "name")
"""Fields that say what a map is stand at its top."""


def spelled(spec: BaseModel) -> dict[str, Any]:
    """A spec as plain data, without the fields that are null by default."""

    def prune(value: Any, data: Any) -> Any:
        if isinstance(value, BaseModel):
            fields = type(value).model_fields
            order = dict.fromkeys([*(k for k in FIRST if k in data), *data])
            kept = [k for k in order if not (data[k] is None and fields[k].default is None)]
            full = {key: prune(getattr(value, key), data[key]) for key in kept}
            return full if _valid(type(value), full) else given(value)
        if isinstance(value, dict):
            return {key: prune(value[key], child) for key, child in data.items()}
        return [prune(v, d) for v, d in zip(value, data)] if isinstance(value, (list, tuple)) else data

    return prune(spec, spec.model_dump(mode="json"))


def given(spec: BaseModel) -> dict[str, Any]:
    """What was set in a spec, as plain data; defaults left out, but its `kind`, where the spec allows it to be said."""

    def plain(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return given(value)
        if isinstance(value, dict):
            return {key: plain(child) for key, child in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(child) for child in value]
        return str(value) if isinstance(value, Path) else value

    found = {k: plain(getattr(spec, k)) for k in type(spec).model_fields if k in spec.model_fields_set}
    tagged = {"kind": getattr(spec, "kind", None), **found}
    return tagged if "kind" in type(spec).model_fields and _valid(type(spec), tagged) else found


def _valid(model: type[BaseModel], values: dict[str, Any]) -> bool:
    try:
        model.model_validate(values)
    except ValidationError:  # some specs forbid a value where another is set, even its default
        return False
    return True


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of a recipe, for completion and checks in editors."""
    made = model.model_json_schema()
    made["properties"] = {
        "extends": {"type": "string", "description": "A recipe this one is laid upon; relative to this file."},
        **made.get("properties", {}),
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}

"""Recipe files as trees that remember where each value was written; `extends`, merging, command-line overrides.

The YAML read here is the core schema of YAML 1.2: only `true` and `false` are truth values (so `yes` and `no` may be
labels), `1e-4` is a number, `1_000` is a number, `010` and `12:30` are text. A key written twice is an error.
"""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag

from ziggurat.errors import UserError
from ziggurat.named import named

Key = str | int
PathTo = tuple[Key, ...]
"""The way to a value: `("stages", 0, "optim", "lr")`."""


@dataclass(slots=True)
class Node:
    """One value of a recipe."""

    value: Any
    """dict[str, Node], list[Node], or a plain scalar"""
    where: str
    """`recipe.yaml:12`, `command line (seed=1)`, or what set it (`default of finetune`)"""

    def plain(self) -> Any:
        """The same value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, list) else self.value

    def at(self, path: PathTo) -> Node:
        """The node at `path`, or the last one on the way there."""
        here = self
        for key in path:
            held: Any = here.value
            listed = isinstance(held, list) and isinstance(key, int) and key < len(held)
            if not listed and not (isinstance(held, dict) and key in held):
                break
            here = held[key]
        return here


def tree(value: Any, where: str) -> Node:
    """A tree of plain data, all of it from one place."""
    if isinstance(value, dict):
        return Node({str(key): tree(child, where) for key, child in value.items()}, where)
    return Node([tree(child, where) for child in value] if isinstance(value, (list, tuple)) else value, where)


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what is known."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), lowered, 1)
    if near:
        return f"did you mean '{lowered[near[0]]}'?"
    return f"known: {', '.join(known)}" if known else "there are none"


# --- what a model expects at a place ------------------------------------------------------------------------


class Shape:
    """The types a value may have at one place of a model; `None` aside."""

    def __init__(self, *annotations: Any):
        self.types = [member for annotation in annotations for member in _members(annotation)]

    @property
    def specs(self) -> list[type[BaseModel]]:
        return [t for _, t in self.types if isinstance(t, type) and issubclass(t, BaseModel)]

    @property
    def union(self) -> bool:
        return len(self.types) > 1

    def branch(self, label: str) -> Shape:
        """The alternative that pydantic calls `label` (a tag, a class or a type); all of them if none is called so."""
        chosen = Shape()
        chosen.types = [(tag, t) for tag, t in self.types if label in _labels(tag, t)]
        if not chosen.types and isinstance(found := named(label), type) and issubclass(found, BaseModel):
            chosen.types = [(label, found)]
        return chosen if chosen.types else self

    def spec(self, value: Any) -> type[BaseModel] | None:
        """The class that a map would become, by its `kind` if there are several."""
        kind = value.get("kind") if isinstance(value, dict) else None
        kind = kind.value if isinstance(kind, Node) else kind
        chosen = self.branch(kind).specs if isinstance(kind, str) and self.union else self.specs
        return chosen[0] if chosen else None

    def inside(self, key: Key, value: Any) -> Shape:
        """The shape of `value[key]`."""
        spec = self.spec(value)
        if spec is not None and isinstance(key, str):
            return Shape(spec.model_fields[key].annotation) if key in spec.model_fields else Shape()
        for _, t in self.types:
            arguments = [a for a in get_args(t) if a is not Ellipsis]
            if get_origin(t) is dict and isinstance(key, str):
                return Shape(arguments[1])
            if get_origin(t) in (tuple, list) and isinstance(key, int) and arguments:
                return Shape(arguments[key if key < len(arguments) else -1])
        return Shape()


def _members(annotation: Any, tag: str = "") -> list[tuple[str, Any]]:
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        return _members(inner, next((n.tag for n in notes if isinstance(n, Tag)), tag))
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for a in get_args(annotation) for member in _members(a)]
    return [] if annotation is type(None) else [(tag, annotation)]


def _labels(tag: str, t: Any) -> set[str]:
    name = getattr(get_origin(t) or t, "__name__", "")
    kinds: tuple[Any, ...] = ()
    if isinstance(t, type) and issubclass(t, BaseModel) and "kind" in t.model_fields:
        kinds = get_args(t.model_fields["kind"].annotation)
    return {tag, name, str(t).replace("typing.", ""), *map(str, kinds)} - {""}


# --- reading -----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    pass


_Loader.yaml_implicit_resolvers = {}


RESOLVERS = [
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|nan))",
        "-+.0123456789",
    ),
]
for _tag, _pattern, _first in RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def parse(text: str, file: str, *, lines: bool = True) -> Node:
    """YAML text -> tree. `file` is what places are called; without `lines` every place is just `file`.

    Raises:
        UserError: not YAML, or a key twice in one map: all of those with their lines.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        reader = _Reader(loader, file, lines)
        node = reader.node(root, reader.where(root)) if root is not None else Node(None, file)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        place = f"{file}:{mark.line + 1}" if mark and lines else file
        hint = "check indentation, quotes, brackets, and the space after ':'"
        if "\\t" in str(e.problem):
            hint = "YAML is indented with spaces, never with tabs"
        raise UserError(f"{place}: not valid YAML: {', '.join(filter(None, (e.context, e.problem)))}", hint) from None
    except yaml.YAMLError as e:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(e).split())}", "is this a text file?") from None
    finally:
        if loader is not None:
            loader.dispose()
    if reader.wrong:
        raise UserError("\n".join(reader.wrong), "keep one of the two lines")
    return node


class _Reader:
    """Turns composed YAML nodes into ours."""

    def __init__(self, loader: _Loader, file: str, lines: bool):
        self.loader, self.file, self.lines = loader, file, lines
        self.wrong: list[str] = []
        self.open: set[int] = set()

    def where(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}" if self.lines else self.file

    def node(self, node: yaml.Node, where: str) -> Node:
        if id(node) in self.open:
            raise UserError(f"{where}: a value contains itself", "remove the alias (*name)")
        self.open.add(id(node))
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = {}
            first: dict[str, str] = {}
            for key, child in node.value:
                name, place = str(key.value), self.where(key)
                if name == "<<" or not isinstance(key, yaml.ScalarNode):
                    raise UserError(f"{place}: keys are plain names", "use `extends` or `defaults` to share settings")
                if name in value:
                    self.wrong.append(f"{place}: '{name}' is written twice in one map (first at {first[name]})")
                first.setdefault(name, place)
                value[name] = self.node(child, place)
        elif isinstance(node, yaml.SequenceNode):
            value = [self.node(child, self.where(child)) for child in node.value]
        else:
            value = self.loader.construct_object(node)
        self.open.discard(id(node))
        return Node(value, where)


def read(path: str | Path, shape: Shape, above: tuple[str, ...] = ()) -> Node:
    """The tree of a recipe file, merged over the file its `extends` names (relative to itself).

    Raises:
        UserError: missing, unreadable or empty file; not YAML; not a map; files that extend each other in a circle.
    """
    path = Path(path)
    node = parse(_text(path, above), str(path))
    if node.value is None:
        raise UserError(f"{path}: the file is empty")
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: a recipe is a map of `key: value` lines, not a {_kind(node.value)}")
    base = node.value.pop("extends", None)
    if base is None:
        return node
    if not isinstance(base.value, str):
        raise UserError(f"{base.where}: extends: names one file, not a {_kind(base.value)}")
    parent = os.path.normpath(path.parent / base.value)
    if parent in (*above, str(path)):
        raise UserError(f"{base.where}: extends: {parent} and {path} extend each other")
    try:
        return merge(read(parent, shape, (*above, str(path))), node, shape)
    except FileNotFoundError as e:
        raise UserError(f"{base.where}: extends: {e}", "the path is relative to the file that names it") from None


def _text(path: Path, above: tuple[str, ...]) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path(".")
        names = [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")]
        near = difflib.get_close_matches(path.name, names, 1, 0.5)
        message = f"no such file: {path}" + (f"; did you mean {folder / near[0]}?" if near else "")
        if above:
            raise FileNotFoundError(message) from None
        listed = ", ".join(sorted(names)[:8])
        raise UserError(
            message, "" if near else f"recipes in {folder}: {listed}" if names else f"no recipes in {folder}"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a recipe file") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte {e.start})", "save the file as UTF-8") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


def _kind(value: Any) -> str:
    return "map" if isinstance(value, dict) else "list" if isinstance(value, list) else "single value"


# --- merging and overrides -----------------------------------------------------------------------------------


def merge(base: Node, over: Node, shape: Shape) -> Node:
    """`over` laid upon `base`: maps merge, everything else replaces; lists whose items have names merge by name.

    A map of a tagged union with another `kind` replaces the whole map. A spec may declare `rivals` (groups of fields:
    setting one drops the others below) and `whole` (fields whose maps replace).
    """
    if isinstance(base.value, list) and isinstance(over.value, list) and (n := names(base)) and names(over):
        return Node(_by_name(base, over, n, shape), over.where)
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    tagged = len(shape.specs) > 1
    if tagged and "kind" in over.value and shape.spec(over.value) is not shape.spec(base.value):
        return over
    merged = {**base.value}
    spec = shape.spec({**base.value, **over.value})
    for rivals in getattr(spec, "rivals", ()):
        if any(key in over.value for key in rivals):
            merged = {key: child for key, child in merged.items() if key not in rivals}
    for key, child in over.value.items():
        replace = key not in merged or key in getattr(spec, "whole", ())
        merged[key] = child if replace else merge(merged[key], child, shape.inside(key, over.value))
    return Node(merged, over.where)


def names(node: Node) -> list[str]:
    """What the items of a list are called: their `name`, else their `stage`; empty unless all of them have one."""
    found = []
    for item in node.value:
        own = item.value if isinstance(item.value, dict) else {}
        name = own.get("name") or own.get("stage")
        if name is None or not isinstance(name.value, str):
            return []
        found.append(name.value)
    return found


def _by_name(base: Node, over: Node, base_names: list[str], shape: Shape) -> list[Node]:
    """Items of `over` go into the item of the same name; a new one stands after the item it follows in `over`."""
    items, order = list(base.value), list(base_names)
    place = next((order.index(n) for n in names(over) if n in order), len(order))
    for name, item in zip(names(over), over.value):
        if name in order:
            place = order.index(name)
            items[place] = merge(items[place], item, shape.inside(0, None))
        else:
            items.insert(place, item)
            order.insert(place, name)
        place += 1
    return items


def override(root: Node, assignment: str, shape: Shape) -> None:
    """Lay one `a.b.c=value` of the command line upon the tree. Items of a list go by index or by name.

    Raises:
        UserError: no `=`, no such item, or a way through a single value.
    """
    dotted, equals, text = assignment.partition("=")
    where = f"command line ({assignment})"
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"{where}: an override is key=value, as in seed=1 or stages.finetune.epochs=2")
    value = parse(text, where, lines=False)
    here = root
    for n, key in enumerate(keys):
        here.value = {} if here.value is None else here.value
        held: Any = here.value
        if not isinstance(held, (dict, list)):
            raise UserError(f"{where}: {'.'.join(keys[:n])} is a single value ({held}), not a map")
        at: Key = _index(here, key, f"{where}: {'.'.join(keys[:n])}") if isinstance(held, list) else key
        if n < len(keys) - 1:
            shape = shape.inside(at, held)
            if isinstance(held, dict):
                held.setdefault(key, Node({}, where))
            items: Any = here.value
            here = items[at]
        elif isinstance(at, int):
            held[at] = merge(held[at], value, shape.inside(at, None))
        else:
            here.value = merge(here, Node({at: value}, where), shape).value


def _index(node: Node, key: str, what: str) -> int:
    called: Sequence[str] = names(node)
    if key in called:
        return called.index(key)
    if key.isdigit() and int(key) < len(node.value):
        return int(key)
    raise UserError(f"{what} has no '{key}'; " + (nearest(key, called) if called else f"it has {len(node.value)} items"))


def kinds(t: type[BaseModel]) -> tuple[str, ...]:
    """The tags of a spec."""
    field = t.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()

"""What `show` and `list` print: resolved recipes, systems, checkpoints, one batch drawn, and tables of what there is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import yaml

from ziggurat.config import Spec, load_tree, spelled
from ziggurat.errors import UserError, check
from ziggurat.nn.spec import BoundaryHead, Model, Network, VocabHead
from ziggurat.objectives import OBJECTIVES
from ziggurat.objectives.base import Objective, context_of
from ziggurat.pipeline.suite_files import built_in, load_suite
from ziggurat.systems import SYSTEMS, find, split_name
from ziggurat.train.recipe import Recipe, resolve
from ziggurat.train.stage import STAGE_DEFAULTS, Stage
from ziggurat.tree import Node, PathTo, nearest
from ziggurat.types import DEAD, NEVER, Batch, Stream

LAST = 12
"""Remembered tokens that are drawn."""
LISTS = ("systems", "objectives", "matrix", "recipes", "stages", "suites")


def show(what: str, overrides: Sequence[str] = ()) -> str:
    """A recipe file, a system (`bert`, `bert/base`) or a checkpoint folder, as text.

    Raises:
        UserError: `what` is none of these, or has mistakes.
    """
    path = Path(what)
    if path.is_dir():
        from ziggurat.pipeline.family import show_checkpoint

        return show_checkpoint(path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return show_recipe(path, overrides)
    name = what.partition("/")[0]
    check(
        find(name) is not None, f"'{what}' is no recipe file, system or checkpoint folder", f"systems: {nearest(name, SYSTEMS)}"
    )
    return show_system(what)


def show_recipe(path: Path, overrides: Sequence[str] = ()) -> str:
    """The resolved recipe as YAML, each value with its origin as a comment."""
    recipe, root = load_tree(path, overrides, model=Recipe)
    full = recipe.resolved()
    lines = [(text, _origin(resolve(recipe, root), at)) for text, at in _lines(spelled(full), (), 0)]
    width = min(max(len(text) for text, _ in lines), 60)
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines)


def _lines(value: Any, at: PathTo, depth: int, lead: str = "") -> list[tuple[str, PathTo]]:
    """(line of YAML, path of the value on it or ()); `lead` opens the first line."""
    indent = "  " * depth
    found: list[tuple[str, PathTo]] = []
    for key, child in value.items():
        opening, lead = (lead or indent) + f"{key}:", ""
        nested = isinstance(child, dict) and child
        items = isinstance(child, list) and any(isinstance(item, dict) for item in child)
        if nested:
            found += [(opening, ()), *_lines(child, (*at, key), depth + 1)]
        elif items:
            found.append((opening, ()))
            for n, item in enumerate(child):
                found += _lines(item, (*at, key, n), depth + 2, "  " * (depth + 1) + "- ")
        else:
            found.append((f"{opening} {_flow(child)}", (*at, key)))
    return found


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _origin(root: Node, at: PathTo) -> str:
    """Where a value was set: the file's line, the command line, what supplied it, or `default`."""
    if not at:
        return ""
    here = root
    for key in at:
        below = here.at((key,))
        if below is here:  # not in the tree: a shorthand stands for it, or nobody set it
            return "default" if isinstance(here.value, (dict, list)) else here.where
        here = below
    return here.where


def show_system(name: str) -> str:
    """A system with its sizes, or one size flattened: dimensions, every knob, parameters."""
    if "/" not in name:
        system = find(name)
        assert system is not None
        rows = [f"  {name}/{size}: {_counts(system.sized(size), system.objective)}" for size in system.sizes]
        return "\n".join([f"{name}  {system.paper}", *rows])
    system, size = split_name(name)
    body = system.sized(size)
    written = {"objective": dict(system.objective), "model": spelled(body)}
    text = "\n".join(line for line, _ in _lines(written, (), 0))
    return f"# {name}  {system.paper}\n# {_counts(body, system.objective)}\n{text}"


def _counts(body: Model, objective: Any) -> str:
    import torch

    from ziggurat.nn.network import NetworkModel

    kind = OBJECTIVES[objective["kind"]].model_validate(objective)
    with torch.device("meta"):
        bare = NetworkModel(Network(model=body))
        whole = NetworkModel(Network(model=body, heads=dict(kind.heads(body))))
    return (
        f"{bare.parameter_count():,} parameters, {bare.parameter_count(embeddings=False):,} without embeddings; "
        f"{whole.parameter_count():,} with the heads of {kind.kind}"
    )


# --- one batch -----------------------------------------------------------------------------------------------


class Pieces(Protocol):
    """What drawing needs of a tokenizer."""

    def pieces(self, ids: Any) -> list[str]: ...


def batch_of(path: str, overrides: Sequence[str] = (), stage: str = "") -> str:
    """The first batch of a stage (default: the first one), drawn; where there is a memory the first of the second step, for there texts go on.
    Tokenizer and shards are made if they are not there."""
    from ziggurat.data.loader import Loader
    from ziggurat.pipeline.run import RUNS, begin, load_recipe
    from ziggurat.pipeline.session import session
    from ziggurat.train.budget import mixture, passes

    recipe = load_recipe(path, overrides)
    stages = {s.title: s for s in recipe.stages}
    check(not stage or stage in stages, f"the recipe has no stage '{stage}'; {nearest(stage, stages)}")
    chosen = stages[stage] if stage else recipe.stages[0]
    assert chosen.objective is not None  # resolved
    folder = RUNS / recipe.name
    with session(folder) as signals:
        run = begin(recipe, folder, signals)
    prepared = run.read[chosen.title]
    tokenizer, shards = prepared.tokenizer, prepared.read(chosen)
    page = find(recipe.system.partition("/")[0])
    assert page is not None  # the recipe was checked
    model = page.model
    ctx = context_of(model, tokenizer, chosen.length, recipe.seed, chosen.objective.tables(tokenizer, folder))
    loader = Loader(
        shards,
        mixture(chosen, shards),
        chosen.objective,
        ctx,
        row=chosen.objective.rows(ctx),
        tokens=None if chosen.batch.documents else chosen.batch.tokens,
        documents=chosen.batch.documents,
        seed=recipe.seed,
        contiguous=chosen.accumulate if chosen.memory else 0,
        passes=passes(chosen),
        ahead=False,
    )
    heads = chosen.objective.heads(model)
    stream = iter(loader)
    earlier = [next(stream) for _ in range(chosen.accumulate if chosen.memory else 0)]
    left = {key: text for b in earlier for key, text in _left(b, chosen.objective, tokenizer).items()}
    batch = next(stream)
    asked = {name: heads.get(chosen.objective.head_of(name)) for name in batch.targets}
    said = [name for name, head in asked.items() if isinstance(head, (VocabHead, BoundaryHead))]
    return draw_batch(batch, tokenizer, said=said, left=left)


def _left(batch: Batch, objective: Objective, tokenizer: Pieces) -> dict[int, str]:
    """For each example by its key, the last tokens that a memory holds of it."""
    stream, held = batch.streams["text"], objective.remembered(batch)
    rows = (np.arange(a, b)[held[a:b]][-LAST:] for a, b in pairwise(stream.bounds.tolist()))
    return {key: " ".join(tokenizer.pieces(stream.content[r])) for key, r in zip(batch.keys.tolist(), rows, strict=True)}


def draw_batch(
    batch: Batch,
    tokenizer: Pieces,
    *,
    documents: int = 3,
    widest: int = 48,
    said: Collection[str] = ("mlm", "clm", "lm"),
    left: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """A batch as text (numpy side): of the first documents every row with its token, position, segment, and what is to
    be predicted there; then who may look at whom, `#` yes and `.` no, a row a query, for documents up to `widest` rows. Below an
    encoder: which of its rows the decoder may look at.

    `said` names the targets whose values are vocabulary ids; `left` is the end of what earlier examples leave to those that go on from them.
    """
    alive = np.flatnonzero(batch.keys != DEAD)
    sizes = ", ".join(f"{name} {len(s.content)} rows" for name, s in batch.streams.items())
    asked = ", ".join(f"{name} {len(t.index)}" for name, t in batch.targets.items()) or "nothing"
    parts = [f"{len(alive)} documents ({len(batch) - len(alive)} of padding); {sizes}; predictions: {asked}"]
    for d in alive[:documents]:
        if batch.before is not None and int(batch.before[d]) in left:
            parts += ["", f"document {d} remembers ... {left[int(batch.before[d])]}"]
        for name, stream in batch.streams.items():
            parts += _document(batch, name, stream, int(d), tokenizer, widest, said)
    return "\n".join(parts)


def _document(
    batch: Batch, name: str, stream: Stream, d: int, tokenizer: Pieces, widest: int, said: Collection[str]
) -> list[str]:
    start, stop = int(stream.bounds[d]), int(stream.bounds[d + 1])
    answers: dict[int, list[str]] = {}
    whole = []
    for target_name, target in batch.targets.items():
        for index, value, weight in zip(target.index, target.value, target.weight):
            text = tokenizer.pieces([int(value)])[0] if target_name in said else f"{value:g}"
            text = f"{target_name}: {text}" + ("" if weight == 1 else f" (weight {weight:g})")
            if target.at == "document" and target.stream == name and index == d:
                whole.append(text)
            elif target.at == "token" and target.stream == name and start <= index < stop:
                answers.setdefault(int(index), []).append(text)
    pieces = tokenizer.pieces(stream.content[start:stop])
    lines = ["", f"document {d}, stream {name}, {stop - start} rows" + (f"   -> {', '.join(whole)}" if whole else "")]
    lines.append("  row  pos seg  token")
    for n, row in enumerate(range(start, stop)):
        said_here = f"   -> {', '.join(answers[row])}" if row in answers else ""
        lines.append(f"  {n:>3}  {stream.position[row]:>3} {stream.segment[row]:>3}  {pieces[n]}{said_here}")
    if stop - start > widest:
        return [*lines, f"  visibility: {stream.visibility.kind} ({stop - start} rows are too many to draw)"]
    lines += [f"  visibility: {stream.visibility.kind}", *(f"  {line}" for line in draw_visibility(stream, d))]
    if name == "encoder" and "decoder" in batch.streams:
        lines.append(f"  {'decoder':>8} {_crossing(stream, start, stop)}")
    return lines


def _crossing(stream: Stream, start: int, stop: int) -> str:
    """Which rows of an encoder the decoder may look at: those that are open from the beginning."""
    opens = stream.visibility.opens
    return " ".join("#" if opens is None or o <= 0 else "." for o in (range(start, stop) if opens is None else opens[start:stop]))


def draw_visibility(stream: Stream, d: int) -> list[str]:
    """The visibility matrix of document `d`: a line a query, `#` where it may look at the key of that column.

    Above it, where they are data, the last digits of `clock` and `opens` (`-` = a key for nobody) of each column.
    """
    start, stop = int(stream.bounds[d]), int(stream.bounds[d + 1])
    rule = stream.visibility.spelled(np.diff(stream.bounds))
    assert rule.clock is not None and rule.opens is not None and rule.closes is not None and rule.lane is not None
    clock, opens, closes, lane = (x[start:stop] for x in (rule.clock, rule.opens, rule.closes, rule.lane))
    sees = (opens[None] <= clock[:, None]) & (clock[:, None] < closes[None])
    sees |= (lane[None] == lane[:, None]) & (lane[:, None] != 0)
    position = stream.position[start:stop]
    lines = [f"{'position':>8} " + " ".join(str(p % 10) for p in position)]
    if stream.visibility.kind == "custom":
        lines.append(f"{'clock':>8} " + " ".join(str(c % 10) for c in clock))
        lines.append(f"{'opens':>8} " + " ".join("-" if o >= NEVER else str(o % 10) for o in opens))
    return lines + [f"{p:>8} " + " ".join("#" if s else "." for s in row) for p, row in zip(position, sees)]


# --- tables ----------------------------------------------------------------------------------------------


def listing(what: str) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes below) of the systems, objectives, recipes, stages or suites there are, or of what trains with what."""
    if what == "matrix":
        from ziggurat.pipeline.matrix import matrix

        return matrix()
    header, rows = _rows(what)
    return header, rows, []


def _rows(what: str) -> tuple[list[str], list[list[str]]]:
    if what == "systems":
        rows = [
            [
                f"{s.name}/{size}",
                *(f"{dials.get(k, 0):,}" for k in ("layers", "width", "heads", "mlp")),
                _kinds(s.objective),
                s.paper,
            ]
            for s in SYSTEMS.values()
            for size, dials in s.sizes.items()
        ]
        return ["system", "layers", "width", "heads", "mlp", "objective", "paper"], rows
    if what == "objectives":
        rows = [
            [kind, "finetune" if o.labelled else "pretrain, dapt, tapt", ", ".join(o.structures), _first(o)]
            for kind, o in OBJECTIVES.items()
        ]
        return ["objective", "stages", "structures", "what it does"], rows
    if what == "recipes":
        return ["recipe", "what it does"], [[str(p), _comment(p)] for p in sorted(Path("recipes").glob("**/*.yaml"))]
    if what == "suites":
        every = {name: load_suite(name) for name in built_in()}
        return ["suite", "tasks", "what it measures"], [[name, ", ".join(s.tasks), s.about] for name, s in every.items()]
    if what == "stages":
        meanings = dict(part.split(": ", 1) for part in (Stage.model_fields["stage"].description or "").rstrip(".").split("; "))
        return ["stage", "what it is", "its defaults"], [[s, meanings[s], _flow(d)] for s, d in STAGE_DEFAULTS.items()]
    raise UserError(f"cannot list '{what}'; {nearest(what, LISTS)}", f"ziggurat list {'|'.join(LISTS)}")


def _kinds(objective: Any) -> str:
    return " + ".join(p["kind"] for p in objective["parts"]) if "parts" in objective else objective["kind"]


def _first(spec: type[Spec]) -> str:
    return (spec.__doc__ or "").strip().splitlines()[0]


def _comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table, and notes below it, to standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=250)
    made = Table(*header, box=None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    console.print(made, markup=False)
    for note in notes:
        console.print(note, markup=False, highlight=False)

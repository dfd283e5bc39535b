"""How well a start fits a text and its labels: bits per byte of its language model, and a probe on frozen features. Never of test rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ziggurat.config import spelled
from ziggurat.data import sources
from ziggurat.data.loader import once
from ziggurat.data.reading import Reading
from ziggurat.data.shards import Shards
from ziggurat.data.writing import write_shards
from ziggurat.errors import check
from ziggurat.evaluate.frozen import cross_validated, document_features, probeable, splits, word_features
from ziggurat.evaluate.heldout import held_out, language_loss
from ziggurat.evaluate.scores import bits_per_byte
from ziggurat.nn import spec as parts
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import OBJECTIVES
from ziggurat.objectives.base import Objective, context_of
from ziggurat.objectives.labelled import Tag
from ziggurat.pipeline.opened import Opened
from ziggurat.pipeline.prepare import TestTexts, content
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train.recipe import Recipe
from ziggurat.train.settings import digest
from ziggurat.train.stage import Stage, candidates
from ziggurat.train.start import Start
from ziggurat.train.tasks import single
from ziggurat.types import Document

CHARACTERS = 300_000
"""Of text on which losses are measured."""
READ = 20_000
"""Documents of a source among which text and rows are drawn."""
ROWS = 500
"""Labelled rows of the probe."""
UNKNOWN = 0.02
"""Share of unknown tokens from which a loss is not believed: what a tokenizer cannot read is easily predicted."""


@dataclass(frozen=True)
class Candidate:
    """What was measured of one start."""

    name: str
    weights: str
    """Their fingerprint."""
    family: str = ""
    """What its loss is of: mlm, clm ...; empty if it has none."""
    bits_per_byte: float | None = None
    unknown: float = 0.0
    """Share of the text's tokens that its tokenizer does not know."""
    folds: tuple[float, ...] = ()
    """The probe's scores."""
    note: str = ""

    @property
    def probe(self) -> float | None:
        return float(np.mean(self.folds)) if self.folds else None


def read_in(recipe: Recipe, name: str) -> set[tuple[str, str]]:
    """(source, split) of all that a stage of the recipe and those it comes from are trained on; nothing of a folder."""
    stages, ahead, found = {s.title: s for s in recipe.stages}, [name], set[tuple[str, str]]()
    while ahead:
        before = stages.get(ahead.pop())
        if before is not None:
            found |= {(source, "train") for source in before.reads}
            ahead += candidates(before.init)
    return found


def read_before(recipe: Recipe, stage: Stage, name: str, opened: Opened, place: Path) -> set[tuple[str, str]]:
    """Which (source, split) of a stage's text a candidate or one of its ancestors was trained on: by the recipe's stages, and by the
    files and the contents that its lineage names."""
    found, own = read_in(recipe, name), {s.title for s in recipe.stages}
    data = [one for entry in opened.lineage for one in entry.get("data", {}).values()]
    files, contents = ({str(one[key]).partition("/")[0] for one in data if one.get(key)} for key in ("source", "content"))
    tests = TestTexts(recipe)
    for source in stage.data:
        for split in sources.splits(recipe.sources[source]):
            if split != "test" and sources.fingerprint(recipe.sources[source], split)[:16] in files:
                found.add((source, split))
            elif split != "test" and contents and name not in own and opened.tokenizer is not None:
                documents = _documents(recipe, tests, source, split)  # the same rows, in other files
                if documents and content(write_shards(place / "read", documents, opened.tokenizer)) in contents:
                    found.add((source, split))
    return found


def judged_by(stage: Stage, held: Collection[str], read: Mapping[str, Collection[tuple[str, str]]]) -> str:
    """The split that the candidates are judged by, where these sources hold rows out. Raises `UserError` when one was trained on it: who
    has learnt a text by heart wins on it."""
    lacking = [name for name in stage.data if name not in held]
    split = "train" if lacking else "valid"
    for candidate, seen in read.items():
        for name in stage.data:
            check(
                (name, split) not in seen,
                f"{stage.title}: the candidate {candidate} was trained on the {split} rows of source {name!r}, by which it would be judged",
                f"hold out rows that no candidate is trained on: `valid` of {', '.join(lacking or stage.data)}, a file or a share such as 0.1",
            )
    return split


def material(
    recipe: Recipe, stage: Stage, read: Mapping[str, Collection[tuple[str, str]]]
) -> tuple[list[Document], str, list[Document], Objective | None]:
    """The text that losses are measured on and its split, labelled rows for the probe, and their objective. No test rows: they and
    their near duplicates are left out. `read` says what each candidate was trained on."""
    tests, names = TestTexts(recipe), list(stage.data)
    held = {name: _documents(recipe, tests, name, "valid") for name in names}
    split = judged_by(stage, [name for name in names if held[name]], read)
    text: list[Document] = []
    for name in names:
        documents = held[name] if split == "valid" else _documents(recipe, tests, name, "train")
        order = np.random.default_rng([recipe.seed, 11]).permutation(len(documents))
        size = 0
        for n in order.tolist():
            text.append(replace(documents[n], marks=(), fields={}))
            size += sum(map(len, documents[n].texts.values()))
            if size > CHARACTERS / len(names):
                break
    tuned = task_of(recipe, stage)
    if tuned is None:
        return text, split, [], None
    (name,) = tuned.data
    known = any((name, "train") in seen for seen in read.values())
    documents = held[name] if known else _documents(recipe, tests, name, "train", None if tuned.examples else READ)
    if tuned.examples:  # no more labels than the task itself may see: the rows of its first seed
        seed = recipe.worth.seeds[0] if recipe.worth else recipe.seed
        chosen = np.random.default_rng([seed, 7]).permutation(len(documents))[: tuned.examples]
        documents = [documents[n] for n in np.sort(chosen).tolist()]
    order = np.random.default_rng([recipe.seed, 13]).permutation(len(documents))[:ROWS]
    return text, split, [documents[n] for n in np.sort(order).tolist()], tuned.objective


def task_of(recipe: Recipe, stage: Stage) -> Stage | None:
    """The fine-tuning of one task whose labelled rows a probe of the candidates asks for; None if there is none that it could answer."""
    tasks = (one for s in (stage, *recipe.stages) if s.stage == "finetune" for one in single(s).values())
    tuned = next((one for one in tasks if set(one.data) & set(stage.data)), None)
    return tuned if tuned is not None and probeable(tuned.objective) else None


def identity(recipe: Recipe, stage: Stage, opens: Mapping[str, Callable[[], Opened]]) -> dict[str, Any]:
    """Everything that decides which candidate is chosen, as plain data by what people call it."""
    tuned, tests = task_of(recipe, stage), TestTexts(recipe)
    named = {name: recipe.sources[name] for name in stage.data}
    of_text = {n: {s: sources.fingerprint(one, s)[:16] for s in sources.splits(one) if s != "test"} for n, one in named.items()}
    task = None
    if tuned is not None and tuned.objective is not None:
        seed = recipe.worth.seeds[0] if recipe.worth else recipe.seed
        task = [spelled(tuned.objective), tuned.examples, seed if tuned.examples else None]
    return {
        "the text": [of_text, tests.mark],
        "the task": task,
        "the length": stage.length,
        "the seed": recipe.seed,
        "the candidates": {name: _identity(open_()) for name, open_ in opens.items()},
    }


def _identity(opened: Opened) -> list[str]:
    """What identifies a candidate: weights, tokenizer, what they are the weights of."""
    shape = digest([spelled(opened.network), [entry.get("objective") for entry in opened.lineage]])
    return [opened.fingerprint, opened.tokenizer.fingerprint if opened.tokenizer is not None else "", shape]


def expected(recipe: Recipe, name: str, tokenizer: Tokenizer, fresh: parts.Model, imported: Mapping[str, Opened]) -> Opened:
    """A candidate before it is trained, as far as `language` looks at it: its model and heads without weights, and the objectives behind it."""
    stage = next((s for s in recipe.stages if s.title == name), None)
    if stage is None or stage.objective is None:
        return imported.get(name) or Opened(Path(), parts.Network(model=fresh), {}, tokenizer, "", (), ())
    before = expected(recipe, candidates(stage.init)[-1], tokenizer, fresh, imported)
    model = stage.objective.part_of(before.network.model)
    network = parts.Network(model=model, heads=dict(stage.objective.heads(model)))
    return Opened(Path(), network, {}, tokenizer, "", (), (*before.lineage, {"objective": spelled(stage.objective)}))


def _documents(recipe: Recipe, tests: TestTexts, name: str, split: str, most: int | None = READ) -> list[Document]:
    """The first documents of a split of a source; none if it has no such split or nothing fell into it."""
    source = recipe.sources[name]
    try:
        return list(islice(tests.clean(source, split, Reading(), []), most)) if split in sources.splits(source) else []
    except sources.EmptySplit:
        return []


def measure(
    name: str,
    opened: Opened,
    stage: Stage,
    text: Sequence[Document],
    rows: Sequence[Document],
    task: Objective | None,
    place: Path,
    seed: int,
    folds: list[tuple[np.ndarray, np.ndarray]] | None,
    unit: Literal["token", "word"] = "token",
) -> tuple[Candidate, list[tuple[np.ndarray, np.ndarray]] | None]:
    """One candidate's numbers, and the folds (made with the first one). `unit`: what a masked model is asked."""
    check(
        opened.tokenizer is not None,
        f"the candidate {name} has no tokenizer: texts cannot be given to it",
        "put the tokenizer.json it was trained with into the folder",
    )
    assert opened.tokenizer is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shards = write_shards(place / "text", text, opened.tokenizer)
    unk = opened.tokenizer.vocab.unk
    ids = np.concatenate([shards.read(np.arange(len(shards))).parts[p].ids for p in shards.parts])
    unknown = float(np.mean(ids == unk)) if unk is not None and len(ids) else 0.0
    family, bits, note = "", None, ""
    objective = language(opened, unit)
    if objective is not None:
        family, bits = objective.kind, _bits(opened, objective, shards, stage.length, seed, device)
        if unknown > UNKNOWN:
            note, bits = f"{unknown:.1%} unknown tokens", None
    scores: tuple[float, ...] = ()
    if rows and task is not None:
        x, labels, groups = _features(
            opened, task, write_shards(place / "rows", rows, opened.tokenizer), rows, stage.length, seed, device
        )
        if folds is None:  # over rows, the same ones for every candidate
            of_rows = [d.fields.get("label") for d in rows]
            folds = splits(of_rows, stratified=task.kind == "classify", seed=seed)
        own = [(_members(fit, groups), _members(held, groups)) for fit, held in folds]
        scores = tuple(cross_validated(x, labels, task, own).tolist())
    return Candidate(name, opened.fingerprint, family, bits, unknown, scores, note), folds


def _members(rows: np.ndarray, owners: np.ndarray | None) -> np.ndarray:
    """The words of these rows; the rows themselves where they are what is scored."""
    return rows if owners is None else np.flatnonzero(np.isin(owners, rows))


def language(opened: Opened, unit: Literal["token", "word"] = "token") -> Objective | None:
    """What a candidate's language-model head is asked with: masked LM (of tokens or whole words) of an encoder, causal LM of a decoder, else what it was trained with."""
    model, tokenizer = opened.network.model, opened.tokenizer
    if "lm" not in opened.network.heads or isinstance(model, parts.Adversaries) or tokenizer is None:
        return None
    if isinstance(model, parts.Single):
        masked = [{"kind": "mlm", "unit": unit}] if tokenizer.vocab.mask is not None else []
        wanted = [{"kind": "clm"}] if model.visibility == "causal" else masked
    else:
        wanted = [dict(entry["objective"]) for entry in reversed(opened.lineage) if "objective" in entry]
    for fields in wanted:
        kind = OBJECTIVES.get(fields["kind"])
        objective = kind.model_validate(fields) if kind is not None else None
        fits = objective is not None and not objective.labelled and not objective.misfits(model)
        if objective is not None and fits and set(objective.heads(model)) <= set(opened.network.heads):
            return objective
    return None


def _bits(opened: Opened, objective: Objective, shards: Shards, length: int, seed: int, device: torch.device) -> float:
    """Held-out loss in bits a byte: bits a predicted token times tokens a byte."""
    assert opened.tokenizer is not None
    network = opened.build().to(device)
    model = opened.network.model
    longest = min(length, model.embed.positions.length)
    ctx = context_of(model, opened.tokenizer, longest, seed, objective.tables(opened.tokenizer))
    objective.needs(ctx)
    row = objective.rows(ctx)
    batches = once(shards, objective, ctx, row=row, tokens=max(2048, sum(row.values())))
    numbers = held_out(network, objective, batches)
    return bits_per_byte(language_loss(numbers) * shards.tokens, float(shards.bytes.astype(np.float64).sum()))


def _features(
    opened: Opened, task: Objective, shards: Shards, rows: Sequence[Document], length: int, seed: int, device: torch.device
) -> tuple[np.ndarray, list[Any], np.ndarray | None]:
    """Features of the rows (or of their words), their labels, and of words the rows they stand in."""
    assert opened.tokenizer is not None
    start = Start(opened.network.model, {}, (), lambda: opened.tensors).for_objective(task)
    network = NetworkModel(parts.Network(model=start.model))
    network.load_state_dict({name: t for name, t in start.load().items() if name.startswith("model.")})
    network.to(device)
    ctx = context_of(start.model, opened.tokenizer, min(length, start.model.embed.positions.length), seed)
    every = np.arange(len(shards))
    tokens, places = shards.read(every), {d.id: n for n, d in enumerate(rows)}
    at = np.array([places[i] for i in shards.ids(every)])
    if isinstance(task, Tag):
        x, labels, owner = word_features(network, tokens, ctx)
        return x, labels, at[owner]
    found = np.zeros((len(rows), start.model.width))  # a row without a token this tokenizer knows has no features
    found[at] = document_features(network, tokens, ctx)
    return found, [d.fields["label"] for d in rows], None

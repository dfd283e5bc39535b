"""`init: {best_of: [...]}`: which of several starts fits a stage's text and labels, measured, said and kept.

Two measurements, of train and held-out rows only:
  bits per byte  the candidate's own language-model loss on the text, over its bytes: tokenizers may differ
  probe          cross-validated score of a linear model on frozen features of a few hundred labelled rows, if the task has labels

The loss decides where all candidates have a comparable one (all masked, or all causal); the probe overrules it when its own favourite leads
by more than twice the standard error of the difference over folds (corrected for folds that share rows: Nadeau and Bengio, 2003).
Otherwise the probe decides alone. A candidate whose tokenizer does not know more than 2% of the text's tokens is passed over if another one
reads it.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat.atomic import write_json
from ziggurat.data import sources
from ziggurat.data.loader import once
from ziggurat.data.reading import Reading
from ziggurat.data.shards import Shards
from ziggurat.data.writing import write_shards
from ziggurat.errors import check
from ziggurat.evaluate.frozen import FOLDS, cross_validated, document_features, probeable, splits, word_features
from ziggurat.evaluate.heldout import held_out
from ziggurat.nn import spec as parts
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import OBJECTIVES
from ziggurat.objectives.base import Objective, context_of
from ziggurat.objectives.labelled import Tag
from ziggurat.pipeline.opened import Opened, called
from ziggurat.pipeline.prepare import TestTexts
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import BestOf, Stage
from ziggurat.train.start import Start
from ziggurat.types import Document

log = logging.getLogger(__name__)

FILE = "choice.json"
CHARACTERS = 300_000
"""Of text on which losses are measured."""
READ = 20_000
"""Documents of a source among which text and rows are drawn."""
ROWS = 500
"""Labelled rows of the probe."""
UNKNOWN = 0.02
"""Share of unknown tokens from which a loss is not believed: what a tokenizer cannot read is easily predicted."""
ERRORS = 2.0
"""Standard errors of a lead that overrules."""


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


@dataclass(frozen=True)
class Choice:
    """Which start was chosen, and why."""

    chosen: str
    why: str
    stage: str
    candidates: tuple[Candidate, ...]
    text: dict[str, Any] = field(default_factory=dict)
    """documents, bytes and split of the text; rows and measure of the probe."""

    def table(self) -> tuple[list[str], list[list[str]]]:
        header = ["start", "bits per byte", "unknown", f"probe, {self.text.get('measure', '')}".rstrip(", "), ""]
        rows = []
        for c in self.candidates:
            bits = f"{c.bits_per_byte:.4f} ({c.family})" if c.bits_per_byte is not None else c.note or "no language-model head"
            probe = f"{c.probe:.4f} ± {np.std(c.folds, ddof=1):.4f}" if c.probe is not None else ""
            rows.append([called_start(c.name), bits, f"{c.unknown:.1%}", probe, "chosen" if c.name == self.chosen else ""])
        return header, rows


def called_start(name: str) -> str:
    """A stage's name, or the name of a checkpoint's folder."""
    return called(name) if "/" in name or "$" in name else name


def choose(recipe: Recipe, stage: Stage, folder: Path, candidates: Mapping[str, Callable[[], Opened]]) -> Choice:
    """The fitting start of a stage, said as a table. What was chosen once in this run folder stays chosen.

    Raises `UserError` when nothing tells the candidates apart (no labels, and losses that cannot be compared).
    """
    path = folder / stage.title / FILE
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        made = tuple(Candidate(**{**c, "folds": tuple(c["folds"])}) for c in kept.pop("candidates"))
        if [c.name for c in made] == list(candidates):
            return Choice(candidates=made, **kept)
    assert isinstance(stage.init, BestOf)
    log.info("%s: which of %s fits?", stage.title, ", ".join(map(called_start, candidates)))
    text, split, rows, task = _material(recipe, stage)
    place = folder / stage.title / "choice"
    seed = recipe.seed
    folds: list[tuple[np.ndarray, np.ndarray]] | None = None
    found = []
    try:
        for name, open_ in candidates.items():
            measured, folds = _measure(name, open_(), stage, text, rows, task, place, seed, folds)
            found.append(measured)
            shutil.rmtree(place, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    chosen, why = decide(found)
    size = sum(len(t.encode("utf-8", "surrogatepass")) for d in text for t in d.texts.values())
    about: dict[str, Any] = {"documents": len(text), "bytes": size, "split": split, "rows": len(rows)}
    measure = getattr(task, "metric", "") if rows else ""
    about |= {"measure": "macro_f1" if isinstance(task, Tag) else measure} if measure else {}
    choice = Choice(chosen, why, stage.title, tuple(found), about)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(choice))
    _say(choice)
    return choice


def decide(found: Sequence[Candidate]) -> tuple[str, str]:
    """(name, one sentence of why); see the rule at the top. Raises `UserError` when nothing decides."""
    readers = [c for c in found if c.unknown <= UNKNOWN]
    if 0 < len(readers) < len(found):
        others = [f"{called_start(c.name)} ({c.unknown:.1%} unknown tokens)" for c in found if c not in readers]
        passed = f"passed over, for their tokenizers cannot read the text: {', '.join(others)}"
        if len(readers) == 1:
            return readers[0].name, f"{called_start(readers[0].name)}; {passed}"
        name, why = decide(readers)
        return name, f"{why}; {passed}"
    families = {c.family for c in found if c.bits_per_byte is not None}
    comparable = all(c.bits_per_byte is not None for c in found) and len(families) == 1
    probed = all(c.folds for c in found)
    best = max(found, key=lambda c: c.probe or 0.0) if probed else None
    if not comparable:
        check(
            best is not None,
            f"nothing tells {', '.join(called_start(c.name) for c in found)} apart: there are no labels, and their losses cannot be compared",
            "name one start in `init`, or candidates that are all masked or all causal language models",
        )
        assert best is not None
        reason = "their losses cannot be compared" if len(families) > 1 else "not all have a loss"
        return best.name, f"{called_start(best.name)} by the probe ({_probes(found)}); {reason}"
    ordered = sorted(found, key=lambda c: c.bits_per_byte or math.inf)
    favourite, second = ordered[0], ordered[1]
    said = f"{favourite.bits_per_byte:.4f} bits per byte against {second.bits_per_byte:.4f} of {called_start(second.name)}"
    if best is not None and best.name != favourite.name:
        lead, error = paired(best.folds, favourite.folds)
        if lead > ERRORS * error:
            text = f"{called_start(best.name)} by the probe, which leads {called_start(favourite.name)} by {lead:.4f} (standard error {error:.4f})"
            return best.name, f"{text}, against the loss ({said})"
        return favourite.name, (
            f"{called_start(favourite.name)} by its loss ({said}); the probe prefers {called_start(best.name)} by {lead:.4f}, "
            f"less than {ERRORS:g} standard errors of {error:.4f}"
        )
    agrees = f"; the probe agrees ({_probes(found)})" if best is not None else ""
    return favourite.name, f"{called_start(favourite.name)} by its loss ({said}){agrees}"


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """(mean lead of a, its standard error) over the same folds of repeated cross-validation."""
    lead = np.asarray(a) - np.asarray(b)
    if len(lead) < 2:
        return float(lead.mean()), math.inf
    return float(lead.mean()), float(np.sqrt((1 / len(lead) + 1 / (FOLDS - 1)) * lead.var(ddof=1)))


def _probes(found: Sequence[Candidate]) -> str:
    return ", ".join(f"{called_start(c.name)} {c.probe:.4f}" for c in found if c.probe is not None)


def _material(recipe: Recipe, stage: Stage) -> tuple[list[Document], str, list[Document], Objective | None]:
    """The text that losses are measured on and its split, labelled rows for the probe, and their objective. No test rows: they and
    their near duplicates are left out."""
    tests, names = TestTexts(recipe), list(stage.data)
    held = {name: _held_out(recipe, tests, name) for name in names}
    split = "valid" if all(held.values()) else "train"
    text: list[Document] = []
    for name in names:
        documents = (
            list(islice(tests.clean(recipe.sources[name], split, Reading(), []), READ)) if split == "train" else held[name]
        )
        order = np.random.default_rng([recipe.seed, 11]).permutation(len(documents))
        size = 0
        for n in order.tolist():
            text.append(replace(documents[n], marks=(), fields={}))
            size += sum(map(len, documents[n].texts.values()))
            if size > CHARACTERS / len(names):
                break
    tuned = next((s for s in (stage, *recipe.stages) if s.stage == "finetune" and set(s.data) & set(names)), None)
    if tuned is None or not probeable(tuned.objective):
        return text, split, [], None
    (name,) = tuned.data
    documents = list(islice(tests.clean(recipe.sources[name], "train", Reading(), []), None if tuned.examples else READ))
    if tuned.examples:  # no more labels than the task itself may see: the rows of its first seed
        seed = recipe.worth.seeds[0] if recipe.worth else recipe.seed
        chosen = np.random.default_rng([seed, 7]).permutation(len(documents))[: tuned.examples]
        documents = [documents[n] for n in np.sort(chosen).tolist()]
    order = np.random.default_rng([recipe.seed, 13]).permutation(len(documents))[:ROWS]
    return text, split, [documents[n] for n in np.sort(order).tolist()], tuned.objective


def _held_out(recipe: Recipe, tests: TestTexts, name: str) -> list[Document]:
    """Held-out documents of a source; none if it has none."""
    source = recipe.sources[name]
    try:
        return list(islice(tests.clean(source, "valid", Reading(), []), READ)) if "valid" in sources.splits(source) else []
    except sources.EmptySplit:
        return []


def _measure(
    name: str,
    opened: Opened,
    stage: Stage,
    text: Sequence[Document],
    rows: Sequence[Document],
    task: Objective | None,
    place: Path,
    seed: int,
    folds: list[tuple[np.ndarray, np.ndarray]] | None,
) -> tuple[Candidate, list[tuple[np.ndarray, np.ndarray]] | None]:
    """One candidate's numbers, and the folds (made with the first one)."""
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
    objective = language(opened)
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


def language(opened: Opened) -> Objective | None:
    """What a candidate's language-model head is asked with: masked LM of an encoder, causal LM of a decoder, else what it was trained with."""
    model, tokenizer = opened.network.model, opened.tokenizer
    if "lm" not in opened.network.heads or isinstance(model, parts.Adversaries) or tokenizer is None:
        return None
    if isinstance(model, parts.Single):
        wanted = (
            [{"kind": "clm"}] if model.visibility == "causal" else [{"kind": "mlm"}] if tokenizer.vocab.mask is not None else []
        )
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
    loss = next(value for key, value in numbers.items() if not key.endswith(("_accuracy", "_f1")))
    return loss / math.log(2) * shards.tokens / float(shards.bytes.astype(np.float64).sum())


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


def _say(choice: Choice) -> None:
    from ziggurat.pipeline.show import table

    print(
        f"{choice.stage}: which start fits? ({choice.text['documents']:,} {choice.text['split']} texts, {choice.text['rows']:,} labelled rows)"
    )
    table(*choice.table())
    print(f"{choice.stage} starts from {choice.why}.\n")

"""`init: {best_of: [...]}`: which of several starts fits a stage's text and labels, measured, said and kept.

Two measurements, of train and held-out rows only:
  bits per byte  the candidate's own language-model loss on the text, over its bytes: tokenizers may differ (masked models are then asked
                 whole words)
  probe          cross-validated score of a linear model on frozen features of a few hundred labelled rows, if the task has 20 or more

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
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ziggurat.atomic import write_json
from ziggurat.data import sources
from ziggurat.errors import check
from ziggurat.evaluate.frozen import FOLDS, LEAST, installed
from ziggurat.nn.spec import Model
from ziggurat.objectives.labelled import Tag
from ziggurat.pipeline.candidates import (
    UNKNOWN,
    Candidate,
    expected,
    identity,
    judged_by,
    language,
    material,
    measure,
    read_before,
    read_in,
    task_of,
)
from ziggurat.pipeline.opened import Opened, called, open_checkpoint
from ziggurat.pipeline.prepare import Prepared
from ziggurat.train.arms import left_open
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import BestOf, Stage

log = logging.getLogger(__name__)

FILE = "choice.json"
ERRORS = 2.0
"""Standard errors of a lead that overrules."""


@dataclass(frozen=True)
class Choice:
    """Which start was chosen, and why."""

    chosen: str
    why: str
    stage: str
    candidates: tuple[Candidate, ...]
    text: dict[str, Any] = field(default_factory=dict)
    """documents, bytes and split of the text; rows and measure of the probe."""
    of: dict[str, Any] = field(default_factory=dict)
    """What it was chosen by (`candidates.identity`); empty in files older than this record."""

    def table(self) -> tuple[list[str], list[list[str]]]:
        header = ["start", "bits per byte", "unknown", f"probe, {self.text.get('measure', '')}".rstrip(", "), ""]
        rows = []
        for c in self.candidates:
            bits = f"{c.bits_per_byte:.4f} ({c.family})" if c.bits_per_byte is not None else c.note or "no language-model head"
            probe = f"{c.probe:.4f} ± {np.std(c.folds, ddof=1):.4f}" if c.probe is not None else ""
            rows.append([called_start(c.name), bits, f"{c.unknown:.1%}", probe, "chosen" if c.name == self.chosen else ""])
        return header, rows


def choose_folders(recipe: Recipe, folder: Path) -> dict[str, Choice]:
    """The starts that are chosen before anything is prepared, by stage: where all candidates are folders, for then the choice also
    decides about the tokenizer."""
    own = {s.title for s in recipe.stages}
    return {
        stage.title: choose(recipe, stage, folder, {name: partial(open_checkpoint, name) for name in stage.init.best_of})
        for stage in recipe.stages
        if isinstance(stage.init, BestOf) and own.isdisjoint(stage.init.best_of)
    }


def check_candidates(recipe: Recipe, folder: Path) -> None:
    """Raise `UserError` now, not when the stage is reached, if a stage of the recipe that is a candidate reads what it would be judged by."""
    for stage in recipe.stages:
        if isinstance(stage.init, BestOf) and not (folder / stage.title / FILE).exists():
            held = [name for name in stage.data if "valid" in sources.splits(recipe.sources[name])]
            judged_by(stage, held, {name: read_in(recipe, name) for name in stage.init.best_of})


def check_told_apart(recipe: Recipe, folder: Path, prepared: Prepared, fresh: Model, imported: Mapping[str, Opened]) -> None:
    """Raise `UserError` now, not when the candidates are trained, if nothing will tell them apart, or the probe cannot be made. `fresh`: a
    model from scratch."""
    for stage in recipe.stages:
        if not isinstance(stage.init, BestOf) or (folder / stage.title / FILE).exists():
            continue
        tuned, rows = task_of(recipe, stage), 0
        for name in tuned.data if tuned is not None else ():
            known = any((name, "train") in read_in(recipe, one) for one in stage.init.best_of)
            shards = prepared.shards.get((name, "valid" if known else "train"))
            rows = len(shards) + shards.meta["dropped"] if shards is not None else 0
            rows = min(rows, tuned.examples or rows) if tuned is not None else 0
        if rows >= LEAST:
            installed()
            continue
        asked = [language(expected(recipe, one, prepared.tokenizer, fresh, imported)) for one in stage.init.best_of]
        message, hint = _alike(stage.init.best_of, _few(rows))
        check(None not in asked and len({one.kind for one in asked if one is not None}) == 1, f"{stage.title}: {message}", hint)


def starting(recipe: Recipe, choices: Mapping[str, Choice]) -> Recipe:
    """The recipe with starts that were chosen, and with the general text that follows from them."""
    update = {title: {"init": choice.chosen} for title, choice in choices.items()}
    stages = tuple(s.model_copy(update=update.get(s.title, {})) for s in recipe.stages)
    chosen = recipe.model_copy(update={"stages": stages}) if update else recipe
    return chosen.resolved() if update and any(left_open(s) for s in stages) else chosen


def called_start(name: str) -> str:
    """A stage's name, or the name of a checkpoint's folder."""
    return called(name) if "/" in name or "$" in name else name


def choose(recipe: Recipe, stage: Stage, folder: Path, candidates: Mapping[str, Callable[[], Opened]]) -> Choice:
    """The fitting start of a stage, said as a table. What was chosen once in this run folder stays chosen, as long as the text, the task and
    the candidates are the same.

    Raises `UserError` when nothing tells the candidates apart (no labels, and losses that cannot be compared), or when one was trained on
    the text they would be judged by.
    """
    path = folder / stage.title / FILE
    of = json.loads(json.dumps(identity(recipe, stage, candidates)))
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        before = kept.get("of", {})
        changed = [what for what in of if before.get(what) != of[what]]
        if not changed:
            made = tuple(Candidate(**{**c, "folds": tuple(c["folds"])}) for c in kept.pop("candidates"))
            return Choice(candidates=made, **kept)
        said = f"{', '.join(changed)} changed" if before else "it is not known what it was chosen by"
        log.info("%s: its start is chosen again, for %s", stage.title, said)
    assert isinstance(stage.init, BestOf)
    log.info("%s: which of %s fits?", stage.title, ", ".join(map(called_start, candidates)))
    place = folder / stage.title / "choice"
    seed = recipe.seed
    read, tokenizers = dict[str, set[tuple[str, str]]](), set[str]()
    try:
        for name, open_ in candidates.items():
            opened = open_()
            read[name] = read_before(recipe, stage, name, opened, place)
            tokenizers |= {opened.tokenizer.fingerprint} if opened.tokenizer is not None else set()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    # a piece between the other pieces of its word is easily guessed, and tokenizers cut words into more pieces or fewer
    unit: Literal["token", "word"] = "token" if len(tokenizers) == 1 else "word"
    text, split, rows, task = material(recipe, stage, {called_start(name): seen for name, seen in read.items()})
    if few := _few(len(rows)):
        log.info("%s: %s: the losses decide", stage.title, few)
        rows = []
    folds: list[tuple[np.ndarray, np.ndarray]] | None = None
    found = []
    try:
        for name, open_ in candidates.items():
            measured, folds = measure(name, open_(), stage, text, rows, task, place, seed, folds, unit)
            found.append(measured)
            shutil.rmtree(place, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    chosen, why = decide(found, few)
    size = sum(len(t.encode("utf-8", "surrogatepass")) for d in text for t in d.texts.values())
    about: dict[str, Any] = {"documents": len(text), "bytes": size, "split": split, "rows": len(rows), "unit": unit}
    score = getattr(task, "metric", "") if rows else ""
    about |= {"measure": "macro_f1" if isinstance(task, Tag) else score} if score else {}
    choice = Choice(chosen, why, stage.title, tuple(found), about, of)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(choice))
    _say(choice)
    return choice


def decide(found: Sequence[Candidate], few: str = "") -> tuple[str, str]:
    """(name, one sentence of why); see the rule at the top. `few` says why labels were not asked. Raises `UserError` when nothing decides."""
    readers = [c for c in found if c.unknown <= UNKNOWN]
    if 0 < len(readers) < len(found):
        others = [f"{called_start(c.name)} ({c.unknown:.1%} unknown tokens)" for c in found if c not in readers]
        passed = f"passed over, for their tokenizers cannot read the text: {', '.join(others)}"
        if len(readers) == 1:
            return readers[0].name, f"{called_start(readers[0].name)}; {passed}"
        name, why = decide(readers, few)
        return name, f"{why}; {passed}"
    families = {c.family for c in found if c.bits_per_byte is not None}
    comparable = all(c.bits_per_byte is not None for c in found) and len(families) == 1
    probed = all(c.folds for c in found)
    best = max(found, key=lambda c: c.probe or 0.0) if probed else None
    if not comparable:
        check(best is not None, *_alike([c.name for c in found], few))
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
    agrees = f"; the probe agrees ({_probes(found)})" if best is not None else f"; {few}" if few else ""
    return favourite.name, f"{called_start(favourite.name)} by its loss ({said}){agrees}"


def _few(rows: int) -> str:
    """Why labelled rows are not asked by a probe."""
    return f"{rows} labelled rows are too few for a probe" if 0 < rows < LEAST else ""


def _alike(names: Sequence[str], few: str) -> tuple[str, str]:
    """What is wrong, and what to do, where nothing decides."""
    return (
        f"nothing tells {', '.join(map(called_start, names))} apart: {few or 'there are no labels'}, and their losses cannot be compared",
        "name one start in `init`, or candidates that are all masked or all causal language models"
        + (f", or give the task {LEAST} labelled rows or more" if few else ""),
    )


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """(mean lead of a, its standard error) over the same folds of repeated cross-validation."""
    lead = np.asarray(a) - np.asarray(b)
    if len(lead) < 2:
        return float(lead.mean()), math.inf
    return float(lead.mean()), float(np.sqrt((1 / len(lead) + 1 / (FOLDS - 1)) * lead.var(ddof=1)))


def _probes(found: Sequence[Candidate]) -> str:
    return ", ".join(f"{called_start(c.name)} {c.probe:.4f}" for c in found if c.probe is not None)


def _say(choice: Choice) -> None:
    from ziggurat.pipeline.show import table

    print(
        f"{choice.stage}: which start fits? ({choice.text['documents']:,} {choice.text['split']} texts, {choice.text['rows']:,} labelled rows)"
    )
    table(*choice.table())
    print(f"{choice.stage} starts from {choice.why}.\n")

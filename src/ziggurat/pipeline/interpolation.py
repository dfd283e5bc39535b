"""Weights between a stage's start and what it trained (WiSE-FT: Wortsman et al., 2022): tried along the line, measured, one chosen.

It costs no training: the losses over the share from 0 to 1 are the whole bargain between gain and forgetting in one picture.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ziggurat.atomic import write_json
from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import check
from ziggurat.evaluate.heldout import language_loss
from ziggurat.log import ProgressBar
from ziggurat.nn.network import NetworkModel
from ziggurat.pipeline.provenance import losses
from ziggurat.train import job as jobs
from ziggurat.train import measured
from ziggurat.train.adaptation import Interpolate, Shift, as_read, shift
from ziggurat.train.job import Job, Outcome
from ziggurat.train.keeping import RESULT
from ziggurat.train.loop import precision_of
from ziggurat.train.settings import LINE
from ziggurat.train.stage import Stage
from ziggurat.train.start import headed

if TYPE_CHECKING:
    from ziggurat.pipeline.scoring import Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """The weights at one share of the way."""

    share: float
    found: dict[str, dict[str, float]]
    """Held-out numbers by source."""


@dataclass(frozen=True)
class Line:
    """What was found between a start (share 0) and trained weights (share 1)."""

    points: tuple[Point, ...]
    chosen: float
    before: dict[str, dict[str, float]]
    """The numbers that gain and forgetting are counted from: those of share 0; where the stage brought new tokens, of its start as that read
    the text without them."""

    def at(self, share: float) -> Point:
        return next(p for p in self.points if p.share == share)


def between(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) start + share trained, exactly the one or the other at 0 and 1; what the start lacks is as it was trained."""
    known = {n: start[n] for n, t in trained.items() if n in start and start[n].shape == t.shape and t.is_floating_point()}
    return {n: torch.lerp(known[n].to(t), t, share) if n in known else t for n, t in trained.items()}


def shares(spec: Interpolate) -> list[float]:
    """The shares that are tried, 0 and 1 among them."""
    if spec.share is not None:
        return sorted({0.0, spec.share, 1.0})
    return [n / (spec.points - 1) for n in range(spec.points)]


def choose(stage: Stage, points: Sequence[Point], limit: float | None, before: Mapping[str, Mapping[str, float]]) -> float:
    """The share with the most gain on the stage's own text among those whose forgetting is within the limit (None: any); of equals the
    smallest. Both are counted from `before`, the numbers of the start. A share of 0 forgets nothing, unless new tokens cost more than the
    limit from the beginning: then the share that forgets least."""
    moved = [(p.share, shift(stage, before, p.found) or Shift({}, {})) for p in points]
    gain = {share: sum(m.gain.values()) for share, m in moved}
    lost = {share: max(m.forgetting.values(), default=0.0) for share, m in moved}
    within = [share for share in gain if limit is None or lost[share] <= limit]
    return max(within, key=lambda share: (gain[share], -share)) if within else min(lost, key=lambda share: (lost[share], share))


def sweep(stage: Stage, job: Job, scorer: Scorer, trained: checkpoints.Saved, spec: Interpolate) -> Line:
    """Measure the points of the line; raises `UserError` when the start had no language model to go back to."""
    headed(stage.model_copy(update={"interpolate": spec}), job.start)
    assert stage.objective is not None
    network = NetworkModel(trained.card.network)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start, dtype = job.start.load(), precision_of(stage.precision, device)
    network.to(device)
    points, tried = list[Point](), shares(spec)
    with ProgressBar(f"{stage.title}, between start and trained", len(tried)) as bar:
        for n, share in enumerate(tried, 1):
            network.load_state_dict(between(start, trained.tensors, share))
            points.append(Point(share, scorer.losses(network, stage.objective, stage, dtype)))
            bar.show(n, {})
    before = as_read(points[0].found, job.start_bits())  # never older numbers: their text may have been another
    chosen = spec.share if spec.share is not None else choose(stage, points, _limit(stage, spec), before)
    return Line(tuple(points), chosen, before)


def _limit(stage: Stage, spec: Interpolate) -> float | None:
    """The most forgetting of a point that may be chosen."""
    return spec.limit if spec.limit is not None else stage.forgetting.limit if stage.forgetting is not None else None


def interpolated(stage: Stage, job: Job, scorer: Scorer, folder: Path, outcome: Outcome) -> Outcome:
    """Put what the stage hands on between its start and what it trained, as its recipe says; the outcome is then that one's. A stage that was
    done is so no longer: what was made of its weights is old."""
    assert stage.interpolate is not None
    trained = checkpoints.load(jobs.trained(folder, outcome.steps))
    line, was = sweep(stage, job, scorer, trained, stage.interpolate), read(folder)
    (folder / "DONE").unlink(missing_ok=True)
    write(folder / RESULT, line, job, trained)
    first = line.chosen if was is None else was.get("first", was["chosen"])
    write_json(folder / LINE, {**asdict(line), "first": first, "by": _by(stage), "measured": dict(job.measured)})
    outcome = replace(outcome, held_out=line.at(line.chosen).found, before=line.before, measured=dict(job.measured))
    moved = shift(stage, outcome.before, outcome.held_out)
    say = log.debug if job.title else log.info
    say("%s: interpolated, %g of the way: %s", stage.title, line.chosen, moved.sentence if moved is not None else "")
    write_json(folder / "outcome.json", asdict(outcome))
    return outcome


def holds(folder: Path, stage: Stage, job: Job) -> bool:
    """Whether what `interpolated` found in a stage's folder was chosen by what its recipe says now, on the held-out text as it is now."""
    line = read(folder) or {}
    return line.get("by") == _by(stage) and not measured.other(stage, line["measured"], job.measured)


def _by(stage: Stage) -> dict[str, Any]:
    """What a share is chosen by, apart from the held-out text; nothing if it is given."""
    spec, held = stage.interpolate, stage.forgetting
    if spec is None or spec.share is not None:
        return {}
    return {"limit": _limit(stage, spec), "general": list((held.general if held is not None else None) or ())}


def write(folder: Path, line: Line, job: Job, trained: checkpoints.Saved, step: int | None = None) -> Path:
    """The chosen weights as a checkpoint in `folder`, with their own held-out losses in its lineage."""
    weights = between(job.start.load(), trained.tensors, line.chosen)
    *before, last = trained.card.lineage
    card = replace(
        trained.card, lineage=(*before, {**last, "interpolated": line.chosen, "held_out": losses(line.at(line.chosen).found)})
    )
    step = int(trained.state["progress"]["step"]) if step is None else step
    return checkpoints.save(folder, step, card, weights, state=trained.state, tokenizer=trained.tokenizer, keep=1)


def read(folder: Path) -> dict[str, Any] | None:
    """What `interpolated` found in a stage's folder."""
    path = folder / LINE
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def interpolate(
    path: str | Path, overrides: Sequence[str], title: str, spec: Interpolate, target: Path | None = None
) -> tuple[list[str], list[list[str]], list[str]]:
    """`ziggurat interpolate`: header, rows and notes of the table of a finished stage's line; the chosen weights become a checkpoint in
    `target` (by default the folder `interpolated` of the stage). Nothing of the run is changed.

    Raises:
        UserError: the run has no such stage, it is not finished, its start had no language model, or nothing is held out to choose by.
    """
    from ziggurat.pipeline import run as running

    recipe = running.load_recipe(path, overrides)
    texts = {s.title: s for s in recipe.stages if s.stage != "finetune" and s.init != "scratch"}
    title = title or next(reversed(texts), "")
    check(
        title in texts,
        f"the recipe has no stage '{title}' of text that begins from weights",
        f"there are: {', '.join(texts) or 'none'}",
    )
    stage, folder = texts[title], running.RUNS / recipe.name
    check(jobs.done(folder / title), f"the stage {title} is not finished", f"ziggurat run {path}")
    with running.session(folder) as signals:
        run = running.begin(recipe, folder, signals)
        for other in recipe.stages:
            if jobs.done(folder / other.title):
                done = jobs.outcome_of(folder / other.title)
                run.done[other.title] = running.Done(other, folder / other.title, done)
        outcome = run.done[title].outcome
        stage, init = running.started(run, stage)
        if spec.limit is None and stage.interpolate is not None:
            spec = spec.model_copy(update={"limit": stage.interpolate.limit})
        running.decidable(stage.model_copy(update={"interpolate": spec}), run.prepared)
        job = running.job_of(run, running.Training(stage, folder / title, recipe.seed, init))
        trained = checkpoints.load(jobs.trained(folder / title, outcome.steps))
        line = sweep(stage, job, run.scorer(run.reads(stage, init)), trained, spec)
        place = write(target or folder / title / "interpolated", line, job, trained, 0 if target else None)
    header, rows = table(stage, line)
    return header, rows, [f"share {line.chosen:g} of the way is in {place}"]


def table(stage: Stage, line: Line) -> tuple[list[str], list[list[str]]]:
    """A row a point: share, loss on every source, gain and forgetting, empty where nothing was measured; the chosen one is marked."""
    sources = list(line.points[0].found)
    rows = []
    for point in line.points:
        moved = shift(stage, line.before, point.found) or Shift({}, {})
        losses = [f"{language_loss(point.found[s]):.3f}" for s in sources]
        both = [
            f"{sum(moved.gain.values()):+.3f}" if moved.gain else "",
            f"{max(lost):+.3f}" if (lost := moved.forgetting.values()) else "",
        ]
        rows.append([f"{point.share:g}", *losses, *both, "chosen" if point.share == line.chosen else ""])
    return ["share", *(f"{s} loss" for s in sources), "gain", "forgetting", ""], rows

"""What a sweep found: a score on held-out rows for every point and seed, the best point, and how sure its lead is.

Rules are those of `pipeline/worth.py`: intervals by Student's t over seeds and by resampling held-out examples, paired by seed and example;
nothing is told apart with fewer than three seeds; collapsed runs are flagged. A point with a run that has no score is not ranked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ziggurat.errors import check
from ziggurat.evaluate.heldout import Predictions
from ziggurat.evaluate.scores import METRICS, Metric
from ziggurat.pipeline import worth
from ziggurat.pipeline.grid import Place, said
from ziggurat.pipeline.intervals import Interval

LOSS = replace(METRICS["mse"], name="held-out loss")
"""What text stages are compared by, in nats a predicted token: lower is better."""


@dataclass(frozen=True)
class Trial:
    """One run of a point."""

    score: float
    """On held-out rows; nan if it diverged."""
    seconds: float = 0.0
    steps: int = 0
    skipped: int = 0
    """Steps without a finite loss."""
    answers: Predictions | None = None
    """Of a fine-tuning, on held-out rows."""
    diverged: str = ""
    """Why there is no score."""
    losses: tuple[str, ...] = ()
    """Of a stage of text, which losses the score is made of."""


@dataclass(frozen=True)
class Point:
    """One point of the grid, all seeds."""

    name: str
    folder: str
    changes: dict[str, Any]
    overrides: tuple[str, ...]
    scores: dict[int, float]
    """By seed."""
    mean: float
    """Over all seeds, collapsed ones included (read it with `fallen`); nan where a run has no score: such a point is not ranked."""
    deviation: float
    """Standard deviation over seeds (n - 1); nan for one seed."""
    fallen: dict[int, str]
    """Seeds whose run collapsed or diverged, and why it is thought so."""
    sound: float | None
    """The mean without these; None if there are none of them, or nothing else."""
    seconds: float
    """Of training, all seeds."""
    steps: dict[int, int]

    @property
    def ranked(self) -> bool:
        return math.isfinite(self.mean)


@dataclass(frozen=True)
class Sweep:
    """A stage's grid of points, measured."""

    recipe: str
    stage: str
    measure: str
    """What the scores are."""
    metric: str
    better: Literal["higher", "lower"]
    shown_as_points: bool
    """Scores are fractions to be shown times 100."""
    seeds: tuple[int, ...]
    grid: dict[str, list[Any]]
    points: tuple[Point, ...]
    best: Point | None
    """None when every point has a run without a score."""
    runner_up: Point | None
    difference: float | None
    """By how much the best is better than the runner-up, paired over seeds."""
    over_seeds: Interval | None
    """Student's t; None with fewer than three seeds."""
    over_examples: Interval | None
    """Paired bootstrap of the held-out rows; None of a text stage."""
    distinguishable: bool
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    """What a reader must not miss: runs that collapsed or diverged, a best value at the edge of those tried."""
    test: dict[int, float] = field(default_factory=dict)
    """Score on the test rows by seed, of the best point of a fine-tuning alone."""
    folder: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """Versions, machine, command."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """What takes the best point into the recipe."""
        return self.best.overrides if self.best is not None else ()

    def show(self, value: float | None, signed: bool = False) -> str:
        """A score or difference as it is printed."""
        if self.shown_as_points or value is None or not math.isfinite(value):
            return worth.shown(value, True, signed)
        text = format(value, "+.4f" if signed else ".4f")
        return text.replace("-", "\u2212")

    def to_json(self) -> str:
        plain = asdict(self) | {"overrides": list(self.overrides)}
        plain |= {"best": self.best and self.best.name, "runner_up": self.runner_up and self.runner_up.name}
        return json.dumps(worth.jsonable(plain), ensure_ascii=False, indent=1, allow_nan=False)


def point(place: Place, trials: Mapping[int, Trial], folder: str) -> Point:
    """The account of one point from its runs by seed."""
    scores = {seed: t.score for seed, t in trials.items()}
    fallen = {seed: why for seed, t in trials.items() if (why := _fallen(t))}
    good = [t.score for seed, t in trials.items() if seed not in fallen]
    values = list(scores.values())
    return Point(
        place.name,
        folder,
        place.changes,
        place.overrides,
        scores,
        float(np.mean(values)),
        float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        fallen,
        float(np.mean(good)) if fallen and good else None,
        sum(t.seconds for t in trials.values()),
        {seed: t.steps for seed, t in trials.items()},
    )


def _fallen(trial: Trial) -> str:
    if trial.diverged:
        return trial.diverged
    if trial.skipped and 2 * trial.skipped >= trial.steps:
        return f"{trial.skipped} of {trial.steps} steps had no finite loss"
    answers = trial.answers
    known = worth.Trial(trial.score, answers.predicted if answers is not None else None)
    return worth.collapse(known, answers.gold if answers is not None else None, {})


def compare(
    recipe: str,
    stage: str,
    measure: str,
    metric: Metric,
    grid: Mapping[str, Sequence[Any]],
    tried: Sequence[tuple[Place, Mapping[int, Trial]]],
    folders: Sequence[str],
) -> Sweep:
    """Rank the points by their means, and set the runner-up beside the best, seed by seed and example by example.

    Raises `UserError` when the points' losses are of different kinds.
    """
    kinds = sorted({", ".join(t.losses) for _, trials in tried for t in trials.values() if not t.diverged})
    check(len(kinds) < 2, f"losses of different kinds cannot be compared: {'; '.join(kinds)}", "sweep objectives of one kind")
    points = [point(place, trials, folder) for (place, trials), folder in zip(tried, folders, strict=True)]
    sign = 1 if metric.better == "higher" else -1
    order = sorted((n for n, p in enumerate(points) if p.ranked), key=lambda n: -sign * points[n].mean)
    best = points[order[0]] if order else None
    second = points[order[1]] if len(order) > 1 else None
    seeds = tuple(tried[0][1])
    found = Sweep(
        recipe, stage, measure, metric.name, metric.better, metric.points, seeds, {k: list(v) for k, v in grid.items()}, tuple(points),
        best, second, None, None, None, False, (), tuple(_notes(points, best, grid)),
    )  # fmt: skip
    if best is None:
        return replace(found, sentences=("No point can be chosen: each has a run without a score.",))
    said_best = f"Best: {best.name}, {measure} {found.show(best.mean)}."
    if second is None:
        return replace(found, sentences=(said_best,))
    gain = _gain(tried[order[1]][1], tried[order[0]][1], metric)
    found = replace(
        found,
        difference=gain.mean,
        over_seeds=gain.over_seeds,
        over_examples=gain.over_examples,
        distinguishable=gain.verdict == "paid",
    )
    return replace(found, sentences=(said_best, _sentence(found, best, second)))


def _gain(second: Mapping[int, Trial], best: Mapping[int, Trial], metric: Metric) -> worth.Gain:
    """The best against the runner-up; examples are resampled where both were asked for the same ones."""
    golds = [t.answers.gold for row in (second, best) for t in row.values() if t.answers is not None]
    gold = golds[0] if len(golds) == len(second) + len(best) and all(g == golds[0] for g in golds) else None

    def known(row: Mapping[int, Trial]) -> dict[int, worth.Trial | float]:
        return {s: worth.Trial(t.score, t.answers.predicted if gold is not None and t.answers else None) for s, t in row.items()}

    total = worth.measure({"runner-up": known(second), "best": known(best)}, metric, gold=gold).total
    assert total is not None
    return total


def _sentence(found: Sweep, best: Point, second: Point) -> str:
    span = max((i for i in (found.over_seeds, found.over_examples) if i), key=lambda i: i[1] - i[0], default=None)
    unit = " points" if found.shown_as_points else ""
    by = f"{found.show(found.difference)}{unit}" + (f" [{found.show(span[0])}, {found.show(span[1])}]" if span else "")
    if found.distinguishable:
        return f"It is better than the runner-up, {second.name}, by {by}."
    few = len(found.seeds)
    why = f" ({'one seed' if few == 1 else f'{few} seeds'} only: run at least three, --seeds 0,1,2)" if few < 3 else ""
    return f"The runner-up, {second.name}, is not distinguishable from it: it is {by} behind{why}."


def _notes(points: Sequence[Point], best: Point | None, grid: Mapping[str, Sequence[Any]]) -> list[str]:
    notes = []
    for p in points:
        seeds: dict[str, list[str]] = {}
        for seed, why in p.fallen.items():
            seeds.setdefault(why, []).append(str(seed))
        said_all = "; ".join(f"seed{'s' * (len(some) > 1)} {', '.join(some)}: {why}" for why, some in seeds.items())
        notes += (
            [f"{p.name}, {said_all}." + ("" if p.ranked else " A point with a run without a score is not ranked.")]
            if seeds
            else []
        )
    if best is not None and len(best.fallen) == len(best.scores):
        notes.insert(0, "Every run of the best point collapsed: no value tried is a good one.")
    for name, values in grid.items() if best is not None else ():
        if len(values) < 2 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            continue
        value = best.changes[name] if best is not None else None
        for edge, word, more in ((min(values), "smallest", "smaller"), (max(values), "largest", "larger")):
            if value == edge:
                notes.append(f"{name}={said(value)} is the {word} value tried: a {more} one may be better.")
    return notes

"""What a suite found: for every task a score with its uncertainty for each checkpoint and baseline, and differences of checkpoints.

Rules are those of `pipeline/worth.py`: intervals by Student's t over seeds and by resampling test examples (Efron and Tibshirani
1993), differences paired by seed and example (Koehn 2004), collapsed runs flagged and never silently in a mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ziggurat.evaluate.scores import Metric
from ziggurat.pipeline import worth
from ziggurat.pipeline.intervals import Interval, resampled

CONFIDENCE = 0.95
RESAMPLES = 1000
VERDICTS: dict[str, str] = {
    "paid": "better",
    "cost": "worse",
    "no measurable gain": "no measurable difference",
    "undecided": "undecided",
}
"""A verdict of `worth` as said of two checkpoints."""


@dataclass(frozen=True)
class Answers:
    """One run's answers on the test rows."""

    gold: Sequence[Any]
    predicted: Sequence[Any]
    folder: str = ""
    steps: int = 0
    seconds: float = 0.0
    more: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """What else is known, an entry an example: `Predictions.more`."""


@dataclass(frozen=True)
class Score:
    """One model on one task."""

    model: str
    kind: Literal["checkpoint", "baseline"]
    scores: dict[int, float]
    """By seed."""
    mean: float
    """Over all seeds, collapsed ones included: read it with `collapsed`."""
    deviation: float
    """Over seeds (n - 1); nan for one."""
    interval: Interval | None
    """95%, of the mean over the seeds there are: test examples resampled."""
    collapsed: dict[int, str]
    """Seeds whose run collapsed, and why it is thought so."""
    sound: float | None
    """The mean without collapsed runs; None if none collapsed or none is left."""
    further: dict[str, float]
    """Means of further metrics."""
    seconds: float = 0.0
    """Of training, all seeds."""
    folders: tuple[str, ...] = ()
    """Where the answers are kept."""
    without: str = ""
    """Why this checkpoint was not scored on this task."""


@dataclass(frozen=True)
class Difference:
    """Two checkpoints on one task: the score of `model` less that of `against`, whichever is better."""

    model: str
    against: str
    mean: float
    over_seeds: Interval | None
    over_examples: Interval | None
    verdict: str
    sentence: str


@dataclass(frozen=True)
class TaskResult:
    """One task."""

    task: str
    about: str
    objective: str
    metric: str
    points: bool
    better: Literal["higher", "lower"]
    train_rows: int = 0
    test_rows: int = 0
    leaks: int = 0
    length: int = 0
    models: tuple[Score, ...] = ()
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    without: str = ""
    """Why it was not scored; empty if it was."""

    def of(self, model: str, kind: Literal["checkpoint", "baseline"] | None = None) -> Score | None:
        """The score of that name. A checkpoint may be called as a baseline is, `mean` or `majority`: `kind` says which is meant."""
        return next((s for s in self.models if s.model == model and kind in (None, s.kind)), None)

    def show(self, value: float | None, signed: bool = False) -> str:
        return worth.shown(value, self.points, signed)


@dataclass(frozen=True)
class Results:
    """A suite on some checkpoints."""

    suite: str
    about: str
    checkpoints: dict[str, str]
    """Label -> folder."""
    seeds: tuple[int, ...]
    tasks: tuple[TaskResult, ...]
    means: dict[str, float] = field(default_factory=dict)
    """Label -> unweighted mean over `mean_of`."""
    mean_of: tuple[str, ...] = ()
    """Tasks on which every checkpoint has a defined score that is a fraction."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Options, versions, machine, command."""

    @property
    def scored(self) -> list[TaskResult]:
        return [t for t in self.tasks if not t.without]

    @property
    def left_out(self) -> list[TaskResult]:
        return [t for t in self.tasks if t.without]

    @property
    def notes(self) -> list[str]:
        """Sentences a reader must not miss."""
        return [f"{t.task}: {note}" for t in self.tasks for note in t.notes]

    def to_json(self) -> str:
        return json.dumps(worth.jsonable(asdict(self)), ensure_ascii=False, indent=1, allow_nan=False)


def score(
    model: str,
    kind: Literal["checkpoint", "baseline"],
    runs: Mapping[int, Answers],
    metric: Metric,
    further: Sequence[Metric],
    baselines: Mapping[str, float],
) -> Score:
    """The score of one model from its answers by seed."""
    values = {seed: metric(run.gold, run.predicted) for seed, run in runs.items()}
    flags: dict[int, str] = {}
    if kind == "checkpoint":
        found = {s: worth.collapse(worth.Trial(values[s], run.predicted), run.gold, baselines) for s, run in runs.items()}
        flags = {seed: why for seed, why in found.items() if why}
    sound = [v for seed, v in values.items() if seed not in flags]
    numbers = list(values.values())
    return Score(
        model,
        kind,
        values,
        float(np.mean(numbers)),
        float(np.std(numbers, ddof=1)) if len(numbers) > 1 else math.nan,
        _interval(list(runs.values()), metric),
        flags,
        float(np.mean(sound)) if flags and sound else None,
        {m.name: float(np.mean([m(run.gold, run.predicted) for run in runs.values()])) for m in further},
        sum(run.seconds for run in runs.values()),
        tuple(run.folder for run in runs.values() if run.folder),
    )


def _interval(runs: Sequence[Answers], metric: Metric) -> Interval | None:
    gold = runs[0].gold
    if len(gold) < 2 or any(list(run.gold) != list(gold) for run in runs):
        return None
    means = resampled({"": [run.predicted for run in runs]}, gold, metric, RESAMPLES)[""].mean(1)
    means = means[np.isfinite(means)]
    if len(means) < 0.9 * RESAMPLES and not (not metric.additive and len(means) >= 400):
        return None
    low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def compare(
    against: tuple[str, Mapping[int, Answers]],
    model: tuple[str, Mapping[int, Answers]],
    metric: Metric,
    baselines: Mapping[str, float],
    drawn: bool = True,
) -> Difference:
    """The second checkpoint against the first, seed by seed and example by example. `drawn`: whether seeds decide anything. Where the
    test rows differ, as one tokenizer may drop a row, nothing is decided."""
    gold = list(next(iter(against[1].values())).gold)
    seeds = [seed for seed in against[1] if seed in model[1]]
    alike = all(list(side[1][seed].gold) == gold for side in (against, model) for seed in seeds)
    names = ("before", "after")
    trials: dict[str, dict[int, worth.Trial | float]] = {
        name: {
            seed: worth.Trial(metric(run.gold, run.predicted), run.predicted if alike else None)
            for seed in seeds
            for run in [side[1][seed]]
        }
        for name, side in zip(names, (against, model))
    }
    ledger = worth.measure(trials, metric, gold=gold if alike else None, baselines=baselines, resamples=RESAMPLES, drawn=drawn)
    gain = ledger.total
    assert gain is not None
    mean, over_seeds, over_examples = gain.mean, gain.over_seeds, gain.over_examples
    if metric.better == "lower":  # a gain is how much better the second one is
        mean, over_seeds, over_examples = -mean, _turned(over_seeds), _turned(over_examples)
    verdict = VERDICTS[gain.verdict if alike else "undecided"]
    span = max((i for i in (over_seeds, over_examples) if i), key=lambda i: i[1] - i[0], default=None)
    between = f" [{ledger.show(span[0], True)}, {ledger.show(span[1], True)}]" if span else ""
    fallen = sum(len(p.collapsed) for p in ledger.prefixes)
    sentence = f"{model[0]} against {against[0]}: {ledger.show(mean, signed=True)}{between}, {verdict}"
    sentence += "" if alike else " (their test rows differ)"
    sentence += f" ({len(seeds)} seed{'s' * (len(seeds) > 1)} only: run at least three)" if drawn and len(seeds) < 3 else ""
    sentence += f"; {fallen} of {2 * len(seeds)} runs collapsed" if fallen else ""
    return Difference(model[0], against[0], mean, over_seeds, over_examples, verdict, sentence + ".")


def _turned(span: Interval | None) -> Interval | None:
    """The same with the other sign."""
    return (-span[1], -span[0]) if span else None


def averages(tasks: Sequence[TaskResult], labels: Sequence[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Unweighted means over the tasks that every checkpoint was scored on (fractions only), and the names of these tasks."""
    common = []
    for task in tasks:
        found = [task.of(label, "checkpoint") for label in labels]
        if task.points and not task.without and all(s is not None and not s.without and math.isfinite(s.mean) for s in found):
            common.append(task)
    if not common:
        return {}, ()
    means = {label: float(np.mean([s.mean for t in common if (s := t.of(label, "checkpoint")) is not None])) for label in labels}
    return means, tuple(t.task for t in common)

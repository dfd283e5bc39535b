"""What each stage was worth: the task's test score from every prefix of the pipeline, compared seed by seed.

A stage's gain is the difference between fine-tuning after it and fine-tuning before it, with the same seed: same
labels drawn, same order, and the same fresh head where only that is fresh (from scratch it is drawn after the body).
Two intervals say how sure that is. One is Student's t over the seeds (three or more); the other resamples the test
examples, the same ones for both sides and all seeds (paired bootstrap: Efron and Tibshirani 1993; Koehn 2004). A stage
paid, or cost, only if every interval there is keeps clear of zero; with fewer than three seeds nothing is decided, for
fine-tuning on few labels moves more by seed than most stages are worth.

A run that predicts one class, or scores what the majority scores, has collapsed: it is flagged, and a verdict that
depends on such runs is not given. Where every run on both sides collapsed, nothing is decided: the fine-tuning learnt nothing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ziggurat.errors import check
from ziggurat.evaluate.scores import Metric
from ziggurat.pipeline.intervals import Interval, interval, resampled

Verdict = Literal["paid", "no measurable gain", "cost", "undecided"]
ONE_ANSWER = ("majority", "mean")
"""Baselines that say the same to every example."""
DEFINED = 0.9
"""Share of the bootstrap's draws that must have a score; a draw of few rows may have no correlation."""
NAMES = {"dapt": "DAPT", "tapt": "TAPT", "general": "General pre-training"}


@dataclass(frozen=True, slots=True)
class Trial:
    """One fine-tuning: its test score and, if kept, its predictions in the order of the test set."""

    score: float
    predictions: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class After:
    """What a prefix's last stage took and where it left the language model."""

    tokens: int = 0
    """Live tokens the stage trained on, also those behind the weights that it hands on."""
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    heldout: Mapping[str, float] = field(default_factory=dict)
    """Held-out loss (nats a predicted token) by source."""


@dataclass(frozen=True, slots=True)
class Control:
    """An arm beside the pipeline: a stage on the text of another domain."""

    name: str
    """What its trials are called."""
    before: str
    """The prefix that the stage begins from."""
    after: str
    """The prefix that ends in the stage itself."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Fine-tuning from one prefix of the pipeline, all seeds."""

    name: str
    scores: Mapping[int, float]
    mean: float
    """Over all seeds, collapsed ones included: read it with `collapsed`."""
    deviation: float
    """Standard deviation over seeds (n - 1); nan for one seed."""
    collapsed: Mapping[int, str]
    """Seeds whose run collapsed, and why it is thought so."""

    @property
    def fallen(self) -> bool:
        """Whether every run collapsed."""
        return len(self.collapsed) == len(self.scores)


@dataclass(frozen=True, slots=True)
class Gain:
    """A stage's worth. All numbers are in the metric's unit, positive = better (also for `mse`)."""

    stage: str
    before: str
    after: str
    differences: Mapping[int, float]
    """One a seed, all seeds."""
    mean: float
    deviation: float
    over_seeds: Interval | None
    """Student's t; None with fewer than three seeds."""
    over_examples: Interval | None
    """Paired bootstrap; None without predictions."""
    without_collapsed: float | None
    """Mean over the seeds where neither side collapsed; None if no run collapsed or none is left."""
    verdict: Verdict
    sentence: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of a pipeline."""

    metric: str
    better: Literal["higher", "lower"]
    points: bool
    """Scores are fractions to be shown times 100."""
    confidence: float
    seeds: tuple[int, ...]
    test_examples: int | None
    prefixes: tuple[Prefix, ...]
    gains: tuple[Gain, ...]
    total: Gain | None
    """The last prefix against the first; None for a single prefix."""
    controls: tuple[Gain, ...] = ()
    """What a stage on the wrong domain adds, and what the right domain adds to that."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, After] = field(default_factory=dict)
    """By prefix name; a prefix without a stage (scratch) may be missing."""
    notes: tuple[str, ...] = ()
    """Sentences a reader must not miss: collapsed runs, baselines that win."""

    def show(self, value: float | None, signed: bool = False) -> str:
        """A score (or difference) as it is printed."""
        return shown(value, self.points, signed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; undefined numbers are None."""
        return jsonable(asdict(self))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2, allow_nan=False)


def measure(
    trials: Mapping[str, Mapping[int, Trial | float]],
    metric: Metric,
    *,
    gold: Sequence[Any] | None = None,
    baselines: Mapping[str, float] | None = None,
    after: Mapping[str, After] | None = None,
    control: Control | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    drawn: bool = True,
) -> Ledger:
    """The ledger of `trials[prefix][seed]`, prefixes in pipeline order, e.g. scratch, +general, +dapt, +tapt.

    `gold` are the test labels that the trials' predictions are about. `baselines` are the scores by name of
    `evaluate.baselines`; `control`: an arm among them that is no prefix of the pipeline. `drawn`: whether seeds decide anything; what is asked untrained has one
    run, and its verdict rests on the test examples alone. Raises `UserError` if the prefixes have different seeds or a trial another number of predictions than `gold`.
    """
    table = {
        name: {seed: t if isinstance(t, Trial) else Trial(float(t)) for seed, t in row.items()} for name, row in trials.items()
    }
    check(table, "nothing to compare: no fine-tuning was scored")
    names = list(table)
    seeds = tuple(sorted(table[names[0]]))
    check(seeds, f"no seed was run from {names[0]!r}", "give worth.seeds at least one number")
    for name, row in table.items():
        check(
            tuple(sorted(row)) == seeds,
            f"{name!r} was run with seeds {sorted(row)}, {names[0]!r} with {list(seeds)}",
            "gains are paired by seed: run every prefix with the same seeds",
        )
        for seed, trial in row.items():
            if gold is not None and trial.predictions is not None:
                got = len(trial.predictions)
                check(got == len(gold), f"{name!r}, seed {seed}: {got} predictions for {len(gold)} test examples")
    prefixes = tuple(_prefix(name, table[name], seeds, gold, baselines or {}) for name in names)
    guesses = {name: [p for seed in seeds if (p := row[seed].predictions) is not None] for name, row in table.items()}
    kept = gold is not None and len(gold) > 1 and all(len(row) == len(seeds) for row in guesses.values())
    draws = resampled(guesses, gold, metric, resamples) if gold is not None and kept else {}
    line = [name for name in names if control is None or name != control.name]
    pairs = [(line[i], line[i + 1], stage_name(line[i + 1])) for i in range(len(line) - 1)]
    beside = []
    if control is not None:
        wrong, right = stage_name(control.name), stage_name(control.after)
        beside = [(control.before, control.name, wrong), (control.name, control.after, f"{right}, beyond {wrong}")]
    by_name = {p.name: p for p in prefixes}

    def gain(before: str, last: str, stage: str) -> Gain:
        return _gain(stage, by_name[before], by_name[last], draws, metric, confidence, drawn)

    ledger = Ledger(
        metric=metric.name,
        better=metric.better,
        points=metric.points,
        confidence=confidence,
        seeds=seeds,
        test_examples=None if gold is None else len(gold),
        prefixes=prefixes,
        gains=tuple(gain(*pair) for pair in pairs),
        total=gain(line[0], line[-1], "All stages together") if len(line) > 1 else None,
        controls=tuple(gain(*pair) for pair in beside),
        baselines=dict(baselines or {}),
        after=dict(after or {}),
        notes=tuple(_notes(prefixes, baselines or {}, metric)),
    )
    return ledger


def stage_name(prefix: str) -> str:
    """The stage a prefix ends in, as sentences call it: `+dapt` -> DAPT."""
    name = prefix.lstrip("+ ")
    return NAMES.get(name.lower(), name)


def collapse(trial: Trial, gold: Sequence[Any] | None, baselines: Mapping[str, float]) -> str:
    """Why this run counts as collapsed, in a few words; empty if it does not. Its answers say so; only where there are none is it a sign
    to score what a baseline of one answer scores, which answers of every kind meet by chance in some of a hundred runs."""
    if math.isnan(trial.score):
        return "its score is undefined"
    if trial.predictions is not None and len(trial.predictions) > 1:
        flat = _flat(trial.predictions)
        top, count = Counter(flat).most_common(1)[0] if flat else (None, 0)
        varied = gold is None or len(set(_flat(gold))) > 1
        if varied and count == len(flat):
            return f"it predicts {_short(top)} for everything"
        if flat and isinstance(flat[0], (float, np.floating)) and gold is not None and np.std(flat) < 0.01 * np.std(_flat(gold)):
            return "its predictions hardly differ from each other"
        if gold is not None and count > 0.99 * len(flat) and Counter(_flat(gold))[top] < 0.95 * len(flat):
            return f"it predicts {_short(top)} for {100 * count / len(flat):.1f}% of the test"
        return ""
    for name in ONE_ANSWER:
        if name in baselines and abs(trial.score - baselines[name]) < 1e-9:
            return f"it scores exactly what the {name} baseline scores"
    return ""


def _prefix(
    name: str, row: Mapping[int, Trial], seeds: tuple[int, ...], gold: Sequence[Any] | None, baselines: Mapping[str, float]
) -> Prefix:
    values = [row[seed].score for seed in seeds]
    flags = {seed: collapse(row[seed], gold, baselines) for seed in seeds}
    return Prefix(
        name,
        {seed: row[seed].score for seed in seeds},
        float(np.mean(values)),
        _deviation(values),
        {seed: why for seed, why in flags.items() if why},
    )


def _gain(
    stage: str,
    before: Prefix,
    after: Prefix,
    draws: Mapping[str, np.ndarray],
    metric: Metric,
    confidence: float,
    drawn: bool,
) -> Gain:
    sign = 1 if metric.better == "higher" else -1
    seeds = list(before.scores)
    differences = {seed: sign * (after.scores[seed] - before.scores[seed]) for seed in seeds}
    fallen = [seed for seed in seeds if seed in before.collapsed or seed in after.collapsed]
    sound = [seed for seed in seeds if seed not in fallen]

    def judge(chosen: list[int]) -> tuple[Interval | None, Interval | None, Verdict]:
        over_seeds = interval([differences[seed] for seed in chosen], confidence)
        over_examples = None
        if draws and chosen:
            columns = [seeds.index(seed) for seed in chosen]
            means = sign * (draws[after.name][:, columns] - draws[before.name][:, columns]).mean(1)
            defined = means[np.isfinite(means)]
            if len(defined) >= DEFINED * len(means):
                tail = 50 * (1 - confidence)
                low, high = np.percentile(defined, [tail, 100 - tail])
                over_examples = float(low), float(high)
        rests_on = [*([over_seeds] if drawn else []), *([over_examples] if draws or not drawn else [])]
        return over_seeds, over_examples, _verdict(rests_on)

    over_seeds, over_examples, verdict = judge(seeds)
    # A prefix whose every run collapsed is an outcome like any other, but beside another one it says nothing; a few
    # collapsed runs are an accident, and a verdict must stand without them as well as with them.
    wholesale = before.fallen or after.fallen
    if (before.fallen and after.fallen) or (fallen and not wholesale and judge(sound)[2] != verdict):
        verdict = "undecided"
    mean = float(np.mean(list(differences.values())))
    without = float(np.mean([differences[seed] for seed in sound])) if fallen and sound else None
    sentence = _sentence(stage, before, after, mean, without, over_seeds, over_examples, verdict, metric)
    deviation = _deviation(list(differences.values()))
    return Gain(
        stage, before.name, after.name, differences, mean, deviation, over_seeds, over_examples, without, verdict, sentence
    )


def _verdict(intervals: list[Interval | None]) -> Verdict:
    found = [i for i in intervals if i]
    if len(found) < len(intervals):
        return "undecided"
    if all(low > 0 for low, _ in found):
        return "paid"
    if all(high < 0 for _, high in found):
        return "cost"
    return "no measurable gain"


def _sentence(
    stage: str,
    before: Prefix,
    after: Prefix,
    mean: float,
    without: float | None,
    over_seeds: Interval | None,
    over_examples: Interval | None,
    verdict: Verdict,
    metric: Metric,
) -> str:
    unit = " points" if metric.points else ""
    # The wider interval is the one the verdict had to satisfy.
    wide = max((i for i in (over_seeds, over_examples) if i), key=lambda i: i[1] - i[0], default=None)
    span = f" [{shown(wide[0], metric.points)}, {shown(wide[1], metric.points)}]" if wide else ""
    text = f"{stage}: {shown(mean, metric.points, signed=True)}{unit}{span}, "
    text += {
        "paid": "paid",
        "cost": f"cost {shown(abs(mean), metric.points)}{unit}",
        "no measurable gain": "no measurable gain",
        "undecided": "undecided",
    }[verdict]
    n = len(before.scores)
    if over_seeds is None and n < 3:
        text += f" ({'one seed' if n == 1 else f'{n} seeds'} only: run at least three)"
    for side in (before, after):
        if side.collapsed:
            text += f"; {len(side.collapsed)} of {n} runs from {side.name} collapsed"
    if without is not None:
        text += f", without them {shown(without, metric.points, signed=True)}{unit}"
    return text + "."


ROUNDING = 1e-9
"""What two means of equal scores may differ by."""


def _notes(prefixes: Sequence[Prefix], baselines: Mapping[str, float], metric: Metric) -> list[str]:
    notes = [
        f"{p.name}, seed {seed}: the run collapsed, {why} (score {shown(p.scores[seed], metric.points)})."
        for p in prefixes
        for seed, why in p.collapsed.items()
    ]
    sign = 1 if metric.better == "higher" else -1
    best = max(prefixes, key=lambda p: sign * p.mean if math.isfinite(p.mean) else -math.inf)
    for name, score in baselines.items():
        if sign * (score - best.mean) > ROUNDING:
            gap = shown(abs(score - best.mean), metric.points)
            notes.append(f"The baseline {name} ({shown(score, metric.points)}) beats the best prefix, {best.name}, by {gap}.")
    return notes


def shown(value: float | None, points: bool, signed: bool = False) -> str:
    """A score or difference as printed: fractions as points with one decimal, others with three figures."""
    if value is None or not math.isfinite(value):
        return "undefined"
    scaled, form = (100 * value, ".1f") if points else (value, ".3g")
    text = format(scaled, ("+" if signed else "") + form)
    return text.replace("-", "\u2212") if float(text) else text.lstrip("+-")


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _flat(labels: Sequence[Any]) -> list[Any]:
    if isinstance(labels, np.ndarray):
        return labels.ravel().tolist()
    return [y for row in labels for y in row] if labels and isinstance(labels[0], (list, tuple, np.ndarray)) else list(labels)


def jsonable(value: Any) -> Any:
    """`value` as plain JSON values; undefined numbers become None."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(answer: Any, most: int = 40) -> str:
    """An answer as a message shows it: a generated text may be long."""
    text = repr(answer)
    return text if len(text) <= most else f"{text[: most - 1]}...{text[0]}"

"""How sure a difference is: Student's t over seeds, and resampling of test examples; numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ziggurat.evaluate.scores import Metric

Interval = tuple[float, float]


def student(probability: float, degrees: int) -> float:
    """The quantile of Student's t for whole degrees of freedom (Abramowitz and Stegun 26.7.3-4, bisected)."""
    low, high = 0.0, 1.0
    upper = max(probability, 1 - probability)
    while _student_cdf(high, degrees) < upper:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < upper else (low, middle)
    return math.copysign((low + high) / 2, probability - 0.5)


def _student_cdf(t: float, degrees: int) -> float:
    angle = math.atan(t / math.sqrt(degrees))
    cos, odd = math.cos(angle), degrees % 2
    term = total = (cos if odd else 1.0) if degrees > 1 else 0.0
    for k in range(2 + odd, degrees, 2):
        term *= cos * cos * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inside / 2


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The t interval of the mean of `values`; None for fewer than three or undefined ones."""
    n, data = len(values), np.asarray(values, np.float64)
    if n < 3 or not np.isfinite(data).all():
        return None
    half = student(0.5 + confidence / 2, n - 1) * float(data.std(ddof=1)) / math.sqrt(n)
    return float(data.mean()) - half, float(data.mean()) + half


def resampled(
    guesses: Mapping[str, Sequence[Sequence[Any]]], gold: Sequence[Any], metric: Metric, resamples: int
) -> dict[str, np.ndarray]:
    """float64[resamples, seeds] by name: the scores of `guesses[name][seed]` on test sets drawn with replacement.

    Draw b is of the same examples for all, so differences are paired. A metric that is no function of sums is scored
    again for every draw, and only 500 times.
    """
    draws = np.random.default_rng(0).integers(0, len(gold), (resamples if metric.additive else min(resamples, 500), len(gold)))
    if metric.additive:
        weights = np.stack([np.bincount(draw, minlength=len(gold)) for draw in draws]).astype(np.float64)

        def score(guess: Sequence[Any]) -> np.ndarray:
            return metric.value(weights @ metric.statistics(gold, guess))
    else:

        def score(guess: Sequence[Any]) -> np.ndarray:
            g, p = np.asarray(gold), np.asarray(guess)
            return np.array([metric(g[draw], p[draw]) for draw in draws])

    return {name: np.stack([score(guess) for guess in row], 1) for name, row in guesses.items()}

"""What suites say of their runs: collapsed ones are named beside every mean they are in, and no verdict hangs on them."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest

from ziggurat.evaluate.scores import METRICS
from ziggurat.pipeline.suite_report import grid, to_csv
from ziggurat.pipeline.suite_results import Answers, Results, TaskResult, averages, compare, score

ACCURACY = METRICS["accuracy"]
GOLD = ["yes", "no"] * 100


def right(share: float, seed: int) -> list[str]:
    """Answers of which so many are right."""
    wrong = np.random.default_rng(seed).permutation(len(GOLD)) >= round(share * len(GOLD))
    return [{"yes": "no", "no": "yes"}[g] if w else g for g, w in zip(GOLD, wrong, strict=True)]


def runs(*answers: list[str]) -> dict[int, Answers]:
    return {seed: Answers(GOLD, a) for seed, a in enumerate(answers)}


def results(*models: Any, floor: float = 0.5) -> Results:
    task = TaskResult("t", "", "classify", "accuracy", True, "higher", models=models)
    means, of = averages([task], [m.model for m in models])
    return Results("s", "", {m.model: "" for m in models}, (0, 1, 2), (task,), means, of)


def test_a_run_with_one_answer_for_everything_stands_beside_the_mean_it_is_in() -> None:
    found = score("m", "checkpoint", runs(right(0.8, 0), ["yes"] * 200, right(0.9, 2)), ACCURACY, [], {"majority": 0.5})
    assert found.scores == pytest.approx({0: 0.8, 1: 0.5, 2: 0.9})
    assert set(found.collapsed) == {1} and "yes" in found.collapsed[1]
    assert found.mean == pytest.approx((0.8 + 0.5 + 0.9) / 3) and found.sound == pytest.approx(0.85)
    everything = results(found)
    _, rows = grid(everything)
    assert "(1 of 3 collapsed, without 85.0)" in rows[0][-1]
    (row,) = csv.DictReader(io.StringIO(to_csv(everything)))
    assert row["collapsed"] == "1"


def test_exactly_the_majority_s_score_is_a_collapse_and_a_near_one_is_not() -> None:
    at, near = right(0.5, 3), right(0.51, 4)
    found = score("m", "checkpoint", runs(at, near), ACCURACY, [], {"majority": 0.5})
    assert set(found.collapsed) == {0}
    assert not score("majority", "baseline", runs(["yes"] * 200), ACCURACY, [], {}).collapsed, "a baseline is what it is"
    other = {"majority": 0.4, "TF-IDF + logistic regression": 0.5}
    assert not score("m", "checkpoint", runs(at), ACCURACY, [], other).collapsed, "a baseline that reads is met by chance"


def test_no_verdict_hangs_on_collapsed_runs() -> None:
    good = ("a", runs(*(right(0.85, n) for n in range(3))))
    fallen = ("b", runs(right(0.85, 5), right(0.86, 6), ["yes"] * 200))
    said = compare(good, fallen, ACCURACY, {"majority": 0.5})
    assert said.verdict == "undecided" and "1 of 6 runs collapsed" in said.sentence
    worse = ("c", runs(*(right(0.7, n) for n in range(7, 10))))
    assert compare(good, worse, ACCURACY, {"majority": 0.5}).verdict == "worse"
    with_all = ("d", runs(*[["yes"] * 200] * 3))
    assert compare(good, with_all, ACCURACY, {"majority": 0.5}).verdict == "worse", (
        "every run collapsed: an outcome like any other"
    )

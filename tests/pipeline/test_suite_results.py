"""What suites say of their runs: collapsed ones are named beside every mean they are in, and no verdict hangs on them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ziggurat.evaluate.scores import METRICS
from ziggurat.pipeline import worth
from ziggurat.pipeline.intervals import resampled
from ziggurat.pipeline.suite_report import grid, to_csv
from ziggurat.pipeline.suite_results import Answers, Results, TaskResult, averages, compare, score
from ziggurat.pipeline.suites import _notes

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


def test_answers_of_every_kind_may_score_what_the_majority_scores() -> None:
    at, near = right(0.5, 3), right(0.51, 4)
    assert not score("m", "checkpoint", runs(at, near), ACCURACY, [], {"majority": 0.5}).collapsed, "met by chance"
    assert not score("majority", "baseline", runs(["yes"] * 200), ACCURACY, [], {}).collapsed, "a baseline is what it is"


def test_a_checkpoint_called_as_a_baseline_is() -> None:
    floor = score("majority", "baseline", runs(["yes"] * 200), ACCURACY, [], {})
    mine = score("majority", "checkpoint", runs(right(0.8, 0), right(0.9, 1)), ACCURACY, [], {})
    task = TaskResult("t", "", "classify", "accuracy", True, "higher", models=(floor, mine))
    other = replace(task, task="u")
    means, of = averages([task, other], ["majority"])
    assert means == pytest.approx({"majority": 0.85}) and of == ("t", "u")
    _, rows = grid(Results("s", "", {"majority": ""}, (0, 1), (task, other), means, of))
    assert rows[0][3] == "50.0" and rows[0][4].startswith("85.0") and rows[2][4] == "85.0"


def test_a_difference_is_one_of_scores_whichever_is_better() -> None:
    """Of squared errors less is better, and what stands under `b − a` is still that."""
    gold = [float(n % 7) for n in range(100)]
    draw = np.random.default_rng(0)

    def near(noise: float) -> dict[int, Answers]:
        return {seed: Answers(gold, [g + float(draw.normal(0, noise)) for g in gold]) for seed in range(3)}

    worse, better = near(2.0), near(0.5)
    said = compare(("a", worse), ("b", better), METRICS["mse"], {})
    squared = [np.mean([np.square(np.subtract(r.gold, r.predicted)) for r in side.values()]) for side in (worse, better)]
    assert said.mean == pytest.approx(squared[1] - squared[0]) and said.mean < 0 and said.verdict == "better"
    for span in (said.over_seeds, said.over_examples):
        assert span is not None and span[0] < said.mean < span[1] < 0
    assert "b against a: \N{MINUS SIGN}" in said.sentence


def test_equal_means_beat_nothing() -> None:
    """The mean of three times 0.35 is a little less than 0.35."""
    gold = ["yes"] * 7 + ["no"] * 13
    kept = {seed: Answers(gold, ["yes"] * 20) for seed in range(3)}
    mine = score("m", "checkpoint", kept, ACCURACY, [], {})
    floor = score("majority", "baseline", {0: kept[0]}, ACCURACY, [], {})
    assert mine.mean < floor.mean
    assert not [note for note in _notes([floor, mine], ACCURACY) if "beats" in note]
    trials = {"scratch": {seed: worth.Trial(0.35) for seed in range(3)}}
    assert not [
        n
        for n in worth._notes([worth._prefix("scratch", trials["scratch"], (0, 1, 2), None, {})], {"majority": 0.35}, ACCURACY)
        if "beats" in n
    ]


def test_what_is_asked_untrained_is_judged_by_its_test_rows() -> None:
    """One run is all there is; seeds decide nothing."""
    one, better, level = (("m", {0: runs(right(share, n))[0]}) for share, n in ((0.5, 1), (0.8, 2), (0.52, 3)))
    assert compare(one, better, ACCURACY, {}).verdict == "undecided"
    said = compare(one, better, ACCURACY, {}, drawn=False)
    assert said.verdict == "better" and said.over_examples is not None and "at least three" not in said.sentence
    assert compare(better, one, ACCURACY, {}, drawn=False).verdict == "worse"
    assert compare(one, level, ACCURACY, {}, drawn=False).verdict == "no measurable difference"


def test_nothing_is_decided_on_different_test_rows() -> None:
    good = ("a", runs(*(right(0.85, n) for n in range(3))))
    fewer = ("b", {s: Answers(GOLD[1:], row[1:]) for s, row in enumerate(right(0.5, n) for n in range(7, 10))})
    said = compare(good, fewer, ACCURACY, {})
    assert said.verdict == "undecided" and "their test rows differ" in said.sentence


@pytest.mark.parametrize(("ones", "verdict"), [(3, "better"), (2, "undecided")])
def test_draws_without_a_score_leave_the_others_to_decide(ones: int, verdict: str) -> None:
    """A bootstrap draw that holds one class only has no correlation: of 40 rows (1 - ones / 40)^40, 4% or 13%. Few are left out; where they
    are more than a tenth there is no interval, and seeds alone decide nothing."""
    gold = [0.0] * (40 - ones) + [1.0] * ones
    pearson = METRICS["pearson"]
    good = [g + 0.001 * (n % 5) for n, g in enumerate(gold)]
    bad = [float(n % 7) for n, _ in enumerate(gold)]
    undefined = np.isnan(resampled({"": [good]}, gold, pearson, 2000)[""]).mean()
    assert undefined == pytest.approx((1 - ones / 40) ** 40, abs=0.03)
    before, after = ("a", {s: Answers(gold, bad) for s in range(3)}), ("b", {s: Answers(gold, good) for s in range(3)})
    said = compare(before, after, pearson, {})
    assert said.verdict == verdict and (said.over_examples is None) == (verdict == "undecided")


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

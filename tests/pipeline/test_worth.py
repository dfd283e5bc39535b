"""Verdicts on what a stage was worth: intervals against scipy, coverage by simulation, collapsed runs never hidden."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from ziggurat.errors import UserError
from ziggurat.evaluate.scores import METRICS
from ziggurat.pipeline.intervals import interval, student
from ziggurat.pipeline.worth import After, Control, Trial, collapse, measure, shown

ACCURACY = METRICS["accuracy"]


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 101])
@pytest.mark.parametrize("probability", [0.025, 0.5, 0.6, 0.95, 0.975, 0.9995])
def test_student_quantiles_equal_scipy(degrees: int, probability: float) -> None:
    assert student(probability, degrees) == pytest.approx(scipy.stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-12)


def test_interval_equals_scipy() -> None:
    values = [0.8, 1.9, 2.1, 3.7]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert interval(values) == pytest.approx((low, high))
    assert interval(values[:2]) is None
    assert interval([1, 2, math.nan]) is None


def rows(**scores: list[float]) -> dict[str, dict[int, float]]:
    return {name.replace("_", "+"): dict(enumerate(values)) for name, values in scores.items()}


def test_verdicts_and_sentences() -> None:
    ledger = measure(
        rows(scratch=[0.50, 0.52, 0.51], _general=[0.56, 0.585, 0.57], _dapt=[0.57, 0.575, 0.572], _tapt=[0.55, 0.554, 0.551]),
        ACCURACY,
    )
    assert [g.verdict for g in ledger.gains] == ["paid", "no measurable gain", "cost"]
    assert ledger.gains[0].stage == "General pre-training"
    low, high = scipy.stats.t.interval(0.95, 2, *(f([0.06, 0.065, 0.06]) for f in (np.mean, scipy.stats.sem)))
    assert ledger.gains[0].over_seeds == pytest.approx((low, high))
    assert ledger.gains[0].sentence == f"General pre-training: +6.2 points [{100 * low:.1f}, {100 * high:.1f}], paid."
    assert ledger.gains[1].sentence.startswith("DAPT: +0.1 points [−")
    assert ledger.gains[2].sentence.endswith("cost 2.1 points.")
    assert ledger.total is not None and ledger.total.mean == pytest.approx(ledger.prefixes[-1].mean - ledger.prefixes[0].mean)


def test_pairing_matters() -> None:
    """A shift of every seed alike is seen through seed noise ten times as large."""
    noise = np.array([0.3, 0.5, 0.7, 0.4])
    shift = np.array([0.021, 0.020, 0.019, 0.020])
    ledger = measure({"scratch": dict(enumerate(noise)), "+dapt": dict(enumerate(noise + shift))}, ACCURACY)
    assert ledger.gains[0].verdict == "paid"


def test_lower_is_better_for_errors() -> None:
    ledger = measure(rows(scratch=[2.0, 2.1, 2.2], _dapt=[1.0, 1.1, 1.25]), METRICS["mse"])
    assert ledger.gains[0].verdict == "paid" and ledger.gains[0].mean > 0
    assert "+0.983 [" in ledger.gains[0].sentence and "points" not in ledger.gains[0].sentence


def test_one_or_two_seeds_give_no_verdict() -> None:
    for n in (1, 2):
        gain = measure(rows(scratch=[0.1] * n, _dapt=[0.9] * n), ACCURACY).gains[0]
        assert gain.over_seeds is None and gain.verdict == "undecided"
        assert "run at least three" in gain.sentence


def simulated(rng: np.random.Generator, n: int, rate: float, seeds: int, shared: np.ndarray) -> dict[int, Trial]:
    """Trials right on `rate` of the examples, the hard ones (`shared`) being the same for all."""
    made = {}
    for seed in range(seeds):
        right = rng.random(n) < np.clip(rate + shared, 0, 1)
        made[seed] = Trial(float(right.mean()), right.astype(int).tolist())
    return made


def test_bootstrap_equals_the_plain_loop() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, 120).tolist()
    table = {
        name: {s: Trial(0.0, [g if rng.random() < rate else int(rng.integers(3)) for g in gold]) for s in range(3)}
        for name, rate in (("scratch", 0.4), ("+dapt", 0.6))
    }
    metric = METRICS["macro_f1"]
    scored = {p: {s: Trial(metric(gold, t.predictions), t.predictions) for s, t in row.items()} for p, row in table.items()}
    found = measure(scored, metric, gold=gold).gains[0].over_examples
    draws = np.random.default_rng(1).integers(0, 120, (2000, 120))
    pick = np.array(gold)
    columns = {p: [np.array(t.predictions) for t in row.values()] for p, row in scored.items()}
    means = [
        np.mean([metric(pick[d], b[d]) - metric(pick[d], a[d]) for a, b in zip(columns["scratch"], columns["+dapt"])])
        for d in draws[:400]
    ]
    assert found == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.015)


def test_bootstrap_holds_its_level() -> None:
    """No true difference: the interval over examples covers 0 about 95 times in 100."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        hard = rng.normal(0, 0.3, 150)
        table = {name: simulated(rng, 150, 0.6, 1, hard) for name in ("scratch", "+dapt")}
        low, high = measure(table, ACCURACY, gold=[1] * 150, resamples=200).gains[0].over_examples or (1, 1)
        covered += low <= 0 <= high
    assert 180 <= covered <= 199


def test_a_gain_on_few_examples_is_not_measurable() -> None:
    """Every seed gains the same three examples of 40: certain over seeds, not over examples."""
    gold = [0, 1] * 20
    base = [0, 1] * 15 + [1, 0] * 5
    better = base[:35] + gold[35:37] + base[37:]
    table = {
        "scratch": {s: Trial(ACCURACY(gold, base), base) for s in range(3)},
        "+dapt": {s: Trial(ACCURACY(gold, better), better) for s in range(3)},
    }
    gain = measure(table, ACCURACY, gold=gold).gains[0]
    assert gain.over_seeds is not None and gain.over_seeds[0] > 0
    assert gain.over_examples is not None and gain.over_examples[0] <= 0
    assert gain.verdict == "no measurable gain"


def test_spearman_is_resampled_by_the_loop() -> None:
    rng = np.random.default_rng(3)
    gold = rng.normal(size=60)
    metric = METRICS["spearman"]
    guesses = {"scratch": gold + rng.normal(0, 3, 60), "+dapt": gold + rng.normal(0, 0.5, 60)}
    table = {name: {0: Trial(metric(gold, g), g)} for name, g in guesses.items()}
    gain = measure(table, metric, gold=gold, resamples=100).gains[0]
    assert gain.over_examples is not None and gain.over_examples[0] < gain.mean < gain.over_examples[1]


def test_collapsed_runs_are_found() -> None:
    gold = [0, 1] * 100
    assert "predicts 0 for everything" in collapse(Trial(0.5, [0] * 200), gold, {})
    assert "99.5%" in collapse(Trial(0.505, [0] * 199 + [1]), gold, {})
    assert not collapse(Trial(0.5, [0] * 180 + [1] * 20), gold, {})
    assert not collapse(Trial(1.0, [0] * 199 + [1]), [0] * 199 + [1], {}), "a rare class is not a collapse"
    assert not collapse(Trial(1.0, [1] * 5), [1] * 5, {}), "the test has one class"
    assert "'O' for everything" in collapse(Trial(0.0, [["O", "O"], ["O"]]), [["O", "C"], ["O"]], {})
    assert "hardly differ" in collapse(Trial(0.1, [2.0, 2.001, 2.002]), [1.0, 2.0, 3.0], {})
    assert "majority" in collapse(Trial(0.5), None, {"majority": 0.5})
    assert "undefined" in collapse(Trial(math.nan), None, {})


def test_a_collapsed_run_never_decides() -> None:
    """One collapsed run of four pulls the mean up; without it nothing is measurable."""
    scores = rows(scratch=[0.5, 0.70, 0.71, 0.72], _dapt=[0.72, 0.705, 0.71, 0.715])
    ledger = measure(scores, ACCURACY, baselines={"majority": 0.5, "TF-IDF": 0.8})
    gain = ledger.gains[0]
    assert gain.without_collapsed == pytest.approx(0, abs=1e-9) and gain.mean > 0.05
    assert gain.verdict == "no measurable gain"
    assert "1 of 4 runs from scratch collapsed, without them 0.0 points" in gain.sentence
    assert any("scratch, seed 0" in note for note in ledger.notes)
    assert any("TF-IDF (80.0) beats" in note for note in ledger.notes)
    # three seeds: too few are left to say anything
    few = measure(rows(scratch=[0.5, 0.51, 0.52], _dapt=[0.7, 0.71, 0.72]), ACCURACY, baselines={"majority": 0.5})
    assert few.gains[0].verdict == "undecided"
    # every run from scratch collapsed: that is what scratch is worth
    all_of_them = measure(rows(scratch=[0.5, 0.5, 0.5], _dapt=[0.7, 0.71, 0.72]), ACCURACY, baselines={"majority": 0.5})
    assert all_of_them.gains[0].verdict == "paid"
    assert "3 of 3 runs from scratch collapsed" in all_of_them.gains[0].sentence
    # every run of both: neither is worth anything, and the stage was not measured
    both = measure(rows(scratch=[0.5, 0.5, 0.5], _dapt=[0.5, 0.5, 0.5]), ACCURACY, baselines={"majority": 0.5})
    assert both.gains[0].verdict == "undecided" and both.total is not None and both.total.verdict == "undecided"


def test_json_is_plain() -> None:
    ledger = measure(
        rows(scratch=[math.nan], _dapt=[0.5]), METRICS["pearson"], after={"+dapt": After(10, 2.0, 5.0, {"领域": 4.2})}
    )
    data = json.loads(ledger.to_json())
    assert data["prefixes"][0]["mean"] is None and data["after"]["+dapt"]["heldout"] == {"领域": 4.2}
    assert "领域" in ledger.to_json()
    assert data["gains"][0]["verdict"] == "undecided" and "undefined" in data["gains"][0]["sentence"]


def test_single_prefix_and_mistakes() -> None:
    alone = measure(rows(scratch=[0.1, 0.2, 0.3]), ACCURACY)
    assert alone.gains == () and alone.total is None
    with pytest.raises(UserError, match=r"\+dapt.*seeds \[1\]"):
        measure({"scratch": {0: 0.1}, "+dapt": {1: 0.2}}, ACCURACY)
    with pytest.raises(UserError, match="2 predictions for 3"):
        measure({"scratch": {0: Trial(0.1, [1, 2])}}, ACCURACY, gold=[1, 2, 3])
    with pytest.raises(UserError, match="nothing to compare"):
        measure({}, ACCURACY)


def test_numbers_as_printed() -> None:
    assert shown(0.0234, True, signed=True) == "+2.3"
    assert shown(-0.0234, True) == "−2.3"
    assert shown(-0.0001, True, signed=True) == "0.0"
    assert shown(None, True) == shown(math.nan, False) == "undefined"


def test_a_control_stands_beside_the_pipeline() -> None:
    """It is compared with what it began from and with the right domain, and no stage is compared with it."""
    trials = rows(scratch=[0.50, 0.52, 0.51], _dapt=[0.60, 0.615, 0.61], _tapt=[0.62, 0.634, 0.631])
    wrong = {"+dapt on news": {0: 0.52, 1: 0.545, 2: 0.53}}
    table = {"scratch": trials["scratch"], "+dapt": trials["+dapt"], **wrong, "+tapt": trials["+tapt"]}
    plain, found = measure(trials, ACCURACY), measure(table, ACCURACY, control=Control("+dapt on news", "scratch", "+dapt"))
    assert found.gains == plain.gains and found.total == plain.total
    assert [p.name for p in found.prefixes] == list(table)
    added, beyond = found.controls
    assert added.mean == pytest.approx(np.mean([0.02, 0.025, 0.02])) and added.before == "scratch"
    assert beyond.mean == pytest.approx(np.mean([0.08, 0.07, 0.08])) and beyond.verdict == "paid"
    assert beyond.sentence.startswith("DAPT, beyond dapt on news: +7.7 points")
    assert added.mean + beyond.mean == pytest.approx(found.gains[0].mean)

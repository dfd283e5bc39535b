"""Advice after a run: each verdict leads to what a reader would do."""

from __future__ import annotations

import math

import pytest

from ziggurat.evaluate.scores import METRICS
from ziggurat.pipeline.advice import advice
from ziggurat.pipeline.worth import After, Ledger, measure

SPENT = {name: After(1000, 60.0, 1000.0) for name in ("+pretrain", "+dapt", "+tapt")}


def ledger(baseline: float = 0.0, after: dict[str, After] = SPENT, **scores: list[float]) -> Ledger:
    trials = {name.replace("_", "+"): dict(enumerate(values)) for name, values in scores.items()}
    return measure(trials, METRICS["accuracy"], baselines={"majority": 0.1, "TF-IDF": baseline}, after=after)


SCRATCH, GOOD = [0.50, 0.52, 0.51], [0.60, 0.62, 0.61]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"_pretrain": GOOD}, "keep pretrain."),
        (
            {"_pretrain": GOOD, "_dapt": [0.70, 0.72, 0.71], "_tapt": [0.69, 0.73, 0.71]},
            "keep pretrain and DAPT; leave out TAPT, 1 min 00 s without a measurable gain, or give it more text or another rate.",
        ),
        ({"_pretrain": GOOD, "_tapt": SCRATCH}, "keep pretrain; leave out TAPT, which made the score worse."),
        ({"_pretrain": [0.55, 0.51, 0.53], "_dapt": [0.58, 0.60, 0.57]}, "keep pretrain and DAPT: together they pay."),
    ],
)
def test_advice_follows_verdicts(scores: dict[str, list[float]], said: str) -> None:
    assert advice(ledger(scratch=SCRATCH, **scores)) == f"Advice: {said}"


def test_what_cannot_be_told_is_to_be_measured() -> None:
    two = ledger(scratch=SCRATCH[:2], _pretrain=GOOD[:2])
    assert advice(two) == "Advice: run at least three seeds before deciding on pretrain."
    assert not advice(ledger(scratch=SCRATCH))


def test_a_baseline_that_beats_everything_is_named() -> None:
    better = ledger(0.9, scratch=SCRATCH, _pretrain=GOOD)
    assert advice(better) == "Advice: keep pretrain; and first ask whether TF-IDF does, which beats all of this."
    assert "TF-IDF" not in advice(ledger(0.55, scratch=SCRATCH, _pretrain=GOOD))
    unknown = ledger(after={}, scratch=SCRATCH, _pretrain=SCRATCH)
    assert advice(unknown) == "Advice: leave out pretrain, without a measurable gain, or give it more text or another rate."


def test_a_stage_that_a_paid_one_began_from_is_not_left_out_unmeasured() -> None:
    level = {"_pretrain": [0.58, 0.515, 0.60], "_tapt": [0.60, 0.536, 0.619]}
    later = "but TAPT began from it and paid: measure without it before leaving it out."
    found = ledger(scratch=SCRATCH, **level)
    assert [g.verdict for g in found.gains] == ["no measurable gain", "paid"]
    assert advice(found) == f"Advice: keep TAPT; pretrain had no measurable gain by itself, {later}"
    worse = ledger(scratch=GOOD, _pretrain=SCRATCH, _tapt=[0.70, 0.72, 0.71])
    assert advice(worse) == f"Advice: keep TAPT; pretrain made the score worse by itself, {later}"


def test_where_every_run_collapsed_nothing_is_left_out() -> None:
    """0.1 is what the majority scores."""
    flat = [0.1, 0.1, 0.1]
    said = "the fine-tuning learnt nothing {}: try another rate or more epochs before deciding on pretrain"
    assert advice(ledger(scratch=flat, _pretrain=flat)) == f"Advice: {said.format('with any start')}."
    later = advice(ledger(scratch=flat, _pretrain=flat, _dapt=GOOD))
    assert later == f"Advice: keep DAPT; {said.format('before or after it')}."


def test_an_undefined_baseline_hides_no_better_one() -> None:
    trials = {"scratch": {0: 0.1, 1: 0.12, 2: 0.11}, "+dapt": {0: 0.3, 1: 0.32, 2: 0.31}}
    found = measure(trials, METRICS["pearson"], baselines={"mean": math.nan, "TF-IDF + ridge": 0.97})
    assert advice(found) == "Advice: keep DAPT; and first ask whether TF-IDF + ridge does, which beats all of this."

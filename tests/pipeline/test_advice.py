"""Advice after a run: each verdict leads to what a reader would do."""

from __future__ import annotations

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

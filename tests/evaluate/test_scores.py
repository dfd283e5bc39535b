"""Every metric against the library that defines it, undefined cases included."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
from sklearn import metrics as sk

from ziggurat.errors import UserError
from ziggurat.evaluate import scores
from ziggurat.evaluate.heldout import metric_of
from ziggurat.evaluate.scores import GROUPED, METRICS, metric
from ziggurat.objectives.labelled import Classify


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 7, 200])
def test_classification_equals_sklearn(classes: int, size: int) -> None:
    rng = np.random.default_rng(size + classes)
    gold = rng.integers(0, classes, size)
    predicted = np.where(rng.random(size) < 0.6, gold, rng.integers(0, classes, size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores.accuracy(gold, predicted) == pytest.approx(sk.accuracy_score(gold, predicted))
        assert scores.macro_f1(gold, predicted) == pytest.approx(sk.f1_score(gold, predicted, average="macro"))
        assert scores.micro_f1(gold, predicted) == pytest.approx(sk.f1_score(gold, predicted, average="micro"))
        assert scores.matthews(gold, predicted) == pytest.approx(sk.matthews_corrcoef(gold, predicted))
        some = [0, classes + 1]  # a class nobody has counts as 0, as in scikit-learn
        for average, name in (("macro", "macro_f1"), ("micro", "micro_f1")):
            expected = sk.f1_score(gold, predicted, labels=some, average=average, zero_division=0)
            assert metric(name, labels=some)(gold, predicted) == pytest.approx(expected)
        if classes == 2:
            assert scores.f1(gold, predicted) == pytest.approx(sk.f1_score(gold, predicted))
            names = np.array(["no", "是"])
            expected = sk.f1_score(names[gold], names[predicted], pos_label="是")
            assert scores.f1(names[gold], names[predicted], positive="是") == pytest.approx(expected)


def test_an_answer_that_is_no_label_is_no_class_of_macro_f1() -> None:
    """CommitmentBank as SuperGLUE scores it: the mean of three classes, whatever a model wrote once."""
    labels = ("entailment", "contradiction", "neutral")
    gold = ["entailment"] * 23 + ["contradiction"] * 28 + ["neutral"] * 5
    said = ["", *gold[1:]]
    asked = metric_of(Classify(labels=labels, metric="macro_f1"))
    expected = sk.f1_score(gold, said, labels=labels, average="macro")
    assert asked(gold, said) == pytest.approx(expected) and expected > 0.99
    # classes that nobody has seen are left out as before, and one that is only predicted counts
    assert asked(gold[:51], said[:51]) == pytest.approx(sk.f1_score(gold[:51], said[:51], labels=labels[:2], average="macro"))
    wrong = ["neutral", *gold[1:51]]
    assert asked(gold[:51], wrong) == pytest.approx(sk.f1_score(gold[:51], wrong, average="macro"))
    assert asked(gold[:2], ["", ""]) == 0.0


def test_classification_when_undefined() -> None:
    gold, constant = [0, 1, 1, 0], [0, 0, 0, 0]
    assert scores.matthews(gold, constant) == sk.matthews_corrcoef(gold, constant) == 0
    assert scores.f1(gold, constant) == 0
    assert scores.f1([0, 0], [0, 0]) == 0
    assert scores.macro_f1(gold, constant) == pytest.approx(sk.f1_score(gold, constant, average="macro"))
    # predicting a class that gold lacks counts against macro F1
    assert scores.macro_f1([0, 0, 1], [0, 2, 1]) == pytest.approx(sk.f1_score([0, 0, 1], [0, 2, 1], average="macro"))


@pytest.mark.parametrize("seed", range(5))
def test_regression_equals_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = np.round(rng.normal(3, 1, 80), 1 if seed % 2 else 6)  # odd seeds: many ties
    predicted = np.round(gold + rng.normal(0, 1, 80), 0 if seed % 2 else 6)
    assert scores.pearson(gold, predicted) == pytest.approx(scipy.stats.pearsonr(gold, predicted).statistic)
    assert scores.spearman(gold, predicted) == pytest.approx(scipy.stats.spearmanr(gold, predicted).statistic)
    assert scores.mse(gold, predicted) == pytest.approx(sk.mean_squared_error(gold, predicted))
    assert scores.ranks(predicted).tolist() == scipy.stats.rankdata(predicted).tolist()
    far = gold + 1e6  # a large mean must not eat the digits
    assert scores.pearson(far, predicted) == pytest.approx(scores.pearson(gold, predicted), abs=1e-6)


def test_correlation_of_a_constant_is_undefined() -> None:
    for name in ("pearson", "spearman"):
        assert math.isnan(METRICS[name]([1.0, 2.0, 3.0], [0.1] * 3))
        assert math.isnan(METRICS[name]([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
        assert math.isnan(METRICS[name]([1.0], [2.0]))
        assert METRICS[name]([1.0, 2.0], [5.0, 9.0]) == pytest.approx(1)


@pytest.mark.parametrize(
    "tags", [["O", "B-A", "I-A", "B-B", "I-B"], ["O", "I-人", "B-人", "E-人", "S-人", "I-地"], ["O", "B", "I"]]
)
def test_span_f1_equals_seqeval(tags: list[str]) -> None:
    rng = np.random.default_rng(len(tags))
    for _ in range(60):
        lengths = rng.integers(1, 12, 6)
        gold = [rng.choice(tags, n).tolist() for n in lengths]
        predicted = [[g if rng.random() < 0.7 else str(rng.choice(tags)) for g in row] for row in gold]
        expected = seqeval.metrics.f1_score(gold, predicted)
        assert scores.span_f1(gold, predicted) == pytest.approx(expected)


def test_span_f1_edges() -> None:
    assert scores.spans(["B-A", "I-A", "I-B", "O", "I-A"]) == {("A", 0, 2), ("B", 2, 3), ("A", 4, 5)}
    assert scores.span_f1([["O", "O"]], [["O", "O"]]) == 0
    with pytest.raises(UserError, match="CODE"):
        scores.spans(["O", "CODE"])
    with pytest.raises(UserError, match="sentence 1"):
        scores.span_f1([["O"], ["O", "O"]], [["O"], ["O"]])


def test_token_f1() -> None:
    gold, predicted = [["O", "C", "C"], ["O"]], [["C", "C", "O"], ["C"]]
    flat = [[y for row in side for y in row] for side in (gold, predicted)]
    assert scores.token_f1(gold, predicted, "C") == pytest.approx(sk.f1_score(*flat, pos_label="C"))
    assert scores.token_f1(gold, predicted) == scores.token_f1(gold, predicted, "C")
    assert METRICS["token_accuracy"](gold, predicted) == pytest.approx(sk.accuracy_score(*flat))
    with pytest.raises(UserError, match="which of A, B"):
        scores.token_f1([["A", "O"]], [["B", "O"]])


@pytest.mark.parametrize("name", [m.name for m in METRICS.values() if m.additive])
def test_statistics_sum_to_the_metric_of_any_resample(name: str) -> None:
    """The bootstrap's shortcut equals scoring the resampled lists."""
    rng = np.random.default_rng(0)
    found = METRICS[name]
    if found.task == "tag" or name in GROUPED:
        options = ["O", "B-A", "I-A"] if name == "span_f1" else ["O", "C"]
        gold = [rng.choice(options, 5).tolist() for _ in range(30)]
        predicted = [rng.choice(options, 5).tolist() for _ in range(30)]
    else:
        gold = rng.integers(0, 2, 30).tolist()
        predicted = rng.integers(0, 2, 30).tolist()
    rows = found.statistics(gold, predicted)
    draws = rng.integers(0, 30, (20, 30))
    weights = np.stack([np.bincount(draw, minlength=30) for draw in draws])
    fast = found.value(weights @ rows)
    slow = [found([gold[i] for i in draw], [predicted[i] for i in draw]) for draw in draws]
    assert fast == pytest.approx(slow)


def test_language_model_numbers() -> None:
    assert scores.perplexity(10 * math.log(7), 10) == pytest.approx(7)
    assert scores.perplexity(1e9, 1) == math.inf
    assert scores.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    with pytest.raises(UserError):
        scores.perplexity(0, 0)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"f2.*\n.*macro_f1"):
        metric("f2")
    with pytest.raises(UserError, match="3 gold labels but 2"):
        scores.accuracy([1, 2, 3], [1, 2])
    with pytest.raises(UserError, match="no examples"):
        scores.accuracy([], [])
    with pytest.raises(UserError, match="positive class of neg, pos"):
        scores.f1(["neg", "pos"], ["neg", "neg"])
    with pytest.raises(UserError, match="no positive class"):
        metric("accuracy", positive=1)
    with pytest.raises(UserError, match="takes no known classes"):
        metric("micro_f1", known=["a", "b"])


def test_multirc_by_hand() -> None:
    """F1 over all answers, and questions without a mistake; the first as sklearn counts it on the flat list."""
    gold = [["1", "0", "1"], ["0", "1"], ["0", "0"]]
    predicted = [["1", "0", "1"], ["1", "1"], ["0", "1"]]
    f1_a = metric("f1_a", positive="1")
    assert f1_a(gold, predicted) == pytest.approx(2 * 3 / (3 + 5))
    flat = [[y for row in side for y in row] for side in (gold, predicted)]
    assert f1_a(gold, predicted) == pytest.approx(sk.f1_score(*flat, pos_label="1"))
    assert METRICS["group_em"](gold, predicted) == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="group 1 has 2 gold labels but 1"):
        METRICS["group_em"](gold, [gold[0], ["0"], gold[2]])


def test_a_choice_is_right_if_it_is_one_of_the_right_ones() -> None:
    assert scores.CHOSEN([0, 1, 2], [0, 2, 2]) == pytest.approx(2 / 3)
    assert scores.CHOSEN([[0, 2], [1], [2]], [2, 0, 2]) == pytest.approx(2 / 3)


def test_glue_and_superglue_by_hand() -> None:
    """CoLA's correlation from its counts; CB's mean of F1 over the three classes."""
    gold, predicted = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1]
    tp, tn, fp, fn = 2, 2, 1, 1
    want = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores.matthews(gold, predicted) == pytest.approx(want)
    cb_gold = ["entailment", "neutral", "contradiction", "contradiction"]
    cb = ["entailment", "contradiction", "contradiction", "entailment"]
    assert scores.macro_f1(cb_gold, cb) == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)
    assert scores.accuracy(cb_gold, cb) == 0.5

"""Metrics of texts: small cases by hand, whole sets against the packages themselves, resampling, Chinese, and the missing package."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ziggurat.errors import UserError
from ziggurat.evaluate.baselines import baselines
from ziggurat.evaluate.text_scores import METRICS, chinese, text_metric

GOLD = ["the cat sat on the mat today", "A quick brown fox, it jumps!", "rain falls in spain all day", "one"]
SAID = ["the cat sat on a mat", "the quick brown fox jumps", "rain in spain falls all day long", "two"]


def f(right: int, said: int, gold: int) -> float:
    return 2 * right / (said + gold)


def test_rouge_by_hand() -> None:
    assert text_metric("rouge_1")(GOLD[:1], SAID[:1]) == pytest.approx(f(5, 6, 7))
    assert text_metric("rouge_2")(GOLD[:1], SAID[:1]) == pytest.approx(f(3, 5, 6))
    assert text_metric("rouge_l")(GOLD[:1], SAID[:1]) == pytest.approx(f(5, 6, 7))
    assert text_metric("rouge_l")(GOLD[2:3], SAID[2:3]) == pytest.approx(f(5, 7, 6))
    assert text_metric("rouge_1")(GOLD[2:], SAID[2:]) == pytest.approx((f(6, 7, 6) + 0) / 2)
    assert text_metric("rouge_l")(GOLD, GOLD) == 1


def test_rouge_is_the_package_s_own_for_ascii() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        want = np.mean([RougeScorer([kind]).score(g, p)[kind].fmeasure for g, p in zip(GOLD, SAID)])
        assert text_metric(name)(GOLD, SAID) == pytest.approx(float(want))


def test_chinese_is_counted_by_character() -> None:
    gold, said = ["今天天气很好。", "我喜欢BERT模型"], ["今天气好", "我爱BERT"]
    assert chinese(gold) and not chinese(GOLD)
    assert text_metric("rouge_1")(gold[:1], said[:1]) == pytest.approx(f(4, 4, 6))
    assert text_metric("rouge_l")(gold[:1], said[:1]) == pytest.approx(f(4, 4, 6))
    assert text_metric("rouge_1")(gold[1:], said[1:]) == pytest.approx(f(2, 3, 6))
    from sacrebleu.metrics import BLEU

    assert text_metric("bleu")(gold, said) == pytest.approx(BLEU(tokenize="zh").corpus_score(said, [gold]).score / 100)


def test_bleu_by_hand() -> None:
    gold, said = ["a b c d e f"], ["a b c d x"]
    precisions = [4 / 5, 3 / 4, 2 / 3, 1 / 2]
    want = np.exp(1 - 6 / 5) * np.exp(np.mean(np.log(precisions)))
    assert text_metric("bleu")(gold, said) == pytest.approx(float(want))


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_sets_are_the_package_s_own(name: str) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    metric = {"bleu": BLEU, "chrf": CHRF}[name]()
    assert text_metric(name)(GOLD, SAID) == pytest.approx(metric.corpus_score(SAID, [GOLD]).score / 100)
    assert text_metric(name)(GOLD, GOLD) == pytest.approx(1)
    draw = [0, 0, 2, 3, 3]
    weights = np.bincount(draw, minlength=4).astype(float)
    resampled = text_metric(name).value((weights @ text_metric(name).statistics(GOLD, SAID))[None])
    want = metric.corpus_score([SAID[i] for i in draw], [[GOLD[i] for i in draw]]).score / 100
    assert resampled == pytest.approx([want])


def test_several_references() -> None:
    """ROUGE takes the best of them; BLEU and chrF are the package's own with the same references, however many a text has."""
    from sacrebleu.metrics import BLEU, CHRF

    gold = [[GOLD[0], "a cat sat on a mat"], GOLD[1], [GOLD[2], "rain", "in spain rain falls all day"], [GOLD[3]]]
    each = [[text_metric("rouge_2")([one], [s]) for one in ([g] if isinstance(g, str) else g)] for g, s in zip(gold, SAID)]
    assert text_metric("rouge_2")(gold, SAID) == pytest.approx(np.mean([max(one) for one in each]))
    streams = [[GOLD[0], GOLD[1], GOLD[2], GOLD[3]], [gold[0][1], "", "rain", ""], ["", "", gold[2][2], ""]]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        want = metric.corpus_score(SAID, streams).score / 100
        assert text_metric(name)(gold, SAID) == pytest.approx(want)
        assert want > text_metric(name)(GOLD, SAID)


def test_baselines_copy_or_repeat() -> None:
    found = baselines("seq2seq", ["x", "y", "z"], ["the mat", "the mat", "fox"], SAID[:2], GOLD[:2], text_metric("rouge_1"))
    assert found["copy of the source"] == pytest.approx(text_metric("rouge_1")(GOLD[:2], SAID[:2]))
    assert found["most frequent target"] == pytest.approx(f(2, 2, 7) / 2)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match="sacrebleu") as error:
        text_metric("bleu")
    assert "ziggurat[eval]" in error.value.hint
    with pytest.raises(UserError, match="unknown metric"):
        text_metric("meteor")
    assert set(METRICS) == {"rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"}

"""Exact match and F1 of answers: hand-made cases by the official rules, and the threshold of no answer against every threshold."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from ziggurat.errors import UserError
from ziggurat.evaluate.answer_scores import (
    answer_metric,
    best_threshold,
    cmrc_em,
    cmrc_f1,
    longest_run,
    segments,
    squad_em,
    squad_f1,
)


@pytest.mark.parametrize(
    ("right", "given", "em", "f1"),
    [
        ("The Panthers!", "panthers", 1, 1),
        ("an apple a day", "apple day", 1, 1),
        ("Denver Broncos", "the Denver Broncos defense", 0, 4 / 5),
        ("308", "309", 0, 0),
        ("to be or not to be", "to be", 0, 2 * (1.0 * 2 / 6) / (1 + 2 / 6)),
        ("U.S.", "us", 1, 1),
        ("1,000", "1000", 1, 1),
        ("well-known", "well known", 0, 0),
        ("theatre", "the atre", 0, 0),  # articles are whole words
        ("", "", 1, 1),
        ("", "something", 0, 0),
        ("something", "", 0, 0),
        ("the", "a", 1, 1),  # nothing is left of either
        ("x x y", "x y y", 0, 2 / 3),  # bags, not sets
    ],
)
def test_squad_by_hand(right: str, given: str, em: float, f1: float) -> None:
    assert squad_em(right, given) == em and squad_f1(right, given) == pytest.approx(f1)


def test_the_best_of_several_answers_counts_and_none_is_an_answer() -> None:
    gold = [["Paris", "the city of Paris"], [], [], ["a"], ["Rome"]]
    given = ["city of Paris", "", "Paris", "", "in Rome"]
    assert answer_metric("squad_em")(gold, given) == pytest.approx(3 / 5)  # of "a" nothing is left: no answer is right
    assert answer_metric("squad_f1")(gold, given) == pytest.approx((1 + 1 + 0 + 1 + 2 / 3) / 5)
    with pytest.raises(UserError, match="squad_f1"):
        answer_metric("f1")


@pytest.mark.parametrize(
    ("right", "given", "em", "f1"),
    [
        ("光荣和ω-force", "光荣和ω-force", 1, 1),
        ("光荣和ω-force", "光荣", 0, 2 * 2 / (2 + 4)),  # 光 荣 和 ωforce
        ("《战国无双3》", "战国无双3", 1, 1),
        ("北京大学", "大学北京", 0, 2 * 2 / 8),  # one run in common, not a bag
        ("2008年8月8日", "2008年", 0, 2 * 2 / (2 + 6)),
        ("3.5公里", "3.5 公里", 0, 1),  # spaces count for exact match alone
        ("Windows XP", "windows xp", 1, 1),
        ("是", "否", 0, 0),
    ],
)
def test_cmrc_by_hand(right: str, given: str, em: float, f1: float) -> None:
    assert cmrc_em(right, given) == em and cmrc_f1(right, given) == pytest.approx(f1)


def test_segments_and_runs() -> None:
    assert segments("他在Google工作了3.5年。") == ["他", "在", "google", "工", "作", "了", "3.5", "年"]
    assert segments("3D打印300MB") == ["3d", "打", "印", "300mb"] and segments("Getchu.com") == ["getchu.com"]
    assert segments("你好，world, ok?") == ["你", "好", "world", ",", "ok", "?"]  # ASCII's marks stay, as in the official list
    assert longest_run("abcdxyz", "zzcdxq") == 3 and longest_run("", "a") == 0


def official_f1(answers: list[str], prediction: str) -> float:
    """CMRC's rule once more, as a table of longest common suffixes."""
    best = 0.0
    for answer in answers:
        a, b = segments(answer), segments(prediction)
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i in range(len(a)):
            for j in range(len(b)):
                table[i + 1][j + 1] = table[i][j] + 1 if a[i] == b[j] else 0
        run = max(max(row) for row in table)
        if run:
            precision, recall = run / len(b), run / len(a)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def test_words_are_those_of_the_official_tokenizer() -> None:
    """NLTK's, as the official script calls it, but for contractions and quotation marks."""
    official = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer()
    draw = random.Random(0)
    words = ["3d", "1,000", "1,000.5", "nabo.10ho", "u.s.a", "25℃", "getchu.com", "gnu"]
    marks = [*"?!()%$&[]@#;", " ", ", ", ","]
    for _ in range(1000):
        text = draw.choice(words) + "".join(draw.choice(marks) + draw.choice(words) for _ in range(draw.randint(0, 3)))
        text += draw.choice(["", ".", "?", " ..."])
        if not re.search(r"\D,\d", text):  # NLTK leaves such a comma at the number behind it
            assert segments(text) == official.tokenize(text), text


def test_cmrc_on_random_texts() -> None:
    rng = np.random.default_rng(0)
    letters = list("甲乙丙丁ab 1，。")
    draw = lambda: "".join(rng.choice(letters, rng.integers(1, 9)))  # noqa: E731
    metric = answer_metric("cmrc_f1")
    for _ in range(200):
        answers, given = [draw() for _ in range(rng.integers(1, 4))], draw()
        assert metric([answers], [given]) == pytest.approx(official_f1(answers, given))


def test_the_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    metric = answer_metric("squad_f1")
    for _ in range(50):
        n = int(rng.integers(1, 12))
        gold = [["x"] if rng.random() < 0.6 else [] for _ in range(n)]
        said = [str(rng.choice(["x", "x y", "z"])) for _ in range(n)]
        margins = rng.integers(-3, 4, n).astype(float).tolist()
        threshold, value = best_threshold(gold, said, margins, metric)
        scores = {
            t: metric(gold, ["" if m > t else s for s, m in zip(said, margins)]) for t in (-np.inf, *np.arange(-4, 5).tolist())
        }
        assert value == pytest.approx(max(scores.values()))
        assert metric(gold, ["" if m > threshold else s for s, m in zip(said, margins)]) == pytest.approx(value)


def test_several_metrics_can_be_resampled() -> None:
    metric = answer_metric("squad_f1")
    rows = metric.statistics([["a b"], ["c"], []], ["b", "c", ""])
    assert metric.value(rows[[1, 1]].sum(0)) == 1.0 and metric.value(rows.sum(0)) == pytest.approx((1 + 1 + 1) / 3)

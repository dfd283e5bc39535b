"""Metrics of answers that are stretches of text: exact match and F1 by the rules of SQuAD 1.1 and 2.0, and of CMRC 2018.

Papers: SQuAD (Rajpurkar et al., 2016, 2018), CMRC 2018 (Cui et al., 2019), ReCoRD (Zhang et al., 2018: SQuAD's rules). The gold of a question
is the list of its right answers; an empty list means that it has none, and then the empty text alone is right. Values are fractions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ziggurat.errors import UserError
from ziggurat.evaluate.scores import Metric

ARTICLE = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""What CMRC's rules drop: a list of their own, which leaves ASCII's comma, full stop and question mark in place."""
HAN = re.compile("[\u4e00-\u9fa5]")
WORD = re.compile(r"""\.{3}|(?:\d+,(?=\d)|[^\s,;@#$%&?!"()\[\]{}<>])+?(?=\.?$|[\s,;@#$%&?!"()\[\]{}<>])|[^\w\s]""")
"""A word of what is not Han: `3d`, `1,000.5`, `getchu.com`; a mark that ends one, and a period at the end, stand alone."""


def answer_metric(name: str) -> Metric:
    """The metric called `name`, on (lists of right answers, texts given); raises `UserError` for another name."""
    if name not in METRICS:
        raise UserError(f"unknown metric of answers {name!r}", f"one of: {', '.join(METRICS)}")
    return METRICS[name]


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous space (SQuAD)."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split())


def squad_em(right: str, given: str) -> float:
    """1 if the two are equal after normalisation."""
    return float(normalised(right) == normalised(given))


def squad_f1(right: str, given: str) -> float:
    """F1 of the bags of words; if either has none, 1 if both have none (SQuAD 2.0)."""
    a, b = normalised(right).split(), normalised(given).split()
    if not a or not b:
        return float(a == b)
    return _f1(sum((Counter(a) & Counter(b)).values()), len(b), len(a))


def cmrc_em(right: str, given: str) -> float:
    """1 if the two are equal in lower case and without CMRC's punctuation."""
    return float(_bare(right) == _bare(given))


def cmrc_f1(right: str, given: str) -> float:
    """F1 with the longest common run of segments as the hits; a segment is a Han character or a word of anything else.

    The official script splits what is not Han with NLTK's word tokenizer; this differs in English contractions, quotation marks and
    long dashes alone.
    """
    a, b = segments(right), segments(given)
    return _f1(longest_run(a, b), len(b), len(a))


def segments(text: str) -> list[str]:
    """Han characters and words, in lower case and without CMRC's punctuation."""
    found: list[str] = []
    for piece in re.split(f"({HAN.pattern})", "".join(c for c in text.lower().strip() if c not in MARKS)):
        found += [piece] if HAN.fullmatch(piece) else WORD.findall(piece)
    return found


def longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest stretch that stands in both."""
    best, before = 0, [0] * (len(b) + 1)
    for x in a:
        now = [0] * (len(b) + 1)
        for j, y in enumerate(b):
            if x == y:
                now[j + 1] = before[j] + 1
                best = max(best, now[j + 1])
        before = now
    return best


def _bare(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in MARKS)


def _f1(hits: int, given: int, right: int) -> float:
    return 2 * hits / (given + right) if hits else 0.0


class Best:
    """float64[N, 2]: the best score of the given text against any right answer, and 1."""

    def __init__(self, score: Callable[[str, str], float], shape: Callable[[str], str] | None = None):
        self.score, self.shape = score, shape

    def __call__(self, gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> np.ndarray:
        found = [max(self.score(r, str(p)) for r in self._right(g)) for g, p in zip(gold, predicted, strict=True)]
        return np.stack([np.array(found, np.float64), np.ones(len(found))], 1)

    def _right(self, answers: Sequence[str]) -> Sequence[str]:
        """Answers of which something is left after normalisation; the empty one where there is none."""
        return [a for a in answers if self.shape is None or self.shape(a)] or [""]


def _mean(total: np.ndarray) -> np.ndarray:
    return total[..., 0] / np.maximum(total[..., 1], 1)


def best_threshold(
    gold: Sequence[Sequence[str]], spans: Sequence[str], margins: Sequence[float], metric: Metric
) -> tuple[float, float]:
    """The threshold on the margin of no answer over the best span with which the metric is best, and the metric with it (SQuAD 2.0).

    A question is answered with its span where its margin is at most the threshold. Of equally good ones the smallest is taken; where none
    of these questions should be answered, it is the number just below all margins.
    """
    answered = metric.statistics(gold, list(spans))[:, 0]
    silent = metric.statistics(gold, [""] * len(gold))[:, 0]
    order = np.argsort(np.asarray(margins), kind="stable")
    ordered = np.asarray(margins, np.float64)[order]
    totals = silent.sum() + np.concatenate([[0.0], np.cumsum((answered - silent)[order])])
    last = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)
    allowed = np.concatenate([[True], last])  # equal margins are answered together
    best = int(np.argmax(np.where(allowed, totals, -np.inf)))
    if best:
        threshold = float(ordered[best - 1])
    else:
        threshold = float(np.nextafter(ordered[0], -np.inf)) if len(ordered) else 0.0
    return threshold, float(totals[best] / max(len(gold), 1))


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("squad_f1", "question_answering", Best(squad_f1, normalised), _mean),
        Metric("squad_em", "question_answering", Best(squad_em, normalised), _mean),
        Metric("cmrc_f1", "question_answering", Best(cmrc_f1), _mean),
        Metric("cmrc_em", "question_answering", Best(cmrc_em), _mean),
    )
}

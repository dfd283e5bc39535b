"""Metrics of written texts against what should have been written: ROUGE, BLEU, chrF. Needs the extra `eval`.

A gold answer is a text, or a list of texts that are all right (references): ROUGE takes the one that fits best, BLEU and chrF
treat them as their papers do.

Papers: ROUGE (Lin, 2004), BLEU (Papineni et al., 2002; sacreBLEU: Post, 2018), chrF (Popovic, 2015). Values are fractions. ROUGE is the
mean F of the texts; BLEU and chrF are those of the whole set, from counts summed over its texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from ziggurat.errors import UserError, check
from ziggurat.evaluate.baselines import HAN
from ziggurat.evaluate.scores import Metric

PIECE = re.compile(rf"[{HAN}]|[a-z0-9]+")
LETTER = re.compile(r"[^\W\d_]")
ONE_HAN = re.compile(f"[{HAN}]")


def text_metric(name: str) -> Metric:
    """The metric called `name`, on lists (gold, predicted); gold entries are texts or lists of references.

    Raises:
        UserError: no such metric, or the package that computes it is missing.
    """
    check(name in METRICS, f"unknown metric of texts {name!r}", f"one of: {', '.join(METRICS)}")
    _library("rouge_score" if name.startswith("rouge") else "sacrebleu")
    return METRICS[name]


class Pieces:
    """ROUGE's tokens: lower-cased runs of ASCII letters and digits, as in the package's own tokenizer, and each Han character."""

    def tokenize(self, text: str) -> list[str]:
        return PIECE.findall(text.lower())


@dataclass(frozen=True, slots=True)
class Rouge:
    """float64[N, 2]: F of each text, and 1."""

    kind: str

    def __call__(self, gold: Sequence[Any], predicted: Sequence[str]) -> np.ndarray:
        scorer = _library("rouge_score.rouge_scorer").RougeScorer([self.kind], tokenizer=Pieces())
        pairs = zip(map(references, gold), predicted, strict=True)
        found = [max(scorer.score(one, str(p))[self.kind].fmeasure for one in g) for g, p in pairs]
        return np.stack([np.array(found, np.float64), np.ones(len(found))], 1)


def _mean(total: np.ndarray) -> np.ndarray:
    return total[..., 0] / np.maximum(total[..., 1], 1)


def references(gold: Any) -> list[str]:
    """The texts that count as right."""
    return [str(one) for one in gold] if isinstance(gold, (list, tuple)) else [str(gold)]


def chinese(texts: Sequence[Any]) -> bool:
    """Whether most letters of the texts are Han characters."""
    letters, han = (sum(len(pattern.findall(text)) for one in texts for text in references(one)) for pattern in (LETTER, ONE_HAN))
    return 2 * han > letters


def _bleu(gold: Sequence[Any], predicted: Sequence[str]) -> np.ndarray:
    """float64[N, 10]: lengths of both sides, right n-grams, n-grams. Tokenizer `13a`, for Chinese `zh`."""
    return _counted(_library("sacrebleu.metrics").BLEU(tokenize="zh" if chinese(gold) else "13a"), gold, predicted)


def _chrf(gold: Sequence[Any], predicted: Sequence[str]) -> np.ndarray:
    """float64[N, 18]: for each order the n-grams of both sides, and those in common."""
    return _counted(_library("sacrebleu.metrics").CHRF(), gold, predicted)


def _counted(metric: Any, gold: Sequence[Any], predicted: Sequence[str]) -> np.ndarray:
    # The package has no public way to the counts of each text, from which resampled sets are scored.
    several = [references(g) for g in gold]
    columns = [[g[n] if n < len(g) else None for g in several] for n in range(max(map(len, several), default=0))]
    rows = metric._extract_corpus_statistics([str(p) for p in predicted], columns)
    return np.array(rows, np.float64)


def _corpus(kind: str, total: np.ndarray) -> np.ndarray:
    metric = getattr(_library("sacrebleu.metrics"), kind)()
    flat = total.reshape(-1, total.shape[-1])
    values = [metric._compute_score_from_stats([round(x) for x in row]).score / 100 for row in flat.tolist()]
    return np.array(values).reshape(total.shape[:-1])


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        message = f"scoring texts needs the package {package.replace('_', '-')}, which is not installed"
        raise UserError(message, "pip install 'ziggurat[eval]'") from error


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("rouge_1", "seq2seq", Rouge("rouge1"), _mean),
        Metric("rouge_2", "seq2seq", Rouge("rouge2"), _mean),
        Metric("rouge_l", "seq2seq", Rouge("rougeL"), _mean),
        Metric("bleu", "seq2seq", _bleu, partial(_corpus, "BLEU")),
        Metric("chrf", "seq2seq", _chrf, partial(_corpus, "CHRF")),
    )
}

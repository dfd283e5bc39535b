"""Metrics on (gold, predicted), by their standard names; numpy only.

Values are fractions (accuracy 0.913, not 91.3) except `mse`. Undefined cases follow the reference libraries
(scikit-learn, scipy, seqeval) and are said in each function. Every metric but Spearman's is a function of a *sum over
examples* of a small vector, which is kept apart (`Metric.statistics`, `Metric.value`): a bootstrap over test examples
is then one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ziggurat.errors import UserError, check

Statistics = Callable[..., np.ndarray]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and how to read it. `metric(gold, predicted)` is its value over all examples, a float."""

    name: str
    task: Literal["classify", "regress", "tag", "multiple_choice", "question_answering", "seq2seq"]
    statistics: Statistics
    """(gold, predicted) -> float64[N, S]: one row an example; a sentence is one example of a tagging task, and so is a group of rows
    that are scored together."""
    value: Callable[[np.ndarray], np.ndarray]
    """float64[..., S] summed over examples -> float64[...]"""
    better: Literal["higher", "lower"] = "higher"
    points: bool = True
    """Shown times 100, as points; False for numbers in the unit of the data (`mse`)."""
    additive: bool = True
    """The value over a subset of examples comes from the sum of their rows (not so for ranks)."""

    def __call__(self, gold: Sequence[Any], predicted: Sequence[Any]) -> float:
        check(len(gold) == len(predicted), f"{self.name}: {len(gold)} gold labels but {len(predicted)} predictions")
        check(len(gold) > 0, f"{self.name}: no examples to score", "check that the test split is not empty")
        return float(self.value(self.statistics(gold, predicted).sum(0)))


def metric(
    name: str,
    *,
    positive: Hashable = None,
    labels: Sequence[Hashable] | None = None,
    known: Sequence[Hashable] | None = None,
) -> Metric:
    """The metric called `name`.

    `positive` is the class that `f1`, `token_f1` and `f1_a` are about; without it `f1` takes the 1 of {0, 1} and `token_f1` the
    only label beside `O`. `labels` restricts `micro_f1` and `macro_f1` to some classes (relation extraction leaves out
    "no relation"). `known` are all the classes there are: `macro_f1` is then over those seen, and an answer that is none of them is wrong
    but no class of the mean. Raises `UserError` for an unknown name or an option the metric does not have.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}", f"one of: {', '.join(METRICS)}")
    found = METRICS[name]
    if positive is not None:
        has = ("f1", "token_f1", "f1_a")
        check(name in has, f"metric {name!r} has no positive class", "leave `positive` out, or use f1, token_f1 or f1_a")
        found = replace(found, statistics=partial(found.statistics, positive=positive))
    if labels is not None:
        check(name in ("micro_f1", "macro_f1"), f"metric {name!r} takes no labels", "only micro_f1 and macro_f1 do")
        chosen = partial(_class_counts, labels=list(labels))
        found = replace(found, statistics=chosen, value=_micro_f1 if name == "micro_f1" else _mean_f1)
    if known is not None:
        check(
            name == "macro_f1" and labels is None, f"metric {name!r} takes no known classes", "only macro_f1 of all classes does"
        )
        found = replace(found, statistics=partial(_class_counts, labels=list(known)))
    return found


# ---- classification ------------------------------------------------------------------------------------------------


def accuracy(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Share of examples whose label is right."""
    return METRICS["accuracy"](gold, predicted)


def macro_f1(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Mean F1 of all classes seen in gold or predicted; a class never hit has F1 0 (scikit-learn's default)."""
    return METRICS["macro_f1"](gold, predicted)


def micro_f1(gold: Sequence[Hashable], predicted: Sequence[Hashable], labels: Sequence[Hashable] | None = None) -> float:
    """F1 of the summed counts; over all classes it equals accuracy. 0 if nothing is gold or predicted."""
    return metric("micro_f1", labels=labels)(gold, predicted)


def f1(gold: Sequence[Hashable], predicted: Sequence[Hashable], positive: Hashable = None) -> float:
    """F1 of the positive class, 0 if it is neither gold nor predicted (scikit-learn's default)."""
    return metric("f1", positive=positive)(gold, predicted)


def matthews(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Matthews correlation, many classes allowed (Gorodkin 2004); 0 if gold or predicted is constant (scikit-learn)."""
    return METRICS["matthews"](gold, predicted)


def _hits(gold: Sequence[Any], predicted: Sequence[Any]) -> np.ndarray:
    right = np.array([g == p for g, p in zip(gold, predicted, strict=True)], np.float64)
    return np.stack([right, np.ones_like(right)], 1)


def _class_counts(gold: Sequence[Any], predicted: Sequence[Any], labels: Sequence[Hashable] | None = None) -> np.ndarray:
    """float64[N, 3C]: per class: right, predicted, gold."""
    gold, predicted = _plain(gold), _plain(predicted)
    classes = list(dict.fromkeys([*gold, *predicted])) if labels is None else labels
    number = {label: i for i, label in enumerate(classes)}
    numbered = [np.array([number.get(y, -1) for y in side]) for side in (gold, predicted)]
    g, p = (side[:, None] == np.arange(len(classes)) for side in numbered)
    return np.concatenate([g & p, p, g], 1).astype(np.float64)


def _positive_counts(gold: Sequence[Any], predicted: Sequence[Any], positive: Hashable = None) -> np.ndarray:
    """float64[N, 3]: right, predicted, gold for the positive class."""
    gold, predicted = _plain(gold), _plain(predicted)
    if positive is None:
        seen = {*gold, *predicted}
        check(seen <= {0, 1}, f"f1 needs to know the positive class of {_some(seen)}", "name it, or use macro_f1")
        positive = 1
    return _class_counts(gold, predicted, [positive])


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0)


def _thirds(total: np.ndarray) -> list[np.ndarray]:
    return np.split(np.asarray(total, np.float64), 3, axis=-1)


def _micro_f1(total: np.ndarray) -> np.ndarray:
    right, predicted, gold = (part.sum(-1) for part in _thirds(total))
    return _ratio(2 * right, predicted + gold)


def _macro_f1(total: np.ndarray) -> np.ndarray:
    right, predicted, gold = _thirds(total)
    seen = (predicted + gold > 0).sum(-1)
    return _ratio(_ratio(2 * right, predicted + gold).sum(-1), seen)


def _mean_f1(total: np.ndarray) -> np.ndarray:
    right, predicted, gold = _thirds(total)
    return _ratio(2 * right, predicted + gold).mean(-1)


def _matthews(total: np.ndarray) -> np.ndarray:
    right, predicted, gold = _thirds(total)
    n = gold.sum(-1)
    agreement = right.sum(-1) * n - (predicted * gold).sum(-1)
    spread = (n**2 - (predicted**2).sum(-1)) * (n**2 - (gold**2).sum(-1))
    return _ratio(agreement, np.sqrt(spread))


def _share(total: np.ndarray) -> np.ndarray:
    return _ratio(total[..., 0], total[..., 1])


# ---- regression ----------------------------------------------------------------------------------------------------


def mse(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean squared error, in the squared unit of the labels; lower is better."""
    return METRICS["mse"](gold, predicted)


def pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson's correlation; nan if either side is constant or there are fewer than two examples (scipy)."""
    return METRICS["pearson"](gold, predicted)


def spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank; nan as for `pearson`."""
    return METRICS["spearman"](gold, predicted)


def ranks(values: Sequence[float]) -> np.ndarray:
    """float64[N]: ranks from 1, equal values share the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2)[inverse]


def _squares(gold: Sequence[float], predicted: Sequence[float]) -> np.ndarray:
    error = (np.asarray(gold, np.float64) - np.asarray(predicted, np.float64)) ** 2
    return np.stack([error, np.ones_like(error)], 1)


def _moments(gold: Sequence[float], predicted: Sequence[float]) -> np.ndarray:
    """float64[N, 6]: 1, x, y, xx, yy, xy of standardised values: correlation does not mind, rounding does."""
    sides = []
    for side in (gold, predicted):
        x = np.asarray(side, np.float64)
        x = x - x[0]  # exact zeros for a constant, so that it is seen as one
        spread = x.std()
        sides.append((x - x.mean()) / spread if spread > 0 else np.zeros_like(x))
    x, y = sides
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)


def _correlation(total: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(total, np.float64), -1, 0)
    vx, vy = n * xx - x * x, n * yy - y * y
    flat = (vx <= 1e-12 * n * n) | (vy <= 1e-12 * n * n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flat, np.nan, np.clip((n * xy - x * y) / np.sqrt(vx * vy), -1, 1))


def _rank_moments(gold: Sequence[float], predicted: Sequence[float]) -> np.ndarray:
    return _moments(ranks(gold), ranks(predicted))  # type: ignore[arg-type]


# ---- tagging: one list of label strings a sentence -----------------------------------------------------------------


def span_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """F1 of labelled spans, right only if type, start and end agree; 0 if there is no span at all (seqeval's default)."""
    return METRICS["span_f1"](gold, predicted)


def token_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], positive: Hashable = None) -> float:
    """F1 of one label over all tokens; 0 if it is neither gold nor predicted."""
    return metric("token_f1", positive=positive)(gold, predicted)


def spans(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, start, end) of the spans of one sentence, `end` exclusive.

    BIO, IOB1 and BIOES as the CoNLL script and seqeval's default mode read them: an `I-` that does not continue a span
    of its type begins one; a bare `B`, `I` is of the type "". Raises `UserError` for labels of another scheme.
    """
    found: set[tuple[str, int, int]] = set()
    kind, start, tag = "", 0, "O"
    for i, label in enumerate([*labels, "O"]):
        previous, (tag, dash, new) = tag, label.partition("-")
        if not (label == "O" or (tag in ("B", "I", "E", "S") and bool(dash) == bool(new))):
            raise UserError(f"span F1 cannot read the label {label!r}", "labels are O, B-NAME and I-NAME; or use token_f1")
        begins = tag in ("B", "S") or (tag in ("I", "E") and (previous in ("O", "E", "S") or new != kind))
        if previous != "O" and (tag == "O" or begins or previous in ("E", "S")):
            found.add((kind, start, i))
        if begins:
            start = i
        kind = new
    return found


def _span_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> np.ndarray:
    """float64[N, 3]: right, predicted, gold spans."""
    _same_lengths(gold, predicted)
    rows = [(spans(g), spans(p)) for g, p in zip(gold, predicted, strict=True)]
    return np.array([(len(g & p), len(p), len(g)) for g, p in rows], np.float64)


def _token_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], positive: Hashable = None) -> np.ndarray:
    """float64[N, 3]: right, predicted, gold tokens of the positive label."""
    _same_lengths(gold, predicted)
    if positive is None:
        seen = {label for side in (gold, predicted) for sentence in side for label in sentence} - {"O"}
        check(len(seen) <= 1, f"token F1 needs to know which of {_some(seen)} is meant", "name the positive label")
        positive = next(iter(seen), "")
    rows = [
        (sum(a == b == positive for a, b in zip(g, p)), sum(b == positive for b in p), sum(a == positive for a in g))
        for g, p in zip(gold, predicted, strict=True)
    ]
    return np.array(rows, np.float64)


def _whole(gold: Sequence[Sequence[Hashable]], predicted: Sequence[Sequence[Hashable]]) -> np.ndarray:
    _same_lengths(gold, predicted, "group")
    return _hits([list(g) for g in gold], [list(p) for p in predicted])


def _chosen(gold: Sequence[Any], predicted: Sequence[int]) -> np.ndarray:
    return _hits(
        [p in g if isinstance(g, (list, tuple)) else p == g for g, p in zip(gold, predicted, strict=True)], [True] * len(gold)
    )


def _token_hits(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> np.ndarray:
    _same_lengths(gold, predicted)
    rows = [(sum(a == b for a, b in zip(g, p)), len(g)) for g, p in zip(gold, predicted, strict=True)]
    return np.array(rows, np.float64)


def _same_lengths(gold: Sequence[Sequence[Hashable]], predicted: Sequence[Sequence[Hashable]], what: str = "sentence") -> None:
    for i, (g, p) in enumerate(zip(gold, predicted, strict=True)):
        check(len(g) == len(p), f"{what} {i} has {len(g)} gold labels but {len(p)} predictions")


# ---- language modelling --------------------------------------------------------------------------------------------


def perplexity(nll: float, tokens: float) -> float:
    """exp of the mean negative log likelihood (nats, summed over `tokens`); inf where it does not fit a float."""
    check(tokens > 0, "perplexity of no tokens", "the held-out text is empty")
    return math.exp(nll / tokens) if nll / tokens < 709 else math.inf


def bits_per_byte(nll: float, size: float) -> float:
    """Negative log likelihood (nats) of a text as bits per byte of its UTF-8: comparable across tokenizers."""
    check(size > 0, "bits per byte of no text", "the held-out text is empty")
    return nll / math.log(2) / size


def _plain(labels: Sequence[Any]) -> list[Any]:
    return labels.tolist() if isinstance(labels, np.ndarray) else list(labels)


def _some(labels: set[Any]) -> str:
    shown = sorted(map(str, labels))
    return ", ".join(shown[:5]) + (" ..." if len(shown) > 5 else "")


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "classify", _hits, _share),
        Metric("macro_f1", "classify", _class_counts, _macro_f1),
        Metric("micro_f1", "classify", _class_counts, _micro_f1),
        Metric("f1", "classify", _positive_counts, _micro_f1),
        Metric("matthews", "classify", _class_counts, _matthews),
        Metric("f1_a", "classify", _token_counts, _micro_f1),
        Metric("group_em", "classify", _whole, _share),
        Metric("mse", "regress", _squares, _share, better="lower", points=False),
        Metric("pearson", "regress", _moments, _correlation),
        Metric("spearman", "regress", _rank_moments, _correlation, additive=False),
        Metric("span_f1", "tag", _span_counts, _micro_f1),
        Metric("token_f1", "tag", _token_counts, _micro_f1),
        Metric("token_accuracy", "tag", _token_hits, _share),
    )
}
GROUPED = ("f1_a", "group_em")
"""Metrics of rows that are scored together, on lists of their labels: F1 of the positive label over all rows, and the share of groups
without a mistake (MultiRC: Khashabi et al., 2018; SuperGLUE)."""
CHOSEN = Metric("accuracy", "multiple_choice", _chosen, _share)
"""Share of questions whose choice is right, on (number of the right choice, or a list of them; number chosen)."""

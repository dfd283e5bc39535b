"""How much of a task can be read off a model as it is: a linear probe on frozen features, cross-validated.

Features are means over a document's last hidden vectors; of a tagged word, the vector of its first token. Splits depend on the rows and
the seed only, so two models are compared fold by fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ziggurat.context import Context
from ziggurat.data.cut import marks_in, single
from ziggurat.data.pack import take
from ziggurat.errors import check
from ziggurat.evaluate.heldout import metric_of, to_device
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Labels, Regress, Tag, texts, words_in
from ziggurat.types import Batch, Tokens

FOLDS, REPEATS = 5, 3
LEAST = 4 * FOLDS
"""Labelled rows from which there is a probe."""
AT_ONCE = 32
"""Documents in one forward pass."""


def installed() -> None:
    """Raise `UserError` unless scikit-learn is there, by which probes are made."""
    check(
        find_spec("sklearn") is not None, "the probe needs scikit-learn, which is not installed", "pip install 'ziggurat[eval]'"
    )


def probeable(objective: Objective | None) -> bool:
    """Whether a linear probe can answer it."""
    return isinstance(objective, (Labels, Regress))


@torch.no_grad()
def document_features(network: NetworkModel, tokens: Tokens, ctx: Context) -> np.ndarray:
    """float64[D, width]: the mean over each document's hidden vectors, in an encoder-decoder the encoder's."""
    stream = ctx.streams[0]
    found = []
    for part, hidden in _passes(network, texts(tokens, ctx)):
        bounds = np.asarray(part.streams[stream].bounds)
        sums = np.add.reduceat(hidden[stream].double().cpu().numpy(), bounds[:-1], axis=0)
        found.append(sums / np.diff(bounds)[:, None])
    return np.concatenate(found)


@torch.no_grad()
def word_features(network: NetworkModel, tokens: Tokens, ctx: Context) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(float64[W, width], label of each word, int64[W] its document) of the marked words that stand within the length."""
    whole = single(tokens, ctx)
    marks, names = marks_in(tokens, whole, ctx), tokens.parts["text"].labels
    batch = words_in(whole, ctx)
    bounds = np.asarray(whole.streams["text"].bounds)
    inside = marks.start - bounds[marks.document]
    vectors: list[np.ndarray] = []
    for n, (part, hidden) in enumerate(_passes(network, batch)):
        own = np.asarray(part.streams[ctx.words].bounds)
        mine = (marks.document >= n * AT_ONCE) & (marks.document < (n + 1) * AT_ONCE)
        at = own[marks.document[mine] - n * AT_ONCE] + inside[mine]
        vectors.append(hidden[ctx.words].double().cpu().numpy()[at])
    return np.concatenate(vectors), [names[i] for i in marks.label.tolist()], marks.document


def _passes(network: NetworkModel, batch: Batch) -> Iterator[tuple[Batch, Any]]:
    device = next(network.parameters()).device
    network.eval()
    for start in range(0, len(batch), AT_ONCE):
        part = take(batch, np.arange(start, min(start + AT_ONCE, len(batch))))
        yield part, network(to_device(part, device).streams)


def splits(labels: Sequence[Any], *, stratified: bool, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """FOLDS x REPEATS (rows to fit, rows to score), by label where that can be.

    Raises:
        UserError: there are too few rows to split them, or scikit-learn is not installed.
    """
    installed()
    from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold

    check(len(labels) >= LEAST, f"{len(labels)} labelled rows are too few for a probe", f"label {LEAST} rows or more")
    nothing, names = np.zeros(len(labels)), np.asarray([str(v) for v in labels])
    if stratified and np.unique(names, return_counts=True)[1].min() >= FOLDS:
        return list(RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=seed).split(nothing, names))
    return list(RepeatedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=seed).split(nothing))


def cross_validated(
    x: np.ndarray, labels: Sequence[Any], objective: Objective, folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """float64[folds]: the objective's score on the held-out part of each fold of a linear model on standardised features x [N, F].

    Logistic regression (L2, C = 0.1), for numbers ridge regression. A fold with one label only scores its majority.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    score: Callable[..., float] = _score(objective)
    numbers = isinstance(objective, Regress)
    y = np.asarray([float(v) for v in labels]) if numbers else np.asarray([str(v) for v in labels])
    found = []
    for fit, held in folds:
        model = make_pipeline(StandardScaler(), Ridge(alpha=10.0) if numbers else LogisticRegression(C=0.1, max_iter=2000))
        one = len(set(y[fit].tolist())) < 2
        guess = np.full(len(held), y[fit][0]) if one else model.fit(x[fit], y[fit]).predict(x[held])
        found.append(float(score(y[held].tolist(), guess.tolist())))
    return np.nan_to_num(np.array(found))


def _score(objective: Objective) -> Callable[..., float]:
    """Whole sentences are not what a probe of single words answers: words are scored by macro F1."""
    from sklearn.metrics import accuracy_score, f1_score

    if isinstance(objective, Regress):
        return metric_of(objective) if objective.metric != "mse" else lambda gold, guess: -metric_of(objective)(gold, guess)
    plain = not isinstance(objective, Tag) and getattr(objective, "metric", "") in ("accuracy", "micro_f1")
    return accuracy_score if plain else lambda gold, guess: f1_score(gold, guess, average="macro", zero_division=0)

"""What a model must beat: majority, TF-IDF with a linear model, the most frequent label of each word, a copy of the source, the choice or
sentence most like the question.

They follow scikit-learn's `TfidfVectorizer(ngram_range=(1, 2))` with `LogisticRegression()` or `Ridge()`, so that the
row in a report means what its name says; each Han character counts as a word, so Chinese gets character n-grams.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from ziggurat.errors import check
from ziggurat.evaluate import scores
from ziggurat.evaluate.scores import Metric

Text = str | tuple[str, str]
"""A text, or a pair of texts."""
Kind = Literal["classify", "regress", "tag", "multiple_choice", "question_answering", "seq2seq"]

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{HAN}]|\b[^\W{HAN}]{{2,}}|(?<=[{HAN}])[^\W{HAN}]{{2,}}")
SENTENCE = re.compile("[^.!?。！？]+[.!?。！？]*")


def baselines(
    kind: Kind,
    train: Sequence[Any],
    train_labels: Sequence[Any],
    test: Sequence[Any],
    test_labels: Sequence[Any],
    metric: Metric | str,
) -> dict[str, float]:
    """Test score of each baseline by its name.

    `train` and `test` are texts or (text, pair) tuples; for `tag` they are lists of words, with one list of labels a
    sentence; for `seq2seq` labels are texts; for `question_answering` inputs are (question, context) and labels lists of answers; for
    `multiple_choice` inputs are (question, choices) and labels numbers of choices (or lists of them). A constant prediction has no correlation, so `mean` is nan under `pearson` and `spearman`.
    """
    score = scores.metric(metric) if isinstance(metric, str) else metric
    check(score.task == kind, f"metric {score.name!r} is for {score.task!r}, the task is {kind!r}")
    guesses = predict(kind, train, train_labels, test)
    return {name: score(test_labels, guess) for name, guess in guesses.items()}


def predict(
    kind: Kind,
    train: Sequence[Any],
    train_labels: Sequence[Any],
    test: Sequence[Any],
) -> dict[str, list[Any]]:
    """The baselines' predictions for `test`, by the baseline's name; the arguments are those of `baselines`."""
    check(len(train) == len(train_labels), f"{len(train)} training examples but {len(train_labels)} labels")
    check(len(train) > 0, "baselines need training examples", "the training split of the task is empty")
    if kind == "tag":
        return _tag(train, train_labels, test)
    if kind == "seq2seq":
        top = Counter(train_labels).most_common(1)[0][0]
        return {"copy of the source": list(test), "most frequent target": [top] * len(test)}
    if kind == "question_answering":
        return _answers(train, train_labels, test)
    if kind == "multiple_choice":
        return _choices(train, train_labels, test)
    x, x_test = tfidf(train, test)
    if kind == "regress":
        y = np.asarray(train_labels, np.float64)
        return {"mean": [float(y.mean())] * len(test), "TF-IDF + ridge": ridge(x, y, x_test).tolist()}
    classes = sorted(set(train_labels), key=str)
    number = {label: i for i, label in enumerate(classes)}
    top = Counter(train_labels).most_common(1)[0][0]
    guess = [top] * len(test)
    if len(classes) > 1:
        chosen = logistic(x, np.array([number[y] for y in train_labels]), x_test, len(classes))
        guess = [classes[i] for i in chosen]
    return {"majority": [top] * len(test), "TF-IDF + logistic regression": guess}


def _tag(
    train: Sequence[Sequence[str]], labels: Sequence[Sequence[Hashable]], test: Sequence[Sequence[str]]
) -> dict[str, list[Any]]:
    overall: Counter[Hashable] = Counter()
    by_word: dict[str, Counter[Hashable]] = {}
    for i, (words, tags) in enumerate(zip(train, labels, strict=True)):
        check(len(words) == len(tags), f"training sentence {i} has {len(words)} words but {len(tags)} labels")
        overall.update(tags)
        for word, tag in zip(words, tags):
            by_word.setdefault(word, Counter())[tag] += 1
    check(overall, "baselines need training words", "every training sentence is empty")
    top = overall.most_common(1)[0][0]
    usual = {word: counts.most_common(1)[0][0] for word, counts in by_word.items()}
    return {
        "majority": [[top] * len(words) for words in test],
        "most frequent label": [[usual.get(word, top) for word in words] for words in test],
    }


def _answers(
    train: Sequence[tuple[str, str]], answers: Sequence[Sequence[str]], test: Sequence[tuple[str, str]]
) -> dict[str, list[str]]:
    """The most frequent answer (none at all counts as one), and the sentence of the context that is most like the question."""
    top = Counter(found[0] if found else "" for found in answers).most_common(1)[0][0]
    idf = _idf([text for pair in train for text in pair])
    closest = []
    for question, context in test:
        sentences = [s.strip() for s in SENTENCE.findall(context) if s.strip()] or [context]
        closest.append(max(sentences, key=lambda s: _likeness(question, s, idf)))
    return {"majority": [top] * len(test), "most similar sentence": closest}


def _choices(train: Sequence[tuple[str, Any]], labels: Sequence[Any], test: Sequence[tuple[str, Any]]) -> dict[str, list[int]]:
    """The most frequent place, the longest choice, and the one that is most like the question."""
    places = Counter(n for label in labels for n in (label if isinstance(label, (list, tuple)) else [label]))
    order = [place for place, _ in places.most_common()]
    idf = _idf([text for question, options in train for text in (question, *options)])

    def best(scores: list[float]) -> int:
        return max(range(len(scores)), key=scores.__getitem__)

    return {
        "majority": [next((p for p in order if p < len(options)), 0) for _, options in test],
        "longest choice": [best([float(len(option)) for option in options]) for _, options in test],
        "most similar choice": [best([_likeness(question, option, idf) for option in options]) for question, options in test],
    }


def _idf(texts: Sequence[str]) -> dict[str, float]:
    documents = Counter(name for text in texts for name in features(text))
    return {name: math.log((1 + len(texts)) / (1 + n)) + 1 for name, n in documents.items()}


def _likeness(one: str, other: str, idf: dict[str, float]) -> float:
    """The cosine of two texts' TF-IDF vectors."""
    rare = max(idf.values(), default=1.0)
    a, b = ({name: n * idf.get(name, rare) for name, n in features(text).items()} for text in (one, other))
    size = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
    return sum(x * b[name] for name, x in a.items() if name in b) / size if size else 0.0


def features(text: Text) -> Counter[str]:
    """Counts of words (two characters and more), Han characters and pairs of neighbours.

    Of a pair of texts, the features of each are kept apart, and those both share are added once more.
    """
    if isinstance(text, str):
        tokens = WORD.findall(text.lower())
        return Counter([*tokens, *(f"{a} {b}" for a, b in pairwise(tokens))])
    a, b = (features(part) for part in text)
    return Counter({f"{side}|{name}": n for side, part in (("a", a), ("b", b), ("both", a & b)) for name, n in part.items()})


def tfidf(train: Sequence[Text], test: Sequence[Text], limit: int = 300_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse float64[documents, features], rows of length 1; vocabulary (`limit` most frequent) and idf from `train`."""
    counts = [features(text) for text in train]
    documents = Counter(name for c in counts for name in c)
    column = {name: i for i, (name, _) in enumerate(documents.most_common(limit))}
    df = np.array([documents[name] for name in column], np.float64)
    idf = np.log((1 + len(train)) / (1 + df)) + 1
    return _rows(counts, column, idf), _rows((features(text) for text in test), column, idf)


def _rows(counts: Iterable[Counter[str]], column: dict[str, int], idf: np.ndarray) -> torch.Tensor:
    at: list[tuple[int, int]] = []
    values: list[np.ndarray] = []
    documents = 0
    for documents, count in enumerate(counts, 1):
        known = [(column[name], n) for name, n in count.items() if name in column]
        row = np.array([n * idf[i] for i, n in known])
        values.append(row / (np.sqrt((row**2).sum()) if len(row) else 1.0))
        at += [(documents - 1, i) for i, _ in known]
    index = torch.tensor(at, dtype=torch.int64).reshape(-1, 2).T
    flat = torch.from_numpy(np.concatenate([*values, np.zeros(0)]))
    return torch.sparse_coo_tensor(index, flat, (documents, len(column)), check_invariants=False).coalesce()


def logistic(x: torch.Tensor, y: np.ndarray, x_test: torch.Tensor, classes: int) -> np.ndarray:
    """int64[test documents]: classes by multinomial logistic regression, squared weights / 2 added to the summed loss."""
    target = torch.nn.functional.one_hot(torch.from_numpy(y), classes).double()
    # Two softmax columns halve the penalty of the one weight vector that two classes need: hence the factor.
    weight, bias = _fit(x, target, penalty=2.0 if classes == 2 else 1.0, softmax=True)
    return (torch.sparse.mm(x_test, weight) + bias).argmax(1).numpy()


def ridge(x: torch.Tensor, y: np.ndarray, x_test: torch.Tensor) -> np.ndarray:
    """float64[test documents]: least squares with squared weights added, the mean left free."""
    weight, bias = _fit(x, torch.from_numpy(y)[:, None], penalty=1.0, softmax=False)
    return (torch.sparse.mm(x_test, weight) + bias)[:, 0].numpy()


def _fit(x: torch.Tensor, target: torch.Tensor, penalty: float, softmax: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [features, outputs] and bias [outputs] at the minimum, by L-BFGS with the gradient written out."""
    weight = torch.zeros(x.shape[1], target.shape[1], dtype=torch.float64, requires_grad=True)
    bias = target.mean(0).clone().requires_grad_()
    across = x.t().coalesce()
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=300, history_size=10, tolerance_grad=1e-5, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    @torch.no_grad()
    def loss() -> torch.Tensor:
        output = torch.sparse.mm(x, weight) + bias
        if softmax:
            log_p = output.log_softmax(1)
            value, slope = -(target * log_p).sum(), log_p.exp() - target
        else:
            slope = output - target
            value = slope.square().sum() / 2
        weight.grad = torch.sparse.mm(across, slope) + penalty * weight
        bias.grad = slope.sum(0)
        return value + penalty * weight.square().sum() / 2

    search.step(loss)
    return weight.detach(), bias.detach()

"""Baselines against scikit-learn on text where neither is perfect."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from ziggurat.errors import UserError
from ziggurat.evaluate.answer_scores import answer_metric
from ziggurat.evaluate.baselines import baselines, features, logistic, predict, ridge, tfidf
from ziggurat.evaluate.scores import CHOSEN


def corpus(n: int, classes: int, seed: int, chinese: bool = False) -> tuple[list[str], list[str]]:
    """Noisy topics: each word is of the document's own topic with chance 0.25."""
    rng = random.Random(seed)
    if chinese:
        words = [chr(0x4E00 + i) for i in range(200)]
    else:
        words = [f"word{i}" if i % 2 else f"größe{i}" for i in range(400)]
    texts, labels = [], []
    for _ in range(n):
        y = rng.randrange(classes)
        own = words[y::classes][:20]
        picked = [rng.choice(own) if rng.random() < 0.25 else rng.choice(words) for _ in range(rng.randint(3, 15))]
        texts.append("".join(picked) if chinese else ", ".join(picked).capitalize() + ".")
        labels.append(f"topic {y}")
    return texts, labels


@pytest.mark.parametrize(("classes", "chinese"), [(2, False), (5, False), (3, True)])
def test_logistic_regression_agrees_with_sklearn(classes: int, chinese: bool) -> None:
    train, y = corpus(250, classes, 0, chinese)
    test, gold = corpus(250, classes, 1, chinese)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), analyzer="char" if chinese else "word")
    theirs = LogisticRegression(max_iter=1000, tol=1e-8).fit(vectorizer.fit_transform(train), y)
    expected = theirs.predict(vectorizer.transform(test))
    guess = predict("classify", train, y, test)["TF-IDF + logistic regression"]
    assert np.mean(np.array(guess) == expected) > 0.99
    score = baselines("classify", train, y, test, gold, "accuracy")
    assert score["TF-IDF + logistic regression"] == pytest.approx(np.mean(expected == gold), abs=0.01)
    assert score["majority"] < score["TF-IDF + logistic regression"] < 1
    majority = max(set(y), key=y.count)
    assert score["majority"] == np.mean([g == majority for g in gold])


def test_weights_solve_the_same_problem_as_sklearn() -> None:
    train, y = corpus(120, 3, 2)
    test, _ = corpus(60, 3, 3)
    x, x_test = tfidf(train, test)
    as_scipy = [coo_matrix((m.values(), m.indices().numpy()), shape=m.shape).tocsr() for m in (x, x_test)]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    reference = vectorizer.fit_transform(train)
    assert np.allclose((as_scipy[0] @ as_scipy[0].T).toarray(), (reference @ reference.T).toarray())
    assert np.allclose((as_scipy[1] @ as_scipy[0].T).toarray(), (vectorizer.transform(test) @ reference.T).toarray())
    numbers = np.array([int(label[-1]) for label in y])
    theirs = LogisticRegression(max_iter=1000, tol=1e-8).fit(reference, numbers)
    assert (logistic(x, numbers, x_test, 3) == theirs.predict(vectorizer.transform(test))).all()
    values = numbers + np.array([len(t) for t in train]) / 50
    expected = Ridge().fit(reference, values).predict(vectorizer.transform(test))
    assert np.allclose(ridge(x, values, x_test), expected, atol=1e-3)


def test_regression_rows() -> None:
    train, y = corpus(150, 2, 4)
    values = [float(label[-1]) for label in y]
    score = baselines("regress", train, values, train, values, "mse")
    assert score["mean"] == pytest.approx(np.var(values))
    assert score["TF-IDF + ridge"] < score["mean"] / 2
    assert np.isnan(baselines("regress", train, values, train, values, "pearson")["mean"])


def test_most_frequent_label_of_each_word() -> None:
    words = [["a", "b", "c"], ["a", "b"], ["a", "d"]]
    tags = [["X", "O", "O"], ["X", "X"], ["O", "O"]]
    test, gold = [["a", "b", "new", "d"]], [["X", "O", "O", "O"]]
    guess = predict("tag", words, tags, test)
    assert guess == {"majority": [["O"] * 4], "most frequent label": [["X", "O", "O", "O"]]}
    assert baselines("tag", words, tags, test, gold, "token_accuracy") == {"majority": 0.75, "most frequent label": 1.0}


def test_features_of_chinese_and_of_pairs() -> None:
    assert set(features("我爱BERT模型 a b")) == {"我", "爱", "bert", "模", "型", "我 爱", "爱 bert", "bert 模", "模 型"}
    pair = features(("good film", "bad film"))
    assert pair["a|film"] == pair["b|film"] == pair["both|film"] == 1
    assert "both|good" not in pair


def test_pairs_need_both_sides() -> None:
    """Label = do the two sides share a word: no single side knows it."""
    rng = random.Random(0)
    rows = []
    for _ in range(400):
        a, b = rng.sample([f"w{i}" for i in range(30)], 2)
        same = rng.random() < 0.5
        rows.append(((a, a if same else b), "same" if same else "other"))
    texts, labels = [r[0] for r in rows], [r[1] for r in rows]
    score = baselines("classify", texts[:300], labels[:300], texts[300:], labels[300:], "accuracy")
    assert score["TF-IDF + logistic regression"] > 0.75


def test_odd_inputs() -> None:
    assert predict("classify", ["one"], ["x"], ["two", ""]) == {"majority": ["x"] * 2, "TF-IDF + logistic regression": ["x"] * 2}
    assert predict("classify", ["", "?"], [0, 1], ["!"])["majority"] == [0]
    with pytest.raises(UserError, match="empty"):
        predict("classify", [], [], ["x"])
    with pytest.raises(UserError, match="metric 'mse' is for 'regress'"):
        baselines("classify", ["a"], [0], ["b"], [0], "mse")
    with pytest.raises(UserError, match="sentence 0 has 2 words but 1"):
        predict("tag", [["a", "b"]], [["O"]], [])


def test_two_thousand_documents_take_seconds() -> None:
    train, y = corpus(2000, 2, 5)
    start = time.perf_counter()
    predict("classify", train, y, train[:500])
    assert time.perf_counter() - start < 10


def test_baselines_of_questions() -> None:
    train = [("who came?", "Ann came. Bob left."), ("who left?", "Ann came. Bob left.")]
    test = [("who sang a song?", "Eve slept. Ada sang a song. Bo ran."), ("谁唱歌？", "李白喝酒。杜甫唱歌。")]
    guesses = predict("question_answering", train, [[], []], test)
    assert guesses["majority"] == ["", ""]
    assert guesses["most similar sentence"] == ["Ada sang a song.", "杜甫唱歌。"]
    assert predict("question_answering", train, [["Ann"], ["Ann"]], test)["majority"] == ["Ann", "Ann"]
    found = baselines("question_answering", train, [[], []], test, [[], ["杜甫"]], answer_metric("squad_em"))
    assert found == {"majority": 0.5, "most similar sentence": 0.0}


def test_baselines_of_choices() -> None:
    train = [("what is red?", ["the sky", "red paint", "x"]), ("what runs?", ["a dog", "a stone"])]
    test = [("what is a red thing?", ["a blue thing", "blood"]), ("who?", ["I", "you and I"])]
    guesses = predict("multiple_choice", train, [2, 0], test)
    assert guesses["longest choice"] == [0, 1] and guesses["most similar choice"] == [0, 0]
    assert predict("multiple_choice", train, [[2, 1], 1], test)["majority"] == [1, 1]
    assert (
        baselines("multiple_choice", train, [2, 2], test, [[0, 1], 1], CHOSEN)["majority"] == 0.5
    )  # the third is not there: the first

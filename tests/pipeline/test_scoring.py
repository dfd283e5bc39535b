"""Answers on test rows against the files they were read from."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from seqeval.metrics import f1_score

import ziggurat as zg
from conftest import WORDS
from ziggurat.evaluate.heldout import Predictions
from ziggurat.objectives.labelled import Tag
from ziggurat.pipeline.run import run

TAGS = """\
name: tags
system: bert/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 64}
tokenizer: {kind: wordpiece, vocab: 400, lowercase: true}
sources:
  general: {path: general.txt, txt: line, valid: 0.1}
  task: {path: tags.jsonl, valid: 0.2, test: tags-test.jsonl, columns: {tokens: words, tags: tags}}
defaults: {length: 12, precision: fp32, batch: {documents: 8}, optim: {lr: 1e-2}}
stages:
  - {stage: pretrain, data: general, objective: {kind: mlm}, steps: 3}
  - {stage: finetune, data: task, objective: {kind: tag, labels: [O, B-X], metric: span_f1}, epochs: 6, dropout: 0.0}
worth: false
"""


@pytest.fixture
def tagged(world: Path) -> list[dict[str, list[str]]]:
    """The test rows; in each the second and the last word is an entity, and the last one stands behind `length`."""
    draw, words = random.Random(0), WORDS.split()
    rows = [[draw.choice(words), "Thing", *draw.choices(words, k=14), "Thing"] for _ in range(60)]
    made = [{"words": row, "tags": ["B-X" if w == "Thing" else "O" for w in row]} for row in rows]
    test = made[:6]
    test[1] = {"words": ["-".join(words[:6] * 3), "Thing"], "tags": ["O", "B-X"]}  # no whole word of it is read
    test[2] = {"words": [words[0], "\ufffd", "Thing"], "tags": ["O", "O", "B-X"]}  # the tokenizer drops the second
    for name, some in (("tags.jsonl", made[6:]), ("tags-test.jsonl", test)):
        (world / name).write_text("".join(json.dumps(row) + "\n" for row in some), "utf-8")
    (world / "tags.yaml").write_text(TAGS, "utf-8")
    return test


def test_words_that_are_not_read_count_in_the_score(tagged: list[dict[str, list[str]]]) -> None:
    folder = run("tags.yaml")
    kept = json.loads((folder / "finetune/predictions.json").read_text("utf-8"))
    assert kept["gold"] == [row["tags"] for row in tagged]
    given = kept["predicted"]
    assert [len(row) for row in given] == [len(row["words"]) for row in tagged]
    assert given[0][1] == "B-X" and given[0][-1] == "O" and given[1] == ["O", "O"] and given[2] == ["O", "O", "B-X"]
    score = f1_score(kept["gold"], given)
    objective = Tag.model_validate({"labels": ["O", "B-X"], "metric": "span_f1"})
    assert Predictions(kept["gold"], given).score(objective) == pytest.approx(score) and 0.4 < score < 0.8
    assert zg.score(folder / "finetune", "tags.yaml")["task/span_f1"] == pytest.approx(score)
    said = json.loads((folder / "report.json").read_text("utf-8"))
    assert str(round(100 * score, 1)) in json.dumps(said) or f"{score:.4f}"[:5] in json.dumps(said)
    (row,) = zg.load(folder / "finetune").predict([tagged[2]["words"]])  # the front door answers alike
    assert row == list(zip(tagged[2]["words"], given[2]))
    answers = {
        **kept,
        "documents": kept["documents"].removesuffix("/words"),
    }  # as a version wrote them that scored what was read alone
    (folder / "finetune/predictions.json").write_text(json.dumps({**answers, "predicted": [["B-X"]] * 6}), "utf-8")
    run("tags.yaml")
    assert json.loads((folder / "finetune/predictions.json").read_text("utf-8")) == kept

"""How one task is put to one checkpoint: by the names of its classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from ziggurat.nn import spec
from ziggurat.objectives.labelled import Labels
from ziggurat.pipeline.opened import Opened, open_checkpoint
from ziggurat.pipeline.suite_files import load_suite
from ziggurat.pipeline.suite_question import CannotAsk, question
from ziggurat.pipeline.suites import evaluate_suite

SUITE = """\
suite: asked
seeds: 1
defaults: {epochs: 1, length: 32, batch: {documents: 8}, optim: {lr: 1e-3}, precision: fp32}
tasks:
  opinions:
    local: {path: train.jsonl, test: test.jsonl, columns: {text: sentence, label: label}}
    objective: {kind: classify, labels: [neg, pos]}
    zero_shot: true
  words:
    local: {path: tags.jsonl, test: tags-test.jsonl, columns: {tokens: words, tags: tags}}
    objective: {kind: tag, labels: [O, B-X, I-X], metric: span_f1}
    zero_shot: true
"""


@pytest.fixture
def suite(world: Path) -> Path:
    path = world / "asked.yaml"
    path.write_text(SUITE, "utf-8")
    for name in ("tags.jsonl", "tags-test.jsonl"):
        (world / name).write_text('{"words": ["river", "stone", "by"], "tags": ["B-X", "I-X", "O"]}\n', "utf-8")
    return path


def asked(suite: Path, name: str, opened: Opened, *options: str) -> Any:
    return question(load_suite(suite, options), name, "it", opened).trained


def test_untrained_classes_are_found_by_their_names(suite: Path, finished: Path) -> None:
    """In whatever order the suite has its labels, the answers are the same; the second label is still the suite's."""
    said, scores = [], []
    for labels in ("[neg, pos]", "[pos, neg]"):
        options = [f"tasks.opinions.objective={{kind: classify, labels: {labels}, metric: f1}}", "only=[opinions]"]
        found = evaluate_suite([finished / "runs/small/finetune"], suite, options).tasks[0].of("finetune")
        assert found is not None
        kept = json.loads((Path(found.folders[0]) / "result.json").read_text("utf-8"))
        said.append((kept["ids"], kept["gold"], kept["predicted"]))
        scores.append(f1_score(kept["gold"], kept["predicted"], pos_label=labels[-4:-1]))
        assert found.mean == pytest.approx(scores[-1])
    assert said[0] == said[1] and scores[0] != scores[1]


@pytest.mark.parametrize(
    ("classes", "objective", "order"),
    [
        ("pos neg", "{labels: [neg, pos]}", "pos neg"),
        ("good bad", "{labels: [neg, pos], names: [bad, good]}", "pos neg"),
        ("pos neg", "{labels: [neg, pos], names: [bad, good]}", "pos neg"),  # the column's own values
        ("", "{labels: [neg, pos]}", "neg pos"),
        ("LABEL_1 LABEL_0", "{labels: [neg, pos]}", "neg pos"),
        ("pos neg", "{labels: [neg, pos], names: [label_0, label_1]}", "neg pos"),
    ],
)
def test_the_order_in_which_a_head_is_asked(classes: str, objective: str, order: str, suite: Path, finished: Path) -> None:
    opened = replace(open_checkpoint(finished / "runs/small/finetune"), labels=tuple(classes.split()))
    change = f"tasks.opinions.objective={{kind: classify, {objective[1:]}"
    found = asked(suite, "opinions", opened, change)
    names = dict(zip(("neg", "pos"), load_suite(suite, [change]).tasks["opinions"].objective.label_names()))  # type: ignore[union-attr]
    assert found.labels == tuple(order.split()) and found.label_names() == tuple(names[label] for label in found.labels)


def test_tags_too_and_other_classes_are_said(suite: Path, finished: Path) -> None:
    opened = open_checkpoint(finished / "runs/small/finetune")
    network = opened.network.model_copy(update={"heads": {"tag": spec.TokenHead(outputs=3)}})
    tagger = replace(opened, network=network, labels=("I-X", "O", "B-X"))
    found = asked(suite, "words", tagger)
    assert isinstance(found, Labels) and found.labels == ("I-X", "O", "B-X")
    with pytest.raises(CannotAsk, match=r"classes are \['I-Y', 'O', 'B-Y'\], the task's \['O', 'B-X', 'I-X'\]"):
        asked(suite, "words", replace(tagger, labels=("I-Y", "O", "B-Y")))
    with pytest.raises(CannotAsk, match=r"classes are \['NEG', 'POS'\], the task's \['neg', 'pos'\]"):
        asked(suite, "opinions", replace(opened, labels=("NEG", "POS")))
    trained = asked(suite, "opinions", replace(opened, labels=("NEG", "POS")), "tasks.opinions.zero_shot=false")
    assert trained.labels == ("neg", "pos")

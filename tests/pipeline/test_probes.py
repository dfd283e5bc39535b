"""Probes of general tasks before and after a stage, against features made one text at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import RECIPE
from ziggurat.errors import UserError
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import load_recipe, run

STAGES = """\
stages:
  - {stage: pretrain, data: general, steps: 6}
  - stage: dapt
    data: domain
    steps: 8
    optim: {lr: 5e-2}
    forgetting: {tasks: {task: {kind: classify, labels: [neg, pos]}}}
worth: false
"""


def write(stages: str = STAGES, **replaced: str) -> Path:
    text = RECIPE[: RECIPE.index("stages:")] + stages
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    Path("probed.yaml").write_text(text, "utf-8")
    return Path("probed.yaml")


def slow(folder: Path) -> float:
    """Mean accuracy of logistic regression over five folds, three times, on the mean hidden vector of each test text by itself."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import RepeatedStratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = [json.loads(line) for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    with torch.no_grad():
        x = [network(**tokenizer(r["sentence"], return_tensors="pt", truncation=True, max_length=32))[0][0].mean(0) for r in rows]
    features, labels = torch.stack(x).double().numpy(), np.array([r["label"] for r in rows])
    scores = []
    for fit, held in RepeatedStratifiedKFold(n_splits=5, n_repeats=3, random_state=0).split(features, labels):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(features[fit], labels[fit])
        scores.append(float((model.predict(features[held]) == labels[held]).mean()))
    return float(np.mean(scores))


def test_the_probe_before_and_after_a_stage_is_the_one_done_by_hand(world: Path) -> None:
    pytest.importorskip("transformers")
    folder = run(write())
    found = json.loads((folder / "dapt" / "probes.json").read_text("utf-8"))["found"]["task"]
    asked = json.loads((folder / "dapt" / "probes.json").read_text("utf-8"))["asked"]
    assert found["rows"] == 20 and found["change"] == pytest.approx(found["after"] - found["before"])
    for when, stage in (("before", "pretrain"), ("after", "dapt")):
        assert found[when] == pytest.approx(slow(folder / stage / "hf"), abs=0.02), when  # a fold's row may sit on the border
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["stages"][1]["probes"]["task"] == found and not report["stages"][0]["probes"]
    assert "Probes: the score of a linear model" in (folder / "report.html").read_text("utf-8")
    changed = run(write(**{"labels: [neg, pos]}": "labels: [neg, pos], metric: f1}"}))  # another question of a stage that is done
    assert json.loads((changed / "dapt" / "probes.json").read_text("utf-8"))["asked"] != asked
    # the rows probed on are held out: no stage trains on them, and they are measured whatever else is
    assert {p.name for p in (folder / "shards" / "task").iterdir() if p.is_dir()} == {"test"}


def test_a_stage_that_changes_nothing_loses_nothing(world: Path) -> None:
    folder = run(write(**{"optim: {lr: 5e-2}": "optim: {lr: 1e-12}"}))
    found = json.loads((folder / "dapt" / "probes.json").read_text("utf-8"))["found"]["task"]
    assert found["change"] == 0 and found["before"] == found["after"]


def test_a_tokenizer_with_new_tokens_reads_the_rows_in_its_own_way(world: Path) -> None:
    folder = run(
        write(**{"    steps: 8": "    steps: 8\n    vocabulary: {extend: 3, min_frequency: 2}", "vocab: 400": "vocab: 120"})
    )
    found = json.loads((folder / "dapt" / "probes.json").read_text("utf-8"))["found"]["task"]
    assert 0 <= found["after"] <= 1 and found["rows"] == 20
    assert open_checkpoint(folder / "dapt").network.model.vocab > open_checkpoint(folder / "pretrain").network.model.vocab


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("tasks: {task:", "tasks: {tsk:", "unknown source 'tsk'"),
        ("tasks: {task:", "tasks: {general:", "declares no labels"),
        ("{kind: classify, labels: [neg, pos]}", "{kind: mlm}", "a linear probe answers classify, regress and tag, not 'mlm'"),
        (", test: test.jsonl", "", "holds no rows out"),
    ],
)
def test_what_cannot_be_probed_is_said_in_the_recipe(world: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(write(**{old: new}))
    assert said in f"{error.value}"

"""The best evaluation from recipe to report: what a stage hands on, what says so, and that test rows never choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import RECIPE
from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError
from ziggurat.log import read_metrics
from ziggurat.pipeline import scoring
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import load_recipe, run
from ziggurat.train.job import trained

HEAD = RECIPE[: RECIPE.index("stages:")].replace("train.jsonl,", "train.jsonl, valid: 0.2,")
STAGES = """\
stages:
  - {stage: pretrain, data: general, steps: 3}
  - {stage: dapt, data: domain, steps: 8, lora: {rank: 2}, interpolate: 0.5, evaluate: {every: 2, keep: best}}
  - stage: finetune
    data: task
    objective: {kind: classify, labels: [neg, pos]}
    steps: 12
    batch: {documents: 8}
    evaluate: {every: 2, by: accuracy, patience: 2}
worth: false
"""


def outcome(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text("utf-8"))
    return found


def test_from_recipe_to_report(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers are written down beforehand, for a few steps of a tiny model say little; they are those of the stage's own source alone."""
    (world / "best.yaml").write_text(HEAD + STAGES, "utf-8")
    script = {"dapt": [5.0, 4.0, 2.0, 3.0, 2.0], "finetune": [0.5, 0.7, 0.6, 0.7, 0.9, 0.9]}
    read: dict[str, set[str]] = {}
    real, first = scoring.Scorer.losses, scoring.leading
    now = ""

    def leading(shards: Any, tokens: int) -> Any:
        read.setdefault(now, set()).add("/".join(Path(shards.folder).parts[-2:]))
        return first(shards, tokens)

    def losses(self: scoring.Scorer, network: Any, own: Any, stage: Any, dtype: Any) -> dict[str, dict[str, float]]:
        nonlocal now
        now = stage.title
        found = real(self, network, own, stage, dtype)
        if script.get(now):
            source, name = {"dapt": ("domain", "mlm"), "finetune": ("task", "classify_accuracy")}[now]
            assert name in found[source]
            found[source][name] = script[now].pop(0)
        return found

    monkeypatch.setattr(scoring, "leading", leading)
    monkeypatch.setattr(scoring.Scorer, "losses", losses)
    run("best.yaml")
    runs = world / "runs/small"
    dapt, tuned = outcome(runs / "dapt"), outcome(runs / "finetune")
    assert (dapt["steps"], dapt["ended"], dapt["stopped"], dapt["score"]) == (
        4,
        8,
        "best",
        2.0,
    )  # the first number is the start's
    assert (tuned["steps"], tuned["ended"], tuned["stopped"], tuned["score"]) == (4, 8, "patience", 0.7)
    said = [
        n["heldout/task/classify_accuracy"] for n in read_metrics(runs / "finetune/metrics.jsonl") if "heldout/task/classify" in n
    ]
    assert said == [0.5, 0.7, 0.6, 0.7]
    assert read["finetune"] == {"task/valid"} and "domain/valid" in read["dapt"] and "domain/test" not in read["dapt"]

    opened = open_checkpoint(runs / "dapt")  # between the start and the best evaluation, not the last step
    start, kept = (checkpoints.load(p).tensors for p in (runs / "pretrain/step-00000003", trained(runs / "dapt", 4)))
    name = "model.blocks.0.attention.q.weight"
    assert not torch.equal(start[name], kept[name]) and trained(runs / "dapt", 4).parent.name == "within"
    torch.testing.assert_close(opened.tensors[name], 0.5 * start[name] + 0.5 * kept[name])
    last = opened.lineage[-1]
    assert (last["steps"], last["interpolated"]) == (4, 0.5)
    assert last["ended"] == {"why": "best", "trained": 8, "by": "loss", "score": 2.0}
    newest = open_checkpoint(runs / "finetune").lineage
    assert [entry["steps"] for entry in newest] == [3, 4, 4] and newest[-1]["ended"]["why"] == "patience"

    notes = [
        "dapt: its result are the weights of step 4 of 8, the best evaluation (loss 2.000)",
        "finetune: no improvement for 2 evaluations, up to step 8; its result are the weights of step 4 (accuracy 0.700)",
    ]
    report = json.loads((runs / "report.json").read_text("utf-8"))
    assert report["notes"] == notes and [s["stopped"] for s in report["stages"]] == ["", "best", "patience"]
    page, printed = (runs / "report.html").read_text("utf-8"), " ".join(capsys.readouterr().out.split())
    assert all(note in page and note in printed for note in notes)


def test_mistakes(world: Path) -> None:
    (world / "best.yaml").write_text(HEAD + STAGES, "utf-8")
    wrong = {
        "stages.finetune.evaluate.every=null": "`patience: 2` chooses among evaluations; say how often there is one",
        "stages.finetune.evaluate.keep=last": "patience hands on the best weights, not the last",
        "stages.finetune.evaluate.by=acuracy": "`by: acuracy` is no held-out number of 'classify'; did you mean 'accuracy'",
        "stages.finetune.evaluate.patience=0": "patience",
        "sources.task.valid=null": r"`patience: 2` needs rows to choose by, and source 'task' has no `valid` ones; give it `valid: file`",
        "stages.pretrain.evaluate.by=accuracy": "`by: accuracy` chooses nothing where the last weights are handed on; set keep: best",
    }
    for override, message in wrong.items():
        with pytest.raises(UserError, match=message):
            load_recipe("best.yaml", [override])
    with pytest.raises(UserError, match=r"best.yaml:\d+.*stages.finetune.evaluate"):
        load_recipe("best.yaml", ["sources.task.valid=null"])
    found = load_recipe("best.yaml", ["stages.finetune.evaluate={every: 2, patience: 1}"])
    assert [s.evaluate.keep for s in found.stages] == ["last", "best", "best"] and found.resolved() == found


def test_nothing_was_held_out(world: Path) -> None:
    """A share of few documents may be none of them; losses are then measured on test text, which must not choose."""
    (world / "few.txt").write_text("a river and a stone\na window and a garden\n", "utf-8")
    text = HEAD.replace("{path: domain.txt, txt: line, valid: 0.1}", "{path: few.txt, txt: line, test: general.txt}")
    stages = "stages:\n  - {stage: pretrain, data: domain, steps: 2, evaluate: {every: 1, keep: best}}\n"
    (world / "few.yaml").write_text(text + stages, "utf-8")
    with pytest.raises(UserError, match="needs rows to choose by, and none of source 'domain' are held out"):
        run("few.yaml")

"""ELECTRA through whole runs: the generator trains in the text stages and stays behind in a fine-tuning; resumed runs are exact."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError
from ziggurat.log import read_metrics
from ziggurat.nn import halves, spec
from ziggurat.pipeline.evaluate import evaluate_checkpoint
from ziggurat.pipeline.model import load
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import load_recipe, run
from ziggurat.train import loop

HEAD = """\
name: halves
system: electra/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 64, embedding: 24, generator_width: 16, generator_heads: 2}
tokenizer: {kind: wordpiece, vocab: 400, lowercase: true}
sources:
  general: {path: general.txt, txt: line, valid: 0.1}
  domain: {path: domain.txt, txt: line, valid: 0.1}
  task: {path: train.jsonl, test: test.jsonl, columns: {text: sentence, label: label}}
defaults: {length: 32, batch: {tokens: 256}, precision: fp32, steps: 4, save: {every: 2}, evaluate: {tokens: 400}, log_every: 1}
stages:
"""
PRETRAIN = "  - {stage: pretrain, data: general, optim: {lr: 1e-3}, accumulate: 2}\n"
DAPT = "  - {stage: dapt, data: domain, objective: {kind: mlm}}\n"
TUNE = "  - {stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, steps: 3, optim: {lr: 1e-9}}\n"


def recipe(stages: str) -> Path:
    worth = "worth: {seeds: [0]}\n" if "finetune" in stages else ""
    Path("halves.yaml").write_text(HEAD + stages + worth, "utf-8")
    return Path("halves.yaml")


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Keep(logging.INFO), logging.getLogger("ziggurat")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(before)
    logger.removeHandler(handler)


def test_the_generator_stays_behind(world: Path, said: list[str]) -> None:
    folder = run(recipe(PRETRAIN + "  - {stage: dapt, data: domain}\n" + TUNE))
    before, dapt, tuned = (open_checkpoint(folder / stage) for stage in ("pretrain", "dapt", "finetune"))
    assert isinstance(before.network.model, spec.Adversaries) and set(dapt.network.heads) == {"lm", "rtd"}
    assert dapt.network.model == before.network.model  # the next text stage goes on with both
    assert tuned.network.model == before.network.model.discriminator and set(tuned.network.heads) == {"classify"}
    start = halves.discriminator(dapt.network, dapt.tensors).tensors
    body = [name for name in tuned.tensors if name.startswith("model.")]
    assert set(body) == {name for name in start if name.startswith("model.")}
    assert all(torch.allclose(tuned.tensors[name], start[name], atol=1e-6) for name in body)  # at a rate of nearly 0
    assert "finetune: starts from the discriminator alone; the generator is left behind" in said
    assert not any(line.startswith("dapt: starts from the discriminator") for line in said)

    last = read_metrics(folder / "dapt/metrics.jsonl")[-1]
    numbers = {key.removeprefix("heldout/domain/"): v for key, v in last.items() if key.startswith("heldout/domain/")}
    assert {"lm", "lm_accuracy", "rtd", "rtd_accuracy"} <= set(numbers) and 0 < numbers["rtd_accuracy"] < 1
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert [s["name"] for s in report["stages"]] == ["pretrain", "dapt", "finetune"]
    assert report["stages"][0]["heldout"]["general"]["loss"] == report["stages"][0]["heldout"]["general"]["lm"]
    assert [p["name"] for p in report["worth"]["prefixes"]] == ["scratch", "+pretrain", "+dapt"]

    assert open_checkpoint(folder / "pretrain/hf").network.heads == {"rtd": spec.ReplacedHead()}
    filled = load(folder / "pretrain").fill("river [MASK] stone", top=3)
    assert len(filled) == 1 and len(filled[0]) == 3
    half = halves.generator(before.network, before.tensors)
    assert torch.equal(load(folder / "pretrain").filler.state_dict()["heads.lm.bias"], half.tensors["heads.lm.bias"])
    assert set(load(folder / "finetune").probabilities(["a wonderful river"])[0]) == {"neg", "pos"}
    scores = evaluate_checkpoint(folder / "pretrain", "halves.yaml")
    assert scores["domain/lm"] > 0 and scores["domain/rtd"] > 0


def test_masked_lm_after_it_trains_the_discriminator_with_a_fresh_head(world: Path, said: list[str]) -> None:
    folder = run(recipe(PRETRAIN + DAPT + TUNE))
    dapt = open_checkpoint(folder / "dapt")
    assert isinstance(dapt.network.model, spec.Single) and dapt.network.model.width == 32
    assert dapt.tensors["heads.lm.dense.weight"].shape == (24, 32)  # the generator's would be 24 x 16
    assert any(line.startswith("dapt: fresh weights for heads.lm") for line in said)
    assert any(key == "heldout/domain/mlm" for key in read_metrics(folder / "dapt/metrics.jsonl")[-1])
    assert open_checkpoint(folder / "dapt/hf").network.model == dapt.network.model


def test_starts_from_folders(world: Path, tmp_path: Path) -> None:
    """A checkpoint of both halves from elsewhere gives both, its export the discriminator."""
    folder = run(recipe(PRETRAIN))
    text = HEAD.replace("electra/tiny", "electra").replace("name: halves", "name: more")
    text = "".join(line for line in text.splitlines(True) if not line.startswith(("model:", "tokenizer:")))
    for name, start in ("ours", folder / "pretrain"), ("theirs", folder / "pretrain/hf"):
        stages = TUNE.replace("{stage", f"{{init: {start}, stage")
        Path("more.yaml").write_text(text + stages + "worth: false\n", "utf-8")
        tuned = open_checkpoint(run("more.yaml", [f"name={name}"]) / "finetune")
        before = open_checkpoint(folder / "pretrain")
        assert tuned.network.model == halves.discriminator(before.network, {}).network.model
    stages = PRETRAIN.replace("{stage", f"{{init: {folder}/pretrain, stage")
    Path("more.yaml").write_text(text + stages, "utf-8")
    assert isinstance(open_checkpoint(run("more.yaml", ["name=on"]) / "pretrain").network.model, spec.Adversaries)
    Path("more.yaml").write_text(text + stages.replace("/pretrain,", "/pretrain/hf,"), "utf-8")
    with pytest.raises(UserError, match="rtd is for models of structure adversaries, this one is single"):
        run("more.yaml", ["name=half"])


def test_what_was_left_behind_does_not_come_back(world: Path) -> None:
    again = PRETRAIN.replace("{stage: pretrain", "{stage: pretrain, name: again")
    with pytest.raises(UserError, match="rtd is for models of structure adversaries, this one is single"):
        load_recipe(recipe(PRETRAIN + DAPT + again))
    load_recipe(recipe(PRETRAIN + DAPT + again.replace("name: again", "name: again, init: pretrain")))
    with pytest.raises(UserError, match="rtd is for models of structure adversaries"):
        load_recipe(recipe(PRETRAIN), ["system=bert/tiny", "model={}", "stages.pretrain.objective={kind: rtd}"])


def test_a_killed_run_goes_on_with_the_same_bits(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of the generator included: they hang on the documents, not on a generator of random numbers."""

    class Killed(BaseException):
        pass

    straight = run(recipe(PRETRAIN), ["name=straight"])
    real, left = loop.backward, [4]

    def backward(*args: Any) -> dict[str, float]:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return real(*args)

    monkeypatch.setattr(loop, "backward", backward)
    with pytest.raises(Killed):
        run(recipe(PRETRAIN), ["name=killed"])
    again = run(recipe(PRETRAIN), ["name=killed"])
    one, two = (checkpoints.at(f / "pretrain", 4) / "model.safetensors" for f in (straight, again))
    assert one.read_bytes() == two.read_bytes()
    losses = [[line["rtd"] for line in read_metrics(f / "pretrain/metrics.jsonl") if "rtd" in line] for f in (straight, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 4

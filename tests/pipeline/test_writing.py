"""A recipe that fine-tunes a model to write: it runs, is scored on what it wrote, and writes through Python and the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import ziggurat as zg
from conftest import WORDS, sentence
from ziggurat.evaluate.text_scores import text_metric
from ziggurat.pipeline.evaluate import evaluate_checkpoint
from ziggurat.pipeline.run import load_recipe, run
from ziggurat.pipeline.tryout import try_checkpoint

RECIPE = """\
name: writer
system: gpt2/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 64}
tokenizer: {kind: bpe, vocab: 400}
sources:
  general: {path: general.txt, txt: line, valid: 0.1}
  task: {path: pairs.jsonl, test: pairs.test.jsonl, columns: {text: long, pair: short}}
defaults: {length: 64, precision: fp32, optim: {lr: 3e-3}, save: {every: null}, batch: {tokens: 512}}
stages:
  - {stage: pretrain, data: general, steps: 4}
  - {stage: finetune, data: task, objective: {kind: seq2seq, target: 12, generate: {most: 10, beams: 2}}, epochs: 8, batch: {documents: 8}}
worth: {seeds: [0]}
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world in which the short text is the first word of the long one."""
    import contextlib

    folder, draw = tmp_path_factory.mktemp("writer"), random.Random(0)
    (folder / "general.txt").write_text("".join(sentence(draw) + "\n" for _ in range(60)), "utf-8")
    for name, count in (("pairs.jsonl", 60), ("pairs.test.jsonl", 9)):
        rows = [" ".join(draw.choice(WORDS.split()) for _ in range(6)) for _ in range(count)]
        text = "".join(json.dumps({"long": row, "short": row.split()[0] + " it is"}) + "\n" for row in rows)
        (folder / name).write_text(text, "utf-8")
    (folder / "writer.yaml").write_text(RECIPE, "utf-8")
    with contextlib.chdir(folder):
        run("writer.yaml")
    return folder


def test_the_score_is_that_of_what_it_wrote(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written)
    kept = json.loads(Path("runs/writer/finetune/predictions.json").read_text("utf-8"))
    rows = [json.loads(line) for line in Path("pairs.test.jsonl").read_text("utf-8").splitlines()]
    assert kept["gold"] == [row["short"] for row in rows]  # as they were before any tokenizer
    report = json.loads(Path("runs/writer/report.json").read_text("utf-8"))
    ledger = report["worth"]
    assert ledger["metric"] == "rouge_l" and ledger["test_examples"] == 9
    score = text_metric("rouge_l")(kept["gold"], kept["predicted"])
    assert ledger["prefixes"][-1]["scores"]["0"] == pytest.approx(score) and score > 0.3  # "it is" at least
    copy = text_metric("rouge_l")(kept["gold"], [row["long"] for row in rows])
    assert ledger["baselines"]["copy of the source"] == pytest.approx(copy)
    assert set(ledger["baselines"]) == {"copy of the source", "most frequent target"}


def test_the_front_door_writes_the_same(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written)
    kept = json.loads(Path("runs/writer/finetune/predictions.json").read_text("utf-8"))
    texts = [json.loads(line)["long"] for line in Path("pairs.test.jsonl").read_text("utf-8").splitlines()]
    model = zg.load("runs/writer/finetune")
    assert model.writes and model.generate(texts) == kept["predicted"]
    assert try_checkpoint("runs/writer/finetune", texts[0]) == kept["predicted"][0]
    drawn = {model.generate(texts[:1], beams=1, temperature=2.0, seed=s)[0] for s in range(5)}
    assert len(drawn) > 1
    with pytest.raises(zg.UserError, match="beams"):
        model.generate(texts[:1], beams=0)
    with pytest.raises(zg.UserError, match="not one text"):
        model.generate("one")
    assert evaluate_checkpoint("runs/writer/finetune", "writer.yaml")["task/rouge_l"] == pytest.approx(
        text_metric("rouge_l")(kept["gold"], kept["predicted"])
    )


def test_a_source_without_a_second_text_is_named(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written)
    with pytest.raises(zg.UserError, match="has no second text"):
        load_recipe("writer.yaml", ["sources.task.columns.pair=null"])

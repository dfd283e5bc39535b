"""Systems that write, from raw text to scored texts through one recipe: prepare, pre-train, fine-tune on pairs, generate, score."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import ziggurat as zg
from conftest import WORDS, sentence
from ziggurat.evaluate.text_scores import text_metric
from ziggurat.pipeline.run import run

RECIPE = """\
name: {system}
system: {system}/tiny
model: {{layers: 1, width: 48, heads: 2, mlp: 64}}
tokenizer: {tokenizer}
sources:
  general: {{path: general.txt, txt: line, valid: 0.1}}
  task: {{path: pairs.jsonl, test: test.jsonl, columns: {{text: long, pair: short}}}}
defaults: {{length: 48, precision: fp32, dropout: 0.0, optim: {{lr: 1e-2}}, save: {{every: null}}, batch: {{tokens: 512}}}}
stages:
  - {{stage: pretrain, data: general, steps: 5}}
  - stage: finetune
    data: task
    steps: 40
    batch: {{documents: 8}}
    objective: {{kind: seq2seq, {asks}generate: {{most: 6, beams: 2}}}}
worth: false
"""
WORDPIECE, BPE = "{kind: wordpiece, vocab: 400, lowercase: true}", "{kind: bpe, vocab: 400}"
SYSTEMS = {
    "unilm": (WORDPIECE, "asks: mask, segments: [4, 5], target: 8, ", "unilm"),
    "xlnet": (BPE, "asks: query, target: 8, ", "plm"),
    "prophetnet": (WORDPIECE, "asks: future, ", "future"),
    "t5": (BPE, "target: 48, ", "span_corruption"),
    "bart": (BPE, "", "denoise"),
}
"""System -> tokenizer, its way of asking for a word, and what its pre-training is called."""


def rows(draw: random.Random, count: int) -> list[dict[str, str]]:
    """Pairs of texts: the first two words of the one, and what is always said of them, are the other."""
    texts = [" ".join(draw.choices(WORDS.split(), k=6)) for _ in range(count)]
    return [{"long": text, "short": " ".join([*text.split()[:2], "it is"])} for text in texts]


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The test rows of a small world, whose folder is the current one."""
    draw = random.Random(0)
    (tmp_path / "general.txt").write_text("".join(f"{sentence(draw)} it is\n" for _ in range(80)), "utf-8")
    for name, count in (("pairs.jsonl", 64), ("test.jsonl", 8)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(draw, count))
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    return [json.loads(line) for line in (tmp_path / "test.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("system", SYSTEMS)
def test_from_raw_text_to_scored_texts(system: str, pairs: list[dict[str, str]]) -> None:
    tokenizer, asks, kind = SYSTEMS[system]
    Path("recipe.yaml").write_text(RECIPE.format(system=system, tokenizer=tokenizer, asks=asks), "utf-8")
    folder = run("recipe.yaml")
    held_out = json.loads((folder / "pretrain" / "outcome.json").read_text("utf-8"))["held_out"]["general"]
    assert any(name.startswith(kind) for name in held_out), held_out
    kept: dict[str, Any] = json.loads((folder / "finetune" / "predictions.json").read_text("utf-8"))
    assert kept["gold"] == [row["short"] for row in pairs] and len(kept["predicted"]) == len(pairs)
    score = text_metric("rouge_l")(kept["gold"], kept["predicted"])
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert str(round(score, 3))[:4] in json.dumps(report)
    assert score > 0.25, "it learnt what is always said at least"
    assert zg.load(folder / "finetune").generate([row["long"] for row in pairs]) == kept["predicted"]

"""A world in miniature for tests that run whole recipes: a few sentences in English and Chinese, a model of one layer."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Where a red run stops everybody else, the same examples every time; elsewhere new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

WORDS = "river stone window garden music paper winter bridge captain letter forest market silver kitchen harbour village mountain"
CHARACTERS = "山水火木金土日月人口手足天地风云花鸟鱼虫春夏秋冬东西南北上下左右大小多少"
GOOD, BAD = ("wonderful", "great", "lovely", "好看"), ("terrible", "awful", "boring", "难看")

RECIPE = """\
name: small
system: roberta/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 64}
tokenizer: {kind: wordpiece, vocab: 400, lowercase: true}
sources:
  general: {path: general.txt, txt: line, valid: 0.1}
  domain: {path: domain.txt, txt: line, valid: 0.1}
  task: {path: train.jsonl, test: test.jsonl, columns: {text: sentence, label: label}}
defaults:
  length: 32
  batch: {tokens: 256}
  accumulate: 2
  dropout: 0.1
  precision: fp32
  optim: {lr: 1e-3}
  evaluate: {every: 5, tokens: 400}
  save: {every: 3}
  log_every: 2
stages:
  - {stage: pretrain, data: {general: 0.7, domain: 0.3}, steps: 9}
  - {stage: dapt, data: domain, steps: 9}
  - {stage: tapt, data: task, epochs: 3}
  - {stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, epochs: 2, batch: {documents: 8}}
worth: {seeds: [0, 1]}
"""
TEXT_ONLY = RECIPE[: RECIPE.index("stages:")] + "stages:\n  - {stage: pretrain, data: general, steps: 2}\n"


def sentence(draw: random.Random, words: int = 9) -> str:
    text = " ".join(draw.choice(WORDS.split()) for _ in range(words))
    return text + " " + "".join(draw.choice(CHARACTERS) for _ in range(6)) + "。"


def opinions(draw: random.Random, count: int) -> Iterator[str]:
    """JSON lines of sentences and their labels."""
    for n in range(count):
        word, label = (draw.choice(GOOD), "pos") if n % 2 else (draw.choice(BAD), "neg")
        yield json.dumps({"sentence": f"{word} {sentence(draw, 7)}", "label": label}, ensure_ascii=False) + "\n"


def write_world(folder: Path) -> Path:
    """Corpus, task, the recipe `small.yaml` of four stages and `text.yaml` of one in `folder`, with paths relative to it;
    returns the first."""
    draw = random.Random(0)
    (folder / "general.txt").write_text("".join(sentence(draw) + "\n" for _ in range(120)), "utf-8")
    (folder / "domain.txt").write_text("".join(sentence(draw, 5) + "\n" for _ in range(60)), "utf-8")
    (folder / "train.jsonl").write_text("".join(opinions(draw, 40)), "utf-8")
    (folder / "test.jsonl").write_text("".join(opinions(draw, 20)), "utf-8")
    (folder / "small.yaml").write_text(RECIPE, "utf-8")
    (folder / "text.yaml").write_text(TEXT_ONLY.replace("name: small", "name: text"), "utf-8")
    return folder / "small.yaml"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fresh world, which is also the current one."""
    write_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world where `small.yaml` was run; it is shared: look, do not touch."""
    from ziggurat.pipeline.run import run

    folder = tmp_path_factory.mktemp("finished")
    write_world(folder)
    with contextlib.chdir(folder):
        run("small.yaml")
    return folder

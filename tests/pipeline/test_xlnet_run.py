"""XLNet from text to labels: permuted LM, fine-tuning, and an export in which the class token stands last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ziggurat as zg
from conftest import RECIPE
from ziggurat.pipeline.run import run

STAGES = """\
stages:
  - {stage: pretrain, data: {general: 0.7, domain: 0.3}, steps: 4}
  - {stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, epochs: 1, batch: {documents: 8}}
worth: false
"""


def test_from_text_to_labels(world: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = RECIPE[: RECIPE.index("stages:")].replace("name: small", "name: xl").replace("roberta/tiny", "xlnet/tiny")
    (world / "xl.yaml").write_text(
        text.replace("kind: wordpiece, vocab: 400, lowercase: true", "kind: unigram, vocab: 300") + STAGES
    )
    folder = run("xl.yaml")
    assert "plm" in (folder / "recipe.yaml").read_text("utf-8")
    assert json.loads((folder / "pretrain/hf/config.json").read_text("utf-8"))["architectures"] == ["XLNetLMHeadModel"]
    texts = [json.loads(line)["sentence"] for line in (world / "test.jsonl").read_text("utf-8").splitlines()]
    mine = zg.load(folder / "finetune").probabilities(texts)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "finetune/hf").eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder / "finetune/hf")
    batch = reader(texts, padding=True, return_tensors="pt")
    assert (batch["input_ids"][:, -1] == reader.cls_token_id).all() and (batch["token_type_ids"][:, -1] == 2).all()
    with torch.no_grad():
        other = model(**batch).logits.softmax(-1)
    assert len({len(row) for row in reader(texts)["input_ids"]}) > 1  # pads stand somewhere
    torch.testing.assert_close(torch.tensor([[p["neg"], p["pos"]] for p in mine]), other, atol=1e-4, rtol=0)

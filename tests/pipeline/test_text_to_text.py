"""Encoder-decoders from raw text to a folder that `transformers` answers with as we do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ziggurat.errors import UserError
from ziggurat.pipeline.model import load
from ziggurat.pipeline.run import prepare, run
from ziggurat.pipeline.show import batch_of
from ziggurat.pipeline.tryout import try_checkpoint
from ziggurat.text.tokenizer import Tokenizer

RECIPE = """\
name: {name}
system: {system}/tiny
model: {{layers: 2, width: 32, heads: 2, mlp: 48}}
tokenizer: {tokenizer}
sources:
  general: {{path: general.txt, txt: line, valid: 0.1}}
  task: {{path: train.jsonl, test: test.jsonl, columns: {columns}}}
defaults: {{length: 40, batch: {{tokens: 256}}, precision: fp32, optim: {{lr: 1e-2}}}}
stages:
  - {{stage: pretrain, data: general, steps: 6}}
  - {{stage: finetune, data: task, objective: {objective}, epochs: 6, dropout: 0.0, batch: {{documents: 8}}}}
worth: false
"""
TOKENIZERS = {
    "t5": "{kind: unigram, vocab: 500}",
    "t5_1_1": "{kind: unigram, vocab: 500}",
    "bart": "{kind: bpe, vocab: 400}",
    "mass": "{kind: wordpiece, vocab: 400, lowercase: true}",
}
CLASSIFY = "{kind: classify, labels: [neg, pos]}"


def recipe(system: str, objective: str = CLASSIFY, columns: str = "{text: sentence, label: label}") -> Path:
    text = RECIPE.format(name=system, system=system, tokenizer=TOKENIZERS[system], objective=objective, columns=columns)
    path = Path(f"{system}.yaml")
    path.write_text(text, "utf-8")
    return path


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("test.jsonl").read_text("utf-8").splitlines()]


def words(world: Path) -> None:
    """The task's files with a list of words and of tags in place of sentence and label."""
    for name in ("train.jsonl", "test.jsonl"):
        lines = [json.loads(line)["sentence"].split() for line in (world / name).read_text("utf-8").splitlines()]
        made = [{"words": line, "tags": ["B" if len(word) > 6 else "O" for word in line]} for line in lines]
        (world / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), "utf-8")


@pytest.mark.parametrize("system", ["t5", "t5_1_1", "bart"])
def test_from_raw_text_to_a_classifier_that_transformers_loads(system: str, world: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = run(recipe(system))
    said = json.loads((folder / "report.json").read_text("utf-8"))
    assert [stage["name"] for stage in said["stages"]] == ["pretrain", "finetune"]
    held_out = json.loads((folder / "pretrain" / "outcome.json").read_text("utf-8"))["held_out"]["general"]
    assert any(name.endswith("_accuracy") for name in held_out) and all(np.isfinite(v) for v in held_out.values())
    texts = [row["sentence"] for row in rows()] + [
        "short",
        "a sentence that is a little longer than the others are, and ends here",
    ]
    ours = load(folder / "finetune")
    mine = torch.tensor([list(p.values()) for p in ours.probabilities(texts)]).log()
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "finetune" / "hf", output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "finetune" / "hf")
    ids = tokenizer(texts, padding=True, return_tensors="pt")
    ids.pop("token_type_ids", None)
    with torch.no_grad():
        logits = model.eval()(**ids).logits
    assert (logits.max(0).values - logits.min(0).values).max() > 0.05
    torch.testing.assert_close(logits.log_softmax(-1), mine, atol=1e-4, rtol=0)
    pairs = list(zip(texts[:5], texts[5:10], strict=True))
    ids = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(ids["input_ids"], attention_mask=ids["attention_mask"]).logits
    mine = torch.tensor([list(p.values()) for p in ours.probabilities(pairs)]).log()
    torch.testing.assert_close(logits.log_softmax(-1), mine, atol=1e-4, rtol=0)
    assert model.config.id2label == {0: "neg", 1: "pos"}
    plain = [e.ids.tolist() for e in ours.tokenizer.encode(texts)]
    assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == plain
    predictions = json.loads((folder / "finetune" / "predictions.json").read_text("utf-8"))
    assert sorted(predictions["gold"]) == sorted(row["label"] for row in rows())
    body = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "pretrain" / "hf", output_loading_info=True)
    assert not any(body[1][k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), body[1]
    said = body[0].generate(ids["input_ids"][:1], max_new_tokens=3, num_beams=1, do_sample=False)[0].tolist()
    assert said[0] == body[0].config.decoder_start_token_id == ours.context.start
    with pytest.raises(UserError, match="cannot fill masks"):
        load(folder / "pretrain").fill("a <mask> here")
    assert "%" in try_checkpoint(folder / "finetune", texts[0])


@pytest.mark.parametrize("system", ["t5", "bart", "mass"])
def test_from_raw_text_to_tags(system: str, world: Path) -> None:
    """T5 tags with its encoder, as its Hub class does; BART and MASS with the decoder, for which the Hub has no class."""
    transformers = pytest.importorskip("transformers")
    words(world)
    folder = run(recipe(system, "{kind: tag, labels: [O, B]}", "{tokens: words, tags: tags}"))
    ours = load(folder / "finetune")
    tagged = ours.predict([["wonderful", "garden", "river"], "stone window"])
    assert [[word for word, _ in text] for text in tagged] == [["wonderful", "garden", "river"], ["stone", "window"]]
    assert {tag for text in tagged for _, tag in text} <= {"O", "B"}
    if system != "t5":
        return
    folder = folder / "finetune" / "hf"
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)("stone window", return_tensors="pt")
    with torch.no_grad():
        best = model(**ids).logits.argmax(-1)[0].tolist()
    pieces = Tokenizer.load(folder).encode(["stone window"])[0]
    first = np.flatnonzero(pieces.words).tolist()
    assert [model.config.id2label[best[i]] for i in first] == [tag for _, tag in tagged[1]]


def test_a_trained_tokenizer_has_the_tokens_of_the_objectives(world: Path) -> None:
    folder = prepare(recipe("t5"))
    vocab = Tokenizer.load(folder / "tokenizer").vocab
    assert (vocab.pad, vocab.end, vocab.unk) == (0, 1, 2)
    assert [vocab.names[f"<extra_id_{n}>"] for n in range(100)] == list(range(vocab.size - 1, vocab.size - 101, -1))
    folder = prepare(recipe("bart"), ["name=other", "stages.pretrain.objective={kind: span_corruption}"])
    other = Tokenizer.load(folder / "tokenizer").vocab
    assert other.names["<extra_id_0>"] == other.size - 100 and other.mask is not None
    Path("own.yaml").write_text(recipe("bart").read_text("utf-8").replace("bart/tiny", "roberta/tiny"), "utf-8")
    folder = prepare("own.yaml", ["name=asks", "stages.pretrain.objective={kind: ernie_gen}"])
    assert "[ATTN]" in Tokenizer.load(folder / "tokenizer").vocab.names
    prepare("own.yaml", ["name=roberta"])
    text = Path("own.yaml").read_text("utf-8").replace(TOKENIZERS["bart"], "{path: runs/roberta/tokenizer}")
    Path("own.yaml").write_text(text, "utf-8")
    with pytest.raises(UserError, match="special token"):  # one that is brought along is left as it is
        run("own.yaml", ["name=brought", "stages.pretrain.objective={kind: ernie_gen}"])


@pytest.mark.parametrize(("system", "stage"), [("t5", ""), ("bart", ""), ("mass", ""), ("bart", "finetune"), ("t5", "finetune")])
def test_a_batch_of_two_streams_is_drawn(system: str, stage: str, world: Path) -> None:
    text = batch_of(str(recipe(system)), stage=stage)
    assert "stream encoder" in text and "stream decoder" in text and "decoder #" in text
    if stage:
        assert "-> classify: " in text
    else:
        kind = {"t5": "span_corruption", "bart": "denoise", "mass": "mass"}[system]
        answers = [line.split("-> ")[1] for line in text.split("\n") if "-> " in line]
        assert answers and all(line.startswith(f"{kind}: ") and not line.split(": ")[1].isdigit() for line in answers)
    if system == "mass":
        crossing = [line.split()[1:] for line in text.split("\n") if line.strip().startswith("decoder ")]
        assert any("." in line for line in crossing) and all("#" in line for line in crossing)

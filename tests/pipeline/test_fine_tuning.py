"""Fine-tuning beside a loop of Hugging Face's classes: the same rows in the same steps end in the same model."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.labelled import Classify, Regress, Tag
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.pipeline.run import run
from ziggurat.systems import model_of
from ziggurat.systems.hub import to_hub
from ziggurat.text.train import TokenizerSpec, train_tokenizer
from ziggurat.train import loop

WORDS = ["river", "stone", "window", "garden", "music", "paper", "winter", "bridge", "captain", "harbour"]
RECIPE = """\
name: tuned
system: bert
sources:
  task: {{path: train.jsonl, test: test.jsonl, columns: {columns}}}
stages:
  - stage: finetune
    init: start
    data: task
    objective: {objective}
    length: 24
    epochs: 3
    dropout: 0.0
    batch: {{documents: 8}}
    accumulate: {accumulate}
    precision: fp32
    optim: {{lr: 1e-3, betas: [0.9, 0.99], eps: 1e-7, weight_decay: 0.1, clip: 0.5}}
    schedule: {{kind: linear, warmup: 0}}
worth: false
"""
TASKS: dict[str, tuple[str, str, str]] = {
    "pairs": ("{text: a, pair: b, label: same}", "{kind: classify, labels: [0, 1]}", "SequenceClassification"),
    "numbers": ("{text: a, pair: b, label: far}", "{kind: regress}", "SequenceClassification"),
    "tags": ("{tokens: words, tags: tags}", "{kind: tag, labels: [O, B]}", "TokenClassification"),
    "answers": ("{text: a, pair: b, answers: answers}", "{kind: question_answering, no_answer: true}", "QuestionAnswering"),
}


def rows(n: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    found = []
    for i in range(n):
        a, b = ([draw.choice(WORDS) for _ in range(draw.randint(2, 9))] for _ in range(2))
        tags = ["B" if len(w) > 6 else "O" for w in a]
        row = {"a": " ".join(a), "b": " ".join(b), "same": i % 2, "far": draw.random(), "words": a, "tags": tags}
        first = draw.randrange(len(b))
        answer = " ".join(b[first : first + draw.randint(1, 2)])
        there = [{"text": answer, "answer_start": len(" ".join([*b[:first], ""]))}] if i % 3 else []
        row["answers"] = {key: [one[key] for one in there] for key in ("text", "answer_start")}
        found.append(row)
    return found


def start(folder: Path, heads: dict[str, Any]) -> None:
    """A BERT with a head already, so that both sides begin with the same weights."""
    tokenizer = train_tokenizer(TokenizerSpec(kind="wordpiece", vocab=90), iter([" ".join(WORDS)] * 20), template="bert")
    model = model_of("bert/tiny", {"layers": 2, "width": 32, "heads": 2, "mlp": 48}, tokenizer.vocab.size)
    network = NetworkModel(spec.Network(model=model, heads=heads))
    network.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    to_hub(network.spec, network.state_dict(), tokenizer, "bert", folder)


def encoded(tokenizer: Any, task: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row as the library's examples write it: labels on first tokens of words; no answer is the first token."""
    if task == "answers":
        found = tokenizer(row["a"], row["b"], truncation="only_second", max_length=24)
        ends = (0, 0)
        for text, begin in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            ends = found.char_to_token(begin, sequence_index=1), found.char_to_token(begin + len(text) - 1, sequence_index=1)
        return {**found, "start_positions": ends[0], "end_positions": ends[1]}
    if task != "tags":
        label = row["same"] if task == "pairs" else row["far"]
        return {**tokenizer(row["a"], row["b"], truncation=True, max_length=24), "labels": label}
    found = tokenizer(row["words"], is_split_into_words=True, truncation=True, max_length=24)
    words = found.word_ids()
    first = [w is not None and w != before for w, before in zip(words, [None, *words[:-1]], strict=True)]
    return {**found, "labels": [int(row["tags"][w] == "B") if f else -100 for w, f in zip(words, first, strict=True)]}


def loss_of(model: Any, task: str, batch: dict[str, Any], separator: int) -> torch.Tensor:
    """Theirs; but for answers they let a span begin in the question, too, which no answer does."""
    if task != "answers":
        loss: torch.Tensor = model(**batch).loss
        return loss
    output = model(**{k: v for k, v in batch.items() if not k.endswith("positions")})
    context = batch["token_type_ids"].bool() & batch["attention_mask"].bool() & (batch["input_ids"] != separator)
    context[:, 0] = True
    sides = [(output.start_logits, batch["start_positions"]), (output.end_logits, batch["end_positions"])]
    terms = [torch.nn.functional.cross_entropy(x.masked_fill(~context, -torch.inf), gold) for x, gold in sides]
    return (terms[0] + terms[1]) / 2


def logits_of(output: Any, task: str) -> torch.Tensor:
    """Of answers over those of the first token: what is added to all of them changes no softmax, has no gradient, and drifts by rounding."""
    if task != "answers":
        logits: torch.Tensor = output.logits
        return logits
    both = torch.stack([output.start_logits, output.end_logits], -1)
    return both - both[:, :1]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_a_loop_of_hugging_face_s_classes(task: str, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    columns, objective, kind = TASKS[task]
    written = {"train": rows(44, 1), "test": rows(12, 2)}
    for name, some in written.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some), "utf-8")
    kinds = {
        "pairs": Classify(labels=(0, 1)),
        "numbers": Regress(),
        "tags": Tag(labels=("O", "B")),
        "answers": QuestionAnswering(),
    }
    made: Any = kinds[task]
    model = model_of("bert/tiny", {"layers": 2, "width": 32, "heads": 2, "mlp": 48}, 90)
    start(Path("start"), dict(made.heads(model)))

    steps: list[list[list[int]]] = []
    real = loop.backward

    def backward(*args: Any) -> Any:
        seen = []
        for batch in args[2]:
            (stream,) = batch.streams.values()
            seen += [part.tolist() for part, alive in zip(np.split(stream.content, stream.bounds[1:-1]), batch.alive) if alive]
        steps.append(seen)
        return real(*args)

    monkeypatch.setattr(loop, "backward", backward)
    Path("tuned.yaml").write_text(RECIPE.format(columns=columns, objective=objective, accumulate=accumulate), "utf-8")
    folder = run("tuned.yaml")

    tokenizer = transformers.AutoTokenizer.from_pretrained("start")
    by_ids = {tuple(row["input_ids"]): row for row in (encoded(tokenizer, task, r) for r in written["train"])}
    assert Counter(tuple(ids) for step in steps for ids in step) == Counter(3 * list(by_ids)) and len(by_ids) == 44
    load = getattr(transformers, f"AutoModelFor{kind}").from_pretrained
    theirs = load("start").train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = [p for n, p in theirs.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    rest = [p for n, p in theirs.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    groups = [{"params": plain, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-7)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, len(steps))
    collate = (
        transformers.DataCollatorForTokenClassification(tokenizer)
        if task == "tags"
        else transformers.DataCollatorWithPadding(tokenizer)
    )
    for step in steps:
        batch = collate([by_ids[tuple(ids)] for ids in step])
        loss = loss_of(theirs, task, batch, tokenizer.sep_token_id)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    theirs.eval()
    ours, before = (load(path).eval() for path in (folder / "finetune/hf", "start"))
    asked = [
        tokenizer(r["words"], is_split_into_words=True) if task == "tags" else tokenizer(r["a"], r["b"]) for r in written["test"]
    ]
    padded = tokenizer.pad(asked, return_tensors="pt")
    read = padded["attention_mask"].bool() if task in ("tags", "answers") else ...
    with torch.no_grad():
        outputs = [m(**padded) for m in (ours, theirs, before)]
    found, wanted, first = (logits_of(o, task)[read] for o in outputs)
    assert (wanted - first).abs().max() > 0.1  # training has moved them ten thousand times as far as they may differ
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)

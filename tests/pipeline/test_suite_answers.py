"""Kept answers: what serves several metrics, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ziggurat.pipeline.run import run
from ziggurat.pipeline.suites import evaluate_suite
from ziggurat.train import loop

STARTS = """\
name: gpt2
system: gpt2/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 48}
tokenizer: {kind: bpe, vocab: 400}
sources: {general: {path: general.txt, txt: line, valid: 0.1}}
defaults: {length: 40, batch: {tokens: 256}, precision: fp32, optim: {lr: 1e-2}}
stages: [{stage: pretrain, data: general, steps: 2}]
"""
SUITE = """\
suite: written
seeds: 1
answers: text
defaults: {epochs: 12, length: 40, batch: {documents: 8}, optim: {lr: 1e-2}, precision: fp32}
tasks:
  together:
    local: {path: train.jsonl, test: grouped.jsonl, columns: {text: sentence, label: label, group: of}}
    objective: {kind: classify, labels: [neg, pos]}
"""


@pytest.mark.parametrize("grouped_first", [True, False])
def test_written_answers_serve_metrics_of_rows_and_of_groups(
    grouped_first: bool, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whichever order they are asked for, and with other groups of the same rows."""
    for name in ("train", "test"):
        rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text("utf-8").splitlines()]
        made = [{**row, "of": n // 4, "by": n % 10} for n, row in enumerate(rows)]
        Path("grouped.jsonl" if name == "test" else "train.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in made), "utf-8"
        )
    Path("gpt2.yaml").write_text(STARTS, "utf-8")
    Path("written.yaml").write_text(SUITE, "utf-8")
    folder = run("gpt2.yaml") / "pretrain"

    def score(metric: str, group: str = "of") -> tuple[float, float, list[str], list[str]]:
        """The checkpoint's and the majority's, and the kept answers."""
        changes = [f"tasks.together.objective.metric={metric}", f"tasks.together.local.columns.group={group}"]
        (task,) = evaluate_suite([folder], "written.yaml", changes).tasks
        mine, floor = task.of("pretrain"), task.of("majority")
        assert mine is not None and floor is not None
        kept = json.loads((Path(mine.folders[0]) / "result.json").read_text("utf-8"))
        return mine.mean, floor.mean, kept["gold"], kept["predicted"]

    first = score("group_em" if grouped_first else "accuracy")
    monkeypatch.setattr(loop, "train", None)  # nothing is trained again
    second = score("accuracy" if grouped_first else "group_em")
    by_group, by_row = (first, second) if grouped_first else (second, first)
    gold, said = by_group[2:]
    right = [g == s for g, s in zip(gold, said, strict=True)]
    assert any(right), (gold, said)
    assert by_row[0] == sum(right) / 20 and by_row[1] == 0.5 and by_row[2:] == by_group[2:]
    assert by_group[0] == sum(all(right[n : n + 4]) for n in range(0, 20, 4)) / 5 and by_group[1] == 0.0
    pairs = score("group_em", "by")
    assert pairs[:2] == (sum(right[n] and right[n + 10] for n in range(10)) / 10, 0.5)

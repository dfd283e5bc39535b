"""Phases of growing length: what the report says about the use of context."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from conftest import sentence
from ziggurat.pipeline.context_use import edges
from ziggurat.pipeline.run import run

PHASES = """\
name: phases
system: modernbert/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 48}
tokenizer: {kind: bpe, vocab: 400}
sources: {general: {path: long.txt, txt: blank, valid: 0.2}}
defaults: {data: general, steps: 3, precision: fp32, batch: {tokens: 256}, evaluate: {context: true, tokens: 500}}
stages:
  - {stage: pretrain, name: short, length: 32}
  - {stage: pretrain, name: long, length: 128}
"""


def test_edges_double_up_to_the_longest() -> None:
    assert edges(128) == [0, 16, 32, 64, 128]
    assert edges(100) == [0, 16, 32, 64, 100] and edges(16) == [0, 16] and edges(8) == [0, 8]


def test_phases_say_what_longer_windows_are_worth(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(1)
    documents = ["\n".join(sentence(draw) for _ in range(12)) if n % 3 else sentence(draw) for n in range(30)]
    Path("long.txt").write_text("\n\n".join(documents), "utf-8")
    Path("phases.yaml").write_text(PHASES, "utf-8")
    folder = run("phases.yaml")
    report = json.loads((folder / "report.json").read_text("utf-8"))
    for stage in report["stages"]:
        found = json.loads((folder / stage["name"] / "context.json").read_text("utf-8"))["found"]["general"]
        assert stage["context"] == {"general": found}
        assert list(found["lengths"]) == ["32", "128"] and found["target"] == "mlm"
        spans = found["positions"]
        assert [(s["start"], s["stop"]) for s in spans] == [(0, 16), (16, 32), (32, 64), (64, 128)]
        asked = sum(s["predictions"] for s in spans)
        assert sum(s["loss"] * s["predictions"] for s in spans) / asked == pytest.approx(found["lengths"]["128"], rel=1e-5)
        assert 0.08 < asked / (128 * found["documents"]) < 1  # every document has 128 tokens and more, 15% of them asked
    page = (folder / "report.html").read_text("utf-8")
    assert "Use of context" in page and "windows of 32" in page and page.count("long documents") >= 1


def test_without_long_documents_there_is_a_warning_and_no_section(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("long.txt").write_text("\n\n".join(sentence(random.Random(n), 4) for n in range(30)), "utf-8")
    Path("phases.yaml").write_text(PHASES, "utf-8")
    folder = run("phases.yaml")
    assert "no held-out document of general has 128 tokens" in caplog.text
    assert "Use of context" not in (folder / "report.html").read_text("utf-8")

"""What `show` and `list` print, against hand-drawn pictures and published parameter counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ziggurat.config import load
from ziggurat.objectives import OBJECTIVES
from ziggurat.pipeline.show import LISTS, draw_batch, draw_visibility, listing, show
from ziggurat.systems import SYSTEMS
from ziggurat.train.recipe import Recipe
from ziggurat.types import CAUSAL, DEAD, FOREVER, FULL, NEVER, Batch, Stream, Target, Visibility, text_target

RECIPE = """\
name: demo
system: bert/tiny
tokenizer: {vocab: 500}
sources:
  general: {kind: docstrings}
stages:
  - stage: pretrain
    data: general
    steps: 3
"""


class Letters:
    def pieces(self, ids: Any) -> list[str]:
        return ["PabcdefghM"[i] for i in ids]


def stream(*lengths: int, visibility: Visibility = FULL) -> Stream:
    total = sum(lengths)
    position = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    bounds = np.cumsum([0, *lengths])
    return Stream(np.arange(1, total + 1, dtype=np.int32), bounds, position, np.zeros(total, np.int32), visibility)


def picture(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip().split("\n")]


def drawn(s: Stream, d: int) -> list[str]:
    return [" ".join(line.split()) for line in draw_visibility(s, d)]


def test_full_and_causal() -> None:
    assert drawn(stream(2, 3), 1) == picture("position 0 1 2\n0 # # #\n1 # # #\n2 # # #")
    assert drawn(stream(2, 3, visibility=CAUSAL), 1) == picture("position 0 1 2\n0 # . .\n1 # # .\n2 # # #")


def test_permuted() -> None:
    """Six tokens of which 3 and 4 are predicted, in the order 4, 3, with two query rows (XLNet)."""
    clock = np.array([0, 0, 0, 2, 1, 0, 1, 0], np.int32)
    opens = np.array([0, 0, 0, 2, 1, 0, NEVER, NEVER], np.int32)
    rule = Visibility("custom", clock, opens, np.full(8, FOREVER, np.int32), np.zeros(8, np.int32))
    position = np.array([0, 1, 2, 3, 4, 5, 3, 4], np.int32)
    s = Stream(np.arange(8, dtype=np.int32), np.array([0, 8]), position, np.zeros(8, np.int32), rule)
    assert drawn(s, 0) == picture("""
position 0 1 2 3 4 5 3 4
clock    0 0 0 2 1 0 1 0
opens    0 0 0 2 1 0 - -
0  # # # . . # . .
1  # # # . . # . .
2  # # # . . # . .
3  # # # # # # . .
4  # # # . # # . .
5  # # # . . # . .
3  # # # . # # . .
4  # # # . . # . .
""")


def test_lanes_and_closing_keys() -> None:
    zero, lane = np.zeros(3, np.int32), np.array([0, 1, 1], np.int32)
    rule = Visibility("custom", np.array([0, 1, 1], np.int32), np.array([0, NEVER, NEVER], np.int32), zero + 1, lane)
    s = Stream(zero, np.array([0, 3]), zero, zero, rule)
    assert drawn(s, 0)[3:] == ["0 # . .", "0 . # #", "0 . # #"]


def test_a_batch() -> None:
    s = stream(3, 2, 1)
    targets = {
        "mlm": text_target(np.array([1, 4]), np.array([7, 8])),
        "nsp": text_target(np.array([1]), np.array([0]), at="document"),
    }
    batch = Batch({"text": s}, targets, np.array([5, 6, DEAD], np.uint64))
    text = draw_batch(batch, Letters())
    assert text.startswith("2 documents (1 of padding); text 6 rows; predictions: mlm 2, nsp 1\n")
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert "document 0, stream text, 3 rows" in lines
    assert "1 1 0 b -> mlm: g" in lines
    assert "document 1, stream text, 2 rows -> nsp: 0" in lines
    assert "1 1 0 e -> mlm: h" in lines
    assert "document 2" not in text
    assert "too many to draw" in draw_batch(batch, Letters(), widest=2)
    numbers = Batch(
        {"text": s},
        {"regress": Target("text", np.array([0]), np.array([1.5], np.float32), np.array([0.5]), "document")},
        batch.keys,
    )
    assert "-> regress: 1.5 (weight 0.5)" in draw_batch(numbers, Letters())


def test_a_recipe_with_origins_is_the_resolved_recipe(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(RECIPE, "utf-8")
    text = show(str(path), ["stages.pretrain.length=32"])
    again = tmp_path / "again.yaml"
    again.write_text(text, "utf-8")
    assert load(again, model=Recipe) == load(path, ["stages.pretrain.length=32"], model=Recipe).resolved()
    origins = {line.split("#")[0].strip(): line.split("# ", 1)[1] for line in text.split("\n") if "#" in line}
    assert origins["length: 32"] == "command line (stages.pretrain.length=32)"
    assert origins["vocab: 500"] == f"{path}:3"
    assert origins["weight: 1.0"] == f"{path}:8"
    assert origins["layers: 2"] == "size bert/tiny"
    assert origins["lr: 0.0005"] == "default of pretrain"
    assert origins["accumulate: 1"] == "default"
    assert origins["kind: joint"] == "system bert"


@pytest.mark.parametrize(
    "name, count", [("gpt2/small", "124,439,808"), ("bert/base", "108,891,648"), ("roberta/base", "124,055,040")]
)
def test_systems_have_the_published_parameter_counts(name: str, count: str) -> None:
    """GPT2Model, and BertModel and RobertaModel without their poolers of 590,592."""
    text = show(name)
    assert f"{count} parameters" in text
    assert set(yaml.safe_load(text)) == {"objective", "model"}


def test_lists() -> None:
    for what in LISTS:
        header, rows, _ = listing(what)
        assert all(len(row) == len(header) for row in rows)
    assert {row[0] for row in listing("objectives")[1]} == set(OBJECTIVES)
    assert {row[0].split("/")[0] for row in listing("systems")[1]} == set(SYSTEMS)
    assert [row[0] for row in listing("stages")[1]] == ["pretrain", "dapt", "tapt", "finetune"]

"""A stage with a memory that was killed ends with the bits of one that was not; what a recipe may say about memory."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_resume import Killed, at_step, killed

from conftest import RECIPE, sentence
from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError
from ziggurat.log import read_metrics
from ziggurat.nn.memory import Recall
from ziggurat.pipeline.run import load_recipe, run
from ziggurat.pipeline.show import batch_of

__all__ = ["at_step"]

TIMES = ("tokens_per_second",)
STAGE = "stages:\n  - {stage: pretrain, data: general, steps: 11, length: 16, memory: 24, batch: {tokens: 80}, objective: %s}\n"
OBJECTIVES = {
    "windows": "{kind: plm, pairs: false}",
    "reuse": "{kind: plm, reuse: 6}",
    "causal": "{kind: clm}",
    "masked": "{kind: mlm}",
}


def write(world: Path, objective: str = "windows", system: str = "xlnet/tiny") -> None:
    draw = random.Random(1)
    text = "".join(" ".join(sentence(draw) for _ in range(draw.randint(1, 9))) + "\n" for _ in range(50))
    (world / "general.txt").write_text(text, "utf-8")
    head = RECIPE[: RECIPE.index("stages:")].replace("roberta/tiny", system)
    (world / "m.yaml").write_text(head.replace("name: small", "name: m") + STAGE % OBJECTIVES[objective], "utf-8")


def result(world: Path) -> tuple[bytes, list[Any], Any]:
    stage = world / "runs/m/pretrain"
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(stage / "metrics.jsonl")]
    outcome = json.loads((stage / "outcome.json").read_text("utf-8"))
    return (checkpoints.at(stage, 11) / "model.safetensors").read_bytes(), lines, outcome["held_out"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_killed_in_the_middle(world: Path, at_step: Any, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    """Accumulation 2, dropout, in the middle of an epoch and of texts; and the law fails where the memory is not restored."""
    write(world, objective)
    at_step(0, killed)
    run("m.yaml")
    straight = result(world)
    stage = world / "runs/m/pretrain"
    assert not (checkpoints.at(stage, 11) / "memory.safetensors").exists()  # nothing goes on from a finished stage
    shutil.rmtree(stage)

    load = Recall.load

    def kill_and_go_on() -> tuple[bytes, list[Any], Any]:
        with pytest.raises(Killed):
            at_step(8, killed)
            run("m.yaml")
        saved = checkpoints.load(stage)
        assert (
            saved.state["progress"]["step"] == 6 and saved.state["loader"]["0.done"] > 0 and saved.state["loader"]["0.block"] < 3
        )
        kept = Recall(24, 2)
        load(kept, saved.memory, saved.memory["0.bounds"].device)
        assert len(kept.left) == 2 and all(memory.bounds[-1] > 24 for _, memory in kept.left)
        at_step(0, killed)
        run("m.yaml")
        return result(world)

    assert kill_and_go_on() == straight
    shutil.rmtree(stage)
    monkeypatch.setattr(Recall, "load", lambda *args: None)
    assert kill_and_go_on()[0] != straight[0]


def test_without_a_memory_it_is_another_model(world: Path) -> None:
    write(world)
    run("m.yaml")
    with_memory = result(world)
    shutil.rmtree(world / "runs/m/pretrain")
    run("m.yaml", ["stages.pretrain.memory=0"])
    assert result(world)[0] != with_memory[0]


def test_a_time_budget_is_measured_with_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ziggurat.train import loop

    write(world)
    found: list[Any] = []

    def timed(*args: Any, **how: Any) -> list[tuple[float, int]]:
        found.append(how["recall"])
        return [(0.5, 1)]

    monkeypatch.setattr(loop, "timed", timed)
    run("m.yaml", ["stages.pretrain.time=1s"])
    assert found[0].length == 24 and found[0].left.maxlen == 2


def test_an_epoch_is_everything_once(world: Path) -> None:
    write(world)
    run("m.yaml", ["stages.pretrain.epochs=1"])
    steps = json.loads((world / "runs/m/pretrain/budget.json").read_text("utf-8"))["steps"]
    saved = checkpoints.load(world / "runs/m/pretrain")
    assert saved.state["progress"]["step"] == steps and saved.state["loader"]["0.block"] <= 1


def test_a_batch_is_shown(world: Path) -> None:
    write(world)
    said = batch_of("m.yaml")
    assert "document 0, stream text" in said and "<vector 1>" in said
    assert re.search(r"document \d remembers \.\.\. \S+( \S+){5,11}\n", said)


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("roberta/tiny", ["stages.pretrain.objective.kind=mlm"], "needs one stack without absolute positions"),
        ("xlnet/tiny", ["stages.pretrain.objective.pairs=true"], "the pairs of plm may hold text from elsewhere"),
        ("xlnet/tiny", ["stages.pretrain.objective.reuse=4", "stages.pretrain.memory=0"], "give the stage a `memory`"),
        ("xlnet/tiny", ["stages.pretrain.objective={kind: prefix_lm}"], "prefix_lm does not read running text window by window"),
        ("xlnet/tiny", ["stages.pretrain.batch={documents: 8}"], "needs batches limited by tokens"),
        ("xlnet/tiny", ["stages.pretrain.memory=-1"], "memory"),
    ],
)
def test_what_cannot_be(world: Path, system: str, change: list[str], message: str) -> None:
    write(world, "windows" if system.startswith("xlnet") else "masked", system)
    with pytest.raises(UserError, match=message):
        load_recipe("m.yaml", change)

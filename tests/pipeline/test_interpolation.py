"""A share of the way that was chosen: by which limit, general text and held-out text; another of these is another choice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from conftest import RECIPE
from ziggurat.checkpoint import format as checkpoints
from ziggurat.cli import app
from ziggurat.errors import UserError
from ziggurat.pipeline.interpolation import between, interpolate
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import run
from ziggurat.pipeline.scoring import Scorer
from ziggurat.train import loop, settings
from ziggurat.train.adaptation import Interpolate

HEAD = RECIPE[: RECIPE.index("stages:")].replace("dropout: 0.1", "dropout: 0.0")
STAGES = """\
stages:
  - {stage: pretrain, data: general, steps: 30, optim: {lr: 1e-2}}
  - {stage: dapt, data: domain, steps: 15, optim: {lr: 1e-2}, evaluate: {every: null}, INTERPOLATE}
  - {stage: tapt, data: task, steps: 2}
worth: false
"""
FOLDER = Path("runs/small")


def recipe(fields: str) -> str:
    Path("line.yaml").write_text(HEAD + STAGES.replace("INTERPOLATE", fields), "utf-8")
    return "line.yaml"


def line() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dapt/interpolation.json").read_text("utf-8"))
    return found


def never(*args: object, **named: object) -> None:
    raise AssertionError("it trains")


def handed() -> Mapping[str, torch.Tensor]:
    return open_checkpoint(FOLDER / "dapt").tensors


def expected(share: float) -> Mapping[str, torch.Tensor]:
    start = checkpoints.load(checkpoints.at(FOLDER / "pretrain", 30)).tensors
    return between(start, checkpoints.load(checkpoints.at(FOLDER / "dapt", 15)).tensors, share)


def test_another_limit_is_another_choice_without_training(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe("interpolate: {points: 6}, forgetting: {limit: 50}"))
    first, mark = line(), settings.fingerprint(FOLDER / "dapt")
    assert first["chosen"] > 0.2
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "losses", None)
        run("line.yaml")  # the same limit: nothing is measured
    monkeypatch.setattr(loop, "backward", never)
    with pytest.raises(UserError, match=r"tapt was begun with other settings:\n  parent: was"):  # from other weights
        run(recipe("interpolate: {points: 6}, forgetting: {limit: 1e-9}"))
    now = line()
    rise = {p["share"]: p["found"]["general"]["mlm"] - now["before"]["general"]["mlm"] for p in now["points"]}
    assert now["points"] == first["points"] and now["chosen"] < first["chosen"] and rise[now["chosen"]] <= 1e-9
    for name, tensor in handed().items():
        torch.testing.assert_close(tensor, expected(now["chosen"])[name])
    found = json.loads((FOLDER / "dapt/outcome.json").read_text("utf-8"))
    assert found["held_out"] == next(p["found"] for p in now["points"] if p["share"] == now["chosen"])
    assert open_checkpoint(FOLDER / "dapt/hf").tensors.keys() and settings.fingerprint(FOLDER / "dapt") != mark
    run(recipe("interpolate: {points: 6}, forgetting: {limit: 50}"))  # the change taken back: tapt is done as it was
    assert line() == first and settings.fingerprint(FOLDER / "dapt") == mark


def test_the_command_goes_by_the_recipe_s_limit(world: Path) -> None:
    run(recipe("interpolate: {points: 3, limit: 50}, forgetting: {limit: 1e-9}"))
    _, rows, _ = interpolate("line.yaml", [], "dapt", Interpolate(points=3))
    assert [row[-1] for row in rows].index("chosen") == [p["share"] for p in line()["points"]].index(line()["chosen"]) > 0
    _, rows, _ = interpolate("line.yaml", [], "dapt", Interpolate(points=3, limit=0))  # forget nothing
    assert rows[0][-1] == "chosen"
    asked = CliRunner().invoke(app, ["interpolate", "line.yaml", "--limit", "-1"])
    assert asked.exit_code == 2 and "limit" in asked.output and "Traceback" not in asked.output


def test_an_older_folder_is_chosen_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe("interpolate: {points: 3}, forgetting: {limit: 50}"))
    first, path = line(), FOLDER / "dapt/interpolation.json"
    path.write_text(json.dumps({key: first[key] for key in ("points", "chosen")}), "utf-8")
    monkeypatch.setattr(loop, "backward", never)
    run("line.yaml")
    assert line() == first


def test_the_command_counts_from_numbers_of_now(world: Path) -> None:
    """A general source named after the stage was done has a start, too; without general text there is no forgetting to print."""
    Path("news.txt").write_text("copper lamp violin\ndesert island stair\ntower mirror lamp\nviolin copper stair\n" * 2, "utf-8")
    run(recipe("forgetting: {general: general}"))
    news = ["sources.news={path: domain.txt, txt: line, valid: news.txt}", "stages.dapt.forgetting.general=news"]
    header, rows, _ = interpolate("line.yaml", news, "dapt", Interpolate(points=3, limit=50))
    start, *_, end = [dict(zip(header, row)) for row in rows]
    rise = float(end["news loss"]) - float(start["news loss"])
    assert rise and float(end["forgetting"]) == pytest.approx(rise, abs=2e-3) and float(start["forgetting"]) == 0
    header, rows, _ = interpolate("line.yaml", ["stages.dapt.forgetting=false"], "dapt", Interpolate(points=3))
    assert {dict(zip(header, row))["forgetting"] for row in rows} == {""}

"""Held-out text that changes between two calls: what was measured on it is measured again, and nothing is trained again for it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import RECIPE, sentence
from ziggurat.errors import UserError
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import run
from ziggurat.pipeline.scoring import Scorer
from ziggurat.train import loop, measured
from ziggurat.train.stage import Stage

HEAD = RECIPE[: RECIPE.index("stages:")].replace("txt: line, valid: 0.1", "txt: line, valid: held.txt")
STAGES = """\
stages:
  - {stage: pretrain, data: general, steps: 4}
  - {stage: dapt, data: domain, steps: 4, optim: {lr: 1e-2}, evaluate: {every: 2}, save: {every: 2}, forgetting: {FORGETTING}}
worth: false
"""
NEWS = "  news: {path: news.txt, txt: line, valid: 0.5}\n"
FOLDER = Path("runs/small")


class Killed(BaseException):
    pass


def write(name: str, words: str, seed: int = 9) -> None:
    """A text of a dozen sentences of these words; of the world's own where there are none."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choice(words.split()) for _ in range(9)) if words else sentence(draw, 5) for _ in range(12)]
    Path(name).write_text("\n".join(lines) + "\n", "utf-8")


def recipe(forgetting: str = "limit: 5", name: str = "small") -> str:
    text = HEAD.replace("name: small", f"name: {name}").replace("sources:\n", f"sources:\n{NEWS}")
    Path("held.yaml").write_text(text + STAGES.replace("FORGETTING", forgetting), "utf-8")
    return "held.yaml"


@pytest.fixture
def place(world: Path) -> Path:
    write("held.txt", "")
    write("news.txt", "copper lamp violin desert island stair tower mirror", 3)
    return world


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An item for each step that was trained; with -1 in front, training is killed after as many as the number behind it."""
    seen: list[int] = []
    real = loop.backward

    def backward(*args: Any, **named: Any) -> Any:
        if seen[:1] == [-1] and len(seen) - 2 >= seen[1]:
            raise Killed
        seen.append(0)
        return real(*args, **named)

    monkeypatch.setattr(loop, "backward", backward)
    return seen


def killed(path: str, steps: list[int], at: int) -> None:
    steps[:] = [-1, at]
    with pytest.raises(Killed):
        run(path)
    steps.clear()


def outcome(stage: str = "dapt", folder: Path = FOLDER) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / stage / "outcome.json").read_text("utf-8"))
    return found


def numbers(stage: str = "dapt", folder: Path = FOLDER) -> dict[str, Any]:
    return {key: outcome(stage, folder)[key] for key in ("before", "held_out", "measured")}


def edit() -> None:
    write("held.txt", "copper lamp violin desert island stair tower mirror")


def test_what_must_be_measured_again() -> None:
    fields = {"stage": "dapt", "data": "domain", "steps": 1, "objective": {"kind": "mlm"}, "forgetting": {"general": "general"}}
    stage = Stage.model_validate(fields)
    now = {"domain": "a", "general": "b", "task": "c"}
    assert measured.other(stage, now, now) == measured.other(stage, {**now, "gone": "d"}, now) == []
    assert measured.other(stage, {**now, "task": "other"}, now) == ["task"]
    assert measured.other(stage, {"domain": "a"}, now) == ["general"]  # a source of other stages alone is not asked for
    assert measured.other(stage, {}, now) == ["domain", "general"]


@pytest.mark.parametrize("change", [edit, lambda: recipe("general: news")])
def test_a_killed_stage_is_compared_with_its_start_on_the_same_text(
    place: Path, steps: list[int], change: Callable[[], object]
) -> None:
    killed(recipe(), steps, 7)  # in the last step of dapt, with a checkpoint after its second
    assert json.loads((FOLDER / "dapt/before.json").read_text("utf-8"))["numbers"]
    change()
    run("held.yaml")
    assert len(steps) == 2  # what was trained before the checkpoint stays
    text = Path("held.yaml").read_text("utf-8").replace("name: small", "name: fresh")
    Path("fresh.yaml").write_text(text, "utf-8")
    fresh = run("fresh.yaml")
    assert numbers() == numbers(folder=fresh)
    assert outcome("pretrain")["held_out"].items() <= outcome("pretrain", fresh)["held_out"].items()
    moved, same = (json.loads((f / "report.json").read_text("utf-8"))["stages"][1]["shift"] for f in (FOLDER, fresh))
    assert moved == same and moved["forgetting"]


def test_a_finished_stage_is_measured_again_and_not_trained(
    place: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe())
    first = outcome()
    steps.clear()
    for change in (edit, lambda: recipe("general: news")):
        change()
        run("held.yaml")
        now = outcome()
        assert not steps and now["before"].keys() == now["held_out"].keys() and now["before"] != first["before"]
        assert open_checkpoint(FOLDER / "dapt").lineage[-1]["held_out"] == now["held_out"]
        assert {**now, **dict.fromkeys(("before", "held_out", "measured"))} == {
            **first,
            **dict.fromkeys(("before", "held_out", "measured")),
        }
        first = now
    moved = json.loads((FOLDER / "report.json").read_text("utf-8"))["stages"][1]["shift"]
    assert moved["forgetting"] == {"news": now["held_out"]["news"]["mlm"] - now["before"]["news"]["mlm"]}
    monkeypatch.setattr(Scorer, "losses", None)
    run("held.yaml")  # nothing changed, so nothing is measured
    assert outcome() == now


def test_a_folder_that_does_not_say_what_it_was_measured_on_is_measured_again(place: Path, steps: list[int]) -> None:
    def older(stage: str) -> None:
        folder = FOLDER / stage
        for path, keep in (("outcome.json", lambda f: f.pop("measured") and f), ("before.json", lambda f: f["numbers"])):
            if (folder / path).exists():
                (folder / path).write_text(json.dumps(keep(json.loads((folder / path).read_text("utf-8")))), "utf-8")

    killed(recipe(), steps, 7)
    older("pretrain")
    older("dapt")
    assert "general" in measured.read_before(FOLDER / "dapt")[1]
    edit()
    run("held.yaml")
    assert len(steps) == 2
    found = [numbers(stage) for stage in ("pretrain", "dapt")]
    older("pretrain")
    older("dapt")
    steps.clear()
    run("held.yaml")
    assert not steps and [numbers(stage) for stage in ("pretrain", "dapt")] == found


def test_text_that_stops_a_stage_stays_what_it_was(place: Path, steps: list[int]) -> None:
    killed(recipe("limit: 50, stop: true"), steps, 7)
    path = FOLDER / "dapt/stage.json"
    kept = json.loads(path.read_text("utf-8"))
    assert list(kept["chosen_by"]) == ["general"]
    edit()
    with pytest.raises(UserError, match=r"begun with other settings:\n  chosen_by.general: was"):
        run("held.yaml")
    del kept["chosen_by"]  # of an older folder nothing is known of it
    path.write_text(json.dumps(kept), "utf-8")
    run("held.yaml")
    assert outcome()["steps"] == 4


def test_numbers_kept_with_an_earlier_evaluation_are_of_the_text_of_now(place: Path) -> None:
    """The weights of step 1 were kept with theirs; general text, which chose nothing, is edited before the stage is marked as done."""
    write("other.txt", "", 4)
    text = (
        Path(recipe())
        .read_text("utf-8")
        .replace("general.txt, txt: line, valid: held.txt", "general.txt, txt: line, valid: other.txt")
    )
    Path("held.yaml").write_text(text, "utf-8")
    changes = [
        "stages.dapt.optim.lr=1",
        "stages.dapt.schedule={kind: constant, warmup: 0}",
        "stages.dapt.evaluate={every: 1, keep: best}",
    ]
    run("held.yaml", changes)
    first = outcome()
    assert first["stopped"] == "best" and first["steps"] < 4
    (FOLDER / "dapt/DONE").unlink()
    write("other.txt", "copper lamp violin desert island stair tower mirror")
    run("held.yaml", changes)
    now = outcome()
    assert now["steps"] == first["steps"] and now["held_out"]["domain"] == first["held_out"]["domain"]
    assert now["held_out"]["general"] != first["held_out"]["general"] and now["before"]["general"] != first["before"]["general"]

"""Objectives that live outside the package, named in a recipe by their import path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ziggurat.config import dump, load
from ziggurat.errors import UserError
from ziggurat.objectives import Objective
from ziggurat.train.recipe import Recipe

CODE = """\
from pydantic import Field
from ziggurat.objectives import Objective

class Shuffled(Objective):
    kind: str = "lab_of_tests.ideas:Shuffled"
    rate: float = Field(0.1, gt=0, lt=1)

class Other:
    pass
"""
RECIPE = """\
name: outside
system: bert/tiny
tokenizer: {kind: wordpiece, vocab: 100}
sources: {text: {path: a.txt}}
stages:
  - stage: pretrain
    data: text
    steps: 3
    objective: {kind: "lab_of_tests.ideas:Shuffled", rate: 0.3}
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "lab_of_tests").mkdir()
    (tmp_path / "lab_of_tests" / "ideas.py").write_text(CODE, "utf-8")
    made = tmp_path / "outside.yaml"
    made.write_text(RECIPE, "utf-8")
    yield made
    for name in ("lab_of_tests", "lab_of_tests.ideas"):
        sys.modules.pop(name, None)


def objective(recipe: Recipe) -> Objective:
    found = recipe.stages[0].objective
    assert found is not None
    return found


def test_it_takes_the_place_of_the_systems_own(path: Path) -> None:
    found = objective(load(path, model=Recipe).resolved())
    assert type(found).__name__ == "Shuffled" and found.model_dump() == {"kind": "lab_of_tests.ideas:Shuffled", "rate": 0.3}


@pytest.mark.filterwarnings("error")
def test_a_resolved_recipe_reads_back(path: Path) -> None:
    full = load(path, ["stages.pretrain.objective.rate=0.4"], model=Recipe).resolved()
    path.write_text(dump(full), "utf-8")
    again = load(path, model=Recipe)
    assert again == full and objective(again).model_dump()["rate"] == 0.4


def test_it_replaces_one_of_ours_below_it(path: Path) -> None:
    mine = path.with_name("mine.yaml")
    base = RECIPE.replace('{kind: "lab_of_tests.ideas:Shuffled", rate: 0.3}', "{kind: mlm, unit: word}")
    path.write_text(base, "utf-8")
    override = 'stages: [{stage: pretrain, objective: {kind: "lab_of_tests.ideas:Shuffled"}}]'
    mine.write_text(f"extends: outside.yaml\n{override}\n", "utf-8")
    assert objective(load(mine, model=Recipe)).model_dump()["rate"] == 0.1  # and no `unit` is left over


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("lab_of_tests.ideas:Shufled", "module 'lab_of_tests.ideas' has no 'Shufled'; did you mean 'Shuffled'?"),
        ("lab_of_tests.idea:Shuffled", "cannot import 'lab_of_tests.idea'"),
        ("lab_of_tests.ideas:Other", "is not an Objective"),
        ("lab_of_tests.ideas:Field", "is not an Objective"),
    ],
)
def test_wrong_names(path: Path, kind: str, expected: str) -> None:
    with pytest.raises(UserError) as e:
        load(path, [f'stages.pretrain.objective={{kind: "{kind}"}}'], model=Recipe)
    assert "stages.pretrain.objective: " in str(e.value) and expected in str(e.value)


def test_wrong_fields_have_their_place(path: Path) -> None:
    path.write_text(RECIPE.replace("rate: 0.3", "rate: 3, rat: 1"), "utf-8")
    with pytest.raises(UserError) as e:
        load(path, model=Recipe)
    message = str(e.value)
    assert "outside.yaml:9  stages.pretrain.objective.rate: must be below 1 (got 3)" in message
    assert "outside.yaml:9  stages.pretrain.objective.rat: unknown field; did you mean 'rate'?" in message

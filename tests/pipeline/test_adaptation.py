"""Stages that adapt without forgetting, from recipe to report: measured before and after, stopped at a limit, resumed bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import RECIPE, sentence, write_world
from ziggurat.checkpoint import format as checkpoints
from ziggurat.cli import app
from ziggurat.data.shards import Shards
from ziggurat.errors import UserError
from ziggurat.log import read_metrics
from ziggurat.pipeline.doctor import doctor
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.prepare import parts
from ziggurat.pipeline.run import load_recipe, run
from ziggurat.pipeline.scoring import Scorer
from ziggurat.pipeline.show import batch_of
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import loop
from ziggurat.train.adaptation import Shift, advice
from ziggurat.train.recipe import Recipe
from ziggurat.train.retention import Retention

HEAD = RECIPE[: RECIPE.index("stages:")]
ARMS = """\
stages:
  - {stage: pretrain, data: general, steps: 6}
  - stage: dapt
    name: held
    data: domain
    steps: 7
    replay: {general: 0.25}
    anchor: {l2: 1, ewc: 2, tokens: 400}
    distill: {weight: 0.5}
    freeze: {embeddings: true}
    optim: {lr: 1e-3, layer_decay: 0.8}
    interpolate: {points: 3, limit: 5}
  - {stage: dapt, name: low, init: pretrain, data: domain, steps: 7, lora: {rank: 2, targets: [q, up]}}
worth: false
"""


class Killed(BaseException):
    pass


def runs(folder: Path) -> Path:
    return folder / "runs/small"


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world where the recipe with all arms was run; it is shared: look, do not touch."""
    folder = tmp_path_factory.mktemp("arms")
    write_world(folder)
    (folder / "arms.yaml").write_text(HEAD + ARMS, "utf-8")
    with contextlib.chdir(folder):
        run("arms.yaml")
    return folder


def weights(folder: Path, stage: str, step: int) -> dict[str, torch.Tensor]:
    return checkpoints.load(checkpoints.at(runs(folder) / stage, step)).tensors


def dapt_stage() -> Any:
    text = HEAD + "stages:\n  - {stage: pretrain, data: general, steps: 1}\n  - {stage: dapt, data: domain, steps: 1}\n"
    return Recipe.model_validate(yaml.safe_load(text)).resolved().stages[1]


def outcome(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs(folder) / stage / "outcome.json").read_text("utf-8"))
    return found


def test_gain_and_forgetting_are_measured(arms: Path) -> None:
    assert outcome(arms, "pretrain")["before"] == {}
    ended = outcome(arms, "pretrain")["held_out"]
    for stage in ("held", "low"):
        before = outcome(arms, stage)["before"]
        assert before == ended
        first = read_metrics(runs(arms) / stage / "metrics.jsonl")[0]
        assert first["step"] == 0 and first["heldout/domain/mlm"] == before["domain"]["mlm"]
    report = json.loads((runs(arms) / "report.json").read_text("utf-8"))
    held, low = report["stages"][1:]
    now = outcome(arms, "low")
    assert low["shift"]["gain"]["domain"] == pytest.approx(now["before"]["domain"]["mlm"] - now["held_out"]["domain"]["mlm"])
    assert low["shift"]["forgetting"]["general"] == pytest.approx(
        now["held_out"]["general"]["mlm"] - now["before"]["general"]["mlm"]
    )
    assert low["shift"]["limit"] == 0.1 and held["interpolation"]["chosen"] in (0, 0.5, 1)
    page = (runs(arms) / "report.html").read_text("utf-8")
    assert "Gain and forgetting" in page and "held: between its start (0) and what it trained (1)" in page


def test_what_the_recipe_fills_in(arms: Path) -> None:
    with contextlib.chdir(arms):
        recipe = load_recipe("arms.yaml")
        off = load_recipe("arms.yaml", ["stages.low.forgetting=false"])
    assert [s.forgetting.general if s.forgetting else None for s in recipe.stages] == [None, ("general",), ("general",)]
    assert off.stages[2].forgetting is not None and off.stages[2].forgetting.general == () and off.resolved() == off
    assert recipe.resolved() == recipe and recipe.stages[1].reads == ("domain", "general")


def test_the_warning_names_a_means_that_the_stage_has_not(arms: Path) -> None:
    _, held, low = load_recipe(arms / "arms.yaml").stages
    beyond, within = (Shift({"domain": 0.4}, {"general": rise}, 0.1) for rise in (0.2, 0.05))
    assert "`interpolate: 0.8`" in advice(low, beyond)
    assert advice(held, beyond) == advice(low, within) == ""


def test_frozen_weights_keep_their_bits(arms: Path) -> None:
    start, end = weights(arms, "pretrain", 6), weights(arms, "held", 7)
    for name, tensor in start.items():
        assert torch.equal(tensor, end[name]) == name.startswith("model.embed"), name


def test_lora_changes_its_matrices_alone(arms: Path) -> None:
    start, end = weights(arms, "pretrain", 6), weights(arms, "low", 7)
    assert start.keys() == end.keys()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"model.blocks.0.attention.q.weight", "model.blocks.0.mlp.up.weight"}
    difference = (end["model.blocks.0.mlp.up.weight"] - start["model.blocks.0.mlp.up.weight"]).double()
    assert int((torch.linalg.svdvals(difference) > 1e-6).sum()) == 2


def test_interpolation_is_exact(arms: Path) -> None:
    line = json.loads((runs(arms) / "held/interpolation.json").read_text("utf-8"))
    start, end = weights(arms, "pretrain", 6), weights(arms, "held", 7)
    opened = open_checkpoint(runs(arms) / "held")
    share = line["chosen"]
    assert opened.lineage[-1]["interpolated"] == share and [p["share"] for p in line["points"]] == [0, 0.5, 1]
    for name, tensor in opened.tensors.items():
        torch.testing.assert_close(tensor, (1 - share) * start[name] + share * end[name])
        assert share not in (0, 1) or torch.equal(tensor, (start, end)[int(share)][name])
    now = outcome(arms, "held")
    assert line["points"][0]["found"] == now["before"]
    assert now["held_out"] == next(p["found"] for p in line["points"] if p["share"] == share)
    gains = {p["share"]: now["before"]["domain"]["mlm"] - p["found"]["domain"]["mlm"] for p in line["points"]}
    assert gains[share] == max(gains.values())


def test_an_adapter_goes_as_far_as_the_weights(world: Path) -> None:
    """Start plus what the folder `adapter` adds is what the stage hands on, whatever share of the way that is."""
    stages = "stages:\n  - {stage: pretrain, data: general, steps: 2}\n  - {stage: dapt, data: domain, steps: 4, interpolate: 0.25, optim: {lr: 1e-2}, lora: {rank: 2, targets: [up]}}\n"
    (world / "part.yaml").write_text(HEAD + stages, "utf-8")
    folder = run("part.yaml")
    start, found = (load_file(folder / stage / "hf/model.safetensors") for stage in ("pretrain", "dapt"))
    added = load_file(folder / "dapt/adapter/adapter_model.safetensors")
    config = json.loads((folder / "dapt/adapter/adapter_config.json").read_text("utf-8"))
    scale, compared = config["lora_alpha"] / config["r"], 0
    for name, a in added.items():
        if "lora_A" in name:
            b = added[name.replace("lora_A", "lora_B")]
            own = next(n for n in start if n.endswith(name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")))
            assert not torch.equal(start[own], found[own])
            torch.testing.assert_close(start[own] + scale * (b @ a), found[own], atol=1e-6, rtol=1e-5)
            compared += 1
    assert compared


def test_no_weights_are_chosen_without_held_out_text(world: Path) -> None:
    """Neither by nothing nor by the text of test rows; a given share chooses nothing."""
    (world / "arms.yaml").write_text(HEAD + ARMS, "utf-8")
    for changes, message in (
        (["stages.held.data=task"], "`interpolate` needs text to choose by, and source 'task' has no `valid` split"),
        (["sources.domain.valid=0"], "`interpolate` needs text to choose by, and source 'domain' has no `valid` split"),
        (
            [
                "sources.general.valid=0",
                "sources.general.test=0.1",
                "stages.held.interpolate=0.5",
                "stages.held.evaluate.every=2",
                "stages.held.forgetting={stop: true}",
            ],
            "`forgetting: {stop: true}` needs text to choose by, and source 'general' has no `valid` split",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            load_recipe("arms.yaml", changes)
    assert load_recipe("arms.yaml", ["stages.held.data=task", "stages.held.interpolate=0.5"])
    with pytest.raises(UserError, match="has no gain to choose a share by, for general counts as general text"):
        load_recipe("arms.yaml", ["stages.held.data=general", "stages.held.replay={}"])
    (world / "few.txt").write_text("a river and a stone\na window and a garden\n", "utf-8")
    few = HEAD.replace("{path: domain.txt, txt: line, valid: 0.1}", "{path: few.txt, txt: line}")
    (world / "few.yaml").write_text(few + ARMS, "utf-8")
    with pytest.raises(UserError, match="`interpolate` needs rows to choose by, and none of source 'domain' are held out"):
        run("few.yaml")
    assert not (runs(world) / "pretrain").exists()  # before anything is trained


@pytest.mark.parametrize(
    ("objective", "kind"),
    [("{kind: joint, parts: [{kind: nsp}, {kind: mlm}]}", "nsp"), ("{kind: sop}", "sop")],
)
def test_distillation_of_what_is_no_word_is_refused_at_once(world: Path, objective: str, kind: str) -> None:
    (world / "arms.yaml").write_text(HEAD + ARMS, "utf-8")
    with pytest.raises(
        UserError, match=f"keeps what a language model says at the rows asked for, and '{kind}' asks for something else"
    ):
        load_recipe("arms.yaml", [f"stages.held.objective={objective}"])


def test_interpolate_command(arms: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with contextlib.chdir(arms):
        app(
            ["interpolate", "arms.yaml", "--stage", "low", "--points", "3", "--share", "0.25", "--to", str(tmp_path / "soup")],
            standalone_mode=False,
        )
    printed = capsys.readouterr().out
    assert "domain loss" in printed and "chosen" in printed and "0.25" in printed
    start, end = weights(arms, "pretrain", 6), weights(arms, "low", 7)
    name = "model.blocks.0.mlp.up.weight"
    soup = open_checkpoint(tmp_path / "soup")
    torch.testing.assert_close(soup.tensors[name], 0.75 * start[name] + 0.25 * end[name])
    # the losses in its lineage are its own, as the table printed them
    (row,) = (line.split() for line in printed.splitlines() if line.split()[:1] == ["0.25"])
    said = soup.lineage[-1]["held_out"]
    assert {f"{numbers['mlm']:.3f}" for numbers in said.values()} <= set(row)
    assert said["domain"]["mlm"] != open_checkpoint(runs(arms) / "low").lineage[-1]["held_out"]["domain"]["mlm"]


@pytest.mark.parametrize("inside", [{"held": 2, "low": 5}, {"held": 5, "low": 4}])
def test_killed_with_all_arms(world: Path, arms: Path, monkeypatch: pytest.MonkeyPatch, inside: dict[str, int]) -> None:
    """Start weights, Fisher information and teacher are made again; LoRA's matrices come from the checkpoint."""
    (world / "arms.yaml").write_text(HEAD + ARMS, "utf-8")
    real = loop.backward
    seen = 0

    def kill_at(n: int) -> Callable[..., dict[str, float]]:
        def backward(*args: Any) -> dict[str, float]:
            nonlocal seen
            means = real(*args)
            seen += 1
            if seen == n:
                raise Killed
            return means

        return backward

    lost = 0
    for stage, done in (("held", 6), ("low", 13)):
        monkeypatch.setattr(loop, "backward", kill_at(done + inside[stage] + lost))
        with pytest.raises(Killed):
            run("arms.yaml")
        lost += 1 + (inside[stage] - 1) % 3
        if stage == "held" and inside[stage] > 3:
            (runs(world) / "held/fisher.safetensors").unlink()
    monkeypatch.setattr(loop, "backward", real)
    run("arms.yaml")
    for stage, last in (("held", 7), ("low", 7)):
        mine, straight = weights(world, stage, last), weights(arms, stage, last)
        assert all(torch.equal(mine[n], straight[n]) for n in straight), stage
        now, then = outcome(world, stage), outcome(arms, stage)
        assert now["held_out"] == then["held_out"] and now["before"] == then["before"] and now["curve"] == then["curve"]


def test_lora_from_scratch_trains_the_matrices(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arm of the ledger that has no trained matrices to add to: nothing is added twice when it goes on, and there is no adapter."""
    tuned = "{stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, steps: 5, lora: {rank: 2, alpha: 64, targets: [q, up]}, optim: {lr: 5e-3}}"
    stages = f"stages:\n  - {{stage: pretrain, data: general, steps: 2}}\n  - {tuned}\nworth: {{seeds: [0]}}\n"
    arm, real, seen = "worth/scratch/seed-0", loop.backward, 0

    def backward(*args: Any) -> dict[str, float]:
        nonlocal seen
        seen += 1
        if seen > 2 + 5 + 4:  # the arm's checkpoint is of its third step
            raise Killed
        return real(*args)

    straight = HEAD.replace("name: small", "name: straight") + stages
    Path("straight.yaml").write_text(straight, "utf-8")
    Path("cut.yaml").write_text(HEAD + stages, "utf-8")
    run("straight.yaml")
    monkeypatch.setattr(loop, "backward", backward)
    with pytest.raises(Killed):
        run("cut.yaml")
    monkeypatch.setattr(loop, "backward", real)
    assert checkpoints.at(runs(world) / arm, 3).exists()
    run("cut.yaml")
    mine = weights(world, arm, 5)
    whole = checkpoints.load(checkpoints.at(world / "runs/straight" / arm, 5))
    assert all(torch.equal(mine[name], tensor) for name, tensor in whole.tensors.items())
    assert not any("lora" in name for name in whole.optimizer)
    for stage, there in (("finetune", True), (arm, False)):
        assert (runs(world) / stage / "adapter/adapter_config.json").exists() == there


STOP = """\
stages:
  - {stage: pretrain, data: general, steps: 6}
  - {stage: dapt, data: domain, steps: 12, optim: {lr: 0.01}, schedule: {warmup: 8}, evaluate: {every: 2, tokens: 400}, forgetting: {limit: LIMIT, stop: true}}
  - {stage: tapt, data: task, steps: 2}
worth: false
"""


def test_a_stage_stops_at_the_limit(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hands on the weights of the last evaluation within the limit, also when it is killed after that."""
    (world / "domain.txt").write_text(
        "".join(f"{'abcdefgh'[n % 8] * 3} mmm nnn ooo ppp qqq {n}\n" for n in range(60)), "utf-8"
    )  # another world
    (world / "stop.yaml").write_text(HEAD + STOP.replace("LIMIT", "0.04"), "utf-8")
    run("stop.yaml")
    found, lines = outcome(world, "dapt"), read_metrics(runs(world) / "dapt/metrics.jsonl")
    rises = {n["step"]: n["heldout/general/mlm"] - found["before"]["general"]["mlm"] for n in lines if "heldout/general/mlm" in n}
    kept = found["steps"]
    assert found["stopped"] and 0 < kept < 12 and rises[kept] <= 0.04 < rises[kept + 2]
    opened = open_checkpoint(runs(world) / "dapt")
    assert opened.folder.name == f"step-{kept:08d}" and opened.lineage[-1]["steps"] == kept
    assert outcome(world, "tapt")["before"]["general"] == pytest.approx(found["held_out"]["general"])
    (world / "stop.yaml").write_text(HEAD.replace("name: small", "name: first") + STOP.replace("LIMIT", "1e-9"), "utf-8")
    with pytest.raises(UserError, match="the first evaluation, at step 2, is beyond the limit"):
        run("stop.yaml", ["stages.dapt.schedule.warmup=0"])


def test_mistakes(world: Path) -> None:
    wrong = {
        "stages.held.replay={nowhere: 0.1}": "unknown source 'nowhere'",
        "stages.held.replay={domain: 0.1}": "'domain' is read by the stage already",
        "stages.held.replay={general: 1.5}": "below 1",
        "stages.held.anchor={l2: 0, ewc: 0}": "needs a strength",
        "stages.held.init=scratch": "needs weights to start from",
        "stages.pretrain.optim.layer_decay=0.9": "layer_decay is for weights that were trained before",
        "stages.low.freeze={layers: 1}": "leaves the weights as they are already",
    }
    (world / "arms.yaml").write_text(HEAD + ARMS, "utf-8")
    for override, message in wrong.items():
        with pytest.raises(UserError, match=message):
            load_recipe("arms.yaml", [override])
    with pytest.raises(UserError, match="which has no labels"):
        load_recipe("small.yaml", ["stages.finetune.anchor={ewc: 1, general: general}"])
    assert load_recipe("small.yaml", ["stages.finetune.anchor={l2: 1}"]).stages[3].anchor is not None
    with pytest.raises(UserError, match="can stop the stage only where it is evaluated"):
        load_recipe("arms.yaml", ["stages.low.forgetting={stop: true}", "defaults.evaluate.every=null"])


@pytest.mark.parametrize(
    ("means", "message"),
    [
        ("freeze: {layers: 2}", "tapt: freeze: there are 1 layers, not 2"),
        ("lora: {targets: [q, gate]}", "tapt: lora: the model has no matrices 'gate'"),
    ],
)
def test_what_the_checkpoint_does_not_have(world: Path, arms: Path, means: str, message: str) -> None:
    """Said before anything is prepared or trained, also where only the checkpoint knows its shape."""
    head = HEAD.replace("roberta/tiny", "roberta").replace("model:", "# model:").replace("tokenizer:", "# tokenizer:")
    stages = f"  - {{stage: dapt, init: {runs(arms)}/pretrain, data: domain, steps: 1}}\n  - {{stage: tapt, data: task, steps: 1, {means}}}\n"
    (world / "own.yaml").write_text(f"{head}stages:\n{stages}", "utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        run("own.yaml")
    assert not [path for path in runs(world).rglob("*") if path.is_dir()]


def test_layers_of_fresh_weights_have_one_rate(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fine-tuning from scratch that `worth` compares with is not slowed."""
    found = {}

    def optimizer(self: Retention) -> Any:
        found[len(found)] = self.scales
        return build(self)

    build = Retention.optimizer
    monkeypatch.setattr(Retention, "optimizer", optimizer)
    run("small.yaml", ["worth={seeds: [0]}", "stages.finetune.optim.layer_decay=0.5"])
    scales = [set(one.values()) for one in found.values()]
    assert scales.count(set()) >= 4 and {0.5, 1.0} <= scales[3]
    assert scales[4] == set(), "from scratch"
    assert all({0.5, 1.0} <= one for one in scales[5:])


def test_a_warm_up_longer_than_its_epochs(world: Path) -> None:
    """Counted before anything is trained: 40 rows, 8 in a batch, 2 batches an update, 2 epochs."""
    with pytest.raises(UserError, match="finetune: a schedule with 50 updates of warm-up in a stage of 5"):
        run("small.yaml", ["stages.finetune.schedule={warmup: 50}"])
    assert not (runs(world) / "pretrain").exists()
    (found,) = doctor("small.yaml", ["stages.finetune.schedule={warmup: 50}"])["findings"]
    assert "50 updates of warm-up in a stage of 5" in found["message"] and found["level"] == "error"


def test_a_default_general_sample(world: Path) -> None:
    """Where a stage starts from somebody's checkpoint and the recipe has no general text; written into the resolved recipe."""
    (world / "own.yaml").write_text(
        "name: own\nsystem: bert\nsources: {domain: {path: domain.txt}, other: {path: general.txt}}\nstages:\n"
        "  - {stage: dapt, init: somewhere, data: domain, steps: 1}\n  - {stage: tapt, data: domain, steps: 1, forgetting: {general: other}}\n",
        "utf-8",
    )
    recipe = load_recipe("own.yaml")
    sample = recipe.sources["general-sample"]
    assert sample.kind == "docstrings" and sample.packages == ("python",)
    assert [s.measures for s in recipe.stages] == [("general-sample",), ("other",)] and recipe.resolved() == recipe
    assert parts(recipe) == [("domain", "train"), ("domain", "valid"), ("general-sample", "valid"), ("other", "valid")]
    with pytest.raises(UserError, match="did you mean 'other'"):
        load_recipe("own.yaml", ["stages.tapt.forgetting.general=othr"])
    assert "general-sample" not in load_recipe("own.yaml", ["stages.dapt.forgetting=false"]).sources
    with pytest.raises(UserError, match="is not an earlier stage"):
        load_recipe("own.yaml", ["stages.dapt.init=tapt", "stages.tapt.init=dapt"])


def test_the_wrong_domain_as_a_control(world: Path) -> None:
    """The stage again on other text, with as many steps, and the task fine-tuned from it."""
    with pytest.raises(UserError, match="'domain' is text that dapt reads"):
        load_recipe("small.yaml", ["worth={seeds: [0], control: domain}"])
    with pytest.raises(UserError, match="unknown source 'nowhere'"):
        load_recipe("small.yaml", ["worth={seeds: [0], control: nowhere}"])
    run("small.yaml", ["worth={seeds: [0], control: general}", "stages.dapt.steps=3", "stages.finetune.epochs=1"])
    report = json.loads((runs(world) / "report.json").read_text("utf-8"))
    names = [p["name"] for p in report["worth"]["prefixes"]]
    assert names == ["scratch", "+pretrain", "+dapt", "+dapt on general", "+tapt"]
    assert [(g["before"], g["after"]) for g in report["worth"]["controls"]] == [
        ("+pretrain", "+dapt on general"),
        ("+dapt on general", "+dapt"),
    ]
    lineage = open_checkpoint(runs(world) / "worth/control/dapt").lineage[-1]
    assert list(lineage["data"]) == ["general"] and lineage["steps"] == 3
    assert [s["name"] for s in report["stages"]] == ["pretrain", "dapt", "tapt", "finetune"]
    assert "dapt on general" in (runs(world) / "report.html").read_text("utf-8")


def test_the_control_goes_the_same_way(world: Path) -> None:
    """As far between start and trained weights as the right domain's stage, and to its last step whatever it forgets."""
    changes = [
        "worth={seeds: [0], control: other}",
        "stages.dapt.steps=4",
        "stages.finetune.epochs=1",
        "sources.other={path: general.txt, txt: line, valid: 0.1}",
    ]
    changes += ["stages.dapt.interpolate={points: 3, limit: 50}", "stages.dapt.optim.lr=1e-2"]
    changes += ["stages.dapt.forgetting={limit: 0.5, stop: true}", "stages.dapt.evaluate.every=2"]
    folder = run("small.yaml", changes)
    right, wrong = (open_checkpoint(path).lineage[-1] for path in (folder / "dapt", folder / "worth/control/dapt"))
    assert right["interpolated"] == wrong["interpolated"] > 0 and right["steps"] == wrong["steps"]
    start, end = (open_checkpoint(path).tensors for path in (folder / "pretrain", folder / "worth/control/dapt"))
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_the_control_of_a_stage_that_ended_early_has_its_schedule(world: Path) -> None:
    """As many steps as the weights that were handed on had, at the same rates; what the ledger says a stage took is what was trained."""
    changes = [
        "worth={seeds: [0], control: other}",
        "stages.dapt.steps=40",
        "stages.dapt.optim.lr=0.3",
        "stages.dapt.forgetting=false",
        "stages.dapt.evaluate={every: 2, patience: 2, tokens: 400}",
        "stages.finetune.epochs=1",
        "sources.other={path: general.txt, txt: line, valid: 0.1}",
    ]
    folder = run("small.yaml", changes)
    right, wrong = (read_metrics(path / "metrics.jsonl") for path in (folder / "dapt", folder / "worth/control/dapt"))
    report = json.loads((folder / "report.json").read_text("utf-8"))
    told = next(s for s in report["stages"] if s["name"] == "dapt")
    kept, ended = told["steps"], told["ended"]
    assert told["stopped"] == "patience" and kept < ended < 40
    rates = [{line["step"]: line["lr"] for line in lines if "lr" in line} for lines in (right, wrong)]
    assert max(rates[1]) == kept and rates[1] == {step: rate for step, rate in rates[0].items() if step <= kept}
    tokens = {line["step"]: line["tokens"] for line in right if "tokens" in line}
    after = report["worth"]["after"]["+dapt"]
    assert after["tokens"] == told["tokens"] == tokens[ended] > tokens[kept] and after["seconds"] == told["seconds"]
    path = folder / "worth/control/dapt/stage.json"
    old = json.loads(path.read_text("utf-8"))  # as a control was begun before: its whole schedule in as many steps
    assert old.pop("until") == kept
    path.write_text(json.dumps({**old, "stage": {**old["stage"], "steps": kept}}), "utf-8")
    said = (
        rf"worth/control/dapt was begun with other settings:\n  stage.steps: was {kept}, is 40\n  until: was absent, is {kept}\n"
    )
    with pytest.raises(UserError, match=said):
        run("small.yaml", changes)


def test_text_near_the_task(world: Path) -> None:
    """kNN-TAPT: the domain's documents that are like the task's; looked up once, and read beside the task's own by size."""
    draw = random.Random(3)
    lines = [
        f"{['wonderful', 'terrible', 'lovely', 'awful'][n % 4]} {sentence(draw, 7)}" if n % 3 == 0 else f"x{n} y{n} z{n} q"
        for n in range(60)
    ]
    (world / "domain.txt").write_text("\n".join(lines) + "\n", "utf-8")
    text = HEAD + (
        "stages:\n  - {stage: pretrain, data: general, steps: 2}\n"
        "  - {stage: tapt, data: task, nearest: {domain: 1}, replay: {general: 0.2}, epochs: 2}\nworth: false\n"
    )
    (world / "near.yaml").write_text(text, "utf-8")
    run("near.yaml")
    (path,) = (runs(world) / "shards/domain").glob("nearest-*.json")
    shards, tokenizer = Shards.open(runs(world) / "shards/domain/train"), Tokenizer.load(runs(world) / "tokenizer")
    chosen = np.array(json.loads(path.read_text("utf-8")))
    read = shards.read(chosen).parts["text"]
    texts = [tokenizer.decode(read.ids[a:b]) for a, b in itertools.pairwise(read.bounds)]
    assert 3 < len(chosen) <= 20 and not any(re.match(r"x\d", t) for t in texts)
    budget = json.loads((runs(world) / "tapt/budget.json").read_text("utf-8"))
    task = Shards.open(runs(world) / "shards/task/train")
    share = 0.8 * task.tokens / (task.tokens + sum(shards.lengths("text", chosen)))
    (world / "alone.yaml").write_text(text.replace("nearest: {domain: 1}, replay: {general: 0.2}, ", ""), "utf-8")
    alone = run("alone.yaml", ["name=alone"])
    passes = json.loads((alone / "tapt/budget.json").read_text("utf-8"))["steps"]
    assert budget["steps"] == pytest.approx(passes / share, abs=2)
    lineage = open_checkpoint(runs(world) / "tapt").lineage[-1]["data"]
    assert {n: d["documents"] for n, d in lineage.items()} == {
        "task": 40,
        "domain": len(chosen),
        "general": len(Shards.open(runs(world) / "shards/general/train")),
    }
    settings = json.loads((runs(world) / "tapt/stage.json").read_text("utf-8"))["data"]
    assert settings["domain"] != settings["task"]
    assert "documents" in batch_of("near.yaml", stage="tapt")


QUESTIONS = """\
stages:
  - {stage: pretrain, data: general, steps: 6, objective: {kind: clm}}
  - {stage: dapt, name: hidden, data: domain, steps: 6, objective: {kind: mlm}}
  - {stage: dapt, name: words, init: hidden, data: domain, steps: 6, objective: {kind: mlm, unit: word}}
worth: false
"""


def test_a_stage_with_another_question_is_asked_its_own(world: Path) -> None:
    """Trained by causal LM, then by masked LM: the causal loss would say nothing of the second stage, and its gain is masked LM's."""
    (world / "questions.yaml").write_text(HEAD + QUESTIONS, "utf-8")
    run("questions.yaml")
    for stage, name in (("pretrain", "clm"), ("hidden", "mlm"), ("words", "mlm")):
        found = outcome(world, stage)
        assert found["held_out"].keys() == {"general", "domain"} and all(name in n for n in found["held_out"].values())
        assert all(name in n for n in found["before"].values())
    report = json.loads((runs(world) / "report.json").read_text("utf-8"))
    (note,) = report["notes"]
    assert note == (
        "The held-out losses are of different questions and cannot be compared between stages: clm after pretrain; mlm after hidden, words."
    )


def test_other_units_of_one_question_are_compared(world: Path) -> None:
    (world / "units.yaml").write_text(HEAD + QUESTIONS.replace("{kind: clm}", "{kind: mlm, unit: span}"), "utf-8")
    run("units.yaml")
    assert outcome(world, "words")["before"] == outcome(world, "hidden")["held_out"]
    assert outcome(world, "hidden")["before"] == outcome(world, "pretrain")["held_out"]
    assert json.loads((runs(world) / "report.json").read_text("utf-8"))["notes"] == []


def test_all_stages_are_measured_with_the_memory_of_the_first(world: Path) -> None:
    (world / "questions.yaml").write_text(HEAD + QUESTIONS.replace("{kind: mlm}", "{kind: clm}"), "utf-8")
    recipe = load_recipe("questions.yaml")
    first, second = recipe.stages[0].model_copy(update={"memory": 16}), recipe.stages[1]
    run("questions.yaml")
    opened = open_checkpoint(runs(world) / "hidden")
    assert opened.tokenizer is not None and second.objective is not None and second.objective == first.objective
    scorer = Scorer(recipe.model_copy(update={"stages": (first, *recipe.stages[1:])}), {}, opened.tokenizer, runs(world))
    assert scorer.asked_with(opened.network.model, opened.network.heads, second.objective, second) == (first.objective, 16)

"""Sweeps in miniature: what is chosen against a search by hand over what was saved, going on after a kill, and mistakes."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ziggurat as zg
from conftest import write_world
from ziggurat.errors import Stopped, UserError
from ziggurat.evaluate.heldout import Predictions
from ziggurat.evaluate.scores import METRICS
from ziggurat.pipeline import sweep as sweeping
from ziggurat.pipeline.charts import Series, line_chart
from ziggurat.pipeline.grid import Place, read, said, written
from ziggurat.pipeline.run import run
from ziggurat.pipeline.sweep_report import on_test_rows, rows, to_csv
from ziggurat.pipeline.sweep_results import LOSS, Sweep, Trial, compare
from ziggurat.train import job, loop

RECIPE = """\
name: tune
system: roberta/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 64}
tokenizer: {kind: wordpiece, vocab: 400, lowercase: true}
sources:
  general: {path: general.txt, txt: line, valid: 0.1}
  domain: {path: domain.txt, txt: line, valid: 0.2}
  task: {path: train.jsonl, valid: 0.4, test: test.jsonl, columns: {text: sentence, label: label}}
defaults: {length: 32, precision: fp32, log_every: 4, save: {every: 5}, forgetting: false}
stages:
  - {stage: pretrain, data: general, steps: 3}
  - {stage: dapt, data: {domain: 3, general: 1}, steps: 4}
  - {stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, epochs: 5, batch: {documents: 8}}
worth: {seeds: [0, 1]}
"""
RATES = [1e-4, 1e-2]


@pytest.fixture
def place(world: Path) -> Path:
    Path("tune.yaml").write_text(RECIPE, "utf-8")
    return world


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep]:
    """A world where the fine-tuning was swept, and what came out; shared: look, do not touch."""
    folder = tmp_path_factory.mktemp("swept")
    write_world(folder)
    (folder / "tune.yaml").write_text(RECIPE, "utf-8")
    with contextlib.chdir(folder):
        return folder, zg.sweep("tune.yaml", "finetune", {"optim.lr": RATES})


@pytest.fixture
def again(swept: tuple[Path, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that world to go on with."""
    shutil.copytree(swept[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is trained from now on."""
    seen: list[str] = []
    real = loop.train

    def train(*args: Any, **named: Any) -> Any:
        seen.append(f"{args[4].steps} steps")
        return real(*args, **named)

    monkeypatch.setattr(loop, "train", train)
    yield seen


# --- what is chosen ----------------------------------------------------------------------------------------


def test_the_best_point_is_that_of_a_search_by_hand(swept: tuple[Path, Sweep]) -> None:
    folder, found = swept
    home = folder / "runs/tune/sweep/finetune"
    by_hand = {}
    for rate in ("1e-4", "0.01"):
        each = []
        for seed in (0, 1):
            kept = json.loads((home / f"optim.lr={rate}/seed-{seed}/predictions-valid.json").read_text("utf-8"))
            each.append(sum(g == p for g, p in zip(kept["gold"], kept["predicted"], strict=True)) / len(kept["gold"]))
        by_hand[f"optim.lr={rate}"] = each
    means = {name: statistics.mean(each) for name, each in by_hand.items()}
    assert len(set(means.values())) == 2, "the two points must differ, or nothing is chosen"
    assert found.best is not None and found.best.name == max(means, key=lambda name: means[name])
    for p in found.points:
        assert list(p.scores.values()) == pytest.approx(by_hand[p.name])
        assert p.deviation == pytest.approx(statistics.stdev(by_hand[p.name]))
    ordered = sorted(means.values())
    assert found.difference == pytest.approx(ordered[1] - ordered[0])
    assert found.seeds == (0, 1) and not found.distinguishable and "2 seeds only" in found.sentences[1]
    assert found.overrides == (f"stages.finetune.{found.best.name}",)


def test_test_rows_are_scored_for_the_best_point_alone(swept: tuple[Path, Sweep]) -> None:
    folder, found = swept
    assert found.best is not None
    home = folder / "runs/tune/sweep/finetune"
    assert {p.parts[-3] for p in home.glob("*/*/predictions.json")} == {found.best.name}
    for seed, score in found.test.items():
        kept = json.loads((home / found.best.name / f"seed-{seed}/predictions.json").read_text("utf-8"))
        assert len(kept["gold"]) == 20
        assert score == pytest.approx(sum(g == p for g, p in zip(kept["gold"], kept["predicted"])) / 20)
    assert found.best.name in on_test_rows(found)


def test_losers_are_not_exported_and_stages_before_are_those_of_run(again: Path, trained: list[str]) -> None:
    assert not list((again / "runs/tune/sweep").rglob("hf")) and (again / "runs/tune/dapt/hf").exists()
    assert not (again / "runs/tune/finetune").exists()
    run("tune.yaml", ["worth=false"])
    assert len(trained) == 1  # the fine-tuning: pretrain and dapt are found done


def test_what_is_written(swept: tuple[Path, Sweep]) -> None:
    folder, found = swept
    home = folder / "runs/tune/sweep/finetune"
    kept = json.loads((home / "sweep.json").read_text("utf-8"))
    assert found.best is not None and kept["best"] == found.best.name and kept["overrides"] == list(found.overrides)
    assert [p["mean"] for p in kept["points"]] == [p.mean for p in found.points]
    with open(home / "sweep.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(r["optim.lr"], int(r["seed"])) for r in lines] == [("1e-4", 0), ("1e-4", 1), ("0.01", 0), ("0.01", 1)]
    assert [float(r["score"]) for r in lines] == [v for p in found.points for v in p.scores.values()]
    page = (home / "sweep.html").read_text("utf-8")
    assert "<svg" in page and found.overrides[0] in page and "http" not in page.replace("http-equiv", "")
    assert page.count("<circle") == 2 * 2 + 2  # seeds and means


def test_a_text_stage_is_compared_by_its_own_held_out_loss(place: Path) -> None:
    found = zg.sweep("tune.yaml", "dapt", {"optim.lr": [1e-5, 1e-2, 1e-3]}, seeds=[4])
    losses = {}
    for p in found.points:
        held = json.loads((Path(p.folder) / "seed-4/outcome.json").read_text("utf-8"))["held_out"]
        losses[p.name] = (3 * held["domain"]["mlm"] + held["general"]["mlm"]) / 4
        assert p.mean == pytest.approx(losses[p.name])
    assert found.better == "lower" and found.best is not None and found.best.name == min(losses, key=lambda n: losses[n])
    assert found.best.name != "optim.lr=1e-5" and not found.test and not on_test_rows(found)
    assert not list(Path("runs/tune").rglob("predictions*.json")) and not Path("runs/tune/dapt").exists()


# --- going on ----------------------------------------------------------------------------------------------


def test_points_are_compared_on_the_held_out_text_of_now(place: Path, trained: list[str]) -> None:
    """Points of an earlier call, too: of text that was edited since they are measured again, and not trained again."""
    own = RECIPE.replace("path: domain.txt, txt: line, valid: 0.2", "path: domain.txt, txt: line, valid: held.txt")
    Path("tune.yaml").write_text(own, "utf-8")
    Path("held.txt").write_text("a river and a stone\na window and a garden\n" * 4, "utf-8")
    before = zg.sweep("tune.yaml", "dapt", {"optim.lr": RATES[:1]}).points[0].mean
    trained.clear()
    Path("held.txt").write_text("copper lamp violin desert\nisland stair tower mirror\n" * 4, "utf-8")
    both = zg.sweep("tune.yaml", "dapt", {"optim.lr": RATES})
    assert trained == ["4 steps"] and both.points[0].mean != before
    shutil.rmtree("runs/tune/sweep")
    assert [p.scores for p in zg.sweep("tune.yaml", "dapt", {"optim.lr": RATES}).points] == [p.scores for p in both.points]


def test_a_second_call_trains_nothing_and_says_the_same(
    again: Path, swept: tuple[Path, Sweep], trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path("runs/tune/sweep").rglob("*.safetensors")}
    sweeping.command(Path("tune.yaml"), "finetune", ["optim.lr=0.0001,1e-2"], "0,1")
    assert not trained and before == {p: p.stat().st_mtime_ns for p in before}
    out = capsys.readouterr().out
    assert out.rstrip().endswith(f"the best point in the recipe: {swept[1].overrides[0]}") and "accuracy" in out


def test_added_values_and_seeds_run_alone(again: Path, swept: tuple[Path, Sweep], trained: list[str]) -> None:
    found = zg.sweep("tune.yaml", "finetune", {"optim.lr": [1e-4, 1e-3, 1e-2]})
    assert len(trained) == 2 and [p.name for p in found.points] == ["optim.lr=1e-4", "optim.lr=1e-3", "optim.lr=0.01"]
    assert [found.points[n].scores for n in (0, 2)] == [p.scores for p in swept[1].points]
    more = zg.sweep("tune.yaml", "finetune", {"optim.lr": RATES}, seeds=[0, 1, 2])
    assert len(trained) == 4 and more.over_seeds is not None and more.over_examples is not None
    assert {0, 1, 2} == set(more.test)


def test_a_kill_in_the_middle_loses_nothing(
    place: Path, swept: tuple[Path, Sweep], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, steps = loop.train, []

    def stopped(*args: Any, **named: Any) -> Any:
        steps.append(args[5].step)
        if len(steps) == 4:  # pretrain, dapt, the first run, and in the middle of the second
            named["stop"] = lambda: args[5].step >= 7
        return counted(*args, **named)

    monkeypatch.setattr(loop, "train", stopped)
    with pytest.raises(Stopped):
        zg.sweep("tune.yaml", "finetune", {"optim.lr": RATES})
    assert not Path("runs/tune/sweep/finetune/sweep.json").exists()
    found = zg.sweep("tune.yaml", "finetune", {"optim.lr": RATES})
    assert steps == [0, 0, 0, 0, 7, 0, 0]
    assert [p.scores for p in found.points] == [p.scores for p in swept[1].points] and found.test == swept[1].test


def test_a_point_of_other_settings_is_not_gone_on_with(again: Path) -> None:
    """All that there are are named at once."""
    with pytest.raises(UserError, match=r"were begun with other settings:\n  stage.epochs: was 5, is 6\n  -> take") as error:
        zg.sweep("tune.yaml", "finetune", {"optim.lr": RATES}, overrides=["stages.finetune.epochs=6"])
    assert error.value.message.count("seed-") == 4 and "delete these folders" in (error.value.hint or "")


def timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[float]:
    """A machine on which a step takes so long at first, then so long; what is left of it."""
    left = list(seconds)
    monkeypatch.setattr(loop, "timed", lambda *args, **named: [(left.pop(0), 1)])
    return left


def test_what_is_compared_has_the_steps_of_one_time_budget(
    place: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once, however busy the machine is later; where a step's cost is swept, once for each cost."""
    more = ["stages.finetune.epochs=null", "stages.finetune.time=10s"]
    left = timed(monkeypatch, 2.0, 5.0)
    zg.sweep("tune.yaml", "finetune", {"optim.lr": RATES}, overrides=more)
    assert trained[2:] == ["5 steps"] * 4 and left == [5.0]
    trained.clear()
    zg.sweep(
        "tune.yaml", "finetune", {"optim.lr": [1e-3, *RATES]}, seeds=[2, 0, 1], overrides=more
    )  # the same command goes on, and so do more
    assert trained == ["5 steps"] * 5 and left == [5.0]
    trained.clear()
    timed(monkeypatch, 2.0, 5.0)
    zg.sweep("tune.yaml", "finetune", {"batch.documents": [8, 4], "dropout": [0.0, 0.1]}, seeds=[0, 1], overrides=more)
    assert trained == ["5 steps"] * 4 + ["2 steps"] * 4


def test_points_that_measured_a_time_budget_each_are_refused(
    place: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they did before it was shared."""
    more = ["stages.finetune.epochs=null", "stages.finetune.time=10s"]
    timed(monkeypatch, 2.0)
    zg.sweep("tune.yaml", "finetune", {"optim.lr": RATES}, overrides=more)
    budget = Path("runs/tune/sweep/finetune/optim.lr=0.01/seed-1/budget.json")
    budget.write_text(json.dumps({"steps": 7, "seconds": 10.0}), "utf-8")
    with pytest.raises(UserError, match=r"optim.lr=0.01/seed-1 was begun with other settings:\n  budget.steps: was 7, is 5\n"):
        zg.sweep("tune.yaml", "finetune", {"optim.lr": RATES}, overrides=more)


# --- runs that fail ----------------------------------------------------------------------------------------


def test_a_run_that_diverges_is_said_and_kept_and_never_averaged(
    again: Path, swept: tuple[Path, Sweep], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = job.run_stage, loop.backward
    now: list[Any] = []

    def stage(folder: Path, one: Any) -> Any:
        now[:] = [one.stage.optim.lr, one.seed]
        return real(folder, one)

    def backward(*args: Any, **named: Any) -> dict[str, float]:
        means = asked(*args, **named)
        return means | ({"loss": math.nan} if now == [5.0, 1] else {})

    monkeypatch.setattr(job, "run_stage", stage)
    monkeypatch.setattr(loop, "backward", backward)
    found = zg.sweep("tune.yaml", "finetune", {"optim.lr": [*RATES, 5.0]})
    bad = found.points[-1]
    assert math.isfinite(bad.scores[0]) and math.isnan(bad.scores[1]) and math.isnan(bad.mean) and not bad.ranked
    assert "diverged" in bad.fallen[1] and any("optim.lr=5" in n and "not ranked" in n for n in found.notes)
    assert found.best == swept[1].best and rows(found)[1][-1][-1] == "not ranked"
    kept = json.loads(Path("runs/tune/sweep/finetune/sweep.json").read_text("utf-8"))
    assert kept["points"][-1]["mean"] is None and "NaN" not in json.dumps(kept)
    trained.clear()
    assert zg.sweep("tune.yaml", "finetune", {"optim.lr": [*RATES, 5.0]}).points[-1].fallen == bad.fallen and not trained


def a_place(name: str) -> Place:
    return Place(name, name, {"optim.lr": float(name)}, (f"stages.finetune.optim.lr={name}",), None)  # type: ignore[arg-type]


def compared(scores: dict[str, list[float]], metric: Any = LOSS, **trials: list[Trial]) -> Sweep:
    tried = [(a_place(n), dict(enumerate(trials.get(n) or [Trial(v, 1.0, 10) for v in each]))) for n, each in scores.items()]
    return compare("r", "s", "measure", metric, {"optim.lr": [*map(float, scores)]}, tried, [*scores])


def test_the_lead_over_the_runner_up_is_paired_by_seed() -> None:
    """Student's t for two degrees of freedom is 4.302653 (printed tables)."""
    found = compared({"1": [2.0, 3.0, 4.0], "2": [1.9, 2.85, 3.95], "3": [5.0, 5.0, 5.0]})
    lead = [0.1, 0.15, 0.05]
    half = 4.302653 * statistics.stdev(lead) / math.sqrt(3)
    assert found.best is not None and found.best.name == "2" and found.runner_up is not None and found.runner_up.name == "1"
    assert found.over_seeds == pytest.approx((0.1 - half, 0.1 + half), rel=1e-5) and not found.distinguishable
    assert "The runner-up, 1, is not distinguishable" in found.sentences[1]
    sure = compared({"1": [2.0, 3.0, 4.0], "2": [1.9, 2.9, 3.89]})
    assert sure.distinguishable and "It is better than the runner-up, 1, by 0.1033 [0.0" in sure.sentences[1]


def test_no_point_is_chosen_among_runs_without_scores() -> None:
    found = compared({"1": [math.nan, 1.0], "2": [math.nan, math.nan]})
    assert found.best is None and found.overrides == () and "No point" in found.sentences[0]
    assert len(found.notes) == 2 and to_csv(found).count("undefined") == 3
    assert json.loads(found.to_json())["best"] is None


def test_losses_of_different_kinds_are_not_compared() -> None:
    with pytest.raises(UserError, match="different kinds cannot be compared: clm; mlm"):
        compared({"1": [], "2": []}, **{"1": [Trial(1.0, losses=("mlm",))], "2": [Trial(2.0, losses=("clm",))]})


def test_collapsed_runs_are_flagged_beside_the_mean() -> None:
    gold = ["a", "b", "a", "b"]
    good, flat = Predictions(gold, ["a", "b", "a", "a"]), Predictions(gold, ["a"] * 4)
    found = compared(
        {"1": [], "2": []},
        METRICS["accuracy"],
        **{"1": [Trial(0.75, answers=good), Trial(0.5, answers=flat)], "2": [Trial(0.75, answers=good)] * 2},
    )
    assert found.best is not None and found.best.name == "2"
    first = found.points[0]
    assert (first.mean, first.sound, list(first.fallen)) == (0.625, 0.75, [1])
    assert "1 of 2 failed, 75.0 without" in rows(found)[1][0][1] and rows(found)[1][0][3].endswith("*")
    assert any("predicts 'a' for everything" in note for note in found.notes)
    wholly = compared({"1": []}, METRICS["accuracy"], **{"1": [Trial(0.5, answers=flat)] * 2})
    assert wholly.notes[0].startswith("Every run of the best point collapsed")


# --- what may be asked -------------------------------------------------------------------------------------


def test_arguments_are_told_apart_by_their_first_word() -> None:
    grid, overrides = read(
        ["optim.lr=1e-5, 3e-5", "seed=1", "schedule={kind: cosine},{kind: linear, floor: 0.1}", "worth.seeds=[0,1]"]
    )
    assert grid == {"optim.lr": [1e-5, 3e-5], "schedule": [{"kind": "cosine"}, {"kind": "linear", "floor": 0.1}]}
    assert overrides == ["seed=1", "worth.seeds=[0,1]"]


def test_values_are_named_alike_however_they_are_written() -> None:
    assert [said(v) for v in (3e-5, 0.0001, 0.01, 0.5, 1000.0, 2, True, "20m", None)] == [
        "3e-5", "1e-4", "0.01", "0.5", "1e3", "2", "true", "20m", "null",
    ]  # fmt: skip
    for value in (3e-5, 12345.678, 1e22, "20m", "1", "true", "a: b", {"kind": "cosine"}, [0.9, 0.98], None):
        assert read([f"x={written(value)}"])[0]["x"] == [value], value


@pytest.mark.parametrize(
    "arguments, said_so",
    [
        (["optim.lr"], "no FIELD=VALUES"),
        (["optim.lr=1e-4", "optim.lr=1e-3"], "given twice"),
        (["seed=0,1"], "--seeds 0,1"),
        (["tokenizer.vocab=300,400"], "preparation"),
        (["sources.domain.valid=0.1,0.2"], "preparation"),
        (["stages.finetune.optim.lr=1e-4,1e-3"], "finetune optim.lr=1e-4,1e-3"),
        (["optim.lrr=1e-4,1e-3"], "did you mean 'lr'"),
        (["optm.lr=1e-4"], "did you mean 'optim'"),
        (["optim.lr=1e-4,-1"], "must be above 0"),
        (["optim.lr=1e-3,0.001"], "the same point"),
        (["vocabulary={extend: 10}"], "all text prepared anew"),
        (["nearest={general: 3}"], "other text prepared"),
        (["evaluate.tokens=10,20"], "measured"),
        (["save.every=1,2"], "changes no result"),
        (["data=domain"], "declares no labels"),
        (["objective.metric=accuracy,macro_f1"], "one metric"),
        (["batch.documents=8", "batch.tokens=256,512"], "undone by another"),
        (["init=scratch,pretrain,dapt,elsewhere"], "elsewhere"),
        (["seed=1"], "nothing to sweep"),
        (["optim.lr=1e-3", "sources.task.valid=null"], "valid: 0.1"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(
    place: Path, trained: list[str], arguments: list[str], said_so: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said_so)):
        sweeping.command(Path("tune.yaml"), "finetune", arguments, "0")
    assert not Path("runs/tune/sweep").exists()
    assert not trained and not Path("runs/tune/pretrain").exists()


def test_other_mistakes(place: Path) -> None:
    with pytest.raises(UserError, match="no stage 'finetun'; did you mean 'finetune'"):
        zg.sweep("tune.yaml", "finetun", {"optim.lr": [1e-3]})
    with pytest.raises(UserError, match="source 'domain' has no `valid` ones"):
        zg.sweep("tune.yaml", "dapt", {"optim.lr": [1e-3]}, overrides=["sources.domain.valid=0"])
    with pytest.raises(UserError, match="would have to be prepared"):
        other = "sources.other={path: general.txt, txt: line, valid: 0.1}"
        zg.sweep("tune.yaml", "dapt", {"data": ["other"]}, overrides=[other])
    with pytest.raises(UserError, match="length cannot be swept: held-out text is read at the stage's own length"):
        zg.sweep("tune.yaml", "dapt", {"length": [16, 32]})  # of a fine-tuning it may be: the task's metric is not a loss a token
    for seeds in ("0,x", "0,0"):
        with pytest.raises(UserError, match="whole numbers"):
            sweeping.command(Path("tune.yaml"), "dapt", ["optim.lr=1e-3"], seeds)
    assert not Path("runs/tune/sweep").exists()


def test_a_point_whose_warm_up_is_longer_than_its_epochs(place: Path) -> None:
    with pytest.raises(UserError, match=r"epochs=1: finetune: a schedule with 8 updates of warm-up in a stage of"):
        sweeping.sweep("tune.yaml", "finetune", {"epochs": [5, 1]}, overrides=["stages.finetune.schedule={warmup: 8}"])
    assert not Path("runs/tune/pretrain").exists()


def test_a_point_of_more_examples_than_there_are_rows(place: Path, trained: list[str]) -> None:
    with pytest.raises(UserError, match=r"examples=4000: .* has \d+ rows, fewer than `examples: 4000`"):
        sweeping.sweep("tune.yaml", "finetune", {"examples": [16, 4000]})
    assert not trained and not Path("runs/tune/pretrain").exists()


def test_starts_can_be_swept(place: Path) -> None:
    found = zg.sweep("tune.yaml", "finetune", {"init": ["scratch", "dapt"], "epochs": [1]}, seeds=[0])
    parents = [json.loads((Path(p.folder) / "seed-0/stage.json").read_text("utf-8"))["parent"] for p in found.points]
    assert parents[0] == "scratch" and len(set(parents)) == 2


def test_rates_stand_on_a_logarithmic_axis() -> None:
    series = [Series("mean", [(1e-5, 1.0), (1e-4, 2.0), (1e-3, 3.0)])]
    chart = line_chart(series, x_label="lr", y_label="y", x_ticks={1e-5: "1e-5", 1e-4: "1e-4", 1e-3: "1e-3"}, log=True)
    (points,) = re.findall(r'points="([^"]*)"', chart)
    x = [float(pair.split(",")[0]) for pair in points.split()]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and x[0] < x[1]
    assert re.findall(r'text-anchor="middle">([^<]*)<', chart) == ["1e-5", "1e-4", "1e-3"] and "at 1e-4" in chart

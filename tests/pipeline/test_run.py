"""Whole runs in miniature: recipes of other shapes than the usual four stages, starts from checkpoints, and the report."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError
from ziggurat.evaluate import baselines
from ziggurat.pipeline.opened import called, open_checkpoint
from ziggurat.pipeline.run import load_recipe, prepare, run
from ziggurat.train import loop, settings

HEAD = """\
name: other
system: {system}
tokenizer: {tokenizer}
sources:
  general: {{path: general.txt, txt: line, valid: 0.1}}
  domain: {{path: domain.txt, txt: line, valid: 0.1}}
  task: {{path: train.jsonl, test: test.jsonl, columns: {{text: sentence, label: label}}}}
defaults: {{length: 32, precision: fp32, steps: 2}}
stages:
"""
OWN = "{kind: wordpiece, vocab: 400, lowercase: true}"
TUNE = "  - {stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, epochs: 1}\n"


def recipe(stages: str, system: str = "roberta/tiny", tokenizer: str = OWN, more: str = "") -> Path:
    dials = "model: {layers: 1, width: 32, heads: 2, mlp: 64}\n" if "/" in system else ""
    Path("other.yaml").write_text(HEAD.format(system=system, tokenizer=tokenizer) + stages + dials + more, "utf-8")
    return Path("other.yaml")


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return found


def test_the_report_of_four_stages(finished: Path) -> None:
    facts = report(finished / "runs/small")
    assert [s["name"] for s in facts["stages"]] == ["pretrain", "dapt", "tapt", "finetune"]
    assert [p["name"] for p in facts["worth"]["prefixes"]] == ["scratch", "+pretrain", "+dapt", "+tapt"]
    assert set(facts["worth"]["baselines"]) == {"majority", "TF-IDF + logistic regression"}
    assert facts["task"] == "classify task: 40 labelled rows, 20 test rows"
    assert facts["commands"] == ["ziggurat run small.yaml"] and "wordpiece" in facts["tokenizer"] and facts["date"]
    pretrain = facts["stages"][0]
    assert [step for step, _ in pretrain["heldout_curve"]["domain"]] == [5, 9]
    assert pretrain["heldout_curve"]["domain"][-1][1] == pretrain["heldout"]["domain"]["loss"]
    assert pretrain["evaluation_seconds"] > 0 and pretrain["tokens_per_second"] > 0
    by_name = {row["source"]: row for row in facts["sources"]}
    assert by_name["general"]["documents"] + by_name["general"]["heldout"] == 120 and by_name["task"]["test"] == 20
    assert load_recipe(finished / "runs/small/recipe.yaml").resolved() == load_recipe(finished / "small.yaml")


def test_every_stage_is_exported_with_its_weights(finished: Path) -> None:
    for stage in ("pretrain", "dapt", "tapt", "finetune"):
        folder = finished / "runs/small" / stage
        ours, theirs = open_checkpoint(folder), open_checkpoint(folder / "hf")
        assert ours.tokenizer is not None and theirs.tokenizer is not None
        assert ours.tokenizer.fingerprint == theirs.tokenizer.fingerprint
        assert all((theirs.tensors[name] == tensor).all() for name, tensor in ours.tensors.items())
    assert open_checkpoint(finished / "runs/small/finetune/hf").labels == ("neg", "pos")


def test_the_order_of_ancestors(finished: Path) -> None:
    lineage = open_checkpoint(finished / "runs/small/worth/dapt/seed-1").lineage
    assert [entry["name"] for entry in lineage] == ["pretrain", "dapt", "finetune"]
    assert [entry["seed"] for entry in lineage] == [0, 0, 1]


def test_running_again_does_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(finished)
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file() and "tokenizer" not in p.parts}
    run("small.yaml")
    after = {p: p.stat().st_mtime_ns for p in before}
    changed = {p.name for p in before if before[p] != after[p]}
    assert changed <= {"report.html", "report.json", "doctor.json", "recipe.yaml", "lock"}
    assert "+tapt" in capsys.readouterr().out


def test_text_alone(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No fine-tuning: nothing is worth anything, and the losses are told."""
    folder = run(recipe("  - {stage: pretrain, data: {general: 3, domain: 1}}\n  - {stage: dapt, data: domain}\n"))
    facts = report(folder)
    assert facts["worth"] is None and set(facts["stages"][1]["heldout"]) == {"general", "domain"}
    assert "dapt" in capsys.readouterr().out


def test_fine_tuning_alone(world: Path) -> None:
    folder = run(recipe(TUNE, more="worth: {seeds: [3]}\n"))
    facts = report(folder)
    assert [p["name"] for p in facts["worth"]["prefixes"]] == ["scratch"]
    assert open_checkpoint(folder / "finetune").lineage[-1]["seed"] == 3
    assert not (folder / "worth").exists()


def test_drawn_rows_are_the_seeds(world: Path) -> None:
    folder = run(recipe(TUNE.replace("epochs", "examples: 8, epochs"), more="worth: {seeds: [0, 1]}\n"))
    assert open_checkpoint(folder / "finetune").lineage[-1]["data"]["task"]["documents"] == 8
    with pytest.raises(UserError, match="has 40 rows, fewer than `examples: 41`"):
        run(recipe(TUNE.replace("epochs", "examples: 41, epochs"), more="worth: false\n"), ["name=more"])


@pytest.mark.parametrize("kind", ["ours", "hf"])
def test_starting_from_a_checkpoint(finished: Path, world: Path, kind: str) -> None:
    """Without a size and a tokenizer, which the checkpoint brings; the first prefix is called after its folder."""
    start = finished / "runs/small/pretrain" / ("hf" if kind == "hf" else "")
    stages = f"  - {{stage: dapt, data: domain, init: {start}}}\n{TUNE}"
    folder = run(recipe(stages, "roberta", "null", "worth: {seeds: [0]}\n"))
    facts = report(folder)
    assert [p["name"] for p in facts["worth"]["prefixes"]] == ["pretrain", "+dapt"]
    lineage = [entry["name"] for entry in open_checkpoint(folder / "dapt").lineage]
    assert lineage == ["pretrain", "dapt"]
    body = "model.embed.token.weight"
    before = open_checkpoint(start).tensors[body]
    after = load_file(checkpoints.at(folder / "dapt", 2) / "model.safetensors")[body]
    assert before.shape == after.shape and 0 < float((before - after).abs().max()) < 0.01
    assert (folder / "tokenizer/tokenizer.json").exists()  # what `show --batch` reads


def test_a_later_stage_from_a_checkpoint(finished: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer must be the checkpoint's all along; an earlier stage may be from scratch and of its own. Folders of the
    run are called by the checkpoint's, not by the variable that names it."""
    monkeypatch.setenv("START", str(finished / "runs/small/pretrain"))
    start = "$START"
    tokenizer = f"{{path: {finished / 'runs/small/tokenizer'}}}"
    stages = f"  - {{stage: pretrain, data: general}}\n  - {{stage: dapt, data: domain, init: {start}}}\n{TUNE}"
    folder = run(recipe(stages, tokenizer=tokenizer, more="worth: {seeds: [0]}\n"))
    assert [p["name"] for p in report(folder)["worth"]["prefixes"]] == ["imported pretrain", "+dapt"]
    assert (folder / "worth/imported pretrain/seed-0/DONE").exists()


def test_a_task_that_comes_later(world: Path) -> None:
    """Its test rows are kept out of the text from then on: that is no matter where they were not in it, and told where they were."""
    first = "  - {stage: pretrain, data: general}\n"
    folder = run(recipe(first))
    before = (checkpoints.at(folder / "pretrain", 2) / "model.safetensors").stat().st_mtime_ns
    run(recipe(first + TUNE, more="worth: false\n"))
    assert (checkpoints.at(folder / "pretrain", 2) / "model.safetensors").stat().st_mtime_ns == before
    rows = Path("general.txt").read_text("utf-8").splitlines()[:5]
    Path("test.jsonl").write_text("".join(json.dumps({"sentence": r, "label": "pos"}) + "\n" for r in rows), "utf-8")
    with pytest.raises(UserError, match=r"pretrain was begun with other settings:\n  data.general: was"):
        run(recipe(first + TUNE, more="worth: false\n"))


def test_test_rows_are_in_no_other_text(world: Path) -> None:
    rows = [json.loads(line)["sentence"] for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    with open("domain.txt", "a", encoding="utf-8") as file:
        file.write("\n".join(rows[:3]) + "\n")
    folder = prepare(recipe("  - {stage: dapt, data: domain}\n" + TUNE))
    facts = [json.loads(p.read_text("utf-8")) for p in (folder / "shards/domain").glob("*.json")]
    assert sum(f["leaks"] for f in facts) == 3 and sum(f["kept"] for f in facts) == 60


def test_a_test_row_of_punctuation_says_nothing_that_could_leak(world: Path) -> None:
    """By words no text is like it, and the check on the finished shards, which looks at tokens, agrees."""
    marks = "; . ( ) : , ! ? ; . ( ) : , ! ?"
    with open("test.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"sentence": marks, "label": "pos"}) + "\n")
    with open("domain.txt", "a", encoding="utf-8") as file:
        file.write(f"he wrote {marks} and left\n")
    folder = prepare(recipe("  - {stage: dapt, data: domain}\n" + TUNE))
    facts = [json.loads(p.read_text("utf-8")) for p in (folder / "shards/domain").glob("*.json")]
    assert sum(f["leaks"] for f in facts) == 0 and sum(f["kept"] for f in facts) == 61


def test_baselines_are_scored_on_the_rows_that_the_model_answers(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test row of which the tokenizer leaves nothing is asked of nobody, and is said."""
    rows = Path("test.jsonl").read_text("utf-8").splitlines(keepends=True)
    nothing = json.dumps({"sentence": "\u200b\u200b", "label": "pos"}) + "\n"
    Path("test.jsonl").write_text("".join([*rows[:3], nothing, *rows[3:]]), "utf-8")
    asked: list[list[str]] = []
    real = baselines.predict

    def predict(kind: Any, x: Any, y: Any, x_test: Any) -> Any:
        asked.append(x_test)
        return real(kind, x, y, x_test)

    monkeypatch.setattr(baselines, "predict", predict)
    facts = report(run(recipe(TUNE, more="worth: false\n")))
    assert asked == [[json.loads(row)["sentence"] for row in rows]] and "20 test rows" in facts["task"]
    assert facts["worth"]["baselines"]["majority"] == 0.5
    (said,) = [f for f in facts["doctor"]["findings"] if f["check"] == "rows"]
    assert said["level"] == "warning" and said["where"] == "source task (test)"
    assert said["message"] == "1 of 21 rows have no token that the tokenizer knows and are left out"
    baselines_of = Path("runs/other/baselines.json")
    kept = json.loads(baselines_of.read_text("utf-8"))
    del kept["settings"]["lost"]  # as earlier versions wrote it, who asked the baselines all rows
    baselines_of.write_text(json.dumps({**kept, "scores": {"majority": 0.0}}), "utf-8")
    assert report(run("other.yaml"))["worth"]["baselines"]["majority"] == 0.5


def test_what_the_filter_would_miss_is_caught_in_the_shards(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.loads(line)["sentence"] for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    with open("domain.txt", "a", encoding="utf-8") as file:
        file.write(f"first this {' '.join(rows[:3])}\n")
    told = [json.loads(line) for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    told[0]["sentence"] = " ".join(rows[:3])
    Path("test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told), "utf-8")
    monkeypatch.setattr("ziggurat.data.leaks.LeakIndex.clean", lambda self, documents, left_out=None: iter(documents))
    with pytest.raises(AssertionError, match="test text 0 stands in the training text"):
        prepare(recipe("  - {stage: dapt, data: domain}\n" + TUNE))


ENDINGS = """\
  - {stage: pretrain, data: general, steps: 3}
  - {stage: dapt, data: domain, steps: 6, optim: {lr: 1e-9}, evaluate: {every: 2, keep: best, by: accuracy}}
  - {stage: tapt, data: domain, steps: 3, interpolate: {points: 2}}
"""


def left(folder: Path) -> dict[str, Any]:
    """What every stage found and hands on, times left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*/outcome.json")):
        outcome = json.loads(path.read_text("utf-8"))
        last = open_checkpoint(path.parent)
        place = str(last.folder.relative_to(folder))
        numbers = {k: v for k, v in outcome.items() if not k.endswith("seconds")}
        found[path.parent.name] = (
            numbers,
            place,
            last.fingerprint,
            [e["name"] for e in last.lineage],
            last.lineage[-1]["held_out"],
        )
    return found


def test_killed_while_a_checkpoint_is_replaced_by_one_of_its_step(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its card is completed so, last of all: the old one has stepped aside, and the new one is not there yet."""
    whole = left(run(recipe(ENDINGS), ["name=whole"]))
    handed = [place for _, place, *_ in whole.values()]
    assert [Path(place).parent.name for place in handed] == ["within", "pretrain", "result"]

    class Killed(BaseException):
        """Stands for SIGKILL: no handler of ours may see it."""

    real = os.replace
    killed = list[str]()

    def replace(source: Path, target: Path) -> None:
        real(source, target)
        place = str(Path(target).with_suffix(""))
        if str(target).endswith(".old") and place not in killed:
            killed.append(place)
            raise Killed

    monkeypatch.setattr(os, "replace", replace)
    for _ in handed:
        with pytest.raises(Killed):
            run("other.yaml")
        assert not Path(killed[-1]).exists()
    assert set(killed) == {f"runs/other/{place}" for place in handed}
    assert left(run("other.yaml")) == whole and not [*Path("runs/other").rglob("*.old")]


def test_another_system_has_another_template(world: Path) -> None:
    prepare(recipe("  - {stage: pretrain, data: general}\n"))
    folder = prepare(recipe("  - {stage: pretrain, data: general}\n", system="bert/tiny"))
    assert "[MASK]" in (folder / "tokenizer/tokenizer.json").read_text("utf-8")


def test_tensorboard(world: Path) -> None:
    folder = run(recipe("  - {stage: pretrain, data: general}\n", more="tensorboard: true\n"))
    assert list((folder / "pretrain/tensorboard").glob("events.*"))


def test_settings_are_compared_by_field(tmp_path: Path) -> None:
    settings.keep(tmp_path, {"stage": {"lr": 1.0, "data": {"a": 1}}})
    (tmp_path / "budget.json").write_text("{}", "utf-8")
    settings.keep(tmp_path, {"stage": {"lr": 2.0, "data": {"a": 1}}})  # nothing was trained yet
    assert not (tmp_path / "budget.json").exists()
    (tmp_path / "step-00000001").mkdir()
    mark = settings.fingerprint(tmp_path)
    settings.keep(tmp_path, {"stage": {"data": {"a": 1}, "lr": 2.0}})
    assert settings.fingerprint(tmp_path) == mark
    with pytest.raises(UserError, match=r"stage.lr: was 2.0, is 3.0\n  stage.data.b: was absent, is 1"):
        settings.keep(tmp_path, {"stage": {"lr": 3.0, "data": {"a": 1, "b": 1}}})


def test_a_changed_fine_tuning_is_refused_once_for_all_that_it_was_begun_from(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fine-tuning and those of the control, before any is trained."""
    more = ["worth={seeds: [0, 1], control: other}", "sources.other={path: general.txt, txt: line, valid: 0.1}"]
    stages = "  - {stage: dapt, data: domain, steps: 2}\n" + TUNE
    run(recipe(stages), more)
    trained: list[Path] = []
    monkeypatch.setattr("ziggurat.train.loop.train", lambda *args, **named: trained.append(Path()))
    shutil.rmtree("runs/other/finetune")  # as the first of them was asked for
    with pytest.raises(
        UserError, match=r"were begun with other settings:\n  stage.optim.lr: was 5e-05, is 0.001\n  -> take"
    ) as error:
        run(recipe(stages), [*more, "stages.finetune.optim.lr=1e-3"])
    homes = ["scratch/seed-0", "scratch/seed-1", "dapt/seed-1", "control/seed-0", "control/seed-1"]
    assert error.value.message.splitlines()[0].split(" were ")[0].split(", ") == [f"runs/other/worth/{home}" for home in homes]
    assert error.value.hint is not None and "delete these folders to begin the stages again" in error.value.hint
    assert not trained


def test_all_arms_have_the_steps_of_one_time_budget(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured once, by the recipe's own fine-tuning, however busy the machine is later; a second run trains nothing."""
    more = ["worth={seeds: [0, 1], control: other}", "sources.other={path: general.txt, txt: line, valid: 0.1}"]
    stages = "  - {stage: dapt, data: domain, steps: 2}\n" + TUNE.replace("epochs: 1", "time: 10s")
    left, trained, real = [2.0, 5.0], list[int](), loop.train

    def train(*args: Any, **named: Any) -> Any:
        trained.append(args[4].steps)
        return real(*args, **named)

    monkeypatch.setattr(loop, "timed", lambda *args, **named: [(left.pop(0), 1)])
    monkeypatch.setattr(loop, "train", train)
    folder = run(recipe(stages), more)
    assert trained == [2, 5, 5, 5, 5, 2, 5, 5] and left == [5.0]
    shutil.rmtree(folder / "worth/scratch/seed-1")
    run(recipe(stages), more)
    assert trained[8:] == [5]
    old = folder / "worth/scratch/seed-0/budget.json"  # as every arm measured its own before
    old.write_text(json.dumps({"steps": 7, "seconds": 10.0}), "utf-8")
    with pytest.raises(UserError, match=r"worth/scratch/seed-0 was begun with other settings:\n  budget.steps: was 7, is 5\n"):
        run(recipe(stages), more)


def test_a_stage_that_ended_early_is_not_begun_again_with_other_settings(tmp_path: Path) -> None:
    """Of one that patience ended no checkpoint is left but that of an evaluation."""
    settings.keep(tmp_path, {"lr": 1.0})
    (tmp_path / "within/step-00000001").mkdir(parents=True)
    (tmp_path / "DONE").touch()
    with pytest.raises(UserError, match=r"lr: was 1.0, is 2.0"):
        settings.keep(tmp_path, {"lr": 2.0})
    assert (tmp_path / "within").exists()


def test_held_out_text_that_an_older_folder_does_not_name_is_no_change(tmp_path: Path) -> None:
    settings.keep(tmp_path, {"seed": 0})
    (tmp_path / "step-00000001").mkdir()
    settings.keep(tmp_path, {"seed": 0, "chosen_by": {"general": "a"}})
    assert json.loads((tmp_path / settings.FILE).read_text("utf-8")) == {"seed": 0}
    settings.keep(tmp_path / "new", {"seed": 0, "chosen_by": {"general": "a"}})
    (tmp_path / "new/step-00000001").mkdir()
    with pytest.raises(UserError, match=r"chosen_by.general: was a, is b"):
        settings.keep(tmp_path / "new", {"seed": 0, "chosen_by": {"general": "b"}})


def test_what_a_folder_is_called() -> None:
    assert called("models/minilm") == "minilm"
    assert called("runs/a/pretrain/hf/") == called("runs/a/pretrain/step-00000400") == "pretrain"

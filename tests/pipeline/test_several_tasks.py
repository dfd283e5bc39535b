"""A fine-tuning of several tasks, run whole: scores, folders for the Hub, resuming, later stages, draws, and bad recipes."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import WORDS, sentence, write_world
from ziggurat.checkpoint import format as checkpoints
from ziggurat.config import load as load_file_as
from ziggurat.data.loader import Loader
from ziggurat.errors import UserError
from ziggurat.evaluate.heldout import to_device
from ziggurat.objectives.base import context_of
from ziggurat.objectives.tasks import Tasks
from ziggurat.pipeline.evaluate import evaluate_checkpoint
from ziggurat.pipeline.model import load
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import begin, load_recipe, run
from ziggurat.pipeline.session import session
from ziggurat.pipeline.show import batch_of, show
from ziggurat.systems import SYSTEMS
from ziggurat.systems.hub import export_checkpoint
from ziggurat.train import loop
from ziggurat.train.budget import mixture
from ziggurat.train.recipe import Recipe
from ziggurat.types import FULL, Batch, Stream, text_target

RECIPE = """\
name: many
system: bert/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 64}
tokenizer: {kind: wordpiece, vocab: 400, lowercase: true}
sources:
  general: {path: general.txt, txt: line, valid: 0.1}
  task: {path: train.jsonl, test: test.jsonl, valid: 0.2, columns: {text: sentence, label: label}}
  same: {path: pairs-train.jsonl, test: pairs-test.jsonl, columns: {text: a, pair: b, label: same}}
  ner: {path: tags-train.jsonl, test: tags-test.jsonl, columns: {tokens: words, tags: tags}}
defaults: {length: 32, precision: fp32, dropout: 0.1}
stages:
  - {stage: pretrain, data: general, objective: {kind: mlm}, steps: 2}
  - stage: finetune
    data: {task: 1, same: 1, ner: 2}
    objective:
      kind: tasks
      parts:
        task: {kind: classify, labels: [neg, pos]}
        same: {kind: classify, labels: [0, 1], names: [other, same]}
        ner: {kind: tag, labels: [O, B], metric: token_f1}
      weights: {ner: 0.5}
    steps: 9
    accumulate: 2
    batch: {documents: 4}
    save: {every: 3}
    log_every: 1
worth: {seeds: [0, 1]}
"""
CLASSES = {
    "task": "BertForSequenceClassification",
    "same": "BertForSequenceClassification",
    "ner": "BertForTokenClassification",
}


def write_tasks(folder: Path) -> None:
    write_world(folder)
    draw = random.Random(5)
    for split, count in (("train", 60), ("test", 20)):
        pairs, tags = [], []
        for n in range(count):
            a = sentence(draw, 5)
            pairs.append({"a": a, "b": a if n % 2 else sentence(draw, 5), "same": n % 2})
            words = [draw.choice(WORDS.split()) for _ in range(draw.randint(3, 8))]
            tags.append({"words": words, "tags": ["B" if word < "k" else "O" for word in words]})
        for name, rows in (("pairs", pairs), ("tags", tags)):
            (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "many.yaml").write_text(RECIPE, "utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; it is shared: look, do not touch."""
    folder = tmp_path_factory.mktemp("many")
    write_tasks(folder)
    with contextlib.chdir(folder):
        run("many.yaml")
    return folder


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tasks(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(folder: Path, task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "predictions" / f"{task}.json").read_text("utf-8"))
    return found


def test_every_task_is_scored_on_its_own_rows(done: Path) -> None:
    facts = json.loads((done / "runs/many/report.json").read_text("utf-8"))
    assert facts["worth"] is None and [t["task"] for t in facts["tasks"]] == ["task", "same", "ner"]
    tuned = done / "runs/many/finetune"
    gold = {"task": ["neg", "pos"], "same": ["other", "same"], "ner": ["O", "B"]}
    for one in facts["tasks"]:
        answers = kept(tuned, one["task"])
        pairs = list(zip(answers["gold"], answers["predicted"], strict=True))
        assert len(pairs) == one["test"] == 20 and one["rows"] in (33, 60)
        if one["task"] == "ner":
            rows = [json.loads(line) for line in (done / "tags-test.jsonl").read_text("utf-8").splitlines()]
            assert answers["gold"] == [row["tags"] for row in rows]
            flat = [(g, p) for right, said in pairs for g, p in zip(right, said, strict=True)]
            hits = sum(g == p == "B" for g, p in flat)
            score = 2 * hits / max(1, sum((g == "B") + (p == "B") for g, p in flat))
        else:
            assert set(answers["gold"]) == set(gold[one["task"]])
            score = sum(g == p for g, p in pairs) / 20
        ledger = one["worth"]
        assert [p["name"] for p in ledger["prefixes"]] == ["scratch", "+pretrain"] and ledger["seeds"] == [0, 1]
        assert ledger["prefixes"][1]["scores"]["0"] == pytest.approx(score)
        assert ledger["metric"] == ("token_f1" if one["task"] == "ner" else "accuracy") and ledger["baselines"]
    page = (done / "runs/many/report.html").read_text("utf-8")
    assert "<h2>The tasks</h2>" in page and page.count("<td>same</td>") >= 1 and "ner: pretrain: " in page
    entry = open_checkpoint(tuned).lineage[-1]
    assert (
        "test" not in entry
        and set(entry["tests"]) == set(gold)
        and entry["held_out"]["task"].keys()
        == {
            "classify",
            "classify_accuracy",
        }
    )
    assert "ner: token_f1" in show(str(tuned)) and "classify-same" in show(str(tuned))


def test_metrics_have_a_loss_a_task(done: Path) -> None:
    lines = [json.loads(line) for line in (done / "runs/many/finetune/metrics.jsonl").read_text("utf-8").splitlines()]
    assert {"classify-task", "classify-same", "tag-ner", "loss"} <= {key for line in lines for key in line}
    assert not [key for line in lines for key in line if key.startswith("examples")]


@pytest.mark.parametrize("task", list(CLASSES))
def test_each_tasks_folder_says_what_we_say(done: Path, task: str) -> None:
    """The Hub's class, loaded from the folder: the body of all tasks, this task's head, and our logits."""
    transformers = pytest.importorskip("transformers")
    folder = done / "runs/many/finetune/hf" / task
    auto = transformers.AutoModelForTokenClassification if task == "ner" else transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(folder).eval()
    assert type(theirs).__name__ == CLASSES[task]
    assert list(theirs.config.id2label.values()) == list(open_checkpoint(done / "runs/many/finetune").tasks[task])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = load(done / "runs/many/finetune", task)
    texts: list[Any] = ["a great river of stone", "terrible paper"]
    given = [(text, "the silver bridge") for text in texts] if task == "same" else texts
    for text in given:
        encoded = tokenizer(*text, return_tensors="pt") if isinstance(text, tuple) else tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = theirs(**encoded).logits[0]
        if task == "ner":
            names = list(model.labels)
            said = [label for _, label in model.predict([text])[0]]
            words = encoded.word_ids()
            first = [words.index(n) for n in range(len(said))]
            assert [names[int(logits[i].argmax())] for i in first] == said
        else:
            (ours,) = model.probabilities([text])
            torch.testing.assert_close(torch.tensor(list(ours.values())), logits.softmax(-1), rtol=1e-5, atol=1e-6)
    whole, part = open_checkpoint(done / "runs/many/finetune"), open_checkpoint(folder)
    body = [name for name in whole.tensors if name.startswith("model.")]
    assert body and all(torch.equal(whole.tensors[name], part.tensors[name]) for name in body)
    head = "tag" if task == "ner" else "classify"
    assert torch.equal(whole.tensors[f"heads.{head}-{task}.out.weight"], part.tensors[f"heads.{head}.out.weight"])


@pytest.mark.parametrize("task", list(CLASSES))
def test_each_tasks_folder_has_our_logits(done: Path, task: str) -> None:
    """Of ids and segments drawn at random, from the Hub's class and from the network of all tasks."""
    transformers = pytest.importorskip("transformers")
    kind = "TokenClassification" if task == "ner" else "SequenceClassification"
    folder = done / "runs/many/finetune"
    theirs = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder / "hf" / task).eval()
    network = open_checkpoint(folder).build()
    ids, segment = np.random.default_rng(0).integers(5, 150, 12).astype(np.int32), np.repeat([0, 1], 6).astype(np.int32)
    stream = Stream(ids, np.array([0, 12]), np.arange(12, dtype=np.int32), segment, FULL)
    rows = np.arange(12 if task == "ner" else 1)
    target = text_target(rows, np.zeros(len(rows), np.int64), at="token" if task == "ner" else "document")
    batch = to_device(Batch({"text": stream}, {"x": target}, np.zeros(1, np.uint64)), torch.device("cpu"))
    with torch.no_grad():
        tokens, types = torch.from_numpy(ids).long()[None], torch.from_numpy(segment).long()[None]
        want = theirs(input_ids=tokens, token_type_ids=types).logits.reshape(len(rows), -1)
        name = f"{'tag' if task == 'ner' else 'classify'}-{task}"
        ours = network.logits(name, network(batch.streams), batch.streams, batch.targets["x"])
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-6)


def test_evaluating_and_asking_again(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the run scored, `evaluate` scores; a task is asked by name, and without one told which there are."""
    monkeypatch.chdir(done)
    tuned = Path("runs/many/finetune")
    tests = open_checkpoint(tuned).lineage[-1]["tests"]
    found = evaluate_checkpoint(tuned, "many.yaml")
    assert found == {f"{task}/{one['metric']}": pytest.approx(one["value"]) for task, one in tests.items()}
    for task, one in tests.items():  # a folder of one task answers that task of the recipe
        assert evaluate_checkpoint(tuned / "hf" / task, "many.yaml") == {f"{task}/{one['metric']}": pytest.approx(one["value"])}
    rows = [json.loads(line)["sentence"] for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    assert load(tuned, "task").predict(rows) == kept(tuned, "task")["predicted"]
    with pytest.raises(UserError, match="model of 3 tasks: task, same, ner"):
        load(tuned)
    with pytest.raises(UserError, match="model of 3 tasks: task, same, ner"):
        export_checkpoint(tuned, tmp_path / "out")
    with pytest.raises(UserError, match="no task 'nerr'"):
        export_checkpoint(tuned, tmp_path / "out", task="nerr")
    assert export_checkpoint(tuned, tmp_path / "out", task="ner").architecture == "BertForTokenClassification"
    with pytest.raises(UserError, match="no task 'ner'"):
        load("runs/many/pretrain", "ner")
    assert "tag-ner" in batch_of("many.yaml", stage="finetune")


class Killed(BaseException):
    pass


def dying(step: int) -> Callable[..., dict[str, float]]:
    real, left = loop.backward, [step]

    def backward(*args: Any) -> dict[str, float]:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return real(*args)

    return backward


def test_killed_and_resumed(done: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the fine-tuning: the same bits and the same answers as the run that was not."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", dying(2 + 5))
        with pytest.raises(Killed):
            run("many.yaml", ["worth=false"])
    found = checkpoints.latest(Path("runs/many/finetune"))
    assert found is not None and found.name == "step-00000003"
    run("many.yaml", ["worth=false"])
    for name in ("step-00000009/model.safetensors", *(f"predictions/{task}.json" for task in CLASSES)):
        assert Path("runs/many/finetune", name).read_bytes() == (done / "runs/many/finetune" / name).read_bytes(), name
    before = Path("runs/many/finetune/DONE").stat().st_mtime_ns
    run("many.yaml", ["worth=false"])
    assert Path("runs/many/finetune/DONE").stat().st_mtime_ns == before


def test_a_later_stage_keeps_the_heads_it_knows(
    done: Path, fresh: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a checkpoint of several tasks: a head of the same name and shape goes on, others are left, a task alone begins its own."""
    text = RECIPE.split("stages:")[0].replace("bert/tiny", "bert").replace("name: many", "name: later")
    text = text.replace("model: {layers: 1, width: 32, heads: 2, mlp: 64}\n", "")
    text = text.replace("tokenizer: {kind: wordpiece, vocab: 400, lowercase: true}\n", "tokenizer: null\n")
    start = done / "runs/many/finetune"
    text += f"""stages:
  - stage: finetune
    name: two
    init: {start}
    data: {{task: 1, ner: 1}}
    objective: {{kind: tasks, parts: {{task: {{kind: classify, labels: [neg, pos]}}, ner: {{kind: tag, labels: [O, B, I]}}}}}}
    steps: 1
    optim: {{lr: 1.0e-9}}
  - {{stage: finetune, data: task, objective: {{kind: classify, labels: [neg, pos]}}, steps: 1, lora: {{rank: 2}}}}
worth: false
"""
    Path("later.yaml").write_text(text, "utf-8")
    with caplog.at_level("INFO"):
        run("later.yaml")
    old, new = open_checkpoint(start), open_checkpoint("runs/later/two")
    assert set(new.network.heads) == {"pooler", "classify-task", "tag-ner"}
    weight = "heads.classify-task.out.weight"
    torch.testing.assert_close(new.tensors[weight], old.tensors[weight], rtol=0, atol=1e-6)
    assert new.tensors["heads.tag-ner.out.weight"].shape[0] == 3
    assert set(open_checkpoint("runs/later/finetune").network.heads) == {"pooler", "classify"}
    assert "two: fresh weights for heads.tag-ner; dropped heads.classify-same, heads.tag-ner" in caplog.text
    base = json.loads(Path("runs/later/finetune/adapter/adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    assert (Path(base) / "config.json").exists()


def test_lora_adapters_are_of_one_task_each(fresh: Path) -> None:
    run("many.yaml", ["worth=false", "stages.finetune.lora={rank: 2}", "stages.finetune.steps=1", "name=low"])
    config = json.loads(Path("runs/low/finetune/adapter/ner/adapter_config.json").read_text("utf-8"))
    assert config["r"] == 2 and config["modules_to_save"] == ["classifier"]
    assert Path("runs/low/finetune/adapter/task/adapter_model.safetensors").exists()
    card = Path("runs/low/finetune/adapter/ner/README.md").read_text("utf-8")
    assert "library_name: peft" in card and "token-classification" in card and "`O`" in card
    assert Path("runs/low/finetune/hf/same/model.safetensors").exists()


@pytest.mark.parametrize(
    ("data", "temperature", "expected"),
    [
        ("{task: 1, same: 1, ner: 2}", "null", {"task": 0.25, "same": 0.25, "ner": 0.5}),
        ("{task: 1, same: 1, ner: 1}", "1", None),
        ("{task: 1, same: 1, ner: 1}", "2", None),
    ],
)
def test_tasks_are_drawn_by_their_shares(
    done: Path, monkeypatch: pytest.MonkeyPatch, data: str, temperature: str, expected: dict[str, float] | None
) -> None:
    """Counted in the batches: the tokens of text of each task's examples, told by their keys."""
    monkeypatch.chdir(done)
    recipe = load_recipe("many.yaml", [f"stages.finetune.data={data}", f"stages.finetune.temperature={temperature}"])
    stage = recipe.stages[-1]
    with session(Path("runs/many")) as signals:
        prepared = begin(recipe, Path("runs/many"), signals).prepared
    shards = prepared.read(stage)
    if expected is None:
        sizes = {name: one.tokens ** (1 / float(temperature)) for name, one in shards.items()}
        expected = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    tasks = stage.objective
    assert isinstance(tasks, Tasks)
    owner = {int(key): name for name, one in shards.items() for key in one.keys}
    size = {
        int(key): int(n)
        for one in shards.values()
        for key, n in zip(one.keys, sum(one.lengths(part) for part in one.parts), strict=True)
    }
    ctx = context_of(SYSTEMS["bert"].model, prepared.tokenizer, stage.length)
    read: dict[str, int] = dict.fromkeys(shards, 0)
    mixed = 0
    with Loader(shards, mixture(stage, shards), tasks, ctx, row=tasks.rows(ctx), documents=8, seed=1, ahead=False) as loader:
        for batch, _ in zip(loader, range(400), strict=False):
            keys = [int(key) for key in batch.keys[batch.alive]]
            for key in keys:
                read[owner[key]] += size[key]
            mixed += len({owner[key] for key in keys}) > 1
            asked = {name: {owner[int(batch.keys[i])] for i in rows_of(batch, target)} for name, target in batch.targets.items()}
            assert all(found <= {name.partition("-")[2]} for name, found in asked.items())
    total = sum(read.values())
    assert {name: n / total for name, n in read.items()} == pytest.approx(expected, abs=0.03)
    assert mixed > 300  # the tasks share the batches


def rows_of(batch: Any, target: Any) -> Any:
    """The document of each prediction."""
    return target.index if target.at == "document" else batch.streams[target.stream].document()[target.index]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("data: {task: 1, same: 1, ner: 2}", "data: {task: 1, same: 1, nerr: 2}", "unknown source 'nerr'"),
        ("data: {task: 1, same: 1, ner: 2}", "data: {task: 1, same: 1}", "the task 'ner' is no source of this stage"),
        ("data: {task: 1, same: 1, ner: 2}", "data: {task: 1, same: 1, ner: 2, general: 1}", "source 'general' has no task"),
        ("test: tags-test.jsonl, ", "", "source 'ner' has no `test` rows to score on"),
        ("columns: {tokens: words, tags: tags}", "columns: {text: words}", "source 'ner' declares no labels"),
        ("    steps: 9", "    epochs: 2", "3 sources have epochs of their own"),
        ("ner: {kind: tag, labels: [O, B], metric: token_f1}", "ner: {kind: mlm}", "'mlm' has no head of its own"),
        ("    weights: {ner: 0.5}", "    weights: {nerr: 0.5}", "which is no task"),
        ("    steps: 9", "    steps: 9\n    memory: 8", "memory"),
    ],
)
def test_bad_recipes(fresh: Path, old: str, new: str, said: str) -> None:
    assert old in RECIPE
    Path("bad.yaml").write_text(RECIPE.replace(old, new), "utf-8")
    with pytest.raises(UserError) as error:
        load_file_as("bad.yaml", model=Recipe).resolved()
    assert said in str(error.value)


def test_misused(fresh: Path) -> None:
    """A mixture draws parts for documents whatever they are of; tasks belong in a finetune stage; rows are checked before training."""
    head = RECIPE.split("    objective:")[0]
    parts = "parts: [{kind: classify, labels: [neg, pos]}, {kind: classify, labels: [neg, pos]}]"
    Path("bad.yaml").write_text(f"{head}    objective: {{kind: mixture, {parts}}}\n    steps: 1\n", "utf-8")
    with pytest.raises(UserError, match=r"for several tasks write \{kind: tasks"):
        load_recipe("bad.yaml")
    Path("bad.yaml").write_text(RECIPE.replace("stage: finetune", "stage: tapt"), "utf-8")
    with pytest.raises(UserError, match="'tasks' needs labels: it belongs in a finetune stage"):
        load_recipe("bad.yaml")
    one = f"{head}    objective: {{kind: classify, labels: [neg, pos]}}\n    steps: 1\n"
    Path("bad.yaml").write_text(one, "utf-8")
    with pytest.raises(UserError, match=r"reads one source, not 3; for a task a source write"):
        load_recipe("bad.yaml")
    Path("bad.yaml").write_text(RECIPE.replace("labels: [0, 1]", "labels: [0, 2]"), "utf-8")
    with pytest.raises(UserError, match=r"label '1' \(pairs-train.jsonl"):
        run("bad.yaml")
    assert not list(Path("runs").glob("*/pretrain"))

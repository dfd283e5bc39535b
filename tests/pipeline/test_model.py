"""A checkpoint in use: masks, continuations, labels, and scores on a recipe's texts; through Python and the command line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import ziggurat as zg
from ziggurat.cli import app
from ziggurat.pipeline.run import run
from ziggurat.pipeline.tryout import try_checkpoint
from ziggurat.types import CAUSAL, Stream


@pytest.fixture(autouse=True)
def there(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(finished)
    yield


def test_the_front_door_is_lazy() -> None:
    script = (
        "import sys, ziggurat as zg\nassert 'torch' not in sys.modules and 'run' in dir(zg)\n"
        "try: zg.rum\nexcept AttributeError as e: assert 'rum' in str(e)\nelse: raise SystemExit(1)\n"
        "assert zg.UserError.__name__ == 'UserError' and 'torch' not in sys.modules"
    )
    root = str(Path(zg.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", script], timeout=60, env={"PYTHONPATH": root}).returncode == 0
    assert all(callable(getattr(zg, name)) for name in zg.__all__)


def test_the_five_lines(tmp_path: Path) -> None:
    """Those of docs/api.md."""
    folder = zg.run("small.yaml")
    guesses = zg.load(folder / "tapt").fill("river [MASK] music")
    labels = zg.load(folder / "finetune").predict(["wonderful river", "难看"])
    made = zg.export(folder / "finetune", tmp_path / "out")
    assert folder == Path("runs/small") and len(guesses) == 1 and set(labels) <= {"neg", "pos"} and len(labels) == 2
    assert made.architecture == "RobertaForSequenceClassification"
    assert "roberta" in zg.show(str(folder / "tapt"))
    step, _ = zg.import_(tmp_path / "out", tmp_path / "back")
    assert zg.load(step).predict(["wonderful river", "难看"]) == labels


@pytest.mark.parametrize("name", ["tapt", "tapt/hf"])
def test_fill_agrees_with_the_network_itself(name: str) -> None:
    model = zg.load(Path("runs/small") / name)
    one, two = model.fill("river <mask> music [MASK] 山水", top=3)
    assert [len(one), len(two)] == [3, 3] and one[0].probability >= one[1].probability
    hf = pytest.importorskip("transformers")
    theirs = hf.AutoModelForMaskedLM.from_pretrained("runs/small/tapt/hf").eval()
    reader = hf.AutoTokenizer.from_pretrained("runs/small/tapt/hf")
    given = reader("river <mask> music <mask> 山水", return_tensors="pt")
    with torch.no_grad():
        scores = theirs(input_ids=given["input_ids"]).logits[0]
    at = (given["input_ids"][0] == reader.mask_token_id).nonzero()[:, 0]
    for guesses, row in zip((one, two), scores[at].softmax(-1)):
        values, ids = row.topk(3)
        assert [g.text for g in guesses] == [reader.decode([i]) for i in ids.tolist()]
        assert [g.probability for g in guesses] == pytest.approx(values.tolist(), rel=1e-3)


def test_predictions_are_those_of_the_run() -> None:
    rows = [json.loads(line) for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    kept = json.loads(Path("runs/small/finetune/predictions.json").read_text("utf-8"))
    model = zg.load("runs/small/finetune")
    answers = model.predict([row["sentence"] for row in rows])
    assert sorted(zip([r["label"] for r in rows], answers)) == sorted(zip(kept["gold"], kept["predicted"]))
    (chances,) = model.probabilities([rows[0]["sentence"]])
    assert sum(chances.values()) == pytest.approx(1.0) and max(chances, key=chances.__getitem__) == answers[0]
    assert len(model.predict([("one text", "and another")])) == 1
    with pytest.raises(zg.UserError, match="not one text"):
        model.predict("one text")
    with pytest.raises(zg.UserError, match="is no masked language model"):
        model.fill("a <mask>")
    with pytest.raises(zg.UserError, match="use the checkpoint of a finetune stage"):
        zg.load("runs/small/tapt").predict(["a"])


@pytest.mark.parametrize("name", ["runs/small/dapt", "runs/small/dapt/hf"])
def test_evaluating_a_language_model(name: str) -> None:
    outcome = json.loads(Path("runs/small/dapt/outcome.json").read_text("utf-8"))["held_out"]
    expected = {f"{source}/{key}": value for source, numbers in outcome.items() for key, value in numbers.items()}
    assert zg.score(name, "small.yaml") == pytest.approx(expected, rel=1e-4)


def test_evaluating_a_fine_tuned_model() -> None:
    report = json.loads(Path("runs/small/report.json").read_text("utf-8"))
    expected = report["worth"]["prefixes"][-1]["scores"]["0"]
    assert zg.score("runs/small/finetune", "small.yaml") == {"task/accuracy": expected}
    result = CliRunner().invoke(app, ["evaluate", "runs/small/finetune", "small.yaml"], catch_exceptions=False)
    assert result.exit_code == 0 and f"{expected:.4f}" in result.stdout


def test_evaluating_with_a_tokenizer_of_its_own(world: Path, finished: Path) -> None:
    """The texts are cut for the checkpoint beside the run's own shards, which stay."""
    zg.prepare("text.yaml", ["tokenizer.vocab=150"])
    before = Path("runs/text/tokenizer/tokenizer.json").read_bytes()
    scores = zg.score(finished / "runs/small/tapt", "text.yaml", ["tokenizer.vocab=150"])
    own = json.loads((finished / "runs/small/tapt/outcome.json").read_text("utf-8"))["held_out"]["general"]
    assert scores == pytest.approx({f"general/{key}": value for key, value in own.items()}, rel=1e-4)
    assert Path("runs/text/tokenizer/tokenizer.json").read_bytes() == before
    assert len(list(Path("runs/text/evaluate").iterdir())) == 1


def test_try(finished: Path) -> None:
    lines = try_checkpoint("runs/small/tapt", "river [MASK]").splitlines()
    assert (
        lines[0] == "mask 1:"
        and len(lines) == 6
        and lines[1].endswith(zg.load("runs/small/tapt").fill("river [MASK]")[0][0].text)
    )
    said = try_checkpoint("runs/small/finetune", "wonderful river").splitlines()
    assert sorted(line.split()[1] for line in said) == ["neg", "pos"]
    result = CliRunner().invoke(app, ["try", "runs/small/finetune", "wonderful river"], catch_exceptions=False)
    assert result.stdout.splitlines() == said


TASKS = """\
name: tasks
system: gpt2/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 64}
tokenizer: {kind: bpe, vocab: 300}
sources:
  text: {path: general.txt, txt: line}
  tags: {path: tags.jsonl, test: 0.3, columns: {tokens: words, tags: tags}}
  score: {path: score.jsonl, test: 0.3, columns: {text: a, pair: b, label: y}}
defaults: {length: 48, precision: fp32, steps: 3, accumulate: 1}
stages:
  - {stage: pretrain, data: text}
  - {stage: finetune, name: tag, init: pretrain, data: tags, objective: {kind: tag, labels: [O, THING]}}
  - {stage: finetune, name: score, init: pretrain, data: score, objective: {kind: regress}}
worth: false
"""


@pytest.fixture(scope="module")
def tasks(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    with contextlib.chdir(folder):
        texts = (finished / "general.txt").read_text("utf-8").splitlines()
        Path("general.txt").write_text("\n".join(texts), "utf-8")
        rows = [text.split() for text in texts[:30]]
        tags = [json.dumps({"words": r, "tags": ["THING" if "o" in w else "O" for w in r]}, ensure_ascii=False) for r in rows]
        Path("tags.jsonl").write_text("\n".join(tags), "utf-8")
        scores = [json.dumps({"a": text, "b": text[:20], "y": n / 30}, ensure_ascii=False) for n, text in enumerate(texts[30:60])]
        Path("score.jsonl").write_text("\n".join(scores), "utf-8")
        Path("tasks.yaml").write_text(TASKS, "utf-8")
        run("tasks.yaml")
    return folder


def test_going_on(tasks: Path) -> None:
    model = zg.load(tasks / "runs/tasks/pretrain")
    said = model.go_on("the river", 6)
    assert said.startswith("the river") and model.go_on("the river", 6) == said and len(said) > len("the river")
    drawn = {model.go_on("the river", 6, temperature=1.0, seed=seed) for seed in range(4)}
    assert len(drawn) > 1 and model.go_on("the river", 6, temperature=1.0, seed=2) in drawn
    assert model.go_on("river " * 400, 2).startswith("river river")  # longer than the model reads
    assert try_checkpoint(tasks / "runs/tasks/pretrain", "the river").startswith("the river")
    hf = pytest.importorskip("transformers")
    theirs = hf.AutoModelForCausalLM.from_pretrained(tasks / "runs/tasks/pretrain/hf").eval()
    reader = hf.AutoTokenizer.from_pretrained(tasks / "runs/tasks/pretrain/hf")
    ids = model.tokenizer.encode(["the river"])[0].ids.tolist()
    made = theirs.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist()
    assert reader.decode(made, skip_special_tokens=True) == said


def test_going_on_is_asking_again_and_again(tasks: Path) -> None:
    """Against a loop without a cache, beyond the model's positions too: there it reads the last ones."""
    model = zg.load(tasks / "runs/tasks/pretrain")
    longest, vocab = model.context.length, model.tokenizer.vocab
    model.context = replace(model.context, length=12)
    ids = before = model.tokenizer.encode(["the river"])[0].ids.tolist()
    for _ in range(20):
        window = torch.tensor(ids[-12:])
        n = len(window)
        stream = Stream(window, torch.tensor([0, n]), torch.arange(n), torch.zeros(n, dtype=torch.int64), CAUSAL)
        with torch.no_grad():
            scores = model.network.model.table @ model.network({"text": stream})["text"][-1]
        scores[[i for i in vocab.special if i != vocab.end]] = -torch.inf
        if (best := int(scores.argmax())) == vocab.end:
            break
        ids = [*ids, best]
    assert longest > 12 and len(ids) > len(before) + 12
    assert model.go_on("the river", 20) == model.tokenizer.decode(ids)


def test_tags_and_numbers(tasks: Path) -> None:
    model = zg.load(tasks / "runs/tasks/tag")
    words = ["river", "山", "stone"]
    (tagged,) = model.predict([words])
    assert [word for word, _ in tagged] == words and {label for _, label in tagged} <= {"O", "THING"}
    assert model.predict(["river 山 stone"])[0] == tagged
    assert [word for word, _ in model.predict(["山水 ok"])[0]] == ["山", "水", "ok"] and model.predict([""]) == [[]]
    lines = try_checkpoint(tasks / "runs/tasks/tag", "river 山 stone").splitlines()
    assert [line.split()[0] for line in lines] == words
    (number,) = zg.load(tasks / "runs/tasks/score").predict([("one", "two")])
    assert isinstance(number, float) and float(try_checkpoint(tasks / "runs/tasks/score", "one")) != 0
    with contextlib.chdir(tasks):
        assert set(zg.score("runs/tasks/score", "tasks.yaml")) == {"score/pearson"}
        assert set(zg.score("runs/tasks/tag", "tasks.yaml")) == {"tags/token_accuracy"}
        assert set(zg.score("runs/tasks/pretrain", "tasks.yaml")) == {
            f"{s}/{name}" for s in ("text", "tags", "score") for name in ("clm", "clm_accuracy", "bits_per_byte")
        }

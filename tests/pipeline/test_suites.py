"""Suites in miniature: small checkpoints, tasks of every kind there is, what is kept, and what is said about it."""

from __future__ import annotations

import csv
import html
import json
import os
import random
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr
from seqeval.metrics import f1_score as spans_f1
from sklearn.metrics import accuracy_score, f1_score
from typer.testing import CliRunner

from ziggurat.cli import app
from ziggurat.data.sources import Files
from ziggurat.errors import Stopped, UserError
from ziggurat.evaluate.likelihood import Likelihood
from ziggurat.objectives.labelled import Classify
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.pipeline import suites
from ziggurat.pipeline.model import load
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import run
from ziggurat.pipeline.suite_files import is_suite, load_suite
from ziggurat.pipeline.suite_notes import cut_rows, lost_rows
from ziggurat.pipeline.suite_question import CannotAsk, Question, by_names, question
from ziggurat.pipeline.suite_results import Results
from ziggurat.pipeline.suites import evaluate_suite, labels
from ziggurat.train import loop
from ziggurat.train.suite import Suite

SUITE = """\
suite: mini
about: tasks of every kind
seeds: 2
defaults: {epochs: 1, length: 32, batch: {documents: 8}, optim: {lr: 1e-3}, precision: fp32, save: {every: 1}}
tasks:
  opinions:
    local: {path: train.jsonl, test: test.jsonl, columns: {text: sentence, label: label}}
    objective: {kind: classify, labels: [neg, pos], metric: f1}
    further: [accuracy]
    settings: {epochs: 2}
  alike:
    local: {path: pairs.jsonl, test: pairs-test.jsonl, columns: {text: a, pair: b, label: same}}
    objective: {kind: classify, labels: [0, 1], names: [other, same]}
  length:
    local: {path: pairs.jsonl, test: pairs-test.jsonl, columns: {text: a, label: words}}
    objective: {kind: regress}
    further: [spearman]
  long:
    local: {path: tags.jsonl, test: tags-test.jsonl, columns: {tokens: words, tags: tags}}
    objective: {kind: tag, labels: [O, B-X, I-X], metric: span_f1}
    settings: {length: 12}
  gone:
    local: {path: $NOWHERE_DATA/train.jsonl, test: $NOWHERE_DATA/test.jsonl}
    objective: {kind: classify, labels: [0, 1]}
  lost:
    local: {path: lost.jsonl, test: test.jsonl, columns: {label: label}}
    objective: {kind: classify, labels: [0, 1]}
  onesided:
    local: {path: onesided.jsonl, test: pairs-test.jsonl, columns: {text: a, label: same}}
    objective: {kind: classify, labels: [0, 1]}
  few:
    without: 32 training rows only
"""
DROPPED = "\ufffd"
"""A word that the tokenizer drops."""


@pytest.fixture
def suite(world: Path) -> Path:
    """The file of a suite, with its rows beside it."""
    draw = random.Random(1)

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (world / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")

    def text(n: int) -> str:
        return " ".join(
            draw.choice(["river", "stone", "window", "garden", "music", "paper", "winter", "bridge", "captain", "山", "水"])
            for _ in range(n)
        )

    for name, count in (("pairs.jsonl", 24), ("pairs-test.jsonl", 12)):
        rows = []
        for n in range(count):
            a = text(4 + n % 9)
            rows.append({"a": a, "b": a if n % 2 else text(6), "same": n % 2, "words": float(len(a.split()))})
        write(name, rows)
        if name == "pairs.jsonl":
            write("onesided.jsonl", [{**row, "same": 1} for row in rows])
    for name, count in (("tags.jsonl", 24), ("tags-test.jsonl", 12)):
        found = [text(14).split() for _ in range(count)]
        for words in found[::3]:
            words[2] = DROPPED
        write(name, [{"words": w, "tags": ["B-X" if len(x) > 6 else "O" for x in w]} for w in found])
    (world / "mini.yaml").write_text(SUITE, "utf-8")
    return Path("mini.yaml")


@pytest.fixture
def start(finished: Path) -> list[Path]:
    """Two checkpoints."""
    return [finished / "runs/small/pretrain", finished / "runs/small/dapt"]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, every step of training fails."""

    def forbid() -> None:
        def never(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("something is trained again")

        monkeypatch.setattr(loop, "train", never)

    return forbid


def kept(results: Results, task: str, model: str, seed: int) -> dict[str, Any]:
    score = next(t for t in results.tasks if t.task == task).of(model)
    assert score is not None
    found: dict[str, Any] = json.loads((Path(score.folders[list(score.scores).index(seed)]) / "result.json").read_text("utf-8"))
    return found


def result(results: Results, task: str) -> Any:
    return next(t for t in results.tasks if t.task == task)


def result_rows(results: dict[str, Any], task: str) -> int:
    """Test rows that were scored, as the JSON file has them."""
    return int(next(t["test_rows"] for t in results["tasks"] if t["task"] == task))


def test_every_kind_of_task_on_two_checkpoints(suite: Path, start: list[Path], no_training: Callable[[], None]) -> None:
    results = evaluate_suite(start, suite)
    assert list(results.checkpoints) == ["pretrain", "dapt"] and results.seeds == (0, 1)
    assert [t.task for t in results.scored] == ["opinions", "alike", "length", "long"]
    said = {t.task: t.without for t in results.left_out}
    assert "the environment variable in this path is not set" in said["gone"] and "lost.jsonl" in said["lost"]
    assert said["onesided"] == "nothing can be learnt: all training rows have the label 1"
    assert said["few"] == "32 training rows only"
    # scores are those of the known libraries on the answers that were kept
    oracle: dict[str, Callable[[Any, Any], float]] = {
        "opinions": lambda g, p: f1_score(g, p, pos_label="pos"),
        "alike": accuracy_score,
        "length": lambda g, p: pearsonr(g, p)[0],
        "long": lambda g, p: spans_f1(g, p),
    }
    for task in results.scored:
        for model in results.checkpoints:
            score = task.of(model)
            assert score is not None and list(score.scores) == [0, 1] and score.seconds > 0
            for seed, value in score.scores.items():
                answers = kept(results, task.task, model, seed)
                assert value == pytest.approx(oracle[task.task](answers["gold"], answers["predicted"]), abs=1e-9)
                assert answers["seed"] == seed and len(answers["ids"]) == task.test_rows
            assert score.mean == pytest.approx(np.mean(list(score.scores.values())))
            assert score.deviation == pytest.approx(np.std(list(score.scores.values()), ddof=1))
            assert score.interval is None or score.interval[0] <= score.interval[1]
        assert [s.model for s in task.models if s.kind == "baseline"]
        assert [d.model for d in task.differences] == ["dapt"] and task.differences[0].verdict == "undecided"
    # words behind the cut count, too: 14 of them, of which 10 fit; so do those without a token
    tagged, lines = kept(results, "long", "dapt", 0), Path("tags-test.jsonl").read_text("utf-8").splitlines()
    assert tagged["gold"] == [json.loads(line)["tags"] for line in lines]
    assert {len(row) for row in tagged["predicted"]} == {14}
    assert {row[2] for row in tagged["predicted"][::3]} == {"O"}
    assert not list(Path("evaluations").rglob("model.safetensors"))  # weights go once the answers are kept
    before = {p: p.stat().st_mtime_ns for p in Path("evaluations/results").rglob("*") if p.is_file()}
    no_training()
    again = evaluate_suite(start, suite)
    assert again.tasks == results.tasks or str(again.tasks) == str(results.tasks)  # undefined numbers are not equal
    assert before == {p: p.stat().st_mtime_ns for p in Path("evaluations/results").rglob("*") if p.is_file()}


def test_table_page_csv_and_json_agree(suite: Path, start: list[Path]) -> None:
    options = ["only=[opinions,length,few]", "seeds=1"]
    done = CliRunner().invoke(app, ["evaluate", *map(str, start), "mini.yaml", *options], catch_exceptions=False)
    assert done.exit_code == 0
    said = json.loads(Path("evaluations/mini/results.json").read_text("utf-8"))
    page = Path("evaluations/mini/results.html").read_text("utf-8")
    rows = list(csv.DictReader(Path("evaluations/mini/results.csv").read_text("utf-8").splitlines()))
    by_place = {(row["task"], row["model"]): row for row in rows}
    assert by_place["few", ""]["without"] == "32 training rows only" and "32 training rows only" in page
    assert "not scored: few: 32 training rows only" in done.stdout
    scored = [t for t in said["tasks"] if not t["without"]]
    assert len(by_place) == 1 + sum(len(t["models"]) for t in scored)
    for task in scored:
        for model in task["models"]:
            row = by_place[task["task"], model["model"]]
            assert row["mean"] == ("" if model["mean"] is None else repr(model["mean"]))
            assert row["test_rows"] == str(task["test_rows"]) and row["collapsed"] == " ".join(model["collapsed"])
            if model["mean"] is not None:
                shown = f"{100 * model['mean']:.1f}".replace("-", "\u2212").replace("\u22120.0", "0.0")
                assert shown in done.stdout and shown in page
        for difference in task["differences"]:
            assert difference["sentence"] in done.stdout.replace("\n", " ")
    assert page.count("<svg") == 1 and "http" not in page.replace("http://www.w3.org", "")
    assert said["facts"]["command"].startswith("ziggurat evaluate") and said["facts"]["options"]["seeds"] == [0]


def test_answers_are_found_under_other_names(suite: Path, start: list[Path], no_training: Callable[[], None]) -> None:
    """What decides an answer is its content: not the suite, the task's name, its further metrics, nor where the files lie."""
    first = evaluate_suite(start[:1], suite, ["only=[opinions]"])
    os.rename("train.jsonl", "moved.jsonl")
    other = SUITE.replace("suite: mini", "suite: other").replace("  opinions:", "  views:").replace("train.jsonl", "moved.jsonl")
    Path("other.yaml").write_text(other.replace("further: [accuracy]", "further: [macro_f1]"), "utf-8")
    no_training()
    second = evaluate_suite(start[:1], "other.yaml", ["only=[views]"])
    before, after = result(first, "opinions").of("pretrain"), result(second, "views").of("pretrain")
    assert before.scores == after.scores and before.folders == after.folders
    answers = kept(second, "views", "pretrain", 0)
    assert after.further["macro_f1"] != before.further["accuracy"] or before.further["accuracy"] in (0, 1)
    macro = [f1_score(*(kept(second, "views", "pretrain", s)[k] for k in ("gold", "predicted")), average="macro") for s in (0, 1)]
    assert after.further["macro_f1"] == pytest.approx(np.mean(macro)) and answers["task"] == "opinions"
    with pytest.raises(AssertionError, match="trained again"):  # other settings are other answers
        evaluate_suite(start[:1], "other.yaml", ["only=[views]", "tasks.views.settings.epochs=1"])
    with pytest.raises(AssertionError, match="trained again"):  # and so are other weights
        evaluate_suite(start[1:], "other.yaml", ["only=[views]"])


def test_rows_that_are_cut_are_said(suite: Path, start: list[Path]) -> None:
    """Of texts, pairs, words and choices; once where it is the same for all checkpoints."""
    for name in ("pairs.jsonl", "pairs-test.jsonl"):
        lines = [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]
        rows = [{"q": r["a"], "one": "stone", "two": "stone" + " winter" * 40 * (n < 3), "right": 0} for n, r in enumerate(lines)]
        Path(f"choice-{name}").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    more = """\
  choice:
    local: {path: choice-pairs.jsonl, test: choice-pairs-test.jsonl, columns: {text: q, choices: [one, two], label: right}}
    objective: {kind: multiple_choice}
"""
    suite.write_text(SUITE + more, "utf-8")
    results = evaluate_suite(start, suite, ["seeds=1", "only=[opinions,long,choice]"])
    said = {t.task: [note for note in t.notes if "are cut" in note] for t in results.tasks}
    assert said["opinions"] == []
    assert said["long"] == ["100% of the test rows are longer than length 12 and are cut."]
    assert said["choice"] == ["25% of the test rows are longer than length 32 and are cut."]
    assert any(note.startswith("long: 100% of the test rows") for note in results.notes)
    asked = {"a": question(load_suite(suite), "long", "a", open_checkpoint(start[0])), "b": "it cannot"}
    other = question(load_suite(suite, ["tasks.long.settings.length=30"]), "long", "c", open_checkpoint(start[0]))
    assert cut_rows({**asked, "c": other}) == ["a: 100% of the test rows are longer than length 12 and are cut."]
    by_likelihood = replace(asked["a"], shots=0) if isinstance(asked["a"], Question) else ""
    assert cut_rows({"a": by_likelihood}) == []


def test_a_question_that_is_cut_is_said(suite: Path, start: list[Path]) -> None:
    """Its context is read in windows, and it is not."""
    for name, count in (("qa", 8), ("qa-test", 4)):
        answers = [{"text": "stone", "answer_start": 4}]
        rows = [{"q": f"who is {n}" + " river" * 30 * (n < 2), "c": "the stone " * 30, "a": answers} for n in range(count)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    more = """\
  asked:
    local: {path: qa.jsonl, test: qa-test.jsonl, columns: {text: q, pair: c, answers: a}}
    objective: {kind: question_answering}
"""
    suite.write_text(SUITE + more, "utf-8")
    asked = question(load_suite(suite), "asked", "it", open_checkpoint(start[0]))
    assert cut_rows({"it": asked}) == ["50% of the test rows have a question of more than 14 tokens and are cut."]
    whole = question(load_suite(suite, ["tasks.asked.settings.length=120"]), "asked", "it", open_checkpoint(start[0]))
    assert cut_rows({"it": whole}) == []


def test_a_written_label_leaves_the_source_its_room(suite: Path) -> None:
    """In one stack the longest label and its end token are all of `length` that the source does not have; what is still cut is said."""
    Path("gpt2.yaml").write_text(STARTS.format(system="gpt2", tokenizer="{kind: bpe, vocab: 400}"), "utf-8")
    opened = open_checkpoint(run("gpt2.yaml") / "pretrain")
    tokenizer = opened.tokenizer
    assert tokenizer is not None

    def asked(name: str, *options: str) -> Question:
        return question(load_suite(suite, ["answers=text", *options]), name, "it", opened)

    def longest(*labels: str) -> int:
        return max(len(e.ids) for e in tokenizer.encode(labels))

    def written(one: Question) -> tuple[int | None, int]:
        assert isinstance(one.trained, Seq2Seq) and one.stage.objective == one.trained
        return one.trained.target, one.trained.generate.most

    pairs = asked("alike")
    assert written(pairs) == (longest("other", "same") + 1, 16)
    assert written(asked("length")) == (longest(*(f"{n}.0" for n in range(4, 13))) + 1, 16)
    long = "a label of many words, which is longer than others are"
    named = asked("alike", f"tasks.alike.objective.names=[no, '{long}']", "defaults.length=120")
    assert written(named) == (longest(long) + 1, longest(long) + 1) and longest(long) > 16
    short = asked("alike", f"tasks.alike.objective.names=[no, '{long}']", "defaults.length=24")
    assert written(short)[0] == 12
    assert len({one.key for one in (pairs, named, short)}) == 3
    lengths = pairs.prepared.shards["task", "test"].lengths("text")
    target = longest("other", "same") + 1
    room = int(np.sort(lengths)[len(lengths) // 2])  # half of the rows do not fit
    cut = asked("alike", f"defaults.length={room + target + 1}")
    share = np.mean(lengths > room)
    said = f"{room} tokens, what length {room + target + 1} leaves beside a target of {target}, and are cut."
    assert cut_rows({"it": cut}) == [f"{share:.0%} of the test rows are longer than {said}"] and share > 0
    assert cut_rows({"it": asked("alike", f"defaults.length={lengths.max() + target + 1}")}) == []
    with pytest.raises(UserError, match="task alike: label '1' is not in the label list"):
        asked("alike", "tasks.alike.objective.labels=[0, 2]")
    with pytest.raises(UserError, match=r"task length: label '(neg|pos)' is not a finite number"):
        asked("length", "tasks.length.local={path: train.jsonl, test: test.jsonl, columns: {text: sentence, label: label}}")


def test_two_stacks_share_no_room(suite: Path) -> None:
    Path("t5.yaml").write_text(STARTS.format(system="t5", tokenizer="{kind: unigram, vocab: 500}"), "utf-8")
    opened = open_checkpoint(run("t5.yaml") / "pretrain")
    asked = question(load_suite(suite, ["answers=text", "defaults.length=20"]), "alike", "it", opened)
    assert isinstance(asked.trained, Seq2Seq) and asked.trained.target is None
    share = np.mean(asked.prepared.shards["task", "test"].lengths("text") > 19)  # and the end token
    assert share > 0 and cut_rows({"it": asked}) == [f"{share:.0%} of the test rows are longer than length 20 and are cut."]


@pytest.mark.parametrize("way", ["head", "text"])
def test_rows_that_were_left_out_of_the_test_are_said(way: str, suite: Path) -> None:
    """With an empty text, no label, or no token; where most are, nothing is scored."""
    Path("gpt2.yaml").write_text(STARTS.format(system="gpt2", tokenizer="{kind: bpe, vocab: 400}"), "utf-8")
    folder = run("gpt2.yaml") / "pretrain"
    whole = [json.loads(line) for line in Path("pairs-test.jsonl").read_text("utf-8").splitlines()]
    rows = [{**r, "b": ""} if n < 4 else {**r, "same": None} if n == 4 else r for n, r in enumerate(whole)]
    Path("pairs-test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    options = [f"answers={way}", "only=[alike,opinions]", "seeds=1"]
    done = CliRunner().invoke(app, ["evaluate", str(folder), "mini.yaml", *options], catch_exceptions=False)
    said = "5 of the 12 rows that test rows are taken from were left out (4 x empty text, 1 x 'same' is no label)"
    note = f"{said}; the scores are of the others."
    results = json.loads(Path("evaluations/mini/results.json").read_text("utf-8"))
    notes = {t["task"]: [n for n in t["notes"] if "left out" in n] for t in results["tasks"]}
    assert notes == {"alike": [note], "opinions": []} and result_rows(results, "alike") == 7
    assert note in " ".join(done.stdout.split())
    assert html.escape(note) in Path("evaluations/mini/results.html").read_text("utf-8")
    rows[5:7] = [{**row, "a": " "} for row in rows[5:7]]
    Path("pairs-test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    most = result(evaluate_suite([folder], suite, options), "alike")
    assert most.without.startswith("7 of the 12 rows that test rows are taken from were left out (6 x empty text, 1 x ")
    assert most.without.endswith(": a score would not be of this test")


def test_rows_that_a_tokenizer_drops_are_said(suite: Path, start: list[Path]) -> None:
    rows = [json.loads(line) for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    rows[0]["sentence"] = DROPPED
    Path("test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asked = question(load_suite(suite), "opinions", "a", open_checkpoint(start[0]))
    said = "1 of the 20 rows that test rows are taken from were left out (1 x no token of the tokenizer)"
    assert lost_rows({"a": asked}) == [f"{said}; the scores are of the others."]
    asked.prepared.facts["task", "test"]["kept"] += 1
    again = replace(asked)  # another tokenizer keeps the row
    assert lost_rows({"a": asked, "b": again}) == [f"a: {said}; the scores are of the others."]


@pytest.mark.parametrize("how", ["crash", "signal"])
def test_killed_it_goes_on(how: str, suite: Path, start: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the fourth step of the second seed; the answers are those of a run that was not stopped, and no step is done again."""
    options = ["only=[opinions]"]
    real, steps = loop.backward, 0

    def backward(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        found = real(*args)
        if steps == 14:
            if how == "crash":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(loop, "backward", backward)
    with pytest.raises(MemoryError if how == "crash" else Stopped):
        evaluate_suite(start[:1], suite, options)
    assert len(list(Path("evaluations/results").rglob("result.json"))) == 1
    results = evaluate_suite(start[:1], suite, options)
    assert steps == 20 + (how == "crash")  # two seeds of ten steps; a crash loses the step that was under way
    os.rename("evaluations", "stopped")
    straight = evaluate_suite(start[:1], suite, options)
    assert result(straight, "opinions").of("pretrain").scores == result(results, "opinions").of("pretrain").scores
    for path in Path("evaluations/results").rglob("result.json"):
        other = json.loads((Path("stopped") / path.relative_to("evaluations")).read_text("utf-8"))
        assert other["predicted"] == json.loads(path.read_text("utf-8"))["predicted"]


def test_fewer_rows(suite: Path, start: list[Path]) -> None:
    """`train_rows` and `test_rows` are the same rows for all; `examples` are drawn by the seed, for the baselines too."""
    results = evaluate_suite(start, suite, ["only=[opinions]", "train_rows=20", "test_rows=10", "examples=6"])
    task = result(results, "opinions")
    assert (task.train_rows, task.test_rows) == (6, 10)
    ids = {tuple(kept(results, "opinions", m, s)["ids"]) for m in results.checkpoints for s in (0, 1)}
    assert len(ids) == 1
    assert all(len(s.scores) == 2 for s in task.models)
    more = result(evaluate_suite(start[:1], suite, ["only=[opinions]", "examples=4000"]), "opinions")
    assert more.train_rows == 40


def test_a_checkpoint_answers_as_it_is(suite: Path, finished: Path) -> None:
    """Zero-shot: the fine-tuned model has the score that its own run reported; one without the head is listed."""
    text = SUITE.replace("    settings: {epochs: 2}\n", "    zero_shot: true\n").replace("metric: f1", "metric: accuracy")
    Path("asis.yaml").write_text(text, "utf-8")
    folder = finished / "runs/small/finetune"
    report = json.loads((finished / "runs/small/report.json").read_text("utf-8"))
    results = evaluate_suite([folder, finished / "runs/small/dapt"], "asis.yaml", ["only=[opinions]"])
    task = result(results, "opinions")
    assert task.of("finetune").scores == {0: report["worth"]["prefixes"][-1]["scores"]["0"]}
    assert "zero-shot needs the head classify" in task.of("dapt").without and task.train_rows == 0
    with pytest.raises(UserError, match="no task of the suite mini could be scored:\n  opinions: zero-shot"):
        evaluate_suite([finished / "runs/small/dapt"], "asis.yaml", ["only=[opinions]"])


STARTS = """\
name: {system}
system: {system}/tiny
model: {{layers: 1, width: 32, heads: 2, mlp: 48}}
tokenizer: {tokenizer}
sources: {{general: {{path: general.txt, txt: line, valid: 0.1}}}}
defaults: {{length: 40, batch: {{tokens: 256}}, precision: fp32, optim: {{lr: 1e-2}}}}
stages: [{{stage: pretrain, data: general, steps: 2}}]
"""


@pytest.mark.parametrize(("system", "tokenizer"), [("t5", "{kind: unigram, vocab: 500}"), ("gpt2", "{kind: bpe, vocab: 400}")])
def test_structures_that_write(system: str, tokenizer: str, suite: Path, start: list[Path]) -> None:
    """With a head and text to text; an encoder that cannot write is listed with the reason, beside one that can."""
    Path(f"{system}.yaml").write_text(STARTS.format(system=system, tokenizer=tokenizer), "utf-8")
    folder = run(f"{system}.yaml") / "pretrain"
    os.rename(folder.parent, f"runs/{system}-start")
    folder = Path(f"runs/{system}-start/pretrain")
    head = evaluate_suite([folder], suite, ["seeds=1", "only=[opinions,length,long]"])
    assert len(head.scored) == 3
    options = ["seeds=1", "answers=text", "only=[opinions,length,long]", "defaults.length=40"]
    written = evaluate_suite([folder, start[0]], suite, options)
    assert [t.task for t in written.scored] == ["opinions", "length"]
    assert "have no written form" in result(written, "long").without
    own, other = list(written.checkpoints)
    assert "does not write" in result(written, "opinions").of(other).without
    answers = kept(written, "opinions", own, 0)
    assert set(answers["predicted"]) <= {"neg", "pos", ""} and answers["stage"]["objective"]["kind"] == "seq2seq"
    assert set(answers["gold"]) == {"neg", "pos"}
    assert result(written, "opinions").metric == "f1"
    assert all(isinstance(v, float) for v in kept(written, "length", own, 0)["predicted"])
    same = {s.model: s.mean for s in result(head, "opinions").models if s.kind == "baseline"}
    assert same == {s.model: s.mean for s in result(written, "opinions").models if s.kind == "baseline"}
    made = Path("evaluations/data/as-text").glob("opinions-*/train.jsonl")
    row = json.loads(next(made).read_text("utf-8").splitlines()[0])
    assert row["text"].startswith("opinions text: ") and row["answer"] in ("neg", "pos")
    # all training rows, as a head has them, each with its own text
    assert result(written, "opinions").train_rows == result(head, "opinions").train_rows == 40
    asked = question(load_suite(suite, options), "opinions", "it", open_checkpoint(folder))
    given = [
        json.loads(line)["text"] for line in next(iter(Path("evaluations/data/as-text").glob("opinions-*/train.jsonl"))).open()
    ]
    assert len(asked.prepared.shards["task", "train"]) == 40 == len(given)
    assert [f"opinions text: {d.texts['text']}" for d in asked.documents("train")] == given


def test_labels_and_choices_by_likelihood(suite: Path, start: list[Path]) -> None:
    """Nothing is trained: the answers are what the opened checkpoint chooses, of labels and of choices, zero-shot and with solved rows."""
    Path("gpt2.yaml").write_text(STARTS.format(system="gpt2", tokenizer="{kind: bpe, vocab: 400}"), "utf-8")
    folder = run("gpt2.yaml") / "pretrain"
    rows = [json.loads(line) for line in Path("pairs-test.jsonl").read_text("utf-8").splitlines()]
    for name in ("pairs.jsonl", "pairs-test.jsonl"):
        lines = [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]
        made = [{"q": r["a"], "one": "river stone", "two": "winter", "right": "B"} for r in lines]
        Path(f"choice-{name}").write_text("".join(json.dumps(r) + "\n" for r in made), "utf-8")
    more = """\
  choice:
    local: {path: choice-pairs.jsonl, test: choice-pairs-test.jsonl, columns: {text: q, choices: [one, two], label: right}}
    objective: {kind: multiple_choice, labels: [A, B]}
    prompt: "Q {text}"
    likelihood: {by: byte}
"""
    suite.write_text(SUITE + more, "utf-8")
    tuned = result(evaluate_suite([folder, start[0]], suite, ["only=[choice]", "seeds=1"]), "choice")
    assert all(s.scores for s in tuned.models) and tuned.train_rows == 24
    for one in tuned.models:
        if one.kind == "checkpoint":  # the choices' scores are kept with the answers, and these are the highest
            answers = json.loads((Path(one.folders[0]) / "result.json").read_text("utf-8"))
            assert [int(np.argmax(row)) for row in answers["more"]["scores"]] == answers["predicted"]
    options = ["answers=likelihood", "only=[opinions,choice,length]"]
    results = evaluate_suite([folder, start[0]], suite, options)
    other = list(results.checkpoints)[1]
    assert "cannot say how probable" in result(results, "choice").of(other).without
    assert "no labels or choices" in result(results, "length").without
    model, how = load(folder), Likelihood(by="byte")
    answers = kept(results, "choice", next(iter(results.checkpoints)), 0)
    said = model.choose([f"Q {row['a']}" for row in rows], [["river stone", "winter"]] * len(rows), how)
    assert [["river stone", "winter"][n] for n in answers["predicted"]] == said and set(answers["gold"]) == {1}
    tests = [json.loads(line)["sentence"] for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    opinions = kept(results, "opinions", next(iter(results.checkpoints)), 0)
    assert opinions["predicted"] == model.choose(tests, [["neg", "pos"]] * len(tests))
    shot = evaluate_suite([folder], suite, [*options, "shots=2"])
    assert list(result(shot, "opinions").of("pretrain").scores) == [0, 1] and result(shot, "opinions").train_rows == 2
    assert not any("no room" in note or "longer" in note for note in result(shot, "opinions").notes)


def test_prompts_that_do_not_fit_are_told(suite: Path) -> None:
    """Of the examples as many whole ones as the model can read; of a question that is too long by itself the end."""
    Path("gpt2.yaml").write_text(STARTS.format(system="gpt2", tokenizer="{kind: bpe, vocab: 400}"), "utf-8")
    folder = run("gpt2.yaml") / "pretrain"
    rows = [json.loads(line) for line in Path("test.jsonl").read_text("utf-8").splitlines()]
    rows[0]["sentence"] = " ".join(f"{word} {n}" for n in range(300) for word in ("river", "stone"))
    Path("test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    results = evaluate_suite([folder], suite, ["answers=likelihood", "only=[opinions]", "shots=40"])
    more = [kept(results, "opinions", "pretrain", seed)["more"] for seed in (0, 1)]
    held, whole = ([n for one in more for n in one[name]] for name in ("shots", "whole"))
    assert held[0] == 0 and whole == [n % len(rows) > 0 for n in range(2 * len(rows))] and 0 < np.mean(held) < 40
    notes = result(results, "opinions").notes
    few = f"pretrain: 100% of the prompts had no room for 40 examples; they held {np.mean(held):.1f} on average."
    long = f"pretrain: {1 / len(rows):.0%} of the questions are longer than the model reads, and lost their beginning."
    assert few in notes and long in notes


@pytest.mark.parametrize("way", ["likelihood", "text"])
def test_rows_of_a_group_are_scored_together(way: str, suite: Path) -> None:
    """Whichever way the answers come; the counts are those of the rule written out (SuperGLUE's MultiRC)."""
    Path("gpt2.yaml").write_text(STARTS.format(system="gpt2", tokenizer="{kind: bpe, vocab: 400}"), "utf-8")
    folder = run("gpt2.yaml") / "pretrain"
    for name in ("pairs.jsonl", "pairs-test.jsonl"):
        lines = [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]
        made = [{"q": r["a"], "right": r["same"], "of": n // 3} for n, r in enumerate(lines)]
        Path(f"group-{name}").write_text("".join(json.dumps(r) + "\n" for r in made), "utf-8")
    more = """\
  together:
    local: {path: group-pairs.jsonl, test: group-pairs-test.jsonl, columns: {text: q, label: right, group: of}}
    objective: {kind: classify, labels: [0, 1], names: ["no", "yes"], metric: f1_a}
    further: [group_em]
"""
    suite.write_text(SUITE + more, "utf-8")
    results = evaluate_suite([folder], suite, [f"answers={way}", "only=[together]", "seeds=1"])
    answers = kept(results, "together", "pretrain", 0)
    gold, said = answers["gold"], answers["predicted"]
    if way == "text":  # kept row by row
        gold, said = ([side[n : n + 3] for n in range(0, 12, 3)] for side in (gold, said))
    assert [len(row) for row in gold] == [len(row) for row in said] == [3, 3, 3, 3]
    flat = [(g, s) for group, row in zip(gold, said, strict=True) for g, s in zip(group, row, strict=True)]
    hits = sum(g == s == "yes" for g, s in flat)
    f1 = 200 * hits / (sum(g == "yes" for g, _ in flat) + sum(s == "yes" for _, s in flat)) if hits else 0.0
    found = result(results, "together").of("pretrain")
    assert 100 * found.mean == pytest.approx(f1)
    assert found.further["group_em"] == np.mean([g == s for g, s in zip(gold, said, strict=True)])


def test_what_decides_an_answer_is_in_its_key(suite: Path, start: list[Path]) -> None:
    """The rows on which a threshold is tuned, and how a model of the same weights is asked."""
    rows = [{"q": "who", "c": f"row {n} tells of stone", "a": [{"text": "stone", "answer_start": 0}]} for n in range(9)]
    for row in rows:
        row["a"] = [{"text": "stone", "answer_start": row["c"].index("stone")}]  # type: ignore[index, union-attr]
    for name, some in (("qa", rows[:6]), ("qa-valid", rows[6:7]), ("qa-test", rows[7:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some), "utf-8")
    more = """\
  asked:
    local: {path: qa.jsonl, valid: qa-valid.jsonl, test: qa-test.jsonl, columns: {text: q, pair: c, answers: a}}
    objective: {kind: question_answering, no_answer: true, threshold: tuned}
"""
    suite.write_text(SUITE + more, "utf-8")
    opened = open_checkpoint(start[0])

    def key(name: str, *options: str) -> str:
        return question(load_suite(suite, options), name, "it", opened).key

    tuned, fixed = key("asked"), key("asked", "tasks.asked.objective.threshold=0")
    Path("qa-valid.jsonl").write_text(json.dumps({**rows[6], "a": []}) + "\n", "utf-8")
    assert key("asked") != tuned and key("asked", "tasks.asked.objective.threshold=0") == fixed
    Path("gpt2.yaml").write_text(STARTS.format(system="gpt2", tokenizer="{kind: bpe, vocab: 400}"), "utf-8")
    opened = open_checkpoint(run("gpt2.yaml") / "pretrain")
    asked, head = key("opinions", "answers=likelihood"), key("opinions")
    opened = replace(opened, lineage=({**opened.lineage[-1], "objective": {"kind": "seq2seq"}},))
    assert key("opinions", "answers=likelihood") != asked and key("opinions") == head


def test_a_task_that_fails_does_not_take_the_others_along(
    suite: Path, start: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = suites.answer

    def diverging(asked: Any, seed: int, signals: Any) -> Any:
        if asked.name == "alike" and asked.label == "dapt":
            raise UserError("the loss is no number", "lower the rate")
        return real(asked, seed, signals)

    monkeypatch.setattr(suites, "answer", diverging)
    results = evaluate_suite(start, suite, ["only=[opinions,alike]", "seeds=1"])
    assert (
        result(results, "alike").of("dapt").without == "the loss is no number" and result(results, "alike").of("pretrain").scores
    )
    assert all(result(results, "opinions").of(model).scores for model in results.checkpoints)
    alone = evaluate_suite(start[1:], suite, ["only=[opinions,alike]", "seeds=1"])
    assert [t.task for t in alone.left_out] == ["alike"] and result(alone, "alike").without == "the loss is no number"


def test_answers_that_cannot_be_scored_leave_the_others_whole(
    suite: Path, start: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = suites.metric_of

    def metric_of(objective: Any) -> Any:
        if isinstance(objective, Classify) and objective.names:
            raise UserError("no such span", "use another metric")
        return real(objective)

    monkeypatch.setattr(suites, "metric_of", metric_of)
    results = evaluate_suite(start[:1], suite, ["only=[opinions,alike,length]", "seeds=1"])
    assert [t.task for t in results.scored] == ["opinions", "length"] and result(results, "alike").without == "no such span"
    assert "no such span" in Path("evaluations/mini/results.html").read_text("utf-8")


def test_at_the_end_of_a_run(suite: Path, no_training: Callable[[], None]) -> None:
    """A recipe's suites take the last text stage's checkpoint, with the options given there."""
    recipe = Path("text.yaml")
    recipe.write_text(recipe.read_text("utf-8") + "suites: {mini.yaml: {seeds: 1, only: [alike]}}\n", "utf-8")
    folder = run(recipe)
    said = json.loads((folder / "suites/mini/results.json").read_text("utf-8"))
    assert list(said["checkpoints"]) == ["pretrain"] and said["seeds"] == [0]
    assert [t["task"] for t in said["tasks"]] == ["alike"] and (folder / "suites/mini/results.html").exists()
    no_training()
    run(recipe)
    evaluate_suite([folder / "pretrain"], "mini.yaml", ["seeds=1", "only=[alike]"])
    with pytest.raises(UserError, match="there is no task 'alice'"):  # before anything is trained
        run(recipe, ["suites={mini.yaml: {only: [alice]}}", "name=other"])
    assert not Path("runs/other").exists()
    text = Path("small.yaml").read_text("utf-8")
    tuned = text[: text.index("  - {stage: pretrain")] + text[text.index("  - {stage: finetune") :] + "suites: glue\n"
    Path("tuned.yaml").write_text(tuned, "utf-8")
    with pytest.raises(UserError, match="suites: needs a text stage"):
        run("tuned.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tasks.opinions.objective.metric=f2", "must be one of"),
        ("tasks.opinions.objective={kind: mlm}", "has no labels, so there is nothing to score"),
        ("tasks.opinions.local.test=null", "has no `test` rows"),
        ("tasks.opinions.settings.init=here", "is not for a suite to set"),
        ("tasks.opinions.local=null", "has no rows"),
        ("tasks.opinions.further=[rouge_l]", "'classify' has no metric 'rouge_l'"),
        ("tasks.opinions.further=[group_em]", "'group_em' is a score of rows that belong together (`group`), 'f1' of answers"),
        ("tasks.few.without=''", "has no objective"),
        ("tasks.opinions.prompt='{txt}'", "the texts are called {text} and {pair}"),
        ("tasks.opinions.prompt='review: text'", "it names no text, so that every question would be the same"),
        ("tasks.opinions.objective.names=[good,good]", "names repeat"),
        ("tasks.opinions.prompt='{text:d}'", "a text stands as it is; write {text}, with nothing behind the name"),
        ("tasks.opinions.prompt='{text!r}'", "a text stands as it is; write {text}"),
        ("tasks.opinions.prompt='{text} {pair}'", "names {pair}, and the columns of `local` have no `pair`"),
        ("tasks.opinions.objective.metric=group_em", "scores rows together, and the columns of `local` have no `group`"),
        ("tasks.long.objective.labels=[O, PER]", "span F1 cannot read the label 'PER'"),
        ("only=[opinion]", "did you mean 'opinions'?"),
        ("seeds=0", "needs at least one seed"),
        ("seeds=[1,1]", "each seed may stand once"),
        ("sedes=1", "did you mean 'seeds'?"),
        ("rows=far", "must be one of local, hub"),
    ],
)
def test_mistakes_in_a_suite(change: str, said: str, suite: Path) -> None:
    with pytest.raises(UserError) as error:
        load_suite(suite, [change])
    assert said in str(error.value)


def test_mistakes_that_rows_show(suite: Path, start: list[Path]) -> None:
    for change, said in (
        ("tasks.opinions.local.columns.label=lable", "task opinions: .*there is no column 'lable'"),
        ("tasks.opinions.objective.labels=[neg, good]", "task opinions: label 'pos' .*is not in the label list"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_suite(start[:1], suite, [change, "only=[opinions]"])
    with pytest.raises(UserError, match="named twice"):
        evaluate_suite([start[0], start[0]], suite)


def test_what_span_f1_reads_hangs_on_the_rows_and_metrics(suite: Path) -> None:
    tagged = {"tasks.long.objective": "{kind: tag, labels: [0, 1], metric: token_f1}", "tasks.long.hub_labels": "[O, PER]"}
    options = [f"{key}={value}" for key, value in tagged.items()]
    load_suite(suite, options)
    for more, label in ((["rows=local"], "0"), (["rows=hub"], "PER")):
        with pytest.raises(UserError, match=f"span F1 cannot read the label '{label}'"):
            load_suite(suite, [*options, "tasks.long.further=[span_f1]", *more])
    load_suite(suite, [*options, "tasks.long.further=[span_f1]", "tasks.long.objective.names=[O, B-PER]"])


def test_suite_or_recipe(suite: Path, start: list[Path]) -> None:
    assert is_suite("mini.yaml") and is_suite("glue") and not is_suite("small.yaml") and not is_suite("nowhere.yaml")
    with pytest.raises(UserError, match="there is no suite 'gleu'") as error:
        is_suite("gleu")
    assert "did you mean 'glue'?" in str(error.value)
    few = CliRunner().invoke(app, ["evaluate", str(start[0])])
    assert few.exit_code == 2 and "needs a checkpoint and a suite or recipe" in few.stderr
    many = CliRunner().invoke(app, ["evaluate", *map(str, start), "small.yaml"])
    assert many.exit_code == 2 and "a recipe scores one checkpoint, not 2" in many.stderr


def test_names_of_checkpoints() -> None:
    assert labels(["runs/a/dapt", "runs/a/tapt"]) == ["dapt", "tapt"]
    assert labels(["runs/a/dapt", "runs/b/dapt"]) == ["a/dapt", "b/dapt"]
    assert labels(["runs/a/dapt/hf"]) == ["dapt"]


def test_rows_by_the_hub_have_their_labels_by_name(suite: Path, start: list[Path], tmp_path: Path) -> None:
    """A folder that `datasets` reads, with integer classes: the labels of the suite are matched by their names."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "hub"
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    made = {}
    for split, file in (("train", "train.jsonl"), ("validation", "test.jsonl")):
        rows = [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()]
        columns = {"sentence": [r["sentence"] for r in rows], "label": [int(r["label"] == "pos") for r in rows]}
        made[split] = datasets.Dataset.from_dict(columns, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        made[split].to_parquet(folder / "data" / f"{split}-00000.parquet")
    text = f"""\
suite: hub
seeds: 1
defaults: {{epochs: 1, length: 32, precision: fp32}}
tasks:
  opinions:
    hub: {{kind: hub, id: {folder}, test: validation, columns: {{text: sentence, label: label}}}}
    objective: {{kind: classify, labels: [0, 1], names: [negative, positive]}}
    without: no local rows
"""
    Path("hub.yaml").write_text(text, "utf-8")
    results = evaluate_suite(start[:1], "hub.yaml", ["rows=hub"])
    assert set(kept(results, "opinions", "pretrain", 0)["gold"]) == {"negative", "positive"}
    with pytest.raises(UserError, match="no local rows"):
        evaluate_suite(start[:1], "hub.yaml")


SUPERGLUE: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "copa": (
        [
            {
                "premise": "The river rose.",
                "choice1": "It rained.",
                "choice2": "A captain sang.",
                "question": "cause",
                "label": 0,
            },
            {"premise": "The window broke.", "choice1": "He sang.", "choice2": "Glass fell.", "question": "effect", "label": 1},
        ],
        [{"premise": "The stone fell.", "choice1": "Winter came.", "choice2": "It hit.", "question": "effect", "label": 1}] * 3,
    ),
    "multirc": (
        [
            {"paragraph": "A captain by the river.", "question": "Who?", "answer": answer, "label": right}
            | {"idx": {"paragraph": 9, "question": 0, "answer": n}}
            for n, (answer, right) in enumerate([("the captain", 1), ("a garden", 0), ("the stone", 0), ("someone", 1)])
        ],
        [
            {"paragraph": f"Paper and music {p}.", "question": f"What {q}?", "answer": answer, "label": right}
            | {"idx": {"paragraph": p, "question": q, "answer": n}}
            for p, q, answers in ((0, 0, "10"), (0, 1, "010"), (1, 0, "11"))
            for n, (answer, right) in enumerate(zip(["paper", "stone", "music"], map(int, answers)))
        ],
    ),
    "record": (
        [
            {
                "passage": "Rhine and Elbe are rivers.",
                "query": "@placeholder flows.",
                "entities": ["Elbe", "Rhine"],
                "answers": ["Elbe"],
            }
        ]
        * 2,
        [
            {"passage": "Anna met Bert Brown.", "query": "@placeholder came.", "entities": ["Anna", "Bert", "Bert Brown"]}
            | {"answers": ["Bert", "Bert Brown"]},
            {"passage": "Cole met Dora.", "query": "@placeholder left.", "entities": ["Cole", "Dora"], "answers": ["Dora"]},
        ],
    ),
    "wic": (
        [
            {"word": "bank", "sentence1": "A river bank.", "sentence2": "Paper in a bank.", "label": 0, "start1": 8},
            {"word": "stone", "sentence1": "A grey stone.", "sentence2": "The stone fell.", "label": 1, "start1": 7},
        ],
        [{"word": "music", "sentence1": "Hear music.", "sentence2": "Winter music.", "label": 1, "start1": 5}] * 3,
    ),
    "wsc": (
        [
            {"text": "Anna met Bert and he sang.", "span1_text": "Anna", "span2_text": "he", "span1_index": 0, "label": 0},
            {"text": "Cole met Dora and she sang.", "span1_text": "Dora", "span2_text": "she", "span1_index": 2, "label": 1},
        ],
        [{"text": "A captain saw a river; it was cold.", "span1_text": "A river", "span2_text": "it", "label": 1}] * 3,
    ),
}
"""Training and test rows as the hub's dataset has them, with labels as numbers."""


def test_superglue(start: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task reads what it asks about, and is scored as it should be."""
    monkeypatch.chdir(tmp_path)
    suite = load_suite("superglue", ["seeds=1", "defaults.epochs=1", "defaults.length=32", "only=[copa,multirc,record,wic,wsc]"])
    tasks = {}
    for name, splits in SUPERGLUE.items():
        for split, rows in zip(("train", "test"), splits, strict=True):
            lines = [json.dumps(row) + "\n" for row in rows]
            (tmp_path / f"{name}-{split}.jsonl").write_text("".join(lines), "utf-8")
        hub = suite.tasks[name].hub
        assert hub is not None and hub.kind == "hub"
        local = Files(path=f"{name}-train.jsonl", test=f"{name}-test.jsonl", columns=hub.columns)
        tasks[name] = suite.tasks[name].model_copy(update={"local": local, "without": ""})
    suite = suite.model_copy(update={"tasks": {**suite.tasks, **tasks}})
    read = {name: question(suite, name, "dapt", open_checkpoint(start[1])).documents("test")[0] for name in tasks}
    assert {name: d.texts | d.lists for name, d in read.items()} == {
        "copa": {"text": "The stone fell.", "pair": "What was the effect of this?", "choices": (" Winter came.", " It hit.")},
        "multirc": {"text": "Paper and music 0.", "pair": "What 0? paper"},
        "record": {"text": "Anna met Bert Brown.", "pair": "@placeholder came.", "choices": (" Anna", " Bert", " Bert Brown")},
        "wic": {"text": "music: Hear music.", "pair": "Winter music."},
        "wsc": {"text": "A captain saw a river; it was cold.", "pair": "it is A river"},
    }
    results = evaluate_suite(start[1:], suite)
    assert {t.task: t.metric for t in results.scored} == {
        "copa": "accuracy",
        "multirc": "f1_a",
        "record": "squad_f1",
        "wic": "accuracy",
        "wsc": "accuracy",
    }
    found = {name: kept(results, name, "dapt", 0) for name in tasks}
    assert found["copa"]["gold"] == [1, 1, 1] and set(found["wic"]["gold"]) == {"True"}
    multirc = found["multirc"]  # two questions on one passage are two groups
    assert multirc["gold"] == [["True", "False"], ["False", "True", "False"], ["True", "True"]]
    assert [len(group) for group in multirc["predicted"]] == [2, 3, 2]
    pairs = [(g, p) for gold, said in zip(multirc["gold"], multirc["predicted"]) for g, p in zip(gold, said)]
    score = result(results, "multirc").of("dapt")
    hits, said = sum(g == p == "True" for g, p in pairs), sum(p == "True" for _, p in pairs)
    assert score.mean == pytest.approx(2 * hits / (said + 4))
    assert score.further["group_em"] == pytest.approx(np.mean([g == p for g, p in zip(multirc["gold"], multirc["predicted"])]))
    record = found["record"]
    assert record["gold"] == [["Bert", "Bert Brown"], ["Dora"]]
    first = {"Anna": 0.0, "Bert": 1.0, "Bert Brown": 1.0}[record["predicted"][0]]
    assert result(results, "record").of("dapt").mean == pytest.approx((first + (record["predicted"][1] == "Dora")) / 2)


def test_labels_as_the_hub_calls_them() -> None:
    """COPA's classes are called choice1 and choice2 on the hub, and are numbers in files; names stay where there are some."""
    suite = load_suite("superglue", ["rows=hub"])
    asked, there = suite.tasks["copa"].objective, by_names(suite, suite.tasks["copa"]).objective
    assert isinstance(asked, MultipleChoice) and isinstance(there, MultipleChoice)
    assert asked.numbers(1, 2) == there.numbers("choice2", 2) == [1]
    called = load_suite("glue", ["rows=hub", "tasks.cola.hub_labels=[bad, good]"])
    cola = by_names(called, called.tasks["cola"]).objective
    assert isinstance(cola, Classify) and cola.labels == ("bad", "good") and cola.label_names() == ("unacceptable", "acceptable")
    with pytest.raises(UserError, match="2 for the 3 labels of the objective"):
        load_suite("superglue", ["tasks.copa.objective.labels=[0,1,2]"])


BUILT_IN = {"glue": 10, "superglue": 8, "squad": 2, "ner": 4, "choice": 7, "generation": 4, "chinese": 16}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_suites(name: str) -> None:
    suite: Suite = load_suite(name)
    assert suite.suite == name and suite.about and len(suite.tasks) == BUILT_IN[name]
    for task in suite.tasks.values():
        assert task.about
        for source in (task.local,):
            if source is not None and source.kind == "files":
                assert all(str(p).startswith("$ZIGGURAT_DATA/") for p in (source.path, source.test) if isinstance(p, str))
    found = CliRunner().invoke(app, ["list", "suites"])
    assert found.exit_code == 0 and name in found.stdout


def test_chinese_is_asked_in_chinese() -> None:
    """By likelihood: of every label and choice a Chinese text is scored, after a Chinese prompt; those of iflytek in the order of its labels."""
    suite, han = load_suite("chinese"), re.compile("[\u4e00-\u9fff]")
    asked = {name: task for name, task in suite.tasks.items() if isinstance(task.objective, (Classify, MultipleChoice))}
    assert len(asked) == 11
    for name, task in asked.items():
        assert han.search(task.prompt), name
        # an abbreviation is one in Chinese, too
        names = task.objective.label_names() if isinstance(task.objective, Classify) else ()
        assert [n for n in names if not han.search(n)] == (["MOBA"] if name == "iflytek" else []), name
    objective = suite.tasks["iflytek"].objective
    assert isinstance(objective, Classify) and len(objective.labels) == 119
    called = dict(zip(objective.labels, objective.names))
    assert (called[0], called[10], called[20], called[118]) == ("打车", "社区服务", "棋牌中心", "其他")
    there = by_names(load_suite("chinese", ["rows=hub"]), suite.tasks["iflytek"]).objective
    assert there == objective  # classes are called by their numbers there


@pytest.mark.skipif("ZIGGURAT_DATA" not in os.environ, reason="ZIGGURAT_DATA names no folder of real tasks")
@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_suites_fit_their_rows(name: str, start: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every declared column is there and every label is known."""

    monkeypatch.chdir(tmp_path)
    suite, opened = load_suite(name, ["train_rows=300", "test_rows=200"]), open_checkpoint(start[0])
    for task in suite.tasks:
        try:
            question(suite, task, "pretrain", opened)
        except CannotAsk as why:
            print(name, task, why)

"""Question answering and multiple choice from rows to a report, to answers, and to a folder that `transformers` answers with as we do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ziggurat.config import load as load_yaml
from ziggurat.errors import UserError
from ziggurat.evaluate import answers
from ziggurat.evaluate.answer_scores import answer_metric
from ziggurat.pipeline import estimate
from ziggurat.pipeline.doctor import doctor
from ziggurat.pipeline.evaluate import evaluate_checkpoint
from ziggurat.pipeline.model import load
from ziggurat.pipeline.run import run
from ziggurat.pipeline.tryout import try_checkpoint
from ziggurat.train.recipe import Recipe

RECIPE = """\
name: {name}
system: {system}/tiny
model: {{layers: 2, width: 32, heads: 2, mlp: 48}}
tokenizer: {tokenizer}
sources:
  task: {{path: train.jsonl, valid: valid.jsonl, test: test.jsonl, columns: {columns}}}
defaults: {{length: {length}, precision: fp32, optim: {{lr: 5e-3}}}}
stages:
  - {{stage: finetune, data: task, objective: {objective}, epochs: 2, dropout: 0.0, batch: {{documents: 8}}}}
worth: false
"""
TOKENIZERS = {"bert": "{kind: wordpiece, vocab: 400}", "bart": "{kind: bpe, vocab: 400}", "gpt2": "{kind: bpe, vocab: 400}"}
PEOPLE = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "李白", "杜甫"]
PLACES = ["London", "New York", "Rotterdam", "Cambridge", "长安", "成都"]


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def questions(n: int, seed: int, none: bool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        people = rng.choice(PEOPLE, 3, replace=False).tolist()
        places = rng.choice(PLACES, 3, replace=False).tolist()
        context = " ".join(f"{p} number {i} of {seed} lives in {q}." for p, q in zip(people, places))
        asked = int(rng.integers(3))
        answers = [{"text": places[asked], "answer_start": context.index(f"in {places[asked]}.") + 3}]
        gone = none and rng.random() < 0.4
        who = "Nobody" if gone else people[asked]
        rows.append({"question": f"Where does {who} live?", "context": context, "answers": [] if gone else answers})
    return rows


def answering(system: str, objective: str, length: int, none: bool = True) -> Path:
    for name, n, seed in (("train", 60, 0), ("valid", 12, 1), ("test", 14, 2)):
        write(f"{name}.jsonl", questions(n, seed, none))
    columns = "{text: question, pair: context, answers: answers}"
    text = RECIPE.format(
        name="qa", system=system, tokenizer=TOKENIZERS[system], columns=columns, length=length, objective=objective
    )
    Path("qa.yaml").write_text(text, "utf-8")
    return Path("qa.yaml")


def test_a_long_question_may_be_asked_of_many_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives no test row away; a context that stands in both does, and goes."""
    monkeypatch.chdir(tmp_path)
    path = answering("bert", "{kind: question_answering, no_answer: true}", 44)
    rows = {
        name: [json.loads(line) for line in Path(f"{name}.jsonl").read_text("utf-8").splitlines()] for name in ("train", "test")
    }
    for row in (*rows["train"][:9], *rows["test"][:9]):
        row["question"] = "In which town of the whole wide world does this one live today?"
    write("train.jsonl", rows["train"] + [{**rows["train"][0], "context": rows["test"][0]["context"], "answers": []}])
    write("test.jsonl", rows["test"])
    folder = run(path)
    facts = json.loads((folder / "shards/task/train.json").read_text("utf-8"))
    assert (facts["kept"], facts["leaks"]) == (60, 1)


@pytest.mark.parametrize("kind", ["questions", "choices"])
def test_the_estimate_counts_what_the_answers_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context in several windows, also on the rows that a threshold is tuned on; a question once with each of its choices."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "SECONDS", 0.2)
    if kind == "questions":
        path = answering("bert", "{kind: question_answering, no_answer: true, threshold: tuned, longest: 8}", 30)
    else:
        path = choosing("bert")
    (stage,) = doctor(path)["estimate"]["stages"]
    read: list[int] = []
    inner = answers._scores
    monkeypatch.setattr(answers, "_scores", lambda *given: read.append(given[2].live_tokens()) or inner(*given))
    run(path)
    counted = stage["passes"]["answers"] + stage["passes"].get("rows a threshold is tuned on", 0)
    assert counted == sum(read) > 0 and ("rows a threshold is tuned on" in stage["passes"]) == (kind == "questions")


@pytest.mark.parametrize("system", ["bert", "bart"])
def test_questions(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    path = answering(system, "{kind: question_answering, no_answer: true, threshold: tuned, longest: 8}", 44)
    folder = run(path)
    kept = json.loads((folder / "finetune" / "predictions.json").read_text("utf-8"))
    rows = questions(14, 2, True)
    assert kept["gold"] == [[a["text"] for a in row["answers"]] for row in rows]
    assert len(kept["more"]["margin"]) == len(rows)
    for row, given, span in zip(rows, kept["predicted"], kept["more"]["span"], strict=True):
        assert span and span in row["context"] and given in (span, "")
    said = json.loads((folder / "report.json").read_text("utf-8"))
    assert "question_answering task: 60 labelled rows, 14 test rows" in said["task"] and said["metric"] == "squad_f1"
    assert set(said["worth"]["baselines"]) == {"majority", "most similar sentence"}
    assert run(path) == folder  # nothing is done twice
    scores = evaluate_checkpoint(folder / "finetune", path)
    assert scores["task/squad_f1"] == pytest.approx(answer_metric("squad_f1")(kept["gold"], kept["predicted"]))

    ours, found = load(folder / "finetune"), kept["threshold"]
    assert ours.predict([(row["question"], row["context"]) for row in rows]) == kept["predicted"], "asked as it was scored"
    assert ours.objective["threshold"] == found != 0
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder / "finetune" / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "finetune" / "hf")
    for row in rows[:4]:
        pair = row["question"], row["context"]
        inputs = tokenizer(*pair, return_tensors="pt", return_offsets_mapping=True)
        spans = inputs.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            out = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], token_type_ids=inputs.get("token_type_ids")) if system == "bert" else model(input_ids=inputs["input_ids"])  # fmt: skip
        second = [i for i, s in enumerate(inputs.sequence_ids(0)) if s == 1]
        pairs = [(float(out.start_logits[0, s] + out.end_logits[0, e]), s, e) for s in second for e in second if s <= e < s + 8]
        score, s, e = max(pairs)
        null = float(out.start_logits[0, 0] + out.end_logits[0, 0])
        want = row["context"][spans[s][0] : spans[e][1]].strip() if null - score <= found else ""
        assert ours.predict([pair]) == [want]
    shown = try_checkpoint(folder / "finetune", rows[0]["question"], rows[0]["context"])
    assert shown == "no answer" or shown in rows[0]["context"]
    with pytest.raises(UserError, match="--pair"):
        try_checkpoint(folder / "finetune", "Where?")


def test_a_threshold_is_tuned_on_the_rows_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid rows that changed behind a finished fine-tuning: the answers, and what the checkpoint says of itself, are those of a new run."""
    monkeypatch.chdir(tmp_path)
    path = answering("bert", "{kind: question_answering, no_answer: true, threshold: tuned, longest: 8}", 44)
    folder = run(path)
    write("valid.jsonl", questions(40, 9, True))
    assert run(path) == folder
    fresh = run(path, ["name=fresh"])
    now, new = (json.loads((f / "finetune" / "predictions.json").read_text("utf-8")) for f in (folder, fresh))
    assert now == new
    assert load(folder / "finetune").objective["threshold"] == new["threshold"]


def test_a_tuned_threshold_among_several_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks of questions, each with its own threshold: both stay with the checkpoint, and each head is asked with its own."""
    monkeypatch.chdir(tmp_path)
    for name, n, seed in (("train", 60, 0), ("valid", 12, 1), ("test", 14, 2)):
        write(f"{name}.jsonl", questions(n, seed, True))
        write(f"other-{name}.jsonl", questions(n, seed + 7, True))
    columns = "{text: question, pair: context, answers: answers}"
    part = "{kind: question_answering, no_answer: true, threshold: tuned, longest: 8}"
    text = RECIPE.format(
        name="two",
        system="bert",
        tokenizer=TOKENIZERS["bert"],
        columns=columns,
        length=44,
        objective=f"{{kind: tasks, parts: {{task: {part}, other: {part}}}}}",
    )
    other = f"  other: {{path: other-train.jsonl, valid: other-valid.jsonl, test: other-test.jsonl, columns: {columns}}}\n"
    text = text.replace("defaults:", other + "defaults:").replace("data: task", "data: {task: 1, other: 1}")
    Path("two.yaml").write_text(text.replace("epochs: 2", "steps: 12"), "utf-8")
    folder = run("two.yaml") / "finetune"
    found = {}
    for task, seed in (("task", 2), ("other", 9)):
        kept = json.loads((folder / "predictions" / f"{task}.json").read_text("utf-8"))
        ours = load(folder, task=task)
        rows = questions(14, seed, True)
        assert ours.predict([(row["question"], row["context"]) for row in rows]) == kept["predicted"], task
        found[task] = kept["threshold"]
        assert ours.objective["threshold"] == found[task]
    assert len({0.0, *found.values()}) == 3


def options(n: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        people = rng.choice(PEOPLE, int(rng.integers(2, 5)), replace=False).tolist()
        label = int(rng.integers(len(people)))
        names = list("ABCDE")[: len(people)]
        choices = {"text": people, "name": names}
        rows.append(
            {"passage": f"Row {i} of {seed} is about {people[label]}.", "ask": "Whom?", "choices": choices, "key": names[label]}
        )
    return rows


def choosing(system: str) -> Path:
    for name, n, seed in (("train", 60, 0), ("valid", 12, 1), ("test", 14, 2)):
        write(f"{name}.jsonl", options(n, seed))
    columns = "{text: passage, pair: ask, choices: choices.text, choice_names: choices.name, label: key}"
    about: dict[str, Any] = {"system": system, "tokenizer": TOKENIZERS[system], "columns": columns, "length": 40}
    Path("c.yaml").write_text(RECIPE.format(name="choice", objective="{kind: multiple_choice}", **about), "utf-8")
    return Path("c.yaml")


@pytest.mark.parametrize("system", ["bert", "gpt2", "bart"])
def test_choices(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    folder = run(choosing(system))
    kept = json.loads((folder / "finetune" / "predictions.json").read_text("utf-8"))
    rows = options(14, 2)
    assert kept["gold"] == ["ABCDE".index(row["key"]) for row in rows]
    assert kept["predicted"] == [int(np.argmax(s)) for s in kept["more"]["scores"]]
    assert [len(s) for s in kept["more"]["scores"]] == [len(row["choices"]["text"]) for row in rows]
    said = json.loads((folder / "report.json").read_text("utf-8"))
    assert said["metric"] == "accuracy" and set(said["worth"]["baselines"]) == {
        "majority",
        "longest choice",
        "most similar choice",
    }
    ours = load(folder / "finetune")
    asked = [(row["passage"], row["ask"]) for row in rows]
    each = [row["choices"]["text"] for row in rows]
    scores = ours.choice_scores(asked, each)
    for a, b in zip(scores, kept["more"]["scores"], strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert ours.choose(asked, each) == [row[int(np.argmax(s))] for row, s in zip(each, scores)]
    shown = try_checkpoint(folder / "finetune", *asked[0], choices=each[0])
    assert shown.split("\n")[0].endswith(ours.choose(asked[:1], each[:1])[0])
    if system == "bert":
        model = transformers.AutoModelForMultipleChoice.from_pretrained(folder / "finetune" / "hf").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "finetune" / "hf")
        for (passage, ask), words, mine in zip(asked[:3], each, scores):
            inputs = tokenizer([passage] * len(words), [f"{ask} {word}" for word in words], return_tensors="pt", padding=True)
            with torch.no_grad():
                theirs = model(**{k: v[None] for k, v in inputs.items()}).logits[0]
            assert theirs.tolist() == pytest.approx(mine, abs=1e-4)
    else:
        name = {"gpt2": "GPT2DoubleHeadsModel", "bart": "BartModel"}[system]  # BART has no such class
        assert json.loads((folder / "finetune" / "hf" / "config.json").read_text("utf-8"))["architectures"] == [name]


def test_choices_by_their_text_and_several_right_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ReCoRD: entities to choose from, some of them right, scored by SQuAD's rules."""
    monkeypatch.chdir(tmp_path)
    for name, n, seed in (("train", 40, 0), ("valid", 12, 1), ("test", 10, 2)):
        rows = options(n, seed)
        write(f"{name}.jsonl", [{"t": r["passage"], "q": "It is X.", "e": [*r["choices"]["text"], "the Ada"], "right": [0, len(r["choices"]["text"])]} for r in rows])  # fmt: skip
    columns = "{text: t, pair: q, choices: e, label: right}"
    about: dict[str, Any] = {"system": "bert", "tokenizer": TOKENIZERS["bert"], "columns": columns, "length": 40}
    Path("r.yaml").write_text(
        RECIPE.format(name="record", objective="{kind: multiple_choice, metric: squad_f1}", **about), "utf-8"
    )
    folder = run("r.yaml")
    kept = json.loads((folder / "finetune" / "predictions.json").read_text("utf-8"))
    rows = [r["choices"]["text"] for r in options(10, 2)]
    assert kept["gold"] == [[row[0], "the Ada"] for row in rows]
    assert all(p in [*row, "the Ada"] for p, row in zip(kept["predicted"], rows, strict=True))
    said = json.loads((folder / "report.json").read_text("utf-8"))
    longest = [max([*row, "the Ada"], key=len) for row in rows]
    assert said["metric"] == "squad_f1"
    assert said["worth"]["baselines"]["longest choice"] == pytest.approx(answer_metric("squad_f1")(kept["gold"], longest))


def test_rows_that_are_scored_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MultiRC: each answer is a row, and those to one question a group."""
    monkeypatch.chdir(tmp_path)
    sizes = {}
    for name, n, seed in (("train", 40, 0), ("valid", 12, 1), ("test", 10, 2)):
        rows = [
            {"t": row["passage"], "a": word, "q": f"{name}-{i}", "label": int(key == row["key"])}
            for i, row in enumerate(options(n, seed))
            for word, key in zip(row["choices"]["text"], row["choices"]["name"])
        ]
        write(f"{name}.jsonl", rows)
        sizes[name] = [sum(r["q"] == f"{name}-{i}" for r in rows) for i in range(n)]
    columns = "{text: t, pair: a, label: label, group: q}"
    about: dict[str, Any] = {"system": "bert", "tokenizer": TOKENIZERS["bert"], "length": 40}
    objective = "{kind: classify, labels: [0, 1], metric: group_em}"
    Path("m.yaml").write_text(RECIPE.format(name="multirc", objective=objective, columns=columns, **about), "utf-8")
    folder = run("m.yaml")
    kept = json.loads((folder / "finetune" / "predictions.json").read_text("utf-8"))
    assert list(map(len, kept["gold"])) == sizes["test"]
    assert all(g.count("1") == 1 for g in kept["gold"]) and list(map(len, kept["predicted"])) == list(map(len, kept["gold"]))
    said = json.loads((folder / "report.json").read_text("utf-8"))["worth"]
    want = np.mean([g == p for g, p in zip(kept["gold"], kept["predicted"])])
    assert said["baselines"]["majority"] == 0  # each question has an answer that is right
    assert said["prefixes"][0]["mean"] == pytest.approx(want)
    Path("m.yaml").write_text(
        RECIPE.format(name="m", objective=objective, columns="{text: t, pair: a, label: label}", **about), "utf-8"
    )
    with pytest.raises(UserError, match="declares no `group`"):
        load_yaml("m.yaml", (), model=Recipe).resolved()


@pytest.mark.parametrize(
    ("objective", "columns", "message"),
    [
        ("{kind: multiple_choice}", "{text: t, label: l}", "declares no `choices`"),
        ("{kind: multiple_choice}", "{text: t, choices: c}", "declares no `label`"),
        ("{kind: question_answering}", "{text: t, pair: p, label: l}", "declares no `answers`"),
        ("{kind: question_answering}", "{text: t, label: l}", "declares no `pair`, `answers`"),
    ],
)
def test_missing_columns_are_seen_before_anything_runs(objective: str, columns: str, message: str, tmp_path: Path) -> None:
    about: dict[str, Any] = {"name": "x", "system": "bert", "tokenizer": TOKENIZERS["bert"], "length": 40}
    (tmp_path / "x.yaml").write_text(RECIPE.format(objective=objective, columns=columns, **about), "utf-8")
    with pytest.raises(UserError, match=message):
        load_yaml(tmp_path / "x.yaml", (), model=Recipe).resolved()

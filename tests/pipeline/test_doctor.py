"""The doctor: a planted leak is found, a clean recipe gives nothing, and estimates stand beside what was measured."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ziggurat.cli import app
from ziggurat.data.near import near_duplicates
from ziggurat.errors import UserError
from ziggurat.evaluate import frozen
from ziggurat.objectives import OBJECTIVES
from ziggurat.objectives.base import Supply
from ziggurat.pipeline import context_use, estimate, machine, scoring
from ziggurat.pipeline import doctor as doctors
from ziggurat.pipeline.doctor import doctor
from ziggurat.pipeline.passes import FISHER
from ziggurat.pipeline.run import run
from ziggurat.train import retention

WORDS = [
    a + b
    for a in ["ba", "ke", "lo", "mu", "ni", "po", "ra", "si", "tu", "ve"]
    for b in ["da", "fi", "go", "lu", "me", "no", "pe", "ri", "so", "ta"]
]
RECIPE = """\
name: clinic
system: roberta/tiny
model: {layers: 1, width: 16, heads: 2, mlp: 32}
tokenizer: {kind: wordpiece, vocab: 400, lowercase: true}
sources:
  general: {path: general.txt, txt: line, valid: 0.1}
  task: {path: train.jsonl, test: test.jsonl, columns: {label: label}}
defaults: {length: 64, batch: {tokens: 512}, precision: fp32}
stages:
  - {stage: pretrain, data: general, steps: 60}
  - {stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, epochs: 2}
worth: {seeds: [0]}
"""


def sentences(draw: random.Random, count: int = 2, words: int = 12) -> str:
    return " ".join(" ".join(draw.choice(WORDS) for _ in range(words)).capitalize() + "." for _ in range(count))


def rows(draw: random.Random, count: int, labels: tuple[str, ...] = ("neg", "pos")) -> list[dict[str, str]]:
    return [{"text": sentences(draw), "label": labels[n % len(labels)]} for n in range(count)]


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a healthy recipe, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "SECONDS", 0.2)
    draw = random.Random(0)
    Path("general.txt").write_text("".join(sentences(draw, 4) + "\n" for _ in range(300)), "utf-8")
    write("train.jsonl", rows(draw, 100))
    write("test.jsonl", rows(draw, 100))
    Path("clinic.yaml").write_text(RECIPE, "utf-8")
    return tmp_path


def write(name: str, some: list[dict[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in some), "utf-8")


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


def found(*overrides: str) -> list[dict[str, Any]]:
    findings: list[dict[str, Any]] = doctor("clinic.yaml", overrides)["findings"]
    return findings


def only(findings: list[dict[str, Any]], check: str) -> dict[str, Any]:
    """The one finding there is."""
    assert [f["check"] for f in findings] == [check], findings
    assert findings[0]["hint"]
    return findings[0]


def test_a_clean_recipe_gives_no_finding(clinic: Path) -> None:
    whole = doctor("clinic.yaml")
    assert whole["findings"] == []
    assert json.loads(Path("runs/clinic/doctor.json").read_text("utf-8")) == json.loads(json.dumps(whole))
    general = whole["sources"][0]
    assert (general["source"], general["split"]) == ("general", "train") and general["copies"] == general["near"]["later"] == 0
    lines = Path("general.txt").read_text("utf-8").splitlines()
    held = whole["sources"][1]
    assert general["documents"] + held["documents"] == 300 and general["bytes"] + held["bytes"] == sum(map(len, lines))
    assert general["characters"] == general["bytes"] and list(general["scripts"]) == ["Latin"]
    assert general["sentences"] == {"looked": general["documents"], "several": general["documents"]}
    assert [(s["name"], s["times"]) for s in whole["estimate"]["stages"]] == [("pretrain", 1), ("finetune", 2)]
    assert whole["estimate"]["seconds"] > 0 and not list(Path("runs/clinic").glob("tmp-*"))


@pytest.mark.parametrize("verb", ["doctor", "run"])
def test_a_planted_leak_is_found(clinic: Path, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """20 test rows stand in the corpus, within longer documents."""
    draw = random.Random(7)
    with Path("general.txt").open("a", encoding="utf-8") as file:
        for row in read("test.jsonl")[:20]:
            file.write(f"{sentences(draw)} {row['text'].upper()} {sentences(draw)}\n")
    if verb == "doctor":
        findings = found()
    else:
        run("clinic.yaml")
        findings = json.loads(Path("runs/clinic/doctor.json").read_text("utf-8"))["findings"]
        assert json.loads(Path("runs/clinic/report.json").read_text("utf-8"))["doctor"]["findings"] == findings
        assert "hold test rows" in Path("runs/clinic/report.html").read_text("utf-8")
    leaks = [f for f in findings if f["check"] == "leaks"]
    assert sum(int(f["message"].split(" of ")[0]) for f in leaks) == 20 and "test.jsonl:" in leaks[0]["message"]
    assert {f["check"] for f in findings} == {"leaks"}


@pytest.mark.parametrize("split, bad, said", [("train", 2, True), ("train", 1, False), ("test", 1, True)])
def test_unreadable_rows_are_found(clinic: Path, split: str, bad: int, said: bool) -> None:
    """More than 1% of the rows to learn from, and every row to be scored on, are said; again from finished shards."""
    some = read(f"{split}.jsonl")
    write(f"{split}.jsonl", [*some, *({**row, "label": ""} for row in some[:bad])])
    if not said:
        assert found() == []
        return
    one = only(found(), "rows")
    assert (one["level"], one["where"]) == ("warning", f"source task ({split})")
    assert one["message"].startswith(
        f"{bad} of {100 + bad} rows cannot be read and are left out ({split}.jsonl:101: 'label' is no label"
    )
    assert [f for f in found() if f["check"] == "rows"] == [one]
    assert json.loads(Path(f"runs/clinic/shards/task/{split}.json").read_text("utf-8"))["skipped"] == bad


def test_unreadable_rows_of_a_share_are_said_once(clinic: Path) -> None:
    some = read("train.jsonl")
    write("train.jsonl", [*some, *({**row, "label": ""} for row in some[:5])])
    assert [f["where"] for f in found("sources.task.test=0.5") if f["check"] == "rows"] == ["source task (train)"]


@pytest.mark.parametrize("verb", ["doctor", "run"])
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("held", ["test", "valid"])
def test_text_that_is_only_measured_on_is_kept_out_too(clinic: Path, verb: str, changed: bool, held: str) -> None:
    """Rows of a probed task and held-out general text stand in the corpus, as they are or slightly changed."""
    draw = random.Random(8)
    write("probe.jsonl", rows(draw, 60))
    wide = [sentences(draw, 4) for _ in range(60)]
    Path("wide.txt").write_text("".join(sentences(draw, 4) + "\n" for _ in range(60)), "utf-8")
    Path("held.txt").write_text("".join(text + "\n" for text in wide), "utf-8")
    with Path("general.txt").open("a", encoding="utf-8") as file:
        for text in [row["text"] for row in read("probe.jsonl")[:20]] + wide[:20]:
            file.write((f"Added {text.replace('.', '!', 1)} Here" if changed else text) + "\n")
    recipe = RECIPE.replace(
        "sources:\n",
        """sources:
  wide: {path: wide.txt, txt: line, HELD: held.txt}
  probe: {path: train.jsonl, test: probe.jsonl, columns: {label: label}}
""".replace("HELD", held),
    ).replace(
        "data: general, steps: 60}",
        "data: general, steps: 60, forgetting: {general: [wide], tasks: {probe: {kind: classify, labels: [neg, pos]}}}}",
    )
    Path("clinic.yaml").write_text(recipe, "utf-8")
    if verb == "doctor":
        findings = found()
    else:
        run("clinic.yaml")
        findings = json.loads(Path("runs/clinic/doctor.json").read_text("utf-8"))["findings"]
    leaks = [f for f in findings if f["check"] == "leaks"]
    assert sum(int(f["message"].split(" of ")[0]) for f in leaks) == 40 and {f["check"] for f in findings} == {"leaks"}
    shards = json.loads(Path("runs/clinic/shards/wide/" + held + ".json").read_text("utf-8"))
    assert (shards["kept"], shards["leaks"]) == (60, 0)


def test_run_keeps_what_the_doctor_found_and_stays_quiet_about_health(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads(json.dumps(doctor("clinic.yaml")))
    said: list[Any] = []
    monkeypatch.setattr(doctors.log, "warning", lambda *a: said.append(a))
    run("clinic.yaml")
    after = json.loads(Path("runs/clinic/doctor.json").read_text("utf-8"))
    for now in ("process", "room", "free", "memory"):
        before["estimate"].pop(now), after["estimate"].pop(now)
    assert after == before and not said
    page = Path("runs/clinic/report.html").read_text("utf-8")
    assert "The doctor found nothing." in page and "training time, estimated" in page


@pytest.mark.parametrize("asked", ["doctor", "run"])
def test_memory_and_disk_are_those_of_now(clinic: Path, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was too little yesterday refuses no run today, and the other way round."""
    for room, free, what in ((1 << 40, 1000, "checkpoints and exports"), (100_000, 1 << 40, "of memory beside the process")):
        with monkeypatch.context() as m:
            m.setattr(machine, "available", lambda room=room: room)
            free_disk(m, free)
            if asked == "doctor":
                m.setattr(estimate, "_disk_speed", lambda *_: (0.0, 0.0))
                assert {f["level"] for f in found()} == {"error"}
            with pytest.raises(UserError, match=what):
                run("clinic.yaml")
    run("clinic.yaml")
    monkeypatch.setattr(machine, "available", lambda: 100_000)
    run("clinic.yaml")  # all stages are done
    with pytest.raises(UserError, match="stage finetune: needs about") as more:
        run("clinic.yaml", ["worth.seeds=[0, 1]"])
    assert "stage pretrain" not in more.value.message


def test_leaks_are_those_of_now_and_the_rest_stays(clinic: Path) -> None:
    """The leaks are taken out of the corpus; the near duplicates, which only the doctor looks for, are still there."""
    clean = Path("general.txt").read_text("utf-8")
    clean += "".join(line.replace(".", "!", 1) + "\n" for line in clean.splitlines()[:100])
    Path("general.txt").write_text(clean + "".join(row["text"] + "\n" for row in read("test.jsonl")[:20]), "utf-8")
    first = doctor("clinic.yaml", ["sources.general.valid=0"])
    assert {f["check"] for f in first["findings"]} == {"leaks", "duplicates"} and first["sources"][0]["leaks"] == 20
    Path("general.txt").write_text(clean, "utf-8")
    run("clinic.yaml", ["sources.general.valid=0"])
    after = json.loads(Path("runs/clinic/doctor.json").read_text("utf-8"))
    assert "near duplicates" in only(after["findings"], "duplicates")["message"] and after["full"]
    assert after["sources"][0]["leaks"] == 0 and after["sources"][0]["near"] == first["sources"][0]["near"]


# --- one illness each -------------------------------------------------------------------------------------------


def test_one_document_starves_next_sentence(clinic: Path) -> None:
    Path("general.txt").write_text(Path("general.txt").read_text("utf-8").replace("\n", " "), "utf-8")
    joint = "stages.pretrain.objective={kind: joint, parts: [{kind: mlm}, {kind: nsp}]}"
    findings = found(joint, "system=bert/tiny", "sources.general.valid=0")
    assert only(findings, "objective")["message"].startswith("nsp has no negatives: the corpus is one document")
    assert findings[0]["level"] == "error" and findings[0]["where"] == "pretrain on general"


def test_sentences_alone_starve_sentence_order(clinic: Path) -> None:
    draw = random.Random(2)
    Path("general.txt").write_text("".join(sentences(draw, 1, 30) + "\n" for _ in range(400)), "utf-8")
    joint = "stages.pretrain.objective={kind: joint, parts: [{kind: mlm}, {kind: sop}]}"
    finding = only(found(joint, "system=bert/tiny"), "objective")
    assert finding["message"] == "sop has no negatives: no document has two sentences" and finding["level"] == "error"
    assert [f["message"] for f in found(joint.replace("sop", "nsp"), "system=bert/tiny")] == [
        "nsp has no positives: no document has two sentences"
    ]


@pytest.mark.parametrize("kind, lack", [("nsp", "the corpus is one document"), ("sop", "no document has two sentences")])
def test_held_out_text_that_starves_the_objective_ends_no_run(clinic: Path, kind: str, lack: str) -> None:
    """The training text feeds it; what is held out is one document (nsp), or single sentences (sop). The loss is missing, and that is said before."""
    draw = random.Random(2)
    held = [sentences(draw, 4)] if kind == "nsp" else [sentences(draw, 1) for _ in range(20)]
    Path("held.txt").write_text("\n".join(held) + "\n", "utf-8")
    joint = f"stages.pretrain.objective={{kind: joint, parts: [{{kind: mlm}}, {{kind: {kind}}}]}}"
    asked = [joint, "system=bert/tiny", "sources.general.valid=held.txt", "stages.pretrain.steps=4"]
    finding = only([f for f in found(*asked) if f["check"] != "budget"], "held out")
    assert finding["level"] == "warning" and lack in finding["message"] and finding["where"] == "source general (valid)"
    folder = run("clinic.yaml", asked)
    assert json.loads((folder / "report.json").read_text("utf-8"))["stages"][0]["heldout"].get("general") is None
    with pytest.raises(UserError, match="starve its objective"):  # before anything is trained
        run("clinic.yaml", [*asked, "name=other", "stages.pretrain.evaluate={every: 2, keep: best}"])
    assert not list(Path("runs/other/pretrain").glob("step-*"))


def test_more_examples_than_rows_are_refused_before_anything_is_trained(clinic: Path) -> None:
    with pytest.raises(UserError, match="has 100 rows, fewer than `examples: 1000`"):
        run("clinic.yaml", ["stages.finetune.examples=1000"])
    assert not Path("runs/clinic/pretrain").exists()


@pytest.mark.parametrize("kind", ["nsp", "sop", "sentence_structure"])
def test_what_objectives_say_they_need(kind: str) -> None:
    objective = OBJECTIVES[kind].model_validate({"kind": kind})
    assert not objective.starved(Supply(10, 10, 0)) and objective.starved(Supply(10, 0, 0))[0].fatal
    assert [lack.fatal for lack in objective.starved(Supply(100, 5, 0))] == [False]
    assert bool(objective.starved(Supply(1, 1, 0))) is (kind != "sop")


def test_what_other_objectives_say_they_need() -> None:
    denoise = OBJECTIVES["denoise"].model_validate({"kind": "denoise"})
    assert "changes nothing" in denoise.starved(Supply(10, 0, 0))[0].message and not denoise.starved(Supply(10, 3, 0))
    phrases = OBJECTIVES["mlm"].model_validate({"kind": "mlm", "unit": "phrase"})
    assert phrases.starved(Supply(10, 10, 0)) and not phrases.starved(Supply(10, 10, 1))
    mixed = OBJECTIVES["mixture"].model_validate({"kind": "mixture", "parts": [{"kind": "mlm"}, {"kind": "clm"}]})
    assert not mixed.starved(Supply(1, 0, 0))


def test_copies(clinic: Path) -> None:
    lines = Path("general.txt").read_text("utf-8").splitlines(keepends=True)
    Path("general.txt").write_text("".join(lines[:150] * 2), "utf-8")
    assert "are copies of others, 50% near duplicates" in only(found(), "duplicates")["message"]


def test_near_copies_by_a_sample(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other document has one word changed; a tenth of the tokens is compared."""
    draw = random.Random(5)
    texts = [sentences(draw, 10) for _ in range(300)]
    texts += [re.sub(r" \w+", " dabada", text, count=1) for text in texts]
    draw.shuffle(texts)
    Path("general.txt").write_text("".join(text + "\n" for text in texts), "utf-8")
    monkeypatch.setattr("ziggurat.pipeline.findings.near_duplicates", partial(near_duplicates, tokens=15_000))
    whole = doctor("clinic.yaml", ["sources.general.valid=0"])
    message = only(whole["findings"], "duplicates")["message"]
    share = re.fullmatch(
        r"0 of 600 documents are copies of others, about (\d+)% near duplicates \(of 600 looked at, by a sample\)", message
    )
    assert share is not None and 33 <= int(share[1]) <= 55
    (_, header, body), *_ = doctors.tables(whole)
    assert body[0][header.index("near")].startswith("about ")


def test_pairs_that_share_a_text_are_no_copies(clinic: Path) -> None:
    draw = random.Random(22)
    labels = ("neg", "pos", "neu")
    for name in ("train.jsonl", "test.jsonl"):
        premises = [sentences(draw) for _ in range(60)]
        write(name, [{"text": p, "pair": sentences(draw, 1, 8), "label": label} for p in premises for label in labels])
    assert found("sources.task.columns.pair=pair", f"stages.finetune.objective.labels=[{','.join(labels)}]") == []


def test_held_out_text_that_is_trained_on(clinic: Path) -> None:
    lines = Path("general.txt").read_text("utf-8").splitlines(keepends=True)
    Path("valid.txt").write_text("".join(line.replace(".", "!") for line in lines[:30]), "utf-8")
    finding = only(found("sources.general.valid=valid.txt"), "held out")
    assert finding["message"].startswith("30 of 30 held-out documents stand in training text; general.txt:")


def test_held_out_text_in_documents_that_the_run_leaves_out_is_not_trained_on(clinic: Path) -> None:
    """20 held-out documents stand in the corpus, each within a document that holds a test row, too."""
    draw = random.Random(10)
    held = [sentences(draw, 4) for _ in range(60)]
    Path("held.txt").write_text("".join(text + "\n" for text in held), "utf-8")
    with Path("general.txt").open("a", encoding="utf-8") as file:
        for text, row in zip(held, read("test.jsonl")[:20]):
            file.write(f"{text} {row['text']}\n")
    finding = only(found("sources.general.valid=held.txt"), "leaks")
    assert finding["message"].startswith("20 of 320 documents hold test rows")


@pytest.mark.parametrize("verb", ["doctor", "run"])
def test_a_few_copies_among_many_held_out_documents(clinic: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of 1,200 are less than 2%, and said; nine are not."""
    draw = random.Random(5)
    held = [sentences(draw, 4) for _ in range(1200)]
    Path("valid.txt").write_text("".join(text + "\n" for text in held), "utf-8")
    lines = Path("general.txt").read_text("utf-8")
    own = "sources.general.valid=valid.txt"

    def after(count: int) -> list[dict[str, Any]]:
        Path("general.txt").write_text(lines + "".join(text + "\n" for text in held[:count]), "utf-8")
        if verb == "doctor":
            return found(own)
        run("clinic.yaml", [own])
        findings: list[dict[str, Any]] = json.loads(Path("runs/clinic/doctor.json").read_text("utf-8"))["findings"]
        shutil.rmtree("runs")
        return findings

    assert after(0) == [] and after(9) == []
    assert only(after(10), "held out")["message"].startswith("10 of 1,200 held-out documents stand in training text")


def test_text_that_was_not_searched_for_held_out_text_is_said(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.pipeline.findings.CHARACTERS", 20_000)
    lines = Path("general.txt").read_text("utf-8").splitlines(keepends=True)
    Path("valid.txt").write_text("".join(lines[:30]), "utf-8")
    whole = doctor("clinic.yaml", ["sources.general.valid=valid.txt"])
    assert "of general only the first 20,000 characters were searched" in only(whole["findings"], "held out")["message"]
    (_, header, body), *_ = doctors.tables(whole)
    assert [row[header.index("searched for held-out text")] for row in body] == ["the first 20k", "", "all", ""]


def test_another_script(clinic: Path) -> None:
    draw = random.Random(4)
    for name in ("train.jsonl", "test.jsonl"):
        text = ["".join(draw.choice("山水火木金土日月人口手足天地风云花鸟鱼虫") for _ in range(20)) for _ in range(100)]
        write(name, [{"text": t, "label": ("neg", "pos")[n % 2]} for n, t in enumerate(text)])
    assert "100% of its letters are Han, and 0.0% of the text" in only(found(), "languages")["message"]


def test_texts_that_are_cut(clinic: Path) -> None:
    assert only(found("defaults.length=16"), "length")["message"].startswith(
        "100% of the training rows are longer than length 16"
    )


def test_sources_of_texts_to_be_written_that_are_cut(clinic: Path) -> None:
    """In one stack a source has what the target leaves of `length`, and by default that is half of it."""
    options = ["system=gpt2/tiny", "tokenizer={kind: bpe, vocab: 600}", "defaults.length=40"]
    options += ["sources.task.columns={text: text, pair: label, label: null}", "stages.finetune.objective={kind: seq2seq}"]
    half = only([f for f in found(*options) if f["check"] == "length"], "length")
    assert half["message"].startswith(
        "100% of the training rows are longer than 19 tokens, what length 40 leaves beside a target of 20,"
    )
    assert half["hint"] == "raise `length`, or lower `target`" and "TF-IDF" not in half["message"]
    assert not [f for f in found(*options, "stages.finetune.objective.target=8") if f["check"] == "length"]


def test_questions_that_are_cut(clinic: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        answer = [{"text": "it", "answer_start": 0}]
        asked = [{"q": r["text"], "c": f"it {r['text'][::-1]}", "a": answer} for r in read(name)]
        write(name, asked)  # type: ignore[arg-type]
    options = ["sources.task.columns={text: q, pair: c, answers: a, label: null}", "defaults.length=40"]
    options.append("stages.finetune.objective={kind: question_answering}")
    cut = only([f for f in found(*options) if f["check"] == "length"], "length")
    assert cut["message"].startswith("100% of the training rows have a question of more than 18 tokens and are cut")
    assert cut["hint"] == "raise `question` in the objective"
    assert not [f for f in found(*options, "stages.finetune.objective.question=30") if f["check"] == "length"]


def test_labels_that_the_metric_cannot_read(clinic: Path) -> None:
    """Found before anything is trained, not when it is scored."""
    for name in ("train.jsonl", "test.jsonl"):
        tagged = [{"words": r["text"].split(), "tags": ["PER", *["O"] * (len(r["text"].split()) - 1)]} for r in read(name)]
        write(name, tagged)  # type: ignore[arg-type]
    options = ["sources.task.columns={tokens: words, tags: tags, label: null}"]
    options.append("stages.finetune.objective={kind: tag, labels: [O, PER], metric: span_f1}")
    wrong = only([f for f in found(*options) if f["level"] == "error"], "labels")
    assert wrong["message"] == "span F1 cannot read the label 'PER'"
    with pytest.raises(UserError, match="span F1 cannot read the label 'PER'"):
        run("clinic.yaml", options)


def test_labels(clinic: Path) -> None:
    good = read("train.jsonl")

    def after(change: Any, *overrides: str) -> dict[str, Any]:
        write("train.jsonl", [change(n, dict(row)) for n, row in enumerate(good)])
        return only(found(*overrides), "prepare" if overrides == ("unknown",) else "labels")

    assert "90% of the rows are pos" in after(lambda n, r: {**r, "label": "neg" if n % 10 == 0 else "pos"})["message"]
    rare = after(lambda n, r: {**r, "label": "neg" if n % 20 == 0 else "pos"}, "stages.finetune.objective.metric=macro_f1")
    assert rare["message"] == "few training rows: neg 5"
    torn = after(lambda n, r: {**r, "text": good[n // 2 * 2]["text"]} if n < 4 else r)
    assert torn["message"].startswith("2 training rows have the text of another row")
    one = after(lambda n, r: {**r, "label": "pos"})
    assert (one["level"], one["message"]) == ("error", "all training rows have the label pos")
    write("train.jsonl", good)
    absent = found("stages.finetune.objective.labels=[neg, pos, odd]")
    assert [f["message"] for f in absent] == ["no train row has the label odd", "no test row has the label odd"]
    few = found("sources.task.test_rows=25")
    assert only(few, "labels")["message"].startswith("25 test rows: a score of 50% is known to ±20 points")
    write("train.jsonl", [{**good[0], "label": "ops"}, *good[1:]])
    assert "label 'ops' (train.jsonl:1) is not in the label list" in only(found(), "prepare")["message"]


def test_budgets(clinic: Path) -> None:
    assert only(found("stages.pretrain.steps=3000"), "budget")["message"].startswith("reads the source ")
    low = only(found("stages.pretrain.steps=5"), "budget")
    assert low["level"] == "note" and "tokens a parameter" in low["message"]


def test_a_stage_that_cannot_begin(clinic: Path) -> None:
    finding = only(
        found("stages.pretrain.objective={kind: mlm, replace: [1, 0, 0]}", "tokenizer.kind=bpe", "system=gpt2/tiny"), "stage"
    )
    assert finding["level"] == "error" and "mask" in finding["message"]


def test_too_little_room(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as m:
        m.setattr(machine, "available", lambda: 100_000)
        findings = found()
        assert {(f["check"], f["level"]) for f in findings} == {("memory", "error")} and len(findings) == 2
    need = doctor("clinic.yaml")["estimate"]["disk"]
    monkeypatch.setattr(estimate, "_disk_speed", lambda *_: (0.0, 0.0))  # it needs some, too
    for share, level in ((0.9, ["error"]), (1.1, ["warning"]), (2.0, [])):
        free_disk(monkeypatch, int(share * need))
        assert [f["level"] for f in found() if f["check"] == "disk"] == level


def free_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """What the doctor sees of it; checkpoints are written all the same."""
    monkeypatch.setattr(estimate, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=free)))


SAVES = ["stages.finetune.batch={documents: 8}", "stages.finetune.examples=60", "stages.finetune.save={every: 7, keep: 3}"]


@pytest.mark.parametrize("more, older", [([], 2), (["stages.finetune.epochs=1"], 1), (["stages.finetune.save.every=500"], 0)])
def test_disk_is_what_a_run_writes(clinic: Path, more: list[str], older: int) -> None:
    """60 rows in batches of 8 are 8 steps an epoch: with two epochs checkpoints 7 and 14 stay beside the last one. `run` knows it without a probe."""
    run("clinic.yaml", [*SAVES, *more])
    first, second = json.loads(Path("runs/clinic/doctor.json").read_text("utf-8"))["estimate"]["stages"]
    files = [p for p in Path("runs/clinic").glob("**/*.safetensors") if "pretrain" not in p.parts]
    assert len({p.parent for p in files if p.parent.name != "hf"}) == 2 * (1 + older)
    assert first["disk"] == 2 * 4 * first["parameters"] and second["disk"] == (2 + 3 * older) * 4 * second["parameters"]
    written = sum(p.stat().st_size for p in Path("runs/clinic").glob("**/*.safetensors"))
    assert first["disk"] + 2 * second["disk"] == pytest.approx(written, rel=0.15)
    whole = doctor("clinic.yaml", [*SAVES, *more])["estimate"]
    assert whole["disk"] == first["disk"] + 2 * second["disk"]


def test_the_weights_of_the_best_evaluation_take_disk(clinic: Path) -> None:
    run("clinic.yaml", [*SAVES[:2], "stages.finetune.evaluate={every: 3, keep: best}", "sources.task.valid=0.2"])
    first, second = json.loads(Path("runs/clinic/doctor.json").read_text("utf-8"))["estimate"]["stages"]
    assert second["disk"] == 3 * 4 * second["parameters"] and second["unsure"] == 4 * second["parameters"]
    written = {p: p.stat().st_size for p in Path("runs/clinic").glob("**/*.safetensors")}
    assert any(p.parent.parent.name == "within" for p in written)
    assert first["disk"] + 2 * second["disk"] == pytest.approx(sum(written.values()), rel=0.15)


def test_checkpoints_that_are_perhaps_never_written_end_no_run(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a probe nobody knows how many steps an epoch of batches in tokens has."""
    epochs = "stages.finetune.batch={tokens: 512}"
    free_disk(monkeypatch, 500_000)
    run("clinic.yaml", ["stages.pretrain.steps=4", epochs])
    sizes = json.loads(Path("runs/clinic/doctor.json").read_text("utf-8"))
    assert sum(stage["disk"] * stage["times"] for stage in sizes["estimate"]["stages"]) > 500_000
    assert [f["level"] for f in sizes["findings"] if f["check"] == "disk"] == ["warning"]
    free_disk(monkeypatch, 1000)
    shutil.rmtree("runs")
    with pytest.raises(UserError, match="checkpoints and exports will take"):
        run("clinic.yaml", ["stages.pretrain.steps=4", epochs])


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def plain_log() -> Iterator[None]:
    """The command line sets up logging for itself; here it is taken back."""
    root = logging.getLogger("ziggurat")
    handlers, level, up = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.propagate = handlers, up
    root.setLevel(level)


def test_exit_codes(clinic: Path, plain_log: None) -> None:
    healthy = CliRunner().invoke(app, ["doctor", "clinic.yaml"])
    assert healthy.exit_code == 0 and "No findings." in healthy.stdout and "general" in healthy.stdout
    warned = CliRunner().invoke(app, ["doctor", "clinic.yaml", "sources.task.test_rows=25"])
    assert warned.exit_code == 0 and "warning: source task" in warned.stdout
    labels = "stages.finetune.objective.labels=[neg, odd]"
    assert CliRunner().invoke(app, ["doctor", "clinic.yaml", labels]).exit_code == 1
    assert CliRunner().invoke(app, ["doctor", "clinic.yaml", "stages.finetune.epochs=none"]).exit_code == 2


# --- estimates --------------------------------------------------------------------------------------------------

TRAIN = """
import sys
from ziggurat.pipeline import machine
from ziggurat.pipeline.run import run
from ziggurat.train import job

class Probe:
    before = 0

inner = job.build
def build(*args):
    Probe.before = Probe.before or machine.taken()
    return inner(*args)
job.build = build
run("clinic.yaml", sys.argv[1:])
print(machine.peak() - Probe.before)
"""


def test_memory_is_about_what_a_run_takes(clinic: Path) -> None:
    """Peak resident memory from just before the network is built, in a process of its own; the estimate leaves out what
    libraries take at their first step (about 100 MiB), so it may be up to half below, and a third above."""
    shape = [
        "model={layers: 4, width: 256, heads: 4, mlp: 1024}",
        "stages.pretrain.steps=4",
        "worth=false",
        "defaults.batch.tokens=4096",
    ]
    shape += ["stages.finetune.epochs=1", "defaults.length=128"]
    wanted = doctor("clinic.yaml", shape)["estimate"]
    stages = [stage["memory"]["total"] for stage in wanted["stages"]]
    done = subprocess.run([sys.executable, "-c", TRAIN, *shape], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = int(done.stdout.split()[-1])
    assert 0.5 * measured < max(stages) < 1.33 * measured, (measured, stages)


STAGES = """\
stages:
  - {stage: pretrain, data: general, steps: 10, evaluate: {context: true, every: 4, tokens: 400}}
  - stage: dapt
    data: domain
    length: 32
    steps: 4
    vocabulary: {extend: 3, min_frequency: 2}
    anchor: {ewc: 1.0, tokens: 600}
    forgetting: {general: [general], tasks: {task: {kind: classify, labels: [neg, pos]}}}
worth: false
"""


def test_what_is_read_outside_of_training_is_counted(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the batches that a run gives its networks."""
    text = RECIPE[: RECIPE.index("stages:")].replace(
        "  general: {", "  domain: {path: domain.txt, txt: line, valid: 0.2}\n  general: {"
    )
    Path("clinic.yaml").write_text(text.replace("vocab: 400", "vocab: 120") + STAGES, "utf-8")
    draw = random.Random(3)
    Path("domain.txt").write_text("".join(sentences(draw, 6) + "\n" for _ in range(100)), "utf-8")
    wanted = {stage["name"]: stage["passes"] for stage in doctor("clinic.yaml")["estimate"]["stages"]}
    read: Counter[str] = Counter()

    def watched(module: Any, name: str, what: str, place: int) -> None:
        inner = getattr(module, name)

        def through(*given: Any, **more: Any) -> Any:
            def counted() -> Iterator[Any]:
                for batch in given[place]:
                    read[what] += batch.live_tokens()
                    yield batch

            return inner(*given[:place], counted(), *given[place + 1 :], **more)

        monkeypatch.setattr(module, name, through)

    watched(scoring, "held_out", "losses", 2)
    watched(context_use, "held_out", "context", 2)
    watched(context_use, "by_position", "context", 2)
    watched(retention, "fisher", "fisher", 2)
    inner = frozen._passes

    def passes(network: Any, batch: Any) -> Any:
        read["probes"] += batch.live_tokens()
        return inner(network, batch)

    monkeypatch.setattr(frozen, "_passes", passes)
    run("clinic.yaml")
    pretrain, dapt = wanted["pretrain"], wanted["dapt"]
    assert set(pretrain) == {"held-out losses", "use of context"} and len(dapt) == 4
    losses = pretrain["held-out losses"] + dapt["held-out losses"] + dapt["held-out losses with the old vocabulary"]
    assert losses == pytest.approx(read["losses"], rel=0.03)
    assert pretrain["use of context"] == pytest.approx(read["context"], rel=0.03)
    assert dapt["probes of general tasks"] == read["probes"]
    assert dapt[FISHER] == pytest.approx(read["fisher"], rel=0.25)  # the last batch is read whole


def test_what_the_time_is_without_is_said(clinic: Path) -> None:
    with_suites = doctor("clinic.yaml", ["suites={glue: {seeds: 1}}"])
    assert with_suites["estimate"]["left_out"] == ["the suite glue"]
    assert doctors.summary(with_suites)[0].endswith("are free). Not in the time: the suite glue.")
    assert "Not in the time" not in doctors.summary(doctor("clinic.yaml"))[0]


@pytest.mark.slow
def test_time_is_about_what_a_run_takes(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that does nothing else within a quarter; here within a half."""
    monkeypatch.setattr(estimate, "SECONDS", 10.0)
    shape = ["model={layers: 2, width: 128, heads: 2, mlp: 512}", "stages.pretrain.steps=150", "stages.finetune.epochs=10"]
    wanted = doctor("clinic.yaml", shape)["estimate"]
    run("clinic.yaml", shape)
    for stage in wanted["stages"]:
        outcome = json.loads(Path(f"runs/clinic/{stage['name']}/outcome.json").read_text("utf-8"))
        assert outcome["steps"] == stage["steps"] and stage["training"] == pytest.approx(outcome["seconds"], rel=0.5)


def test_the_room_of_this_machine() -> None:
    assert 10**6 < machine.taken() <= machine.peak() * 1.01 and machine.available() > 10**6

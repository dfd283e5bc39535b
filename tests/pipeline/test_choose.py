"""`init: {best_of: [...]}`: the fitting start is chosen on planted domains, said, kept, and by a rule that is written out here."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from ziggurat.data import sources
from ziggurat.errors import UserError
from ziggurat.evaluate import frozen
from ziggurat.objectives import OBJECTIVES
from ziggurat.pipeline import choose as choosing
from ziggurat.pipeline.candidates import language, measure
from ziggurat.pipeline.choose import Candidate, decide, paired
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.prepare import parts
from ziggurat.pipeline.run import load_recipe, prepare, run

A = [x + y for x in ["ba", "ke", "lo", "mu", "du", "fi"] for y in ["da", "fi", "go", "lu", "ba", "se"]]
B = [x + y for x in ["ni", "po", "ra", "si", "te", "vo"] for y in ["me", "no", "pe", "ri", "za", "hu"]]
RECIPE = """\
name: branches
system: roberta/tiny
model: {{layers: 1, width: 32, heads: 2, mlp: 64}}
tokenizer: {{kind: wordpiece, vocab: 300, lowercase: true}}
sources:
  a: {{path: a.txt, txt: line, valid: 0.1}}
  b: {{path: b.txt, txt: line, valid: 0.1}}
  task: {{path: train.jsonl, test: test.jsonl, columns: {{label: label}}}}
defaults: {{length: 32, precision: fp32, batch: {{tokens: 512}}, optim: {{lr: 3e-3}}}}
stages:
  - {{stage: pretrain, name: first, data: a, steps: 60}}
  - {{stage: pretrain, name: second, data: b, steps: 60, init: scratch}}
  - {{stage: finetune, data: task, objective: {{kind: classify, labels: [neg, pos]}}, epochs: 1, init: {{best_of: [{order}]}}}}
worth: {{seeds: [0]}}
"""


def text(draw: random.Random, words: list[str], length: int = 14) -> str:
    """A text in which half of the words name the next one: there is something to learn."""
    at, made = draw.randrange(len(words)), list[str]()
    for _ in range(length):
        made.append(words[at])
        at = (at + 1) % len(words) if draw.random() < 0.5 else draw.randrange(len(words))
    return " ".join(made)


def plant(words: list[str]) -> None:
    """Two domains of other words, and a task in one of them: of `words`, each label prefers another half."""
    draw = random.Random(0)
    Path("a.txt").write_text("".join(text(draw, A) + "\n" for _ in range(300)), "utf-8")
    Path("b.txt").write_text("".join(text(draw, B) + "\n" for _ in range(300)), "utf-8")
    for name in ("train", "test"):
        some = [
            {
                "text": f"{text(draw, words[n % 2 * 18 : n % 2 * 18 + 18], 8)} {text(draw, words, 8)}",
                "label": ("neg", "pos")[n % 2],
            }
            for n in range(80)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), "utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words, right, order", [(A, "first", "second, first"), (B, "second", "second, first")])
def test_the_right_domain_is_chosen_and_stays_chosen(
    here: Path, words: list[str], right: str, order: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(words)
    Path("r.yaml").write_text(RECIPE.format(order=order), "utf-8")
    folder = run("r.yaml")
    choice = json.loads((folder / "finetune/choice.json").read_text("utf-8"))
    bits = {c["name"]: c["bits_per_byte"] for c in choice["candidates"]}
    assert choice["chosen"] == right == min(bits, key=bits.__getitem__) and all(
        len(c["folds"]) == 15 for c in choice["candidates"]
    )
    said = capsys.readouterr().out
    assert f"finetune starts from {right} by its loss" in said and "bits per byte" in said and "chosen" in said
    last = open_checkpoint(folder / "finetune")
    assert [entry["name"] for entry in last.lineage] == [right, "finetune"] and last.lineage[-1]["start"] == choice["why"]
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert [p["name"] for p in report["worth"]["prefixes"]] == ["scratch", f"+{right}"]
    assert report["choices"][0]["why"] == choice["why"] and "Which start fits" in (folder / "report.html").read_text("utf-8")
    assert not (folder / "finetune/choice").exists()

    def again(*_: object) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr(choosing, "measure", again)
    (folder / "finetune/DONE").unlink()
    run("r.yaml")
    assert load_recipe(folder / "recipe.yaml").resolved() == load_recipe("r.yaml")


BRANCHES = """\
stages:
  - {stage: pretrain, name: first, data: a, steps: 40}
  - {stage: pretrain, name: second, data: b, steps: 40, init: scratch}
  - {stage: dapt, data: c, steps: 2, init: {best_of: [first, second]}}
  - {stage: tapt, data: c, steps: 2, forgetting: {limit: 0.2}}
worth: false
"""


def test_forgetting_is_measured_on_what_the_chosen_start_was_trained_on(here: Path) -> None:
    """Also behind the stage that chose; until then it is left open."""
    plant(A)
    head = RECIPE[: RECIPE.index("stages:")].format().replace("  task:", "  c: {path: train.jsonl, valid: 0.2}\n  task:")
    Path("r.yaml").write_text(head + BRANCHES, "utf-8")
    recipe = load_recipe("r.yaml")
    assert [s.forgetting and s.forgetting.general for s in recipe.stages] == [None] * 4 and recipe.resolved() == recipe
    folder = run("r.yaml")
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert [list(s["shift"]["forgetting"]) for s in report["stages"][2:]] == [["a"], ["a"]]
    assert report["stages"][3]["shift"]["limit"] == 0.2 and open_checkpoint(folder / "dapt").lineage[0]["name"] == "first"
    with pytest.raises(UserError, match="has no general text to judge by before its start is chosen; name a source"):
        load_recipe("r.yaml", ["stages.dapt.forgetting={stop: true}", "stages.dapt.evaluate.every=1"])


def test_a_start_of_somebody_else_may_be_chosen(here: Path) -> None:
    """Then general text is the default sample, so it is prepared."""
    plant(A)
    head = RECIPE[: RECIPE.index("stages:")].format().replace("  task:", "  c: {path: train.jsonl, valid: 0.2}\n  task:")
    Path("r.yaml").write_text(head + BRANCHES.replace("second]", "a/folder]"), "utf-8")
    recipe = load_recipe("r.yaml")
    assert recipe.stages[2].forgetting is not None and recipe.stages[2].forgetting.general is None
    assert ("general-sample", "valid") in parts(recipe) and ("general-sample", "train") not in parts(recipe)
    for chosen, general in (("first", "a"), ("a/folder", "general-sample")):
        found = choosing.starting(recipe, {"dapt": choosing.Choice(chosen, "", "dapt", ())})
        assert [s.forgetting.general for s in found.stages[2:] if s.forgetting] == [(general,), (general,)]


def test_folders_with_tokenizers_of_their_own(here: Path) -> None:
    """The choice comes before anything is prepared, and the chosen checkpoint's tokenizer is the run's."""
    plant(B)
    base = RECIPE.format(order="first, second")
    stages = base.index("stages:")
    for name, source, vocab in (("one", "a", 60), ("two", "b", 90)):
        single = base[:stages].replace("branches", name).replace("vocab: 300", f"vocab: {vocab}")
        Path(f"{name}.yaml").write_text(f"{single}stages:\n  - {{stage: pretrain, data: {source}, steps: 60}}\n", "utf-8")
        run(f"{name}.yaml")
    last = base[stages:].splitlines()[3].replace("first, second", "runs/one/pretrain, runs/two/pretrain/hf")
    own = base[:stages].replace("roberta/tiny", "roberta").replace("model: {layers: 1, width: 32, heads: 2, mlp: 64}\n", "")
    own = "\n".join(line for line in own.splitlines() if not line.startswith("tokenizer")) + "\n"
    Path("r.yaml").write_text(f"{own}stages:\n{last}\nworth: false\n", "utf-8")
    folder = run("r.yaml")
    choice = json.loads((folder / "finetune/choice.json").read_text("utf-8"))
    one, two = choice["candidates"]
    assert choice["chosen"] == two["name"] and one["unknown"] > 0.02 and "unknown tokens" in one["note"]
    assert choice["text"]["unit"] == "word"  # of different tokenizers: pieces of words are not compared
    theirs, ours = open_checkpoint("runs/two/pretrain").tokenizer, open_checkpoint(folder / "finetune").tokenizer
    assert theirs is not None and ours is not None and theirs.fingerprint == ours.fingerprint


def test_bits_per_byte_by_hand(here: Path) -> None:
    """Bits a token of the loss that `evaluate` gives on the same text, times tokens over bytes."""
    from ziggurat.pipeline.evaluate import evaluate_checkpoint

    plant(A)
    recipe = RECIPE.format(order="first, second").replace("test: test.jsonl", "test: test.jsonl, valid: valid.jsonl")
    Path("valid.jsonl").write_text(Path("train.jsonl").read_text("utf-8").replace("lo", "mu"), "utf-8")
    Path("r.yaml").write_text(recipe, "utf-8")
    folder = run("r.yaml")
    found = {c["name"]: c for c in json.loads((folder / "finetune/choice.json").read_text("utf-8"))["candidates"]}
    assert json.loads((folder / "finetune/choice.json").read_text("utf-8"))["text"]["unit"] == "token"
    rows = [json.loads(line)["text"] for line in Path("valid.jsonl").read_text("utf-8").splitlines()]
    tokenizer = open_checkpoint(folder / "first").tokenizer
    assert tokenizer is not None
    tokens = sum(len(e.ids) for e in tokenizer.encode(rows))
    for name in ("first", "second"):
        loss = evaluate_checkpoint(folder / name, "r.yaml")["task/mlm"]
        size = sum(map(len, rows))
        # which tokens are hidden depends on the order of documents in a block: the two losses are of other masks
        assert found[name]["bits_per_byte"] == pytest.approx(loss / np.log(2) * tokens / size, rel=0.05)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_masked_models_are_asked_tokens_or_whole_words(here: Path, unit: Literal["token", "word"]) -> None:
    plant(A)
    Path("r.yaml").write_text(RECIPE.format(order="first, second").replace("vocab: 300", "vocab: 60"), "utf-8")
    opened = open_checkpoint(run("r.yaml") / "first")
    asked = language(opened, unit)
    assert asked is not None and asked.model_dump()["unit"] == unit
    documents = list(sources.documents(load_recipe("r.yaml").sources["task"], "test"))
    stage = load_recipe("r.yaml").stages[-1]
    found, _ = measure("first", opened, stage, documents, [], None, Path("here"), 0, None, unit)
    other, _ = measure("first", opened, stage, documents, [], None, Path("there"), 0, None)
    assert found.bits_per_byte is not None and other.bits_per_byte is not None
    assert (found.bits_per_byte == other.bits_per_byte) == (unit == "token")


def test_what_may_be_forgotten_is_the_chosen_start_s_text(here: Path) -> None:
    """Not that of the candidate which stood for the choice before there was one; in a run that goes on, too."""
    plant(A)
    later = "{{stage: tapt, data: task, steps: 2, init: {{best_of: [first, second]}}}}\n  - {{stage: finetune,".format()
    text = (
        RECIPE.format(order="first, second")
        .replace("{stage: finetune,", later)
        .replace(", init: {best_of: [first, second]}}\nworth", "}\nworth")
    )
    Path("r.yaml").write_text(text, "utf-8")
    folder = run("r.yaml")
    assert json.loads((folder / "tapt/choice.json").read_text("utf-8"))["chosen"] == "first"
    (stage,) = [s for s in json.loads((folder / "report.json").read_text("utf-8"))["stages"] if s["name"] == "tapt"]
    assert set(stage["shift"]["forgetting"]) == {"a"}
    assert run("r.yaml") == folder
    # what is forgotten of test text chooses no weights, whichever start is taken
    text = text.replace("{path: a.txt, txt: line, valid: 0.1}", "{path: a.txt, txt: line, valid: 0.0, test: 0.1}").replace(
        "test.jsonl,", "test.jsonl, valid: valid.jsonl,"
    )
    text = text.replace("steps: 2, init", "steps: 2, interpolate: {points: 2, limit: 1}, init")
    Path("valid.jsonl").write_text(Path("train.jsonl").read_text("utf-8").replace("lo", "mu"), "utf-8")
    Path("r.yaml").write_text(text.replace("name: branches", "name: other"), "utf-8")
    with pytest.raises(UserError, match="`interpolate` needs text to choose by, and source 'a' has no `valid` split"):
        run("r.yaml")


def test_a_changed_list_is_no_silent_change(here: Path) -> None:
    plant(A)
    Path("r.yaml").write_text(RECIPE.format(order="second, first"), "utf-8")
    run("r.yaml")
    Path("r.yaml").write_text(
        RECIPE.format(order="second, first").replace("best_of: [second, first]", "best_of: [first]"), "utf-8"
    )
    with pytest.raises(UserError, match="at least 2"):
        run("r.yaml")


def folders() -> None:
    """`r.yaml`: two branches alone; `tune.yaml`: the fine-tuning from one of their folders."""
    base = RECIPE.format(order="runs/branches/first, runs/branches/second")
    tune = base.splitlines()[-2]
    Path("r.yaml").write_text(base[: base.index(tune)], "utf-8")
    head = "\n".join(line for line in base[: base.index("stages:")].splitlines() if not line.startswith(("model", "tokenizer")))
    head = head.replace("roberta/tiny", "roberta").replace("branches", "tune")
    Path("tune.yaml").write_text(f"{head}\nstages:\n{tune}\nworth: false\n", "utf-8")


def chosen(folder: Path | str) -> str:
    name: str = json.loads((Path(folder) / "finetune/choice.json").read_text("utf-8"))["chosen"]
    return name


def test_other_text_or_other_weights_are_chosen_for_again(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And a stage that was trained from another start is refused."""
    plant(A)
    caplog.set_level(logging.INFO)
    folders()
    run("r.yaml")
    folder = prepare("tune.yaml")
    assert chosen(folder) == "runs/branches/first" and not (folder / "finetune/stage.json").exists()
    prepare("tune.yaml")
    assert "chosen again" not in caplog.text
    plant(B)
    run("tune.yaml")
    assert chosen(folder) == "runs/branches/second"
    assert "finetune: its start is chosen again, for the text changed" in caplog.text
    assert [e["name"] for e in open_checkpoint(folder / "finetune").lineage] == ["second", "finetune"]
    plant(A)
    with pytest.raises(
        UserError, match=r"runs/tune/finetune was begun with other settings:(\n.*)*\n  stage.init: was .*second, is .*first"
    ):
        run("tune.yaml")
    plant(B)
    trained = (folder / "finetune/outcome.json").stat().st_mtime_ns
    run("tune.yaml")  # as before: it stays what it is
    assert (folder / "finetune/outcome.json").stat().st_mtime_ns == trained
    prepare("tune.yaml", ["name=swapped"])
    for a, b in (("first", "third"), ("second", "first"), ("third", "second")):
        Path(f"runs/branches/{a}").rename(f"runs/branches/{b}")
    caplog.clear()
    assert chosen(run("tune.yaml", ["name=swapped"])) == "runs/branches/first"
    assert "finetune: its start is chosen again, for the candidates changed" in caplog.text
    assert [e["name"] for e in open_checkpoint("runs/swapped/finetune").lineage] == ["second", "finetune"]
    with pytest.raises(UserError, match=r"runs/tune/finetune was begun with other settings"):
        run("tune.yaml")


def test_a_finished_stage_of_the_same_start_is_told_with_the_numbers_of_now(here: Path) -> None:
    plant(A)
    recipe = RECIPE.format(order="first, second").replace("test: test.jsonl", "test: test.jsonl, valid: valid.jsonl")
    rows = Path("train.jsonl").read_text("utf-8").replace("lo", "mu").splitlines(keepends=True)
    Path("valid.jsonl").write_text("".join(rows), "utf-8")
    Path("r.yaml").write_text(recipe, "utf-8")
    folder = run("r.yaml")
    weights = open_checkpoint(folder / "finetune").fingerprint
    Path("valid.jsonl").write_text("".join(rows[:40]), "utf-8")
    run("r.yaml")
    (told,) = json.loads((folder / "report.json").read_text("utf-8"))["choices"]
    assert told["text"]["documents"] == 40 and open_checkpoint(folder / "finetune").fingerprint == weights
    path = folder / "finetune/choice.json"
    kept = json.loads(path.read_text("utf-8"))
    assert told["why"] == kept["why"]
    path.write_text(json.dumps({k: v for k, v in kept.items() if k != "of"}), "utf-8")  # as earlier versions wrote it
    run("r.yaml")
    assert json.loads(path.read_text("utf-8")) == kept


def test_of_few_labels_there_is_no_probe(here: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(A)
    caplog.set_level(logging.INFO)
    few = RECIPE.format(order="first, second").replace("steps: 60", "steps: 20").replace("epochs: 1,", "epochs: 1, examples: 16,")
    Path("r.yaml").write_text(few, "utf-8")
    monkeypatch.setattr(frozen, "find_spec", lambda name: None)  # scikit-learn is then not asked for
    folder = run("r.yaml")
    choice = json.loads((folder / "finetune/choice.json").read_text("utf-8"))
    said = "16 labelled rows are too few for a probe"
    assert choice["why"].startswith("first by its loss (") and choice["why"].endswith(f"; {said}")
    assert choice["text"]["rows"] == 0 and not any(c["folds"] for c in choice["candidates"])
    assert f"finetune: {said}: the losses decide" in caplog.text and said in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "system, change, said",
    [
        ("roberta", "", "the probe needs scikit-learn"),
        (
            "electra",
            "examples: 16,",
            "finetune: nothing tells first, second apart: 16 labelled rows are too few for a probe, and their losses",
        ),
        ("bart", "examples: 16,", "finetune: nothing tells first, second apart: 16 labelled rows are too few"),
        ("bart", "", "the probe needs scikit-learn"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_anything_is_trained(
    here: Path, system: str, change: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(A)
    text = RECIPE.format(order="first, second").replace("epochs: 1,", f"epochs: 1, {change}").replace("roberta", system)
    if system == "bart":  # one of them asks something else
        text = text.replace("name: second,", "name: second, objective: {kind: span_corruption},")
    Path("r.yaml").write_text(text, "utf-8")
    monkeypatch.setattr(frozen, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=said):
        run("r.yaml")
    assert not Path("runs/branches/first").exists()


TAUGHT = """\
  - {stage: tapt, name: rows, data: task, steps: 30, init: first}
  - {stage: dapt, name: later, data: a, steps: 5, init: rows}
  - {stage: finetune,"""


def taught(held_out: str = "", best_of: str = "first, later") -> str:
    """A recipe with a candidate one of whose ancestors has read the task's rows."""
    return (
        RECIPE.format(order=best_of).replace("  - {stage: finetune,", TAUGHT).replace("train.jsonl,", f"train.jsonl,{held_out}")
    )


def test_who_was_trained_on_the_text_does_not_win_on_it(here: Path) -> None:
    plant(B)
    Path("r.yaml").write_text(taught(), "utf-8")
    with pytest.raises(UserError, match="finetune: the candidate later was trained on the train rows of source 'task'") as error:
        run("r.yaml")
    assert "`valid` of task" in f"{error.value}" and not Path("runs/branches/first").exists()  # said first
    Path("r.yaml").write_text(taught(" valid: 0.3,").replace("branches", "held"), "utf-8")
    folder = run("r.yaml")
    about = json.loads((folder / "finetune/choice.json").read_text("utf-8"))["text"]
    # the probe, too, asks of rows that no candidate has read
    assert about["split"] == "valid" and about["rows"] == about["documents"] < 40


def test_folders_that_were_trained_on_the_text_are_told_by_their_lineage(here: Path) -> None:
    """By the files, and by what stands in them when they were written anew."""
    plant(B)
    Path("r.yaml").write_text(taught().replace("{best_of: [first, later]}", "later"), "utf-8")
    run("r.yaml")
    head, last = RECIPE[: RECIPE.index("stages:")].format(), "runs/branches/second, runs/branches/rows"
    head = "\n".join(line for line in head.splitlines() if not line.startswith(("model", "tokenizer")))
    head = head.replace("roberta/tiny", "roberta").replace("branches", "other")
    Path("o.yaml").write_text(f"{head}\nstages:\n{RECIPE.format(order=last).splitlines()[-2]}\nworth: false\n", "utf-8")
    said = r"the candidate .*rows was trained on the train rows of source 'task'"
    with pytest.raises(UserError, match=said):
        run("o.yaml")
    Path("train.jsonl").write_text(Path("train.jsonl").read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(UserError, match=said):
        run("o.yaml")
    Path("train.jsonl").write_text(Path("train.jsonl").read_text("utf-8").replace("me", "no"), "utf-8")
    assert run("o.yaml")  # other text


@pytest.mark.parametrize(
    "init, said",
    [
        ("{best_of: [first, first]}", "each candidate may stand once"),
        ("{best_of: [scratch, first]}", "has no weights of its own"),
        ("{best_of: [first, finetune]}", "'finetune' is not an earlier stage"),
        ("{bestof: [first, second]}", "best_of"),
    ],
)
def test_mistakes(here: Path, init: str, said: str) -> None:
    Path("r.yaml").write_text(RECIPE.format(order="first, second").replace("{best_of: [first, second]}", init), "utf-8")
    with pytest.raises(UserError, match=said):
        load_recipe("r.yaml")


# --- the rule ---------------------------------------------------------------------------------------------------


def candidate(name: str, bits: float | None, probe: float, family: str = "mlm", noise: float = 0.01) -> Candidate:
    folds = tuple(probe + noise * (-1) ** n * (1 + hash_of(name)) for n in range(15))
    return Candidate(name, "", family if bits is not None else "", bits, 0.0, folds)


def hash_of(name: str) -> float:
    return (sum(map(ord, name)) % 7) / 7


def test_the_loss_decides() -> None:
    name, why = decide([candidate("a", 1.9, 0.6), candidate("b", 1.8, 0.7)])
    assert name == "b" and "by its loss (1.8000 bits per byte against 1.9000 of a); the probe agrees" in why


def test_a_small_lead_of_the_probe_does_not_overrule() -> None:
    name, why = decide([candidate("a", 1.9, 0.605, noise=0.05), candidate("b", 1.8, 0.600, noise=0.01)])
    assert name == "b" and "the probe prefers a by 0.0" in why


def test_a_clear_lead_of_the_probe_does() -> None:
    name, why = decide([candidate("a", 1.9, 0.8), candidate("b", 1.8, 0.6)])
    assert name == "a" and "which leads b by 0.2" in why and "against the loss" in why


def test_without_comparable_losses_the_probe_decides() -> None:
    assert decide([candidate("a", None, 0.8), candidate("b", 1.8, 0.79)])[0] == "a"
    name, why = decide([candidate("a", 1.0, 0.7), candidate("b", 1.8, 0.75, family="clm")])
    assert name == "b" and "cannot be compared" in why


def test_who_cannot_read_the_text_is_passed_over() -> None:
    blind = Candidate("blind", "", "mlm", None, 0.4, tuple([0.9] * 15))
    name, why = decide([blind, candidate("a", 1.9, 0.6), candidate("b", 1.8, 0.6)])
    assert name == "b" and why.endswith("passed over, for their tokenizers cannot read the text: blind (40.0% unknown tokens)")
    assert decide([blind, candidate("a", None, 0.6)])[0] == "a"
    assert decide([blind, Candidate("dim", "", "mlm", None, 0.5, tuple([0.8] * 15))])[0] == "blind"


def test_nothing_to_decide_with() -> None:
    bare = [Candidate("a", "", "mlm", 1.0), Candidate("b", "", "clm", 1.1)]
    with pytest.raises(UserError, match="nothing tells a, b apart"):
        decide(bare)
    assert decide([Candidate("a", "", "mlm", 1.0), Candidate("b", "", "mlm", 1.1)])[0] == "a"


def test_the_standard_error_of_a_lead() -> None:
    """Nadeau and Bengio (2003): variance over folds times (1 / folds + test share / train share)."""
    lead = [0.1, 0.3, 0.2]
    mean, error = paired([0.5 + x for x in lead], [0.5] * 3)
    assert mean == pytest.approx(0.2) and error == pytest.approx(np.sqrt((1 / 3 + 1 / 4) * 0.01))


@pytest.mark.parametrize("system", ["roberta", "gpt2", "bart", "t5", "electra", "xlnet"])
def test_features_of_every_structure(here: Path, system: str) -> None:
    """A probe of words and of texts reads off any model; of two stacks the encoder."""
    from ziggurat.context import Context
    from ziggurat.data.writing import write_shards
    from ziggurat.evaluate.frozen import document_features, word_features
    from ziggurat.nn import spec
    from ziggurat.nn.network import NetworkModel
    from ziggurat.objectives.base import context_of
    from ziggurat.systems import find, model_of
    from ziggurat.text.train import TokenizerSpec, train_tokenizer
    from ziggurat.types import Document, Mark

    page = find(system)
    assert page is not None
    draw = random.Random(0)
    words = [text(draw, A) for _ in range(40)]
    tokenizer = train_tokenizer(TokenizerSpec(vocab=300), iter(words), template=page.template)
    model = (
        OBJECTIVES["classify"]
        .model_validate({"kind": "classify", "labels": ["a", "b"]})
        .part_of(model_of(f"{system}/tiny", vocab=tokenizer.vocab.size))
    )
    network = NetworkModel(spec.Network(model=model)).eval()
    ctx: Context = context_of(model, tokenizer, 32)
    marks = (Mark(0, 4, "x"), Mark(5, 9, "y"))
    shards = write_shards(
        here / "s", [Document({"text": w}, f"d{n}", marks, {"label": "a"}) for n, w in enumerate(words)], tokenizer
    )
    tokens = shards.read(np.arange(len(shards)))
    whole = document_features(network, tokens, ctx)
    assert whole.shape == (40, model.width) and np.isfinite(whole).all() and len(np.unique(whole.round(6), axis=0)) > 30
    alone = document_features(network, shards.read(np.array([37])), ctx)
    np.testing.assert_allclose(whole[37], alone[0], atol=1e-5)
    x, labels, owner = word_features(network, tokens, ctx)
    assert x.shape == (80, model.width) and labels == ["x", "y"] * 40 and owner.tolist() == np.repeat(np.arange(40), 2).tolist()

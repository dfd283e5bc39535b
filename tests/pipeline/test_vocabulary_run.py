"""A stage that extends the vocabulary: whose tokens are whose, what is measured, what is told, and bad recipes."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from conftest import write_world
from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError
from ziggurat.pipeline.evaluate import evaluate_checkpoint
from ziggurat.pipeline.interpolation import interpolate
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import load_recipe, prepare, run
from ziggurat.pipeline.show import batch_of, show
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train.adaptation import Interpolate

RECIPE = """\
name: grown
system: roberta/tiny
model: {layers: 1, width: 32, heads: 2, mlp: 64}
tokenizer: {kind: wordpiece, vocab: 120, lowercase: true}
sources:
  general: {path: general.txt, txt: line, valid: 0.1}
  domain: {path: domain.txt, txt: line, valid: 0.1}
  task: {path: train.jsonl, test: test.jsonl, columns: {text: sentence, label: label}}
defaults: {length: 48, precision: fp32, batch: {tokens: 256}, dropout: 0.1, optim: {lr: 1e-3}, save: {every: 2}, log_every: 1}
stages:
  - {stage: pretrain, data: general, steps: 4}
  - {stage: dapt, data: domain, steps: 5, vocabulary: {extend: 10, min_frequency: 2}}
  - {stage: tapt, data: task, steps: 2}
  - {stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, epochs: 1, batch: {documents: 8}}
worth: {seeds: [0, 1]}
"""


def grown(**changes: str) -> Path:
    text = RECIPE
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    Path("grown.yaml").write_text(text, "utf-8")
    return Path("grown.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; look, do not touch."""
    place = tmp_path_factory.mktemp("grown")
    write_world(place)
    with contextlib.chdir(place):
        run(grown())
    return place / "runs/grown"


def test_stages_behind_it_read_the_new_tokens_and_those_before_do_not(folder: Path) -> None:
    fingerprints = {stage: checkpoints.card(folder / stage).fingerprint for stage in ("pretrain", "dapt", "tapt", "finetune")}
    base, new = Tokenizer.load(folder / "tokenizer"), Tokenizer.load(folder / "vocabulary/dapt/tokenizer")
    assert fingerprints == {"pretrain": base.fingerprint} | dict.fromkeys(("dapt", "tapt", "finetune"), new.fingerprint)
    assert new.vocab.size == base.vocab.size + 10
    for arm, expected in (("scratch", base), ("pretrain", base), ("dapt", new)):
        for seed in (0, 1):
            card = checkpoints.card(folder / f"worth/{arm}/seed-{seed}")
            assert (card.fingerprint, card.network.model.vocab) == (expected.fingerprint, expected.vocab.size)
    lineage = open_checkpoint(folder / "finetune").lineage
    assert [e.get("new_tokens") for e in lineage] == [None, 10, None, None] and lineage[1]["vocabulary"]["extend"] == 10
    assert "new_tokens 10" in show(str(folder / "dapt")) and "| 10 |" in (folder / "dapt/hf/README.md").read_text("utf-8")
    assert not (folder / "vocabulary/dapt/shards/general/train").exists()  # nothing reads it with the new tokens
    assert (folder / "vocabulary/dapt/shards/general/valid/meta.json").exists()


def test_rows_begin_as_the_mean_of_their_pieces(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate of almost nothing the stage's result is its start."""
    world = tmp_path / "world"
    shutil.copytree(folder.parents[1], world)
    monkeypatch.chdir(world)
    for gone in ("dapt", "finetune", "worth"):
        shutil.rmtree(f"runs/grown/{gone}")
    place = run(
        grown(**{"steps: 5,": "steps: 1, optim: {lr: 1e-12, weight_decay: 0},", "  - {stage: tapt, data: task, steps: 2}\n": ""})
    )
    before, after = (checkpoints.load(place / s).tensors for s in ("pretrain", "dapt"))
    added = json.loads((place / "vocabulary/dapt/added.json").read_text("utf-8"))["tokens"]
    assert len(added) == 10
    for name in ("model.embed.token.weight", "heads.lm.bias"):
        assert torch.allclose(after[name][: len(before[name])], before[name], atol=1e-7)
        for token in added:
            expected = torch.stack([before[name][p] for p in token["pieces"]]).mean(0)
            assert torch.allclose(after[name][token["id"]], expected, atol=1e-6)


@pytest.mark.parametrize("stage", ["dapt", "finetune"])
def test_the_export_gives_the_same_ids_and_loads(folder: Path, stage: str) -> None:
    ours = Tokenizer.load(folder / "vocabulary/dapt/tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(folder / stage / "hf")
    texts = [*(folder.parents[1] / "domain.txt").read_text("utf-8").splitlines()[:30], "odd 𠀀 Words, don't ＡＢＣ"]
    for text, mine in zip(texts, ours.encode(texts), strict=True):
        assert theirs(text, add_special_tokens=False)["input_ids"] == mine.ids.tolist()
    model = transformers.AutoModel.from_pretrained(folder / stage / "hf")
    assert model.config.vocab_size == len(theirs) == ours.vocab.size
    assert torch.isfinite(model(**theirs(texts[0], return_tensors="pt")).last_hidden_state).all()


def test_gain_and_forgetting_count_from_the_model_the_stage_began_as(folder: Path) -> None:
    """Not from the one whose new rows are means: as many bits a byte are as much loss, whatever the tokens."""
    found = json.loads((folder / "dapt/outcome.json").read_text("utf-8"))
    pretrained = json.loads((folder / "pretrain/outcome.json").read_text("utf-8"))["held_out"]
    grown = json.loads((folder / "dapt/before.json").read_text("utf-8"))["numbers"]
    for source in ("general", "domain"):
        start, new, after = pretrained[source]["bits_per_byte"], grown[source]["bits_per_byte"], found["held_out"][source]
        assert found["before"][source]["bits_per_byte"] == pytest.approx(start, rel=1e-6) and start != pytest.approx(
            new, rel=1e-3
        )
        nats_per_bit = (
            after["mlm"] / after["bits_per_byte"]
        )  # of the new tokens, of which a byte has the same number before and after
        assert found["before"][source]["mlm"] == pytest.approx(start * nats_per_bit, rel=1e-4)
    (facts,) = [s for s in json.loads((folder / "report.json").read_text("utf-8"))["stages"] if s["name"] == "dapt"]
    assert facts["shift"]["forgetting"]["general"] == pytest.approx(
        found["held_out"]["general"]["mlm"] - found["before"]["general"]["mlm"]
    )
    (one,) = json.loads((folder / "report.json").read_text("utf-8"))["vocabularies"]
    assert one["sources"]["domain"]["bits_per_byte"]["new rows"] == grown["domain"]["bits_per_byte"]


def test_a_start_is_measured_on_the_held_out_text_of_now(world: Path) -> None:
    """With its own tokens, too, when that text was edited after the stage was done."""
    path = grown(**{"domain.txt, txt: line, valid: 0.1": "domain.txt, txt: line, valid: held.txt", "epochs: 1": "steps: 1"})
    Path("held.txt").write_text("a river and a stone\na window and a garden\n", "utf-8")
    folder = run(path, ["worth=false"])
    kept = (folder / "dapt/vocabulary.json").read_text("utf-8")
    Path("held.txt").write_text("copper lamp violin desert\nisland stair tower mirror\n", "utf-8")
    run(path, ["worth=false"])
    found, start = (json.loads((folder / stage / "outcome.json").read_text("utf-8")) for stage in ("dapt", "pretrain"))
    said = start["held_out"]["domain"]["bits_per_byte"]
    assert (folder / "dapt/vocabulary.json").read_text("utf-8") != kept
    assert found["before"]["domain"]["bits_per_byte"] == pytest.approx(said, rel=1e-6)
    header, rows, _ = interpolate(path, ["worth=false"], "dapt", Interpolate(points=2, limit=50))
    end = dict(zip(header, rows[-1], strict=True))
    assert float(end["gain"]) == pytest.approx(found["before"]["domain"]["mlm"] - found["held_out"]["domain"]["mlm"], abs=1e-3)


def test_new_rows_that_are_never_trained_are_refused(world: Path) -> None:
    path = grown()
    for means in ("lora={rank: 2}", "freeze={layers: 0}"):
        with pytest.raises(UserError, match=r"brings new rows that .* would never train"):
            load_recipe(path, [f"stages.dapt.{means}"])
    assert load_recipe(path, ["stages.dapt.freeze={embeddings: false, layers: 1}"])


def test_the_report_tells_what_was_bought_and_compares_by_the_byte(folder: Path) -> None:
    facts: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    (one,) = facts["vocabularies"]
    domain = one["sources"]["domain"]
    assert one["tokens"] == 10 and domain["tokens_per_word"]["after"] < domain["tokens_per_word"]["before"]
    assert set(domain["bits_per_byte"]) == {"start", "new rows", "after"} and all(domain["bits_per_byte"].values())
    assert facts["loss"] == "bits/byte"
    for stage in facts["stages"][:3]:
        held = stage["heldout"]["domain"]
        assert held["loss"] == held["bits_per_byte"]
    assert domain["bits_per_byte"]["start"] == facts["stages"][0]["heldout"]["domain"]["bits_per_byte"]
    assert domain["bits_per_byte"]["after"] == facts["stages"][1]["heldout"]["domain"]["bits_per_byte"]
    page = (folder / "report.html").read_text("utf-8")
    assert "<h2>New tokens</h2>" in page and "bits/byte" in page
    assert {r["source"]: r["tokens_per_word"] for r in facts["sources"]}["domain"] > 1
    line = json.loads((folder / "shards/domain/train.json").read_text("utf-8"))
    assert line["tokens_per_word"] == line["tokens"] / line["words"] and line["unknown_share"] == line["unknown"] / line["tokens"]


def test_two_checkpoints_with_other_tokenizers_are_scored_on_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parents[1])
    facts = json.loads((folder / "report.json").read_text("utf-8"))
    for stage, number in (("pretrain", 0), ("dapt", 1)):
        scores = evaluate_checkpoint(folder / stage, "grown.yaml")
        expected = facts["stages"][number]["heldout"]["domain"]["bits_per_byte"]
        assert scores["domain/bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_running_again_mines_nothing_and_a_killed_stage_ends_with_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(checkpoints.find(folder / "dapt") / "model.safetensors")
    world = tmp_path / "world"
    shutil.copytree(folder.parents[1], world)
    monkeypatch.chdir(world)
    place = Path("runs/grown/dapt")
    for gone in ("DONE", "outcome.json"):
        (place / gone).unlink()
    shutil.rmtree(place / "step-00000005")  # killed after step 4
    import ziggurat.pipeline.vocabulary as module

    monkeypatch.setattr(module, "extend", lambda *a, **k: pytest.fail("mined again"))
    run(grown())
    resumed = load_file(place / "step-00000005/model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_mined_twice_alike(folder: Path, world: Path) -> None:
    place = prepare(grown())
    assert (place / "vocabulary/dapt/added.json").read_bytes() == (folder / "vocabulary/dapt/added.json").read_bytes()
    assert "new" not in batch_of("grown.yaml", stage="pretrain")
    drawn = batch_of("grown.yaml", stage="dapt")
    added = {t["token"] for t in json.loads((place / "vocabulary/dapt/added.json").read_text("utf-8"))["tokens"]}
    assert any(token in drawn for token in added)


def test_from_a_folder_and_from_an_extended_stage(folder: Path, world: Path) -> None:
    """From the Hub's format, and once more from there."""
    shutil.copytree(folder / "dapt/hf", world / "start")
    recipe = grown(
        **{
            "system: roberta/tiny\nmodel: {layers: 1, width: 32, heads: 2, mlp: 64}\n": "system: roberta\n",
            "tokenizer: {kind: wordpiece, vocab: 120, lowercase: true}\n": "",
            "{stage: pretrain, data: general, steps: 4}": "{stage: pretrain, init: start, data: general, steps: 1, vocabulary: {extend: 1, min_frequency: 2}}",
            "extend: 10": "extend: 1",
            "steps: 5": "steps: 1",
            "  - {stage: tapt, data: task, steps: 2}\n": "",
            "worth: {seeds: [0, 1]}": "worth: false",
        }
    )
    place = run(recipe)
    sizes = [open_checkpoint(place / stage).network.model.vocab for stage in ("pretrain", "dapt", "finetune")]
    start = open_checkpoint("start").network.model.vocab
    assert sizes == [start + 1, start + 2, start + 2]
    old, new = (Tokenizer.load(p).library.get_vocab() for p in ("start", place / "dapt/hf"))
    assert all(new[token] == number for token, number in old.items())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "{stage: pretrain, data: general, steps: 4}",
            "{stage: pretrain, data: general, steps: 4, vocabulary: {extend: 5}}",
            "from scratch",
        ),
        ("epochs: 1,", "epochs: 1, vocabulary: {extend: 5},", "belongs in a pretrain, dapt or tapt stage"),
        ("{stage: dapt, data: domain,", "{stage: dapt, data: {domain: 1, general: 1},", "say which source"),
        ("extend: 10,", "extend: 10, source: general,", "'general' is no source of this stage"),
        ("extend: 10,", "extend: 0,", "must be above 0"),
    ],
)
def test_bad_recipes(world: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe(grown(**{old: new}))


def test_more_than_there_is(world: Path) -> None:
    with pytest.raises(UserError, match=r"extend 5,000, but source 'domain' \(stage dapt\) has \d+ candidates") as found:
        run(grown(**{"extend: 10": "extend: 5000"}))
    assert "min_frequency" in found.value.hint

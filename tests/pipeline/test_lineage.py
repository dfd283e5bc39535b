"""Lineage: what a finished run writes into its checkpoints, how `show` prints it, and the model card of an export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import RECIPE
from ziggurat.checkpoint import amend as amending
from ziggurat.checkpoint import format as checkpoints
from ziggurat.checkpoint.amend import amend
from ziggurat.data.shards import Shards
from ziggurat.data.sources import Files, Hub
from ziggurat.data.subset import draw
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.pipeline.family import tree
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.prepare import content
from ziggurat.pipeline.provenance import origin
from ziggurat.pipeline.run import run
from ziggurat.pipeline.show import show
from ziggurat.systems import model_of, modelcard
from ziggurat.systems.hub import export_checkpoint, to_hub


def front(folder: Path) -> tuple[dict[str, Any], str]:
    """The YAML in front of a README.md, and the page behind it."""
    _, yaml_text, body = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(yaml_text), body


def test_every_ancestor_says_what_it_was(finished: Path) -> None:
    folder = finished / "runs/small"
    lineage = open_checkpoint(folder / "finetune").lineage
    assert [entry["name"] for entry in lineage] == ["pretrain", "dapt", "tapt", "finetune"]
    for entry in lineage:
        outcome = json.loads((folder / entry["name"] / "outcome.json").read_text("utf-8"))
        assert (entry["steps"], entry["tokens"]) == (outcome["steps"], outcome["tokens"])
        assert entry.get("held_out", {}) == {s: n for s, n in outcome["held_out"].items() if n}
        assert {"ziggurat", "torch"} <= set(entry["versions"]) and entry["recipe"] == "small"
        for source, data in entry["data"].items():
            shards = Shards.open(folder / "shards" / source / "train")
            assert (data["content"], data["tokens"]) == (content(shards), shards.tokens)
    general = lineage[0]
    assert general["settings"]["schedule"] == {"kind": "linear", "warmup": 0.06, "floor": 0.0, "decay": 0.1}
    assert not {"memory", "vocabulary", "new_tokens"} & set(general)
    assert general["budget"] == {"steps": 9} and general["data"]["general"]["weight"] == 0.7
    assert general["origins"] == {"general": {"files": ["general.txt"]}, "domain": {"files": ["domain.txt"]}}
    predictions = json.loads((folder / "finetune/predictions.json").read_text("utf-8"))
    right = sum(a == b for a, b in zip(predictions["gold"], predictions["predicted"])) / len(predictions["gold"])
    assert lineage[-1]["test"] == {"source": "task", "metric": "accuracy", "rows": 20, "value": right}
    assert not checkpoints.verify(open_checkpoint(folder / "finetune").folder)


def test_the_family_is_shown(finished: Path) -> None:
    text = show(str(finished / "runs/small/finetune"))
    first, second, third, fourth = (text.index(f"{name} (recipe small)") for name in ("pretrain", "dapt", "tapt", "finetune"))
    assert first < second < third < fourth
    for said in ("9 steps", "held out", "files general.txt", "torch ", "budget 3 epochs", "task: accuracy 0.", "seed 0"):
        assert said in text


def test_checkpoints_of_earlier_versions_are_shown(finished: Path, tmp_path: Path) -> None:
    """Their entries had name, objective, documents, steps, tokens and seed, an import's even less."""
    source = open_checkpoint(finished / "runs/small/dapt").folder
    shutil.copytree(source, tmp_path / source.name)
    old = {"stage": "dapt", "name": "dapt", "data": {"domain": {"documents": 54, "source": "a1/b2"}}, "steps": 9, "seed": 0}
    amend(tmp_path, lineage=({"name": "import", "from": "hf", "architectures": None}, old), more={})
    text = show(str(tmp_path))
    assert "import\n" in text and "└─ dapt" in text and "54 documents" in text and "None" not in text
    made = export_checkpoint(tmp_path, tmp_path / "hf")
    assert "| dapt |" in (made.folder / "README.md").read_text("utf-8")


def test_a_folder_of_the_hub_is_shown(tmp_path: Path) -> None:
    """It says what its files say: no lineage is made up. An export of ours has its lineage elsewhere, and is not called foreign."""
    network = NetworkModel(
        spec.Network(model=model_of("bert/tiny", {"layers": 1, "width": 32, "heads": 2, "mlp": 48}, 50), heads={})
    )
    to_hub(network.spec, network.state_dict(), None, "bert", tmp_path / "hf")
    said = show(str(tmp_path / "hf"))
    assert "no lineage: an export of Ziggurat, whose README.md says how it was made" in said
    (tmp_path / "hf/README.md").write_text("# Somebody's model\n", "utf-8")
    lines = show(str(tmp_path / "hf")).splitlines()
    # token, position and segment tables and their norm; q, k, v, o and their biases, norm, up, down, norm
    count = (50 + 512 + 2 + 2) * 32 + 4 * (32 * 32 + 32) + 2 * 64 + (32 * 48 + 48) + (48 * 32 + 32)
    for line in ("system: bert", "architecture: BertModel", f"parameters: {count:,}", "tokenizer: none"):
        assert line in lines
    assert "no lineage: not made by Ziggurat" in lines and "network:" in lines


def test_a_folder_of_the_hub_with_a_tokenizer_and_labels(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs/small/finetune/hf", tmp_path / "hf")
    said = show(str(tmp_path / "hf"))
    size = open_checkpoint(tmp_path / "hf").network.model.vocab
    assert f"tokenizer: {size:,} tokens" in said and "labels: neg, pos" in said
    (tmp_path / "hf/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        show(str(tmp_path / "hf"))


def test_amending_is_one_move(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_checkpoint(finished / "runs/small/dapt").folder
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(amending, "publish", full)
        with pytest.raises(UserError, match="cannot write the card"):
            amend(folder, lineage=({"name": "x"},), more={})
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before and len(list(tmp_path.iterdir())) == 1
    amend(folder, lineage=({"name": "x"},), more={"extra": 1})
    card = checkpoints.card(folder)
    assert card.lineage == ({"name": "x"},) and card.more["extra"] == 1 and card.more["length"] == 32
    assert not checkpoints.verify(folder)
    changed = {p.name for p in folder.iterdir() if p.is_file() and p.read_bytes() != before[p.name]}
    assert changed == {"spec.json", "MANIFEST.json"} and len(list(tmp_path.iterdir())) == 1


def test_damage_stays_visible(finished: Path, tmp_path: Path) -> None:
    """The checksums of the other files are those of the day they were written."""
    source = open_checkpoint(finished / "runs/small/dapt").folder
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    amend(folder, lineage=({"name": "x"},), more={})
    assert checkpoints.verify(folder)


@pytest.mark.parametrize("stage, task", [("pretrain", "fill-mask"), ("finetune", "text-classification")])
def test_the_model_card_tells_the_same_facts(finished: Path, stage: str, task: str) -> None:
    folder = finished / "runs/small" / stage
    found, body = front(folder / "hf")
    assert found["pipeline_tag"] == task and found["library_name"] == "transformers" and "roberta" in found["tags"]
    assert not {"language", "license", "base_model", "datasets"} & set(found)  # nobody said so
    last = open_checkpoint(folder).lineage[-1]
    assert f"# small {stage}" in body and last["data"][next(iter(last["data"]))]["content"] in body
    assert str(finished) not in body
    if stage == "finetune":
        (result,) = found["model-index"][0]["results"]
        assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": last["test"]["value"]}]
        assert result["dataset"] == {"name": "task", "type": "task", "split": "test"} and "`neg`, `pos`" in body
    else:
        assert "metrics" not in found and "model-index" not in found


def test_the_hub_reads_the_model_card(finished: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    for stage in ("pretrain", "finetune"):
        card = hub.ModelCard.load(finished / "runs/small" / stage / "hf/README.md", ignore_metadata_errors=False)
        assert card.data.pipeline_tag and card.data.library_name == "transformers"
        assert hub.ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()
    (result,) = card.data.eval_results
    assert result.metric_type == "accuracy" and result.dataset_name == "task"


def test_what_the_user_says_is_in_the_card(world: Path) -> None:
    folder = run("text.yaml", ["card={language: [en, zh], license: cc-by-4.0, base_model: owner/model, tags: [small]}"])
    found, _ = front(folder / "pretrain/hf")
    assert found["language"] == ["en", "zh"] and found["license"] == "cc-by-4.0" and found["base_model"] == "owner/model"
    assert "small" in found["tags"]
    export_checkpoint(folder / "pretrain", world / "out")
    assert (world / "out/README.md").read_text("utf-8") == (folder / "pretrain/hf/README.md").read_text("utf-8")
    (world / "out/README.md").write_text("# My own page\n", "utf-8")
    export_checkpoint(folder / "pretrain", world / "out")
    assert (world / "out/README.md").read_text("utf-8") == "# My own page\n"


def test_the_card_tells_schedule_memory_and_new_tokens() -> None:
    schedule = {"kind": "wsd", "warmup": 100, "floor": 0.1, "decay": 0.2}
    entry = {
        "name": "dapt",
        "settings": {"schedule": schedule},
        "memory": 384,
        "vocabulary": {"extend": 2000},
        "new_tokens": 1999,
    }
    text = modelcard.page(modelcard.Facts("xlnet", "XLNetLMHeadModel", 7, lineage=[{"name": "old"}, entry]))
    assert "| old |  |  |  |  |  |  |  |" in text
    assert "| dapt |  |  |  |  | wsd, warmup 100, floor 0.1, decay 0.2 | 384 tokens | 1,999 |" in text


def test_every_text_has_an_origin_and_no_folder_is_named(world: Path) -> None:
    """Replayed text too, of a folder of many files; what drew rows and what moved weights stands in lineage, `show` and card."""
    lines = Path("general.txt").read_text("utf-8").splitlines(keepends=True)
    for n in range(7):
        part = Path(f"secret project/{'in' if n % 2 else 'out'}/part-{n}.txt")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(lines[n::7]), "utf-8")
    recipe = RECIPE[: RECIPE.index("stages:")].replace("path: general.txt", "path: secret project")
    recipe = recipe.replace("path: domain.txt", "path: dom*.txt")
    Path("made.yaml").write_text(
        recipe
        + """\
stages:
  - {stage: pretrain, data: general, steps: 2}
  - {stage: dapt, data: domain, steps: 2, replay: {general: 0.3}, interpolate: 0.5}
  - {stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, examples: 20, steps: 2}
worth: {seeds: [0, 1]}
""",
        "utf-8",
    )
    folder = run("made.yaml", ["name=made"])
    first, dapt, last = open_checkpoint(folder / "finetune").lineage
    files = {"files": ["part-1.txt", "part-3.txt", "part-5.txt", "part-0.txt", "part-2.txt", "and 2 more"]}  # in/ before out/
    assert first["origins"] == {"general": files}
    assert dapt["origins"] == {"domain": {"files": ["domain.txt"]}, "general": files} and dapt["interpolated"] == 0.5
    shown, (_, body) = show(str(folder / "finetune")), front(folder / "finetune/hf")
    for text in (shown, body):
        assert "secret project" not in text and "part-5.txt" in text and "and 2 more" in text
    assert "- dapt: `replay: {general: 0.3}`; the weights are 0.5 of the way from the stage's start to what it trained." in body
    assert "interpolated 0.5" in shown

    rows = Shards.open(folder / "shards/task/train")
    other = open_checkpoint(folder / "worth/dapt/seed-1")
    drawn = [entry["data"]["task"] for entry in (last, other.lineage[-1])]
    assert [one["documents"] for one in drawn] == [20, 20] and {one["content"] for one in drawn} == {content(rows)}
    assert drawn[0]["drawn"] == draw(rows, 20, 0).meta["chosen"] != drawn[1]["drawn"] == draw(rows, 20, 1).meta["chosen"]
    assert f"drawn {drawn[0]['drawn'][:12]}" in shown and f"{content(rows)}, drawn {drawn[0]['drawn']}" in body
    assert "drawn" not in dapt["data"]["domain"]


def test_where_text_is_from(world: Path) -> None:
    assert origin(Files(path="gone.txt")) == {}
    assert origin(Hub(id="owner/reviews", config="en")) == {"hub": "owner/reviews", "config": "en"}
    Path("private").mkdir()
    assert origin(Hub(id=str(world / "private"))) == {"dataset": "a folder"}


def test_the_card_tells_whose_weights_they_are() -> None:
    ended = {"why": "patience", "trained": 1200, "by": "accuracy", "score": 0.91234}
    tuned = {"name": "finetune", "stage": "finetune", "steps": 900, "ended": ended, "lora": {"rank": 2}}
    of = [{"checkpoint": f"seed-{n}", "weights": f"abc{n}", "share": 0.5} for n in range(2)]
    text = modelcard.page(modelcard.Facts("bert", "BertModel", 7, lineage=[tuned, {"name": "soup", "stage": "soup", "of": of}]))
    assert (
        "- finetune: `lora: {rank: 2}`; the weights are those of step 900 of 1,200 trained (patience, accuracy 0.9123).\n"
        "- soup: the weights are the mean of seed-0 (share 0.5, weights abc0), seed-1 (share 0.5, weights abc1).\n"
    ) in text


def test_every_fact_is_set_apart_from_its_name() -> None:
    lines = list(tree([{"name": "dapt", "seed": 0, "steps": 3, "interpolated": 0.5, "architectures": ["BertModel"], "a": 1}]))
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        ["training", "3 steps, seed 0"],
        ["interpolated", "0.5"],
        ["architectures", "[BertModel]"],
        ["a", "1"],
    ]


def test_a_card_of_nothing_but_weights() -> None:
    text = modelcard.page(modelcard.Facts("bert", "BertForPreTraining", 7))
    found = yaml.safe_load(text.split("---\n")[1])
    assert found == {"library_name": "transformers", "tags": ["ziggurat", "bert"]}
    assert "BertForPreTraining.from_pretrained" in text and "##" not in text


def test_a_dataset_of_the_hub_is_named() -> None:
    entry = {
        "name": "finetune",
        "origins": {"task": {"hub": "owner/reviews", "revision": "v1"}},
        "test": {"source": "task", "metric": "macro_f1", "value": 0.5, "rows": 4},
    }
    found = modelcard.metadata(modelcard.Facts("bert", "BertForSequenceClassification", 7, lineage=(entry,)))
    assert found["datasets"] == ["owner/reviews"] and found["metrics"] == ["f1"]
    assert found["model-index"][0]["results"][0]["dataset"]["type"] == "owner/reviews"
    assert found["model-index"][0]["results"][0]["dataset"]["revision"] == "v1"


def test_the_lines_of_a_causal_model_card_run_and_the_prompt_is_no_ended_text(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    recipe = Path("text.yaml").read_text("utf-8").replace("roberta/tiny", "gpt2/tiny").replace("wordpiece", "bpe")
    Path("causal.yaml").write_text(recipe.replace(", lowercase: true", "").replace("name: text", "name: causal"), "utf-8")
    folder = run("causal.yaml") / "pretrain" / "hf"
    code = (folder / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out.startswith("Once upon a time")
    assert names["tokenizer"].eos_token_id not in names["prompt"].input_ids[0].tolist()
    assert names["tokenizer"]("Once upon a time").input_ids[-1] == names["tokenizer"].eos_token_id

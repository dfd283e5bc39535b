"""Means of checkpoints: exact, with the last one's head and labels, loadable everywhere; what has no mean is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from conftest import RECIPE
from ziggurat.checkpoint import format as checkpoints
from ziggurat.cli import app
from ziggurat.errors import UserError
from ziggurat.nn.spec import Network
from ziggurat.nn.tasks import named
from ziggurat.pipeline.model import load
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.run import run
from ziggurat.pipeline.soup import soup


def test_a_soup_of_seeds_is_their_mean(finished: Path, tmp_path: Path) -> None:
    runs = finished / "runs/small"
    seeds = [runs / "worth/tapt/seed-1", runs / "finetune"]
    place = soup(seeds, tmp_path / "soup")
    first, last = (open_checkpoint(path) for path in seeds)
    found = open_checkpoint(place)
    assert found.tensors.keys() == last.tensors.keys()
    for name, tensor in found.tensors.items():
        wanted = (first.tensors[name].double() + last.tensors[name].double()) / 2
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name
    assert any(not torch.equal(first.tensors[name], found.tensors[name]) for name in found.tensors)
    assert found.labels == last.labels and found.fingerprint != last.fingerprint
    entry = found.lineage[-1]
    assert [(one["weights"], one["share"]) for one in entry["of"]] == [(first.fingerprint, 0.5), (last.fingerprint, 0.5)]
    assert entry["objective"]["kind"] == "classify" and "test" not in entry and found.lineage[:-1] == last.lineage
    said = load(place).predict(["a wonderful river"])
    assert said == load(place / "hf").predict(["a wonderful river"])
    assert soup([last.folder, last.folder], tmp_path / "same") and torch.equal(
        open_checkpoint(tmp_path / "same").tensors["heads.classify.out.weight"], last.tensors["heads.classify.out.weight"]
    )


def test_a_part_of_the_way_back_to_the_start(finished: Path, tmp_path: Path) -> None:
    """WiSE-FT by the command: what the start has not, the head, stays as it was trained; a folder of the Hub is as good as one of ours."""
    runs = finished / "runs/small"
    command = ["soup", str(runs / "tapt/hf"), str(runs / "finetune"), "--weights", "1,3", "--to", str(tmp_path / "wise")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and str(tmp_path / "wise") in done.stdout.replace("\n", "")
    start, end = (open_checkpoint(runs / name).tensors for name in ("tapt", "finetune"))
    found = open_checkpoint(tmp_path / "wise").tensors
    for name in found:
        wanted = 0.25 * start[name] + 0.75 * end[name] if name in start else end[name]
        torch.testing.assert_close(found[name], wanted, atol=1e-6, rtol=1e-6)
    assert load_file(tmp_path / "wise/hf/model.safetensors")
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "wise")], catch_exceptions=False)
    assert "share: 0.25" in shown.stdout and "soup" in shown.stdout


def test_what_has_no_mean(finished: Path, world: Path) -> None:
    runs = finished / "runs/small"
    wide = (
        RECIPE[: RECIPE.index("stages:")].replace("width: 32", "width: 48")
        + "stages: [{stage: pretrain, data: general, steps: 1}]\n"
    )
    assert "width: 48" in wide
    Path("wide.yaml").write_text(wide, "utf-8")
    other = run("wide.yaml", ["name=wide"]) / "pretrain"
    with pytest.raises(UserError, match="has another network than"):
        soup([other, runs / "tapt"], "made")
    with pytest.raises(UserError, match="needs two checkpoints"):
        soup([runs / "tapt"], "made")
    with pytest.raises(UserError, match="1 weights for 2 checkpoints"):
        soup([runs / "tapt", runs / "dapt"], "made", [1])
    with pytest.raises(UserError, match="are no shares"):
        soup([runs / "tapt", runs / "dapt"], "made", [1, -1])
    assert not Path("made").exists()
    Path("full").mkdir()
    Path("full/note.txt").write_text("mine", "utf-8")
    with pytest.raises(UserError, match="full is not empty"):
        soup([runs / "tapt", runs / "dapt"], "full")
    bad = CliRunner().invoke(app, ["soup", str(runs / "tapt"), str(runs / "dapt"), "--to", "made", "--weights", "a,b"])
    assert bad.exit_code == 2 and "is no list of numbers" in bad.stderr
    assert json.loads((runs / "report.json").read_text("utf-8"))


def answering(folder: Path, place: str, labels: Sequence[str], task: str = "") -> Path:
    """A fine-tuned checkpoint as one of other labels would be, or as one task's of several."""
    saved = checkpoints.load(folder)
    kept = {n: named(n, task) if task and n != "lm" else n for n in saved.card.network.heads}
    heads = {new: saved.card.network.heads[old] for old, new in kept.items()}
    known = {"tasks": {task: list(labels)}} if task else {"labels": list(labels)}
    card = replace(saved.card, network=Network(model=saved.card.network.model, heads=heads), more=known)
    tensors = {
        ".".join(["heads", kept[n.split(".")[1]], *n.split(".")[2:]]) if n.startswith("heads.") else n: t
        for n, t in saved.tensors.items()
    }
    return checkpoints.save(Path(place), 0, card, tensors, state={})


@pytest.mark.parametrize("task", ["", "mood"], ids=["one task", "one of several"])
def test_heads_of_other_labels_have_no_mean(task: str, finished: Path, world: Path) -> None:
    """A class's scores are a row of the head, whatever it is called: in another order the mean is of two classes."""
    tuned = finished / "runs/small/finetune"
    here, turned, unnamed = (
        answering(tuned, name, labels, task)
        for name, labels in (("here", ["neg", "pos"]), ("turned", ["pos", "neg"]), ("unnamed", []))
    )
    with pytest.raises(UserError, match=r"turned.* has the labels pos, neg, and .*here.* neg, pos"):
        soup([turned, here], "made")
    assert not Path("made").exists()
    soup([unnamed, here], "made")  # whose are not known may be the same
    if task:  # the head of a task that the other has not is not mixed
        soup([answering(tuned, "other", ["pos", "neg"], "tone"), here], "both")

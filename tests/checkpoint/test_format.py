"""Checkpoints: whole or not there, whatever happens while they are written or lie about."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ziggurat.checkpoint import format as checkpoint
from ziggurat.checkpoint.format import Card, find, latest, load, match, prune, save, verify
from ziggurat.errors import UserError
from ziggurat.nn.spec import ClassHead, Network, Single, VocabHead

NETWORK = Network(
    model=Single(vocab=11, width=8, layers=1, heads=2, mlp=16, visibility="causal"),
    heads={"mlm": VocabHead(), "mood": ClassHead(outputs=3)},
)
CARD = Card(
    NETWORK, "gpt2", ({"stage": "pretrain", "steps": 7}, {"stage": "dapt", "source": "影评"}), "sha256:abc", {"length": 128}
)


def write(stage: Path, step: int = 400, **values: Any) -> Path:
    """A small checkpoint with everything in it."""
    tensors = {"model.a": torch.full((3, 2), float(step)), "heads.mood.out.bias": torch.randn(3)}
    given: dict[str, Any] = {
        "state": {"step": step, "lanes": [[0, 1, 2]]},
        "optimizer": {"model.a/exp_avg": torch.randn(3, 2)},
        "rng": {"torch": torch.get_rng_state()},
        "tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"词": 1}', "utf-8"),
        "keep": 3,
    }
    return save(stage, step, CARD, tensors, **(given | values))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    table = torch.randn(11, 8)
    tensors = {
        "model.embed.token.weight": torch.nn.Parameter(table),
        "heads.mlm.decoder.weight": table,
        "model.slice": table[2:4],
        "model.turned": table.t(),
        "model.bf16": torch.randn(3).bfloat16(),
        "model.whole": torch.tensor([2**62, -1]),
        "model.scalar": torch.tensor(0.1),
        "model.none": torch.zeros(0, 4),
    }
    optimizer = {"model.embed.token.weight/step": torch.tensor(3.0), "model.embed.token.weight/exp_avg": torch.randn(11, 8)}
    state = {"step": 3, "seed": 2**64 - 1, "loss": 0.1 + 0.2, "data": {"语料": [1, None, True]}}
    folder = save(
        tmp_path / "runs" / "pretrain", 3, CARD, tensors, state=state, optimizer=optimizer, rng={"torch": torch.get_rng_state()}
    )
    assert folder == tmp_path / "runs" / "pretrain" / "step-00000003" and verify(folder) == []
    saved = load(folder)
    assert saved.card == CARD and saved.state == state and saved.tokenizer is None
    for given, found in ((tensors, saved.tensors), (optimizer, saved.optimizer), ({"torch": torch.get_rng_state()}, saved.rng)):
        assert given.keys() == found.keys()
        for name, tensor in given.items():
            assert torch.equal(tensor, found[name]) and tensor.dtype == found[name].dtype and tensor.shape == found[name].shape, (
                name
            )
    assert saved.tensors["heads.mlm.decoder.weight"] is saved.tensors["model.embed.token.weight"]


def test_shared_tables_are_stored_once(tmp_path: Path) -> None:
    table = torch.randn(100, 100)
    folder = save(tmp_path, 1, CARD, {"a": table, "b": table, "c": table.clone()}, state={})
    assert 2 * 40_000 < (folder / "model.safetensors").stat().st_size < 2 * 40_000 + 1_000


def test_only_safetensors_json_and_the_tokenizers_files(tmp_path: Path) -> None:
    folder = write(tmp_path)
    names = {path.relative_to(folder).as_posix() for path in files(folder)}
    assert names == {
        *("model.safetensors", "optimizer.safetensors", "rng.safetensors", "spec.json", "state.json"),
        *("MANIFEST.json", "tokenizer/tokenizer.json"),
    }
    assert len({path.stat().st_mode for path in files(folder)}) == 1  # whoever may read one file may read all
    card = json.loads((folder / "spec.json").read_text("utf-8"))
    assert card["network"]["heads"]["mood"]["kind"] == "class" and card["versions"]["torch"].startswith("2.")
    tokenizer = load(folder).tokenizer
    assert tokenizer is not None and (tokenizer / "tokenizer.json").read_text("utf-8") == '{"词": 1}'
    copied = write(tmp_path, 500, tokenizer=tokenizer)
    assert (copied / "tokenizer" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path)
    draw = random.Random(0)
    manifest = folder / "MANIFEST.json"
    places = [(manifest, place) for place in range(0, manifest.stat().st_size, 5)]
    for path in files(folder):
        places += [(path, draw.randrange(path.stat().st_size)) for _ in range(20)]
    for path, place in places:
        bit = draw.randrange(8)
        flip(path, place, bit)
        problems = verify(folder)
        assert problems, f"{path.name} byte {place} bit {bit}"
        assert path.name in problems[0] and len(problems) == 1
        flip(path, place, bit)
    assert verify(folder) == []


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "tokenizer/tokenizer.json", "MANIFEST.json", "spec.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "delete"])
def test_damage_is_an_error_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, harm: str
) -> None:
    good, bad = write(tmp_path, 100), write(tmp_path, 200)
    path = bad / name
    if harm == "flip":
        flip(path, path.stat().st_size // 2, 0)
    elif harm == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -1 if harm == "truncate" else 0])
    with pytest.raises(UserError, match=rf"step-00000200 is damaged: .*{name}"):
        load(bad)
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path) == good
    assert len(caplog.records) == 1 and str(bad) in caplog.text and name in caplog.text
    assert load(tmp_path).state["step"] == 100


def test_two_swapped_files(tmp_path: Path) -> None:
    one, two = write(tmp_path, 100), write(tmp_path, 200)
    os.replace(one / "model.safetensors", tmp_path / "x")
    os.replace(two / "model.safetensors", one / "model.safetensors")
    os.replace(tmp_path / "x", two / "model.safetensors")
    assert latest(tmp_path) is None  # same sizes, other contents
    with pytest.raises(UserError, match="holds none that is whole"):
        load(tmp_path)


def test_finding(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None and latest(tmp_path) is None
    for step in (9, 100, 20):
        write(tmp_path, step)
    (tmp_path / "step-00000999").write_text("not a folder")
    (tmp_path / "step-last").mkdir()
    assert latest(tmp_path) == find(tmp_path) == tmp_path / "step-00000100"
    assert find(tmp_path / "step-00000020").name == "step-00000020"
    assert checkpoint.card(tmp_path) == CARD
    with pytest.raises(UserError, match="no folder"):
        load(tmp_path / "nowhere")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    with pytest.raises(UserError, match="ziggurat import"):
        load(hub)


def test_a_card_of_another_version(tmp_path: Path) -> None:
    folder = write(tmp_path)
    card = json.loads((folder / "spec.json").read_text("utf-8"))
    for change, reason in (({"format": 99}, "format 99"), ({"network": {"model": {"widht": 3}}}, "widht")):
        (folder / "spec.json").write_text(json.dumps(card | change))
        with pytest.raises(UserError, match=f"spec.json: .*{reason}"):
            checkpoint.card(folder)


def names(stage: Path) -> list[str]:
    return sorted(path.name for path in stage.iterdir())


def test_old_ones_go_and_leftovers_are_swept(tmp_path: Path) -> None:
    (tmp_path / "tmp-step-00000001-4711").mkdir()
    (tmp_path / "tmp-step-00000001-4711" / "model.safetensors").write_bytes(b"torso")
    for step in (100, 200, 300):
        write(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000200", "step-00000300"]
    (tmp_path / "metrics.jsonl").write_text("")
    write(tmp_path, 400, keep=1)
    assert names(tmp_path) == ["metrics.jsonl", "step-00000400"]
    with pytest.raises(UserError, match="keep = 0"):
        prune(tmp_path, 0)


def test_the_last_good_one_is_never_removed(tmp_path: Path) -> None:
    folders = [write(tmp_path, step, keep=9) for step in (100, 200, 300, 400)]
    flip(folders[3] / "model.safetensors", 90, 1)
    flip(folders[2] / "model.safetensors", 90, 1)
    prune(tmp_path, 1)
    assert latest(tmp_path) == folders[1] and not folders[0].exists()
    # a run that went on from 200: the new one is older by number than the damaged one
    new = write(tmp_path, 250, keep=1)
    assert latest(tmp_path) == new


def test_a_good_one_at_all_times(tmp_path: Path) -> None:
    """Every third checkpoint is damaged after it was written, keep 2."""
    for step in range(1, 13):
        folder = write(tmp_path, step, keep=2)
        if step % 3 == 0:
            flip(folder / "model.safetensors", 90, 1)
        good = latest(tmp_path)
        assert good is not None and good.name == f"step-{step - (step % 3 == 0):08d}"
        assert len(names(tmp_path)) <= 2


def test_the_same_step_again(tmp_path: Path) -> None:
    write(tmp_path, 100)
    folder = write(tmp_path, 100, state={"step": 100, "again": True})
    assert load(folder).state["again"] and names(tmp_path) == ["step-00000100"]


def test_the_same_step_after_a_killed_exchange(tmp_path: Path) -> None:
    """Both the new one and the one that stepped aside are there, and the new one is damaged: the other must not go first."""
    folder = write(tmp_path, 100, state={"by": "old"})
    shutil.copytree(folder, tmp_path / "step-00000100.old")
    flip(folder / "model.safetensors", 90, 1)
    assert load(tmp_path).state["by"] == "old"
    with pytest.MonkeyPatch.context() as patch:
        renames: list[list[str]] = []
        real = os.replace

        def note(source: Path, target: Path) -> None:
            renames.append([source.name, target.name])
            real(source, target)

        patch.setattr(os, "replace", note)
        write(tmp_path, 100, state={"by": "new"})
    assert renames[0][0] == "step-00000100" and renames[1][1] == "step-00000100"  # the whole one stays until the new one is in
    assert load(tmp_path).state["by"] == "new" and names(tmp_path) == ["step-00000100"]


def test_what_stepped_aside_comes_back_when_it_is_whole_and_alone(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        write(tmp_path, step, keep=3)
    shutil.copytree(tmp_path / "step-00000100", tmp_path / "step-00000100.old")
    for step in (200, 300):
        (tmp_path / f"step-00000{step}").rename(tmp_path / f"step-00000{step}.old")
    flip(tmp_path / "step-00000300.old/model.safetensors", 90, 1)
    checkpoint.put_back(tmp_path)
    assert names(tmp_path) == ["step-00000100", "step-00000100.old", "step-00000200", "step-00000300.old"]
    assert load(checkpoint.at(tmp_path, 200)).state["step"] == 200


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours may see it."""


def killing(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """Die before the `at`-th call that touches the disk; returns the count of calls so far."""
    calls = 0

    def guard(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        (os, "fsync"),
        (os, "replace"),
        (shutil, "rmtree"),
        (checkpoint, "save_file"),
        (Path, "mkdir"),
        (checkpoint, "_write"),
    ):
        guard(owner, name)
    return lambda: calls


@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step"])
def test_killed_anywhere_in_a_save(tmp_path: Path, again: bool) -> None:
    """Before every sync, rename, write and deletion: a whole checkpoint is found, and the next save cleans up."""
    step, reached = 100 if again else 200, 0
    few: dict[str, Any] = {"keep": 1, "rng": None, "optimizer": None}
    write(tmp_path / "first", 100, **few, state={"step": 100, "by": "first"})
    for at in range(1, 100):
        stage = tmp_path / str(at)
        shutil.copytree(tmp_path / "first", stage)
        with pytest.MonkeyPatch.context() as patch:
            count = killing(patch, at)
            try:
                write(stage, step, **few, state={"step": step, "by": "second"})
            except Killed:
                reached += 1
            else:
                assert count() < at
                break
        saved = load(stage)
        assert saved.state["step"] in (100, step)
        found = latest(stage)
        write(stage, 300, **few)
        assert names(stage) == ["step-00000300"] and found is not None
    assert reached >= 20
    assert load(stage).state["by"] == "second"


def test_full_disk_while_writing(tmp_path: Path) -> None:
    """A real limit on file size, in a process of its own: one clear error, the earlier one whole, no torso."""
    script = """
import resource, sys, torch
from pathlib import Path
from ziggurat.checkpoint.format import Card, save, load
from ziggurat.errors import UserError
from ziggurat.nn.spec import Network
stage = Path(sys.argv[1])
save(stage, 1, Card(Network()), {"a": torch.zeros(10)}, state={})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save(stage, 2, Card(Network()), {"a": torch.zeros(100_000)}, state={})
except UserError as error:
    print(error)
print(sorted(path.name for path in stage.iterdir()), load(stage).state)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"cannot write the checkpoint {tmp_path}/step-00000002: ") and "File too large" in lines[0]
    assert "MiB free" in lines[0] and "earlier checkpoints are whole" in lines[1]
    assert lines[2] == "['step-00000001'] {}"


@pytest.mark.parametrize("where", ["_write", "save_file", "_sync", "publish"])
def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    write(tmp_path, 100)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, where, full)
    with pytest.raises(UserError, match=r"step-00000200: No space left on device \([\d,.]+ MiB free\)"):
        write(tmp_path, 200)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000100"] and load(tmp_path).state["step"] == 100


def test_too_little_space_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr(checkpoint, "save_file", lambda *args, **kwargs: pytest.fail("wrote"))
    with pytest.raises(UserError, match=r"it needs 0.0 MiB \(1.0 MiB free\)"):
        write(tmp_path, 200)
    assert names(tmp_path) == ["step-00000100"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*file/pretrain/step-00000001: Not a directory"):
        write(tmp_path / "file" / "pretrain", 1)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        write(tmp_path, 1)


def test_state_that_is_not_json_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write(tmp_path, 1, state={"step": torch.tensor(1)})
    assert names(tmp_path) == []


def test_matching_shapes() -> None:
    model = {"model.embed.token.weight": (30, 8), "model.blocks.0.attention.q.weight": (8, 8), "heads.mlm.bias": (30,)}
    match(model, {name: torch.Size(shape) for name, shape in model.items()})
    with pytest.raises(UserError) as error:
        match(
            model,
            {"model.embed.token.weight": [40, 8], "model.blocks.0.attention.query.weight": [8, 8], "heads.mlm.bias": [30]},
            "step-00000400",
        )
    message = str(error.value)
    assert message.startswith("step-00000400 is of another shape than the model: 1 missing, 1 unexpected, 1 of another shape")
    assert "missing     model.blocks.0.attention.q.weight (nearest: model.blocks.0.attention.query.weight)" in message
    assert "unexpected  model.blocks.0.attention.query.weight (nearest: model.blocks.0.attention.q.weight)" in message
    assert "shape       model.embed.token.weight: [40, 8] there, [30, 8] in the model" in message
    many = {f"model.blocks.{i}.mlp.up.weight": (8, 8) for i in range(40)}
    with pytest.raises(UserError, match=r"40 missing(.|\n)*and 35 more"):
        match(many, {})

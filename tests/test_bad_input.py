"""What users get wrong: one clear error that says what, where and what to do; exit code 2; what was finished stays whole."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ziggurat.cli import app
from ziggurat.data.shards import Shards
from ziggurat.errors import UserError
from ziggurat.log import Metrics


def ziggurat(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def refused(*arguments: str) -> str:
    """The one error of a command that must fail."""
    result = ziggurat(*arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stderr.count("error: ") == 1 and "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert "\n  -> " in message, message  # what to do
    return message


def accepted(*arguments: str) -> str:
    result = ziggurat(*arguments)
    assert result.exit_code == 0, result.stderr
    return str(result.stderr)


def fingerprint(folder: Path) -> dict[str, bytes]:
    """All files of finished stages."""
    return {str(p): p.read_bytes() for p in folder.glob("*/step-*/**/*") if p.is_file()}


def test_typos_all_at_once(world: Path) -> None:
    text = Path("small.yaml").read_text("utf-8")
    text = text.replace("lowercase", "lowercased").replace("tapt, data: task", "tapt, data: tasks").replace("lr: 1e-3", "lr: -1")
    Path("small.yaml").write_text(text.replace("system: roberta/tiny", "system: robeta/tiny"), "utf-8")
    message = ziggurat("run", "small.yaml").stderr
    for line in (
        r"small.yaml:2  system: .*did you mean 'roberta/tiny'",
        r"small.yaml:4  tokenizer.lowercased: unknown field; did you mean 'lowercase'",
        r"small.yaml:15  defaults.optim.lr: must be above 0",
        r"small.yaml:22  stages.tapt.data: unknown source 'tasks'; did you mean 'task'",
    ):
        assert re.search(line, message), (line, message)
    assert not Path("runs").exists()


def test_missing_files(world: Path) -> None:
    assert "did you mean small.yaml?" in ziggurat("run", "smal.yaml").stderr
    message = refused("run", "small.yaml", "sources.domain.path=domian.txt")
    assert "domian.txt: there is no such file or folder" in message and "domain.txt" in message
    assert "there is no folder no/where" in refused("run", "text.yaml", "stages.pretrain.init=no/where")
    assert "no folder nowhere" in refused("try", "nowhere", "a text")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "general.txt .train.: there is no text in it"),
        (b"\n \n\n", "general.txt .train.: there is no text in it"),
        (bytes(range(256)) * 40, "general.txt: this is a binary file"),
        ("山水火木金土日月人口手足天地\n".encode("gb18030") * 9, "general.txt: this file is not UTF-8"),
    ],
)
def test_a_corpus_that_is_none(world: Path, content: bytes, said: str) -> None:
    accepted("prepare", "small.yaml", "name=before")
    before = fingerprint(Path("runs/before"))
    Path("general.txt").write_bytes(content)
    assert re.search(said, refused("run", "text.yaml"))
    assert not list(Path("runs").rglob("*.writing")) and fingerprint(Path("runs/before")) == before


def test_a_corpus_of_one_document(world: Path) -> None:
    Path("general.txt").write_text("the river and the stone. 山水很好看。 a window in the garden.", "utf-8")
    one = ["text.yaml", "sources.general.valid=0"]
    accepted("run", *one)
    pairs = "stages.pretrain.objective={kind: joint, parts: [{kind: mlm}, {kind: nsp}]}"
    assert "nsp has no negatives: the corpus is one document" in refused("run", *one, pairs, "name=pairs")
    Path("general.txt").write_text("the river. and the stone.\n\na window in the garden. 山水。", "utf-8")
    said = accepted("run", "text.yaml", "sources.fresh={path: general.txt}", "stages.pretrain.data=fresh", pairs, "name=two")
    assert "fresh: too few documents to hold some out" in said  # nothing was said about `valid`


@pytest.mark.parametrize("file", ["train.jsonl", "test.jsonl"])
def test_a_label_that_is_not_in_the_list(world: Path, file: str) -> None:
    """Told before anything is trained, in the test rows too."""
    with open(file, "a", encoding="utf-8") as rows:
        rows.write(json.dumps({"sentence": "a new lantern", "label": "poss"}) + "\n")
    line = len(Path(file).read_text("utf-8").splitlines())
    message = refused("run", "small.yaml")
    assert f"label 'poss' ({file}:{line}) is not in the label list ['neg', 'pos']; did you mean 'pos'?" in message
    assert not list(Path("runs").rglob("step-*"))


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a world where everything was run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_start_that_does_not_fit(copied: Path) -> None:
    start = ["text.yaml", "stages.pretrain.init=runs/small/tapt"]
    message = refused("run", *start, "model.width=64")
    assert "checkpoint runs/small/tapt is of another shape than the recipe's roberta/tiny: width 32, not 64" in message
    assert "is a roberta model, and the recipe's system is bert/tiny" in refused("run", *start, "system=bert/tiny")
    message = refused("run", *start, "tokenizer.lowercase=false")
    assert "runs/small/tapt was trained with another tokenizer" in message and "leave `tokenizer` out" in message
    Shards.open("runs/small/shards/general/train", fingerprint=Shards.open("runs/small/shards/task/test").meta["tokenizer"])
    with pytest.raises(UserError, match="were made with another tokenizer"):
        Shards.open("runs/small/shards/general/train", fingerprint="0" * 64)


def test_a_flipped_bit_in_the_shards_is_not_trained_on(world: Path) -> None:
    accepted("prepare", "text.yaml")
    ids = Path("runs/text/shards/general/train/text.ids.bin")
    damaged = bytearray(ids.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    ids.write_bytes(damaged)
    message = refused("run", "text.yaml")
    assert f"{ids} is damaged" in message and "delete the folder and run prepare again" in message
    assert not list(Path("runs/text").glob("*/step-*"))
    shutil.rmtree("runs/text/shards/general/train")
    accepted("run", "text.yaml")


def test_a_damaged_folder_to_start_from(copied: Path) -> None:
    start = ["text.yaml", "stages.pretrain.init=hf"]
    shutil.copytree("runs/small/tapt/hf", "hf")
    weights = Path("hf/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-500])
    assert "cannot read hf/model.safetensors" in refused("run", *start)
    weights.rename("hf/pytorch_model.bin")
    assert "only safetensors are read" in refused("run", *start)
    Path("hf/config.json").write_text("{", "utf-8")
    assert "cannot read hf/config.json" in refused("run", *start)
    newest = max(Path("runs/small/tapt").glob("step-*"))
    for folder in Path("runs/small/tapt").glob("step-*"):
        (folder / "MANIFEST.json").unlink()
    assert "runs/small/tapt is not a checkpoint and holds none that is whole" in ziggurat("try", "runs/small/tapt", "a").stderr
    assert newest.name in refused("try", str(newest), "a")


def test_questions_a_checkpoint_cannot_answer(copied: Path) -> None:
    assert "there is no mask to fill in the text" in refused("try", "runs/small/tapt", "no mask here")
    other = "stages.finetune.objective={kind: classify, labels: [pos, neg]}"
    assert "was trained for the labels ['neg', 'pos']" in refused("evaluate", "runs/small/finetune", "small.yaml", other)
    message = refused("evaluate", "runs/small/finetune", "text.yaml")
    assert "no stage of recipe text asks what runs/small/finetune" in message and "classify" in message


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`full("report.html")`: no byte of such a file fits on the disk any more; `full("")`: there is room again."""
    real, pattern = os.fsync, ""

    def fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        if pattern and re.search(pattern, os.readlink(f"/proc/self/fd/{number}")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    def arrange(what: str) -> None:
        nonlocal pattern
        pattern = what

    monkeypatch.setattr(os, "fsync", fsync)
    return arrange


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see which file is written")
def test_a_full_disk(world: Path, finished: Path, full: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it happens, the same command goes on when there is room, to the same bits."""
    places = [
        r"shards/general/train",
        r"train\.json",
        r"stage\.json",
        r"pretrain/tmp-step-0+6",
        r"dapt/outcome\.json",
        r"finetune/predictions\.json",
        r"report\.json",
    ]
    whole: dict[str, bytes] = {}
    for place in places:
        full(place)
        message = refused("run", "small.yaml", "worth=false")
        assert re.search("disk is full|No space left", message) and "same command" in message
        now = fingerprint(Path("runs/small"))
        card = ("/spec.json", "/MANIFEST.json")  # a finished stage's scores are written into the card of its checkpoint
        kept = {name: content for name, content in whole.items() if name in now and not name.endswith(card)}
        assert all(now[name] == content for name, content in kept.items())
        whole = now
    full("")
    with monkeypatch.context() as patch:

        def write(self: Any, *line: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(Metrics, "write", write)
        assert "No space left" in refused("run", "small.yaml", "worth=false", "name=other")
    accepted("run", "small.yaml", "worth=false")
    for stage in ("pretrain", "dapt", "tapt", "finetune"):
        newest = max((finished / "runs/small" / stage).glob("step-*")) / "model.safetensors"
        assert newest.read_bytes() == (world / newest.relative_to(finished)).read_bytes()


def test_a_folder_that_cannot_be_written(world: Path) -> None:
    Path("runs").write_text("not a folder", "utf-8")
    assert "runs/small" in refused("run", "small.yaml")
    Path("runs").unlink()
    Path("runs/small").mkdir(parents=True)
    Path("runs/small/tokenizer").write_text("not a folder", "utf-8")
    assert "runs/small/tokenizer" in refused("run", "small.yaml")


def test_two_at_once(world: Path) -> None:
    from ziggurat.pipeline.session import session

    with session(Path("runs/small")):
        message = refused("prepare", "small.yaml")
    assert f"another process ({os.getpid()}) is at work in runs/small" in message
    accepted("prepare", "small.yaml")


def test_what_is_not_installed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.pipeline.run.find_spec", lambda name: None)
    message = refused("run", "small.yaml", "tensorboard=true")
    assert "ziggurat[tensorboard]" in message and not list(Path("runs").rglob("shards"))

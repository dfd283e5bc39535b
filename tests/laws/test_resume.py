"""A run that was killed and started again ends with the bits of a run that was not; on a signal it saves and stops."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ziggurat
from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import Stopped, UserError
from ziggurat.log import read_metrics
from ziggurat.pipeline import prepare as preparing
from ziggurat.pipeline.run import run
from ziggurat.pipeline.session import Signals
from ziggurat.train import loop

STAGES = ("pretrain", "dapt", "tapt", "finetune")
ALONE = ["worth=false"]
TIMES = ("tokens_per_second", "seconds", "evaluation_seconds")


class Killed(BaseException):
    pass


def killed() -> None:
    raise Killed


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`at_step(n, what)`: do `what` in the middle of the n-th optimiser step from now on, gradients being there already."""
    real = loop.backward

    def arrange(n: int, what: Callable[[], None]) -> None:
        left = n

        def backward(*args: Any) -> dict[str, float]:
            nonlocal left
            means = real(*args)
            left -= 1
            if left == 0:
                what()
            return means

        monkeypatch.setattr(loop, "backward", backward)

    return arrange


def steps(world: Path) -> dict[str, int]:
    return {s: json.loads((world / "runs/small" / s / "outcome.json").read_text("utf-8"))["steps"] for s in STAGES}


def bits(world: Path) -> dict[str, bytes]:
    """The final weights of every stage."""
    runs = world / "runs/small"
    return {s: (checkpoints.at(runs / s, n) / "model.safetensors").read_bytes() for s, n in steps(world).items()}


def numbers(world: Path) -> dict[str, list[dict[str, Any]]]:
    """The metrics of every stage, without what the clock says."""
    lines = {s: read_metrics(world / "runs/small" / s / "metrics.jsonl") for s in STAGES}
    return {s: [{k: v for k, v in line.items() if k not in TIMES} for line in found] for s, found in lines.items()}


def scores(world: Path) -> list[Any]:
    report = json.loads((world / "runs/small/report.json").read_text("utf-8"))
    stages = [{k: v for k, v in stage.items() if k not in TIMES} for stage in report["stages"]]
    return [stages, (world / "runs/small/finetune/predictions.json").read_text("utf-8")]


def same(world: Path, straight: Path) -> None:
    assert steps(world) == steps(straight)
    assert numbers(world) == numbers(straight)
    assert bits(world) == bits(straight)
    assert scores(world) == scores(straight)


def places(straight: Path, inside: dict[str, int]) -> Iterator[int]:
    """Optimiser steps from one interruption to the next, for interruptions at these steps of the stages. After the first,
    a run goes on from the last checkpoint (every third step) before it was killed."""
    before, total = 0, 0
    for stage, n in steps(straight).items():
        yield total + inside[stage] - before
        before, total = total + (inside[stage] - 1) // 3 * 3, total + n


@pytest.mark.parametrize(
    "inside", [{"pretrain": 5, "dapt": 4, "tapt": 7, "finetune": 5}, {"pretrain": 1, "dapt": 9, "tapt": 5, "finetune": 2}]
)
def test_killed_in_every_stage(world: Path, finished: Path, at_step: Any, inside: dict[str, int]) -> None:
    for stage, n in zip(STAGES, places(finished, inside), strict=True):
        with pytest.raises(Killed):
            at_step(n, killed)
            run("small.yaml", ALONE)
        assert sorted(p.parent.name for p in world.glob("runs/small/*/DONE")) == sorted(STAGES[: STAGES.index(stage)])
        kept = inside[stage] - 1 - (inside[stage] - 1) % 3
        assert (kept > 0) == checkpoints.at(world / "runs/small" / stage, kept).exists()
    at_step(0, killed)
    run("small.yaml", ALONE)
    same(world, finished)
    for stage in STAGES:  # the law is about something: text was read more than once, and each kind of line is there
        assert any("heldout" in key for line in numbers(finished)[stage] for key in line) == (stage != "finetune")
    assert steps(finished)["tapt"] > 3


def test_terminated_in_every_stage(world: Path, finished: Path, at_step: Any) -> None:
    """By a true signal: nothing is lost, so the next run begins with the step after."""
    total = 0
    for stage, n in steps(finished).items():
        at_step(total + 2, terminated)
        with pytest.raises(Stopped) as stopped:
            run("small.yaml", ALONE)
        assert stopped.value.code == 143
        found = checkpoints.latest(world / "runs/small" / stage)
        assert found is not None and found.name == "step-00000002"
        total = n - 2
    at_step(0, terminated)
    run("small.yaml", ALONE)
    same(world, finished)


def test_stopped_while_tokenizing(world: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = preparing.counted
    seen: list[str] = []

    def counted(what: str, items: Any) -> Iterator[Any]:
        for n, item in enumerate(real(what, items)):
            if n == 7 and what not in seen:
                seen.append(what)
                os.kill(os.getpid(), signal.SIGINT)
            yield item

    monkeypatch.setattr(preparing, "counted", counted)
    for _ in range(3):
        with pytest.raises(Stopped) as stopped:
            run("small.yaml", ALONE)
        assert stopped.value.code == 130
        assert not list(world.rglob("*.writing")) and not list(world.rglob("*.part"))
    assert seen == ["reading text for the tokenizer", "tokenizing general/train", "tokenizing domain/train"]
    monkeypatch.setattr(preparing, "counted", real)
    run("small.yaml", ALONE)
    same(world, finished)


@pytest.mark.parametrize("name, code, saved", [("SIGKILL", -9, "step-00000003"), ("SIGTERM", 143, "step-00000005")])
def test_a_process_of_its_own(world: Path, finished: Path, name: str, code: int, saved: str) -> None:
    script = (
        "import os, signal\nfrom ziggurat import cli\nfrom ziggurat.train import loop\nreal, seen = loop.backward, []\n"
        "def backward(*args):\n    seen.append(1)\n    means = real(*args)\n"
        f"    if len(seen) == 5: os.kill(os.getpid(), signal.{name})\n    return means\n"
        "loop.backward = backward\ncli.app(['run', 'small.yaml', 'worth=false'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(ziggurat.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == code, done.stderr
    found = checkpoints.latest(world / "runs/small/pretrain")
    assert found is not None and found.name == saved
    if name == "SIGTERM":
        assert done.stderr.endswith("stopped; the same command continues from here\n") and "Traceback" not in done.stderr
    run("small.yaml", ALONE)
    same(world, finished)


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    signals = Signals()
    with pytest.raises(SystemExit) as left, signals.held() as asked:
        assert not asked()
        signals.take(signal.SIGTERM)
        assert asked()
        signals.take(signal.SIGINT)
    assert left.value.code == 130
    with pytest.raises(Stopped):  # outside of a loop there is nothing to wait for
        Signals().take(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, Signals().held():
        raise Stopped
    assert stopped.value.code in (128, 130)


def test_a_flipped_byte(world: Path, finished: Path, at_step: Any) -> None:
    """In the newest checkpoint of a stage that was killed, and in the last one of a stage that is done."""
    with pytest.raises(Killed):
        at_step(steps(finished)["pretrain"] + 8, killed)
        run("small.yaml", ALONE)
    at_step(0, killed)
    damaged = [world / "runs/small/dapt/step-00000006", world / "runs/small/pretrain/step-00000009"]
    for folder in damaged:
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)
    said = logging.getLogger("ziggurat")
    handler = logging.StreamHandler(stream := io.StringIO())
    said.addHandler(handler)
    run("small.yaml", ALONE)
    said.removeHandler(handler)
    for folder in damaged:
        assert f"passing over the damaged checkpoint {folder.relative_to(world)}: model.safetensors" in stream.getvalue()
    same(world, finished)


def test_a_time_budget_is_final(world: Path, at_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = ["worth=false", "stages.pretrain.time=1s"]
    monkeypatch.setattr(loop, "timed", lambda *args, **limits: [(1 / 7, 1)])
    with pytest.raises(Killed):
        at_step(4, killed)
        run("small.yaml", budget)
    written = json.loads((world / "runs/small/pretrain/budget.json").read_text("utf-8"))
    assert written == {"steps": 7, "seconds": 1.0, "seconds_per_step": 1 / 7}
    monkeypatch.setattr(loop, "timed", None)  # not asked again
    with pytest.raises(Killed):
        at_step(6, killed)
        run("small.yaml", budget)
    assert json.loads((world / "runs/small/pretrain/outcome.json").read_text("utf-8"))["steps"] == 7


def test_a_stage_that_was_begun_keeps_its_settings(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    whole = bits(tmp_path)
    with pytest.raises(UserError) as error:
        run("small.yaml", ["stages.dapt.optim.lr=0.5", "worth=false"])
    assert "runs/small/dapt was begun with other settings:\n  stage.optim.lr: was 0.001, is 0.5" in str(error.value)
    with pytest.raises(UserError, match=r"runs/small/pretrain .*\n.*seed: was 0, is 5"):
        run("small.yaml", ["seed=5"])
    assert bits(tmp_path) == whole
    text = Path("small.yaml").read_text("utf-8")
    more = "  - {stage: tapt, name: more, data: {domain: 1, extra: 1}, init: tapt, steps: 3}\nworth: false"
    text = text.replace("worth: {seeds: [0, 1]}", more).replace("  task:", "  extra: {path: extra.txt}\n  task:")
    Path("extra.txt").write_text("a new text of river stone 山水\n\nanother one with paper and garden\n" * 3, "utf-8")
    Path("small.yaml").write_text(text, "utf-8")
    run("small.yaml")
    assert bits(tmp_path) == whole
    assert (tmp_path / "runs/small/more/DONE").exists()

"""Metrics that survive crashes, sinks, log lines from one rank, and a progress bar without a terminal."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ziggurat import log
from ziggurat.errors import UserError
from ziggurat.log import Metrics, ProgressBar, duration, read_metrics, tensorboard


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "metrics.jsonl"
    with Metrics(path) as metrics:
        metrics.write(10, {"loss": np.float32(2.5), "source": "通用"})
        assert json.loads(path.read_text("utf-8")) == {"step": 10, "loss": 2.5, "source": "通用"}


def test_no_step_stands_twice_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        for step in (10, 20, 30, 40):
            metrics.write(step, {"loss": step})
    with path.open("a") as file:
        file.write('{"step": 50, "lo')  # killed while writing
    with Metrics(path, after=20) as metrics:
        assert [m["step"] for m in read_metrics(path)] == [10, 20]
        metrics.write(30, {"loss": -1})
    assert [(m["step"], m["loss"]) for m in read_metrics(path)] == [(10, 10), (20, 20), (30, -1)]
    with Metrics(path):
        pass
    assert read_metrics(path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.write(1, {"loss": float("nan"), "by": {"a": [np.float64("inf"), 1]}})
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1, "loss": None, "by": {"a": [None, 1]}}]


def test_sinks_get_every_step(tmp_path: Path) -> None:
    seen: list[Any] = []
    with Metrics(tmp_path / "m.jsonl", sinks=[lambda step, numbers: seen.append((step, dict(numbers)))]) as metrics:
        metrics.write(3, {"loss": np.float32(0.5)})
    assert seen == [(3, {"loss": 0.5})]


def test_tensorboard_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"ziggurat\[tensorboard\]"):
        tensorboard(tmp_path)


def test_only_rank_0_talks(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("ziggurat.train.something")
    try:
        log.setup(rank=0)
        log.setup(rank=0)
        logger.info("from zero")
        log.setup(rank=1)
        logger.info("from one")
        logger.warning("trouble")
    finally:
        root = logging.getLogger("ziggurat")
        root.handlers.clear()
        root.propagate = True
    err = capsys.readouterr().err
    assert err.count("from zero") == 1
    assert "from one" not in err and "rank 1: trouble" in err


def test_progress_without_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    with caplog.at_level(logging.INFO, "ziggurat"), ProgressBar("dapt", 100, start=20, every=30, clock=lambda: now[0]) as bar:
        for step in range(30, 101, 10):
            now[0] += 10
            bar.show(step, {"loss": 4.0, "tokens_per_second": 9600})
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "dapt 30/100 (30%)  loss 4.000  9,600 tokens/s  1m10s left"  # 70 steps at a step a second
    assert [line.split()[1] for line in lines] == ["30/100", "60/100", "90/100", "100/100"]
    assert lines[-1].endswith("0s left")


def test_durations_for_people() -> None:
    assert [duration(s) for s in (0.4, 59, 725, 11220, -1)] == ["0s", "59s", "12m05s", "3h07m", "0s"]

"""What a stage is said to hold in memory while it trains, against what it holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.masked import Masked
from ziggurat.train import probe, retention
from ziggurat.train.distill import Distilled
from ziggurat.train.retention import Retention
from ziggurat.train.stage import Stage


def beside(kept: Retention) -> int:
    """Bytes of the tensors that a stage's means hold, each storage once, the network's own not."""
    held: list[Any] = [one for pair in kept.pull.held.values() for one in pair] if kept.pull is not None else []
    held += kept.objective.teacher.parameters() if isinstance(kept.objective, Distilled) else []
    own = {p.untyped_storage().data_ptr() for p in kept.network.parameters()}
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if isinstance(t, torch.Tensor)}
    return sum(size for place, size in found.items() if place not in own)


@pytest.mark.parametrize(
    ("means", "copies"),
    [
        ({}, 0),
        ({"anchor": {"l2": 3}}, 1),
        ({"anchor": {"ewc": 30}}, 2),
        ({"anchor": {"l2": 3, "ewc": 30}}, 2),
        ({"distill": {}}, 1),
        ({"distill": {}, "anchor": {"ewc": 30}}, 3),
        ({"distill": {}, "anchor": {"l2": 3}, "freeze": {"layers": 1}}, None),
    ],
)
def test_copies_of_the_start(monkeypatch: pytest.MonkeyPatch, means: dict[str, Any], copies: int | None) -> None:
    """Of all weights, or, with frozen ones, a teacher of all and an anchor of the others."""
    model = spec.Single(vocab=50, width=16, layers=2, heads=2, mlp=32)
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()}))
    monkeypatch.setattr(retention, "_fisher", lambda *args: {n: torch.ones_like(p) for n, p in network.named_parameters()})
    stage = Stage.model_validate({"stage": "dapt", "data": "text", **means})
    job: Any = SimpleNamespace(stage=stage, seed=0)
    ctx: Any = None
    more = beside(Retention(Path("nowhere"), job, network, Masked(), ctx, []))
    count = network.parameter_count()
    found = probe._held(network, count, stage)
    assert found.parameters - probe.FLOAT * count == more
    assert copies is None or more == copies * probe.FLOAT * count

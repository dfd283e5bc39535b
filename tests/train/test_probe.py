"""What a stage is said to hold in memory while it trains, against what it holds."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.masked import Masked
from ziggurat.train import probe, retention
from ziggurat.train.retention import Retention
from ziggurat.train.stage import Stage


def alive() -> dict[int, torch.Tensor]:
    """All tensors that there are, one for each storage, by its place."""
    gc.collect()
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and one.device.type == "cpu"]
    return {tensor.untyped_storage().data_ptr(): tensor for tensor in found}


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
    before = alive()
    kept = Retention(Path("nowhere"), job, network, Masked(), ctx, [])
    more = sum(tensor.untyped_storage().nbytes() for place, tensor in alive().items() if place not in before)
    count = network.parameter_count()
    found = probe._held(network, count, stage)
    assert kept is not None and found.parameters - probe.FLOAT * count == more
    assert copies is None or more == copies * probe.FLOAT * count

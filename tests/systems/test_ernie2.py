"""ERNIE 2.0: task numbers ride on segment numbers, and the Hub's class says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ziggurat.nn.network import NetworkModel
from ziggurat.systems.hub import from_hub, to_hub
from ziggurat.types import Stream, Visibility

transformers = pytest.importorskip("transformers")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}


@pytest.mark.parametrize("name", ["ErnieForPreTraining", "ErnieForMaskedLM", "ErnieModel"])
@torch.no_grad()
def test_task_ids_go_both_ways(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    theirs = cls(cls.config_class(**SHAPE, use_task_id=True, task_type_vocab_size=4, type_vocab_size=3)).eval()
    for p in theirs.parameters():
        p += 0.25 * torch.randn(p.shape)
    theirs.save_pretrained(tmp_path / "theirs")
    found = from_hub(tmp_path / "theirs")
    assert found.system == "ernie2" and found.network.model.embed.tasks == 4
    net = NetworkModel(found.network).eval()
    net.load_state_dict(found.tensors)

    rng = np.random.default_rng(0)
    ids, kinds, tasks = (torch.tensor(rng.integers(0, n, (1, 20))) for n in (50, 3, 4))
    at = torch.arange(20)
    stream = Stream(ids[0].int(), torch.tensor([0, 20]), at.int(), (3 * tasks + kinds)[0].int(), Visibility("full"))
    ours = net({"text": stream})["text"]
    to_hub(found.network, net.state_dict(), None, found.system, tmp_path / "ours", ids={"pad_token_id": 0})
    again = cls.from_pretrained(tmp_path / "ours").eval()
    for model in (theirs, again):
        body = getattr(model, "ernie", model)
        other = body(input_ids=ids, token_type_ids=kinds, task_type_ids=tasks).last_hidden_state[0]
        assert (other.max(0).values - other.min(0).values).max() >= 1
        assert (ours - other).abs().max() <= 1e-4

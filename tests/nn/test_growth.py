"""More rows: what was there stays to the bit, new rows are means of their pieces, in every table and bias of every structure."""

from __future__ import annotations

import pytest
import torch

from ziggurat.nn import spec
from ziggurat.nn.growth import grown, vocabulary_tensors
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import model_of

DIALS = {"layers": 1, "width": 32, "heads": 2, "mlp": 64}
TABLES = {
    "bert": {"model.embed.token.weight", "heads.lm.bias"},
    "gpt2": {"model.embed.token.weight"},
    "t5_1_1": {"model.token.weight", "heads.lm.table"},
    "bart": {"model.token.weight", "heads.lm.bias"},
    "electra": {"model.discriminator.embed.token.weight", "heads.lm.bias"},
    "albert": {"model.embed.token.weight", "heads.lm.bias"},
}


@pytest.mark.parametrize("system", TABLES)
@pytest.mark.parametrize("size", [52, 40], ids=["longer", "spare rows"])
def test_rows(system: str, size: int) -> None:
    network = spec.Network(model=model_of(f"{system}/tiny", DIALS, 50), heads={"lm": spec.VocabHead()})
    ours = NetworkModel(network)
    ours.initialise(torch.Generator().manual_seed(0))
    for p in ours.parameters():
        p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    assert vocabulary_tensors(network) == TABLES[system]
    before = ours.state_dict()
    rows = {size - 2: (3, 7, 7), size - 1: (9,)}
    larger, after = grown(network, before, rows, size)
    assert larger.model.vocab == max(50, size)
    NetworkModel(larger).load_state_dict(after)
    for name, tensor in before.items():
        if name not in TABLES[system]:
            assert torch.equal(after[name], tensor)
            continue
        kept = [n for n in range(50) if n not in rows]
        assert torch.equal(after[name][kept], tensor[kept])
        assert torch.allclose(after[name][size - 2], (tensor[3] + 2 * tensor[7]) / 3)
        assert torch.equal(after[name][size - 1], tensor[9])

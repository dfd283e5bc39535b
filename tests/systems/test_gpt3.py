"""GPT-3's alternating layers: every other one sees a band of the past, and nothing further away reaches it there."""

from __future__ import annotations

import torch

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.gpt3 import BAND
from ziggurat.types import Stream, Visibility


def test_layers_alternate() -> None:
    net = NetworkModel(spec.Network(model=model_of("gpt3/tiny", {"layers": 5, "width": 64}, 40)))
    assert [block.attention.window for block in net.model.order] == [None, BAND - 1, None, BAND - 1, None]


@torch.no_grad()
def test_the_band_is_256_tokens_with_the_token_itself() -> None:
    """Of the banded layer alone: moving a token changes the rows from it up to 255 behind it, and no other."""
    net = NetworkModel(spec.Network(model=model_of("gpt3/tiny", {"layers": 2, "width": 64}, 40))).eval().double()
    net.initialise(torch.Generator().manual_seed(0))
    n, moved = 600, 100
    stream = Stream(
        torch.zeros(n, dtype=torch.int32), torch.tensor([0, n]), torch.arange(n).int(), torch.zeros(n, dtype=torch.int32),
        Visibility("causal"),
    )  # fmt: skip
    from ziggurat.nn.visibility import plan

    layer, x = net.model.order[1], torch.randn(n, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = layer(x, plan(stream))
    x[moved, 0] += 1
    changed = (layer(x, plan(stream)) != before).any(1).nonzero().flatten().tolist()
    assert changed == list(range(moved, moved + BAND))


def test_sizes_are_those_of_the_paper() -> None:
    """Heads of the printed width, but for the two entries that cannot be right."""
    widths = {"small": 64, "medium": 64, "large": 96, "xl": 128, "2.7b": 80, "6.7b": 128, "13b": 128, "175b": 128}
    for size, width in widths.items():
        dials = SYSTEMS["gpt3"].sizes[size]
        assert dials["width"] == width * dials["heads"] and dials["mlp"] == 4 * dials["width"]

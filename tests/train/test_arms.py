"""What a stage means of its model, and the model does not have."""

from __future__ import annotations

from typing import Any

import pytest

from ziggurat.nn import spec
from ziggurat.nn.parts import Mlp, Share
from ziggurat.train.arms import lacking
from ziggurat.train.stage import Stage

ONE = spec.Single(vocab=40, width=16, layers=3, heads=2, mlp=32)
SHARED = ONE.model_copy(update={"share": Share(groups=2)})
GATED = ONE.model_copy(update={"block": spec.Block(mlp=Mlp(gated=True))})
PAIR = spec.EncoderDecoder(vocab=40, width=16, layers=2, decoder_layers=3, heads=2, mlp=32)
BOTH = spec.Adversaries(discriminator=ONE, generator=spec.Dials(layers=1, width=8, heads=2, mlp=16))


@pytest.mark.parametrize(("model", "layers"), [(ONE, 3), (SHARED, 2), (GATED, 3), (PAIR, 5), (BOTH, 3)])
def test_layers(model: spec.Model, layers: int) -> None:
    """Layers as they are frozen: shared ones once, a decoder's above its encoder's."""
    assert list(lacking(stage(freeze={"layers": layers}), model)) == []
    ((field, message, hint),) = lacking(stage(freeze={"layers": layers + 1}), model)
    assert (field, message) == ("freeze", f"there are {layers} layers, not {layers + 1}") and f"layers: {layers}" in hint


@pytest.mark.parametrize("model", [ONE, SHARED, PAIR, BOTH])
def test_each_matrix_for_itself(model: spec.Model) -> None:
    assert list(lacking(stage(lora={"targets": ["q", "k", "v", "out", "up", "down"]}), model)) == []
    ((field, message, hint),) = lacking(stage(lora={"targets": ["q", "gate"]}), model)
    assert (field, message, hint) == ("lora", "the model has no matrices 'gate'", "targets: q, k, v, out, up, down")
    assert list(lacking(stage(lora={"targets": ["gate"]}), GATED)) == []


def stage(**fields: Any) -> Stage:
    return Stage.model_validate({"stage": "dapt", "data": "text", **fields})

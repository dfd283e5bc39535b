"""What a stage means of its model, and the model does not have."""

from __future__ import annotations

from typing import Any

import pytest

from ziggurat.nn import spec
from ziggurat.nn.parts import Mlp, Share
from ziggurat.train.arms import headless, lacking, problems
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


def test_something_is_left_to_train() -> None:
    """GPT-2's head is the table of its embeddings; BERT's has weights of its own."""
    tied = ONE.model_copy(update={"visibility": "causal", "project": spec.VocabProjection(transform=False, bias=False)})
    everything = {"freeze": {"layers": 3}}
    ((field, message, _),) = lacking(stage(objective={"kind": "clm"}, **everything), tied)
    assert field == "freeze" and "nothing is left to train" in message
    assert list(lacking(stage(objective={"kind": "clm"}, freeze={"layers": 3, "embeddings": False}), tied)) == []
    assert list(lacking(stage(objective={"kind": "mlm"}, **everything), ONE)) == []


@pytest.mark.parametrize("model", [ONE, SHARED, PAIR, BOTH])
def test_each_matrix_for_itself(model: spec.Model) -> None:
    assert list(lacking(stage(lora={"targets": ["q", "k", "v", "out", "up", "down"]}), model)) == []
    ((field, message, hint),) = lacking(stage(lora={"targets": ["q", "gate"]}), model)
    assert (field, message, hint) == ("lora", "the model has no matrices 'gate'", "targets: q, k, v, out, up, down")
    assert list(lacking(stage(lora={"targets": ["gate"]}), GATED)) == []


def test_a_head_without_weights_is_never_new() -> None:
    words, means = {"lm": spec.VocabHead()}, {"distill": {}, "anchor": {"ewc": 1}, "interpolate": 0.5}
    asking = stage(objective={"kind": "mlm"}, forgetting={"stop": True}, **means)
    plain = ONE.model_copy(update={"project": spec.VocabProjection(transform=False, bias=False)})
    assert list(headless(asking, plain, {})) == list(headless(asking, ONE, words)) == []
    assert {field for field, _, _ in headless(asking, ONE, {})} == {"interpolate", "forgetting", "distill", "anchor"}
    assert list(headless(stage(objective={"kind": "mlm"}, anchor={"l2": 1}, forgetting={}), ONE, {})) == []


def test_a_stop_without_a_start() -> None:
    stopping = stage(init="scratch", forgetting={"stop": True, "general": "text"}, evaluate={"every": 2})
    assert ("forgetting", "needs weights to start from, and this stage starts from scratch") in list(problems(stopping, {}))


def stage(**fields: Any) -> Stage:
    return Stage.model_validate({"stage": "dapt", "data": "text", **fields})

"""NEZHA against its paper written out slowly, packed and not; and folders in the layout of transformers 4."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from singles import SPREAD, TOLERANCE, documents, load, scores, shake, stream_of
from torch import Tensor

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import from_hub, to_hub

VOCAB, HEADS, LENGTHS = 67, 4, (150, 3, 65, 64, 1, 129)
DIALS = {"layers": 3, "width": 64, "heads": HEADS, "mlp": 96}
HEADS_OF = {
    "NezhaForPreTraining": ("lm", "nsp"), "NezhaForMaskedLM": ("lm",), "NezhaForNextSentencePrediction": ("nsp",),
    "NezhaForSequenceClassification": ("classify",), "NezhaForMultipleChoice": ("choice",),
    "NezhaForTokenClassification": ("tag",), "NezhaForQuestionAnswering": ("span",), "NezhaModel": (),
}  # fmt: skip
"""The classes of transformers 4."""


def network_of(*names: str) -> NetworkModel:
    model = model_of("nezha/tiny", DIALS, VOCAB)
    heads: dict[str, spec.Head] = {}
    for name in names:
        if name == "lm":
            heads["lm"] = spec.VocabHead()
        elif name in ("tag", "span"):
            heads[name] = spec.TokenHead(outputs=2)
        else:
            heads |= spec.class_heads(model, name, 1 if name == "choice" else 2)
    network = NetworkModel(spec.Network(model=model, heads=heads or {"pooler": spec.PoolerHead()})).eval()
    network.initialise(torch.Generator().manual_seed(0))  # not by what other tests have left of torch's own generator
    shake(network, 1)
    return network


def vector(distance: int, dim: int, clip: int = 64) -> list[float]:
    """a_ij of section 2.1: sines at even numbers, cosines at odd ones, of the clipped distance."""
    p = max(-clip, min(clip, distance)) + clip
    return [(math.cos if m % 2 else math.sin)(p / 10_000 ** (2 * (m // 2) / dim)) for m in range(dim)]


@torch.no_grad()
def oracle(network: NetworkModel, ids: Tensor, segment: Tensor, clip: int = 64) -> Tensor:
    """One document's scores over the vocabulary [T, V] in float64."""
    w = {name: p.double() for name, p in network.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    n, dim = len(ids), DIALS["width"] // HEADS
    known = {d: vector(d, dim, clip) for d in range(-n, n)}
    a = torch.tensor([[known[j - i] for j in range(n)] for i in range(n)], dtype=torch.float64)  # [query, key, dim]
    x = norm("model.embed.norm", w["model.embed.token.weight"][ids] + w["model.embed.segment.weight"][segment])
    for i in range(DIALS["layers"]):
        at = f"model.blocks.{i}"
        q, k, v = (linear(f"{at}.attention.{name}", x).view(n, HEADS, dim) for name in "qkv")
        mixed = []
        for h in range(HEADS):
            score = (q[:, None, h] * (k[None, :, h] + a)).sum(-1) / math.sqrt(dim)
            mixed.append((score.softmax(-1)[..., None] * (v[None, :, h] + a)).sum(1))
        x = norm(f"{at}.attention_norm", x + linear(f"{at}.attention.out", torch.cat(mixed, -1)))
        x = norm(f"{at}.mlp_norm", x + linear(f"{at}.mlp.down", F.gelu(linear(f"{at}.mlp.up", x))))
    x = norm("heads.lm.norm", F.gelu(linear("heads.lm.dense", x)))
    return x @ w["model.embed.token.weight"].T + w["heads.lm.bias"]


@pytest.mark.parametrize(("lengths", "row"), [(LENGTHS, 0), ((150, 10, 90, 70, 160), 160)], ids=["ragged", "packed"])
def test_the_papers_rule(lengths: tuple[int, ...], row: int) -> None:
    network, ids = network_of("lm"), documents(lengths, VOCAB)
    segment = [(torch.arange(n) >= n // 2).long() for n in lengths]
    stream = replace(stream_of(ids, "full", segment), row=row)
    ours = scores(network, stream)["lm"]
    right = torch.cat([oracle(network, x, s) for x, s in zip(ids, segment, strict=True)])
    assert (right.max(0).values - right.min(0).values).max() >= SPREAD
    assert (ours - right).abs().max() <= TOLERANCE
    other = torch.cat([oracle(network, x, s, clip=63) for x, s in zip(ids, segment, strict=True)])
    assert (ours - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", HEADS_OF)
def test_every_class_there_and_back(name: str, tmp_path: Path) -> None:
    """With the tables of sines that the files of transformers 4 carry, and in their names."""
    network = network_of(*HEADS_OF[name])
    made = to_hub(network.spec, network.state_dict(), None, None, tmp_path, architecture=name)
    assert made.architecture == name and "no class for nezha" in made.notes[0]
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["model_type"] == "nezha" and config["max_relative_position"] == 64 and config["use_relative_position"] is True
    stored = load_file(tmp_path / "model.safetensors")
    prefix = "" if name == "NezhaModel" else "nezha."
    assert not any("position" in key for key in stored) and f"{prefix}encoder.layer.2.attention.self.query.weight" in stored
    for i in range(3):
        stored[f"{prefix}encoder.layer.{i}.attention.self.relative_positions_encoding.positions_encoding"] = torch.zeros(9, 9, 16)
    save_file(stored, tmp_path / "model.safetensors")
    found = from_hub(tmp_path)
    assert found.system == "nezha" and found.network == network.spec
    state = network.state_dict()
    assert found.tensors.keys() == state.keys() and all(torch.equal(state[k], t) for k, t in found.tensors.items())
    stream = stream_of(documents(LENGTHS, VOCAB), "full")
    assert torch.equal(scores(load(found), stream)["hidden"], scores(network, stream)["hidden"])


def test_the_historical_classes() -> None:
    assert set(SYSTEMS["nezha"].classes) == set(HEADS_OF)

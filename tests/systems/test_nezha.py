"""NEZHA against the paper's formula written out: absolute distances, clipped, as fixed sines on keys and on values; and its old files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import from_hub, to_hub
from ziggurat.types import Stream, Visibility

LENGTHS, VOCAB, WIDTH, HEADS, CLIP = (150, 3, 90, 1, 30), 50, 32, 4, 64


def network() -> NetworkModel:
    model = model_of("nezha/tiny", {"layers": 3, "width": WIDTH, "heads": HEADS, "mlp": 48}, VOCAB)
    net = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead(), **spec.class_heads(model, "nsp", 2)})).eval()
    net.initialise(torch.Generator().manual_seed(0))
    for i, p in enumerate(net.parameters()):
        p.data += 0.25 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return net


def table(longest: int, dim: int) -> Tensor:
    """a[i, j]: sin(p / 10000^(2m / dim)) at even places, the cosine at odd ones, of p = clip(j - i, -64, 64) + 64."""
    a = torch.zeros(longest, longest, dim, dtype=torch.float64)
    for i in range(longest):
        for j in range(longest):
            p = max(-CLIP, min(CLIP, j - i)) + CLIP
            for m in range(dim // 2):
                angle = p / 10_000 ** (2 * m / dim)
                a[i, j, 2 * m], a[i, j, 2 * m + 1] = math.sin(angle), math.cos(angle)
    return a


def slow(state: dict[str, Tensor], ids: Tensor, kinds: Tensor, relation: Tensor) -> Tensor:
    """Logits over the vocabulary of one document, float64."""
    s = {name: tensor.double() for name, tensor in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-12)

    n, dim = len(ids), WIDTH // HEADS
    a = relation[:n, :n]
    x = norm("model.embed.norm", s["model.embed.token.weight"][ids] + s["model.embed.segment.weight"][kinds])
    for layer in range(3):
        b = f"model.blocks.{layer}"
        q, k, v = (linear(f"{b}.attention.{w}", x).view(n, HEADS, dim) for w in "qkv")
        score = (torch.einsum("ihd,jhd->hij", q, k) + torch.einsum("ihd,ijd->hij", q, a)) / math.sqrt(dim)
        p = score.softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", p, v) + torch.einsum("hij,ijd->ihd", p, a)
        x = norm(f"{b}.attention_norm", x + linear(f"{b}.attention.out", mixed.reshape(n, WIDTH)))
        x = norm(f"{b}.mlp_norm", x + linear(f"{b}.mlp.down", torch.nn.functional.gelu(linear(f"{b}.mlp.up", x))))
    x = norm("heads.lm.norm", torch.nn.functional.gelu(linear("heads.lm.dense", x)))
    return x @ s["model.embed.token.weight"].T + s["heads.lm.bias"]


@pytest.mark.parametrize("row", [0, 160], ids=["ragged", "packed"])
@torch.no_grad()
def test_logits_are_the_papers(row: int) -> None:
    net, rng = network(), np.random.default_rng(0)
    lengths = list(LENGTHS) if not row else [150, 10, 90, 70, 160]
    total = sum(lengths)
    ids, kinds = torch.tensor(rng.integers(0, VOCAB, total)), torch.tensor(rng.integers(0, 2, total))
    position = torch.tensor(np.concatenate([np.arange(n) for n in lengths]))
    bounds = torch.tensor(np.cumsum([0, *lengths]))
    stream = Stream(ids.int(), bounds, position.int(), kinds.int(), Visibility("full"), row=row)
    hidden = net({"text": stream})["text"]
    ours = torch.nn.functional.linear(net.heads["lm"](hidden), net.model.table, net.heads["lm"].bias)
    relation = table(max(lengths), WIDTH // HEADS)
    parts = [slow(net.state_dict(), ids[a:b], kinds[a:b], relation) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist())]
    theirs = torch.cat(parts)
    assert (theirs.max(0).values - theirs.min(0).values).max() >= 1
    assert (ours - theirs).abs().max() <= 1e-4


def test_old_files_are_read_and_their_buffers_left_out(tmp_path: Path) -> None:
    """Version 4 of transformers kept the sines of every layer in the file."""
    net = network()
    made = to_hub(net.spec, net.state_dict(), None, "nezha", tmp_path / "a")
    assert made.architecture == "NezhaForPreTraining" and "no class for nezha" in made.notes[0]
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert not any("position" in name for name in stored) and "nezha.encoder.layer.2.attention.self.query.bias" in stored
    buffers = {
        f"nezha.encoder.layer.{i}.attention.self.relative_positions_encoding.positions_encoding": torch.zeros(9, 9, 8)
        for i in range(3)
    }
    save_file(stored | buffers, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    found = from_hub(tmp_path / "a")
    assert found.system == "nezha" and found.network == net.spec
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in net.state_dict().items())


def test_the_historical_classes() -> None:
    assert set(SYSTEMS["nezha"].classes) == {
        "NezhaForPreTraining", "NezhaForMaskedLM", "NezhaForNextSentencePrediction", "NezhaForSequenceClassification",
        "NezhaForMultipleChoice", "NezhaForTokenClassification", "NezhaForQuestionAnswering", "NezhaModel",
    }  # fmt: skip

"""MASS against the paper's and the release's rules written out slowly, and against the Hub's BART where positions count from 0."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from seq2seq import CPU, VOCAB, assert_parity, read, reload, stream, twins
from singles import SPREAD, TOLERANCE, shake_all
from torch import Tensor

from ziggurat.context import Context, Layout, Vocab
from ziggurat.data.pack import pack
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import OBJECTIVES
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import to_hub
from ziggurat.systems.mass import as_bart
from ziggurat.types import FULL, Batch

MASK, HEADS = 4, 4
VOCABULARY = Vocab(VOCAB, 0, MASK, 1, 3, (0, 1, 2, 3, 4))
LAYOUT = Layout((2,), (3,), (3,), (0, 1))
LENGTHS = (150, 3, 17, 1, 30, 8, 158)


def network(vocab: int = VOCAB) -> NetworkModel:
    model = model_of("mass/tiny", {"layers": 2, "decoder_layers": 3, "width": 48, "heads": HEADS, "mlp": 72}, vocab)
    found = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).eval()
    found.initialise(torch.Generator().manual_seed(0))
    shake_all(found, 5, buffers=True)
    return found


def formed() -> Batch:
    """Texts between [CLS] and [SEP], as `data.cut.windows` lays them."""
    rng = np.random.default_rng(0)
    text = stream([np.array([2, *rng.integers(5, VOCAB, n), 3]) for n in LENGTHS], FULL)
    unit = np.concatenate([[-1, *range(n), -1] for n in LENGTHS]).astype(np.int32)
    object.__setattr__(text, "unit", unit)
    return Batch({"text": text}, {}, np.arange(len(LENGTHS), dtype=np.uint64))


class Released:
    """The released layer order, one document and one head at a time, from the names of the released checkpoints."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.t = tensors

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.t[f"{name}.weight"], self.t[f"{name}.bias"], 1e-5)

    def attention(self, x: Tensor, y: Tensor, name: str, seen: Tensor) -> Tensor:
        """x [Q, width] reads y [K, width]; seen bool[Q, K]."""
        width = x.shape[1]
        weight, bias = self.t[f"{name}.in_proj_weight"], self.t[f"{name}.in_proj_bias"]
        q, k, v = (z @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width] for i, z in enumerate((x, y, y)))
        size, out = width // HEADS, []
        for head in range(HEADS):
            at = slice(head * size, (head + 1) * size)
            scores = (q[:, at] @ k[:, at].T) / math.sqrt(size)
            out.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ v[:, at])
        return self.linear(torch.cat(out, 1), f"{name}.out_proj")

    def layer(self, x: Tensor, name: str, own: Tensor, source: Tensor | None = None, cross: Tensor | None = None) -> Tensor:
        x = self.norm(x + self.attention(x, x, f"{name}.self_attn", own), f"{name}.self_attn_layer_norm")
        if source is not None and cross is not None:
            x = self.norm(x + self.attention(x, source, f"{name}.encoder_attn", cross), f"{name}.encoder_attn_layer_norm")
        inner = F.gelu(self.linear(x, f"{name}.fc1"))
        return self.norm(x + self.linear(inner, f"{name}.fc2"), f"{name}.final_layer_norm")

    def embed(self, side: str, ids: list[int], positions: list[int]) -> Tensor:
        table, places = self.t["encoder.embed_tokens.weight"], self.t[f"{side}.embed_positions.weight"]
        rows = [math.sqrt(table.shape[1]) * table[i] + places[1 + p] for i, p in zip(ids, positions, strict=True)]
        return self.norm(torch.stack(rows), f"{side}.emb_layer_norm")

    def logits(self, source: list[int], read: list[int], positions: list[int], hidden: list[bool]) -> Tensor:
        """[len(read), vocabulary]: the decoder reads the tokens `read` at `positions`, and of the source what is not `hidden`."""
        m, n = len(source), len(read)
        x, y = self.embed("encoder", source, list(range(m))), self.embed("decoder", read, positions)
        for i in range(2):
            x = self.layer(x, f"encoder.layers.{i}", torch.ones(m, m, dtype=torch.bool))
        past = torch.tensor([[k <= q for k in range(n)] for q in range(n)])
        cross = torch.tensor([[not h for h in hidden]] * n)
        for i in range(3):
            y = self.layer(y, f"decoder.layers.{i}", past, x, cross)
        return y @ self.t["encoder.embed_tokens.weight"].T


@pytest.mark.parametrize("cross", ["unmasked", "all"])
def test_a_pretraining_batch_is_answered_as_the_paper_says(cross: str, tmp_path: Path) -> None:
    """From the formed text to the logits of every predicted token: fragment, positions, what the decoder may see of the encoder."""
    net = network()
    to_hub(net.spec, net.state_dict(), None, None, tmp_path)
    with torch.no_grad():
        oracle = Released(load_file(tmp_path / "model.safetensors"))
        objective = OBJECTIVES["mass"].model_validate({"cross": cross})
        ctx = Context(VOCABULARY, LAYOUT, 160, seed=3, start=3, streams=("encoder", "decoder"), words="decoder")
        text = formed()
        done = objective.corrupt(text, ctx)
        batch = pack(done, dict(objective.rows(ctx)), VOCABULARY.pad)
        moved = to_device(batch, CPU)
        logits = net.logits("lm", net(moved.streams), moved.streams, moved.targets["mass"])
        values, owner = batch.targets["mass"].value, batch.streams["decoder"].document()[batch.targets["mass"].index]
        whole = text.streams["text"]
        worst, spread = 0.0, 0.0
        for d, key in enumerate(batch.keys.tolist()):
            if key >= len(LENGTHS):
                continue
            lo, hi = whole.bounds[key : key + 2].tolist()
            clean = whole.content[lo:hi].tolist()
            a, b = batch.streams["encoder"].bounds[d : d + 2].tolist()
            shown = batch.streams["encoder"].content[a:b].tolist()
            a, b = batch.streams["decoder"].bounds[d : d + 2].tolist()
            first = int(batch.streams["decoder"].position[a]) + 1
            fragment = clean[first : first + b - a]
            n = len(clean) - 2
            assert len(fragment) == max(1, round(n / 2)) and values[owner == d].tolist() == fragment
            hidden = [s == MASK and cross == "unmasked" for s in shown]
            read_ids, places = clean[first - 1 : first - 1 + len(fragment)], list(range(first - 1, first - 1 + len(fragment)))
            want = oracle.logits(shown, read_ids, places, hidden)
            worst = max(worst, (logits[torch.from_numpy(owner == d)] - want).abs().max().item())
            spread = max(spread, (want.max() - want.min()).item())
    assert spread >= SPREAD and worst <= TOLERANCE
    print(f"{cross}: {worst:.1e} of {spread:.1f}")


def test_an_export_has_the_releases_names_and_comes_back(tmp_path: Path) -> None:
    net = network()
    made = to_hub(net.spec, net.state_dict(), None, None, tmp_path)
    assert made.architecture == "TransformerMASSModel"
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"encoder.embed_tokens.weight", "decoder.layers.2.encoder_attn.in_proj_weight", "decoder.emb_layer_norm.bias"} <= names
    assert not any("embed_tokens" in name and name.startswith("decoder") for name in names)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["model_type"] == "mass" and config["encoder_embed_dim"] == config["decoder_embed_dim"] == 48
    found, again = read(tmp_path)
    assert found.system == "mass" and found.network == net.spec
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_with_positions_from_0_it_is_a_bart(tmp_path: Path) -> None:
    net = network()
    part, tensors = as_bart(net.spec, net.state_dict())
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    made = to_hub(part, tensors, None, "bart", tmp_path, ids=ids)
    assert made.architecture == "BartForConditionalGeneration"
    model = reload(tmp_path, made.architecture)
    assert model.config.scale_embedding
    assert_parity(net, model, twins(model.config))


def test_no_class_of_the_hub_is_named(tmp_path: Path) -> None:
    assert not SYSTEMS["mass"].loads
    model = model_of("mass/tiny", {"layers": 1, "width": 16, "heads": 2, "mlp": 24}, VOCAB)
    heads = {"lm": spec.VocabHead(), **spec.class_heads(model, "classify", 3)}
    net = NetworkModel(spec.Network(model=model, heads=heads))
    made = to_hub(net.spec, net.state_dict(), None, "mass", tmp_path)
    assert any("transformers has no class for mass" in note for note in made.notes)
    assert any("no place for the heads" in note and "classify" in note for note in made.notes)

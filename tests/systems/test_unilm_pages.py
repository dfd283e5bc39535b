"""UniLM, UniLM v2 and ERNIE-GEN against their papers written out: dense masks by the papers' rules, and a plain BERT in float64.

The rules are restated here from what an example says of its rows (token, position, segment), not from its visibility.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ziggurat.context import Context, Layout, Vocab, mix
from ziggurat.data.pack import pack
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import AnyObjective
from ziggurat.systems import model_of
from ziggurat.systems.hub import from_hub, to_hub
from ziggurat.types import DEAD, Batch, Part, Tokens

WORDS, MASK, ATTN, END = 60, 4, 59, 3
VOCAB = Vocab(WORDS, 0, MASK, 1, END, (0, 1, 2, 3, 4, ATTN), {"[ATTN]": ATTN})
LENGTH, HEADS, WIDTH = 160, 4, 32


def batch_of(objective: dict[str, Any]) -> Batch:
    rng = np.random.default_rng(0)
    lengths = np.array([150, 3, 90, 40, 12, 157, 60, 80, 110])
    ids = rng.integers(5, ATTN, lengths.sum()).astype(np.int32)
    words, sentences = rng.random(len(ids)) < 0.6, rng.random(len(ids)) < 0.15
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    words[bounds[:-1]] = sentences[bounds[:-1]] = True
    part = Part(ids, bounds, words | sentences, sentences, np.zeros((0, 3), np.int64), np.zeros(len(lengths) + 1, np.int64))
    tokens = Tokens({"text": part}, mix(np.arange(7, 7 + len(lengths), dtype=np.uint64)))
    ctx = Context(VOCAB, Layout((2,), (3,), (3,), (0, 1)), LENGTH)
    made = TypeAdapter(AnyObjective).validate_python(objective)
    return pack(made.corrupt(made.form(tokens, ctx), ctx), made.rows(ctx), VOCAB.pad)


def network(system: str) -> NetworkModel:
    model = model_of(f"{system}/tiny", {"layers": 3, "width": WIDTH, "heads": HEADS, "mlp": 48}, WORDS)
    net = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).eval()
    net.initialise(torch.Generator().manual_seed(0))
    for i, p in enumerate(net.parameters()):
        p.data += 0.25 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return net


def slow(state: dict[str, Tensor], ids: Tensor, place: Tensor, kind: Tensor, sees: Tensor) -> Tensor:
    """BERT's logits of one document under a mask bool[query, key], with a relative bias where there is a table; float64."""
    s = {name: tensor.double() for name, tensor in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-12)

    e = "model.embed"
    x = s[f"{e}.token.weight"][ids] + s[f"{e}.position.weight"][place] + s[f"{e}.segment.weight"][kind]
    x, n, dim = norm(f"{e}.norm", x), len(ids), WIDTH // HEADS
    bias = torch.zeros(HEADS, n, n, dtype=torch.float64)
    if "model.buckets.table.weight" in s:
        for i in range(n):
            for j in range(n):
                bias[:, i, j] = s["model.buckets.table.weight"][bucket(int(place[j] - place[i]))]
    hidden = bias.masked_fill(~sees, -math.inf)
    for layer in range(3):
        b = f"model.blocks.{layer}"
        q, k, v = (linear(f"{b}.attention.{w}", x).view(n, HEADS, dim) for w in "qkv")
        weights = (torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(dim) + hidden).softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", weights, v).reshape(n, WIDTH)
        x = norm(f"{b}.attention_norm", x + linear(f"{b}.attention.out", mixed))
        x = norm(f"{b}.mlp_norm", x + linear(f"{b}.mlp.down", torch.nn.functional.gelu(linear(f"{b}.mlp.up", x))))
    x = norm("heads.lm.norm", torch.nn.functional.gelu(linear("heads.lm.dense", x)))
    return x @ s[f"{e}.token.weight"].T + s["heads.lm.bias"]


def bucket(distance: int) -> int:
    """T5's, for both sides: 16 each, 8 exact, the rest by logarithm to 128."""
    far = abs(distance)
    exact = far if far < 8 else min(15, 8 + int(math.log(far / 8) / math.log(128 / 8) * 8))
    return exact + 16 * (distance > 0)


@torch.no_grad()
def assert_alike(system: str, batch: Batch, rule: Any) -> None:
    net = network(system)
    on = to_device(batch, torch.device("cpu"))
    hidden = net(on.streams)["text"]
    ours = torch.nn.functional.linear(net.heads["lm"](hidden), net.model.table, net.heads["lm"].bias)
    stream, compared = batch.streams["text"], 0
    for d, (a, b) in enumerate(zip(stream.bounds[:-1], stream.bounds[1:])):
        if batch.keys[d] == DEAD:
            continue
        rows = [torch.tensor(np.asarray(x[a:b], np.int64)) for x in (stream.content, stream.position, stream.segment)]
        sees = torch.tensor(
            rule(*(np.asarray(x) for x in rows), [t.index[(t.index >= a) & (t.index < b)] - a for t in targets(batch)])
        )
        theirs = slow(net.state_dict(), *rows, sees)
        assert (theirs.max(0).values - theirs.min(0).values).max() >= 1 or b - a < 40
        assert (ours[a:b] - theirs).abs().max() <= 1e-4, f"document {d}"
        compared += b - a
    assert compared > 400


def targets(batch: Batch) -> list[Any]:
    return [t for t in batch.targets.values() if t.at == "token"]


def test_unilm_reads_as_its_four_masks_say() -> None:
    """Segments tell the mode: 0/1 both ways, 2 from the left, 3 from the right, 4/5 source and target (2.2 of the paper)."""
    batch = batch_of({"kind": "unilm", "modes": [0.25, 0.25, 0.25, 0.25]})

    def rule(content: np.ndarray, place: np.ndarray, kind: np.ndarray, asked: Any) -> np.ndarray:
        n = len(content)
        at = np.arange(n)
        before = at[None] <= at[:, None]
        if kind.max() <= 1:
            return np.ones((n, n), bool)
        if kind.max() == 2:
            return before
        if kind.max() == 3:
            return before.T
        source = kind == 4
        return source[None] | (~source[:, None] & before)

    kinds = set(batch.streams["text"].segment.tolist())
    assert {2, 3, 4, 5} <= kinds  # every mode is in the batch
    assert_alike("unilm", batch, rule)


def test_unilm2_reads_as_pseudo_masks_say() -> None:
    """Context and masks see each other; an original or a pseudo mask sees them and the originals of earlier steps (3.2 of the paper).

    Steps are recovered from the rule of the objective's layout: the sentence, then for every chosen place its original and a pseudo
    mask, both on its position.
    """
    batch = batch_of({"kind": "pmlm", "replace": [1, 0, 0]})
    stream = batch.streams["text"]

    def rule(content: np.ndarray, place: np.ndarray, kind: np.ndarray, asked: Any) -> np.ndarray:
        n = len(content)
        first = int(np.flatnonzero(np.diff(place) < 0)[0]) + 1 if (np.diff(place) < 0).any() else n  # the sentence ends here
        seen = np.zeros((n, n), bool)
        seen[:, :first] = True
        clock = stream.visibility.clock  # the order of the steps is drawn; only whose row is of which step is taken from the data
        at = int(np.flatnonzero([np.array_equal(stream.content[a : a + n], content) for a in stream.bounds[:-1]])[0])
        steps = np.asarray(clock[stream.bounds[at] : stream.bounds[at] + n])
        pseudo = np.zeros(n, bool)
        pseudo[first:] = content[first:] == MASK
        step = np.where(pseudo, steps + 1, steps)
        for q in range(first, n):
            for k in range(first, n):
                if pseudo[q]:
                    seen[q, k] = step[k] == step[q] if pseudo[k] else step[k] < step[q]
                else:
                    seen[q, k] = not pseudo[k] and step[k] <= step[q]
        return seen

    assert_alike("unilm2", batch, rule)


def test_ernie_gen_reads_as_its_flows_say() -> None:
    """Contextual rows are a prefix LM; a row that asks sees the words before its own (or before its span), and itself (3.1, 3.2)."""
    batch = batch_of({"kind": "ernie_gen", "segment": 3, "weight": 1})  # the word-by-word flow alone
    stream = batch.streams["text"]

    def rule(content: np.ndarray, place: np.ndarray, kind: np.ndarray, asked: Any) -> np.ndarray:
        n = len(content)
        asks = content == ATTN
        target = (kind == 3) & ~asks
        at = np.arange(n)
        seen = np.zeros((n, n), bool)
        words = np.flatnonzero(target)
        for q in range(n):
            if asks[q]:
                own = words[len(words) - asks.sum() + int(asks[: q + 1].sum()) - 1]  # the word it stands for
                seen[q] = ~asks & (at < own)
                seen[q, q] = True
            elif target[q]:
                seen[q] = ~asks & (at <= q)
            else:
                seen[q] = ~asks & ~target
        return seen

    assert (stream.content == ATTN).sum() > 50
    assert_alike("ernie_gen", batch, rule)


def test_a_bias_of_keys_changes_nothing_and_is_left_out(tmp_path: Path) -> None:
    net = network("unilm2")
    batch = to_device(batch_of({"kind": "pmlm"}), torch.device("cpu"))
    with torch.no_grad():
        before = net(batch.streams)["text"]
        to_hub(net.spec, net.state_dict(), None, "unilm2", tmp_path)
        found = from_hub(tmp_path)
        again = NetworkModel(found.network).eval()
        again.load_state_dict(found.tensors)
        assert found.system == "unilm2" and not again.get_parameter("model.blocks.0.attention.k.bias").any()
        assert net.get_parameter("model.blocks.0.attention.k.bias").abs().max() > 0.1
        torch.testing.assert_close(again(batch.streams)["text"], before, rtol=0, atol=2e-5)


def test_distances_are_those_of_positions_not_of_rows() -> None:
    """A pseudo mask far behind its sentence in the row reads as if it stood in its place."""
    net = network("unilm2")
    batch = to_device(batch_of({"kind": "pmlm"}), torch.device("cpu"))
    from ziggurat.nn.visibility import plan

    stream = batch.streams["text"]
    bias = net.model.buckets(plan(stream))
    row = stream.row
    for i, j in ((0, 5), (3, row - 20), (row - 20, 3), (row - 8, row - 9)):
        want = net.model.buckets.table.weight[bucket(int(stream.position[j] - stream.position[i]))]
        assert torch.equal(bias[0, :, i, j], want)


@pytest.mark.parametrize("system", ["unilm", "ernie_gen"])
def test_the_hubs_bert_holds_them(system: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    net = network(system)
    to_hub(net.spec, net.state_dict(), None, system, tmp_path)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "BertForMaskedLM" and theirs.config.type_vocab_size == net.spec.model.embed.segments

"""The network as a whole: initial weights, dropout, counting, and what each head reads."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.attention import AttentionLayer
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.types import Stream, Target, Visibility

VOCAB, WIDTH, LAYERS, MLP, LONGEST = 400, 64, 3, 96, 32
DIALS = {"layers": LAYERS, "width": WIDTH, "heads": 2, "mlp": MLP}
LENGTHS = (5, 1, 9, 3)
OURS = ("bert", "roberta", "gpt2", "albert", "electra", "structbert", "macbert", "xlnet")
"""Systems of one stack whose numbers are written out here."""


def network(system: str, **more: spec.Head) -> NetworkModel:
    body = model_of(f"{system}/tiny", DIALS, VOCAB)
    if isinstance(body, spec.Adversaries):  # both halves: tests/nn/test_adversaries.py
        body = body.discriminator
    positions = body.embed.positions.model_copy(update={"length": LONGEST})
    body = body.model_copy(update={"embed": body.embed.model_copy(update={"positions": positions})})
    heads = {"lm": spec.VocabHead(), "tag": spec.TokenHead(outputs=3), **spec.class_heads(body, "classify", 3), **more}
    return NetworkModel(spec.Network(model=body, heads=heads))


def fresh(system: str, seed: int = 0) -> NetworkModel:
    made = network(system)
    made.initialise(torch.Generator().manual_seed(seed))
    return made


def shaken(system: str) -> NetworkModel:
    """Every parameter moved, so that none can be forgotten."""
    made, g = fresh(system).double().eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return made


def stream_of(lengths: tuple[int, ...] = LENGTHS, causal: bool = False, row: int = 0, seed: int = 0) -> Stream:
    g = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    position = torch.cat([torch.arange(n) for n in lengths])
    bounds = torch.tensor(np.cumsum([0, *lengths]))
    segment = torch.zeros(total, dtype=torch.int32)
    content = torch.randint(5, VOCAB, (total,), generator=g, dtype=torch.int32)
    return Stream(content, bounds, position.int(), segment, Visibility("causal" if causal else "full"), None, row)


def target(index: list[int], at: str = "token", value: list[int] | None = None) -> Target:
    return Target("text", torch.tensor(index), torch.tensor(value or [0] * len(index)), torch.ones(len(index)), at)  # type: ignore[arg-type]


@pytest.mark.parametrize("system", OURS)
def test_initial_weights_follow_their_roles(system: str) -> None:
    made = fresh(system)
    init = made.spec.model.init
    norms = {id(m.weight) for m in made.modules() if isinstance(m, nn.LayerNorm)}
    pooled: list[Tensor] = []
    residual: list[Tensor] = []
    for name, p in made.named_parameters():
        if p.ndim < 2:
            assert (p == (1.0 if id(p) in norms else 0.0)).all(), name
        elif name.endswith(("attention.out.weight", "mlp.down.weight")):
            residual.append(p.detach().flatten())
        else:
            pooled.append(p.detach().flatten())
    distinct = len(set(made.model.order))
    assert distinct == (1 if system == "albert" else LAYERS)
    assert len(residual) == 2 * distinct and len(norms) >= 2 * distinct
    # A normal cut at two deviations keeps 0.8796 of its deviation (variance 1 - 2 * 2 * pdf(2) / (cdf(2) - cdf(-2))).
    kept = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))) if init.truncated else 1.0
    assert kept == pytest.approx(0.8796, abs=1e-4) or not init.truncated
    scale = 1 / math.sqrt(2 * LAYERS) if system == "gpt2" else 1.0
    for values, std in (torch.cat(pooled), 0.02 * kept), (torch.cat(residual), 0.02 * kept * scale):
        assert float(values.std()) == pytest.approx(std, rel=max(0.01, 3 / math.sqrt(2 * len(values))))
        assert abs(float(values.mean())) < 4 * std / math.sqrt(len(values))
        beyond = float((values.abs() > 2 * std / kept).float().mean())
        assert beyond == 0 if init.truncated else beyond == pytest.approx(0.0455, abs=0.005)


def test_each_system_says_how_it_is_initialised() -> None:
    """BERT's release truncates, GPT-2's scales the residual projections, RoBERTa's does neither."""
    found = {name: (s.model.init.truncated, s.model.init.residual) for name, s in SYSTEMS.items() if name in OURS}
    cut = dict.fromkeys(("bert", "albert", "electra", "structbert", "macbert"), (True, "same"))
    assert found == {**cut, "roberta": (False, "same"), "gpt2": (False, "scaled"), "xlnet": (False, "same")}


@pytest.mark.parametrize("system", OURS)
def test_initialisation_is_its_seed(system: str) -> None:
    one, two, other = (fresh(system, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.embed.token.weight"], other["model.embed.token.weight"])


def test_only_the_named_parameters_are_drawn_again() -> None:
    made = shaken("bert")
    before = copy.deepcopy(made.state_dict())
    only = [name for name in before if name.startswith("heads.classify")]
    made.initialise(torch.Generator().manual_seed(5), only)
    changed = {name for name, p in made.state_dict().items() if not torch.equal(p, before[name])}
    assert changed == set(only) and len(only) == 2


@pytest.mark.parametrize("system", OURS)
def test_set_dropout_reaches_every_place(system: str) -> None:
    made = fresh(system)
    stream = stream_of(causal=system == "gpt2")
    still = made.eval()({"text": stream})["text"]
    made.set_dropout(0.3)
    drops = {name: m for name, m in made.named_modules() if isinstance(m, nn.Dropout)}
    assert {m.p for m in drops.values()} == {0.3}
    expected = {"model.embed.drop", "heads.classify.drop", "heads.tag.drop", *(f"model.blocks.{i}.drop" for i in range(LAYERS))}
    if system == "albert":
        expected = {name for name in expected if "blocks" not in name} | {"model.blocks.0.0.drop"}
    assert set(drops) == expected
    assert [m.dropout for m in made.modules() if isinstance(m, AttentionLayer)] == [0.3] * (1 if system == "albert" else LAYERS)
    assert torch.equal(made.eval()({"text": stream})["text"], still)
    made.train()
    assert not torch.allclose(made({"text": stream})["text"], still)
    asked = (("classify", "document"), ("tag", "token"))
    for name in drops:  # each of them is in use: alone it still changes the outcome
        made.set_dropout(0.0)
        drops[name].p = 0.5
        torch.manual_seed(0)
        places = {"text": stream}
        hidden = made(places)
        scores = [made.logits(head, hidden, places, target([0, 2], at)) for head, at in asked]
        made.eval()
        hidden = made(places)
        calm = [made.logits(head, hidden, places, target([0, 2], at)) for head, at in asked]
        made.train()
        assert not all(torch.equal(x, y) for x, y in zip(scores, calm, strict=True)), name
    made.set_dropout(0.0)
    torch.testing.assert_close(made({"text": stream})["text"], still)


@pytest.mark.parametrize("system", OURS)
def test_parameters_are_counted_once(system: str) -> None:
    made = network(system)
    if system == "xlnet":  # no biases on five matrices, three vectors and two of segments, no norm but the blocks'
        block = 5 * WIDTH * WIDTH + 5 * WIDTH + 2 * WIDTH * MLP + MLP + WIDTH + 4 * WIDTH
        heads = VOCAB + WIDTH * WIDTH + WIDTH + 2 * (3 * WIDTH + 3)
        assert made.parameter_count() == (VOCAB + 1) * WIDTH + LAYERS * block + heads
        assert made.parameter_count(embeddings=False) == LAYERS * block + heads
        return
    block = 4 * (WIDTH * WIDTH + WIDTH) + 2 * WIDTH * MLP + MLP + WIDTH + 4 * WIDTH
    inner = {"albert": 128}.get(system, WIDTH)  # width of the tables
    tables = (VOCAB + LONGEST + {"roberta": 2 + 1, "gpt2": 0}.get(system, 2)) * inner
    norm = 2 * inner  # on the embeddings, or after the last layer of GPT-2
    widen = inner * WIDTH + WIDTH if system == "albert" else 0
    lm = 0 if system == "gpt2" else WIDTH * inner + inner + 2 * inner + VOCAB
    dense = 0 if system == "gpt2" else WIDTH * WIDTH + WIDTH  # BERT's pooler, RoBERTa's own layer
    heads = lm + dense + 3 * WIDTH + (0 if system == "gpt2" else 3) + 3 * WIDTH + 3
    blocks = (1 if system == "albert" else LAYERS) * block
    assert made.parameter_count() == tables + norm + widen + blocks + heads
    assert made.parameter_count(embeddings=False) == norm + widen + blocks + heads


@pytest.mark.parametrize("system", OURS)
def test_document_heads_read_the_summary_token(system: str) -> None:
    made = shaken(system)
    stream = stream_of(causal=system == "gpt2")
    places = {"text": stream}
    hidden = made(places)
    bounds = stream.bounds.tolist()
    last = system in ("gpt2", "xlnet")
    rows = bounds[1:] if last else bounds[:-1]
    chosen = [2, 0, 3, 1]
    x = torch.stack([hidden["text"][rows[d] - last] for d in chosen])
    state = made.state_dict()
    if system != "gpt2":
        dense = "heads.classify.dense" if system in ("roberta", "electra", "xlnet") else "heads.pooler.dense"
        activation = nn.functional.gelu if system == "electra" else torch.tanh
        x = activation(x @ state[f"{dense}.weight"].T + state[f"{dense}.bias"])
    x = x @ state["heads.classify.out.weight"].T
    if system != "gpt2":
        x = x + state["heads.classify.out.bias"]
    torch.testing.assert_close(made.logits("classify", hidden, places, target(chosen, "document")), x)


@pytest.mark.parametrize("system", OURS)
def test_the_vocabulary_loss_is_that_of_the_logits(system: str) -> None:
    made = shaken(system)
    places = {"text": stream_of(causal=system == "gpt2")}
    asked = target([17, 3, 3, 8], value=[5, 7, 11, 399])
    hidden = made(places)
    scores = made.logits("lm", hidden, places, asked)
    assert scores.shape == (4, VOCAB)
    every = made.logits("lm", hidden, places, target(list(range(18))))
    torch.testing.assert_close(scores, every[asked.index])
    total, count = made.loss("lm", hidden, places, asked)
    torch.testing.assert_close(total, nn.functional.cross_entropy(scores, asked.value, reduction="sum"))
    assert float(count) == 4


@pytest.mark.parametrize("head", ["lm", "tag", "classify"])
def test_a_target_without_predictions_costs_nothing(head: str) -> None:
    made = shaken("bert")
    places = {"text": stream_of()}
    total, count = made.loss(head, made(places), places, target([], "document" if head == "classify" else "token"))
    total.backward()
    assert (float(total.detach()), float(count)) == (0.0, 0.0)
    assert all(p.grad is None or not p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("system", OURS)
def test_the_layout_of_the_batch_changes_nothing(system: str) -> None:
    """Documents alone, ragged in one batch, with empty ones among them, and packed in rows: the same vectors."""
    made = shaken(system)
    causal = system == "gpt2"
    ragged = stream_of(causal=causal)
    want = made({"text": ragged})["text"]
    bounds = ragged.bounds.tolist()
    for a, b in pairwise(bounds):
        content, position, segment = (x[a:b] for x in (ragged.content, ragged.position, ragged.segment))
        alone = Stream(content, torch.tensor([0, b - a]), position, segment, ragged.visibility)
        torch.testing.assert_close(made({"text": alone})["text"], want[a:b])
    gaps = torch.tensor([0, 0, 5, 6, 6, 6, 15, 18, 18])
    for row in 0, 18:
        stream = Stream(ragged.content, gaps, ragged.position, ragged.segment, ragged.visibility, None, row)
        torch.testing.assert_close(made({"text": stream})["text"], want)


def test_inner_layers_can_be_kept() -> None:
    made = shaken("gpt2")
    kept = made({"text": stream_of(causal=True)}, keep=("blocks.0", f"blocks.{LAYERS - 1}"))
    assert set(kept) == {"text", "blocks.0", f"blocks.{LAYERS - 1}"}
    last = kept[f"blocks.{LAYERS - 1}"]
    assert made.model.final_norm is not None
    torch.testing.assert_close(made.model.final_norm(last), kept["text"])


def test_a_mean_reads_all_rows_of_its_documents_and_no_others() -> None:
    body = spec.Single(vocab=VOCAB, layers=2, width=WIDTH, heads=2, mlp=MLP, pool=spec.Pool(at="mean", by="plain"))
    made = NetworkModel(spec.Network(model=body, heads=spec.class_heads(body, "classify", 3))).double().eval()
    made.initialise(torch.Generator().manual_seed(0))
    streams, asked = {"text": stream_of()}, target([3, 0], "document", [1, 2])
    whole = made(streams)
    hidden = whole["text"]
    texts = [hidden[15:18], hidden[0:5]]  # documents 3 and 0 of LENGTHS
    want = torch.stack([made.heads["classify"].out(x.mean(0)) for x in texts])
    torch.testing.assert_close(made.logits("classify", whole, streams, asked), want, atol=1e-6, rtol=0)
    read = made.read(streams, [asked])
    assert read["text"].tolist() == [*range(5), *range(15, 18)]
    torch.testing.assert_close(made.logits("classify", made(streams, read=read), streams, asked), want, atol=1e-6, rtol=0)

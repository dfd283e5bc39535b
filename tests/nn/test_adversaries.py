"""A generator and a discriminator in one network: shared tables, initial weights, dropout, and what reads which half."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ziggurat.nn import halves, spec
from ziggurat.nn.attention import AttentionLayer
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.structures import AdversariesModel, SingleModel
from ziggurat.types import Stream, Target

VOCAB, LENGTHS = 50, (5, 1, 9, 3)
HEADS: dict[str, spec.Head] = {"lm": spec.VocabHead(), "rtd": spec.ReplacedHead(), "tag": spec.TokenHead(outputs=3)}


def network_of(tables: int | None, width: int = 16, narrow: int = 8) -> NetworkModel:
    shape = {"vocab": VOCAB, "width": width, "layers": 2, "heads": 2, "mlp": 24}
    whole = spec.Single(**shape, embed=spec.Embed(width=tables, segments=2, positions=spec.Learned(length=12)))
    dials = spec.Dials(layers=3, width=narrow, heads=2, mlp=12)
    made = NetworkModel(spec.Network(model=spec.Adversaries(discriminator=whole, generator=dials), heads=HEADS))
    generator = torch.Generator().manual_seed(0)
    made.initialise(generator)
    return made.double()


def shaken(made: NetworkModel) -> NetworkModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return made.eval()


def stream_of(row: int = 0) -> Stream:
    generator = torch.Generator().manual_seed(2)
    total = sum(LENGTHS)
    content = torch.randint(5, VOCAB, (total,), generator=generator)
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    position = torch.cat([torch.arange(n) for n in LENGTHS])
    return Stream(content, bounds, position, torch.randint(0, 2, (total,), generator=generator), row=row)


def halves_of(made: NetworkModel) -> tuple[SingleModel, SingleModel]:
    assert isinstance(made.model, AdversariesModel)
    return made.model.generator, made.model.discriminator


@pytest.mark.parametrize(("tables", "wide"), [(None, "d g-"), (16, "d g-"), (8, "d- g"), (12, "d- g-")])
def test_both_halves_read_one_set_of_tables(tables: int | None, wide: str) -> None:
    """A half has a matrix of its own (`-`) where the tables are not of its width; nothing is counted twice."""
    made = network_of(tables)
    generator, discriminator = halves_of(made)
    assert generator.embed is None and generator.table is discriminator.table
    found = [("d", discriminator.embed.widen), ("g", generator.widen)]  # type: ignore[union-attr]
    assert " ".join(name + ("-" if matrix is not None else "") for name, matrix in found) == wide
    names = [name for name, _ in made.named_parameters()]
    assert sum("token.weight" in name for name in names) == 1 and len(set(names)) == len(names)
    assert [len(generator.blocks), len(discriminator.blocks)] == [3, 2]


@pytest.mark.parametrize("tables", [None, 8, 12])
def test_each_half_is_the_single_model_of_its_size(tables: int | None) -> None:
    made = shaken(network_of(tables))
    stream = stream_of()
    for half, part in zip(halves_of(made), (halves.generator, halves.discriminator), strict=True):
        network, tensors = part(made.spec, made.state_dict())
        alone = NetworkModel(network).double()
        alone.load_state_dict(tensors)
        torch.testing.assert_close(half({"text": stream})["text"], alone.eval()({"text": stream})["text"])
    torch.testing.assert_close(made({"text": stream})["text"], halves_of(made)[1]({"text": stream})["text"])
    packed = replace(stream, row=sum(LENGTHS))
    for half in halves_of(made):
        torch.testing.assert_close(half({"text": packed})["text"], half({"text": stream})["text"])


def test_the_generators_words_are_read_off_its_own_width() -> None:
    made = shaken(network_of(12))
    lm, rtd = made.heads["lm"], made.heads["rtd"]
    assert lm.dense.weight.shape == (12, 8) and rtd.dense.weight.shape == (16, 16)  # type: ignore[union-attr]
    generator, discriminator = halves_of(made)
    streams = {"text": stream_of()}
    at = torch.tensor([3, 11])
    target = Target("text", at, torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
    x = generator(streams)["text"][at]
    state = made.state_dict()
    inner = nn.functional.gelu(x @ state["heads.lm.dense.weight"].T + state["heads.lm.dense.bias"])
    inner = nn.functional.layer_norm(inner, (12,), state["heads.lm.norm.weight"], state["heads.lm.norm.bias"], 1e-12)
    want = inner @ state["model.discriminator.embed.token.weight"].T + state["heads.lm.bias"]
    torch.testing.assert_close(made.logits("lm", generator(streams), streams, target), want)

    y = discriminator(streams)["text"][at]
    dense = nn.functional.gelu(y @ state["heads.rtd.dense.weight"].T + state["heads.rtd.dense.bias"])
    scores = dense @ state["heads.rtd.out.weight"].T + state["heads.rtd.out.bias"]
    torch.testing.assert_close(made.logits("rtd", discriminator(streams), streams, target), scores)
    chance: Tensor = torch.sigmoid(scores[:, 0])
    loss = made.loss("rtd", discriminator(streams), streams, target)
    torch.testing.assert_close(loss.total, -chance[0].log() - 0.5 * (1 - chance[1]).log())
    assert float(loss.count) == 1.5
    nothing = replace(target, index=at[:0], value=at[:0], weight=target.weight[:0])
    empty = made.loss("rtd", discriminator(streams), streams, nothing)
    assert (float(empty.total.detach()), float(empty.count)) == (0.0, 0.0)


def test_initial_weights_and_dropout_reach_both() -> None:
    made = network_of(12)
    norms = {id(m.weight) for m in made.modules() if isinstance(m, nn.LayerNorm)}
    for name, p in made.named_parameters():
        if p.ndim < 2:
            assert (p == (1.0 if id(p) in norms else 0.0)).all(), name
        else:
            assert 0.01 < float(p.detach().std()) < 0.03, name
    generator, discriminator = halves_of(made)
    streams = {"text": stream_of()}
    made.set_dropout(0.4)
    assert {m.p for m in made.modules() if isinstance(m, nn.Dropout)} == {0.4}
    assert [m.dropout for m in made.modules() if isinstance(m, AttentionLayer)] == [0.4] * 5
    for half in generator, discriminator:
        still = made.eval() and half(streams)["text"]
        made.train()
        assert not torch.allclose(half(streams)["text"], still)


def test_what_else_asks_about_the_model_is_told_about_the_discriminator() -> None:
    model = network_of(12).spec.model
    assert isinstance(model, spec.Adversaries)
    for name in ("vocab", "width", "layers", "heads", "mlp", "embed", "block", "visibility", "pool", "project", "init"):
        assert getattr(model, name) == getattr(model.discriminator, name)
    assert spec.Network.model_validate(spec.Network(model=model, heads=HEADS).model_dump()).model == model
    with pytest.raises(ValueError, match="not a multiple of heads 3"):
        spec.Adversaries(generator=spec.Dials(width=16, heads=3))

"""Parts that only some systems have: gates, RMS norms, factorised tables, shared and alternating layers, untied heads, adversaries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ziggurat.nn import spec
from ziggurat.nn.layers import MlpLayer, norm_layer
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.structures import AdversariesModel, SingleModel
from ziggurat.types import FULL, Batch, Stream, text_target

SMALL = {"vocab": 30, "width": 16, "layers": 4, "heads": 2, "mlp": 24}


def batch(n: int = 10) -> Batch:
    ids = np.random.default_rng(0).integers(0, 30, n).astype(np.int32)
    place = np.arange(n, dtype=np.int32)
    stream = Stream(ids, np.array([0, 4, n]), place % 5, 0 * place, FULL)
    return Batch({"text": stream}, {"mlm": text_target(np.array([1, 5]), ids[[1, 5]])}, np.zeros(2, np.uint64)).map(
        torch.from_numpy
    )


def network(model: spec.Model, **heads: spec.Head) -> NetworkModel:
    net = NetworkModel(spec.Network(model=model, heads=heads or {"lm": spec.VocabHead()})).double()
    net.initialise(torch.Generator().manual_seed(0))
    for p in net.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype)
    return net


def test_a_gate_multiplies_the_activated_half() -> None:
    layer, x = MlpLayer(spec.Mlp(activation="silu", gated=True), 6, 8).double(), torch.randn(5, 6).double()
    up, gate = layer.up(x), layer.gate(x)  # type: ignore[misc]
    torch.testing.assert_close(layer(x), layer.down(up * torch.sigmoid(up) * gate))


def test_rms_norm_takes_no_mean_away() -> None:
    layer, x = norm_layer(spec.RMSNorm(eps=1e-3), 6).double(), torch.randn(5, 6).double() + 3
    layer.weight.data.uniform_(0.5, 2)
    torch.testing.assert_close(layer(x), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * layer.weight)
    assert [n for n, _ in norm_layer(spec.LayerNorm(bias=False), 6).named_parameters()] == ["weight"]


def test_rms_norm_has_the_gradients_of_the_librarys() -> None:
    """Which is what it is without gradients, and in float32 and under autocast the same to rounding."""
    layer, x = norm_layer(spec.RMSNorm(eps=1e-3), 6), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.RMSNorm(6, eps=1e-3)
    theirs.weight.data = layer.weight.data = torch.rand(6, generator=torch.Generator().manual_seed(1)) + 0.5
    found = []
    for norm in (layer, theirs):
        for exact in (False, True):
            read = (x.double() if exact else x).clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
                out = norm.to(read.dtype)(read)
                (out * out.detach().sin()).sum().backward()
            assert read.grad is not None and norm.weight.grad is not None
            found.append((out.detach(), read.grad, norm.weight.grad.clone()))
            norm.weight.grad = None
    for a, b in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(layer, (x.double().requires_grad_(),))
    with torch.no_grad():
        torch.testing.assert_close(layer.double()(x.double()), theirs.double()(x.double()))


def test_shared_layers_are_passed_in_groups() -> None:
    """Layer i belongs to group floor(i * groups / layers), and a layer of a group is `inner` blocks."""
    model = spec.Single(**SMALL, share=spec.Share(groups=2, inner=3))  # type: ignore[arg-type]
    net = SingleModel(model)
    order = [[id(block) for block in group] for group in net.blocks]
    assert [id(b) for b in net.order] == order[0] * 2 + order[1] * 2
    five = SingleModel(model.model_copy(update={"layers": 5}))
    assert [id(b) for b in five.order] == [id(b) for i in range(5) for b in five.blocks[i * 2 // 5]]
    plain = sum(p.numel() for p in SingleModel(spec.Single(**SMALL)).blocks.parameters())  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.blocks.parameters()) == plain * 6 // 4


def test_alternating_layers() -> None:
    local, far = spec.Attention(window=1), spec.Attention(distances=spec.Rotary())
    net = SingleModel(spec.Single(**SMALL, pattern=(far, local)))  # type: ignore[arg-type]
    assert [b.attention.window for b in net.order] == [None, 1, None, 1]
    assert [b.attention.distances is not None for b in net.order] == [True, False, True, False]


def test_a_factorised_table_has_its_own_width() -> None:
    """Tables of width 6, a matrix to the model's 16 behind the norm, and a head that ends in 6 (ALBERT)."""
    net = network(spec.Single(**SMALL, embed=spec.Embed(width=6)))  # type: ignore[arg-type]
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["model.embed.token.weight"] == (30, 6) and shapes["model.embed.widen.weight"] == (16, 6)
    assert shapes["heads.lm.dense.weight"] == (6, 16) and shapes["heads.lm.norm.weight"] == (6,)
    data = batch()
    embed = net.model.embed
    inner = embed.norm(embed.token(data.streams["text"].content) + embed.position(data.streams["text"].position))
    torch.testing.assert_close(embed(data.streams["text"]), embed.widen(inner))
    plain = network(spec.Single(**SMALL, embed=spec.Embed(width=6), project=spec.VocabProjection(transform=False)))  # type: ignore[arg-type]
    hidden = plain(data.streams)
    logits = plain.logits("lm", hidden, data.streams, data.targets["mlm"])
    at = hidden["text"][data.targets["mlm"].index]
    want = plain.heads["lm"].narrow(at) @ plain.model.table.T + plain.heads["lm"].bias
    torch.testing.assert_close(logits, want)


def test_an_untied_and_a_scaled_head() -> None:
    project = spec.VocabProjection(transform=False, bias=False, tied=False, scale="width")
    net, data = network(spec.Single(**SMALL, project=project)), batch()  # type: ignore[arg-type]
    hidden, target = net(data.streams), data.targets["mlm"]
    own = net.heads["lm"].table
    want = hidden["text"][target.index] * 16**-0.5 @ own.T
    torch.testing.assert_close(net.logits("lm", hidden, data.streams, target), want)
    loss = net.loss("lm", hidden, data.streams, target).total
    torch.testing.assert_close(loss.double(), torch.nn.functional.cross_entropy(want, target.value, reduction="sum"))
    loss.backward()
    assert own.grad.abs().sum() > 0


def test_adversaries_share_their_embeddings_and_nothing_else() -> None:
    single = spec.Single(**SMALL, embed=spec.Embed(width=8))  # type: ignore[arg-type]
    model = spec.Adversaries(discriminator=single, generator=spec.Dials(layers=2, width=6, heads=1, mlp=12))
    net, data = network(model, lm=spec.VocabHead(), rtd=spec.ReplacedHead()), batch()
    assert isinstance(net.model, AdversariesModel)
    names = [name for name, _ in net.named_parameters()]
    assert sum("token" in name for name in names) == 1 and "model.generator.widen.weight" in names
    made = net.model.generator(data.streams)
    assert made["text"].shape == (10, 6) and net(data.streams)["text"].shape == (10, 16)
    net.loss("lm", made, data.streams, data.targets["mlm"]).total.backward()
    touched = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "model.discriminator.embed.token.weight" in touched and "model.discriminator.embed.norm.weight" in touched
    assert not any(
        name.startswith(("model.discriminator.blocks", "heads.rtd", "model.discriminator.embed.widen")) for name in touched
    )
    alone = network(spec.Adversaries(discriminator=spec.Single(**SMALL), generator=spec.Dials(width=16, heads=2)))  # type: ignore[arg-type]
    assert alone.model.generator.widen is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 3}, "not a multiple of heads"),
        ({"share": spec.Share(), "pattern": (spec.Attention(),)}, "cannot alternate"),
        ({"opening": "plain"}, "norms before each part"),
    ],
)
def test_parts_that_do_not_fit(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        spec.Single.model_validate({**SMALL, **change})

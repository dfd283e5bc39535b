"""The means against forgetting, each against its formula written out: pulls, Fisher information, rates by layer, frozen weights,
low-rank additions, distillation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.depth import depths
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.masked import Masked
from ziggurat.train import loop
from ziggurat.train.anchor import Pull, fisher
from ziggurat.train.distill import Distilled, divergence, teacher_of
from ziggurat.train.lora import Adapters
from ziggurat.train.optim import build_optimizer
from ziggurat.types import Batch, Stream, join, text_target

CPU = torch.device("cpu")
LM = {"lm": spec.VocabHead()}


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    weight_decay: float = 0.1


def network(seed: int = 1, layers: int = 2) -> NetworkModel:
    model = spec.Single(vocab=40, width=16, layers=layers, heads=2, mlp=32)
    made = NetworkModel(spec.Network(model=model, heads=dict(LM)))
    made.initialise(torch.Generator().manual_seed(seed))
    return made.double()


def batch(seed: int, documents: int, asked: int) -> Batch:
    """Documents of 8 tokens; `asked` of all tokens are to be predicted."""
    draw, n = np.random.default_rng(seed), 8 * documents
    content, position = draw.integers(0, 40, n).astype(np.int32), np.tile(np.arange(8, dtype=np.int32), documents)
    stream = Stream(content, np.arange(0, n + 1, 8), position, np.zeros(n, np.int32), row=8)
    at = np.sort(draw.choice(n, asked, replace=False))
    return Batch({"text": stream}, {"mlm": text_target(at, content[at])}, np.arange(documents, dtype=np.uint64))


def step(net: NetworkModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """One update; returns the gradients it was made with."""
    optimizer.zero_grad(set_to_none=True)
    loop.backward(net, Masked(), [batch(0, 4, 9)], CPU, torch.float32)
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    optimizer.step()
    return grads


def adam(grad: Tensor, lr: float) -> Tensor:
    """The first update of Adam: both running means are unbiased, so it is lr * g / (|g| + eps)."""
    return lr * grad / (grad.abs() + 1e-9)


@pytest.mark.parametrize("ewc", [False, True])
def test_a_pull_by_hand(ewc: bool) -> None:
    net, start = network(), {n: p.detach() + 0.1 for n, p in network(2).named_parameters()}
    draw = torch.Generator().manual_seed(0)
    information = {n: 50 * torch.rand(t.shape, generator=draw, dtype=t.dtype) for n, t in start.items()} if ewc else None
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = build_optimizer(net, Optim(), undecayed=start)
    Pull(net, start, 3.0, 7.0, information).attach(optimizer)
    grads = step(net, optimizer)
    for name, p in net.named_parameters():
        strength = 3.0 + 7.0 * information[name] if information is not None else torch.tensor(3.0, dtype=torch.float64)
        rate = (1e-2 * strength).clamp(max=1.0)  # some are at 1: those weights are back at the start before the update
        by_hand = before[name] - rate * (before[name] - start[name]) - adam(grads[name], 1e-2)
        torch.testing.assert_close(p.detach(), by_hand, rtol=1e-12, atol=1e-12)


def test_a_pull_holds_within_one_over_its_strength() -> None:
    """With a gradient that never turns, AdamW walks away; pulled, it comes to rest about 1/strength from its start."""
    weight = torch.nn.Linear(3, 1, bias=False).double()
    start = {"weight": weight.weight.detach().clone()}
    optimizer = build_optimizer(weight, Optim(weight_decay=0.0))
    Pull(weight, start, 20.0).attach(optimizer)
    for _ in range(200):
        optimizer.zero_grad()
        weight.weight.sum().backward()
        optimizer.step()
    torch.testing.assert_close(
        start["weight"] - weight.weight.detach(), torch.full((1, 3), 1 / 20, dtype=torch.float64), rtol=0.01, atol=0
    )


def test_new_and_frozen_parameters_are_not_pulled() -> None:
    net = network()
    net.model.embed.token.weight.requires_grad_(False)  # type: ignore[union-attr]
    start = {n: p.detach() for n, p in network(2).named_parameters() if not n.startswith("heads.")}
    pull = Pull(net, start, 1.0)
    held = {name for name, p in net.named_parameters() if id(p) in pull.held}
    assert held == set(start) - {"model.embed.token.weight"}


def test_fisher_information_is_its_expectation() -> None:
    """Against the sum over every possible answer of its probability times its squared gradient."""
    net, one = network(layers=1), batch(3, 2, 5)
    asked = Masked().asked(net, to_device(one, CPU))["mlm"]
    logs = net.logits("lm", asked.hidden, asked.streams, asked.target).log_softmax(-1)
    exact: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for k in range(5):
        for v in range(40):
            grads = torch.autograd.grad(logs[k, v], list(net.parameters()), retain_graph=True, allow_unused=True)
            for name, g in zip(exact, grads, strict=True):
                exact[name] += logs[k, v].detach().exp() * g.square() if g is not None else 0
    mean = sum(float(e.sum()) for e in exact.values()) / sum(e.numel() for e in exact.values())
    found = fisher(net, Masked(), [one] * 400, seed=0)
    again = fisher(net, Masked(), [one] * 400, seed=0)
    mine, true = (torch.cat([d[n].flatten() for n in exact]) for d in (found, {n: e / mean for n, e in exact.items()}))
    assert all(torch.equal(found[n], again[n]) for n in found)
    assert float(mine.mean()) == pytest.approx(1.0)
    assert float(torch.corrcoef(torch.stack([mine, true]))[0, 1]) > 0.97
    large = true > 1
    assert float((mine[large] / true[large]).median()) == pytest.approx(1.0, abs=0.1)


def test_depths_and_rates_by_layer() -> None:
    net = network()
    found, top = depths(net, net.spec.model)
    assert top == 3 and {d for n, d in found.items() if n.startswith("heads.")} == {3}
    assert {
        n: found[n] for n in ("model.embed.token.weight", "model.blocks.0.mlp.up.weight", "model.blocks.1.mlp.up.weight")
    } == {
        "model.embed.token.weight": 0,
        "model.blocks.0.mlp.up.weight": 1,
        "model.blocks.1.mlp.up.weight": 2,
    }
    optimizer = build_optimizer(net, Optim(weight_decay=0.0), scales={n: 0.5 ** (top - d) for n, d in found.items()})
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer.zero_grad()
    loop.backward(net, Masked(), [batch(0, 4, 9)], CPU, torch.float32)
    grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    for group in optimizer.param_groups:  # as the loop does
        group["lr"] = 1e-2 * group["scale"]
    optimizer.step()
    for name, p in net.named_parameters():
        rate = 1e-2 * {0: 1 / 8, 1: 1 / 4, 2: 1 / 2, 3: 1}[found[name]]
        torch.testing.assert_close(p.detach(), before[name] - adam(grads[name], rate), rtol=1e-10, atol=1e-12)


def test_depths_of_two_stacks() -> None:
    twin = spec.EncoderDecoder(vocab=40, width=16, layers=2, decoder_layers=3, heads=2, mlp=32)
    found, top = depths(net := NetworkModel(spec.Network(model=twin, heads=dict(LM))), twin)
    assert top == 6 and found["model.token.weight"] == 0 and found["model.encoder.blocks.1.mlp.up.weight"] == 2
    assert found["model.decoder.blocks.0.mlp.up.weight"] == 3 and found["model.decoder.blocks.2.cross.q.weight"] == 5
    assert set(found) == {n for n, _ in net.named_parameters()}
    pair = spec.Adversaries(
        discriminator=spec.Single(vocab=40, width=16, layers=4, heads=2, mlp=32),
        generator=spec.Dials(layers=2, width=16, heads=2, mlp=32),
    )
    found, top = depths(NetworkModel(spec.Network(model=pair, heads=dict(LM))), pair)
    assert (
        top == 5 and found["model.generator.blocks.1.mlp.up.weight"] == found["model.discriminator.blocks.3.mlp.up.weight"] == 4
    )


def test_lora_merged_is_lora_unmerged() -> None:
    net, plain = network(), network()
    names = list(net.state_dict())
    for p in net.parameters():
        p.requires_grad_(False)
    adapters = Adapters(net, 3, 6.0, ("q", "v", "up"), torch.Generator().manual_seed(0))
    assert set(adapters.added) == {f"model.blocks.{i}.{m}" for i in (0, 1) for m in ("attention.q", "attention.v", "mlp.up")}
    assert list(adapters.merged()) == names and all(torch.equal(t, plain.state_dict()[n]) for n, t in adapters.merged().items())
    optimizer = build_optimizer(net, Optim())
    for _ in range(3):
        step(net, optimizer)
    streams = to_device(batch(5, 3, 4), CPU).streams
    with torch.no_grad():
        unmerged = net(streams)["text"]
        with adapters.folded():
            folded = net(streams)["text"]
        back = net(streams)["text"]
        plain.load_state_dict(adapters.merged())
        merged = plain(streams)["text"]
    torch.testing.assert_close(merged, unmerged, rtol=1e-12, atol=1e-12)
    assert torch.equal(merged, folded) and torch.equal(back, unmerged)
    untouched = network().state_dict()
    changed = {n for n, t in plain.state_dict().items() if not torch.equal(t, untouched[n])}
    assert changed == {f"{m}.weight" for m in adapters.added}
    a, b = (adapters.tensors()[f"model.blocks.0.attention.q.{part}"] for part in ("lora_a", "lora_b"))
    by_hand = untouched["model.blocks.0.attention.q.weight"] + 2.0 * b @ a
    torch.testing.assert_close(plain.state_dict()["model.blocks.0.attention.q.weight"], by_hand, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("biased", [True, False])
def test_distillation_is_the_dense_divergence(biased: bool) -> None:
    """Value and gradients against autograd over the whole score matrices; 700 rows are two chunks."""
    draw = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def side(width: int) -> list[Tensor]:
        return [made(700, width), made(50, width), made(50) if biased else torch.zeros(0, dtype=torch.float64)]

    student, teacher, weight, t = [x.requires_grad_() for x in side(6)], side(4), made(700).abs(), 1.7
    divergence(tuple(student), tuple(teacher), weight, t).backward()  # type: ignore[arg-type]
    mine = [x.grad for x in student]
    dense = [x.detach().clone().requires_grad_() for x in student]

    def scores(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return h @ w.t() + (b if len(b) else 0)

    rows = F.kl_div((scores(*dense) / t).log_softmax(-1), (scores(*teacher) / t).softmax(-1), reduction="none").sum(-1)
    total = (rows * weight).sum() * t * t
    total.backward()
    torch.testing.assert_close(divergence(tuple(student), tuple(teacher), weight, t), total)  # type: ignore[arg-type]
    for a, b in zip(mine, (x.grad for x in dense), strict=True):
        if a is not None and a.numel():
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_distilled_losses_and_accumulation() -> None:
    """Own loss and divergence by hand; micro-batches with different numbers of rows give the gradient of one big batch."""
    net, old = network(), network(2)
    both = Distilled(Masked(), teacher_of(net, old.state_dict()), weight=0.3, temperature=2.0)
    few, many = batch(0, 2, 2), batch(1, 4, 19)
    means = loop.backward(net, both, [join(few, many)], CPU, torch.float32)  # type: ignore[arg-type]
    big = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    split = loop.backward(net, both, [few, many], CPU, torch.float32)  # type: ignore[arg-type]
    for p, g in zip((p for p in net.parameters() if p.grad is not None), big, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-7, atol=1e-10)  # weights are float32
    assert split == pytest.approx(means) and set(means) == {"mlm", "mlm_distilled", "loss"}
    asked = {n: Masked().asked(n, to_device(join(few, many), CPU))["mlm"] for n in (net, old)}
    mine, theirs = (n.logits("lm", a.hidden, a.streams, a.target) for n, a in asked.items())
    value = asked[net].target.value
    kl = F.kl_div((mine / 2).log_softmax(-1), (theirs / 2).softmax(-1), reduction="batchmean") * 4
    assert means["mlm"] == pytest.approx(F.cross_entropy(mine, value).item())
    assert means["mlm_distilled"] == pytest.approx(kl.item())
    assert means["loss"] == pytest.approx(0.7 * means["mlm"] + 0.3 * means["mlm_distilled"])
    same = Distilled(Masked(), teacher_of(net, net.state_dict()), weight=0.3, temperature=2.0)
    assert loop.backward(net, same, [few], CPU, torch.float32)["mlm_distilled"] == pytest.approx(0, abs=1e-12)  # type: ignore[arg-type]

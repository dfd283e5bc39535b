"""The optimizer: who decays, state by name, clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import model_of
from ziggurat.train.optim import build_optimizer, clip, load_optimizer_tensors, optimizer_tensors, parameter_groups


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.1


def network(seed: int = 0, order: str = "ab") -> nn.Module:
    """An embedding, a norm, a dense layer tied to nothing, and a layer that is never used."""
    torch.manual_seed(seed)
    layers = {"a": nn.Linear(4, 4), "b": nn.LayerNorm(4)}
    return nn.ModuleDict({"embed": nn.Embedding(7, 4), **{name: layers[name] for name in order}, "unused": nn.Linear(4, 2)})


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        ids = torch.randint(7, (5,), generator=draw)
        loss = net["b"](net["a"](net["embed"](ids))).square().sum() + net["embed"].weight.sum()  # type: ignore[index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_matrices_decay_and_vectors_do_not() -> None:
    net = network()
    net["a"].weight = nn.Parameter(net["embed"].weight[:4].detach())  # type: ignore[index]
    roles = {id(p): group["weight_decay"] for group in parameter_groups(net, 0.1) for p in group["params"]}
    assert {name: roles[id(p)] for name, p in net.named_parameters()} == {
        "embed.weight": 0.1,
        "a.weight": 0.1,
        "a.bias": 0.0,
        "b.weight": 0.0,
        "b.bias": 0.0,
        "unused.weight": 0.1,
        "unused.bias": 0.0,
    }


@pytest.mark.parametrize("name", ["xlnet", "t5", "bert"])
def test_biases_with_a_row_a_head_do_not_decay(name: str) -> None:
    """The Hub's names of what decays not have `bias` in them, or are norms: what its Trainer leaves out."""
    with torch.device("meta"):
        net = NetworkModel(spec.Network(model=model_of(f"{name}/tiny", {}, 100)))
    decayed = {id(p) for group in parameter_groups(net, 0.1) if group["weight_decay"] for p in group["params"]}
    spared = [n for n, p in net.named_parameters() if p.dim() > 1 and id(p) not in decayed]
    ends = {"xlnet": ["content_bias", "distance_bias", "segment_bias"], "t5": ["buckets.table.weight"], "bert": []}[name]
    assert all(any(n.endswith(end) for n in spared) for end in ends) and all(n.endswith(tuple(ends)) for n in spared)


def test_shared_and_frozen_parameters() -> None:
    net = network()
    net["unused"].weight = net["a"].weight  # type: ignore[index]
    net["embed"].weight.requires_grad_(False)  # type: ignore[index]
    members = [p for group in parameter_groups(net, 0.1) for p in group["params"]]
    assert len(members) == len({id(p) for p in members}) == 5
    assert [group["role"] for group in parameter_groups(nn.LayerNorm(3), 0.1)] == ["vectors"]


def test_one_update_by_hand() -> None:
    """The first AdamW update moves every weight by lr against the gradient's sign, after shrinking it by lr * decay."""
    net = nn.Linear(2, 1)
    before = net.weight.detach().clone(), net.bias.detach().clone()
    optimizer = build_optimizer(net, Optim(eps=1e-12))
    assert all(group["fused"] for group in optimizer.param_groups)
    net(torch.tensor([[1.0, -2.0]])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(net.weight.detach(), before[0] * (1 - 1e-3) - 1e-2 * torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(net.bias.detach(), before[1] - 1e-2)


def test_stop_and_resume_bit_for_bit(tmp_path: Path) -> None:
    straight = network()
    optimizer = build_optimizer(straight, Optim())
    train(straight, optimizer, range(10))

    stopped = network()
    optimizer = build_optimizer(stopped, Optim())
    train(stopped, optimizer, range(4))
    saved = optimizer_tensors(optimizer, stopped)
    assert set(saved) == {
        f"{n}/{k}"
        for n in ("embed.weight", "a.weight", "a.bias", "b.weight", "b.bias")
        for k in ("step", "exp_avg", "exp_avg_sq")
    }
    save_file(saved, tmp_path / "optimizer.safetensors")
    weights = {name: p.detach().clone() for name, p in stopped.named_parameters()}

    resumed = network(seed=1, order="ba")  # other numbers of the same names: state goes by name, not by place
    resumed.load_state_dict(weights)
    optimizer = build_optimizer(resumed, Optim())
    load_optimizer_tensors(optimizer, resumed, load_file(tmp_path / "optimizer.safetensors"))
    for name, tensor in optimizer_tensors(optimizer, resumed).items():
        assert torch.equal(tensor, saved[name]) and tensor.dtype == saved[name].dtype
    train(resumed, optimizer, range(4, 10))
    for name, p in resumed.named_parameters():
        assert torch.equal(p, dict(straight.named_parameters())[name]), name


def test_loading_replaces_and_copies() -> None:
    net = network()
    optimizer = build_optimizer(net, Optim())
    train(net, optimizer, range(2))
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, net).items()}
    train(net, optimizer, range(2, 4))
    load_optimizer_tensors(optimizer, net, saved)
    train(net, optimizer, range(4, 5))
    assert saved["a.weight/step"] == 2 and optimizer_tensors(optimizer, net)["a.weight/step"] == 3
    load_optimizer_tensors(optimizer, net, {})
    assert optimizer_tensors(optimizer, net) == {}


def test_state_of_another_network() -> None:
    net = network()
    optimizer = build_optimizer(net, Optim())
    train(net, optimizer, range(1))
    saved = optimizer_tensors(optimizer, net)
    with pytest.raises(UserError, match=r"unexpected  a\.weigth/exp_avg \(nearest: "):
        load_optimizer_tensors(optimizer, net, {**saved, "a.weigth/exp_avg": torch.zeros(4, 4)})
    with pytest.raises(UserError, match=r"missing     a\.bias/exp_avg_sq"):
        load_optimizer_tensors(optimizer, net, {k: v for k, v in saved.items() if k != "a.bias/exp_avg_sq"})
    with pytest.raises(UserError, match=r"embed\.weight/exp_avg: \[8, 4\] there, \[7, 4\] in the model"):
        load_optimizer_tensors(optimizer, net, {**saved, "embed.weight/exp_avg": torch.zeros(8, 4)})
    assert optimizer_tensors(optimizer, net).keys() == saved.keys()  # a refused state changes nothing


def test_clip_as_torch_does() -> None:
    ours, theirs = network(), network()
    for net in (ours, theirs):
        draw = torch.Generator().manual_seed(3)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=draw)
        net["unused"].bias.grad = None  # type: ignore[index]
    by_hand = math.sqrt(sum(float(p.grad.double().square().sum()) for p in ours.parameters() if p.grad is not None))
    assert float(clip(ours.parameters(), None)) == pytest.approx(by_hand, rel=1e-6)
    norm = clip(ours.parameters(), 0.5)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)) and float(norm) == pytest.approx(
        by_hand, rel=1e-6
    )
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None and other.grad is not None:
            assert torch.equal(mine.grad, other.grad)
    assert float(clip(ours.parameters(), 100.0)) == pytest.approx(0.5, rel=1e-4)
    assert float(clip([nn.Parameter(torch.zeros(2))], 1.0)) == 0.0


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_reported_and_nothing_scaled(poison: float) -> None:
    net = nn.Linear(3, 2)
    net.weight.grad, net.bias.grad = torch.ones(2, 3), torch.tensor([1.0, poison])
    assert not torch.isfinite(clip(net.parameters(), 0.1))
    assert torch.equal(net.weight.grad, torch.ones(2, 3)) and net.bias.grad[0] == 1


@pytest.mark.gpu
def test_stop_and_resume_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    nets = [nn.Linear(64, 64).cuda() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(8, 64, device="cuda")
    optimizers = [build_optimizer(net, Optim()) for net in nets]
    for step in range(6):
        if step == 3:
            nets[1].load_state_dict(nets[0].state_dict())
            state = {name: tensor.cpu() for name, tensor in optimizer_tensors(optimizers[0], nets[0]).items()}
            load_optimizer_tensors(optimizers[1], nets[1], state)
        for net, optimizer in list(zip(nets, optimizers, strict=True))[: 1 if step < 3 else 2]:
            optimizer.zero_grad()
            net(x).square().sum().backward()
            clip(net.parameters(), 1.0)
            optimizer.step()
    assert torch.equal(nets[0].weight, nets[1].weight) and torch.equal(nets[0].bias, nets[1].bias)

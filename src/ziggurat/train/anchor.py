"""Weights held near where a stage began: the pull of L2-to-start and of elastic weight consolidation, and its Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ziggurat.evaluate.heldout import CHUNK, to_device
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Asked, Objective
from ziggurat.types import Batch


class Pull:
    """Before every update, each held parameter moves toward its start: w <- w - min(1, lr * strength) * (w - start).

    Decoupled from the gradient's moments, as AdamW's weight decay is, and for the same reason: inside the loss the term would be
    divided by the gradient's own size. `strength` is `l2` (L2-SP: Li et al., 2018, in the place of the decay toward 0) plus `ewc` times
    the parameter's Fisher information (Kirkpatrick et al., 2017). AdamW moves a weight by about `lr` an update, so a strength of s holds it
    within about 1/s of its start.
    """

    def __init__(
        self,
        network: nn.Module,
        start: Mapping[str, Tensor],
        l2: float,
        ewc: float = 0.0,
        fisher: Mapping[str, Tensor] | None = None,
    ):
        self.held: dict[int, tuple[Tensor, float | Tensor]] = {}
        for name, parameter in network.named_parameters():
            if name in start and parameter.requires_grad:
                begun = start[name].detach().to(parameter.device, parameter.dtype, copy=True)
                information = (fisher or {}).get(name)
                strength = l2 if information is None else l2 + ewc * information.to(parameter.device, parameter.dtype)
                self.held[id(parameter)] = begun, strength

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull at every step of this optimizer."""
        optimizer.register_step_pre_hook(self)

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer, args: Any = (), kwargs: Any = None) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self.held:
                    begun, strength = self.held[id(parameter)]
                    rate = group["lr"] * strength
                    parameter.lerp_(begun, rate.clamp(max=1.0) if isinstance(rate, Tensor) else min(rate, 1.0))


def fisher(network: NetworkModel, objective: Objective, batches: Iterable[Batch], seed: int) -> dict[str, Tensor]:
    """The diagonal Fisher information of each trained parameter on these batches, scaled so that its mean over all is 1.

    That is the mean square of the gradient of the log-likelihood, with answers *drawn from the model* (with the true ones it would be the
    "empirical" Fisher, which is something else: Kunstner et al., 2019). Gradients of different drawn answers are independent and have mean 0, so
    the square of a whole batch's gradient is an unbiased estimate of the sum over its predictions. In float32; draws come from `seed`.
    """
    device = next(network.parameters()).device
    draws = torch.Generator(device).manual_seed(seed)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in trained.items()}
    was_training = network.training
    network.eval()
    for batch in batches:
        network.zero_grad(set_to_none=True)
        terms = []
        for asked in objective.asked(network, to_device(batch, device)).values():
            if len(asked.target.index):
                drawn = replace(asked.target, value=_answers(network, asked, draws))
                terms.append(network.loss(asked.head, asked.hidden, asked.streams, drawn).total)
        if terms:
            torch.stack(terms).sum().backward()
            for name, parameter in trained.items():
                if parameter.grad is not None:
                    sums[name] += parameter.grad.square()
    network.zero_grad(set_to_none=True)
    network.train(was_training)
    mean = sum(float(s.double().sum()) for s in sums.values()) / max(1, sum(s.numel() for s in sums.values()))
    return {name: s / mean if mean > 0 else s for name, s in sums.items()}


@torch.no_grad()
def _answers(network: NetworkModel, asked: Asked, draws: torch.Generator) -> Tensor:
    """Answers drawn from the model's own distribution, in the form of the target's values."""
    target, found = asked.target, []
    for begin in range(0, len(target.index), CHUNK):
        rows = slice(begin, begin + CHUNK)
        few = replace(
            target, index=target.index[rows], value=target.value[rows], weight=target.weight[rows], group=None, noise=None
        )
        scores = network.logits(asked.head, asked.hidden, asked.streams, few).float()
        if target.value.is_floating_point():
            found.append(scores[:, 0] + torch.randn(len(scores), generator=draws, device=scores.device))
        elif scores.shape[1] == 1:
            found.append((torch.rand(len(scores), generator=draws, device=scores.device) < scores[:, 0].sigmoid()).long())
        else:
            found.append(torch.multinomial(scores.softmax(-1), 1, generator=draws)[:, 0])
    return torch.cat(found).to(target.value.dtype)

"""Low-rank adaptation (Hu et al., 2022): W + (alpha / rank) B A with W frozen, as two further parameters of each chosen matrix.

They are called `<module>.lora_a` [rank, in] and `<module>.lora_b` [out, rank] and live in the network while a stage trains; what a
checkpoint holds of the network is the sum, under the matrix's own name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

A, B = "lora_a", "lora_b"
TARGETS = ("q", "k", "v", "out", "up", "gate", "down")
"""Matrices of a layer that there can be additions to."""


def matrices(network: nn.Module, targets: Sequence[str] = TARGETS) -> dict[str, nn.Linear]:
    """The matrices of all layers that are called so, by their modules' names."""
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in linear.items() if ".blocks." in name and name.rpartition(".")[2] in targets}


class Adapters:
    """The additions to a network's matrices. `generator` draws the first matrix of each; the second is 0, so nothing changes at first."""

    def __init__(self, network: nn.Module, rank: int, alpha: float, targets: Sequence[str], generator: torch.Generator):
        self.network, self.scale, self.added = network, alpha / rank, matrices(network, targets)
        for module in self.added.values():
            bound = 1 / math.sqrt(module.in_features)  # kaiming_uniform with a = sqrt(5), as in the released code
            first = torch.empty(rank, module.in_features).uniform_(-bound, bound, generator=generator).to(module.weight)
            module.register_parameter(A, nn.Parameter(first))
            module.register_parameter(B, nn.Parameter(module.weight.new_zeros(module.out_features, rank)))
            module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        low = F.linear(inputs[0], getattr(module, A))
        return output + F.linear(low, getattr(module, B)) * self.scale

    def delta(self, module: nn.Linear) -> Tensor:
        """[out, in]: what is added to a matrix; the product is made in float64 and rounded once."""
        product = getattr(module, B).detach().double() @ getattr(module, A).detach().double()
        return (product * self.scale).to(module.weight.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The additions by parameter name; the tensors are the network's own."""
        return {f"{name}.{part}": getattr(module, part).detach() for name, module in self.added.items() for part in (A, B)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put additions back that `tensors` took."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def merged(self) -> dict[str, Tensor]:
        """The network's parameters with the additions in their matrices, under the names the network had without them."""
        found = {n: t for n, t in self.network.state_dict().items() if not n.endswith((f".{A}", f".{B}"))}
        return found | {f"{name}.weight": module.weight.detach() + self.delta(module) for name, module in self.added.items()}

    @contextmanager
    def folded(self) -> Iterator[None]:
        """The network computes with the sums, as one that is loaded from a checkpoint will."""
        kept = {
            name: (module.weight.detach().clone(), getattr(module, B).detach().clone()) for name, module in self.added.items()
        }
        with torch.no_grad():
            for module in self.added.values():
                module.weight += self.delta(module)
                getattr(module, B).zero_()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, module in self.added.items():
                    module.weight.copy_(kept[name][0])
                    getattr(module, B).copy_(kept[name][1])

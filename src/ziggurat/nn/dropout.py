"""Dropout whose masks are cheap on a CPU: sixteen random bits a number instead of a draw of its own, a quarter of the time.

Paper: Srivastava et al., 2014.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1 << 16
"""Rates are multiples of one 65,536th: 0.1 is 0.100006, and what is kept is scaled by that."""


def dropout(x: Tensor, rate: float) -> Tensor:
    """`x` with a share `rate` (in [0, 1]) of its numbers set to 0 and the others divided by 1 - rate, so that means stay. The draws are those of
    torch's default generator of the device; float[...] of any shape in and out."""
    if rate == 0 or not x.numel():
        return x
    lost = round(rate * STEPS)
    if x.device.type != "cpu" or lost in (0, STEPS):
        return F.dropout(x, rate)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= lost - STEPS // 2
    return x * kept.to(x.dtype).mul_(STEPS / (STEPS - lost))


class Dropout(nn.Dropout):
    """`dropout` as a module: nothing happens outside training."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training else input

"""Dropout by shares of sixteen bits: the rate, the mean, independence of neighbours, and the gradient of what was kept."""

from __future__ import annotations

import math

import pytest
import torch

from ziggurat.nn.dropout import STEPS, Dropout, dropout


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.5, 0.9])
def test_rate_mean_and_values(rate: float) -> None:
    torch.manual_seed(0)
    n = 1_000_003  # no multiple of four
    found = dropout(torch.full((n,), 2.0), rate)
    lost = float((found == 0).float().mean())
    assert abs(lost - rate) < 4 * math.sqrt(rate * (1 - rate) / n) + 1 / STEPS
    assert found.unique().tolist() == pytest.approx([0.0, 2 / (1 - rate)], rel=10 / STEPS)
    assert float(found.mean()) == pytest.approx(2, rel=0.01)


def test_draws_are_independent() -> None:
    """Also the four that come from one number of 64 bits, and the first and last of them lose as much."""
    torch.manual_seed(1)
    lost = (dropout(torch.ones(800_000), 0.3) == 0).double().view(-1, 4)
    assert (lost.mean(0) - 0.3).abs().max() < 0.005
    between = torch.corrcoef(torch.cat([lost, lost.roll(1, 0)], 1).T) - torch.eye(8)
    assert between.abs().max() < 0.012


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_what_was_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x = torch.randn(7, 5, 9, dtype=dtype, requires_grad=True)
    found = dropout(x, 0.4)
    assert found.shape == x.shape and found.dtype == dtype
    found.sum().backward()
    assert x.grad is not None
    scale = torch.tensor(STEPS / (STEPS - round(0.4 * STEPS))).to(dtype)
    torch.testing.assert_close(x.grad, torch.where(found == 0, 0, scale).to(dtype))
    torch.testing.assert_close(found, x.detach() * x.grad)


def test_seeds_edges_and_evaluation() -> None:
    x = torch.randn(30, 4)
    torch.manual_seed(3)
    first = dropout(x, 0.2)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.2)) and not torch.equal(first, dropout(x, 0.2))
    before = torch.get_rng_state()
    assert dropout(x, 0.0) is x and dropout(x[:0], 0.2).shape == (0, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(before, torch.get_rng_state()), "nothing is drawn for nothing"
    assert torch.equal(dropout(x, 1.0), torch.zeros_like(x))
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.2).train()(x), first)

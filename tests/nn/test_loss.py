"""Losses against torch's own, and the promise that scores over the vocabulary never exist all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ziggurat.nn import loss as module
from ziggurat.nn.loss import CHUNK, cross_entropy, squared_error, vocab_cross_entropy

VOCAB, WIDTH = 11, 4


def problem(rows: int, dtype: torch.dtype = torch.float64, bias: bool = True, vocab: int = VOCAB) -> list[Tensor]:
    """hidden, table, bias (empty for none), value, weight."""
    g = torch.Generator().manual_seed(rows)
    hidden, table = (torch.randn(n, WIDTH, generator=g, dtype=torch.float64).to(dtype) for n in (rows, vocab))
    shift = torch.randn(vocab if bias else 0, generator=g, dtype=torch.float64).to(dtype)
    value = torch.randint(vocab, (rows,), generator=g)
    weight = torch.rand(rows, generator=g) * (torch.rand(rows, generator=g) > 0.2)
    return [hidden, table, shift, value, weight]


def ours(hidden: Tensor, table: Tensor, bias: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    return vocab_cross_entropy(hidden, table, bias if len(bias) else None, value, weight)


def theirs(hidden: Tensor, table: Tensor, bias: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    scores = F.linear(hidden, table, bias if len(bias) else None)
    return (F.cross_entropy(scores, value, reduction="none") * weight).sum()


def outcome(function: Any, parts: list[Tensor]) -> list[Tensor]:
    """The value and the gradients, of 0.37 times the loss, as an optimiser step with several losses would have them."""
    leaves = [p.clone().requires_grad_() for p in parts[:3]]
    total = function(*leaves, *parts[3:])
    (0.37 * total).backward()
    return [total.detach(), *(x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("rows,chunk", [(0, 3), (1, 3), (3, 3), (7, 3), (12, 3), (CHUNK + 3, CHUNK), (2 * CHUNK, CHUNK)])
def test_value_and_gradients_are_those_of_the_dense_loss(
    rows: int, chunk: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    parts = problem(rows, bias=bias)
    for x, y in zip(outcome(ours, parts), outcome(theirs, parts), strict=True):
        torch.testing.assert_close(x, y, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_gradients_are_slopes(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    *leaves, value, weight = problem(5, bias=bias)
    inputs = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(lambda h, t, b: ours(h, t, b, value, weight), inputs)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_frozen_parts_change_nothing_for_the_others(wanted: tuple[bool, ...]) -> None:
    parts = problem(9)
    expected = outcome(theirs, parts)[1:]
    leaves = [p.clone().requires_grad_(w) for p, w in zip(parts, wanted, strict=False)]
    (0.37 * ours(leaves[0], leaves[1], leaves[2], *parts[3:])).backward()
    for leaf, want, grad in zip(leaves, wanted, expected, strict=True):
        assert (leaf.grad is not None) == want
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, grad)


def test_without_gradients_the_value_is_the_same() -> None:
    parts = problem(9)
    with torch.no_grad():
        torch.testing.assert_close(ours(*parts), theirs(*parts))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden, *rest = problem(4)
    hidden.requires_grad_()
    (slope,) = torch.autograd.grad(ours(hidden, *rest), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad|twice"):
        slope.square().sum().backward()


def test_float32_and_bfloat16() -> None:
    """float32 to 1e-5; under autocast to bfloat16 (8 bits) the value to 1%, gradients to 2% of their size."""
    exact = outcome(theirs, problem(700))
    single = problem(700, torch.float32)
    for x, y in zip(outcome(ours, single), exact, strict=True):
        assert x.dtype == torch.float32
        assert float((x.double() - y).norm()) <= 1e-5 * float(y.norm())
    with torch.autocast("cpu", torch.bfloat16):
        half = outcome(ours, single)
    for x, y, most in zip(half, exact, (0.01, 0.02, 0.02, 0.02), strict=True):
        assert x.dtype == torch.float32
        assert float((x.double() - y).norm()) <= most * float(y.norm())


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("vocab", [600])
def test_scores_never_exist_all_at_once(vocab: int) -> None:
    rows = 4 * CHUNK
    parts = problem(rows, torch.float32, vocab=vocab)
    leaves = [p.requires_grad_() for p in parts[:3]]
    for function, most in (ours, CHUNK * vocab), (theirs, rows * vocab):
        with Largest() as largest:
            function(*leaves, *parts[3:]).backward()
        assert largest.numel == most


def test_cross_entropy_and_squared_error_are_weighted_sums() -> None:
    scores = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 0.0])
    by_hand = -torch.log(torch.exp(scores[0, 1]) / torch.exp(scores[0]).sum()) + 0.5 * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(cross_entropy(scores, torch.tensor([1, 0, 1]), weight), by_hand)
    numbers = torch.tensor([1.0, 2.0, 9.0])
    assert float(squared_error(torch.tensor([[3.0], [1.0], [0.0]]), numbers, weight)) == pytest.approx(4.0 + 0.5)
    half = squared_error(torch.tensor([[3.0]], dtype=torch.bfloat16), torch.tensor([1.01]), torch.ones(1))
    assert half.dtype == torch.float32 and float(half) == pytest.approx(1.99**2, rel=1e-6)
    assert cross_entropy(scores.bfloat16(), torch.tensor([1, 0, 1]), weight).dtype == torch.float32

"""Keys that nobody but their own row sees, taken out: the same output and gradients under every scheme of distance, with fewer keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import PUBLISHED, Case, full, none, prophet, random_case, stream_of, xlnet
from test_positions import SCHEMES, WIDTH, layer_of

from ziggurat.nn.lone import few_keys
from ziggurat.nn.visibility import Plan, plan
from ziggurat.types import Stream

ROW = 20
MIXED = [prophet(5, 2), xlnet(6, [4, 3]), none(), prophet(4, 3), xlnet(5, [2, 0, 4, 1, 3]), full(3)]


def placed(cases: list[Case], row: int) -> Stream:
    """The cases with positions and segments at random."""
    stream, _ = stream_of(cases, row=row)
    rng = np.random.default_rng(0)
    total = len(stream.content)
    position, segment = (torch.from_numpy(rng.integers(0, most, total).astype(np.int32)) for most in (12, 2))
    return replace(stream, position=position, segment=segment)


def outcome(name: str, layout: Plan, stream: Stream, read: torch.Tensor | None = None) -> list[torch.Tensor]:
    layer = layer_of(SCHEMES[name])
    x = torch.randn(len(stream.content), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = layer(x, layout, read)
    (out * out.detach().cos()).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]  # type: ignore[list-item]


@pytest.mark.parametrize("row", [0, ROW], ids=["ragged", "packed"])
@pytest.mark.parametrize("name", SCHEMES)
def test_fewer_keys_change_nothing(name: str, row: int) -> None:
    stream = placed(MIXED, row)
    few = few_keys(plan(stream), stream)
    assert few.key.length < few.query.length and few.own is not None
    for read in (None, torch.tensor([0, 3, 7, 12, 22, len(stream.content) - 1])):
        for a, b in zip(outcome(name, few, stream, read), outcome(name, plan(stream), stream, read), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_text_with_two_streams_has_a_third_of_the_keys_and_each_its_own() -> None:
    stream = placed([prophet(6, 2)] * 3, 18)
    few = few_keys(plan(stream), stream)
    assert (few.key.length, few.query.length) == (6, 18)
    assert few.mask is not None and few.mask.shape == (3, 1, 18, 7)
    assert few.mask[0, 0, :, -1].tolist() == [False] * 6 + [True] * 12


def test_queries_that_nobody_sees_need_no_key_of_their_own() -> None:
    stream = placed([xlnet(6, [4, 3])] * 2, 8)
    few = few_keys(plan(stream), stream)
    assert (few.key.length, few.own) == (6, None)


@pytest.mark.parametrize("name", ["full", "causal", "prefix", "mpnet", "unilm2", "diffusion"])
def test_what_others_see_stays(name: str) -> None:
    """Nothing to take out, or rows that see each other."""
    stream = placed([PUBLISHED[name]] * 2, 0)
    layout, few = plan(stream), few_keys(plan(stream), stream)
    assert few.own is None and few.key.length in (layout.key.length, 9)
    for a, b in zip(outcome("relative", few, stream), outcome("relative", layout, stream), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("seed", range(12))
def test_any_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = [random_case(rng, int(n)) for n in rng.integers(0, 9, 5)]
    stream = placed([*cases, *MIXED], [0, ROW][seed % 2])
    for a, b in zip(
        outcome("content", few_keys(plan(stream), stream), stream), outcome("content", plan(stream), stream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)

"""Every kernel against one loop over queries and heads: values and gradients, every visibility, every layout."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracle import PUBLISHED, attention, blind, full, none, stream_of
from torch import Tensor

from ziggurat.nn import attention as module
from ziggurat.nn import spec
from ziggurat.nn.attention import AttentionLayer, attend, block_mask, pick
from ziggurat.nn.visibility import plan
from ziggurat.types import Stream

ROW, HEADS, DIM = 16, 2, 4
LENGTHS = (5, 0, 11, 3, 16, 1, 7)
LAYOUTS = {
    "packed": {"row": ROW},
    "ragged": {"row": 0},
}
KINDS = ("full", "causal", "custom")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
Scenario = tuple[Stream, np.ndarray]


def scenario(kind: str, row: int, *, even: bool = False) -> Scenario:
    """Documents of one kind; `custom` holds every published mask, blind queries and documents of no token."""
    if kind == "custom":
        return stream_of([none(), *PUBLISHED.values(), none(), blind(2)], row=row)
    stream, mask = stream_of([full(n) for n in ((ROW,) * 3 if even else LENGTHS)], row=row, kind=kind)
    return stream, np.tril(mask) if kind == "causal" else mask


SCENARIOS = {
    f"{kind}-{name}{'-even' * even}": (kind, layout["row"], even)
    for kind, (name, layout), even in itertools.product(KINDS, LAYOUTS.items(), (False, True))
    if not (even and kind == "custom")
}


def use(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setattr(module, "pick", lambda *a, **k: kernel)


def tensors(
    total: int, dtype: torch.dtype, seed: int = 0, heads: int = HEADS, dim: int = DIM, device: str = "cpu"
) -> list[Tensor]:
    """q, k, v, and the gradient that comes back to the output."""
    generator = torch.Generator().manual_seed(seed)
    return [1.5 * torch.randn(total, heads, dim, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(4)]


def both(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The output and the gradients of q, k, v."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(cotangent)
    return [out.detach(), *(x.grad for x in leaves)]  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_kernels_compute_the_definition(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, mask = scenario(*SCENARIOS[name][:2], even=SCENARIOS[name][2])
    values = tensors(len(stream.content), torch.float64)
    expected = both(lambda q, k, v: attention(q, k, v, mask), *values)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for kernel in ("plain", "sdpa"):
        use(monkeypatch, kernel)
        found = both(lambda q, k, v: attend(q, k, v, plan(stream)), *(x.to(dtype) for x in values))
        for what, x, y in zip(("output", "q", "k", "v"), found, expected, strict=True):
            said = f"{kernel}: {what} differs"
            np.testing.assert_allclose(x.double(), y, atol=tolerance, rtol=10 * tolerance, err_msg=said)


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize("row", [0, ROW])
def test_a_query_that_sees_nothing_returns_zero_and_finite_gradients(
    kernel: str, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, kernel)
    stream, mask = stream_of([blind(4), PUBLISHED["xlnet_all"], none(), blind(1)], row=row)
    lonely = ~mask.any(1)
    assert lonely.sum() >= 5
    for dtype in torch.float64, torch.float32, torch.bfloat16:
        q, k, v, cotangent = tensors(len(mask), dtype)
        huge = 100 * q  # scores far from zero must not beat the mask either
        out, *gradients = both(lambda q, k, v: attend(q, k, v, plan(stream)), huge, k, v, cotangent)
        assert (out[torch.from_numpy(lonely)] == 0).all()
        assert all(torch.isfinite(g).all() for g in gradients)
        assert (gradients[0][torch.from_numpy(lonely)] == 0).all()
        unseen = torch.from_numpy(~mask.any(0))
        assert (gradients[1][unseen] == 0).all() and (gradients[2][unseen] == 0).all()


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize("cases", [[], [none()], [none(), none()]], ids=["nothing", "one", "two"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [0, ROW])
def test_documents_without_tokens(kernel: str, cases: list[Any], kind: str, row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, kernel)
    stream, _ = stream_of(cases, row=row, kind=kind)
    q, k, v, _ = tensors(0, torch.float32)
    assert attend(q, k, v, plan(stream)).shape == (0, HEADS, DIM)


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_bfloat16_stays_near_float32(kernel: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 bits of mantissa: values and gradients of size 1 to 5 within 0.15, and on average within 0.006."""
    use(monkeypatch, kernel)
    stream, _ = scenario(*SCENARIOS[name][:2], even=SCENARIOS[name][2])
    exact = [x.bfloat16() for x in tensors(len(stream.content), torch.float32)]
    expected = both(lambda q, k, v: attend(q, k, v, plan(stream)), *(x.float() for x in exact))
    found = both(lambda q, k, v: attend(q, k, v, plan(stream)), *exact)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(x.float(), y, atol=0.15, rtol=0.03)
        assert float((x.float() - y).abs().mean()) < 0.006


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", [n for n in SCENARIOS if "even" not in n])
def test_flex_attention_reads_the_same_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled and forward only: FlexAttention has no backward on CPUs."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(module, "_flex", lambda: flex_attention)
    use(monkeypatch, "flex")
    stream, mask = scenario(*SCENARIOS[name][:2])
    q, k, v, _ = tensors(len(stream.content), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, plan(stream)), attention(q, k, v, mask), atol=3e-6, rtol=1e-5)


def test_a_block_mask_is_made_once_for_all_layers() -> None:
    layout, other = (plan(scenario("custom", ROW)[0]) for _ in range(2))
    assert block_mask(layout) is block_mask(layout)
    assert block_mask(other) is not block_mask(layout)


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
def test_scale(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, kernel)
    stream, mask = scenario("causal", ROW)
    q, k, v, _ = tensors(len(mask), torch.float64)
    torch.testing.assert_close(attend(q, k, v, plan(stream), scale=0.8), attention(q, k, v, mask, 0.8))


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
def test_dropout_thins_the_weights_and_keeps_their_mean(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, kernel)
    stream, _ = scenario("full", ROW)
    q, k, v, _ = tensors(len(stream.content), torch.float64)
    layout = plan(stream)
    torch.manual_seed(0)
    drawn = torch.stack([attend(q, k, v, layout, dropout=0.3) for _ in range(2000)])
    alone = LENGTHS.index(1)  # a document of one token: its weight is 1, and survives as 1 / 0.7 or not at all
    at = int(stream.bounds[[int(n) for n in stream.lengths].index(1)])
    assert LENGTHS[alone] == 1
    ratios = (drawn[:, at] / v[at]).unique()
    torch.testing.assert_close(ratios.min(), torch.tensor(0.0, dtype=torch.float64))
    torch.testing.assert_close(ratios.max(), torch.tensor(1 / 0.7, dtype=torch.float64), rtol=1e-5, atol=0)  # rates are 65,536ths
    spread = drawn.std(0) / 2000**0.5
    assert ((drawn.mean(0) - attend(q, k, v, layout)).abs() < 5 * spread + 1e-9).all()


def test_the_layer_drops_only_in_training() -> None:
    torch.manual_seed(0)
    layer = AttentionLayer(spec.Attention(), 8, 2)
    stream, _ = scenario("full", ROW)
    x, layout = torch.randn(len(stream.content), 8), plan(stream)
    still = layer(x, layout)
    layer.dropout = 0.5
    assert not torch.allclose(layer(x, layout), still)
    torch.testing.assert_close(layer.eval()(x, layout), still)


def test_what_all_layers_add_to_their_scores_is_made_once_and_hides_what_is_not_seen() -> None:
    stream, _seen = scenario("custom", ROW)
    layout = plan(stream)
    bias = torch.randn(1, HEADS, ROW, ROW, generator=torch.Generator().manual_seed(0))
    both = dataclasses.replace(layout, bias=bias, memo={})
    assert layout.mask is not None and layout.added(F32) is layout.added(F32)
    for found, shown in ((layout.added(F32), torch.zeros(())), (both.added(F32), bias)):
        assert found is not None
        torch.testing.assert_close(found, torch.where(layout.mask, shown, torch.finfo(F32).min).expand_as(found))
    q, k, v, _cotangent = tensors(len(stream.content), F32)
    given = attend(q, k, v, dataclasses.replace(layout, memo={}), bias=bias)
    torch.testing.assert_close(attend(q, k, v, both), given)


def test_queries_that_see_nothing_are_looked_for_once() -> None:
    """Where there are none, nothing is filled in behind attention."""
    assert plan(scenario("custom", ROW)[0]).empty is not None
    assert plan(stream_of([full(5), full(9)], row=ROW)[0]).empty is None
    sighted = [case for name, case in PUBLISHED.items() if name != "blind"]
    assert plan(stream_of(sighted, row=0)[0]).empty is not None  # places without a token see nothing
    assert plan(stream_of([full(ROW), full(ROW)], row=ROW, kind="custom")[0]).empty is None


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
TABLE = [
    # kind, device, dtype, length, dropout, masked -> kernel (with a torch that has the variable-length kernel)
    ("full", "cpu", F32, 16, 0.0, False, "sdpa"),
    ("full", "cpu", F32, 512, 0.0, False, "sdpa"),
    ("full", "cpu", F32, 512, 0.1, False, "plain"),  # the library's fast kernel drops no weights
    ("causal", "cpu", BF16, 1024, 0.0, True, "plain"),
    ("causal", "cpu", BF16, 1025, 0.0, True, "sdpa"),
    ("custom", "cpu", F32, 64, 0.1, True, "plain"),
    ("custom", "cpu", F32, 512, 0.0, True, "sdpa"),
    ("full", "cuda", BF16, 512, 0.0, False, "sdpa"),
    ("causal", "cuda", F32, 512, 0.0, False, "sdpa"),
    ("full", "cuda", BF16, 512, 0.0, True, "varlen"),
    ("causal", "cuda", F16, 512, 0.0, True, "varlen"),
    ("full", "cuda", F32, 512, 0.0, True, "flex"),
    ("custom", "cuda", BF16, 512, 0.0, True, "flex"),
    ("custom", "cuda", F32, 512, 0.0, True, "flex"),
    ("full", "cuda", BF16, 512, 0.1, True, "sdpa"),  # neither varlen nor flex drops weights
    ("custom", "cuda", BF16, 512, 0.1, True, "sdpa"),
]


@pytest.mark.parametrize("kind,device,dtype,length,dropout,masked,kernel", TABLE)
def test_pick(
    kind: str, device: str, dtype: torch.dtype, length: int, dropout: float, masked: bool, kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "_varlen", lambda: object())
    question: dict[str, Any] = {"device": device, "dtype": dtype, "length": length, "dropout": dropout, "masked": masked}
    assert pick(kind, **question) == kernel
    monkeypatch.setattr(module, "_varlen", lambda: None)
    assert pick(kind, **question) == ("flex" if kernel == "varlen" else kernel)


@pytest.mark.parametrize("names", [("is_causal",), ("window_size",), ("window_size", "scale")], ids="-".join)
@pytest.mark.parametrize("causal", [False, True])
def test_variable_length_kernels_of_all_torch_versions_are_called_right(
    names: tuple[str, ...], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for torch's kernel, with the parameters that each version has: what reaches it must give the right answer."""

    def answer(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, how: dict[str, Any]
    ) -> Tensor:
        assert cu_q.dtype == cu_k.dtype == torch.int32 and int((cu_q[1:] - cu_q[:-1]).max()) <= max_q == max_k
        owner = np.repeat(np.arange(len(cu_q) - 1), np.diff(cu_q.numpy()))
        left_to_right = how.get("is_causal", how.get("window_size") == (-1, 0))
        assert left_to_right or how.get("window_size", (-1, -1)) == (-1, -1)
        mask = owner[:, None] == owner[None]
        return attention(q, k, v, np.tril(mask) if left_to_right else mask, how.get("scale"))

    def old(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False):  # type: ignore[no-untyped-def]
        return answer(q, k, v, cu_q, cu_k, max_q, max_k, {"is_causal": is_causal})

    def middle(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
        return answer(q, k, v, cu_q, cu_k, max_q, max_k, {"window_size": window_size})

    def new(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
        return answer(q, k, v, cu_q, cu_k, max_q, max_k, {"window_size": window_size, "scale": scale})

    versions: dict[tuple[str, ...], Callable[..., Tensor]] = {
        ("is_causal",): old,
        ("window_size",): middle,
        ("window_size", "scale"): new,
    }
    kernel = versions[names]
    monkeypatch.setattr(module, "_varlen", lambda: kernel)
    use(monkeypatch, "varlen")
    for row in 0, ROW:
        stream, mask = scenario("causal" if causal else "full", row)
        q, k, v, _ = tensors(len(mask), torch.float64)
        torch.testing.assert_close(attend(q, k, v, plan(stream), scale=0.3), attention(q, k, v, mask, 0.3))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("kernel", ["flex", "varlen", "sdpa"])
def test_cuda_kernels_compute_the_definition(kernel: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled FlexAttention and SDPA in float32 within 2e-3 (tensor cores), the variable-length kernel in bfloat16 within
    0.06, each with gradients, against the plain kernel in float64 on the CPU."""
    kind, row, even = SCENARIOS[name]
    stream, _ = scenario(kind, row, even=even)
    if kernel == "varlen" and kind == "custom":
        pytest.skip("the variable-length kernel knows no rules")
    if kernel == "flex" and plan(stream).mask is None:
        pytest.skip("nothing to mask: never picked")
    dtype = torch.bfloat16 if kernel == "varlen" else torch.float32
    values = [x.to(dtype) for x in tensors(len(stream.content), torch.float64, heads=2, dim=32)]
    use(monkeypatch, "plain")
    expected = both(lambda q, k, v: attend(q, k, v, plan(stream)), *(x.double() for x in values))
    use(monkeypatch, kernel)
    from ziggurat.types import Batch

    there = Batch({"text": stream}, {}, np.zeros(0, np.uint64)).map(lambda x: x.cuda()).streams["text"]
    found = both(lambda q, k, v: attend(q, k, v, plan(there)), *(x.cuda() for x in values))
    atol = 0.06 if kernel == "varlen" else 2e-3
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.double().cpu(), y, atol=atol, rtol=atol)

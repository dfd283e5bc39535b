"""Cached equals uncached: logits of every token when a text is read token by token, in every structure and scheme of distance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.types import CAUSAL, FOREVER, FULL, NEVER, Stream, Visibility

VOCAB, WIDTH = 41, 16
LENGTHS = (9, 4, 14)
PROMPTS = (3, 1, 6)
SCHEMES: dict[str, dict[str, Any]] = {
    "learned": {},
    "sinusoidal": {"embed": spec.Embed(positions=spec.Sinusoidal(length=64))},
    "rotary": {"distances": spec.Rotary(base=50.0)},
    "window": {"distances": spec.Rotary(base=50.0), "window": 3},
    "relative": {"distances": spec.Relative()},
    "functional": {"distances": spec.Functional(clip=3)},
    "content buckets": {"distances": spec.ContentBuckets(count=6, longest=8)},
    "buckets": {"buckets": spec.Buckets(count=6, longest=8)},
    "shared": {"share": spec.Share(groups=2, inner=2)},
    "pattern": {"pattern": (spec.Attention(window=2), spec.Attention(distances=spec.Rotary()))},
}


def shaken(model: spec.Single | spec.EncoderDecoder) -> NetworkModel:
    net = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).double()
    generator = torch.Generator().manual_seed(0)
    net.initialise(generator)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net.eval()


def single(scheme: str, visibility: str) -> spec.Single:
    more = dict(SCHEMES[scheme])
    attention = spec.Attention(distances=more.pop("distances", None), window=more.pop("window", None))
    plain = spec.Embed(
        positions=spec.Learned(length=64) if scheme in ("learned", "shared") else spec.Unplaced(length=64), segments=2, extra=1
    )
    embed = more.pop("embed", plain).model_copy(update={"segments": 2, "extra": 1})
    block = spec.Block(attention=attention)
    return spec.Single(
        vocab=VOCAB, width=WIDTH, layers=3, heads=2, mlp=24, visibility=visibility, embed=embed, block=block, **more
    )  # fmt: skip


def ids(n: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, n))


def joined(pieces: list[Stream]) -> Stream:
    """Torch streams end to end; all custom or all of one kind."""
    seen = pieces[0].visibility
    if seen.kind == "custom":
        seen = Visibility(
            "custom", *(torch.cat([getattr(p.visibility, f) for p in pieces]) for f in ("clock", "opens", "closes", "lane"))
        )
    bounds = torch.tensor([0, *np.cumsum([len(p.content) for p in pieces]).tolist()])
    return Stream(*(torch.cat([getattr(p, f) for p in pieces]) for f in ("content",)), bounds,
                  *(torch.cat([getattr(p, f) for p in pieces]) for f in ("position", "segment")), seen)  # fmt: skip


def causal(d: int, start: int, stop: int) -> Stream:
    at = torch.arange(start, stop)
    return Stream(ids(20, d)[start:stop], torch.tensor([0, stop - start]), at, (at > 4).long(), CAUSAL)


def asked(d: int, start: int, stop: int, prefix: int, *, itself: bool, query: int) -> Stream:
    """Tokens `start` to `stop` of document d, whose first `prefix` see each other both ways; the last row asks for token `stop`."""
    at = torch.arange(start, stop + 1)
    clock = (at - prefix + 1).clamp(min=0)
    asks = at == stop
    content = torch.where(asks, query, ids(21, d)[start : stop + 1])
    seen = Visibility(
        "custom",
        torch.where(asks, clock - 1, clock),
        torch.where(asks, NEVER, clock),
        torch.full_like(at, FOREVER),
        asks.long() * int(itself),
    )
    return Stream(content, torch.tensor([0, len(at)]), at, (at >= prefix).long(), seen)


def logits(net: NetworkModel, hidden: Tensor) -> Tensor:
    head = net.heads["lm"]
    return torch.nn.functional.linear(head(hidden), net.table_of(head), head.bias)


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_a_causal_stack_reads_on_where_it_stopped(scheme: str) -> None:
    """Prompts of different lengths first, then a token of each text a step; every row's logits."""
    net = shaken(single(scheme, "causal"))
    whole = [logits(net, net({"text": causal(d, 0, n)})["text"]) for d, n in enumerate(LENGTHS)]
    assert min(float(w.max() - w.min()) for w in whole) > 1
    cache = net.cache(3)
    got = [[] for _ in LENGTHS]  # type: ignore[var-annotated]
    at = list(PROMPTS)
    step = joined([causal(d, 0, n) for d, n in enumerate(PROMPTS)])
    while True:
        out = logits(net, net({"text": step}, cache=cache)["text"])
        for d, (a, b) in enumerate(zip(step.bounds, step.bounds[1:])):
            got[d].append(out[a:b])
        if all(n == m for n, m in zip(at, LENGTHS)):
            break
        step = joined([causal(d, n, min(n + 1, LENGTHS[d])) for d, n in enumerate(at)])  # finished ones bring nothing
        at = [min(n + 1, m) for n, m in zip(at, LENGTHS)]
    for mine, theirs in zip(got, whole):
        torch.testing.assert_close(torch.cat(mine), theirs, atol=1e-10, rtol=0)
    assert cache.lengths.tolist() == list(LENGTHS)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("itself", "query"), [(True, 7), (False, -1)])
@torch.no_grad()
def test_asking_rows_are_forgotten(scheme: str, itself: bool, query: int) -> None:
    """A prefix that sees itself both ways, words after it, and at every step a row that asks for the next word (a mask, or a learned
    vector that does not see itself): its logits are those of one pass over what was read, and nobody sees it later."""
    net = shaken(single(scheme, "full"))
    prefixes = (4, 2, 7)
    cache = net.cache(3)
    for step in range(5):
        start = [0 if step == 0 else p + step - 1 for p in prefixes]
        stop = [p + step for p in prefixes]
        news = joined([asked(d, a, b, p, itself=itself, query=query) for d, (a, b, p) in enumerate(zip(start, stop, prefixes))])
        out = logits(net, net({"text": news}, cache=cache)["text"])[news.bounds[1:] - 1]
        for d, (b, p) in enumerate(zip(stop, prefixes)):
            want = logits(net, net({"text": asked(d, 0, b, p, itself=itself, query=query)})["text"])[-1]
            assert float(want.max() - want.min()) > 1
            torch.testing.assert_close(out[d], want, atol=1e-10, rtol=0)
        assert cache.lengths.tolist() == stop


DECODERS: dict[str, dict[str, Any]] = {
    "bart": {},
    "t5": {"buckets": spec.Buckets(count=6, longest=8), "embed": spec.Embed(positions=spec.Unplaced(length=64), norm=None),
           "block": spec.Block(attention=spec.Attention(bias=False, scale="one", head_width=6), norm=spec.RMSNorm(), norm_at="pre"),
           "final_norm": spec.RMSNorm()},
    "prophetnet": {"decoder_attention": spec.Attention(distances=spec.ContentBuckets(count=6, longest=8))},
}  # fmt: skip


def decoder(kind: str) -> NetworkModel:
    embed = spec.Embed(positions=spec.Learned(length=64, offset=2), segments=2)
    return shaken(
        spec.EncoderDecoder(
            vocab=VOCAB, width=WIDTH, layers=2, decoder_layers=3, heads=2, mlp=24, **{"embed": embed, **DECODERS[kind]}
        )
    )


def source(d: int) -> Stream:
    n = (5, 8, 3)[d]
    at = torch.arange(n)
    return Stream(ids(n, 90 + d), torch.tensor([0, n]), at, 0 * at, FULL)


def flat(stream: Stream) -> Stream:
    return replace(stream, segment=0 * stream.segment)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_a_decoder_reads_its_encoder_once(kind: str) -> None:
    net = decoder(kind)
    whole = [logits(net, net({"encoder": source(d), "decoder": flat(causal(d, 0, n))})["decoder"]) for d, n in enumerate(LENGTHS)]
    cache, calls = net.cache(3), []
    net.model.decoder.blocks[0].cross.k.register_forward_hook(lambda *_: calls.append(1))
    for t in range(4):
        step = flat(joined([causal(d, t, t + 1) for d in range(3)]))
        streams = {"decoder": step} if t else {"decoder": step, "encoder": joined([source(d) for d in range(3)])}
        out = logits(net, net(streams, cache=cache)["decoder"])
        for d in range(3):
            torch.testing.assert_close(out[d], whole[d][t], atol=1e-10, rtol=0)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_rows_are_reordered(kind: str) -> None:
    """After two steps the rows become others, four hypotheses of two documents: each goes on as the one it was taken from."""
    net = decoder(kind)
    cache = net.cache(2)
    encoder = joined([source(0), source(1)])
    for t in range(2):
        step = flat(joined([causal(d, t, t + 1) for d in range(2)]))
        net({"decoder": step, **({} if t else {"encoder": encoder})}, cache=cache)
    cache.pick(torch.tensor([0, 0, 1, 1]))
    tokens = torch.tensor([3, 5, 7, 9])
    for t in range(2, 4):
        at = torch.full((4,), t)
        step = Stream(tokens, torch.arange(5), at, 0 * at, CAUSAL)
        out = logits(net, net({"decoder": step}, cache=cache)["decoder"])
    cache.pick(torch.tensor([1, 0, 3, 3]))
    at = torch.full((4,), 4)
    out = logits(
        net, net({"decoder": Stream(torch.tensor([1, 2, 3, 4]), torch.arange(5), at, 0 * at, CAUSAL)}, cache=cache)["decoder"]
    )
    for row, (d, before, last) in enumerate([(0, 5, 1), (0, 3, 2), (1, 9, 3), (1, 9, 4)]):
        content = torch.tensor([*ids(20, d)[:2].tolist(), before, before, last])
        at = torch.arange(5)
        want = net({"encoder": source(d), "decoder": Stream(content, torch.tensor([0, 5]), at, 0 * at, CAUSAL)})["decoder"]
        torch.testing.assert_close(out[row], logits(net, want)[-1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("scheme", ["rotary", "relative", "buckets", "functional"])
@torch.no_grad()
def test_the_library_kernel_says_the_same(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = shaken(single(scheme, "causal"))
    want = logits(net, net({"text": causal(0, 0, 9)})["text"])
    monkeypatch.setattr("ziggurat.nn.attention.pick", lambda *_, **__: "sdpa")
    cache = net.cache(1)
    got = [logits(net, net({"text": causal(0, a, b)}, cache=cache)["text"]) for a, b in ((0, 3), (3, 4), (4, 9))]
    torch.testing.assert_close(torch.cat(got), want, atol=1e-10, rtol=0)

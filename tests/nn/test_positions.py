"""Every scheme of distance against its paper's formula, written with loops over queries and keys."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ziggurat.nn import attention as module
from ziggurat.nn import spec
from ziggurat.nn.attention import AttentionLayer
from ziggurat.nn.layers import EmbedLayer
from ziggurat.nn.positions import BucketLayer, buckets
from ziggurat.nn.visibility import plan
from ziggurat.types import CAUSAL, FULL, Stream, Visibility

WIDTH, HEADS, DIM, ROW = 12, 2, 6, 16
LENGTHS = (5, 11, 3, 13, 1, 9)
SCHEMES: dict[str, spec.Attention] = {
    "plain": spec.Attention(),
    "wide": spec.Attention(head_width=8, scale="one", bias=False),
    "rotary": spec.Attention(distances=spec.Rotary(base=50)),
    "window": spec.Attention(window=2),
    "rotary-window": spec.Attention(distances=spec.Rotary(base=50), window=3),
    "relative": spec.Attention(bias=False, distances=spec.Relative()),
    "relative-plain": spec.Attention(bias=False, distances=spec.Relative(segments=False)),
    "functional": spec.Attention(distances=spec.Functional(clip=4)),
    "content": spec.Attention(distances=spec.ContentBuckets(count=8, longest=9)),
}


def make_stream(kind: str, row: int, counting: bool, seed: int = 0) -> Stream:
    """Documents of LENGTHS (packed: with dead ones in the gaps), positions that count or do not, segments at random."""
    rng = np.random.default_rng(seed)
    lengths = [5, 11, 3, 13, 1, 9, 6] if row else list(LENGTHS)
    total = sum(lengths)
    position = np.concatenate([np.arange(n) for n in lengths]) if counting else rng.integers(0, 20, total)
    visibility = {"full": FULL, "causal": CAUSAL}[kind] if kind != "custom" else None
    if visibility is None:
        clock, opens = (rng.integers(0, 4, total).astype(np.int32) for _ in range(2))
        visibility = Visibility("custom", clock, opens, np.full(total, 2**30, np.int32), np.zeros(total, np.int32))
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    segment = rng.integers(0, 2, total).astype(np.int32)
    stream = Stream(rng.integers(0, 9, total).astype(np.int32), bounds, position.astype(np.int32), segment, visibility, row=row)
    convert = torch.from_numpy
    spelled = {f: convert(v) for f in ("clock", "opens", "closes", "lane") if (v := getattr(visibility, f)) is not None}
    arrays = {f: convert(getattr(stream, f)) for f in ("content", "bounds", "position", "segment")}
    return replace(stream, **arrays, visibility=replace(visibility, **spelled))


def sees(stream: Stream, q: int, k: int) -> bool:
    document = np.searchsorted(stream.bounds.numpy(), [q, k], side="right")
    if document[0] != document[1]:
        return False
    v = stream.visibility
    if v.kind == "custom":
        return bool(v.opens[k] <= v.clock[q])  # type: ignore[index]
    return v.kind == "full" or k <= q


def wave(distance: float, width: int) -> Tensor:
    """Transformer-XL's: all sines, then all cosines."""
    waves = [10_000 ** (-2 * i / width) for i in range(width // 2)]
    return torch.tensor([math.sin(distance * w) for w in waves] + [math.cos(distance * w) for w in waves], dtype=torch.float64)


def nezha(distance: int, clip: int, dim: int) -> Tensor:
    p = max(-clip, min(clip, distance)) + clip
    angles = [p / 10_000 ** (2 * (i // 2) / dim) for i in range(dim)]
    return torch.tensor([math.sin(a) if i % 2 == 0 else math.cos(a) for i, a in enumerate(angles)], dtype=torch.float64)


def turned(x: Tensor, position: int, base: float) -> Tensor:
    half, out = len(x) // 2, x.clone()
    for i in range(half):
        angle = position * base ** (-i / half)
        a, b = x[i], x[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def past_bucket(distance: int, count: int, longest: int) -> int:
    far = max(-distance, 0)
    if far < count // 2:
        return far
    return min(
        count - 1, count // 2 + int(math.log(far / (count // 2)) / math.log(longest / (count // 2)) * (count - count // 2))
    )


def slow(layer: AttentionLayer, part: spec.Attention, x: Tensor, stream: Stream) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (HEADS, -1)) for f in (layer.q, layer.k, layer.v))
    dim, far = q.shape[2], layer.distances
    scale = 1.0 if part.scale == "one" else dim**-0.5
    out = torch.zeros_like(q)
    place, segment = stream.position.tolist(), stream.segment.tolist()
    for i in range(len(x)):
        keys = [j for j in range(len(x)) if sees(stream, i, j)]
        keys = [j for j in keys if part.window is None or abs(place[i] - place[j]) <= part.window]
        for h in range(HEADS if keys else 0):
            scores = []
            for j in keys:
                apart, query = place[j] - place[i], q[i, h]
                match part.distances:
                    case spec.Rotary(base=base):
                        score = turned(query, place[i], base) @ turned(k[j, h], place[j], base)
                    case spec.Relative():
                        score = (query + far.content_bias[h]) @ k[j, h]  # type: ignore[union-attr]
                        by_distance = (far.r.weight @ wave(-apart, WIDTH)).view(HEADS, dim)[h]  # type: ignore[union-attr]
                        score = score + (query + far.distance_bias[h]) @ by_distance  # type: ignore[union-attr]
                        if part.distances.segments:
                            other = int(segment[i] != segment[j])
                            score = score + (query + far.segment_bias[h]) @ far.segment[other, h]  # type: ignore[union-attr,index,operator]
                    case spec.Functional(clip=clip):
                        score = query @ (k[j, h] + nezha(apart, clip, dim))
                    case _:
                        score = query @ k[j, h]
                score = score * scale
                if isinstance(part.distances, spec.ContentBuckets):
                    table = far.read(x[i]).view(part.distances.count, HEADS)  # type: ignore[union-attr]
                    score = score + table[past_bucket(apart, part.distances.count, part.distances.longest), h]
                scores.append(score)
            weights = torch.stack(scores).softmax(0)
            for weight, j in zip(weights, keys):
                value = v[j, h]
                if isinstance(part.distances, spec.Functional):
                    value = value + nezha(place[j] - place[i], part.distances.clip, dim)
                out[i, h] = out[i, h] + weight * value
    return layer.out(out.flatten(1))


def layer_of(part: spec.Attention) -> AttentionLayer:
    torch.manual_seed(0)
    layer = AttentionLayer(part, WIDTH, HEADS).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    return layer


@pytest.mark.parametrize("counting", [True, False], ids=["counting", "anywhere"])
@pytest.mark.parametrize("row", [0, ROW], ids=["ragged", "packed"])
@pytest.mark.parametrize("kind", ["full", "causal", "custom"])
@pytest.mark.parametrize("name", SCHEMES)
def test_schemes_compute_their_formula(name: str, kind: str, row: int, counting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64; float32 sines leave 1e-6. Both kernels; and a few rows read alone are the same rows."""
    part, stream = SCHEMES[name], make_stream(kind, row, counting)
    layer = layer_of(part)
    x = torch.randn(len(stream.content), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = slow(layer, part, x, stream)
    for kernel in ("plain", "sdpa"):
        monkeypatch.setattr(module, "pick", lambda *a, kernel=kernel, **k: kernel)
        found = layer(x, plan(stream))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=5e-6)
        read = torch.tensor([0, 4, 7, 20, 21, len(x) - 1])
        torch.testing.assert_close(layer(x, plan(stream), read), found[read], rtol=1e-10, atol=1e-12)
    assert expected.std() > 0.3


@pytest.mark.parametrize("name", [n for n, part in SCHEMES.items() if part.distances is not None])
def test_every_parameter_of_a_scheme_matters(name: str) -> None:
    layer, stream = layer_of(SCHEMES[name]), make_stream("full", 0, True)
    layer(torch.randn(len(stream.content), WIDTH, dtype=torch.float64), plan(stream)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-9 for n, p in layer.named_parameters() if n != "k.bias")


def test_buckets_are_those_of_the_released_code() -> None:
    """T5's 32 buckets up to 128: exact to 8 (16 for one side), then by logarithm; the last from 128 on."""
    distance = torch.arange(-200, 201)
    one = [past_bucket(d, 32, 128) for d in distance.tolist()]
    assert buckets(distance, 32, 128, past=True).tolist() == one
    both = [16 * (d > 0) + past_bucket(-abs(d), 16, 128) for d in distance.tolist()]
    assert buckets(distance, 32, 128, past=False).tolist() == both
    assert max(one) == 31 and max(both) == 31 and both[200 - 127] == 15


@pytest.mark.parametrize("past", [True, False], ids=["past", "both"])
def test_one_table_serves_all_layers(past: bool) -> None:
    """The bias of query i and key j is the table's number for their bucket, wherever they lie in a row."""
    layer = BucketLayer(spec.Buckets(count=8, longest=12), HEADS, past=past).double()
    for counting in (True, False):
        stream = make_stream("full", ROW, counting)
        bias = layer(plan(stream)).expand(len(stream.content) // ROW, -1, -1, -1)
        for i, j in ((0, 3), (4, 0), (17, 30), (31, 30)):
            if i // ROW != j // ROW or (counting and not sees(stream, i, j)):
                continue
            apart = int(stream.position[j] - stream.position[i])
            bucket = past_bucket(apart, 8, 12) if past else 4 * (apart > 0) + past_bucket(-abs(apart), 4, 12)
            assert torch.equal(bias[i // ROW, :, i % ROW, j % ROW], layer.table.weight[bucket])


def test_fixed_absolute_positions() -> None:
    part = spec.Embed(positions=spec.Sinusoidal(length=64), norm=None)
    layer, stream = EmbedLayer(part, 9, WIDTH), make_stream("full", 0, False)
    added = layer(stream) - layer.token(stream.content)  # type: ignore[misc]
    expected = torch.stack([wave(p, WIDTH) for p in stream.position.tolist()])
    torch.testing.assert_close(added.double(), expected, rtol=0, atol=1e-5)


def test_task_numbers_ride_on_segments() -> None:
    """ERNIE 2.0: a token of task t and segment s has the segment number t * segments + s."""
    layer, stream = EmbedLayer(spec.Embed(segments=2, tasks=3, norm=None), 9, WIDTH), make_stream("full", 0, True)
    task = torch.arange(len(stream.content)) % 3
    found = layer(replace(stream, segment=(2 * task + stream.segment).int()))
    plain = layer.token(stream.content) + layer.position(stream.position)  # type: ignore[misc]
    torch.testing.assert_close(found, plain + layer.task(task) + layer.segment(stream.segment))  # type: ignore[misc]

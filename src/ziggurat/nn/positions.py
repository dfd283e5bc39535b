"""How attention knows where a key stands: schemes of distance, one small class each.

A scheme may turn queries and keys (`turn`), add to the scores (`score`), or add to what is mixed (`mix`); each class has the hooks
it needs. `score` is added after the scale. Absolute positions are part of the embeddings (`nn/layers.EmbedLayer`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ziggurat.nn import spec
from ziggurat.nn.visibility import Plan
from ziggurat.types import NEVER


def sinusoid(position: Tensor, width: int, *, interleaved: bool = False) -> Tensor:
    """float32[..., width]: sine and cosine of `position` [...] at wavelengths from 2 pi to 10,000 * 2 pi.

    Sines in the first half and cosines in the second, or in turn when `interleaved`.
    """
    waves = 10_000.0 ** -(torch.arange(0, width, 2, device=position.device, dtype=torch.float32) / width)
    angle = position[..., None].float() * waves
    if interleaved:
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :width]
    return torch.cat([angle.sin(), angle.cos()], -1)[..., :width]


def buckets(distance: Tensor, count: int, longest: int, *, past: bool) -> Tensor:
    """int64, of the shape of `distance` (key - query): its bucket (Raffel et al., 2020, 2.1; the released code).

    Half of a side's buckets are exact, the rest grows by logarithm up to `longest`, where the last begins. With `past` all
    buckets are for keys before the query (later ones fall into bucket 0), otherwise half of them for each side.
    """
    if past:
        offset, far = torch.zeros_like(distance), (-distance).clamp(min=0)
    else:
        count //= 2
        offset, far = (distance > 0).long() * count, distance.abs()
    exact = count // 2
    grown = torch.log(far.clamp(min=1).float() / exact) / math.log(longest / exact) * (count - exact)
    grown = (exact + grown.long()).clamp(max=count - 1)
    return offset + torch.where(far < exact, far, grown)


class BucketLayer(nn.Module):
    """T5's relative bias of one stack: one number a bucket and head."""

    def __init__(self, part: spec.Buckets, heads: int, *, past: bool):
        super().__init__()
        self.part, self.past = part, past
        self.table = nn.Embedding(part.count, heads)

    def forward(self, plan: Plan) -> Tensor:
        """[rows or 1, heads, queries, keys]"""
        bucket = buckets(plan.distance(), self.part.count, self.part.longest, past=self.past)
        return self.table(bucket).permute(0, 3, 1, 2).contiguous()


class RotaryLayer(nn.Module):
    """Turns each pair (i, i + half) of a head's numbers by position * base ** (-i / half)."""

    def __init__(self, part: spec.Rotary, heads: int, dim: int, width: int):
        super().__init__()
        self.base, self.dim = part.base, dim

    def turn(self, q: Tensor, k: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """q [Q, heads, dim], k [T, heads, dim] -> the same, turned."""
        assert plan.position is not None
        at_q, at_k = plan.position
        angles = plan.once(("rotary", self.base), lambda: (self._angles(at_q), self._angles(at_k)))
        return _turned(q, *angles[0]), _turned(k, *angles[1])

    def _angles(self, position: Tensor) -> tuple[Tensor, Tensor]:
        waves = self.base ** -(torch.arange(0, self.dim, 2, device=position.device, dtype=torch.float32) / self.dim)
        angle = position[:, None, None].float() * waves
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    across = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x * cos + across * sin).to(x.dtype)


class RelativeLayer(nn.Module):
    """XLNet's relative positions and segments; the three learned vectors a head are added to the query of each term."""

    def __init__(self, part: spec.Relative, heads: int, dim: int, width: int):
        super().__init__()
        self.heads, self.width = heads, width
        self.r = nn.Linear(width, heads * dim, bias=False)
        self.content_bias, self.distance_bias = (nn.Parameter(torch.zeros(heads, dim)) for _ in range(2))
        self.segment_bias = nn.Parameter(torch.zeros(heads, dim)) if part.segments else None
        self.segment = nn.Parameter(torch.zeros(2, heads, dim)) if part.segments else None

    def query(self, q: Tensor) -> Tensor:
        """q [Q, heads, dim], as it meets the keys' content."""
        return q + self.content_bias

    def score(self, q: Tensor, x: Tensor, plan: Plan, scale: float) -> Tensor:
        """[rows, heads, queries, keys], of q [Q, heads, dim] before `query`."""
        distance = -plan.distance()  # the paper's sign: query - key

        def waves() -> tuple[Tensor, Tensor]:
            least = distance.min()
            every = torch.arange(int(least), int(distance.max()) + 1, device=distance.device)
            return sinusoid(every, self.width), (distance - least)[:, None]

        wave, index = plan.once("relative", waves)
        far = self.r(wave.to(self.r.weight.dtype)).unflatten(-1, (self.heads, -1))  # [distances, heads, dim]
        side = plan.query
        asked = side.spread(q + self.distance_bias)
        by_distance = torch.einsum("rqhd,nhd->rhqn", asked, far.to(asked.dtype))
        score = by_distance.gather(3, index.expand(side.rows, self.heads, -1, -1))
        if self.segment is not None and self.segment_bias is not None:
            asked = side.spread(q + self.segment_bias)
            mine, other = torch.einsum("rqhd,shd->srhq", asked, self.segment.to(asked.dtype))
            score = score + torch.where(plan.same_segment()[:, None], mine[..., None], other[..., None])
        return score * scale


class FunctionalLayer(nn.Module):
    """NEZHA's fixed vectors of the clipped distance, added to keys (`score`) and to values (`mix`)."""

    def __init__(self, part: spec.Functional, heads: int, dim: int, width: int):
        super().__init__()
        self.clip = part.clip
        self.register_buffer("table", sinusoid(torch.arange(2 * part.clip + 1), dim, interleaved=True), persistent=False)
        self.table: Tensor

    def _index(self, plan: Plan) -> Tensor:
        clipped = plan.once(("clipped", self.clip), lambda: (plan.distance().clamp(-self.clip, self.clip) + self.clip)[:, None])
        assert isinstance(clipped, Tensor)
        return clipped

    def score(self, q: Tensor, x: Tensor, plan: Plan, scale: float) -> Tensor:
        """[rows, heads, queries, keys], of q [Q, heads, dim]."""
        side = plan.query
        by_distance = torch.einsum("rqhd,nd->rhqn", side.spread(q), self.table.to(q.dtype))
        return by_distance.gather(3, self._index(plan).expand(side.rows, q.shape[1], -1, -1)) * scale

    def mix(self, weights: Tensor, plan: Plan) -> Tensor:
        """[rows, heads, queries, dim]: what the vectors add to the output, of the weights [rows, heads, queries, keys]."""
        rows, heads, queries, _ = weights.shape
        summed = weights.new_zeros(rows, heads, queries, len(self.table))
        summed = summed.scatter_add(3, self._index(plan).expand_as(weights), weights)
        return summed @ self.table.to(weights.dtype)


class ContentBucketLayer(nn.Module):
    """ProphetNet's bias: the query's input vector is read by a matrix that gives one number a bucket and head."""

    def __init__(self, part: spec.ContentBuckets, heads: int, dim: int, width: int):
        super().__init__()
        self.part, self.heads = part, heads
        self.read = nn.Linear(width, part.count * heads)

    def score(self, q: Tensor, x: Tensor, plan: Plan, scale: float) -> Tensor:
        """[rows, heads, queries, keys], of the queries' input vectors x [Q, width]."""
        bucket = plan.once(
            ("past buckets", self.part.count, self.part.longest),
            lambda: buckets(plan.distance(), self.part.count, self.part.longest, past=True)[:, None],
        )
        side = plan.query
        worth = side.spread(self.worth(x, plan)).permute(0, 2, 1, 3)
        return worth.gather(3, bucket.expand(side.rows, self.heads, -1, -1))

    def worth(self, x: Tensor, plan: Plan) -> Tensor:
        """[Q, heads, buckets], of the queries' input vectors x [Q, width]."""
        return self.read(x).unflatten(-1, (self.part.count, self.heads)).transpose(1, 2)


class HubBucketLayer(ContentBucketLayer):
    """The same as the Hub's class computes it for whole texts: the numbers of predicting rows are made in the order (step, stream,
    head) and read in the order (stream, head, step), so that a row has the numbers of others, also of later ones.

    With a single step (one token at a time, as in generation) the two orders are the same. A document is its main stream and as
    many predicting streams as fit behind it; padding on the Hub's side counts as steps there and is not imitated. `score` must be
    given all rows, not a few.
    """

    def worth(self, x: Tensor, plan: Plan) -> Tensor:
        own = super().worth(x, plan)
        row, head = plan.once("hub order", lambda: self._order(plan))
        return own[row, head]

    def _order(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """int64[Q, heads] each: the row and the head from which each row's numbers come."""
        bounds, rule, heads = plan.bounds.long(), plan.rule, torch.arange(self.heads, device=plan.bounds.device)
        total = int(bounds[-1])
        at = torch.arange(total, device=bounds.device)
        document = torch.searchsorted(bounds, at, right=True) - 1
        # predicting rows are keys for nobody; without a rule there are none
        main = torch.ones_like(at, dtype=torch.bool) if rule is None else plan.query.gather(rule[2]) < NEVER
        steps = torch.zeros(len(bounds) - 1, dtype=torch.long, device=bounds.device).index_add(0, document, main.long())
        lengths = bounds[1:] - bounds[:-1]
        streams = (torch.div(lengths, steps.clamp(min=1), rounding_mode="floor") - 1).clamp(min=1)[document][:, None]
        time = steps[document].clamp(min=1)[:, None]
        first = bounds[document][:, None] + time  # the first predicting row
        behind = (at[:, None] - first).clamp(min=0)
        number = (behind // time * self.heads + heads) * time + behind % time
        row = first + number // self.heads % streams * time + number // (self.heads * streams)
        row, plain = row.clamp(max=total - 1), main[:, None]  # a dead document's rows may lead anywhere
        return torch.where(plain, at[:, None], row), torch.where(plain, heads, number % self.heads)


DistanceLayer = RotaryLayer | RelativeLayer | FunctionalLayer | ContentBucketLayer


def build_distances(part: spec.Distances | None, heads: int, dim: int, width: int) -> DistanceLayer | None:
    match part:
        case None:
            return None
        case spec.Rotary():
            return RotaryLayer(part, heads, dim, width)
        case spec.Relative():
            return RelativeLayer(part, heads, dim, width)
        case spec.Functional():
            return FunctionalLayer(part, heads, dim, width)
        case spec.ContentBuckets():
            return (HubBucketLayer if part.order == "hub" else ContentBucketLayer)(part, heads, dim, width)

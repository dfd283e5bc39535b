"""The span-boundary objective against SpanBERT's rule, restated slowly, and its head against the paper's formula."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from blocks import MASK, batch_of, context
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ziggurat.context import Context, Layout, Vocab
from ziggurat.data.pack import pack, take
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.boundary import BoundaryHeadLayer, boundaries
from ziggurat.nn.spec import BoundaryHead
from ziggurat.objectives.boundary import SpanBoundary
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.order import WordOrder
from ziggurat.types import DEAD, Batch, join

fast = settings(max_examples=60, deadline=None)
Asked = list[tuple[int, int, int, int, float]]
"""For each prediction: its row, the row left of the span, the row right of it, the place in the span, its weight."""


def slow(unit: list[int], hidden: list[int], places: int) -> Asked:
    """One document: hidden tokens that touch are one span; it needs a token of text on either side."""
    found: Asked = []
    for start in hidden:
        if start - 1 in hidden:
            continue
        end = start
        while end + 1 in hidden:
            end += 1
        inside = start > 0 and end + 1 < len(unit) and unit[start - 1] >= 0 and unit[end + 1] >= 0
        if inside:
            found += [(i, start - 1, end + 1, i - start, float(i - start < places)) for i in range(start, end + 1)]
    return found


def read(batch: Batch) -> list[Asked]:
    """The same of each document of a batch, as the model half sees it."""
    target, bounds = batch.targets["sbo"], batch.streams["text"].bounds
    left, right, place = (x.tolist() for x in boundaries(torch.from_numpy(target.index)))
    rows = list(zip(target.index.tolist(), left, right, place, target.weight.tolist(), strict=True))
    return [[(i - a, x - a, y - a, p, w) for i, x, y, p, w in rows if a <= i < b] for a, b in pairwise(bounds.tolist())]


@st.composite
def examples(draw: st.DrawFn) -> Batch:
    """Words of 1 to 3 tokens, special tokens here and there, at the ends of documents or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    units = []
    for _ in range(draw(st.integers(1, 5))):
        unit: list[int] = []
        for number in range(rng.integers(0, 40)):
            unit += [-1] if rng.random() < 0.05 else [number] * int(rng.integers(1, 4))
        units.append(unit)
    return batch_of(units, int(rng.integers(0, 1000)))


@fast
@given(examples(), st.sampled_from(["token", "word", "span"]), st.sampled_from([0.15, 0.6]), st.sampled_from([2, 20]))
def test_spans_are_exactly_those_of_the_slow_rule(batch: Batch, unit: str, rate: float, places: int) -> None:
    ctx = context(seed=3)
    masked = Masked.model_validate({"unit": unit, "rate": rate}).corrupt(batch, ctx)
    done = SpanBoundary(places=places).corrupt(masked, ctx)
    s, index = batch.streams["text"], masked.targets["mlm"].index
    assert s.unit is not None
    for asked, (a, b) in zip(read(done), pairwise(s.bounds.tolist()), strict=True):
        assert asked == slow(s.unit[a:b].tolist(), [i - a for i in index.tolist() if a <= i < b], places)
    target = done.targets["sbo"]
    assert np.array_equal(target.value, s.content[target.index])
    assert done.targets["mlm"] is masked.targets["mlm"] and done.streams is masked.streams


@fast
@given(examples(), st.integers(0, 99))
def test_packed_joined_and_by_themselves(batch: Batch, seed: int) -> None:
    """The rows of a span's ends stay right wherever its document goes."""
    ctx, objective = context(seed=seed), SpanBoundary()
    want = read(objective.corrupt(batch, ctx))
    order = np.random.default_rng(seed).permutation(len(batch))
    assert read(objective.corrupt(take(batch, order), ctx)) == [want[i] for i in order]
    assert read(join(*(objective.corrupt(take(batch, half), ctx) for half in np.array_split(np.arange(len(batch)), 2)))) == want
    packed = read(objective.corrupt(pack(batch, 140, 0), ctx))
    again = pack(objective.corrupt(batch, ctx), 140, 0)
    assert packed == read(again)
    assert not any(asked for key, asked in zip(again.keys, packed, strict=True) if key == DEAD)


def test_alone_it_hides_the_spans_itself_and_nobody_hides_them_again() -> None:
    batch, ctx = batch_of([[-1, *range(60), -1]] * 4), context(seed=1)
    masked = Masked(unit="span").corrupt(batch, ctx)
    alone, joint = SpanBoundary().corrupt(batch, ctx), SpanBoundary().corrupt(masked, ctx)
    assert list(alone.targets) == ["sbo"]
    assert np.array_equal(alone.streams["text"].content, masked.streams["text"].content)
    assert read(alone) == read(joint)
    source = batch.streams["text"].content
    for later, kind in (Masked(rate=0.5), "mlm"), (WordOrder(rate=0.5), "word_order"):
        done = later.corrupt(alone, ctx)
        target = done.targets[kind]
        assert len(target.index) and np.array_equal(target.value, source[target.index])
        assert not set(target.index) & set(masked.targets["mlm"].index)


def test_the_ends_are_never_hidden_and_tell_nothing() -> None:
    """Everything a prediction may read off its two rows' inputs stays the same when its answer is another."""
    batch, ctx = batch_of([[-1, *range(60), -1]] * 3), context(seed=4)
    objective = SpanBoundary(hide=Masked(unit="span", replace=(1, 0, 0)))
    done = objective.corrupt(batch, ctx)
    source, seen = batch.streams["text"], done.streams["text"].content
    index = done.targets["sbo"].index
    left, right, _ = boundaries(torch.from_numpy(index))
    assert not np.isin(np.append(left, right), index).any() and (seen[index] == MASK).all()
    for row in index.tolist():
        content = source.content.copy()
        content[row] = 5 + (content[row] - 4) % 50
        other = objective.corrupt(replace(batch, streams={"text": replace(source, content=content)}), ctx)
        assert np.array_equal(other.streams["text"].content, seen)


def test_nothing_hidden_and_no_mask_token() -> None:
    for units in ([], [[]], [[-1, -1]], [[-1, 0, -1]], [[0]]):
        assert len(SpanBoundary().corrupt(batch_of(units), context()).targets["sbo"].index) == 0
    with pytest.raises(UserError, match="mask token"):
        SpanBoundary().needs(Context(Vocab(60, 0), Layout(), 16))


def test_spans_are_long_as_published() -> None:
    """Four out of five hidden tokens at least have text on both sides; spans that touch make the mean longer than 3.8."""
    batch = batch_of([[-1, *range(126), -1]] * 800)
    done = SpanBoundary().corrupt(batch, context(seed=1))
    asked = done.targets["sbo"].index
    assert 0.8 < len(asked) / (800 * 19) < 1
    spans = np.count_nonzero(np.diff(asked, prepend=-9) != 1)
    assert 3.3 < len(asked) / spans < 4.5


# --- the head ----------------------------------------------------------------------------------------------------------------


def test_the_head_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    model = spec.Single(vocab=30, width=8, heads=2, layers=1, mlp=16)
    layer = BoundaryHeadLayer(BoundaryHead(places=3, size=5), model).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    hidden, index = torch.randn(12, 8).double(), torch.tensor([2, 3, 4, 5, 8, 10])
    left, right = hidden[[1, 1, 1, 1, 7, 9]], hidden[[6, 6, 6, 6, 9, 11]]
    place = torch.tensor([0, 1, 2, 3, 0, 0])
    w = dict(layer.named_parameters())
    want = []
    for x, y, p in zip(left, right, place.tolist(), strict=True):
        h = torch.cat([x, y, w["place.weight"][min(p, 2)]])
        for name in ("inner", "outer"):
            h = F.gelu(w[f"{name}.weight"] @ h + w[f"{name}.bias"])
            h = F.layer_norm(h, (8,), w[f"{name}_norm.weight"], w[f"{name}_norm.bias"], model.block.norm.eps)
        want.append(h)
    assert torch.allclose(layer(layer.around(hidden, index)), torch.stack(want), atol=1e-12)
    assert w["bias"].shape == (30,)


def test_boundaries_of_spans() -> None:
    left, right, place = boundaries(torch.tensor([2, 3, 4, 6, 9, 10]))
    assert left.tolist() == [1, 1, 1, 5, 8, 8] and right.tolist() == [5, 5, 5, 7, 11, 11] and place.tolist() == [0, 1, 2, 0, 0, 1]
    assert all(len(x) == 0 for x in boundaries(torch.zeros(0, dtype=torch.int64)))


def test_heads() -> None:
    assert SpanBoundary().heads(spec.Single()) == {"sbo": BoundaryHead(places=20, size=200)}

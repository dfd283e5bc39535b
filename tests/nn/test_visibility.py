"""`plan` against masks drawn from the papers: the right key for the right query, packed or ragged, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PUBLISHED, Case, blind, causal, drawn, full, none, random_case, stream_of, xlnet

from ziggurat.nn.visibility import Plan, allow, plan
from ziggurat.types import SPELLED, Stream

ROW = 16
fast = settings(max_examples=60, deadline=None)


def seen(stream: Stream) -> np.ndarray:
    """bool[T, T] as the kernels will read the plan; also checks what the plan says of places, pads and blind queries."""
    layout = plan(stream)
    total = len(stream.content)
    place = torch.arange(total) if layout.query.places is None else layout.query.places
    assert layout.query.gather(layout.query.spread(torch.arange(total))).tolist() == list(range(total))
    mask = layout.mask
    if mask is None:
        square = torch.ones(layout.query.length, layout.query.length, dtype=torch.bool)
        mask = (square.tril() if layout.causal else square).expand(layout.query.rows, 1, -1, -1)
    assert mask.shape == (layout.query.rows, 1, layout.query.length, layout.query.length)
    found = np.zeros((total, total), bool)
    if not total:
        return found
    row, column = (place // layout.query.length).numpy(), (place % layout.query.length).numpy()
    for q in range(total):
        same = np.flatnonzero(row == row[q])
        keys = mask[row[q], 0, column[q]].numpy()
        found[q, same] = keys[column[same]]
        assert keys.sum() == found[q].sum(), f"query {q} looks at padding"
    blind = np.zeros(total, bool) if layout.empty is None else layout.empty[row, 0, column, 0].numpy()
    assert np.array_equal(blind, ~found.any(1))
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_mask_is_its_row_of_the_table(name: str) -> None:
    case = PUBLISHED[name]
    columns = [getattr(case.rule, f) for f in SPELLED]
    one = np.zeros(len(case), np.int32)
    rule = allow(tuple(x[:, None] for x in (one, *columns)), tuple(x[None] for x in (one, *columns)))
    assert np.array_equal(rule, case.mask)
    for row in (0, ROW):
        stream, mask = stream_of([case], row=row)
        assert np.array_equal(seen(stream), mask)


def test_the_drawing_in_the_design_is_the_mask_of_xlnet() -> None:
    picture = "###..#.. ###..#.. ###..#.. ######.. ###.##.. ###..#.. ###.##.. ###..#.."
    want = [[c == "#" for c in line] for line in picture.split()]
    assert xlnet(6, [4, 3]).mask.tolist() == want


@pytest.mark.parametrize("row", [0, ROW])
def test_published_masks_side_by_side_do_not_touch(row: int) -> None:
    """All of them in one batch, with documents of no token between and at the ends."""
    cases = [none(), *(c for case in PUBLISHED.values() for c in (case, none()))]
    stream, mask = stream_of(cases, row=row)
    assert np.array_equal(seen(stream), mask)


@fast
@given(st.lists(st.integers(0, 8), max_size=7), st.sampled_from([0, 8]), st.integers(0, 2**32))
def test_any_rule_in_any_layout(lengths: list[int], row: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    stream, mask = stream_of([random_case(rng, n) for n in lengths], row=row)
    assert np.array_equal(seen(stream), mask)


@fast
@given(st.lists(st.integers(0, 8), max_size=7), st.sampled_from([0, 8]), st.sampled_from(["full", "causal"]))
def test_full_and_causal_in_any_layout(lengths: list[int], row: int, kind: str) -> None:
    make = {"full": full, "causal": causal}[kind]
    stream, _ = stream_of([make(n) for n in lengths], row=row, kind=kind)
    bounds = stream.bounds.tolist()
    owner = [d for d in range(len(bounds) - 1) for _ in range(bounds[d], bounds[d + 1])]
    want = drawn(len(owner), lambda q, k: owner[q] == owner[k] and (kind == "full" or k <= q))
    assert np.array_equal(seen(stream), want)


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_rows_of_one_document_need_no_mask(kind: str) -> None:
    for lengths, row in ([8, 8, 8], 8), ([8, 8, 8], 0), ([5], 0):
        layout: Plan = plan(stream_of([full(n) for n in lengths], row=row, kind=kind)[0])
        assert layout.mask is None and layout.query.slots is None and layout.causal == (kind == "causal")
    for lengths, row in ([8, 5, 3], 8), ([4, 3], 0), ([8, 0, 5, 3], 8), ([8, 8, 0], 0):
        assert plan(stream_of([full(n) for n in lengths], row=row, kind=kind)[0]).mask is not None


def test_bounds_are_those_of_variable_length_kernels() -> None:
    layout = plan(stream_of([full(3), none(), full(4), blind(2)], row=8)[0])
    assert layout.bounds.dtype == torch.int32
    assert layout.bounds.tolist() == [0, 3, 3, 7, 8, 10, 16]


def test_a_case_can_fail() -> None:
    """The oracle is no copy of the rule: one clock moved by one is a different picture."""
    case: Case = xlnet(6, [4, 3])
    assert case.rule.clock is not None
    case.rule.clock[7] += 1
    stream, mask = stream_of([case])
    assert not np.array_equal(seen(stream), mask)

"""Laws of every objective: corruption commutes with joining, is blind to rows and neighbours, and leaves labels no trace."""

from __future__ import annotations

import numpy as np
from examples import EXAMPLES, LENGTH, ROW, VOCAB, context, corpus, every_case, every_objective, formed, home, made, objective_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch import documents, same

from ziggurat.data.cut import windows
from ziggurat.data.pack import pack, take
from ziggurat.objectives import OBJECTIVES
from ziggurat.types import DEAD, FULL, join, join_all

DRAWN_WHEN_FORMED = ("nsp", "sop", "sentence-structure", "future-lm")
"""Objectives whose chance is all in `form`, or that have none."""


def test_every_objective_is_under_the_laws() -> None:
    assert {example["kind"] for example in EXAMPLES.values()} == set(OBJECTIVES)
    for name in EXAMPLES:
        assert all(len(t.index) for t in made(name).targets.values()) and made(name).targets, name


@every_objective
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 2**16))
def test_corrupt_commutes_with_join(name: str, seed: int, other: int) -> None:
    objective, ctx = objective_of(name), context(home(name), epoch=seed % 3)
    a, b = formed(name, seed=seed, n=2 + seed % 5), formed(name, seed=other, n=2 + other % 7)
    assert same(objective.corrupt(join(a, b), ctx), join(objective.corrupt(a, ctx), objective.corrupt(b, ctx)))


@every_objective
def test_corrupt_knows_no_neighbours_order_or_rows(name: str) -> None:
    """Each document by itself, in another order, or in packed rows among dead ones: the same hidden tokens and questions."""
    objective, ctx = objective_of(name), context(home(name))
    batch = formed(name)
    want = documents(objective.corrupt(batch, ctx))
    shuffled = np.random.default_rng(0).permutation(len(batch))
    assert documents(objective.corrupt(take(batch, shuffled), ctx)) == [want[i] for i in shuffled]
    assert documents(join_all(objective.corrupt(take(batch, np.array([i])), ctx) for i in range(len(batch)))) == want
    row = max(ROW, 3 + max(int(s.lengths.max()) for s in batch.streams.values()))
    after = documents(objective.corrupt(pack(batch, row, VOCAB.pad), ctx))
    assert sorted([d for d in after if d[0] != int(DEAD)], key=repr) == sorted(want, key=repr)
    assert any(d[0] == int(DEAD) for d in after) and not any(asked for key, _, asked in after if key == int(DEAD))


@every_objective
def test_examples_are_a_pure_function(name: str) -> None:
    assert same(made(name), made(name))
    again = objective_of(name).corrupt(formed(name), context(home(name), seed=8))
    assert same(made(name), again) == (
        name.startswith(("clm", "classify", "regress", "tag", "multiple", "question", "tasks")) or name in DRAWN_WHEN_FORMED
    )


@every_case
def test_examples_fit(name: str, system: str) -> None:
    rows, batch = objective_of(name).rows(context(system)), made(name, system)
    assert set(rows) == set(batch.streams)
    assert all(int(stream.lengths.max()) <= rows[s] for s, stream in batch.streams.items())
    if list(rows) == ["text"] and len(batch) == len(formed(name, system)) and not (batch.streams["text"].content < 0).any():
        assert rows["text"] >= LENGTH


def test_windows_see_as_the_system_does() -> None:
    for system, kind in (("bert", "full"), ("gpt2", "causal")):
        assert windows(corpus("mlm"), context(system)).streams["text"].visibility.kind == kind
    assert FULL.kind == "full"

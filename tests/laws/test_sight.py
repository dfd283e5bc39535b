"""Laws of sight, for every objective on every system: nothing across documents, and no answer within reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import (
    EXAMPLES,
    TWINS,
    VOCAB,
    context,
    corpus,
    every_case,
    every_single,
    every_system,
    formed,
    homes,
    made,
    network_of,
    objective_of,
    rows_of,
    torched,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from test_batch import documents, same

from ziggurat.data.pack import pack
from ziggurat.nn.visibility import plan
from ziggurat.objectives import AnyObjective
from ziggurat.systems import SYSTEMS
from ziggurat.types import FOREVER, NEVER, Batch, Stream, Visibility

IN_PLACE = [
    name
    for name in EXAMPLES
    if name.startswith(("mlm", "clm", "nsp", "sop", "joint-bert", "joint-order", "mac", "sbo", "joint-span"))
    and name[4:8] != "mass"
]
"""Objectives that hide tokens where they stand; the others have this law in tests of their own, where rows are told by position."""


@every_case
def test_no_sight_across_documents(name: str, system: str) -> None:
    """All tokens of one document are replaced: its own vectors move, all others stay the same to the last bit."""
    network, batch = network_of(system, objective_of(name)), pack(made(name, system), rows_of(name, system), VOCAB.pad)
    streams = torched(batch).streams
    before = network(streams)
    owners = {s: torch.from_numpy(stream.document()) for s, stream in batch.streams.items()}
    for d in range(0, len(batch), 3):
        other = {}
        for s, stream in streams.items():
            swapped = torch.where((owners[s] == d) & (stream.content >= 0), (stream.content + 7) % VOCAB.size, stream.content)
            other[s] = replace(stream, content=swapped)
        after = network(other)
        for s, owner in owners.items():
            mine, word = owner == d, streams[s].content >= 0
            moved = (after[s] != before[s]).any(1)
            assert moved[mine & word].all() and not moved[~mine].any()


def sight(stream: Stream) -> np.ndarray:
    """bool[T, T] as the kernels read it."""
    layout = plan(stream)
    total = len(stream.content)
    at = np.arange(total) if layout.query.places is None else layout.query.places.numpy()
    row, column = at // layout.query.length, at % layout.query.length
    if layout.mask is None:
        mask = torch.ones(layout.query.rows, 1, layout.query.length, layout.query.length, dtype=torch.bool)
        mask = mask.tril() if layout.causal else mask
    else:
        mask = layout.mask
    inside = mask[:, 0].numpy()[row[:, None], column[:, None], column[None]]
    return inside & (row[:, None] == row[None])


def closure(seen: np.ndarray) -> np.ndarray:
    """Whose content can have reached whom after any number of layers; everybody carries his own."""
    reach = seen | np.eye(len(seen), dtype=bool)
    while True:
        further = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
        if np.array_equal(further, reach):
            return reach
        reach = further


@pytest.mark.parametrize(("name", "system"), [(name, system) for name in IN_PLACE for system in homes(name)])
def test_no_answer_is_reachable(name: str, system: str) -> None:
    """For each question, the rows whose content changes with its answer are found by changing the answer in the source and
    corrupting again. None of them may reach the row that must answer, over any number of layers; the only exception is the
    paper's: a token of masked LM that was drawn to stay as it is or, at random, was."""
    objective, ctx = objective_of(name), context(system)
    source = formed(name, system, n=4)
    done = objective.corrupt(source, ctx)
    stream = done.streams["text"]
    reach = closure(sight(torched(done).streams["text"]))
    for kind, target in done.targets.items():
        if target.at == "document" or kind == "tag":
            continue
        offset = 1 if kind == "clm" else 0
        for row, value in zip(target.index.tolist(), target.value.tolist(), strict=True):
            content = source.streams["text"].content.copy()
            assert content[row + offset] == value
            content[row + offset] = 5 + (value + 1) % 40
            changed = replace(source, streams={"text": replace(source.streams["text"], content=content)})
            again = objective.corrupt(changed, ctx)
            telling = np.flatnonzero(again.streams["text"].content != stream.content)
            if kind in ("mlm", "mac", "sbo") and name != "mlm-masks" and stream.content[row] == value:
                assert telling.tolist() in ([row], [])  # at random it may come out the same
                continue
            assert not reach[row, telling].any(), (kind, row, telling)


@pytest.mark.parametrize("system", ["bert", "bart", "t5"])
@pytest.mark.parametrize("name", ["classify", "classify-pair", "regress", "tag"])
def test_labels_leave_no_trace_in_the_text(name: str, system: str) -> None:
    block = corpus(name)
    other = replace(block, fields={**block.fields, "label": list(reversed(block.fields["label"]))})
    text = block.parts["text"]
    if name == "tag":
        marks = text.marks.copy()
        marks[:, 2] = 2 - marks[:, 2]
        other = replace(other, parts={"text": replace(text, marks=marks)})
    objective, ctx = objective_of(name), context(system)
    one, two = objective.form(block, ctx), objective.form(other, ctx)
    assert documents(Batch(one.streams, {}, one.keys)) == documents(Batch(two.streams, {}, two.keys))
    assert not same(one.targets[objective.kind], two.targets[objective.kind])


@every_single
def test_next_token_scores_do_not_move_with_the_answer(system: str) -> None:
    """Through the network: changing a token moves the scores from its own row on, in its own document, and none before."""
    objective = objective_of("clm")
    network = network_of(system, objective, layers=3)
    batch = torched(made("clm", system, n=3))
    stream, target = batch.streams["text"], batch.targets["clm"]

    def scores(content: torch.Tensor) -> torch.Tensor:
        streams = {"text": replace(stream, content=content)}
        return network.logits("lm", network(streams), streams, target)

    with torch.no_grad():
        before = scores(stream.content)
        for d, (lo, hi) in enumerate(zip(stream.bounds[:-1].tolist(), stream.bounds[1:].tolist(), strict=True)):
            for i in range(lo, hi, 3):
                content = stream.content.clone()
                content[i] = (content[i] + 11) % VOCAB.size
                moved = set(target.index[(scores(content) != before).any(1)].tolist())
                assert moved == set(range(i, hi - 1)), (d, i)


@pytest.mark.parametrize(
    "system", [name for name in TWINS if name != "prophetnet"]
)  # its rows that ask: tests/objectives/test_future.py
def test_a_decoder_says_each_token_before_it_reads_it(system: str) -> None:
    """Under the system's own objective: what is asked is read one step later, and a decoder's token moves scores from its own row on."""
    objective = TypeAdapter(AnyObjective).validate_python(SYSTEMS[system].objective)
    network, ctx = network_of(system, objective, layers=3), context(system)
    done = objective.corrupt(objective.form(corpus("clm", 3), ctx), ctx)
    batch, ((kind, target),) = torched(done), done.targets.items()
    stream, asked = batch.streams["decoder"], batch.targets[kind]

    def scores(content: torch.Tensor) -> torch.Tensor:
        streams = {**batch.streams, "decoder": replace(stream, content=content)}
        return network.logits("lm", network(streams), streams, asked)

    with torch.no_grad():
        before = scores(stream.content)
        for lo, hi in zip(stream.bounds[:-1].tolist(), stream.bounds[1:].tolist(), strict=True):
            mine = (target.index >= lo) & (target.index < hi)
            assert target.index[mine].tolist() == list(range(lo, hi))
            assert stream.content[lo + 1 : hi].tolist() == target.value[mine][:-1].tolist()
            for i in range(lo, hi, 2):
                content = stream.content.clone()
                content[i] = (content[i] + 11) % VOCAB.size
                assert set(asked.index[(scores(content) != before).any(1)].tolist()) == set(range(i, hi))


@st.composite
def sights(draw: st.DrawFn) -> tuple[list[int], Visibility, int]:
    """Two to four short documents under any rule, and a token to change."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = rng.integers(1, 6, draw(st.integers(2, 4))).tolist()
    total = sum(sizes)
    opens = np.where(rng.random(total) < 0.2, NEVER, rng.integers(0, 4, total))
    closes = np.where(rng.random(total) < 0.3, rng.integers(1, 5, total), FOREVER)
    columns = rng.integers(0, 4, total), opens, closes, rng.integers(0, 3, total)
    return sizes, Visibility("custom", *(c.astype(np.int32) for c in columns)), int(rng.integers(total))


@every_system
@settings(max_examples=25, deadline=None)
@given(sights(), st.integers(1, 3), st.integers(0, 100))
def test_a_token_moves_exactly_those_who_can_see_it(
    system: str, drawn: tuple[list[int], Visibility, int], layers: int, seed: int
) -> None:
    """In one layer those that see it, in n layers those n looks away; itself always."""
    sizes, visibility, k = drawn
    total = sum(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    clock, opens, closes, lane = visibility.clock, visibility.opens, visibility.closes, visibility.lane
    assert clock is not None and opens is not None and closes is not None and lane is not None
    seen = np.zeros((total, total), bool)
    for q in range(total):
        for key in range(total):
            alive = opens[key] <= clock[q] < closes[key]
            seen[q, key] = owner[q] == owner[key] and (alive or lane[q] == lane[key] != 0)
    reach = np.eye(total, dtype=bool)
    for _ in range(layers):
        reach = (reach.astype(int) @ (seen | np.eye(total, dtype=bool)).astype(int)) > 0
    rng = np.random.default_rng(seed)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    position = (np.arange(total) - bounds[owner]).astype(np.int32)
    content = rng.integers(5, VOCAB.size, total).astype(np.int32)
    stream = Stream(content, bounds, position, np.zeros(total, np.int32), visibility)
    batch = Batch({"text": stream}, {}, np.arange(len(sizes), dtype=np.uint64))
    content = content.copy()
    content[k] = 5 + (content[k] - 4) % 45
    network = network_of(system, layers=layers, seed=seed)
    name = context(system).streams[0]  # of two stacks the encoder, alone
    with torch.no_grad():
        for parameter in network.parameters():  # T5 does not scale its scores: a weight of 1e-20 would be seen, and move nothing
            parameter.mul_(0.4)
        before, after = (
            network({name: torched(replace(batch, streams={"text": replace(stream, content=ids)})).streams["text"]})[name]
            for ids in (stream.content, content)
        )
    assert np.array_equal((before != after).any(1).numpy(), reach[:, k])

"""Question answering: windows that cover the context, the answer where it stands, no answer where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blocks import BERT, CLS, GPT, SEP, VOCAB, context, part, texts, tokens
from lawful import documents

from ziggurat.context import Layout
from ziggurat.data.pack import examples_of, pack, take
from ziggurat.errors import UserError
from ziggurat.evaluate.answers import spans
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.systems import model_of
from ziggurat.types import Target, Tokens, join

XLNET = Layout((), (SEP,), (SEP, CLS), (0, 1), 2)
TWINS: dict[str, Any] = {"streams": ("encoder", "decoder"), "words": "decoder", "start": 9}


def block(contexts: Sequence[int], answers: Sequence[tuple[int, int] | None], questions: Sequence[int] = ()) -> Tokens:
    """Contexts of these many tokens, with the answer at [start, end) or none."""
    found = tokens([[[1] * n] for n in questions or [3] * len(contexts)], id=[f"q:{d}" for d in range(len(contexts))])
    pair = part([[[1] * n] for n in contexts], 7)
    marks = np.array([(*a, 0) for a in answers if a], np.int64).reshape(-1, 3)
    bounds = np.cumsum([0, *(a is not None for a in answers)]).astype(np.int64)
    pair = replace(pair, marks=marks, mark_bounds=bounds, labels=("answer",))
    fields = {**found.fields, "answers": [["x"] if a else [] for a in answers]}
    return Tokens({**found.parts, "pair": pair}, found.keys, fields)


def ids(rows: Tokens, name: str, d: int) -> list[int]:
    p = rows.parts[name]
    return p.ids[p.bounds[d] : p.bounds[d + 1]].tolist()


@pytest.mark.parametrize("layout", [BERT, GPT, XLNET], ids=["bert", "gpt", "xlnet"])
@pytest.mark.parametrize("stride", [0, 2, 5])
@pytest.mark.parametrize("size", [1, 9, 10, 11, 12, 37])
def test_windows_cover_the_context(layout: Layout, stride: int, size: int) -> None:
    """Written out: windows of what fits, each `stride` tokens before the end of the last, until the context ends."""
    rows, room = block([size], [None]), 10
    special = len(layout.first) + len(layout.between) + len(layout.last)
    objective = QuestionAnswering(stride=stride, no_answer=True, question=3)
    batch = objective.form(rows, context(3 + special + room, layout))
    own, want, start = ids(rows, "pair", 0), [], 0
    while True:
        window = own[start : start + room]
        want.append([*layout.first, *ids(rows, "text", 0), *layout.between, *window, *layout.last])
        if start + room >= size:
            break
        start += room - stride
    assert texts(batch) == want
    assert set(batch.keys.tolist()) == set(rows.keys.tolist()) and set(examples_of(batch)) == {0}


def gold(rows: Tokens, objective: QuestionAnswering, layout: Layout = BERT, length: int = 14, **other: Any) -> list[Any]:
    """For each window the rows, counted in it, of the start and the end that it must name."""
    batch = objective.form(rows, context(length, layout, **other))
    target = batch.targets["span"]
    stream = batch.streams[target.stream]
    owner, inside = stream.document(), stream.inside()
    assert target.group is not None and np.allclose(np.bincount(target.group, target.weight), 0.5)
    found: list[dict[int, int]] = [{} for _ in range(len(batch))]
    for row, column, weight, group in zip(target.index, target.value, target.weight, target.group, strict=True):
        assert group == 2 * owner[row] + column
        if weight:
            found[owner[row]][int(column)] = int(inside[row])
    return [(f[0], f[1]) for f in found]


def test_the_answer_stands_where_it_is_and_elsewhere_the_summary_token() -> None:
    # length 14: 3 special, 3 of the question, 8 of the context at rows 5 to 12; windows begin at 0, 6, 12
    rows = block([18, 5, 3], [(6, 8), (0, 5), None])
    objective = QuestionAnswering(stride=2, no_answer=True)
    assert gold(rows, objective) == [(11, 12), (5, 6), (0, 0), (5, 9), (0, 0)]
    rows = block([18], [(7, 9)])  # not whole in the first window
    assert gold(rows, objective) == [(0, 0), (6, 7), (0, 0)]


@pytest.mark.parametrize(
    ("layout", "other", "at"),
    [(BERT, {}, 0), (BERT, {"visibility": "causal"}, 9), (GPT, {"visibility": "causal"}, 7), (XLNET, {}, 9), (BERT, TWINS, 0)],
)
def test_the_row_for_no_answer(layout: Layout, other: dict[str, Any], at: int) -> None:
    """The first special token; the last where there is none, or where the first sees nothing or is not the summary."""
    found = gold(block([4], [None]), QuestionAnswering(no_answer=True), layout, 40, **other)
    assert found == [(at, at)]


def test_of_several_answers_the_first_is_learned() -> None:
    rows = block([6], [(1, 2)])
    pair = replace(rows.parts["pair"], marks=np.array([[4, 6, 0], [1, 2, 0]]), mark_bounds=np.array([0, 2]))
    assert gold(replace(rows, parts={**rows.parts, "pair": pair}), QuestionAnswering()) == [(9, 10)]


def test_what_cannot_be_learned_is_said() -> None:
    rows = block([5, 5], [(1, 2), None])
    with pytest.raises(UserError, match=r"1 question\(s\) have no answer, as q:1"):
        QuestionAnswering().form(rows, context(20))
    with pytest.raises(UserError, match="leaves 8 tokens for the context beside a question of 3, and windows share 8"):
        QuestionAnswering(stride=8, no_answer=True).form(rows, context(14))
    with pytest.raises(UserError, match="no column 'pair'"):
        QuestionAnswering().form(tokens([[[1]]], answers=[["x"]]), context(14))
    with pytest.raises(UserError, match="must stand for no answer"):
        QuestionAnswering().needs(context(14, Layout()))


def test_it_keeps_the_laws() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 40, 12).tolist()
    rows = block(sizes, [None if n % 3 == 0 else (n // 2, n // 2 + 1) for n in sizes], rng.integers(1, 12, 12).tolist())
    objective, ctx = QuestionAnswering(no_answer=True, question=6), context(20)
    whole = objective.form(rows, ctx)
    want = documents(whole)
    order = np.random.default_rng(1).permutation(len(whole))
    assert documents(take(whole, order)) == [want[i] for i in order]
    half = examples_of(whole).searchsorted(6)
    assert documents(join(take(whole, np.arange(half)), take(whole, np.arange(half, len(whole))))) == want
    packed = pack(whole, 27, VOCAB.pad)
    assert sorted(documents(packed, dead=False), key=repr) == sorted(want, key=repr)
    assert int(whole.streams["text"].lengths.max()) <= 20


@pytest.mark.parametrize("system", ["bert", "gpt2", "bart"])
@pytest.mark.parametrize("longest", [1, 3, 50])
def test_the_best_span_over_all_windows(system: str, longest: int) -> None:
    """Against every pair of start and end in every window, one by one."""
    rows = block([30, 4, 13], [None] * 3)
    objective = QuestionAnswering(stride=3, no_answer=True, longest=longest)
    about = TWINS if system == "bart" else {"visibility": "causal"} if system == "gpt2" else {}
    ctx = context(16, **about)
    model = model_of(f"{system}/tiny", {"layers": 1, "width": 16, "heads": 2, "mlp": 32}, VOCAB.size)
    network = NetworkModel(spec.Network(model=model, heads=dict(objective.heads(model))))
    network.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(5)
    network.eval()
    found = spans(network, objective, rows, ctx)
    cut = objective.windows(rows, ctx)
    batch, name = to_device(cut.batch, torch.device("cpu")), ctx.streams[-1]
    every = torch.arange(len(batch.streams[name].content))
    with torch.no_grad():
        scores = network.logits("span", network(batch.streams), batch.streams, Target(name, every, every, every.float())).double()
    best: dict[int, tuple[float, int, int]] = {}
    null: dict[int, float] = {}
    for w, d in enumerate(cut.document.tolist()):
        at, n, first = int(cut.at[w]), int(cut.length[w]), int(cut.start[w])
        null[d] = min(null.get(d, np.inf), float(scores[cut.null[w]].sum()))
        for s in range(n):
            for e in range(s, min(n, s + longest)):
                score = float(scores[at + s, 0] + scores[at + e, 1])
                best[d] = max(best.get(d, (-np.inf, 0, 0)), (score, first + s, first + e + 1))
    for d, span in enumerate(found):
        assert (span.start, span.end) == best[d][1:]
        assert span.score == pytest.approx(best[d][0], rel=1e-4) and span.null == pytest.approx(null[d], rel=1e-4)
        assert span.margin == span.null - span.score

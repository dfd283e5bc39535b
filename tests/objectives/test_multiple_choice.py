"""Multiple choice: every choice with its question, the right one known, all of a question in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import BERT, CLS, GPT, SEP, VOCAB, context, keys, part, texts, tokens
from lawful import check_laws

from ziggurat.context import Layout
from ziggurat.data.loader import Loader
from ziggurat.data.pack import examples_of, pack, split, take
from ziggurat.errors import UserError
from ziggurat.evaluate.heldout import held_out, to_device
from ziggurat.nn import spec
from ziggurat.nn.loss import group_cross_entropy
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.systems import model_of
from ziggurat.types import Batch, Part, Tokens

SIZES = [[2, 1, 3], [1, 4], [2, 2, 1, 6]]


def listed(sizes: Sequence[Sequence[int]], seed: int = 9) -> Part:
    """A part of these many choices of these many tokens."""
    whole = part([[[n for size in sizes_ for n in [1] * size]] for sizes_ in sizes], seed)
    ends = [np.cumsum(s) for s in sizes]
    marks = np.concatenate([np.stack([e - s, e, 0 * e], 1) for e, s in zip(ends, sizes)])
    return replace(whole, marks=marks, mark_bounds=np.cumsum([0, *map(len, sizes)]).astype(np.int64), labels=("choices",))


def block(labels: Sequence[Any] = (2, 0, 1), pair: bool = False, sizes: Sequence[Sequence[int]] = SIZES) -> Tokens:
    found = tokens([[[2, 1]], [[3, 1, 1]], [[1]]][: len(sizes)], id=["q:1", "q:2", "q:3"][: len(sizes)], label=list(labels))
    more = {"pair": part([[[1, 1]], [[2]], [[1] * 5]][: len(sizes)], 5)} if pair else {}
    return replace(found, parts={**found.parts, **more, "choices": listed(sizes)})


def ids(part_: Part, d: int) -> list[int]:
    return part_.ids[part_.bounds[d] : part_.bounds[d + 1]].tolist()


@pytest.mark.parametrize("layout", [BERT, GPT], ids=["bert", "gpt"])
@pytest.mark.parametrize("paired", [False, True])
def test_each_choice_stands_behind_its_question(layout: Layout, paired: bool) -> None:
    rows = block(pair=paired)
    batch = MultipleChoice().form(rows, context(40, layout))
    got = iter(texts(batch))
    parts = rows.parts
    for d, sizes in enumerate(SIZES):
        options = ids(parts["choices"], d)
        for n, size in enumerate(sizes):
            own = options[sum(sizes[:n]) :][:size]
            asked = ids(parts["pair"], d) if paired else []
            want = [*layout.first, *ids(parts["text"], d), *layout.between, *asked, *own, *layout.last]
            assert next(got) == want
    target = batch.targets["choice"]
    assert target.at == "document" and target.group is not None
    assert target.group.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert target.weight.tolist() == [0, 0, 1, 1, 0, 0, 1, 0, 0] and set(target.value.tolist()) == {0}
    assert batch.keys.tolist() == rows.keys[[0, 0, 0, 1, 1, 2, 2, 2, 2]].tolist()


def test_the_choice_is_cut_last() -> None:
    rows = replace(block(sizes=[[4, 2]], labels=[0], pair=True))
    rows = replace(rows, parts={**rows.parts, "text": part([[[9]]], 1), "pair": part([[[6]]], 2)})
    got = texts(MultipleChoice().form(rows, context(3 + 10)))
    assert [len(t) for t in got] == [13, 13]
    for text, size in zip(got, (4, 2)):
        at = text.index(SEP)
        assert at == 1 + 5  # as many of the passage as of the rest
        choice = ids(rows.parts["choices"], 0)[:4] if size == 4 else ids(rows.parts["choices"], 0)[4:]
        assert text[at + 1 : -1] == [*ids(rows.parts["pair"], 0)[: 5 - size], *choice]
    long = texts(MultipleChoice().form(rows, context(3 + 4)))
    assert long[0] == [CLS, *ids(rows.parts["text"], 0)[:2], SEP, *ids(rows.parts["choices"], 0)[:2], SEP]


def test_labels_are_numbers_names_or_several() -> None:
    def weights(objective: MultipleChoice, *labels: Any) -> list[float]:
        return objective.form(block(labels), context(40)).targets["choice"].weight.tolist()

    assert weights(MultipleChoice(), "2", 0, 1) == [0, 0, 1, 1, 0, 0, 1, 0, 0]
    assert weights(MultipleChoice(labels=("A", "B", "C", "D")), "A", "B", "D") == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert weights(MultipleChoice(labels=(1, 2, 3, 4)), 3, "1", 4) == [0, 0, 1, 1, 0, 0, 0, 0, 1]
    assert weights(MultipleChoice(), [0, 2], 1, [3]) == [0.5, 0, 0.5, 0, 1, 0, 0, 0, 1]
    for objective, wrong in (MultipleChoice(), 2), (MultipleChoice(), "B"), (MultipleChoice(labels=("A", "B", "C")), "C"):
        with pytest.raises(UserError, match=r"q:2.* 2 choices"):
            weights(objective, 0 if not objective.labels else "A", wrong, 0 if not objective.labels else "A")


def test_missing_columns_say_how_to_declare_them() -> None:
    with pytest.raises(UserError, match=r"no column 'choices'.*\n.*columns: \{choices"):
        MultipleChoice().form(tokens([[[1]]]), context())
    rows = block()
    with pytest.raises(UserError, match=r"no column 'label'.*\n.*columns: \{label"):
        MultipleChoice().form(replace(rows, fields={}), context())


def test_it_keeps_the_laws() -> None:
    check_laws(MultipleChoice(), block(), context(24))


def test_the_softmax_is_over_the_choices_of_one_question() -> None:
    g = torch.Generator().manual_seed(0)
    scores, weight = torch.randn(9, generator=g, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 0, 0, 1.0, 0, 0])
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    mixed = torch.randperm(9, generator=g)
    scores.requires_grad_()
    got = group_cross_entropy(scores[mixed], group[mixed], weight[mixed])
    want = torch.zeros((), dtype=torch.float64)
    for rows, right in (([0, 1, 2], 2), ([3, 4], 0), ([5, 6, 7, 8], 1)):
        want = want - scores[rows].log_softmax(0)[right]
    torch.testing.assert_close(got, want)
    (a,) = torch.autograd.grad(got, scores)
    (b,) = torch.autograd.grad(want, scores)
    torch.testing.assert_close(a, b)
    far = torch.tensor([1e4, -1e4, 0.0])  # no overflow
    assert float(group_cross_entropy(far, torch.zeros(3, dtype=torch.int64), torch.tensor([0.0, 1.0, 0.0]))) == 2e4
    none = torch.zeros(0)
    assert float(group_cross_entropy(none, none.long(), none)) == 0


class Held:
    """Documents in memory, as the loader reads them."""

    def __init__(self, rows: Tokens):
        self.rows, self.folder, self.parts = rows, Path("memory"), tuple(rows.parts)
        self.tokens = sum(len(p.ids) for p in rows.parts.values())

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, name: str, documents: np.ndarray) -> np.ndarray:
        return np.diff(self.rows.parts[name].bounds)[documents]

    def read(self, documents: np.ndarray) -> Tokens:
        from ziggurat.evaluate.answers import _some

        return _some(self.rows, documents)


@pytest.mark.parametrize("limits", [{"documents": 3}, {"tokens": 48}, {"tokens": 16}])
def test_no_batch_divides_a_question(limits: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 5, rng.integers(2, 6)).tolist() for _ in range(40)]
    found = tokens([[[int(n)]] for n in rng.integers(1, 6, 40)], label=[0] * 40, id=[f"q:{d}" for d in range(40)])
    rows = replace(found, parts={**found.parts, "choices": listed(sizes)}, keys=keys(40))
    objective, ctx = MultipleChoice(), context(16)
    with Loader({"": Held(rows)}, {"": 1.0}, objective, ctx, row=16, ahead=False, **limits) as loader:  # type: ignore[arg-type]
        batches = [next(iter(loader)) for _ in range(loader.count(1))]
    seen: dict[int, list[int]] = {}
    for n, batch in enumerate(batches):
        target = batch.targets["choice"]
        assert target.group is not None
        questions = len(np.unique(target.group))
        assert float(target.weight.sum()) == questions  # each with its right choice
        for key in batch.keys[target.index].tolist():
            seen.setdefault(key, []).append(n)
        if "documents" in limits:
            assert questions <= 3
        elif questions > 1:
            assert len(batch.streams["text"].content) <= limits["tokens"]
    assert sorted(map(len, seen.values())) == sorted(map(len, sizes)) and all(len(set(where)) == 1 for where in seen.values())
    if limits == {"tokens": 16}:
        assert max(len(b.streams["text"].content) for b in batches) > 16  # one question alone may need more


def test_examples_are_neighbours_of_one_key() -> None:
    batch = MultipleChoice().form(block(), context(24))
    assert examples_of(batch).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    packed = pack(batch, 24, VOCAB.pad)
    dead = examples_of(packed)[~packed.alive]
    assert len(set(dead.tolist())) == len(dead)
    with pytest.raises(AssertionError, match="group"):
        split(batch, np.array([0, 2, 9]))
    assert [len(b) for b in split(batch, np.array([0, 3, 9]))] == [3, 6]
    assert len(examples_of(Batch())) == 0


@pytest.mark.parametrize("system", ["bert", "gpt2", "bart"])
def test_held_out_accuracy_is_that_of_the_best_choice(system: str) -> None:
    model = model_of(f"{system}/tiny", {"layers": 1, "width": 16, "heads": 2, "mlp": 32}, VOCAB.size)
    objective, ctx = MultipleChoice(), context(24)
    if system == "bart":
        ctx = replace(ctx, streams=("encoder", "decoder"), words="decoder", start=SEP)
    network = NetworkModel(spec.Network(model=model, heads=dict(objective.heads(model))))
    network.initialise(torch.Generator().manual_seed(1))
    rows = block()
    whole = objective.form(rows, ctx)
    moved = to_device(whole, torch.device("cpu"))
    with torch.no_grad():
        scores = network.eval().logits("choice", network(moved.streams), moved.streams, moved.targets["choice"])[:, 0]
    assert scores.unique().numel() > 5
    best = [int(scores[a:b].argmax()) for a, b in ((0, 3), (3, 5), (5, 9))]
    packed = pack(take(whole, np.arange(len(whole))[::-1]), dict.fromkeys(whole.streams, 30), VOCAB.pad)
    found = held_out(network, objective, [packed])
    assert found["choice_accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(best, (2, 0, 1))]))
    want = -np.mean([float(scores[a:b].log_softmax(0)[r]) for (a, b), r in zip(((0, 3), (3, 5), (5, 9)), (2, 0, 1))])
    assert found["choice"] == pytest.approx(want, rel=1e-5)

"""Mixtures: each part as if it were alone on its documents, shares and schedules, and parts that do not go together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from blocks import BERT, VOCAB, context, random_documents, tokens
from lawful import check_laws, documents
from pydantic import TypeAdapter, ValidationError

from ziggurat.config import check_spec, dump
from ziggurat.context import Context, Layout
from ziggurat.data.pack import pack
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.objectives import AnyObjective, Objective
from ziggurat.objectives.mixture import Mixture, some_texts
from ziggurat.train.distill import Distilled
from ziggurat.types import Batch, Tokens, join

MIXTURES: dict[str, dict[str, Any]] = {
    "directions": {"parts": [{"kind": "mlm"}, {"kind": "clm"}, {"kind": "prefix_lm"}]},
    "streams": {"parts": [{"kind": "plm", "reverse": 0}, {"kind": "mlm", "unit": "word"}], "weights": [2, 1]},
    "joint": {"parts": [{"kind": "joint", "parts": [{"kind": "mlm"}, {"kind": "sop"}]}, {"kind": "clm"}], "weights": [1, 3]},
    "twins": {"parts": [{"kind": "mlm"}, {"kind": "mlm", "unit": "span", "rate": 0.3}]},
    "schedule": {"parts": [{"kind": "clm"}, {"kind": "unilm"}], "weights": [1, 0], "until": [0, 1]},
}


def mixture(name: str) -> Mixture:
    found = TypeAdapter(AnyObjective).validate_python({"kind": "mixture", **MIXTURES[name]})
    assert isinstance(found, Mixture)
    return found


def block(n: int = 24, seed: int = 0) -> Tokens:
    return tokens(random_documents(np.random.default_rng(seed), n), seed, label=[str(i) for i in range(n)])


@pytest.mark.parametrize("name", MIXTURES)
def test_laws(name: str) -> None:
    check_laws(mixture(name), block(), context(20, BERT, progress=0.5))


@pytest.mark.parametrize("name", MIXTURES)
def test_parts_answer_as_if_alone(name: str) -> None:
    """Every document's part by its own draw; what comes out is what the parts make of their documents, joined."""
    o, ctx, data = mixture(name), context(20, BERT, seed=3, progress=0.5), block(40)
    shares = o.shares(0.5)
    mine: list[list[int]] = [[] for _ in o.parts]
    for d in range(len(data)):
        u, part = float(ctx.uniform(data.keys, np.array([d]), np.array([0]), "mixture.part")[0]), 0
        while u >= sum(shares[: part + 1]):
            part += 1
        mine[part].append(d)
    assert all(mine)
    alone = Batch()
    for part, chosen in zip(o.parts, mine, strict=True):
        alone = join(alone, part.corrupt(part.form(some_texts(data, np.array(chosen)), ctx), ctx))
    done = o.corrupt(o.form(data, ctx), ctx)
    assert documents(done) == documents(alone)
    assert set(done.targets) == set(alone.targets)


def test_a_choice_of_documents_takes_everything_of_theirs() -> None:
    data = block(9)
    some = some_texts(data, np.array([7, 2, 2]))
    a, b = data.parts["text"], some.parts["text"]
    assert some.keys.tolist() == data.keys[[7, 2, 2]].tolist() and some.fields["label"] == ["7", "2", "2"]
    for j, d in enumerate((7, 2, 2)):
        for column in ("ids", "words", "sentences"):
            one = getattr(a, column)[a.bounds[d] : a.bounds[d + 1]]
            assert np.array_equal(one, getattr(b, column)[b.bounds[j] : b.bounds[j + 1]])


def test_marks_move_with_their_documents() -> None:
    data = block(3)
    part = replace(data.parts["text"], marks=np.arange(15).reshape(5, 3), mark_bounds=np.array([0, 2, 2, 5]))
    some = some_texts(replace(data, parts={"text": part}), np.array([2, 0])).parts["text"]
    assert some.marks.tolist() == part.marks[[2, 3, 4, 0, 1]].tolist() and some.mark_bounds.tolist() == [0, 3, 5]


def test_shares_and_schedule() -> None:
    """10^5 documents of one token; at a third of the stage the shares stand a third of the way."""
    parts = [{"kind": "clm"}, {"kind": "mlm"}, {"kind": "prefix_lm"}]
    o = check_spec(Mixture, {"parts": parts, "weights": [2, 1, 1], "until": [0, 0, 5]}, "m")
    data = tokens([[[1]]] * 100_000)
    for progress, want in ((0.0, (0.5, 0.25, 0.25)), (1 / 3, (1 / 3, 1 / 6, 0.5)), (1.0, (0.0, 0.0, 1.0))):
        assert np.allclose(o.shares(progress), want)
        formed = o.form(data, context(8, Layout(), progress=progress))
        found = np.bincount(formed.targets["mixture.part"].value, minlength=3) / 100_000
        assert np.abs(found - want).max() < 0.008
    assert check_spec(Mixture, {"parts": parts}, "m").shares(0.7).tolist() == pytest.approx([1 / 3] * 3)


def test_a_part_without_share_gets_nothing() -> None:
    o, ctx = mixture("schedule"), context(20, BERT)
    assert set(o.corrupt(o.form(block(), ctx), ctx).targets) == {"clm"}
    o = check_spec(Mixture, {"parts": [{"kind": "clm"}, {"kind": "mlm"}], "weights": [1, 0]}, "m")
    assert Counter(o.form(block(), ctx).targets["mixture.part"].value.tolist()).keys() == {0}


def test_rows_are_kept_where_no_length_changes() -> None:
    ctx = context(20, BERT)
    for name, row in (("directions", 27), ("streams", 0)):
        o = mixture(name)
        assert o.corrupt(pack(o.form(block(), ctx), 27, VOCAB.pad), ctx).streams["text"].row == row
    assert mixture("streams").rows(ctx) == {"text": 23} and mixture("directions").rows(ctx) == {"text": 20}


def test_heads_and_weights() -> None:
    o = mixture("joint")
    assert set(o.heads(spec.Single())) == {"lm", "pooler", "sop"}
    assert [o.head_of(t) for t in ("mlm", "sop", "clm")] == ["lm", "sop", "lm"]
    assert [o.weight_of(t) for t in ("mlm", "sop", "clm")] == [1, 1, 1]
    assert mixture("twins").weight_of("mlm") == pytest.approx(1.0)
    late = mixture("schedule")
    assert [late.head_of(t) for t in ("clm", "unilm", "nsp")] == ["lm", "lm", "nsp"]
    assert [late.weight_of(t) for t in ("clm", "unilm", "nsp")] == pytest.approx([1, 1, 1 / 3])
    both = [{"kind": "classify", "labels": ["a", "b"]}, {"kind": "classify", "labels": ["a", "b", "c"]}]
    with pytest.raises(UserError, match="different heads"):
        check_spec(Mixture, {"parts": both}, "m").heads(spec.Single())


@pytest.mark.parametrize("name", ["joint", "directions", "schedule"])
def test_a_step_is_the_mean_over_its_examples(name: str) -> None:
    """Each part weighs as its examples in the step do, whatever the shares are on the mean of the stage; all of a joint part's losses as the part."""
    o = mixture(name)
    for progress in (0.0, 0.25, 0.9):
        ctx = context(20, BERT, progress=progress)
        formed = o.form(block(40), ctx)
        drawn = np.bincount(formed.targets["mixture.part"].value, minlength=len(o.parts)) / len(formed)
        weights = o.step_weights(o.counts(o.corrupt(formed, ctx)))
        for number, part in enumerate(o.parts):
            for target in {"joint": ("mlm", "sop")}.get(part.kind, (part.kind,)):
                assert weights.get(target, 0.0) == pytest.approx(drawn[number] * part.weight_of(target), abs=0.06), (
                    target,
                    progress,
                )
    if name == "schedule":
        start = o.corrupt(o.form(block(), context(20, BERT)), context(20, BERT))
        assert o.step_weights(o.counts(start)) == {"clm": 1.0}, "a part that is not there yet takes nothing away"


def test_distilled_its_parts_keep_their_weights() -> None:
    o, ctx = mixture("joint"), context(20, BERT)
    batch = o.corrupt(o.form(block(40), ctx), ctx)
    own = o.step_weights(o.counts(batch))
    both = Distilled(o, torch.nn.Module(), weight=0.25, temperature=2.0)  # type: ignore[arg-type]
    found = both.step_weights(both.counts(batch))
    assert found == pytest.approx({n: 0.75 * w for n, w in own.items()} | {f"{n}_distilled": 0.25 * w for n, w in own.items()})


def test_what_it_needs_is_what_its_parts_need() -> None:
    o = mixture("streams")
    assert (o.extra, o.structures, o.labelled) == (1, ("single",), False)
    assert mixture("directions").extra == 0 and "single" in Mixture.structures and not Mixture.labelled
    assert check_spec(Mixture, {"parts": [{"kind": "mlm"}, {"kind": "classify", "labels": ["a", "b"]}]}, "m").labelled
    with pytest.raises(UserError, match="mask token"):
        o.needs(Context(type(VOCAB)(60, 0), Layout(), 16))


@pytest.mark.parametrize("name", MIXTURES)
def test_written_and_read_again(name: str) -> None:
    o = mixture(name)
    assert check_spec(Mixture, yaml.safe_load(dump(o)), "m") == o


class Elsewhere(Objective):
    kind: str = "test_mixture:Elsewhere"
    structures = ("encoder_decoder",)


class OwnPasses(Objective):
    kind: str = "test_mixture:OwnPasses"

    def losses(self, network: Any, batch: Batch) -> Any:
        return {}


@pytest.mark.parametrize(
    "wrong,why",
    [
        ({"parts": [{"kind": "mlm"}]}, "at least 2"),
        ({"parts": [{"kind": "mlm"}, {"kind": "clm"}], "weights": [1]}, "weights needs 2 numbers"),
        ({"parts": [{"kind": "mlm"}, {"kind": "clm"}], "weights": [0, 0]}, "weights needs"),
        ({"parts": [{"kind": "mlm"}, {"kind": "clm"}], "until": [1, -1]}, "until needs"),
        ({"parts": [{"kind": "mlm"}, {"kind": "mixture", "parts": [{"kind": "mlm"}, {"kind": "clm"}]}]}, "inside a mixture"),
        ({"parts": [{"kind": "mlm"}, Elsewhere()]}, "no structure serves all parts: mlm single, test_mixture:Elsewhere enc"),
        ({"parts": [{"kind": "mlm"}, OwnPasses()]}, "cannot share a batch"),
        ({"parts": [{"kind": "mlm"}, {"kind": "mml"}]}, "mml"),
    ],
)
def test_mixtures_that_make_no_sense(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=why):
        Mixture.model_validate(wrong)

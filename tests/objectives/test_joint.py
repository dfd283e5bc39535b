"""Several objectives on one pass: each part's targets as if it were alone, weights, and combinations that make no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from blocks import VOCAB, context, random_documents, tokens
from pydantic import ValidationError

from ziggurat.context import Context, Layout
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.objectives.joint import Joint
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.pairs import NextSentence, SentenceOrder
from ziggurat.types import Target

BERT = {"parts": [{"kind": "mlm"}, {"kind": "nsp"}]}


def same(a: Target, b: Target) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("index", "value", "weight")) and a.at == b.at


@pytest.mark.parametrize("order", [("mlm", "nsp"), ("nsp", "mlm"), ("mlm", "sop"), ("sop", "mlm")], ids="+".join)
def test_parts_answer_as_if_alone(order: tuple[str, str]) -> None:
    block, ctx = tokens(random_documents(np.random.default_rng(0), 12)), context(24, seed=4)
    joint = Joint.model_validate({"parts": [{"kind": kind} for kind in order]})
    pairs = {"nsp": NextSentence(), "sop": SentenceOrder()}[next(k for k in order if k != "mlm")]
    formed = joint.form(block, ctx)
    done = joint.corrupt(formed, ctx)
    alone = pairs.corrupt(pairs.form(block, ctx), ctx)
    masked = Masked().corrupt(pairs.form(block, ctx), ctx)
    assert set(done.targets) == set(order)
    assert same(done.targets[pairs.kind], alone.targets[pairs.kind]) and same(done.targets["mlm"], masked.targets["mlm"])
    assert np.array_equal(done.streams["text"].content, masked.streams["text"].content)
    assert np.array_equal(formed.streams["text"].content, alone.streams["text"].content)


def test_heads_and_weights() -> None:
    joint = Joint.model_validate({**BERT, "weights": {"nsp": 0.5}})
    model = spec.Single()
    assert joint.heads(model) == {
        "lm": spec.VocabHead(),
        "pooler": spec.PoolerHead(),
        "nsp": spec.ClassHead(outputs=2, by="pooler"),
    }
    assert (joint.head_of("mlm"), joint.head_of("nsp")) == ("lm", "nsp")
    assert (joint.weight_of("mlm"), joint.weight_of("nsp")) == (1.0, 0.5)


def test_needs_are_those_of_all_parts() -> None:
    joint = Joint.model_validate({"parts": [{"kind": "sop"}, {"kind": "mlm"}]})
    joint.needs(context())
    with pytest.raises(UserError, match="mask token"):
        joint.needs(Context(type(VOCAB)(60, 0), Layout(), 16))


@pytest.mark.parametrize(
    "wrong,why",
    [
        ({"parts": [{"kind": "nsp"}, {"kind": "sop"}]}, "nsp and sop both decide"),
        ({"parts": [{"kind": "mlm"}]}, "at least 2"),
        ({"parts": [{"kind": "mlm"}, {"kind": "mlm", "unit": "word"}]}, "two parts of one kind"),
        ({**BERT, "weights": {"sop": 2.0}}, "no part"),
        # Its answers would be the mask tokens of the other part, and the two read in different directions.
        ({"parts": [{"kind": "mlm"}, {"kind": "clm"}]}, "clm"),
        ({"parts": [{"kind": "mlm"}, {"kind": "classify", "labels": [0, 1]}]}, "classify"),
    ],
)
def test_combinations_that_make_no_sense(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Joint.model_validate(wrong)

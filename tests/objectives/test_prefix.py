"""Prefix LM: the published mask, questions for the continuation alone, and a border that is drawn as said."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from blocks import BERT, CLS, GPT, VOCAB, context, random_documents, texts, tokens
from lawful import check_laws, mask_of, reach
from pydantic import ValidationError

from ziggurat.context import Layout
from ziggurat.data.pack import pack
from ziggurat.objectives.causal import Causal
from ziggurat.objectives.prefix import Prefix
from ziggurat.types import DEAD

SHARES = [(0.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.25, 0.75), (1.0, 1.0)]


@pytest.mark.parametrize("layout", [BERT, GPT, Layout()], ids=["bert", "gpt", "bare"])
@pytest.mark.parametrize("share", SHARES, ids=str)
def test_mask_and_questions(share: tuple[float, float], layout: Layout) -> None:
    """q sees k if k is in the prefix, or q is not and k does not come after it; asked are all tokens after the prefix."""
    o, ctx = Prefix(share=share), context(14, layout, seed=2)
    formed = o.form(tokens(random_documents(np.random.default_rng(0), 20)), ctx)
    done = o.corrupt(formed, ctx)
    s, target = done.streams["text"], done.targets["prefix_lm"]
    assert np.array_equal(s.content, formed.streams["text"].content)
    assert np.array_equal(s.position, formed.streams["text"].position)
    for d in range(len(done)):
        lo, hi = s.bounds[d : d + 2].tolist()
        n, content = hi - lo, s.content[lo:hi].tolist()
        mine = target.index[(target.index >= lo) & (target.index < hi)] - lo
        value = target.value[(target.index >= lo) & (target.index < hi)]
        if n == 1:
            assert not len(mine)
            continue
        border = int(mine[0]) + 1
        text = n - len(layout.first)
        assert max(1, len(layout.first)) <= border < n
        assert border - len(layout.first) >= np.floor(share[0] * text) - 1 and border - len(layout.first) <= share[1] * text + 1
        assert mine.tolist() == list(range(border - 1, n - 1)) and value.tolist() == content[border:]
        want = np.array([[k < border or (q >= border and k <= q) for k in range(n)] for q in range(n)])
        assert np.array_equal(mask_of(s, d), want)
        far = reach(want)
        assert not any(far[row, row + 1] for row in mine)  # the answer is the next token


@pytest.mark.parametrize("share", SHARES, ids=str)
def test_laws(share: tuple[float, float]) -> None:
    check_laws(Prefix(share=share), tokens(random_documents(np.random.default_rng(1), 16)), context(12, BERT))


def test_examples_are_those_of_causal_lm() -> None:
    block, ctx = tokens(random_documents(np.random.default_rng(2), 9)), context(12, GPT)
    assert texts(Prefix().form(block, ctx)) == texts(Causal().form(block, ctx))


@pytest.mark.parametrize("layout", [Layout((CLS,), (), ()), Layout()], ids=["cls", "bare"])
def test_every_border_is_as_likely(layout: Layout) -> None:
    """10^5 examples of ten words and the end token, cut after each token but the last, [CLS] included; five deviations."""
    count = 100_000
    o, ctx = Prefix(), context(16, layout)
    done = o.corrupt(o.form(tokens([[[1] * 10]] * count), ctx), ctx)
    s = done.streams["text"]
    asked = np.bincount(s.document()[done.targets["prefix_lm"].index], minlength=count)
    found = Counter(asked.tolist())
    borders = 10 + len(layout.first)
    assert set(found) == set(range(1, borders + 1))
    assert max(abs(n - count / borders) for n in found.values()) < 5 * (count / borders) ** 0.5


def test_a_fixed_share() -> None:
    ctx = context(21, Layout())
    done = Prefix(share=(0.25, 0.25)).corrupt(Prefix().form(tokens([[[1] * 19]] * 50), ctx), ctx)
    s = done.streams["text"]
    assert (np.bincount(s.document()[done.targets["prefix_lm"].index]) == 20 - 1 - 4).all()


def test_the_dead_are_not_asked() -> None:
    o, ctx = Prefix(), context(9, GPT)
    packed = pack(o.form(tokens([[[3]], [[1, 2, 3]], [[2]]]), ctx), 12, VOCAB.pad)
    done = o.corrupt(packed, ctx)
    owner = done.streams["text"].document()[done.targets["prefix_lm"].index]
    assert done.streams["text"].row == 12 and (done.keys[owner] != DEAD).all() and len(owner)


def test_mistakes() -> None:
    for wrong in ((-0.1, 1), (0.5, 0.4), (0, 1.1)):
        with pytest.raises(ValidationError, match="low <= high"):
            Prefix(share=wrong)

"""Causal LM: every next token, the end of a document, and nothing across documents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blocks import BERT, CLS, GPT, PAD, SEP, VOCAB, context, random_documents, texts, tokens

from ziggurat.context import Layout
from ziggurat.data.pack import pack
from ziggurat.objectives.causal import Causal
from ziggurat.types import DEAD, Batch


def asked(batch: Batch) -> dict[int, int]:
    t = batch.targets["clm"]
    return dict(zip(t.index.tolist(), t.value.tolist(), strict=True))


def next_tokens(batch: Batch) -> dict[int, int]:
    s, found = batch.streams["text"], {}
    for d, key in enumerate(batch.keys):
        for i in range(s.bounds[d], s.bounds[d + 1] - 1):
            if key != DEAD:
                found[i] = int(s.content[i + 1])
    return found


@pytest.mark.parametrize("layout", [GPT, BERT, Layout()], ids=["gpt", "bert", "bare"])
@pytest.mark.parametrize("length", [4, 16])
def test_windows_end_only_where_the_document_does(layout: Layout, length: int) -> None:
    block = tokens(random_documents(np.random.default_rng(0), 30))
    batch = Causal().form(block, context(length, layout))
    room, want = length - len(layout.first), []
    part = block.parts["text"]
    for d in range(len(block)):
        ids = part.ids[part.bounds[d] : part.bounds[d + 1]].tolist()
        for i in range(0, len(ids), room):
            closing = [SEP] if len(ids) - i < room else []
            want.append([*layout.first, *ids[i : i + room], *closing])
    assert texts(batch) == want
    assert batch.streams["text"].visibility.kind == "causal"
    assert max(map(len, want)) <= length


def test_a_vocabulary_without_an_end_token() -> None:
    ctx = replace(context(16, GPT), vocab=replace(VOCAB, end=None))
    assert all(SEP not in text for text in texts(Causal().form(tokens([[[1, 2]], [[3] * 9]]), ctx)))


def test_every_next_token_is_asked_for() -> None:
    objective, ctx = Causal(), context(8, GPT)
    formed = objective.form(tokens(random_documents(np.random.default_rng(1), 20)), ctx)
    done = objective.corrupt(formed, ctx)
    assert asked(done) == next_tokens(done)
    assert np.array_equal(done.streams["text"].content, formed.streams["text"].content)
    assert (done.targets["clm"].weight == 1).all()


def test_padding_is_never_an_answer() -> None:
    """A dead document has no target, whether rows are packed before or after."""
    objective, ctx = Causal(), context(8, GPT)
    formed = objective.form(tokens([[[3]], [[1, 2, 3]], [[2]]]), ctx)
    packed = pack(formed, 12, PAD)
    assert (packed.streams["text"].lengths[packed.keys == DEAD] > 2).any()
    done = objective.corrupt(packed, ctx)
    assert asked(done) == next_tokens(done)
    assert PAD not in asked(done).values()
    assert len(asked(done)) == len(asked(objective.corrupt(formed, ctx)))


def test_one_token_and_no_token() -> None:
    objective, ctx = Causal(), replace(context(8, Layout((CLS,))), vocab=replace(VOCAB, end=None))
    done = objective.corrupt(objective.form(tokens([[[1]]]), ctx), ctx)
    assert texts(done)[0][0] == CLS and len(asked(done)) == 1
    bare = replace(ctx, layout=Layout())
    assert asked(objective.corrupt(objective.form(tokens([[[1]], [[1]]]), bare), bare)) == {}
    assert asked(objective.corrupt(objective.form(tokens([]), bare), bare)) == {}

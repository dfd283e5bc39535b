"""UniLM's cloze: four visibilities drawn as published, masks of tokens and n-grams, and what each mode adds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from blocks import BERT, CLS, GPT, MASK, SEP, VOCAB, context, random_documents, tokens
from lawful import check_laws, documents, mask_of
from pydantic import ValidationError

from ziggurat.context import Context, Layout
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.objectives.unilm import UniLM
from ziggurat.types import Batch, Tokens

NAMES = {(0, 1): "bi", (0,): "bi", (4, 5): "s2s", (4,): "s2s", (2,): "l2r", (3,): "r2l"}
ONLY = {"bi": (1, 0, 0, 0), "s2s": (0, 1, 0, 0), "l2r": (0, 0, 1, 0), "r2l": (0, 0, 0, 1)}


def modes(batch: Batch) -> list[str]:
    s = batch.streams["text"]
    return [NAMES[tuple(dict.fromkeys(s.segment[a:b].tolist()))] for a, b in pairwise(s.bounds.tolist())]


def block(n: int = 25, seed: int = 0) -> Tokens:
    return tokens(random_documents(np.random.default_rng(seed), n), seed)


@pytest.mark.parametrize("layout", [BERT, GPT], ids=["bert", "gpt"])
def test_every_mode_has_its_mask_segments_and_layout(layout: Layout) -> None:
    o, ctx = UniLM(), context(20, layout, seed=4)
    formed = o.form(block(60), ctx)
    done = o.corrupt(formed, ctx)
    s, before = done.streams["text"], formed.streams["text"]
    seen = Counter[str]()
    for d, mode in enumerate(modes(formed)):
        lo, hi = s.bounds[d : d + 2].tolist()
        n, content, segment = hi - lo, before.content[lo:hi].tolist(), before.segment[lo:hi].tolist()
        assert s.segment[lo:hi].tolist() == segment and s.position[lo:hi].tolist() == list(range(n))
        pair = len(set(segment)) > 1
        source = segment.index(segment[-1]) if pair else n if mode in ("bi", "s2s") else 0
        seen[mode] += 1
        seen["pairs"] += pair
        assert content[: len(layout.first)] == list(layout.first) and content[-1] == SEP
        assert content.count(SEP) == 1 + pair * len(layout.between)
        if pair:
            assert mode in ("bi", "s2s")
            assert not layout.between or content[source - 1] == SEP  # the first separator belongs to the source

        def sees(q: int, k: int, mode: str = mode, source: int = source) -> bool:
            if mode == "s2s":
                return k < source or (q >= source and k <= q)
            return mode == "bi" or (k <= q if mode == "l2r" else k >= q)

        want = np.array([[sees(q, k) for k in range(n)] for q in range(n)])
        assert np.array_equal(mask_of(s, d), want), mode
    assert min(seen.values()) > 5


@pytest.mark.parametrize("mode", ONLY)
def test_the_text_is_all_there(mode: str) -> None:
    """Nothing is lost; pairs to translate and bidirectional pairs that are in order follow without a gap."""
    data, o, ctx = block(), UniLM(modes=ONLY[mode], random=0.0), context(14, BERT)
    s = o.form(data, ctx).streams["text"]
    assert s.content[(s.content != CLS) & (s.content != SEP)].tolist() == data.parts["text"].ids.tolist()


def test_modes_have_the_published_shares() -> None:
    """10^5 examples of one word each side; three decimals."""
    o, ctx = UniLM(codes=(0, 0, 1, 1, 2, 3)), context(6, BERT)
    batch = o.form(tokens([[[1], [1]]] * 100_000), ctx)
    s = batch.streams["text"]
    mode = s.segment[s.bounds[:-1]]
    whole = np.bincount(mode, minlength=4)
    label = np.bincount(batch.targets["nsp"].value, minlength=2)
    # A pair whose B came from elsewhere leaves its second sentence to a further example, which draws again.
    assert np.abs(whole / whole.sum() - [1 / 3, 1 / 3, 1 / 6, 1 / 6]).max() < 0.006
    assert len(batch.targets["nsp"].index) == whole[0] and label[1] > label[0]


def test_next_sentence_is_asked_of_bidirectional_pairs_alone() -> None:
    data, o, ctx = block(400, 3), UniLM(), context(30, BERT)
    formed = o.form(data, ctx)
    asked, mode = formed.targets["nsp"], modes(formed)
    s = formed.streams["text"]
    pairs = [
        d for d in range(len(formed)) if mode[d] == "bi" and len(set(s.segment[s.bounds[d] : s.bounds[d + 1]].tolist())) == 2
    ]
    assert asked.index.tolist() == pairs and asked.at == "document"
    assert 0.45 < asked.value.mean() < 0.75  # half of those that can be split, and all that cannot
    alone = o.form(tokens(random_documents(np.random.default_rng(0), 1)), ctx)
    assert not len(alone.targets["nsp"].index)
    assert "nsp" not in UniLM(modes=(0, 1, 0, 0)).form(data, ctx).targets


def masks(n: int, length: int, o: UniLM, ctx: Context) -> tuple[Batch, Batch]:
    formed = o.form(tokens([[[1] * length]] * n), ctx)
    return formed, o.corrupt(formed, ctx)


def test_cloze_rates() -> None:
    """10^5 predictions: 15% of the tokens; 80/10/10; of the phrases 80% tokens, 10% bigrams, 10% trigrams."""
    o, ctx = UniLM(modes=(0, 0, 1, 0)), context(128, Layout())
    formed, done = masks(5_500, 128, o, ctx)
    s, before, target = done.streams["text"], formed.streams["text"], done.targets["unilm"]
    assert len(target.index) == 5_500 * 19
    assert np.array_equal(before.content[target.index], target.value)
    untouched = np.ones(len(s.content), bool)
    untouched[target.index] = False
    assert np.array_equal(s.content[untouched], before.content[untouched])
    now = s.content[target.index]
    masked, kept = (now == MASK).mean(), (now == target.value).mean()
    assert abs(masked - 0.8) < 0.005 and abs(kept - 0.1 - 0.1 / 55) < 0.005
    assert not set(now.tolist()) & (set(VOCAB.special) - {MASK})
    chosen = np.flatnonzero(~untouched)
    starts = np.flatnonzero(np.diff(chosen, prepend=-9) > 1)
    runs = np.diff(np.append(starts, len(chosen)))
    share = np.bincount(runs, minlength=4)[1:4] / len(runs)
    # phrases touch by chance, so an independent simulation says what to expect
    rng, found = random.Random(0), Counter[int]()
    for _ in range(1_500):
        taken, left = set[int](), 19
        for at in rng.sample(range(128), 128):
            phrase = range(at, min(at + rng.choices((1, 2, 3), (8, 1, 1))[0], at + left, 128))
            if taken.isdisjoint(phrase):
                taken |= set(phrase)
                left -= len(phrase)
            if not left:
                break
        found.update(np.diff([i for i in range(130) if i not in taken]) - 1)
    expected = np.array([found[n] for n in (1, 2, 3)]) / sum(n for length, n in found.items() if length)
    assert np.abs(share - expected).max() < 0.012


def test_masks_fall_in_both_segments_and_on_the_end_of_the_target() -> None:
    """Only in sequence-to-sequence mode can a special token be asked for: the one that closes the target."""
    ctx = context(24, BERT)
    for mode, shares in ONLY.items():
        o = UniLM(modes=shares, rate=0.3)
        done = o.corrupt(o.form(block(150), ctx), ctx)
        s, target = done.streams["text"], done.targets["unilm"]
        special = np.isin(target.value, VOCAB.special)
        if mode != "s2s":
            assert not special.any()
            continue
        assert set(target.value[special].tolist()) == {SEP} and special.mean() > 0.02
        assert np.isin(target.index[special], s.bounds[1:] - 1).all()
        assert set(s.segment[target.index].tolist()) == {4, 5}
        assert (s.segment[target.index[special]] == 5).all()


@pytest.mark.parametrize("mode", ONLY)
def test_a_hidden_token_leaves_no_trace(mode: str) -> None:
    """With mask tokens alone, other answers change neither the input nor who sees whom, only the answers."""
    o, ctx = UniLM(modes=ONLY[mode], replace=(1, 0, 0)), context(16, BERT)
    formed = o.form(block(12), ctx)
    done = o.corrupt(formed, ctx)
    target = done.targets["unilm"]
    content = formed.streams["text"].content.copy()
    content[target.index] = 5 + (content[target.index] + 3) % 50
    other = o.corrupt(replace(formed, streams={"text": replace(formed.streams["text"], content=content)}), ctx)
    silent = [(key, streams) for key, streams, _ in documents(done)]
    assert silent == [(key, streams) for key, streams, _ in documents(other)]
    assert np.array_equal(other.targets["unilm"].index, target.index)
    assert (other.targets["unilm"].value != target.value).all() and (done.streams["text"].content[target.index] == MASK).all()


@pytest.mark.parametrize("layout", [BERT, GPT, Layout()], ids=["bert", "gpt", "bare"])
def test_laws(layout: Layout) -> None:
    done = check_laws(UniLM(rate=0.3), block(30, 6), context(20, layout))
    assert len(done.targets["unilm"].index) and len(done.targets["nsp"].index)


def test_heads_and_weights() -> None:
    o = UniLM()
    assert set(o.heads(spec.Single())) == {"lm", "pooler", "nsp"}
    assert (o.head_of("unilm"), o.head_of("nsp")) == ("lm", "nsp")
    assert (o.weight_of("unilm"), o.weight_of("nsp")) == (1.0, pytest.approx(1 / 3))
    assert set(UniLM(modes=(0, 1, 0, 0)).heads(spec.Single())) == {"lm"}


def test_tiny_documents_and_mistakes() -> None:
    o, ctx = UniLM(), context(8, BERT)
    for texts in ([], [[[1]]], [[[1]], [[2, 1]], []], [[[9]]]):
        done = o.corrupt(o.form(tokens(texts), ctx), ctx)
        assert len(done) >= sum(map(bool, texts))
    with pytest.raises(UserError, match="mask token"):
        o.needs(Context(type(VOCAB)(60, 0), Layout(), 16))
    for wrong in ({"modes": (1, 1, 0, 0)}, {"lengths": (0.5, 0.2)}, {"replace": (1, 1, -1)}, {"codes": (0, 0, 0, 0, 0, -1)}):
        with pytest.raises(ValidationError):
            UniLM.model_validate(wrong)

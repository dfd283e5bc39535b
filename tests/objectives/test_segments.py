"""Pairs of segments against the rule restated document by document with lists of token numbers; shares by counting."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from blocks import CLS, SEP, context, random_documents, tokens

from ziggurat.context import Context, Layout, mix
from ziggurat.errors import UserError
from ziggurat.objectives.segments import Segments, segments
from ziggurat.types import DEAD, Tokens

XLNET = Layout((), (SEP,), (SEP, CLS), (0, 1))


def wish(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One segment, a pair in order, or a pair that may be mixed, by the key."""
    kind = keys % np.uint64(3)
    return kind > 0, np.where(kind == 2, 0.5, 0.0)


def slowly(block: Tokens, ctx: Context, lead: int) -> list[tuple[list[int], list[int], int]]:
    """(A, B, label) of every example, as numbers of tokens in the block."""
    part, found = block.parts["text"], []
    whole = list(range(len(part.ids)))
    documents = [list(range(a, b)) for a, b in pairwise(part.bounds.tolist())]
    room, both = ctx.layout.room(ctx.length), ctx.layout.room(ctx.length, pair=True)
    for document, doc_key in zip(documents, block.keys, strict=True):
        rest, number = document, 0
        while rest:
            key = mix(np.array([doc_key]) ^ mix(np.uint64(number)))
            number += 1

            def draw(what: str, key: np.ndarray = key) -> float:
                return float(ctx.uniform(key, np.zeros(1, np.int64), np.zeros(1, np.int64), f"t.{what}")[0])

            two, chance = (x[0] for x in wish(key))
            if not two:
                found.append((rest[:room], [], -1))
                rest = rest[lead if lead and len(rest) > room else room :]
                continue
            mine = rest[:both]
            after = lead if len(mine) >= lead + 2 else 0
            sentences = [i for i in range(after + 1, len(mine)) if part.sentences[mine[i]]]
            words = [i for i in range(after + 1, len(mine)) if part.words[mine[i]]]
            pick = int(draw("split") * len(sentences or words))
            if draw("elsewhere") < chance or (not sentences and chance):
                if sentences:
                    split = sentences[pick]
                elif len(mine) < both:
                    split = len(mine)
                else:
                    split = after + (len(mine) - after + 1) // 2
                others = [i for i in whole if i not in document] or whole
                place = others[int(draw("where") * len(others))]
                theirs = next(x for x in documents if place in x)
                while place != theirs[0] and not part.sentences[place]:
                    place -= 1
                spare = both - split - (1 if split < lead else 0)
                found.append((mine[:split], theirs[theirs.index(place) :][:spare], 1))
            else:
                split = sentences[pick] if sentences else words[pick] if words else len(mine)
                found.append((mine[:split], mine[split:], 0 if split < len(mine) else -1))
                split = len(mine)
            full = len(found[-1][0]) + len(found[-1][1]) == both
            rest = rest[lead if lead and full and split < len(rest) else split :]
    return found


def lists(cut: Segments) -> list[tuple[list[int], list[int], int]]:
    runs = [[list(range(s, s + n)) for s, n in zip(x.start.tolist(), x.length.tolist(), strict=True)] for x in (cut.a, cut.b)]
    return list(zip(*runs, cut.label.tolist(), strict=True))


@pytest.mark.parametrize("lead", [0, 5])
@pytest.mark.parametrize("length", [12, 30])
def test_segments_are_those_of_the_slow_rule(length: int, lead: int) -> None:
    rng = np.random.default_rng(length)
    block = tokens([*random_documents(rng, 25), [], [[1]], [[40]], [[1] * 40], [[2]]])
    ctx = context(length, XLNET, seed=5)
    cut = segments(block, ctx, wish, "t", lead)
    assert lists(cut) == slowly(block, ctx, lead)
    assert len(set(cut.keys.tolist())) == len(cut.keys)
    text = [i for a, b, label in lists(cut) for i in (a if label else a + b)]
    every = list(range(len(block.parts["text"].ids)))
    assert sorted(set(text)) == every and (text == every or lead)  # nothing is lost, and nothing comes twice without a reason
    behind = {int(key): a[lead] for key, (a, _, _) in zip(cut.keys, lists(cut), strict=True) if len(a) > lead}
    goes_on = [(int(k), a[0]) for k, (a, _, _) in zip(cut.before, lists(cut), strict=True) if k != DEAD]
    assert all(behind[key] == start for key, start in goes_on) and (len(goes_on) > 20) == (lead > 0)
    for a, b, _ in lists(cut):
        whole = len(a) + len(b) + (3 if b else 2)
        assert whole <= length and not (whole == length and b and len(a) < lead)


def test_a_lone_document_borrows_from_itself() -> None:
    block, ctx = tokens(random_documents(np.random.default_rng(0), 1)), context(12, XLNET, seed=5)
    assert lists(segments(block, ctx, wish, "t")) == slowly(block, ctx, 0)


def test_shares_and_lengths_over_many_documents() -> None:
    """Half of the pairs that can be split have a B from elsewhere; every sentence is as likely to begin B."""
    block = tokens([[[1]] * 9] * 20_000)
    ctx = context(12, XLNET)

    def always(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(len(keys), bool), np.full(len(keys), 0.5)

    cut = segments(block, ctx, always, "t")
    first = np.isin(cut.a.start, block.parts["text"].bounds)
    assert first.sum() == 20_000 and abs((cut.label[first] == 1).mean() - 0.5) < 0.015
    share = np.bincount(cut.a.length[first], minlength=9)[1:9] / 20_000
    assert np.abs(share - 1 / 8).max() < 0.01
    other = cut.label == 1
    owner = np.searchsorted(block.parts["text"].bounds, cut.b.start[other], side="right")
    assert (owner != np.searchsorted(block.parts["text"].bounds, cut.a.start[other], side="right")).all()
    assert abs(owner.mean() - 10_000) < 150


def test_no_text_and_no_room() -> None:
    assert lists(segments(tokens([]), context(12, XLNET), wish, "t")) == []
    assert lists(segments(tokens([[]]), context(12, XLNET), wish, "t")) == []
    with pytest.raises(UserError, match="length to at least 5"):
        segments(tokens([[[1]]]), context(4, XLNET), wish, "t")

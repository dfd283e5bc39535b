"""Running text cut into examples of one segment or two, as XLNet and UniLM pack them: all documents of a block round by round.

Paper: XLNet (Yang et al., 2019, 2.5; `_split_a_and_b` of the release); UniLM (Dong et al., 2019, 2.3).
Letters in shapes: `E` examples, `D` documents, `A` documents that still have text in a round.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np

from ziggurat.context import Context, mix
from ziggurat.data.cut import Piece
from ziggurat.errors import check
from ziggurat.types import DEAD, Part, Tokens

Wish = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Keys of examples, uint64[A] -> which are to have two segments, bool[A], and the chance that B comes from elsewhere, float64[A]."""


class Segments(NamedTuple):
    """E examples in the order of their documents: `A`, or `A` and `B`."""

    a: Piece
    b: Piece
    """Empty where an example has one segment."""
    label: np.ndarray
    """int64[E]: 0 = B is the text after A, 1 = B comes from elsewhere, -1 = there is no B."""
    keys: np.ndarray
    """uint64[E]"""
    before: np.ndarray
    """uint64[E]: the key of the example whose first `lead` tokens are the text right before this one, `DEAD` = there is none."""


def segments(tokens: Tokens, ctx: Context, wish: Wish, purpose: str, lead: int = 0) -> Segments:
    """Every text from its beginning to its end, example after example.

    An example of one segment takes as many tokens as fit. One of two takes as many as fit and is split before a sentence drawn
    evenly from those that begin inside it. If B is to come from elsewhere, A ends at that sentence, the text goes on there in the
    next example, and B begins with the sentence of a token drawn from the other documents of the block (or from the same one, where it
    is alone) and runs on until the example is full or that document ends. Text in which no sentence begins gets a B from
    elsewhere if one was possible at all (as in the release), otherwise it is split before a word, and a lone word stays one segment.

    So no token of the running text is lost (nor, without a `lead`, read twice), and B, where it follows A, follows without a gap. (The release lets both run on
    to whole sentences and cuts the longer one, and steps through the text in strides of its own.)
    lead  tokens at the beginning of a full example in which A does not end and behind which the next example begins, so that the
          rest of it is read again (the release's `reuse_len`); 0 = every token is read once
    """
    part, layout = tokens.parts["text"], ctx.layout
    room, both = layout.room(ctx.length), layout.room(ctx.length, pair=True)
    least = ctx.length - both + lead + 2
    check(ctx.length >= least, f"length {ctx.length} leaves no room for two texts", f"set length to at least {least}")
    sentences, words = np.flatnonzero(part.sentences), np.flatnonzero(part.words)
    at, stop = part.bounds[:-1].copy(), part.bounds[1:]
    before = np.full(len(tokens), DEAD)
    active = np.flatnonzero(at < stop)
    rounds: list[tuple[np.ndarray, ...]] = []
    for number in count():
        if not len(active):
            break
        keys = mix(tokens.keys[active] ^ mix(np.uint64(number)))
        two, chance = wish(keys)

        def draw(what: str, keys: np.ndarray = keys) -> np.ndarray:
            return ctx.uniform(keys, np.arange(len(keys)), np.zeros(len(keys), np.int64), f"{purpose}.{what}")

        low = at[active]
        high = np.minimum(stop[active], low + np.where(two, both, room))
        after = np.where(high - low >= lead + 2, low + lead, low)
        split = draw("split")
        cut = _between(sentences, after, high, split)
        elsewhere = two & ((draw("elsewhere") < chance) | ((cut < 0) & (chance > 0)))
        halfway = np.where(high - low < both, high, after + (high - after + 1) // 2)
        cut = np.where(cut >= 0, cut, np.where(elsewhere, halfway, _between(words, after, high, split)))
        cut = np.where(two & (cut >= 0), cut, high)
        # A shorter beginning than `lead` may not stand in a full example: it would be taken for one of `lead` tokens.
        spare = both - (cut - low) - (cut - low < lead)
        begin, end = _elsewhere(part, sentences, active, draw("where"), spare)
        begin, end = np.where(elsewhere, begin, cut), np.where(elsewhere, end, high)
        label = np.where(elsewhere, 1, np.where(cut < high, 0, -1))
        rounds.append((active, keys, low, cut - low, begin, end - begin, label, before[active]))
        reached = np.where(elsewhere, cut, high)
        full = cut - low + end - begin == np.where(two, both, room)
        again = full & (reached < stop[active]) & (lead > 0)
        at[active] = np.where(again, low + lead, reached)
        before[active] = np.where(again, keys, DEAD)
        active = active[at[active] < stop[active]]
    none = np.zeros(0, np.int64)
    columns = [np.concatenate(c) for c in zip(*rounds, strict=True)] or [
        none,
        none.astype(np.uint64),
        *[none] * 5,
        none.astype(np.uint64),
    ]
    order = np.argsort(columns[0], kind="stable")
    _, keys, a, a_length, b, b_length, label, before = (c[order] for c in columns)
    return Segments(Piece(part.ids, a, a_length, part.words), Piece(part.ids, b, b_length, part.words), label, keys, before)


def _between(places: np.ndarray, low: np.ndarray, high: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """int64[A]: for each stretch one of the `places` (ascending) inside it, low < place < high, drawn evenly; -1 if there is none."""
    first, last = np.searchsorted(places, low, side="right"), np.searchsorted(places, high)
    found = last > first
    pick = (first + (draw * (last - first)).astype(np.int64))[found]
    result = np.full(len(low), -1, np.int64)
    result[found] = places[pick]
    return result


def _elsewhere(
    part: Part, sentences: np.ndarray, document: np.ndarray, draw: np.ndarray, spare: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int64[A] each: where a text from another document begins and ends, at most `spare` tokens of it."""
    total = len(part.ids)
    own = part.bounds[document + 1] - part.bounds[document]
    others = total - own
    token = (draw * np.where(others > 0, others, total)).astype(np.int64)
    token += np.where((others > 0) & (token >= part.bounds[document]), own, 0)
    source = np.searchsorted(part.bounds, token, side="right") - 1
    before = np.append(part.bounds[:-1][:1], sentences)[np.searchsorted(sentences, token, side="right")]
    begin = np.maximum(before, part.bounds[source])
    return begin, np.minimum(begin + spare, part.bounds[source + 1])

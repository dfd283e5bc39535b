"""Infilling generation in several flows: a target is written by rows that never see its words at their own place.

Paper: ERNIE-GEN (Xiao et al., 2020, 3: infilling generation, noise-aware generation, span-by-span flow with the three matrices
of the multi-flow figure, multi-granularity target fragments). Needs: a special token [ATTN]; for `target: pair` an end token.
Feeds: stream "text", targets "ernie_gen_word" and "ernie_gen_span".

A source of which three words (positions 2, 3, 4) became the target; the last two are one span:

    flow       source      contextual     word by word           span by span
    row        s0 s1 s5    t2' t3' t4'    [ATTN] [ATTN] [ATTN]   [ATTN] [ATTN] [ATTN]
    position    0  1  5     2   3   4        2     3     4          2     3     4
    clock       0  0  0     1   2   3        0     1     2          0     1     1
    opens       0  0  0     1   2   3        -     -     -          -     -     -
    lane        0  0  0     0   0   0        1     2     3          4     5     6

Every [ATTN] sees the source, the (noised) words before its word or its span, and itself; not the other [ATTN] of its span, as
the matrix M_S is printed. All flows share one set of weights, and the contextual flow is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.config import Spec
from ziggurat.context import Context, mix
from ziggurat.data.cut import Piece, assemble, longest_first, windows
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.pseudo import Rows, choose_blocks, end_to_end
from ziggurat.types import FOREVER, NEVER, Batch, Part, Tokens, Visibility, text_target


class Fragments(Spec):
    """One of the distributions that fragment lengths are drawn from: uniform from `shortest` to `longest` tokens."""

    share: float = Field(gt=0, le=1)
    """Share of the examples that use it."""
    shortest: int = Field(ge=1)
    longest: int = Field(ge=1)

    @model_validator(mode="after")
    def _valid(self) -> Fragments:
        if self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest}, longest is {self.longest}")
        return self


class InfillingGeneration(Objective):
    """ERNIE-GEN's pre-training (`target: fragments`) and fine-tuning (`target: pair`).

    The release has the fine-tuning only. It puts a [CLS] that nobody predicts before the target; here, as in the paper's figure,
    the first word is asked for from the source alone. Its noise may be any id of the vocabulary; here, as in the paper, a word.
    Fragments keep the positions that they had in the text, so that the model knows which gaps it fills.
    """

    kind: Literal["ernie_gen"] = "ernie_gen"
    target: Literal["fragments", "pair"] = "fragments"
    """What is written: fragments taken out of the text, or the document's second text `pair` given the first."""
    rate: float = Field(0.25, gt=0, lt=1)
    """Share of the text's tokens that the fragments take together."""
    fragments: tuple[Fragments, ...] = Field(
        (Fragments(share=0.4, shortest=1, longest=4), Fragments(share=0.6, shortest=4, longest=32)), min_length=1
    )
    """Distributions of fragment lengths; an example draws one of them and keeps to it. The last fragment is cut to what is left."""
    noise: float = Field(0.05, ge=0, le=1)
    """Share of the target's words that the flows read as a random ordinary word; what must be said stays clean. The paper
    pre-trains with 0.05 and fine-tunes with 0.5 to 0.7."""
    weight: float = Field(0.5, ge=0, le=1)
    """Lambda: weight of the word-by-word flow; the span-by-span flow has the rest. A flow of weight 0 is left out (1 for
    fine-tuning, which has no spans)."""
    phrase: int = Field(3, ge=1)
    """Most words of a span."""
    lexicon: Path | None = None
    """File of known word n-grams (`save_lexicon`): the target is cut from left to right into the longest that it holds, the
    paper's rule. Without one, spans are cut at random: 1 to `phrase` words with equal chances."""
    segment: int | None = Field(None, ge=0)
    """Segment number of the target; default: that of the layout's second text. The released checkpoints have 4 segments and use 3."""
    token: str = "[ATTN]"
    """The special token that asks for a word."""

    @model_validator(mode="after")
    def _valid(self) -> InfillingGeneration:
        if abs(sum(f.share for f in self.fragments) - 1) > 1e-6:
            raise ValueError("the shares of the fragments must sum to 1")
        return self

    def needs(self, ctx: Context) -> None:
        check(
            self.token in ctx.vocab.names,
            f"ERNIE-GEN asks with the special token '{self.token}', and the tokenizer has none of this name",
            "add it to the tokenizer's special tokens, or name another one in `token`",
        )
        check(
            self.target != "pair" or ctx.layout.last or ctx.vocab.end is not None,
            "the tokenizer has no token that ends a text, so a written target would never stop",
            "use a tokenizer with [SEP], </s> or <|endoftext|>",
        )
        check(
            self.lexicon is None or self.lexicon.is_file(),
            f"the lexicon {self.lexicon} does not exist",
            "write one with ziggurat.objectives.flows.save_lexicon, or leave `lexicon` out to cut spans at random",
        )

    def tokens(self) -> tuple[str, ...]:
        return (self.token,)

    def rows(self, ctx: Context) -> Mapping[str, int]:
        text = ctx.layout.room(ctx.length)
        most = max(1, int(np.rint(self.rate * text))) if self.target == "fragments" else ctx.length
        return {"text": ctx.length + most * ((self.weight > 0) + (self.weight < 1))}

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def weight_of(self, target: str) -> float:
        return {"ernie_gen_word": self.weight, "ernie_gen_span": 1 - self.weight}[target]

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        """Windows of text; for pairs `first A between B last`, where B and what ends it are the target (clock 1, 2, ...)."""
        if self.target == "fragments":
            return windows(tokens, ctx)
        check(
            "pair" in tokens.parts,
            "the data has no column 'pair' to write",
            "declare both texts: columns: {text: ..., pair: ...}",
        )
        layout, a, b = ctx.layout, tokens.parts["text"], tokens.parts["pair"]
        last = layout.last or (ctx.vocab.end,)
        ends = tuple(int(x) for x in last if x is not None)
        room = ctx.length - len(layout.first) - len(layout.between) - len(ends)
        check(room >= 2, f"length {ctx.length} leaves no room for two texts", "set a larger length")
        keep, write = longest_first(np.diff(a.bounds), np.diff(b.bounds), room)
        one, two = Piece(a.ids, a.bounds[:-1], keep, a.words), Piece(b.ids, b.bounds[:-1], write, b.words)
        segments = np.repeat(layout.segments, [3, 2]).tolist()
        batch = assemble((layout.first, one, layout.between, two, ends), segments, tokens.keys, ctx)
        stream = batch.streams["text"]
        prefix = np.repeat(len(layout.first) + keep + len(layout.between), stream.lengths)
        clock = np.maximum(stream.inside() - prefix + 1, 0).astype(np.int32)
        never = np.full(len(clock), FOREVER, np.int32)
        stream = replace(stream, visibility=Visibility("custom", clock, clock, never, np.zeros_like(clock)))
        return replace(batch, streams={**batch.streams, "text": stream})

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        assert stream.unit is not None, "ERNIE-GEN needs units"
        if self.target == "pair":
            assert stream.visibility.clock is not None, "pairs say by their clocks what is the target"
            number = (stream.visibility.clock > 0).astype(np.int32)
        else:
            number = self.choose(batch, ctx)
        target, source = np.flatnonzero(number), np.flatnonzero(number == 0)
        counts = np.diff(np.searchsorted(target, stream.bounds))
        before = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(batch)), counts)
        place = (np.arange(len(target)) - before[owner]).astype(np.int32)  # of a word within the target, from 0
        value, none, zero = stream.content[target], np.zeros(len(target), np.int32), np.zeros(len(source), np.int32)
        pick = stream.position[target], none + np.int32(ctx.layout.segments[1] if self.segment is None else self.segment)
        told = none + np.int32(ctx.vocab.names[self.token]), *pick
        stays = stream.content[source], stream.position[source], stream.segment[source]
        groups = [
            Rows(stream.lengths - counts, *stays, zero, zero, zero, stream.unit[source]),
            Rows(counts, self._noised(batch, target, owner, ctx), *pick, place + 1, place + 1, none, stream.unit[target]),
        ]
        asked = []
        if self.weight > 0:
            asked.append("ernie_gen_word")
            groups.append(Rows(counts, *told, place, none + np.int32(NEVER), 1 + place))
        if self.weight < 1:
            asked.append("ernie_gen_span")
            first = self._span_starts(batch, target, number[target], owner, ctx)
            lane = (1 + counts[owner] + place).astype(np.int32)
            groups.append(Rows(counts, *told, place[first], none + np.int32(NEVER), lane))
        done, places = end_to_end(*groups)
        targets = {name: text_target(at, value) for name, at in zip(asked, places[2:], strict=True)}
        return replace(batch, streams={**batch.streams, "text": done}, targets={**batch.targets, **targets})

    def choose(self, batch: Batch, ctx: Context) -> np.ndarray:
        """int32[T]: the number of each token's fragment, from 1 in the order in which they were drawn; 0 = it stays in the source."""
        stream = batch.streams["text"]
        every = np.arange(len(batch))
        chance = ctx.uniform(batch.keys, every, np.zeros(len(batch), np.int64), "ernie_gen.granularity")
        which = np.searchsorted(np.cumsum([f.share for f in self.fragments])[:-1], chance, side="right")
        shortest = np.array([f.shortest for f in self.fragments])[which]
        longest = np.array([f.longest for f in self.fragments])[which]

        def size(owner: np.ndarray, draw: np.ndarray) -> np.ndarray:
            within = ctx.uniform(batch.keys, owner, draw, "ernie_gen.length")
            return shortest[owner] + (within * (longest - shortest + 1)[owner]).astype(np.int64)

        assert stream.unit is not None
        words = np.diff(np.searchsorted(np.flatnonzero(stream.unit >= 0), stream.bounds))
        budget = np.where(words > 0, np.maximum(1, np.rint(self.rate * words)), 0).astype(np.int64)
        return choose_blocks(batch, budget, size, ctx, "ernie_gen", trim=True)

    def _noised(self, batch: Batch, target: np.ndarray, owner: np.ndarray, ctx: Context) -> np.ndarray:
        """int32[K]: the target as the flows read it."""
        stream = batch.streams["text"]
        content, inside = stream.content[target], target - stream.bounds[owner]
        wrong = np.flatnonzero(ctx.uniform(batch.keys, owner, inside, "ernie_gen.noise") < self.noise)
        ordinary = ctx.vocab.ordinary()
        pick = ctx.uniform(batch.keys, owner[wrong], inside[wrong], "ernie_gen.random")
        content[wrong] = ordinary[(pick * len(ordinary)).astype(np.int64)]
        return content

    def _span_starts(self, batch: Batch, target: np.ndarray, number: np.ndarray, owner: np.ndarray, ctx: Context) -> np.ndarray:
        """int64[K]: for each word of the target (numbered over all documents) the first of its span. No span leaves its fragment."""
        stream = batch.streams["text"]
        assert stream.unit is not None
        unit = stream.unit[target]
        edge = _changes(owner) | _changes(number) | _changes(unit < 0)
        first = np.flatnonzero(edge | _changes(unit))  # of each word
        leads = np.flatnonzero(edge[first])  # of each fragment, in words
        words = np.diff(leads, append=len(first))
        rest = np.repeat(leads + words, words) - np.arange(len(first))
        if self.lexicon is None:
            draw = ctx.uniform(batch.keys, owner[first], target[first] - stream.bounds[owner[first]], "ernie_gen.span")
            size = 1 + (draw * self.phrase).astype(np.int64)
        else:
            size = np.ones(len(first), np.int64)
            names, known = word_names(stream.content[target], first), _load(self.lexicon, self.lexicon.stat().st_mtime_ns)
            for n in range(2, self.phrase + 1):
                found = np.isin(phrase_names(names, n), known)
                size[: len(found)][found & (rest[: len(found)] >= n)] = n
        size = np.minimum(size, rest)
        begins, at, ends = np.zeros(len(first), bool), leads, leads + words
        while len(at):  # one span of every fragment at a time
            begins[at] = True
            at = at + size[at]
            inside = at < ends
            at, ends = at[inside], ends[inside]
        starts = np.zeros(len(target), np.int64)
        starts[first[begins]] = first[begins]
        return np.maximum.accumulate(starts)


def _changes(x: np.ndarray) -> np.ndarray:
    """bool[N]: True where a new value begins."""
    return np.append(True, x[1:] != x[:-1])[: len(x)]


# --- the lexicon of spans ----------------------------------------------------------------------------------


def word_names(ids: np.ndarray, first: np.ndarray) -> np.ndarray:
    """uint64[W]: a number for each word, made from its tokens; word w is `ids[first[w]:first[w + 1]]`."""
    if not len(first):
        return np.zeros(0, np.uint64)
    inside = np.arange(len(ids)) - np.repeat(first, np.diff(first, append=len(ids)))
    return mix(np.add.reduceat(mix(ids.astype(np.uint64) ^ (inside.astype(np.uint64) << np.uint64(32))), first))


def phrase_names(words: np.ndarray, n: int) -> np.ndarray:
    """uint64[W - n + 1]: a number for every n consecutive words."""
    made = words[: max(len(words) - n + 1, 0)]
    for i in range(1, n):
        made = mix(made ^ np.uint64(i)) + words[i : i + len(made)]
    return mix(made)


def save_lexicon(texts: Iterable[Part], path: Path, most: tuple[int, ...] = (200_000, 50_000)) -> int:
    """Write the word n-grams whose words stand together most significantly, `most[n - 2]` for each n from 2; returns how many.

    The paper's rule: Student's t of the hypothesis that an n-gram is no more frequent than the product of its words'
    frequencies. `texts` are blocks of the corpus; n-grams do not cross documents.
    """
    counted = [_Counts() for _ in range(len(most) + 1)]
    for text in texts:
        first = np.flatnonzero(text.words)
        names = word_names(text.ids, first)
        document = np.searchsorted(text.bounds, first, side="right")
        for n, counts in enumerate(counted, 1):
            whole = document[n - 1 :] == document[: max(len(document) - n + 1, 0)]
            places = np.flatnonzero(whole)
            counts.add(phrase_names(names, n)[places], np.stack([names[places + i] for i in range(n)], 1))
    single, kept = counted[0], []
    order = np.argsort(single.words[:, 0])
    for counts, best in zip(counted[1:], most, strict=True):
        total = max(int(counts.times.sum()), 1)
        p = counts.times / total
        place = np.searchsorted(single.words[order, 0], counts.words)
        chance = np.prod(single.times[order][place] / max(int(single.times.sum()), 1), axis=1)
        t = (p - chance) / np.sqrt(np.maximum(p * (1 - p), 1e-300) / total)
        top = np.lexsort((counts.names, -t))[:best]
        kept.append(counts.names[top[t[top] > 0]])
    found = np.sort(np.concatenate(kept))
    with open(path, "wb") as file:
        np.save(file, found)
    return len(found)


class _Counts:
    """How often each n-gram was met, over many blocks."""

    def __init__(self) -> None:
        self.names, self.times = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self.words = np.zeros((0, 1), np.uint64)

    def add(self, names: np.ndarray, words: np.ndarray) -> None:
        every = np.concatenate([self.names, names])
        times = np.concatenate([self.times, np.ones(len(names), np.int64)])
        both = np.concatenate([self.words, words]) if len(self.words) else words
        self.names, first, back = np.unique(every, return_index=True, return_inverse=True)
        self.times = np.bincount(back, times, len(self.names)).astype(np.int64)
        self.words = both[first]


@lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> np.ndarray:
    return np.load(path)

"""Order in the word and in the document: put shuffled words back, and say how two segments follow each other.

Paper: StructBERT (Wang et al., 2020, 2.2, 2.3). Needs: for segments sentence boundaries, a pair layout and a second document.
Feeds: stream "text", targets "word_order", "sentence_structure". The paper adds both to masked LM with equal weights:
`joint` of `mlm`, `word_order`, `sentence_structure`. Its pre-training code was not released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from ziggurat.context import Context
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.pairs import Chunks, Drawn, Draws, Pairs, Sentences
from ziggurat.types import Batch, Stream, text_target


class WordOrder(Objective):
    """Runs of three tokens are shuffled, and the token that belongs to each of their places is predicted.

    Tokens that another part of a joint asks about, before or after, are never in a run: earlier questions are left out here, and
    words that stand in a run are not hidden by later parts. The paper masks first. Runs stand within one text, do not overlap, and
    come in all orders alike; the old order is one of them (1 in 6), as masked LM also keeps some tokens.
    """

    kind: Literal["word_order"] = "word_order"
    rate: float = Field(0.05, gt=0, lt=1)
    """Share of the unmasked tokens that stand in shuffled runs. Runs are whole, so a document gets the number of runs below or above
    its share, at random, and the share holds on average: at the paper's rate most short texts have none."""
    size: int = Field(3, ge=2)
    """Tokens of a run (the paper's K)."""

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        assert stream.unit is not None, "word order needs units"
        free = stream.unit >= 0
        for target in batch.targets.values():
            if target.at == "token" and target.stream == "text":
                free[target.index] = False
        runs = choose_runs(batch, free, self.rate, self.size, ctx)
        owner = np.searchsorted(stream.bounds, runs[:, :1], side="right") - 1
        inside = runs - stream.bounds[owner]
        draw = ctx.uniform(batch.keys, np.repeat(owner[:, 0], self.size), inside.ravel(), "word_order.shuffle")
        order = np.argsort(draw.reshape(runs.shape), axis=1)
        content = stream.content.copy()
        content[runs] = stream.content[np.take_along_axis(runs, order, axis=1)]
        at = runs.ravel()
        changed = replace(stream, content=content, unit=without_words(stream, at))
        targets = {**batch.targets, self.kind: text_target(at, stream.content[at])}
        return replace(batch, streams={**batch.streams, "text": changed}, targets=targets)


def choose_runs(batch: Batch, free: np.ndarray, rate: float, size: int, ctx: Context) -> np.ndarray:
    """int64[N, size] ascending: the tokens of N runs that do not overlap, each of `size` free tokens (`free` bool[T]) of one document.

    A document of F free tokens gets `rate * F / size` of them (rounded up or down by a draw) or as many as fit. All places where a
    run could begin are visited in increasing order of their draws; one that touches a chosen run is skipped.
    """
    stream, places = batch.streams["text"], np.arange(size)
    padded = np.append(free, np.zeros(size - 1, bool))
    begins = np.logical_and.reduce([padded[j : j + len(free)] for j in places])
    begins &= np.arange(len(free)) + size <= np.repeat(stream.bounds[1:], stream.lengths)
    at = np.flatnonzero(begins)
    counts = np.diff(np.searchsorted(at, stream.bounds))
    documents = np.arange(len(counts))
    owner = np.repeat(documents, counts)
    draw = ctx.uniform(batch.keys, owner, at - stream.bounds[owner], "word_order.choose")
    order = at[np.argsort(owner + draw)]
    share = rate * np.diff(np.searchsorted(np.flatnonzero(free), stream.bounds)) / size
    left = share.astype(np.int64)
    left += ctx.uniform(batch.keys, documents, np.zeros_like(documents), "word_order.count") < share - left
    first = np.cumsum(counts) - counts
    taken = np.zeros(len(free), bool)
    active = np.flatnonzero((left > 0) & (counts > 0))
    number = 0
    chosen = [np.zeros((0, size), np.int64)]
    while len(active):
        runs = order[first[active] + number, None] + places
        good = ~taken[runs].any(1)
        taken[runs[good]] = True
        chosen.append(runs[good])
        left[active] -= good
        number += 1
        active = active[(left[active] > 0) & (counts[active] > number)]
    found = np.concatenate(chosen)
    return found[np.argsort(found[:, 0])]


def without_words(stream: Stream, at: np.ndarray) -> np.ndarray:
    """int32[T]: the stream's units, with -1 for every word that holds one of the tokens `at`, so that nobody hides it any more."""
    unit = stream.unit
    assert unit is not None
    begins = np.ones(len(unit), bool)
    begins[1:] = unit[1:] != unit[:-1]
    begins[stream.bounds[:-1][stream.lengths > 0]] = True
    word = np.cumsum(begins) - 1
    gone = np.zeros(len(unit), bool)
    gone[word[at]] = True
    return np.where(gone[word], np.int32(-1), unit)


class SentenceStructure(Pairs):
    """Does B follow A (class 0), stand before it (class 1), or come from a random other document (class 2)? A third each.

    Examples are formed as for `nsp`: sentences are gathered to the target length and cut in two at a random one. "Follows" is (first
    half, second half), "stands before" is (second half, first half), and after "random" the second half is used again. A chunk of
    one sentence can only be random, as in BERT's released rule.
    """

    kind: Literal["sentence_structure"] = "sentence_structure"
    negatives: ClassVar[str] = "sentence structure"

    def draw(self, chunks: Chunks, sentences: Sentences, draws: Draws) -> Drawn:
        several, cut = chunks.split(draws)
        label = np.full(len(cut), 2)
        label[several] = draws.below(chunks.document[several], 3)
        drawn = chunks.halves(cut, label == 1, label)
        return chunks.with_another(drawn, np.flatnonzero(label == 2), sentences, draws)

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return parts.class_heads(model, self.kind, 3)

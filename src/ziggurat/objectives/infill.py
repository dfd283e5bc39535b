"""Denoising with the clean text as target: infilling, sentence permutation, masking, deletion, rotation, and their compositions.

Paper: BART (Lewis et al., 2020, 2.2, 5.1; the released denoising_dataset decides what the paper leaves open). Needs: a mask
token. Feeds: streams "encoder" and "decoder", target "denoise".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import exp, lgamma, log
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from ziggurat.context import Context
from ziggurat.data.cut import windows
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Lack, Objective, Supply
from ziggurat.objectives.rewrite import Sequences, choose, rewritten, text_of
from ziggurat.types import Batch, Tokens


class Denoise(Objective):
    """BART's denoising autoencoder: the encoder reads the corrupted text, the decoder says the clean text with its boundaries.

    Noises apply in this order: `permute`, `infill`, `mask`, `delete`, `rotate`. Boundary tokens (`<s>` ... `</s>`) stay where
    they are, on both sides. The default is the published mixture: all sentences permuted, 30% infilled. Rules where paper and
    release leave room:

    - Spans have Poisson lengths in *words*. Lengths are drawn until their sum reaches `ceil(infill * words)`; the last is
      trimmed to it. Each span replaces its words by one mask. Starts are words drawn without replacement, so spans may touch,
      one that runs over the start of another swallows its mask, and one that runs over the end of the text is cut (release).
    - A span of length 0 inserts a mask, at any place between the boundary tokens (paper, release). Here insertions stop where
      the encoder's text would outgrow the example's length, which takes a mean below about 1.
    - `mean` is the paper's 3; the command that the authors published for the released models has 3.5, with `random` 0.1.
    - With `random` above 0 the release makes at least one of the inserted masks of *every* text a random word, because it
      rounds their number up. Here each mask has that chance. Random words are never special tokens (release: any id from 1).
    - Sentences are those of the prepared corpus (release: cuts after full stops); a window inside a sentence begins one.
    - Rotation begins at any token with equal chance (paper); in the release the first token has twice the chance.
    """

    kind: Literal["denoise"] = "denoise"
    structures: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    infill: float = Field(0.3, ge=0, lt=1)
    """Share of words hidden in spans, each of which becomes one mask."""
    mean: float = Field(3.0, ge=0.1, le=100)
    """Mean of the Poisson lengths of spans, in words."""
    permute: float = Field(1.0, ge=0, le=1)
    """Share of sentences (rounded up) that change places among each other, in a random order."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Share of tokens (rounded up) replaced by a mask each."""
    delete: float = Field(0.0, ge=0, lt=1)
    """Share of tokens (rounded up) left out without a trace."""
    rotate: float = Field(0.0, ge=0, le=1)
    """Chance of a text to be rotated, so that it begins with a token drawn uniformly."""
    random: float = Field(0.0, ge=0, le=1)
    """Chance of each mask to be a random ordinary token instead."""

    @model_validator(mode="after")
    def _valid(self) -> Denoise:
        if not any((self.infill, self.permute, self.mask, self.delete, self.rotate)):
            raise ValueError("no noise at all; set infill, permute, mask, delete or rotate above 0")
        return self

    def needs(self, ctx: Context) -> None:
        check(
            ctx.vocab.mask is not None or not (self.infill or self.mask),
            "infilling and masking need a mask token, and the tokenizer has none",
            "use a tokenizer with <mask> or [MASK], or set `infill: 0` and `mask: 0`",
        )

    def starved(self, supply: Supply) -> list[Lack]:
        if self.permute and not supply.several:
            hint = "keep a document's sentences together (`txt: file` or `txt: blank`), or set `permute: 0`"
            return [Lack("permuting sentences changes nothing: no document has two", hint, fatal=False)]
        return []

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def rows(self, ctx: Context) -> Mapping[str, int]:
        return {"encoder": ctx.length, "decoder": ctx.length}

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        """Windows whose `segment` numbers the sentences, from 0, for `corrupt`."""
        batch = windows(tokens, ctx)
        stream = batch.streams["text"]
        text = text_of(stream)
        # windows hold every token of every part, in order
        number = np.cumsum(np.concatenate([part.sentences for part in tokens.parts.values()]))
        segment = np.zeros(len(stream.content), np.int32)
        segment[text.at] = number - number[(np.cumsum(text.counts) - text.counts)[text.owner]]
        return replace(batch, streams={"text": replace(stream, segment=segment)})

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        assert stream.unit is not None
        text, keys = text_of(stream), batch.keys
        counts = np.where(text.counts > 0, stream.lengths, 0)
        whole = Sequences(stream.content[np.repeat(text.counts > 0, stream.lengths)], counts)
        noisy = Noisy(stream.content[text.at], _new(stream.unit[text.at], text.inside), np.zeros(len(text.at), bool), text.counts)
        if self.permute:
            noisy = self._permuted(noisy, _new(stream.segment[text.at], text.inside), keys, ctx)
        if self.infill:
            noisy = self._infilled(noisy, np.maximum(ctx.layout.room(ctx.length), 0), keys, ctx)
        if self.mask:
            noisy.masked[self._some(noisy, self.mask, "mask", keys, ctx)] = True
        if self.delete:
            keep = np.ones(len(noisy.ids), bool)
            keep[self._some(noisy, self.delete, "delete", keys, ctx)] = False
            noisy = noisy.only(keep)
        ids = self._filled(noisy, keys, ctx)
        if self.rotate:
            ids = ids[self._rotation(noisy.counts, keys, ctx)]
        return rewritten(batch, text, Sequences(ids, noisy.counts), whole, self.kind, ctx)

    def _permuted(self, text: Noisy, begins: np.ndarray, keys: np.ndarray, ctx: Context) -> Noisy:
        first = np.flatnonzero(begins)
        lengths = np.diff(first, append=len(begins))
        counts = np.bincount(text.owner()[first], minlength=len(keys)).astype(np.int64)
        moved = _share(self.permute, counts)
        before = np.cumsum(counts) - counts
        chosen = np.arange(len(first))
        if self.permute < 1:
            chosen = np.sort(choose(keys, counts, moved, "denoise.sentence", ctx) + np.repeat(before, moved))
        order = choose(keys, moved, moved, "denoise.order", ctx) + np.repeat(np.cumsum(moved) - moved, moved)
        place = np.arange(len(first))
        place[chosen] = chosen[order]
        at = ranges(first[place], lengths[place])
        starts = text.begins.copy()
        starts[first] = True  # a word that went on over the border of two sentences is two
        return Noisy(text.ids[at], starts[at], text.masked[at], text.counts)

    def _infilled(self, text: Noisy, room: int, keys: np.ndarray, ctx: Context) -> Noisy:
        first = np.flatnonzero(text.begins)
        words = np.bincount(text.owner()[first], minlength=len(keys)).astype(np.int64)
        lengths, counts = self._lengths(_share(self.infill, words), keys, ctx)
        owner = np.repeat(np.arange(len(keys)), counts)
        spans = np.bincount(owner[lengths > 0], minlength=len(keys)).astype(np.int64)
        start = choose(keys, words, spans, "denoise.start", ctx) + np.repeat(np.cumsum(words) - words, spans)
        stop = np.minimum(start + lengths[lengths > 0], np.repeat(np.cumsum(words), spans))
        # Words after the first of a span are swallowed, starts of other spans among them.
        depth = np.bincount(start + 1, minlength=len(first) + 1) - np.bincount(stop, minlength=len(first) + 1)
        swallowed = np.cumsum(depth)[: len(first)] > 0
        starts = np.zeros(len(first), bool)
        starts[start] = True
        sizes = np.diff(first, append=len(text.ids))
        masked = text.masked.copy()
        masked[first[starts]] = True
        left = Noisy(text.ids, text.begins, masked, text.counts).only(
            np.repeat(~swallowed & ~starts, sizes) | _at(first[starts & ~swallowed], len(masked))
        )
        return self._inserted(left, np.clip(counts - spans, 0, np.maximum(room - left.counts, 0)), keys, ctx)

    def _lengths(self, budget: np.ndarray, keys: np.ndarray, ctx: Context) -> tuple[np.ndarray, np.ndarray]:
        """Poisson numbers of each document until they sum to its budget, the last one trimmed: the numbers, document after
        document, and how many each has (int64[D])."""
        below = self._cumulative()
        lengths, counts = np.zeros(0, np.int64), np.zeros(len(keys), np.int64)
        more = np.where(budget > 0, np.ceil(1.2 * budget / self.mean) + 4, 0).astype(np.int64)
        while more.any():
            owner = np.repeat(np.arange(len(keys)), more)
            number = ranges(counts, more)
            drawn = np.searchsorted(below, ctx.uniform(keys, owner, number, "denoise.length"), side="right")
            lengths = np.insert(lengths, np.repeat(np.cumsum(counts), more), drawn)
            counts = counts + more
            total = np.append(0, np.cumsum(lengths))
            edges = bounds_of(counts)
            more = np.where(total[edges[1:]] - total[edges[:-1]] < budget, more, 0)
        before = total[:-1] - np.repeat(total[edges[:-1]], counts) if len(lengths) else lengths
        left = np.repeat(budget, counts) - before
        used = left > 0
        return np.minimum(lengths, left)[used], np.bincount(np.repeat(np.arange(len(keys)), counts)[used], minlength=len(keys))

    def _cumulative(self) -> np.ndarray:
        """float64[n]: the chance of a length of at most 0, 1, 2 ... (all but 1e-15 of it)."""
        k = np.arange(int(self.mean + 12 * self.mean**0.5 + 20))
        return np.cumsum([exp(n * log(self.mean) - self.mean - lgamma(n + 1)) for n in k])

    def _inserted(self, text: Noisy, extra: np.ndarray, keys: np.ndarray, ctx: Context) -> Noisy:
        counts = text.counts + extra
        places = choose(keys, counts, extra, "denoise.insert", ctx) + np.repeat(np.cumsum(counts) - counts, extra)
        new = _at(places, int(counts.sum()))
        ids, begins = np.zeros(len(new), np.int32), np.ones(len(new), bool)
        ids[~new], begins[~new] = text.ids, text.begins
        masked = new.copy()
        masked[~new] = text.masked
        return Noisy(ids, begins, masked, counts)

    def _some(self, text: Noisy, rate: float, noise: str, keys: np.ndarray, ctx: Context) -> np.ndarray:
        """int64[K]: a share of the tokens that are not masks."""
        plain = np.flatnonzero(~text.masked)
        counts = np.bincount(text.owner()[plain], minlength=len(keys)).astype(np.int64)
        wanted = _share(rate, counts)
        return plain[choose(keys, counts, wanted, f"denoise.{noise}", ctx) + np.repeat(np.cumsum(counts) - counts, wanted)]

    def _filled(self, text: Noisy, keys: np.ndarray, ctx: Context) -> np.ndarray:
        ids, at = text.ids.copy(), np.flatnonzero(text.masked)
        if not len(at):
            return ids
        ids[at] = ctx.vocab.mask
        if self.random:
            owner, inside = text.owner()[at], ranges(np.zeros(len(keys), np.int64), text.counts)[at]
            swaps = ctx.uniform(keys, owner, inside, "denoise.random") < self.random
            ordinary = ctx.vocab.ordinary()
            pick = ctx.uniform(keys, owner[swaps], inside[swaps], "denoise.word")
            ids[at[swaps]] = ordinary[(pick * len(ordinary)).astype(np.int64)]
        return ids

    def _rotation(self, counts: np.ndarray, keys: np.ndarray, ctx: Context) -> np.ndarray:
        every, first = np.arange(len(keys)), np.zeros(len(keys), np.int64)
        turned = ctx.uniform(keys, every, first, "denoise.rotate") < self.rotate
        offset = (ctx.uniform(keys, every, first, "denoise.offset") * counts).astype(np.int64) * turned
        inside = ranges(offset, counts) % np.repeat(counts, counts)
        return inside + np.repeat(np.cumsum(counts) - counts, counts)


class Noisy(NamedTuple):
    """The texts of D documents on their way through the noises, N tokens in all."""

    ids: np.ndarray
    """int32[N]; of masks any number"""
    begins: np.ndarray
    """bool[N]: True where a word begins"""
    masked: np.ndarray
    """bool[N]: masks, which later noises leave alone"""
    counts: np.ndarray
    """int64[D]"""

    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def only(self, keep: np.ndarray) -> Noisy:
        counts = np.bincount(self.owner()[keep], minlength=len(self.counts)).astype(np.int64)
        return Noisy(self.ids[keep], self.begins[keep], self.masked[keep], counts)


def _new(number: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """bool[N]: where the number of a word or sentence is another than before, or a text begins."""
    begins = inside == 0
    begins[1:] |= number[1:] != number[:-1]
    return begins


def _share(rate: float, counts: np.ndarray) -> np.ndarray:
    """int64[D]: that share of the counts, rounded up; 0.3 of 10 is 3, whatever floating point says."""
    return np.ceil(np.round(rate * counts, 6)).astype(np.int64)


def _at(index: np.ndarray, length: int) -> np.ndarray:
    """bool[length], True at `index`."""
    found = np.zeros(length, bool)
    found[index] = True
    return found

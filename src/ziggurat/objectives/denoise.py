"""Span corruption and its relatives: tokens are taken out of the encoder's text, and the decoder says them.

Paper: T5 (Raffel et al., 2020, 3.1.4 and 3.3; the released preprocessors decide what the paper leaves open). Needs: an end
token and sentinels `<extra_id_0>`, `<extra_id_1>` ... Feeds: streams "encoder" and "decoder", target "span_corruption".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.context import Context, Vocab
from ziggurat.data.cut import windows
from ziggurat.data.runs import bounds_of
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.rewrite import Sequences, Text, choose, rewritten, text_of
from ziggurat.types import Batch, Tokens

SENTINELS = tuple(f"<extra_id_{n}>" for n in range(100))
"""As many as T5's vocabulary has; the first one is first in a text."""
FULL_TARGETS = ("mass_style", "bert_style", "deshuffling")


class SpanCorruption(Objective):
    """T5's denoising. Texts are cut so long that the corrupted input fills the example's length: for 512, texts of 568 tokens and
    targets of 114.

    Each span of noise gives way to a sentinel of its own; the target is, for each span, the sentinel and the hidden tokens,
    and then the end token. What paper and release leave open or do differently, and what is done here:

    - The first token is never noise and the last always is (release), unless `roll` turns the pattern around.
    - A span's sentinel stands *before* its tokens wherever the noise begins (paper, figure 2). The release marks what is not
      noise instead: the same as long as the first token is clean, but i.i.d. or rolled noise that begins with the text then
      has its sentinels shifted by one between input and target.
    - No sentinel closes the target (release); `closing` adds it (paper, figure 2).
    - Both sides end with the end token: the encoder's comes from the tokenizer's template, the decoder's is added.
    - Texts are not joined to fill windows: the last window of a document is shorter. A text of one token hides nothing, and where
      nothing is hidden nothing is asked (the release would ask for a lone sentinel), except for variants with full targets.
    - I.i.d. noise can have more spans than there are sentinels, or a target longer than 8 deviations above the mean, which is the
      decoder's length: later tokens then stay in the text. The release would use up words as sentinels, and cuts targets off.
    """

    kind: Literal["span_corruption"] = "span_corruption"
    structures: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    variant: Literal["replace_spans", "drop_tokens", "mass_style", "bert_style", "deshuffling", "prefix_lm"] = "replace_spans"
    """What the two sides show (paper, table 3). `replace_spans`: a sentinel for each span; `drop_tokens`: noise is left out and
    is the target; `mass_style`: a mask for each noise token, the target is the whole text; `bert_style`: so too, but a share
    `random` of the noise becomes random words; `deshuffling`: all tokens shuffled, the target is the text in order; `prefix_lm`:
    a beginning of 1 to n - 1 tokens, the target is the rest."""
    noise: Literal["spans", "iid"] | None = None
    """Where noise falls: in spans, or on each token for itself. Default: the paper's, `spans` to replace spans, else `iid`."""
    rate: float = Field(0.15, gt=0, lt=1)
    """Share of noise: exactly `round(rate * n)` tokens in spans (at least one, and one stays); with `iid` a token's chance."""
    mean: float = Field(3.0, ge=1)
    """Mean length of spans: there are `round(noise / mean)`; all divisions of noise and text into so many are equally likely."""
    roll: bool = False
    """Rotate the pattern of spans by a random number of tokens, so that the edges of a text are as any other place."""
    closing: bool = False
    """End the target with one more sentinel, before the end token."""
    random: float = Field(0.1, ge=0, le=1)
    """`bert_style`: share of the noise that becomes a random ordinary token instead of the mask."""

    @model_validator(mode="after")
    def _valid(self) -> SpanCorruption:
        if self.noise and self.variant in ("deshuffling", "prefix_lm"):
            raise ValueError(f"{self.variant} has no noise to choose; leave out `noise`")
        if self.roll and self.spread != "spans":
            raise ValueError("roll turns the pattern of spans around; it needs `noise: spans`")
        if self.closing and self.variant != "replace_spans":
            raise ValueError("a closing sentinel needs `variant: replace_spans`")
        return self

    @property
    def spread(self) -> Literal["spans", "iid"]:
        """Where noise falls, the default resolved."""
        return self.noise or ("spans" if self.variant == "replace_spans" else "iid")

    def needs(self, ctx: Context) -> None:
        check(
            ctx.vocab.end is not None,
            "span corruption needs an end token, and the tokenizer has none",
            "use a tokenizer with </s>, [SEP] or <|endoftext|>",
        )
        length, have = self.raw(ctx), len(sentinels(ctx.vocab))
        if self.variant == "replace_spans":
            if self.spread == "spans":
                _, spans = self.plan(np.array([length]))
                most = int(spans[0]) + self.roll
            else:
                most = int(np.ceil(self.rate * (1 - self.rate) * length + self.rate))
            most += self.closing
            needed = f"{most} sentinels <extra_id_0> to <extra_id_{most - 1}>"
            check(
                have >= most,
                f"span corruption at length {ctx.length} needs {needed}; the tokenizer has {have}",
                "add them to the tokenizer, or use a shorter length or a larger mean",
            )
        if self.variant in ("mass_style", "bert_style"):
            check(
                have or ctx.vocab.mask is not None,
                f"{self.variant} needs a mask token or the sentinel <extra_id_0>, and the tokenizer has neither",
                "add one to the tokenizer",
            )

    def tokens(self) -> tuple[str, ...]:
        return SENTINELS if self.variant == "replace_spans" else ()

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def plan(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Noise tokens and noise spans (int64[D] each) of texts of these many tokens."""
        noise = np.clip(np.rint(self.rate * lengths), 1, np.maximum(lengths - 1, 1)).astype(np.int64)
        spans = np.maximum(1, np.minimum(np.rint(noise / self.mean).astype(np.int64), lengths - noise))
        return np.where(lengths > 1, noise, 0), np.where(lengths > 1, spans, 0)

    def sizes(self, length: int) -> tuple[int, int]:
        """The most tokens that a text of `length` tokens becomes for encoder and decoder, special tokens not counted."""
        if self.variant in FULL_TARGETS:
            return length, length
        if self.variant == "prefix_lm":
            return length - 1, length - 1
        marked = self.variant == "replace_spans"
        if self.spread == "iid":
            usual = length * self.rate * (2 - self.rate if marked else 1)
            return length, min(length + marked, int(usual + 8 * usual**0.5) + 2) + self.closing
        noise, spans = (int(x[0]) for x in self.plan(np.array([length])))
        spans += self.roll and noise > spans  # a span that runs over the end falls apart
        return length - noise + spans * marked, noise + spans * marked + self.closing

    def raw(self, ctx: Context) -> int:
        """The longest text whose encoder input always fits: the rule of the released random_spans_helper."""
        room = ctx.layout.room(ctx.length)
        # Inputs never shrink as the text grows. At the highest rates a text is cut at a thousand times the input's length.
        length = bisect_right(range(1, 1000 * max(room, 0) + 2), room, key=lambda n: self.sizes(n)[0])
        check(
            room > 1 and length > 1,
            f"length {ctx.length} leaves no room for two tokens of text beside the special ones",
            f"set length to at least {ctx.length - room + 4}",
        )
        return length

    def rows(self, ctx: Context) -> Mapping[str, int]:
        return {"encoder": ctx.length, "decoder": self.sizes(self.raw(ctx))[1] + 1}

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        longer = self.raw(ctx) + ctx.length - ctx.layout.room(ctx.length)
        return windows(tokens, replace(ctx, length=longer))

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        stream = batch.streams["text"]
        text = text_of(stream)
        ids = stream.content[text.at]
        if self.variant == "deshuffling":
            order = choose(batch.keys, text.counts, text.counts, "span_corruption.order", ctx)
            shown = Sequences(ids[order + (np.cumsum(text.counts) - text.counts)[text.owner]], text.counts)
            return rewritten(batch, text, shown, _ended(Sequences(ids, text.counts), ctx), self.kind, ctx)
        hidden = self._hidden(batch.keys, text, ctx)
        if self.variant in FULL_TARGETS:
            shown = Sequences(self._masked(ids, hidden, batch.keys, text, ctx), text.counts)
            return rewritten(batch, text, shown, _ended(Sequences(ids, text.counts), ctx), self.kind, ctx)
        if self.variant != "replace_spans":
            shown = Sequences(ids[~hidden], _count(text.owner[~hidden], text))
            gold = Sequences(ids[hidden], _count(text.owner[hidden], text))
            return rewritten(batch, text, shown, _ended(gold, ctx), self.kind, ctx)
        marks = sentinels(ctx.vocab)
        begins, number = _spans(hidden, text)
        hidden &= number < len(marks) - self.closing
        if self.spread == "iid":
            hidden &= _running(hidden.astype(np.int64) + (begins & hidden), text) <= self.sizes(self.raw(ctx))[1] - self.closing
        begins &= hidden
        marked = ids.copy()
        marked[begins] = marks[number[begins]]
        kept = ~hidden | begins
        shown = Sequences(marked[kept], _count(text.owner[kept], text))
        spans, at = _count(text.owner[begins], text), np.cumsum(hidden)[begins] - 1
        gold = Sequences(np.insert(ids[hidden], at, marked[begins]), _count(text.owner[hidden], text) + spans)
        if self.closing:
            gold = _appended(gold, marks[np.minimum(spans, len(marks) - 1)])
        return rewritten(batch, text, shown, _ended(gold, ctx), self.kind, ctx)

    def _hidden(self, keys: np.ndarray, text: Text, ctx: Context) -> np.ndarray:
        """bool[N]: the noise."""
        counts, purpose = text.counts, "span_corruption."
        first = np.zeros(len(counts), np.int64)
        every = np.arange(len(counts))
        if self.variant == "prefix_lm":
            cut = 1 + (ctx.uniform(keys, every, first, purpose + "cut") * (counts - 1)).astype(np.int64)
            return text.inside >= cut[text.owner]
        if self.spread == "iid":
            return ctx.uniform(keys, text.owner, text.inside, purpose + "iid") < self.rate
        noise, spans = self.plan(counts)
        clean = _divide(keys, counts - noise, spans, purpose + "clean", ctx)
        dirty = _divide(keys, noise, spans, purpose + "noise", ctx)
        hidden = np.zeros(len(text.at), bool)
        lengths = np.stack([clean, dirty], 1).ravel()
        hidden[(counts > 1)[text.owner]] = np.repeat(np.tile([False, True], len(clean)), lengths)
        if self.roll:
            shift = (ctx.uniform(keys, every, first, purpose + "roll") * counts).astype(np.int64)
            source = (text.inside - shift[text.owner]) % counts[text.owner]
            hidden = hidden[source + (np.cumsum(counts) - counts)[text.owner]]
        return hidden

    def _masked(self, ids: np.ndarray, hidden: np.ndarray, keys: np.ndarray, text: Text, ctx: Context) -> np.ndarray:
        """The text with noise masked. T5's vocabulary has no mask token; its release takes the first sentinel."""
        mask = ctx.vocab.mask if ctx.vocab.mask is not None else int(sentinels(ctx.vocab)[0])
        shown = np.where(hidden, np.int32(mask), ids)
        if self.variant == "bert_style":
            at = np.flatnonzero(hidden)
            at = at[ctx.uniform(keys, text.owner[at], text.inside[at], "span_corruption.swap") < self.random]
            pick = ctx.uniform(keys, text.owner[at], text.inside[at], "span_corruption.word")
            ordinary = ctx.vocab.ordinary()
            shown[at] = ordinary[(pick * len(ordinary)).astype(np.int64)]
        return shown


def sentinels(vocab: Vocab) -> np.ndarray:
    """int32[S]: the ids of `<extra_id_0>`, `<extra_id_1>` ... as far as the vocabulary has them."""
    found: list[int] = []
    while f"<extra_id_{len(found)}>" in vocab.names:
        found.append(vocab.names[f"<extra_id_{len(found)}>"])
    return np.array(found, np.int32)


def _divide(keys: np.ndarray, items: np.ndarray, pieces: np.ndarray, purpose: str, ctx: Context) -> np.ndarray:
    """int64[sum(pieces)]: the lengths of `pieces[d]` parts of `items[d]` things, none empty, all divisions equally likely:
    the cuts are so many of the gaps between things. A document of no pieces is left out, whatever its things."""
    items = np.where(pieces > 0, items, 0)
    cuts = choose(keys, np.maximum(items - 1, 0), np.maximum(pieces - 1, 0), purpose, ctx)
    starts = bounds_of(items)
    begins = np.zeros(starts[-1], bool)
    begins[starts[:-1][pieces > 0]] = True
    begins[cuts + 1 + np.repeat(starts[:-1], np.maximum(pieces - 1, 0))] = True
    return np.diff(np.flatnonzero(begins), append=starts[-1])


def _spans(hidden: np.ndarray, text: Text) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of noise begin (bool[N]), and how many began before in the same document, counting from 0 (int64[N])."""
    begins = hidden.copy()
    begins[1:] &= ~hidden[:-1] | (text.inside[1:] == 0)
    return begins, _running(begins, text) - 1


def _running(values: np.ndarray, text: Text) -> np.ndarray:
    """int64[N]: the sum of each document's values up to and with each token."""
    total = np.append(0, np.cumsum(values))
    return total[1:] - total[(np.cumsum(text.counts) - text.counts)[text.owner]]


def _count(owner: np.ndarray, text: Text) -> np.ndarray:
    return np.bincount(owner, minlength=len(text.counts)).astype(np.int64)


def _ended(gold: Sequences, ctx: Context) -> Sequences:
    """With the end token, which nothing follows where nothing is asked."""
    assert ctx.vocab.end is not None
    return _appended(gold, np.full(len(gold.counts), ctx.vocab.end))


def _appended(gold: Sequences, tokens: np.ndarray) -> Sequences:
    """With one more token (int[D]) at the end of each sequence that is not empty."""
    asked = gold.counts > 0
    return Sequences(np.insert(gold.ids, bounds_of(gold.counts)[1:][asked], tokens[asked]), gold.counts + asked)

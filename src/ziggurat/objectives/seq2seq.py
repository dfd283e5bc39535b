"""Text in, text out, as fine-tuning: the model writes the source's `pair` column after reading its `text`.

Papers: T5 (Raffel et al., 2020, 2.4), BART (Lewis et al., 2020, 3.4), UniLM (Dong et al., 2019, 2.5), UniLM v2 (Bao et al., 2020, 4.4),
ERNIE-GEN (Xiao et al., 2020, 3.3), ProphetNet (Qi et al., 2020, 4). Needs: pairs of texts, an end token. Feeds: streams "encoder" and
"decoder", or stream "text"; target "seq2seq".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from ziggurat.context import Context
from ziggurat.data.cut import Piece, assemble
from ziggurat.data.runs import bounds_of
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.decoding import Continuation, Decoding
from ziggurat.objectives.future import Future
from ziggurat.objectives.permuted import QUERY
from ziggurat.objectives.pseudo import Rows, end_to_end
from ziggurat.types import CAUSAL, FOREVER, FULL, NEVER, Batch, Stream, Target, Tokens, Visibility, text_target

ROWS = ("pseudo", "attn", "query")
"""Ways of asking that have rows of their own behind the text."""
PACKAGES = {
    "rouge_1": "rouge_score",
    "rouge_2": "rouge_score",
    "rouge_l": "rouge_score",
    "bleu": "sacrebleu",
    "chrf": "sacrebleu",
}


class _ByWay:
    """`structures`: on the class all of them, of an objective those that its way of asking suits."""

    def __get__(self, one: Seq2Seq | None, owner: type | None = None) -> tuple[str, ...]:
        if one is None or one.asks == "next":
            return ("single", "encoder_decoder")
        return ("encoder_decoder",) if one.asks == "future" else ("single",)


class Seq2Seq(Objective):
    """Write one text after reading another. In two stacks the encoder reads the source and the decoder says the target. In one
    stack both stand in one document, `first A between B end`; the source sees itself (in a causal model its past), the target the
    source and its own past; only the target is predicted.
    """

    kind: Literal["seq2seq"] = "seq2seq"
    structures: ClassVar[tuple[str, ...]] = cast(Any, _ByWay())
    labelled: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    asks: Literal["next", "mask", "pseudo", "attn", "query", "future"] = "next"
    """How the model is asked for a word; best as it was in pre-training. `next`: each token says the next one (GPT-2, T5, BART).
    `mask`: a share of the target's tokens is hidden and predicted in place (UniLM). `pseudo`, `attn`, `query`: behind the text stands
    a row for each word of the target, which holds the mask token (UniLM v2), [ATTN] (ERNIE-GEN) or a learned vector (XLNet).
    `future`: predicting streams in the decoder (ProphetNet)."""
    target: int | None = Field(None, ge=2)
    """Most tokens of a target, its end token included; the source has what is left of `length`. Default: half of `length` in one
    stack, all of it in a decoder."""
    rate: float = Field(0.7, gt=0, le=1)
    """`mask`: the chance of a target token, the end token included, to be hidden."""
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """`mask`: of the hidden tokens, the shares that become the mask token, a random ordinary token, or stay."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Share of the target's tokens that are read as a random ordinary one; what must be said stays clean (ERNIE-GEN: 0.5 to 0.7)."""
    segments: tuple[int, int] | None = None
    """Segment numbers of source and target in one stack; default: those of a pair of texts. UniLM: [4, 5]; ERNIE-GEN: [0, 3]."""
    token: str = ""
    """The special token that asks; default: [ATTN] for `attn`, else the mask token."""
    ngram: int = Field(2, ge=1)
    """`future`: predicting streams."""
    metric: Literal["rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"] = "rouge_l"
    """The score reports quote, of texts that were generated."""
    generate: Decoding = Decoding()
    """How the test texts are generated."""

    @property
    def extra(self) -> int:  # type: ignore[override]
        """XLNet's query vector, or ProphetNet's n-gram vectors."""
        return {"query": 1, "future": self.ngram}.get(self.asks, 0)

    def needs(self, ctx: Context) -> None:
        check(
            self._end(ctx) is not None,
            "the tokenizer has no token that ends a text, so a written target would never stop",
            "use a tokenizer with [SEP], </s> or <|endoftext|>",
        )
        asks = self.asks in ("mask", "pseudo", "attn")
        check(
            not asks or self._asking(ctx) is not None,
            f"seq2seq with `asks: {self.asks}` needs the token {self.token or ('[ATTN]' if self.asks == 'attn' else 'for masks')}, "
            "and the tokenizer has none",
            "add it to the tokenizer's special tokens, or name another one in `token`",
        )
        package = PACKAGES[self.metric]
        check(
            find_spec(package) is not None,
            f"the metric {self.metric} needs the package {package}, which is not installed",
            "pip install 'ziggurat[eval]'",
        )

    def misfits(self, model: parts.Model) -> list[str]:
        found = super().misfits(model)
        rows = model.embed.segments
        if not found and rows and self.segments and max(self.segments) >= rows:
            found.append(f"seq2seq has segment numbers up to {max(self.segments)}, the model's table {rows} rows")
        return found

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def rows(self, ctx: Context) -> Mapping[str, int]:
        most = self.target_room(ctx)
        if ctx.structure == "encoder_decoder":
            return {"encoder": ctx.length, "decoder": most * (1 + self.extra)}
        return {"text": ctx.length + (most if self.asks in ROWS else 0)}

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        """Whole pairs, source and target each cut at its end; one example a document, in the same order and with the same key."""
        check(
            "pair" in tokens.parts,
            "the data has no column 'pair' to write",
            "declare both texts: columns: {text: ..., pair: ...}",
        )
        b, end = tokens.parts["pair"], np.array([self._end(ctx)], np.int32)
        opening = self.opening(ctx)
        write = np.minimum(np.diff(b.bounds), self.target_room(ctx) - 1 - len(opening))
        said: list[Piece | tuple[int, ...]] = [opening, Piece(b.ids, b.bounds[:-1], write, b.words), tuple(end.tolist())]
        if ctx.structure == "encoder_decoder":
            gold = assemble(said, [0] * 3, tokens.keys, ctx).streams["text"]
            streams = {"encoder": self._encoder(tokens, ctx), "decoder": self._shifted(gold, ctx)}
            value = gold.content.astype(np.int64)
            target = Target("decoder", np.arange(len(value)), value, np.ones(len(value), np.float32))
            return Batch(streams, {"seq2seq": target}, tokens.keys)
        source, segments = self._source(tokens, ctx)
        batch = assemble([*source, *said[1:]], [segments[0]] * len(source) + [segments[1]] * 2, tokens.keys, ctx)
        stream = batch.streams["text"]
        before = stream.lengths - write - 1
        stream = self._seen(stream, before, ctx)
        if self.asks in ("mask", *ROWS):  # the places are chosen when it is corrupted; until then the clocks say where they are
            return replace(batch, streams={"text": stream})
        at = np.flatnonzero(stream.inside() >= np.repeat(before, stream.lengths))
        return replace(batch, streams={"text": stream}, targets={"seq2seq": text_target(at - 1, stream.content[at])})

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        if ctx.structure == "encoder_decoder":
            return self._decoding(batch, ctx)
        stream = batch.streams["text"]
        if self.asks == "next":
            at = batch.targets["seq2seq"].index + 1
            return replace(batch, streams={"text": replace(stream, content=self._noised(batch, "text", at, ctx))})
        assert stream.visibility.clock is not None
        at = np.flatnonzero(stream.visibility.clock > 0)
        return self._masked(batch, at, ctx) if self.asks == "mask" else self._with_rows(batch, at, ctx)

    def continuation(self, ctx: Context) -> Continuation:
        """How a model trained with it writes."""
        end = self._end(ctx)
        banned = tuple(i for i in ctx.vocab.special if i != end)
        if ctx.structure == "encoder_decoder":
            opening = self.opening(ctx)
            first = opening[0] if opening else None
            return Continuation("decoder", -self.ngram if self.asks == "future" else None, first=first, end=end, banned=banned)
        query = QUERY if self.asks == "query" else None if self.asks == "next" else self._asking(ctx)
        return Continuation("text", query, self.asks != "query", self._segments(ctx)[1], end=end, banned=banned)

    def prompts(self, tokens: Tokens, ctx: Context) -> Batch:
        """The sources alone, from where the model goes on; a column `pair` is not looked at."""
        if ctx.structure == "encoder_decoder":
            start = Piece(np.array([ctx.start], np.int32), np.zeros(len(tokens), np.int64), np.ones(len(tokens), np.int64))
            decoder = replace(assemble([start], [0], tokens.keys, ctx).streams["text"], visibility=CAUSAL)
            return Batch({"encoder": self._encoder(tokens, ctx), "decoder": decoder}, {}, tokens.keys)
        source, segments = self._source(tokens, ctx)
        batch = assemble(source, [segments[0]] * len(source), tokens.keys, ctx)
        stream = batch.streams["text"]
        return replace(batch, streams={"text": self._seen(stream, stream.lengths, ctx)})

    # ---- what stands where ----

    def target_room(self, ctx: Context) -> int:
        """The most tokens of a target, its end token included; what is longer is cut at its end."""
        return min(self.target or (ctx.length if ctx.structure == "encoder_decoder" else ctx.length // 2), ctx.length)

    def _end(self, ctx: Context) -> int | None:
        """What ends a target: a decoder's end token, in one stack what ends the second text."""
        if ctx.structure == "encoder_decoder" or not ctx.layout.last:
            return ctx.vocab.end
        return ctx.layout.last[0]

    def opening(self, ctx: Context) -> tuple[int, ...]:
        """What a decoder says before the target: where it begins with the end token, the text's first one, as in its pre-training."""
        says = ctx.structure == "encoder_decoder" and ctx.start == ctx.vocab.end
        return ctx.layout.first if says else ()

    def source_room(self, ctx: Context) -> int:
        """The most tokens of a source; what is longer is cut at its end."""
        if ctx.structure == "encoder_decoder":
            return ctx.layout.room(ctx.length)
        return ctx.length - self.target_room(ctx) - len(ctx.layout.first) - len(self._between(ctx))

    def _between(self, ctx: Context) -> tuple[int, ...]:
        """What stands between source and target in one stack: something must say the first word."""
        end = self._end(ctx)
        return (end,) if not ctx.layout.first and not ctx.layout.between and end is not None else ctx.layout.between

    def _segments(self, ctx: Context) -> tuple[int, int]:
        return self.segments or ctx.layout.segments

    def _asking(self, ctx: Context) -> int | None:
        name = self.token or ("[ATTN]" if self.asks == "attn" else "")
        return ctx.vocab.names.get(name) if name else ctx.vocab.mask

    def _encoder(self, tokens: Tokens, ctx: Context) -> Stream:
        a, room = tokens.parts["text"], self.source_room(ctx)
        check(room >= 1, f"length {ctx.length} leaves no room for a text", "set a larger length")
        slots = (ctx.layout.first, Piece(a.ids, a.bounds[:-1], np.minimum(np.diff(a.bounds), room), a.words), ctx.layout.last)
        return replace(assemble(slots, [0] * 3, tokens.keys, ctx).streams["text"], visibility=FULL)

    def _source(self, tokens: Tokens, ctx: Context) -> tuple[list[Piece | tuple[int, ...]], tuple[int, int]]:
        """The slots before a target in one stack, and the segment numbers of both."""
        a, room = tokens.parts["text"], self.source_room(ctx)
        check(
            room >= 1,
            f"length {ctx.length} leaves no room for a source before a target of {self.target_room(ctx)} tokens",
            "set a larger length or a smaller `target`",
        )
        text = Piece(a.ids, a.bounds[:-1], np.minimum(np.diff(a.bounds), room), a.words)
        return [ctx.layout.first, text, self._between(ctx)], self._segments(ctx)

    def _seen(self, stream: Stream, before: np.ndarray, ctx: Context) -> Stream:
        """The stream as its first `before` (int64[D]) tokens of a document, and those behind them, see it."""
        if ctx.visibility == "causal" and self.asks == "next":
            return replace(stream, visibility=CAUSAL)
        clock = np.maximum(stream.inside() - np.repeat(before, stream.lengths) + 1, 0).astype(np.int32)
        return replace(stream, visibility=Visibility("custom", clock, clock, np.full_like(clock, FOREVER), np.zeros_like(clock)))

    def _shifted(self, gold: Stream, ctx: Context) -> Stream:
        """A decoder's inputs when it says `gold`."""
        read = np.empty_like(gold.content)
        read[1:] = gold.content[:-1]
        read[gold.bounds[:-1]] = ctx.start  # no target is empty: it ends
        return replace(gold, content=read, visibility=CAUSAL, unit=np.full(len(read), -1, np.int32))

    # ---- what is hidden ----

    def _decoding(self, batch: Batch, ctx: Context) -> Batch:
        """Two stacks: noise in what the decoder reads, and predicting streams."""
        asked, main = batch.targets["seq2seq"], batch.streams["decoder"]
        later = asked.index[main.inside()[asked.index] > 0]  # the start token stays
        main = replace(main, content=self._noised(batch, "decoder", later, ctx))
        if self.asks != "future":
            return replace(batch, streams={**batch.streams, "decoder": main})
        live = np.diff(np.searchsorted(asked.index, main.bounds))  # dead documents ask nothing
        own = asked.index
        bare = Stream(main.content[own], bounds_of(live), main.position[own], main.segment[own], CAUSAL)
        decoder, target = Future(ngram=self.ngram).ask(bare, asked.value, "decoder")
        decoder = replace(decoder, unit=np.full(len(decoder.content), -1, np.int32))
        return replace(batch, streams={**batch.streams, "decoder": decoder}, targets={"seq2seq": target})

    def _masked(self, batch: Batch, at: np.ndarray, ctx: Context) -> Batch:
        """UniLM: hidden in place. A document of which nothing is drawn hides its end token."""
        stream = batch.streams["text"]
        owner, inside = self._where(batch, "text", at)
        hidden = ctx.uniform(batch.keys, owner, inside, "seq2seq.mask") < self.rate
        counts = np.diff(np.searchsorted(at, stream.bounds))
        none = (counts > 0) & (np.bincount(owner, hidden, len(batch)) == 0)
        hidden[np.cumsum(counts)[none] - 1] = True
        value = stream.content[at[hidden]]
        draw = ctx.uniform(batch.keys, owner, inside, "seq2seq.replace")[hidden]
        content, chosen = stream.content.copy(), at[hidden]
        masks = chosen[draw < self.replace[0]]
        content[masks] = self._asking(ctx)
        swaps = (draw >= self.replace[0]) & (draw < self.replace[0] + self.replace[1])
        content[chosen[swaps]] = self._random(batch, owner[hidden][swaps], inside[hidden][swaps], ctx)
        return replace(batch, streams={"text": replace(stream, content=content)}, targets={"seq2seq": text_target(chosen, value)})

    def _with_rows(self, batch: Batch, at: np.ndarray, ctx: Context) -> Batch:
        """UniLM v2, ERNIE-GEN, XLNet: a row for each word of the target, which sees the source, the words before and, but for
        XLNet's, itself."""
        stream, seen = batch.streams["text"], batch.streams["text"].visibility
        assert seen.clock is not None and stream.unit is not None
        counts = np.diff(np.searchsorted(at, stream.bounds))
        none = np.zeros(len(at), np.int32)
        content = self._noised(batch, "text", at, ctx)
        text = Rows(stream.lengths, content, stream.position, stream.segment, seen.clock, seen.clock, 0 * seen.clock, stream.unit)
        word = QUERY if self.asks == "query" else self._asking(ctx)
        assert word is not None
        clock = seen.clock[at] - np.int32(1)
        lane = none if self.asks == "query" else clock + np.int32(1)
        row = Rows(counts, none + np.int32(word), stream.position[at], stream.segment[at], clock, none + np.int32(NEVER), lane)
        made, places = end_to_end(text, row)
        return replace(batch, streams={"text": made}, targets={"seq2seq": text_target(places[1], stream.content[at])})

    def _noised(self, batch: Batch, stream: str, at: np.ndarray, ctx: Context) -> np.ndarray:
        """int32[T]: the stream's tokens, a share of those at `at` (int64[K], ascending) replaced by random ones."""
        content = batch.streams[stream].content
        if not self.noise or not len(at):
            return content
        owner, inside = self._where(batch, stream, at)
        wrong = ctx.uniform(batch.keys, owner, inside, "seq2seq.noise") < self.noise
        content = content.copy()
        content[at[wrong]] = self._random(batch, owner[wrong], inside[wrong], ctx)
        return content

    def _where(self, batch: Batch, stream: str, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bounds = batch.streams[stream].bounds
        owner = np.searchsorted(bounds, at, side="right") - 1
        return owner, at - bounds[owner]

    def _random(self, batch: Batch, owner: np.ndarray, inside: np.ndarray, ctx: Context) -> np.ndarray:
        ordinary = ctx.vocab.ordinary()
        return ordinary[(ctx.uniform(batch.keys, owner, inside, "seq2seq.random") * len(ordinary)).astype(np.int64)]

"""Fragments: the encoder reads a text with a run of tokens hidden, the decoder says the run; also with masked LM beside it.

Paper: MASS (Song et al., 2019, 3.1-3.2, and the released code); masked LM on the encoder with a fragment on the decoder: the
survey's description of encoder-decoder pre-training. Needs: a mask token. Feeds: streams "encoder" and "decoder", targets
"mass" and "mlm".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from ziggurat.context import Context
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.masked import Masked, disguised
from ziggurat.types import CAUSAL, FOREVER, FULL, Batch, Stream, Visibility, text_target


class Runs(Objective):
    """Base: hides one run of consecutive tokens in every text, or in every block of it, and says what the decoder reads.

    The decoder's step for token i of the text reads the real token i - 1, also where the encoder hides that one, and stands at
    the position of that token in the text: at i - 1, as in both releases. Where a text has no token before its first
    one (no special token opens it), `Context.start` stands in, at position 0. Special tokens are never hidden; the MT codes count
    the end token to the sentence and may ask for it, the paper does not.
    """

    structures: ClassVar[tuple[str, ...]] = ("encoder_decoder",)

    ratio: float = Field(0.5, gt=0, le=1)
    """Length of the run as a share of the tokens of its text or block: rounded for texts, cut for blocks, as in the releases.
    At least one token a text. A single token makes a masked LM, all of them an ordinary LM (MASS, 3.2)."""
    block: int = Field(0, ge=0)
    """0 = one run a text; n = one in each block of n tokens (documents of the summarisation release: 64)."""
    starts: tuple[float, float, float] = (0.2, 0.2, 0.6)
    """Shares of runs that start with their text (block), that end with it, and that lie anywhere, each place as likely."""
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of the hidden tokens, the shares that the encoder sees as the mask token, as a random ordinary token, or as they are.
    Drawn for each token."""

    @model_validator(mode="after")
    def _shares(self) -> Runs:
        for name, shares in (("starts", self.starts), ("replace", self.replace)):
            if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
                meaning = {"starts": "(first, last, anywhere)", "replace": "(mask, random, keep)"}[name]
                raise ValueError(f"{name} must be three shares {meaning} that sum to 1")
        return self

    def needs(self, ctx: Context) -> None:
        check(
            ctx.vocab.mask is not None or self.replace[0] == 0,
            f"`{self.kind}` hides tokens behind a mask token, and the tokenizer has none",
            "use a tokenizer with [MASK] or <mask>, or set `replace: [0, 0.5, 0.5]`",
        )

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"lm": parts.VocabHead()}

    def head_of(self, target: str) -> str:
        return "lm"

    def rows(self, ctx: Context) -> Mapping[str, int]:
        return {"encoder": ctx.length, "decoder": self.most(ctx.layout.room(ctx.length))}

    def most(self, length: int) -> int:
        """How many tokens are hidden in a text of `length` tokens."""
        size = self.block or max(length, 1)
        blocks, rest = divmod(length, size)
        whole, part = self._sizes(np.array([size, rest])).tolist()
        return max(1, blocks * whole + part)

    def hidden(self, batch: Batch, ctx: Context) -> np.ndarray:
        """int64[K], ascending: the tokens of the stream `text` that are to be hidden and predicted."""
        stream = batch.streams["text"]
        assert stream.unit is not None, "fragments need units, which tell text from special tokens"
        text, bounds = np.flatnonzero(stream.unit >= 0), np.asarray(stream.bounds)
        first = np.searchsorted(text, bounds)
        counts = np.diff(first)
        size = self.block or max(int(counts.max(initial=1)), 1)
        blocks = -(-counts // size)
        owner = np.repeat(np.arange(len(counts)), blocks)
        number = ranges(np.zeros(len(counts), np.int64), blocks)
        lengths = np.minimum(size, counts[owner] - number * size)
        run = self._sizes(lengths)
        run[number == 0] = np.maximum(run[number == 0], 1)
        spare = lengths - run
        where = ctx.uniform(batch.keys, owner, number, f"{self.kind}.where")
        start = (ctx.uniform(batch.keys, owner, number, f"{self.kind}.start") * (spare + 1)).astype(np.int64)
        start = np.where(where < self.starts[0] + self.starts[1], spare, start)
        start = np.where(where < self.starts[0], 0, start)
        return text[ranges(first[owner] + number * size + start, run)]

    def _sizes(self, lengths: np.ndarray) -> np.ndarray:
        share = self.ratio * lengths
        return (np.floor(share) if self.block else np.rint(share)).astype(np.int64)


class Fragment(Runs):
    """MASS: the decoder generates the fragment that the encoder does not see.

    The defaults are the sentence-level rule of the paper and its MT codes. The document-level rule of the summarisation
    release is `ratio: 0.15, block: 64, starts: [0, 0, 1], cross: all`. Not followed: the data class of the supervised-MT release
    masks the encoder by indices that have slipped by one (the first token of the fragment stays readable and one too many behind
    it is masked) and corrupts the decoder's inputs too; the paper says neither, and the first is a leak.
    """

    kind: Literal["mass"] = "mass"
    cross: Literal["unmasked", "all"] = "unmasked"
    """What the decoder sees of the encoder. `unmasked`: no slot that holds the mask token, so that it must rely on its own past
    (unsupervised-MT code; hidden slots with a random or the kept token can be seen). `all`: everything (summarisation code)."""

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        at = self.hidden(batch, ctx)
        return self.sides(batch, disguised(batch, at, self.replace, self.kind, ctx), at, ctx)

    def sides(self, batch: Batch, content: np.ndarray, at: np.ndarray, ctx: Context) -> Batch:
        """The two streams when the encoder reads `content` (int32[T]) and the decoder says the tokens `at` (int64[K])."""
        stream = batch.streams["text"]
        visibility = FULL
        if self.cross == "unmasked":
            zero = np.zeros(len(content), np.int32)
            opens = (content == ctx.vocab.mask).astype(np.int32) if ctx.vocab.mask is not None else zero
            visibility = Visibility("custom", zero + 1, opens, np.full(len(content), FOREVER, np.int32), zero)
        encoder = replace(stream, content=content, visibility=visibility, row=0)
        target = text_target(np.arange(len(at)), stream.content[at], stream="decoder")
        return Batch({"encoder": encoder, "decoder": shifted(stream, at, ctx)}, {self.kind: target}, batch.keys)


class MaskedFragment(Objective):
    """Masked LM on the encoder and a fragment on the decoder, learnt together from different hidden parts of one text.

    The survey's encoder-decoder task: the encoder fills in single words hidden at random while the decoder generates a
    run of them from left to right. The fragment is chosen first; masked LM hides and asks only outside of it. The count of masked LM
    is a share of the whole example, as it always is, so what the encoder still sees is 1 - `masked.rate` - `fragment.ratio`.
    With `fragment.cross: unmasked` the decoder sees no mask token of either part. Both parts share the head `lm`.
    """

    kind: Literal["mlm_mass"] = "mlm_mass"
    structures: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    masked: Masked = Masked()
    """The encoder's part, target `mlm`."""
    fragment: Fragment = Fragment()
    """The decoder's part, target `mass`."""
    weights: dict[str, float] = {}
    """Weight of a part's mean loss, by its kind (`mlm`, `mass`); default 1."""

    @model_validator(mode="after")
    def _known(self) -> MaskedFragment:
        unknown = set(self.weights) - {"mlm", "mass"}
        if unknown:
            raise ValueError(f"weights for {sorted(unknown)}, which is no part; parts are mlm and mass")
        return self

    def needs(self, ctx: Context) -> None:
        self.masked.needs(ctx)
        self.fragment.needs(ctx)

    def rows(self, ctx: Context) -> Mapping[str, int]:
        return self.fragment.rows(ctx)

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        at = self.fragment.hidden(batch, ctx)
        stream = batch.streams["text"]
        assert stream.unit is not None, "masked LM needs units"
        # A word that a fragment cuts in two becomes two words: behind it, unit numbers grow by the tokens hidden so far.
        inside = np.zeros(len(stream.content), np.int32)
        inside[at] = 1
        before = np.append(0, np.cumsum(inside, dtype=np.int32))
        unit = stream.unit + before[1:] - np.repeat(before[stream.bounds[:-1]], stream.lengths)
        unit[(inside == 1) | (stream.unit < 0)] = -1
        shown = replace(stream, content=disguised(batch, at, self.fragment.replace, self.fragment.kind, ctx), unit=unit)
        done = self.masked.corrupt(replace(batch, streams={"text": shown}), ctx)
        both = self.fragment.sides(batch, done.streams["text"].content, at, ctx)
        return replace(both, targets={"mlm": replace(done.targets["mlm"], stream="encoder"), **both.targets})

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {**self.masked.heads(model), **self.fragment.heads(model)}

    def head_of(self, target: str) -> str:
        return "lm"

    def weight_of(self, target: str) -> float:
        return self.weights.get(target, 1.0)


def shifted(stream: Stream, at: np.ndarray, ctx: Context) -> Stream:
    """The decoder's inputs when it says the tokens `at` (int64[K], ascending) of `stream`: for each the token before it in its
    document, with the position and segment of that one; causal, one document for each of the stream's."""
    bounds = np.searchsorted(at, stream.bounds)
    begins = at == np.repeat(stream.bounds[:-1], np.diff(bounds))
    before = at - 1 + begins
    content = stream.content[before]
    content[begins] = ctx.start
    return Stream(content, bounds_of(np.diff(bounds)), stream.position[before], stream.segment[before], CAUSAL)

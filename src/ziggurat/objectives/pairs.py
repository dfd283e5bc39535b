"""Sentence-level objectives: does B follow A, and are A and B in order.

Paper: BERT (Devlin et al., 2019, 3.1; the released create_pretraining_data rule) and ALBERT (Lan et al., 2020, 3.1).
Needs: sentence boundaries, a pair layout; next sentence also a second document. Feeds: stream "text", targets "nsp", "sop".

The rule goes through each document from chunk to chunk, so all documents of a block take their n-th chunk together. Letters in
shapes: `D` documents, `S` sentences of all of them, `A` documents that take a chunk in this round, `E` examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ziggurat.context import Context, mix
from ziggurat.data.cut import Piece, pair_up
from ziggurat.data.runs import ranges
from ziggurat.errors import Starved, check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Lack, Objective, Supply
from ziggurat.types import Batch, Part, Tokens, text_target

FED = 0.2
"""Share of documents with two sentences below which a corpus feeds objectives over sentences badly."""


class Draws:
    """The keyed random numbers of D documents; each document is handed its own one after the other."""

    def __init__(self, ctx: Context, keys: np.ndarray, purpose: str):
        self._ctx, self._keys, self._purpose = ctx, keys, purpose
        self._used = np.zeros(len(keys), np.int64)

    def uniform(self, document: np.ndarray) -> np.ndarray:
        """The next number in [0, 1) of each of these documents (int[N] ascending; one that is named n times gets its next n)."""
        starts = np.flatnonzero(np.diff(document, prepend=-1))
        who, counts = document[starts], np.diff(starts, append=len(document))
        index = ranges(self._used[who], counts)
        self._used[who] += counts
        return self._ctx.uniform(self._keys[who], np.repeat(np.arange(len(who)), counts), index, self._purpose)

    def below(self, document: np.ndarray, n: np.ndarray | int) -> np.ndarray:
        """int64[N]: 0 to n - 1, each as likely."""
        return np.minimum((self.uniform(document) * n).astype(np.int64), n - 1)


class Drawn(NamedTuple):
    """One example of each of A documents (int64[A] each). A and B are runs of sentences, B may be empty."""

    a: np.ndarray
    a_stop: np.ndarray
    b: np.ndarray
    b_stop: np.ndarray
    label: np.ndarray
    """The class; -1: there is none to learn."""
    following: np.ndarray
    """The sentence with which the document goes on."""


@dataclass(frozen=True, slots=True)
class Sentences:
    """The sentences of a block, numbered through."""

    edges: np.ndarray
    """int64[S + 1]: where sentences begin in the block's tokens, and where the last one ends."""
    first: np.ndarray
    """int64[D + 1]: the sentences of document d are `first[d]` to `first[d + 1]`."""

    @classmethod
    def of(cls, part: Part) -> Sentences:
        begins = part.sentences.copy()
        begins[part.bounds[:-1][np.diff(part.bounds) > 0]] = True
        edges = np.append(np.flatnonzero(begins), len(part.ids))
        return cls(edges, np.searchsorted(edges, np.asarray(part.bounds)))

    def gather(self, document: np.ndarray, start: np.ndarray, target: np.ndarray) -> np.ndarray:
        """int64[A]: the sentence after the last one needed to reach `target` tokens from sentence `start`, or the document's end."""
        stop = np.searchsorted(self.edges, self.edges[start] + target)
        return np.minimum(np.maximum(stop, start + 1), self.first[document + 1])

    def elsewhere(self, document: np.ndarray, target: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Sentences (start, stop) of a random other document, from a random one on, that reach `target` tokens if it has them."""
        filled = np.flatnonzero(np.diff(self.first))
        other = draws.below(document, len(filled) - 1)
        other = filled[other + (filled[other] >= document)]
        start = self.first[other] + draws.below(document, np.diff(self.first)[other])
        return start, self.gather(other, start, np.maximum(target, 1))

    def tokens(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """int64[A]: how many tokens these runs of sentences have."""
        return self.edges[stop] - self.edges[start]


class Chunks(NamedTuple):
    """The next sentences of each of A documents, gathered to reach a number of tokens (int64[A] each)."""

    document: np.ndarray
    start: np.ndarray
    """The first sentence."""
    stop: np.ndarray
    """The sentence after the last one."""
    target: np.ndarray
    """Tokens that were wanted."""

    def split(self, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Which chunks have several sentences (int64[A']), and where each chunk is cut in two: before a random sentence that is
        not its first, int64[A]; a single sentence is not cut (`stop`)."""
        several = np.flatnonzero(self.stop - self.start > 1)
        cut = self.stop.copy()
        cut[several] = self.start[several] + 1
        cut[several] += draws.below(self.document[several], (self.stop - self.start)[several] - 1)
        return several, cut

    def halves(self, cut: np.ndarray, swapped: np.ndarray, label: np.ndarray) -> Drawn:
        """A is what stands before the cut and B what follows it; the other way round where `swapped` (bool[A])."""
        a, b = np.where(swapped, cut, self.start), np.where(swapped, self.start, cut)
        a_stop, b_stop = np.where(swapped, self.stop, cut), np.where(swapped, cut, self.stop)
        return Drawn(a, a_stop, b, b_stop, label, self.stop)

    def with_another(self, drawn: Drawn, which: np.ndarray, sentences: Sentences, draws: Draws) -> Drawn:
        """Examples `which` (int64[A']) get a B of another document, and what was meant for B is used again."""
        b, b_stop, following = drawn.b.copy(), drawn.b_stop.copy(), drawn.following.copy()
        wanted = self.target[which] - sentences.tokens(drawn.a, drawn.a_stop)[which]
        b[which], b_stop[which] = sentences.elsewhere(self.document[which], wanted, draws)
        following[which] = drawn.a_stop[which]
        return drawn._replace(b=b, b_stop=b_stop, following=following)


class Pairs(Objective):
    """Base: gathers sentences of a document up to the target length; `draw` makes A and B of them."""

    negatives: ClassVar[str] = ""
    """What errors call an objective that takes some B from another document; empty = it takes none."""
    short: float = Field(0.1, ge=0, le=1)
    """Share of examples whose target length is drawn from 2 to the longest, so that the model also sees short ones."""

    def draw(self, chunks: Chunks, sentences: Sentences, draws: Draws) -> Drawn:
        """A, B and the class of one chunk of each document."""
        raise NotImplementedError

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return parts.class_heads(model, self.kind, 2)

    def starved(self, supply: Supply) -> list[Lack]:
        if self.negatives and supply.documents < 2:
            split = "split the corpus into documents (`txt: line` or `txt: blank`), or use `sop` or plain `mlm`"
            return [Lack(f"{self.kind} has no negatives: the corpus is one document, and they come from others", split)]
        whole = "keep a document's sentences together (`txt: file` or `txt: blank`), or use an objective over single sentences, as `mlm`"
        if not supply.several:
            what = "positives" if self.negatives else "negatives"
            return [Lack(f"{self.kind} has no {what}: no document has two sentences", whole)]
        share = supply.several / supply.documents
        if share < FED:
            return [
                Lack(f"only {share:.1%} of the documents have the two sentences that {self.kind} asks about", whole, fatal=False)
            ]
        return []

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        part, room = tokens.parts["text"], ctx.layout.room(ctx.length, pair=True)
        if self.negatives and np.count_nonzero(np.diff(part.bounds)) < 2:
            raise Starved(
                f"{self.negatives} needs at least two documents to draw its negatives from",
                "split the corpus into documents, or use `sop` or plain `mlm`",
            )
        check(room >= 2, f"length {ctx.length} leaves no room for two sentences", "set a larger length")
        sentences, draws = Sentences.of(part), Draws(ctx, tokens.keys, f"{self.kind}.form")
        at = sentences.first[:-1].copy()
        document = np.flatnonzero(at < sentences.first[1:])
        rounds = [np.zeros((7, 0), np.int64)]
        while len(document):
            target = self._targets(document, room, draws)
            chunks = Chunks(document, at[document], sentences.gather(document, at[document], target), target)
            drawn = self.draw(chunks, sentences, draws)
            rounds.append(np.stack([document, np.full(len(document), len(rounds) - 1), *drawn[:4], drawn.label]))
            at[document] = drawn.following
            document = document[drawn.following < sentences.first[document + 1]]
        made = np.concatenate(rounds, axis=1)
        document, number, *runs, label = made[:, np.argsort(made[0], kind="stable")]
        a, a_stop, b, b_stop = (sentences.edges[run] for run in runs)
        off_a, keep_a, off_b, keep_b = fit(a_stop - a, b_stop - b, room, document, draws)
        keys = mix(tokens.keys[document] ^ mix(number.astype(np.uint64)))
        pieces = Piece(part.ids, a + off_a, keep_a, part.words), Piece(part.ids, b + off_b, keep_b, part.words)
        asked = np.flatnonzero(label >= 0)
        questions = text_target(asked, label[asked], at="document")
        return replace(pair_up(*pieces, keys, ctx), targets={self.kind: questions})

    def _targets(self, document: np.ndarray, room: int, draws: Draws) -> np.ndarray:
        """int64[A]: how many tokens each document's next chunk shall have."""
        target = np.full(len(document), room)
        few = np.flatnonzero(draws.uniform(document) < self.short)
        target[few] = 2 + draws.below(document[few], room - 1)
        return target


class NextSentence(Pairs):
    """Is B the text after A (class 0) or from a random other document (class 1)? Half and half."""

    kind: Literal["nsp"] = "nsp"
    negatives: ClassVar[str] = "next sentence"

    def draw(self, chunks: Chunks, sentences: Sentences, draws: Draws) -> Drawn:
        several, cut = chunks.split(draws)
        label = np.ones(len(cut), np.int64)
        label[several] = draws.uniform(chunks.document[several]) < 0.5
        drawn = chunks.halves(cut, np.zeros(len(cut), bool), label)
        return chunks.with_another(drawn, np.flatnonzero(label), sentences, draws)


class SentenceOrder(Pairs):
    """Are the two consecutive segments in order (class 0) or swapped (class 1)? Half and half.

    A document of one sentence has no order: it gives one segment and no question, so that masked LM still reads it.
    """

    kind: Literal["sop"] = "sop"

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        batch = super().form(tokens, ctx)
        if not len(batch.targets["sop"].index) and len(tokens) >= 16:
            raise Starved(
                f"sentence order finds no two sentences in any of {len(tokens)} documents",
                "documents must hold several sentences; a corpus of one sentence a document has no order to learn",
            )
        return batch

    def draw(self, chunks: Chunks, sentences: Sentences, draws: Draws) -> Drawn:
        several, cut = chunks.split(draws)
        label = np.full(len(cut), -1)
        label[several] = draws.uniform(chunks.document[several]) < 0.5
        return chunks.halves(cut, label == 1, label)


def fit(
    a: np.ndarray, b: np.ndarray, room: int, document: np.ndarray, draws: Draws
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens are taken off the longer side (B where they are equal), from a random end each, until both fit in `room`.

    `a`, `b` int64[E] are the tokens of both sides, `document` int64[E] ascending whose examples they are. Returns for A and then for
    B how many tokens go at the front and how many stay.
    """
    example = np.repeat(np.arange(len(a)), np.maximum(a + b - room, 0))
    nth = np.arange(len(example)) - np.searchsorted(example, example)
    lead = (a - b)[example]
    # The longer side loses tokens until both are equal; then they take turns.
    of_a = np.where(nth < np.abs(lead), lead > 0, (nth - np.abs(lead)) % 2 == 1)
    front = draws.uniform(document[example]) < 0.5
    ends = []
    for length, mine in (a, of_a), (b, ~of_a):
        ends += [np.bincount(example[mine & front], minlength=len(a)), length - np.bincount(example[mine], minlength=len(a))]
    off_a, keep_a, off_b, keep_b = ends
    return off_a, keep_a, off_b, keep_b

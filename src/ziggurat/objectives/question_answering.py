"""Extractive question answering: where in a context the answer begins and ends.

Papers: BERT on SQuAD (Devlin et al., 2019, 4.2 and 4.3), questions without an answer as in SQuAD 2.0 (Rajpurkar et al., 2018). Needs: a
question, a context, answers with their places. Feeds: the streams of the model, with the same text in both stacks; one document a
window of the context, all windows of a question one example; target "span".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ziggurat.context import Context
from ziggurat.data.cut import Piece, assemble, room_of
from ziggurat.data.runs import ranges
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.objectives.labelled import Labelled, column_of
from ziggurat.objectives.rewrite import echoed
from ziggurat.types import Batch, Target, Tokens


class Windows(NamedTuple):
    """Contexts cut into windows, the question before each; W windows of D questions."""

    batch: Batch
    document: np.ndarray
    """int64[W]: whose window it is"""
    start: np.ndarray
    """int64[W]: the token of the context with which the window begins"""
    length: np.ndarray
    """int64[W]: tokens of the context in it"""
    at: np.ndarray
    """int64[W]: the row where they begin"""
    null: np.ndarray
    """int64[W]: the row that stands for no answer"""
    rows: np.ndarray
    """int64[N]: the rows of every window that may begin or end an answer, ascending: its context, and before or behind it the null row"""

    @property
    def counts(self) -> np.ndarray:
        """int64[W]: how many of `rows` are each window's."""
        return self.length + 1

    @property
    def ahead(self) -> np.ndarray:
        """int64[W]: 1 where the null row stands before the context, 0 where behind."""
        return (self.null < self.at).astype(np.int64)


class QuestionAnswering(Labelled):
    """The start and the end of the answer to the question `text` in the context `pair`, each by a softmax over the tokens of the
    context and one token that stands for no answer: the first special token, or the last where there is none before the text, where the
    model reads from left to right, and in XLNet. A context that does not fit is cut into windows that overlap; a window that does not
    hold the whole answer is answered with no answer. Training takes the first of several answers."""

    kind: Literal["question_answering"] = "question_answering"
    columns: ClassVar[tuple[str, ...]] = ("pair", "answers")
    stride: int | None = Field(None, ge=0)
    """Tokens that neighbouring windows share (`doc_stride` of Hugging Face's scripts). Default: a third of the context in a window."""
    question: int | None = Field(None, ge=1)
    """Most tokens of the question; the rest is cut. Default: 64 (BERT), but at most half of what fits an example."""
    longest: int = Field(30, ge=1)
    """Most tokens of an answer that is given."""
    no_answer: bool = False
    """Whether questions may have no answer (SQuAD 2.0). Otherwise one is always given."""
    threshold: float | Literal["tuned"] = 0.0
    """`no_answer`: how much the score of no answer (start + end) must exceed that of the best span. `tuned`: the best one on the source's
    `valid` rows; it stays with the checkpoint, which is then asked with it."""
    metric: Literal["squad_f1", "squad_em", "cmrc_f1", "cmrc_em"] = "squad_f1"
    """The score reports quote; `cmrc_f1` and `cmrc_em` by the rules for Chinese of CMRC 2018."""

    def needs(self, ctx: Context) -> None:
        check(
            bool(ctx.layout.first or ctx.layout.last),
            "the tokenizer puts no special token around a text, and one must stand for no answer",
            "use a tokenizer with [CLS], </s> or <|endoftext|>",
        )

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        answers, rows = column_of(tokens, "answers"), tokens.fields.get("id", ())
        missing = [d for d, found in enumerate(answers) if not found]
        check(
            self.no_answer or not missing,
            f"{len(missing)} question(s) have no answer" + (f", as {rows[missing[0]]}" if missing and len(rows) else ""),
            "set `no_answer: true` in the objective, or leave them out",
        )
        cut = self.windows(tokens, ctx)
        begins, ends = self._gold(tokens, cut)
        first = np.cumsum(cut.counts) - cut.counts
        weight = np.zeros((len(cut.rows), 2), np.float32)
        weight[first + begins, 0] = weight[first + ends, 1] = 0.5
        window = np.repeat(np.arange(len(cut.start)), cut.counts)
        column = np.tile(np.arange(2), len(cut.rows))
        target = Target(
            ctx.streams[-1],
            np.repeat(cut.rows, 2),
            column,
            weight.reshape(-1),
            group=2 * np.repeat(window, 2) + column,
        )
        return replace(cut.batch, targets={"span": target})

    def question_room(self, ctx: Context) -> int:
        """The most tokens of a question; what is longer is cut at its end."""
        return self.question or min(64, room_of(ctx, pair=True) // 2)

    def windows(self, tokens: Tokens, ctx: Context) -> Windows:
        """The questions with all windows of their contexts, in order; answers are not looked at."""
        check(
            "pair" in tokens.parts,
            "the data has no column 'pair'",
            "declare the context: columns: {text: question, pair: context}",
        )
        q, c, layout = tokens.parts["text"], tokens.parts["pair"], ctx.layout
        fits = room_of(ctx, pair=True)
        asked, whole = np.minimum(np.diff(q.bounds), self.question_room(ctx)), np.diff(c.bounds)
        room = fits - asked
        shared = room // 3 if self.stride is None else np.full(len(room), self.stride)
        tight = int(room.min(initial=ctx.length))
        check(
            bool(np.all(room > shared)),
            f"length {ctx.length} leaves {max(tight, 0)} tokens for the context beside a question of {int(asked.max(initial=0))}"
            + (f", and windows share {self.stride}" if self.stride else ""),
            "set a larger `length`, a smaller `stride` or a smaller `question`",
        )
        step = room - shared
        count = 1 + np.maximum(0, -(-(whole - room) // step))
        document = np.repeat(np.arange(len(tokens)), count)
        start = (np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)) * step[document]
        length = np.minimum(room[document], whole[document] - start)
        one, two = layout.segments
        slots = (
            layout.first,
            Piece(q.ids, q.bounds[:-1][document], asked[document], q.words),
            layout.between,
            Piece(c.ids, c.bounds[:-1][document] + start, length, c.words),
            layout.last,
        )
        batch = assemble(slots, [one, one, one, two, two], tokens.keys[document], ctx)
        bounds = batch.streams["text"].bounds
        at = bounds[:-1] + len(layout.first) + asked[document] + len(layout.between)
        ahead = bool(layout.first) and (not layout.last or (ctx.visibility == "full" and layout.summary is None))
        null = bounds[:-1] if ahead else bounds[1:] - 1
        rows = ranges(at - ahead, length + 1)
        ends = np.cumsum(length + 1)
        rows[ends - length - 1 if ahead else ends - 1] = null
        return Windows(echoed(batch, ctx), document, start, length, at, null, rows)

    def _gold(self, tokens: Tokens, cut: Windows) -> tuple[np.ndarray, np.ndarray]:
        """int64[W] twice: the places, among the rows of each window, where its answer begins and ends."""
        part = tokens.parts["pair"]
        known = part.labels.index("answer") if "answer" in part.labels else -1
        owner = np.repeat(np.arange(len(tokens)), np.diff(part.mark_bounds))
        mine = part.marks[:, 2] == known
        owner, marks = owner[mine], part.marks[mine]
        first = np.full(len(tokens), -1, np.int64)
        last = first.copy()
        first[owner[::-1]], last[owner[::-1]] = marks[::-1, 0], marks[::-1, 1] - 1
        begin, end = first[cut.document] - cut.start, last[cut.document] - cut.start
        inside = (first[cut.document] >= 0) & (begin >= 0) & (end < cut.length)
        nothing = np.where(cut.ahead == 1, 0, cut.length)
        return np.where(inside, begin + cut.ahead, nothing), np.where(inside, end + cut.ahead, nothing)

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"span": parts.TokenHead(outputs=2)}

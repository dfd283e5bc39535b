"""Multiple choice: one score for a question with each of its choices, and a softmax over the choices of a question.

Papers: GPT (Radford et al., 2018, 3.3), BERT on SWAG (Devlin et al., 2019, 4.4); a passage as in RoBERTa on RACE (Liu et al., 2019, 5.3).
Needs: a list of choices and the number of the right one. Feeds: the streams of the model, with the same text in both stacks; one
document a choice, all choices of a question one example; target "choice".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from ziggurat.context import Context
from ziggurat.data.cut import Piece, assemble, longest_first, room_of
from ziggurat.errors import UserError, check
from ziggurat.nn import spec as parts
from ziggurat.objectives.labelled import Labelled, column_of
from ziggurat.objectives.rewrite import echoed
from ziggurat.types import Batch, Target, Tokens


class MultipleChoice(Labelled):
    """Which of a question's choices is right. Questions may have any number of choices. A document is `first text between choice
    last`, or with a column `pair` `first text between pair choice last` (a passage, then the question)."""

    kind: Literal["multiple_choice"] = "multiple_choice"
    columns: ClassVar[tuple[str, ...]] = ("choices", "label")
    labels: tuple[str | int, ...] = ()
    """What the label column calls the first choice, the second ...; default: 0, 1, 2 ..., and the numbers that a source with
    `choice_names` gives."""
    metric: Literal["accuracy", "squad_f1", "squad_em"] = "accuracy"
    """The score reports quote. `squad_f1` and `squad_em` compare the text of the choice with those of all right choices (ReCoRD)."""

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        batch, counts = self.laid(tokens, ctx)
        right = self.right(tokens, counts)
        group = np.repeat(np.arange(len(counts)), counts)
        weight = np.zeros(len(group), np.float32)
        for first, chosen in zip((np.cumsum(counts) - counts).tolist(), right, strict=True):
            weight[[first + n for n in chosen]] = 1 / len(chosen)
        index = np.arange(len(group))
        target = Target(ctx.streams[-1], index, np.zeros_like(index), weight, "document", group)
        return replace(batch, targets={"choice": target})

    def laid(self, tokens: Tokens, ctx: Context) -> tuple[Batch, np.ndarray]:
        """One document a choice, with its question's key, and int64[D]: the choices of each question. Labels are not looked at.

        What is too long is cut longest first, the choice last of all.
        """
        check(
            "choices" in tokens.parts,
            "the data has no column 'choices'",
            "declare them: `columns: {choices: a list's column}` or `{choices: [one, two, ...]}`",
        )
        a, c, pair = tokens.parts["text"], tokens.parts["choices"], tokens.parts.get("pair")
        counts = np.diff(c.mark_bounds)
        owner = np.repeat(np.arange(len(tokens)), counts)
        begin, size = c.bounds[owner] + c.marks[:, 0], c.marks[:, 1] - c.marks[:, 0]
        asked = np.zeros(len(owner), np.int64) if pair is None else np.diff(pair.bounds)[owner]
        keep_a, keep_b = longest_first(np.diff(a.bounds)[owner], asked + size, room_of(ctx, pair=True))
        size = np.minimum(size, keep_b)
        one, two = ctx.layout.segments
        slots: list[Piece | tuple[int, ...]] = [
            ctx.layout.first,
            Piece(a.ids, a.bounds[:-1][owner], keep_a, a.words),
            ctx.layout.between,
            Piece(c.ids, begin, size, c.words),
            ctx.layout.last,
        ]
        segments = [one, one, one, two, two]
        if pair is not None:
            slots.insert(3, Piece(pair.ids, pair.bounds[:-1][owner], keep_b - size, pair.words))
            segments.append(two)
        return echoed(assemble(slots, segments, tokens.keys[owner], ctx), ctx), counts

    def right(self, tokens: Tokens, counts: np.ndarray) -> list[list[int]]:
        """The numbers of each question's right choices, mostly one."""
        rows: Sequence[str] = tokens.fields.get("id", ())
        found = []
        for d, (value, count) in enumerate(zip(column_of(tokens, "label"), counts.tolist(), strict=True)):
            place = f" ({rows[d]})" if len(rows) > d else ""
            found.append(self.numbers(value, count, place))
        return found

    def numbers(self, value: Any, count: int, place: str = "") -> list[int]:
        """The numbers of the right ones of `count` choices, given the label of a row."""
        return [self._number(one, count, place) for one in (value if isinstance(value, list) else [value])]

    def _number(self, label: Any, count: int, place: str) -> int:
        known = self.labels or tuple(range(count))
        number = next((n for n, one in enumerate(known) if str(one) == str(label)), None)
        if number is None or number >= count:
            raise UserError(
                f"label {label!r}{place} is none of its {count} choices"
                + (f", which are called {list(known[:count])}" if number is None else f": it means number {number + 1}"),
                "say in `objective.labels` what the first choice is called, the second ...: [A, B, C], or [1, 2]",
            )
        return number

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return parts.class_heads(model, "choice", 1)

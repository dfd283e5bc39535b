"""Fine-tuning objectives: classify or score a text or a pair of texts, and tag its words.

Paper: BERT (Devlin et al., 2019, 3.2); for two stacks BART (Lewis et al., 2020, 3.1 and 3.2). Needs: labels. Feeds: the streams
of the model, with the same text in both stacks; targets "classify", "regress" or "tag".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from ziggurat.context import Context
from ziggurat.data.cut import marks_in, pairs, single
from ziggurat.errors import UserError, check
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective
from ziggurat.objectives.rewrite import echoed
from ziggurat.types import Batch, Tokens, text_target


def texts(tokens: Tokens, ctx: Context) -> Batch:
    """One example a document, a text or a pair of texts, in the streams of the model."""
    return echoed(pairs(tokens, ctx) if "pair" in tokens.parts else single(tokens, ctx), ctx)


def words_in(batch: Batch, ctx: Context) -> Batch:
    """Examples of the stream `text`, in the streams that a model needs to label their words: an encoder that does it needs no
    decoder. The rows of the stream `ctx.words` are those of the text."""
    if ctx.words == "encoder":
        return Batch({"encoder": batch.streams["text"]}, {}, batch.keys)
    return echoed(batch, ctx)


def column_of(tokens: Tokens, name: str) -> Sequence[Any]:
    """One value a document; raises `UserError` when the source declares none."""
    check(name in tokens.fields, f"the data has no column {name!r}", f"declare it in the source: `columns: {{{name}: ...}}`")
    return tokens.fields[name]


def _index(labels: Sequence[Any], values: Sequence[Any], where: Sequence[str] = ()) -> np.ndarray:
    """int64[D]: the number of each value in `labels`, compared as text."""
    known = {str(label): i for i, label in enumerate(labels)}
    unknown = [i for i, value in enumerate(values) if str(value) not in known]
    if unknown:
        value = str(values[unknown[0]])
        near = get_close_matches(value, known, 1)
        place = f" ({where[unknown[0]]})" if len(where) > unknown[0] else ""
        raise UserError(
            f"label {value!r}{place} is not in the label list {list(known)}" + (f"; did you mean {near[0]!r}?" if near else ""),
            f"{len(unknown)} such row(s) in this block: mend the data or add the label to `objective.labels`",
        )
    return np.array([known[str(value)] for value in values], np.int64)


def number_of(value: Any) -> float:
    """NaN for what is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


class Labelled(Objective):
    """Base of the objectives that learn from labels."""

    structures: ClassVar[tuple[str, ...]] = ("single", "encoder_decoder")
    labelled: ClassVar[bool] = True

    def rows(self, ctx: Context) -> Mapping[str, int]:
        return dict.fromkeys(ctx.streams, ctx.length)


class Labels(Labelled):
    """Base of the objectives with a closed list of labels."""

    labels: tuple[str | int, ...] = Field(min_length=2)
    """The values of the label column, in the order of the classes."""
    names: tuple[str, ...] = ()
    """What to call them in reports and in the exported model; default: the labels themselves."""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str | int, ...]) -> tuple[str | int, ...]:
        if len({str(label) for label in labels}) < len(labels):
            raise ValueError("labels repeat")
        return labels

    @model_validator(mode="after")
    def _named(self) -> Labels:
        if self.names and len(self.names) != len(self.labels):
            raise ValueError(f"{len(self.names)} names for {len(self.labels)} labels")
        if len(set(self.names)) < len(self.names):
            raise ValueError("names repeat")
        return self

    def label_names(self) -> tuple[str, ...]:
        return self.names or tuple(str(label) for label in self.labels)


class Classify(Labels):
    """One class for a text, or for a pair of texts when the source declares a `pair` column."""

    kind: Literal["classify"] = "classify"
    metric: Literal["accuracy", "macro_f1", "micro_f1", "f1", "matthews", "f1_a", "group_em"] = "accuracy"
    """The score reports quote; `f1` is that of the second label. Of rows that the source puts together by `group` (MultiRC): `f1_a`, F1 of
    the second label over all rows, and `group_em`, the share of groups without a mistake."""

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        batch = texts(tokens, ctx)
        value = _index(self.labels, column_of(tokens, "label"), tokens.fields.get("id", ()))
        target = text_target(np.arange(len(value)), value, at="document", stream=ctx.streams[-1])
        return replace(batch, targets={"classify": target})

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return parts.class_heads(model, "classify", len(self.labels))


class Regress(Labelled):
    """One number for a text or a pair of texts."""

    kind: Literal["regress"] = "regress"
    metric: Literal["pearson", "spearman", "mse"] = "pearson"
    """The score reports quote."""

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        batch = texts(tokens, ctx)
        column, rows = column_of(tokens, "label"), tokens.fields.get("id", ())
        with np.errstate(over="ignore"):
            value = np.array([number_of(v) for v in column], np.float64).astype(np.float32)
        wrong = np.flatnonzero(~np.isfinite(value))
        if len(wrong):
            place = f" ({rows[wrong[0]]})" if len(rows) else ""
            message = f"label {column[wrong[0]]!r}{place} is not a finite number"
            raise UserError(message, f"{len(wrong)} such row(s) in this block: mend the data")
        target = text_target(np.arange(len(value)), value, at="document", stream=ctx.streams[-1])
        return replace(batch, targets={"regress": target})

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return parts.class_heads(model, "regress", 1)


class Tag(Labels):
    """One label for each marked word, read off the word's first token."""

    kind: Literal["tag"] = "tag"
    metric: Literal["token_accuracy", "token_f1", "span_f1"] = "token_accuracy"
    """The score reports quote; `token_f1` is that of the second label, `span_f1` counts whole BIO spans (CoNLL)."""

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        batch = single(tokens, ctx)
        marks = marks_in(tokens, batch, ctx)
        names = tokens.parts["text"].labels
        used, seen, inverse = np.unique(marks.label, return_index=True, return_inverse=True)
        rows = tokens.fields.get("id", ())
        where = [rows[d] for d in marks.document[seen]] if len(rows) else []
        value = _index(self.labels, [names[i] for i in used], where)[inverse] if len(used) else marks.label
        return replace(words_in(batch, ctx), targets={"tag": text_target(marks.start, value, stream=ctx.words)})

    def rows(self, ctx: Context) -> Mapping[str, int]:
        return {"encoder": ctx.length} if ctx.words == "encoder" else super().rows(ctx)

    @property
    def unread(self) -> str:
        """What stands for the label of a word that was not read: that of words outside any span, or none where the labels are no spans."""
        return "O" if self.metric == "span_f1" or "O" in self.label_names() else ""

    def heads(self, model: parts.Model) -> Mapping[str, parts.Head]:
        return {"tag": parts.TokenHead(outputs=len(self.labels))}

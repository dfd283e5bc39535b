"""What may be wrong with labelled rows: labels unknown, absent, rare, torn or out of balance, texts cut, too few tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ziggurat.context import Context
from ziggurat.data.census import copies
from ziggurat.data.shards import Shards
from ziggurat.errors import UserError
from ziggurat.evaluate.scores import spans
from ziggurat.nn import spec
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Classify, Labels, Regress, Tag
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.pipeline.findings import Finding
from ziggurat.pipeline.prepare import Prepared
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train.stage import Stage

MAJORITY = 0.8
RAREST = 10
"""Training rows of a label below which its score is luck."""
TESTS = 100
"""Test rows below which a score says little."""
CUT = 0.25
"""Share of labelled texts that `length` cuts."""
ROWS = 100_000
"""Labelled rows looked at."""


class Cut(NamedTuple):
    """The rows of which a model does not read all, because the text that counts here is too long."""

    share: float
    lengths: np.ndarray
    """int64[D]: tokens of that text in each row."""
    why: str
    """What is so of them: `are longer than length 128`."""


def of_task(stage: Stage, prepared: Prepared, model: spec.Model) -> Iterator[Finding]:
    """Everything that is wrong with the rows of a finetune stage, which `model` reads."""
    (name,) = stage.data
    objective, where = stage.objective, f"source {name}"
    splits = {split: prepared.shards[name, split] for split in ("train", "test") if (name, split) in prepared.shards}
    test = splits.get("test")
    if test is not None and len(test) < TESTS:
        wide = 196 * math.sqrt(0.25 / max(len(test), 1))
        hint = f"score on {TESTS} rows or more"
        yield Finding("warning", "labels", where, f"{len(test)} test rows: a score of 50% is known to ±{wide:.0f} points", hint)
    yield from _cut(stage, name, prepared, model)
    if isinstance(objective, Regress):
        values = {str(v) for v in _labels(splits["train"], objective)}
        if len(values) == 1:
            yield Finding("error", "labels", where, f"every training row has the number {values.pop()}", "check the label column")
    if not isinstance(objective, Labels):
        return
    if isinstance(objective, Tag) and objective.metric == "span_f1":
        try:
            spans(objective.label_names())
        except UserError as error:
            yield Finding("error", "labels", where, error.message, error.hint)
    called = dict(zip(map(str, objective.labels), objective.label_names()))
    counts = {split: Counter(map(str, _labels(shards, objective))) for split, shards in splits.items()}
    unknown = {label: n for split in counts.values() for label, n in split.items() if label not in called}
    if unknown:
        text = f"rows have labels that the objective does not list: {', '.join(f'{v!r} ({n:,})' for v, n in unknown.items())}"
        yield Finding("error", "labels", where, text, "add them to `objective.labels`, or mend the rows")
    train, total = counts["train"], sum(counts["train"].values())
    if len([v for v in called if train[v]]) == 1 and total:
        only = next(v for v in called if train[v])
        yield Finding("error", "labels", where, f"all training rows have the label {called[only]}", "check the label column")
        return
    for split, rows in counts.items():
        absent = [called[v] for v in called if not rows[v]]
        if absent:
            hint = (
                "take the label out of `objective.labels`"
                if split == "train"
                else "its score cannot be known; take other test rows"
            )
            yield Finding("warning", "labels", where, f"no {split} row has the label {', '.join(absent)}", hint)
    top, most = train.most_common(1)[0] if total else ("", 0)
    plain = getattr(objective, "metric", "") in ("accuracy", "token_accuracy", "micro_f1")
    if total and most > MAJORITY * total and plain:
        better = "span_f1 or token_f1" if isinstance(objective, Tag) else "macro_f1"
        text = f"{most / total:.0%} of the {'words' if isinstance(objective, Tag) else 'rows'} are {called.get(top, top)}: always guessing it scores as much"
        yield Finding("warning", "labels", where, text, f"report another metric ({better})")
    share = (stage.examples or len(splits["train"])) / max(len(splits["train"]), 1)
    rare = {called[v]: train[v] * share for v in called if 0 < train[v] * share < RAREST}
    if rare:
        text = f"few training rows: {', '.join(f'{v} {n:.0f}' for v, n in rare.items())}"
        yield Finding("warning", "labels", where, text, "label more of them, or expect their scores to be luck")
    if isinstance(objective, Classify):
        yield from _torn(splits["train"], objective, where)


def _labels(shards: Shards, objective: Any) -> list[Any]:
    """The labels of the first rows, or of their words."""
    found: list[Any] = []
    for start in range(0, min(len(shards), ROWS), 4096):
        tokens = shards.read(np.arange(start, min(start + 4096, len(shards), ROWS)))
        if isinstance(objective, Tag):
            part = tokens.parts["text"]
            found += [part.labels[i] for i in part.marks[:, 2].tolist()]
        else:
            found += list(tokens.fields.get("label", ()))
    return found


def _torn(shards: Shards, objective: Any, where: str) -> Iterator[Finding]:
    """Rows of one text and several labels."""
    copy, original = copies(np.asarray(shards.keys))
    some = slice(0, 10_000)
    first, second = (shards.fields(which[some]).get("label", []) for which in (copy, original))
    torn = sum(str(a) != str(b) for a, b in zip(first, second))
    if torn:
        hint = "decide on one label for each text"
        yield Finding("warning", "labels", where, f"{torn:,} training rows have the text of another row and another label", hint)


def _cut(stage: Stage, name: str, prepared: Prepared, model: spec.Model) -> Iterator[Finding]:
    """Labelled texts that are longer than the stage reads."""
    objective = stage.objective
    assert objective is not None
    found = cut(objective, prepared.shards[name, "train"], prepared.tokenizer, stage.length, model)
    if found.share > CUT:
        text = f"{said_of_cut(found, 'training')} (95% of them have up to {int(np.percentile(found.lengths, 95)):,} tokens)"
        hint = "raise `length` if the end of a text matters for its label"
        if isinstance(objective, Seq2Seq):
            hint = "raise `length`" + (", or lower `target`" if _in_one_stack(model) else "")
        elif isinstance(objective, QuestionAnswering):
            hint = "raise `question` in the objective"
        else:
            text += "; TF-IDF reads them whole"
        yield Finding("warning", "length", f"{stage.title} on {name}", text, hint)


def cut(objective: Objective, shards: Shards, tokenizer: Tokenizer, length: int, model: spec.Model) -> Cut:
    """The rows that do not fit into `length`: of choices the longest counts, of rows to be written the source, and of questions about a
    context the question, as the context is gone through in windows. No row counts of another objective."""
    ctx = Context(
        tokenizer.vocab, tokenizer.layout, length, streams=("text",) if _in_one_stack(model) else ("encoder", "decoder")
    )
    why = f"are longer than length {length}"
    if isinstance(objective, Seq2Seq):
        lengths, room = shards.lengths("text"), objective.source_room(ctx)
        if ctx.structure == "single":
            why = f"are longer than {room} tokens, what length {length} leaves beside a target of {objective.target_room(ctx)},"
    elif isinstance(objective, QuestionAnswering):
        lengths, room = shards.lengths("text"), objective.question_room(ctx)
        why = f"have a question of more than {room} tokens"
    elif isinstance(objective, (Labels, Regress, MultipleChoice)):
        several = isinstance(objective, MultipleChoice)
        lengths = np.sum([shards.lengths(part) for part in shards.parts if part != "choices"], axis=0)
        lengths = lengths + (_longest_choices(shards) if several and len(shards) else 0)
        room = ctx.layout.room(length, pair=several or "pair" in shards.parts)
    else:
        lengths, room = np.zeros(len(shards), np.int64), length
    return Cut(float(np.mean(lengths > room)) if len(shards) else 0.0, lengths, why)


def said_of_cut(found: Cut, rows: str) -> str:
    """The words for it."""
    return f"{found.share:.0%} of the {rows} rows {found.why} and are cut"


def _in_one_stack(model: spec.Model) -> bool:
    return not isinstance(model, spec.EncoderDecoder)


def _longest_choices(shards: Shards) -> np.ndarray:
    """int64[D]: tokens of each row's longest choice."""
    found = []
    for start in range(0, len(shards), 4096):
        part = shards.read(np.arange(start, min(start + 4096, len(shards)))).parts["choices"]
        found.append(np.maximum.reduceat(part.marks[:, 1] - part.marks[:, 0], part.mark_bounds[:-1]))
    return np.concatenate(found)

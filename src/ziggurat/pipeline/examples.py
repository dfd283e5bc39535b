"""Labelled documents as lists of inputs and right answers: what baselines learn from, and what a metric compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ziggurat.evaluate.scores import GROUPED
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Labels, Tag
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.types import Document


def inputs_and_answers(documents: Sequence[Document], objective: Objective) -> tuple[list[Any], list[Any]]:
    """Inputs and right answers as `evaluate.baselines` takes them."""
    if isinstance(objective, QuestionAnswering):
        return [(d.texts["text"], d.texts["pair"]) for d in documents], [d.fields["answers"] for d in documents]
    if isinstance(objective, MultipleChoice):
        options = [[text.strip() for text in d.lists["choices"]] for d in documents]
        labels = [d.fields["label"] for d in documents]
        right = [objective.numbers(label, len(o)) for label, o in zip(labels, options, strict=True)]
        return [(" ".join(d.texts.values()), o) for d, o in zip(documents, options, strict=True)], right
    if isinstance(objective, Tag):
        names = dict(zip(map(str, objective.labels), objective.label_names()))
        words = [[d.texts["text"][m.start : m.end] for m in d.marks] for d in documents]
        return words, [[names[m.label] for m in d.marks] for d in documents]
    if isinstance(objective, Seq2Seq):
        return [d.texts["text"] for d in documents], [d.fields.get("references", d.texts["pair"]) for d in documents]
    texts = [(d.texts["text"], d.texts["pair"]) if "pair" in d.texts else d.texts["text"] for d in documents]
    labels = [d.fields["label"] for d in documents]
    if isinstance(objective, Labels):
        names = dict(zip(map(str, objective.labels), objective.label_names()))
        return texts, [names[str(label)] for label in labels]
    return texts, [float(label) for label in labels]


def scored(documents: Sequence[Document], objective: Objective, values: Sequence[Any]) -> list[Any]:
    """Answers to all of these documents as the objective's metric takes them: those of a group together, and of choices what they say
    where texts are compared (the right ones of a question may be several)."""
    if isinstance(objective, MultipleChoice) and objective.metric != "accuracy":
        options = [[text.strip() for text in d.lists["choices"]] for d in documents]
        return [[o[n] for n in v] if isinstance(v, list) else o[v] for o, v in zip(options, values, strict=True)]
    if getattr(objective, "metric", "") in GROUPED:
        together: dict[Any, list[Any]] = {}
        for document, value in zip(documents, values, strict=True):
            together.setdefault(document.fields["group"], []).append(value)
        return list(together.values())
    return list(values)

"""A task asked of a checkpoint as it is, without training: which label or choice would it most probably write after the prompt?

Zero-shot, or with solved training rows before each question (Brown et al., 2020). What is scored is the text of a label or choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ziggurat.evaluate.heldout import Predictions
from ziggurat.evaluate.likelihood import reads_whole, scores
from ziggurat.evaluate.prompt import Prompt
from ziggurat.objectives.base import context_of
from ziggurat.objectives.labelled import Classify
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.pipeline.examples import scored
from ziggurat.pipeline.suite_question import Question
from ziggurat.train.loop import precision_of
from ziggurat.types import Document

SHOTS, WHOLE = "shots", "whole"
"""What predictions call the examples that stood before a question, and whether the model read the prompt from its beginning."""


def choose(question: Question, seed: int, shots: int) -> Predictions:
    """The checkpoint's choice for each test row, of a classification by the label's name. The seed draws the `shots`; of
    those that the model cannot read the first are left out, and `more` says how many stayed."""
    objective, opened, task = question.objective, question.opened, question.task
    assert opened.tokenizer is not None and isinstance(objective, (Classify, MultipleChoice))
    rows = question.documents("test")
    solved = [(dict(d.texts), _right(d, objective)) for d in question.documents("train")] if shots else []
    template = task.prompt or ("{text}\n{pair}" if "pair" in rows[0].texts else "{text}")
    joiner = task.likelihood.joiner
    choices = [_choices(d, objective) for d in rows]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = opened.build().to(device)
    ctx = context_of(network.spec.model, opened.tokenizer, question.longest, seed)
    dtype = precision_of(question.stage.precision, device)
    whole = reads_whole(network, question.before, opened.tokenizer, ctx, task.likelihood)
    few = Prompt(template=template, shots=shots, seed=seed)
    asked = few.fitting([dict(d.texts) for d in rows], solved, lambda n, prompt: whole(prompt, choices[n]), joiner)
    prompts = [prompt for prompt, _ in asked]
    more: dict[str, list[Any]] = {
        SHOTS: [examples for _, examples in asked],
        WHOLE: [examples > 0 or whole(prompt, some) for (prompt, examples), some in zip(asked, choices, strict=True)],
    }
    found = scores(network, question.before, opened.tokenizer, ctx, prompts, choices, task.likelihood, dtype)
    best = [int(np.argmax(row)) for row in found]
    if isinstance(objective, Classify):
        gold, answers = [_right(d, objective) for d in rows], [objective.label_names()[n] for n in best]
        return Predictions(scored(rows, objective, gold), scored(rows, objective, answers), more)
    right = [objective.numbers(d.fields["label"], len(c)) for d, c in zip(rows, choices, strict=True)]
    if objective.metric != "accuracy":
        texts: list[Any] = [[c[n] for n in numbers] for c, numbers in zip(choices, right, strict=True)]
        return Predictions(texts, [c[n] for c, n in zip(choices, best, strict=True)], more)
    one = all(len(numbers) == 1 for numbers in right)
    return Predictions([n for (n,) in right] if one else list(right), best, more)


def _choices(document: Document, objective: Classify | MultipleChoice) -> list[str]:
    return list(objective.label_names()) if isinstance(objective, Classify) else [t.strip() for t in document.lists["choices"]]


def _right(document: Document, objective: Classify | MultipleChoice) -> str:
    """The text of the right label or choice; of several the first."""
    if isinstance(objective, Classify):
        return dict(zip(map(str, objective.labels), objective.label_names()))[str(document.fields["label"])]
    options = _choices(document, objective)
    return options[objective.numbers(document.fields["label"], len(options))[0]]

"""What a reader of a suite's scores must know of its rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ziggurat.pipeline.labels import cut, said_of_cut
from ziggurat.pipeline.suite_likelihood import SHOTS, WHOLE
from ziggurat.pipeline.suite_question import SOURCE, Question
from ziggurat.pipeline.suite_results import Answers

CUT = 0.01
"""Share of test rows that `length` cuts above which the reader is told."""


def cut_rows(questions: Mapping[str, Question | str]) -> list[str]:
    """That test rows are cut: once where it is the same for all checkpoints, and else for each, as their tokenizers differ."""
    return _by_checkpoint({label: _cut(one) for label, one in questions.items() if isinstance(one, Question)})


def lost_rows(questions: Mapping[str, Question | str]) -> list[str]:
    """That rows could not be test rows, as a text of theirs is empty, they cannot be read, or a tokenizer drops all that they hold."""
    found = {label: one.lost[1] for label, one in questions.items() if isinstance(one, Question)}
    return _by_checkpoint({label: said and f"{said}; the scores are of the others" for label, said in found.items()})


def cut_prompts(asked: int, answers: Mapping[str, Mapping[int, Answers]]) -> list[str]:
    """That prompts had no room for all the examples `asked` for, or were too long without any, by checkpoint."""
    said = []
    for label, runs in answers.items():
        had, whole = (np.array([n for run in runs.values() for n in run.more.get(name, ())]) for name in (SHOTS, WHOLE))
        if np.any(had < asked):
            share, mean = np.mean(had < asked), np.mean(had)
            said.append(f"{label}: {share:.0%} of the prompts had no room for {asked} examples; they held {mean:.1f} on average.")
        if not np.all(whole):
            said.append(
                f"{label}: {1 - np.mean(whole):.0%} of the questions are longer than the model reads, and lost their beginning."
            )
    return said


def _by_checkpoint(texts: Mapping[str, str]) -> list[str]:
    """Sentences about checkpoints, empty for none: one where they are alike."""
    said = {f"{text}." for text in texts.values()}
    if len(said) == 1:
        return sorted(said - {"."})
    return [f"{label}: {text}." for label, text in texts.items() if text]


def _cut(question: Question) -> str:
    """Nothing where the model is asked by likelihood: what it reads then is a prompt, of which `cut_prompts` speaks."""
    tokenizer = question.opened.tokenizer
    if question.shots is not None or tokenizer is None:
        return ""
    test, model = question.prepared.shards[SOURCE, "test"], question.opened.network.model
    found = cut(question.trained, test, tokenizer, question.stage.length, model)
    return said_of_cut(found, "test") if found.share > CUT else ""

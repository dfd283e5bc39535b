"""How many tokens a stage's network reads outside of its training steps, counted from finished shards: evaluation, answers, probes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ziggurat.context import Layout
from ziggurat.data.shards import Shards
from ziggurat.data.subset import Subset
from ziggurat.nn.spec import Model
from ziggurat.objectives.base import context_of
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.pipeline import context_use, probes
from ziggurat.pipeline.interpolation import shares
from ziggurat.pipeline.run import Run
from ziggurat.pipeline.scoring import LONG, leading
from ziggurat.train.stage import Stage, candidates
from ziggurat.train.tasks import single

FISHER = "Fisher information"
"""What is read backwards, too."""
ROWS = 1024
"""Laid out together."""


def passes(run: Run, stage: Stage, steps: int, model: Model) -> dict[str, int]:
    """Tokens by what they are read for, special ones and those read again too. Texts that are written are not in it."""
    looks = 1 + ((steps - 1) // stage.evaluate.every if stage.evaluate.every else 0)
    looks += stage.stage != "finetune" and stage.init != "scratch"  # what it began with
    looks += len(shares(stage.interpolate)) if stage.interpolate is not None else 0
    init = candidates(stage.init)[-1]
    own, before = run.read.get(stage.title, run.prepared), run.read.get(init, run.prepared)
    found = {"held-out losses": looks * _look(run, stage, own.shards, model)}
    if stage.vocabulary is not None:
        found["held-out losses with the old vocabulary"] = _look(run, stage, before.shards, model)
    if stage.stage == "finetune":
        found |= _answers(run, stage, own.shards, model)
    elif stage.evaluate.context:
        found["use of context"] = sum(_context(run, stage, own.shards, model))
    if stage.forgetting is not None and stage.forgetting.tasks and init != "scratch":
        rows = sum(
            live(run.prepared.tokenizer.layout, probes.rows_of(one.shards, name, run.recipe.seed), stage.length, cut=True)
            for one in (before, own)
            for name in stage.forgetting.tasks
        )
        found["probes of general tasks"] = rows
    if stage.weighed:
        assert stage.anchor is not None
        each = stage.anchor.tokens // len(stage.weighed)
        read = (live(run.prepared.tokenizer.layout, own.shards[name, "train"], stage.length) for name in stage.weighed)
        found[FISHER] = sum(min(each, tokens) for tokens in read)
    return {what: int(tokens) for what, tokens in found.items() if tokens}


def live(layout: Layout, shards: Shards | Subset, length: int, *, cut: bool = False) -> int:
    """Tokens of documents in examples of at most `length`, special ones too; what is longer is `cut`, or goes into several."""
    lengths = np.sum([shards.lengths(part) for part in shards.parts], axis=0)
    special = len(layout.first) + len(layout.last)
    if cut:
        return int(np.minimum(lengths + special, length).sum())
    room = max(length - special, 1)
    return int((lengths + special * -(-lengths // room)).sum())


def _look(run: Run, stage: Stage, shards: dict[tuple[str, str], Shards], model: Model) -> int:
    """Of one evaluation of the held-out losses."""
    tuned = stage.stage == "finetune"
    total = 0
    for name in stage.data if tuned else dict.fromkeys(n for s in run.recipe.stages for n in (*s.reads, *s.measures)):
        split = "valid" if (name, "valid") in shards or tuned else "test"
        if (name, split) in shards:
            some = leading(shards[name, split], stage.evaluate.tokens)
            read = _labelled(run, stage, name, some, model) if tuned else live(run.prepared.tokenizer.layout, some, stage.length)
            total += min(read, LONG * stage.evaluate.tokens)
    return total


def _answers(run: Run, stage: Stage, shards: dict[tuple[str, str], Shards], model: Model) -> dict[str, int]:
    """Of the answers to the test rows, and to those that a threshold is tuned on."""
    found = {"answers": 0, "rows a threshold is tuned on": 0}
    for name, one in single(stage).items():
        objective = one.objective
        if not isinstance(objective, Seq2Seq):
            found["answers"] += _labelled(run, stage, name, shards[name, "test"], model)
        if isinstance(objective, QuestionAnswering) and objective.no_answer and objective.threshold == "tuned":
            found["rows a threshold is tuned on"] += (
                _labelled(run, stage, name, shards[name, "valid"], model) if (name, "valid") in shards else 0
            )
    return found


def _labelled(run: Run, stage: Stage, name: str, shards: Shards | Subset, model: Model) -> int:
    """Of labelled rows: a long context is read in several windows, and a question once with each choice."""
    objective, tokenizer = single(stage)[name].objective, run.prepared.tokenizer
    if not isinstance(objective, QuestionAnswering | MultipleChoice):
        return live(tokenizer.layout, shards, stage.length, cut=True)
    ctx = context_of(model, tokenizer, stage.length, run.recipe.seed)
    total = 0
    for at in range(0, len(shards), ROWS):
        tokens = shards.read(np.arange(at, min(at + ROWS, len(shards))))
        laid = (
            objective.windows(tokens, ctx).batch if isinstance(objective, QuestionAnswering) else objective.laid(tokens, ctx)[0]
        )
        total += laid.live_tokens()
    return total


def _context(run: Run, stage: Stage, shards: dict[tuple[str, str], Shards], model: Model) -> Iterator[int]:
    """Of the long documents of each source: once at every length, and once more by position."""
    lengths = context_use.lengths(run.recipe)
    longest = min(lengths[-1], model.embed.positions.length)
    layout = run.prepared.tokenizer.layout
    for name in stage.data:
        some = context_use.documents(shards.get((name, "valid")), longest, stage.evaluate.tokens)
        if some is not None:
            yield from (live(layout, some, length) for length in (*(n for n in lengths if n <= longest), longest))

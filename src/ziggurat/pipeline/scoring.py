"""What a network says about the held-out text and the test rows of a recipe's sources."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat.data.loader import once
from ziggurat.data.shards import Shards
from ziggurat.data.shares import Split
from ziggurat.data.sources import documents
from ziggurat.data.subset import Subset
from ziggurat.data.writing import with_tokens
from ziggurat.errors import Starved, check
from ziggurat.evaluate.answer_scores import answer_metric, best_threshold
from ziggurat.evaluate.answers import choices, spans
from ziggurat.evaluate.heldout import Predictions, first, held_out, main_loss, per_byte, predict
from ziggurat.evaluate.scores import GROUPED
from ziggurat.evaluate.written import write
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.spec import Model
from ziggurat.nn.tasks import view
from ziggurat.objectives.base import Objective, context_of
from ziggurat.objectives.labelled import Tag, column_of
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.objectives.tasks import Tasks
from ziggurat.pipeline.examples import inputs_and_answers
from ziggurat.pipeline.prepare import content
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.train.tasks import single
from ziggurat.types import Batch

log = logging.getLogger(__name__)

TOKENS = 2048
"""Tokens of one batch, or one row if that is longer."""
BYTES = 4
"""Of text that count as one held-out token: which documents are read does not hang on the tokenizer."""
LONG = 4
"""Times the wished tokens that are read at most, where single documents are so long."""


def leading(shards: Shards, tokens: int) -> Subset:
    """The first documents, as many as hold `tokens` times `BYTES` bytes."""
    count = int(np.searchsorted(np.cumsum(shards.bytes, dtype=np.int64), tokens * BYTES)) + 1
    return Subset(shards, np.arange(min(count, len(shards))))


@dataclass(frozen=True)
class Scorer:
    """The texts that nothing is trained on, as one tokenizer cuts them."""

    recipe: Recipe
    shards: dict[tuple[str, str], Shards]
    """By (source, split)."""
    tokenizer: Tokenizer
    run: Path
    """The run folder, where tables of objectives may be."""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Those that were read so far, by the objective in full."""

    def asked_with(self, model: Model, heads: Container[str], own: Objective, stage: Stage) -> tuple[Objective, int]:
        """The objective and the memory that a stage's held-out losses are measured with: those of the recipe's first text stage, the same
        after every stage, so that they can be compared; the stage's own where the network cannot be asked that, or is trained for
        another question (causal LM first, then masked LM)."""
        first = next((s for s in self.recipe.stages if s.stage != "finetune"), None)
        if first is None or first.objective is None or stage.stage == "finetune":
            return own, stage.memory
        general = first.objective
        if general.misfits(model) or any(name not in heads for name in general.heads(model)):
            return own, stage.memory
        if own != general:
            asked, learnt = (self._questions(one, model, stage.length) for one in (general, own))
            if learnt and main_loss(asked) not in learnt:
                return own, stage.memory
        return general, first.memory

    def _questions(self, objective: Objective, model: Model, length: int) -> dict[str, float]:
        """What an objective asks of held-out text, as the names of its losses: by the first documents that it asks anything of."""
        for shards in (one for (_, split), one in self.shards.items() if split != "train"):
            try:
                for batch in islice(self.batches(leading(shards, TOKENS), objective, length, model), 1):
                    if batch.targets:
                        return dict.fromkeys(batch.targets, 0.0)
            except Starved:
                continue
        return {}

    def losses(self, network: NetworkModel, own: Objective, stage: Stage, dtype: torch.dtype) -> dict[str, dict[str, float]]:
        """Source -> its numbers. After a text stage: language-model losses on the valid split of every source, on the test
        texts where there is none. After a fine-tuning: each task's own loss on its valid split, if it has one."""
        if isinstance(own, Tasks):
            found: dict[str, dict[str, float]] = {}
            for name, one in single(stage).items():
                found |= self.losses(view(network, name), own.parts[name], one, dtype)
            return found
        model = network.spec.model
        objective, memory = self.asked_with(model, network.spec.heads, own, stage)
        memory = 0 if objective.forgets(model, memory) else memory
        found = {}
        for name, shards in self.texts(stage).items():
            some = leading(shards, stage.evaluate.tokens)
            batches = first(self.batches(some, objective, stage.length, model, memory), LONG * stage.evaluate.tokens)
            numbers = held_out(network, objective, batches, dtype, memory)
            if numbers:
                found[name] = numbers | per_byte(network, objective, numbers, some.tokens, float(some.bytes.sum()))
        return found

    def texts(self, stage: Stage) -> dict[str, Shards]:
        """Source -> its text that `losses` reads."""
        supervised = stage.stage == "finetune"
        names = dict.fromkeys(n for s in self.recipe.stages for n in (*s.reads, *s.measures))
        splits = {
            n: "valid" if (n, "valid") in self.shards or supervised else "test" for n in (stage.data if supervised else names)
        }
        return {name: self.shards[name, split] for name, split in splits.items() if (name, split) in self.shards}

    def measured(self, stage: Stage) -> dict[str, str]:
        """Source -> what identifies its text that `losses` reads."""
        return {name: content(shards) for name, shards in self.texts(stage).items()}

    def answers(
        self, network: NetworkModel, objective: Objective, stage: Stage, dtype: torch.dtype, split: Split = "test"
    ) -> Predictions:
        """The network's answers on a split's rows of the stage's one task (`tasks.single`, and `nn.tasks.view` of the network)."""
        (name,) = stage.data
        if isinstance(objective, Seq2Seq):
            return self._written(network, objective, name, split, stage.length, dtype)
        if isinstance(objective, QuestionAnswering):
            return self._answered(network, objective, name, split, stage.length, dtype)
        if isinstance(objective, MultipleChoice):
            return self._chosen(network, objective, name, split, stage.length, dtype)
        groups, shards = None, self.shards[name, split]
        order = shards.keys.tolist()
        if getattr(objective, "metric", "") in GROUPED:
            groups = dict(zip(order, column_of(shards.read(np.arange(len(shards))), "group"), strict=True))
        batches = self.batches(shards, objective, stage.length, network.spec.model)
        found = predict(network, objective, batches, dtype, groups, order)
        return self._of_all_words(objective, name, split, found) if isinstance(objective, Tag) else found

    def _of_all_words(self, objective: Tag, name: str, split: Split, found: Predictions) -> Predictions:
        """`found` with an answer for every word, `Tag.unread` for one that does not fit into `length` or that the tokenizer drops: whoever
        scores the texts counts them, too, and so do the baselines."""
        rows = {d.id: d for d in documents(self.recipe.sources[name], split)}
        asked = [rows[i] for i in self.shards[name, split].ids(np.arange(len(found.predicted)))]
        _, gold = inputs_and_answers(asked, objective)
        given = []
        for document, said in zip(asked, found.predicted, strict=True):
            each = iter(said)
            read = with_tokens(document, self.tokenizer)
            given.append([next(each, objective.unread) if one else objective.unread for one in read])
        return Predictions(gold, given)

    def _answered(
        self, network: NetworkModel, objective: QuestionAnswering, name: str, split: Split, length: int, dtype: torch.dtype
    ) -> Predictions:
        """Answers to a split's questions, as they stand in the source's contexts."""
        threshold = objective.threshold
        if objective.no_answer and threshold == "tuned":
            check(
                (name, "valid") in self.shards,
                f"`threshold: tuned` needs rows to tune it on, and source {name!r} has no `valid` ones",
                "give the source `valid: file` or `valid: 0.1`, or the objective a number",
            )
            gold, said, margins = self._spans(network, objective, name, "valid", length, dtype)
            threshold, best = best_threshold(gold, said, margins, answer_metric(objective.metric))
            log.info(
                "%s: the threshold of no answer is %.3f; with it %s on the valid rows is %.4f",
                name,
                threshold,
                objective.metric,
                best,
            )
        gold, said, margins = self._spans(network, objective, name, split, length, dtype)
        assert not isinstance(threshold, str)
        silent = [objective.no_answer and margin > threshold for margin in margins]
        given = ["" if none else text for none, text in zip(silent, said, strict=True)]
        if not objective.no_answer:
            return Predictions(gold, given)
        return Predictions(gold, given, {"span": said, "margin": margins}, threshold)

    def _spans(
        self,
        network: NetworkModel,
        objective: QuestionAnswering,
        name: str,
        split: Split,
        length: int,
        dtype: torch.dtype,
    ) -> tuple[list[Any], list[str], list[float]]:
        """Right answers, the best span's text, and the margin of no answer, for each row of a split."""
        shards = self.shards[name, split]
        context = {d.id: d.texts["pair"] for d in documents(self.recipe.sources[name], split)}
        tokens = shards.read(np.arange(len(shards)))
        ctx = context_of(network.spec.model, self.tokenizer, length, self.recipe.seed)
        texts = [context[i] for i in shards.ids(np.arange(len(shards)))]
        encoded = self.tokenizer.encode(texts)
        found = spans(network, objective, tokens, ctx, dtype)
        said = [span.text(text, e.offsets) for span, text, e in zip(found, texts, encoded, strict=True)]
        return list(column_of(tokens, "answers")), said, [span.margin for span in found]

    def _chosen(
        self, network: NetworkModel, objective: MultipleChoice, name: str, split: Split, length: int, dtype: torch.dtype
    ) -> Predictions:
        """The choices taken: their numbers, or for a metric of texts what they say."""
        shards = self.shards[name, split]
        every = np.arange(len(shards))
        tokens = shards.read(every)
        ctx = context_of(network.spec.model, self.tokenizer, length, self.recipe.seed)
        scores = choices(network, objective, tokens, ctx, dtype)
        right = objective.right(tokens, np.array([len(row) for row in scores]))
        best = [int(np.argmax(row)) for row in scores]
        if objective.metric != "accuracy":
            texts = {d.id: d.lists["choices"] for d in documents(self.recipe.sources[name], split)}
            rows = [[text.strip() for text in texts[i]] for i in shards.ids(every)]
            gold = [[row[n] for n in numbers] for row, numbers in zip(rows, right, strict=True)]
            return Predictions(gold, [row[n] for row, n in zip(rows, best, strict=True)], {"scores": scores})
        one = all(len(numbers) == 1 for numbers in right)
        return Predictions([n for (n,) in right] if one else right, best, {"scores": scores})

    def _written(
        self, network: NetworkModel, objective: Seq2Seq, name: str, split: Split, length: int, dtype: torch.dtype
    ) -> Predictions:
        """The texts that it writes, beside those of the source as they were before any tokenizer."""
        shards = self.shards[name, split]
        gold = {d.id: d.fields.get("references", d.texts["pair"]) for d in documents(self.recipe.sources[name], split)}
        every = np.arange(len(shards))
        ctx = context_of(network.spec.model, self.tokenizer, length, self.recipe.seed)
        predicted = write(network, objective, shards.read(every), self.tokenizer, ctx, dtype=dtype)
        return Predictions([gold[i] for i in shards.ids(every)], predicted)

    def batches(
        self, shards: Shards | Subset, objective: Objective, length: int, model: Model, memory: int = 0
    ) -> Iterator[Batch]:
        """Packed batches of these documents, each once, as the objective asks of them."""
        key = objective.model_dump_json()
        if key not in self.tables:
            self.tables[key] = objective.tables(self.tokenizer, self.run)
        ctx = context_of(model, self.tokenizer, length, self.recipe.seed, self.tables[key])
        row = objective.rows(ctx)
        tokens = max(TOKENS, sum(row.values()))
        return once(shards, objective, ctx, row=row, tokens=tokens, contiguous=int(memory > 0))

"""What a network says about the held-out text and the test rows of a recipe's sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ziggurat.data.loader import once
from ziggurat.data.shards import Shards
from ziggurat.data.sources import documents
from ziggurat.data.subset import Subset
from ziggurat.evaluate.heldout import Predictions, bits_per_byte, first, held_out, predict
from ziggurat.evaluate.written import write
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective, context_of
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.types import Batch

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

    @property
    def objective(self) -> Objective | None:
        """What held-out losses are measured with: the same after every stage, so that they can be compared."""
        return next((s.objective for s in self.recipe.stages if s.stage != "finetune"), None)

    def losses(self, network: NetworkModel, own: Objective, stage: Stage, dtype: torch.dtype) -> dict[str, dict[str, float]]:
        """Source -> its numbers. After a text stage: language-model losses on the valid split of every source, on the test
        texts where there is none. After a fine-tuning: the task's own loss on its valid split, if it has one."""
        supervised = stage.stage == "finetune"
        objective = own if supervised else self.objective or own
        model = network.spec.model
        if objective.misfits(model) or any(name not in network.heads for name in objective.heads(model)):
            objective = own
        found = {}
        for name in stage.data if supervised else dict.fromkeys(n for s in self.recipe.stages for n in s.data):
            split = "valid" if (name, "valid") in self.shards or supervised else "test"
            if (name, split) in self.shards:
                found[name] = self._loss(
                    leading(self.shards[name, split], stage.evaluate.tokens), network, objective, stage, dtype
                )
        return found

    def _loss(
        self, shards: Subset, network: NetworkModel, objective: Objective, stage: Stage, dtype: torch.dtype
    ) -> dict[str, float]:
        batches = self._batches(shards, objective, stage.length, network)
        numbers = held_out(network, objective, first(batches, LONG * stage.evaluate.tokens), dtype)
        return numbers | bits_per_byte(network, objective, numbers, shards.tokens, float(shards.bytes.sum()))

    def answers(self, network: NetworkModel, objective: Objective, stage: Stage, dtype: torch.dtype) -> Predictions:
        """The network's answers on the task's test rows."""
        (name,) = stage.data
        if isinstance(objective, Seq2Seq):
            return self._written(network, objective, name, stage.length, dtype)
        return predict(network, objective, self._batches(self.shards[name, "test"], objective, stage.length, network), dtype)

    def _written(self, network: NetworkModel, objective: Seq2Seq, name: str, length: int, dtype: torch.dtype) -> Predictions:
        """The texts that it writes, beside those of the source as they were before any tokenizer."""
        shards = self.shards[name, "test"]
        gold = {d.id: d.texts["pair"] for d in documents(self.recipe.sources[name], "test")}
        every = np.arange(len(shards))
        ctx = context_of(network.spec.model, self.tokenizer, length, self.recipe.seed)
        predicted = write(network, objective, shards.read(every), self.tokenizer, ctx, dtype=dtype)
        return Predictions([gold[i] for i in shards.ids(every)], predicted)

    def _batches(self, shards: Shards | Subset, objective: Objective, length: int, network: NetworkModel) -> Iterator[Batch]:
        tables = objective.tables(self.tokenizer)
        ctx = context_of(network.spec.model, self.tokenizer, length, self.recipe.seed, tables)
        row = objective.rows(ctx)
        return once(shards, objective, ctx, row=row, tokens=max(TOKENS, sum(row.values())))

"""What a network says about the held-out text and the test rows of a recipe's sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat.data.loader import once
from ziggurat.data.shards import Shards
from ziggurat.data.sources import documents
from ziggurat.evaluate.heldout import Predictions, first, held_out, predict
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

    @property
    def measure(self) -> tuple[Objective | None, int]:
        """The objective and the memory that held-out losses are measured with: the same after every stage, so that they can be compared."""
        return next(((s.objective, s.memory) for s in self.recipe.stages if s.stage != "finetune"), (None, 0))

    def losses(self, network: NetworkModel, own: Objective, stage: Stage, dtype: torch.dtype) -> dict[str, dict[str, float]]:
        """Source -> its numbers. After a text stage: language-model losses on the valid split of every source, on the test
        texts where there is none. After a fine-tuning: the task's own loss on its valid split, if it has one."""
        supervised = stage.stage == "finetune"
        general, memory = self.measure
        objective = general or own
        model = network.spec.model
        if supervised or objective.misfits(model) or any(name not in network.heads for name in objective.heads(model)):
            objective, memory = own, stage.memory
        memory = 0 if objective.forgets(model, memory) else memory
        found = {}
        for name in stage.data if supervised else dict.fromkeys(n for s in self.recipe.stages for n in s.data):
            split = "valid" if (name, "valid") in self.shards or supervised else "test"
            if (name, split) in self.shards:
                batches = self._batches(name, split, objective, stage.length, network, memory)
                found[name] = held_out(network, objective, first(batches, stage.evaluate.tokens), dtype, memory)
        return found

    def answers(self, network: NetworkModel, objective: Objective, stage: Stage, dtype: torch.dtype) -> Predictions:
        """The network's answers on the task's test rows."""
        (name,) = stage.data
        if isinstance(objective, Seq2Seq):
            return self._written(network, objective, name, stage.length, dtype)
        return predict(network, objective, self._batches(name, "test", objective, stage.length, network), dtype)

    def _written(self, network: NetworkModel, objective: Seq2Seq, name: str, length: int, dtype: torch.dtype) -> Predictions:
        """The texts that it writes, beside those of the source as they were before any tokenizer."""
        shards = self.shards[name, "test"]
        gold = {d.id: d.fields.get("references", d.texts["pair"]) for d in documents(self.recipe.sources[name], "test")}
        every = np.arange(len(shards))
        ctx = context_of(network.spec.model, self.tokenizer, length, self.recipe.seed)
        predicted = write(network, objective, shards.read(every), self.tokenizer, ctx, dtype=dtype)
        return Predictions([gold[i] for i in shards.ids(every)], predicted)

    def _batches(
        self, name: str, split: str, objective: Objective, length: int, network: NetworkModel, memory: int = 0
    ) -> Iterator[Batch]:
        key = objective.model_dump_json()
        if key not in self.tables:
            self.tables[key] = objective.tables(self.tokenizer, self.run)
        ctx = context_of(network.spec.model, self.tokenizer, length, self.recipe.seed, self.tables[key])
        row = objective.rows(ctx)
        tokens = max(TOKENS, sum(row.values()))
        return once(self.shards[name, split], objective, ctx, row=row, tokens=tokens, contiguous=int(memory > 0))

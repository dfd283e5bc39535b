"""What a stage begins with: a model, and the weights it brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ziggurat.nn import growth, halves
from ziggurat.nn import spec as parts
from ziggurat.objectives.base import Objective


@dataclass(frozen=True)
class Start:
    """What a stage begins with."""

    model: parts.Model
    heads: Mapping[str, parts.Head] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    load: Callable[[], Mapping[str, Tensor]] = dict
    """Its weights by parameter name, read when they are needed; none from scratch."""
    left: str = ""
    """What of its model stays behind."""

    def for_objective(self, objective: Objective) -> Start:
        """What the objective trains of it: of a generator and a discriminator the latter alone, unless it is made for both."""
        model = objective.part_of(self.model)
        if model is self.model:
            return self
        whole, load = parts.Network(model=self.model, heads=dict(self.heads)), self.load
        heads = halves.discriminator(whole, {}).network.heads
        return replace(
            self, model=model, heads=heads, load=lambda: halves.discriminator(whole, load()).tensors, left="the generator"
        )

    def grown(self, rows: Mapping[int, Sequence[int]], size: int) -> Start:
        """With `size` tokens, the new ones beginning as the mean of their pieces (`rows`: id -> old ids)."""
        whole, load = parts.Network(model=self.model, heads=dict(self.heads)), self.load
        model = growth.with_vocabulary(self.model, max(size, self.model.vocab))
        return replace(self, model=model, load=lambda: growth.grown(whole, load(), rows, size)[1])

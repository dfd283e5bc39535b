"""Several objectives on one forward pass.

Paper: BERT (Devlin et al., 2019, 3.1) sums masked LM and next sentence. Needs and feeds what its parts do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ziggurat.context import Context
from ziggurat.nn.spec import Head, Model
from ziggurat.objectives.base import Lack, Objective, Supply
from ziggurat.objectives.boundary import SpanBoundary
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.order import SentenceStructure, WordOrder
from ziggurat.objectives.pairs import NextSentence, SentenceOrder
from ziggurat.objectives.similar import MaskedAsCorrection
from ziggurat.types import Batch, Tokens

if TYPE_CHECKING:
    from ziggurat.text.tokenizer import Tokenizer
    from ziggurat.text.vectors import Vectors

Part = Annotated[
    MaskedAsCorrection | SpanBoundary | Masked | NextSentence | SentenceOrder | SentenceStructure | WordOrder,
    Field(discriminator="kind"),
]
"""`clm` is none: after `mlm` it would have to predict the mask tokens, and it needs another visibility."""


class Joint(Objective):
    """The parts' corruptions one after the other, their losses summed. At most one part says how examples are formed."""

    kind: Literal["joint"] = "joint"
    parts: tuple[Part, ...] = Field(min_length=2)
    """The objectives, each as it would be written alone."""
    weights: dict[str, float] = {}
    """Weight of a part's mean loss, by its kind; default 1."""

    @model_validator(mode="after")
    def _one_form(self) -> Joint:
        formers = [p.kind for p in self.parts if type(p).form is not Objective.form]
        if len(formers) > 1:
            raise ValueError(f"{' and '.join(formers)} both decide how examples are formed; only one part may")
        kinds = [p.kind for p in self.parts]
        if len(set(kinds)) < len(kinds):
            raise ValueError("two parts of one kind")
        if {"mlm", "mac"} <= set(kinds):
            raise ValueError("mlm and mac both hide words; take one of them")
        if "sbo" in kinds and not {"mlm", "mac"}.isdisjoint(kinds[kinds.index("sbo") :]):
            raise ValueError("sbo asks about what is hidden before it: write it after mlm")
        unknown = set(self.weights) - set(kinds)
        if unknown:
            raise ValueError(f"weights for {sorted(unknown)}, which is no part; parts are {kinds}")
        return self

    @property
    def vectors(self) -> tuple[Vectors, ...]:
        return tuple(dict.fromkeys(each for part in self.parts for each in part.vectors))

    def tables(self, tokenizer: Tokenizer, run: Path | None = None) -> dict[str, Any]:
        return {name: table for part in self.parts for name, table in part.tables(tokenizer, run).items()}

    def needs(self, ctx: Context) -> None:
        for part in self.parts:
            part.needs(ctx)

    def starved(self, supply: Supply) -> list[Lack]:
        return [lack for part in self.parts for lack in part.starved(supply)]

    @property
    def marked(self) -> bool:
        return any(part.marked for part in self.parts)

    def grouped(self, tokens: Tokens) -> Tokens:
        return reduce(lambda t, part: part.grouped(t), self.parts, tokens)

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        former = next((p for p in self.parts if type(p).form is not Objective.form), self.parts[0])
        return former.form(tokens, ctx)

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        return reduce(lambda b, part: part.corrupt(b, ctx), self.parts, batch)

    def misfits(self, model: Model) -> list[str]:
        return list(dict.fromkeys(why for part in self.parts for why in part.misfits(model)))

    def heads(self, model: Model) -> Mapping[str, Head]:
        return {name: head for part in self.parts for name, head in part.heads(model).items()}

    def head_of(self, target: str) -> str:
        return next((p.head_of(target) for p in self.parts if p.kind == target), target)

    def weight_of(self, target: str) -> float:
        return self.weights.get(target, 1.0)

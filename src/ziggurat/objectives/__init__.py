"""The objectives: a typed union, written by hand. Adding one is a file and a line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ziggurat.objectives.base import Objective
from ziggurat.objectives.causal import Causal
from ziggurat.objectives.joint import Joint
from ziggurat.objectives.labelled import Classify, Regress, Tag
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.pairs import NextSentence, SentenceOrder

AnyObjective = Annotated[
    Masked | Causal | NextSentence | SentenceOrder | Joint | Classify | Regress | Tag, Field(discriminator="kind")
]

OBJECTIVES: dict[str, type[Objective]] = {
    "mlm": Masked,
    "clm": Causal,
    "nsp": NextSentence,
    "sop": SentenceOrder,
    "joint": Joint,
    "classify": Classify,
    "regress": Regress,
    "tag": Tag,
}

__all__ = ["OBJECTIVES", "AnyObjective", "Objective"]

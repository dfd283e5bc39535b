"""The objectives: a typed union, written by hand. Adding one is a file and a line here.

One that lives outside the package is named by its import path instead: `kind: "my_lab.ideas:Shuffled"`.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import Field, SerializeAsAny, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails

from ziggurat.named import load_named
from ziggurat.objectives.base import Objective
from ziggurat.objectives.causal import Causal
from ziggurat.objectives.joint import Joint
from ziggurat.objectives.labelled import Classify, Regress, Tag
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.pairs import NextSentence, SentenceOrder


def _outside(value: Any, ours: ValidatorFunctionWrapHandler) -> Any:
    """An objective of another package, when `kind` is an import path; otherwise one of ours."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if not isinstance(kind, str) or ":" not in kind:
        return ours(value)
    found = load_named(kind)
    if not isinstance(found, type) or not issubclass(found, Objective):
        raise ValueError(f"'{kind}' is not an Objective: derive the class from ziggurat.objectives.Objective")
    try:
        return found.model_validate(value)
    except ValidationError as e:  # places carry the kind, as those of a tagged union do
        errors = [{**error, "loc": (kind, *error["loc"])} for error in e.errors(include_url=False)]
        raise ValidationError.from_exception_data(found.__name__, cast(list[InitErrorDetails], errors)) from None


AnyObjective = Annotated[
    Masked | Causal | NextSentence | SentenceOrder | Joint | Classify | Regress | Tag,
    Field(discriminator="kind"),
    WrapValidator(_outside),
    SerializeAsAny(),
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

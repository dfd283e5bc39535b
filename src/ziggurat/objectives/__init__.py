"""The objectives: a typed union, written by hand. Adding one is a file and a line here.

One that lives outside the package is named by its import path instead: `kind: "my_lab.ideas:Shuffled"`.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import Field, SerializeAsAny, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails

from ziggurat.named import load_named
from ziggurat.objectives.base import Objective
from ziggurat.objectives.boundary import SpanBoundary
from ziggurat.objectives.causal import Causal
from ziggurat.objectives.denoise import SpanCorruption
from ziggurat.objectives.flows import InfillingGeneration
from ziggurat.objectives.fragment import Fragment, MaskedFragment
from ziggurat.objectives.future import Future, FutureLM
from ziggurat.objectives.infill import Denoise
from ziggurat.objectives.joint import Joint
from ziggurat.objectives.labelled import Classify, Regress, Tag
from ziggurat.objectives.masked import Masked
from ziggurat.objectives.mixture import Mixture
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.order import SentenceStructure, WordOrder
from ziggurat.objectives.pairs import NextSentence, SentenceOrder
from ziggurat.objectives.permuted import Permuted
from ziggurat.objectives.prefix import Prefix
from ziggurat.objectives.pseudo import PseudoMasked
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.objectives.replaced import Replaced
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.objectives.similar import MaskedAsCorrection
from ziggurat.objectives.tasks import Tasks
from ziggurat.objectives.unilm import UniLM


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
    Masked
    | MaskedAsCorrection
    | SpanBoundary
    | Causal
    | Prefix
    | Permuted
    | NextSentence
    | SentenceOrder
    | SentenceStructure
    | WordOrder
    | UniLM
    | PseudoMasked
    | Replaced
    | InfillingGeneration
    | FutureLM
    | SpanCorruption
    | Denoise
    | Fragment
    | MaskedFragment
    | Future
    | Joint
    | Mixture
    | Classify
    | Regress
    | Tag
    | MultipleChoice
    | QuestionAnswering
    | Seq2Seq
    | Tasks,
    Field(discriminator="kind"),
    WrapValidator(_outside),
    SerializeAsAny(),
]
Mixture.model_rebuild(_types_namespace={"AnyObjective": AnyObjective})

OBJECTIVES: dict[str, type[Objective]] = {
    "mlm": Masked,
    "mac": MaskedAsCorrection,
    "sbo": SpanBoundary,
    "clm": Causal,
    "prefix_lm": Prefix,
    "plm": Permuted,
    "nsp": NextSentence,
    "sop": SentenceOrder,
    "sentence_structure": SentenceStructure,
    "word_order": WordOrder,
    "unilm": UniLM,
    "pmlm": PseudoMasked,
    "rtd": Replaced,
    "ernie_gen": InfillingGeneration,
    "future_lm": FutureLM,
    "span_corruption": SpanCorruption,
    "denoise": Denoise,
    "mass": Fragment,
    "mlm_mass": MaskedFragment,
    "future": Future,
    "joint": Joint,
    "mixture": Mixture,
    "classify": Classify,
    "regress": Regress,
    "tag": Tag,
    "multiple_choice": MultipleChoice,
    "question_answering": QuestionAnswering,
    "seq2seq": Seq2Seq,
    "tasks": Tasks,
}

__all__ = ["OBJECTIVES", "AnyObjective", "Objective"]

"""Several labelled tasks on one encoder, each with a head of its own.

Paper: MT-DNN (Liu et al., 2019, 3 and Algorithm 1). Needs: a source a task. Feeds what its parts do; a target is called after its head
and its task (`classify-sst2`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ziggurat.context import Context
from ziggurat.errors import check
from ziggurat.nn.spec import Head, Model
from ziggurat.nn.tasks import named, task_of
from ziggurat.objectives.base import EXAMPLES, examples_of
from ziggurat.objectives.labelled import Classify, Labelled, Regress, Tag
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.types import Batch, Tokens

KINDS = ("classify", "regress", "tag", "multiple_choice", "question_answering")


def _labelled(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if isinstance(kind, str) and kind not in KINDS:
        raise ValueError(f"'{kind}' has no head of its own that could stand beside others; a task is one of {', '.join(KINDS)}")
    return value


Part = Annotated[
    Annotated[Classify | Regress | Tag | MultipleChoice | QuestionAnswering, Field(discriminator="kind")],
    BeforeValidator(_labelled),
]


class Tasks(Labelled):
    """Several tasks at once (MT-DNN): each source of the stage is a task with a head of its own on the shared encoder. Examples of all
    tasks share the batches, drawn by the shares of `data` and its `temperature`. A step's loss is the mean over its examples, whichever
    task they are of; those of one task have the mean loss of its predictions, times its weight."""

    kind: Literal["tasks"] = "tasks"
    parts: dict[str, Part] = Field(min_length=2)
    """What is learned from each source of the stage, by its name: labelled objectives, each as it would be written alone."""
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How much an example of a task weighs, by the task; default 1. How often it comes is said by the shares of `data`."""

    @model_validator(mode="after")
    def _known(self) -> Tasks:
        unknown = sorted(set(self.weights) - set(self.parts))
        if unknown:
            raise ValueError(f"weights for {unknown}, which is no task; tasks are {list(self.parts)}")
        return self

    def needs(self, ctx: Context) -> None:
        for part in self.parts.values():
            part.needs(ctx)

    def rows(self, ctx: Context) -> Mapping[str, int]:
        most: dict[str, int] = {}
        for part in self.parts.values():
            for name, row in part.rows(ctx).items():
                most[name] = max(row, most.get(name, 0))
        return most

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        """The examples of one source, as its task forms them."""
        task = tokens.source
        check(
            task in self.parts,
            f"the source '{task}' is no task; tasks are {', '.join(self.parts)}",
            "name it in `objective.parts`",
        )
        batch = self.parts[task].form(tokens, ctx)
        return replace(batch, targets={named(name, task): target for name, target in batch.targets.items()})

    def misfits(self, model: Model) -> list[str]:
        return list(dict.fromkeys(why for part in self.parts.values() for why in part.misfits(model)))

    def heads(self, model: Model) -> Mapping[str, Head]:
        return {named(name, task): head for task, part in self.parts.items() for name, head in part.heads(model).items()}

    def weight_of(self, target: str) -> float:
        return self.weights.get(task_of(target), 1.0)

    def counts(self, batch: Batch) -> dict[str, float]:
        """The summed target weights, and of how many examples they are: a document each, or where documents compete those of one key."""
        own = super().counts(batch)
        return own | {EXAMPLES + name: float(len(examples_of(batch, target))) for name, target in batch.targets.items()}

    def step_weights(self, counts: Mapping[str, float]) -> dict[str, float]:
        """A task's mean loss weighs as its share of the step's examples does: a task that comes seldom is not made as loud as the rest
        whenever one of its examples comes, and the step is the expectation of MT-DNN's steps of one task each."""
        names = [name for name in counts if not name.startswith(EXAMPLES)]
        every = sum(counts[EXAMPLES + name] for name in names)
        return {name: self.weight_of(name) * counts[EXAMPLES + name] / max(every, 1.0) for name in names}

"""What a user writes for an evaluation: a suite of tasks as data. Where the rows are, what is asked, how it is scored, how it is tuned."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from ziggurat.config import Problem, Spec
from ziggurat.data.sources import Files, Hub, Source, splits, writes
from ziggurat.errors import UserError
from ziggurat.evaluate.likelihood import Likelihood
from ziggurat.evaluate.scores import GROUPED, spans
from ziggurat.objectives import AnyObjective
from ziggurat.objectives.base import Objective
from ziggurat.objectives.labelled import Tag
from ziggurat.train.stage import NAME, StageFields
from ziggurat.tree import nearest

FOREIGN = ("data", "init", "objective", "temperature")
"""Fields of a stage that a suite fills itself."""


def _seeds(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value < 1:
        raise ValueError("needs at least one seed")
    return tuple(range(value))


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    Field(min_length=1),
    BeforeValidator(_seeds, json_schema_input_type=int | list[int]),
]
"""Seeds, or how many: 3 is [0, 1, 2]."""


class Options(Spec):
    """How a suite is run. In a recipe, what is not given here is as the suite says."""

    seeds: Seeds = (0, 1, 2)
    """One fine-tuning a seed, task and checkpoint: a list, or how many (3 = 0, 1, 2). The seed draws the head, the order and the
    `examples`."""
    train_rows: int | None = Field(None, gt=0)
    """Most training rows of a task, the same ones for every seed and checkpoint (chosen by a hash of their text); null = all."""
    test_rows: int | None = Field(None, gt=0)
    """Most test rows of a task, chosen alike; null = all."""
    examples: int | None = Field(None, gt=0)
    """Few-shot: labelled rows to fine-tune on, drawn by the seed; null = all."""
    only: tuple[str, ...] = ()
    """Tasks to run; empty = all."""
    rows: Literal["local", "hub"] = "local"
    """Where rows come from: the files of `local`, or the dataset of `hub`."""
    answers: Literal["head", "text", "likelihood"] = "head"
    """How labels are given: by a head on the model; written as text (T5: the labels' names, by `seq2seq`); or without training, as the
    label or choice that the model would most probably write."""
    shots: int = Field(0, ge=0)
    """`likelihood`: solved training rows before each question, drawn by the seed; the last of them where the model cannot read them all."""

    @model_validator(mode="after")
    def _different(self) -> Options:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each seed may stand once")
        return self


class Task(Spec):
    """One task of a suite."""

    about: str = ""
    """What it asks, and what is to be known about these rows."""
    local: Source | None = None
    """Files with the rows, with a `test` split; `$NAME` in a path is an environment variable."""
    hub: Source | None = None
    """The same from a dataset of the Hugging Face hub. Integer classes are read by their names there, so that `labels` of the
    objective are matched by its `names`, or by `hub_labels`."""
    hub_labels: tuple[str | int, ...] = ()
    """What the rows of the hub call the objective's `labels`, in their order; left out: its `names`."""
    objective: AnyObjective | None = None
    """A labelled objective; its `metric` is the score that tables quote."""
    further: tuple[str, ...] = ()
    """Other metrics to report: names as the objective's `metric` takes them."""
    settings: StageFields = StageFields()
    """Any field of a fine-tuning stage but data, init and objective; over the suite's `defaults`."""
    zero_shot: bool = False
    """Nothing is trained: the checkpoint answers as it is. Its classes are matched with the labels by their names, where it has any."""
    prompt: str = ""
    """With `answers: text` or `likelihood`: what the model reads, e.g. `mnli premise: {text} hypothesis: {pair}`. Default: name and texts,
    like this; for `likelihood` the texts alone."""
    likelihood: Likelihood = Likelihood()
    """With `answers: likelihood`: how labels or choices are compared."""
    without: str = ""
    """Why the task cannot be scored with its local rows: it is then listed with this reason, and not run."""

    @model_validator(mode="after")
    def _prompted(self) -> Task:
        try:
            formed = [str(name) for _, name, form, conversion in string.Formatter().parse(self.prompt) if form or conversion]
        except ValueError as e:
            raise ValueError(f"prompt: {e}") from None
        if self.named - {"text", "pair"}:
            raise ValueError(
                f"prompt: the texts are called {{text}} and {{pair}}, not {', '.join(sorted(self.named - {'text', 'pair'}))}"
            )
        if self.prompt and not self.named:
            raise ValueError(
                "prompt: it names no text, so that every question would be the same; write {text} where the text stands"
            )
        if formed:
            raise ValueError(f"prompt: a text stands as it is; write {{{formed[0]}}}, with nothing behind the name")
        return self

    @property
    def named(self) -> set[str]:
        """The texts that the prompt names."""
        return {name for _, name, _, _ in string.Formatter().parse(self.prompt) if name is not None}


class Suite(Options):
    """Tasks that are scored together."""

    suite: str = Field(pattern=r"^[\w-][\w.-]*$")
    """Its name: results are in evaluations/<suite>."""
    about: str = ""
    """What it measures, in a sentence."""
    defaults: StageFields = StageFields()
    """Fine-tuning settings of all tasks."""
    tasks: dict[Annotated[str, Field(pattern=NAME)], Task] = Field(min_length=1)
    """The tasks, by name."""

    def problems(self) -> Iterator[Problem]:
        """Mistakes that need more than one value to be seen."""
        for name in self.only:
            if name not in self.tasks:
                yield Problem(("only",), f"there is no task '{name}'; {nearest(name, self.tasks)}")
        for where, settings in (
            (("defaults",), self.defaults),
            *((("tasks", n, "settings"), t.settings) for n, t in self.tasks.items()),
        ):
            for field in FOREIGN:
                if field in settings.model_fields_set:
                    yield Problem(
                        (*where, field), "is not for a suite to set: a task has one source and starts from the checkpoint"
                    )
        for name, task in self.tasks.items():
            if task.without and task.hub is None:
                continue
            place = ("tasks", name)
            if task.objective is None:
                yield Problem(place, "has no objective; give it one, or say in `without` why it cannot be scored")
            elif not task.objective.labelled:
                yield Problem((*place, "objective"), f"'{task.objective.kind}' has no labels, so there is nothing to score")
            elif task.objective.kind in ("tasks", "mixture"):
                yield Problem(
                    (*place, "objective"), f"'{task.objective.kind}' is several objectives; write each as a task of the suite"
                )
            else:
                yield from _further_problems((*place, "further"), task.objective, task.further)
                yield from _span_problems((*place, "objective", "labels"), task, self.rows)
            count = len(getattr(task.objective, "labels", ()))
            if task.hub_labels and len(task.hub_labels) != count:
                yield Problem((*place, "hub_labels"), f"{len(task.hub_labels)} for the {count} labels of the objective")
            if task.local is None and task.hub is None:
                yield Problem(place, "has no rows; give it `local` files or a `hub` dataset, or say why not in `without`")
            for kind in ("local", "hub"):
                source = getattr(task, kind)
                if source is not None and "test" not in splits(source):
                    yield Problem((*place, kind), "has no `test` rows to score on")
            asked: Source | None = getattr(task, self.rows)
            if "pair" in task.named and asked is not None and not writes(asked):
                yield Problem((*place, "prompt"), f"names {{pair}}, and the columns of `{self.rows}` have no `pair`")
            grouped = getattr(task.objective, "metric", "") in GROUPED
            if grouped and isinstance(asked, Files | Hub) and asked.columns.group is None:
                yield Problem(
                    (*place, "objective", "metric"), f"scores rows together, and the columns of `{self.rows}` have no `group`"
                )


def _further_problems(place: tuple[str, ...], objective: Objective, further: tuple[str, ...]) -> Iterator[Problem]:
    """Metrics that the objective does not have, or that want the answers in another form than its own metric."""
    annotation: Any = type(objective).model_fields["metric"].annotation if "metric" in type(objective).model_fields else None
    known: tuple[str, ...] = get_args(annotation)
    own = str(getattr(objective, "metric", ""))
    for name in further:
        if name not in known:
            yield Problem(place, f"'{objective.kind}' has no metric '{name}'; {nearest(name, known)}")
        elif _form(objective, name) != _form(objective, own):
            yield Problem(place, f"'{name}' is a score of {_form(objective, name)}, '{own}' of {_form(objective, own)}")


def _span_problems(place: tuple[str, ...], task: Task, rows: str) -> Iterator[Problem]:
    """Labels that F1 of spans cannot read, as it would say when all is trained."""
    objective = task.objective
    if not isinstance(objective, Tag) or "span_f1" not in (objective.metric, *task.further):
        return
    called = objective.names or (task.hub_labels if rows == "hub" else ()) or objective.labels
    try:
        spans([str(label) for label in called])
    except UserError as error:
        yield Problem(place, f"{error.message}: {error.hint}")


def _form(objective: Objective, metric: str) -> str:
    """What a metric is given."""
    if metric in GROUPED:
        return "rows that belong together (`group`)"
    return "numbers of choices" if objective.kind == "multiple_choice" and metric == "accuracy" else "answers one by one"

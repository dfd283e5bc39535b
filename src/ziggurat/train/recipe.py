"""What a user writes: a recipe. How defaults, size, recipe and command line become one, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ziggurat.config import Problem, Spec, complain, given
from ziggurat.data.sources import Source, marked
from ziggurat.errors import UserError
from ziggurat.nn.spec import Model
from ziggurat.systems import SYSTEMS, find
from ziggurat.systems.base import System
from ziggurat.text.train import TokenizerSpec
from ziggurat.train import arms, keeping, tasks, vocabulary
from ziggurat.train.adaptation import SAMPLE
from ziggurat.train.budget import planned
from ziggurat.train.schedule import HINT, misfit
from ziggurat.train.stage import (
    BUDGETS,
    NAME,
    STAGE_DEFAULTS,
    BatchLimits,
    Evaluate,
    Optim,
    Save,
    Schedule,
    Stage,
    StageFields,
    candidates,
)
from ziggurat.train.suite import Options
from ziggurat.tree import Node, PathTo, Shape, merge, nearest, tree

__all__ = [
    "BatchLimits",
    "Dials",
    "Evaluate",
    "ModelCard",
    "Optim",
    "Recipe",
    "Save",
    "Schedule",
    "Stage",
    "StageFields",
    "Worth",
    "resolve",
]

TEXT_STAGES = ("pretrain", "dapt", "tapt")
LARGE = 200_000_000
"""Weights in a model's layers above which stages are not compared unasked: between bert/base (85 M) and bert/large (302 M)."""
RESERVED = ("tokenizer", "shards", "vocabulary", "worth", "evaluate", "suites", "scratch", "previous")


class Worth(Spec):
    """What each stage was worth: the task is fine-tuned from every prefix of the pipeline."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2), min_length=1)
    """One fine-tuning a seed and prefix; the seed draws the labelled rows, the head and the order."""
    control: str | None = None
    """A source of another domain: the last dapt stage before the fine-tuning is also run on that, at the same rates up to the step that was handed
    on, and the task fine-tuned from it, which says how much of the stage's worth is its domain's (Gururangan et al., 2020)."""

    @model_validator(mode="after")
    def _different(self) -> Worth:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each seed may stand once")
        return self


class Dials(Spec):
    """Dimensions of the model, over those of the size. Where width is set, heads and mlp follow it (heads of 64, a
    feed-forward layer of 4 widths) unless they are set too."""

    layers: int | None = Field(None, gt=0)
    """Transformer layers."""
    width: int | None = Field(None, gt=0)
    """Length of hidden vectors."""
    heads: int | None = Field(None, gt=0)
    """Attention heads."""
    mlp: int | None = Field(None, gt=0)
    """Width of the feed-forward layer."""
    embedding: int | None = Field(None, gt=0)
    """Width of the embedding tables, where it is not the model's."""
    head_width: int | None = Field(None, gt=0)
    """Width of one attention head, where it is not width / heads."""
    decoder_layers: int | None = Field(None, gt=0)
    """Layers of the decoder, where they are not as many as the encoder's."""
    generator_layers: int | None = Field(None, gt=0)
    """Layers of a generator (ELECTRA), and its other dimensions."""
    generator_width: int | None = Field(None, gt=0)
    """Length of the generator's hidden vectors."""
    generator_heads: int | None = Field(None, gt=0)
    """Attention heads of the generator."""
    generator_mlp: int | None = Field(None, gt=0)
    """Width of the generator's feed-forward layer."""


def _named(value: Any) -> Any:
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return {v: {} for v in value}
    return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value


class ModelCard(Spec):
    """What only you know about a model and its text; what is left out is left out of the model card, never guessed."""

    language: str | tuple[str, ...] | None = None
    """ISO 639 code of the language, as in en or zh; several as a list."""
    license: str | None = None
    """The Hub's name of the licence you give the model, as in apache-2.0."""
    base_model: str | None = None
    """Hub name of the model that `init` brought, as in google-bert/bert-base-uncased."""
    datasets: tuple[str, ...] = ()
    """Hub names of data sets behind your files; sources of kind hub are named anyway."""
    tags: tuple[str, ...] = ()
    """Further tags."""


class Recipe(Spec):
    """Raw text in, a fine-tuned model out."""

    name: str = Field(pattern=r"^[\w-][\w.-]*$")
    """The run folder is runs/<name>."""
    system: str
    """<system>/<size>, as `ziggurat list systems` prints them; without a size when `init` brings the model."""
    model: Dials = Dials()
    """Dimensions other than the size's."""
    tokenizer: TokenizerSpec | None = None
    """Trained on the sources' text, or brought along by its path; null when `init` brings one."""
    sources: dict[Annotated[str, Field(pattern=NAME)], Source] = Field(min_length=1)
    """Texts and labelled data, by names of your choice."""
    seed: int = Field(0, ge=0)
    """Root of all randomness."""
    defaults: StageFields | None = None
    """Any field of a stage, for all stages."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The pipeline, in order."""
    worth: Annotated[Worth | None, BeforeValidator(lambda v: {True: Worth(), False: None}[v] if isinstance(v, bool) else v)] = (
        Worth()
    )
    """Fine-tune from every prefix of the pipeline, to say what each stage was worth; false = off. Left out: on, but for a size of more
    than 200 M weights in its layers (bert/large), whose fine-tunings take long."""
    suites: Annotated[
        dict[str, Options] | None, BeforeValidator(_named, json_schema_input_type=str | list[str] | dict[str, Options] | None)
    ] = None
    """Suites that the last text stage's checkpoint is fine-tuned on at the end of the run: names or files, or {name: options}."""
    card: ModelCard = ModelCard()
    """For the model card (README.md) of every export."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard event files (extra `tensorboard`)."""

    def resolved(self) -> Recipe:
        """The same recipe with nothing left to defaults: every stage spelled out, `defaults` empty, names and `init` given.

        Raises:
            UserError: all of `problems()`.
        """
        complain(self.problems(), f"recipe {self.name}")
        return Recipe.model_validate(resolve(self).plain())

    def body(self, vocab: int | None = None) -> Model | None:
        """The model of system, size and dials, with `vocab` token rows; None when `init` brings it.

        Raises:
            UserError: dimensions that do not fit together.
        """
        system, size = split(self.system)
        return system.sized(size, dict(self.model), vocab) if system is not None and size in system.sizes else None

    def problems(self) -> Iterator[Problem]:
        """Mistakes that need more than one value to be seen."""
        yield from _model_problems(self)
        try:
            full = Recipe.model_validate(resolve(self).plain())
        except ValidationError as e:
            for error in e.errors():
                place = ".".join(map(str, error["loc"]))
                yield Problem(error["loc"][:2], f"with the defaults filled in, {place}: {error['msg']}")
            return
        seen: dict[str, int] = {}
        for n, stage in enumerate(full.stages):
            if stage.title in seen:
                message = f"two stages are called '{stage.title}'; give one a `name`"
                yield Problem(("stages", n, "name"), message, (("stages", seen[stage.title], "name"), ("stages", n, "stage")))
            elif stage.title in RESERVED:
                yield Problem(("stages", n, "name"), f"'{stage.title}' is a folder of every run; choose another name")
            for field, message, *needs in _stage_problems(full, stage, list(seen)):
                yield Problem(self._place(n, field), message, (("stages", n), *needs) if not field else tuple(needs))
            seen.setdefault(stage.title, n)
        if self.suites and all(s.stage not in TEXT_STAGES for s in self.stages):
            yield Problem(
                ("suites",), "needs a text stage, whose checkpoint is scored; `ziggurat evaluate` scores a checkpoint of any kind"
            )
        if self.worth is not None and self.worth.control is not None:
            for message in _control_problems(full, self.worth.control):
                yield Problem(("worth", "control"), message)
        if "worth" in self.model_fields_set and self.worth is not None and all(s.stage != "finetune" for s in self.stages):
            yield Problem(("worth",), "needs a finetune stage: a stage's worth is what it adds to the fine-tuned score")

    def _place(self, n: int, field: str) -> PathTo:
        """Where a stage's value was written: in the stage, in `defaults`, or (a default of ours) nowhere."""
        if not field:
            return ("stages", n)
        general = self.defaults is not None and field in self.defaults.model_fields_set
        return ("defaults", field) if general and field not in self.stages[n].model_fields_set else ("stages", n, field)


def resolve(recipe: Recipe, root: Node | None = None) -> Node:
    """The resolved recipe as a tree that says where each value comes from: stage kind < system < size < the recipe's
    `defaults` < stage < command line. `root` is the tree it was read from."""
    root = tree(given(recipe), "recipe") if root is None else root
    system, size = split(recipe.system)
    shape, stages, before = Shape(Stage), [], "scratch"
    for stage, own in zip(recipe.stages, root.at(("stages",)).value):
        node = tree(STAGE_DEFAULTS[stage.stage], f"default of {stage.stage}")
        if system is not None and stage.stage in TEXT_STAGES:
            node = merge(node, tree({"objective": dict(system.objective)}, f"system {system.name}"), shape)
        if recipe.defaults is not None:
            node = merge(node, root.value["defaults"], shape)
        node = merge(node, own, shape)
        node.value.setdefault("name", Node(stage.stage, "default"))
        if "init" not in node.value or node.value["init"].value == "previous":
            node.value["init"] = Node(before, "default" if before == "scratch" else "the stage before")
        before = stage.title
        stages.append(node)
    merged = {key: child for key, child in root.value.items() if key != "defaults"}
    if arms.measured(stages):
        sample = tree({"kind": "docstrings", "packages": ["python"], "valid": 0.1}, "a default general sample")
        merged["sources"] = Node({SAMPLE: sample, **merged["sources"].value}, merged["sources"].where)
    if system is not None and size in system.sizes:
        fill = tree(dict(system.sizes[size]), f"size {recipe.system}")
        try:
            full = system.dials(size, dict(recipe.model))
            follow = {k: v for k, v in full.items() if v != system.sizes[size].get(k)}
            fill.value |= tree(follow, "follows width").value
        except UserError:
            pass  # one of the recipe's problems
        merged["model"] = merge(fill, root.value.get("model", Node({}, "")), Shape(Dials))
    merged["stages"] = Node(stages, root.at(("stages",)).where)
    if "worth" not in merged and all(s.stage != "finetune" for s in recipe.stages):
        merged["worth"] = Node(None, "no finetune stage")
    elif "worth" not in merged and "model" in merged and large(merged["model"].plain()):
        merged["worth"] = Node(None, "a large model; `worth: true` measures it all the same")
    return Node(merged, root.where)


def large(dials: Mapping[str, Any]) -> bool:
    """Whether a model's layers have more weights than are fine-tuned many times over without being asked: 12 x width^2 a layer."""
    return 12 * int(dials.get("layers") or 0) * int(dials.get("width") or 0) ** 2 > LARGE


def split(name: str) -> tuple[System | None, str]:
    """`bert/base` -> its system, if there is one, and the size."""
    system, _, size = name.partition("/")
    return find(system), size


def _control_problems(recipe: Recipe, source: str) -> Iterator[str]:
    dapt = [s for s in recipe.stages if s.stage == "dapt"]
    if source not in recipe.sources:
        yield f"unknown source '{source}'; {nearest(source, recipe.sources)}"
    if not dapt:
        yield "is the control of a dapt stage, and the recipe has none"
    for stage in dapt:
        if source in stage.reads:
            yield f"'{source}' is text that {stage.title} reads: name a source of another domain"


def _model_problems(recipe: Recipe) -> Iterator[Problem]:
    system, size = split(recipe.system)
    general = recipe.defaults.init if recipe.defaults is not None else "previous"
    own = recipe.stages[0].init
    fresh = (general if own == "previous" else own) in ("previous", "scratch")
    sized = [f"{name}/{s}" for name, each in SYSTEMS.items() for s in each.sizes]
    if system is None or (size and size not in system.sizes):
        known = [*SYSTEMS, *sized] if not size else sized
        yield Problem(("system",), f"unknown system '{recipe.system}'; {nearest(recipe.system, known)}")
    elif not size and fresh:
        yield Problem(
            ("system",), f"'{recipe.system}' needs a size: {', '.join(s for s in sized if s.startswith(system.name + '/'))}"
        )
    elif not size and recipe.model != Dials():
        yield Problem(("model",), "dimensions are those of the checkpoint in `init`; leave `model` out, or give `system` a size")
    elif size:
        try:
            recipe.body()
        except UserError as e:
            yield Problem(("model",), f"{e.message}; {e.hint}")
    if recipe.tokenizer is None and fresh:
        message = "is missing: a model from scratch needs one, as in {kind: wordpiece, vocab: 8000} or {path: a folder}"
        yield Problem(("tokenizer",), message)


def _stage_problems(recipe: Recipe, stage: Stage, before: list[str]) -> Iterator[tuple[Any, ...]]:
    """(field or "", message, places it was judged by ...)"""
    budgets = [unit for unit in BUDGETS if getattr(stage, unit) is not None]
    if len(budgets) != 1:
        how = f"has {len(budgets)} budgets ({', '.join(budgets)})" if budgets else "has no budget"
        yield "", f"{how}; give exactly one of {', '.join(BUDGETS)}"
    if not stage.data:
        yield "", f"has no data; name a source: {', '.join(recipe.sources)}"
    for name in stage.data:
        if name not in recipe.sources:
            yield "data", f"unknown source '{name}'; {nearest(name, recipe.sources)}", ("sources", name)
    later = [s.title for s in recipe.stages if s.title not in before]
    for name in candidates(stage.init):
        if name in later:
            yield "init", f"'{name}' is not an earlier stage"
    if stage.epochs is not None and len(stage.data) > 1:
        yield "epochs", f"{len(stage.data)} sources have epochs of their own; give the budget in steps, tokens or time"
    if stage.tokens is not None and stage.batch.tokens is None:
        yield (
            "tokens",
            "a budget in tokens needs batches limited by tokens; give it in steps or epochs, or set batch: {tokens: ...}",
        )
    counted = len(budgets) == 1 and (stage.tokens is None or stage.batch.tokens is not None)
    if wrong := misfit(planned(stage) if counted else None, stage.schedule):
        yield "schedule", f"{wrong}; {HINT}"
    system = split(recipe.system)[0]
    yield from arms.problems(stage, recipe.sources, system.model if system is not None else None)
    yield from keeping.problems(stage, recipe.sources)
    yield from vocabulary.problems(stage)
    supervised = stage.objective is not None and stage.objective.labelled
    if stage.stage == "finetune":
        yield from tasks.problems(stage, recipe.sources, supervised)
    else:
        if supervised:
            assert stage.objective is not None
            yield "objective", f"'{stage.objective.kind}' needs labels: it belongs in a finetune stage, not in {stage.stage}"
        if stage.examples is not None:
            yield "examples", f"counts labelled rows, and {stage.stage} reads plain text; limit the source instead"
    if stage.objective is not None and stage.objective.marked:
        for name in stage.data:
            source = recipe.sources.get(name)
            if source is not None and not marked(source):
                message = f"hides phrases, and source '{name}' has none: give it `phrases` or `columns: {{spans: ...}}`"
                yield "objective", message, ("sources", name)
    ours = {"scratch", "previous", *(s.title for s in recipe.stages)}
    if system is not None and stage.objective is not None and all({*candidates(s.init)} <= ours for s in recipe.stages):
        model = stage.objective.part_of(stage.objective.equipped(starts_before(recipe, stage, system.model)[-1][1]))
        for why in stage.objective.misfits(model):
            yield "objective", why
        for why in stage.objective.forgets(model, stage.memory):
            yield ("memory" if stage.memory else "objective"), why
        if (sized := _sized(recipe)) is not None:
            model = stage.objective.part_of(starts_before(recipe, stage, sized)[-1][1])
            for field, message, hint in arms.lacking(stage, model):
                yield field, f"{message}; {hint}"
    if stage.memory and stage.batch.tokens is None:
        yield "memory", "needs batches limited by tokens: text goes on in the row where it stopped; set batch: {tokens: ...}"
    positions = system.model.embed.positions.length if system is not None else stage.length
    if stage.length > positions:
        yield "length", f"{stage.length} is longer than the {positions} positions of {recipe.system}"
    if stage.batch.tokens is not None and stage.batch.tokens < stage.length:
        yield "batch", f"a micro-batch of {stage.batch.tokens} tokens cannot hold one example of length {stage.length}"


def _sized(recipe: Recipe) -> Model | None:
    """The model from scratch; None where its size is not known, or wrong, which is one of the recipe's problems."""
    try:
        return recipe.body()
    except UserError:
        return None


def starts_before(
    recipe: Recipe, stage: Stage, fresh: Model, imported: Mapping[str, Model] | None = None
) -> list[tuple[str, Model]]:
    """(what `init` names, its model) of what a stage may start from, one for each way there: a model from scratch, a checkpoint's, or the
    part of either that earlier stages have kept."""
    kept: dict[str, list[Model]] = {}
    for each in recipe.stages:
        starts = [(name, m) for name in candidates(each.init) for m in kept.get(name) or [(imported or {}).get(name, fresh)]]
        if each is stage:
            return starts
        kept[each.title] = [each.objective.part_of(m) if each.objective is not None else m for _, m in starts]
    return [("scratch", fresh)]

"""What a user writes for one stage: its text, budget, objective, batch, optimiser, schedule, and when to look and to save."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from ziggurat.config import Duration, Spec
from ziggurat.objectives import AnyObjective
from ziggurat.text.vocabulary import VocabularySpec
from ziggurat.train.adaptation import Anchor, Distill, Forgetting, Freeze, Interpolate, Lora, measured, shared

BUDGETS = ("steps", "tokens", "epochs", "time")
NAME = r"^[\w-]+$"

STAGE_DEFAULTS: dict[str, dict[str, Any]] = {
    "pretrain": {"optim": {"lr": 5e-4}},
    "dapt": {"optim": {"lr": 1e-4}},
    "tapt": {"optim": {"lr": 1e-4}},
    "finetune": {"optim": {"lr": 5e-5}, "epochs": 3, "batch": {"documents": 16}, "dropout": 0.1},
}
"""What a stage of each kind has where neither the recipe nor the system says otherwise."""


class BatchLimits(Spec):
    """When a micro-batch is full: one of the two limits."""

    rivals: ClassVar[tuple[tuple[str, ...], ...]] = (("tokens", "documents"),)

    tokens: int | None = Field(None, gt=0)
    """Most tokens, special tokens and padding included."""
    documents: int | None = Field(None, gt=0)
    """Most examples."""

    @model_validator(mode="after")
    def _one(self) -> BatchLimits:
        if (self.tokens is None) == (self.documents is None):
            raise ValueError("needs one limit: tokens or documents")
        return self


class Optim(Spec):
    """AdamW (Loshchilov & Hutter, 2019)."""

    lr: float = Field(5e-4, gt=0, le=10)
    """Peak learning rate. Default: 5e-4 in pretrain, 1e-4 in dapt and tapt, 5e-5 in finetune."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """Decay of the running means of the gradient and of its square, per step."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled; norms and biases are spared."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the whole gradient; null = no clipping."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of each layer as a share of the one above it; heads have the whole rate, embeddings the least (Howard and Ruder, 2018). Needs
    weights to start from; in the arms of `worth` from scratch all have the whole rate."""


class Schedule(Spec):
    """The learning rate over a stage, as a share of the peak."""

    kind: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """After the warm-up: straight down; half a cosine down; stay, then straight down at the end (wsd); stay."""
    warmup: float = Field(0.06, ge=0)
    """Straight up to the peak: below 1 a share of the stage's steps, else a number of steps."""
    floor: float = Field(0.0, ge=0, le=1)
    """Where the descent ends, as a share of the peak."""
    decay: float = Field(0.1, gt=0)
    """wsd: how long the rate comes down at the end; a share or a number of steps, like `warmup`."""


class Evaluate(Spec):
    """Evaluation while a stage trains; at its end it is always done."""

    every: int | None = Field(None, gt=0)
    """Steps between evaluations; null = at the end only."""
    tokens: int = Field(50_000, gt=0)
    """Held-out text read of each source, in tokens of four bytes: the same documents whatever the tokenizer."""
    context: bool = False
    """Text stages: also measure, at the end, the loss by position and in shorter windows (the lengths of the recipe's stages) on the held-out
    documents that fill the longest, which says whether the model uses a long context."""
    keep: Literal["last", "best"] = "last"
    """Weights that are handed on: of the last step, or of the evaluation, the one at the end included, that is best on the `valid` rows of the
    stage's own sources (of equals the first). best needs `every`."""
    by: str = Field("loss", min_length=1)
    """Best by this number: loss, accuracy, or another as metrics.jsonl calls it behind heldout/<source>/ (bits_per_byte, rtd_f1). Accuracies and
    F1 are best high, others low. Of several own sources their mean by the shares in `data`."""
    patience: int | None = Field(None, gt=0)
    """The stage ends after so many evaluations in a row that are no better than the best; its schedule is then cut off. Means keep: best."""

    @model_validator(mode="before")
    @classmethod
    def _patient(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("patience") is not None:
            return {**value, "keep": value.get("keep", "best")}
        return value

    @model_validator(mode="after")
    def _best(self) -> Evaluate:
        if self.patience is not None and self.keep == "last":
            raise ValueError("patience hands on the best weights, not the last; take `keep: last` out")
        return self

    @property
    def chooses(self) -> bool:
        """Whether the weights of one evaluation are chosen among all."""
        return self.keep == "best"


class Save(Spec):
    """Checkpoints while a stage trains; at its end one is always written."""

    every: int | None = Field(500, gt=0)
    """Steps between checkpoints; null = at the end (and on an interrupt) only."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept; older ones are removed."""


class BestOf(Spec):
    """The start that fits the stage's text and labels best, chosen once when the stage is reached (or before anything is prepared, when
    all candidates are folders): by their held-out loss per byte on the text, and a probe on frozen features. Test rows are not looked at."""

    best_of: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=2)
    """Names of earlier stages, and folders of checkpoints."""

    @model_validator(mode="after")
    def _different(self) -> BestOf:
        if len(set(self.best_of)) < len(self.best_of):
            raise ValueError("best_of: each candidate may stand once")
        if bad := {"scratch", "previous"} & set(self.best_of):
            raise ValueError(f"best_of: '{bad.pop()}' has no weights of its own to be judged by; name stages or folders")
        return self

    def __str__(self) -> str:
        return f"best of {', '.join(self.best_of)}"


class Share(Spec):
    """One source of a stage's mixture."""

    weight: float = Field(1.0, gt=0)
    """Its share of the tokens of text, relative to the other sources'."""


def _mixture(value: Any) -> Any:
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, (list, tuple)):
        raise ValueError("needs one source name, or a map of source: share")
    if not isinstance(value, dict):
        return value
    return {k: {"weight": v} if isinstance(v, (int, float, str)) and not isinstance(v, bool) else v for k, v in value.items()}


Mixture = Annotated[dict[str, Share], BeforeValidator(_mixture, json_schema_input_type=str | dict[str, float | Share])]
"""Source name -> share; one name alone is that source alone."""


def candidates(init: str | BestOf) -> tuple[str, ...]:
    """What a stage may start from."""
    return init.best_of if isinstance(init, BestOf) else (init,)


class StageFields(Spec):
    """What `defaults` may hold, and every stage."""

    rivals: ClassVar[tuple[tuple[str, ...], ...]] = (BUDGETS,)
    whole: ClassVar[tuple[str, ...]] = ("data", "replay", "nearest")

    data: Mixture = Field(default_factory=dict)
    """Sources of the stage's text: one name, or {name: share}."""
    temperature: float | None = Field(None, ge=1)
    """Shares by size: a source's is its tokens ** (1 / temperature), times its share above. 1 = as large as they are; 5 = nearly even;
    null = the shares alone."""
    steps: int | None = Field(None, gt=0)
    """Budget in optimiser steps. A stage has exactly one of steps, tokens, epochs, time."""
    tokens: int | None = Field(None, gt=0)
    """Budget in tokens read."""
    epochs: int | None = Field(None, gt=0)
    """Budget in passes over the data. Default: 3 in finetune."""
    time: Duration | None = None
    """Budget in wall-clock time (20m, 1h30m), turned into steps after the first steps were timed. What is compared shares them: the
    fine-tunings of `worth` have those of the recipe's own, the runs of a sweep those of the first whose steps cost the same."""
    init: Annotated[str, Field(min_length=1)] | BestOf = "previous"
    """Weights to start from: `previous` (the stage before; the first starts from scratch), `scratch`, the name of an
    earlier stage, the folder of a checkpoint (ours, or in Hugging Face format), or the fittest of several of these: `{best_of: [...]}`."""
    objective: AnyObjective | None = None
    """What is hidden and predicted. Default: the system's; a finetune stage needs a labelled one, of several sources `tasks`."""
    length: int = Field(128, ge=8)
    """Longest example, in tokens with the special ones."""
    examples: int | None = Field(None, gt=0)
    """finetune: labelled rows to train on, drawn by the seed; null = all."""
    memory: int = Field(0, ge=0)
    """Tokens of earlier text, at most, whose hidden states an example reads besides its own (Transformer-XL; XLNet: 384): examples then
    come in the order of their text. Of short texts there is nothing to remember. 0 = none."""
    batch: BatchLimits = BatchLimits(tokens=2048)
    """Limits of one micro-batch. Default: 2,048 tokens; 16 documents in finetune."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches a step; the gradient is that of the one big batch."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of activations zeroed. Default: 0 in pretrain, dapt and tapt; 0.1 in finetune."""
    optim: Optim = Optim()
    """The optimiser, AdamW."""
    schedule: Schedule = Schedule()
    """The learning rate over the stage."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of matrix products; auto = bf16 where the hardware has it."""
    evaluate: Evaluate = Evaluate()
    """Losses on held-out text while the stage trains."""
    save: Save = Save()
    """Checkpoints while the stage trains."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of metrics."""
    forgetting: Annotated[Forgetting | None, BeforeValidator(measured, json_schema_input_type=bool | Forgetting)] = None
    """What the stage loses on general text, measured in dapt and tapt by default; false = not."""
    replay: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    """Sources of general text that are read again, and their shares of all tokens; `data` has the rest."""
    nearest: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """Of these sources the documents nearest to the texts of `data` are read too, so many for each text (kNN-TAPT: Gururangan et al.,
    2020); shares by size."""
    anchor: Anchor | None = None
    """Weights are pulled toward where the stage began (L2-to-start, EWC)."""
    distill: Distill | None = None
    """Part of the loss is to keep saying what the model said when the stage began."""
    freeze: Freeze | None = None
    """Weights that are not trained."""
    lora: Lora | None = None
    """Only low-rank additions are trained."""
    interpolate: Annotated[Interpolate | None, BeforeValidator(shared, json_schema_input_type=bool | float | Interpolate)] = None
    """The weights handed on are between the start's and the trained ones; a number = that share, true = chosen on held-out text."""


class Stage(StageFields):
    """One training run from a checkpoint to a checkpoint."""

    stage: Literal["pretrain", "dapt", "tapt", "finetune"]
    """pretrain: general text; dapt: text of the domain; tapt: text of the task's training rows; finetune: the task."""
    name: str | None = Field(None, pattern=NAME)
    """What folders and reports call it; default: the stage. Different in every stage of a recipe."""
    vocabulary: VocabularySpec | None = None
    """New tokens mined from the stage's text, for it and all stages that start from it; needs a checkpoint to start from."""

    @property
    def title(self) -> str:
        return self.name or self.stage

    @property
    def reads(self) -> tuple[str, ...]:
        """The sources it trains on."""
        return tuple(dict.fromkeys([*self.data, *self.nearest, *self.replay]))

    @property
    def weighed(self) -> tuple[str, ...]:
        """The sources whose text says which weights matter (EWC)."""
        if self.anchor is None or not self.anchor.ewc:
            return ()
        general = self.forgetting.general if self.forgetting is not None else ()
        return self.anchor.general if self.anchor.general is not None else general or ()

    @property
    def measures(self) -> tuple[str, ...]:
        """Further sources whose held-out loss, or whose held-out rows, say what it has lost."""
        held = self.forgetting
        return tuple(n for n in (*(held.general or ()), *held.tasks) if n not in self.reads) if held is not None else ()

    @property
    def budget(self) -> tuple[str, float]:
        """Unit (steps, tokens, epochs or time) and amount (time in seconds)."""
        return next((unit, getattr(self, unit)) for unit in BUDGETS if getattr(self, unit) is not None)

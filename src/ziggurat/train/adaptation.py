"""What a user writes so that a stage does not forget: how forgetting is measured, and the means against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ziggurat.config import Spec
from ziggurat.evaluate.heldout import PER_BYTE, language_loss, main_loss
from ziggurat.objectives import AnyObjective

if TYPE_CHECKING:
    from ziggurat.train.stage import Stage

SAMPLE = "general-sample"
"""The source that general loss is measured on where a stage starts from somebody's checkpoint and the recipe names no general text."""


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names, json_schema_input_type=str | list[str])]
"""One name or several."""


class Forgetting(Spec):
    """What a stage costs: the rise of the loss on general text, measured before and after it."""

    general: Names | None = None
    """Sources of general text. Default: those of the pretrain stages before (of the start that is chosen, where there are several); for somebody's checkpoint the documentation of Python
    (English; better name your own). Empty = not measured."""
    limit: float = Field(0.1, gt=0)
    """Rise in nats a predicted token from which a warning is given."""
    tasks: dict[str, AnyObjective] = Field(default_factory=dict)
    """Labelled sources, and what is asked of their rows: how well a linear probe on the frozen model answers, before and after, on held-out
    rows."""
    stop: bool = False
    """End the stage at the evaluation that passes the limit, with the weights of the last one within it. Needs `evaluate.every`."""


class Anchor(Spec):
    """A pull of the weights toward where the stage began, decoupled like weight decay. AdamW moves a weight by about the learning rate an
    update, so a strength of s holds it within about 1/s of its start."""

    l2: float = Field(0.0, ge=0)
    """Strength for all weights alike (L2-SP: Li et al., 2018); matrices then do not decay toward 0."""
    ewc: float = Field(0.0, ge=0)
    """Strength times the weight's Fisher information on general text, whose mean is 1 (elastic weight consolidation: Kirkpatrick et
    al., 2017)."""
    general: Names | None = None
    """ewc: sources of general text. Default: those of `forgetting`."""
    tokens: int = Field(100_000, gt=0)
    """ewc: tokens of them that are read."""

    @model_validator(mode="after")
    def _pulls(self) -> Anchor:
        if not self.l2 and not self.ewc:
            raise ValueError("needs a strength: l2 or ewc")
        return self


class Distill(Spec):
    """What the model said when the stage began is part of what it learns (learning without forgetting: Li and Hoiem, 2016)."""

    weight: float = Field(0.5, gt=0, le=1)
    """Share of the loss: 1 - weight for the text's answers, weight for the start's."""
    temperature: float = Field(2.0, gt=0)
    """Softens both distributions (Hinton et al., 2015)."""


class Freeze(Spec):
    """Weights that stay as they are."""

    embeddings: bool = True
    """All embedding tables; the vocabulary projection that shares one of them with it."""
    layers: int = Field(0, ge=0)
    """The first layers."""


class Lora(Spec):
    """Only low-rank additions to matrices are trained (Hu et al., 2022), and new heads. Checkpoints hold the sum; the folder `adapter`
    of the stage the additions alone, for `peft`."""

    rank: int = Field(8, gt=0)
    """Columns of the first and rows of the second of the two matrices whose product is added."""
    alpha: float = Field(16.0, gt=0)
    """The product is scaled by alpha / rank."""
    targets: tuple[Literal["q", "k", "v", "out", "up", "gate", "down"], ...] = Field(("q", "v"), min_length=1)
    """Matrices of every layer: of attention q, k, v and out, of the feed-forward layer up, gate and down."""


class Interpolate(Spec):
    """The stage hands on (1 - share) of its start and share of what it trained (WiSE-FT: Wortsman et al., 2022)."""

    share: float | None = Field(None, ge=0, le=1)
    """Default: chosen on held-out text, the best loss on the stage's own text among the points within the limit."""
    points: int = Field(11, ge=2)
    """Shares tried, evenly from 0 to 1."""
    limit: float | None = Field(None, ge=0)
    """Most forgetting of a point that may be chosen; 0: none at all. Default: that of `forgetting`."""


def shared(value: Any) -> Any:
    """A number alone is the share; `true` the defaults."""
    if isinstance(value, bool):
        return {} if value else None
    return {"share": value} if isinstance(value, (int, float)) else value


def measured(value: Any) -> Any:
    """`false` is nothing measured, `true` the defaults."""
    return {"general": ()} if value is False else {} if value is True else value


@dataclass(frozen=True)
class Shift:
    """What a stage gained on its own text and lost on general text; nats a predicted token."""

    gain: Mapping[str, float]
    """Source of the stage's own -> fall of its held-out loss."""
    forgetting: Mapping[str, float]
    """General source -> rise of its held-out loss."""
    limit: float = 0.1

    @property
    def passed(self) -> bool:
        """Whether a general source was forgotten beyond the limit."""
        return any(rise > self.limit for rise in self.forgetting.values())

    @property
    def sentence(self) -> str:
        """`gain on domain 0.412; forgetting on general 0.038 (limit 0.1)`."""
        parts = [f"gain on {name} {fall:.3f}" for name, fall in self.gain.items()]
        parts += [f"forgetting on {name} {rise:.3f} (limit {self.limit:g})" for name, rise in self.forgetting.items()]
        return "; ".join(parts)


def shift(stage: Stage, before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> Shift | None:
    """The shift between two held-out measurements (source -> numbers); None if there is nothing to compare.

    A source that is both the stage's own and general (rehearsal within `data`) counts as general.
    """
    rise = {n: language_loss(after[n]) - language_loss(numbers) for n, numbers in before.items() if n in after}
    rise = {name: change for name, change in rise.items() if change == change}
    general = (stage.forgetting.general or ()) if stage.forgetting is not None else ()
    gain = {name: -change for name, change in rise.items() if name in stage.data and name not in general}
    lost = {name: change for name, change in rise.items() if name in general}
    limit = stage.forgetting.limit if stage.forgetting is not None else 0.1
    return Shift(gain, lost, limit) if gain or lost else None


def as_read(found: Mapping[str, Mapping[str, float]], bits: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The held-out numbers of a start in the unit of a tokenizer that has more tokens than it had.

    found: numbers by source, of the start with rows for the new tokens, which it has not learnt yet.
    bits: bits a byte of the start with the tokens it was trained with. Losses become those that are as many bits a byte, so that gain and
        forgetting are counted from the model that the stage began as.
    """
    made = {}
    for source, numbers in found.items():
        grown, own = numbers.get(PER_BYTE, 0.0), bits.get(source)
        name = main_loss(numbers)
        more = {name: numbers[name] * own / grown, PER_BYTE: own} if own is not None and grown > 0 else {}
        made[source] = {**numbers, **more}
    return made


def advice(stage: Stage, moved: Shift) -> str:
    """What to try where a stage forgot beyond its limit and did not come back from its end (measured: docs/results/forgetting.md)."""
    if not moved.passed or stage.interpolate is not None:
        return ""
    return "; `interpolate: 0.8` in the stage kept 95% and more of the gain at half to two thirds of the forgetting where it was tried"

"""Several objectives on one corpus, each on documents of its own.

Paper: UniLM (Dong et al., 2019, 2.3) and UL2 (Tay et al., 2022, 3) mix objectives over examples. Needs and feeds what its parts do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import model_validator

from ziggurat.context import Context
from ziggurat.data.pack import take
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.errors import check
from ziggurat.nn.spec import Head, Model
from ziggurat.objectives.base import EXAMPLES, Lack, Objective, Supply, examples_of
from ziggurat.objectives.joint import Joint
from ziggurat.types import Batch, Part, Tokens, join_all, text_target

if TYPE_CHECKING:
    from ziggurat.objectives import AnyObjective
    from ziggurat.text.tokenizer import Tokenizer
    from ziggurat.text.vectors import Vectors

PART = "mixture.part"
"""Between `form` and `corrupt` the batch carries each example's part, as a target that `corrupt` takes away."""


class _OfParts:
    """A class attribute of `Objective` that a mixture takes from its parts; on the class itself, the widest answer."""

    def __init__(self, widest: Any, of: Callable[[tuple[Objective, ...]], Any]):
        self.widest, self.of = widest, of

    def __get__(self, one: Mixture | None, owner: type | None = None) -> Any:
        return self.widest if one is None else self.of(one.parts)


def _shared(parts: tuple[Objective, ...]) -> tuple[str, ...]:
    return tuple(s for s in parts[0].structures if all(s in p.structures for p in parts))


class Mixture(Objective):
    """Each document draws one of the parts, which forms and corrupts it as if it were alone; the examples share the batches.

    Not to be mistaken for `joint`, which asks several questions about the same example.
    """

    kind: Literal["mixture"] = "mixture"
    structures: ClassVar[tuple[str, ...]] = cast(Any, _OfParts(("single", "encoder_decoder"), _shared))
    extra: ClassVar[int] = cast(Any, _OfParts(0, lambda parts: max(p.extra for p in parts)))
    labelled: ClassVar[bool] = cast(Any, _OfParts(False, lambda parts: any(p.labelled for p in parts)))
    parts: tuple[AnyObjective, ...]
    """The objectives, at least two, each as it would be written alone."""
    weights: tuple[float, ...] = ()
    """Shares of documents, one a part in their order (they need not sum to 1); equal if left out. The loss of a step is the mean over its examples,
    so they are the parts' weights, too."""
    until: tuple[float, ...] = ()
    """Shares at the end of the stage: they move there in a straight line from `weights`. Left out, they do not move."""

    @model_validator(mode="after")
    def _valid(self) -> Mixture:
        if len(self.parts) < 2:
            raise ValueError("a mixture needs at least 2 parts")
        for name in ("weights", "until"):
            shares = getattr(self, name)
            if shares and (len(shares) != len(self.parts) or min(shares) < 0 or sum(shares) <= 0):
                raise ValueError(f"{name} needs {len(self.parts)} numbers, one a part, none below 0 and not all 0")
        for part in self.parts:
            if isinstance(part, Mixture):
                raise ValueError("a mixture inside a mixture; write all parts in one, with weights that multiply")
            if type(part).losses is not Objective.losses:
                raise ValueError(f"{part.kind} passes through the model in its own manner and cannot share a batch")
        if not _shared(self.parts):
            raise ValueError(
                "no structure serves all parts: " + ", ".join(f"{p.kind} {'/'.join(p.structures)}" for p in self.parts)
            )
        return self

    def shares(self, progress: float) -> np.ndarray:
        """float64[parts]: the chance of each part when so much of the stage is done (0 to 1)."""
        start = np.array(self.weights or [1.0] * len(self.parts))
        end = np.array(self.until or start)
        t = min(max(progress, 0.0), 1.0)
        mixed = (1 - t) * start / start.sum() + t * end / end.sum()
        return mixed / mixed.sum()

    @property
    def vectors(self) -> tuple[Vectors, ...]:
        return tuple(dict.fromkeys(each for part in self.parts for each in part.vectors))

    def tables(self, tokenizer: Tokenizer, run: Path | None = None) -> dict[str, Any]:
        return {name: table for part in self.parts for name, table in part.tables(tokenizer, run).items()}

    def tokens(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.tokens()))

    def needs(self, ctx: Context) -> None:
        for part in self.parts:
            part.needs(ctx)

    def starved(self, supply: Supply) -> list[Lack]:
        return [lack for part in self.parts for lack in part.starved(supply)]

    def rows(self, ctx: Context) -> Mapping[str, int]:
        most: dict[str, int] = {}
        for part in self.parts:
            for name, row in part.rows(ctx).items():
                most[name] = max(row, most.get(name, 0))
        return most

    @property
    def marked(self) -> bool:
        return any(part.marked for part in self.parts)

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        """Every document's examples as its part forms them, those of the first part first."""
        documents = np.arange(len(tokens))
        draw = ctx.uniform(tokens.keys, documents, np.zeros_like(documents), PART)
        edges = np.cumsum(self.shares(ctx.progress))
        last = int(np.flatnonzero(np.diff(edges, prepend=0))[-1])  # rounding may leave the sum a hair below 1
        drawn = np.minimum(np.searchsorted(edges, draw, side="right"), last)
        made = []
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(drawn == number)
            if len(mine):
                batch = part.form(part.grouped(some_texts(tokens, mine)), ctx)
                each = text_target(np.arange(len(batch)), np.full(len(batch), number), at="document")
                made.append(replace(batch, targets={**batch.targets, PART: each}) if len(batch) else batch)
        return join_all(made)

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        if not len(batch):
            return batch
        part = np.full(len(batch), -1)  # dead documents belong to nobody
        chosen = batch.targets.get(PART)
        if chosen is not None:
            part[chosen.index] = chosen.value
        batch = replace(batch, targets={name: t for name, t in batch.targets.items() if name != PART})
        done, order = [], []
        for number in np.unique(part):
            mine = np.flatnonzero(part == number)
            alone = _alone(batch if len(mine) == len(batch) else take(batch, mine))
            done.append(self.parts[number].corrupt(alone, ctx) if number >= 0 else alone)
            order.append(mine)
        if len(done) == 1:
            return done[0]
        mixed = take(join_all(done), np.argsort(np.concatenate(order)))
        return replace(mixed, streams={name: _row(s, batch.streams.get(name)) for name, s in mixed.streams.items()})

    def misfits(self, model: Model) -> list[str]:
        return list(dict.fromkeys(why for part in self.parts for why in part.misfits(model)))

    def heads(self, model: Model) -> Mapping[str, Head]:
        heads: dict[str, Head] = {}
        for part in self.parts:
            for name, head in part.heads(model).items():
                check(
                    heads.setdefault(name, head) == head,
                    f"two parts of the mixture want different heads '{name}'",
                    "leave one of them out, or train them one stage after the other",
                )
        return heads

    def head_of(self, target: str) -> str:
        owners = self._owners(target)
        return owners[0][1].head_of(target) if owners else target

    def weight_of(self, target: str) -> float:
        """What the target weighs among those of its part; one that several parts ask for weighs as their mean, by their shares."""
        owners = self._owners(target) or list(enumerate(self.parts))
        shares = [float((self.shares(0.0) + self.shares(1.0))[number]) for number, _ in owners]
        return sum(s * part.weight_of(target) for s, (_, part) in zip(shares, owners, strict=True)) / (sum(shares) or 1.0)

    def counts(self, batch: Batch) -> dict[str, float]:
        """The summed target weights, of how many examples they are, and how many examples have any."""
        own = super().counts(batch)
        found = {name: examples_of(batch, target) for name, target in batch.targets.items()}
        every = np.unique(np.concatenate([*found.values(), np.zeros(0, np.int64)]))
        return own | {EXAMPLES + name: float(len(each)) for name, each in found.items()} | {EXAMPLES: float(len(every))}

    def step_weights(self, counts: Mapping[str, float]) -> dict[str, float]:
        """A part's mean loss weighs as its share of the step's examples does, so that a step is the mean over its examples, whichever part
        they are of, at every moment of shares that move."""
        names = [name for name in counts if not name.startswith(EXAMPLES)]
        return {name: self.weight_of(name) * counts[EXAMPLES + name] / max(counts[EXAMPLES], 1.0) for name in names}

    def _owners(self, target: str) -> Sequence[tuple[int, Objective]]:
        """The parts that ask for `target`: those it is called after, alone or before a dot (`unilm`, `ernie_gen.word`), joint ones by
        their parts'; failing these, the parts that know a head for it."""
        first = target.split(".")[0]
        called = [(n, p) for n, p in enumerate(self.parts) if first in _kinds(p)]
        return called or [(n, p) for n, p in enumerate(self.parts) if p.head_of(target) == target]


def some_texts(tokens: Tokens, documents: np.ndarray) -> Tokens:
    """These documents (int64[D'] into the block) with all that belongs to them."""
    parts = {name: _some(part, documents) for name, part in tokens.parts.items()}
    fields = {name: [values[i] for i in documents.tolist()] for name, values in tokens.fields.items()}
    return Tokens(parts, tokens.keys[documents], fields)


def _some(part: Part, documents: np.ndarray) -> Part:
    lengths, marks = (np.diff(bounds)[documents] for bounds in (part.bounds, part.mark_bounds))
    at = ranges(part.bounds[documents], lengths)
    return replace(
        part,
        ids=part.ids[at],
        bounds=bounds_of(lengths),
        words=part.words[at],
        sentences=part.sentences[at],
        marks=part.marks[ranges(part.mark_bounds[documents], marks)],
        mark_bounds=bounds_of(marks),
    )


def _kinds(part: Objective) -> set[str]:
    return reduce(set.union, (_kinds(p) for p in part.parts), {part.kind}) if isinstance(part, Joint) else {part.kind}


def _alone(batch: Batch) -> Batch:
    """The batch without the streams and targets of other parts, which are empty here."""
    streams = {name: s for name, s in batch.streams.items() if len(s.content)}
    return replace(batch, streams=streams, targets={name: t for name, t in batch.targets.items() if len(t.index)})


def _row(stream: Any, before: Any) -> Any:
    """Documents that kept their lengths still lie in the rows they lay in."""
    kept = before is not None and np.array_equal(stream.bounds, before.bounds)
    return replace(stream, row=before.row) if kept else stream

"""What a stage begins with: a model, and the weights it brings."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ziggurat.checkpoint import format as checkpoints
from ziggurat.context import Context
from ziggurat.errors import UserError, check
from ziggurat.nn import growth, halves
from ziggurat.nn import spec as parts
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective, context_of
from ziggurat.train import arms
from ziggurat.train.stage import Stage

if TYPE_CHECKING:
    from ziggurat.train.job import Job


@dataclass(frozen=True)
class Start:
    """What a stage begins with."""

    model: parts.Model
    heads: Mapping[str, parts.Head] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    load: Callable[[], Mapping[str, Tensor]] = dict
    """Its weights by parameter name, read when they are needed; none from scratch."""
    left: str = ""
    """What of its model stays behind."""

    def for_objective(self, objective: Objective) -> Start:
        """What the objective trains of it: of a generator and a discriminator the latter alone, unless it is made for both."""
        model = objective.part_of(self.model)
        if model is self.model:
            return self
        whole, load = parts.Network(model=self.model, heads=dict(self.heads)), self.load
        heads = halves.discriminator(whole, {}).network.heads
        return replace(
            self, model=model, heads=heads, load=lambda: halves.discriminator(whole, load()).tensors, left="the generator"
        )

    def grown(self, rows: Mapping[int, Sequence[int]], size: int) -> Start:
        """With `size` tokens, the new ones beginning as the mean of their pieces (`rows`: id -> old ids)."""
        whole, load = parts.Network(model=self.model, heads=dict(self.heads)), self.load
        model = growth.with_vocabulary(self.model, max(size, self.model.vocab))
        return replace(self, model=model, load=lambda: growth.grown(whole, load(), rows, size)[1])


def context(job: Job) -> Context:
    """What the stage's objective may know; raises `UserError` when the model is not made for the objective."""
    tokenizer, model, objective = job.tokenizer, job.start.model, job.stage.objective
    assert objective is not None
    misfits = objective.misfits(model)
    check(not misfits, "; ".join(misfits), "`ziggurat list objectives` says what suits which structure")
    forgets = objective.forgets(model, job.stage.memory)
    check(not forgets, "; ".join(forgets), "change `memory` of the stage")
    refuse(job.stage, model)
    check(
        tokenizer.vocab.size <= model.vocab,
        f"the tokenizer has {tokenizer.vocab.size:,} tokens, the model's table {model.vocab:,} rows",
        "use the tokenizer the checkpoint was trained with",
    )
    longest = model.embed.positions.length
    check(
        job.stage.length <= longest, f"length {job.stage.length} is longer than the model's {longest} positions", "lower `length`"
    )
    return context_of(model, tokenizer, job.stage.length, job.seed, job.tables)


def refuse(stage: Stage, model: parts.Model) -> None:
    """Raise `UserError` if a stage means layers or matrices that the model it trains does not have."""
    for setting, message, hint in arms.lacking(stage, model):
        raise UserError(f"{stage.title}: {setting}: {message}", hint)


def headed(stage: Stage, start: Start) -> None:
    """Raise `UserError` if a stage goes by what its start says, and that lacks a head to say it with."""
    for setting, message, hint in arms.headless(stage, start.model, start.heads):
        raise UserError(f"{stage.title}: {setting}: {message}", hint)


def build(job: Job, objective: Objective) -> tuple[NetworkModel, list[str], list[str]]:
    """The network with the start's weights; also the names of parameters that are new and of those that were dropped."""
    wanted = dict(objective.heads(job.start.model))
    network = NetworkModel(parts.Network(model=job.start.model, heads=wanted))
    generator = torch.Generator().manual_seed(number("weights", job.seed))
    own = network.state_dict()
    kept = {name for name, head in wanted.items() if job.start.heads.get(name) == head}
    tensors = job.start.load()
    carried = {n: t for n, t in tensors.items() if n.startswith("model.") or n.split(".")[1] in kept}
    new = [name for name in own if name not in carried]
    dropped = [name for name in tensors if name not in carried]
    if carried:
        body = {n: tuple(t.shape) for n, t in own.items() if n not in new or n.startswith("model.")}
        checkpoints.match(body, {n: tuple(t.shape) for n, t in carried.items()}, "the checkpoint to start from")
    network.initialise(generator, only=new)
    network.load_state_dict({**network.state_dict(), **carried})
    network.set_dropout(job.stage.dropout)
    return network, new, dropped


def number(purpose: str, seed: int) -> int:
    """The seed of a generator for one purpose."""
    return zlib.crc32(f"{purpose}/{seed}".encode())

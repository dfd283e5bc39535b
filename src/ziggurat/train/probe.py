"""What a stage will take on this machine, found by beginning it: seconds a step, memory, steps. Nothing is trained or written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziggurat.evaluate.heldout import autocast, held_out, reading
from ziggurat.nn import spec as parts
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.train import budget, loop
from ziggurat.train.job import Job
from ziggurat.train.loop import Trained
from ziggurat.train.retention import Retention
from ziggurat.train.stage import BatchLimits, Stage
from ziggurat.train.start import build, context
from ziggurat.types import Batch

FLOAT = 4
"""Bytes of a weight, of its gradient, and of each of AdamW's two running means: all are float32 whatever the products are."""
MOST = 100
"""Steps that are timed at most."""
SHARE = 0.2
"""Of the probe's time, for evaluation."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step, beside what the process takes with no model."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass of one micro-batch keeps for the backward pass."""

    @property
    def workspace(self) -> int:
        """What the backward pass takes for a moment: measured, a fifth to a third of the activations."""
        return self.activations // 4

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.workspace


@dataclass(frozen=True)
class Probe:
    """A stage on this machine."""

    steps: int
    """0 when the time was not measured."""
    memory: Memory
    seconds: float = 0.0
    """A step."""
    tokens: float = 0.0
    """Live tokens of a step."""
    evaluating: float = 0.0
    """Seconds a held-out token."""
    building: float = 0.0
    """Seconds to make network, optimiser and the first batch."""


def parameters(network: parts.Network) -> int:
    """Of a network that is not built."""
    with torch.device("meta"):
        return NetworkModel(network).parameter_count()


def static(count: int) -> Memory:
    """Of so many parameters, before any text."""
    return Memory(FLOAT * count, FLOAT * count, 2 * FLOAT * count, 0)


def probe(job: Job, limit: float, room: int) -> Probe:
    """Steps of a stage for `limit` seconds, at least two; the start's weights are not read, fresh ones are as heavy.

    The memory of a micro-batch is estimated from a single example first: where that is more than `room` bytes, nothing more is tried.
    Raises `UserError` for what the stage itself would raise it.
    """
    stage, objective = job.stage, job.stage.objective
    assert objective is not None
    ctx = context(job)
    objective.needs(ctx)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = loop.precision_of(stage.precision, device)
    count = parameters(parts.Network(model=job.start.model, heads=dict(objective.heads(job.start.model))))
    memory = static(count)
    if memory.total > room:
        return Probe(0, memory)
    began = time.perf_counter()
    light = replace(job, stage=_light(stage), start=replace(job.start, heads={}, load=dict))
    network, _, _ = build(light, objective)
    network.to(device)
    new = [name for name in network.state_dict() if name.startswith("heads.") and objective.labelled]
    retention = Retention(Path("nowhere"), light, network, objective, ctx, new)  # writes nothing: there is no Fisher information
    optimizer, trained = retention.optimizer(), retention.objective
    memory = _held(network, count, stage)
    with budget.loader(job, objective, ctx, 1, None) as loader:
        batches = iter(loader)
        whole = next(batches)
        building = time.perf_counter() - began
        alone = replace(job, stage=stage.model_copy(update={"batch": BatchLimits(documents=1), "memory": 0}))
        with budget.loader(alone, objective, ctx, 1, None) as single:
            one = next(iter(single))
        guess = kept(network, trained, objective, one, dtype) * whole.live_tokens() / max(one.live_tokens(), 1)
        if memory.total + guess > room:
            return Probe(0, replace(memory, activations=int(guess)))
        memory = replace(memory, activations=kept(network, trained, objective, whole, dtype))
        how: dict[str, Any] = {"steps": MOST, "limit": limit * (1 - SHARE), "recall": budget.recall(stage)}
        timed = loop.timed(network, trained, batches, stage.accumulate, optimizer, dtype, **how)
        timed = timed[1:] or timed
        evaluating = _evaluating(network, objective, batches, dtype, limit * SHARE)
    seconds = _trimmed([s for s, _ in timed])
    steps = budget.planned(stage)
    if steps is None:
        unit, amount = stage.budget
        counted = budget.in_epochs(job, objective, ctx, 1) * amount / stage.accumulate if unit == "epochs" else amount / seconds
        steps = max(1, int(counted) if unit == "time" else math.ceil(counted))
    return Probe(steps, memory, seconds, sum(t for _, t in timed) / len(timed), evaluating, building)


def _light(stage: Stage) -> Stage:
    """Without Fisher information, which takes long to find and next to nothing to use."""
    anchor = stage.anchor
    if anchor is None or not anchor.ewc:
        return stage
    return stage.model_copy(update={"anchor": anchor.model_copy(update={"ewc": 0.0}) if anchor.l2 else None})


def _held(network: NetworkModel, count: int, stage: Stage) -> Memory:
    """What is held while the stage trains, before any text: frozen weights have neither gradients nor means. A teacher is the whole start once
    more, an anchor what is trained of it, and once more a strength a weight where that is Fisher information."""
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    whole = max(count, sum(p.numel() for p in network.parameters()))
    held = whole * (1 + (stage.distill is not None))
    if stage.anchor is not None:
        held += trained * (1 + (stage.anchor.ewc > 0))
    return Memory(FLOAT * held, FLOAT * trained, 2 * FLOAT * trained, 0)


def kept(network: NetworkModel, trained: Trained, objective: Objective, batch: Batch, dtype: torch.dtype) -> int:
    """Bytes that the forward pass of a batch keeps for the backward pass; parameters are not counted, shared memory once. `trained` is
    what the stage trains: the objective, or that and a teacher's."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = tensor, storage.nbytes()  # held, so that no other takes its place
        return tensor

    network.train()
    device = next(network.parameters()).device
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, autocast(device, dtype), reading(network, objective, batch, None) as given:
        losses = trained.losses(network, given)
        total = sum(size for _, size in found.values())
    del losses
    return total


def _evaluating(network: NetworkModel, objective: Objective, batches: Iterator[Batch], dtype: torch.dtype, limit: float) -> float:
    """Seconds a token of held-out evaluation."""
    seconds, tokens = 0.0, 0
    while not tokens or seconds < limit:
        (batch,) = islice(batches, 1)
        began = time.perf_counter()
        held_out(network, objective, [batch], dtype)
        seconds += time.perf_counter() - began
        tokens += batch.live_tokens()
    return seconds / tokens


def _trimmed(values: list[float]) -> float:
    """The mean without the largest tenth: a pause of the machine is not the stage's."""
    some = sorted(values)[: len(values) - len(values) // 10]
    return sum(some) / len(some)

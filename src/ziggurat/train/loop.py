"""One stage, step by step. It knows no objective and no system by name; it receives them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ziggurat.errors import Stopped, UserError
from ziggurat.evaluate.heldout import autocast, reading
from ziggurat.nn.memory import Recall
from ziggurat.nn.network import NetworkModel
from ziggurat.train.memory import keep_freed_memory
from ziggurat.train.optim import clip
from ziggurat.types import Batch, Losses

log = logging.getLogger(__name__)

SKIPS = 10
"""Steps in a row with a loss or gradient that is no number before a stage gives up."""


class Diverged(UserError):
    """Training gave up: `SKIPS` steps in a row without a finite loss."""


class Trained(Protocol):
    """What is minimised: an objective, or one with more behind it."""

    def counts(self, batch: Batch) -> dict[str, float]: ...
    def step_weights(self, counts: Mapping[str, float]) -> dict[str, float]: ...
    def remembered(self, batch: Batch) -> np.ndarray: ...
    def losses(self, network: NetworkModel, batch: Batch) -> Losses: ...


@dataclass(frozen=True)
class Plan:
    """The length of a stage and when things happen in it; all numbers are steps, 0 = never."""

    steps: int
    accumulate: int
    clip: float
    rate: Callable[[int], float]
    """Learning rate of a step, counted from 0."""
    log_every: int
    evaluate_every: int
    save_every: int


@dataclass
class Progress:
    """What a stage has done so far; saved in every checkpoint."""

    step: int = 0
    tokens: int = 0
    """Tokens the model has read, padding left out."""
    seconds: float = 0.0
    """Training time, evaluation and saving left out."""
    evaluating: float = 0.0
    """Seconds of evaluation."""
    skipped: int = 0
    curve: list[list[float]] = field(default_factory=list)
    """[step, mean training loss since the last entry]"""
    since: list[dict[str, float]] = field(default_factory=list)
    """The losses of the steps since the last log line, so that a resumed run logs the same means."""


def precision_of(wanted: str, device: torch.device) -> torch.dtype:
    """`fp32`, `bf16`, or `auto`: bf16 where the hardware multiplies it natively (elsewhere it is slower, not faster)."""
    if wanted == "fp32":
        return torch.float32
    if wanted == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", lambda: {})()
    native = known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16")
    return torch.bfloat16 if native else torch.float32


def backward(
    network: NetworkModel,
    objective: Trained,
    micro: list[Batch],
    device: torch.device,
    dtype: torch.dtype,
    recall: Recall | None = None,
) -> dict[str, float]:
    """Gradients of one step's loss, exactly those of one big batch: each loss is divided once, by the count of all of the
    step's micro-batches. What examples remember comes from `recall` and goes there; no gradient flows into it. Returns the mean of
    each loss, and their weighted sum as `loss`."""
    counts: dict[str, float] = {}
    for batch in micro:
        for name, count in objective.counts(batch).items():
            counts[name] = counts.get(name, 0.0) + count
    weights = objective.step_weights(counts)
    sums = dict.fromkeys(weights, 0.0)
    for batch in micro:
        with autocast(device, dtype), reading(network, objective, batch, recall) as given:
            losses = objective.losses(network, given)
        terms = [loss.total * (weights[n] / counts[n]) for n, loss in losses.items() if counts[n] > 0]
        if terms:
            torch.stack(terms).sum().backward()
        for name, loss in losses.items():
            sums[name] += float(loss.total.detach())
    means = {name: total / counts[name] for name, total in sums.items() if counts[name] > 0}
    means["loss"] = sum(weights[name] * mean for name, mean in means.items())
    return means


def train(
    network: NetworkModel,
    objective: Trained,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    progress: Progress,
    *,
    dtype: torch.dtype,
    write: Callable[[int, Mapping[str, Any]], None],
    evaluate: Callable[[NetworkModel], Mapping[str, float]],
    save: Callable[[Progress], None],
    show: Callable[[Progress, Mapping[str, float]], None],
    stop: Callable[[], bool],
    recall: Recall | None = None,
) -> Progress:
    """Train from `progress.step` to `plan.steps`. Each line below is one thing that happens in a step.

    `batches` is endless. `write` takes a step's numbers, `evaluate` scores on held-out text, `save` writes a checkpoint, `show` moves the
    progress bar, `stop` says whether a signal came in, `recall` is the memory of a stage that has one. Raises `Stopped` after saving when it did, and `Diverged` after
    SKIPS steps in a row without a finite loss: such steps are skipped and change nothing.
    """
    device = next(network.parameters()).device
    parameters = [p for p in network.parameters() if p.requires_grad]
    bad = 0
    keep_freed_memory()
    network.train()
    window = (time.perf_counter(), progress.tokens)
    while progress.step < plan.steps:
        began = time.perf_counter()
        micro = [next(batches) for _ in range(plan.accumulate)]
        rate = plan.rate(progress.step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        means = backward(network, objective, micro, device, dtype, recall)
        norm = float(clip(parameters, plan.clip))
        if math.isfinite(means["loss"]) and math.isfinite(norm):
            optimizer.step()
            progress.since.append(means)
            bad = 0
        else:
            bad += 1
            progress.skipped += 1
            if recall is not None:
                recall.forget()  # it may hold what is no number
            log.warning("step %d skipped: loss %s, gradient norm %s", progress.step + 1, means["loss"], norm)
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += sum(batch.live_tokens() for batch in micro)
        progress.seconds += time.perf_counter() - began
        if bad >= SKIPS:
            raise Diverged(
                f"training diverged: {SKIPS} steps in a row without a finite loss, up to step {progress.step}",
                "lower optim.lr or raise schedule.warmup; the last checkpoint is from before",
            )
        last = progress.step == plan.steps
        since = progress.since
        if since and (progress.step % plan.log_every == 0 or last):
            now = time.perf_counter()
            numbers = {name: _mean([m[name] for m in since if name in m]) for name in {n: 0 for m in since for n in m}}
            speed = (progress.tokens - window[1]) / max(now - window[0], 1e-9)
            numbers |= {"lr": rate, "grad_norm": norm, "tokens": progress.tokens, "tokens_per_second": speed}
            progress.curve.append([progress.step, numbers["loss"]])
            write(progress.step, numbers)
            show(progress, numbers)
            progress.since, window = [], (now, progress.tokens)
        if plan.evaluate_every and progress.step % plan.evaluate_every == 0 and not last:
            began = time.perf_counter()
            write(progress.step, evaluate(network))
            progress.evaluating += time.perf_counter() - began
            network.train()
            window = (time.perf_counter(), progress.tokens)
        stopping = stop()
        if stopping or last or (plan.save_every and progress.step % plan.save_every == 0):
            save(progress)
            window = (time.perf_counter(), progress.tokens)
        if stopping and not last:
            raise Stopped
    return progress


def timed(
    network: NetworkModel,
    objective: Trained,
    batches: Iterator[Batch],
    accumulate: int,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    *,
    steps: int,
    limit: float,
    recall: Recall | None = None,
) -> list[tuple[float, int]]:
    """(seconds, live tokens) of up to `steps` steps or `limit` seconds, at least one. The weights stay as they are: `optimizer`,
    which is used up, steps with a rate of 0."""
    device = next(network.parameters()).device
    network.train()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    found: list[tuple[float, int]] = []
    while not found or (len(found) < steps and sum(seconds for seconds, _ in found) < limit):
        began = time.perf_counter()
        micro = [next(batches) for _ in range(accumulate)]
        backward(network, objective, micro, device, dtype, recall)
        if math.isfinite(float(clip(network.parameters(), 1.0))):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append((time.perf_counter() - began, sum(batch.live_tokens() for batch in micro)))
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

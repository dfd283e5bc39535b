"""How long a stage is: its batches, and its budget in steps."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ziggurat.atomic import write_json
from ziggurat.context import Context
from ziggurat.data.loader import FORMAT, MIXED, Loader
from ziggurat.data.order import Corpus, Order, shares
from ziggurat.nn.memory import Recall
from ziggurat.objectives.base import Objective
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.train import loop, settings
from ziggurat.train.retention import Retention
from ziggurat.train.stage import Stage

if TYPE_CHECKING:
    from ziggurat.train.job import Job

log = logging.getLogger(__name__)

PROBE = 20
"""Steps that are timed to turn a time budget into steps."""
PROBE_SHARE = 0.05
"""The most of a time budget that this may take."""


def mixture(stage: Stage, shards: Mapping[str, Corpus]) -> dict[str, float]:
    """Each source's share of the tokens: replayed sources have theirs of all, the rest is for `data` by its own shares and for what is
    nearest to it, as large as they are."""
    own = shares(shards, {name: share.weight for name, share in stage.data.items()}, stage.temperature)
    if not stage.replay and not stage.nearest:
        return own
    near = {name: shards[name].tokens for name in stage.nearest}
    rest = (1 - sum(stage.replay.values())) / (whole := sum(shards[name].tokens for name in stage.data) + sum(near.values()))
    mine = (whole - sum(near.values())) * rest / sum(own.values())
    return {n: s * mine for n, s in own.items()} | {n: tokens * rest for n, tokens in near.items()} | stage.replay


def passes(stage: Stage) -> str | None:
    """The source whose epochs are the stage's; None of several in `data`, for each has its own."""
    return next(iter(stage.data)) if len(stage.data) == 1 else None


def loader(job: Job, objective: Objective, ctx: Context, steps: int, state: Mapping[str, int] | None) -> Loader:
    """The stage's batches from `state` on, or from the first."""
    stage = job.stage
    tokens, documents = stage.batch.tokens, stage.batch.documents
    return Loader(
        job.shards,
        mixture(stage, job.shards),
        objective,
        ctx,
        row=objective.rows(ctx),
        tokens=None if documents else tokens,
        documents=documents,
        seed=job.seed,
        contiguous=stage.accumulate if stage.memory else 0,
        passes=passes(stage),
        total_tokens=steps * stage.accumulate * tokens if tokens and not documents else None,
        state=state,
    )


def recall(stage: Stage) -> Recall | None:
    """The memory of a stage that has one."""
    return Recall(stage.memory, stage.accumulate) if stage.memory else None


def planned(stage: Stage) -> int | None:
    """The steps of a budget in steps or tokens; None where they have to be counted (epochs) or measured (time)."""
    unit, amount = stage.budget
    if unit == "steps":
        return int(amount)
    if unit == "tokens":
        assert stage.batch.tokens is not None  # resolved
        return max(1, math.ceil(amount / (stage.batch.tokens * stage.accumulate)))
    return None


def settled(folder: Path, stage: Stage) -> int | None:
    """The steps of a stage of which something was trained in `folder`, by its budget; None where nothing was."""
    if not settings.begun(folder):
        return None
    written = folder / settings.BUDGET
    return planned(stage) or (int(json.loads(written.read_text("utf-8"))["steps"]) if written.exists() else None)


def in_rows(stage: Stage, rows: Corpus, seed: int) -> int | None:
    """The steps of a fine-tuning in epochs, counted from its rows without forming them. None where that does not tell: batches are limited
    by tokens, or a row may become several examples (question answering)."""
    if stage.batch.documents is None or isinstance(stage.objective, QuestionAnswering):
        return None
    assert stage.epochs is not None
    order, count = Order({"": rows}, {"": 1.0}, seed=seed), 0
    place = order.start()
    while place.cursors[0].epoch < stage.epochs:
        draws, place = order.block(place)
        count += math.ceil(sum(len(draw.documents) for draw in draws) / stage.batch.documents)
    return math.ceil(count / stage.accumulate)


def in_epochs(job: Job, objective: Objective, ctx: Context, epochs: int) -> int:
    """The micro-batches of so many passes over `data`, with what is replayed or near meanwhile."""
    with loader(job, objective, ctx, 1, None) as batches:
        return batches.count(epochs)


def steps(folder: Path, job: Job, objective: Objective, retention: Retention, ctx: Context, dtype: torch.dtype) -> int:
    """The stage's budget in steps; of a time budget measured once, here or by the job that this one is compared with, written down and
    final. Epochs are those of `data`: what is replayed or near comes on top."""
    stage = job.stage
    unit, amount = stage.budget
    known = planned(stage)
    if known is not None:
        return known
    written = folder / settings.BUDGET
    blocks = MIXED if unit == "epochs" and len(stage.reads) > 1 else FORMAT
    if written.exists():
        found = json.loads(written.read_text("utf-8"))
        if found.get("blocks", FORMAT) == blocks or any(folder.glob("step-*")):
            return int(found["steps"])  # of other blocks only where something was trained: the loader refuses to go on
    if unit == "epochs":
        count = math.ceil(in_epochs(job, objective, ctx, int(amount)) / stage.accumulate)
        facts: dict[str, Any] = {"steps": count, "epochs": amount, **({"blocks": blocks} if blocks != FORMAT else {})}
    elif job.steps is not None:
        count, facts = job.steps, {"steps": job.steps, "seconds": amount}
    else:
        with loader(job, objective, ctx, 1, None) as batches:
            spare, limit, network, trained = retention.optimizer(), amount * PROBE_SHARE, retention.network, retention.objective
            how: dict[str, Any] = {"steps": PROBE, "limit": limit, "recall": recall(stage)}
            times = [s for s, _ in loop.timed(network, trained, iter(batches), stage.accumulate, spare, dtype, **how)]
        each = statistics.median(times[1:] or times)  # the first step is slower than the others
        count = max(1, int(amount / each))
        facts = {"steps": count, "seconds": amount, "seconds_per_step": each}
        log.info("%s: %.0f s are %d steps at %.3f s a step", stage.title, amount, count, each)
    write_json(written, facts)
    return count

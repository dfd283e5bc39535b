"""One stage as a folder: from a start to a checkpoint, resumed where it stopped.

<stage>/  stage.json  budget.json  metrics.jsonl  step-00000400/  hf/  outcome.json  DONE
"""

from __future__ import annotations

import json
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziggurat.atomic import write_json, write_text
from ziggurat.checkpoint import format as checkpoints
from ziggurat.config import spelled
from ziggurat.context import Context
from ziggurat.data.loader import Loader
from ziggurat.data.order import shares
from ziggurat.data.shards import Shards
from ziggurat.errors import check
from ziggurat.log import Metrics, ProgressBar, Sink, read_metrics
from ziggurat.nn import spec as parts
from ziggurat.nn.attention import pick
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective, context_of
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import lineage, loop, schedule, settings
from ziggurat.train.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from ziggurat.train.stage import Stage
from ziggurat.train.start import Start

log = logging.getLogger(__name__)

PROBE = 20
"""Steps that are timed to turn a time budget into steps."""
PROBE_SHARE = 0.05
"""The most of a time budget that this may take."""


@dataclass(frozen=True)
class Outcome:
    """What a finished stage leaves behind for the report."""

    steps: int
    tokens: int
    seconds: float
    curve: list[list[float]]
    held_out: dict[str, dict[str, float]]
    """Source -> its numbers on text the stage did not see."""
    parameters: int
    precision: str
    skipped: int = 0
    evaluation_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Job:
    """Everything a stage needs besides its folder."""

    stage: Stage
    start: Start
    shards: Mapping[str, Shards]
    tokenizer: Tokenizer
    system: str
    seed: int
    facts: Mapping[str, Any]
    """What else decides the result (hashes of the data, the parent stage): a change of any is an error on resume."""
    held_out: Callable[[NetworkModel, Objective, torch.dtype], dict[str, dict[str, float]]]
    held: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False)
    """Around the training loop: gives the question whether a signal asks to stop."""
    title: str = ""
    """What the console calls it when it is not one of the recipe's stages."""
    sinks: Callable[[int], Sequence[Sink]] = lambda after: ()
    """Further takers of the metrics, given the step that training continues from."""


def context(job: Job) -> Context:
    """What the stage's objective may know; raises `UserError` when the model is not made for the objective."""
    tokenizer, model, objective = job.tokenizer, job.start.model, job.stage.objective
    assert objective is not None
    misfits = objective.misfits(model)
    check(not misfits, "; ".join(misfits), "`ziggurat list objectives` says what suits which structure")
    check(
        tokenizer.vocab.size <= model.vocab,
        f"the tokenizer has {tokenizer.vocab.size:,} tokens, the model's table {model.vocab:,} rows",
        "use the tokenizer the checkpoint was trained with",
    )
    longest = model.embed.positions.length
    check(
        job.stage.length <= longest, f"length {job.stage.length} is longer than the model's {longest} positions", "lower `length`"
    )
    return context_of(model, tokenizer, job.stage.length, job.seed, objective.tables(tokenizer))


def build(job: Job, objective: Objective) -> tuple[NetworkModel, list[str], list[str]]:
    """The network with the start's weights; also the names of parameters that are new and of those that were dropped."""
    wanted = dict(objective.heads(job.start.model))
    network = NetworkModel(parts.Network(model=job.start.model, heads=wanted))
    generator = torch.Generator().manual_seed(_number("weights", job.seed))
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


def run_stage(folder: Path, job: Job) -> Outcome:
    """Run the stage, or go on with it, or find it done.

    Raises `UserError` when the folder holds a stage of other settings, `Stopped` when a signal came in.
    """
    stage, objective = job.stage, job.stage.objective
    assert objective is not None
    tables = {name: table.digest for name, table in objective.tables(job.tokenizer).items()}
    settings.keep(
        folder,
        {
            **({"tables": tables} if tables else {}),
            "stage": {k: v for k, v in spelled(stage).items() if k not in ("save", "log_every")},
            "model": spelled(job.start.model),
            "system": job.system,
            "tokenizer": job.tokenizer.fingerprint,
            "seed": job.seed,
            **job.facts,
        },
    )
    if done(folder):
        outcome = Outcome(**json.loads((folder / "outcome.json").read_text("utf-8")))
        problems = checkpoints.verify(checkpoints.at(folder, outcome.steps))
        if not problems:
            return outcome
        log.warning("%s: its last steps are trained again, for the last checkpoint is damaged: %s", stage.title, problems[0])
        (folder / "DONE").unlink()
    ctx = context(job)
    objective.needs(ctx)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = loop.precision_of(stage.precision, device)
    network, new, dropped = build(job, objective)
    carried = len(new) < len(network.state_dict())
    title = job.title or stage.title
    say = log.debug if job.title else log.info
    if carried and job.start.left:
        say("%s: starts from the discriminator alone; %s is left behind", title, job.start.left)
    if carried and (new or dropped):
        say("%s: fresh weights for %s; dropped %s", title, _heads(new), _heads(dropped))
    network.to(device)
    steps = _steps(folder, job, objective, network, ctx, dtype)
    found = checkpoints.latest(folder)
    saved = checkpoints.load(found) if found else None
    here = {"threads": torch.get_num_threads(), "precision": _name(dtype), "device": device.type}
    with loader_of(job, objective, ctx, steps, saved.state["loader"] if saved else None) as loader:
        optimizer = build_optimizer(network, stage.optim)
        torch.manual_seed(_number("dropout", job.seed))
        progress = loop.Progress()
        if saved is not None:
            network.load_state_dict(saved.tensors)
            if saved.optimizer:
                load_optimizer_tensors(optimizer, network, saved.optimizer)
            _set_random_state(saved.rng)
            progress = loop.Progress(**saved.state["progress"])
            _warn_of_changes(title, saved.state.get("machine", here), here)
            log.info("%s: going on from step %d of %d", title, progress.step, steps)
        else:
            say("%s: %s", title, _opening(job, network, ctx, steps, dtype))
        card = checkpoints.Card(
            network.spec,
            system=job.system,
            lineage=job.start.lineage,
            fingerprint=job.tokenizer.fingerprint,
            more={"length": stage.length, "dropout": stage.dropout, "labels": list(getattr(objective, "label_names", tuple)())},
        )

        def entry(progress: loop.Progress) -> dict[str, Any]:
            contents = job.facts.get("data", {})
            return lineage.entry(stage, job.shards, contents, job.seed, progress.step, progress.tokens, progress.seconds)

        def save(progress: loop.Progress) -> None:
            last = progress.step == steps
            checkpoints.save(
                folder,
                progress.step,
                replace(card, lineage=(*job.start.lineage, entry(progress))),
                network.state_dict(),
                state={"progress": asdict(progress), "loader": loader.state(), "machine": here},
                optimizer=None if last else optimizer_tensors(optimizer, network),
                rng=_random_state(),
                tokenizer=job.tokenizer.save,
                keep=stage.save.keep,
            )

        def evaluate(network: NetworkModel) -> dict[str, float]:
            numbers = job.held_out(network, objective, dtype)
            return {f"heldout/{source}/{name}": value for source, some in numbers.items() for name, value in some.items()}

        plan = loop.Plan(
            steps=steps,
            accumulate=stage.accumulate,
            clip=stage.optim.clip or math.inf,
            rate=lambda step: stage.optim.lr * schedule.rate(step, steps=steps, spec=stage.schedule),
            log_every=stage.log_every,
            evaluate_every=stage.evaluate.every or 0,
            save_every=stage.save.every or 0,
        )
        with (
            Metrics(folder / "metrics.jsonl", after=progress.step, sinks=job.sinks(progress.step)) as metrics,
            ProgressBar(title, steps, start=progress.step) as bar,
        ):
            with job.held() as stop:
                loop.train(
                    network,
                    objective,
                    iter(loader),
                    optimizer,
                    plan,
                    progress,
                    dtype=dtype,
                    write=metrics.write,
                    evaluate=evaluate,
                    save=save,
                    show=lambda p, numbers: bar.show(p.step, numbers),
                    stop=stop,
                )
            began = time.perf_counter()
            held_out = job.held_out(network, objective, dtype)
            progress.evaluating += time.perf_counter() - began
            numbers = {f"heldout/{s}/{n}": v for s, some in held_out.items() for n, v in some.items()}
            lines = read_metrics(folder / "metrics.jsonl")
            if numbers and not (lines and numbers.keys() <= lines[-1].keys()):  # a run that was killed just now has it
                metrics.write(steps, numbers)
    outcome = Outcome(
        progress.step,
        progress.tokens,
        progress.seconds,
        progress.curve,
        held_out,
        sum(p.numel() for p in network.parameters()),
        _name(dtype),
        progress.skipped,
        progress.evaluating,
    )
    write_json(folder / "outcome.json", asdict(outcome))
    return outcome


def finish(folder: Path) -> None:
    """Mark a stage as done: nothing of it is computed again."""
    write_text(folder / "DONE", "")


def done(folder: Path) -> bool:
    """Whether a stage is done."""
    return (folder / "DONE").exists()


def _opening(job: Job, network: NetworkModel, ctx: Context, steps: int, dtype: torch.dtype) -> str:
    """What is about to be trained, how much at a time and in which way, in one line."""
    stage = job.stage
    device = next(network.parameters()).device.type
    batch = f"{stage.batch.documents} documents" if stage.batch.documents else f"{stage.batch.tokens:,} tokens"
    kernel = pick(ctx.visibility, device=device, dtype=dtype, length=ctx.length, dropout=stage.dropout, masked=True)
    return (
        f"{steps:,} steps of {f'{stage.accumulate} x ' if stage.accumulate > 1 else ''}{batch}, "
        f"{network.parameter_count():,} parameters, {_name(dtype)}, {kernel} attention, "
        f"{device} ({torch.get_num_threads()} threads)"
    )


def loader_of(job: Job, objective: Objective, ctx: Context, steps: int, state: Mapping[str, int] | None) -> Loader:
    stage = job.stage
    tokens, documents = stage.batch.tokens, stage.batch.documents
    return Loader(
        job.shards,
        shares(job.shards, {name: share.weight for name, share in stage.data.items()}, stage.temperature),
        objective,
        ctx,
        row=objective.rows(ctx),
        tokens=None if documents else tokens,
        documents=documents,
        seed=job.seed,
        total_tokens=steps * stage.accumulate * tokens if tokens and not documents else None,
        state=state,
    )


def planned(stage: Stage) -> int | None:
    """The steps of a budget in steps or tokens; None where they have to be counted (epochs) or measured (time)."""
    unit, amount = stage.budget
    if unit == "steps":
        return int(amount)
    if unit == "tokens":
        assert stage.batch.tokens is not None  # resolved
        return max(1, math.ceil(amount / (stage.batch.tokens * stage.accumulate)))
    return None


def in_epochs(job: Job, objective: Objective, ctx: Context, epochs: int) -> int:
    """The steps of so many passes over the data."""
    with loader_of(job, objective, ctx, 1, None) as loader:
        return math.ceil(loader.count(epochs) / job.stage.accumulate)


def _steps(folder: Path, job: Job, objective: Objective, network: NetworkModel, ctx: Context, dtype: torch.dtype) -> int:
    """The stage's budget in steps; of a time budget measured once, written down and final."""
    stage = job.stage
    unit, amount = stage.budget
    known = planned(stage)
    if known is not None:
        return known
    written = folder / "budget.json"
    if written.exists():
        return int(json.loads(written.read_text("utf-8"))["steps"])
    if unit == "epochs":
        steps = in_epochs(job, objective, ctx, int(amount))
        facts: dict[str, Any] = {"steps": steps, "epochs": amount}
    else:
        with loader_of(job, objective, ctx, 1, None) as loader:
            spare, limit = build_optimizer(network, stage.optim), amount * PROBE_SHARE
            each = loop.measure(network, objective, iter(loader), stage.accumulate, spare, dtype, steps=PROBE, limit=limit)
        steps = max(1, int(amount / each))
        facts = {"steps": steps, "seconds": amount, "seconds_per_step": each}
        log.info("%s: %.0f s are %d steps at %.3f s a step", stage.title, amount, steps, each)
    write_json(written, facts)
    return steps


def _number(purpose: str, seed: int) -> int:
    return zlib.crc32(f"{purpose}/{seed}".encode())


def _heads(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(".".join(n.split(".")[:2]) for n in names)) or "nothing"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _random_state() -> dict[str, Tensor]:
    """States of the generators that dropout draws from."""
    states = {"torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _warn_of_changes(title: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changes = [f"{before.get(key)} -> {now[key]} ({key})" for key in now if before.get(key) != now[key]]
    if changes:
        log.warning(
            "%s goes on in another way than it was saved: %s; results agree to rounding, not bit for bit",
            title,
            ", ".join(changes),
        )

"""One stage as a folder: from a start to a checkpoint, resumed where it stopped.

<stage>/  stage.json  metrics.jsonl  step-00000400/  hf/  outcome.json  DONE
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziggurat.checkpoint import format as checkpoints
from ziggurat.config import spelled
from ziggurat.context import Context
from ziggurat.data.loader import Loader
from ziggurat.data.shards import Shards
from ziggurat.errors import UserError, check
from ziggurat.log import Metrics, ProgressBar, Sink
from ziggurat.nn import spec as parts
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import loop, schedule
from ziggurat.train.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from ziggurat.train.stage import Stage

log = logging.getLogger(__name__)

PROBE = 20
"""Steps that are timed to turn a time budget into steps."""
PROBE_SHARE = 0.05
"""The most of a time budget that this may take."""


@dataclass(frozen=True)
class Start:
    """The weights a stage begins with; without tensors, from scratch."""

    model: parts.Single
    heads: Mapping[str, parts.Head] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()


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
    stop: Callable[[], bool] = lambda: False
    title: str = ""
    """What the progress bar says; default: the stage's title."""
    sinks: tuple[Sink, ...] = ()


def context(job: Job) -> Context:
    """What the stage's objective may know."""
    tokenizer, model = job.tokenizer, job.start.model
    check(
        tokenizer.vocab.size <= model.vocab,
        f"the tokenizer has {tokenizer.vocab.size:,} tokens, the model's table {model.vocab:,} rows",
        "use the tokenizer the checkpoint was trained with",
    )
    longest = model.embed.positions.length
    check(
        job.stage.length <= longest, f"length {job.stage.length} is longer than the model's {longest} positions", "lower `length`"
    )
    return Context(tokenizer.vocab, tokenizer.layout, job.stage.length, model.visibility, job.seed)


def build(job: Job, objective: Objective) -> tuple[NetworkModel, list[str], list[str]]:
    """The network with the start's weights; also the names of parameters that are new and of those that were dropped."""
    wanted = dict(objective.heads(job.start.model))
    network = NetworkModel(parts.Network(model=job.start.model, heads=wanted))
    generator = torch.Generator().manual_seed(_number("weights", job.seed))
    own = network.state_dict()
    kept = {name for name, head in wanted.items() if job.start.heads.get(name) == head}
    carried = {n: t for n, t in job.start.tensors.items() if n.startswith("model.") or n.split(".")[1] in kept}
    new = [name for name in own if name not in carried]
    dropped = [name for name in job.start.tensors if name not in carried]
    if carried:
        body = {n: tuple(t.shape) for n, t in own.items() if n not in new or n.startswith("model.")}
        checkpoints.match(body, {n: tuple(t.shape) for n, t in carried.items()}, "the checkpoint to start from")
    network.initialise(generator, only=new)
    network.load_state_dict({**network.state_dict(), **carried})
    network.set_dropout(job.stage.dropout)
    return network, new, dropped


def run_stage(folder: Path, job: Job) -> Outcome:
    """Run the stage, or go on with it, or find it done.

    Raises `UserError` when the folder holds a stage of other settings, `loop.Stopped` when a signal came in.
    """
    stage, objective = job.stage, job.stage.objective
    assert objective is not None
    _same_as_before(folder, job)
    if (folder / "DONE").exists():
        return Outcome(**json.loads((folder / "outcome.json").read_text("utf-8")))
    ctx = context(job)
    objective.needs(ctx)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = loop.precision_of(stage.precision, device)
    network, new, dropped = build(job, objective)
    if job.start.tensors:
        log.info("%s: fresh weights for %s; dropped %s", stage.title, _heads(new), _heads(dropped))
    network.to(device)
    steps = _steps(folder, job, objective, network, ctx, dtype)
    found = checkpoints.latest(folder) if folder.exists() else None
    saved = checkpoints.load(found) if found else None
    with _loader(job, objective, ctx, steps, saved.state["loader"] if saved else None) as loader:
        optimizer = build_optimizer(network, stage.optim)
        torch.manual_seed(_number("dropout", job.seed))
        progress = loop.Progress()
        if saved is not None:
            network.load_state_dict(saved.tensors)
            if saved.optimizer:
                load_optimizer_tensors(optimizer, network, saved.optimizer)
            torch.set_rng_state(saved.rng["torch"])
            progress = loop.Progress(**saved.state["progress"])
            _warn_of_threads(saved.state["threads"])
            log.info("%s: going on from step %d of %d", stage.title, progress.step, steps)
        card = checkpoints.Card(
            network.spec,
            system=job.system,
            lineage=job.start.lineage,
            fingerprint=job.tokenizer.fingerprint,
            more={"length": stage.length, "dropout": stage.dropout, "labels": list(getattr(objective, "label_names", tuple)())},
        )

        def save(progress: loop.Progress) -> None:
            last = progress.step == steps
            checkpoints.save(
                folder,
                progress.step,
                replace(card, lineage=(*job.start.lineage, _entry(job, progress))),
                network.state_dict(),
                state={"progress": asdict(progress), "loader": loader.state(), "threads": torch.get_num_threads()},
                optimizer=None if last else optimizer_tensors(optimizer, network),
                rng={"torch": torch.get_rng_state()},
                tokenizer=job.tokenizer.save,
                keep=stage.save.keep,
            )

        plan = loop.Plan(
            steps=steps,
            accumulate=stage.accumulate,
            clip=stage.optim.clip or math.inf,
            rate=lambda step: stage.optim.lr * schedule.rate(step, steps=steps, spec=stage.schedule),
            log_every=stage.log_every,
            evaluate_every=stage.evaluate.every or 0,
            save_every=stage.save.every or 0,
        )
        parameters = sum(p.numel() for p in network.parameters())
        with (
            Metrics(folder / "metrics.jsonl", after=progress.step, sinks=job.sinks) as metrics,
            ProgressBar(job.title or stage.title, steps, start=progress.step) as bar,
        ):

            def evaluate(network: NetworkModel) -> dict[str, float]:
                found = job.held_out(network, objective, dtype)
                return {f"heldout/{source}/{name}": value for source, numbers in found.items() for name, value in numbers.items()}

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
                stop=job.stop,
            )
            held_out = job.held_out(network, objective, dtype)
            metrics.write(steps, {f"heldout/{s}/{n}": v for s, numbers in held_out.items() for n, v in numbers.items()})
    outcome = Outcome(
        progress.step,
        progress.tokens,
        progress.seconds,
        progress.curve,
        held_out,
        parameters,
        str(dtype).removeprefix("torch."),
        progress.skipped,
    )
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome)), "utf-8")
    return outcome


def finish(folder: Path) -> None:
    """Mark a stage as done: nothing of it is computed again."""
    (folder / "DONE").touch()


def _loader(job: Job, objective: Objective, ctx: Context, steps: int, state: Mapping[str, int] | None) -> Loader:
    stage = job.stage
    tokens, documents = stage.batch.tokens, stage.batch.documents
    return Loader(
        job.shards,
        {name: share.weight for name, share in stage.data.items()},
        objective,
        ctx,
        row=stage.length,
        tokens=None if documents else tokens,
        documents=documents,
        seed=job.seed,
        total_tokens=steps * stage.accumulate * tokens if tokens and not documents else None,
        state=state,
    )


def _steps(folder: Path, job: Job, objective: Objective, network: NetworkModel, ctx: Context, dtype: torch.dtype) -> int:
    """The stage's budget in steps; of a time budget measured once, written down and final."""
    stage = job.stage
    unit, amount = stage.budget
    if unit == "steps":
        return int(amount)
    if unit == "tokens":
        check(
            stage.batch.tokens and not stage.batch.documents,
            f"stage {stage.title}: a budget in tokens needs batches limited by tokens",
            "set batch: {tokens: ...}, or give the budget in steps or epochs",
        )
        return max(1, math.ceil(amount / (stage.batch.tokens * stage.accumulate)))
    written = folder / "budget.json"
    if written.exists():
        return int(json.loads(written.read_text("utf-8"))["steps"])
    if unit == "epochs":
        with _loader(job, objective, ctx, 1, None) as loader:
            steps = math.ceil(loader.count(int(amount)) / stage.accumulate)
        facts: dict[str, Any] = {"steps": steps, "epochs": amount}
    else:
        with _loader(job, objective, ctx, 1, None) as loader:
            each = loop.measure(
                network, objective, iter(loader), stage.accumulate, dtype, steps=PROBE, limit=amount * PROBE_SHARE
            )
        steps = max(1, int(amount / each))
        facts = {"steps": steps, "seconds": amount, "seconds_per_step": each}
        log.info("%s: %.0f s are %d steps at %.3f s a step", stage.title, amount, steps, each)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = written.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts), "utf-8")
    temporary.replace(written)
    return steps


def _same_as_before(folder: Path, job: Job) -> None:
    """What decides a stage's result is written down; a folder with another one is not gone on with."""
    now = {
        "stage": {k: v for k, v in spelled(job.stage).items() if k not in ("save", "log_every")},
        "model": spelled(job.start.model),
        "system": job.system,
        "tokenizer": job.tokenizer.fingerprint,
        "seed": job.seed,
        **job.facts,
    }
    text = json.dumps(now, indent=1, ensure_ascii=False, sort_keys=True)
    path = folder / "stage.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
        return
    before = _flat(json.loads(path.read_text("utf-8")))
    after = _flat(json.loads(text))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if changed:
        shown = "\n".join(
            f"  {key}: was {before.get(key, 'absent')!s:.80}, is {after.get(key, 'absent')!s:.80}" for key in changed[:8]
        )
        raise UserError(
            f"{folder} was begun with other settings:\n{shown}",
            "give the recipe another `name`, delete this folder to begin it again, or take the change back",
        )


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, one in value.items() for k, v in _flat(one, f"{place}.{key}" if place else key).items()}
    return {place: value}


def fingerprint(folder: Path) -> str:
    """What identifies a finished stage to the stages after it: the hash of its settings, its ancestors' included."""
    return hashlib.sha256((folder / "stage.json").read_bytes()).hexdigest()[:16]


def _entry(job: Job, progress: loop.Progress) -> dict[str, Any]:
    stage = job.stage
    assert stage.objective is not None
    return {
        "stage": stage.stage,
        "name": stage.title,
        "objective": spelled(stage.objective),
        "data": {name: {"documents": len(s), "source": s.meta.get("source", "")} for name, s in job.shards.items()},
        "steps": progress.step,
        "tokens": progress.tokens,
        "seed": job.seed,
    }


def _number(purpose: str, seed: int) -> int:
    return zlib.crc32(f"{purpose}/{seed}".encode())


def _heads(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(".".join(n.split(".")[:2]) for n in names)) or "nothing"


def _warn_of_threads(before: int) -> None:
    now = torch.get_num_threads()
    if now != before:
        log.warning(
            "the run was saved with %d threads and goes on with %d: results agree to rounding, not bit for bit", before, now
        )

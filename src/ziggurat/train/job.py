"""One stage as a folder: from a start to a checkpoint, resumed where it stopped.

<stage>/  stage.json  budget.json  before.json  fisher.safetensors  metrics.jsonl  step-00000400/  within/  result/  hf/  adapter/  outcome.json  DONE
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziggurat.atomic import write_json, write_text
from ziggurat.checkpoint import format as checkpoints
from ziggurat.config import spelled
from ziggurat.context import Context
from ziggurat.data.shards import Shards
from ziggurat.errors import UserError
from ziggurat.log import Metrics, ProgressBar, Sink, read_metrics
from ziggurat.nn.attention import pick
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import budget, lineage, loop, schedule, settings, tasks
from ziggurat.train.adaptation import Shift, shift
from ziggurat.train.optim import load_optimizer_tensors, optimizer_tensors
from ziggurat.train.retention import Retention
from ziggurat.train.stage import Stage
from ziggurat.train.start import Start, build, context, number

log = logging.getLogger(__name__)


RESULT, WITHIN = checkpoints.RESULTS
"""Subfolders of a stage: weights between the start's and the trained ones, and the last ones that had not forgotten too much."""


class TooFar(Exception):
    """An evaluation passed the limit of forgetting."""

    def __init__(self, found: dict[str, dict[str, float]]):
        self.found = found


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
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same numbers of the weights it started from; empty where there was no language model yet."""
    stopped: bool = False
    """It ended early because it had forgotten too much; `steps` are those of the weights that were kept."""

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
    tables: Mapping[str, Any] = field(default_factory=dict)
    """What the objective reads from files of its own (`Objective.tables`)."""
    held: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False)
    """Around the training loop: gives the question whether a signal asks to stop."""
    general: Mapping[str, Shards] = field(default_factory=dict)
    """General text that says which weights matter (EWC)."""
    title: str = ""
    """What the console calls it when it is not one of the recipe's stages."""
    sinks: Callable[[int], Sequence[Sink]] = lambda after: ()
    """Further takers of the metrics, given the step that training continues from."""


def run_stage(folder: Path, job: Job) -> Outcome:
    """Run the stage, or go on with it, or find it done.

    Raises `UserError` when the folder holds a stage of other settings, `Stopped` when a signal came in.
    """
    stage, objective = job.stage, job.stage.objective
    assert objective is not None
    tables = {name: table.digest for name, table in job.tables.items()}
    unfelt = () if stage.forgetting is not None and stage.forgetting.stop else ("forgetting",)
    settings.keep(
        folder,
        {
            **({"tables": tables} if tables else {}),
            "stage": {k: v for k, v in spelled(stage).items() if k not in ("save", "log_every", *unfelt)},
            "model": spelled(job.start.model),
            "system": job.system,
            "tokenizer": job.tokenizer.fingerprint,
            "seed": job.seed,
            **job.facts,
        },
    )
    if done(folder):
        outcome = Outcome(**json.loads((folder / "outcome.json").read_text("utf-8")))
        problems = checkpoints.verify(result(folder, outcome.steps))
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
    before = _before(folder, job, network, dtype, new) if carried and not objective.labelled else {}
    parameters = network.parameter_count()
    retention = Retention(folder, job, network, objective, ctx, new)
    steps = budget.steps(folder, job, objective, retention, ctx, dtype)
    found = checkpoints.latest(folder)
    saved = checkpoints.load(found) if found else None
    here = {"threads": torch.get_num_threads(), "precision": _name(dtype), "device": device.type}
    with budget.loader(job, objective, ctx, steps, saved.state["loader"] if saved else None) as loader:
        optimizer = retention.optimizer()
        recall = budget.recall(stage)
        torch.manual_seed(number("dropout", job.seed))
        progress = loop.Progress()
        if saved is not None:
            moments = retention.restore(saved.tensors, saved.optimizer)
            if moments:
                load_optimizer_tensors(optimizer, network, moments)
            _set_random_state(saved.rng)
            if recall is not None:
                recall.load(saved.memory, device)
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
            more={"length": stage.length, "dropout": stage.dropout, **tasks.labels_of(objective)},
        )

        def entry(progress: loop.Progress) -> dict[str, Any]:
            contents = job.facts.get("data", {})
            return lineage.entry(stage, job.shards, contents, job.seed, progress.step, progress.tokens, progress.seconds)

        def save(progress: loop.Progress, within: bool = False) -> None:
            last = within or progress.step == steps
            checkpoints.save(
                folder / WITHIN if within else folder,
                progress.step,
                replace(card, lineage=(*job.start.lineage, entry(progress))),
                retention.weights(),
                state={"progress": asdict(progress), "loader": loader.state(), "machine": here},
                optimizer=retention.state() | ({} if last else optimizer_tensors(optimizer, network)),
                rng=_random_state(),
                memory=None if last or recall is None else recall.tensors(),
                tokenizer=job.tokenizer.save,
                keep=1 if within else stage.save.keep,
            )

        def held(network: NetworkModel) -> dict[str, dict[str, float]]:
            with retention.asked():
                return job.held_out(network, objective, dtype)

        def evaluate(network: NetworkModel) -> dict[str, float]:
            found = held(network)
            moved = shift(stage, before, found)
            if stage.forgetting is not None and stage.forgetting.stop and moved is not None:
                if moved.passed:
                    raise TooFar(found)
                save(progress, within=True)
            return flat(found)

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
            if before and not progress.step:
                metrics.write(0, flat(before))
            try:
                with job.held() as stop:
                    loop.train(
                        network,
                        retention.objective,
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
                        recall=recall,
                    )
                began = time.perf_counter()
                held_out = held(network)
                progress.evaluating += time.perf_counter() - began
                moved = shift(stage, before, held_out)
                if stage.forgetting is not None and stage.forgetting.stop and moved is not None and moved.passed:
                    raise TooFar(held_out)
            except TooFar as far:
                metrics.write(progress.step, flat(far.found))
                progress = _back(folder, title, retention, progress.step, shift(stage, before, far.found))
                held_out = held(network)
            lines = read_metrics(folder / "metrics.jsonl")
            if held_out and not (lines and flat(held_out).keys() <= lines[-1].keys()):  # a run that was killed just now has it
                metrics.write(progress.step, flat(held_out))
    if progress.step == steps:
        shutil.rmtree(folder / WITHIN, ignore_errors=True)  # the last step is within the limit
    moved = shift(stage, before, held_out)
    if moved is not None:
        (log.warning if moved.passed and not job.title else say)("%s: %s", title, moved.sentence)
    outcome = Outcome(
        progress.step,
        progress.tokens,
        progress.seconds,
        progress.curve,
        held_out,
        parameters,
        _name(dtype),
        progress.skipped,
        progress.evaluating,
        before,
        progress.step < steps,
    )
    write_json(folder / "outcome.json", asdict(outcome))
    return outcome


def result(folder: Path, steps: int) -> Path:
    """The checkpoint that a finished stage hands on."""
    kept = [checkpoints.at(folder / name, steps) for name in checkpoints.RESULTS]
    return next((place for place in kept if place.exists()), checkpoints.at(folder, steps))


def trained(folder: Path, steps: int) -> Path:
    """The checkpoint of what a finished stage trained, before its weights were interpolated."""
    kept = checkpoints.at(folder / WITHIN, steps)
    return kept if kept.exists() else checkpoints.at(folder, steps)


def flat(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Held-out numbers as metrics name them: heldout/<source>/<loss>."""
    return {f"heldout/{source}/{name}": value for source, some in found.items() for name, value in some.items()}


def _before(folder: Path, job: Job, network: NetworkModel, dtype: torch.dtype, new: list[str]) -> dict[str, dict[str, float]]:
    """Held-out numbers of the weights the stage starts from, measured once; none when its language-model head is new."""
    assert job.stage.objective is not None
    if any(name.startswith("heads.lm.") for name in new):
        log.info("%s: its language-model head is new, so there is no loss to compare with later", job.title or job.stage.title)
        return {}
    written = folder / "before.json"
    if not written.exists():
        write_json(written, job.held_out(network, job.stage.objective, dtype))
    found: dict[str, dict[str, float]] = json.loads(written.read_text("utf-8"))
    return found


def _back(folder: Path, title: str, retention: Retention, step: int, moved: Shift | None) -> loop.Progress:
    """Give the network the last weights that were within the limit of forgetting; raise `UserError` if there are none."""
    found = checkpoints.latest(folder / WITHIN)
    said = moved.sentence if moved is not None else ""
    if found is None:
        raise UserError(
            f"{title}: the first evaluation, at step {step}, is beyond the limit of forgetting: {said}",
            "evaluate more often (evaluate.every), lower optim.lr, add `replay`, or raise forgetting.limit",
        )
    saved = checkpoints.load(found)
    retention.restore(saved.tensors, saved.optimizer)
    progress = loop.Progress(**saved.state["progress"])
    log.warning(
        "%s: stopped at step %d, which passed the limit: %s; its result are the weights of step %d",
        title,
        step,
        said,
        progress.step,
    )
    return progress


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
    whole, trained = network.parameter_count(), sum(p.numel() for p in network.parameters() if p.requires_grad)
    return (
        f"{steps:,} steps of {f'{stage.accumulate} x ' if stage.accumulate > 1 else ''}{batch}, "
        f"{whole:,} parameters{f', {trained:,} of them trained' if trained < whole else ''}, {_name(dtype)}, {kernel} attention, "
        f"{device} ({torch.get_num_threads()} threads)"
    )


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

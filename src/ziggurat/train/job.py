"""One stage as a folder: from a start to a checkpoint, resumed where it stopped.

<stage>/  stage.json  budget.json  before.json  fisher.safetensors  metrics.jsonl  step-00000400/  within/  result/  hf/  adapter/  outcome.json  DONE
"""

from __future__ import annotations

import json
import logging
import math
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
from ziggurat.context import Context
from ziggurat.data.shards import Shards
from ziggurat.log import Metrics, ProgressBar, Sink, read_metrics
from ziggurat.nn.attention import pick
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import budget, lineage, loop, measured, schedule, settings, tasks
from ziggurat.train.adaptation import advice, as_read, shift
from ziggurat.train.keeping import WITHIN, Ended, Ending, Keeping
from ziggurat.train.optim import load_optimizer_tensors, optimizer_tensors
from ziggurat.train.retention import Retention
from ziggurat.train.stage import Stage
from ziggurat.train.start import Start, build, context, number

log = logging.getLogger(__name__)


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
    stopped: str = ""
    """Why the weights handed on are not those of the last step, as in `keeping.Ended`; empty: they are. Steps, tokens and seconds are then
    those of the weights handed on, the curve that of the whole training."""
    ended: int = 0
    """The last step that was trained."""
    score: float | None = None
    """The held-out number that the weights were chosen by (evaluate.by)."""
    measured: dict[str, str] = field(default_factory=dict)
    """Source -> what identifies the held-out text of the numbers; empty in folders older than this record."""
    spent_tokens: int = 0
    """Of the whole training; 0 in folders older than this record."""
    spent_seconds: float = 0.0
    """Of the whole training."""

    @property
    def cost(self) -> tuple[int, float]:
        """Tokens and seconds of all steps that were trained; in older folders of those up to the weights handed on."""
        return (self.spent_tokens, self.spent_seconds) if self.spent_tokens else (self.tokens, self.seconds)

    def ending(self, stage: Stage) -> Ending | None:
        """How it ended, where other weights than the last are handed on."""
        by = stage.evaluate
        return Ending(self.stopped, self.ended, self.steps, by.by, self.score, by.patience) if self.stopped else None

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
    measured: Mapping[str, str] = field(default_factory=dict)
    """Source -> what identifies the text that `held_out` reads."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """What the objective reads from files of its own (`Objective.tables`)."""
    held: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False)
    """Around the training loop: gives the question whether a signal asks to stop."""
    general: Mapping[str, Shards] = field(default_factory=dict)
    """General text that says which weights matter (EWC)."""
    start_bits: Callable[[], Mapping[str, float]] = dict
    """Where the stage's tokenizer has more tokens than its start had: bits a byte of held-out text, by source, as that one read it."""
    steps: int | None = None
    """The steps of its time budget, where what it is compared with has measured them."""
    until: int | None = None
    """The step at which it ends, where its schedule and its data are for more."""
    title: str = ""
    """What the console calls it when it is not one of the recipe's stages."""
    sinks: Callable[[int], Sequence[Sink]] = lambda after: ()
    """Further takers of the metrics, given the step that training continues from."""


def run_stage(folder: Path, job: Job) -> Outcome:
    """Run the stage, or go on with it, or find it done; if its held-out text is another since, it is measured again and no longer marked as
    done, for what was made of its numbers is old.

    Raises `UserError` when the folder holds a stage of other settings, `Stopped` when a signal came in.
    """
    stage, objective = job.stage, job.stage.objective
    assert objective is not None
    settings.keep(folder, settings.of(job))
    checkpoints.put_back(folder)  # from here on they are looked for at their steps
    if done(folder):
        outcome = outcome_of(folder)
        problems = checkpoints.verify(result(folder, outcome.steps))
        if not problems:
            changed = measured.other(stage, outcome.measured, job.measured)
            return _again(folder, job, outcome, changed) if changed else outcome
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
    end = steps if job.until is None else job.until
    keeping = Keeping(folder, stage, title, before)
    saved = keeping.resume(end)
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
            log.info("%s: going on from step %d of %d", title, progress.step, end)
        else:
            say("%s: %s", title, _opening(job, network, ctx, end, dtype))
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

        def save(progress: loop.Progress, found: Mapping[str, Any] | None = None) -> None:
            within = found is not None
            last = within or progress.step == end
            known = {"held_out": found, "measured": dict(job.measured)} if within else {"kept": keeping.step}
            checkpoints.save(
                folder / WITHIN if within else folder,
                progress.step,
                replace(card, lineage=(*job.start.lineage, entry(progress))),
                retention.weights(),
                state={"progress": asdict(progress), "loader": loader.state(), "machine": here, **known},
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
            keeping.evaluated(progress.step, found, lambda: save(progress, found))
            return flat(found)

        plan = loop.Plan(
            steps=end,
            accumulate=stage.accumulate,
            clip=stage.optim.clip or math.inf,
            rate=lambda step: stage.optim.lr * schedule.rate(step, steps=steps, spec=stage.schedule),
            log_every=stage.log_every,
            evaluate_every=stage.evaluate.every or 0,
            save_every=stage.save.every or 0,
        )
        with (
            Metrics(folder / "metrics.jsonl", after=progress.step, sinks=job.sinks(progress.step)) as metrics,
            ProgressBar(title, end, start=progress.step) as bar,
        ):
            if before and not progress.step:
                metrics.write(0, flat(before))
            ending: Ending | None = None
            whole = progress
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
                keeping.last(held_out)
            except Ended as ended:
                held_out = ended.found
                kept, ending = keeping.back(ended, progress.step)
            last = (read_metrics(folder / "metrics.jsonl") or [{"step": -1}])[-1]
            if held_out and not (last["step"] == progress.step and flat(held_out).keys() <= last.keys()):
                metrics.write(progress.step, flat(held_out))  # unless a run that was killed just now wrote it
            if ending is not None:
                forgot = shift(stage, before, held_out) if ending.why == "forgetting" else None
                warn = log.warning if forgot is not None else say
                warn("%s: %s%s", title, ending.sentence, f"; {forgot.sentence}" if forgot is not None else "")
                retention.restore(kept.tensors, kept.optimizer)
                same = not measured.other(stage, kept.state.get("measured", {}), job.measured)
                held_out = (same and kept.state.get("held_out")) or held(network)
                progress = replace(loop.Progress(**kept.state["progress"]), curve=progress.curve, evaluating=progress.evaluating)
    if ending is None:
        keeping.drop()
    moved = shift(stage, before, held_out)
    if moved is not None:
        (log.warning if moved.passed and not job.title else say)("%s: %s%s", title, moved.sentence, advice(stage, moved))
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
        ending.why if ending is not None else "",
        ending.step if ending is not None else progress.step,
        keeping.best,
        dict(job.measured),
        whole.tokens,
        whole.seconds,
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
    then, found = measured.read_before(folder)
    if not found or measured.other(job.stage, then, job.measured):
        found = job.held_out(network, job.stage.objective, dtype)
        measured.write_before(folder, job.measured, found)
    return as_read(found, job.start_bits())


def _again(folder: Path, job: Job, outcome: Outcome, changed: Sequence[str]) -> Outcome:
    """The outcome of a finished stage with the held-out numbers, of its start too, on the text as it is now. metrics.jsonl stays as it was."""
    stage, objective = job.stage, job.stage.objective
    assert objective is not None
    log.info("%s: measured again on the held-out text of %s as it is now", job.title or stage.title, ", ".join(changed))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = loop.precision_of(stage.precision, device)
    network, new, _ = build(job, objective)
    carried = len(new) < len(network.state_dict()) and not objective.labelled
    before = _before(folder, job, network.to(device), dtype, new) if carried else {}
    saved = checkpoints.load(result(folder, outcome.steps))
    network = NetworkModel(saved.card.network)
    network.load_state_dict(saved.tensors)
    held_out = job.held_out(network.to(device), objective, dtype)
    outcome = replace(outcome, held_out=held_out, before=before, measured=dict(job.measured))
    (folder / "DONE").unlink()
    write_json(folder / "outcome.json", asdict(outcome))
    return outcome


def outcome_of(folder: Path) -> Outcome:
    """The outcome of a finished stage."""
    found = json.loads((folder / "outcome.json").read_text("utf-8"))
    if isinstance(found.get("stopped"), bool):  # of a run before there was more than one reason
        found["stopped"] = "forgetting" if found["stopped"] else ""
    return Outcome(**found)


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
    changes = ", ".join(f"{before.get(key)} -> {now[key]} ({key})" for key in now if before.get(key) != now[key])
    if changes:
        log.warning("%s goes on otherwise than it was saved: %s; results agree to rounding, not bit for bit", title, changes)

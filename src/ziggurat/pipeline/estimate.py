"""What a run will take on this machine: time, memory and disk, of all stages, the fine-tunings that say what they were worth, and evaluation."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError, check
from ziggurat.nn import spec as parts
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.pipeline import machine
from ziggurat.pipeline.passes import FISHER, passes
from ziggurat.pipeline.prefixes import prefixes
from ziggurat.pipeline.run import Run, Training, draw, job_of, start_of
from ziggurat.train.budget import PROBE, PROBE_SHARE, in_epochs, in_rows, planned
from ziggurat.train.job import Job
from ziggurat.train.probe import FLOAT, Memory, parameters, probe, static
from ziggurat.train.recipe import Recipe
from ziggurat.train.schedule import HINT, misfit
from ziggurat.train.stage import BestOf, Stage, candidates
from ziggurat.train.start import Start, context
from ziggurat.train.tasks import several, single

SECONDS = 10.0
"""Of the probe, over all stages."""
WRITTEN = 16
"""Texts that are written to time the generation of a fine-tuned model."""
OVERWRITTEN = 3
"""A checkpoint in a stage has weights and AdamW's two means, its last one only weights."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage, and how often it is run."""

    name: str
    times: int
    """1, and for the last fine-tuning one more for every prefix and seed."""
    parameters: int
    memory: Memory
    disk: int
    """Bytes when it is done, once, with as many older checkpoints as there may be."""
    unsure: int = 0
    """Bytes of these that older checkpoints take if they are written: it is not known how many steps the stage has."""
    steps: int = 0
    """0 when nothing was timed."""
    seconds_per_step: float = 0.0
    tokens_per_step: float = 0.0
    training: float = 0.0
    """Seconds, once."""
    evaluation: float = 0.0
    other: float = 0.0
    """Building, reading and writing checkpoints, and the Fisher information of an anchor."""
    passes: dict[str, int] = field(default_factory=dict)
    """Tokens that are read outside of training, by what for."""
    error: str = ""
    """Why the stage cannot begin."""
    hint: str = ""

    @property
    def seconds(self) -> float:
        return self.training + self.evaluation + self.other

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "memory": {**asdict(self.memory), "total": self.memory.total}}


@dataclass(frozen=True)
class Estimate:
    """A whole run."""

    stages: tuple[StageEstimate, ...]
    process: int
    """Bytes that the process takes without a model."""
    room: int
    """Bytes of memory that a model may take."""
    free: int
    """Bytes of disk that are free."""
    left_out: tuple[str, ...] = ()
    """What the recipe asks for that the time is without."""

    @property
    def seconds(self) -> float:
        """Of everything, from the first step to the last score."""
        return sum(stage.seconds * stage.times for stage in self.stages)

    @property
    def memory(self) -> int:
        """At the peak, the process included (on a GPU: the model alone, in its memory)."""
        return self.process + max(stage.memory.total for stage in self.stages)

    @property
    def disk(self) -> int:
        return sum(stage.disk * stage.times for stage in self.stages)

    @property
    def unsure(self) -> int:
        """Bytes of `disk` that are perhaps never written."""
        return sum(stage.unsure * stage.times for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        plain = {"process": self.process, "room": self.room, "free": self.free}
        totals = {"seconds": self.seconds, "memory": self.memory, "disk": self.disk}
        return {**totals, **plain, "left_out": list(self.left_out), "stages": [stage.as_dict() for stage in self.stages]}


def repeats(recipe: Recipe) -> dict[str, int]:
    """How often each stage is run: the last fine-tuning from every prefix with every seed."""
    found = {stage.title: 1 for stage in recipe.stages}
    tuned = [s for s in recipe.stages if s.stage == "finetune"]
    if tuned and recipe.worth is not None:
        ways = prefixes(recipe, tuned[-1])
        found[tuned[-1].title] = len(ways) * len(recipe.worth.seeds)
        dapt = [s.title for s in recipe.stages if s.stage == "dapt" and f"+{s.title}" in dict(ways)]
        if recipe.worth.control is not None and dapt:
            found[dapt[-1]] += 1
            found[tuned[-1].title] += len(recipe.worth.seeds)
    return found


def bare_start(run: Run, start: str | BestOf) -> Start:
    """What a stage starts from, as far as it matters before anything is trained: the model without weights; of several candidates the
    last one's."""
    init = candidates(start)[-1]
    by_title = {stage.title: stage for stage in run.recipe.stages}
    if init not in by_title:
        return Start(start_of(run, init).model)
    before = by_title[init]
    assert before.objective is not None
    return sized(run, before, bare_start(run, before.init).for_objective(before.objective))


def _job(run: Run, stage: Stage) -> Job:
    """A stage with a start without weights."""
    one = Training(stage, run.folder, run.recipe.seed, candidates(stage.init)[-1])
    return job_of(run, one, bare_start(run, stage.init))


def sized(run: Run, stage: Stage, start: Start) -> Start:
    """A bare start with rows for the tokens that a stage reads."""
    return Start(start.model).grown({}, run.read.get(stage.title, run.prepared).tokenizer.vocab.size)


def size_of(run: Run, stage: Stage) -> int:
    """Parameters of the network that a stage trains."""
    assert stage.objective is not None
    model = sized(run, stage, bare_start(run, stage.init).for_objective(stage.objective)).model
    return parameters(parts.Network(model=model, heads=dict(stage.objective.heads(model))))


def scheduled(run: Run, stages: Iterable[Stage]) -> None:
    """Raise `UserError` now, not after hours of training, if one of the stages is in epochs and has fewer updates than its warm-up and decay,
    which are given as numbers of updates. Counting reads all of the stage's text, so it is done for such stages alone."""
    for stage in stages:
        unit, amount = stage.budget
        given = stage.schedule.warmup >= 1 or (stage.schedule.kind == "wsd" and stage.schedule.decay >= 1)
        if unit != "epochs" or not given:
            continue
        job = _job(run, stage)
        assert stage.objective is not None
        steps = math.ceil(in_epochs(job, stage.objective, context(job), int(amount)) / stage.accumulate)
        wrong = misfit(steps, stage.schedule)
        check(not wrong, f"{stage.title}: {wrong}", HINT)


def memory_room() -> tuple[int, int]:
    """(bytes that the process takes now, bytes that a model may take): of the GPU's memory where there is one."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return 0, int(free)
    return machine.taken(), machine.available()


def estimate(run: Run, skipped: frozenset[str] = frozenset()) -> Estimate:
    """Begin every stage for its share of SECONDS and add up; `skipped` stages are only weighed. Trains and keeps nothing."""
    process, room = memory_room()
    times = repeats(run.recipe)
    each = SECONDS / max(len(run.recipe.stages) - len(skipped), 1)
    found = tuple(_stage(run, stage, times[stage.title], each, room, stage.title in skipped) for stage in run.recipe.stages)
    return Estimate(found, process, room, shutil.disk_usage(run.folder).free, tuple(_left_out(run.recipe)))


def _left_out(recipe: Recipe) -> Iterator[str]:
    """What is not timed: how long a suite takes hangs on its own tasks and trainings."""
    yield from (f"the suite {name}" for name in recipe.suites or ())
    yield from (f"the choice of a start of {stage.title}" for stage in recipe.stages if isinstance(stage.init, BestOf))


def weighed(run: Run) -> Estimate:
    """The same without a probe: sizes only, in no time."""
    process, room = memory_room()
    times = repeats(run.recipe)
    found = []
    for stage in run.recipe.stages:
        count = size_of(run, stage)
        found.append(
            StageEstimate(stage.title, times[stage.title], count, static(count), *_disk(stage, count, _steps(run, stage)))
        )
    return Estimate(tuple(found), process, room, shutil.disk_usage(run.folder).free)


def told(run: Run, found: Mapping[str, Any]) -> Estimate:
    """What `Estimate.as_dict` told of the same recipe and data, beside the memory and disk that are free now."""
    process, room = memory_room()
    names = [one.name for one in fields(StageEstimate)]
    parts = [one.name for one in fields(Memory)]
    stages = (
        {name: each[name] for name in names} | {"memory": Memory(**{part: each["memory"][part] for part in parts})}
        for each in found["stages"]
    )
    free = shutil.disk_usage(run.folder).free
    return Estimate(tuple(StageEstimate(**each) for each in stages), process, room, free, tuple(found["left_out"]))


def _stage(run: Run, stage: Stage, times: int, limit: float, room: int, skip: bool) -> StageEstimate:
    count = size_of(run, stage)
    plain = StageEstimate(stage.title, times, count, static(count), *_disk(stage, count, _steps(run, stage)))
    if skip:
        return plain
    try:
        job = _job(run, stage)
        found = probe(job, limit, room)
    except UserError as error:
        return replace(plain, error=error.message, hint=error.hint)
    if not found.seconds:
        return replace(plain, memory=found.memory)
    unit, amount = stage.budget
    training = found.steps * found.seconds
    if unit == "time":
        training = amount + min(PROBE * found.seconds, PROBE_SHARE * amount)
    saves = (found.steps - 1) // stage.save.every if stage.save.every else 0
    write, read = _disk_speed(run.folder, job.start, stage, count)
    counted = passes(run, stage, found.steps, job.start.model)
    fisher = counted.get(FISHER, 0)
    written = sum(_writing(run, one, name) for name, one in single(stage).items() if isinstance(one.objective, Seq2Seq))
    other = (
        found.building
        + fisher * found.seconds / max(found.tokens, 1)
        + write * (2 + OVERWRITTEN * saves)
        + read * (4 if stage.stage == "finetune" else 3)
    )
    disk, unsure = _disk(stage, count, found.steps)
    return replace(
        plain,
        memory=found.memory,
        disk=disk,
        unsure=unsure,
        steps=found.steps,
        seconds_per_step=found.seconds,
        tokens_per_step=found.tokens,
        training=training,
        evaluation=(sum(counted.values()) - fisher) * found.evaluating + written,
        other=other,
        passes=counted,
    )


def _steps(run: Run, stage: Stage) -> int | None:
    """Of a stage, where the recipe and its rows tell without a probe."""
    known = planned(stage)
    if known is not None or stage.stage != "finetune" or stage.epochs is None:
        return known
    (rows,) = run.prepared.read(stage).values()  # a stage in epochs has one source
    return in_rows(stage, rows if stage.examples is None else draw(rows, stage.examples, run.recipe.seed), run.recipe.seed)


def _disk(stage: Stage, count: int, steps: int | None) -> tuple[int, int]:
    """Bytes of a finished stage: its last checkpoint and the export, one a task, older checkpoints with their optimiser's state, and the
    weights of an earlier evaluation; and how much of this is perhaps never written, for it is not known how many steps there are or
    which evaluation is the best."""
    older = stage.save.keep - 1 if stage.save.every else 0
    if steps is not None and stage.save.every:
        older = min(older, (steps - 1) // stage.save.every)
    exports = len(single(stage)) if several(stage) else 1
    state = FLOAT * count * OVERWRITTEN * older
    kept = FLOAT * count * (stage.evaluate.chooses or (stage.forgetting is not None and stage.forgetting.stop))
    whole = FLOAT * count * (1 + exports + (stage.interpolate is not None))
    return whole + state + kept, kept + (state if steps is None else 0)


def _writing(run: Run, stage: Stage, name: str) -> float:
    """Seconds to write an answer to every test row; an untrained model writes as long as it may, so this is the most."""
    from ziggurat.evaluate.written import write
    from ziggurat.objectives.base import context_of

    assert isinstance(stage.objective, Seq2Seq)
    model = bare_start(run, stage.init).for_objective(stage.objective).model
    network = NetworkModel(parts.Network(model=model, heads=dict(stage.objective.heads(model))))
    network.initialise(torch.Generator().manual_seed(0))
    shards = run.prepared.shards[name, "test"]
    ctx = context_of(model, run.prepared.tokenizer, stage.length, run.recipe.seed)
    began, some = time.perf_counter(), min(WRITTEN, len(shards))
    write(network.eval(), stage.objective, shards.read(np.arange(some)), run.prepared.tokenizer, ctx)
    return (time.perf_counter() - began) * len(shards) / max(some, 1)


def _disk_speed(folder: Path, start: Start, stage: Stage, count: int) -> tuple[float, float]:
    """(seconds to write a checkpoint of the weights, seconds to read and verify it), tried once with as many bytes."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="tmp-doctor-") as place:
        network = parts.Network(model=start.model)
        began = time.perf_counter()
        saved = checkpoints.save(Path(place), 0, checkpoints.Card(network), {"weights": torch.zeros(count)}, state={})
        written = time.perf_counter()
        checkpoints.load(saved)
        return written - began, time.perf_counter() - written

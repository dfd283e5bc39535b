"""One stage as a folder: what it starts from, how long it is, and what it must not be given."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ziggurat.data.shards import Shards
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import Classify, Masked
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import job as jobs
from ziggurat.train.job import Job, build, context
from ziggurat.train.stage import Stage
from ziggurat.train.start import Start

MODEL = spec.Single(vocab=300, width=16, layers=1, heads=2, mlp=32, embed=spec.Embed(positions=spec.Learned(length=64)))


@pytest.fixture
def job(finished: Path) -> Job:
    """A finetune stage on the finished world's shards."""
    runs = finished / "runs/small"
    stage = Stage(
        stage="finetune",
        data={"task": {"weight": 1.0}},
        epochs=1,
        objective=Classify(labels=("neg", "pos")),
        length=32,
        batch={"documents": 8},
        precision="fp32",
    )
    shards, tokenizer = {"task": Shards.open(runs / "shards/task/train")}, Tokenizer.load(runs / "tokenizer")
    return Job(stage, Start(MODEL), shards, tokenizer, "bert", 0, {}, held_out=lambda *a: {})


def started(*heads: Any) -> Start:
    """Weights of a network with these heads."""
    network = NetworkModel(spec.Network(model=MODEL, heads=dict(heads)))
    network.initialise(torch.Generator().manual_seed(5))
    return Start(MODEL, network.spec.heads, load=network.state_dict)


def heads(names: Iterable[str]) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in names}


def test_what_is_carried_over(job: Job) -> None:
    pooler, two = ("pooler", spec.PoolerHead()), ("classify", spec.ClassHead(outputs=2))
    objective = Classify(labels=("neg", "pos"))
    network, new, dropped = build(replace(job, start=started(pooler, ("lm", spec.VocabHead()))), objective)
    assert heads(new) == {"heads.classify"} and heads(dropped) == {"heads.lm"}
    _, new, dropped = build(replace(job, start=started(pooler, two)), objective)
    assert (new, dropped) == ([], [])
    three = ("classify", spec.ClassHead(outputs=3))
    network, new, dropped = build(replace(job, start=(start := started(pooler, three))), objective)
    assert heads(new) == heads(dropped) == {"heads.classify"} and network.heads["classify"].out.weight.shape[0] == 2
    assert torch.equal(network.state_dict()["heads.pooler.dense.weight"], start.load()["heads.pooler.dense.weight"])
    network, new, dropped = build(job, objective)
    assert len(new) == len(network.state_dict()) and not dropped


def test_a_start_of_another_shape(job: Job) -> None:
    other = {name: tensor[:, :8] if tensor.ndim == 2 else tensor for name, tensor in started().load().items()}
    with pytest.raises(UserError, match="the checkpoint to start from is of another shape than the model"):
        build(replace(job, start=Start(MODEL, load=lambda: other)), Masked())


def test_fresh_weights_are_the_seeds(job: Job) -> None:
    same, again, other = (build(replace(job, seed=seed), Masked())[0].state_dict() for seed in (0, 0, 1))
    name = "model.embed.token.weight"
    assert torch.equal(same[name], again[name]) and not torch.equal(same[name], other[name])


def test_a_fresh_head_is_the_seed_s_unless_the_body_is_fresh_too(job: Job) -> None:
    """What `worth` says of its pairs of runs."""
    objective = Classify(labels=("neg", "pos"))
    other = replace(started(), load=lambda: {name: t + 1 for name, t in started().load().items()})
    one, two, scratch = (build(replace(job, start=s), objective)[0].state_dict() for s in (started(), other, Start(MODEL)))
    name = "heads.classify.out.weight"
    assert torch.equal(one[name], two[name]) and not torch.equal(one[name], scratch[name])


def test_what_does_not_fit(job: Job) -> None:
    small = MODEL.model_copy(update={"vocab": 50})
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens, the model's table 50 rows"):
        context(replace(job, start=Start(small)))
    with pytest.raises(UserError, match="length 65 is longer than the model's 64 positions"):
        context(replace(job, stage=job.stage.model_copy(update={"length": 65})))


def test_epochs_are_passes_over_the_rows(job: Job, tmp_path: Path) -> None:
    stage = job.stage.model_copy(update={"epochs": 3, "accumulate": 2})
    outcome = jobs.run_stage(tmp_path / "stage", replace(job, stage=stage))
    assert outcome.steps == 8  # 40 rows, 8 at a time, are 5 micro-batches a pass
    assert json.loads((tmp_path / "stage/budget.json").read_text("utf-8")) == {"steps": 8, "epochs": 3}
    assert not jobs.done(tmp_path / "stage")
    jobs.finish(tmp_path / "stage")
    assert jobs.run_stage(tmp_path / "stage", replace(job, stage=stage)) == outcome
    opened = open_checkpoint(tmp_path / "stage")
    assert opened.labels == ("neg", "pos") and opened.lineage[-1]["steps"] == 8 and opened.lineage[-1]["tokens"] == outcome.tokens


def test_a_budget_in_tokens(job: Job, tmp_path: Path) -> None:
    update = {"epochs": None, "tokens": 1000, "batch": {"tokens": 128}, "accumulate": 2}
    stage = Stage.model_validate({**job.stage.model_dump(), **update})
    assert jobs.run_stage(tmp_path / "stage", replace(job, stage=stage)).steps == 4  # 256 a step


def test_metrics_go_to_further_sinks(job: Job, tmp_path: Path) -> None:
    seen: list[tuple[int, set[str]]] = []
    begun: list[int] = []

    def sinks(after: int) -> list[Any]:
        begun.append(after)
        return [lambda step, numbers: seen.append((step, set(numbers)))]

    jobs.run_stage(tmp_path / "stage", replace(job, sinks=sinks))
    assert begun == [0] and seen[-1][0] == 5 and "loss" in seen[-1][1]

"""Which evaluation a stage hands on: against a slow search through all of them, for scripted numbers and for real training; killed anywhere
and resumed, a stage ends with the bits of one that was not."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.checkpoint import format as checkpoints
from ziggurat.data.shards import Shards
from ziggurat.errors import UserError
from ziggurat.log import read_metrics
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import Classify, Masked
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train import job as jobs
from ziggurat.train import keeping, loop
from ziggurat.train.job import Job, Outcome
from ziggurat.train.keeping import Ended, Ending, Keeping
from ziggurat.train.stage import Stage
from ziggurat.train.start import Start

MODEL = spec.Single(vocab=300, width=16, layers=1, heads=2, mlp=32, embed=spec.Embed(positions=spec.Learned(length=64)))
CARD = checkpoints.Card(spec.Network(model=MODEL, heads={}))
EVERY = 2


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True, scope="module")
def unsynced() -> Iterator[None]:
    """Hundreds of small checkpoints need not survive a power cut."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


# ---- scripted evaluations --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """What the slow search says: why, the step handed on, and the last step that was trained."""

    why: str
    kept: int | None
    step: int


def by_search(values: Sequence[float], patience: int | None, most: bool) -> End:
    """All evaluations so far are looked through again at each; `values` are those of steps EVERY, 2 EVERY, ..., the last one the end."""
    for n in range(1, len(values) + 1):
        finite = [v for v in values[:n] if math.isfinite(v)]
        best = values.index((max if most else min)(finite)) + 1 if finite else None
        if n == len(values):
            return End("" if best == n else "best", EVERY * best if best else None, EVERY * n)
        if best and patience and n - best >= patience:
            return End("patience", EVERY * best, EVERY * n)
    raise AssertionError


def scripted(**evaluate: Any) -> Stage:
    objective = Classify(labels=("neg", "pos"))
    return Stage(stage="finetune", data="task", steps=1, objective=objective, evaluate={"every": EVERY, **evaluate})


def drive(folder: Path, stage: Stage, values: Sequence[float], save_every: int, kill: int = 0) -> End:
    """A loop in the order of `loop.train`, whose evaluations say `values`. A checkpoint holds its step and nothing else. Killed behind the
    `kill`-th thing written."""
    steps, written = EVERY * len(values), 0
    watched = Keeping(folder, stage, "task", {})

    def save(place: Path, step: int, keep: int, **more: Any) -> None:
        nonlocal written
        state = {"progress": {"step": step}, **more}
        checkpoints.save(place, step, CARD, {"at": torch.tensor(float(step))}, state=state, keep=keep)
        written += 1
        if written == kill:
            raise Killed

    saved = watched.resume(steps)
    step = saved.state["progress"]["step"] if saved is not None else 0
    try:
        while step < steps:
            step += 1
            if step % EVERY == 0 and step < steps:
                value = values[step // EVERY - 1]
                found = {"task": {"classify": value, "classify_accuracy": value}}
                watched.evaluated(step, found, lambda: save(folder / "within", step, 1, held_out=found))  # noqa: B023
            if step % save_every == 0 or step == steps:
                save(folder, step, 2, kept=watched.step)
        watched.last({"task": {"classify": values[-1], "classify_accuracy": values[-1]}})
    except Ended as ended:
        kept, ending = watched.back(ended, step)
        assert kept.tensors["at"] == ending.kept
        return End(ending.why, ending.kept, step)
    watched.drop()
    assert not (folder / "within").exists()
    return End("", step, step)


NUMBERS = st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan]), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.sampled_from([None, 1, 2, 3]), st.booleans(), st.integers(1, 5), st.integers(1, 9))
def test_what_is_handed_on(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], patience: int | None, most: bool, save_every: int, kill: int
) -> None:
    """Ties, numbers that are none, both directions, any patience; killed after any write, and after the end."""
    stage = scripted(keep="best", patience=patience, by="accuracy" if most else "loss")
    right, folder = by_search(values, patience, most), tmp_path_factory.mktemp("kept")
    if right.kept is None:
        with pytest.raises(UserError, match=r"no evaluation had a finite (loss|accuracy) to choose by"):
            drive(folder, stage, values, save_every)
        return
    assert drive(folder / "straight", stage, values, save_every) == right
    assert drive(folder / "straight", stage, values, save_every) == right  # killed before it was marked as done
    try:
        assert drive(folder / "killed", stage, values, save_every, kill) == right
    except Killed:
        assert drive(folder / "killed", stage, values, save_every) == right


@pytest.mark.parametrize("lost", ["damaged", "gone"])
def test_what_was_kept_is_lost(tmp_path: Path, lost: str) -> None:
    """A better one may never come: the stage begins again, and hands on the same."""
    values = [3.0, 1.0, 2.0, 2.0]
    stage = scripted(keep="best")
    with pytest.raises(Killed):
        drive(tmp_path, stage, values, 3, kill=4)  # kept at 2, at 4; saved at 3, at 6
    file = tmp_path / "within/step-00000004/model.safetensors"
    if lost == "damaged":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    else:
        shutil.rmtree(tmp_path / "within")
    assert Keeping(tmp_path, stage, "task", {}).resume(8) is None and not list(tmp_path.glob("step-*"))
    assert drive(tmp_path, stage, values, 3) == End("best", 4, 8)


def test_the_last_weights_by_default(tmp_path: Path) -> None:
    assert drive(tmp_path, scripted(), [1.0, 2.0, 3.0], 3) == End("", 6, 6)


@pytest.mark.parametrize(
    ("general", "why", "best"),
    [([0.0, 0.0, 0.0, 0.3], "forgetting", 4), ([0.0, 0.3, 0.0, 0.0], "forgetting", 2), ([0.0] * 4, "best", 4)],
)
def test_the_best_within_the_limit_of_forgetting(tmp_path: Path, general: list[float], why: str, best: int) -> None:
    own = [3.0, 1.0, 2.0, 2.5]
    more = {"forgetting": {"general": "general", "limit": 0.1, "stop": True}, "evaluate": {"every": EVERY, "keep": "best"}}
    stage = Stage(stage="dapt", data="domain", steps=8, objective=Masked(), **more)
    watched, reached = Keeping(tmp_path, stage, "dapt", {"domain": {"mlm": 4.0}, "general": {"mlm": 2.0}}), 0

    def save(step: int, found: Any) -> None:
        state = {"progress": {"step": step}, "held_out": found}
        checkpoints.save(tmp_path / "within", step, CARD, {"at": torch.tensor(float(step))}, state=state, keep=1)

    with pytest.raises(Ended) as ended:
        for n in range(4):
            found = {"domain": {"mlm": own[n]}, "general": {"mlm": 2.0 + general[n]}}
            reached = step = EVERY * (n + 1)
            if n < 3:
                watched.evaluated(step, found, lambda: save(step, found))  # noqa: B023
            else:
                watched.last(found)
    kept, ending = watched.back(ended.value, reached)
    assert (ending.why, ending.kept, ending.score) == (why, best, own[best // EVERY - 1]) and kept.tensors["at"] == best
    assert ended.value.found["general"]["mlm"] == 2.0 + general[reached // EVERY - 1]


def test_the_number_chosen_by() -> None:
    """Own sources alone, by their shares; what `loss` and `accuracy` mean; a number that there is none of."""
    stage = Stage(stage="dapt", data={"a": 3, "b": 1}, steps=1, objective=Masked(), evaluate={"every": 1, "keep": "best"})
    found = {
        "a": {"mlm": 1.0, "mlm_accuracy": 0.5, "bits_per_byte": 4.0},
        "b": {"mlm": 5.0, "mlm_accuracy": 0.1},
        "c": {"mlm": 99.0},
    }
    assert keeping.score(stage, found) == pytest.approx(0.75 * 1 + 0.25 * 5)
    accuracy = stage.model_copy(update={"evaluate": stage.evaluate.model_copy(update={"by": "accuracy"})})
    assert keeping.score(accuracy, found) == pytest.approx(0.75 * 0.5 + 0.25 * 0.1)
    up = {"loss": False, "mlm": False, "bits_per_byte": False, "accuracy": True, "nsp_accuracy": True, "rtd_f1": True, "f1": True}
    assert {by: keeping.higher(by) for by in up} == up
    bits = stage.model_copy(update={"evaluate": stage.evaluate.model_copy(update={"by": "bits_per_byte"})})
    with pytest.raises(UserError, match="'bits_per_byte' is no number of the held-out text of source 'b'") as error:
        keeping.score(bits, found)
    assert error.value.hint == "there are: loss, mlm, mlm_accuracy"
    with pytest.raises(UserError, match="source 'a'"):  # known from the start's numbers, before a step is trained
        Keeping(Path("nowhere"), stage, "dapt", {"b": {"mlm": 1.0}})


def test_sentences() -> None:
    said = {why: Ending(why, 80, 50, "loss", 1.2344, 3).sentence for why in ("patience", "best", "forgetting")}
    assert said == {
        "patience": "no improvement for 3 evaluations, up to step 80; its result are the weights of step 50 (loss 1.234)",
        "best": "its result are the weights of step 50 of 80, the best evaluation (loss 1.234)",
        "forgetting": "stopped at step 80, which passed the limit of forgetting; its result are the weights of step 50 (loss 1.234)",
    }


# ---- training --------------------------------------------------------------------------------------------------------


def drawn(network: NetworkModel, *_: Any) -> dict[str, dict[str, float]]:
    """Numbers that hang on every bit of the weights and on nothing else, and go up and down at random."""
    whole = sum(float(p.detach().double().abs().sum()) for p in network.parameters())
    return {"task": {"classify": (whole * 1e5) % 1, "classify_accuracy": (whole * 1e7) % 1}}


@pytest.fixture
def job(finished: Path) -> Job:
    """Twelve steps of a fine-tuning with micro-batches and dropout on the finished world's shards."""
    runs = finished / "runs/small"
    stage = Stage(
        stage="finetune",
        data="task",
        steps=12,
        objective=Classify(labels=("neg", "pos")),
        length=32,
        batch={"documents": 4},
        accumulate=2,
        dropout=0.1,
        precision="fp32",
        evaluate={"every": 2, "keep": "best"},
        log_every=2,
        save={"every": 3},
    )
    shards, tokenizer = {"task": Shards.open(runs / "shards/task/train")}, Tokenizer.load(runs / "tokenizer")
    return Job(stage, Start(MODEL), shards, tokenizer, "bert", 0, {}, held_out=drawn)


def told(job: Job, **more: Any) -> Job:
    evaluate = {"every": 2, "keep": "best", **more.pop("evaluate", {})}
    return replace(job, stage=Stage.model_validate({**job.stage.model_dump(), **more, "evaluate": evaluate}))


def measured(folder: Path, number: str) -> dict[int, float]:
    """Step -> the number, of every evaluation."""
    key = f"heldout/task/{number}"
    return {line["step"]: line[key] for line in read_metrics(folder / "metrics.jsonl") if key in line}


def handed_on(folder: Path, outcome: Outcome) -> dict[str, torch.Tensor]:
    found = checkpoints.load(folder)  # what opens the stage's folder
    assert found.folder == jobs.result(folder, outcome.steps) == jobs.trained(folder, outcome.steps)
    return found.tensors


def by_hand(numbers: dict[int, float], patience: int, most: bool) -> tuple[int, int]:
    """Step handed on and step ended at."""
    sign, steps = -1 if most else 1, sorted(numbers)
    for n, step in enumerate(steps):
        best = min(steps[: n + 1], key=lambda s: sign * numbers[s])
        if step == steps[-1] or n - steps.index(best) >= patience:
            return best, step
    raise AssertionError


@pytest.mark.parametrize("seed", [3, 9])
def test_the_best_of_a_training(job: Job, tmp_path: Path, seed: int) -> None:
    """The weights of the step that a search of metrics.jsonl finds, as a training that keeps everything has them."""
    job = replace(job, seed=seed)
    fields = {**job.stage.model_dump(), "evaluate": {"every": 2}, "save": {"every": 1, "keep": 99}}
    every = jobs.run_stage(tmp_path / "every", replace(job, stage=Stage.model_validate(fields)))
    assert (every.steps, every.stopped, every.ended, every.score) == (12, "", 12, None)
    for by, patience in (("loss", None), ("accuracy", None), ("loss", 2), ("accuracy", 1)):
        folder, name = tmp_path / f"{by}-{patience}", {"loss": "classify"}.get(by, "classify_accuracy")
        outcome, numbers = (
            jobs.run_stage(folder, told(job, evaluate={"by": by, "patience": patience})),
            measured(tmp_path / "every", name),
        )
        best, end = by_hand(numbers, patience or 99, by == "accuracy")
        assert (outcome.steps, outcome.ended) == (best, end)
        assert outcome.stopped == ("" if best == 12 else "patience" if end < 12 else "best")
        assert outcome.score == numbers[best] == outcome.held_out["task"][name]
        assert measured(folder, name) == {step: value for step, value in numbers.items() if step <= end}
        weights = checkpoints.load(checkpoints.at(tmp_path / "every", best)).tensors
        mine = handed_on(folder, outcome)
        assert all(torch.equal(mine[name], weights[name]) for name in weights)
        assert outcome.curve == [point for point in every.curve if point[0] <= end]


def alike(folder: Path, outcome: Outcome, straight: Path, right: Outcome) -> None:
    timeless = {"seconds": 0.0, "evaluation_seconds": 0.0, "spent_seconds": 0.0}
    assert replace(outcome, **timeless) == replace(right, **timeless)
    assert measured(folder, "classify") == measured(straight, "classify")
    assert len(read_metrics(folder / "metrics.jsonl")) == len(read_metrics(straight / "metrics.jsonl"))
    mine, theirs = handed_on(folder, outcome), handed_on(straight, right)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def after(n: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, killed behind its n-th call."""
    seen = 0

    def call(*args: Any, **named: Any) -> Any:
        nonlocal seen
        found = real(*args, **named)
        seen += 1
        if seen == n:
            raise Killed
        return found

    return call


@pytest.mark.parametrize(("seed", "patience"), [(9, 2), (5, None)])
def test_killed_anywhere(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, patience: int | None) -> None:
    """In every other step, so before and behind every evaluation; behind every checkpoint, of the best and of the others; behind the last
    judgement, and before the mark that it is done."""
    job = replace(told(job, evaluate={"patience": patience}), seed=seed)
    right = jobs.run_stage(tmp_path / "straight", job)
    places: list[tuple[Any, str, int]] = [(loop, "backward", n) for n in range(1, right.ended + 1, 2)]
    places += [(checkpoints, "save", n) for n in range(1, 8)]
    places += [(keeping.Keeping, "last", 1), (keeping.Keeping, "back", 1), (keeping.Keeping, "drop", 1), (jobs, "write_json", 1)]
    killed = 0
    for what, name, n in places:
        folder = tmp_path / f"{name}-{n}"
        with monkeypatch.context() as patched:
            patched.setattr(what, name, after(n, getattr(what, name)))
            try:
                jobs.run_stage(folder, job)
            except Killed:
                killed += 1
        alike(folder, jobs.run_stage(folder, job), tmp_path / "straight", right)
        shutil.rmtree(folder)
    assert killed >= (right.ended + 1) // 2 >= 2  # at the very least in every other step


def test_lora(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed on is the sum of that step, and its additions are beside it."""
    start = NetworkModel(spec.Network(model=MODEL, heads={}))
    start.initialise(torch.Generator().manual_seed(5))
    job = replace(told(job, lora={"rank": 2}), start=Start(MODEL, load=start.state_dict), seed=3)
    right = jobs.run_stage(tmp_path / "straight", job)
    numbers = measured(tmp_path / "straight", "classify")
    assert right.steps == min(numbers, key=lambda step: numbers[step]) and len(set(numbers.values())) == 6
    saved = checkpoints.load(jobs.trained(tmp_path / "straight", right.steps))
    a, b = (saved.optimizer[f"lora:model.blocks.0.attention.q.{part}"] for part in ("lora_a", "lora_b"))
    name = "model.blocks.0.attention.q.weight"
    torch.testing.assert_close(saved.tensors[name], start.state_dict()[name] + 8.0 * b @ a)
    for n in (5, 11):
        with monkeypatch.context() as patched:
            patched.setattr(loop, "backward", after(n, loop.backward))
            with pytest.raises(Killed):
                jobs.run_stage(tmp_path / f"killed-{n}", job)
        alike(tmp_path / f"killed-{n}", jobs.run_stage(tmp_path / f"killed-{n}", job), tmp_path / "straight", right)


def test_done_again_and_older_folders(job: Job, tmp_path: Path) -> None:
    """A done stage is read back; `stopped` of an older run was yes or no; nothing about choosing stands in the settings of a stage that does
    not choose, so that one begun before goes on."""
    folder = tmp_path / "stage"
    right = jobs.run_stage(folder, told(job))
    jobs.finish(folder)
    assert jobs.run_stage(folder, told(job)) == right
    written = json.loads((folder / "outcome.json").read_text("utf-8"))
    for old, now in ((True, "forgetting"), (False, "")):
        (folder / "outcome.json").write_text(json.dumps({**written, "stopped": old}), "utf-8")
        assert jobs.outcome_of(folder).stopped == now
    plain = replace(job, stage=Stage.model_validate({**job.stage.model_dump(), "evaluate": {"every": 2}}))
    jobs.run_stage(tmp_path / "plain", plain)
    kept = json.loads((tmp_path / "plain/stage.json").read_text("utf-8"))["stage"]["evaluate"]
    assert set(kept) == {"every", "tokens"}
    with pytest.raises(UserError, match="begun with other settings"):
        jobs.run_stage(tmp_path / "plain", told(plain))


def test_a_damaged_result_is_trained_again(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    right = jobs.run_stage(folder, replace(told(job), seed=1))
    jobs.finish(folder)
    file = jobs.result(folder, right.steps) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    again = jobs.run_stage(folder, replace(told(job), seed=1))
    straight = jobs.run_stage(tmp_path / "straight", replace(told(job), seed=1))
    alike(folder, again, tmp_path / "straight", straight)

"""Several tasks in one batch: each is what it is alone, no example reaches another task's head, and a step's loss is written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from examples import CPU, LENGTH, VOCAB, context, corpus, network_of, torched
from test_losses import flat

from ziggurat.data.pack import pack, take
from ziggurat.errors import UserError
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.tasks import alone, task_of, tasks_of, view
from ziggurat.objectives.labelled import Classify
from ziggurat.objectives.tasks import Tasks
from ziggurat.train.loop import backward
from ziggurat.types import Batch, Tokens, join_all

PARTS: dict[str, dict[str, Any]] = {
    "train": {"kind": "classify", "labels": ["a", "b", "c"]},  # a name that modules have a method of
    "mood": {"kind": "classify", "labels": ["c", "a", "b"]},
    "ner-1": {"kind": "tag", "labels": ["O", "B", "I"]},
    "how_much": {"kind": "regress"},
    "best": {"kind": "multiple_choice"},
    "quiz": {"kind": "question_answering", "question": 4},
}
WEIGHTS = {"mood": 2.0, "ner-1": 0.25}
TARGETS = {
    "train": "classify-train",
    "mood": "classify-mood",
    "ner-1": "tag-ner-1",
    "how_much": "regress-how_much",
    "best": "choice-best",
    "quiz": "span-quiz",
}
SYSTEMS = ("bert", "gpt2", "bart", "t5")


def objective() -> Tasks:
    return Tasks.model_validate({"kind": "tasks", "parts": PARTS, "weights": WEIGHTS})


def rows(task: str, n: int = 5) -> Tokens:
    place = list(PARTS).index(task)
    return replace(corpus(PARTS[task]["kind"], n, seed=place << 24), source=task)


def joined(system: str, *tasks: str, mixed: bool = True) -> Batch:
    """Examples of these tasks in one batch, in turn where their documents may be parted."""
    whole = join_all(objective().form(rows(task), context(system)) for task in tasks)
    return pack(whole, objective().rows(context(system)), VOCAB.pad) if mixed else whole


def by_itself(network: NetworkModel, task: str) -> NetworkModel:
    """The network of one task, built anew from copies."""
    part, tensors = alone(network.spec, network.state_dict(), task)
    made = NetworkModel(part).double()
    made.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    return made.eval()


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_joint_batch_is_the_tasks_alone(system: str) -> None:
    """Loss, count and gradient of every task, against a model of that task alone that reads its examples alone."""
    tasks = objective()
    network = network_of(system, tasks)
    losses = tasks.losses(network, torched(joined(system, *PARTS)))
    assert list(losses) == list(TARGETS.values())
    for task, target in TARGETS.items():
        part, one = tasks.parts[task], by_itself(network, task)
        assert set(one.spec.heads) == set(part.heads(one.spec.model))
        (want,) = part.losses(one, torched(part.form(rows(task), context(system)))).values()
        assert losses[target].total.item() == pytest.approx(want.total.item(), rel=1e-10)
        assert float(losses[target].count) == pytest.approx(float(want.count), rel=1e-6)
        network.zero_grad()
        losses[target].total.backward(retain_graph=True)
        want.total.backward()
        ours, theirs = dict(view(network, task).named_parameters()), dict(one.named_parameters())
        assert ours.keys() == theirs.keys()
        for name, parameter in theirs.items():
            if parameter.grad is not None:
                torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_example_goes_to_another_tasks_head(system: str) -> None:
    """The gradient of a head is 0 for other tasks' examples, and what it says is nothing to them: with a head that is no number, the
    others' losses are the same bits."""
    tasks, batch = objective(), torched(joined(system, *PARTS))
    network = network_of(system, tasks)
    before = {name: loss.total.detach().clone() for name, loss in tasks.losses(network, batch).items()}
    for task, target in TARGETS.items():
        network.zero_grad()
        tasks.losses(network, batch)[target].total.backward()
        for name, parameter in network.named_parameters():
            owner = task_of(name.split(".")[1]) if name.startswith("heads.") else ""
            moved = parameter.grad is not None and bool(parameter.grad.any())
            assert not (owner and owner != task and moved), (task, name)
            if owner == task and name.endswith("out.weight"):
                assert moved
        broken = network_of(system, tasks)
        with torch.no_grad():
            for name, parameter in broken.named_parameters():
                if name.startswith(f"heads.{target}."):
                    parameter.fill_(float("nan"))
        after = tasks.losses(broken, batch)
        assert torch.isnan(after[target].total)
        assert all(torch.equal(after[name].total.detach(), total) for name, total in before.items() if name != target)


def test_a_steps_loss_written_out() -> None:
    """Example by example: what each says on average over its task's predictions, by the task's weight, over all examples of the step; in
    one batch or in several, of which not every one has every task."""
    tasks = objective()
    network = network_of("bert", tasks)
    batches = [joined("bert", "train", "ner-1", "best"), joined("bert", "mood", "quiz"), joined("bert", "how_much", "ner-1")]
    examples = {"train": 5, "mood": 5, "ner-1": 10, "how_much": 5, "best": 5, "quiz": 5}
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, float] = {}
    for batch in batches:
        for name, loss in tasks.losses(network, torched(batch)).items():
            sums[name] = sums.get(name, 0.0) + loss.total
            counts[name] = counts.get(name, 0.0) + float(loss.count)
    want = sum(
        WEIGHTS.get(task, 1.0) * examples[task] / sum(examples.values()) * sums[target] / counts[target]
        for task, target in TARGETS.items()
    )
    want.backward()  # type: ignore[union-attr]
    gradient = flat(network)
    network.zero_grad()
    means = backward(network, tasks, batches, CPU, torch.float32)
    assert means["loss"] == pytest.approx(want.item(), rel=1e-6)  # type: ignore[union-attr]
    assert set(means) == {"loss", *TARGETS.values()}
    torch.testing.assert_close(flat(network), gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("task", [task for task in PARTS if task not in WEIGHTS])
def test_a_step_of_one_task_is_that_tasks_own(task: str) -> None:
    tasks = objective()
    network = network_of("bert", tasks)
    found = backward(network, tasks, [joined("bert", task)], CPU, torch.float32)
    one, part = by_itself(network, task), tasks.parts[task]
    want = backward(one, part, [part.form(rows(task), context("bert"))], CPU, torch.float32)
    assert found["loss"] == pytest.approx(want["loss"], rel=1e-9)
    torch.testing.assert_close(flat(view(network, task)), flat(one), rtol=1e-8, atol=1e-11)


def test_the_rare_task_is_not_louder_than_its_share() -> None:
    """One example of a task among twenty of another counts for a twenty-first, not for half."""
    tasks = Tasks.model_validate({"kind": "tasks", "parts": {t: PARTS[t] for t in ("train", "mood")}})
    few = tasks.form(rows("mood", 1), context("bert"))
    many = tasks.form(rows("train", 20), context("bert"))
    weights = tasks.step_weights(tasks.counts(join_all([many, few])))
    assert weights == {"classify-train": pytest.approx(20 / 21), "classify-mood": pytest.approx(1 / 21)}


def test_examples_are_counted_once() -> None:
    """Windows of one question are one example, and so are the choices of one; padding is none."""
    tasks, ctx = objective(), context("bert")
    batch = joined("bert", "quiz", "best")
    assert len(batch) > 10 and tasks.counts(batch)["examples of span-quiz"] == tasks.counts(batch)["examples of choice-best"] == 5
    some = take(tasks.form(rows("ner-1"), ctx), torch.tensor([0, 2]).numpy())
    assert tasks.counts(some)["examples of tag-ner-1"] == 2


def test_a_view_is_no_copy() -> None:
    network = network_of("bert", objective())
    seen = view(network, "mood")
    assert set(seen.spec.heads) == {"pooler", "classify"} and set(view(network, "ner-1").spec.heads) == {"tag"}
    with torch.no_grad():
        network.heads["classify-mood"].out.weight.add_(1.0)  # type: ignore[union-attr, operator]
    assert torch.equal(seen.heads["classify"].out.weight, network.heads["classify-mood"].out.weight)  # type: ignore[union-attr, arg-type]
    assert tasks_of(network.spec) == tuple(PARTS) and tasks_of(seen.spec) == ()
    with pytest.raises(UserError, match="no task 'moood'"):
        view(network, "moood")
    with pytest.raises(UserError, match="no task ''"):
        alone(network.spec, {}, "")


def test_a_source_without_a_task() -> None:
    with pytest.raises(UserError, match="the source 'other' is no task"):
        objective().form(replace(corpus("classify"), source="other"), context("bert"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": {"a": PARTS["train"]}}, "at least 2"),
        ({"parts": {"a": {"kind": "mlm"}, "b": {"kind": "regress"}}}, "'mlm' has no head of its own"),
        ({"parts": {"a": {"kind": "seq2seq"}, "b": {"kind": "regress"}}}, "'seq2seq' has no head of its own"),
        ({"weights": {"moood": 2}}, "weights for .'moood'., which is no task"),
        ({"weights": {"mood": 0}}, "greater than 0"),
    ],
)
def test_bad_tasks(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tasks.model_validate({"kind": "tasks", "parts": PARTS, **change})


def test_two_tasks_of_the_same_labels_have_two_heads() -> None:
    same = {"kind": "classify", "labels": ["a", "b", "c"]}
    tasks = Tasks.model_validate({"kind": "tasks", "parts": {"x": same, "y": same}})
    network = network_of("roberta", tasks)
    assert set(network.spec.heads) == {"classify-x", "classify-y"}
    assert isinstance(tasks.parts["x"], Classify) and tasks.rows(context("roberta"))["text"] == LENGTH
    assert not torch.equal(network.heads["classify-x"].out.weight, network.heads["classify-y"].out.weight)  # type: ignore[union-attr, arg-type]

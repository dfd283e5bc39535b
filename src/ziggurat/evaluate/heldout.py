"""What a model says about text it was not trained on: losses, accuracies and predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ziggurat.evaluate.scores import Metric, metric
from ziggurat.evaluate.text_scores import text_metric
from ziggurat.nn.heads import ReplacedHeadLayer
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.spec import VocabHead
from ziggurat.objectives.base import Asked, Objective
from ziggurat.objectives.labelled import Classify, Labels, Regress, Tag
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.types import Batch, Target

PER_BYTE = "bits_per_byte"
CHUNK = 512
"""Rows whose scores over the vocabulary exist at once."""


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Matrix products in `dtype`, everything that is added up in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch as torch tensors on `device`."""
    return batch.map(lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device))


def first(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """Batches until they hold `tokens` live tokens."""
    seen = 0
    for batch in batches:
        yield batch
        seen += batch.live_tokens()
        if seen >= tokens:
            return


@torch.no_grad()
def held_out(
    network: NetworkModel, objective: Objective, batches: Iterable[Batch], dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Means over all predictions: `<target>` (loss in nats) and, for classes, `<target>_accuracy`; for replaced tokens also
    `<target>_f1`, of the replaced ones."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    sums: dict[str, np.ndarray] = {}
    binary = set[str]()
    for batch in batches:
        with autocast(device, dtype):
            for name, asked in objective.asked(network, to_device(batch, device)).items():
                loss = network.loss(*asked)
                add = np.array([float(loss.total), float(loss.count), *_right(network, asked)])
                sums[name] = sums.get(name, 0.0) + add
                binary |= {name} if isinstance(network.heads[asked.head], ReplacedHeadLayer) else set()
    network.train(was_training)
    means: dict[str, float] = {}
    for name, added in sums.items():
        total, count, right, both, either = added.tolist()
        if count:
            means[name] = total / count
            if not np.isnan(right):
                means[f"{name}_accuracy"] = right / count
            if name in binary and either:
                means[f"{name}_f1"] = 2 * both / either
    return means


def _right(network: NetworkModel, asked: Asked) -> tuple[float, float, float]:
    """Summed weights: of the predictions that name the right class (nan for numbers), of those where answer and truth are class 1,
    and of the ones among the answers and among the truths together."""
    target = asked.target
    if target.value.is_floating_point():
        return float("nan"), 0.0, 0.0
    found = np.zeros(3)
    for start in range(0, len(target.index), CHUNK):
        part = slice(start, start + CHUNK)
        few = Target(target.stream, target.index[part], target.value[part], target.weight[part], target.at)
        scores = network.logits(asked.head, asked.hidden, asked.streams, few)
        guess = scores.argmax(-1) if scores.shape[1] > 1 else (scores[:, 0] > 0).long()
        mine, true = (guess == 1).float(), (few.value == 1).float()
        for n, kind in enumerate(((guess == few.value).float(), mine * true, mine + true)):
            found[n] += float((kind * few.weight).sum())
    right, both, either = found.tolist()
    return right, both, either


def main_loss(numbers: Mapping[str, float]) -> str:
    """The name of the language-model loss among held-out numbers, or else of the first loss; empty if there is none."""
    losses = [name for name in numbers if not name.endswith(("_accuracy", "_f1")) and name != PER_BYTE]
    return next((name for name in ("mlm", "clm", *losses) if name in numbers), "")


def bits_per_byte(
    network: NetworkModel, objective: Objective, numbers: Mapping[str, float], tokens: float, size: float
) -> dict[str, float]:
    """{`bits_per_byte`: ...} of text with `tokens` tokens in `size` bytes: the loss of a predicted token times the tokens of a byte, in bits.
    Of a causal model that is the text's code length; of one that hides some tokens, the loss if every token were asked in its turn.
    Comparable between tokenizers, as a loss per token is not. Empty where no token is predicted."""
    name = main_loss(numbers)
    head = network.spec.heads.get(objective.head_of(name)) if name else None
    if not isinstance(head, VocabHead) or not size:
        return {}
    return {PER_BYTE: numbers[name] / math.log(2) * tokens / size}


@dataclass(frozen=True)
class Predictions:
    """The gold answers of a labelled set and a model's, one entry an example; a tagged example is a list of labels."""

    gold: list[Any]
    predicted: list[Any]

    def score(self, objective: Objective) -> float:
        return metric_of(objective)(self.gold, self.predicted)


@torch.no_grad()
def predict(
    network: NetworkModel, objective: Objective, batches: Iterable[Batch], dtype: torch.dtype = torch.float32
) -> Predictions:
    """The model's answers to a labelled objective, in the order of the examples' keys: how they were packed says nothing."""
    assert isinstance(objective, (Classify, Regress, Tag)), objective.kind
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    gold: list[Any] = []
    predicted: list[Any] = []
    keys: list[np.ndarray] = []
    for batch in batches:
        on_device = to_device(batch, device)
        with autocast(device, dtype):
            hidden = network(on_device.streams)
            target = on_device.targets[objective.kind]
            scores = network.logits(objective.kind, hidden, on_device.streams, target).float()
        answers = scores[:, 0].tolist() if isinstance(objective, Regress) else scores.argmax(-1).tolist()
        values = target.value.tolist()
        if isinstance(objective, Labels):
            names = objective.label_names()
            answers, values = [names[i] for i in answers], [names[i] for i in values]
        if isinstance(objective, Tag):
            asked = batch.targets["tag"]
            owner = np.asarray(np.searchsorted(batch.streams[asked.stream].bounds, asked.index, side="right"))
            answers, values = _by_document(owner, answers), _by_document(owner, values)
            keys.append(batch.keys[np.unique(owner) - 1])
        else:
            keys.append(batch.keys[batch.targets[objective.kind].index])
        gold += values
        predicted += answers
    network.train(was_training)
    order = np.argsort(np.concatenate(keys), kind="stable").tolist() if keys else []
    return Predictions([gold[i] for i in order], [predicted[i] for i in order])


def _by_document(owner: np.ndarray, values: Sequence[Any]) -> list[list[Any]]:
    cuts = np.flatnonzero(np.diff(owner)) + 1
    return [list(part) for part in np.split(np.array(values, object), cuts)] if len(values) else []


def metric_of(objective: Objective) -> Metric:
    """The metric that reports quote for a labelled objective."""
    if isinstance(objective, Seq2Seq):
        return text_metric(objective.metric)
    assert isinstance(objective, (Classify, Regress, Tag)), objective.kind
    if objective.metric in ("f1", "token_f1"):
        assert isinstance(objective, Labels)
        return metric(objective.metric, positive=objective.label_names()[1])
    return metric(objective.metric)

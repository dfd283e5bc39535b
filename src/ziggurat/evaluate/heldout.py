"""What a model says about text it was not trained on: losses, accuracies and predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from ziggurat.errors import Starved
from ziggurat.evaluate.answer_scores import answer_metric
from ziggurat.evaluate.scores import CHOSEN, Metric, bits_per_byte, metric
from ziggurat.evaluate.text_scores import text_metric
from ziggurat.nn.heads import ReplacedHeadLayer
from ziggurat.nn.memory import Recall, remember
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.spec import VocabHead
from ziggurat.objectives.base import Asked, Objective
from ziggurat.objectives.labelled import Classify, Labels, Regress, Tag
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.question_answering import QuestionAnswering
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.types import Batch, Target

log = logging.getLogger(__name__)

PER_BYTE = "bits_per_byte"
SENTENCES = ("nsp", "sop", "sentence_structure")
"""Targets about whole sentences, which stand beside a language-model loss and are none."""
HIGHER = ("_accuracy", "_f1")
"""Endings of the numbers of which more is better."""
CHUNK = 512
"""Rows whose scores over the vocabulary exist at once."""


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Matrix products in `dtype`, everything that is added up in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch as torch tensors on `device`."""
    return batch.map(lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device))


class Remembers(Protocol):
    """What `reading` asks of an objective."""

    def remembered(self, batch: Batch) -> np.ndarray: ...


@contextmanager
def reading(network: NetworkModel, objective: Remembers, batch: Batch, recall: Recall | None) -> Iterator[Batch]:
    """The batch on the network's device, for one forward pass: inside, its documents remember what `recall` has of the texts they go on
    with, and afterwards `recall` has what they leave. Without one, nothing is remembered."""
    given = to_device(batch, next(network.parameters()).device)
    if recall is None:
        yield given
        return
    assert batch.before is not None, "examples that do not say what they go on from cannot remember it"
    memory = recall.find(batch.before)
    with network.reading(memory) as kept:
        yield given
    stream = given.streams["text"]
    rows = torch.from_numpy(np.flatnonzero(objective.remembered(batch))).to(stream.bounds.device)
    recall.add(batch.keys, remember(kept, stream, list(kept), rows=rows, length=recall.length, before=memory))


def first(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """Batches until they hold `tokens` live tokens."""
    seen = 0
    for batch in batches:
        yield batch
        seen += batch.live_tokens()
        if seen >= tokens:
            return


def main_loss(numbers: Mapping[str, float]) -> str:
    """The name of the language-model loss among a source's held-out numbers, or else of the first loss; empty if there is none."""
    losses = [name for name in numbers if not name.endswith(HIGHER) and name != PER_BYTE]
    said = [name for name in losses if name not in SENTENCES]
    return next((name for name in ("mlm", "clm", *said, *losses) if name in numbers), "")


def language_loss(numbers: Mapping[str, float]) -> float:
    """The value of `main_loss`; nan if there is none."""
    return numbers.get(main_loss(numbers), float("nan"))


def per_byte(
    network: NetworkModel, objective: Objective, numbers: Mapping[str, float], tokens: float, size: float
) -> dict[str, float]:
    """{`bits_per_byte`: ...} of text with `tokens` tokens in `size` bytes: the loss of a predicted token times the tokens of a byte, in bits.
    Of a causal model that is the text's code length; of one that hides some tokens, the loss if every token were asked in its turn.
    Comparable between tokenizers, as a loss per token is not. Empty where no token is predicted."""
    name = main_loss(numbers)
    head = network.spec.heads.get(objective.head_of(name)) if name else None
    if not isinstance(head, VocabHead) or not size:
        return {}
    return {PER_BYTE: bits_per_byte(numbers[name] * tokens, size)}


@torch.no_grad()
def held_out(
    network: NetworkModel,
    objective: Objective,
    batches: Iterable[Batch],
    dtype: torch.dtype = torch.float32,
    memory: int = 0,
) -> dict[str, float]:
    """Means over all predictions: `<target>` (loss in nats) and, for classes, `<target>_accuracy`; for replaced tokens also
    `<target>_f1`, of the replaced ones. With a `memory` of so many tokens, `batches` must be in an order made for it. Empty, and a warning, where
    the texts starve the objective: a run does not end after its training because a number is missing."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    sums: dict[str, np.ndarray] = {}
    binary = set[str]()
    recall = Recall(memory) if memory else None
    try:
        for batch in batches:
            with autocast(device, dtype), reading(network, objective, batch, recall) as given:
                for name, asked in objective.asked(network, given).items():
                    loss = network.loss(*asked)
                    add = np.array([float(loss.total), float(loss.count), *_right(network, asked)])
                    sums[name] = sums.get(name, 0.0) + add
                    binary |= {name} if isinstance(network.heads[asked.head], ReplacedHeadLayer) else set()
    except Starved as lack:
        log.warning("no held-out loss: %s", lack.message)
        sums = {}
    finally:
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
    if target.group is not None:
        return _best(network, asked), 0.0, 0.0
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


def _best(network: NetworkModel, asked: Asked) -> float:
    """The summed weight of the groups whose best row is a right one."""
    target = asked.target
    group, weight = target.group, target.weight.float()
    assert group is not None
    if not len(group):
        return 0.0
    scores = network.logits(asked.head, asked.hidden, asked.streams, target).gather(1, target.value[:, None])[:, 0].float()
    count = int(group.max()) + 1
    top = scores.new_full((count,), -torch.inf).scatter_reduce(0, group, scores, "amax")
    right = (scores == top[group]) & (weight > 0)
    return float(weight.new_zeros(count).index_add(0, group, weight)[group[right].unique()].sum())


@dataclass(frozen=True)
class Predictions:
    """The gold answers of a labelled set and a model's, one entry an example. A tagged example is a list of labels, and so is a group of
    rows that are scored together; the gold of a question are all its right answers, none where it cannot be answered."""

    gold: list[Any]
    predicted: list[Any]
    more: dict[str, list[Any]] = field(default_factory=dict)
    """What else is known, one entry an example: of a question `span`, the best one's text, and `margin`, by how much no answer scores
    better; of a multiple choice `scores`."""
    threshold: float | None = None
    """Of questions that may have no answer: what `margin` was compared with."""

    def score(self, objective: Objective) -> float:
        return metric_of(objective)(self.gold, self.predicted)


@torch.no_grad()
def predict(
    network: NetworkModel,
    objective: Objective,
    batches: Iterable[Batch],
    dtype: torch.dtype = torch.float32,
    groups: Mapping[int, Any] | None = None,
    order: Sequence[int] | None = None,
) -> Predictions:
    """The model's answers to a labelled objective, in the order of the batches, or of the keys in `order`: how rows are packed hangs on the
    tokenizer. Tags are those of words that were read, maybe of none. With `groups`, the group of each row by its key, those of a
    group together, groups and rows in the order of `groups`."""
    assert isinstance(objective, (Classify, Regress, Tag)), objective.kind
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    gold: list[Any] = []
    predicted: list[Any] = []
    keys: list[int] = []
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
            keys += batch.keys[np.unique(owner) - 1].tolist()
        else:
            keys += batch.keys[batch.targets[objective.kind].index].tolist()
        gold += values
        predicted += answers
    network.train(was_training)
    if groups is None and order is None:
        return Predictions(gold, predicted)
    right, given = (dict(zip(keys, values, strict=True)) for values in (gold, predicted))
    if isinstance(objective, Tag):
        right, given = ({key: side.get(key, []) for key in order or side} for side in (right, given))
    if groups is not None:
        return Predictions(_together(groups, right), _together(groups, given))
    return Predictions([right[key] for key in order or ()], [given[key] for key in order or ()])


def _together(groups: Mapping[int, Any], values: Mapping[int, Any]) -> list[list[Any]]:
    found: dict[Any, list[Any]] = {}
    for key, group in groups.items():
        found.setdefault(group, []).append(values[key])
    return list(found.values())


def _by_document(owner: np.ndarray, values: Sequence[Any]) -> list[list[Any]]:
    cuts = np.flatnonzero(np.diff(owner)) + 1
    return [list(part) for part in np.split(np.array(values, object), cuts)] if len(values) else []


def metric_of(objective: Objective) -> Metric:
    """The metric that reports quote for a labelled objective."""
    if isinstance(objective, Seq2Seq):
        return text_metric(objective.metric)
    if isinstance(objective, QuestionAnswering):
        return answer_metric(objective.metric)
    if isinstance(objective, MultipleChoice):
        return CHOSEN if objective.metric == "accuracy" else replace(answer_metric(objective.metric), task="multiple_choice")
    assert isinstance(objective, (Classify, Regress, Tag)), objective.kind
    if objective.metric in ("f1", "token_f1", "f1_a"):
        assert isinstance(objective, Labels)
        return metric(objective.metric, positive=objective.label_names()[1])
    if isinstance(objective, Classify) and objective.metric == "macro_f1":  # a written answer may be none of the labels
        return metric(objective.metric, known=objective.label_names())
    return metric(objective.metric)

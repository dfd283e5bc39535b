"""What a fine-tuned model answers: the best span of a context over all its windows, the best of a question's choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ziggurat.context import Context
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.evaluate.heldout import autocast, to_device
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.multiple_choice import MultipleChoice
from ziggurat.objectives.question_answering import QuestionAnswering, Windows
from ziggurat.types import Batch, Part, Target, Tokens

TOKENS = 4096
"""Tokens that go through the model at once, or one example if that is longer."""


class Span(NamedTuple):
    """The best answer within a context, and what speaks against there being one."""

    start: int
    """Its first token of the context; -1 if the context has none."""
    end: int
    """The token after its last one."""
    score: float
    """Start and end together, in log-odds."""
    null: float
    """The same of no answer: the lowest of all windows."""

    @property
    def margin(self) -> float:
        """By how much no answer scores better."""
        return self.null - self.score

    def text(self, context: str, offsets: np.ndarray) -> str:
        """What it says, given int64[N, 2], the characters of each token of the context."""
        return context[offsets[self.start, 0] : offsets[self.end - 1, 1]].strip() if self.start >= 0 else ""


def spans(
    network: NetworkModel, objective: QuestionAnswering, tokens: Tokens, ctx: Context, dtype: torch.dtype = torch.float32
) -> list[Span]:
    """The best span for each question (`text`) in its context (`pair`), in their order."""
    sizes = np.diff(tokens.parts["text"].bounds) + np.diff(tokens.parts["pair"].bounds)
    found: list[Span] = []
    for chunk in _chunks(sizes):
        cut = objective.windows(_some(tokens, chunk), ctx)
        index = np.zeros(len(cut.rows), np.float32)
        target = Target(ctx.streams[-1], cut.rows, cut.rows, index)
        found += _best(cut, _scores(network, "span", cut.batch, target, dtype), len(chunk), objective.longest)
    return found


def _best(cut: Windows, scores: np.ndarray, count: int, longest: int) -> list[Span]:
    best = [Span(-1, -1, -np.inf, np.inf)] * count
    first = np.cumsum(cut.counts) - cut.counts
    for w, document in enumerate(cut.document.tolist()):
        n, ahead, at = int(cut.length[w]), int(cut.ahead[w]), int(first[w])
        null = float(scores[at if ahead else at + n].sum())
        begin, end = scores[at + ahead : at + ahead + n].T
        old = best[document]
        start, stop, score = old.start, old.end, old.score
        for size in range(1, min(longest, n) + 1):  # all spans of this many tokens
            sums = begin[: n - size + 1] + end[size - 1 :]
            s = int(sums.argmax())
            if sums[s] > score:
                start, stop, score = int(cut.start[w]) + s, int(cut.start[w]) + s + size, float(sums[s])
        best[document] = Span(start, stop, score, min(old.null, null))
    return best


def choices(
    network: NetworkModel, objective: MultipleChoice, tokens: Tokens, ctx: Context, dtype: torch.dtype = torch.float32
) -> list[list[float]]:
    """The scores of each question's choices, in log-odds."""
    parts = tokens.parts
    sizes = sum(np.diff(parts[name].bounds) for name in parts if name != "choices") * np.diff(parts["choices"].mark_bounds)
    found: list[list[float]] = []
    for chunk in _chunks(sizes + np.diff(parts["choices"].bounds)):
        batch, counts = objective.laid(_some(tokens, chunk), ctx)
        every = np.arange(len(batch))
        target = Target(ctx.streams[-1], every, every, np.zeros(len(batch), np.float32), "document")
        scores = _scores(network, "choice", batch, target, dtype)[:, 0]
        found += [part.tolist() for part in np.split(scores, np.cumsum(counts)[:-1])]
    return found


@torch.no_grad()
def _scores(network: NetworkModel, head: str, batch: Batch, target: Target, dtype: torch.dtype) -> np.ndarray:
    """float32[K, outputs] of a head."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    moved = to_device(Batch(batch.streams, {"asked": target}, batch.keys), device)
    with autocast(device, dtype):
        hidden = network(moved.streams, read=network.read(moved.streams, moved.targets.values()))
        scores = network.logits(head, hidden, moved.streams, moved.targets["asked"])
    network.train(was_training)
    found: np.ndarray = scores.float().cpu().numpy()
    return found


def _chunks(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of neighbouring documents of at most TOKENS tokens together, or one."""
    begin, total = 0, 0
    for d, size in enumerate(sizes.tolist()):
        if d > begin and total + size > TOKENS:
            yield np.arange(begin, d)
            begin, total = d, 0
        total += size
    if begin < len(sizes):
        yield np.arange(begin, len(sizes))


def _some(tokens: Tokens, documents: np.ndarray) -> Tokens:
    """These documents."""
    parts = {name: _some_of(part, documents) for name, part in tokens.parts.items()}
    return Tokens(parts, tokens.keys[documents], {k: _picked(v, documents) for k, v in tokens.fields.items()})


def _some_of(part: Part, documents: np.ndarray) -> Part:
    starts, lengths = part.bounds[documents], np.diff(part.bounds)[documents]
    first, counts = part.mark_bounds[documents], np.diff(part.mark_bounds)[documents]
    at = ranges(starts, lengths)
    marks = part.marks[ranges(first, counts)]
    return Part(part.ids[at], bounds_of(lengths), part.words[at], part.sentences[at], marks, bounds_of(counts), part.labels)


def _picked(values: Sequence[object], documents: np.ndarray) -> list[object]:
    return [values[d] for d in documents.tolist()]

"""Writing texts with a model: greedily, by beams, or by chance, one token a step with a cache of keys and values.

Papers: beam search with length penalty (Wu et al., 2016, 7), top-k (Fan et al., 2018), top-p (Holtzman et al., 2020). Beams follow the
rules of Hugging Face's `generate`, so that results can be compared token by token.
Letters in shapes: `D` prompts, `W` beams, `R` hypotheses (D or D * W), `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.decoding import Continuation, Decoding
from ziggurat.types import FOREVER, NEVER, SPELLED, Batch, Stream, Target, Visibility


@torch.no_grad()
def generate(
    network: NetworkModel, prompts: Batch, way: Continuation, how: Decoding, draws: torch.Generator | None = None
) -> list[list[int]]:
    """The tokens written after each prompt, without the end token.

    `prompts` (numpy side, not packed) holds in `way.stream` what is already there, at least one token a document, and beside it
    what a decoder reads. `draws` goes on from call to call; by default a new one is made from `how.seed`.
    """
    was_training = network.training
    network.eval()
    writer = Writer(network, prompts, way)
    if how.beams > 1:
        written = _beams(writer, how)
    else:
        draws = draws or torch.Generator().manual_seed(how.seed)
        written = _one_by_one(writer, how, draws)
    network.train(was_training)
    return written


class Writer:
    """R hypotheses that grow by a token a step: what the cache, the positions and the clocks of a model need to know."""

    def __init__(self, network: NetworkModel, prompts: Batch, way: Continuation):
        self.network, self.way = network, way
        self.device = next(network.parameters()).device
        stream = prompts.streams[way.stream]
        assert (stream.lengths > 0).all(), "a prompt without a token says nothing"
        last = stream.bounds[1:] - 1
        seen = stream.visibility.spelled(stream.lengths)
        assert seen.clock is not None
        segment = stream.segment[last] if way.segment is None else np.full(len(last), way.segment)
        self.position, self.clock, self.segment = (
            torch.from_numpy(np.asarray(x, np.int64)).to(self.device) for x in (stream.position[last], seen.clock[last], segment)
        )
        self.cache = network.cache(len(prompts))
        self.prompts = prompts

    def begin(self) -> Tensor:
        """float32[D, V]: log-odds of the token after each prompt."""
        stream = self.prompts.streams[self.way.stream]
        stream = replace(stream, visibility=stream.visibility.spelled(stream.lengths), unit=None, row=0)
        if self.way.query is not None:
            stream = _with_query(stream, self)
        rest = {name: s for name, s in self.prompts.streams.items() if name != self.way.stream}
        batch = Batch({**rest, self.way.stream: stream}, {}, self.prompts.keys).map(
            lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        )
        return self._ask(batch.streams)

    def go_on(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """float32[R, V]: of the token after `tokens` (int64[R]), which were chosen; with `rows` (int64[R]) hypothesis i continues what
        rows[i] was."""
        if rows is not None:
            self.cache.pick(rows)
            self.position, self.clock, self.segment = (x[rows] for x in (self.position, self.clock, self.segment))
        self.position, self.clock = self.position + 1, self.clock + 1
        count, n = len(tokens), 1 if self.way.query is None else 2
        asks = torch.arange(n, device=self.device) == 1
        # the asking row stands at the next position and knows what the token knows
        clock = self.clock[:, None].expand(-1, n)
        content = torch.stack([tokens, torch.full_like(tokens, self.way.query or 0)][:n], 1)
        position, segment = self.position[:, None] + asks, self.segment[:, None].expand(-1, n)
        times = (clock, torch.where(asks, NEVER, clock), torch.full_like(clock, FOREVER), asks.long().expand(count, -1))
        lane = times[3] * int(self.way.sees_itself)
        visibility = Visibility("custom", *(t.reshape(-1) for t in (*times[:3], lane)))
        bounds = torch.arange(count + 1, device=self.device) * n
        stream = Stream(content.reshape(-1), bounds, position.reshape(-1), segment.reshape(-1), visibility)
        return self._ask({self.way.stream: stream})

    def _ask(self, streams: Mapping[str, Stream]) -> Tensor:
        bounds = streams[self.way.stream].bounds
        at = bounds[1:] - 1
        hidden = self.network(streams, read={self.way.stream: at}, cache=self.cache)
        target = Target(self.way.stream, at, at, torch.ones(len(at), device=self.device))
        return self.network.logits("lm", hidden, streams, target).float()

    @property
    def end(self) -> int:
        return -1 if self.way.end is None else self.way.end


def _with_query(stream: Stream, writer: Writer) -> Stream:
    """The prompts (numpy side, visibility spelled out), each with an asking row behind its last token."""
    way, last = writer.way, stream.bounds[1:]
    seen = stream.visibility
    assert seen.clock is not None and way.query is not None
    position, clock, segment = (x.cpu().numpy() for x in (writer.position, writer.clock, writer.segment))
    times: dict[str, Any] = dict(clock=clock, opens=NEVER, closes=FOREVER, lane=int(way.sees_itself))
    return replace(
        stream,
        content=np.insert(stream.content, last, way.query),
        bounds=stream.bounds + np.arange(len(stream.bounds)),
        position=np.insert(stream.position, last, position + 1),
        segment=np.insert(stream.segment, last, segment),
        visibility=Visibility("custom", *(np.insert(getattr(seen, f), last, times[f]) for f in SPELLED)),
    )


def _one_by_one(writer: Writer, how: Decoding, draws: torch.Generator) -> list[list[int]]:
    scores = writer.begin()
    written = torch.zeros(len(scores), 0, dtype=torch.int64, device=scores.device)
    done = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    for step in range(how.most):
        if step:
            scores = writer.go_on(written[:, -1])
        scores = allowed(scores, written, writer.way, how)
        chosen = drawn(scores, how, draws) if how.temperature > 0 else scores.argmax(-1)
        written = torch.cat([written, chosen[:, None]], 1)
        done |= chosen == writer.end
        if bool(done.all()):
            break
    return [_until(row, writer.end) for row in written.tolist()]


def _beams(writer: Writer, how: Decoding) -> list[list[int]]:
    """The best finished text of each prompt.

    Every step looks at the 2 W best continuations of a prompt's beams. Those among the first W that end are finished texts, scored by
    sum / length ** penalty, of which the best W are kept; the best W that do not end run on.
    """
    width, log = how.beams, writer.begin()
    prompts, vocabulary = log.shape
    device = log.device
    written = torch.zeros(prompts, 0, dtype=torch.int64, device=device)  # [R, steps]
    sums = torch.zeros(prompts, 1, device=device)  # [D, beams], one beam before the first step
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(prompts)]
    closed = [False] * prompts
    for step in range(how.most):
        now = sums.shape[1]
        log = allowed(log.log_softmax(-1), written, writer.way, how)
        total = (log.view(prompts, now, vocabulary) + sums[:, :, None]).flatten(1)
        best, place = total.topk(min(2 * width, total.shape[1]), 1)
        beam, token = place // vocabulary, place % vocabulary
        texts = torch.cat([written.view(prompts, now, -1).gather(1, beam[..., None].expand(-1, -1, step)), token[..., None]], 2)
        ends = (token == writer.end) | (step + 1 == how.most)
        for d in range(prompts):
            if closed[d]:
                continue
            for i in torch.nonzero(ends[d, :width])[:, 0].tolist():
                finished[d].append((float(best[d, i]) / (step + 1) ** how.length_penalty, texts[d, i].tolist()))
            finished[d] = sorted(finished[d], key=lambda one: -one[0])[:width]
        if step + 1 == how.most:
            break
        sums, kept = best.masked_fill(ends, -torch.inf).topk(width, 1)
        for d, running in enumerate((sums[:, 0] / (step + 1) ** how.length_penalty).tolist()):
            full = len(finished[d]) == width
            closed[d] = closed[d] or (full and (how.early or running <= finished[d][-1][0]))
        if all(closed):
            break
        rows = (beam.gather(1, kept) + torch.arange(prompts, device=device)[:, None] * now).flatten()
        written = texts.gather(1, kept[..., None].expand(-1, -1, step + 1)).flatten(0, 1)
        log = writer.go_on(written[:, -1], rows)
    return [_until(row[0][1], writer.end) for row in finished]


def allowed(scores: Tensor, written: Tensor, way: Continuation, how: Decoding) -> Tensor:
    """The scores [R, V] of the next token with minus infinity for what may not follow `written` (int64[R, steps])."""
    step, scores = written.shape[1], scores.clone()
    if way.banned:
        scores[:, list(way.banned)] = -torch.inf
    if way.end is not None and step < how.least:
        scores[:, way.end] = -torch.inf
    if 0 < how.no_repeat <= step:
        n = how.no_repeat
        grams = written.unfold(1, n, 1)  # [R, grams, n]
        again = (grams[:, :, : n - 1] == written[:, None, step - n + 1 :]).all(-1)
        row, gram = again.nonzero(as_tuple=True)
        scores[row, grams[row, gram, n - 1]] = -torch.inf
    forced = way.first if step == 0 else way.end if how.force_end and step + 1 == how.most else None
    if forced is not None:
        scores[:] = -torch.inf
        scores[:, forced] = 0.0
    return scores


def drawn(scores: Tensor, how: Decoding, draws: torch.Generator) -> Tensor:
    """int64[R]: one token of each row of scores [R, V], by `how.temperature`, then `top_k`, then `top_p`."""
    scores = scores / how.temperature
    if how.top_k:
        least = scores.topk(min(how.top_k, scores.shape[1]), 1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if how.top_p < 1:
        ordered, place = scores.sort(1, descending=True)
        chance = ordered.softmax(1)
        beyond = chance.cumsum(1) - chance >= how.top_p  # what stands before already has the share
        scores = scores.masked_fill(torch.zeros_like(beyond).scatter(1, place, beyond), -torch.inf)
    return torch.multinomial(scores.softmax(1).cpu(), 1, generator=draws)[:, 0].to(scores.device)


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens

"""Choices by their likelihood: which text would the model most probably write after a prompt? Without training, with or without examples.

Papers: GPT-2 and GPT-3 (Radford et al., 2019; Brown et al., 2020, 2.4), normalisation by length and by the choice's own probability (Brown et
al., 2020, 2.4; Holtzman et al., 2021). What is scored is always the text of a choice, never the letter of an option.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ziggurat.config import Spec
from ziggurat.context import Context
from ziggurat.data.cut import Piece, assemble
from ziggurat.data.rows import joined
from ziggurat.data.runs import bounds_of, ranges
from ziggurat.errors import check
from ziggurat.evaluate.heldout import CHUNK, autocast, to_device
from ziggurat.evaluate.written import asked
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.types import CAUSAL, FOREVER, Batch, Part, Target, Tokens, Visibility

log = logging.getLogger(__name__)

TOKENS = 4096
"""Tokens that go through the model at once, or one example if that is longer."""


class Likelihood(Spec):
    """How the choices of one prompt are compared."""

    by: Literal["sum", "token", "byte", "pmi"] = "sum"
    """The log-probability of a choice after the prompt; divided by its tokens; by its bytes in UTF-8; or minus its log-probability after
    `premise` alone (pointwise mutual information)."""
    premise: str = ""
    """`pmi`: what stands before a choice instead of the prompt, such as `Answer:`; empty = the token that begins a text."""
    joiner: str | None = None
    """What stands between prompt and choice in a model of one stack; null = a space, but none between Han characters or where the prompt
    ends with white space."""
    end: bool = False
    """Whether the choice must also be the end of the text."""


class Scored(NamedTuple):
    """A continuation."""

    total: float
    """The sum of its tokens' log-probabilities, in nats."""
    tokens: int


def scores(
    network: NetworkModel,
    objective: Mapping[str, Any],
    tokenizer: Tokenizer,
    ctx: Context,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    how: Likelihood | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[list[float]]:
    """For each prompt the scores of its choices; the highest is the model's answer.

    `objective` is what the model was trained with, as a recipe writes it. A prompt that does not fit loses its beginning.

    Raises:
        UserError: the model cannot say how probable a text is; a choice is empty, too long, or only the letter of an option.
    """
    how = how or Likelihood()
    check(len(prompts) == len(choices), f"{len(prompts)} prompts, but choices for {len(choices)}")
    for n, options in enumerate(choices):
        check(len(options) > 0 and all(o.strip() for o in options), f"prompt {n} has no choices or an empty one", "leave it out")
        check(
            not _are_letters(options),
            f"the choices of prompt {n} are the letters of options, and how probable a letter is says little: {list(options)}; "
            "declare the texts of the choices (of labels as their `names`)",
            "leave the options out of the prompt; where a letter is itself the answer, put it into words, as in 'vitamin C'",
        )
    pairs = [(prompt, option) for prompt, options in zip(prompts, choices, strict=True) for option in options]
    found = likelihoods(network, objective, tokenizer, ctx, pairs, how, dtype)
    values = [one.total for one in found]
    if how.by == "token":
        values = [one.total / one.tokens for one in found]
    elif how.by == "byte":
        values = [one.total / len(option.encode()) for one, (_, option) in zip(found, pairs, strict=True)]
    elif how.by == "pmi":
        values = [one.total - alone for one, alone in zip(found, _alone(network, objective, tokenizer, ctx, pairs, how, dtype))]
    cuts = np.cumsum([0, *map(len, choices)]).tolist()
    return [values[a:b] for a, b in pairwise(cuts)]


def _are_letters(options: Sequence[str]) -> bool:
    """Whether choices are a different letter each and nothing else, in any order: `A`, `b`, `(c)`, `D.`."""
    letters = {option.strip().strip("().: ").upper() for option in options}
    return len(options) > 1 and len(letters) == len(options) and letters <= set(ascii_uppercase)


def reads_whole(
    network: NetworkModel, objective: Mapping[str, Any], tokenizer: Tokenizer, ctx: Context, how: Likelihood | None = None
) -> Callable[[str, Sequence[str]], bool]:
    """Whether `scores` would read a prompt from its beginning, asked for these choices."""
    how = how or Likelihood()
    way, apart = _way(network, objective, ctx)

    def whole(prompt: str, options: Sequence[str]) -> bool:
        pairs = [(prompt, option) for option in options]
        if apart:
            before, after = _separately(tokenizer, pairs)
            return len(before[0]) <= _for_writing(way, after, ctx)[1]
        before, after = _together(tokenizer, pairs, how)
        longest = max(len(a) + len(b) for a, b in zip(before, after, strict=True))
        return len(ctx.layout.first) + longest + how.end <= ctx.length

    return whole


def likelihoods(
    network: NetworkModel,
    objective: Mapping[str, Any],
    tokenizer: Tokenizer,
    ctx: Context,
    pairs: Sequence[tuple[str, str]],
    how: Likelihood | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Scored]:
    """How probable each text is after its prompt, for pairs (prompt, text) in their order."""
    how = how or Likelihood()
    before, after = _ids(_way(network, objective, ctx)[1], tokenizer, pairs, how)
    for (_, text), ids in zip(pairs, after, strict=True):
        check(len(ids), f"{text!r} has no token", "the tokenizer drops these characters; write something visible in their place")
    totals = _totals(network, objective, ctx, before, after, how, dtype)
    return [Scored(total, len(ids) + how.end) for total, ids in zip(totals, after, strict=True)]


def _alone(
    network: NetworkModel,
    objective: Mapping[str, Any],
    tokenizer: Tokenizer,
    ctx: Context,
    pairs: Sequence[tuple[str, str]],
    how: Likelihood,
    dtype: torch.dtype,
) -> list[float]:
    """How probable the text of each pair is after `how.premise`. Without one it is the same tokens at the beginning: behind a prompt a word may
    be another token than where a text begins."""
    apart = _way(network, objective, ctx)[1]
    if how.premise or apart:
        texts = list(dict.fromkeys(text for _, text in pairs))
        found = likelihoods(network, objective, tokenizer, ctx, [(how.premise, text) for text in texts], how, dtype)
        totals = {text: one.total for text, one in zip(texts, found, strict=True)}
        return [totals[text] for _, text in pairs]
    asked_ = [tuple(ids.tolist()) for ids in _ids(apart, tokenizer, pairs, how)[1]]
    each = list(dict.fromkeys(asked_))
    none = [np.zeros(0, np.int64)] * len(each)
    by_ids = dict(zip(each, _totals(network, objective, ctx, none, list(map(np.array, each)), how, dtype), strict=True))
    return [by_ids[ids] for ids in asked_]


@torch.no_grad()
def _totals(
    network: NetworkModel,
    objective: Mapping[str, Any],
    ctx: Context,
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    how: Likelihood,
    dtype: torch.dtype,
) -> list[float]:
    """The log-probability of the tokens `after[n]` behind the tokens `before[n]`."""
    way, apart = _way(network, objective, ctx)
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    totals = np.zeros(len(after))
    order = np.argsort([len(a) + len(b) for a, b in zip(before, after, strict=True)], kind="stable").tolist()
    while order:
        chunk, size = [order.pop()], 0
        size = len(before[chunk[0]]) + len(after[chunk[0]])
        while order and size * (len(chunk) + 1) <= TOKENS:  # the longest come first
            chunk.append(order.pop())
        some = [before[i] for i in chunk], [after[i] for i in chunk]
        batch = _written(way, *some, ctx, how) if apart else _continued(objective, *some, ctx, how)
        target = batch.targets["asked"]
        moved = to_device(batch, device)
        with autocast(device, dtype):
            hidden = network(moved.streams, read=network.read(moved.streams, moved.targets.values()))
            logs = _logs(network, hidden, moved)
        assert target.group is not None
        totals[chunk] = np.bincount(target.group, logs, len(chunk))
    network.train(was_training)
    return list(map(float, totals))


def _way(network: NetworkModel, objective: Mapping[str, Any], ctx: Context) -> tuple[Seq2Seq, bool]:
    """How the model writes, and whether the text is another sequence than the prompt or at least another part of one."""
    way = asked(network.spec.model, objective) if "lm" in network.heads else None
    check(
        way is not None and way.asks not in ("mask", "future"),
        "the model cannot say how probable a text is after another",
        "use a causal model, an encoder-decoder, or a model fine-tuned with seq2seq",
    )
    assert way is not None
    return way, ctx.structure == "encoder_decoder" or way.asks != "next" or objective.get("kind") == "seq2seq"


def _logs(network: NetworkModel, hidden: Mapping[str, torch.Tensor], batch: Batch) -> np.ndarray:
    """float64[K]: the log-probability of each token that is asked for; the vocabulary's scores live for CHUNK rows at a time."""
    asked_, found = batch.targets["asked"], []
    for start in range(0, len(asked_.index), CHUNK):
        part = slice(start, start + CHUNK)
        few = replace(asked_, index=asked_.index[part], value=asked_.value[part], weight=asked_.weight[part], group=None)
        logits = network.logits("lm", hidden, batch.streams, few)
        logs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        found.append(logs.gather(1, few.value[:, None])[:, 0].cpu().numpy())
    return np.concatenate(found)


# ---- ids -----------------------------------------------------------------------------------------------------------


def _ids(
    apart: bool, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], how: Likelihood
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return _separately(tokenizer, pairs) if apart else _together(tokenizer, pairs, how)


def _together(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], how: Likelihood
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompt and text as they are tokenized in one piece; a token that holds characters of both is the text's."""
    whole = [a + (joined(a, b) if how.joiner is None else how.joiner + b if a else b) for a, b in pairs]
    before, after = [], []
    for (prompt, _), encoded in zip(pairs, tokenizer.encode(whole), strict=True):
        cut = int(np.searchsorted(encoded.offsets[:, 1], len(prompt), "right"))
        before.append(encoded.ids[:cut])
        after.append(encoded.ids[cut:])
    return before, after


def _separately(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    sides = [[pair[i] for pair in pairs] for i in (0, 1)]
    unique = {text: encoded.ids for side in sides for text, encoded in _encoded(tokenizer, side)}
    return [unique[text] for text in sides[0]], [unique[text] for text in sides[1]]


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[str, Any]]:
    each = list(dict.fromkeys(texts))
    return list(zip(each, tokenizer.encode(each), strict=True))


def _trimmed(before: Sequence[np.ndarray], rooms: Sequence[int], longest: int) -> list[np.ndarray]:
    """The prompts without what does not fit at their beginning."""
    check(min(rooms) >= 0, f"a choice is longer than the {longest} tokens that the model reads", "shorten it")
    cut = sum(len(ids) > room for ids, room in zip(before, rooms, strict=True))
    if cut:
        log.warning("%d prompt(s) are too long for %d tokens: their beginning is left out", cut, longest)
    return [ids[max(0, len(ids) - room) :] for ids, room in zip(before, rooms, strict=True)]


def _pieces(runs: Sequence[np.ndarray]) -> Piece:
    sizes = np.array([len(ids) for ids in runs], np.int64)
    return Piece(np.concatenate([np.zeros(0, np.int32), *runs]).astype(np.int32), np.cumsum(sizes) - sizes, sizes)


# ---- examples ------------------------------------------------------------------------------------------------------


def _continued(
    objective: Mapping[str, Any], before: Sequence[np.ndarray], after: Sequence[np.ndarray], ctx: Context, how: Likelihood
) -> Batch:
    """Prompt and text as one running text: seen from left to right, or with a prompt that sees itself both ways."""
    first, end = ctx.layout.first, ctx.vocab.end
    check(not how.end or end is not None, "the tokenizer has no token that ends a text", "leave out `end`")
    after = [np.append(ids, np.int32(end or 0)) for ids in after] if how.end else list(after)
    rooms = [ctx.length - len(first) - len(ids) for ids in after]
    before = _trimmed(before, rooms, ctx.length)
    if not first and any(len(ids) == 0 for ids in before):
        check(
            end is not None and all(room > 0 for room in rooms),
            "nothing stands before the first token of a text",
            "give a prompt",
        )
        before = [ids if len(ids) else np.array([end]) for ids in before]
    keys = np.arange(len(before), dtype=np.uint64)
    a, b = _pieces(before), _pieces(after)
    batch = assemble([first, a, b], [ctx.layout.segments[0]] * 3, keys, ctx)
    stream = batch.streams["text"]
    known = stream.lengths - b.length
    if ctx.visibility == "causal" or objective.get("kind") == "clm":
        stream = replace(stream, visibility=CAUSAL)
    else:
        clock = np.maximum(stream.inside() - np.repeat(known, stream.lengths) + 1, 0).astype(np.int32)
        stream = replace(
            stream, visibility=Visibility("custom", clock, clock, np.full_like(clock, FOREVER), np.zeros_like(clock))
        )
    index = ranges(stream.bounds[:-1] + known - 1, b.length)
    return _asking(Batch({"text": stream}, {}, keys), "text", index, b.ids, b.length)


def _written(way: Seq2Seq, before: Sequence[np.ndarray], after: Sequence[np.ndarray], ctx: Context, how: Likelihood) -> Batch:
    """The text as a target that is written after the source, as in `seq2seq`."""
    opening = len(way.opening(ctx))
    way, room = _for_writing(way, after, ctx)
    before = _trimmed(before, [room] * len(before), ctx.length)
    parts = {name: _part(runs) for name, runs in (("text", before), ("pair", after))}
    batch = way.corrupt(way.form(Tokens(parts, np.arange(len(after), dtype=np.uint64)), ctx), ctx)
    target = batch.targets["seq2seq"]
    said = np.array([len(ids) for ids in after], np.int64) + opening + 1
    chosen = ranges(np.cumsum(said) - said + opening, said - opening - (not how.end))
    return _asking(batch, target.stream, target.index[chosen], target.value[chosen], said - opening - (not how.end))


def _for_writing(way: Seq2Seq, after: Sequence[np.ndarray], ctx: Context) -> tuple[Seq2Seq, int]:
    """The objective for targets as long as these, and the most tokens of a source before them."""
    most = max(len(ids) for ids in after) + len(way.opening(ctx)) + 1
    check(most <= ctx.length, f"a choice is longer than the {ctx.length} tokens that the model writes", "shorten it")
    way = way.model_copy(update={"target": max(most, 2), "noise": 0.0})
    return way, way.source_room(ctx)


def _part(runs: Sequence[np.ndarray]) -> Part:
    piece = _pieces(runs)
    none, off = np.zeros((0, 3), np.int64), np.zeros(len(piece.ids), bool)
    return Part(piece.ids, bounds_of(piece.length), off, off, none, np.zeros(len(runs) + 1, np.int64))


def _asking(batch: Batch, stream: str, index: np.ndarray, value: np.ndarray, counts: np.ndarray) -> Batch:
    """With the target `asked`, whose groups are the documents."""
    group = np.repeat(np.arange(len(counts)), counts)
    target = Target(stream, index, np.asarray(value, np.int64), np.ones(len(index), np.float32), group=group)
    return replace(batch, targets={"asked": target})

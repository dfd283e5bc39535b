"""BART's noises, restated slowly: one document, one word, one draw at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from blocks import CLS, MASK, PAD, SEP, VOCAB, batch_of, context, random_documents, tokens
from pydantic import ValidationError

from ziggurat.context import Context, Layout
from ziggurat.data.pack import pack, take
from ziggurat.errors import UserError
from ziggurat.objectives.infill import Denoise
from ziggurat.types import DEAD, Batch, join

BART = Layout((CLS,), (SEP, SEP), (SEP,))
OFF: dict[str, Any] = {"infill": 0.0, "permute": 0.0}
NOISES: dict[str, dict[str, Any]] = {
    "published": {},
    "command": {"mean": 3.5, "random": 0.1},
    "infill": {"permute": 0.0, "infill": 0.5},
    "inserts": {"permute": 0.0, "mean": 0.5},
    "permute": {"infill": 0.0},
    "permute-some": {"infill": 0.0, "permute": 0.4},
    "mask": {**OFF, "mask": 0.3, "random": 0.5},
    "delete": {**OFF, "delete": 0.3},
    "rotate": {**OFF, "rotate": 1.0},
    "all": {"infill": 0.2, "mask": 0.2, "delete": 0.2, "rotate": 0.5, "random": 0.3},
}
every_noise = pytest.mark.parametrize("how", NOISES.values(), ids=list(NOISES))
Draw = Callable[[int, str], float]


def bart(length: int = 24, layout: Layout = BART, **other: Any) -> Context:
    return context(length, layout, **{"seed": 3, "start": SEP, **other})


def draws_of(ctx: Context, key: np.uint64) -> Draw:
    """The document's draws by number and purpose; those of one purpose are made together."""
    made: dict[str, list[float]] = {}

    def one(number: int, purpose: str) -> float:
        if purpose not in made:
            made[purpose] = ctx.uniform(np.array([key]), np.zeros(256, np.int64), np.arange(256), f"denoise.{purpose}").tolist()
        return made[purpose][number]

    return one


def poisson(u: float, mean: float) -> int:
    k, term = 0, math.exp(-mean)
    below = term
    while u >= below and k < 200:
        k += 1
        term *= mean / k
        below += term
    return k


def infilled(words: list[list[int]], how: dict[str, Any], draw: Draw) -> tuple[list[int], int]:
    """The released add_whole_word_mask: tokens with MASK for each span, and how many masks are still to be inserted."""
    budget = math.ceil(round(how.get("infill", 0.3) * len(words), 6))
    lengths: list[int] = []
    while sum(lengths) < budget:
        lengths.append(poisson(draw(len(lengths), "length"), how.get("mean", 3.0)))
    if lengths:
        lengths[-1] -= sum(lengths) - budget
    spans = [n for n in lengths if n > 0]
    starts = sorted(range(len(words)), key=lambda w: draw(w, "start"))[: len(spans)]
    swallowed = {w for start, n in zip(starts, spans, strict=True) for w in range(start + 1, start + n)}
    shown: list[int] = []
    for w, word in enumerate(words):
        if w not in swallowed:
            shown += [MASK] if w in starts else word
    return shown, len(lengths) - len(spans)


def rule(sentences: list[list[list[int]]], how: dict[str, Any], draw: Draw, room: int) -> list[int]:
    """Sentences of words of tokens -> the encoder's text (Lewis et al., 2020, 2.2 and the released order of the noises)."""
    n = len(sentences)
    chosen = sorted(sorted(range(n), key=lambda i: draw(i, "sentence"))[: math.ceil(round(how.get("permute", 1.0) * n, 6))])
    order = list(range(n))
    for place, j in zip(chosen, sorted(range(len(chosen)), key=lambda j: draw(j, "order")), strict=True):
        order[place] = chosen[j]
    words = [word for i in order for word in sentences[i]]
    shown, inserts = infilled(words, how, draw)
    inserts = max(0, min(inserts, room - len(shown)))
    slots = sorted(range(len(shown) + inserts), key=lambda j: draw(j, "insert"))[:inserts]
    rest = iter(shown)
    shown = [MASK if j in slots else next(rest) for j in range(len(shown) + inserts)]
    text = [j for j, x in enumerate(shown) if x != MASK]
    for t in sorted(range(len(text)), key=lambda t: draw(t, "mask"))[: math.ceil(round(how.get("mask", 0.0) * len(text), 6))]:
        shown[text[t]] = MASK
    text = [j for j, x in enumerate(shown) if x != MASK]
    dropped = sorted(range(len(text)), key=lambda t: draw(t, "delete"))
    gone = {text[t] for t in dropped[: math.ceil(round(how.get("delete", 0.0) * len(text), 6))]}
    shown = [x for j, x in enumerate(shown) if j not in gone]
    ordinary = [i for i in range(VOCAB.size) if i not in VOCAB.special]
    for j, x in enumerate(shown):
        if x == MASK and draw(j, "random") < how.get("random", 0.0):
            shown[j] = ordinary[int(draw(j, "word") * len(ordinary))]
    if draw(0, "rotate") < how.get("rotate", 0.0):
        offset = int(draw(0, "offset") * len(shown))
        shown = shown[offset:] + shown[:offset]
    return shown


def sequences(batch: Batch, name: str) -> list[list[int]]:
    s = batch.streams[name]
    return [s.content[a:b].tolist() for a, b in pairwise(s.bounds)]


def gold_of(batch: Batch) -> list[list[int]]:
    target = batch.targets["denoise"]
    assert target.stream == "decoder" and target.at == "token" and (target.weight == 1).all()
    assert target.index.tolist() == list(range(len(batch.streams["decoder"].content)))
    return [target.value[a:b].tolist() for a, b in pairwise(batch.streams["decoder"].bounds)]


def content_of(batch: Batch) -> list[tuple[int, list[int], list[int], list[int]]]:
    columns = batch.keys.tolist(), sequences(batch, "encoder"), sequences(batch, "decoder"), gold_of(batch)
    return list(zip(*columns, strict=True))


def made(how: dict[str, Any], ctx: Context, n: int = 20, seed: int = 0) -> tuple[Denoise, Batch, Batch]:
    objective = Denoise(**how)
    objective.needs(ctx)
    formed = objective.form(tokens(random_documents(np.random.default_rng(seed), n), seed), ctx)
    return objective, formed, objective.corrupt(formed, ctx)


def windows_of(documents: list[list[list[int]]], ids: list[int], room: int) -> list[list[list[list[int]]]]:
    """Every document cut at `room` tokens: for each window its sentences of words of tokens. A cut begins both anew."""
    found, rest = [], iter(ids)
    for document in documents:
        window: list[list[list[int]]] = []
        count = 0
        for sentence in document:
            fresh = True
            for size in sentence:
                begins = True
                for _ in range(size):
                    if count == room:
                        found.append(window)
                        window, count = [], 0
                    if fresh or not window:
                        window.append([])
                    if begins or not window[-1]:
                        window[-1].append([])
                    window[-1][-1].append(next(rest))
                    count, fresh, begins = count + 1, False, False
        found.append(window)
    return found


@every_noise
@pytest.mark.parametrize("layout", [BART, Layout()], ids=["bart", "bare"])
def test_streams_are_exactly_the_slow_ones(how: dict[str, Any], layout: Layout) -> None:
    first, last = list(layout.first), list(layout.last)
    for length, epoch in ((24, 0), (7, 1), (60, 2)):
        ctx, objective = bart(length, layout, epoch=epoch), Denoise(**how)
        documents = random_documents(np.random.default_rng(length), 15)
        block = tokens(documents)
        formed = objective.form(block, ctx)
        done = objective.corrupt(formed, ctx)
        room = length - len(first) - len(last)
        windows = windows_of(documents, block.parts["text"].ids.tolist(), room)
        assert done.keys.tolist() == formed.keys.tolist() and set(done.streams) == {"encoder", "decoder"}
        streams = sequences(done, "encoder"), sequences(done, "decoder"), gold_of(done)
        for key, window, encoder, decoder, gold in zip(formed.keys, windows, *streams, strict=True):
            clean = [x for sentence in window for word in sentence for x in word]
            assert gold == [*first, *clean, *last], "the target is the clean text, boundary tokens included"
            assert decoder == [SEP, *gold[:-1]]
            assert encoder == [*first, *rule(window, how, draws_of(ctx, key), room), *last]


@every_noise
def test_streams_are_what_the_structure_reads(how: dict[str, Any]) -> None:
    _, _, done = made(how, bart())
    assert done.streams["encoder"].visibility.kind == "full" and done.streams["decoder"].visibility.kind == "causal"
    for s in done.streams.values():
        assert s.row == 0 and len(s.position) == len(s.segment) == len(s.content) == s.bounds[-1]
        assert s.position.tolist() == s.inside().tolist() and not s.segment.any()


@every_noise
@pytest.mark.parametrize("length", [3, 4, 5, 17, 40])
def test_examples_fit(how: dict[str, Any], length: int) -> None:
    ctx = bart(length)
    objective, _, done = made(how, ctx, 60)
    assert objective.rows(ctx) == {"encoder": length, "decoder": length}
    assert all(s.lengths.max() <= length for s in done.streams.values())


@every_noise
def test_corrupt_commutes_with_join(how: dict[str, Any]) -> None:
    ctx = bart()
    objective, a, _ = made(how, ctx, 4, seed=1)
    b = made(how, ctx, 6, seed=2)[1]
    one, two = objective.corrupt(a, ctx), objective.corrupt(b, ctx)
    assert content_of(objective.corrupt(join(a, b), ctx)) == content_of(join(one, two))
    order = np.random.default_rng(0).permutation(len(a))
    before = content_of(one)
    assert content_of(objective.corrupt(take(a, order), ctx)) == [before[i] for i in order]


@every_noise
def test_dead_documents_vanish(how: dict[str, Any]) -> None:
    ctx = bart()
    objective, formed, done = made(how, ctx)
    packed = objective.corrupt(pack(formed, 30, PAD), ctx)
    assert sorted(x for x in content_of(packed) if x[0] != DEAD) == sorted(content_of(done))
    assert {tuple(map(tuple, x[1:])) for x in content_of(packed) if x[0] == DEAD} == {((), (), ())}


@every_noise
def test_texts_with_nothing_to_hide(how: dict[str, Any]) -> None:
    done = Denoise(**how).corrupt(batch_of([[-1, -1], [], [-1, 0, -1]]), bart())
    assert sequences(done, "encoder")[:2] == [[CLS, CLS], []] and gold_of(done)[:2] == [[], []]
    assert len(gold_of(done)[2]) == 3
    none = Denoise(**how).corrupt(batch_of([]), bart())
    assert len(none) == 0 and len(none.targets["denoise"].index) == 0


@every_noise
def test_noise_is_a_function_of_seed_and_epoch(how: dict[str, Any]) -> None:
    objective = Denoise(**how)
    formed = objective.form(tokens([[[1] * 5] * 4] * 3), bart(40))

    def at(**when: Any) -> str:
        return str(content_of(objective.corrupt(formed, bart(40, **when))))

    assert at(epoch=1) == at(epoch=1)
    assert len({at(), at(epoch=1), at(seed=1), at(epoch=2)}) == 4


def test_several_parts_keep_their_sentences() -> None:
    """Two texts a document give windows of their own, each with its own sentences."""
    one, two = tokens([[[1, 1], [1]], [[2]]]), tokens([[[1], [1], [1]], [[1], [1]]], seed=1)
    block = replace(one, parts={"text": one.parts["text"], "pair": two.parts["text"]})
    formed = Denoise().form(block, bart())
    s = formed.streams["text"]
    assert [s.segment[a + 1 : b - 1].tolist() for a, b in pairwise(s.bounds)] == [[0, 0, 1], [0, 0], [0, 1, 2], [0, 1]]


def test_a_word_over_the_border_of_two_sentences_is_two() -> None:
    batch = batch_of([[-1, 0, 0, 0, 0, -1]] * 50)
    stream = replace(batch.streams["text"], segment=np.tile(np.array([0, 0, 0, 1, 1, 0], np.int32), 50))
    done = Denoise().corrupt(replace(batch, streams={"text": stream}), bart())
    assert {sum(x >= 5 for x in shown) for shown in sequences(done, "encoder")} == {2}


def test_what_the_tokenizer_must_have() -> None:
    blind = replace(bart(), vocab=replace(VOCAB, mask=None))
    for how in ({}, {**OFF, "mask": 0.1}):
        with pytest.raises(UserError, match="mask token"):
            Denoise(**how).needs(blind)
    Denoise(**OFF, delete=0.2).needs(blind)


@pytest.mark.parametrize(
    "wrong",
    [OFF, {"infill": 1.0}, {"infill": -0.1}, {"mean": 0.0}, {"permute": 1.5}, {"rotate": 2}, {"delete": 1.0}, {"random": -0.1}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Denoise(**wrong)

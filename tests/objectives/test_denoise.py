"""Span corruption and the T5 paper's other objectives, restated slowly: one document, one token, one draw at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from blocks import CLS, PAD, SEP, VOCAB, batch_of, context, keys, random_documents, tokens
from pydantic import ValidationError

from ziggurat.context import Context, Layout
from ziggurat.data.pack import pack, take
from ziggurat.errors import UserError
from ziggurat.objectives.denoise import SpanCorruption
from ziggurat.types import DEAD, Batch, join

SENTINELS = list(range(99, 59, -1))
"""T5 numbers its sentinels downwards from the end of the vocabulary."""
NAMES = {**VOCAB.names, **{f"<extra_id_{i}>": s for i, s in enumerate(SENTINELS)}}
T5 = replace(VOCAB, size=100, mask=None, special=(*VOCAB.special, *SENTINELS), names=NAMES)
END, START = SEP, PAD
LAYOUTS = {"t5": Layout((), (SEP,), (SEP,)), "bart": Layout((CLS,), (SEP,), (SEP,)), "bare": Layout()}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"rate": 0.5, "mean": 2.0},
    {"rate": 0.3, "mean": 1.0, "roll": True},
    {"rate": 0.4, "roll": True},
    {"rate": 0.9, "mean": 1.0},
    {"rate": 0.4, "closing": True},
    {"noise": "iid"},
    {"noise": "iid", "rate": 0.6, "closing": True},
    {"variant": "drop_tokens"},
    {"variant": "drop_tokens", "noise": "spans", "rate": 0.4, "roll": True},
    {"variant": "mass_style", "rate": 0.3},
    {"variant": "mass_style", "noise": "spans"},
    {"variant": "bert_style", "rate": 0.5, "random": 0.3},
    {"variant": "deshuffling"},
    {"variant": "prefix_lm"},
]
every_variant = pytest.mark.parametrize("how", VARIANTS, ids=lambda how: "-".join(map(str, how.values())) or "default")
Draw = Callable[[int, str], float]


def t5(length: int = 24, layout: str = "t5", **other: Any) -> Context:
    return replace(context(length, LAYOUTS[layout]), **{"vocab": T5, "seed": 3, "start": START, **other})


def draws_of(ctx: Context, key: np.uint64) -> Draw:
    """The document's draws by number and purpose; those of one purpose are made together."""
    made: dict[str, list[float]] = {}

    def one(number: int, purpose: str) -> float:
        if purpose not in made:
            made[purpose] = ctx.uniform(
                np.array([key]), np.zeros(256, np.int64), np.arange(256), f"span_corruption.{purpose}"
            ).tolist()
        return made[purpose][number]

    return one


def segments(items: int, parts: int, purpose: str, draw: Draw) -> list[int]:
    """`items` in `parts` parts, none empty: cuts at the first places of a shuffle of the gaps."""
    shuffled = sorted(range(items - 1), key=lambda gap: draw(gap, purpose))
    edges = [0, *sorted(gap + 1 for gap in shuffled[: parts - 1]), items]
    return [b - a for a, b in pairwise(edges)]


def noise_of(n: int, how: dict[str, Any], draw: Draw) -> list[bool]:
    """Which tokens of a text of n are noise. Spans: the released random_spans_noise_mask; i.i.d.: a coin a token."""
    rate = how.get("rate", 0.15)
    if how.get("variant") == "prefix_lm":
        cut = 1 + int(draw(0, "cut") * (n - 1))
        return [n > 1 and i >= cut for i in range(n)]
    spread = how.get("noise") or ("spans" if how.get("variant", "replace_spans") == "replace_spans" else "iid")
    if spread == "iid":
        return [draw(i, "iid") < rate for i in range(n)]
    if n < 2:
        return [False] * n
    noise = min(max(round(rate * n), 1), n - 1)
    spans = max(1, min(round(noise / how.get("mean", 3.0)), n - noise))
    mask: list[bool] = []
    for clean, dirty in zip(segments(n - noise, spans, "clean", draw), segments(noise, spans, "noise", draw), strict=True):
        mask += [False] * clean + [True] * dirty
    if how.get("roll"):
        shift = int(draw(0, "roll") * n)
        mask = [mask[(i - shift) % n] for i in range(n)]
    return mask


def rule(text: list[int], how: dict[str, Any], draw: Draw) -> tuple[list[int], list[int]]:
    """The encoder's text and the target of one text (Raffel et al., 2020, table 3), without special tokens in the input."""
    variant, n = how.get("variant", "replace_spans"), len(text)
    if variant == "deshuffling":
        return [text[i] for i in sorted(range(n), key=lambda i: draw(i, "order"))], [*text, END]
    mask = noise_of(n, how, draw)
    if variant in ("mass_style", "bert_style"):
        ordinary = [i for i in range(100) if i not in T5.special]
        shown = list(text)
        for i in range(n):
            if mask[i]:
                swap = variant == "bert_style" and draw(i, "swap") < how.get("random", 0.1)
                shown[i] = ordinary[int(draw(i, "word") * len(ordinary))] if swap else SENTINELS[0]
        return shown, [*text, END]
    if variant in ("drop_tokens", "prefix_lm"):
        gold = [x for x, hidden in zip(text, mask, strict=True) if hidden]
        return [x for x, hidden in zip(text, mask, strict=True) if not hidden], [*gold, END] if gold else []
    shown, gold, number = [], [], -1
    for i in range(n):
        if not mask[i]:
            shown.append(text[i])
            continue
        if i == 0 or not mask[i - 1]:
            number += 1
            shown.append(SENTINELS[number])
            gold.append(SENTINELS[number])
        gold.append(text[i])
    if not gold:
        return shown, []
    return shown, [*gold, *([SENTINELS[number + 1]] if how.get("closing") else []), END]


def sequences(batch: Batch, name: str) -> list[list[int]]:
    s = batch.streams[name]
    return [s.content[a:b].tolist() for a, b in pairwise(s.bounds)]


def gold_of(batch: Batch) -> list[list[int]]:
    """The target of each document; every token of the decoder is asked, in order, exactly once."""
    target = batch.targets["span_corruption"]
    assert target.stream == "decoder" and target.at == "token" and (target.weight == 1).all()
    assert target.index.tolist() == list(range(len(batch.streams["decoder"].content)))
    return [target.value[a:b].tolist() for a, b in pairwise(batch.streams["decoder"].bounds)]


def content_of(batch: Batch) -> list[tuple[int, list[int], list[int], list[int]]]:
    columns = batch.keys.tolist(), sequences(batch, "encoder"), sequences(batch, "decoder"), gold_of(batch)
    return list(zip(*columns, strict=True))


def made(how: dict[str, Any], ctx: Context, n: int = 25, seed: int = 0) -> tuple[SpanCorruption, Batch, Batch]:
    objective = SpanCorruption(**how)
    objective.needs(ctx)
    formed = objective.form(tokens(random_documents(np.random.default_rng(seed), n), seed), ctx)
    return objective, formed, objective.corrupt(formed, ctx)


@every_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_streams_are_exactly_the_slow_ones(how: dict[str, Any], layout: str) -> None:
    for length, epoch in ((24, 0), (9, 1), (40, 2)):
        ctx = t5(length, layout, epoch=epoch)
        first, last = list(ctx.layout.first), list(ctx.layout.last)
        _, formed, done = made(how, ctx, 15)
        assert done.keys.tolist() == formed.keys.tolist() and set(done.streams) == {"encoder", "decoder"}
        for key, source, encoder, decoder, gold in zip(
            formed.keys,
            sequences(formed, "text"),
            *(sequences(done, s) for s in ("encoder", "decoder")),
            gold_of(done),
            strict=True,
        ):
            text = source[len(first) : len(source) - len(last)]
            shown, answer = rule(text, how, draws_of(ctx, key))
            assert encoder == [*first, *shown, *last]
            assert gold == answer
            assert decoder == [START, *answer][: len(answer)]


@every_variant
def test_streams_are_what_the_structure_reads(how: dict[str, Any]) -> None:
    _, _, done = made(how, t5())
    assert done.streams["encoder"].visibility.kind == "full" and done.streams["decoder"].visibility.kind == "causal"
    for s in done.streams.values():
        assert s.row == 0 and len(s.position) == len(s.segment) == len(s.content) == s.bounds[-1]
        assert s.position.tolist() == s.inside().tolist() and not s.segment.any()


@every_variant
@pytest.mark.parametrize("length", [4, 5, 8, 17, 33])
def test_examples_fit(how: dict[str, Any], length: int) -> None:
    for layout in LAYOUTS:
        ctx = t5(length, layout)
        objective, _, done = made(how, ctx, 40)
        rows = objective.rows(ctx)
        assert set(rows) == {"encoder", "decoder"} and rows["encoder"] == length
        for name, row in rows.items():
            assert done.streams[name].lengths.max() <= row
        long = objective.corrupt(objective.form(tokens([[[1000]]]), ctx), ctx)
        if "variant" not in how and "noise" not in how and "roll" not in how:  # then rows say exactly what is needed
            assert long.streams["decoder"].lengths[0] == rows["decoder"]
        assert long.streams["encoder"].lengths.max() <= length


def released_lengths(inputs: int, rate: float, mean: float) -> tuple[int, int]:
    """The released random_spans_helper: the longest text whose input, sentinels and end token included, fits."""

    def sizes(length: int) -> tuple[int, int]:
        noise = round(length * rate)
        spans = round(noise / mean)
        return length - noise + spans + 1, noise + spans + 1

    length = inputs
    while sizes(length + 1)[0] <= inputs:
        length += 1
    return length, sizes(length)[1]


@pytest.mark.parametrize("rate,mean", [(0.15, 3.0), (0.1, 3.0), (0.25, 3.0), (0.5, 3.0), (0.15, 2.0), (0.15, 10.0)])
def test_the_raw_length_is_the_released_one(rate: float, mean: float) -> None:
    objective = SpanCorruption(rate=rate, mean=mean)
    for length in (64, 128, 129, 200, 512):
        raw, target = released_lengths(length, rate, mean)
        formed = objective.form(tokens([[[raw]], [[raw + 1]]]), t5(length))
        assert formed.streams["text"].lengths.tolist() == [raw + 1, raw + 1, 2]
        assert objective.rows(t5(length)) == {"encoder": length, "decoder": target}
    assert released_lengths(512, 0.15, 3.0) == (568, 114)


def test_encoder_inputs_fill_the_length_exactly() -> None:
    """The published setting: 568 tokens of text become 512 of input and 114 of target."""
    many = [60 + i for i in range(30)]
    vocab = replace(T5, size=200, special=(*VOCAB.special, *many), names={f"<extra_id_{i}>": s for i, s in enumerate(many)})
    ctx = replace(t5(512), vocab=vocab)
    objective = SpanCorruption()
    objective.needs(ctx)
    done = objective.corrupt(objective.form(tokens([[[568 * 3]]]), ctx), ctx)
    assert done.streams["encoder"].lengths.tolist() == [512] * 3 and done.streams["decoder"].lengths.tolist() == [114] * 3
    longer = SpanCorruption(variant="drop_tokens", noise="spans", rate=0.5)
    formed = longer.form(tokens([[[1200]]]), t5(24))
    assert formed.streams["text"].lengths[0] == 48, "of 47 tokens round(23.5) = 24 go and 23 stay; and the end token"


@every_variant
def test_corrupt_commutes_with_join(how: dict[str, Any]) -> None:
    ctx = t5()
    objective, a, _ = made(how, ctx, 4, seed=1)
    b = made(how, ctx, 6, seed=2)[1]
    assert content_of(objective.corrupt(join(a, b), ctx)) == content_of(
        join(objective.corrupt(a, ctx), objective.corrupt(b, ctx))
    )
    order = np.random.default_rng(0).permutation(len(a))
    before = content_of(objective.corrupt(a, ctx))
    assert content_of(objective.corrupt(take(a, order), ctx)) == [before[i] for i in order]


@every_variant
def test_dead_documents_vanish(how: dict[str, Any]) -> None:
    ctx = t5()
    objective, formed, done = made(how, ctx)
    row = int(formed.streams["text"].lengths.max()) + 5
    packed = objective.corrupt(pack(formed, row, PAD), ctx)
    alive = [x for x in content_of(packed) if x[0] != DEAD]
    assert sorted(alive) == sorted(content_of(done))
    assert {tuple(map(tuple, x[1:])) for x in content_of(packed) if x[0] == DEAD} == {((), (), ())}


@every_variant
def test_texts_with_nothing_to_hide(how: dict[str, Any]) -> None:
    done = SpanCorruption(**how).corrupt(batch_of([[-1, -1], [], [-1, 0, -1]]), t5())
    encoder, gold = sequences(done, "encoder"), gold_of(done)
    assert encoder[:2] == [[CLS, CLS], []] and gold[:2] == [[], []] and len(encoder[2]) >= 2
    full = how.get("variant") in ("mass_style", "bert_style", "deshuffling")
    assert gold[2] != [] if full else len(gold[2]) in (0, 2, 3, 4)
    none = SpanCorruption(**how).corrupt(batch_of([]), t5())
    assert len(none) == 0 and len(none.targets["span_corruption"].index) == 0


@every_variant
def test_noise_is_a_function_of_seed_and_epoch(how: dict[str, Any]) -> None:
    objective, batch = SpanCorruption(**how), replace(batch_of([[*range(60), -1]] * 3), keys=keys(3))

    def at(**when: Any) -> str:
        return str(content_of(objective.corrupt(batch, replace(t5(80), **when))))

    assert at(epoch=1) == at(epoch=1)
    assert len({at(), at(epoch=1), at(seed=1), at(epoch=2)}) == 4


@pytest.mark.parametrize("how", [{}, {"noise": "iid"}, {"variant": "drop_tokens"}, {"variant": "prefix_lm"}])
def test_no_answer_is_in_sight(how: dict[str, Any]) -> None:
    """Only the decoder's later inputs change with a hidden token: nothing of the encoder, nothing up to the row that answers."""
    batch = batch_of([[*range(30), -1]] * 3)
    objective, ctx = SpanCorruption(**how), t5(60)
    hidden, content = np.zeros(93, bool), batch.streams["text"].content
    before = objective.corrupt(batch, ctx)
    target = before.targets["span_corruption"]
    for place in range(93):
        if place % 31 == 30:
            continue
        changed = content.copy()
        changed[place] = 5 + (changed[place] - 4) % 50
        after = objective.corrupt(replace(batch, streams={"text": replace(batch.streams["text"], content=changed)}), ctx)
        rows = np.flatnonzero(after.targets["span_corruption"].value != target.value)
        moved = {s: np.flatnonzero(after.streams[s].content != before.streams[s].content).tolist() for s in before.streams}
        hidden[place] = len(rows) > 0
        if len(rows):
            assert len(rows) == 1 and moved == {"encoder": [], "decoder": [rows[0] + 1]}
        else:
            assert len(moved["encoder"]) == 1 and moved["decoder"] == []
    assert 3 <= hidden.sum() < 90


def test_what_the_tokenizer_must_have() -> None:
    for how in ({}, {"noise": "iid"}, {"variant": "mass_style"}):
        with pytest.raises(UserError, match="extra_id_0"):
            SpanCorruption(**how).needs(replace(t5(), vocab=replace(T5, names={})))
    with pytest.raises(UserError, match="28 sentinels"):
        SpanCorruption().needs(replace(t5(512), vocab=replace(T5, names=dict(list(NAMES.items())[:15]))))
    with pytest.raises(UserError, match="end token"):
        SpanCorruption(variant="drop_tokens").needs(replace(t5(), vocab=replace(T5, end=None)))
    with pytest.raises(UserError, match="length 2"):
        SpanCorruption().needs(t5(2))
    SpanCorruption(variant="prefix_lm").needs(replace(t5(), vocab=replace(T5, names={})))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"rate": 1},
        {"mean": 0.5},
        {"variant": "mlm"},
        {"roll": True, "noise": "iid"},
        {"roll": True, "variant": "drop_tokens"},
        {"closing": True, "variant": "drop_tokens"},
        {"variant": "prefix_lm", "noise": "iid"},
        {"variant": "deshuffling", "noise": "spans"},
        {"random": 1.5},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SpanCorruption(**wrong)

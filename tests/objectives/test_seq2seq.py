"""One text after another: what stands where, who sees whom, what is asked; and a model writes as it was trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from blocks import BERT, CLS, GPT, MASK, SEP, VOCAB, keys, part
from lawful import check_laws, mask_of, reach

from ziggurat.context import Context, Layout
from ziggurat.errors import UserError
from ziggurat.evaluate.generate import generate
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.decoding import Decoding
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.types import FOREVER, NEVER, Batch, Tokens

ATTN = 59
TOLD = replace(VOCAB, special=(*VOCAB.special, ATTN), names={**VOCAB.names, "[ATTN]": ATTN})
WAYS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "future": {"asks": "future"},
    "causal": {},
    "prefix": {},
    "mask": {"asks": "mask", "replace": [1, 0, 0], "segments": [2, 3]},
    "pseudo": {"asks": "pseudo"},
    "attn": {"asks": "attn", "segments": [0, 3]},
    "query": {"asks": "query"},
}
every_way = pytest.mark.parametrize("way", WAYS)


def objective(way: str, **more: Any) -> Seq2Seq:
    return Seq2Seq(**{**WAYS[way], **more})


def context(way: str, length: int = 24, **more: Any) -> Context:
    streams = ("encoder", "decoder") if way in ("decoder", "future") else ("text",)
    layout = {"causal": GPT, "decoder": Layout((CLS,), (SEP,), (SEP,))}.get(way, BERT)
    visibility = "causal" if way == "causal" else "full"
    told = {"streams": streams, "visibility": visibility, "start": SEP if way == "decoder" else CLS, "seed": 1, **more}
    return Context(TOLD, layout, length, **told)


def block(n: int = 7, seed: int = 0, longest: int = 12) -> Tokens:
    rng = np.random.default_rng(seed)
    texts = {
        name: part([[rng.integers(1, 3, rng.integers(1, longest)).tolist()] for _ in range(n)], seed + k)
        for k, name in enumerate(("text", "pair"))
    }
    return Tokens(texts, keys(n, seed))


def made(way: str, tokens: Tokens, ctx: Context, **more: Any) -> Batch:
    one = objective(way, **more)
    return one.corrupt(one.form(tokens, ctx), ctx)


def of(tokens: Tokens, name: str, d: int) -> list[int]:
    p = tokens.parts[name]
    return p.ids[p.bounds[d] : p.bounds[d + 1]].tolist()


@every_way
def test_the_laws(way: str) -> None:
    check_laws(objective(way), block(), context(way))
    check_laws(objective(way, target=6, noise=0.4), block(), context(way))


@every_way
def test_source_and_target_are_there(way: str) -> None:
    """Every target token and the end token is asked for once (of `mask` all with rate 1); the source stands before it, cut at its end."""
    tokens, ctx = block(), context(way)
    one = objective(way, **({"rate": 1.0} if way == "mask" else {}))
    batch = one.corrupt(one.form(tokens, ctx), ctx)
    target = batch.targets["seq2seq"]
    stream = batch.streams[target.stream]
    most = 24 if way in ("decoder", "future") else 12
    opening = [CLS] if way == "decoder" else []
    for d in range(len(tokens)):
        inside = (target.index >= stream.bounds[d]) & (target.index < stream.bounds[d + 1])
        said = target.value[inside].tolist()
        if way == "future":
            assert said[: len(said) // 2] == said[len(said) // 2 :]  # two predicting streams
            said = said[: len(said) // 2]
        assert said == opening + of(tokens, "pair", d)[: most - 1 - len(opening)] + [SEP]
        source = of(tokens, "text", d)
        if way in ("decoder", "future"):
            encoder = batch.streams["encoder"]
            shown = encoder.content[encoder.bounds[d] : encoder.bounds[d + 1]].tolist()
            first = list(ctx.layout.first)
            assert shown == first + source[: 24 - len(first) - 1] + [SEP]
            main = stream.content[stream.bounds[d] : stream.bounds[d] + len(said)].tolist()
            assert main == [ctx.start, *said[:-1]]
        else:
            row = stream.content[stream.bounds[d] : stream.bounds[d + 1]].tolist()
            first, between = list(ctx.layout.first), list(ctx.layout.between) or [SEP]
            head = first + source[: 24 - 12 - len(first) - len(between)] + between
            assert row[: len(head)] == head
            if way in ("causal", "prefix", "pseudo", "attn", "query"):
                assert row[len(head) : len(head) + len(said)] == said


@pytest.mark.parametrize("way", ["causal", "prefix", "mask", "pseudo", "attn", "query"])
def test_nothing_asked_has_seen_its_answer(way: str) -> None:
    """Over any number of layers; and the row of the n-th word reaches all of the source and the words before it."""
    tokens, ctx = block(), context(way)
    batch = made(way, tokens, ctx)
    stream, target = batch.streams["text"], batch.targets["seq2seq"]
    position = stream.position
    for d in range(len(tokens)):
        lo, hi = stream.bounds[d : d + 2].tolist()
        far = reach(mask_of(stream, d))
        length = int(position[lo:hi].max()) + 1  # the text's own rows come first
        for index, value in zip(target.index, target.value):
            if not lo <= index < hi:
                continue
            place = int(position[index]) + (way in ("causal", "prefix"))
            seen = far[index - lo, :length]
            if way != "mask":
                assert stream.content[lo + place] == value and not seen[place:].any() and seen[:place].all()
            else:  # in place: the mask that stands there is all that there is of it
                assert stream.content[lo + place] == MASK and not seen[place + 1 :].any() and seen[:place].all()


def test_rows_of_their_own() -> None:
    ctx, tokens = context("attn"), block()
    for way, word, itself, segment in (("attn", ATTN, True, 3), ("pseudo", MASK, True, 1), ("query", -1, False, 1)):
        stream = made(way, tokens, ctx).streams["text"]
        rows = made(way, tokens, ctx).targets["seq2seq"].index
        seen = stream.visibility
        assert (
            (stream.content[rows] == word).all() and (seen.opens[rows] == NEVER).all() and (stream.segment[rows] == segment).all()
        )
        assert ((seen.lane[rows] > 0) == itself).all() and (seen.closes == FOREVER).all()


def network(way: str, seed: int = 0) -> NetworkModel:
    attention = spec.Attention(distances=spec.Relative() if way == "query" else None)
    embed = spec.Embed(positions=spec.Learned(length=80), segments=4, extra=objective(way).extra)
    size = dict(vocab=VOCAB.size, width=16, layers=2, heads=2, mlp=24, embed=embed, block=spec.Block(attention=attention))
    model: Any
    if way in ("decoder", "future"):
        own = spec.Attention(distances=spec.ContentBuckets(count=6, longest=8)) if way == "future" else None
        model = spec.EncoderDecoder(**size, decoder_layers=2, decoder_attention=own)
    else:
        model = spec.Single(**size, visibility="causal" if way == "causal" else "full")
    net = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).double()
    generator = torch.Generator().manual_seed(seed)
    net.initialise(generator)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        for name, p in net.named_parameters():  # else what a decoder says would hardly depend on what it said before
            if ".decoder." in name and name.endswith((".out.weight", ".out.bias")):
                p *= 0.2
    return net.eval()


@every_way
def test_a_model_writes_as_it_was_trained(way: str) -> None:
    """What is written greedily, given as the target of a training example: at every place the model's best word is the one it wrote."""
    ctx, tokens, net = context(way, 40), block(longest=7), network(way, {"decoder": 19, "future": 24}.get(way, 0))
    one = objective(way, **({"rate": 1.0} if way == "mask" else {}))
    how = one.continuation(ctx)
    written = generate(net, one.prompts(tokens, ctx), how, Decoding(most=12))
    assert len({tuple(w) for w in written}) > 3
    opening = 1 if way == "decoder" else 0
    texts = [w[opening:] for w in written]
    pair = replace(
        tokens.parts["pair"], ids=np.array([t for text in texts for t in text], np.int32), bounds=np.cumsum([0, *map(len, texts)]),
        words=np.ones(sum(map(len, texts)), bool), sentences=np.zeros(sum(map(len, texts)), bool),
    )  # fmt: skip
    again = Tokens({**tokens.parts, "pair": pair}, tokens.keys)
    if way == "mask":  # in place a mask hides the words before it, too: ask for one word at a time
        for d, text in enumerate(texts):
            for n in range(len(text)):
                best = _best(one, net, _only(again, d, n + 1), ctx)
                assert best[n] == text[n]
        return
    best = _best(one, net, again, ctx, banned=how.banned)
    target = one.corrupt(one.form(again, ctx), ctx).targets["seq2seq"]
    stops = [len(w) for w in written]
    bounds = one.corrupt(one.form(again, ctx), ctx).streams[target.stream].bounds
    for d, text in enumerate(written):
        mine = [b for b, i in zip(best, target.index) if bounds[d] <= i < bounds[d + 1]]
        assert mine[opening : stops[d]] == text[opening:]
        assert stops[d] == 12 or mine[stops[d]] == SEP


def _only(tokens: Tokens, d: int, n: int) -> Tokens:
    """Document d with the first n tokens of its target."""
    parts = {}
    for name, p in tokens.parts.items():
        lo, hi = p.bounds[d : d + 2]
        hi = lo + n if name == "pair" else hi
        parts[name] = replace(
            p,
            ids=p.ids[lo:hi],
            bounds=np.array([0, hi - lo]),
            words=p.words[lo:hi],
            sentences=p.sentences[lo:hi],
            mark_bounds=np.zeros(2, np.int64),
        )
    return Tokens(parts, tokens.keys[d : d + 1])


def _best(one: Seq2Seq, net: NetworkModel, tokens: Tokens, ctx: Context, banned: tuple[int, ...] = ()) -> list[int]:
    formed = one.form(tokens, ctx)
    batch = one.corrupt(formed, ctx)
    if one.asks == "mask":  # only the last word is hidden, and what follows it is not there
        stream, at = formed.streams["text"], len(formed.streams["text"].content) - 2
        content = stream.content.copy()
        content[at] = MASK
        target = replace(batch.targets["seq2seq"], index=np.arange(at + 1 - len(tokens.parts["pair"].ids), at + 1))
        target = replace(target, value=target.index, weight=np.ones(len(target.index), np.float32))
        batch = Batch({"text": replace(stream, content=content)}, {"seq2seq": target}, batch.keys)
        banned = one.continuation(ctx).banned
    told = to_device(batch, torch.device("cpu"))
    with torch.no_grad():
        scores = net.logits("lm", net(told.streams), told.streams, told.targets["seq2seq"])
    scores[:, list(banned)] = -torch.inf
    return scores.argmax(-1).tolist()


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="column 'pair'"):
        Seq2Seq().form(Tokens({"text": block().parts["text"]}, block().keys), context("prefix"))
    with pytest.raises(UserError, match=r"\[ATTN\]"):
        Seq2Seq(asks="attn").needs(replace(context("attn"), vocab=VOCAB))
    with pytest.raises(UserError, match="leaves no room"):
        Seq2Seq(target=23).form(block(), context("prefix"))
    assert "encoder_decoder" in Seq2Seq(asks="future").misfits(spec.Single())[0]
    assert "single" in Seq2Seq(asks="mask").misfits(spec.EncoderDecoder())[0]
    assert "segment numbers" in Seq2Seq(segments=(4, 5)).misfits(spec.Single(embed=spec.Embed(segments=2)))[0]
    assert Seq2Seq(asks="query").extra == 1 and Seq2Seq(asks="future", ngram=3).extra == 3

"""Greedy search and beams against the Hub's `generate`, token by token; draws against their distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hubs import END, PAD, VOCAB, bart, gpt2, prophetnet, t5

from ziggurat.evaluate.generate import allowed, drawn, generate
from ziggurat.objectives.decoding import Continuation, Decoding
from ziggurat.types import CAUSAL, FULL, Batch, Stream, Visibility, join_all

MOST = 18
HUBS: dict[str, Any] = {
    "gpt2": lambda: gpt2(4),
    "bart": lambda: bart(7),
    "bart-forced": lambda: bart(8, forced_bos_token_id=0, forced_eos_token_id=END),
    "prophetnet": lambda: prophetnet(26),
    "t5": lambda: t5(23),
    "t5-1.1": lambda: t5(7, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def stream(ids: list[int], visibility: Visibility) -> Stream:
    n = len(ids)
    zero = np.zeros(n, np.int32)
    return Stream(np.array(ids, np.int32), np.array([0, n]), np.arange(n, dtype=np.int32), zero, visibility)


def sources(seed: int, n: int = 6) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, size).tolist() for size in (7, 2, 11, 4, 1, 9)[:n]]


def prompts(name: str, texts: list[list[int]]) -> Batch:
    """Ours: of GPT-2 the text, of the others the encoder's text and the decoder's start."""
    if name == "gpt2":
        return join_all(Batch({"text": stream(t, CAUSAL)}, {}, np.array([d], np.uint64)) for d, t in enumerate(texts))
    start = [PAD] if name.startswith("t5") else [END]
    return join_all(
        Batch({"encoder": stream(t, FULL), "decoder": stream(start, CAUSAL)}, {}, np.array([d], np.uint64))
        for d, t in enumerate(texts)
    )


def theirs(name: str, hub: Any, texts: list[list[int]], how: Decoding, **more: Any) -> list[list[int]]:
    """The Hub's continuation of each text in one padded batch (GPT-2: padded on the left), without the end token."""
    longest, left, pad = max(map(len, texts)), name == "gpt2", hub.config.pad_token_id
    pads = [[pad] * (longest - len(t)) for t in texts]
    ids = torch.tensor([p + t if left else t + p for p, t in zip(pads, texts)])
    mask = torch.tensor([[0] * len(p) + [1] * len(t) if left else [1] * len(t) + [0] * len(p) for p, t in zip(pads, texts)])
    forced = {"forced_bos_token_id": 0, "forced_eos_token_id": END} if name == "bart-forced" else {"forced_eos_token_id": None}
    out = hub.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=how.most, min_new_tokens=how.least or None, num_beams=how.beams,
        length_penalty=how.length_penalty, early_stopping=how.early, no_repeat_ngram_size=how.no_repeat, do_sample=False, **forced, **more,
    )  # fmt: skip
    out = out[:, longest:] if left else out[:, 1:]
    return [row[: row.index(END)] if END in row else row for row in out.tolist()]


def way(name: str) -> Continuation:
    if name == "gpt2":
        return Continuation(end=END)
    query = -2 if name == "prophetnet" else None  # its first predicting stream has the last vector
    return Continuation("decoder", query, end=END, first=0 if name == "bart-forced" else None)


def unpadded(rows: list[list[int]], ours: list[list[int]]) -> list[list[int]]:
    """A Hub text that was cut at `most` without an end token is filled with pads where another one is longer."""
    return [row[: len(mine)] if set(row[len(mine) :]) <= {PAD, 0} else row for row, mine in zip(rows, ours)]


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"least": 5},
        {"beams": 4},
        {"beams": 4, "length_penalty": 2.0, "least": 3},
        {"beams": 3, "length_penalty": 0.0, "early": True},
        {"beams": 4, "length_penalty": -1.0},
    ],
    ids=["greedy", "least", "beams", "long", "early", "short"],
)
def test_texts_are_those_of_the_hub(name: str, how: dict[str, Any]) -> None:
    hub, net = HUBS[name]()
    decoding = Decoding(most=MOST, force_end=name == "bart-forced", **how)
    lengths, distinct = set(), set()
    for seed in range(3):
        texts = sources(seed)
        mine = generate(net, prompts(name, texts), way(name), decoding)
        assert mine == unpadded(theirs(name, hub, texts, decoding), mine)
        lengths |= {len(t) for t in mine}
        distinct |= {tuple(t) for t in mine}
    assert len(distinct) > 8 and (len(lengths) > 2 or decoding.length_penalty > 1), (lengths, distinct)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_no_repeat(name: str) -> None:
    hub, net = HUBS[name]()
    for how in (Decoding(most=MOST, no_repeat=2), Decoding(most=MOST, no_repeat=3, beams=3)):
        mine = generate(net, prompts(name, sources(0)), replace(way(name), banned=(PAD,)), how)
        # the Hub also counts the start token, a pad or the end token, which no text holds here
        assert mine == unpadded(theirs(name, hub, sources(0), how, suppress_tokens=[PAD]), mine)
        for text in mine:
            grams = [tuple(text[i : i + how.no_repeat]) for i in range(len(text) - how.no_repeat + 1)]
            assert len(set(grams)) == len(grams)


def test_a_batch_is_its_prompts() -> None:
    for name, how in (("gpt2", Decoding(most=8)), ("bart", Decoding(most=8, beams=3))):
        net = HUBS[name]()[1]
        texts = sources(7)
        alone = [generate(net, prompts(name, [text]), way(name), how)[0] for text in texts]
        assert generate(net, prompts(name, texts), way(name), how) == alone


def test_draws_are_seeded_and_follow_the_scores() -> None:
    net = HUBS["gpt2"]()[1]
    some = [generate(net, prompts("gpt2", sources(0)), way("gpt2"), Decoding(most=6, temperature=1.5, seed=s)) for s in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20_000, 1)
    for how, kept in (
        (Decoding(temperature=1.0), 4),
        (Decoding(temperature=0.5), 4),
        (Decoding(temperature=1.0, top_k=2), 2),
        (Decoding(temperature=1.0, top_p=0.6), 1),
        (Decoding(temperature=1.0, top_p=0.7), 2),
        (Decoding(temperature=2.0, top_k=3, top_p=0.8), 2),
    ):
        want = (scores[0] / how.temperature).softmax(0)
        want[kept:] = 0
        found = torch.bincount(drawn(scores, how, torch.Generator().manual_seed(0)), minlength=4) / len(scores)
        torch.testing.assert_close(found, want / want.sum(), atol=0.02, rtol=0)


def test_what_is_banned_is_not_said() -> None:
    net = HUBS["gpt2"]()[1]
    plain = generate(net, prompts("gpt2", sources(0)), way("gpt2"), Decoding(most=6))
    said = {t for text in plain for t in text}
    banned = tuple(sorted(said)[:5])
    again = generate(net, prompts("gpt2", sources(0)), Continuation(end=END, banned=banned), Decoding(most=6))
    assert not {t for text in again for t in text} & set(banned)
    scores = allowed(torch.zeros(2, 5), torch.zeros(2, 0, dtype=torch.int64), Continuation(first=3), Decoding())
    assert scores.argmax(1).tolist() == [3, 3]


def test_decoding_says_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="beams"):
        Decoding(beams=2, temperature=1.0)
    with pytest.raises(ValueError, match="least"):
        Decoding(most=3, least=3)

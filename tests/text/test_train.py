"""Training: deterministic, the right special tokens, no Chinese character lost."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError

from ziggurat.context import Layout
from ziggurat.errors import UserError
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import LAST, PIECE, TokenizerSpec, sample, train_tokenizer

LAYOUTS = {
    "bert": Layout((2,), (3,), (3,), (0, 1)),
    "roberta": Layout((0,), (2, 2), (2,), (0, 0)),
    "gpt2": Layout((), (0,), (0,), (0, 0)),
    "t5": Layout((), (1,), (1,), (0, 0)),
    "prophetnet": Layout((), (3,), (3,), (0, 0)),
    "xlnet": Layout((), (4,), (4, 3), (0, 1), 2),
}


@pytest.mark.parametrize("template", list(LAYOUTS))
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_templates(kind: str, template: str, trained: Callable[[str, str], Tokenizer], lines: list[str]) -> None:
    tokenizer = trained(kind, template)
    assert tokenizer.layout == LAYOUTS[template] and tokenizer.kind == kind
    vocab = tokenizer.vocab
    last = len(LAST.get(template, ()))
    first = len(vocab.special) - last
    assert vocab.special == (*range(first), *range(vocab.size - last, vocab.size))
    assert vocab.end == (LAYOUTS[template].last[0] if template != "xlnet" else 2)
    assert [vocab.names[name] for name in LAST.get(template, ())] == list(vocab.special[first:])
    if template == "xlnet":  # as published
        names = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
        assert tokenizer.pieces(range(9)) == names and (vocab.pad, vocab.mask, vocab.unk) == (5, 6, 0)
    assert (vocab.mask is None) == (template in ("gpt2", "t5"))
    assert 700 < vocab.size <= 1000
    ids = np.concatenate([encoded.ids for encoded in tokenizer.encode(lines)])
    assert kind == "bpe" or 0 < np.mean(ids == vocab.unk) < 0.002, "an emoji is unknown, hardly anything else"


TRAIN = """
import json, sys
from ziggurat.text.train import TokenizerSpec, train_tokenizer
lines = json.load(sys.stdin)
for kind in ("wordpiece", "bpe"):
    spec = TokenizerSpec(kind=kind, vocab=700, lowercase=kind == "wordpiece", sample=60_000)
    print(train_tokenizer(spec, iter(lines), template="bert").fingerprint)
spec = TokenizerSpec(kind="unigram", vocab=700, sample=60_000)
tokenizer = train_tokenizer(spec, iter(lines), template="bert")
print(*map(ascii, tokenizer.pieces(range(700))))
"""


def test_two_processes_train_the_same(lines: list[str]) -> None:
    """Each process has its own hash seeds, and so its own order of hash maps; the order of the texts does not matter either."""
    runs = [
        subprocess.run([sys.executable, "-c", TRAIN], input=json.dumps(texts), text=True, capture_output=True, check=True).stdout
        for texts in (lines[::4], lines[::4][::-1])
    ]
    wordpiece, bpe, unigram = zip(*(run.splitlines() for run in runs), strict=True)
    assert wordpiece[0] == wordpiece[1]
    assert bpe[0] == bpe[1]
    # The made-up lines are full of pieces of equal worth, which the trainer of Unigram tells apart by rounding errors.
    first, second = (set(pieces.split()) for pieces in unigram)
    assert len(first) == len(second) == 700 and len(first & second) > 650


def test_the_seed_chooses_the_sample() -> None:
    texts = [f"text number {i} " * 5 for i in range(500)]
    drawn = sample(iter(texts), 2_000, 0)
    assert 2_000 <= sum(map(len, drawn)) < 2_200
    assert drawn == sample(reversed(texts), 2_000, 0) != sample(iter(texts), 2_000, 1)
    assert set(drawn) < set(texts)
    assert sorted(sample(iter(texts), 10**9, 0)) == sorted(texts)


def test_long_documents_are_sampled_in_pieces() -> None:
    text = "".join(f"line {i} of a long document\n" for i in range(5_000))
    drawn = sample([text, "字" * 10_000], 10**9, 0)
    assert max(map(len, drawn)) <= PIECE and sum(map(len, drawn)) == len(text) + 10_000
    assert "".join(sorted(drawn, key=text.find)).count("long document\n") == 5_000
    assert sum(map(len, sample([text], 20_000, 0))) < 20_000 + PIECE


def test_no_chinese_character_is_lost() -> None:
    """3,000 characters, each seen twice, beside much English: a default limit of 1,000 letters would lose two thirds."""
    characters = [chr(0x4E00 + i) for i in range(3_000)]
    texts = ["".join(characters), "".join(reversed(characters)), "the same old words again and again " * 2_000]
    tokenizer = train_tokenizer(TokenizerSpec(vocab=4_000), iter(texts), template="bert")
    encoded = tokenizer.encode(texts[:1])[0]
    assert len(encoded) == 3_000 and tokenizer.vocab.unk not in encoded.ids
    assert encoded.words.all()
    assert tokenizer.pieces(tokenizer.encode(["again"])[0].ids) == ["again"]


@pytest.mark.parametrize(("kind", "vocab"), [("wordpiece", 305), ("unigram", 400)])
def test_too_many_characters_keep_the_most_frequent(kind: str, vocab: int, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["".join(chr(0x4E00 + i) * (2 + (i < 300)) for i in range(2_000))]
    with caplog.at_level(logging.WARNING, "ziggurat"):
        tokenizer = train_tokenizer(TokenizerSpec.model_validate({"kind": kind, "vocab": vocab}), iter(texts), template="bert")
    assert "no room" in caplog.text
    assert tokenizer.vocab.size == vocab
    assert tokenizer.vocab.unk not in tokenizer.encode(["".join(chr(0x4E00 + i) for i in range(300))])[0].ids


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_small_text_gives_a_small_vocabulary_and_says_so(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    spec = TokenizerSpec.model_validate({"kind": kind, "vocab": 20_000})
    with caplog.at_level(logging.WARNING, "ziggurat"):
        tokenizer = train_tokenizer(spec, iter(["a few words", "and a few more"]), template="roberta")
    assert f"{tokenizer.vocab.size} entries instead of 20000" in caplog.text
    assert len(tokenizer.encode(["a few words"])[0]) >= 3


def test_bad_input() -> None:
    for texts in ([], ["", " \n"]):
        with pytest.raises(UserError, match="no text"):
            train_tokenizer(TokenizerSpec(), iter(texts), template="bert")
    with pytest.raises(UserError, match="too small"):
        train_tokenizer(TokenizerSpec(kind="bpe", vocab=200), iter(["text"]), template="gpt2")
    with pytest.raises(UserError, match="too small for the 100 sentinels"):
        train_tokenizer(TokenizerSpec(vocab=110), iter(["text"]), template="t5")
    with pytest.raises(UserError, match="too small"):
        train_tokenizer(TokenizerSpec(vocab=20), iter(["the quick brown fox jumps over the lazy dog " * 3]), template="bert")
    with pytest.raises(UserError, match="surrogate"):
        train_tokenizer(TokenizerSpec(), iter(["\ud83d"]), template="bert")
    with pytest.raises(ValidationError, match="leave one of them out"):
        TokenizerSpec.model_validate({"path": "x", "vocab": 100})
    with pytest.raises(UserError, match="does not exist"):
        train_tokenizer(TokenizerSpec.model_validate({"path": "nowhere"}), iter([]), template="bert")

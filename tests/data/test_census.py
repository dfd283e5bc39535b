"""What a corpus is made of, against slow counts: letters by their Unicode names, copies by comparing texts."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ziggurat.data.census import NAMES, Census, copies, several_sentences
from ziggurat.data.writing import write_shards
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import TokenizerSpec, train_tokenizer
from ziggurat.types import Document

PREFIXES = {
    "CJK": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana",
    "FULLWIDTH": "Latin",
    "HALFWIDTH": "Kana",
}
TEXT = "The café in Łódź — 世界是多么大，ひらがな カタカナ 한국어 Привет, мир! Ελλάδα שלום سلام नमस्ते สวัสดี １２３ ﬁn Ａ 5.0"


def script(character: str) -> str | None:
    """By the character's Unicode name; a letter's first word names its script."""
    if not unicodedata.category(character).startswith("L"):
        return None
    first = unicodedata.name(character, "").split(" ")[0]
    name = PREFIXES.get(first, first.capitalize())
    return name if name in NAMES else None


def test_letters_are_counted_by_script() -> None:
    census = Census()
    seen = list(census.watch([Document({"text": TEXT, "pair": "zwei"}), Document({"text": "世界"})]))
    assert len(seen) == 2 and census.documents == 2
    facts = census.facts()
    assert facts["characters"] == len(TEXT) + 6
    wanted = Counter(s for c in TEXT + "zwei世界" if (s := script(c)))
    wanted["Latin"] -= 1  # the ligature is a presentation form: no corpus is told by it
    assert facts["scripts"] == {name: wanted[name] for name in facts["scripts"]} and set(facts["scripts"]) == set(wanted)
    assert next(iter(facts["scripts"])) == "Latin"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    draw = random.Random(1)
    texts = [" ".join(draw.choice(["ab", "cd", "ef", "gh", "ij"]) for _ in range(20)) for _ in range(40)]
    return train_tokenizer(TokenizerSpec(vocab=60), iter(texts), template="bert")


def shards_of(folder: Path, texts: list[str], tokenizer: Tokenizer):  # type: ignore[no-untyped-def]
    return write_shards(folder, [Document({"text": t}, f"d{n}") for n, t in enumerate(texts)], tokenizer)


def test_copies_are_those_of_the_texts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    draw = random.Random(3)
    texts = [draw.choice(["ab cd", "ef gh", "ij ab", "cd ef gh", f"ab {n}"]) for n in range(60)]
    copy, original = copies(np.asarray(shards_of(tmp_path / "s", texts, tokenizer).keys))
    firsts = {text: texts.index(text) for text in texts}
    assert {(c, o) for c, o in zip(copy.tolist(), original.tolist())} == {
        (n, firsts[text]) for n, text in enumerate(texts) if firsts[text] != n
    }
    assert len(copies(np.zeros(0, np.uint64))[0]) == 0


def test_sentences_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards = shards_of(tmp_path / "s", ["ab cd. Ef gh.", "ab cd", "ij. Ab. Cd."], tokenizer)
    assert several_sentences(shards) == (3, 2)

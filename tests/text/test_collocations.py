"""Phrases found by counting: planted ones are found and chance pairs are not; the rule written out slowly; and in a run."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.config import load
from ziggurat.errors import UserError
from ziggurat.objectives.masked import Masked
from ziggurat.pipeline import prepare as pipeline
from ziggurat.pipeline.prepare import prepare
from ziggurat.text.collocations import WHOLE, collocations
from ziggurat.text.phrases import Dictionary
from ziggurat.train.recipe import Recipe

ENGLISH, CHINESE = ["New York", "Prime Minister", "Lord of the Rings"], ["北京", "人民共和国", "葡萄牙"]
WORDS = [
    "we",
    "they",
    "see",
    "saw",
    "a",
    "the",
    "of",
    "in",
    "at",
    "Lord",
    "new",
    "river",
    "house",
    "big",
    "small",
    "with",
    "by",
    "for",
    "red",
    "blue",
]


def corpus(seed: int = 0, count: int = 400) -> list[str]:
    """Words and characters drawn by chance, and among them the phrases."""
    draw, texts = random.Random(seed), []
    for _ in range(count):
        words = draw.choices(WORDS, k=8)
        words.insert(draw.randrange(9), draw.choice(ENGLISH))
        characters = draw.choices("的一是在不了有和人这中大为上个国我以要他", k=8)
        characters.insert(draw.randrange(9), draw.choice(CHINESE))
        texts += [" ".join(words) + ".", "".join(characters) + "。"]
    return texts


def test_planted_phrases_are_found_and_pairs_that_meet_by_chance_are_not() -> None:
    found = collocations(corpus(), least=10, score=0.5, longest=8, most=100)
    assert set(found) == {*ENGLISH, *CHINESE}
    assert collocations(corpus(), least=10, score=0.5, longest=8, most=3) == found[:3]
    marks = [corpus()[0][m.start : m.end] for m in Dictionary.of(found)(corpus()[0])]
    assert len(marks) == 1 and marks[0] in ENGLISH


def slow(texts: list[str], least: int, score: float, longest: int) -> set[str]:
    """The rule for texts of words and single spaces."""
    runs: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        for i in range(len(words)):
            for k in range(1, longest + 1):
                if i + k <= len(words):
                    runs[tuple(words[i : i + k])] += 1
    total = sum(n for run, n in runs.items() if len(run) == 1)

    def likeness(run: tuple[str, ...]) -> float:
        def of(cut: int) -> float:
            chance = runs[run[:cut]] * runs[run[cut:]] / total**2
            return math.log(runs[run] / total / chance) / -math.log(runs[run] / total)

        return min(of(cut) for cut in range(1, len(run)))

    found = {run for run, n in runs.items() if len(run) > 1 and n >= least and likeness(run) >= score}
    longer = {part for run in found for part in (run[1:], run[:-1]) if runs[run] >= WHOLE * runs[part]}
    return {" ".join(run) for run in found - longer}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12).map(" ".join), min_size=3, max_size=12))
def test_the_rule(texts: list[str]) -> None:
    want = slow(texts, 2, 0.3, 4)
    if want:
        assert set(collocations(texts, least=2, score=0.3, longest=4, most=1000)) == want
    else:
        with pytest.raises(UserError, match="no run of words"):
            collocations(texts, least=2, score=0.3, longest=4, most=1000)


def test_a_phrase_does_not_reach_over_punctuation_or_lines() -> None:
    texts = ["fish , chips", "salt\nsugar", "left  right", "one two"] * 20
    assert collocations(texts, least=2, score=0.1, longest=4, most=9) == ["one two"]


def recipe(folder: Path, phrases: object = None) -> Recipe:
    written = {
        "name": "r",
        "system": "ernie/tiny",
        "tokenizer": {"kind": "wordpiece", "vocab": 300},
        "sources": {"text": {"path": str(folder / "a.txt"), "txt": "line", "phrases": {} if phrases is None else phrases}},
        "stages": [{"stage": "pretrain", "data": "text", "steps": 1, "objective": {"kind": "mlm", "unit": "phrase"}}],
    }
    (folder / "r.yaml").write_text(json.dumps(written), "utf-8")
    return load(folder / "r.yaml", model=Recipe).resolved()


def test_a_run_finds_them_once_and_hides_them_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("\n".join(corpus()) + "\n", "utf-8")
    prepared = prepare(recipe(tmp_path), tmp_path / "run")
    place = tmp_path / "run" / "phrases" / "text.txt"
    assert {*ENGLISH, *CHINESE} <= set(place.read_text("utf-8").splitlines())
    shards = prepared.shards["text", "train"]
    block = shards.read(np.arange(len(shards)))
    whole, plain = Masked(unit="phrase").grouped(block).parts["text"], block.parts["text"]
    assert plain.words.sum() - whole.words.sum() >= len(shards)  # one phrase a text, of two words or more

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "collocations", lambda *_, **__: pytest.fail("they were there"))
        prepare(recipe(tmp_path), tmp_path / "run")
    few = prepare(recipe(tmp_path, {"most": 2}), tmp_path / "run")
    assert len(place.read_text("utf-8").splitlines()) == 2 and few.shards["text", "train"].meta != shards.meta
    prepare(recipe(tmp_path, {"sample": 9000, "least": 3}), tmp_path / "run")
    assert place.read_text("utf-8").splitlines()
    with pytest.raises(UserError, match="no run of words occurs 9999 times"):
        prepare(recipe(tmp_path, {"least": 9999}), tmp_path / "other")

"""Lines of English and Chinese, and small tokenizers trained on them."""

from __future__ import annotations

import argparse
import collections
import decimal
import inspect
import json
import logging
import random
import threading
import typing
import unittest
from collections.abc import Callable

import pytest

from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import TokenizerSpec, train_tokenizer

MODULES = (
    argparse,
    collections,
    decimal,
    inspect,
    json,
    logging,
    random,
    threading,
    typing,
    unittest.mock if hasattr(unittest, "mock") else unittest,
)
CHARACTERS = "我你他她们的了是在有和人这中大为上个国不以会就出要年生自分成对用来时学工可也发家作过进行产同经全方后多定动面加现法部机电力本长老小高天地水火山石田土木金"
WORDS = [
    "天安门",
    "北京",
    "上海",
    "学习",
    "语言",
    "模型",
    "数据",
    "训练",
    "今天",
    "明天",
    "天气",
    "朋友",
    "喜欢",
    "研究",
    "大学",
    "老师",
    "学生",
    "问题",
    "方法",
    "结果",
    "计算机",
    "人工智能",
    "神经网络",
    "自然语言",
    "电影",
    "音乐",
    "世界",
    "中国",
    "历史",
    "文化",
]


def english_lines() -> list[str]:
    """Lines of the docstrings and sources of standard modules."""
    lines = [line for module in MODULES for line in inspect.getsource(module).splitlines() if line.strip()]
    return list(dict.fromkeys(lines))


def chinese_lines(count: int, seed: int = 0) -> list[str]:
    """Made-up sentences of words, single characters, numbers and all kinds of marks."""
    rng = random.Random(seed)
    marks = ["，", "、", "；", "：", "（", "）", "“", "”", "《", "》", " ", "2026年", "Python", "3.14", "ＡＢＣ", "𠀀", "……"]
    lines = []
    for _ in range(count):
        parts = [rng.choice([*WORDS, rng.choice(CHARACTERS), rng.choice(marks)]) for _ in range(rng.randint(3, 25))]
        lines.append("".join(parts) + rng.choice("。！？"))
    return lines


@pytest.fixture(scope="session")
def lines() -> list[str]:
    """2,400 lines, half English and half Chinese, some with special tokens and odd characters in them."""
    odd = [
        "",
        " ",
        "a  b",
        "\tx\n",
        "Hello <mask> world",
        "[CLS] a [MASK] b",
        "x<|endoftext|>y",
        "naïve café ﬁ Ａ",
        "👩‍👩‍👧 ok",
        "\u200b",
        "don't won't",
    ]
    return [*odd, *english_lines()[:1200], *chinese_lines(1200)]


@pytest.fixture(scope="session")
def trained(lines: list[str]) -> Callable[[str, str], Tokenizer]:
    """(kind, template) -> a tokenizer of 1,000 entries, trained once."""
    made: dict[tuple[str, str], Tokenizer] = {}

    def get(kind: str, template: str) -> Tokenizer:
        if (kind, template) not in made:
            spec = TokenizerSpec.model_validate({"kind": kind, "vocab": 1000, "sample": 60_000, "lowercase": kind == "wordpiece"})
            made[kind, template] = train_tokenizer(spec, iter(lines), template=template)  # type: ignore[arg-type]
        return made[kind, template]

    return get

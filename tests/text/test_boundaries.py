"""Hand-labelled words and sentences, and their way to tokens."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ziggurat.errors import UserError
from ziggurat.text import boundaries as module
from ziggurat.text.boundaries import boundaries, sentence_starts, text_boundaries, word_starts
from ziggurat.text.tokenizer import Tokenizer


def cut(text: str, starts: np.ndarray) -> list[str]:
    at = [*np.flatnonzero(starts), len(text)]
    return [text[a:b].strip() for a, b in itertools.pairwise(at)]


WORDS = [
    "I|don't|know|,|it|was|3|.|14|!",
    "state|-|of|-|the|-|art|(|GPT|-|2|)",
    "the|dogs|'|bowls|and|'|quoted|'|words",
    "l’homme|naïve|cafe\u0301|Straße",
    "snake|_|case|a|+|b",
    "我|喜|欢|北|京|。",
    "他|在|2019|年|用|Python3|写|了|《|程|序|》|，|对|吗|？",
    "𠀀|𪚥|㐀|豈|々|〇",  # extensions B and A, compatibility, iteration mark, zero
    "ＡＢＣ１２|全|角",
    "日|本|語|の|テキスト|と|ラーメン|です",
    "한국어|문장입니다|.",
    "👍🏽|❤\ufe0f|ok",
    "soft\u00adhyphen|zero\u200bwidth|bro\ufffdken",
]


@pytest.mark.parametrize("labelled", WORDS)
def test_words(labelled: str) -> None:
    expected = labelled.split("|")
    text = " ".join(expected)
    assert cut(text, word_starts(text)) == expected


def test_words_without_spaces() -> None:
    text = "我们用Python3，写了3个“程序”。"
    assert cut(text, word_starts(text)) == ["我", "们", "用", "Python3", "，", "写", "了", "3", "个", "“", "程", "序", "”", "。"]


def test_jieba_words() -> None:
    pytest.importorskip("jieba")
    text = "我喜欢北京天安门, I really do，2019年。"
    assert cut(text, word_starts(text, "jieba")) == [
        "我",
        "喜欢",
        "北京",
        "天安门",
        ",",
        "I",
        "really",
        "do",
        "，",
        "2019",
        "年",
        "。",
    ]


def test_jieba_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    module._jieba.cache_clear()
    with pytest.raises(UserError, match=r"ziggurat\[zh\]"):
        word_starts("北京", "jieba")
    module._jieba.cache_clear()


ENGLISH = [
    "Hello there. | How are you? | Fine!",
    "Mr. Smith met Dr. A. B. Jones at 5 p.m. in Washington, D.C. on Jan. 5. | He paid $3.14. | That was all.",
    "J. K. Rowling wrote it. | George W. Bush read it. | I met J. K. Simmons.",
    "He takes vitamin C. | It helps. | That is better than I. | So what?",
    'She said "Stop!" and left. | "Why?" he asked. | (Nobody knew.) | "Go."',
    "He left (at last.) | Then we slept.",
    "We use e.g. Python, i.e. a language, etc. and more. | See Fig. 3 and No. 5. | She said no. | Then it ended.",
    "Acme Inc. Sales grew. | They work for Acme Inc. | The end.",
    "Smith et al. Nature was read. | It rained in the U.S. | The U.S. Army came.",
    "Well... maybe. | Wait... | What?",
    "1. The first point. | 2) The second.",
    "See http://a.b.c/d.html or v1.2.3 of os.path. | Yes.",
    "Really?! | Yes!!! | Ok.",
    "A tokenised sentence . | Another one . | last",
]
CHINESE = [
    "今天天气很好。|我们去公园！|你来吗？|好；|走吧。",
    "她说：“你好！”|然后她走了。|“再见。”|他也走了。",
    "『真的？』|「当然。」|（他笑了。）|结束。",
    "他没有说话……|我也没有。|真的吗？！|是的！！！",
    "他想……，然后走了。",
    "《你好，中国！》是一本书。|我读过。",
    "他买了3.5公斤苹果。|花了2.8元。",
    "你好!|我很好.|你呢?|不错",
    '他走了。|"为什么？"|她问。',
    "我用Python写程序。|Mr. Wang也用。|It works. |真好。",
]


@pytest.mark.parametrize("labelled", ENGLISH)
def test_english_sentences(labelled: str) -> None:
    expected = [s.strip() for s in labelled.split("|")]
    text = " ".join(expected)
    if expected[0].startswith("1."):
        text = "\n".join(expected)
    if expected[-1] == "last":  # a lower-case word begins no sentence, unless a line does
        expected[-2:] = [" ".join(expected[-2:])]
    assert cut(text, sentence_starts(text)) == expected


@pytest.mark.parametrize("labelled", CHINESE)
def test_chinese_sentences(labelled: str) -> None:
    text = labelled.replace("|", "")
    assert cut(text, sentence_starts(text)) == [s.strip() for s in labelled.split("|")]


def test_lines_end_sentences() -> None:
    text = "\n  A title\n\nsome text\r\n一行\u2028二行"
    assert cut(text, sentence_starts(text)) == ["A title", "some text", "一行", "二行"]


def test_a_chinese_sentence_is_not_one_word(trained: Callable[[str, str], Tokenizer]) -> None:
    text = "我喜欢北京天安门。今天天气很好！"
    for kind, template in (("wordpiece", "bert"), ("bpe", "gpt2"), ("unigram", "bert")):
        encoded = trained(kind, template).encode([text])[0]
        starts = {start for start, end in encoded.offsets.tolist() if end > start}
        assert encoded.words.sum() == len(starts) > 5, "every token but the later bytes of a character begins a word"
        assert kind != "wordpiece" or len(starts) == len(text)
        assert encoded.sentences.sum() == 2
        (second,) = np.flatnonzero(encoded.sentences)[1:]
        assert encoded.offsets[second, 0] == text.index("今")


def test_offsets_of_every_kind() -> None:
    text = "Hi there. 中国 x"
    leading = [(0, 2), (2, 5), (5, 8), (8, 9), (9, 11), (10, 11), (11, 12), (11, 12), (12, 14)]  # " 中" and bytes of it
    words, sentences = text_boundaries(text, leading)
    assert words.tolist() == [True, True, False, True, True, False, True, False, True]
    assert sentences.tolist() == [True, False, False, False, True, False, False, False, False]
    trimmed = [(0, 2), (3, 5), (5, 8), (8, 9), (10, 11), (10, 11), (11, 12), (11, 12), (13, 14)]
    assert text_boundaries(text, trimmed).words.tolist() == words.tolist()
    sentencepiece = [(0, 2), (2, 3), (3, 8), (8, 9), (9, 10), (10, 11), (11, 12), (12, 12), (12, 13), (13, 14)]  # "▁" alone
    words, sentences = text_boundaries(text, sentencepiece)
    assert words.tolist() == [True, True, False, True, True, False, True, False, True, False]
    assert np.flatnonzero(sentences).tolist() == [0, 4]


def test_nothing_and_blanks() -> None:
    assert [a.tolist() for a in text_boundaries("", np.zeros((0, 2)))] == [[], []]
    assert text_boundaries("", [(0, 0)]).words.tolist() == [True]
    for flags in text_boundaries(" \n a", [(0, 1), (1, 2), (2, 4)]):
        assert flags.tolist() == [True, False, False]
    several = boundaries(["", "a b", "", "c"], np.array([(0, 1), (1, 3), (0, 1)]), np.array([0, 2, 0, 1]))
    assert several.words.tolist() == [True, True, True]
    assert several.sentences.tolist() == [True, False, True]


@example(['。"', ""])
@example(["a", "…中1a"])
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab. 中。”\"\n'1é!(…A"), max_size=30), min_size=1, max_size=4))
def test_a_batch_is_its_texts_one_by_one(texts: list[str]) -> None:
    offsets = [np.array([(i, i + 1) for i in range(len(t))], np.int64).reshape(-1, 2) for t in texts]
    together = boundaries(texts, np.concatenate(offsets), np.array([len(o) for o in offsets]))
    for kind in (0, 1):
        alone = np.concatenate([text_boundaries(t, o)[kind] for t, o in zip(texts, offsets, strict=True)])
        assert together[kind].tolist() == alone.tolist()

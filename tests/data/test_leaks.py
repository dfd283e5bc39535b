"""Leaks: planted test texts are found, clean text is left alone, and the rule is the one written down."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
import pytest

from ziggurat.data.leaks import Leak, LeakIndex, words
from ziggurat.types import Document

VOCABULARY = [f"w{n:x}q" for n in range(4000)]


def document(text: str, id: str = "", **fields: str) -> Document:
    return Document({"text": text}, id, (), fields)


def sentence(rng: random.Random, length: int, vocabulary: Sequence[str] = VOCABULARY) -> list[str]:
    """Words with a long-tailed distribution, as in language."""
    return [vocabulary[int(len(vocabulary) * rng.random() ** 3)] for _ in range(length)]


def edited(rng: random.Random, tokens: list[str], changes: int) -> list[str]:
    """The words with some replaced, left out or doubled: never two changes within the same third."""
    tokens = list(tokens)
    for n in range(changes):
        third = len(tokens) // changes
        at = n * third + rng.randrange(third)
        match rng.randrange(3):
            case 0:
                tokens[at] = "changed"
            case 1:
                del tokens[at]
            case 2:
                tokens.insert(at, "really")
    return tokens


@pytest.mark.parametrize("kind", ["exact", "dressed", "edited"])
def test_planted_rows_are_found_and_nothing_else(kind: str) -> None:
    rng = random.Random(0)
    tests = [sentence(rng, rng.randrange(12, 60)) for _ in range(200)]
    index = LeakIndex(document(" ".join(t), f"test:{n}") for n, t in enumerate(tests))
    corpus = [sentence(rng, rng.randrange(20, 800)) for _ in range(160)]
    planted = {}
    for n in range(20):
        text = list(tests[n])
        if kind == "edited":
            text = edited(rng, text, 1 if len(text) < 40 else 2)
        if kind == "dressed":
            text = [f"«{w.upper()}»," for w in text]
        where = rng.randrange(len(corpus[n * 7]) + 1)
        corpus[n * 7][where:where] = text
        planted[f"doc:{n * 7}"] = f"test:{n}"
    documents = [document(" ".join(c), f"doc:{n}") for n, c in enumerate(corpus)]
    out: list[Leak] = []
    kept = list(index.clean(documents, out))
    assert {leak.document: leak.test for leak in out} == planted
    assert [d.id for d in kept] == [d.id for d in documents if d.id not in planted]
    if kind != "edited":
        assert all(leak.share == 1 for leak in out)
    assert index.assert_clean(kept) == 140
    with pytest.raises(AssertionError, match=r"doc:0 holds .* of test:0"):
        index.assert_clean(documents)


@pytest.mark.parametrize("buckets", [15, 2**22 - 1])
def test_the_rule_against_a_plain_reading_of_it(monkeypatch: pytest.MonkeyPatch, buckets: int) -> None:
    """Brute force over every stretch of text, with a vocabulary so small that partial overlaps abound."""
    monkeypatch.setattr("ziggurat.data.leaks.BUCKETS", np.uint64(buckets))  # few buckets: the coarse look-up always says yes
    rng = random.Random(1)
    small = [*"abcdefgh"]
    tests = [sentence(rng, rng.randrange(1, 120 if n < 10 else 40), small) for n in range(30)]
    documents = [sentence(rng, rng.randrange(1, 80 if n % 2 else 20), small) for n in range(150)]
    for n in range(60):
        source = rng.choice(tests)
        a = rng.randrange(len(source))
        documents[n][5:5] = source[a : a + rng.randrange(1, 40)]
    documents += [t for t in tests if len(t) < 5]

    def grams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    def share(test: list[str], text: list[str]) -> float:
        if len(test) < 5:
            return float(text == test)
        n = min(8, max(4, (len(test) + 1) // 3))
        wanted, held = set(grams(test, n)), grams(text, n)
        most = max((len(wanted & set(held[i : i + 2 * len(test)])) / len(wanted) for i in range(len(held))), default=0.0)
        return most if len(test) >= 8 or len(text) <= 2 * len(test) or most == 1 else 0.0

    def piece(test: list[str], text: list[str]) -> bool:
        n = min(8, max(4, (len(test) + 1) // 3))
        wanted, held = set(grams(test, n)), grams(text, n)
        said = [gram in wanted for gram in held]
        return len(test) >= 5 and len(wanted & set(held)) > 13 - n and 3 * sum(said) >= 2 * len(held)

    index = LeakIndex(document(" ".join(t), str(n)) for n, t in enumerate(tests))
    found = index.leaks([document(" ".join(d)) for d in documents])
    assert 20 < sum(leak is not None for leak in found) < 150 and any(leak is not None and leak.piece for leak in found)
    for text, leak in zip(documents, found, strict=True):
        best = max(share(test, text) for test in tests)
        if best >= 0.5:
            assert leak is not None and not leak.piece and leak.share == pytest.approx(best), (text, leak)
        else:
            assert (leak is not None) == any(piece(test, text) for test in tests), (text, leak)


def test_half_of_the_ngrams_far_apart_are_no_copy() -> None:
    rng = random.Random(2)
    test = sentence(rng, 40)
    index = LeakIndex([document(" ".join(test))], pieces=False)
    together = test[:12] + test[20:32]
    assert index.leaks([document(" ".join(test[:24]))])[0] is not None
    assert index.leaks([document(" ".join(together))])[0] is None  # 10 of 33
    halves = test[:16] + sentence(rng, 300, ["other", "words"]) + test[16:]
    assert index.leaks([document(" ".join(halves))])[0] is not None  # the second half alone is 17 of 33
    quarters = [w for n in range(4) for w in test[n * 10 : n * 10 + 14] + ["gap"] * 300]
    assert index.leaks([document(" ".join(quarters))])[0] is None  # 27 of 33, but nowhere more than 7


def test_the_stretch_is_twice_the_text() -> None:
    test = [f"word{n}" for n in range(47)]  # 40 n-grams of 8 words
    index = LeakIndex([document(" ".join(test))])
    # 10 n-grams from place 0 and 10 from place `second`: within 94 words iff second + 9 < 94
    for second, leaks in ((84, True), (85, False)):
        text = test[:17] + [f"gap{n}" for n in range(second - 17)] + test[17:34]
        assert (index.leaks([document(" ".join(text))])[0] is not None) is leaks


def test_containment_can_be_set() -> None:
    test = " ".join(sentence(random.Random(3), 47))
    part = " ".join(test.split()[:20])  # 13 of 40
    assert LeakIndex([document(test)], pieces=False).leaks([document(part)]) == [None]
    (leak,) = LeakIndex([document(test)], containment=0.3).leaks([document(part, "d")])
    assert leak == Leak("d", "", 13 / 40)


def test_words_do_not_join_across_documents() -> None:
    test = sentence(random.Random(4), 8)
    index = LeakIndex([document(" ".join(test))])
    assert index.leaks([document(" ".join(test[:4])), document(" ".join(test[4:]))]) == [None, None]


def test_short_texts_are_found_only_by_themselves() -> None:
    index = LeakIndex([document("Great movie!", "t"), document("..."), document("")])
    assert index.leaks([document("it was a great movie, they said")]) == [None]
    (leak,) = index.leaks([document("great  MOVIE", "d")])
    assert leak == Leak("d", "t", 1.0)
    assert index.leaks([document("")]) == [None]
    assert LeakIndex([]).leaks([document("anything at all")]) == [None]


def test_half_of_a_short_text_in_a_long_one_is_a_turn_of_phrase() -> None:
    """Of five to seven words: a text of like length may not hold half of them, a longer one not all."""
    index = LeakIndex([document("Return the current state of the encoder.", "t")])
    phrase = "the current state of the"
    assert index.leaks([document(f"return {phrase} decoder")])[0] is not None
    assert index.leaks([document(f"it compares {phrase} art with {'much ' * 6} else")]) == [None]
    (leak,) = index.leaks([document(f"we return {phrase} encoder here and {'much ' * 6} else", "d")])
    assert leak == Leak("d", "t", 1.0)
    (leak,) = LeakIndex([document(f"return {phrase} last encoder")]).leaks([document(f"{phrase} last art {'much ' * 12}")])
    assert leak is not None and leak.share == 3 / 5  # eight words are enough


def test_chinese() -> None:
    test = "这家酒店的房间很干净，服务员态度也非常好，下次还会再来。"
    index = LeakIndex([document(test, "t")])
    hidden = "上个月去了北京。" + test.replace("，", " ").replace("非常", "很") + "推荐给大家！" + "今天天气不错。" * 30
    (leak, clean) = index.leaks([document(hidden, "d"), document("这家餐厅的菜很好吃，服务员态度也不错，下次还会去别家看看。")])
    assert leak is not None and leak.test == "t" and clean is None
    assert words("ＡＢＣ在北京，2018年 don't_x") == ["abc", "在", "北", "京", "2018", "年", "don", "t", "x"]


def test_a_short_text_beside_another_one_is_no_leak() -> None:
    """A label that is written as text stands in the test and in the training rows; only a row that says nothing else leaks it."""
    index = LeakIndex([Document({"text": "a long and winding road to nowhere", "pair": "not entailed"}, "t")])
    beside = Document({"text": "quite another text that is long enough", "pair": "Not entailed."})
    found = index.leaks([beside, document("not entailed"), Document({"text": "not entailed", "pair": "not entailed"})])
    assert [leak is not None for leak in found] == [False, True, True]


def test_either_text_of_a_pair_counts() -> None:
    rng = random.Random(5)
    one, two, other = (" ".join(sentence(rng, 20)) for _ in range(3))
    index = LeakIndex([Document({"text": one, "pair": two}, "t")])
    found = index.leaks([document(one), document(two), document(other), Document({"text": other, "pair": f"x {one}"})])
    assert [leak is not None for leak in found] == [True, True, False, True]


def test_the_document_a_test_text_was_cut_from_goes_too() -> None:
    index = LeakIndex([document("six words are said in here", "pkg/a.py:3#0", document="pkg/a.py:3")])
    found = index.leaks(
        [document("something quite different", "pkg/a.py:3"), document("something quite different", "pkg/a.py:9")]
    )
    assert found == [Leak("pkg/a.py:3", "pkg/a.py:3#0", 1.0), None]


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    tests = [document(" ".join(sentence(rng, 30)), f"t{n}") for n in range(50)]
    texts = [document(" ".join(sentence(rng, 100)) + t.texts["text"] * (n % 2), f"d{n}") for n, t in enumerate(tests)]
    index = LeakIndex(tests)
    kept = [d.id for d in index.clean(texts)]
    monkeypatch.setattr("ziggurat.data.leaks.BLOCK_CHARACTERS", 1000)
    monkeypatch.setattr("ziggurat.data.leaks.KEPT_WORDS", 100)
    assert kept == [d.id for d in LeakIndex(tests).clean(texts)] == [f"d{n}" for n in range(0, 50, 2)]


def test_ten_megabytes_take_seconds() -> None:
    rng = np.random.default_rng(7)
    picks = (4000 * rng.random(400_000) ** 3).astype(int)
    text = [VOCABULARY[p] for p in picks]
    texts = [document(" ".join(text[i : i + 400])) for i in range(0, len(text), 400)]
    index = LeakIndex(document(" ".join(sentence(random.Random(n), 30))) for n in range(1000))
    size = sum(len(d.texts["text"]) for d in texts)
    start = time.perf_counter()
    assert index.assert_clean(texts) == 1000
    rate = size / (time.perf_counter() - start)
    assert rate > 200_000, f"{rate:.0f} characters a second"


def test_a_question_about_a_text_gives_nothing_away() -> None:
    """The same question about another text is no leak; the same text is one, whatever is asked."""
    one, two = "the cat sat on the mat by the door all day long", "a dog ran over the hill and far away from here today"
    answered = Document({"text": "what is it about?", "pair": one}, "t", fields={"answers": []})
    chosen = Document({"text": one, "pair": "what is it about?"}, "t", fields={"label": 0}, lists={"choices": ("a cat", "a dog")})
    for test, rows in (
        (answered, [{"text": "what is it about?", "pair": two}, {"text": "who sat there?", "pair": one}]),
        (chosen, [{"text": two, "pair": "what is it about?"}, {"text": one, "pair": "who sat there?"}]),
    ):
        found = LeakIndex([test]).leaks([Document(row, "d") for row in rows])
        assert found[0] is None and found[1] is not None
    for question, counts in (("what is it about?", False), ("what is this text about, please?", True)):
        plain = Document({"text": question, "pair": one}, "t")  # of a pair of texts each counts, but a short one beside another
        found = LeakIndex([plain]).leaks([Document({"text": question, "pair": two}, "d")])
        assert (found[0] is not None) == counts


# --- documents smaller than the test texts ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
def test_test_texts_that_are_cut_into_documents_are_found(size: int) -> None:
    """One, two or all five sentences of 20 words a document, in a corpus of such documents."""
    rng = random.Random(8)
    tests = [[sentence(rng, 20) for _ in range(5)] for _ in range(20)]
    whole = [" ".join(w for one in test for w in one) for test in tests]
    index = LeakIndex(document(text, f"test:{n}") for n, text in enumerate(whole))
    corpus = [document(" ".join(sentence(rng, 20 * size)), f"clean:{n}") for n in range(2000)]
    for n, test in enumerate(tests):
        for at in range(0, 5, size):
            text = " ".join(w.upper() + "," for one in test[at : at + size] for w in one)
            corpus.insert(rng.randrange(len(corpus)), document(text, f"test:{n}/{at}"))
    out: list[Leak] = []
    kept = list(index.clean(corpus, out))
    assert len(out) == 20 * len(range(0, 5, size)) and all(leak.document.startswith(f"{leak.test}/") for leak in out)
    assert len(kept) == 2000 and index.assert_clean(kept) == 2000


def test_a_piece_has_thirteen_words_and_two_thirds_of_the_document() -> None:
    test = [f"word{n}" for n in range(200)]
    index = LeakIndex([document(" ".join(test), "t")])

    def leak(text: list[str]) -> Leak | None:
        return index.leaks([document(" ".join(text), "d")])[0]

    assert leak(test[50:62]) is None and leak(test[50:63]) == Leak("d", "t", 1.0, piece=True)
    other = [f"other{n}" for n in range(100)]
    assert leak(test[50:79] + other[:11]) == Leak("d", "t", 22 / 33, piece=True)
    assert leak(test[50:79] + other[:12]) is None
    assert leak(test[50:59] * 20) is None  # the same few words again and again
    assert LeakIndex([document(" ".join(test))], pieces=False).leaks([document(" ".join(test[50:80]))]) == [None]
    assert str(leak(test[50:70])) == "100% of d stands in t" and str(leak(test)) == "d holds 100% of t"


def test_a_piece_in_chinese_is_longer() -> None:
    draw = random.Random(9)
    test = "".join(chr(0x4E00 + draw.randrange(3000)) for _ in range(200))
    index = LeakIndex([document(test, "t")])
    assert index.leaks([document(test[40:63])]) == [None]  # a line that is quoted
    assert index.leaks([document(test[40:64] + "。", "d")]) == [Leak("d", "t", 1.0, piece=True)]

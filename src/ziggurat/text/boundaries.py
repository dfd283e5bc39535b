"""Where words and sentences begin, in English and in Chinese.

Everything is decided on characters and then carried over to tokens by their offsets, so the answer does not depend on how a
tokenizer cuts: whole-word masking over WordPiece, byte-level BPE and Unigram hides the same words.

Words: a run of letters and digits (with combining marks and apostrophes inside: don't) is a word; every Han character is a
word by itself unless a segmenter says otherwise; every punctuation mark is a word; hiragana and katakana runs are words.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ziggurat.errors import UserError

Segmenter = Literal["characters", "jieba"]

SPACE, LETTER, HAN, HIRAGANA, KATAKANA, MARK, PUNCTUATION = range(7)

HAN_BLOCKS = (
    (0x2E80, 0x2FD5),  # radicals
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3038, 0x303B),
    (0x3400, 0x4DBF),  # extension A
    (0x4E00, 0x9FFF),  # unified ideographs
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0x20000, 0x323AF),  # extensions B to H, compatibility supplement
    (0x323B0, 0x3347F),  # extension J
)
KANA_BLOCKS = (
    (0x3041, 0x3096, HIRAGANA),
    (0x309D, 0x309F, HIRAGANA),
    (0x30A1, 0x30FA, KATAKANA),
    (0x30FD, 0x30FF, KATAKANA),
    (0x31F0, 0x31FF, KATAKANA),
    (0xFF66, 0xFF9D, KATAKANA),
)
LENGTHENERS = (0x30FC, 0xFF70)  # "ー" continues whatever kana stands before it
SKIN_TONES = range(0x1F3FB, 0x1F400)
APOSTROPHES = (0x27, 0x2019, 0xFF07)
REPLACEMENT = 0xFFFD  # dropped by BERT's normaliser: it must not cut the word it stands in


class Boundaries(NamedTuple):
    """Flags of the tokens of one or several texts laid end to end."""

    words: np.ndarray
    """bool[N]: True at the first token of each word."""
    sentences: np.ndarray
    """bool[N]: True at the first token of each sentence."""


@functools.cache
def character_classes() -> np.ndarray:
    """uint8[0x110000]: the class of every code point."""
    by_letter = {"L": LETTER, "N": LETTER, "M": MARK, "Z": SPACE}
    by_category = {"Cc": SPACE, "Cf": MARK}  # format characters (joiners, soft hyphens) are inside words, not between them
    table = np.full(0x110000, PUNCTUATION, np.uint8)  # also what this Python's Unicode tables do not know yet
    for c in (*range(HAN_BLOCKS[-1][1] + 1), *range(0xE0000, 0xE0200)):  # nothing is assigned elsewhere
        category = unicodedata.category(chr(c))
        table[c] = by_category.get(category, by_letter.get(category[0], PUNCTUATION))
    for start, end in HAN_BLOCKS:
        table[start : end + 1] = HAN
    for start, end, kind in KANA_BLOCKS:
        table[start : end + 1] = kind
    table[[*LENGTHENERS, *SKIN_TONES, REPLACEMENT]] = MARK
    return table


def code_points(text: str) -> np.ndarray:
    """uint32[C]: the text's characters as numbers."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def word_starts(text: str, segmenter: Segmenter = "characters") -> np.ndarray:
    """bool[C]: True at the first character of each word of `text`.

    `segmenter="jieba"` cuts runs of Han characters into jieba's words; it needs the extra `zh`
    (`UserError` otherwise).
    """
    codes = code_points(text)
    if not len(codes):
        return np.zeros(0, bool)
    kind = character_classes()[codes]
    _keep_apostrophes(codes, kind)
    marks = kind == MARK
    if marks.any():
        # A mark is of the class of the character it stands on (on nothing: a letter).
        index = np.where(marks, 0, np.arange(len(kind)))
        base = kind[np.maximum.accumulate(index)]
        base = np.where(base == MARK, LETTER, base)
        attached = marks & (base != SPACE)
        kind = np.where(marks & (base == SPACE), np.uint8(LETTER), base)
    else:
        attached = marks
    changed = np.empty(len(kind), bool)
    changed[0] = True
    np.not_equal(kind[1:], kind[:-1], out=changed[1:])
    alone = (kind == PUNCTUATION) | (kind == HAN)
    starts = (changed | alone) & (kind != SPACE)
    starts[1:] &= ~attached[1:]
    if segmenter == "jieba":
        _segment(text, kind == HAN, starts)
    return starts


def _keep_apostrophes(codes: np.ndarray, kind: np.ndarray) -> None:
    """An apostrophe between two letters becomes a letter."""
    at = np.flatnonzero(np.isin(codes[1:-1], APOSTROPHES)) + 1
    inside = at[(kind[at - 1] == LETTER) & (kind[at + 1] == LETTER)]
    kind[inside] = LETTER


def _segment(text: str, han: np.ndarray, starts: np.ndarray) -> None:
    """Replace the starts within runs of Han characters by those of jieba's words."""
    edges = np.flatnonzero(np.diff(han.astype(np.int8), prepend=0, append=0))
    cut = _jieba()
    for start, end in edges.reshape(-1, 2).tolist():
        starts[start:end] = False
        at = start
        for word in cut(text[start:end]):
            starts[at] = True
            at += len(word)


@functools.cache
def _jieba() -> Callable[[str], Sequence[str]]:
    try:
        import jieba
    except ImportError:
        raise UserError(
            "segmenter: jieba is not installed", 'install the extra: pip install "ziggurat[zh]", or use segmenter: characters'
        ) from None
    jieba.setLogLevel("WARNING")  # it reports the loading of its dictionary on stderr
    return jieba.Tokenizer().lcut  # its own instance: words that other code adds to the global one change nothing here


# Sentences. A candidate is a run of terminators with the quotes and brackets that close after it, or a line end.
CHINESE_ENDS = "。！？；｡"
CLOSERS = "」』”’）】〕］》〉\"')]}»"
CANDIDATE = re.compile(rf"[.!?…{CHINESE_ENDS}]+[{re.escape(CLOSERS)}]*|[\n\r\x0b\x0c\x85\u2028\u2029]+")
NEXT = re.compile(r"\S")
OPENERS = re.compile(r"[\"'“‘«(\[{¿¡]*")
DOTTED = re.compile(r"(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}")
FIRST_WORD = re.compile(r"[^\W\d_]+(?:['’][a-z]+)?")
CHINESE_MARKS = "，。、：；！？（）《》【】「」『』〈〉"
CHINESE_LETTERS = r"\u2e80-\u2fdf\u3005-\u3007\u3021-\u303b\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003347f"
HAN_OR_KANA = re.compile(f"[{CHINESE_LETTERS}]")
LAST_WORD = re.compile(rf"[^\s(\[{{\"“‘'«—–/{CHINESE_MARKS}{CHINESE_LETTERS}]+\Z")


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


NEVER_END = _listed(
    "mr mrs ms dr prof gen rep sen gov capt lt col sgt cmdr adm maj rev hon pres messrs mme mlle st mt ft vs cf viz approx resp "
    "e.g i.e eg ie esp incl"
)
"""Abbreviations that need something after them."""
BEFORE_NUMBERS = _listed(
    "no nos fig figs eq eqs p pp vol vols ch chap sec sect art ref refs tab ver v op "
    "jan feb mar apr jun jul aug sep sept oct nov dec ca circa c"
)
"""Abbreviations only where a number (or a bracket) follows: "No. 5", but "She said no. Then"."""
MAY_END = _listed("inc co ltd corp bros jr sr al dept univ assn ave blvd rd est min max ed eds u.s")
"""Abbreviations that end a sentence only before a word that usually begins one; so do a.m., U.S., Ph.D."""
STARTERS = _listed(
    "the a an this that these those it its he she we they i you his her our their my your in on at by for from with without as "
    "if when while although though after before since because however but and or so then there here what who where why how "
    "which no not yes one some many most all each every both such to of during under over it's he's she's they're"
)


def sentence_starts(text: str) -> np.ndarray:
    """bool[C]: True at the first character of each sentence of `text`.

    English: `. ! ?` with closing quotes and brackets, not after abbreviations, initials and list numbers, not inside decimals,
    and not before a lower-case word. Chinese: `。！？；` and a `…` in Chinese text, closing quotes included, except inside the
    marks of a title 《》. A line end always ends a sentence.
    """
    starts = np.zeros(len(text), bool)
    first = NEXT.search(text)
    if first is None:
        return starts
    starts[first.start()] = True
    quotes, counted = 0, 0
    line = 0
    for match in CANDIDATE.finditer(text):
        begin, end = match.span()
        if text[begin].isspace():
            quotes, counted, line = 0, end, end
        else:
            quotes += text.count('"', counted, begin)
            counted = begin
            closing = match.group().find('"')
            if closing > 0 and quotes % 2 == 0 and end < len(text) and not text[end].isspace():
                end = begin + closing  # a straight quote that opens: 他走了。"为什么？"
            if not _ends_sentence(text, begin, end, line):
                continue
        following = NEXT.search(text, end)
        if following is None:
            break
        starts[following.start()] = True
    return starts


def _ends_sentence(text: str, begin: int, end: int, line: int) -> bool:
    """Whether the terminators (and closers) at [begin, end) end a sentence; `line` is where their line begins."""
    if end >= len(text):
        return True
    marks = text[begin:end]
    if "》" in marks or "〉" in marks:
        return False  # 《你好，中国！》是一本书
    if text[end] in "，、：；,:;":
        return False
    ends = marks.rstrip(CLOSERS)
    if any(mark in CHINESE_ENDS for mark in ends):
        return True
    before = text[begin - 1] if begin else "\n"
    chinese = _is_chinese(before) or (not before.isspace() and _is_chinese(text[end]))
    if "…" in ends and chinese:
        return True
    if not text[end].isspace():
        # Chinese written with ASCII marks: 你好!我很好
        return _is_chinese(before) and _is_chinese(text[end])
    following = NEXT.search(text, end)
    if following is None or "\n" in text[end : following.start()]:
        return True
    opened = OPENERS.match(text, following.start())
    at = opened.end() if opened else following.start()
    word = FIRST_WORD.match(text, at)
    if word and word.group()[0].islower():
        return False
    if ends == ".":
        return _full_stop(text, begin, line, word.group().lower() if word else "", text[at : at + 1], len(marks) > 1)
    return True


def _full_stop(text: str, at: int, line: int, word: str, character: str, closed: bool) -> bool:
    """Whether one `.` at `at` is a full stop; `word` (lower case) or else `character` comes next."""
    found = LAST_WORD.search(text, max(at - 40, line), at)
    if not found:
        return True
    last = found.group()
    lower = last.lower().lstrip(".,;:")
    if lower in NEVER_END and not closed:
        return False
    if lower in BEFORE_NUMBERS and (character.isdigit() or character == "("):
        return False
    if lower in MAY_END:
        return word in STARTERS
    if last.isdigit() and not text[line : found.start()].strip():
        return False  # "1. The first": the number of a list entry
    if DOTTED.fullmatch(last):
        return word in STARTERS  # U.S., a.m., Ph.D., J.R.R.
    if len(last) == 1 and last.isupper():
        # After a common word it may be no initial ("vitamin C. It"); after a name, or first, it is ("George W. Bush").
        earlier = text[max(found.start() - 40, line) : found.start()].split()
        named = not earlier or earlier[-1][0].isupper() or earlier[-1].rstrip(CLOSERS)[-1:] in (".", "!", "?")
        return not named and word in STARTERS
    return True


def _is_chinese(character: str) -> bool:
    return bool(character) and (character in CHINESE_MARKS or HAN_OR_KANA.match(character) is not None)


def token_starts(starts: np.ndarray, offsets: np.ndarray, spaces: np.ndarray | None = None) -> np.ndarray:
    """bool[N]: the first token of each unit whose first characters are `starts`.

    `starts` is bool[C]; `offsets` int64[N, 2] are the tokens' character spans [start, end), with or without leading
    spaces; several tokens may share one character (bytes), and zero-length spans begin nothing. A token that is one
    space (`spaces`, bool[C]) goes with the unit right behind it: it is how SentencePiece writes a word's beginning.
    """
    seen = np.zeros(len(starts) + 2, np.int64)
    np.cumsum(starts, out=seen[1:-1])
    seen[-1] = seen[-2]
    ends = offsets[:, 1]
    if spaces is not None and len(ends):
        single = (ends - offsets[:, 0] == 1) & np.append(spaces, False)[offsets[:, 0]]
        ends = ends + single
    claimed = np.where(offsets[:, 1] > offsets[:, 0], seen[ends], 0)
    np.maximum.accumulate(claimed, out=claimed)
    return np.diff(claimed, prepend=0) > 0


def boundaries(texts: Sequence[str], offsets: np.ndarray, counts: np.ndarray, segmenter: Segmenter = "characters") -> Boundaries:
    """Word and sentence starts of the tokens of several texts, in one pass over all of them.

    `offsets` int64[N, 2] are character spans, each counted from the start of its own text; `counts` int64[len(texts)] says how
    many tokens each text has. The first token of a text always begins its first word and sentence, even if it is
    only white space.
    """
    return boundaries_and_words(texts, offsets, counts, segmenter)[0]


def boundaries_and_words(
    texts: Sequence[str], offsets: np.ndarray, counts: np.ndarray, segmenter: Segmenter = "characters"
) -> tuple[Boundaries, np.ndarray]:
    """`boundaries`, and how many words each text has, int64[len(texts)]: by its characters, whatever the tokens are."""
    joined = "\n".join(texts)  # a line end: no word and no sentence crosses it
    lengths = np.fromiter((len(t) for t in texts), np.int64, len(texts)) + 1
    shifted = offsets + np.repeat(np.cumsum(lengths) - lengths, counts)[:, None]
    spaces = code_points(joined) == 0x20
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    starts = word_starts(joined, segmenter)
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(starts)])
    ends = np.cumsum(lengths) - 1  # the line ends between the texts begin no word
    words = token_starts(starts, shifted, spaces)
    sentences = token_starts(sentence_starts(joined), shifted, spaces)
    for flags in (words, sentences):
        _begin_texts(flags, firsts)
    return Boundaries(words, sentences), before[ends] - before[ends - lengths + 1]


def text_boundaries(text: str, offsets: np.ndarray, segmenter: Segmenter = "characters") -> Boundaries:
    """`boundaries` of one text: `offsets` int64[N, 2] -> words bool[N], sentences bool[N]."""
    offsets = np.asarray(offsets, np.int64).reshape(-1, 2)
    return boundaries([text], offsets, np.array([len(offsets)]), segmenter)


def _begin_texts(flags: np.ndarray, firsts: np.ndarray) -> None:
    """Move the first start of each text to its first token (`firsts`)."""
    at = np.flatnonzero(flags)
    found = np.searchsorted(at, firsts)
    limits = np.append(firsts[1:], len(flags))
    has = found < len(at)
    moved = at[found[has]]
    flags[moved[moved < limits[has]]] = False
    flags[firsts] = True

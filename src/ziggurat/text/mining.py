"""What a text would be shorter by: words that a tokenizer cuts, and pairs of its pieces that stand side by side."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from ziggurat.text.boundaries import Segmenter, code_points, token_starts, word_starts
from ziggurat.text.tokenizer import Tokenizer

LONGEST = 24
"""Characters of the longest word (beyond are keys and addresses), and pieces of the longest chain of merges."""
AT_ONCE = 256
"""Pieces of text encoded together."""
PRIVATE = 0x10000
"""BPE goes on training on a text in which every old token is one character: this one and those after it."""
SPARE = 1.25
"""Merges made for one that is wanted: some make a string that is there already and are left out."""
HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b920-\U0002ceaf"
    "\uf900-\ufaff\U0002f800-\U0002fa1f"
)
"""The characters that BERT's normaliser sets apart, as the inside of a character class."""
ALL_HAN = re.compile(f"[{HAN}]+")
METASPACE = "\u2581"


Word = tuple[tuple[int, ...], str]
"""A word's tokens, and its spelling where they do not tell it."""


@dataclass(frozen=True)
class Candidate:
    """A word that could become a token."""

    token: str
    """As the tokenizer's model would spell it."""
    pieces: tuple[int, ...]
    """The tokens that it is now."""
    count: int
    saved: int
    """Tokens fewer in the sample; an unknown word counts as if it were spelled by its characters."""


@dataclass(frozen=True)
class Merge:
    """Two tokens that become one."""

    left: str
    right: str
    token: str
    pieces: tuple[int, ...]
    """The old tokens that it consists of."""


def all_han(word: str) -> bool:
    """Whether every character is one that BERT reads alone."""
    return ALL_HAN.fullmatch(word) is not None


def chinese(texts: Sequence[str]) -> bool:
    """Whether there is any Chinese in the texts."""
    return any(ALL_HAN.search(text) for text in texts)


def words(tokenizer: Tokenizer, texts: Sequence[str], segmenter: Segmenter, least: int) -> list[Candidate]:
    """The words with a letter that stand in the texts `least` times or more and are several tokens or an unknown one, by the tokens
    saved, those of equal worth by their spelling.

    A word is what the tokenizer cuts into pieces by itself; Chinese words, and those of Unigram, are the segmenter's.
    """
    library, unknown = tokenizer.library, tokenizer.vocab.unk
    known = library.get_vocab()
    names = {number: name for name, number in known.items()}
    special = set(tokenizer.vocab.special)
    starts, spell = _starts(tokenizer, segmenter), _speller(tokenizer, segmenter)
    counts: Counter[Word] = Counter()
    for group in _batches(texts):
        encodings = library.encode_batch(group, add_special_tokens=False)
        for text, encoding in zip(group, encodings, strict=True):
            ids = np.array(encoding.ids, np.int64)
            if not len(ids):
                continue
            edges = np.append(np.flatnonzero(starts(text, encoding)), len(ids))
            sizes = np.diff(edges)
            wanted = sizes > 1
            if unknown is not None:
                wanted |= ids[edges[:-1]] == unknown
            for n in np.flatnonzero(wanted).tolist():
                a, b = edges[n], edges[n + 1]
                pieces = tuple(ids[a:b].tolist())
                for word in spell(text, encoding, int(a), int(b)) if unknown in pieces else [(pieces, "")]:
                    counts[word] += 1
    found: dict[str, Candidate] = {}
    for (pieces, spelled), count in counts.items():
        if special & set(pieces) - {unknown} or count < least:
            continue
        token = spelled or _joined([names[p] for p in pieces], tokenizer.kind)
        if tokenizer.kind == "unigram" and token[:1] == METASPACE and all_han(token[1:2]):
            if names[pieces[0]] != METASPACE:
                continue
            pieces, token = pieces[1:], token[1:]  # a word is not another one at the beginning of a text
        cost = len(token) + 1 if unknown in pieces else len(pieces)
        if cost < 2 or token in known or not any(map(str.isalpha, token)) or len(token) > LONGEST:
            continue
        before = found[token].count if token in found else 0
        found[token] = Candidate(token, pieces, before + count, (before + count) * (cost - 1))
    return sorted(found.values(), key=lambda c: (-c.saved, c.token))


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), AT_ONCE):
        yield list(texts[start : start + AT_ONCE])


def _starts(tokenizer: Tokenizer, segmenter: Segmenter) -> Callable[[str, tokenizers.Encoding], np.ndarray]:
    """What says of a text and its tokens where another word begins, bool[N]."""
    unigram, unknown = tokenizer.kind == "unigram", tokenizer.vocab.unk
    if not unigram and (segmenter == "characters" or not reads_alone(tokenizer.content())):
        return lambda text, encoding: _changes(encoding)

    def starts(text: str, encoding: tokenizers.Encoding) -> np.ndarray:
        begins, offsets = _changes(encoding), np.array(encoding.offsets, np.int64)
        if unigram:
            own = np.cumsum(begins)  # a word of the tokenizer with something unknown in it stays whole: `_speller` takes it apart
            blurred = np.isin(own, own[np.array(encoding.ids) == unknown])
            return begins | (_words_of(text, offsets, segmenter) & ~blurred)
        codes = np.append(code_points(text), 0)
        han = (offsets[:, 1] - offsets[:, 0] == 1) & _han()[codes[offsets[:, 0]]]
        return np.where(han, _words_of(text, offsets, segmenter), begins) if han.any() else begins

    return starts


def _words_of(text: str, offsets: np.ndarray, segmenter: Segmenter) -> np.ndarray:
    return token_starts(word_starts(text, segmenter), offsets, code_points(text) == 0x20)


def _changes(encoding: tokenizers.Encoding) -> np.ndarray:
    """bool[N]: the first token of each of the tokenizer's own words."""
    owner = np.array([-1 if w is None else w for w in encoding.word_ids], np.int64)
    begins = np.ones(len(owner), bool)
    begins[1:] = owner[1:] != owner[:-1]
    return begins


def reads_alone(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json reads Han characters alone by rules that can be given Chinese words: BERT's, or those of an earlier
    extension."""
    normalizer, cutter = content["normalizer"] or {}, content["pre_tokenizer"] or {}
    if normalizer.get("type") != "BertNormalizer":
        return False
    if normalizer["handle_chinese_chars"]:
        return bool(cutter.get("type") == "BertPreTokenizer")
    parts = cutter.get("pretokenizers", [])
    return [part["type"] for part in parts] == ["Split", "BertPreTokenizer"] and HAN in parts[0]["pattern"].get("Regex", "")


@functools.cache
def _han() -> np.ndarray:
    """bool[0x110000]: the characters of `HAN`."""
    table = np.zeros(0x110000, bool)
    for first, last in re.findall("(.)-(.)", HAN):
        table[ord(first) : ord(last) + 1] = True
    return table


def _joined(pieces: Sequence[str], kind: str) -> str:
    return "".join(piece.removeprefix("##") if kind == "wordpiece" and n else piece for n, piece in enumerate(pieces))


def _speller(tokenizer: Tokenizer, segmenter: Segmenter) -> Callable[[str, tokenizers.Encoding, int, int], list[Word]]:
    """What gives the words that the tokens [a, b) of a text are, as the model saw them, where one of the tokens is unknown."""
    normalizer = tokenizer.library.normalizer

    def unigram(text: str, encoding: tokenizers.Encoding, a: int, b: int) -> list[Word]:
        # The library makes one unknown token of all unknown characters in a row, over the ends of words.
        ids, tokens = encoding.ids[a:b], encoding.tokens[a:b]
        whole = "".join(tokens)
        ends = list(accumulate(map(len, tokens)))
        starts = word_starts(whole.replace(METASPACE, " "), segmenter)
        cuts = [0, *(n for n in np.flatnonzero(starts).tolist() if n and whole[:n] != METASPACE), len(whole)]
        found = []
        for i, j in pairwise(cuts):
            over = [n for n, end in enumerate(ends) if i < end and end - len(tokens[n]) < j]
            found.append((tuple(ids[n] for n in over), whole[i:j]))
        return found

    def others(text: str, encoding: tokenizers.Encoding, a: int, b: int) -> list[Word]:
        part = text[encoding.offsets[a][0] : encoding.offsets[b - 1][1]]
        word = "".join((normalizer.normalize_str(part) if normalizer else part).split())
        return [(tuple(encoding.ids[a:b]), word)]

    return unigram if tokenizer.kind == "unigram" else others


def merges(tokenizer: Tokenizer, texts: Sequence[str], wanted: int, least: int) -> list[Merge]:
    """Up to `wanted` merges that follow those of a BPE tokenizer: at each step the pair of tokens that stands side by side within
    a word most often (`least` times or more), which is the token that makes the text shortest.

    The library's trainer does it, on a text in which each old token is one character.
    """
    library = tokenizer.library
    content = tokenizer.content()
    prefix = content["model"].get("continuing_subword_prefix") or ""
    left_out = np.array(sorted({*tokenizer.vocab.special, *([] if tokenizer.vocab.unk is None else [tokenizer.vocab.unk])}))
    used = np.zeros(tokenizer.vocab.size, bool)

    def recoded() -> Iterator[str]:
        for group in _batches(texts):
            for encoding in library.encode_batch(group, add_special_tokens=False):
                ids = np.array(encoding.ids, np.int64)
                if not len(ids):
                    continue
                begins = _changes(encoding)
                apart = np.isin(ids, left_out)
                used[ids[~apart]] = True
                made = np.full(2 * len(ids), ord(" "), "<u4")
                made[1::2] = np.where(apart, ord(" "), ids + PRIVATE)
                keep = np.ones(len(made), bool)
                keep[::2] = begins
                yield made[keep].tobytes().decode("utf-32-le")

    lines = list(recoded())
    alphabet = [chr(PRIVATE + number) for number in np.flatnonzero(used).tolist()]
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + int(wanted * SPARE) + 64,
        min_frequency=least,
        special_tokens=[],
        initial_alphabet=alphabet,
        max_token_length=LONGEST,
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator(lines, trainer)
    known = library.get_vocab()
    names: dict[str, str] = {chr(PRIVATE + number): name for name, number in known.items()}
    taken = set(known)
    found: list[Merge] = []
    for left, right in json.loads(trained.to_str())["model"]["merges"]:
        if len(found) == wanted:
            break
        if left not in names or right not in names:
            continue  # built on a merge that was left out
        token = names[left] + names[right].removeprefix(prefix)
        if token in taken:
            continue  # old merges, which come first, could go on from it in another way
        taken.add(token)
        names[left + right] = token
        found.append(Merge(names[left], names[right], token, tuple(ord(c) - PRIVATE for c in left + right)))
    return found

"""New tokens for a domain, as part of the tokenizer's own model: whole words for WordPiece and Unigram, further merges for BPE.

Nothing becomes one of `added_tokens`, which are looked for in the raw text: they would match inside words and be found before the
tokenizer's own rules. What was there keeps its id, and a text without new tokens is cut as before. How each kind is done:

wordpiece   A word of several pieces becomes an entry; the longest match is then the whole word. BERT reads every Han character alone, so
            Chinese words need a cut of their own: in place of that rule of the normaliser a pre-tokenizer isolates the new words and all other
            Han characters. Where Han characters are cut like letters, its words are entries like any others.
bpe         Training goes on from the merges there are (`mining.merges`): each new token is one merge behind all old ones.
unigram     A word becomes a piece with the logarithm of its share of the sample's tokens as its score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from ziggurat.config import Spec
from ziggurat.errors import UserError, check
from ziggurat.text import mining
from ziggurat.text.boundaries import Segmenter
from ziggurat.text.mining import HAN, Candidate
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import sample

TRIES = 8
"""Times that words which break others are taken out again."""
BRANCHES = 8
"""Alternatives of the pattern for Chinese words that are tried one after the other."""


class VocabularySpec(Spec):
    """New tokens for the stage's text, mined from it; their rows begin as the mean of the pieces they replace."""

    extend: int = Field(gt=0, le=200_000)
    """How many."""
    source: str | None = None
    """Mined from this source of the stage; may be left out where the stage has only one."""
    sample: int = Field(10_000_000, ge=1)
    """Characters of text to look at, drawn by the seed from all of it."""
    seed: int = 0
    """Chooses the sample."""
    min_frequency: int = Field(5, ge=1)
    """How often a word (or a pair of pieces, with BPE) must stand in the sample."""
    segmenter: Segmenter | None = None
    """How Chinese words are found (`jieba`: extra `zh`); left out: as the tokenizer does. BPE finds them by their frequency alone."""


@dataclass(frozen=True)
class Added:
    """A new token."""

    token: str
    """As the tokenizer spells it."""
    id: int
    pieces: tuple[int, ...]
    """The old tokens in its place."""
    count: int
    """How often it stands in the sample once it is there; a merge that only leads to longer ones may have 0."""


@dataclass(frozen=True)
class Extended:
    """A tokenizer with new tokens, and what they bought on the sample."""

    tokenizer: Tokenizer
    added: tuple[Added, ...]
    """In the order of their ids."""
    sample: Mapping[str, int]
    """`characters`, `words`, and tokens and unknown tokens before and after."""


def extend(tokenizer: Tokenizer, texts: Iterable[str], spec: VocabularySpec, *, what: str = "the text") -> Extended:
    """`tokenizer` with `spec.extend` tokens more, mined from a sample of `texts`. The same texts, in any order, give the same tokens.

    Raises `UserError` where the tokenizer is of a kind that cannot grow, and where `what` has too few candidates.
    """
    kinds = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}
    check(
        tokenizer.kind in kinds,
        f"vocabulary: a {tokenizer.kind} tokenizer cannot be extended",
        f"start from a checkpoint whose tokenizer is one of {', '.join(kinds)}",
    )
    chosen = sample(texts, spec.sample, spec.seed)
    check(chosen, f"vocabulary: there is no text in {what}", "check the paths and the text column of the source")
    content = _settled(tokenizer)
    pieces = kinds[tokenizer.kind](tokenizer, chosen, spec, content, what)
    grown = tokenizer.with_content(content)
    before, after = tokenizer.library.get_vocab(), grown.library.get_vocab()
    moved = [token for token, number in before.items() if after.get(token) != number]
    assert not moved, f"old tokens were given new ids: {moved[:5]}"
    counts, facts = _bought(tokenizer, grown, chosen)
    added = [Added(token, after[token], ids, int(counts[after[token]])) for token, ids in pieces.items()]
    return Extended(grown, tuple(sorted(added, key=lambda a: a.id)), facts)


def _settled(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json with the special tokens among the model's entries, so that they keep their ids when it grows."""
    content = tokenizer.content()
    model, added = content["model"], content["added_tokens"]
    if model["type"] != "Unigram":
        for token in added:
            model["vocab"].setdefault(token["content"], token["id"])
        return content
    known = {piece for piece, _ in model["vocab"]}
    for token in sorted(added, key=lambda t: int(t["id"])):
        if token["content"] not in known:
            check(
                token["id"] == len(model["vocab"]),
                f"vocabulary: token {token['content']} has the id {token['id']}, the tokenizer's {len(model['vocab'])} pieces end before it",
                "write the tokenizer again with ids without gaps",
            )
            model["vocab"].append([token["content"], 0.0])
    return content


def _bought(old: Tokenizer, new: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, dict[str, int]]:
    """int64[V]: how often every token stands in the texts now; and the facts of `Extended.sample`."""
    counts = np.zeros(new.vocab.size, np.int64)
    facts = {"characters": sum(map(len, texts)), "words": 0}
    for when, tokenizer in (("before", old), ("after", new)):
        unknown = tokens = 0
        for encoded in tokenizer.encode(texts):
            tokens += len(encoded)
            unknown += int(np.count_nonzero(encoded.ids == tokenizer.vocab.unk)) if tokenizer.vocab.unk is not None else 0
            if when == "after":
                facts["words"] += encoded.units
                counts += np.bincount(encoded.ids, minlength=len(counts))
        facts |= {f"tokens_{when}": tokens, f"unknown_{when}": unknown}
    return counts, facts


def _enough(found: Sequence[Any], spec: VocabularySpec, what: str, hint: str) -> None:
    check(
        len(found) >= spec.extend,
        f"vocabulary: extend {spec.extend:,}, but {what} has {len(found):,} candidates that stand in it {spec.min_frequency} times or more",
        hint,
    )


def _words(tokenizer: Tokenizer, texts: Sequence[str], spec: VocabularySpec, what: str) -> list[Candidate]:
    """What words there are to choose from, best first."""
    segmenter = spec.segmenter or tokenizer.segmenter
    found = mining.words(tokenizer, texts, segmenter, spec.min_frequency)
    hint = "lower `extend` or `min_frequency`, or raise `sample`"
    if segmenter == "characters" and mining.chinese(texts):
        hint += "; Chinese words are looked for with `segmenter: jieba`"
    _enough(found, spec, what, hint)
    return found


# --- each kind: changes `content` in place; returns {new token: its old pieces} in the order of the ids --------------------------------


def _wordpiece(
    tokenizer: Tokenizer, texts: Sequence[str], spec: VocabularySpec, content: dict[str, Any], what: str
) -> dict[str, tuple[int, ...]]:
    found = _words(tokenizer, texts, spec, what)
    first, vocab = tokenizer.vocab.size, content["model"]["vocab"]
    alone = mining.reads_alone(content)
    longer = [word for word in vocab if alone and len(word) > 1 and mining.all_han(word)]
    reached = {word for word in longer if len(tokenizer.library.encode(word, add_special_tokens=False).ids) == 1}
    for _ in range(TRIES):
        chosen = found[: spec.extend]
        new = {c.token: first + n for n, c in enumerate(chosen)}
        content["model"]["vocab"] = vocab | new
        if alone:
            _isolate(content, reached | {word for word in new if len(word) > 1 and mining.all_han(word)})
        broken = _breaking(tokenizer, tokenizer.with_content(content), found, set(new))
        if not broken:
            return {c.token: c.pieces for c in chosen}
        found = [c for c in found if c.token not in broken]
        _enough(found, spec, what, "lower `extend` or `min_frequency`, or raise `sample`")
    raise UserError(
        f"vocabulary: {len(broken):,} of the new words leave a rest of other words that the tokenizer cannot spell",
        "lower `extend`, or start from a checkpoint whose vocabulary has the single letters",
    )


def _breaking(old: Tokenizer, new: Tokenizer, found: Sequence[Candidate], chosen: set[str]) -> set[str]:
    """The new words after which the rest of some other word cannot be spelled, though the whole could be before."""
    others = [c.token for c in found if c.token not in chosen and old.vocab.unk not in c.pieces]
    broken = set()
    for word, encoding in zip(others, new.library.encode_batch(others, add_special_tokens=False), strict=True):
        if new.vocab.unk in encoding.ids:
            broken.add(max((word[:n] for n in range(1, len(word)) if word[:n] in chosen), key=len, default=""))
    return broken - {""}


def _isolate(content: dict[str, Any], words: set[str]) -> None:
    """Make the pre-tokenizer cut these Chinese words out whole, and every other Han character alone, as the normaliser did."""
    if not words:
        return
    plain = content["pre_tokenizer"]
    if plain["type"] == "Sequence":  # extended before
        plain = plain["pretokenizers"][-1]
    pattern = f"{_pattern(sorted(words))}|[{HAN}]"
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["normalizer"]["handle_chinese_chars"] = False
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, plain]}


def _pattern(words: Sequence[str]) -> str:
    """A regular expression for the longest of these Han words (sorted) at a place.

    Alternatives are tried one after the other, so there are never more than `BRANCHES`: larger sets are divided by their first
    characters, each part behind a look at the next character.
    """
    firsts = sorted({word[0] for word in words})
    if len(firsts) > BRANCHES:
        size = -(-len(firsts) // BRANCHES)
        groups = [firsts[n : n + size] for n in range(0, len(firsts), size)]
        return "|".join(f"(?=[{''.join(group)}])(?:{_pattern([w for w in words if w[0] in group])})" for group in groups)
    found = []
    for first in firsts:
        rests = [word[1:] for word in words if word[0] == first]
        longer = [rest for rest in rests if rest]
        optional = "?" if "" in rests else ""
        found.append(first + (f"(?:{_pattern(longer)}){optional}" if longer else ""))
    return "|".join(found)


def _bpe(
    tokenizer: Tokenizer, texts: Sequence[str], spec: VocabularySpec, content: dict[str, Any], what: str
) -> dict[str, tuple[int, ...]]:
    found = mining.merges(tokenizer, texts, spec.extend, spec.min_frequency)
    _enough(found, spec, what, "lower `extend` or `min_frequency`, or raise `sample`")
    model, first = content["model"], tokenizer.vocab.size
    for n, merge in enumerate(found):
        model["vocab"][merge.token] = first + n
        model["merges"].append([merge.left, merge.right])
    return {merge.token: merge.pieces for merge in found}


def _unigram(
    tokenizer: Tokenizer, texts: Sequence[str], spec: VocabularySpec, content: dict[str, Any], what: str
) -> dict[str, tuple[int, ...]]:
    found = _words(tokenizer, texts, spec, what)
    vocab = content["model"]["vocab"]
    scores = np.array([score for _, score in vocab])
    total, least = sum(len(e) for e in tokenizer.encode(texts)), float(scores.min())
    unknown = content["model"]["unk_id"]
    penalty = least - 10.0  # what the library takes for an unknown character
    better = []
    for c in found:
        # A score below all others would move the penalty of unknown characters, and with it how old texts are cut.
        score = max(round(float(np.log(c.count / total)), 3), least)
        if score > sum(penalty if piece == unknown else scores[piece] for piece in c.pieces):
            better.append((c, score))
    _enough(better, spec, what, "lower `extend` or `min_frequency`; words that are likelier in pieces are no candidates")
    chosen = better[: spec.extend]
    vocab += [[c.token, score] for c, score in chosen]
    return {c.token: c.pieces for c, _ in chosen}

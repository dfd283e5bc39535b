"""Training a tokenizer on a seeded sample of text: WordPiece, byte-level BPE or Unigram.

The same spec and the same texts, in any order, give the same WordPiece or BPE tokenizer. The sample is chosen by hashes of its
pieces. The trainers of `tokenizers` walk over hash maps, which are in another order in every process; what that changes is mended
where they are called. Only Unigram may still differ between two trainings in a few pieces that are of equal worth.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from pydantic import Field, model_validator
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ziggurat.config import Spec
from ziggurat.errors import check
from ziggurat.text.bare import template as post_processor
from ziggurat.text.boundaries import HAN, HIRAGANA, KATAKANA, LETTER, MARK, Segmenter, character_classes, code_points
from ziggurat.text.tokenizer import Tokenizer, check_text

log = logging.getLogger(__name__)

Template = Literal["bert", "roberta", "gpt2", "t5", "prophetnet", "xlnet"]
PIECE = 4096
"""Characters of a document that are sampled together: a few long documents must not be the whole sample."""

SPECIAL: dict[str, tuple[str, ...]] = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "gpt2": ("<|endoftext|>", "<|pad|>"),
    "t5": ("<pad>", "</s>", "<unk>"),
    "xlnet": ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"),
}
"""Special tokens by template, in the order of the published vocabularies; they get the first ids."""
LAST: dict[str, tuple[str, ...]] = {"t5": tuple(f"<extra_id_{n}>" for n in reversed(range(100)))}
"""Special tokens with the last ids, in their order: T5's sentinels count downwards from the end of the vocabulary."""
ROLES: dict[str, dict[str, str]] = {
    "bert": {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    "roberta": {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    # A pad of its own, unlike the published one: a classifier reads the last token that is no pad, and that is the end token.
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
    "t5": {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"},
    "xlnet": {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "<sep>",
        "pad_token": "<pad>",
        "cls_token": "<cls>",
        "mask_token": "<mask>",
    },
}
SPECIAL["prophetnet"], ROLES["prophetnet"] = SPECIAL["bert"], ROLES["bert"]
SIDES: dict[str, str] = {"xlnet": "left"}
"""Where pads go, if not on the right: XLNet's class token must be the last of the row."""


class TokenizerSpec(Spec):
    """Which tokenizer: one that is there (`path`), or one to train."""

    path: Path | None = None
    """A tokenizer to use as it is: a tokenizer.json, or a folder with one, with vocab.txt, or with vocab.json and merges.txt."""
    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """wordpiece (BERT's; each Han character by itself, so Chinese text gives a character vocabulary), bpe (byte-level), unigram."""
    vocab: int = Field(default=30_000, ge=16)
    """Entries of the vocabulary, special tokens included. A small corpus may give fewer."""
    lowercase: bool = False
    """Lower the text first (wordpiece also strips accents then, as BERT does)."""
    sample: int = Field(default=20_000_000, ge=1)
    """Characters of text to train on, drawn by the seed from all of it."""
    seed: int = 0
    """Chooses the sample."""
    min_frequency: int = Field(default=2, ge=1)
    """How often a character and a merged piece (wordpiece, bpe) must occur in the sample to become an entry."""
    segmenter: Segmenter = "characters"
    """How Chinese words are found for whole-word masking: each character, or jieba's words (extra `zh`)."""

    @model_validator(mode="after")
    def _either(self) -> TokenizerSpec:
        extra = self.model_fields_set - {"path", "segmenter"}
        if self.path is not None and extra:
            raise ValueError(
                f"path brings a ready tokenizer; {', '.join(sorted(extra))} are for training one: leave one of them out"
            )
        return self


def train_tokenizer(spec: TokenizerSpec, texts: Iterator[str], *, template: Template) -> Tokenizer:
    """Train the tokenizer of `spec` on a sample of `texts`, with the special tokens and layout of `template`.

    Templates: "bert" `[CLS] A [SEP] B [SEP]` with segments 0 and 1, "roberta" `<s> A </s></s> B </s>`, "gpt2"
    `A<|endoftext|>B<|endoftext|>`, "t5" `A </s> B </s>`, with 100 sentinels `<extra_id_0>` ... among the entries, "xlnet" `A<sep>B<sep><cls>`
    with segments 0, 1 and 2, "prophetnet" BERT's tokens as `A [SEP] B [SEP]`. With `spec.path` that tokenizer is loaded, and texts and template are not looked at.
    Memory is bounded by `spec.sample`. Raises `UserError` when there is no text or the vocabulary has no room for its letters.
    """
    if spec.path is not None:
        return Tokenizer.load(spec.path, segmenter=spec.segmenter if "segmenter" in spec.model_fields_set else None)
    chosen = sample(texts, spec.sample, spec.seed)
    check(chosen, "tokenizer: there is no text to train on", "check the paths and the text column of the sources")
    special, last = list(SPECIAL[template]), LAST.get(template, ())
    check(
        spec.vocab >= 16 + len(last),
        f"tokenizer: vocab {spec.vocab} is too small for the {len(last)} sentinels of {template}",
        "choose a larger vocab",
    )
    wanted, spec = spec.vocab, spec.model_copy(update={"vocab": spec.vocab - len(last)})
    roles = dict(ROLES[template])
    if template == "gpt2" and spec.kind != "bpe":
        special.append("<unk>")  # bytes spell everything; letters do not
        roles["unk_token"] = "<unk>"
    tokenizer = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}[spec.kind](spec, chosen, special, roles)
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False, lstrip=spec.kind == "bpe" and name == "<mask>") for name in special]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in last])
    vocab = tokenizer.get_vocab()
    ids = {name: vocab[name] for name in special}
    tokenizer.post_processor = _post_processor(template, ids)
    size = len(vocab)
    if size < wanted:
        log.warning("tokenizer: %d entries instead of %d: the sample of text holds no more", size, wanted)
    config = {"padding_side": SIDES[template]} if template in SIDES else None
    return Tokenizer(tokenizer, roles, config=config, segmenter=spec.segmenter)


def sample(texts: Iterable[str], characters: int, seed: int) -> list[str]:
    """About `characters` characters of pieces of the texts: those with the smallest seeded hashes, in that order.

    One pass, and memory for the sample only; which pieces are chosen does not depend on the order of the texts.
    """
    kept: list[tuple[int, str]] = []  # a heap with the largest hash (negated) on top
    total = 0
    key = str(seed).encode()
    for text in texts:
        check_text(text)
        for piece in _pieces(text):
            digest = hashlib.blake2b(piece.encode(), digest_size=8, key=key).digest()
            number = int.from_bytes(digest, "big")
            if total >= characters and number >= -kept[0][0]:
                continue
            heapq.heappush(kept, (-number, piece))
            total += len(piece)
            while total - len(kept[0][1]) >= characters:
                total -= len(heapq.heappop(kept)[1])
    return [piece for _, piece in sorted(kept, reverse=True)]


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most `PIECE` characters, cut at line ends or spaces where there are any."""
    start = 0
    while start < len(text):
        end = min(start + PIECE, len(text))
        if end < len(text):
            for mark in ("\n", " "):
                found = text.rfind(mark, start + PIECE // 2, end)
                if found > 0:
                    end = found + 1
                    break
        piece = text[start:end]
        if not piece.isspace():
            yield piece
        start = end


def _wordpiece(spec: TokenizerSpec, texts: list[str], special: list[str], roles: dict[str, str]) -> tokenizers.Tokenizer:
    normalizer = normalizers.BertNormalizer(lowercase=spec.lowercase)
    letters = _alphabet(spec, (normalizer.normalize_str(text) for text in texts), len(special))
    # The trainer numbers "##x" pieces in the order it meets words, which is that of a hash map, and breaks ties between merges
    # by number. Naming them up front as special tokens pins the numbers; which tokens are special is set right afterwards.
    inner = ["##" + c for c in letters if _joins(c)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=spec.vocab,
        min_frequency=spec.min_frequency,
        special_tokens=[*special, *letters, *inner],
        limit_alphabet=len(letters),
        initial_alphabet=letters,
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token=roles["unk_token"]))
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(texts, trainer)
    tokenizer = tokenizers.Tokenizer(models.WordPiece(_stored(trained)["vocab"], unk_token=roles["unk_token"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _joins(letter: str) -> bool:
    """Whether a letter can stand inside a word: BERT cuts around Han characters and punctuation."""
    return bool(character_classes()[ord(letter)] in (LETTER, HIRAGANA, KATAKANA, MARK))


def _alphabet(spec: TokenizerSpec, texts: Iterable[str], reserved: int) -> list[str]:
    """The characters that become entries, in code point order: all Han characters that occur often enough and find room,
    and of the others no more than an eighth of the vocabulary, so that one page of emoji costs no words.
    """
    counts = np.zeros(0x110000, np.int64)
    for text in texts:
        codes, times = np.unique(code_points(text), return_counts=True)
        counts[codes] += times
    frequent = np.flatnonzero(counts >= spec.min_frequency)
    frequent = frequent[np.argsort(-counts[frequent], kind="stable")]
    visible = [chr(c) for c in frequent.tolist() if not chr(c).isspace()]
    han = character_classes() == HAN
    others = [c for c in visible if not han[ord(c)]][: max(spec.vocab // 8, 64)]
    room = spec.vocab - reserved - sum(1 + _joins(c) for c in others)
    check(room >= 0, f"tokenizer: vocab {spec.vocab} is too small for the letters of the text", "choose a larger vocab")
    characters = [c for c in visible if han[ord(c)]]
    if len(characters) > room:
        log.warning(
            "tokenizer: %d of %d Han characters find no room in vocab %d", len(characters) - room, len(characters), spec.vocab
        )
    return sorted([*others, *characters[:room]])


def _bpe(spec: TokenizerSpec, texts: list[str], special: list[str], roles: dict[str, str]) -> tokenizers.Tokenizer:
    smallest = 256 + len(special)
    check(
        spec.vocab >= smallest,
        f"tokenizer: vocab {spec.vocab} is too small for bpe",
        f"choose at least {smallest}: every byte is an entry",
    )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if spec.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab,
        min_frequency=spec.min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(spec: TokenizerSpec, texts: list[str], special: list[str], roles: dict[str, str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    steps: list[normalizers.Normalizer] = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([*steps, *([normalizers.Lowercase()] if spec.lowercase else [])])
    # Punctuation apart: a piece never reaches over the end of a word.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    # The trainer makes every character an entry; those that do not become one here are kept from it. A fifth stays for words.
    texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    letters = _alphabet(spec, texts, len(special) + spec.vocab // 5)
    rare = dict.fromkeys(map(ord, set().union(*texts) - {" ", *letters}), " ")
    unknown = roles["unk_token"]
    spare = max(32, spec.vocab // 50)
    trainer = trainers.UnigramTrainer(
        vocab_size=spec.vocab + spare, special_tokens=special, unk_token=unknown, show_progress=False, max_piece_length=16
    )
    tokenizer.train_from_iterator([text.translate(rare) for text in texts] if rare else texts, trainer)
    # The trainer adds floats in the order of a hash map, so the last digits of scores change from run to run. They are rounded and
    # the last cut, to the size asked for, is made here. What remains: pieces of equal worth at one of its own cuts.
    pieces = [(piece, round(score, 3)) for piece, score in _stored(tokenizer)["vocab"] if piece not in special]
    pieces.sort(key=lambda entry: (len(entry[0]) > 1, -entry[1], entry[0]))
    pieces = sorted(pieces[: spec.vocab - len(special)], key=lambda entry: (-entry[1], entry[0]))
    vocab = [*((name, 0.0) for name in special), *pieces]
    tokenizer.model = models.Unigram(vocab, unk_id=special.index(unknown), byte_fallback=False)
    return tokenizer


def _post_processor(template: Template, ids: dict[str, int]) -> processors.PostProcessor:
    first, last = {
        "bert": ("[CLS]", "[SEP]"),
        "roberta": ("<s>", "</s>"),
        "gpt2": ("", "<|endoftext|>"),
        "t5": ("", "</s>"),
        "prophetnet": ("", "[SEP]"),
        "xlnet": ("<cls>", "<sep>"),
    }[template]
    return post_processor(template, ids, first, last)


def _stored(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """The model section of tokenizer.json."""
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model

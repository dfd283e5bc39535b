"""Text <-> token ids: one `tokenizers.Tokenizer`, with what the rest of the project must know about it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ziggurat.context import Layout, Vocab
from ziggurat.errors import UserError, check
from ziggurat.text import bare
from ziggurat.text.boundaries import Segmenter, boundaries_and_words

ROLES = ("unk_token", "bos_token", "eos_token", "sep_token", "pad_token", "cls_token", "mask_token")
KEPT = (
    "clean_up_tokenization_spaces",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "chat_template",
    "model_input_names",
)
"""Entries of an imported tokenizer_config.json that do not change ids and are written back."""
CHUNK = 4_000_000
"""Characters encoded at once: bounds the memory of one call."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The N tokens of one text, without special tokens of the layout."""

    ids: np.ndarray
    """int32[N]"""
    words: np.ndarray
    """bool[N]: True at the first token of each word."""
    sentences: np.ndarray
    """bool[N]: True at the first token of each sentence."""
    offsets: np.ndarray
    """int64[N, 2]: the characters [start, end) of the text each token stands for."""
    units: int = 0
    """Words of the text by its characters: one more than `words` says where a token stands for two of them."""

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """A tokenizer, its special tokens by role, its layout; immutable.

    `roles` maps Hugging Face's names (`pad_token`, ...) to tokens; left out, they are found by their well-known names.
    Truncation and padding stored in the tokenizer never act here, but are written back by `save`.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        roles: Mapping[str, str] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        segmenter: Segmenter = "characters",
    ):
        own = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        stored = json.loads(own.to_str())
        self._stored = {key: stored[key] for key in ("truncation", "padding")}
        own.no_truncation()
        own.no_padding()
        self.kind: str = stored["model"]["type"].lower()
        """wordpiece, bpe, unigram or wordlevel"""
        self.segmenter = segmenter
        self._config = dict(config or {})
        self.roles = bare.find_roles(own, roles or {}, stored["model"])
        known = {token.content for token in own.get_added_tokens_decoder().values()}
        own.add_special_tokens([token for token in dict.fromkeys(self.roles.values()) if token not in known])
        self._tokenizer = own

    @classmethod
    def load(cls, path: str | Path, *, segmenter: Segmenter | None = None) -> Tokenizer:
        """Read a `tokenizer.json`, or a folder with one, with a BERT `vocab.txt`, or with `vocab.json` and `merges.txt`.

        Special tokens are those of tokenizer_config.json or special_tokens_map.json beside it, else found by well-known names.
        `segmenter` (how Chinese words are found) is the saved one if not given. Raises `UserError` if there is nothing to load.
        """
        path = Path(path)
        check(path.exists(), f"tokenizer: {path} does not exist", "give a tokenizer.json or a folder that holds one")
        folder = path if path.is_dir() else path.parent
        config = {**bare.read_json(folder / "special_tokens_map.json"), **bare.read_json(folder / "tokenizer_config.json")}
        roles = {role: token for role in ROLES if (token := _content(config.get(role)))}
        tokenizer = bare.read(path, config, roles)
        chosen = segmenter or config.get("word_segmenter", "characters")
        return cls(tokenizer, roles, config={key: config[key] for key in KEPT if key in config}, segmenter=chosen)

    def save(self, folder: str | Path, *, model_max_length: int | None = None, padding_side: str = "") -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `folder`.

        `transformers.AutoTokenizer.from_pretrained(folder)` then gives the same ids, whatever the model type of a config.json beside
        them. `model_max_length` is the longest input of the model in tokens, special ones included, `padding_side` (left, right) where it
        puts pads (default of both: as imported).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Not the class that belongs to the model type: RobertaTokenizer and BertTokenizer rebuild normaliser, pre-tokenizer and
        # template from the bare vocabulary and drop what tokenizer.json says. This name (also of transformers 4) takes it as it is.
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= self._config | self.roles
        # GPT-2 adds a token embedding for every segment id it is given: they are named only where the layout has two.
        config.setdefault("model_input_names", ["input_ids", *["token_type_ids"] * self._two_segments(), "attention_mask"])
        if padding_side:
            config["padding_side"] = padding_side
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        if self.segmenter != "characters":
            config["word_segmenter"] = self.segmenter
        for name, content in (
            ("tokenizer.json", self._json() | self._stored),
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", self.roles),
        ):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (json.dumps(self._json() | self._stored), self.roles, self._config, self.segmenter)

    def __len__(self) -> int:
        return self.vocab.size

    @functools.cached_property
    def vocab(self) -> Vocab:
        """The numbers objectives need. Without a padding token the end token pads. `UserError` if there is neither."""
        ids = {role: self._id(token) for role, token in self.roles.items()}
        names = {
            token.content: number for number, token in sorted(self._tokenizer.get_added_tokens_decoder().items()) if token.special
        }
        end = ids.get("eos_token", ids.get("sep_token"))
        pad = ids.get("pad_token", end)
        if pad is None:
            raise UserError(
                "tokenizer: there is neither a padding nor an end token",
                "name a pad_token in the tokenizer_config.json beside it",
            )
        return Vocab(
            # Not the number of entries: a vocab.txt with a repeated line has fewer entries than ids.
            size=max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
            pad=pad,
            mask=ids.get("mask_token"),
            unk=ids.get("unk_token"),
            end=end,
            special=tuple(sorted(set(names.values()))),
            names=names,
        )

    @functools.cached_property
    def layout(self) -> Layout:
        """Where special tokens stand, read off encodings of a single text and of a pair.

        `UserError` if the template is not `first A last` and `first A between B last` with one segment number for A and one for B,
        and at most one more for the last token.
        """
        word = self._probe_word()
        single, pair = self._tokenizer.encode(word), self._tokenizer.encode(word, word)
        ids, owners = pair.ids, pair.sequence_ids
        (a, a_end), (b, b_end) = (_span(owners, 0), _span(owners, 1))
        types = list(pair.type_ids)
        one, two = types[0], types[b]
        own = types[-1] if b_end < len(ids) and types[-1] != two and types[-1] == single.type_ids[-1] else None
        layout = Layout(tuple(ids[:a]), tuple(ids[a_end:b]), tuple(ids[b_end:]), segments=(one, two), summary=own)
        regular = a < a_end <= b < b_end and single.ids == [*layout.first, *ids[a:a_end], *layout.last]
        expected = [one] * b + [two] * (len(ids) - b)
        if own is not None:
            expected[-1] = own
        if not regular or types != expected:
            raise UserError(
                f"tokenizer: cannot use its template, which makes {single.tokens} of one text and {pair.tokens} "
                f"(segments {pair.type_ids}) of two",
                "give it one of the form: first A last, first A between B last, with one segment number for each text",
            )
        if not (layout.first or layout.between or layout.last):
            return Layout()  # no template: the library numbers the second text 1 by itself, and GPT-2 has no such segments
        return layout

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the canonical tokenizer.json: equal exactly when ids and word starts are cut alike.

        Truncation and padding do not count; a segmenter other than `characters` does.
        """
        content = self._json()
        del content["truncation"], content["padding"]
        if self.segmenter != "characters":
            content["word_segmenter"] = self.segmenter
        return hashlib.sha256(
            json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        ).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Texts -> tokens, word and sentence starts. No special tokens of the layout are added.

        A special token spelled out in a text ("[SEP]") becomes that token, as in `transformers`.
        """
        if isinstance(texts, str):
            raise TypeError("encode takes a sequence of texts, not one text")
        return [encoded for chunk in _chunks(texts) for encoded in self._encode(chunk)]

    def _encode(self, texts: Sequence[str]) -> Iterator[Encoded]:
        try:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                check_text(text)
            raise
        rows = [encoding.ids for encoding in encodings]
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        total = int(counts.sum())
        ids = np.fromiter(chain.from_iterable(rows), np.int32, total)
        spans = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
        offsets = np.fromiter(spans, np.int64, 2 * total).reshape(total, 2)
        (words, sentences), units = boundaries_and_words(texts, offsets, counts, self.segmenter)
        ends = np.cumsum(counts).tolist()
        for start, end, count in zip([0, *ends], ends, units.tolist()):
            yield Encoded(ids[start:end], words[start:end], sentences[start:end], offsets[start:end], count)

    def decode(self, ids: Sequence[int] | np.ndarray, *, special: bool = False) -> str:
        """Token ids -> text; special tokens are left out unless `special`."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=not special)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The vocabulary entry of each id, as the model spells it (`##ing`, `Ġthe`); `?` for an id it does not have."""
        return [(self._tokenizer.id_to_token(int(i)) or "?") if i >= 0 else f"<vector {-int(i)}>" for i in ids]

    def add_tokens(self, names: Sequence[str]) -> Tokenizer:
        """A tokenizer that has `names` as special tokens too; those it lacks get the next ids, in this order."""
        other = tokenizers.Tokenizer.from_str(json.dumps(self._json() | self._stored))
        other.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
        return Tokenizer(other, self.roles, config=self._config, segmenter=self.segmenter)

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The tokenizer itself; to be read only."""
        return self._tokenizer

    def content(self) -> dict[str, Any]:
        """What tokenizer.json says, without truncation and padding; a copy."""
        return self._json()

    def with_content(self, content: Mapping[str, Any]) -> Tokenizer:
        """A tokenizer of another tokenizer.json, with this one's roles, truncation and padding."""
        return _restore(json.dumps({**content, **self._stored}), self.roles, self._config, self.segmenter)

    def _json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return content

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        assert number is not None, token
        return int(number)

    def _two_segments(self) -> bool:
        try:
            return self.layout.segments[0] != self.layout.segments[1] or self.layout.summary is not None
        except UserError:
            return True

    def _probe_word(self) -> str:
        """A text of at least one ordinary token; a vocabulary without an unknown token may drop any given letter."""
        ordinary = (self._tokenizer.decode([i]) for i in range(self._tokenizer.get_vocab_size()))
        for word in chain(("a", "的"), ordinary):
            if word.strip() and self._tokenizer.encode(word, add_special_tokens=False).ids:
                return word
        raise UserError("tokenizer: no text gives a token", "train or choose another tokenizer")


def _span(owners: Sequence[int | None], text: int) -> tuple[int, int]:
    """From the first token of `text` (0 or 1) to behind its last; (0, 0) if it has none."""
    at = [i for i, owner in enumerate(owners) if owner == text]
    return (at[0], at[-1] + 1) if at else (0, 0)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        _check_type(text)
        chunk.append(text)
        characters += len(text)
        if characters >= CHUNK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _check_type(text: object) -> None:
    if not isinstance(text, str):
        raise UserError(f"cannot tokenise {text!r}: it is not text", "check the columns the source names")


def check_text(text: str) -> None:
    """Raise `UserError` for text that no UTF-8 file could hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = text[max(error.start - 20, 0) : error.start]
        raise UserError(
            f"cannot tokenise a text: it is not valid Unicode after {near!r} (half of a surrogate pair)",
            "repair or drop that document",
        ) from None


def _content(token: Any) -> str:
    """The text of a special token in a config: a string, or an object with `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _restore(content: str, roles: Mapping[str, str], config: Mapping[str, Any], segmenter: Segmenter) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(content), roles, config=config, segmenter=segmenter)

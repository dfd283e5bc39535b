"""Tokenizers from the files that models are published with, and special tokens from their names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from ziggurat.errors import UserError, check

WELL_KNOWN: Mapping[str, tuple[str, ...]] = {
    "unk_token": ("[UNK]", "<unk>", "<|endoftext|>"),
    "bos_token": ("<s>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|endoftext|>"),
    "sep_token": ("[SEP]", "<sep>", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<cls>", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""The names a role's token goes by, tried in this order."""


def find_roles(tokenizer: tokenizers.Tokenizer, given: Mapping[str, str], model: Mapping[str, Any]) -> dict[str, str]:
    """Role -> special token: those `given` that the vocabulary has, and well-known names for the rest.

    When some are given, only padding, mask and unknown token are looked for beyond them: that a family has no
    `cls_token` may be meant. `model` is the model section of tokenizer.json.
    """
    roles = {role: token for role, token in given.items() if tokenizer.token_to_id(token) is not None}
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    unknown = model.get("unk_token")
    if unknown is None and model.get("unk_id") is not None:
        unknown = model["vocab"][model["unk_id"]][0]
    if unknown and tokenizer.token_to_id(unknown) is not None:
        roles.setdefault("unk_token", unknown)
    wanted = ("pad_token", "mask_token", "unk_token") if any(role in given for role in WELL_KNOWN) else WELL_KNOWN
    for role in wanted:
        for name in WELL_KNOWN[role]:
            # Where tokens are declared special, a look-alike among the ordinary ones ("<s>" in HTML) is not.
            if name in special or (not special and tokenizer.token_to_id(name) is not None):
                roles.setdefault(role, name)
                break
    return {role: roles[role] for role in WELL_KNOWN if role in roles}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}", "fetch or write the file again") from None
    check(isinstance(content, dict), f"{path} does not hold a JSON object", "fetch or write the file again")
    return dict(content)


def read(path: Path, config: Mapping[str, Any], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    """The tokenizer of a file or folder; `config` is what tokenizer_config.json says. Raises `UserError`."""
    if path.is_file():
        if path.suffix == ".txt":
            return from_vocab_txt(path, config, roles)
        return _from_json(path)
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json")
    if (path / "vocab.txt").is_file():
        return from_vocab_txt(path / "vocab.txt", config, roles)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return from_merges(path / "vocab.json", path / "merges.txt", config)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise UserError(
        f"tokenizer: {path} holds no tokenizer (found: {found})",
        "it needs tokenizer.json, or vocab.txt, or vocab.json with merges.txt; a SentencePiece model becomes a tokenizer.json by "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers",
    )


def _from_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises the bare class
        raise UserError(
            f"tokenizer: {path} is not a tokenizer.json: {error}", "give the file a fast tokenizer was saved to"
        ) from None


def from_vocab_txt(path: Path, config: Mapping[str, Any], roles: Mapping[str, str]) -> tokenizers.Tokenizer:
    """BERT's WordPiece from one piece a line (the line number is the id). Honours do_lower_case, strip_accents, tokenize_chinese_chars.

    Without do_lower_case: the text is lowered if no piece has an upper-case ASCII letter.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            vocab = {line.rstrip("\n"): number for number, line in enumerate(lines)}
    except UnicodeDecodeError:
        raise UserError(f"tokenizer: {path} is not UTF-8 text", "give a vocab.txt with one piece a line") from None
    names = {role: roles.get(role, WELL_KNOWN[role][0]) for role in ("unk_token", "cls_token", "sep_token")}
    missing = [name for name in names.values() if name not in vocab]
    check(not missing, f"tokenizer: {path} lacks {', '.join(missing)}", "a BERT vocab.txt has [PAD] [UNK] [CLS] [SEP] [MASK]")
    lowercase = config.get("do_lower_case")
    if lowercase is None:
        lowercase = not any(re.search("[A-Z]", piece) for piece in vocab if not re.fullmatch(r"\[.*\]|<.*>", piece))
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(lowercase),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [name for names in WELL_KNOWN.values() for name in names if name in vocab and name.startswith("[")]
    tokenizer.add_special_tokens(
        sorted({*special, *names.values(), *(r for r in roles.values() if r in vocab)}, key=vocab.__getitem__)
    )
    tokenizer.post_processor = template(
        "bert", {name: vocab[name] for name in names.values()}, names["cls_token"], names["sep_token"]
    )
    return tokenizer


def from_merges(vocab: Path, merges: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE: RoBERTa's if the vocabulary has `<s>` and `</s>`, else GPT-2's (which adds no special tokens)."""
    entries = read_json(vocab)
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the library raises the bare class
        raise UserError(f"tokenizer: {vocab} and {merges} do not fit: {error}", "both files belong to one tokenizer") from None
    tokenizer = tokenizers.Tokenizer(model)
    space = bool(config.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    if "<s>" in entries and "</s>" in entries:
        names = [name for name in ("<s>", "<pad>", "</s>", "<unk>") if name in entries]
        tokenizer.add_special_tokens(names)
        if "<mask>" in entries:  # as published: the mask takes the space before it
            tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", entries["</s>"]), ("<s>", entries["<s>"]), trim_offsets=True, add_prefix_space=space
        )
    else:
        if "<|endoftext|>" in entries:
            tokenizer.add_special_tokens(["<|endoftext|>"])
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


TEMPLATES: Mapping[str, tuple[str, str]] = {
    "bert": ("{first}:0 $A:0 {last}:0", "{first}:0 $A:0 {last}:0 $B:1 {last}:1"),
    "roberta": ("{first}:0 $A:0 {last}:0", "{first}:0 $A:0 {last}:0 {last}:0 $B:0 {last}:0"),
    "gpt2": ("$A:0 {last}:0", "$A:0 {last}:0 $B:0 {last}:0"),
    "t5": ("$A:0 {last}:0", "$A:0 {last}:0 $B:0 {last}:0"),
    "prophetnet": ("$A:0 {last}:0", "$A:0 {last}:0 $B:0 {last}:0"),
    "xlnet": ("$A:0 {last}:0 {first}:2", "$A:0 {last}:0 $B:1 {last}:1 {first}:2"),
}
"""Where special tokens stand around one text and around two, with segment numbers. `first` is the class token, which in XLNet
stands last."""


def template(name: str, ids: Mapping[str, int], first: str, last: str) -> processors.TemplateProcessing:
    """The post-processor of one of `TEMPLATES`."""
    single, pair = (t.format(first=first, last=last) for t in TEMPLATES[name])
    used = [(token, ids[token]) for token in dict.fromkeys((first, last)) if token in ids]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)

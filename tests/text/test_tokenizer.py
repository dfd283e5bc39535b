"""Loading what people have, and what the rest of the project is told about it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from ziggurat.context import Layout
from ziggurat.errors import UserError
from ziggurat.text.tokenizer import Tokenizer

PIECES = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "的", "中", "国", "the", "##s", "cat", ",", "。"]


def vocab_txt(folder: Path, pieces: list[str], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(p + "\n" for p in pieces), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def bpe_files(folder: Path, special: list[str]) -> Path:
    entries = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġw", "<mask>"][: None if "<s>" in special else -1]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(entries)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nĠ w\n", encoding="utf-8")
    return folder


def test_bare_vocab_txt(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(vocab_txt(tmp_path / "bert", PIECES))
    assert tokenizer.pieces(tokenizer.encode(["The CATs, 中国的x。"])[0].ids) == [
        "the",
        "cat",
        "##s",
        ",",
        "中",
        "国",
        "的",
        "[UNK]",
        "。",
    ]
    assert tokenizer.layout == Layout((3,), (4,), (4,), (0, 1))
    vocab = tokenizer.vocab
    assert (vocab.size, vocab.pad, vocab.unk, vocab.end, vocab.mask, vocab.special) == (14, 0, 2, 4, 5, (0, 2, 3, 4, 5))
    assert tokenizer.decode([3, 9, 11, 10, 4]) == "the cats"
    assert Tokenizer.load(tmp_path / "bert" / "vocab.txt").fingerprint == tokenizer.fingerprint


def test_case_is_configured_or_inferred(tmp_path: Path) -> None:
    cased = Tokenizer.load(vocab_txt(tmp_path / "a", [*PIECES, "The"]))
    assert cased.pieces(cased.encode(["The"])[0].ids) == ["The"]
    told = Tokenizer.load(vocab_txt(tmp_path / "b", [*PIECES, "The"], do_lower_case=True))
    assert told.pieces(told.encode(["The"])[0].ids) == ["the"]
    kept = Tokenizer.load(vocab_txt(tmp_path / "c", PIECES, do_lower_case=False))
    assert kept.pieces(kept.encode(["The"])[0].ids) == ["[UNK]"]


def test_bare_byte_level_bpe(tmp_path: Path) -> None:
    gpt2 = Tokenizer.load(bpe_files(tmp_path, ["<|endoftext|>"]))
    assert gpt2.pieces(gpt2.encode(["he wa"])[0].ids) == ["he", "Ġw", "a"]
    assert gpt2.layout == Layout() and gpt2.vocab.pad == gpt2.vocab.end == 0 and gpt2.vocab.mask is None
    roberta = Tokenizer.load(bpe_files(tmp_path, ["<s>", "<pad>", "</s>", "<unk>"]))
    assert roberta.layout == Layout((0,), (2, 2), (2,), (0, 0))
    assert (roberta.vocab.pad, roberta.vocab.unk, roberta.vocab.end, roberta.vocab.mask) == (1, 3, 2, 262)
    text = "wé中 x。"
    assert roberta.decode(roberta.encode([text])[0].ids) == text


def test_layouts_are_read_off_or_refused() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2, "<pad>": 3}, unk_token="a"))

    def layout(single: str, pair: str) -> Layout:
        inner.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[("<s>", 1), ("</s>", 2)])
        return Tokenizer(inner).layout

    assert layout("$A </s> <s>", "$A </s> $B:1 </s>:1 <s>:1") == Layout((), (2,), (2, 1), (0, 1))
    assert layout("<s> $A", "<s> $A <s> $B:1") == Layout((1,), (1,), (), (0, 1))
    for single, pair in (("<s> $A", "$A $B"), ("$A <s>", "$A $B <s>:2"), ("$A", "$B $A")):
        with pytest.raises(UserError, match="template"):
            layout(single, pair)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(UserError, match=r"spiece\.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"lacks \[CLS\]"):
        Tokenizer.load(vocab_txt(tmp_path / "v", ["[UNK]", "[SEP]"]))
    (tmp_path / "v" / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        Tokenizer.load(tmp_path / "v")
    (tmp_path / "v" / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        Tokenizer.load(tmp_path / "v")
    endless = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="neither a padding nor an end"):
        _ = Tokenizer(endless).vocab


def test_text_that_cannot_be_encoded(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(vocab_txt(tmp_path / "bert", PIECES))
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode(["fine", "half \ud83d of it"])
    with pytest.raises(UserError, match="not text"):
        tokenizer.encode([None])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        tokenizer.encode("one text")


def test_encoding_does_not_depend_on_the_batch(trained: Callable[[str, str], Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = trained("bpe", "gpt2")
    texts = ["Hello there. You", "", "我喜欢北京。他也是", " ", "x"]
    together = tokenizer.encode(texts)
    monkeypatch.setattr("ziggurat.text.tokenizer.CHUNK", 3)
    for e, again, alone in zip(together, tokenizer.encode(texts), [tokenizer.encode([t])[0] for t in texts], strict=True):
        assert (e.ids.dtype, e.words.dtype, e.offsets.dtype) == (np.int32, bool, np.int64)
        for name in ("ids", "words", "sentences", "offsets"):
            assert getattr(e, name).tolist() == getattr(again, name).tolist() == getattr(alone, name).tolist()
    assert [len(e) for e in together][1] == 0 and tokenizer.encode([]) == []
    assert [int(e.sentences.sum()) for e in together] == [2, 0, 2, 1, 1]


def test_added_tokens_and_identity(trained: Callable[[str, str], Tokenizer], tmp_path: Path) -> None:
    base = trained("wordpiece", "bert")
    size = base.vocab.size
    more = base.add_tokens(["[X]", "[MASK]", "[Y]"])
    assert base.vocab.size == size and more.vocab.size == size + 2
    assert more.vocab.names["[X]"] == size and more.vocab.names["[Y]"] == size + 1
    assert size in more.vocab.special and size not in more.vocab.ordinary()
    assert more.encode(["a [X] b"])[0].ids[1] == size
    assert "[X]" not in more.decode(more.encode(["a [X] b"])[0].ids) and "[X]" in more.decode([size], special=True)
    assert more.layout == base.layout and more.fingerprint != base.fingerprint == base.add_tokens([]).fingerprint
    assert pickle.loads(pickle.dumps(more)).fingerprint == more.fingerprint
    jieba = Tokenizer(base._tokenizer, base.roles, segmenter="jieba")
    jieba.save(tmp_path)
    assert Tokenizer.load(tmp_path).segmenter == "jieba" and jieba.fingerprint != base.fingerprint
    assert Tokenizer.load(tmp_path, segmenter="characters").fingerprint == base.fingerprint

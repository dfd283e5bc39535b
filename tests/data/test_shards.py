"""Shards: what is written is read back, memory stays flat, and nothing unfinished or damaged is trusted."""

from __future__ import annotations

import errno
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whitespace import Encoded, Whitespace

from ziggurat.data import writing as module
from ziggurat.data.shards import Shards
from ziggurat.data.writing import ShardWriter, write_shards
from ziggurat.errors import UserError
from ziggurat.types import Document, Mark

tokenizer = Whitespace()


def texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{x}" for x in rng.integers(0, 9999, rng.integers(1, 60))) for _ in range(n)]


def documents(n: int) -> Iterator[Document]:
    return (Document({"text": text}, f"file:{i}") for i, text in enumerate(texts(n)))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    lines = [*texts(50), "Two Sentences are here. And more-than-that 汉字 é", "  ", "~", "last"]
    shards = write_shards(tmp_path / "s", (Document({"text": t}) for t in lines), tokenizer, source="me")
    kept = [t for t in lines if t.strip(" ~")]
    assert len(shards) == len(kept) and shards.meta["dropped"] == 2 and shards.meta["source"] == "me"
    order = np.random.default_rng(0).permutation(len(kept))
    read = shards.read(order)
    part = read.parts["text"]
    for j, d in enumerate(order):
        (wanted,) = tokenizer.encode([kept[d]])
        lo, hi = part.bounds[j], part.bounds[j + 1]
        assert part.ids[lo:hi].tolist() == wanted.ids.tolist()
        assert part.words[lo:hi].tolist() == wanted.words.tolist()
        assert part.sentences[lo:hi].tolist() == wanted.sentences.tolist()
        assert shards.bytes[d] == len(kept[d].encode())
    assert part.words.dtype == part.sentences.dtype == bool and part.ids.dtype == np.int32
    assert shards.lengths().tolist() == [len(e.ids) for e in tokenizer.encode(kept)]
    assert shards.tokens == shards.lengths().sum() and read.fields == {}
    assert shards.lengths("text", order[:3]).tolist() == np.diff(part.bounds)[:3].tolist()


def test_pairs_and_labels_stay_together(tmp_path: Path) -> None:
    rows = [Document({"text": f"a{i} " * i, "pair": "b " * (i % 3)}, f"f:{i}", fields={"label": i / 2}) for i in range(9)]
    read = write_shards(tmp_path / "s", rows, tokenizer).read(np.array([7, 2, 0]))  # document 0 has no token at all
    assert read.fields == {"id": ["f:8", "f:3", "f:1"], "label": [4.0, 1.5, 0.5]}
    assert np.diff(read.parts["text"].bounds).tolist() == [8, 3, 1]
    assert np.diff(read.parts["pair"].bounds).tolist() == [2, 0, 1]


def test_marks_cover_the_tokens_they_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)  # every document is a chunk of its own: marks begin late
    rows = [Document({"text": "no marks"}, "f:1", fields={"x": 1})]
    text = "one longerword three"
    rows += [Document({"text": text}, "f:2", (Mark(0, 3, "B"), Mark(4, 14, "I"), Mark(12, 13, "B")), {"x": 2})]
    read = write_shards(tmp_path / "s", rows, tokenizer).read(np.array([1, 0]))
    part = read.parts["text"]
    assert part.marks.tolist() == [[0, 1, 0], [1, 3, 1], [2, 3, 0]] and part.labels == ("B", "I")
    assert part.mark_bounds.tolist() == [0, 3, 3] and read.fields["id"] == ["f:2", "f:1"]
    assert Shards.open(tmp_path / "s").ids(np.array([1])) == ["f:2"]


@pytest.mark.parametrize("mark", [Mark(4, 5, "X"), Mark(2, 2, "X")])
def test_a_mark_without_a_token_names_its_document(tmp_path: Path, mark: Mark) -> None:
    with pytest.raises(UserError, match=r"f:7: the mark 'X'.*covers no token"):
        write_shards(tmp_path / "s", [Document({"text": "abc ~ d"}, "f:7", (mark,))], tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_word_outside_all_spans_may_be_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marks = (Mark(0, 3, "B-X"), Mark(4, 5, "O"), Mark(6, 7, "O"))
    document = Document({"text": "abc ~ d"}, "f:7", marks)
    part = write_shards(tmp_path / "s", [document], tokenizer).read(np.array([0])).parts["text"]
    assert part.marks.tolist() == [[0, 1, 0], [1, 2, 1]] and part.labels == ("B-X", "O")
    assert module.with_tokens(document, tokenizer) == [True, False, True]
    assert "left out 1 word(s) tagged O that the tokenizer drops, as '~' (f:7)" in caplog.text
    with pytest.raises(UserError, match="covers no token"):
        write_shards(tmp_path / "t", [Document({"text": "abc ~ d"}, "f:7", (Mark(4, 4, "O"),))], tokenizer)


def test_keys_are_of_the_text_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["x y", *texts(300), "x y", "z", "x y"]
    one = write_shards(tmp_path / "a", (Document({"text": t}) for t in lines), tokenizer)
    module._number_duplicates(tmp_path / "a" / "keys.bin", len(lines))  # nothing is left to number
    monkeypatch.setattr(module, "CHUNK", 50)
    other = write_shards(tmp_path / "b", (Document({"text": t}) for t in reversed(lines)), tokenizer)
    assert len(set(one.keys.tolist())) == len(lines)
    assert set(one.keys.tolist()) == set(other.keys.tolist())
    assert dict(zip(lines, one.keys.tolist(), strict=True))["z"] == dict(zip(reversed(lines), other.keys.tolist()))["z"]


def test_numbering_duplicates_slice_by_slice_is_the_same(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).integers(0, 50, 1000).astype("<u8") << np.uint64(58)
    for name in ("a", "b"):
        keys.tofile(tmp_path / name)
    module._number_duplicates(tmp_path / "a", 1000)
    module._number_duplicates(tmp_path / "b", 1000, at_once=37)
    found = np.fromfile(tmp_path / "a", "<u8")
    assert np.array_equal(found, np.fromfile(tmp_path / "b", "<u8"))
    assert len(set(found.tolist())) == 1000


def test_wide_vocabularies_get_four_bytes(tmp_path: Path) -> None:
    class Wide(Whitespace):
        vocab = Whitespace.vocab.__class__(size=250_000, pad=0)

        def _one(self, text: str) -> Encoded:
            return super()._one(text)._replace(ids=np.full(len(super()._one(text).ids), 200_000, np.int32))

    shards = write_shards(tmp_path / "s", documents(3), Wide())
    assert set(shards.read(np.arange(3)).parts["text"].ids.tolist()) == {200_000}


def test_rows_with_other_columns_are_an_error(tmp_path: Path) -> None:
    rows = [Document({"text": "a"}, "f:1", fields={"label": 1}), Document({"text": "b"}, "f:2")]
    with pytest.raises(UserError, match="f:2 has"):
        write_shards(tmp_path / "s", rows, tokenizer)


def test_an_empty_source_is_finished_but_empty(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [], tokenizer)
    assert len(shards) == shards.tokens == len(shards.bytes) == 0


def test_an_interrupted_writer_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    good = write_shards(tmp_path / "s", documents(5), tokenizer)

    def broken() -> Iterator[Document]:
        yield from documents(4100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "s", broken(), tokenizer)
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "new", broken(), tokenizer)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert len(Shards.open(tmp_path / "s")) == len(good)
    killed = ShardWriter(tmp_path / "killed", tokenizer).__enter__()  # as after kill -9: nothing is cleaned up
    killed.add(next(documents(1)))
    with pytest.raises(UserError, match="no finished shards"):
        Shards.open(tmp_path / "killed")
    assert len(write_shards(tmp_path / "killed", documents(3), tokenizer)) == 3


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ShardWriter, *args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    good = write_shards(tmp_path / "s", documents(5), tokenizer)
    monkeypatch.setattr(ShardWriter, "_append", full)
    with pytest.raises(UserError, match="disk is full"):
        write_shards(tmp_path / "s", documents(5), tokenizer)
    good.verify()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_damage_is_found(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", documents(20), tokenizer)
    shards.verify()
    for name in shards.meta["files"]:
        file = tmp_path / "s" / name
        original = file.read_bytes()
        flipped = bytearray(original)
        flipped[len(flipped) // 2] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            Shards.open(tmp_path / "s").verify()
        file.write_bytes(original[:-1])
        with pytest.raises(UserError, match=f"{name} has .* bytes instead of"):
            Shards.open(tmp_path / "s")
        file.unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            Shards.open(tmp_path / "s")
        file.write_bytes(original)
    (tmp_path / "s" / "meta.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Shards.open(tmp_path / "s")
    (tmp_path / "s" / "meta.json").write_text(json.dumps({**shards.meta, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Shards.open(tmp_path / "s")


def test_another_tokenizer_is_an_error(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", documents(2), tokenizer)
    with pytest.raises(UserError, match="another tokenizer"):
        Shards.open(tmp_path / "s", "other")


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1 << 13)

    class Letters(Whitespace):
        def _one(self, text: str) -> Encoded:
            n = len(text)
            return Encoded(np.full(n, 5, np.int32), np.ones(n, bool), np.ones(n, bool), np.zeros((n, 2), np.int64))

    def peak(n: int) -> int:
        tracemalloc.start()
        write_shards(tmp_path / "s", (Document({"text": f"{i} " * 100}) for i in range(n)), Letters())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(300), peak(3000)
    assert large < small + 200_000, (small, large)


def test_one_huge_text_is_tokenized_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(texts(200))
    (whole,) = tokenizer.encode([text])
    longest = 0

    class Watched(Whitespace):
        def encode(self, texts: Any) -> list[Encoded]:
            nonlocal longest
            longest = max([longest, *map(len, texts)])
            return super().encode(texts)

    monkeypatch.setattr(module, "CHUNK", 1000)
    shards = write_shards(tmp_path / "s", [Document({"text": text}), Document({"text": "short"})], Watched())
    assert longest <= 2000 < len(text) and len(shards) == 2
    read = shards.read(np.array([0])).parts["text"]
    assert read.ids.tolist() == whole.ids.tolist() and read.words.tolist() == whole.words.tolist()


def test_lists_keep_each_text_apart(tmp_path: Path) -> None:
    rows = [
        Document({"text": "who ?"}, "f:1", fields={"label": 0}, lists={"choices": ("he", "she or it", "a-b")}),
        Document({"text": "what ?"}, "f:2", fields={"label": 1}, lists={"choices": ("this", "that")}),
    ]
    shards = write_shards(tmp_path / "s", rows, tokenizer)
    assert shards.parts == ("text", "choices")
    order = np.array([1, 0])
    part = shards.read(order).parts["choices"]
    for d, row in enumerate([rows[1], rows[0]]):
        marks = part.marks[part.mark_bounds[d] : part.mark_bounds[d + 1]]
        own = part.ids[part.bounds[d] : part.bounds[d + 1]]
        alone = [e.ids.tolist() for e in tokenizer.encode(row.lists["choices"])]
        assert [own[a:b].tolist() for a, b, _ in marks] == alone and marks[-1, 1] == len(own)
    other = [rows[0], Document({"text": "who ?"}, "f:3", fields={"label": 0}, lists={"choices": ("he", "she")})]
    assert len(set(write_shards(tmp_path / "t", other, tokenizer).keys.tolist())) == 2
    with pytest.raises(UserError, match=r"f:9: '~' among its choices has no token"):
        write_shards(tmp_path / "u", [Document({"text": "a"}, "f:9", lists={"choices": ("a", "~")})], tokenizer)
    with pytest.raises(UserError, match="same columns"):
        write_shards(tmp_path / "v", [rows[0], Document({"text": "a"}, "f:9", fields={"label": 0})], tokenizer)

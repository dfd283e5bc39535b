"""Sources: formats, columns, splits, and what happens to input that is not as it should be."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import lzma
import os
import re
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ziggurat.data.docstrings import backticks, docstrings
from ziggurat.data.reading import Reading
from ziggurat.data.rows import Columns, join_words
from ziggurat.data.sources import DocstringBackticks, Docstrings, Files, Hub, Source, documents, fingerprint, labelled, splits
from ziggurat.errors import UserError

ROWS: list[dict[str, Any]] = [{"text": f"row {n} says 你好 \u2028 and “more”, {n * 7919}", "label": n % 3} for n in range(40)]


def source(path: Path | list[str], **more: Any) -> Any:
    paths = path if isinstance(path, list) else str(path)
    return TypeAdapter(Source).validate_python({"path": paths, "valid": 0, **more})


def read(path: Path | list[str], split: Any = "train", reading: Any = None, **more: Any) -> list[str]:
    return [d.texts["text"] for d in documents(source(path, **more), split, reading)]


def write(path: Path, data: bytes) -> Path:
    match path.suffix:
        case ".gz":
            data = gzip.compress(data, mtime=0)
        case ".xz":
            data = lzma.compress(data)
        case ".zst":
            import zstandard

            half = len(data) // 2  # two frames, as parallel compressors write
            data = zstandard.ZstdCompressor().compress(data[:half]) + zstandard.ZstdCompressor().compress(data[half:])
    path.write_bytes(data)
    return path


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


# ---------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "txt"])
def test_every_format_gives_the_same_text(tmp_path: Path, kind: str, ending: str) -> None:
    texts = [row["text"] for row in ROWS]
    if kind == "jsonl":
        data = jsonl(ROWS)
    elif kind == "txt":
        data = "\n\n".join(texts).encode()
    else:
        plain = tmp_path / "plain"
        with open(plain, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            writer.writerow(["label", "text"])
            writer.writerows([row["label"], row["text"]] for row in ROWS)
        data = plain.read_bytes()
    path = write(tmp_path / f"a.{kind}{ending}", data)
    assert read(path) == texts


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({k: [row[k] for row in ROWS] for k in ROWS[0]}), tmp_path / "a.parquet")
    found = list(documents(source(tmp_path / "a.parquet", columns={"label": "label"})))
    assert [(d.texts["text"], d.fields["label"]) for d in found] == [(r["text"], r["label"]) for r in ROWS]
    broken = (tmp_path / "a.parquet").read_bytes()[:-20]
    (tmp_path / "a.parquet").write_bytes(broken)
    with pytest.raises(UserError, match=r"a\.parquet.*damaged"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("file", ["a\nb\n\n\nc"]), ("line", ["a", "b", "c"]), ("blank", ["a\nb", "c"])],
)
def test_documents_of_a_txt_file(tmp_path: Path, mode: str, expected: list[str]) -> None:
    path = write(tmp_path / "a.txt", b"\n\na\r\nb\n \n\nc\n\n")
    assert [t.replace("\n \n", "\n\n") for t in read(path, txt=mode)] == expected
    assert next(documents(source(path, txt=mode))).id == f"{path}:3"


def test_a_large_txt_file_is_cut_and_not_held(tmp_path: Path) -> None:
    line = "x" * 99
    path = write(tmp_path / "a.txt", (line + "\n").encode() * 5000)
    found = read(path, txt="file")
    assert len(found) > 5 and max(map(len, found)) < 60_000
    assert "\n".join(found).split("\n") == [line] * 5000


def test_folders_globs_and_lists_are_read_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ["b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden.jsonl", "README.md"]:
        write(tmp_path / name, jsonl([{"text": name}]))
    assert read(tmp_path) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert read(tmp_path / "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert read([f"{tmp_path}/b.jsonl", f"{tmp_path}/**/*.jsonl"]) == ["b.jsonl", "a.jsonl", "sub/c.jsonl"]
    assert read(tmp_path, limit=2) == ["a.jsonl", "b.jsonl"]


def test_linked_folders_are_searched_and_each_folder_once(tmp_path: Path) -> None:
    """A folder that is linked from inside and from outside, and links that lead in circles."""
    for name in ["here/a.txt", "here/sub/b.txt", "outside/c.txt", "outside/.kept/d.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, name.encode())
    for link, target in {"a-link": "../outside", "again": "sub", "sub/up": "../../here", "../outside/back": "../here"}.items():
        (tmp_path / "here" / link).symlink_to(target, target_is_directory=True)
    expected = ["outside/c.txt", "here/a.txt", "here/sub/b.txt"]  # sorted by the names they are found by: a-link, a.txt, sub
    assert read(tmp_path / "here") == expected
    assert sorted(read([str(tmp_path / "here"), str(tmp_path / "outside")])) == sorted(expected)
    assert read(tmp_path / "here", test=f"{tmp_path}/outside/c.txt") == expected[1:]


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "a.txt", b"a")
    scandir = os.scandir

    def closed(path: Any = ".") -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"sub: this folder cannot be read \(Permission denied\)"):
        read(tmp_path)


def test_files_of_other_formats_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ziggurat")
    for name in ["a.txt", "sub/b.md", "c.json", "e.txt.bz2", "none", ".hidden.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, b"x")
    assert read(tmp_path) == ["x"]
    expected = f"4 file(s) of other formats passed over in {tmp_path}: c.json, e.txt.bz2, none, b.md"
    assert [record.message for record in caplog.records] == [expected]  # once for a reading, not for a search
    caplog.clear()
    assert read(f"{tmp_path}/*") == ["x"]
    expected = f"3 file(s) of other formats passed over in {tmp_path}/*: c.json, e.txt.bz2, none"
    assert [record.message for record in caplog.records] == [expected]
    caplog.clear()
    write(tmp_path / "a.txt", "\n\n".join(f"document {n}" for n in range(40)).encode())
    assert read(tmp_path, "valid", valid=0.5) and read(tmp_path / "a.txt")  # a share is of files that are read, and said, anyway
    assert not caplog.records


# ---------------------------------------------------------------------------------------------------- columns


def test_pair_and_label_are_where_the_columns_say(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([{"s1": "one", "s2": "two", "score": 2.5}, {"s1": "x", "s2": "y", "score": "neg"}]))
    first, second = documents(source(path, columns={"text": "s1", "pair": "s2", "label": "score"}))
    assert (
        dict(first.texts) == {"text": "one", "pair": "two"}
        and first.fields == {"label": 2.5}
        and second.fields == {"label": "neg"}
    )
    assert first.id == f"{path}:1"


def test_tagged_rows_have_one_mark_per_word(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"w": ["EU", "rejects", "call"], "t": ["B-ORG", "O", "O"]},
        {"w": ["我", "爱", "北京", "Beijing", "呀", "。"], "t": list("OOBBOO")},
        {"w": ["one", "short"], "t": ["O"]},
    ]
    reading = Reading()
    english, chinese = documents(
        source(write(tmp_path / "a.jsonl", jsonl(rows)), columns={"tokens": "w", "tags": "t"}), "train", reading
    )
    assert english.texts["text"] == "EU rejects call" and chinese.texts["text"] == "我爱北京 Beijing 呀。"
    for document, row in zip((english, chinese), rows, strict=False):
        assert [document.texts["text"][m.start : m.end] for m in document.marks] == row["w"]
        assert [m.label for m in document.marks] == row["t"]
    assert reading.skipped == 1 and "2 words, 1 tags" in reading.examples[0]


def test_join_words_leaves_no_space_between_han() -> None:
    assert join_words(["中", "文", "，", "ok", "x"]) == ("中文， ok x", [0, 1, 2, 4, 7])


def test_an_unknown_column_names_those_there_are(tmp_path: Path) -> None:
    for path in (
        write(tmp_path / "a.jsonl", jsonl([{"body": "x", "title": "y"}] * 3)),
        write(tmp_path / "a.csv", b"body,title\nx,y\n"),
    ):
        with pytest.raises(UserError, match=r"no column 'boddy'; did you mean 'body'\?") as e:
            read(path, columns={"text": "boddy"})
        assert "body, title" in str(e.value)


def test_columns_that_contradict_each_other() -> None:
    for wrong in ({"tags": "t"}, {"tokens": "w", "text": "x"}, {"tokens": "w", "pair": "x"}, {"txt": "x"}):
        with pytest.raises(ValidationError):
            source(Path("x"), columns=wrong)
    with pytest.raises(ValidationError, match="files"):
        TypeAdapter(Source).validate_python({"kind": "fils", "path": "x"})


def test_a_txt_file_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no columns, but label"):
        read(write(tmp_path / "a.txt", b"x\n"), columns={"label": "y"})


# ---------------------------------------------------------------------------------------------------- splits


def test_held_out_shares_are_disjoint_whole_and_independent_of_order(tmp_path: Path) -> None:
    rows = [{"text": f"document {n % 500}"} for n in range(600)]  # 100 of them twice
    forward, backward = write(tmp_path / "a.jsonl", jsonl(rows)), write(tmp_path / "b.jsonl", jsonl(rows[::-1]))
    parts = {s: read(forward, s, valid=0.2, test=0.3) for s in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == 600
    assert not set(parts["train"]) & set(parts["valid"]) and not set(parts["test"]) & {*parts["train"], *parts["valid"]}
    assert 0.13 < len(parts["valid"]) / 600 < 0.27 and 0.22 < len(parts["test"]) / 600 < 0.38
    for s, texts in parts.items():
        assert sorted(read(backward, s, valid=0.2, test=0.3)) == sorted(texts)
    assert set(read(forward, "test", valid=0.4, test=0.3)) == set(parts["test"])  # the other share does not matter


def test_which_splits_a_source_has(tmp_path: Path) -> None:
    plain, labels = Files(path="x"), Files(path="x", columns={"label": "y"}, test="z")
    assert (
        splits(plain) == ("train", "valid") and splits(labels) == ("train", "test") and labelled(labels) and not labelled(plain)
    )
    assert splits(Docstrings()) == ("train", "valid") and splits(DocstringBackticks()) == ("train", "test")
    with pytest.raises(UserError, match="no test split"):
        documents(plain, "test")


def test_files_of_their_own_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.jsonl", jsonl([{"text": f"{name} {n}"} for n in range(30)]))
    held: dict[str, Any] = {"valid": f"{tmp_path}/dev.jsonl", "test": f"{tmp_path}/test.jsonl"}
    assert read(tmp_path, **held) == [f"train {n}" for n in range(30)]
    assert read(tmp_path, "test", **held) == [f"test {n}" for n in range(30)]
    some = read(tmp_path, "test", **held, test_rows=10)
    assert len(some) == 10 and some == read(tmp_path, "test", **held, test_rows=10)
    assert set(some) < set(read(tmp_path, "test", **held, test_rows=20))


def test_a_corpus_of_one_document_cannot_be_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([{"text": "alone"}]))
    with pytest.raises(UserError, match="none of the 1 documents fell into this split"):
        read(path, "valid", valid=0.01)


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(ROWS))
    before = fingerprint(source(path))
    assert before == fingerprint(source(path)) != fingerprint(source(path, limit=3))
    write(path, jsonl(ROWS[:-1]))
    assert fingerprint(source(path)) != before


# ---------------------------------------------------------------------------------------------------- bad input


def test_bad_rows_are_counted_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [jsonl([{"text": f"good {n}"}]) for n in range(30)]
    bad = {
        b'{"text": "cut sh\n': "not valid JSON",
        b'{"text": "a\0b"}\n': "NUL bytes",
        b'{"text": "a\\u0000b"}\n': "NUL bytes",
        b'{"text": "\xff\xfe"}\n': "not valid UTF-8",
        b'{"text": null}\n': "'text' is null",
        b'{"text": 3}\n': "'text' is not text",
        b'{"txt": "x"}\n': "no field 'text'",
        b"[1, 2]\n": "not a JSON object",
        b'{"text": "\\ud800"}\n': "half a surrogate pair",
        b"[" * 100_000 + b"\n": "not valid JSON",
    }
    path = write(tmp_path / "a.jsonl", b"".join(good[:15]) + b"".join(bad) + b"".join(good[15:]) + b'{"text": "trunca')
    reading = Reading()
    with caplog.at_level(logging.WARNING):
        assert read(path, reading=reading) == [f"good {n}" for n in range(30)]
    assert (reading.rows, reading.documents, reading.skipped) == (41, 30, 11)
    for reason in bad.values():
        assert reading.reasons[reason] >= 1
    assert reading.reasons.total() == 11
    assert reading.examples[0].startswith(f"{path}:16: not valid JSON")
    assert len(caplog.records) == 1 and "11 of 41 rows" in caplog.text


@pytest.mark.parametrize(("mode", "expected"), [("file", []), ("line", list("abde")), ("blank", ["d\ne"])])
def test_a_document_with_an_unreadable_line_is_a_bad_row(tmp_path: Path, mode: str, expected: list[str]) -> None:
    """It is not kept with a hole."""
    reading = Reading(allowed=9)
    lines = b"a\ncaf\xe9\nb\n\nd\ne\n\n\xff\n"
    path = write(tmp_path / "a.txt", lines)
    write(tmp_path / "b.txt", b"good\n")
    assert read(tmp_path, reading=reading, txt=mode, bad_rows=9) == [*expected, "good"]
    assert reading.skipped == (1 if mode == "file" else 2) and reading.rows == reading.skipped + reading.documents
    assert reading.examples[0].startswith(f"{path}:2: not valid UTF-8 (byte 4 of the line is 0xe9)")


def test_a_table_row_with_an_unreadable_line_is_a_bad_row(tmp_path: Path) -> None:
    """Though the line is one of several in a quoted field, or closes it."""
    reading = Reading()
    data = b'text,label\n"first\ncaf\xe9\nthird",pos\nplain,neg\n"open\n\xe9 closed",pos\nlast,neg\n'
    path = write(tmp_path / "a.csv", data)
    assert read(path, reading=reading, columns={"label": "label"}, bad_rows=2) == ["plain", "last"]
    assert (reading.rows, reading.skipped) == (4, 2) and reading.examples[1].startswith(f"{path}:7: not valid UTF-8")
    with pytest.raises(UserError, match=r"b\.csv:1: the header cannot be read \(NUL bytes\)"):
        read(write(tmp_path / "b.csv", b"te\0xt,label\na,b\n"), columns={"label": "label"})


def test_the_account_of_a_split_is_headed_with_its_own_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, held = (write(tmp_path / name, jsonl(ROWS) + b"{\n") for name in ("a.jsonl", "b.jsonl"))
    for split in ("train", "test"):
        read(train, split, test=str(held))
    assert [r.message.partition(":")[0] for r in caplog.records] == [f"{train} (train)", f"{held} (test)"]


@pytest.mark.parametrize("first", [True, False])
def test_a_missing_field_is_a_bad_row_wherever_it_stands(tmp_path: Path, first: bool) -> None:
    rows = [{"text": f"t{n}"} for n in range(20)]
    odd = [{"title": "only"}]
    reading = Reading()
    assert len(read(write(tmp_path / "a.jsonl", jsonl(odd + rows if first else rows + odd)), reading=reading)) == 20
    assert reading.reasons == {"no field 'text'": 1}


def test_too_many_bad_rows_stop(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(ROWS * 10) + b"{\n" * 101)
    with pytest.raises(UserError, match=r"101 of 501 rows cannot be read .*not valid JSON[\s\S]*a\.jsonl:401:"):
        read(path)
    assert len(read(path, bad_rows=101)) == 400
    with pytest.raises(UserError, match="3 of 11 rows"):
        read(write(tmp_path / "b.jsonl", jsonl(ROWS[:8]) + b"{\n" * 20), bad_rows=2)
    with pytest.raises(UserError, match="2 of 3 rows"):  # few, but most of what there is
        read(write(tmp_path / "c.jsonl", jsonl(ROWS[:1]) + b"{\n" * 2))


def test_empty_text_is_left_out_without_being_a_mistake(tmp_path: Path) -> None:
    reading = Reading()
    assert read(write(tmp_path / "a.jsonl", jsonl([{"text": " "}, {"text": "x"}] * 300)), reading=reading) == ["x"] * 300
    assert (reading.empty, reading.skipped) == (300, 0)


def test_null_and_number_labels(tmp_path: Path) -> None:
    labels: list[Any] = ["pos", 0, 1.5, True, None, [], float("nan"), ""]
    rows = [{"text": "a", "label": label} for label in labels]
    reading = Reading()
    found = list(documents(source(write(tmp_path / "a.jsonl", jsonl(rows)), columns={"label": "label"}), "train", reading))
    assert [d.fields["label"] for d in found] == ["pos", 0, 1.5, "true"] and reading.skipped == 4


def test_several_references_are_rows_to_learn_from_and_one_to_be_scored_on(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "pair": [f"p{n}{k}" for k in range(n + 1)]} for n in range(3)] + [{"text": "none", "pair": []}]
    train, test = write(tmp_path / "a.jsonl", jsonl(rows)), write(tmp_path / "b.jsonl", jsonl(rows))
    source = Files(path=str(train), test=str(test), columns=Columns(pair="pair"))
    learnt = list(documents(source, "train"))
    assert [(d.texts["text"], d.texts["pair"]) for d in learnt] == [(f"t{n}", f"p{n}{k}") for n in range(3) for k in range(n + 1)]
    assert len({d.id for d in learnt}) == 6 and all(not d.fields for d in learnt)
    assert [d.fields["references"] for d in documents(source, "test")] == [row["pair"] for row in rows[:3]]
    halves = Files(path=str(train), test=0.4, columns=Columns(pair="pair"))
    seen = {d.texts["text"] for d in documents(halves, "train")}
    assert not seen & {d.texts["text"] for d in documents(halves, "test")}  # references of one text stay on one side


def test_rows_of_a_group_are_references_of_one_test_row(tmp_path: Path) -> None:
    """Each is a row to learn from; no share and no number of rows takes a group apart."""
    rows = [{"text": f"t{n}", "pair": f"p{n}{k}", "of": n} for k in range(3) for n in range(8)]
    rows.append({"text": "t0", "pair": "p00", "of": 0})
    path = str(write(tmp_path / "a.jsonl", jsonl(rows)))
    test = str(write(tmp_path / "b.jsonl", jsonl(rows)))
    source = Files(path=path, valid=0.0, test=test, columns=Columns(pair="pair", group="of"))
    assert [d.texts["pair"] for d in documents(source, "train")] == [row["pair"] for row in rows]
    merged = list(documents(source, "test"))
    assert [(d.texts["text"], d.fields["references"]) for d in merged] == [
        (f"t{n}", [f"p{n}{k}" for k in range(3)]) for n in range(8)
    ]
    assert len(list(documents(source.model_copy(update={"test_rows": 5}), "test"))) == 5
    halves = Files(path=path, valid=0.0, test=0.5, columns=Columns(pair="pair", group="of"))
    learnt, asked = ({d.fields["group"] for d in documents(halves, split)} for split in ("train", "test"))
    assert learnt and asked and not learnt & asked and learnt | asked == set(range(8))


@pytest.mark.parametrize("wanted", range(1, 26))
def test_a_number_of_rows_takes_whole_groups(tmp_path: Path, wanted: int) -> None:
    """As many as fit; of one group larger than the number a part."""
    labelled = [{"text": f"t{n} {k}", "label": k % 2, "of": n} for k in range(3) for n in range(8)]
    test = str(write(tmp_path / "test.jsonl", jsonl(labelled)))
    source = Files(path=test, test=test, test_rows=wanted, columns=Columns(label="label", group="of"))
    groups = Counter(d.fields["group"] for d in documents(source, "test"))
    assert groups.total() == (wanted if wanted < 3 else min(wanted, 24) // 3 * 3)
    assert wanted < 3 or set(groups.values()) == {3}


def test_line_ends_and_marks_of_byte_order(tmp_path: Path) -> None:
    texts = ["one\u2028still one\x85and\x0bmore", "two"]
    crlf = b"\xef\xbb\xbf" + jsonl([{"text": t} for t in texts]).replace(b"\n", b"\r\n")
    assert read(write(tmp_path / "a.jsonl", crlf)) == texts
    assert read(write(tmp_path / "a.txt", ("\ufeff" + "\r\n".join(texts)).encode()), txt="line") == texts
    table = write(tmp_path / "a.csv", '\ufefftext,n\r\n"two\r\nlines, ""quoted""",1\r\nplain,2\r\n'.encode())
    assert read(table) == ['two\nlines, "quoted"', "plain"]
    assert [d.id for d in documents(source(table))] == [f"{table}:2", f"{table}:4"]


def test_tables_with_broken_rows(tmp_path: Path) -> None:
    reading = Reading()
    assert read(write(tmp_path / "a.csv", b"text,n\na,1\nb\nc,3,3\nd,4\n"), reading=reading) == ["a", "d"]
    assert reading.reasons == {"wrong number of fields": 2}
    assert read(write(tmp_path / "a.tsv", b'text\tn\n"open quote\t1\nb\t2\n')) == ['"open quote', "b"]
    with pytest.raises(UserError, match=r"a\.csv:3: a quotation mark opens here"):
        read(write(tmp_path / "a.csv", b'text,n\na,1\n"b,2\nc,3\n'))
    with pytest.raises(UserError, match="names a column twice: text"):
        read(write(tmp_path / "a.csv", b"text,text\na,1\n"))


def test_a_line_of_ten_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 2_000_000
    data = jsonl([{"text": "a"}, {"text": long}, {"text": "b"}])
    assert read(write(tmp_path / "a.jsonl", data)) == ["a", long, "b"]
    monkeypatch.setattr("ziggurat.data.lines.LONGEST_LINE", 1 << 20)
    reading = Reading()
    assert read(tmp_path / "a.jsonl", reading=reading) == ["a", "b"]
    assert reading.skipped == 1 and reading.examples[0].startswith(f"{tmp_path}/a.jsonl:2: a line of more than")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", bytes(range(256)) * 20, "binary file"),
        ("a.jsonl", gzip.compress(b"x", mtime=0), "gzip data without the ending .gz"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.txt", "plain text in utf-16 without a mark".encode("utf-16-le"), "UTF-16"),
        ("a.txt", b"caf\xe9 \xe0 la cr\xe8me\n" * 10, "not UTF-8.*encoding: latin-1"),
        ("a.txt", "这是一个中文文件，不是统一码。".encode("gb18030") * 3, "not UTF-8.*gb18030"),
        ("a.txt.gz", b"no gzip at all", "damaged or cut short"),
        ("a.txt.xz", b"no xz at all", "damaged or cut short"),
        ("a.txt.zst", b"no zstd at all", "damaged or cut short"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as e:
        read(tmp_path / name)

    assert re.search(words, str(e.value), re.S) and str(tmp_path / name) in str(e.value)


def test_another_encoding_can_be_declared(tmp_path: Path) -> None:
    text = "这是一个中文文件，不是统一码。"
    assert read(write(tmp_path / "a.txt", text.encode("gb18030")), encoding="gb18030") == [text]
    for wrong in ("utf-16", "klingon"):
        with pytest.raises(ValidationError):
            source(tmp_path, encoding=wrong)


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_a_compressed_file_that_was_cut(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.jsonl{ending}", jsonl([{"text": f"{n} {n**9}"} for n in range(3000)]))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="damaged or cut short"):
        read(path)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    write(tmp_path / "reviews.jsonl", b"")
    with pytest.raises(UserError, match=r"reviws\.jsonl: there is no such file[\s\S]*did you mean 'reviews\.jsonl'"):
        documents(source(tmp_path / "reviws.jsonl"))
    with pytest.raises(UserError, match="is not there either"):
        documents(source(tmp_path / "no" / "x.txt"))
    with pytest.raises(UserError, match="matches no file"):
        documents(source(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file of a known format"):
        documents(source(tmp_path / "empty"))
    with pytest.raises(UserError, match="does not tell a format"):
        documents(source(write(tmp_path / "a.docx", b"x")))


@pytest.mark.parametrize("data", [b"", b"\n\n", b'{"text": ""}\n'])
def test_an_empty_corpus(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="there is no text in it"):
        read(write(tmp_path / "a.jsonl", data))
    write(tmp_path / "b.jsonl", jsonl([{"text": "x"}]))
    assert read(tmp_path) == ["x"]


# ---------------------------------------------------------------------------------------------------- hub


class Classes:
    names = ("neg", "pos")


def fake_datasets(monkeypatch: pytest.MonkeyPatch, calls: list[Any]) -> None:
    class Table(list):
        features = {"body": object(), "y": Classes()}

    def load_dataset(name: str, config: str | None, **more: Any) -> Table:
        calls.append((name, config, more))
        if more["split"] not in ("train", "test"):
            raise ValueError(f"Unknown split {more['split']!r}\nlong story")
        return Table([{"body": f"{more['split']} {n}", "y": n % 2} for n in range(6)] + [{"body": None, "y": 1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fake_datasets(monkeypatch, calls)
    spec = TypeAdapter(Source).validate_python(
        {
            "kind": "hub",
            "id": "who/what",
            "config": "en",
            "revision": "abc",
            "columns": {"text": "body", "label": "y"},
            "test": "test",
        }
    )
    reading = Reading()
    found = list(documents(spec, "test", reading))
    assert [d.texts["text"] for d in found] == [f"test {n}" for n in range(6)]
    assert [d.fields["label"] for d in found] == ["neg", "pos"] * 3 and found[0].id == "who/what:1" and reading.skipped == 1
    assert calls == [("who/what", "en", {"split": "test", "revision": "abc", "streaming": False})]
    with pytest.raises(UserError, match=r"no column 'bdy'; did you mean 'body'"):
        list(documents(Hub(id="x", columns={"text": "bdy"})))
    with pytest.raises(UserError, match=r"split 'dev' cannot be loaded \(ValueError: Unknown split 'dev'\)"):
        documents(Hub(id="x", train="dev"))


def test_hub_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"ziggurat\[data\]"):
        documents(Hub(id="x"))


# ---------------------------------------------------------------------------------------------------- docstrings

MODULE = '''"""The module's own docstring, which is long enough to be kept."""
raise RuntimeError("nobody may import this")


class Thing:
    """A thing of which there is much to say, in more than one line.

    Indented like this.
    """

    def short(self):
        """Too short."""

    async def same(self):
        """The very same words stand in two places of the package."""


if True:
    def other():
        """The very same words stand in two places of the package."""
        return """a string that is no docstring, though it is long enough"""
'''

TALK = '''"""The talk of the module is that a ``list`` holds the `first item` and :func:`~os.path.join` too.

The formula :math:`x^2` spoils this whole sentence for the ``task`` at hand. A sentence without any such mark is left out
as well. When (``x``), the *sum* of it all is e.g. ``True`` in every case!

>>> doctests = "are not prose, not even the ``code`` in this one"

- lists with ``code`` in them are not prose in this sense either

The talk of the module is that a ``list`` holds the `first item` and :func:`~os.path.join` too.
"""
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "ziggurat_sample"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text('raise RuntimeError("nobody may import this")\n')
    (folder / "mod.py").write_text(MODULE)
    (folder / "broken.py").write_text('"""A file of another language, kept as a template.""" def {{ name }}')
    (folder / "talk.py").write_text(TALK)
    (folder / "tests" / "t.py").write_text(MODULE.replace("kept", "seen"))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "ziggurat_sample"


def test_docstrings_are_read_and_nothing_is_run(package: str) -> None:
    found = list(docstrings([package]))
    assert [(d.id, d.fields["name"], d.fields["kind"]) for d in found] == [
        ("ziggurat_sample/mod.py:1", "", "module"),
        ("ziggurat_sample/mod.py:6", "Thing", "class"),
        ("ziggurat_sample/mod.py:15", "Thing.same", "function"),
        ("ziggurat_sample/talk.py:1", "", "module"),
    ]
    assert found[1].texts["text"].endswith("line.\n\nIndented like this.")
    assert found[1].fields["module"] == "ziggurat_sample.mod" and found[1].fields["package"] == package
    assert package not in sys.modules


def test_docstring_sources_name_packages_that_are_not_there(package: str) -> None:
    with pytest.raises(UserError, match=r"no installed package 'simpy'; did you mean 'sympy'"):
        list(documents(Docstrings(packages=("simpy",)), "train"))
    with pytest.raises(UserError, match=r"exclude: 'torhc' is not among .*did you mean 'torch'"):
        list(documents(Docstrings(exclude=("torhc",)), "train"))
    with pytest.raises(UserError, match=r"no installed package 'os\.path'"):
        list(docstrings(["os.path"]))
    parts = [list(documents(Docstrings(packages=(package,), valid=0.5), s)) for s in ("train", "valid")]
    assert sum(map(len, parts)) == 4


def test_a_real_package_has_many() -> None:
    found = list(docstrings(["networkx"]))
    assert len(found) > 1000 and len({d.texts["text"] for d in found}) == len(found) == len({d.id for d in found})
    assert any(d.fields["name"] == "DiGraph.add_edge" for d in found)
    assert next(iter(documents(Docstrings(packages=("networkx",), valid=0)))) == found[0]


def test_backticks(package: str) -> None:
    found = list(backticks(package))
    assert [d.texts["text"] for d in found] == [
        "The talk of the module is that a list holds the first item and os.path.join too.",
        "When (x), the *sum* of it all is e.g. True in every case!",
    ]
    code = [[d.texts["text"][m.start : m.end] for m in d.marks if m.label == "code"] for d in found]
    assert code == [["list", "first", "item", "os.path.join"], ["(x),", "True"]]
    for document in found:
        assert [document.texts["text"][m.start : m.end] for m in document.marks] == document.texts["text"].split(" ")
        assert document.fields["document"] == "ziggurat_sample/talk.py:1"


def test_backticks_splits(package: str) -> None:
    spec = DocstringBackticks(package=package, test_rows=1)
    train, test = (list(documents(spec, s)) for s in ("train", "test"))
    assert len(train) == len(test) == 1 and train[0].texts != test[0].texts
    with pytest.raises(UserError, match="has 2 sentences with backticks, test_rows takes 500"):
        list(documents(DocstringBackticks(package=package)))


def test_train_rows_are_the_same_whatever_the_order(tmp_path: Path) -> None:
    rows = [{"text": f"row number {n}", "label": n % 2} for n in range(40)]
    found = []
    for name, some in (("a", rows), ("b", rows[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), "utf-8")
        source = Files(path=str(tmp_path / f"{name}.jsonl"), test=0.2, train_rows=7, columns=Columns(label="label"))
        found.append({d.texts["text"] for d in documents(source, "train")})
        assert not found[-1] & {d.texts["text"] for d in documents(source, "test")}
    assert found[0] == found[1] and len(found[0]) == 7

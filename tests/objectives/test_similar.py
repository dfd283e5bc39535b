"""Masked LM as correction against MacBERT's rule, restated slowly; tables of similar words, given and made from a corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from blocks import BERT, MASK, VOCAB, batch_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ziggurat.context import Context
from ziggurat.data.pack import pack, take
from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.objectives.similar import MaskedAsCorrection
from ziggurat.text.similar import SimilarWords, compiled, read_words
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.types import Batch

fast = settings(max_examples=60, deadline=None)
Rows = dict[tuple[int, ...], list[tuple[int, ...]]]
LENGTHS = [0.4, 0.3, 0.2, 0.1]


def context(table: SimilarWords | None = None, **other: Any) -> Context:
    return Context(VOCAB, BERT, 24, tables={} if table is None else {"similar": table}, **other)


def draw(ctx: Context, key: np.uint64, number: int, purpose: str) -> float:
    return float(ctx.uniform(np.array([key]), np.zeros(1, np.int64), np.array([number]), purpose)[0])


def corrected(
    unit: Sequence[int], ids: list[int], rate: float, rows: Rows, ctx: Context, key: np.uint64
) -> tuple[list[int], list[int]]:
    """One document, slowly: (what is seen, the places asked)."""
    numbers = sorted(set(unit) - {-1})
    words = {n: [i for i, u in enumerate(unit) if u == n] for n in numbers}
    left, hidden = max(1, round(rate * len(unit))), list[int]()
    for anchor in sorted(numbers, key=lambda n: draw(ctx, key, n, "mlm.choose")):
        chance = draw(ctx, key, anchor, "mlm.length")
        want = 1 + sum(chance >= sum(LENGTHS[:n]) for n in (1, 2, 3))
        run = [n for n in numbers if anchor <= n < anchor + want]

        def fits(run: list[int], left: int = left) -> bool:
            flat = [i for n in run for i in words[n]]
            return len(flat) <= left and flat == list(range(flat[0], flat[0] + len(flat)))

        while len(run) > 1 and not fits(run):
            run.pop()
        if left > 0 and fits(run) and not set(run) & set(hidden):
            hidden += run
            left -= sum(len(words[n]) for n in run)
    seen, ordinary = list(ids), [i for i in range(VOCAB.size) if i not in VOCAB.special]
    for n in hidden:
        first, word = words[n][0], tuple(ids[i] for i in words[n])
        chance = draw(ctx, key, first, "mac.replace")
        similar = rows.get(word, [])
        if chance < 0.8 and similar:
            new: Sequence[int] = similar[int(draw(ctx, key, first, "mac.similar") * len(similar))]
        elif chance < 0.9:
            new = [ordinary[int(draw(ctx, key, i, "mac.random") * len(ordinary))] for i in words[n]]
        else:
            new = word
        seen[first : first + len(word)] = new
    return seen, sorted(i for n in hidden for i in words[n])


def per_document(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    s, t = batch.streams["text"], batch.targets["mac"]
    found = []
    for a, b in pairwise(s.bounds):
        mine = (t.index >= a) & (t.index < b)
        found.append((s.content[a:b].tolist(), (t.index[mine] - a).tolist(), t.value[mine].tolist()))
    return found


def words_in(batch: Batch) -> list[tuple[int, ...]]:
    """Every word of the batch as ids."""
    s = batch.streams["text"]
    assert s.unit is not None
    found = []
    for a, b in pairwise(s.bounds):
        for n in sorted(set(s.unit[a:b].tolist()) - {-1}):
            found.append(tuple(s.content[a:b][s.unit[a:b] == n].tolist()))
    return found


@st.composite
def examples(draw: st.DrawFn) -> tuple[Batch, Rows]:
    """Documents of words of 1 to 3 tokens, and a table that has similar words of half of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    units = []
    for _ in range(draw(st.integers(1, 4))):
        unit: list[int] = []
        number = 0
        for _ in range(rng.integers(0, 40)):
            special = rng.random() < 0.1
            unit += [-1] if special else [number] * int(rng.integers(1, 4))
            number += not special
        units.append(unit)
    batch = batch_of(units, int(rng.integers(0, 1000)))
    rows: Rows = {}
    for word in words_in(batch):
        if rng.random() < 0.5:
            others = [tuple(rng.integers(5, VOCAB.size, len(word)).tolist()) for _ in range(rng.integers(1, 4))]
            rows[word] = others
    return batch, rows


@fast
@given(examples(), st.sampled_from([0.15, 0.5]), st.integers(0, 3))
def test_words_are_exactly_those_of_the_slow_rule(example: tuple[Batch, Rows], rate: float, epoch: int) -> None:
    batch, rows = example
    ctx = context(SimilarWords.of(rows), seed=5, epoch=epoch)
    s = batch.streams["text"]
    assert s.unit is not None
    done = per_document(MaskedAsCorrection(rate=rate).corrupt(batch, ctx))
    for d, (a, b) in enumerate(pairwise(s.bounds)):
        ids = s.content[a:b].tolist()
        seen, asked = corrected(s.unit[a:b].tolist(), ids, rate, rows, ctx, batch.keys[d])
        assert done[d] == (seen, asked, [ids[i] for i in asked])


@fast
@given(examples())
def test_never_a_mask_and_nothing_else_is_touched(example: tuple[Batch, Rows]) -> None:
    batch, rows = example
    for ctx in (context(seed=1), context(SimilarWords.of(rows), seed=1), context(SimilarWords.of({}), seed=1)):
        done = MaskedAsCorrection(rate=0.4).corrupt(batch, ctx)
        before, after, target = batch.streams["text"].content, done.streams["text"].content, done.targets["mac"]
        assert not np.isin(after[target.index], VOCAB.special).any() and MASK not in after
        restored = after.copy()
        restored[target.index] = target.value
        assert np.array_equal(restored, before) and after.dtype == before.dtype
        assert set(np.flatnonzero(after != before)) <= set(target.index)


def test_shares_lengths_and_choices_are_as_published() -> None:
    """Over 1e5 one-token words: 80/10/10, similar words evenly, n-grams of 1 to 4 words at 40/30/20/10; all within 4 deviations."""
    documents, n = 5300, 126
    batch = batch_of([[-1, *range(n), -1]] * documents)
    s = batch.streams["text"]
    assert s.unit is not None
    batch = replace(batch, streams={"text": replace(s, content=np.where(s.unit < 0, 2, 7).astype(np.int32))})
    table = SimilarWords.of({(7,): [(8,), (9,)], (7, 7): [(8, 8)]})
    done = MaskedAsCorrection().corrupt(batch, context(table, seed=1))
    index = done.targets["mac"].index
    assert len(index) == documents * round(0.15 * (n + 2)) > 1e5
    shown = np.bincount(done.streams["text"].content[index], minlength=VOCAB.size) / len(index)
    other = 0.1 / 55  # a random token, of 55
    tolerance = 4 * 0.5 / len(index) ** 0.5
    assert shown[8] == pytest.approx(0.4 + other, abs=tolerance) and shown[9] == pytest.approx(0.4 + other, abs=tolerance)
    assert shown[7] == pytest.approx(0.1 + other, abs=tolerance)
    assert shown[10:].sum() == pytest.approx(50 * other, abs=tolerance) and shown[:5].sum() == 0
    # A budget of 4 tokens: a 4-gram fills it alone, and smaller ones are neighbours by chance in less than 3 of 100 documents.
    small = MaskedAsCorrection(rate=0.04).corrupt(batch_of([[-1, *range(100), -1]] * 10_000), context(seed=1))
    runs = small.targets["mac"].index.reshape(-1, 4)
    alone = float((runs[:, 3] - runs[:, 0] == 3).mean())
    assert 0.1 - 4 * (0.09 / 10_000) ** 0.5 < alone < 0.1 + 0.03 + 4 * (0.09 / 10_000) ** 0.5


def test_each_document_by_itself_and_in_rows() -> None:
    batch = batch_of([[-1, *np.repeat(np.arange(n), 2).tolist(), -1] for n in (30, 5, 12, 0)])
    rows: Rows = {word: [(11, 12), (13, 14)] for word in words_in(batch)[::2]}
    ctx, objective = context(SimilarWords.of(rows), seed=6), MaskedAsCorrection(rate=0.4)
    want = per_document(objective.corrupt(batch, ctx))
    order = np.array([3, 1, 0, 2])
    assert per_document(objective.corrupt(take(batch, order), ctx)) == [want[i] for i in order]
    assert per_document(objective.corrupt(pack(batch, 70, 0), ctx)) == per_document(pack(objective.corrupt(batch, ctx), 70, 0))
    fixed = MaskedAsCorrection(static=2)
    assert per_document(fixed.corrupt(batch, replace(ctx, epoch=2))) == per_document(fixed.corrupt(batch, ctx))
    assert per_document(fixed.corrupt(batch, replace(ctx, epoch=1))) != per_document(fixed.corrupt(batch, ctx))


def test_tables_tell_words_apart() -> None:
    rng = np.random.default_rng(0)
    rows: Rows = {}
    for _ in range(2000):
        n = int(rng.integers(1, 6))
        rows[tuple(rng.integers(0, 9, n).tolist())] = [tuple(rng.integers(0, 9, n).tolist())]
    table = SimilarWords.of(rows)
    assert len(table) == len(rows)
    for word, (other,) in rows.items():
        (row,) = table.find(np.array((3, *word, 3)), np.array([1]), np.array([len(word)]))
        assert table.ids[table.start[row] : table.start[row] + table.size[row]].tolist() == list(other)
    absent = [w for w in ((1, 2, 3, 4, 5, 6), (77,), (1, 77), (0,) * 9) if w not in rows]
    for word in absent:
        assert table.find(np.array(word), np.array([0]), np.array([len(word)])).tolist() == [-1]
    assert table.digest == SimilarWords.of(dict(reversed(rows.items()))).digest != SimilarWords.of({(1,): [(2,)]}).digest


# --- tables ------------------------------------------------------------------------------------------------------------------


def tokenizer(*words: str) -> Tokenizer:
    """WordPiece with these entries."""
    vocab = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words))}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return Tokenizer(made)


def test_only_words_of_as_many_tokens_and_known_ones() -> None:
    small = tokenizer("cat", "dog", "tom", "##cat", "pony", "##s")
    table = compiled(
        {"cat": ["dog", "tomcat", "cat", "dog"], "cats": ["dogs", "pony", "ox"], "ox": ["cat"], "pony": ["tomcat"]}, small
    )
    ids = {w: i + 5 for i, w in enumerate(("cat", "dog", "tom", "##cat", "pony", "##s"))}
    assert (
        table.digest
        == SimilarWords.of({(ids["cat"],): [(ids["dog"],)], (ids["cat"], ids["##s"]): [(ids["dog"], ids["##s"])]}).digest
    )
    with pytest.raises(UserError, match="none of the 2 words"):
        compiled({"cat": ["tomcat"], "ox": ["cat"]}, small)


def test_words_behind_a_space_where_that_makes_a_difference() -> None:
    vocab = {"<pad>": 0, "a": 1, "b": 2, "Ġa": 3, "Ġb": 4, "Ġ": 5}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("Ġ", "a"), ("Ġ", "b")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    table = compiled({"a": ["b"]}, Tokenizer(made, {"pad_token": "<pad>"}))
    assert table.digest == SimilarWords.of({(1,): [(2,)], (3,): [(4,)]}).digest


def test_files(tmp_path: Path) -> None:
    want = {"大学": ["学院", "高校"], "cat": ["dog"]}
    (tmp_path / "t.json").write_text(json.dumps(want), "utf-8")
    (tmp_path / "t.tsv").write_text("大学\t学院\t高校\n\ncat\tdog\n", "utf-8")
    assert read_words(tmp_path / "t.json") == read_words(tmp_path / "t.tsv") == want
    for name, text, why in (
        ("none.tsv", None, "cannot be read"),
        ("a.json", "[1]", "no object"),
        ("a.json", "{", "not JSON"),
        ("a.json", '{"a": "b"}', "'a'"),
        ("a.json", '{"a": [1]}', "'a'"),
        ("a.tsv", "a\tb\nc\n", "a.tsv:2"),
        ("a.tsv", "\tb\n", "a.tsv:1"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text, "utf-8")
        with pytest.raises(UserError, match=why):
            read_words(tmp_path / name)


def test_the_objective_reads_its_table(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("cat\tdog\n", "utf-8")
    objective = MaskedAsCorrection(table=path)
    tables = objective.tables(tokenizer("cat", "dog"))
    assert tables["similar"].digest == SimilarWords.of({(5,): [(6,)]}).digest and objective.vectors == ()
    objective.needs(context(tables["similar"]))
    for call in (
        lambda: MaskedAsCorrection().tables(tokenizer("cat")),
        lambda: MaskedAsCorrection().tables(tokenizer("cat"), tmp_path),  # `prepare` has not made it yet
        lambda: MaskedAsCorrection().needs(context()),
    ):
        with pytest.raises(UserError, match="no table"):
            call()
    none = MaskedAsCorrection(replace=(0, 0.5, 0.5))
    none.needs(context())
    assert none.vectors == () and none.tables(tokenizer("cat")) == {}
    assert hash(MaskedAsCorrection(table=path)) == hash(objective)  # a spec is plain data, with or without its table
    assert objective.heads(spec.Single()) == {"lm": spec.VocabHead()} and objective.head_of("mac") == "lm"


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"replace": (1, 1, 0)}, {"lengths": (0.5, 0.4)}, {"lengths": ()}, {"table": 3}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MaskedAsCorrection(**wrong)

"""The stream of micro-batches: everything once an epoch, seeded, by weight, and resumed exactly."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whitespace import Whitespace

from ziggurat.context import Context, key_of
from ziggurat.data import order as order_module
from ziggurat.data.cut import single, windows
from ziggurat.data.loader import Loader, once
from ziggurat.data.order import Order, permuted
from ziggurat.data.shards import Shards
from ziggurat.data.writing import write_shards
from ziggurat.errors import UserError
from ziggurat.objectives import Masked
from ziggurat.train import budget
from ziggurat.train.stage import Stage
from ziggurat.types import DEAD, Batch, Document, Tokens, text_target

tokenizer = Whitespace()
ctx = tokenizer.context(16)


class Mask:
    """Hides a seeded tenth of the words; remembers the progress it was told."""

    def __init__(self) -> None:
        self.progress: list[float] = []

    def grouped(self, tokens: Tokens) -> Tokens:
        return tokens

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        return windows(tokens, ctx)

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        self.progress.append(ctx.progress)
        s = batch.streams["text"]
        assert s.unit is not None
        draw = ctx.uniform(batch.keys, s.document(), s.inside(), "test")
        at = np.flatnonzero((draw < 0.1) & (s.unit >= 0))
        content = s.content.copy()
        content[at] = 1
        return replace(batch, streams={"text": replace(s, content=content)}, targets={"mlm": text_target(at, s.content[at])})


class Label(Mask):
    def grouped(self, tokens: Tokens) -> Tokens:
        return tokens

    def form(self, tokens: Tokens, ctx: Context) -> Batch:
        batch = single(tokens, ctx)
        label = np.array(tokens.fields["label"])
        return replace(batch, targets={"label": text_target(np.arange(len(batch)), label, at="document")})

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        return batch


class Doubled(Mask):
    """A corruption that changes lengths, as span corruption does."""

    def corrupt(self, batch: Batch, ctx: Context) -> Batch:
        from ziggurat.data.pack import take

        return take(batch, np.repeat(np.arange(len(batch)), 2))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "DOCUMENTS", 20)
    monkeypatch.setattr(order_module, "TOKENS", 400)


def make(folder: Path, n: int, seed: int = 0, longest: int = 40) -> Shards:
    rng = np.random.default_rng([n, seed])
    texts = (" ".join(f"w{x}" for x in rng.integers(0, 999, rng.integers(1, longest))) for _ in range(n))
    return write_shards(folder, (Document({"text": t}, fields={"label": i}) for i, t in enumerate(texts)), tokenizer)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shards]:
    folder = tmp_path_factory.mktemp("shards")
    return {"general": make(folder / "g", 61), "domain": make(folder / "d", 23, 1)}


def loader(shards: Mapping[str, Shards], weights: Mapping[str, float] | None = None, **args: Any) -> Loader:
    args = {"row": 16, "tokens": 64, "ahead": False, "objective": Mask(), "ctx": ctx} | args
    return Loader(shards, weights or dict.fromkeys(shards, 1.0), args.pop("objective"), args.pop("ctx"), **args)


def fingerprint(batch: Batch) -> tuple[Any, ...]:
    s, t = batch.streams["text"], batch.targets["mlm"]
    arrays = (s.content, s.bounds, s.position, s.segment, t.index, t.value, batch.keys)
    return tuple(a.tobytes() for a in arrays)


def alive(batches: list[Batch]) -> Counter[int]:
    return Counter(int(k) for b in batches for k in b.keys if k != DEAD)


def everything(shards: Shards) -> Counter[int]:
    return Counter(windows(shards.read(np.arange(len(shards))), ctx).keys.tolist())


def test_the_permutation_is_one() -> None:
    for size in (1, 2, 3, 5, 64, 65, 1000):
        for seed in range(3):
            found = permuted(np.arange(size), size, key_of(seed))
            assert sorted(found.tolist()) == list(range(size))
            again = permuted(np.arange(size)[::-1], size, key_of(seed))[::-1]
            assert np.array_equal(found, again)
    a, b = (permuted(np.arange(1000), 1000, key_of(s)) for s in (0, 1))
    assert (a == b).sum() < 10 and (a == np.arange(1000)).sum() < 10
    assert abs(np.corrcoef(a, np.arange(1000))[0, 1]) < 0.1


def test_every_epoch_holds_everything_once(sources: dict[str, Shards]) -> None:
    one = {"general": sources["general"]}
    with loader(one) as stream:
        count, twice = stream.count(1), stream.count(2)
        batches = list(itertools.islice(stream, twice))
    assert alive(batches[:count]) == everything(sources["general"])
    assert alive(batches[count:]) == everything(sources["general"])
    assert [fingerprint(b) for b in batches[:count]] != [fingerprint(b) for b in batches[count:]]


def test_micro_batches_are_rows_within_the_limit(sources: dict[str, Shards]) -> None:
    for batch in itertools.islice(loader(sources, tokens=70), 30):
        s = batch.streams["text"]
        assert s.row == 16 and len(s.content) % 16 == 0 and len(s.content) <= 64
        lengths = np.diff(s.bounds)
        assert (s.bounds[:-1] // 16 == (s.bounds[1:] - 1) // 16)[lengths > 0].all()


def test_masks_hang_on_documents_not_on_packing(sources: dict[str, Shards]) -> None:
    def answers(**args: Any) -> dict[tuple[int, int], int]:
        one = {"general": sources["general"]}
        found = {}
        stream = loader(one, **args)
        for b in itertools.islice(stream, stream.count(1)):
            s, t = b.streams["text"], b.targets["mlm"]
            owner = s.document()[t.index]
            for d, i, value in zip(owner, t.index, t.value, strict=True):
                found[int(b.keys[d]), int(i - s.bounds[d])] = int(value)
        return found

    wanted = answers()
    assert wanted and wanted == answers(tokens=16) == answers(tokens=400, row=40) == answers(tokens=None, documents=3)
    assert wanted != answers(seed=1)


@pytest.mark.parametrize("ahead", [False, True])
def test_resuming_at_every_position_is_exact(sources: dict[str, Shards], ahead: bool) -> None:
    def build(state: dict[str, int] | None = None) -> Loader:
        return loader(sources, {"general": 3.0, "domain": 1.0}, lanes=2, seed=5, total_tokens=5000, state=state, ahead=ahead)

    n = 45
    with build() as straight:
        states, wanted = [straight.state()], []
        for batch in itertools.islice(straight, n):
            wanted.append(fingerprint(batch))
            states.append(straight.state())
    assert max(s["0.domain.epoch"] for s in states) >= 1 and max(s["0.block"] for s in states) >= 4
    assert all(isinstance(v, int) for s in states for v in s.values())
    for at in range(0, n - 2, 5 if ahead else 1):
        with build(states[at]) as resumed:
            assert resumed.state() == states[at]
            assert [fingerprint(b) for b in itertools.islice(resumed, 2)] == wanted[at : at + 2]
    with build(states[7]) as resumed:
        assert [fingerprint(b) for b in itertools.islice(resumed, n - 7)] == wanted[7:]


def test_the_thread_changes_nothing_and_ends(sources: dict[str, Shards]) -> None:
    before = threading.active_count()
    with loader(sources, ahead=True) as threaded:
        ours = [(fingerprint(b), threaded.state()) for b in itertools.islice(threaded, 50)]
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    plain = loader(sources)
    assert ours == [(fingerprint(b), plain.state()) for b in itertools.islice(plain, 50)]


def test_errors_of_the_thread_reach_the_caller(sources: dict[str, Shards]) -> None:
    class Broken(Mask):
        def grouped(self, tokens: Tokens) -> Tokens:
            return tokens

        def form(self, tokens: Tokens, ctx: Context) -> Batch:
            raise UserError("broken")

    with loader(sources, objective=Broken(), ahead=True) as stream, pytest.raises(UserError, match="broken"):
        next(iter(stream))


def test_lanes_share_the_blocks(sources: dict[str, Shards]) -> None:
    one, two = loader(sources), loader(sources, lanes=2)
    blocks = [[fingerprint(b) for b in one._block(one.order.after(one.order.start(), i))] for i in range(4)]
    found = [fingerprint(b) for b in itertools.islice(two, 2 * min(map(len, blocks)))]
    n = min(map(len, blocks))
    assert found[0::2] == blocks[0][:n] and found[1::2] == blocks[1][:n]


def test_a_mixture_follows_its_weights_by_tokens(sources: dict[str, Shards]) -> None:
    order = Order(sources, {"general": 0.2, "domain": 0.8})
    place = order.start()
    for _ in range(40):
        draws, place = order.block(place)
        assert all(len(d.documents) >= 2 for d in draws)
        general, domain = (c.tokens for c in place.cursors)
        assert abs(domain / (general + domain) - 0.8) * (general + domain) < 60  # half of a turn of three documents
    assert {d.source for d in draws} == {0, 1}
    assert place.cursors[1].epoch > place.cursors[0].epoch > 0


def test_epochs_of_each_source_hold_everything_once(sources: dict[str, Shards]) -> None:
    order = Order(sources, {"general": 1.0, "domain": 2.0}, seed=3)
    seen: dict[tuple[int, int], list[int]] = {}
    place = order.start()
    for _ in range(60):
        draws, place = order.block(place)
        for d in draws:
            seen.setdefault((d.source, d.epoch), []).extend(d.documents.tolist())
    for i, cursor in enumerate(place.cursors):
        assert cursor.epoch >= 2
        for epoch in range(cursor.epoch):
            assert sorted(seen[i, epoch]) == list(range(len(order.shards[i])))


@pytest.mark.parametrize(
    "args", [{"tokens": 64}, {"tokens": None, "documents": 3}, {"tokens": 64, "contiguous": 2, "objective": Masked()}]
)
def test_epochs_of_a_mixture_are_passes_over_the_source_that_counts(sources: dict[str, Shards], args: dict[str, Any]) -> None:
    """And what is replayed keeps its share, though its documents are longer and batches may be counted in documents."""
    with loader(sources, {"domain": 0.7, "general": 0.3}, passes="domain", **args) as stream:
        count = stream.count(4)
        batches = list(itertools.islice(stream, count))
        assert stream.state()["0.domain.epoch"] == 3
        assert next(iter(stream)) and stream.state()["0.domain.epoch"] == 4
    found = alive(batches)
    wanted = everything(sources["domain"])
    assert {k: found[k] for k in wanted} == {k: 4 * n for k, n in wanted.items()}
    read = 4 * sources["domain"].tokens
    replayed = sum(
        int(s.lengths[i]) - 2
        for b in batches
        for s in [b.streams["text"]]
        for i, k in enumerate(b.keys)
        if k != DEAD and int(k) not in wanted
    )
    assert abs(replayed - read * 0.3 / 0.7) < 60


@pytest.mark.parametrize("beside", [{"replay": {"general": 0.5}}, {"nearest": {"general": 3}}, {}], ids=str)
@pytest.mark.parametrize("batch", [{"tokens": 64}, {"documents": 8}], ids=str)
def test_epochs_of_a_stage_are_of_its_data(sources: dict[str, Shards], beside: dict[str, Any], batch: dict[str, int]) -> None:
    stage = Stage(stage="tapt", data={"domain": {"weight": 3.0}}, epochs=3, batch=batch, length=16, **beside)  # type: ignore[arg-type]
    job: Any = SimpleNamespace(stage=stage, shards={n: sources[n] for n in stage.reads}, seed=1)
    with budget.loader(job, Masked(), ctx, 1, None) as stream:
        found = alive(list(itertools.islice(stream, budget.in_epochs(job, Masked(), ctx, 3))))
    wanted = everything(sources["domain"])
    assert {k: found[k] for k in wanted} == {k: 3 * n for k, n in wanted.items()} and (len(found) > len(wanted)) == bool(beside)


@settings(deadline=None, max_examples=15)
@given(st.floats(0.05, 0.95), st.integers(0, 9), st.sampled_from([None, "domain", "general"]), st.integers(1, 40), st.booleans())
def test_a_mixture_goes_on_from_any_state(
    sources: dict[str, Shards], share: float, seed: int, passes: str | None, at: int, rows: bool
) -> None:
    def build(state: dict[str, int] | None = None) -> Loader:
        limit = {} if rows else {"tokens": None, "documents": 5}
        return loader(sources, {"general": share, "domain": 1 - share}, passes=passes, seed=seed, state=state, **limit)

    straight = build()
    for _ in itertools.islice(straight, at):
        pass
    state = straight.state()
    wanted = [fingerprint(b) for b in itertools.islice(straight, 12)]
    assert [fingerprint(b) for b in itertools.islice(build(state), 12)] == wanted


def test_a_mixture_dealt_out_otherwise_is_not_gone_on_with(sources: dict[str, Shards]) -> None:
    state = loader(sources).state()
    with pytest.raises(UserError, match="dealt out these sources in another order"):
        loader(sources, state={**state, "format": 1})
    alone = {"general": sources["general"]}
    state = loader(alone).state()
    assert state["format"] == 1 and loader(alone, state=state).state() == state


def test_no_document_is_left_alone(tmp_path: Path) -> None:
    for n in (1, 2, 21, 41):  # blocks hold 20
        order = Order({"a": make(tmp_path / str(n), n, longest=5)}, {"a": 1.0})
        place, sizes = order.start(), []
        while place.cursors[0].epoch == 0:
            draws, place = order.block(place)
            sizes += [len(d.documents) for d in draws]
        assert sum(sizes) == n and min(sizes) >= min(n, 2)


def test_documents_mode_groups_shuffled_examples(sources: dict[str, Shards]) -> None:
    one = {"domain": sources["domain"]}
    stream = loader(one, objective=Label(), tokens=None, documents=4, row=32)
    n = stream.count(1)
    batches = list(itertools.islice(stream, n))
    sizes = [int((b.keys != DEAD).sum()) for b in batches]
    assert sum(sizes) == 23 and max(sizes) == 4 and sizes.count(4) >= 4
    found = [
        (int(b.keys[i]), int(v)) for b in batches for i, v in zip(b.targets["label"].index, b.targets["label"].value, strict=True)
    ]
    keys = sources["domain"].keys
    assert sorted(found) == sorted((int(k), d) for d, k in enumerate(keys))
    labels = [v for _, v in found]
    assert labels != sorted(labels)
    assert all(len(b.streams["text"].content) % 32 == 0 for b in batches)


def test_count_knows_corruptions_that_change_lengths(sources: dict[str, Shards]) -> None:
    stream = loader({"domain": sources["domain"]}, objective=Doubled())
    doubled = {k: 2 * v for k, v in everything(sources["domain"]).items()}
    assert alive(list(itertools.islice(stream, stream.count(1)))) == doubled


def test_once_is_every_document_and_the_same_every_time(sources: dict[str, Shards]) -> None:
    first, second = (list(once(sources["general"], Mask(), ctx, row=16, tokens=64)) for _ in range(2))
    assert alive(first) == everything(sources["general"])
    assert [fingerprint(b) for b in first] == [fingerprint(b) for b in second]


def test_what_is_evaluated_is_asked_as_at_the_end_of_a_stage(sources: dict[str, Shards]) -> None:
    asked = []

    class Seen(Mask):
        def corrupt(self, batch: Batch, ctx: Context) -> Batch:
            asked.append(ctx.progress)
            return super().corrupt(batch, ctx)

    list(once(sources["general"], Seen(), ctx, row=16, tokens=64))
    assert set(asked) == {1.0}


def test_progress_is_what_was_read_before_the_block(sources: dict[str, Shards]) -> None:
    mask = Mask()
    stream = loader({"domain": sources["domain"]}, objective=mask, total_tokens=2 * sources["domain"].tokens)
    for _ in itertools.islice(stream, stream.count(3) + 1):
        pass
    assert mask.progress[0] == 0.0 and 0.5 in mask.progress and max(mask.progress) == 1.0
    told = mask.progress[1:]  # the first call is `count` looking at the first block
    assert told == sorted(told)


def test_bad_input_is_one_clear_error(sources: dict[str, Shards], tmp_path: Path) -> None:
    empty = write_shards(tmp_path / "empty", [], tokenizer)
    with pytest.raises(UserError, match="source 'x' is empty"):
        loader({"x": empty})
    with pytest.raises(UserError, match="is empty"):
        list(once(empty, Mask(), ctx, row=16, tokens=64))
    with pytest.raises(UserError, match="weight of source 'general' is 0"):
        loader(sources, {"general": 0.0, "domain": 1.0})
    with pytest.raises(UserError, match="rows of 8 tokens cannot hold examples of 16"):
        loader(sources, row=8)
    with pytest.raises(UserError, match="does not hold one row"):
        loader(sources, tokens=15)
    with pytest.raises(UserError, match="tokens or documents"):
        loader(sources, documents=3)
    with pytest.raises(UserError, match="epochs of a mixture"):
        loader(sources).count(1)
    state = loader(sources).state()
    with pytest.raises(UserError, match="other sources or lanes"):
        loader({"general": sources["general"]}, state=state)
    with pytest.raises(UserError, match="other sources or lanes"):
        loader(sources, lanes=2, state=state)

    class Nothing(Mask):
        def grouped(self, tokens: Tokens) -> Tokens:
            return tokens

        def form(self, tokens: Tokens, ctx: Context) -> Batch:
            return Batch()

    with pytest.raises(UserError, match="made no example from general, domain"):
        next(iter(loader(sources, objective=Nothing())))
    with pytest.raises(UserError, match="made no example"):
        loader({"domain": sources["domain"]}, objective=Nothing()).count(1)
    with pytest.raises(UserError, match="made no example"):
        list(once(sources["domain"], Nothing(), ctx, row=16, tokens=64))

"""Contiguous text from the loader: everything once an epoch, in order, at most a step apart, and resumed exactly."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from whitespace import Whitespace

from ziggurat.data import order as order_module
from ziggurat.data.cut import windows
from ziggurat.data.loader import Loader, once
from ziggurat.data.shards import Shards
from ziggurat.data.writing import write_shards
from ziggurat.objectives import Masked
from ziggurat.types import DEAD, Batch, Document

tokenizer = Whitespace()
ctx = tokenizer.context(16)
ROOM = 14


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "DOCUMENTS", 20)
    monkeypatch.setattr(order_module, "TOKENS", 900)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shards]:
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)

    def make(name: str, count: int, longest: int) -> Shards:
        sizes = [int(rng.integers(1, longest)) for _ in range(count)]
        texts = (" ".join(f"w{x}" for x in rng.integers(0, 999, n)) for n in sizes)
        return write_shards(folder / name, (Document({"text": t}) for t in texts), tokenizer)

    return {"long": make("long", 31, 200), "short": make("short", 40, 20), "one": make("one", 1, 2000)}


def loader(shards: Mapping[str, Shards], **args: Any) -> Loader:
    args = {"row": 16, "tokens": 64, "ahead": False, "contiguous": 2} | args
    return Loader(shards, dict.fromkeys(shards, 1.0), Masked(), ctx, **args)


def fingerprint(batch: Batch) -> tuple[bytes, ...]:
    s, t = batch.streams["text"], batch.targets["mlm"]
    assert batch.before is not None
    return tuple(a.tobytes() for a in (s.content, s.bounds, s.position, t.index, t.value, batch.keys, batch.before))


def follow(batches: list[Batch], contiguous: int) -> tuple[int, int]:
    """Checks that whoever goes on comes at most `contiguous` micro-batches after its predecessor; (those that do, all that could)."""
    seen: dict[int, int] = {}
    did = could = 0
    for n, batch in enumerate(batches):
        assert batch.before is not None
        s = batch.streams["text"]
        held = Counter[int]()
        for d, (key, before) in enumerate(zip(batch.keys.tolist(), batch.before.tolist(), strict=True)):
            if before != int(DEAD):
                assert key != int(DEAD) and 1 <= n - seen[before] <= contiguous
                held[int(s.bounds[d]) // 16] += 1
                did += 1
        could += len(batch)
        assert max(held.values(), default=0) <= 1  # one memory to a row
        seen |= dict.fromkeys(batch.keys.tolist(), n)
    return did, could


@pytest.mark.parametrize("contiguous", [1, 2, 3])
@pytest.mark.parametrize("name", ["long", "short", "one"])
def test_every_epoch_holds_everything_once_and_in_order(sources: dict[str, Shards], name: str, contiguous: int) -> None:
    one = {name: sources[name]}
    with loader(one, contiguous=contiguous) as stream:
        batches = list(itertools.islice(stream, stream.count(2)))
    wanted = windows(sources[name].read(np.arange(len(sources[name]))), ctx)
    alive = Counter(int(k) for b in batches for k in b.keys if k != DEAD)
    assert alive == Counter({int(k): 2 for k in wanted.keys})
    did, _ = follow(batches, contiguous)
    assert wanted.before is not None
    links = 2 * int((wanted.before != DEAD).sum())
    assert did >= {"long": 0.75, "short": 1.0, "one": 0.7}[name] * links  # the rest is where a text is too long for its track
    assert all(len(b.streams["text"].content) <= 64 for b in batches)


@pytest.mark.parametrize("ahead", [False, True])
def test_resuming_at_every_position_is_exact(sources: dict[str, Shards], ahead: bool) -> None:
    def build(state: dict[str, int] | None = None) -> Loader:
        return loader({n: sources[n] for n in ("long", "short")}, seed=5, total_tokens=5000, state=state, ahead=ahead)

    n = 60
    with build() as straight:
        states, wanted = [straight.state()], []
        for batch in itertools.islice(straight, n):
            wanted.append(fingerprint(batch))
            states.append(straight.state())
    assert states[-1]["0.block"] >= 3 and all(isinstance(v, int) for s in states for v in s.values()) and len(states[0]) < 15
    for at in range(0, n - 2, 7 if ahead else 1):
        with build(states[at]) as resumed:
            assert [fingerprint(b) for b in itertools.islice(resumed, 2)] == wanted[at : at + 2]


def test_masks_hang_on_documents_not_on_the_order(sources: dict[str, Shards]) -> None:
    def answers(**args: Any) -> dict[tuple[int, int], int]:
        stream, found = loader({"long": sources["long"]}, **args), {}
        for b in itertools.islice(stream, stream.count(1)):
            s, t = b.streams["text"], b.targets["mlm"]
            for d, i, value in zip(s.document()[t.index], t.index, t.value, strict=True):
                found[int(b.keys[d]), int(i - s.bounds[d])] = int(value)
        return found

    assert answers() == answers(contiguous=1) == answers(contiguous=0) == answers(tokens=200)


def test_the_seed_decides_the_order(sources: dict[str, Shards]) -> None:
    one, same, other = (
        [fingerprint(b) for b in itertools.islice(loader({"long": sources["long"]}, seed=s), 20)] for s in (0, 0, 1)
    )
    assert one == same != other


def test_once_in_order(sources: dict[str, Shards]) -> None:
    batches = list(once(sources["long"], Masked(), ctx, row=16, tokens=64, contiguous=1))
    wanted = windows(sources["long"].read(np.arange(31)), ctx)
    assert Counter(int(k) for b in batches for k in b.keys if k != DEAD) == Counter(wanted.keys.tolist())
    assert follow(batches, 1)[0] > 0.75 * int((np.asarray(wanted.before) != DEAD).sum())
    again = list(once(sources["long"], Masked(), ctx, row=16, tokens=64, contiguous=1))
    assert [fingerprint(b) for b in batches] == [fingerprint(b) for b in again]

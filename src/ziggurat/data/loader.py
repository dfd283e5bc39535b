"""Shards -> an endless, resumable stream of packed micro-batches.

A block of documents is drawn (`order`), formed, corrupted, laid into rows, and its rows are dealt out in a seeded order. Block b of
lane l is a pure function of (seed, b), so a state is a few integers and resuming makes at most one block a lane again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields, replace
from typing import Protocol

import numpy as np

from ziggurat.context import Context, key_of, mix
from ziggurat.data.order import Corpus, Cursor, Draw, Order, Place
from ziggurat.data.pack import Rows, examples_of, fit, lay, lengths_of, split
from ziggurat.data.tracks import lay_tracks
from ziggurat.errors import UserError, check
from ziggurat.types import DEAD, Batch, Tokens, join_all

FORMAT, MIXED = 1, 2
"""Versions of a state: of a single source, and of a mixture, whose blocks were other ones before."""
BLANK = 64
"""Blocks in a row without an example before the loader gives up."""


class Maker(Protocol):
    """The CPU half of an objective."""

    def grouped(self, tokens: Tokens) -> Tokens: ...
    def form(self, tokens: Tokens, ctx: Context) -> Batch: ...
    def corrupt(self, batch: Batch, ctx: Context) -> Batch: ...


@dataclass(slots=True)
class _Lane:
    place: Place
    done: int = 0
    """Micro-batches of its block already delivered."""
    ready: Future[list[Batch]] | None = None
    following: Future[list[Batch]] | None = None


class Loader:
    """Micro-batches for ever: `for batch in loader`. Close it, or use it as a context manager, to end its thread.

    shards, weights  the sources and their shares of the tokens of text (`order.Order`)
    objective        anything with `grouped`, `form` and `corrupt`
    ctx              vocabulary, layout, length; its seed, epoch and progress are set here, the seed from `seed`
    row              tokens of a row, one number for all streams or one for each; at least the objective's longest example
    tokens           limit of a micro-batch: as many rows, over all streams, as it holds; an example of several documents that needs
                     more has one by itself. Or:
    documents        examples of a micro-batch (fewer at the end of a block), packed by themselves
    lanes            independent sequences: micro-batch m comes from lane m mod lanes, and lane l has blocks l, l + lanes, ...
    passes           the source of a mixture whose epochs are whole blocks, so that `count` knows them (`order.Order`)
    total_tokens     tokens of text in the whole stage, for `ctx.progress`; None leaves it at `ctx.progress`
    contiguous       0: rows come in a seeded order. A > 0: every example comes A micro-batches after the one whose text it goes on with
                     (fewer where some of these would be empty), both of one block, so that A of them make a step; `Batch.before` says
                     which those are, and for the others that they begin anew (`tracks`)
    state            where to go on, from `state()`
    ahead            make the next block in a thread while this one is used; changes nothing else
    """

    def __init__(
        self,
        shards: Mapping[str, Corpus],
        weights: Mapping[str, float],
        objective: Maker,
        ctx: Context,
        *,
        row: Rows,
        tokens: int | None = None,
        documents: int | None = None,
        seed: int = 0,
        lanes: int = 1,
        shuffle: bool = True,
        contiguous: int = 0,
        passes: str | None = None,
        total_tokens: int | None = None,
        state: Mapping[str, int] | None = None,
        ahead: bool = True,
    ):
        self.order = Order(shards, weights, seed=seed, shuffle=shuffle, passes=passes)
        self.objective = objective
        self.ctx = replace(ctx, seed=seed)
        self.row, self.shuffle, self.contiguous, self.total_tokens = row, shuffle, contiguous, total_tokens
        assert not contiguous or (documents is None and lanes == 1), "contiguous text comes in rows, in one sequence"
        self.rows, self.documents = _limits(ctx, row, tokens, documents)
        self._pool = ThreadPoolExecutor(1, "loader") if ahead else None
        self._turn = 0
        self._lanes = [_Lane(self.order.after(self.order.start(), n)) for n in range(lanes)] if state is None else []
        if state is not None:
            self._restore(state, lanes)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._next()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread. The state stays what it was."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def state(self) -> dict[str, int]:
        """Where the stream stands after the batches *delivered* so far, whatever was made ahead."""
        values = {"format": MIXED if self.order.mixed else FORMAT, "lanes": len(self._lanes), "turn": self._turn}
        for n, lane in enumerate(self._lanes):
            values |= {f"{n}.block": lane.place.block, f"{n}.done": lane.done}
            for name, cursor in zip(self.order.names, lane.place.cursors, strict=True):
                values |= {
                    f"{n}.{name}.{field.name}": value for field, value in zip(fields(Cursor), astuple(cursor), strict=True)
                }
        return values

    def count(self, epochs: int) -> int:
        """Micro-batches in exactly `epochs` epochs of the one source, or of `passes`, in one lane: forms and packs everything once an epoch.

        `corrupt` is left out where it keeps the lengths of the first block's examples, and run where it does not.
        """
        of = self.order.passes if len(self._lanes) == 1 else None
        check(
            of is not None, "epochs of a mixture are not defined: each source has its own", "give the length in steps or tokens"
        )
        assert of is not None
        place, total = self.order.start(), 0
        formed, whole = self._examples(place, corrupt=False), self._examples(place)
        same = formed.streams.keys() == whole.streams.keys() and all(
            np.array_equal(s.bounds, whole.streams[name].bounds) for name, s in formed.streams.items()
        )
        while place.cursors[of].epoch < epochs:
            total += len(self._deal(self._examples(place, corrupt=not same), place)[2]) - 1
            place = self.order.after(place, 1)
        check(not epochs or total, *_fruitless(self.order.names, self.ctx))
        return total

    def _next(self) -> Batch:
        lane = self._lanes[self._turn]
        for _ in range(BLANK):
            ready = lane.ready or self._submit(lane.place)
            batches = ready.result()
            if lane.done < len(batches):
                break
            following = lane.following
            lane.place, lane.done = self.order.after(lane.place, len(self._lanes)), 0
            lane.ready, lane.following = following, None
        else:
            raise UserError(*_fruitless(self.order.names, self.ctx))
        lane.ready = ready
        if lane.following is None and self._pool is not None:
            lane.following = self._submit(self.order.after(lane.place, len(self._lanes)))
        lane.done += 1
        self._turn = (self._turn + 1) % len(self._lanes)
        return batches[lane.done - 1]

    def _submit(self, place: Place) -> Future[list[Batch]]:
        if self._pool is not None:
            return self._pool.submit(self._block, place)
        made: Future[list[Batch]] = Future()
        made.set_result(self._block(place))
        return made

    def _block(self, place: Place) -> list[Batch]:
        """All micro-batches of the block at `place`."""
        examples, rows, cuts = self._deal(self._examples(place), place)
        if not len(examples):
            return []
        batch, starts = lay(examples, rows, self.row, self.ctx.vocab.pad)
        return split(batch, starts[cuts])

    def _examples(self, place: Place, *, corrupt: bool = True) -> Batch:
        ctx = self.ctx
        if self.total_tokens:
            ctx = replace(ctx, progress=min(1.0, place.tokens / self.total_tokens))
        return join_all(self._make(draw, ctx.at_epoch(draw.epoch), corrupt) for draw in self.order.block(place)[0])

    def _make(self, draw: Draw, ctx: Context, corrupt: bool) -> Batch:
        tokens = replace(self.order.shards[draw.source].read(draw.documents), source=self.order.names[draw.source])
        formed = self.objective.form(self.objective.grouped(tokens), ctx)
        return self.objective.corrupt(formed, ctx) if corrupt and len(formed) else formed

    def _deal(self, examples: Batch, place: Place) -> tuple[Batch, np.ndarray, np.ndarray]:
        """The examples, int64[D], the row of each, and int64[n + 1], the row at which each of n micro-batches begins."""
        if not len(examples):
            return examples, np.zeros(0, np.int64), np.zeros(1, np.int64)
        if self.contiguous:
            return self._in_tracks(examples, place)
        example = examples_of(examples)
        if self.documents is None and int(example[-1]) + 1 == len(examples):
            rows = fit(lengths_of(examples), self.row)
            count = int(rows.max()) + 1
            return examples, self._shuffled(count, place)[rows], np.append(np.arange(0, count, self.rows), count)
        turn = self._shuffled(int(example[-1]) + 1, place)
        turn = self._filled(examples, example, turn) if self.documents is None else turn // self.documents
        turn = turn[example]
        rows, cuts = np.zeros(len(examples), np.int64), [0]
        members = np.argsort(turn, kind="stable")
        for group in np.split(members, np.searchsorted(turn[members], np.arange(1, int(turn.max()) + 1))):
            mine = fit(lengths_of(examples, group), self.row)
            rows[group] = mine + cuts[-1]
            cuts.append(cuts[-1] + int(mine.max()) + 1)
        return examples, rows, np.array(cuts)

    def _in_tracks(self, examples: Batch, place: Place) -> tuple[Batch, np.ndarray, np.ndarray]:
        before, keys = examples.before, examples.keys
        assert before is not None, "the objective does not say which examples go on from each other"
        (stream,) = examples.streams
        row = self.row if isinstance(self.row, int) else self.row[stream]
        tracks = self.rows * self.contiguous
        goes_on = np.append(False, (before[1:] == keys[:-1]) & (before[1:] != DEAD))
        key = key_of(self.ctx.seed, place.block) if self.shuffle else None
        laid = lay_tracks(lengths_of(examples)[stream], goes_on, row, tracks, key)
        cells, rows = np.unique(laid.step * tracks + laid.track, return_inverse=True)  # rows that hold nothing are left out
        micro = cells // self.rows
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(micro)) + 1, [len(cells)]])
        return replace(examples, before=np.where(laid.goes_on, before, DEAD)), rows, cuts

    def _filled(self, batch: Batch, example: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """int64[E]: the micro-batch of each example, filled in the order of their turns with what goes into its rows."""
        order = np.argsort(turn)
        bounds = np.searchsorted(example, np.arange(len(turn) + 1))
        chosen, number, begin = np.zeros(len(turn), np.int64), 0, 0
        while begin < len(order):
            end = begin + 1
            documents = np.arange(*bounds[order[begin] : order[begin] + 2])
            while end < len(order):
                more = np.append(documents, np.arange(*bounds[order[end] : order[end] + 2]))
                if int(fit(lengths_of(batch, more), self.row).max()) >= self.rows:
                    break
                documents, end = more, end + 1
            chosen[order[begin:end]] = number
            number, begin = number + 1, end
        return chosen

    def _shuffled(self, count: int, place: Place) -> np.ndarray:
        """int64[count]: the turn of each of `count` things."""
        if not self.shuffle:
            return np.arange(count)
        drawn = mix(key_of(self.ctx.seed, place.block) ^ np.arange(count, dtype=np.uint64))
        return np.argsort(np.argsort(drawn))

    def _restore(self, state: Mapping[str, int], lanes: int) -> None:
        place = self.order.start()
        self._lanes = [_Lane(place) for _ in range(lanes)]
        own = self.state()
        same = set(state) == set(own) and state["lanes"] == lanes
        check(same, "the saved place in the data is of other sources or lanes", "go on with the recipe it was saved with")
        check(
            state["format"] == own["format"],
            "the saved place in the data is of a version that dealt out these sources in another order",
            "delete the folder of the stage to begin it again, or finish it with the version that began it",
        )
        self._turn = state["turn"]
        for n, lane in enumerate(self._lanes):
            values = ([state[f"{n}.{name}.{field.name}"] for field in fields(Cursor)] for name in self.order.names)
            lane.place = Place(state[f"{n}.block"], tuple(Cursor(*v) for v in values))
            lane.done = state[f"{n}.done"]


def once(
    shards: Corpus,
    objective: Maker,
    ctx: Context,
    *,
    row: Rows,
    tokens: int | None = None,
    documents: int | None = None,
    contiguous: int = 0,
) -> Iterator[Batch]:
    """Every document once, in order and unshuffled, as of epoch 0: the same masks every time. For evaluation: what moves in the course of a
    stage (a rate of masking, the shares of a mixture) is as at its end.

    Within a block the packing decides the order of the examples; `batch.keys` says which is which. `contiguous` as in `Loader`.
    """
    sources, weights = {"": shards}, {"": 1.0}
    loader = Loader(
        sources,
        weights,
        objective,
        replace(ctx, progress=1.0),
        row=row,
        tokens=tokens,
        documents=documents,
        seed=ctx.seed,
        shuffle=False,
        contiguous=contiguous,
        ahead=False,
    )
    place, some = loader.order.start(), False
    while place.cursors[0].epoch == 0:
        for batch in loader._block(place):
            some = True
            yield batch
        place = loader.order.after(place, 1)
    check(some, *_fruitless((str(shards.folder),), ctx))


def _limits(ctx: Context, row: Rows, tokens: int | None, documents: int | None) -> tuple[int, int | None]:
    check(
        (tokens is None) != (documents is None), "a micro-batch needs one limit: tokens or documents", "give exactly one of them"
    )
    short = isinstance(row, int) and row < ctx.length
    check(not short, f"rows of {row} tokens cannot hold examples of {ctx.length}", f"set row to at least {ctx.length}")
    if tokens is None:
        assert documents is not None
        check(documents > 0, f"a micro-batch of {documents} documents is empty", "set it to at least 1")
        return 0, documents
    whole = row if isinstance(row, int) else sum(row.values())
    check(
        tokens >= whole, f"a micro-batch of {tokens} tokens does not hold one row of {whole}", f"set tokens to at least {whole}"
    )
    return tokens // whole, None


def _fruitless(names: tuple[str, ...], ctx: Context) -> tuple[str, str]:
    text = f"the objective made no example from {', '.join(n or 'the data' for n in names)}"
    return text, f"its documents may be too short (length is {ctx.length}), or of one sentence where it needs two"

"""Examples that go on with each other's text -> tracks of rows, so that a memory of one row serves the next (Dai et al., 2019, 3.2).

R tracks stand side by side; at every step each gives one row. An example stands in the row behind the one that holds the example it goes
on from, so a text runs down its track, and documents follow each other in it. Letters in shapes: `E` examples, `S` steps, `R` tracks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ziggurat.context import mix


class Laid(NamedTuple):
    """Where each example stands."""

    step: np.ndarray
    """int64[E]"""
    track: np.ndarray
    """int64[E]"""
    goes_on: np.ndarray
    """bool[E]: it goes on from the example before it, which stands in the same track one step earlier."""


def lay_tracks(lengths: np.ndarray, goes_on: np.ndarray, row: int, tracks: int, key: np.uint64 | None = None) -> Laid:
    """A place for every example: `lengths` int64[E], each at most `row`; `goes_on` bool[E]: with the text of the example before it.

    A row holds at most one example that goes on from another, so that there is one memory to a row, and as many beginnings as fit
    beside it. A text that takes more rows than a track has when all are equally full is cut there and begins anew. Long texts are placed first,
    each where least space is left over; then the texts of a track change places with one another, by `key` (None: they stay).
    """
    steps = max(1, -(-int(lengths.sum()) // (row * tracks)))
    begins = np.flatnonzero(~goes_on)
    inside = np.arange(len(lengths)) - np.repeat(begins, np.diff(np.append(begins, len(lengths))))
    goes_on = inside % steps > 0
    begins = np.flatnonzero(~goes_on)
    counts = np.diff(np.append(begins, len(lengths)))
    space = np.full((steps, tracks), row)
    runs_on = np.zeros((steps, tracks), bool)  # a text comes here from the row above
    step, track = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    for n in np.lexsort((-lengths[begins], -counts)).tolist():
        begin, count = int(begins[n]), int(counts[n])
        wanted = lengths[begin : begin + count]
        at, where = _find(space, runs_on, wanted)
        if at < 0:
            space = np.concatenate([space, np.full((count, tracks), row)])
            runs_on = np.concatenate([runs_on, np.zeros((count, tracks), bool)])
            at, where = _find(space, runs_on, wanted)
        space[at : at + count, where] -= wanted
        runs_on[at + 1 : at + count, where] = True
        step[begin : begin + count], track[begin : begin + count] = at + np.arange(count), where
    if key is not None:
        used = int(step.max(initial=-1)) + 1
        piece = np.cumsum(~runs_on[:used], axis=0) * tracks + np.arange(tracks)  # rows that no text runs on from stand free
        drawn = mix(key ^ piece.astype(np.uint64).ravel()).reshape(piece.shape)
        order = np.argsort(drawn, axis=0, kind="stable")
        step = np.argsort(order, axis=0)[step, track]
    return Laid(step, track, goes_on)


def _find(space: np.ndarray, runs_on: np.ndarray, wanted: np.ndarray) -> tuple[int, int]:
    """The step and track from which rows below each other hold examples of the lengths `wanted`, with the least space to spare and
    of such the earliest; (-1, -1) if there are none."""
    starts = len(space) - len(wanted) + 1
    if starts <= 0:
        return -1, -1
    fits, spare = np.ones((starts, space.shape[1]), bool), np.zeros((starts, space.shape[1]), np.int64)
    for n, length in enumerate(wanted.tolist()):
        here = space[n : n + starts]
        fits &= here >= length
        if n:
            fits &= ~runs_on[n : n + starts]
        spare += here
    place = int(np.where(fits, spare, np.iinfo(np.int64).max).argmin())
    at, where = divmod(place, space.shape[1])
    return (at, where) if fits[at, where] else (-1, -1)

"""Runs: stretches of one long array, given by where they start and how long they are."""

from __future__ import annotations

import numpy as np


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64[sum(lengths)]: start, start + 1, ... of every run, end to end; the index that gathers all runs at once."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def bounds_of(lengths: np.ndarray) -> np.ndarray:
    """int64[D + 1]: where runs of these lengths begin when they lie end to end, and where the last one ends."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds

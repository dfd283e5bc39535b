"""Where a training step's memory comes from."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""mallopt(3)"""


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed blocks for the next step instead of giving them back to the system; say whether it will.

    A step frees and asks for the same large arrays again and again, and the system must find and clear every page anew: 10 to
    15% of a small model's step on a CPU. The process then holds its peak until it ends. Elsewhere than in glibc: no effect.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(MMAP_THRESHOLD, 1 << 30), mallopt(TRIM_THRESHOLD, (1 << 31) - 1), mallopt(TOP_PAD, 1 << 26)])

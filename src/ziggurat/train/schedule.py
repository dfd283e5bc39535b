"""The learning rate over a stage, as a multiple of its peak."""

from __future__ import annotations

import math
from typing import Protocol

from ziggurat.errors import check

HINT = "shorten the warm-up or the decay, or write them as fractions of the stage (warmup: 0.06)"


class ScheduleSpec(Protocol):
    """What `rate` reads; the recipe's `Schedule`."""

    @property
    def kind(self) -> str: ...
    @property
    def warmup(self) -> float: ...
    @property
    def floor(self) -> float: ...
    @property
    def decay(self) -> float: ...


def rate(step: int, *, steps: int, spec: ScheduleSpec) -> float:
    """The multiple of the peak learning rate for update `step` (counted from 0) of a stage of `steps` updates.

    Warm-up rises by 1/(w + 1) an update, so no update is wasted at rate 0, and the peak is update w. Then, with t from 0 at
    the peak to 1 just after the last update (as Hugging Face counts), the rate falls to `floor`:

        constant   1
        linear     1 - t
        cosine     (1 + cos(pi t)) / 2                  (Loshchilov and Hutter, 2017)
        wsd        1, then 1 - t over the last `decay`  (warm-up, stable, decay; Hu et al., 2024)

    `warmup` and `decay` below 1 are fractions of the stage (rounded down), from 1 on numbers of updates. Raises `UserError` if
    they do not fit into the stage.
    """
    warmup, decay = _ends(steps, spec)
    check(not (wrong := misfit(steps, spec)), wrong, HINT)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = steps - decay if spec.kind == "wsd" else warmup
    t = min(max(step - start, 0) / max(steps - start, 1), 1.0)
    falls = {"constant": 1.0, "linear": 1 - t, "wsd": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2}
    return 1.0 if spec.kind == "constant" else spec.floor + (1 - spec.floor) * falls[spec.kind]


def misfit(steps: int | None, spec: ScheduleSpec) -> str:
    """Why warm-up and decay do not fit into a stage of `steps` updates; empty if they do. None: their number is not known yet, and only
    fractions can be judged."""
    if steps is None:
        beyond = spec.kind == "wsd" and spec.warmup < 1 and spec.decay < 1 and spec.warmup + spec.decay > 1
        return f"a schedule with {spec.warmup:g} of the stage for warm-up and {spec.decay:g} for decay" if beyond else ""
    warmup, decay = _ends(steps, spec)
    if warmup < max(steps, 1) and warmup + decay <= max(steps, 1):
        return ""
    return (
        f"a schedule with {warmup} updates of warm-up" + (f" and {decay} of decay" if decay else "") + f" in a stage of {steps}"
    )


def _ends(steps: int, spec: ScheduleSpec) -> tuple[int, int]:
    """Updates of warm-up and of decay."""
    return length(spec.warmup, steps), length(spec.decay, steps) if spec.kind == "wsd" else 0


def length(part: float, steps: int) -> int:
    """Updates in a part of a stage: a fraction of it below 1, a number of updates from 1 on."""
    return int(part * steps + 1e-6) if part < 1 else int(part)

"""From verdicts to what to do: one sentence for whoever has to decide on the next run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ziggurat.pipeline.table import duration
from ziggurat.pipeline.worth import Gain, Ledger, stage_name


def advice(ledger: Ledger) -> str:
    """Which stages to keep, to leave out, or to measure again, and whether a baseline makes all of them needless; empty without stages.

    A stage is kept that paid, or that belongs to a pipeline which pays only as a whole. A stage before one that paid is not to be left
    out unmeasured: what paid began from it.
    """
    by_verdict: dict[str, list[Gain]] = {}
    for gain in ledger.gains:
        by_verdict.setdefault(gain.verdict, []).append(gain)
    paid, level = by_verdict.get("paid", []), by_verdict.get("no measurable gain", [])
    costly, doubtful = by_verdict.get("cost", []), by_verdict.get("undecided", [])
    parts = []
    if paid:
        parts.append(f"keep {_names(paid)}")
        before = ledger.gains[: ledger.gains.index(paid[-1])]
        for gain in [g for g in before if g in level or g in costly]:
            found = "had no measurable gain by itself" if gain in level else "made the score worse by itself"
            later = _names([g for g in paid if g in ledger.gains[ledger.gains.index(gain) :]])
            parts.append(
                f"{_names([gain])} {found}, but {later} began from it and paid: measure without it before leaving it out"
            )
        level, costly = ([g for g in some if g not in before] for some in (level, costly))
    elif level and ledger.total is not None and ledger.total.verdict == "paid":
        parts.append(f"keep {_names(level)}: {'together they pay' if len(level) > 1 else 'with the others it pays'}")
        level = []
    if costly:
        parts.append(f"leave out {_names(costly)}, which made the score worse")
    if level:
        spent = sum(ledger.after[g.after].seconds for g in level if g.after in ledger.after)
        price = f", {duration(spent)} without a measurable gain," if spent else ", without a measurable gain,"
        parts.append(f"leave out {_names(level)}{price} or give {'it' if len(level) == 1 else 'them'} more text or another rate")
    fallen = {p.name for p in ledger.prefixes if p.fallen}
    if unlearnt := [g for g in doubtful if fallen.issuperset((g.before, g.after))]:
        everywhere = all(fallen.issuperset((g.before, g.after)) for g in ledger.gains)
        where = "with any start" if everywhere else "before or after it" if len(unlearnt) == 1 else "before or after them"
        parts.append(
            f"the fine-tuning learnt nothing {where}: try another rate or more epochs before deciding on {_names(unlearnt)}"
        )
    if unsure := [g for g in doubtful if g not in unlearnt]:
        how = "at least three seeds" if len(ledger.seeds) < 3 else "more seeds"
        parts.append(f"run {how} before deciding on {_names(unsure)}")
    if parts and (name := _better_baseline(ledger)):
        parts.append(f"and first ask whether {name} does, which beats all of this")
    return f"Advice: {'; '.join(parts)}." if parts else ""


def _names(gains: Sequence[Gain]) -> str:
    names = [stage_name(g.after) for g in gains]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _better_baseline(ledger: Ledger) -> str:
    """The best baseline, if it is better than every prefix."""
    sign = 1 if ledger.better == "higher" else -1
    means = [sign * p.mean for p in ledger.prefixes if math.isfinite(p.mean)]
    scores = {name: score for name, score in ledger.baselines.items() if math.isfinite(score)}
    name, score = max(scores.items(), key=lambda item: sign * item[1], default=("", math.nan))
    return name if means and sign * score > max(means) else ""

"""The report's table of a fine-tuning of several tasks, one row a task. `tasks` are described in `report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ziggurat.pipeline.table import VERDICTS, between, label, scored

if TYPE_CHECKING:
    from ziggurat.pipeline.worth import Ledger


def table(tasks: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and one row a task: its rows, its baselines, its score from every prefix, and what all stages together were worth to it."""
    if not tasks:
        return [], []
    first: Ledger = tasks[0]["worth"]
    prefixes = [prefix.name for prefix in first.prefixes]
    header = [
        "task",
        "objective",
        "labelled rows",
        "test rows",
        "test metric",
        "baselines",
        *(f"from {name}" for name in prefixes),
    ]
    header += [f"gain [{100 * first.confidence:.0f}%]", "verdict"] if first.total else []
    rows = []
    for one in tasks:
        ledger: Ledger = one["worth"]
        beside = ", ".join(f"{name} {ledger.show(score)}" for name, score in ledger.baselines.items())
        row = [one["task"], one["kind"], f"{one['rows']:,}", f"{one['test']:,}", label(ledger.metric), beside]
        row += [scored(ledger, prefix) for prefix in ledger.prefixes]
        if ledger.total:
            total = ledger.total
            row += [f"{ledger.show(total.mean, signed=True)} {between(total, ledger)}".rstrip(), VERDICTS[total.verdict]]
        rows.append(row)
    return header, rows


def sentences(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(verdict, sentence) of what each stage was worth to each task."""
    found: list[tuple[str, str]] = []
    for one in tasks:
        ledger: Ledger = one["worth"]
        gains = [*ledger.gains, *ledger.controls, *([ledger.total] if ledger.total and len(ledger.gains) > 1 else [])]
        found += [(gain.verdict, f"{one['task']}: {gain.sentence}") for gain in gains]
    return found


def notes(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must not miss about the tasks: collapsed runs, baselines that win."""
    return [f"{one['task']}: {note}" for one in tasks for note in one["worth"].notes]

"""Parts of the report that tell what was known and decided before anything was trained: findings, and starts that were chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ziggurat.pipeline.table import duration

Table = Callable[[Sequence[str], Sequence[tuple[Sequence[str], str]]], str]
LOOK = {"error": "cost", "warning": "undecided", "note": "no"}


def choices(facts: Mapping[str, Any], table: Table) -> str:
    """Which start was chosen for which stage, and why."""
    out = ""
    for choice in facts.get("choices", ()):
        said = f"{choice['stage']} starts from {choice['why']}."
        out += f"<h2>Which start fits</h2><p>{escape(said)}</p>{table(choice['header'], [(row, '') for row in choice['rows']])}"
    return out


def findings(facts: Mapping[str, Any], table: Table) -> str:
    """What the doctor found, and what it said the stages would take."""
    found = facts.get("doctor") or {}
    if not found:
        return ""
    items = [
        f'<li><span class="chip {LOOK[f["level"]]}">{f["level"]}</span><span>{escape(f["where"])}: {escape(f["message"])} '
        f"<small>{escape(f['hint'])}</small></span></li>"
        for f in found.get("findings", ())
    ]
    said = f'<ul class="verdicts">{"".join(items)}</ul>' if items else '<p class="quiet">The doctor found nothing.</p>'
    took = {s["name"]: s["seconds"] for s in facts.get("stages", ()) if s.get("seconds")}
    sizes = (found.get("estimate") or {}).get("stages", ())
    timed = [
        ([s["name"], duration(s["training"]), duration(took[s["name"]]), f"{s['memory']['total'] / 2**20:,.0f} MiB"], "")
        for s in sizes
        if s.get("steps") and s["name"] in took
    ]
    header = ["stage", "training time, estimated", "measured", "memory, estimated"]
    return f"<h2>Before the run</h2>{said}{table(header, timed) if timed else ''}"

"""The part of a report that sets what a stage gained on its own text beside what it lost on general text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from ziggurat.pipeline.charts import Row, Series, dot_chart, line_chart
from ziggurat.pipeline.table import shifts

COLORS = {"gain": "var(--good)", "forgetting": "var(--bad)"}


def section(facts: Mapping[str, Any], colors: Mapping[str, str], table: Callable[..., str]) -> str:
    """Picture and table of all stages, and a picture for each whose weights were interpolated; `table` writes a table's HTML."""
    header, body = shifts(facts)
    rows = []
    for s in facts.get("stages", ()):
        moved = s.get("shift") or {}
        for kind, color in COLORS.items():
            for source, value in moved.get(kind, {}).items():
                span = min(value, 0.0), max(value, 0.0)
                rows.append(Row(f"{s['name']}: {kind}, {source}", {}, frozenset(), value, *span, f"{value:+.3f}", color))
    if not body:
        return ""
    said = (
        "Gain: how far the loss on the stage's own text fell; forgetting: how far the loss on general text rose; both on held-out text, from "
        "the weights the stage began with to those it handed on."
    )
    if any(s.get("probes") for s in facts["stages"]):
        said += (
            " Probes: the score of a linear model on frozen features, in points, before and after, with the change and its standard error over "
            "the folds of a repeated cross-validation on held-out rows."
        )
    chart = dot_chart(rows, label="nats a predicted token", zero=True, form=lambda v: f"{v:+.2f}") if rows else ""
    lines = "".join(_line(s, colors) for s in facts["stages"] if s.get("interpolation"))
    return f'<h2>Gain and forgetting</h2><p class="quiet">{said}</p>{chart}{table(header, [(row, "") for row in body])}{lines}'


def _line(stage: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    """Change of the loss on every source on the way from a stage's start to what it trained."""
    points, chosen = stage["interpolation"]["points"], stage["interpolation"]["chosen"]
    first = points[0]["losses"]
    drawn = [
        Series(source, [(p["share"], p["losses"][source] - loss) for p in points], colors.get(source, "var(--series-1)"))
        for source, loss in first.items()
    ]
    legend = "".join(f'<span><i style="background:{s.color}"></i>{escape(s.name)}</span>' for s in drawn)
    title = f"{escape(str(stage['name']))}: between its start (0) and what it trained (1); {chosen:g} was chosen"
    chart = line_chart(drawn, x_label="share of the way", y_label="change of loss")
    return f'<div class="panel"><h3>{title}</h3><div class="legend">{legend}</div>{chart}</div>'

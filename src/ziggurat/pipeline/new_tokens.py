"""The part of a report that says what new tokens bought: shorter texts, and the loss for each byte of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from ziggurat.pipeline.charts import Row, dot_chart
from ziggurat.pipeline.table import bought


def section(facts: Mapping[str, Any], table: Callable[..., str]) -> str:
    """Table, picture and names; empty where no stage has new tokens. `table` writes a table's HTML."""
    header, rows = bought(facts)
    if not rows:
        return ""
    lines = []
    for one in facts["vocabularies"]:
        for source, row in one["sources"].items():
            dots = {when: v for when, v in row["bits_per_byte"].items() if v is not None}
            if dots:
                last = row["bits_per_byte"].get("after")
                lines.append(Row(f"{one['stage']}: {source}", dots, center=last, text="" if last is None else f"{last:.3f}"))
    said = (
        "A loss for each token would fall or rise with the length of the tokens alone; bits for each byte of held-out text do not. Dots: the "
        "start; with the new rows, before a step; bar: after the stage."
    )
    chart = dot_chart(lines, label="bits/byte", form="{:.3f}".format) if lines else ""
    names = "".join(
        f'<p class="quiet">{escape(one["stage"])}, pieces and times on the sample: '
        + escape(", ".join(f"{text} ({pieces}, {times:,})" for text, pieces, times in one["examples"]))
        + "</p>"
        for one in facts["vocabularies"]
    )
    return f'<h2>New tokens</h2><p class="quiet">{said}</p>{table(header, [(row, "") for row in rows])}{chart}{names}'

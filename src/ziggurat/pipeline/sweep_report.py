"""A sweep for people and programs: a table for the terminal, `sweep.html` (one file, nothing fetched), `sweep.json`, `sweep.csv`."""

from __future__ import annotations

import csv
import io
import math
import os
import shlex
from collections import defaultdict
from collections.abc import Sized
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ziggurat.atomic import write_text
from ziggurat.pipeline.charts import Series, line_chart
from ziggurat.pipeline.grid import said
from ziggurat.pipeline.page import page, setting, table
from ziggurat.pipeline.sweep_results import Point, Sweep
from ziggurat.pipeline.table import duration, label

if TYPE_CHECKING:
    from rich.console import RenderableType

RATES = ("lr", "eps", "weight_decay")
"""Fields that are drawn over a logarithmic axis."""
WIDE = 8.0
"""So is any field whose largest value is that many times the smallest."""


def write_results(folder: Path, sweep: Sweep) -> Path:
    """sweep.html, sweep.json and sweep.csv in `folder` (made if missing); returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in {"html": html(sweep), "json": sweep.to_json() + "\n", "csv": to_csv(sweep)}.items():
        write_text(folder / f"sweep.{ending}", text)
    return folder / "sweep.html"


def to_csv(sweep: Sweep) -> str:
    """One line a run; numbers as they are in the JSON file, not as they are shown."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["point", *sweep.grid, "seed", "metric", "score", "steps", "problem", "mean", "deviation", "best"])
    for p in sweep.points:
        for seed, score in p.scores.items():
            best = "best" if p is sweep.best else ""
            run = [seed, sweep.metric, _number(score), p.steps[seed], p.fallen.get(seed, "")]
            writer.writerow([p.name, *map(said, p.changes.values()), *run, _number(p.mean), _number(p.deviation), best])
    return out.getvalue()


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""


def rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a point a row, in the order of the grid."""
    several = len(sweep.seeds) > 1
    header = [*sweep.grid, sweep.measure, *(f"seed {seed}" for seed in sweep.seeds if several), "training", ""]
    found = []
    for p in sweep.points:
        each = [sweep.show(p.scores[seed]) + ("*" if seed in p.fallen else "") for seed in sweep.seeds if several]
        mark = "best" if p is sweep.best else "" if p.ranked else "not ranked"
        found.append([*map(said, p.changes.values()), _scored(sweep, p), *each, duration(p.seconds), mark])
    return header, found


def _scored(sweep: Sweep, p: Point) -> str:
    """Mean and deviation; never without the number of runs in it that collapsed or diverged."""
    text = sweep.show(p.mean) + (f" ± {sweep.show(p.deviation)}" if math.isfinite(p.deviation) else "")
    if p.fallen:
        without = f", {sweep.show(p.sound)} without" if p.sound is not None else ""
        text += f" ({len(p.fallen)} of {len(p.scores)} failed{without})"
    return text


def _counted(some: Sized, what: str) -> str:
    return f"{len(some)} {what}{'s' * (len(some) != 1)}"


def _legend(sweep: Sweep) -> str:
    several = (
        f"mean ± standard deviation over {len(sweep.seeds)} seeds" if len(sweep.seeds) > 1 else f"one seed, {sweep.seeds[0]}"
    )
    failed = "; failed (*): collapsed or diverged" if any(p.fallen for p in sweep.points) else ""
    return f"{several}; {sweep.better} is better{failed}"


def on_test_rows(sweep: Sweep) -> str:
    """The test score of the best point, in a sentence; empty where there is none."""
    if not sweep.test or sweep.best is None:
        return ""
    values = list(sweep.test.values())
    spread = f" ± {sweep.show(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
    return f"On the test rows, which chose nothing, {sweep.best.name} has {label(sweep.metric)} {sweep.show(float(np.mean(values)))}{spread}."


def terminal_table(sweep: Sweep) -> RenderableType:
    """The table and the sentences below it, as something `rich.print` shows."""
    from rich import box
    from rich.console import Group
    from rich.markup import escape as plain
    from rich.table import Table

    header, found = rows(sweep)
    title = plain(f"{sweep.recipe}: {sweep.stage}, {_counted(sweep.points, 'point')}")
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1), pad_edge=False)
    for n, name in enumerate(header):
        made.add_column(plain(name), justify="left" if n < len(sweep.grid) else "right", overflow="fold")
    for row in found:
        made.add_row(*map(plain, row), style="bold" if row[-1] == "best" else "dim" if row[-1] else None)
    said_all = [*sweep.sentences, *([text] if (text := on_test_rows(sweep)) else [])]
    return Group(made, _legend(sweep), *map(plain, said_all), *(f"[yellow]{plain(note)}[/]" for note in sweep.notes))


# ---- the page ------------------------------------------------------------------------------------------------------


def html(sweep: Sweep) -> str:
    """The whole page."""
    bits = [_counted(sweep.points, "point"), _counted(sweep.seeds, "seed"), *_date(sweep)]
    parts = [
        f'<header><h1>{escape(sweep.recipe)}: {escape(sweep.stage)}</h1><p class="facts"><b>{escape(", ".join(sweep.grid))}</b> '
        f"&nbsp;·&nbsp; {' &nbsp;·&nbsp; '.join(map(escape, bits))}</p></header>"
    ]
    parts += [f'<p class="note">{escape(note)}</p>' for note in sweep.notes]
    parts += [_figures(sweep), *(f"<p>{escape(text)}</p>" for text in (*sweep.sentences, on_test_rows(sweep)) if text)]
    parts += [_taken(sweep), _pictures(sweep)]
    said_below = (
        f"{_legend(sweep)}. The best of many points looks better on the rows that chose it than it is; test rows chose nothing."
    )
    parts += [f'<h2>Table</h2><p class="quiet">{escape(said_below)}</p>', table(*rows(sweep))]
    parts += [setting(sweep.facts.get("setting", {}).items(), sweep.facts.get("command", ""))]
    return page(f"{sweep.recipe}: {sweep.stage}", parts)


def _date(sweep: Sweep) -> list[str]:
    return [str(sweep.facts["date"])] if sweep.facts.get("date") else []


def _figures(sweep: Sweep) -> str:
    if sweep.best is None:
        return ""
    several = len(sweep.seeds) > 1
    spread = f"± {sweep.show(sweep.best.deviation)}" if several else ""
    cards = [(sweep.show(sweep.best.mean), spread, f"{sweep.measure}, {sweep.best.name}")]
    if sweep.runner_up is not None:
        unit = "points" if sweep.shown_as_points else ""
        cards.append((sweep.show(sweep.difference), unit, f"better than {sweep.runner_up.name}"))
    if sweep.test:
        cards.append((sweep.show(float(np.mean(list(sweep.test.values())))), "", f"{label(sweep.metric)} on the test rows"))
    made = (
        f'<div class="figure"><strong>{escape(a)} <small>{escape(b)}</small></strong><span>{escape(c)}</span></div>'
        for a, b, c in cards
    )
    return f'<div class="figures">{"".join(made)}</div>'


def _taken(sweep: Sweep) -> str:
    return f"<pre>{escape(' '.join(sweep.overrides))}</pre>" if sweep.overrides else ""


def _pictures(sweep: Sweep) -> str:
    """Score over each field that has several values: a line for each combination of the others."""
    fields = [name for name in sweep.grid if len(sweep.grid[name]) > 1]
    charts = "".join(f'<div class="panel"><h3>{escape(name)}</h3>{_picture(sweep, name)}</div>' for name in fields)
    if not charts:
        return ""
    text = "Lines are means over seeds, pale dots the seeds. A run without a score is not drawn, nor the mean of its point."
    return f'<h2>Score by value</h2><p class="quiet">{text}</p><div class="panels">{charts}</div>'


def _picture(sweep: Sweep, name: str) -> str:
    values = list(sweep.grid[name])
    if numeric := all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        values = sorted(values)
    log = numeric and values[0] > 0 and (name.split(".")[-1] in RATES or values[-1] >= WIDE * values[0])
    at = {said(v): float(v) if numeric else float(n) for n, v in enumerate(values)}
    scale = 100 if sweep.shown_as_points else 1
    lines: dict[str, list[Point]] = defaultdict(list)
    for p in sweep.points:
        lines[", ".join(f"{k}={said(v)}" for k, v in p.changes.items() if k != name)].append(p)
    series = []
    for n, (others, points) in enumerate(lines.items()):
        color = f"var(--series-{n % 5 + 1})"
        place = {p.name: at[said(p.changes[name])] for p in points}
        points = sorted(points, key=lambda p: place[p.name])
        if len(sweep.seeds) > 1:
            for seed in sweep.seeds:
                dots = [(place[p.name], scale * p.scores[seed]) for p in points]
                series.append(Series(f"{others} seed {seed}".strip(), dots, color, dots=True))
        series.append(Series(others or "mean", [(place[p.name], scale * p.mean) for p in points], color))
    unit = sweep.measure + (", points" if sweep.shown_as_points else "")
    chart = line_chart(series, x_label=name, y_label=unit, x_ticks={x: text for text, x in at.items()}, log=log)
    keys = [(others, f"var(--series-{n % 5 + 1})") for n, others in enumerate(lines)]
    legend = "".join(f'<span><i style="background:{c}"></i>{escape(others)}</span>' for others, c in keys if others)
    return f'<div class="legend">{legend}</div>{chart}' if legend else chart


def show(sweep: Sweep) -> None:
    """Print the table, where the page is, and what takes the best point into the recipe."""
    from rich.console import Console

    console = Console(width=None if os.isatty(1) else 200)
    console.print(terminal_table(sweep))
    console.print(f"report: {Path(sweep.folder) / 'sweep.html'}", markup=False, highlight=False)
    if sweep.overrides:
        console.print("the best point in the recipe:", shlex.join(sweep.overrides), markup=False, highlight=False, soft_wrap=True)

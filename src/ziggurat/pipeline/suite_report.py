"""A suite's results for people and programs: a table for the terminal, `results.html` (one file, nothing fetched), `.json`, `.csv`."""

from __future__ import annotations

import csv
import io
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.atomic import write_text
from ziggurat.evaluate.scores import METRICS
from ziggurat.pipeline.charts import Row, dot_chart
from ziggurat.pipeline.page import page, setting, table
from ziggurat.pipeline.suite_results import CONFIDENCE, Results, Score, TaskResult
from ziggurat.pipeline.table import duration, label
from ziggurat.pipeline.worth import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = (
    "suite", "task", "metric", "model", "kind", "mean", "deviation", "low", "high", "seeds", "scores", "collapsed", "train_rows",
    "test_rows", "seconds", "without",
)  # fmt: skip
"""Of the CSV file: one line a task and model; numbers as they are in the JSON file, not as they are shown."""


def write_results(folder: Path, results: Results) -> Path:
    """results.html, results.json and results.csv in `folder` (made if missing); returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"html": html(results), "json": results.to_json() + "\n", "csv": to_csv(results)}
    for ending, text in pages.items():
        write_text(folder / f"results.{ending}", text)
    return folder / "results.html"


def to_csv(results: Results) -> str:
    """One line a task and model, and one a task that was not scored."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for t in results.tasks:
        for s in t.models:
            low, high = s.interval or (None, None)
            numbers = [_number(v) for v in (s.mean, s.deviation, low, high)]
            runs = [
                " ".join(map(str, s.scores)),
                " ".join(_number(v) for v in s.scores.values()),
                " ".join(map(str, s.collapsed)),
            ]
            rest = [t.train_rows, t.test_rows, _number(s.seconds), s.without]
            writer.writerow([results.suite, t.task, t.metric, s.model, s.kind, *numbers, *runs, *rest])
        if not t.models:
            writer.writerow([results.suite, t.task, t.metric, *[""] * (len(COLUMNS) - 4), t.without])
    return out.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def grid(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: tasks down, baselines and checkpoints across, then differences to the first checkpoint."""
    names = list(results.checkpoints)
    floor = list(dict.fromkeys(s.model for t in results.scored for s in t.models if s.kind == "baseline"))
    kinds = ["majority" if n in ("majority", "mean") else n.partition(" + ")[0] for n in floor]
    columns = list(dict.fromkeys(kinds))
    header = ["task", "metric", "rows", *columns, *names, *(f"{n} − {names[0]}" for n in names[1:])]
    rows = []
    for t in results.scored:
        row = [t.task, label(t.metric), f"{t.train_rows:,} / {t.test_rows:,}"]
        by_column = {kind: s for name, kind in zip(floor, kinds) if (s := t.of(name, "baseline")) is not None}
        row += [t.show(by_column[c].mean) if c in by_column else "" for c in columns]
        row += [_scored(t, t.of(n, "checkpoint")) for n in names]
        found = {d.model: d for d in t.differences}
        for n in names[1:]:
            d = found.get(n)
            span = max((i for i in (d.over_seeds, d.over_examples) if i), key=lambda i: i[1] - i[0], default=None) if d else None
            between = f" [{t.show(span[0])}, {t.show(span[1])}]" if span else ""
            row.append(f"{t.show(d.mean, signed=True)}{between} {d.verdict}" if d else "")
        rows.append(row)
    if len(results.mean_of) > 1:
        doubt = {
            n: any(s.collapsed for t in results.scored if t.task in results.mean_of and (s := t.of(n, "checkpoint")))
            for n in names
        }
        cells = [shown(results.means[n], True) + (" (with collapsed runs)" if doubt[n] else "") for n in names]
        rows.append([f"mean of {len(results.mean_of)}", "", "", *[""] * len(columns), *cells, *[""] * (len(names) - 1)])
    return header, rows


def _scored(task: TaskResult, score: Score | None) -> str:
    """Mean, deviation over seeds and interval over test examples; never without the number of collapsed runs in it."""
    if score is None or score.without:
        return "not scored"
    text = task.show(score.mean) + (f" ± {task.show(score.deviation)}" if len(score.scores) > 1 else "")
    text += f" [{task.show(score.interval[0])}, {task.show(score.interval[1])}]" if score.interval else ""
    if score.collapsed:
        text += f" ({len(score.collapsed)} of {len(score.scores)} collapsed"
        text += f", without {task.show(score.sound)})" if score.sound is not None else ")"
    return text


def _left_out(results: Results) -> list[tuple[str, str]]:
    """What was not scored, and why."""
    some = [(t.task, t.without) for t in results.left_out]
    return some + [(f"{t.task}, {s.model}", s.without) for t in results.scored for s in t.models if s.without]


def terminal_table(results: Results) -> RenderableType:
    """The table and the sentences below it, as something `rich.print` shows."""
    from rich import box
    from rich.console import Group
    from rich.markup import escape as plain
    from rich.table import Table

    header, rows = grid(results)
    title = plain(f"{results.suite}: {', '.join(results.checkpoints)}")
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1), pad_edge=False)
    for i, name in enumerate(header):
        made.add_column(plain(name), justify="left" if i < 2 else "right", overflow="fold")
    for n, row in enumerate(rows):
        made.add_row(*map(plain, row), end_section=n + 1 == len(results.scored))
    parts: list[Any] = [made, _legend(results)]
    parts += [f"{t.task}: {plain(d.sentence)}" for t in results.scored for d in t.differences]
    parts += [f"[yellow]{plain(note)}[/]" for note in results.notes]
    parts += [f"not scored: {plain(name)}: {plain(why)}" for name, why in _left_out(results)]
    return Group(*parts)


def _legend(results: Results) -> str:
    seeds = f"mean ± standard deviation over {len(results.seeds)} seeds" if len(results.seeds) > 1 else "one seed"
    return f"{seeds} [{100 * CONFIDENCE:.0f}% interval, test examples resampled]; rows: training / test"


def html(results: Results) -> str:
    """The whole page."""
    bits = [f"{len(results.scored)} of {len(results.tasks)} tasks scored", f"{len(results.seeds)} seeds"]
    bits += [str(results.facts["date"])] if results.facts.get("date") else []
    parts = [
        f'<header><h1>{escape(results.suite)}</h1><p class="facts"><b>{escape(", ".join(results.checkpoints))}</b> &nbsp;·&nbsp; '
        f"{' &nbsp;·&nbsp; '.join(map(escape, bits))}</p></header>"
    ]
    parts += [f"<p>{escape(results.about)}</p>"] if results.about else []
    parts += [f'<p class="note">{escape(note)}</p>' for note in results.notes]
    parts += [_picture(results), _differences(results), _tables(results), _missing(results), _setting(results)]
    return page(results.suite, parts)


def _picture(results: Results) -> str:
    """Every task a group of rows, every checkpoint a colour, with the task's baselines as dashes."""
    colors = {name: f"var(--series-{i % 5 + 1})" for i, name in enumerate(results.checkpoints)}
    rows = []
    for t in results.scored:
        marks = {s.model: 100 * s.mean for s in t.models if s.kind == "baseline"}
        for s in t.models if t.points else ():
            if s.kind == "checkpoint" and s.scores:
                dots = {f"seed {seed}": 100 * v for seed, v in s.scores.items()}
                hollow = frozenset(f"seed {seed}" for seed in s.collapsed)
                low, high = (100 * s.interval[0], 100 * s.interval[1]) if s.interval else (None, None)
                name = t.task if len(colors) == 1 else f"{t.task} · {s.model}"
                rows.append(Row(name, dots, hollow, 100 * s.mean, low, high, t.show(s.mean), colors[s.model], marks))
    if not rows:
        return ""
    legend = "".join(f'<span><i style="background:{c}"></i>{escape(name)}</span>' for name, c in colors.items())
    said = "Dots are seeds, hollow ones collapsed runs; bars are means, bands 95% intervals over test examples, dashes the task's baselines."
    chart = dot_chart(rows, label="the task's metric, times 100", form=lambda v: shown(v / 100, True), pitch=34)
    return f'<h2>Scores</h2><p class="quiet">{said}</p><div class="legend">{legend}</div>{chart}'


def _differences(results: Results) -> str:
    items = "".join(
        f'<li><span class="chip {d.verdict.split()[0]}">{d.verdict}</span><span>{escape(t.task)}: {escape(d.sentence)}</span></li>'
        for t in results.scored
        for d in t.differences
    )
    said = "Paired by seed and test example. A difference counts only if the interval over seeds (Student's t) and the one over examples "
    said += "(bootstrap) both keep clear of zero, with three seeds or more."
    return f'<h2>Differences</h2><ul class="verdicts">{items}</ul><p class="quiet">{said}</p>' if items else ""


def _tables(results: Results) -> str:
    out = f'<h2>Table</h2><p class="quiet">{escape(_legend(results))}</p>{table(*grid(results))}'
    runs = []
    for t in results.scored:
        for s in t.models:
            if s.scores:
                each = ", ".join(t.show(v) + (" (collapsed)" if seed in s.collapsed else "") for seed, v in s.scores.items())
                more = ", ".join(f"{label(m)} {shown(v, m not in METRICS or METRICS[m].points)}" for m, v in s.further.items())
                runs.append([t.task, s.model, each, more, duration(s.seconds) if s.seconds else ""])
    return out + "<h2>Every run</h2>" + table(["task", "model", "score by seed", "further metrics", "training"], runs)


def _missing(results: Results) -> str:
    found = _left_out(results)
    return "<h2>Not scored</h2>" + table(["task", "why"], [list(row) for row in found]) if found else ""


def _setting(results: Results) -> str:
    facts = results.facts
    pairs = [*results.checkpoints.items(), *facts.get("versions", {}).items()]
    pairs += [("machine", facts["machine"])] if facts.get("machine") else []
    about = [[t.task, t.objective, t.about, f"{t.leaks:,}" if t.leaks else ""] for t in results.tasks]
    asked = table(["task", "objective", "about", "training rows left out: hold a test row"], about)
    return f"<h2>Tasks</h2>{asked}{setting(pairs, facts.get('command', ''))}"

"""What every stage took and brought, as one table for the page and the terminal. `facts` are described in `report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ziggurat.pipeline.charts import count
from ziggurat.pipeline.worth import After, Gain, Ledger, Prefix

if TYPE_CHECKING:
    from rich.console import RenderableType

VERDICTS = {"paid": "paid", "cost": "cost", "no measurable gain": "no gain", "undecided": "undecided"}
"""A verdict in a narrow column."""


def account(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]], int]:
    """Header, rows and number of leading baseline rows of the table that says what every stage took and brought."""
    ledger: Ledger | None = facts.get("worth")
    steps = after_by_prefix(facts)
    sources = list(dict.fromkeys(s for a in steps.values() for s in a.heldout))
    header = ["" if ledger else "stage"]
    if ledger:
        header += [f"test {label(ledger.metric)}", f"gain [{100 * ledger.confidence:.0f}%]", "verdict"]
    costs = ["tokens", "time", "tokens/s"] if steps else []
    header += [f"{s} {facts.get('loss', 'loss')}" for s in sources] + costs
    rows: list[list[str]] = []
    blank = [""] * (len(sources) + len(costs))
    for name, score in baselines(facts).items() if ledger else ():
        rows.append([name, ledger.show(score) if ledger else "", "", "", *blank])
    leading = len(rows)
    gains = {g.after: g for g in (*ledger.controls, *ledger.gains)} if ledger else {}
    prefixes: Sequence[Prefix | None] = ledger.prefixes if ledger else [None] * len(steps)
    for prefix, name in zip(prefixes, [p.name for p in ledger.prefixes] if ledger else steps):
        row = [name]
        if ledger and prefix:
            g = gains.get(name)
            row.append(scored(ledger, prefix))
            row += [f"{ledger.show(g.mean, signed=True)} {between(g, ledger)}".rstrip(), VERDICTS[g.verdict]] if g else ["", ""]
        a = steps.get(name)
        row += [f"{a.heldout[s]:.3f}" if a and s in a.heldout else "" for s in sources]
        if costs:
            row += [count(a.tokens), duration(a.seconds), count(a.tokens_per_second)] if a and a.seconds else ["", "", ""]
        rows.append(row)
    return header, rows, leading


def bought(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that says what each stage's new tokens bought."""
    header = ["new tokens", "source", "tokens a word", "unknown", "bits/byte", "with new rows", "after the stage"]
    rows = []
    for one in facts.get("vocabularies", ()):
        for n, (source, row) in enumerate(one["sources"].items()):
            words, unknown, bits = row["tokens_per_word"], row["unknown_share"], row["bits_per_byte"]
            fit = [
                f"{words['before']:.3f} → {words['after']:.3f}" if words["before"] and words["after"] else "",
                f"{100 * unknown['before']:.2g}% → {100 * unknown['after']:.2g}%" if unknown["before"] is not None else "",
            ]
            found = [f"{bits[when]:.3f}" if bits[when] is not None else "" for when in ("start", "new rows", "after")]
            rows.append([f"{one['stage']}: {one['tokens']:,}" if not n else "", source, *fit, *found])
    return header, rows


def after_by_prefix(facts: Mapping[str, Any]) -> dict[str, After]:
    """The ledger's costs; without a ledger, those of the stages by their names."""
    ledger: Ledger | None = facts.get("worth")
    if ledger:
        return dict(ledger.after)
    return {s["name"]: _after(s) for s in facts.get("stages", ())}


def _after(stage: Mapping[str, Any]) -> After:
    tuned = stage.get("stage") == "finetune"  # its loss is the task's, not the language model's
    losses = {name: float(h["loss"]) for name, h in stage.get("heldout", {}).items() if h.get("loss") is not None and not tuned}
    return After(stage.get("tokens", 0), stage.get("seconds", 0.0), stage.get("tokens_per_second", 0.0), losses)


def scored(ledger: Ledger, prefix: Prefix) -> str:
    """Mean and standard deviation over seeds; never without the number of collapsed runs in it."""
    text = ledger.show(prefix.mean) + (f" ± {ledger.show(prefix.deviation)}" if len(prefix.scores) > 1 else "")
    return text + (f" ({len(prefix.collapsed)} collapsed)" if prefix.collapsed else "")


def between(gain: Gain, ledger: Ledger) -> str:
    """The wider of a gain's intervals, which decides."""
    found = [i for i in (gain.over_seeds, gain.over_examples) if i]
    if not found:
        return ""
    low, high = max(found, key=lambda i: i[1] - i[0])
    return f"[{ledger.show(low)}, {ledger.show(high)}]"


def shifts(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that sets what each stage gained on its own text beside what it lost on general text."""
    rows, asked = [], any(stage.get("probes") for stage in facts.get("stages", ()))
    for stage in facts.get("stages", ()):
        moved = stage.get("shift") or ({"gain": {}, "forgetting": {}, "limit": 0} if stage.get("probes") else None)
        if not moved:
            continue
        gain = ", ".join(f"{name} {fall:+.3f}" for name, fall in moved["gain"].items())
        lost = ", ".join(f"{name} {rise:+.3f}" for name, rise in moved["forgetting"].items())
        passed = any(rise > moved["limit"] for rise in moved["forgetting"].values())
        verdict = "" if not lost else "stopped" if stage.get("stopped") == "forgetting" else "beyond" if passed else "within"
        tasks = [probed(stage.get("probes") or {})] if asked else []
        rows.append([str(stage["name"]), gain, lost, f"{verdict} {moved['limit']:g}" if verdict else "", *tasks])
    header = ["stage", "gain on its own text", "forgotten of general text", "limit"]
    return [*header, *(["probes of general tasks"] if asked else [])], rows


def probed(found: Mapping[str, Mapping[str, float]]) -> str:
    """`agnews 84.1 -> 82.3 (-1.8 +- 0.6)`: scores before and after, their change and its standard error, in points."""
    said = [
        f"{name} {100 * p['before']:.1f} \u2192 {100 * p['after']:.1f} ({100 * p['change']:+.1f} \u00b1 {100 * p['error']:.1f})"
        for name, p in found.items()
    ]
    return ", ".join(said)


def terminal_table(facts: Mapping[str, Any], width: int | None = None) -> RenderableType:
    """The same table and sentences for the end of a run, as something `rich.print` shows.

    On a terminal of fewer than 120 columns (`width`, by default the real one) the table is laid out as two.
    """
    from rich import box, get_console
    from rich.console import Group
    from rich.markup import escape as plain
    from rich.table import Table

    from ziggurat.pipeline import by_task

    header, rows, leading = account(facts)
    ledger: Ledger | None = facts.get("worth")
    tint = {"paid": "green", "cost": "red", "undecided": "yellow"}

    def table(columns: list[int], rows: list[list[str]], leading: int, title: str | None = None) -> Table:
        made = Table(
            title=title,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            title_style="bold",
            padding=(0, 1),
            pad_edge=False,
            collapse_padding=True,
        )
        for i in columns:
            made.add_column(plain(header[i]), justify="right" if i else "left", overflow="fold")
        for n, row in enumerate(rows):
            cells = [f"[{tint[row[i]]}]{row[i]}[/]" if row[i] in tint else plain(row[i]) for i in columns]
            made.add_row(*cells, style="dim" if n < leading else None, end_section=n + 1 == leading)
        return made

    title = plain(f"{facts['name']}: what each stage was worth" if ledger else str(facts["name"]))
    every = list(range(len(header)))
    if not ledger or (width or get_console().width) >= 120:
        tables = [table(every, rows, leading, title)]
    else:
        tables = [table(every[:4], rows, leading, title)]
        tables += [table([0, *every[4:]], rows[leading:], 0)] if len(header) > 4 else []
    head, moved = shifts(facts)
    if moved:
        beside = Table(
            *head, title="gain and forgetting (nats a predicted token)", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
        )
        for line in moved:
            beside.add_row(*map(plain, line), style="yellow" if line[-1].startswith(("beyond", "stopped")) else None)
        tables.append(beside)
    lines = (
        [
            g.sentence
            for g in (*ledger.gains, *ledger.controls, *([ledger.total] if ledger.total and len(ledger.gains) > 1 else []))
        ]
        if ledger
        else []
    )
    lines += [text] if (text := facts.get("advice")) else []
    about = facts.get("tasks", ())
    lines += [text for _, text in by_task.sentences(about)]
    notes = [*facts.get("notes", ()), *(ledger.notes if ledger else ()), *by_task.notes(about)]
    head, moved = by_task.table(about)
    if moved:
        of_tasks = Table(*head, title="the tasks", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for line in moved:
            of_tasks.add_row(*map(plain, line))
        tables.append(of_tasks)
    names, found = bought(facts)
    if found:
        tokens = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
        for i, name in enumerate(names):
            tokens.add_column(name, justify="right" if i > 1 else "left", overflow="fold")
        for row in found:
            tokens.add_row(*map(plain, row))
        tables.append(tokens)
    return Group(*tables, *(plain(line) for line in lines), *(f"[yellow]{plain(note)}[/]" for note in notes))


def baselines(facts: Mapping[str, Any]) -> Mapping[str, float]:
    ledger: Ledger | None = facts.get("worth")
    return facts.get("baselines") or (ledger.baselines if ledger else {})


def label(metric: str) -> str:
    """A metric's name for readers: macro_f1 -> macro F1."""
    return metric.replace("_", " ").replace("f1", "F1").replace("mse", "mean squared error")


def duration(seconds: float) -> str:
    """43 s, 4 min 10 s, 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

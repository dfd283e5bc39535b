"""The end of a run on paper: `report.html` (one file, nothing fetched) and `report.json`.

`facts` is a dict of plain values; every key but `name` may be missing, and its part of the report is then left out:

    name, system        recipe name; e.g. "roberta/tiny"
    parameters          number of weights
    date                when the run ended, as text
    task                what was fine-tuned and tested, in a few words
    metric              name of the test metric
    machine, versions   {what: text}, e.g. {"CPU": "2 cores, bf16"}, {"torch": "2.13.0"}
    tokenizer           one line about it
    stages              in order: {name, stage, data, steps, tokens, seconds, tokens_per_second,
                          curve: [(step, loss)] in training, heldout_curve: {source: [(step, loss)]},
                          heldout: {source: {"loss": nats, and, as there are, perplexity, accuracy, bits_per_byte}}}
                        `stage` is pretrain, dapt, tapt or finetune; losses are means in nats a predicted token; `steps` lead to the weights
                        handed on, tokens and seconds are of the whole training
    (in stages)         shift: {gain, forgetting: {source: nats}, limit}; stopped: why other weights than the last are handed on (forgetting,
                        patience or best), or ""; ended: the last step trained; score: the held-out number chosen by;
                        interpolation: {points: [{share, losses: {source: nats}}], chosen},
                        context: {source: {target, documents, lengths: {length: nats}, positions: [{start, stop, loss, predictions}]}},
                        probes: {task: {rows, before, after, change, error}}
    worth               a `worth.Ledger`, or None
    tasks               of a fine-tuning of several tasks {task, kind, rows, test, worth}, each with a ledger of its own; `worth` is then None
    baselines           {name: test score}; the ledger's own by default
    loss                what the losses are: "loss" (nats a predicted token), or "bits/byte" where stages read other tokens
    vocabularies        what stages' new tokens bought, as `vocabulary.facts` writes it
    sources             {source, documents, tokens, heldout, test, leaks, tokens_per_word, unknown_share}: documents in training, their tokens,
                        documents held out, test documents, and documents removed because they hold a test document
    choices             {stage, why, header, rows, text}: starts that were chosen among several, as `choose.Choice` has them
    doctor              what `doctor.json` holds: findings, and the estimated time of each stage
    config              the recipe as it was resolved, YAML text
    commands            list of command lines that make the run again
    notes               list of sentences to be read first
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ziggurat.atomic import write_text
from ziggurat.pipeline import before, by_task, context_use, forgetting, new_tokens
from ziggurat.pipeline.charts import Row, Series, count, dot_chart, line_chart
from ziggurat.pipeline.page import page
from ziggurat.pipeline.table import VERDICTS, account, baselines, between, duration, label, scored
from ziggurat.pipeline.worth import Ledger, jsonable, shown


def write_report(folder: Path | str, facts: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into `folder` (made if missing); each replaces its older self at once."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = facts.get("worth")
    tasks = [{**one, "worth": one["worth"].to_dict()} for one in facts.get("tasks", ())]
    data = jsonable({**facts, "worth": ledger.to_dict() if ledger else None, "tasks": tasks})
    pages = {
        "report.html": html(facts),
        "report.json": json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False, default=str),
    }
    for name, text in pages.items():
        write_text(folder / name, text)
    return folder / "report.html", folder / "report.json"


def html(facts: Mapping[str, Any]) -> str:
    """The whole page."""
    ledger: Ledger | None = facts.get("worth")
    colors = source_colors(facts)
    parts = [_header(facts)]
    notes = [*facts.get("notes", ()), *(ledger.notes if ledger else ()), *by_task.notes(facts.get("tasks", ()))]
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    if ledger:
        parts += [_figures(ledger), _verdicts(ledger, facts.get("advice", "")), _scores(facts, ledger)]
    parts += [
        _tasks(facts),
        _account(facts),
        before.choices(facts, _table),
        forgetting.section(facts, colors, _table),
        new_tokens.section(facts, _table),
        context_use.section(facts, _table),
        _heldout(facts),
        _curves(facts, colors),
        _sources(facts),
        before.findings(facts, _table),
        _setting(facts),
    ]
    return page(str(facts["name"]), parts)


# ---- parts of the page ---------------------------------------------------------------------------------------------


def _header(facts: Mapping[str, Any]) -> str:
    bits = [f"<b>{escape(str(facts['system']))}</b>"] if facts.get("system") else []
    bits += [f"{count(facts['parameters'])} parameters"] if facts.get("parameters") else []
    bits += [escape(str(facts[key])) for key in ("task", "date") if facts.get(key)]
    return f'<header><h1>{escape(str(facts["name"]))}</h1><p class="facts">{" &nbsp;·&nbsp; ".join(bits)}</p></header>'


def _figures(ledger: Ledger) -> str:
    unit = label(ledger.metric)
    sign = 1 if ledger.better == "higher" else -1
    last = ledger.prefixes[-1]
    mean = ledger.show(last.mean)
    cards = [(mean, scored(ledger, last).removeprefix(mean).strip(), f"{unit} after {last.name}")]
    if ledger.total:
        points = "points" if ledger.points else ""
        cards.append(
            (
                ledger.show(ledger.total.mean, signed=True),
                points,
                f"against {ledger.total.before}, {between(ledger.total, ledger)}",
            )
        )
    if ledger.baselines:
        name, score = max(ledger.baselines.items(), key=lambda item: (item[1] == item[1], sign * item[1]))
        cards.append((ledger.show(score), "", f"best baseline: {name}"))
    made = "".join(
        f'<div class="figure"><strong>{escape(a)} <small>{escape(b)}</small></strong><span>{escape(c)}</span></div>'
        for a, b, c in cards
    )
    return f'<div class="figures">{made}</div>'


def _verdicts(ledger: Ledger, advice: str) -> str:
    gains = [*ledger.gains, *ledger.controls, *([ledger.total] if ledger.total and len(ledger.gains) > 1 else [])]
    if not gains:
        return ""
    items = "".join(f'<li><span class="chip {g.verdict}">{g.verdict}</span><span>{escape(g.sentence)}</span></li>' for g in gains)
    said = f"<p><b>{escape(advice)}</b></p>" if advice else ""
    return f'<h2>What each stage was worth</h2><ul class="verdicts">{items}</ul>{said}{_method(ledger)}'


def _method(ledger: Ledger) -> str:
    several = len(ledger.seeds) >= 3
    ways = [f"Student's t over {len(ledger.seeds)} seeds"] if several else []
    if any(g.over_examples for g in ledger.gains):
        ways.append(f"a paired bootstrap over {ledger.test_examples:,} test examples")
    direction = "" if ledger.better == "higher" else " Lower is better, so a positive gain is a fall."
    if not ways:
        return f'<p class="quiet">Each gain compares fine-tuning after the stage with fine-tuning before it, seed by seed.{direction}</p>'
    chosen = f"the wider of {' and '.join(ways)}" if len(ways) > 1 else ways[0]
    return (
        '<p class="quiet">Each gain compares fine-tuning after the stage with fine-tuning before it, seed by seed (same labels '
        f"and order). The {100 * ledger.confidence:.0f}% interval is {escape(chosen)}. A stage paid only if "
        f"{'both keep' if len(ways) > 1 else 'it keeps'} clear of zero and three seeds or more were run.{direction}</p>"
    )


def _scores(facts: Mapping[str, Any], ledger: Ledger) -> str:
    scale = 100 if ledger.points else 1
    unit = label(ledger.metric) + (", points" if ledger.points else "")

    def form(v: float) -> str:
        return shown(v / scale, ledger.points)

    def signed(v: float) -> str:
        return shown(v / scale, ledger.points, signed=True)

    rows = []
    for p in ledger.prefixes:
        dots = {f"seed {seed}": scale * v for seed, v in p.scores.items()}
        spread = scale * p.deviation if len(p.scores) > 1 else 0.0
        hollow = frozenset(f"seed {seed}" for seed in p.collapsed)
        mean = scale * p.mean
        rows.append(Row(p.name, dots, hollow, mean, mean - spread, mean + spread, scored(ledger, p)))
    lines = {name: scale * score for name, score in baselines(facts).items()}
    out = ["<h2>Test score from every prefix</h2>"]
    hollow_said = ", hollow ones are collapsed runs" if any(p.collapsed for p in ledger.prefixes) else ""
    out.append(
        f'<p class="quiet">Dots are seeds{hollow_said}; bars are means, bands one standard deviation over seeds; dashed lines are baselines.</p>'
    )
    out.append(dot_chart(rows, label=unit, lines=lines, form=form))
    if ledger.gains:
        rows = []
        for g in (*ledger.gains, *ledger.controls):
            wide = max((i for i in (g.over_seeds, g.over_examples) if i), key=lambda i: i[1] - i[0], default=None)
            low, high = (scale * wide[0], scale * wide[1]) if wide else (None, None)
            color = {"paid": "var(--good)", "cost": "var(--bad)"}.get(g.verdict, "var(--soft)")
            dots = {f"seed {seed}": scale * v for seed, v in g.differences.items()}
            befores = {p.name: p.collapsed for p in ledger.prefixes}
            hollow = frozenset(f"seed {s}" for s in g.differences if s in befores[g.before] or s in befores[g.after])
            rows.append(Row(g.stage, dots, hollow, scale * g.mean, low, high, ledger.show(g.mean, signed=True), color))
        out.append("<h2>Gain of each stage, seed by seed</h2>")
        out.append(
            '<p class="quiet">Dots are paired differences; bands are the deciding intervals. A band that touches zero decides nothing.</p>'
        )
        out.append(dot_chart(rows, label=f"gain in {unit}", zero=True, form=signed))
    return "".join(out)


def _account(facts: Mapping[str, Any]) -> str:
    header, rows, leading = account(facts)
    if not rows:
        return ""
    cells = [(row, ' class="baseline"' if i < leading else "") for i, row in enumerate(rows)]
    return f"<h2>The account</h2>{_table(header, cells)}"


def _table(header: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], raw: bool = False) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join(f"<tr{kind}>" + "".join(f"<td>{c if raw else _cell(c)}</td>" for c in row) + "</tr>" for row, kind in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    return f'<span class="chip {text}">{text}</span>' if text in VERDICTS.values() else escape(text)


def _tasks(facts: Mapping[str, Any]) -> str:
    """One row a task, where the fine-tuning had several."""
    header, rows = by_task.table(facts.get("tasks", ()))
    if not rows:
        return ""
    found = by_task.sentences(facts["tasks"])
    said = "".join(
        f'<li><span class="chip {verdict}">{verdict}</span><span>{escape(text)}</span></li>' for verdict, text in found
    )
    listed = f'<ul class="verdicts">{said}</ul>' if said else ""
    return f"<h2>The tasks</h2>{_table(header, [(row, '') for row in rows])}{listed}"


def _heldout(facts: Mapping[str, Any]) -> str:
    """Loss by stage with the change since the stage before; the best stage of every source is bold."""
    found = [
        (s["name"], {k: v for k, v in s.get("heldout", {}).items() if v.get("loss") is not None}) for s in facts.get("stages", ())
    ]
    found = [(name, held) for name, held in found if held]
    sources = list(dict.fromkeys(source for _, held in found for source in held))
    if not found:
        return ""
    best = {source: min(held[source]["loss"] for _, held in found if source in held) for source in sources}
    rows, previous = [], dict[str, float]()
    for name, held in found:
        row = [escape(name)]
        for source in sources:
            if source not in held:
                row.append("")
                continue
            loss = held[source]["loss"]
            text = f"<b>{loss:.3f}</b>" if loss == best[source] and len(found) > 1 else f"{loss:.3f}"
            change = shown(loss - previous[source], False, signed=True) if source in previous else ""
            row.append(f"{text} <small>{change}</small>" if change else text)
            previous[source] = loss
        extra = "; ".join(f"{source} {_more(held[source])}" for source in sources if source in held and _more(held[source]))
        rows.append((row, f' title="{escape(extra)}"' if extra else ""))
    unit = "Mean loss (nats a predicted token)"
    if facts.get("loss") == "bits/byte":
        unit = "The stages read other tokens, so what compares them is the loss in bits for each byte of text, measured"
    said = f"{unit} on text no stage trained on; small figures are the change since the stage before."
    return f'<h2>Held-out loss after each stage</h2><p class="quiet">{said}</p>{_table(["after", *sources], rows, raw=True)}'


def _more(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {v:.3g}" for key, v in numbers.items() if key != "loss" and v is not None)


def source_colors(facts: Mapping[str, Any]) -> dict[str, str]:
    """One colour a source, the same in every chart."""
    stages = facts.get("stages", ())
    names = dict.fromkeys(name for s in stages for part in ("heldout_curve", "heldout") for name in s.get(part, {}))
    return {name: f"var(--series-{i % 5 + 1})" for i, name in enumerate(names)}


def _curves(facts: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    panels = []
    for s in facts.get("stages", ()):
        train = [Series("training", s["curve"], "var(--train)", thin=True)] if s.get("curve") else []
        held = [Series(f"held-out, {name}", points, colors[name]) for name, points in s.get("heldout_curve", {}).items()]
        if train or held:
            panels.append((s, [*train, *held]))
    if not panels:
        return ""
    out = []
    for s, lines in panels:
        unit = "loss" if facts.get("loss", "loss") == "loss" else "nats; held out: bits/byte"
        chart = line_chart(lines, x_label="step", y_label=unit)
        trained = s.get("ended") or s.get("steps")
        about = [f"{trained:,} steps"] if trained else []
        about += [f"{count(s['tokens'])} tokens"] if s.get("tokens") else []
        about += [duration(s["seconds"])] if s.get("seconds") else []
        out.append(
            f'<div class="panel"><h3>{escape(str(s["name"]))} <span class="quiet">{" · ".join(about)}</span></h3>{chart}</div>'
        )
    keys = {"training": "var(--train)", **{f"held-out, {name}": c for name, c in colors.items()}}
    drawn = {series.name for _, lines in panels for series in lines}
    legend = "".join(f'<span><i style="background:{c}"></i>{escape(name)}</span>' for name, c in keys.items() if name in drawn)
    said = "Each panel has axes of its own. The loss of fine-tuning is the task's, not the language model's."
    return f'<h2>Loss over steps</h2><p class="quiet">{said}</p><div class="legend">{legend}</div><div class="panels">{"".join(out)}</div>'


def _sources(facts: Mapping[str, Any]) -> str:
    columns = {
        "documents": "documents",
        "tokens": "tokens",
        "heldout": "held out",
        "test": "test documents",
        "leaks": "removed: hold a test document",
        "tokens_per_word": "tokens a word",
        "unknown_share": "unknown tokens",
    }
    rows = facts.get("sources", ())
    present = [key for key in columns if any(row.get(key) is not None for row in rows)]
    if not rows:
        return ""
    body = [([str(row["source"]), *(_number(key, row.get(key)) for key in present)], "") for row in rows]
    return f"<h2>Data</h2>{_table(['source', *(columns[key] for key in present)], body)}"


def _number(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.2g}%" if key == "unknown_share" else f"{value:.2f}" if key == "tokens_per_word" else f"{value:,}"


def _setting(facts: Mapping[str, Any]) -> str:
    pairs = [*facts.get("machine", {}).items(), *facts.get("versions", {}).items()]
    pairs += [("tokenizer", facts["tokenizer"])] if facts.get("tokenizer") else []
    listed = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs)
    out = f"<dl>{listed}</dl>" if pairs else ""
    if facts.get("commands"):
        commands = escape("\n".join(facts["commands"]))
        out += f"<details open><summary>To run it again</summary><pre>{commands}</pre></details>"
    if facts.get("config"):
        out += f"<details><summary>The recipe, resolved</summary><pre>{escape(str(facts['config']))}</pre></details>"
    return f"<h2>Setting</h2>{out}" if out else ""

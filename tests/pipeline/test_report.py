"""The report: parses, escapes, fetches nothing, says what did not pay. The numbers here are made up."""

from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from ziggurat.evaluate.scores import METRICS
from ziggurat.pipeline.charts import Row, Series, count, dot_chart, line_chart, text_width, thinned, ticks
from ziggurat.pipeline.report import html, write_report
from ziggurat.pipeline.table import account, duration, terminal_table
from ziggurat.pipeline.worth import After, Ledger, measure

EVIL = "<script>alert('领域')</script>&\""


def ledger(**changes: Any) -> Ledger:
    scores = {
        "scratch": [0.491, 0.498, 0.506],
        "+general": [0.553, 0.561, 0.569],
        "+dapt": [0.571, 0.584, 0.598],
        "+tapt": [0.573, 0.581, 0.595],
    }
    scores.update(changes)
    after = {
        "+general": After(2_212_000, 240.2, 9210.0, {"general": 5.251, "domain": 4.98, "task": 4.71}),
        "+dapt": After(840_000, 90.4, 9295.0, {"general": 5.391, "domain": 4.242, "task": 4.203}),
        "+tapt": After(214_000, 24.1, 8880.0, {"general": 5.432, "domain": 4.251, "task": 4.118}),
    }
    table = {name: dict(enumerate(row)) for name, row in scores.items()}
    baselines = {"majority": 0.0, "most frequent label": 0.539}
    return measure(table, METRICS["token_f1"], baselines=baselines, after=after)


def facts(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def curve(steps: int, high: float, low: float, every: int) -> list[tuple[int, float]]:
        at = range(every, steps + 1, every)
        return [(s, low + (high - low) * math.exp(-4 * s / steps) + float(rng.normal(0, 0.06))) for s in at]

    def stage(name: str, kind: str, steps: int, high: float, after: After) -> dict[str, Any]:
        held = {
            s: [(k, loss + (high - loss) * math.exp(-4 * k / steps)) for k in range(0, steps + 1, steps // 6)]
            for s, loss in after.heldout.items()
        }
        return {
            "name": name,
            "stage": kind,
            "data": name,
            "steps": steps,
            "tokens": after.tokens,
            "seconds": after.seconds,
            "tokens_per_second": after.tokens_per_second,
            "curve": curve(steps, high, min(after.heldout.values()), 2),
            "heldout_curve": held,
            "heldout": {s: {"loss": loss, "perplexity": math.exp(loss)} for s, loss in after.heldout.items()},
        }

    worth = ledger()
    stages = [
        stage("general", "pretrain", 1080, 8.9, worth.after["+general"]),
        stage("dapt", "dapt", 410, 5.2, worth.after["+dapt"]),
        stage("tapt", "tapt", 104, 4.4, worth.after["+tapt"]),
    ]
    tune = [(s, 0.69 * math.exp(-s / 60) + 0.02 + abs(float(rng.normal(0, 0.01)))) for s in range(1, 157)]
    stages.append(
        {
            "name": "finetune",
            "stage": "finetune",
            "steps": 156,
            "tokens": 61_000,
            "seconds": 13.2,
            "tokens_per_second": 4600.0,
            "curve": tune,
        }
    )
    made: dict[str, Any] = {
        "name": "demo",
        "system": "roberta/tiny",
        "parameters": 5_412_352,
        "date": "1 January 2030",
        "task": "tagging: words that stood in backticks",
        "metric": "token_f1",
        "machine": {"CPU": "2 cores, bf16", "memory": "8 GB"},
        "versions": {"ziggurat": "0.1.0", "torch": "2.13.0", "Python": "3.11"},
        "tokenizer": "WordPiece, 8,000 pieces, trained on 20 M characters",
        "stages": stages,
        "worth": worth,
        "sources": [
            {"source": "general", "documents": 41_212, "tokens": 2_934_000, "heldout": 412, "leaks": 31},
            {"source": "domain 领域", "documents": 11_046, "tokens": 1_105_000, "heldout": 110, "leaks": 412},
            {"source": "task", "documents": 1_800, "tokens": 61_000, "test": 500, "leaks": 3},
        ],
        "config": "name: demo\nsystem: roberta/tiny\nstages:\n  - stage: pretrain\n    data: general\n",
        "commands": ["ziggurat run recipes/demo.yaml"],
    }
    made.update(changes)
    return made


class Page(HTMLParser):
    """Tags that are open, and addresses that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # <line .../> in SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    assert page.open == []
    return page


def test_report_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    page, data = write_report(tmp_path / "run", facts())
    text = page.read_text("utf-8")
    seen = parsed(text)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img", text)
    assert seen.tags.count("svg") == 6
    for chart in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(chart)
        assert "nan" not in chart and "inf" not in chart
    words = " ".join(seen.text)
    for expected in (
        "What each stage was worth",
        "DAPT: +2.3 points",
        "no measurable gain",
        "58.3 ± 1.1",
        "领域",
        "most frequent label",
        "412",
    ):
        assert expected in words, expected
    report = json.loads(data.read_text("utf-8"))
    assert report["worth"]["gains"][1]["stage"] == "DAPT"
    assert report["stages"][0]["curve"][0][0] == 2
    assert not list(page.parent.glob("*.part"))


def test_everything_from_outside_is_escaped() -> None:
    made = facts(
        name=EVIL, system=EVIL, task=EVIL, config=EVIL, commands=[EVIL], notes=[EVIL], machine={EVIL: EVIL}, tokenizer=EVIL
    )
    made["sources"] = [{"source": EVIL, "documents": 1}]
    made["stages"] = [
        {
            "name": EVIL,
            "stage": "dapt",
            "curve": [(1, 2.0)],
            "heldout_curve": {EVIL: [(1, 2.0)]},
            "heldout": {EVIL: {"loss": 1.0, "x": 2.0}},
        }
    ]
    made["worth"] = measure(
        {EVIL: {0: 0.5}, "+" + EVIL: {0: 0.6}},
        METRICS["accuracy"],
        baselines={EVIL: 0.1},
        after={EVIL: After(1, 1.0, 1.0, {EVIL: 1.0})},
    )
    text = html(made)
    parsed(text)
    assert "<script" not in text and "&lt;script&gt;alert(&#x27;领域&#x27;)" in text
    for chart in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(chart)


def test_what_runs_of_one_seed_share() -> None:
    """Not the head: from scratch it is drawn after the body."""
    assert "seed by seed (same labels and order)" in html(facts())


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    page, _ = write_report(tmp_path, {"name": "bare"})
    parsed(page.read_text("utf-8"))
    text = html(facts(worth=None, machine={}, sources=[]))
    parsed(text)
    assert "What each stage was worth" not in text and "Held-out loss" in text and ">Data<" not in text
    header, rows, leading = account(facts(worth=None))
    assert header[0] == "stage" and [r[0] for r in rows] == ["general", "dapt", "tapt", "finetune"] and leading == 0


def test_collapsed_and_undefined_runs_are_seen() -> None:
    worth = measure(
        {"scratch": {0: math.nan, 1: 0.2, 2: 0.3}, "+dapt": {0: 0.4, 1: 0.5, 2: 0.6}},
        METRICS["pearson"],
        baselines={"mean": math.nan, "TF-IDF + ridge": 0.9},
    )
    text = html(facts(worth=worth))
    parsed(text)
    assert "scratch, seed 0: the run collapsed, its score is undefined" in text
    assert "1 collapsed" in text and "beats the best prefix" in text and "undecided" in text
    for chart in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(chart)
        assert "nan" not in chart


def test_a_card_says_how_many_runs_collapsed() -> None:
    flat = {0: 0.5, 1: 0.5, 2: 0.5}
    worth = measure({"scratch": {0: 0.4, 1: 0.6, 2: 0.55}, "+tapt": flat}, METRICS["accuracy"], baselines={"majority": 0.5})
    text = html(facts(worth=worth))
    assert "<strong>50.0 <small>± 0.0 (3 collapsed)</small></strong><span>accuracy after +tapt</span>" in text
    assert "<strong>58.3 <small>± 1.1</small></strong>" in html(facts())


@pytest.mark.parametrize("width", [80, 160])
def test_table_on_the_terminal(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(terminal_table(facts(notes=["[bold]read me[/bold]"]), width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for expected in (
        "most frequent label",
        "58.4 ± 1.4",
        "+2.3",
        "4.242",
        "2.21M",
        "1 min 30 s",
        "9.29k",
        "paid",
        "DAPT: +2.3 points",
        "[bold]read me",
    ):
        assert expected in text, expected


def test_account_has_a_cell_for_every_column() -> None:
    for made in (facts(), facts(worth=None), facts(worth=ledger(**{"+dapt": [0.0, 0.5, 0.5]}))):
        header, rows, _ = account(made)
        assert {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (4.12, 5.43), (-3, 250), (0.001, 0.0015), (2, 2)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 11
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_thinned_keeps_the_mean_and_the_ends() -> None:
    points = [(float(i), math.sin(i)) for i in range(10_001)]
    few = thinned(points, 100)
    assert len(few) == 100 and few[0][0] < 60 and few[-1][0] > 9940
    assert np.mean([y for _, y in few]) == pytest.approx(np.mean([y for _, y in points]), abs=0.01)
    assert thinned([(1, math.nan), (2, 3.0)]) == [(2.0, 3.0)]


def test_charts_of_next_to_nothing() -> None:
    assert "No curve" in line_chart([Series("a", [])], x_label="step", y_label="loss")
    assert "No score" in dot_chart([Row("a")], label="x")
    ElementTree.fromstring(line_chart([Series("a", [(0, 0.0)])], x_label="step", y_label="loss"))
    ElementTree.fromstring(
        dot_chart([Row("一" * 60, {"seed 0": 0.5}, center=0.5)], label="x", lines={"b": 0.5, "c": 0.5, "d": 0.5})
    )


def test_marks_stand_where_their_values_say() -> None:
    """Equal steps of value are equal steps on the page, and a larger one stands further right."""
    chart = dot_chart([Row("a", {"s0": 1.0, "s1": 2.0, "s2": 4.0})], label="x")
    x = [float(v) for v in re.findall(r'<circle[^>]* cx="([\d.]+)"', chart)]
    assert x[2] - x[1] == pytest.approx(2 * (x[1] - x[0]), abs=0.3) and x[1] > x[0]


def test_numbers_for_readers() -> None:
    assert [count(v) for v in (0, 12.34, 999, 1000, 999_999, 2_212_000, 3e9)] == ["0", "12.34", "999", "1k", "1M", "2.21M", "3B"]
    assert [duration(s) for s in (1.23, 43.4, 59.6, 250, 3900)] == ["1.2 s", "43 s", "1 min 00 s", "4 min 10 s", "1 h 05 min"]
    assert text_width("领域", 10) == 20 > text_width("ab", 10)


def test_a_far_baseline_does_not_squeeze_the_scores() -> None:
    chart = dot_chart([Row("a", {"s0": 50.0, "s1": 58.0})], label="F1", lines={"majority": 0.0, "near": 54.0})
    x = [float(v) for v in re.findall(r'<circle[^>]* cx="([\d.]+)"', chart)]
    assert x[1] - x[0] > 500 and "majority 0: off the scale, left" in chart and chart.count('class="dash"') == 1

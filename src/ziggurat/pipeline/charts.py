"""Charts as inline SVG text: lines over steps, and rows of dots with intervals. Colours are the page's CSS variables.

Everything that comes from a user passes `escape`; hovering over a mark shows its numbers (`<title>`).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

Point = tuple[float, float]
MINUS = "\u2212"


@dataclass(frozen=True, slots=True)
class Series:
    """One line: (x, y) in order of x."""

    name: str
    points: Sequence[Point]
    color: str = "var(--series-1)"
    thin: bool = False
    """A backdrop (the training loss) rather than a finding."""
    dots: bool = False
    """Points that no line connects (seeds)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a dot chart."""

    label: str
    dots: Mapping[str, float] = field(default_factory=dict)
    """Value by hover name (`seed 0`)."""
    hollow: frozenset[str] = frozenset()
    """Dots to be doubted: collapsed runs."""
    center: float | None = None
    low: float | None = None
    high: float | None = None
    text: str = ""
    """Written at the right edge."""
    color: str = "var(--series-1)"
    marks: Mapping[str, float] = field(default_factory=dict)
    """Short dashed lines in this row alone, by name: its own baselines."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[Point], most: int = 240) -> list[Point]:
    """At most `most` points: means of neighbouring ones, so that a long noisy curve stays readable and small."""
    sound = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(sound) <= most:
        return sound
    edges = [round(i * len(sound) / most) for i in range(most + 1)]
    groups = [sound[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_range: Point | None = None,
    width: int = 420,
    height: int = 240,
    x_ticks: Mapping[float, str] | None = None,
    log: bool = False,
) -> str:
    """A line a series over common axes; `y_range` makes several charts comparable, `x_ticks` names places of the x axis, which is
    logarithmic with `log`."""
    drawn = [(s, thinned(s.points)) for s in series]
    drawn = [(s, [(math.log10(x), y) for x, y in p] if log else p) for s, p in drawn if p]
    if not drawn:
        return '<p class="quiet">No curve was recorded.</p>'
    named = {math.log10(x) if log else x: text for x, text in (x_ticks or {}).items()}
    xs = [*(x for _, p in drawn for x, _ in p), *named]
    low, high = y_range or y_extent(series)
    left, right, top, bottom = 44, 14, 24, 38
    start, end = min(*xs, 0) if min(xs) < 0.2 * max(xs) and not named else min(xs), max(xs)
    end = end if end > start else start + 1
    if named:  # dots do not stand on the frame
        start, end = start - 0.05 * (end - start), end + 0.05 * (end - start)

    def at(x: float, y: float) -> tuple[float, float]:
        down = (high - min(max(y, low), high)) / (high - low)
        return left + (x - start) / (end - start) * (width - left - right), top + down * (height - top - bottom)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">']
    for tick in ticks(low, high):
        _, y = at(start, tick)
        out.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{left - 7}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for tick, text in (named or {tick: count(tick) for tick in ticks(start, end, 4)}).items():
        x, _ = at(tick, low)
        out.append(f'<text class="tick" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    out.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}"/>')
    out.append(f'<text class="label" x="{left - 36}" y="12">{escape(y_label)}</text>')
    out.append(f'<text class="label" x="{width - right}" y="{height - 6}" text-anchor="end">{escape(x_label)}</text>')
    for s, points in drawn:
        if s.dots:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
        kind = "thin" if s.thin else "line"
        out.append(
            f'<polyline class="{kind}" style="stroke:{s.color}" points="{path}"><title>{escape(s.name)}</title></polyline>'
        )
    for s, points in drawn:
        few = s.dots or (len(points) <= 30 and not s.thin)
        faint = ' fill-opacity="0.45"' if s.dots else ""
        for x, y in points if few else points[-1:]:
            cx, cy = at(x, y)
            title = f"{escape(s.name)}: {y:.3f} at {escape(named[x]) if x in named else format(10**x if log else x, ',.6g')}"
            hidden = faint if few or not s.thin else ' fill-opacity="0"'
            out.append(
                f'<circle class="dot" style="fill:{s.color}" cx="{cx:.1f}" cy="{cy:.1f}" r="3"{hidden}><title>{title}</title></circle>'
            )
    return "".join([*out, "</svg>"])


def y_extent(series: Sequence[Series]) -> Point:
    """A y range that shows all series with a little air; the first spike of a training curve may be cut off."""
    values = sorted(y for s in series for _, y in thinned(s.points))
    if not values:
        return 0.0, 1.0
    low, high = values[0], values[min(len(values) - 1, math.ceil(0.995 * len(values)))]
    air = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return max(0.0, low - air) if low >= 0 else low - air, high + air


def dot_chart(
    rows: Sequence[Row],
    *,
    label: str,
    lines: Mapping[str, float] | None = None,
    zero: bool = False,
    form: Callable[[float], str] = "{:g}".format,
    width: int = 860,
    pitch: int = 46,
) -> str:
    """One line a row, `pitch` high: every seed a dot, the mean a bar, its interval a band. `lines` are dashed (baselines)."""
    drawn = [v for r in rows for v in (*r.dots.values(), *r.marks.values(), r.center, r.low, r.high)]
    values = [v for v in drawn if v is not None and math.isfinite(v)]
    values += [0.0] if zero else []
    if not values:
        return '<p class="quiet">No score was recorded.</p>'
    # A line far outside (a majority F1 of 0) would squeeze all the rest: it is named at the edge instead.
    reach = 1.5 * (max(values) - min(values)) or math.inf
    known = {name: v for name, v in (lines or {}).items() if math.isfinite(v)}
    lines = {name: v for name, v in known.items() if min(values) - reach <= v <= max(values) + reach}
    beyond = [
        f"{name} {form(v)}: off the scale, {'left' if v < min(values) else 'right'}"
        for name, v in known.items()
        if name not in lines
    ]
    values += lines.values()
    air = 0.06 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 0.5
    low, high = min(values) - air, max(values) + air
    left = 34 + min(220, max((text_width(r.label, 13) for r in rows), default=0))
    right = 28 + max((text_width(r.text, 12.5) for r in rows), default=0)
    line_height = 16
    levels = _levels(lines, lambda v: left + (v - low) / (high - low) * (width - left - right), width)
    top = 14 + line_height * (1 + max((level for _, level in levels.values()), default=-1))
    bottom = top + pitch * len(rows)
    height = bottom + 40

    def at(v: float) -> float:
        return left + (v - low) / (high - low) * (width - left - right)

    out = [f'<svg viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{escape(label)}">']
    for tick in ticks(low, high, 7):
        x = at(tick)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        out.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(f"{tick:g}".replace("-", MINUS))}</text>'
        )
    out.append(f'<text class="label" x="{width - right:.1f}" y="{bottom + 35}" text-anchor="end">{escape(label)}</text>')
    out.append(f'<text class="label" x="{left:.1f}" y="{bottom + 35}">{escape("; ".join(beyond))}</text>')
    if zero:
        out.append(f'<line class="axis" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{top}" y2="{bottom}"/>')
    for name, value in lines.items():
        x, (anchor, level) = at(value), levels[name]
        y = 12 + line_height * level
        out.append(
            f'<line class="dash" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 5}" y2="{bottom}"><title>{escape(name)}: {escape(form(value))}</title></line>'
        )
        out.append(f'<text class="label" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(name)} {escape(form(value))}</text>')
    for i, row in enumerate(rows):
        out += _row(row, top + pitch * i + pitch / 2, left, width, at, form)
    return "".join([*out, "</svg>"])


def _row(row: Row, y: float, left: float, width: float, at: Callable[[float], float], form: Callable[[float], str]) -> list[str]:
    label = shorten(row.label, left - 30, 13)
    out = [
        f'<text class="name" x="{left - 18:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{escape(label)}<title>{escape(row.label)}</title></text>'
    ]
    if row.low is not None and row.high is not None and math.isfinite(row.high - row.low):
        title = f"{escape(row.label)}: {form(row.low)} to {form(row.high)}"
        box = f'x="{at(row.low):.1f}" y="{y - 7:.1f}" width="{max(2.0, at(row.high) - at(row.low)):.1f}" height="14" rx="4"'
        out.append(f'<rect class="band" style="fill:{row.color}" {box}><title>{title}</title></rect>')
    if row.center is not None and math.isfinite(row.center):
        x, title = at(row.center), f"{escape(row.label)}: mean {form(row.center)}"
        mark = f'x1="{x:.1f}" x2="{x:.1f}" y1="{y - 11:.1f}" y2="{y + 11:.1f}"'
        out.append(f'<line class="mean" style="stroke:{row.color}" {mark}><title>{title}</title></line>')
    for name, value in row.marks.items():
        if math.isfinite(value):
            line = f'x1="{at(value):.1f}" x2="{at(value):.1f}" y1="{y - 12:.1f}" y2="{y + 12:.1f}"'
            out.append(
                f'<line class="dash" {line}><title>{escape(row.label)}, {escape(name)}: {escape(form(value))}</title></line>'
            )
    last, lift = -math.inf, 0.0
    for name, value in sorted(row.dots.items(), key=lambda item: item[1]):
        if math.isfinite(value):
            # Dots that would cover each other step aside, down and up in turn.
            lift = (4.5 if lift <= 0 else -4.5) if at(value) - last < 5 else 0.0
            last = at(value)
            look = f"fill:var(--paper);stroke:{row.color}" if name in row.hollow else f"fill:{row.color};stroke:var(--paper)"
            title = f"{escape(row.label)}, {escape(name)}: {form(value)}" + (" (collapsed)" if name in row.hollow else "")
            out.append(
                f'<circle style="{look}" stroke-width="1.5" cx="{at(value):.1f}" cy="{y + lift:.1f}" r="4.5"><title>{title}</title></circle>'
            )
    out.append(f'<text class="value" x="{width - 4:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{escape(row.text)}</text>')
    return out


def _levels(lines: Mapping[str, float], at: Callable[[float], float], width: float) -> dict[str, tuple[str, int]]:
    """Where each line's label goes: (anchor, level), so that labels do not run into each other or off the edge."""
    taken: list[list[tuple[float, float]]] = []
    placed: dict[str, tuple[str, int]] = {}
    for name, value in sorted(lines.items(), key=lambda item: item[1]):
        size, x = text_width(name, 12) + 44, at(value)
        anchor = "start" if x + size / 2 < size else "end" if x + size / 2 > width else "middle"
        begin = x - {"start": 0, "middle": size / 2, "end": size}[anchor]
        level = 0
        while level < len(taken) and any(begin < b + 12 and a < begin + size + 12 for a, b in taken[level]):
            level += 1
        if level == len(taken):
            taken.append([])
        taken[level].append((begin, begin + size))
        placed[name] = anchor, level
    return placed


def text_width(text: str, size: float) -> float:
    """Rough width in pixels; wide (Chinese) characters count as one em, others as a little over half."""
    return sum(size if unicodedata.east_asian_width(c) in "WF" else 0.56 * size for c in text)


def shorten(text: str, room: float, size: float) -> str:
    """`text` cut with an ellipsis to fit `room` pixels."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "…", size) > room:
        text = text[:-1]
    return text + "…"


def count(value: float) -> str:
    """12,300,000 -> 12.3M; steps and tokens on axes and in tables."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # 999,999 is 1M, not 1e+03k
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"

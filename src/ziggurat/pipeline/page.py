"""A report as one HTML file that fetches nothing: its frame, and tables of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page around its parts, which are HTML."""
    css = files("ziggurat.pipeline").joinpath("report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · ziggurat</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{css}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def setting(pairs: Iterable[tuple[object, object]], command: str = "") -> str:
    """What a report was made with, and how to make it again."""
    listed = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs)
    again = f"<details open><summary>To run it again</summary><pre>{escape(command)}</pre></details>" if command else ""
    return f"<h2>Setting</h2><dl>{listed}</dl>{again}"

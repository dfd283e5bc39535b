"""The family tree of a checkpoint: every stage it comes from, with its data, objective, budget, scores and versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ziggurat.checkpoint.format import card, find
from ziggurat.config import spelled
from ziggurat.log import duration
from ziggurat.pipeline.opened import in_hub_format
from ziggurat.systems.hub import from_hub
from ziggurat.systems.modelcard import MARK
from ziggurat.text.tokenizer import Tokenizer

SHORT = 12
"""Digits of a hash that are shown."""


def show_checkpoint(folder: Path) -> str:
    """A checkpoint's place, its family tree (oldest stage first) and its network; of a Hugging Face folder what its files say."""
    if in_hub_format(folder):
        return _show_foreign(folder)
    found = find(folder)
    about = card(found)
    state = json.loads((found / "state.json").read_text("utf-8"))
    lines = [f"# {found}", f"system: {about.system or 'unknown'}", f"tokenizer: {about.fingerprint or 'none'}"]
    lines += [f"{key}: {_flow(state[key])}" for key in ("step", "tokens", "seconds") if key in state]
    lines += [f"{key}: {_flow(value)}" for key, value in about.more.get("card", {}).items()]
    lines += ["", *tree(about.lineage), "", "network:", *_indented(spelled(about.network))]
    return "\n".join(lines)


def _show_foreign(folder: Path) -> str:
    """A Hugging Face folder, read as `open_checkpoint` reads it."""
    found = from_hub(folder)
    tokenizer = Tokenizer.load(found.tokenizer) if found.tokenizer else None
    page = folder / "README.md"
    ours = page.is_file() and MARK in page.read_text("utf-8", "replace")
    return "\n".join(
        [
            f"# {folder}",
            f"system: {found.system}",
            f"architecture: {', '.join(found.config.get('architectures') or ()) or 'not said'}",
            f"parameters: {sum(tensor.numel() for tensor in found.tensors.values()):,}",
            f"tokenizer: {f'{tokenizer.vocab.size:,} tokens, {tokenizer.fingerprint}' if tokenizer else 'none'}",
            *([f"labels: {', '.join(found.labels)}"] if found.labels else []),
            *(f"note: {note}" for note in found.notes),
            "",
            "no lineage: an export of Ziggurat, whose README.md says how it was made"
            if ours
            else "no lineage: not made by Ziggurat",
            "",
            "network:",
            *_indented(spelled(found.network)),
        ]
    )


def tree(lineage: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of text, one stage below the other; what an entry does not say is left out."""
    if not lineage:
        yield "no lineage is known"
    for depth, entry in enumerate(lineage):
        margin = "   " * depth
        yield f"{margin[:-3]}└─ {title(entry)}" if depth else title(entry)
        last = depth + 1 == len(lineage)
        for what, text in facts(entry):
            yield f"{margin}{' ' if last else '│'}    {what:<10} {text}".rstrip()


def title(entry: Mapping[str, Any]) -> str:
    """`dapt (stage of recipe scierc)`."""
    name, stage = str(entry.get("name", "unnamed")), str(entry.get("stage", ""))
    recipe = f"recipe {entry['recipe']}" if entry.get("recipe") else ""
    said = ", ".join(part for part in (stage if stage != name else "", recipe) if part)
    return f"{name} ({said})" if said else name


def facts(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, text) of everything that one entry of a lineage says."""
    if "objective" in entry:
        yield "objective", _flow(entry["objective"])
    for name, data in entry.get("data", {}).items():
        yield "data", f"{name}: {', '.join(_data(data, entry.get('origins', {}).get(name, {})))}"
    if "start" in entry:
        yield "start", str(entry["start"])
    did = [f"{entry['steps']:,} steps"] if "steps" in entry else []
    did += [f"{entry['tokens']:,} tokens"] if "tokens" in entry else []
    did += [duration(entry["seconds"])] if "seconds" in entry else []
    did += [f"budget {amount:g} {unit}" for unit, amount in entry.get("budget", {}).items()]
    if did:
        yield "training", ", ".join(did) + (f", seed {entry['seed']}" if "seed" in entry else "")
    if "settings" in entry:
        yield "settings", _flow(entry["settings"])[1:-1]
    for source, numbers in entry.get("held_out", {}).items():
        yield "held out", f"{source}: {', '.join(f'{name} {value:.4g}' for name, value in numbers.items())}"
    for test in [*([entry["test"]] if "test" in entry else []), *entry.get("tests", {}).values()]:
        value = f"{test['value']:.4f}" if "value" in test else "undefined"
        yield "test", f"{test['source']}: {test['metric']} {value} on {test['rows']:,} rows"
    if "versions" in entry:
        yield "versions", ", ".join(f"{name} {number}" for name, number in entry["versions"].items())
    known = {"stage", "name", "recipe", "objective", "data", "origins", "start", "steps", "tokens", "seconds", "budget", "seed"}
    known |= {"settings", "held_out", "test", "tests", "versions"}
    for key, value in entry.items():
        if key not in known and value is not None:
            yield key, _flow(value)


def _data(data: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    for what in ("documents", "tokens"):
        if what in data:
            yield f"{data[what]:,} {what}"
    if "weight" in data:
        yield f"share {data['weight']:g}"
    if data.get("content"):
        yield f"content {data['content'][:SHORT]}"
    if data.get("drawn"):
        yield f"drawn {data['drawn'][:SHORT]}"
    if data.get("source"):
        yield f"source {data['source'][:SHORT]}"
    for kind, value in origin.items():
        yield f"{kind} {value if isinstance(value, str) else ' '.join(value)}"


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _indented(value: Any) -> list[str]:
    text: str = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=120)
    return [f"  {line}" for line in text.splitlines()]

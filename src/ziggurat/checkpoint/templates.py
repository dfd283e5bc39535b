"""Name templates with placeholders: matching a name, filling a template, and which names a table of templates should have found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import TypeVar

PLACEHOLDER = re.compile(r"\{(\w+)\}")
KINDS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias"}

Binding = dict[str, str]
T = TypeVar("T")


@lru_cache(maxsize=4096)
def places(template: str) -> frozenset[str]:
    return frozenset(PLACEHOLDER.findall(template))


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    pattern, seen = "", set[str]()
    for n, piece in enumerate(PLACEHOLDER.split(template)):
        if n % 2 == 0:
            pattern += re.escape(piece)
        elif piece in seen:
            pattern += f"(?P={piece})"
        else:
            seen.add(piece)
            pattern += f"(?P<{piece}>{KINDS.get(piece, r'[^.]+')})"
    return re.compile(pattern)


def match(template: str, name: str) -> Binding | None:
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()


def first(templates: Iterable[tuple[T, str]], name: str) -> tuple[T, Binding] | None:
    for owner, template in templates:
        binding = match(template, name)
        if binding is not None:
            return owner, binding
    return None


def fill(template: str, binding: Binding) -> str:
    return PLACEHOLDER.sub(lambda m: binding.get(m[1], m[0]), template)


def filled(templates: Sequence[str], binding: Binding) -> list[str]:
    names = [fill(template, binding) for template in templates]
    for name in names:
        if "{" in name:
            raise ValueError(f"{name}: bind(...) the placeholder first")
    return names


def absent(required: Mapping[T, str], found: Sequence[tuple[T, Binding]]) -> list[str]:
    """Names that required templates should have found: all layers that any line found, weight and bias."""
    counts: dict[str, int] = {}
    for _, binding in found:
        for place in binding.keys() & {"i", "j"}:
            counts[place] = max(counts.get(place, 0), int(binding[place]) + 1)
    lacking = []
    for owner, template in required.items():
        have = [binding for finder, binding in found if finder == owner]
        wanted_places = sorted(places(template))
        choices: list[Sequence[str]] = []
        for place in wanted_places:
            if place == "p":
                choices.append(("weight", "bias"))
            elif place in ("i", "j"):
                choices.append([str(n) for n in range(counts.get(place, 0))])
            else:
                choices.append(sorted({binding[place] for binding in have}))
        wanted = [dict(zip(wanted_places, values, strict=True)) for values in product(*choices)]
        lacking += [fill(template, binding) for binding in wanted if binding not in have] if wanted else [template]
    return lacking

"""Parameter names, ours and the Hub's: a table of template pairs, read in both directions.

A template is a dotted name with placeholders: `{i}` and `{j}` are numbers that count from 0, `{p}` is `weight` or
`bias`, any other (`{head}`) is one part of a name. A plain line is a pair `(hub, ours)`; `fused`, `transposed`,
`folded`, `padded` and `tied` make lines for tensors that are stored in another shape, and `optional` marks one that may be
missing. Reading is strict both ways: a name that no line knows and a line that finds no name are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING

from ziggurat.checkpoint import templates
from ziggurat.errors import UserError, check

if TYPE_CHECKING:  # system pages are tables of names and must not load torch
    from torch import Tensor

IGNORED = ("*.position_ids", "*.attn.bias", "*.attn.masked_bias")
"""Buffers that older Hub files carry and no model needs."""
LEGACY = ((".gamma", ".weight"), (".beta", ".bias"))
"""Endings of the layer norms' names in the oldest BERT files, and what they are called now."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One Hub tensor and the one (or, fused, several) of ours that it holds."""

    hub: str
    ours: tuple[str, ...]
    transposed: bool = False
    """Matrices are stored [in, out] on the Hub; vectors are the same on both sides."""
    multiple: int = 0
    """Rows of ours are padded to a multiple of this; 0 = not padded."""
    row: bool = False
    """A vector that the Hub stores as a matrix of one row."""
    optional: bool = False
    fold: tuple[int, int] | None = None
    """(dimension, size): this dimension of ours is two on the Hub, the first of them of that size (0: the number of heads)."""
    zeros: bool = False
    """All of ours but the first are zeros of its shape, which the Hub does not store."""


@dataclass(frozen=True, slots=True)
class Tied:
    """A Hub name that repeats another Hub name."""

    hub: str
    of: str


Entry = Line | Tied | tuple[str, str]


def fused(hub: str, *ours: str, transposed: bool = False) -> Line:
    """One Hub tensor that is ours laid end to end along the first dimension (after transposing): q, k, v in GPT-2."""
    return Line(hub, ours, transposed=transposed)


def transposed(hub: str, ours: str) -> Line:
    """A matrix that the Hub stores [in, out] (GPT-2's `Conv1D`) and we store [out, in]."""
    return Line(hub, (ours,), transposed=True)


def one_row(hub: str, ours: str) -> Line:
    """A vector [n] that the Hub stores as [1, n] (BART's `final_logits_bias`)."""
    return Line(hub, (ours,), row=True)


def folded(hub: str, ours: str, *, at: int, size: int = 0, transposed: bool = False) -> Line:
    """A tensor whose dimension `at` the Hub stores as two, [size, rest]: XLNet's matrices [width, heads, dim].

    size  of the first of the two; 0 = the number of heads, which `bind(heads=...)` gives
    transposed  after folding, the Hub's matrix is [in, out]
    """
    return Line(hub, (ours,), transposed=transposed, fold=(at, size))


def beside(hub: str, ours: str, *zeros: str) -> Line:
    """A tensor, and beside it tensors of ours of the same shape that the Hub's layout lacks: read as zeros, left out on export.

    For biases that change nothing (of all keys: softmax does not see it).
    """
    return Line(hub, (ours, *zeros), zeros=True)


def padded(hub: str, ours: str, multiple: int) -> Line:
    """A table with one row a vocabulary item on the Hub; ours has zero rows up to a multiple. Needs `bind(vocab=...)`."""
    return Line(hub, (ours,), multiple=multiple)


def tied(hub: str, of: str) -> Tied:
    """A Hub name that repeats the Hub name `of`: checked equal and dropped on import, left out on export.

    A file that holds only the repetition is read as if it held `of`.
    """
    return Tied(hub, of)


def optional(entry: Line | tuple[str, str]) -> Line:
    """The same line, allowed to find nothing (BERT's pooler, the heads of a file that may be headless)."""
    return replace(_line(entry), optional=True)


class NameMap:
    """A table of lines, read in both directions. Among lines that know the same name the first counts.

    `prefix` is the family's (`bert.`), which files saved from a headless Hub class lack.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        *,
        prefix: str = "",
        ignored: Sequence[str] = IGNORED,
        vocab: int = 0,
        heads: int = 0,
    ):
        self.entries = tuple(entry if isinstance(entry, Tied) else _line(entry) for entry in entries)
        self.prefix = prefix
        self.ignored = tuple(ignored)
        self.vocab = vocab
        self.heads = heads
        for line in self.lines:
            lost = [name for ours in line.ours for name in templates.places(line.hub) - templates.places(ours)]
            if lost or not line.ours:
                raise ValueError(f"{line.hub}: placeholder {lost} has no place on our side")

    def __add__(self, entries: Iterable[Entry]) -> NameMap:
        """The same table with further lines (the heads of one Hub class), asked after the ones it has."""
        more = {"prefix": self.prefix, "ignored": self.ignored, "vocab": self.vocab, "heads": self.heads}
        return NameMap((*self.entries, *entries), **more)  # type: ignore[arg-type]

    def bind(self, *, vocab: int = 0, heads: int = 0, **values: str) -> NameMap:
        """The table for one model: `vocab` sizes the padded lines, `heads` the folded ones, and placeholders
        (`head="sentiment"`) get their values."""
        bound = [_bind(entry, values) for entry in self.entries]
        sizes = {"vocab": vocab or self.vocab, "heads": heads or self.heads}
        return NameMap(bound, prefix=self.prefix, ignored=self.ignored, **sizes)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, Line))

    @cached_property
    def ties(self) -> tuple[Tied, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, Tied))

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Hub tensors by our names; raises `UserError` listing every name that is unknown, missing or of a wrong shape."""
        state = self._untie(self._modern(state))
        owners = {line: line.hub for line in self.lines}
        found: list[tuple[Line, templates.Binding]] = []
        unknown: list[str] = []
        ours: dict[str, Tensor] = {}
        for name, tensor in state.items():
            hit = templates.first(owners.items(), name)
            if hit is None:
                unknown.append(name)
                continue
            line, binding = hit
            found.append(hit)
            ours.update(zip(templates.filled(line.ours, binding), self._split(line, name, tensor), strict=True))
        absent = templates.absent({line: hub for line, hub in owners.items() if not line.optional}, found)
        _complain("a Hugging Face file", unknown, absent, state, [e.hub for e in self.entries])
        return ours

    def to_hub(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors by Hub names, contiguous; raises `UserError` listing every name that is unknown or missing."""
        owners = {(line, n): ours for line in self.lines for n, ours in enumerate(line.ours)}
        found: list[tuple[tuple[Line, int], templates.Binding]] = []
        unknown: list[str] = []
        groups: dict[str, tuple[Line, templates.Binding, dict[int, Tensor]]] = {}
        for name, tensor in state.items():
            hit = templates.first(owners.items(), name)
            if hit is None:
                unknown.append(name)
                continue
            (line, n), binding = hit
            found.append(hit)
            hub = templates.fill(line.hub, binding)
            parts = groups.setdefault(hub, (line, binding, {}))[2]
            check(n not in parts, f"{name} and another of our tensors both become {hub}", "export one head at a time")
            parts[n] = tensor
        absent = templates.absent({owner: ours for owner, ours in owners.items() if not owner[0].optional}, found)
        for line, binding, parts in groups.values():  # an optional line may be left out, but not by halves
            absent += [
                name for n, name in enumerate(templates.filled(line.ours, binding)) if n not in parts and name not in absent
            ]
        _complain("our model", unknown, absent, state, list(owners.values()))
        return {hub: self._merge(line, [parts[n] for n in sorted(parts)]) for hub, (line, _, parts) in groups.items()}

    def _modern(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Today's names for a file of any age: norms renamed, the family's prefix put back, old buffers dropped."""
        modern: dict[str, Tensor] = {}
        for name, tensor in state.items():
            renamed = name
            for old, new in LEGACY:
                if name.endswith(old):
                    renamed = name.removesuffix(old) + new
            candidates = (name, renamed, self.prefix + name, self.prefix + renamed)
            known = next((c for c in candidates if any(templates.match(e.hub, c) is not None for e in self.entries)), None)
            if known is None and any(fnmatchcase(name, pattern) for pattern in self.ignored):
                continue
            key = known or name
            check(key not in modern, f"two tensors of the file are both {key} (one is written {name})", "save the file again")
            modern[key] = tensor
        return modern

    def _untie(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        import torch

        for tie in self.ties:
            for name in list(state):
                binding = templates.match(tie.hub, name)
                if binding is None:
                    continue
                original, repeated = templates.fill(tie.of, binding), state.pop(name)
                check(
                    torch.equal(state.setdefault(original, repeated), repeated),
                    f"{name} differs from {original}, but this system shares the two",
                    "a model with untied embeddings cannot be read as this system",
                )
        return state

    def _split(self, line: Line, name: str, tensor: Tensor) -> list[Tensor]:
        """The parts of ours that one Hub tensor holds."""
        if line.fold is not None:
            at, size = line.fold
            check(
                tensor.dim() > at + 1 and (not size or tensor.shape[at] == size),
                f"{name} has shape {list(tensor.shape)}; its dimension {at} should be two, the first of {size or 'all heads'}",
                "the file is of another system or is damaged",
            )
            tensor = tensor.flatten(at, at + 1)
        if line.transposed and tensor.dim() == 2:
            tensor = tensor.t().contiguous()
        if line.row:
            flat = tensor.dim() == 2 and len(tensor) == 1
            check(flat, f"{name} has shape {list(tensor.shape)}, not [1, n]", "the file is of another system or is damaged")
            return [tensor[0]]
        if line.multiple:
            vocab = self._vocab(line)
            check(
                len(tensor) == vocab,
                f"{name} has {len(tensor)} rows, but the vocabulary has {vocab} items",
                "use the tokenizer that belongs to the file",
            )
            gap = tensor.new_zeros(-vocab % line.multiple, *tensor.shape[1:])
            return [_cat([tensor, gap])]
        if line.zeros:
            return [tensor, *(tensor.new_zeros(tensor.shape) for _ in line.ours[1:])]
        if len(line.ours) == 1:
            return [tensor]
        pieces = len(line.ours)
        check(
            tensor.dim() > 0 and len(tensor) % pieces == 0,
            f"{name} has shape {list(tensor.shape)}, which does not divide into {pieces} parts",
            "the file is of another system or is damaged",
        )
        return [part.clone() for part in tensor.chunk(pieces)]

    def _merge(self, line: Line, parts: list[Tensor]) -> Tensor:
        """The Hub tensor that holds these parts: `_split` backwards."""
        tensor = parts[0] if len(parts) == 1 or line.zeros else _cat(parts)
        if line.multiple:
            tensor = tensor[: self._vocab(line)].clone()
        if line.transposed and tensor.dim() == 2:
            tensor = tensor.t()
        if line.fold is not None:
            at, size = line.fold
            if not size and not self.heads:
                raise ValueError(f"{line.hub} is folded by heads: bind(heads=...) first")
            tensor = tensor.unflatten(at, (size or self.heads, -1))
        return (tensor[None] if line.row else tensor).contiguous()

    def _vocab(self, line: Line) -> int:
        if not self.vocab:
            raise ValueError(f"{line.hub} is padded: bind(vocab=...) first")
        return self.vocab


def nearest(name: str, pool: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names of `pool` most like `name`, best first."""
    matcher = SequenceMatcher(None, b=name, autojunk=False)  # the second string is the one it indexes once

    def likeness(other: str) -> float:
        matcher.set_seq1(other)
        return matcher.ratio()

    return sorted(pool, key=likeness, reverse=True)[:count]


def _line(entry: Line | tuple[str, str]) -> Line:
    return entry if isinstance(entry, Line) else Line(entry[0], (entry[1],))


def _bind(entry: Line | Tied, values: Mapping[str, str]) -> Line | Tied:
    def fill(template: str) -> str:
        return templates.PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), template)

    if isinstance(entry, Tied):
        return Tied(fill(entry.hub), fill(entry.of))
    return replace(entry, hub=fill(entry.hub), ours=tuple(fill(ours) for ours in entry.ours))


def _cat(tensors: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(tensors)


def _complain(what: str, unknown: list[str], absent: list[str], given: Mapping[str, Tensor], templates: list[str]) -> None:
    """One error for everything that does not fit."""
    if not unknown and not absent:
        return
    rows = []
    for name in unknown[:SHOWN]:
        blank = re.sub(r"\.(weight|bias)$", ".{p}", re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name))  # as a template would say it
        rows.append(f"  unknown  {name} (nearest: {', '.join(nearest(blank, templates))})")
    for name in absent[:SHOWN]:
        rows.append(f"  missing  {name} (nearest: {', '.join(nearest(name, unknown or given)) or 'none'})")
    more = len(unknown) + len(absent) - len(rows)
    rows += [f"  and {more} more"] if more else []
    raise UserError(
        "\n".join([f"{what} does not fit this system's names: {len(unknown)} unknown, {len(absent)} missing", *rows]),
        "check that it belongs to this system and to this kind of head",
    )

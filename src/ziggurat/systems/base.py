"""What a named system is: a model spec, its sizes, its objective, and how the Hub writes the same thing down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from pydantic import ValidationError

from ziggurat.checkpoint.names import Entry, NameMap, Tied, nearest
from ziggurat.errors import UserError, check
from ziggurat.nn import spec

GELU = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
"""The Hub's `hidden_act` -> ours; the first spelling of each is the one we write."""
CAUSAL = {False: "full", True: "causal"}
"""The Hub's `is_decoder` -> our visibility."""
DIALS = {
    "layers": "layers",
    "width": "width",
    "heads": "heads",
    "mlp": "mlp",
    "decoder_layers": "decoder_layers",
    "embedding": "embed.width",
    "head_width": "block.attention.head_width",
}
"""What a size or a recipe may set, and its place in the model's spec. `layers` of an encoder-decoder are those of either stack
unless `decoder_layers` says otherwise."""
GENERATOR = ("layers", "width", "heads", "mlp")
"""Dials of a generator (ELECTRA), written `generator_layers` ..."""
HEAD_WIDTH = 64
"""Width of one attention head in every published size of these systems."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One entry of the Hub's `config.json` and the places of our spec that hold the same number."""

    hub: str
    default: Any
    """What the Hub's class takes when the entry is absent or null; a function is given the whole config."""
    ours: tuple[str, ...]
    """Dotted places in the model's spec. More than one: the Hub has one value for all of them."""
    values: Mapping[Any, Any] | None = None
    """Hub value -> ours, where they are written differently."""
    told: bool = True
    """The entry says it; else it is only written, for readers that go by it, and another entry decides."""


def knob(hub: str, default: Any, *ours: str, values: Mapping[Any, Any] | None = None, told: bool = True) -> Knob:
    return Knob(hub, default, ours, values, told)


@dataclass(frozen=True)
class System:
    """A named system: all that tells it from the others, on one page."""

    name: str
    paper: str
    model: spec.Single | spec.EncoderDecoder | spec.Adversaries
    """The published base model; every other size changes its dials only."""
    sizes: Mapping[str, Mapping[str, int]]
    """Size -> dials (`DIALS`)."""
    objective: Mapping[str, Any]
    """The pre-training objective, as a recipe would write it."""
    template: str
    """Special-token template of a tokenizer trained for it: bert, roberta, gpt2, t5, prophetnet or xlnet."""
    knobs: tuple[Knob, ...] = ()
    names: NameMap = field(default_factory=lambda: NameMap(()))
    """Parameter names of the body."""
    heads: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    """Parameter names of each head, by our head's name."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The Hub's classes -> our heads they hold. Of two classes with the same heads the first is written."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """The Hub's classes that ours cannot stand for -> why."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Entries of `config.json` that must have this value (or be absent), because our model has no such variant."""
    head_fixed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same for single heads, by our head's name."""
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    reading: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """Makes the entries that `knobs` name of a `config.json` that says it otherwise (nested, or by its age)."""
    writing: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """The other way round."""
    hub: str = ""
    """The Hub's `model_type`, where it is not the name (StructBERT is written as `bert`)."""
    when: Mapping[str, Any] = field(default_factory=dict)
    """Entries of `config.json` by which a folder is of this system, and not of the first one with its `model_type` (T5 1.1)."""
    bare: tuple[str, ...] = ()
    """Classes saved without the family's prefix, besides the headless one."""
    alone: Mapping[str, str] = field(default_factory=dict)
    """Classes that hold one stack of the two: "encoder" or "decoder"."""
    loads: bool = True
    """Whether today's `transformers` has classes for it; else an export is in the layout of its own release."""
    pad: int | None = None
    """Pad id written when there is no tokenizer to ask."""
    ids: Mapping[str, int] = field(default_factory=dict)
    """The same for other ids, by the Hub's entries."""
    repeats: Mapping[str, str] = field(default_factory=dict)
    """Entries of `config.json` that repeat the id of another one."""
    pads: Literal["left", ""] = ""
    """Where the exported tokenizer must put pads; empty = where the tokenizer itself says (XLNet's classes read the last column)."""
    pad_counts: bool = False
    """RoBERTa: positions are numbered from the pad id + 1, so the table holds pad id + 1 rows more."""

    @property
    def model_type(self) -> str:
        """What `config.json` calls it."""
        return self.hub or self.name

    def sized(self, size: str, dials: Mapping[str, int] | None = None, vocab: int | None = None) -> spec.Model:
        """The model of a size, with `dials` over it and `vocab` token rows.

        A width without heads or mlp brings those of the published sizes: heads of 64, a feed-forward layer of 4 widths.
        """
        values = self.dials(size, dials)
        dump = self.model.model_dump()
        unknown = [k for k in values if self._place(k) is None]
        known = ", ".join(
            [d for d in DIALS if self._place(d)] + [f"generator_{d}" for d in GENERATOR if self._place(f"generator_{d}")]
        )
        check(not unknown, f"unknown model dial {', '.join(unknown)} of {self.name}", f"dials: {known}")
        for name, value in values.items():
            _put(dump, self._place(name) or name, value)
        if vocab:
            _put(dump, "vocab" if "vocab" in dump else "discriminator.vocab", vocab)
        try:
            return type(self.model).model_validate(dump)
        except ValidationError as e:
            raise UserError(f"model {self.name}/{size}: {e.errors()[0]['msg']}", f"dials: {values}") from None

    def dials(self, size: str, dials: Mapping[str, int | None] | None = None) -> dict[str, int]:
        """Every dial of a size with `dials` over it, and what follows them: heads, mlp, a decoder's layers, a generator's shape."""
        check(size in self.sizes, f"system {self.name} has no size '{size}'", f"sizes: {', '.join(self.sizes)}")
        given = {k: v for k, v in (dials or {}).items() if v is not None}
        values = dict(self.sizes[size])
        if "width" in given:
            width = given["width"]
            fits = width % HEAD_WIDTH == 0 or "heads" in given
            check(fits, f"width {width} is not a multiple of {HEAD_WIDTH}", "also say how many `heads` there are")
            if "generator_width" in values:  # the size's fraction of the new width
                values["generator_width"] = max(1, round(width * values["generator_width"] / values["width"]))
            values |= {"heads": width // HEAD_WIDTH, "mlp": 4 * width}
        for other in ("decoder_layers", "generator_layers"):
            if "layers" in given and other in values:
                values[other] = given["layers"]
        if {"width", "generator_width"} & set(given) and "generator_width" in values:
            own = given.get("generator_width", values["generator_width"])
            heads = next(n for n in range(max(1, own // HEAD_WIDTH), 0, -1) if own % n == 0)
            values |= {"generator_heads": heads, "generator_mlp": 4 * own}
        return values | given

    def _place(self, dial: str) -> str | None:
        """Where the model's spec keeps a dial; None if this system has no such dial."""
        if isinstance(self.model, spec.Adversaries):
            part = dial.removeprefix("generator_")
            if part != dial:
                return f"generator.{part}" if part in GENERATOR else None
            return f"discriminator.{DIALS[dial]}" if dial in DIALS and dial != "decoder_layers" else None
        if dial == "decoder_layers" and not isinstance(self.model, spec.EncoderDecoder):
            return None
        return DIALS.get(dial)

    def entries(self, head: str, model: spec.Model) -> tuple[Entry, ...]:
        """Parameter names of a head. A projection that is not tied has the table that the Hub's files else leave out."""
        if head != "lm" or model.project.tied:
            return self.heads[head]
        return tuple((e.hub, "heads.lm.table") if is_table(e) else e for e in self.heads[head])

    def named(self, heads: Sequence[str], model: spec.Model, alone: str = "") -> NameMap:
        """Parameter names of the body and these heads; of one stack only where `alone` says which."""
        names = self.names + [entry for head in heads for entry in self.entries(head, model)]
        other = {"encoder": "model.decoder.", "decoder": "model.encoder."}.get(alone)
        if other is None:
            return names
        kept = [e for e in names.entries if isinstance(e, Tied) or not e.ours[0].startswith(other)]
        return NameMap(kept, prefix=names.prefix, ignored=names.ignored)

    def read(self, config: Mapping[str, Any]) -> spec.Model:
        """Our spec of the body that a Hub `config.json` describes; raises `UserError` where ours would compute something else.

        Of a generator and a discriminator the Hub describes one half at a time, and that is a model of one stack."""
        self.demand(config, self.fixed)
        config = self.reading(config) if self.reading else config
        mine = _half(self.model)
        dump = mine.model_dump()
        if "pattern" in dump:
            dump["pattern"] = list(dump["pattern"])  # places are put into it
        said: dict[str, tuple[str, Any]] = {}
        for k in self.knobs:
            if not k.told:
                continue
            value = config.get(k.hub)
            if value is None:
                value = k.default(config) if callable(k.default) else k.default
            if k.values is not None:
                check(
                    value in k.values,
                    f"config.json: {k.hub} is {value!r}, which {self.name} does not support",
                    f"supported: {', '.join(map(str, k.values))}",
                )
                value = k.values[value]
            for place in k.ours:
                before, old = said.setdefault(place, (k.hub, value))
                check(
                    old == value,
                    f"config.json: {before} is {old!r}, but {k.hub} {value!r}; {self.name} has one number for both",
                    "the model would compute something else; it cannot be imported",
                )
                _put(dump, place, value)
        if "start" in dump:
            dump["start"] = _start(config, dump["start"])
        if self.pad_counts:
            pad = config.get("pad_token_id", self.pad)
            check(isinstance(pad, int), f"config.json: {self.name} needs a pad_token_id", "its positions are numbered from it")
            positions = dump["embed"]["positions"]
            positions |= {"offset": pad + 1, "length": positions["length"] - pad - 1}
        try:
            return type(mine).model_validate(dump)
        except ValidationError as e:
            where = ".".join(map(str, e.errors()[0]["loc"]))
            raise UserError(f"config.json describes an impossible model: {where}: {e.errors()[0]['msg']}") from None

    def demand(self, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        """Raise `UserError` when an entry of `config.json` asks for a variant that ours is not."""
        for key, value in fixed.items():
            found = config.get(key)
            check(
                found is None or found == value,
                f"config.json: {key} is {found!r}, but {self.name} is read only with {value!r}",
                "the model would compute something else; it cannot be imported",
            )

    def write(self, model: spec.Model) -> dict[str, Any]:
        """The Hub's `config.json` entries of a body (of two halves: the discriminator's); raises `UserError` where the Hub's class
        would compute something else."""
        model, usual = _half(model) if isinstance(self.model, spec.Adversaries) else model, _half(self.model).kind
        check(model.kind == usual, f"its structure is {model.kind}, {self.name}'s is {usual}", "export it as its own system")
        config: dict[str, Any] = {"model_type": self.model_type, **self.fixed}
        dump = model.model_dump()
        for k in self.knobs:
            found = [_get(dump, place) for place in k.ours]
            check(
                all(v == found[0] for v in found),
                f"{' and '.join(k.ours)} differ ({', '.join(map(str, found))}), but the Hub's {self.name} has one {k.hub} for them",
                "this model cannot be exported",
            )
            config[k.hub] = found[0] if k.values is None else next((h for h, o in k.values.items() if o == found[0]), None)
        if self.pad_counts:
            config["pad_token_id"] = model.embed.positions.offset - 1
            config["max_position_embeddings"] += model.embed.positions.offset
        config = dict(self.writing(config)) if self.writing else config
        again = self.read(config)
        lost = [p for p in _differences(dump, again.model_dump()) if p != "start" and not p.startswith("init.")]
        check(
            not lost,
            f"the Hub's {self.name} classes have no model with this {', '.join(lost)}",
            "keep the system's own value to be able to export",
        )
        return config


def by_model_type(systems: Mapping[str, System], kind: str, config: Mapping[str, Any] | None = None) -> System | None:
    """The first system that `config.json` calls `kind`: of several (BERT, StructBERT, MacBERT) the one they all descend from,
    unless its entries say that it is another one (`System.when`)."""
    named = [system for system in systems.values() if system.model_type == kind]
    marked = [s for s in named if s.when and all((config or {}).get(key) == value for key, value in s.when.items())]
    return next(iter(marked + named), None)


class NoHubClass(UserError):
    """No class of `transformers` computes what this model does."""


def system_of(systems: Mapping[str, System], model: spec.Model) -> System:
    """The system whose Hub classes can hold `model`; raises `UserError` if there is none."""
    reasons = []
    for system in systems.values():
        try:
            system.write(model)
        except UserError as e:
            reasons.append(f"{system.name}: {e.message}")
        else:
            return system
    raise NoHubClass("no Hugging Face class computes what this model does\n  " + "\n  ".join(reasons))


def closest(name: str, known: Mapping[str, object], what: str) -> UserError:
    """'No such thing', with the names that are most like it."""
    return UserError(f"no {what} '{name}'", f"did you mean {' or '.join(nearest(name, known, 2))}? There are: {', '.join(known)}")


def _half(model: spec.Model) -> spec.Single | spec.EncoderDecoder:
    """What the Hub has a class for: of a generator and a discriminator the latter."""
    return model.discriminator if isinstance(model, spec.Adversaries) else model


def is_table(entry: Entry) -> TypeGuard[Tied]:
    """Whether an entry says that the projection's matrix repeats the embeddings."""
    return isinstance(entry, Tied) and entry.hub.endswith(".weight")


STARTS = {"pad_token_id": "pad", "eos_token_id": "end", "bos_token_id": "first"}
"""The Hub's entry for an id -> what we call the token when a decoder begins with it."""


def _start(config: Mapping[str, Any], usual: str) -> str:
    """Which token the decoder of a `config.json` begins with; the system's own where it does not say, or says the same number."""
    first = config.get("decoder_start_token_id")
    found = [ours for entry, ours in STARTS.items() if first is not None and config.get(entry) == first]
    check(
        first is None or found or not any(config.get(entry) is not None for entry in STARTS),
        f"config.json: the decoder begins with token {first!r}, which is neither the pad nor the end nor the first token",
        "such a model cannot be imported",
    )
    return usual if not found or usual in found else found[0]


def _get(dump: Mapping[str, Any], place: str) -> Any:
    value: Any = dump
    for part in place.split("."):
        if isinstance(value, (list, tuple)):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _put(dump: dict[str, Any], place: str, value: Any) -> None:
    *path, last = place.split(".")
    for part in path:
        dump = dump[int(part)] if isinstance(dump, list) else dump[part]
    dump[last] = value


def _differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Dotted places at which two dumps differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = dict.fromkeys([*a, *b])
        return [d for k in keys for d in _differences(a.get(k), b.get(k), f"{place}.{k}" if place else k)]
    return [] if a == b else [place]


def sizes(**shapes: tuple[int, int]) -> dict[str, dict[str, int]]:
    """Sizes from (layers, width): heads of 64 and a feed-forward layer of 4 widths, as all published ones have."""
    return {
        name: {"layers": layers, "width": width, "heads": width // HEAD_WIDTH, "mlp": 4 * width}
        for name, (layers, width) in shapes.items()
    }


def twins(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Sizes of encoder-decoders whose stacks have as many layers each."""
    return {name: {**dials, "decoder_layers": dials["layers"]} for name, dials in sizes.items()}

"""Hugging Face folders, in and out: `config.json`, `model.safetensors`, tokenizer files. Never needs `transformers`.

Both directions are strict: an entry, a name or a shape that our model or the Hub's class would not compute the same way
is one `UserError`; whatever is left out on purpose is said in the notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError, check
from ziggurat.nn import halves, spec, tasks
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, find, modelcard
from ziggurat.systems.base import NoHubClass, System, by_model_type, closest, system_of
from ziggurat.systems.classes import exportable, head_spec, headless, heads_found, heads_wanted, label_entries, labels_of
from ziggurat.systems.folder import publish, read_config, read_tensors
from ziggurat.systems.stacks import START, one_stack, other_stack, start_id, summary_note, with_table

if TYPE_CHECKING:
    from ziggurat.text.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
POSITIONS = "embed.position.weight"
IDS = ("pad_token_id", "bos_token_id", "eos_token_id", START)


@dataclass(frozen=True)
class Imported:
    """A Hugging Face folder, read."""

    network: spec.Network
    tensors: dict[str, Tensor]
    """float32 by our parameter names, as `NetworkModel(network).load_state_dict` takes them."""
    tokenizer: Path | None
    """The folder, if it holds a tokenizer."""
    system: str
    config: dict[str, Any]
    """`config.json` as it stands."""
    labels: tuple[str, ...]
    """Names of the task head's classes; empty if the file names none."""
    notes: tuple[str, ...]
    """What the user should know: left out, converted."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    architecture: str
    """The Hub class that the folder loads as."""
    notes: tuple[str, ...]


def from_hub(folder: Path | str) -> Imported:
    """Read a local Hugging Face folder; raises `UserError` when it is not one, or not one we compute alike."""
    folder = Path(folder)
    config = read_config(folder)
    kind = str(config.get("model_type", ""))
    check(not config.get("auto_map"), f"{folder} brings its own model code", "only the Hub's own classes can be imported")
    check(kind, f"{folder / 'config.json'} has no model_type", f"known: {', '.join(SYSTEMS)}")
    system, notes = by_model_type(SYSTEMS, kind, config), list[str]()
    if system is None:
        raise closest(kind, {s.model_type: s for s in SYSTEMS.values()}, "system for model_type")
    model = system.read(config)
    stored = read_tensors(folder, notes)
    architecture, heads = heads_found(system, config, stored, model)
    for head in heads:
        system.demand(config, system.head_fixed.get(head, {}))
    names = system.named(heads, model, system.alone.get(architecture, ""))
    if "lm" in heads:
        stored = with_table(system, model, stored, notes)
    tensors = names.to_ours(stored)
    if "lm" in heads and model.project.bias:
        tensors.setdefault("heads.lm.bias", torch.zeros(model.vocab))  # BART's, which files leave out where it is 0
    network = spec.Network(model=model, heads={head: head_spec(system, head, tensors) for head in heads})
    with torch.device("meta"):
        expected = {name: p.shape for name, p in NetworkModel(network).state_dict().items()}
    if architecture in system.alone:
        tensors |= other_stack(network, system.alone[architecture], notes)
    checkpoints.match(expected, {name: t.shape for name, t in tensors.items()}, f"{folder}: what is stored")
    labels = labels_of(config, network)
    tokenizer = folder if any((folder / name).exists() for name in TOKENIZER_FILES) else None
    if tokenizer is None:
        notes.append(f"{folder} has no tokenizer: only the weights were imported")
    if config.get("problem_type") == "multi_label_classification":
        notes.append("its labels do not exclude each other (multi_label_classification); the scores are imported, not that rule")
    notes.append(f"read as {architecture}, heads: {', '.join(heads) or 'none'}")
    return Imported(network, tensors, tokenizer, system.name, config, labels, tuple(notes))


def to_hub(
    network: spec.Network,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    system: System | str | None,
    folder: Path | str,
    *,
    dropout: float = 0.1,
    architecture: str | None = None,
    labels: Sequence[str] = (),
    ids: Mapping[str, int | None] | None = None,
    lineage: Sequence[Mapping[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a folder that `AutoModel*.from_pretrained` loads without remote code.

    `tensors`: parameters by our names (`NetworkModel.state_dict()`). `system` None: the one whose Hub classes compute
    what this model does. `dropout` is what the Hub will train on with. `architecture`: the Hub class, chosen from the
    heads when None. Of a generator and a discriminator the latter is written, unless `architecture` is a class of language
    models. `labels`: names of the task head's classes. `ids`: pad, bos and eos ids where there is no tokenizer.
    `lineage` and `about` go into the model card, README.md; one that somebody else wrote is kept.
    Raises `UserError` when no Hub class computes this model; an earlier export in `folder` is replaced, other folders
    with something in them are not touched.
    """
    folder = Path(folder)
    if isinstance(system, str):
        found = find(system)
        check(found is not None, f"no system '{system}'", f"systems: {', '.join(SYSTEMS)}")
        system = found
    notes: list[str] = []
    network, tensors = _half(network, tensors, architecture, notes)
    body = network.model
    page = system or system_of(SYSTEMS, body)
    if not page.classes:
        raise NoHubClass(f"{page.name} has no classes on the Hub", "its checkpoints are read by ziggurat alone")
    notes += [] if page.loads else [f"transformers has no class for {page.name}: the folder is in the layout of its own release"]
    try:
        config = page.write(body)
    except UserError as error:
        raise NoHubClass(error.message, error.hint) from None
    architecture, heads = heads_wanted(page, network, architecture, notes)
    config["architectures"] = [architecture]
    for head in heads:
        exportable(page, head, network.heads.get(head))
        config |= page.head_fixed.get(head, {})
    config |= dict.fromkeys(page.dropouts, dropout)
    config |= label_entries(network, heads, labels)
    config |= _ids(page, network, tokenizer, heads, ids, notes)
    config |= {entry: config[of] for entry, of in page.repeats.items()}
    wanted = ("model.", *(f"heads.{head}." for head in heads))
    kept = {name: tensor.detach().cpu() for name, tensor in tensors.items() if name.startswith(wanted)}
    if page.pad_counts:
        for table in [name for name in kept if name.endswith(POSITIONS)]:
            kept[table] = _renumbered(kept[table], network.model.embed.positions, config["pad_token_id"])
            config["max_position_embeddings"] = len(kept[table])
    if isinstance(body, spec.EncoderDecoder):
        config["is_encoder_decoder"] = not page.alone.get(architecture, "")
    stored = laid_out(page, body, architecture, heads, kept)
    dtype = str(next(iter(stored.values())).dtype).removeprefix("torch.")
    config |= {"dtype": dtype, "torch_dtype": dtype}  # the second is what transformers 4 reads
    longest = network.model.embed.positions.length
    how: dict[str, Any] = {"model_max_length": longest} | ({"padding_side": page.pads} if page.pads else {})
    facts = modelcard.Facts(
        page.name,
        architecture,
        sum(tensor.numel() for tensor in stored.values()),
        page.loads,
        tokenizer is not None,
        labels if {"classify", "tag"} & set(heads) else (),
        lineage,
        about or {},
    )
    publish(folder, config, stored, None if tokenizer is None else partial(tokenizer.save, **how), modelcard.page(facts))
    return Exported(folder, architecture, tuple(notes))


def laid_out(
    page: System,
    body: spec.Model,
    architecture: str,
    heads: Sequence[str],
    tensors: Mapping[str, Tensor],
    *,
    repeated: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a body and its `heads` by the names of a Hub class; `repeated`: those that it shares under each of their names."""
    found, alone = dict(tensors), page.alone.get(architecture, "")
    if "choice" in heads and "heads.choice.out.bias" not in found:
        found["heads.choice.out.bias"] = found["heads.choice.out.weight"].new_zeros(1)  # the Hub's class has one; 0 is none
    names = page.named(heads, body, alone).bind(heads=getattr(body, "heads", 0))
    stored = names.to_hub(one_stack(found, alone))
    stored |= {tie.hub: stored[tie.of] for tie in names.ties if repeated and tie.of in stored}
    bare = architecture == headless(page) or architecture in page.bare  # such classes are saved without the family's prefix
    return {name.removeprefix(page.names.prefix) if bare else name: tensor for name, tensor in stored.items()}


def import_folder(source: Path | str, target: Path | str) -> tuple[Path, tuple[str, ...]]:
    """A Hugging Face folder -> our checkpoint `target/step-00000000`; returns its folder and the notes."""
    found = from_hub(source)
    more = {"labels": list(found.labels), "ids": {key: found.config.get(key) for key in IDS}}
    fingerprint, write = "", None
    if found.tokenizer is not None:
        from ziggurat.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(found.tokenizer)
        fingerprint, write = tokenizer.fingerprint, tokenizer.save
    lineage = (
        {"stage": "import", "name": "import", "from": Path(source).name, "architectures": found.config.get("architectures")},
    )
    card = checkpoints.Card(found.network, found.system, lineage, fingerprint, more)
    folder = checkpoints.save(Path(target), 0, card, found.tensors, state={}, tokenizer=write)
    return folder, found.notes


def export_checkpoint(
    checkpoint: Path | str,
    target: Path | str,
    *,
    architecture: str | None = None,
    dropout: float = 0.1,
    task: str | None = None,
) -> Exported:
    """Our checkpoint (or the newest good one of a stage) -> a Hugging Face folder, with its tokenizer if it has one.

    Of a model of several tasks `task` says whose head goes with the body; without it that is a `UserError`.
    """
    saved = checkpoints.load(Path(checkpoint))
    tokenizer = None
    if saved.tokenizer is not None:
        from ziggurat.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(saved.tokenizer)
    card, tensors, labels = saved.card, saved.tensors, saved.card.more.get("labels", ())
    several = tasks.tasks_of(card.network)
    if task is None:
        check(
            not several,
            f"{checkpoint} is a model of {len(several)} tasks: {', '.join(several)}; a Hub class holds one of them",
            "name one: `task` (--task)",
        )
    else:
        alone, labels = tasks.alone(card.network, tensors, task), card.more.get("tasks", {}).get(task, ())
        card, tensors = replace(card, network=alone.network, lineage=of_task(card.lineage, task)), alone.tensors
    return to_hub(
        card.network,
        tensors,
        tokenizer,
        card.system or None,
        target,
        dropout=card.more.get("dropout", dropout),
        architecture=architecture,
        labels=labels,
        ids=card.more.get("ids"),
        lineage=card.lineage,
        about=card.more.get("card"),
    )


def of_task(lineage: Sequence[Mapping[str, Any]], task: str) -> tuple[Mapping[str, Any], ...]:
    """The lineage as a model of one task tells it: of the last stage's test scores its own."""
    *before, last = lineage or ({},)
    test = last.get("tests", {}).get(task)
    return (*before, {**{k: v for k, v in last.items() if k != "tests"}, **({"test": test} if test else {})})


def _half(
    network: spec.Network, tensors: Mapping[str, Tensor], architecture: str | None, notes: list[str]
) -> tuple[spec.Network, Mapping[str, Tensor]]:
    """The half of a generator and a discriminator that a Hub class holds; a single model as it is."""
    if not isinstance(network.model, spec.Adversaries):
        return network, tensors
    if architecture is not None and architecture.endswith(("MaskedLM", "CausalLM")):
        return halves.generator(network, tensors)
    notes.append("the discriminator alone was written; `architecture` ElectraForMaskedLM writes the generator")
    return halves.discriminator(network, tensors)


def _ids(
    system: System,
    network: spec.Network,
    tokenizer: Tokenizer | None,
    heads: Sequence[str],
    ids: Mapping[str, int | None] | None,
    notes: list[str],
) -> dict[str, int | None]:
    """Special ids for `config.json`."""
    if tokenizer is None:
        twin = isinstance(network.model, spec.EncoderDecoder)
        given = {key: (ids or {}).get(key) for key in IDS if key != START or twin}
        if system.pad_counts:
            return given | {"pad_token_id": network.model.embed.positions.offset - 1}
        given |= {} if ids else {"pad_token_id": system.pad, **system.ids}
        return given if ids and given.get(START) is not None else given | start_id(network.model, given)
    vocab, layout = tokenizer.vocab, tokenizer.layout
    check(
        vocab.size <= network.model.vocab,
        f"the tokenizer has {vocab.size} tokens, the model only {network.model.vocab} rows for them",
        "export with the tokenizer the model was trained with",
    )
    segments = network.model.embed.segments
    summary = getattr(layout, "summary", None)
    most = max(layout.segments) if summary is None else max(*layout.segments, summary)
    if system.loads and most >= max(segments, 1) and not spec.compares_segments(network.model):
        # Without a table transformers' GPT-2 would add the token embeddings of the segment numbers: silently something else.
        check(segments, "the tokenizer numbers segments, the model has none", "export with the tokenizer it was trained with")
        notes.append(
            "the tokenizer numbers the two texts of a pair, the model has one segment: transformers can run single texts only"
        )
    pad: int | None = vocab.pad
    single = isinstance(network.model, spec.Single)
    if {"classify", "regress"} & set(heads) and single and network.model.pool.at == "last" and layout.last[-1:] == (vocab.pad,):
        # The Hub's class scores the last token that is not the pad; ours the last one, which here looks like a pad.
        pad = None
        notes.append("the pad token also ends documents, so config.json names no pad: transformers scores one text at a time")
    if {"classify", "regress"} & set(heads):
        notes += summary_note(network.model, vocab, layout)
    found = {"pad_token_id": pad, "bos_token_id": layout.first[0] if layout.first else vocab.end, "eos_token_id": vocab.end}
    return found | start_id(network.model, found)


def _renumbered(table: Tensor, positions: spec.Absolute, pad: int) -> Tensor:
    """The position table as the Hub numbers it, from the pad id + 1; rows before that are read for pads only."""
    if pad + 1 == positions.offset:
        return table
    return torch.cat([table.new_zeros(pad + 1, table.shape[1]), table[positions.offset :]])

"""Which class of the Hub holds which of our heads, in both directions, and what its configuration says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ziggurat.checkpoint.names import NameMap
from ziggurat.errors import UserError, check
from ziggurat.nn import spec
from ziggurat.systems.base import System, closest

TASKS = ("classify", "regress", "choice", "tag", "span")
"""Heads of tasks: when there is one, the export is of its class and the pre-training heads stay behind."""
PRETRAINING = ("pooler", "lm", "nsp", "sop", "rtd")
"""Heads whose names in a file say whose they are; a classifier's do not."""
OUTPUTS = {"nsp": 2, "sop": 2, "choice": 1, "span": 2}
"""Outputs that the Hub's classes take for granted."""


def heads_found(
    system: System, config: Mapping[str, Any], stored: Mapping[str, Tensor], model: spec.Model
) -> tuple[str, tuple[str, ...]]:
    """The Hub class of a folder and our heads that it holds: its class's, and pre-training heads that lie in the file."""
    named = [str(a) for a in config.get("architectures") or ()]
    architecture = named[0] if named else headless(system)
    known_class(system, architecture)
    heads = [] if architecture == headless(system) else list(system.classes[architecture])
    if "classify" in heads and _regression(config):
        heads[heads.index("classify")] = "regress"
    taken = {hub for head in heads for hub in _hub_names(system, head, model)}
    for head in [head for head in PRETRAINING if head in system.heads]:
        names = _hub_names(system, head, model)
        if head not in heads and not taken.intersection(names) and _any_stored(names, system.names.prefix, stored):
            heads.append(head)
    return architecture, tuple(heads)


def known_class(system: System, architecture: str) -> None:
    """Raise `UserError` for a class that is not of this system, and for one of its classes that ours cannot stand for, with the reason."""
    check(
        architecture not in system.refused,
        f"{architecture} is neither read nor written: {system.refused.get(architecture)}",
        f"classes: {', '.join(system.classes)}",
    )
    if architecture not in system.classes:
        raise closest(architecture, system.classes, f"{system.name} class")


def heads_wanted(
    system: System, network: spec.Network, architecture: str | None, notes: list[str]
) -> tuple[str, tuple[str, ...]]:
    """The Hub class to write and our heads that go into it; what stays behind is noted."""
    present = [head for head in network.heads if head in system.heads]
    if architecture is None:
        tasks = [head for head in present if head in TASKS]
        several = f"the model has several task heads: {', '.join(tasks)}"
        check(len(tasks) < 2, several, "one Hub class holds one of them: say which class with `architecture`")
        architecture = _class_of(system, set(tasks) or set(present) - {"pooler"}, network.model.visibility == "causal")
    else:
        known_class(system, architecture)
    heads = []
    for head in system.classes[architecture]:
        head = "regress" if head == "classify" and "classify" not in present and "regress" in present else head
        if head in present or not _hub_names(system, head, network.model):
            heads.append(head)
        elif head != "pooler":
            raise UserError(f"{architecture} needs a head '{head}', which the model lacks", f"it has: {', '.join(network.heads)}")
    left = [head for head in network.heads if head not in heads]
    if left:
        notes.append(f"{architecture} has no place for the heads {', '.join(left)}: they were left out")
    return architecture, tuple(heads)


def _class_of(system: System, wanted: set[str], causal: bool) -> str:
    """The Hub class with exactly these heads (poolers apart), or else the first that has them among others."""
    wanted = {"classify" if head == "regress" else head for head in wanted}
    heads = {n: set(heads) - {"pooler"} for n, heads in system.classes.items() if heads or n not in system.alone}
    nameless = {head for head, entries in system.heads.items() if not NameMap(entries).lines}
    found = [name for name in heads if heads[name] == wanted] or [name for name in heads if heads[name] - nameless == wanted]
    found = found or [headless(system)]
    return found[min(causal, len(found) - 1)]  # where there are two, the second is the causal one


def headless(system: System) -> str:
    """The Hub's class without a head."""
    return list(system.classes)[-1]


def _hub_names(system: System, head: str, model: spec.Model) -> list[str]:
    """The Hub's name templates of a head's own parameters."""
    return [line.hub for line in NameMap(system.entries(head, model)).lines]


def _any_stored(templates: Sequence[str], prefix: str, stored: Mapping[str, Tensor]) -> bool:
    stems = tuple(template.split("{")[0] for template in templates)
    return bool(stems) and any(name.startswith(stems) or (prefix + name).startswith(stems) for name in stored)


def head_spec(system: System, head: str, tensors: Mapping[str, Tensor]) -> spec.Head:
    """What the tensors of a head say about it."""
    if head == "lm":
        return spec.VocabHead()
    if head == "pooler":
        return spec.PoolerHead()
    if head == "rtd":
        return spec.ReplacedHead()
    outputs = len(tensors[f"heads.{head}.out.weight"])
    if head in ("tag", "span"):
        return spec.TokenHead(outputs=outputs)
    return spec.ClassHead(outputs=outputs, by=system.model.pool.by, bias=f"heads.{head}.out.bias" in tensors)


def exportable(system: System, head: str, part: spec.Head | None) -> None:
    outputs = getattr(part, "outputs", None)
    taken = OUTPUTS.get(head)
    check(
        outputs is None or taken is None or outputs == taken,
        f"head '{head}' has {outputs} outputs, the Hub's class {taken}",
        "this head cannot be exported: give `architecture` for another one",
    )
    by = getattr(part, "by", system.model.pool.by)
    check(
        by == system.model.pool.by,
        f"head '{head}' pools by '{by}', the Hub's {system.name} classes by '{system.model.pool.by}'",
        "keep the system's own pooling to be able to export",
    )


def _regression(config: Mapping[str, Any]) -> bool:
    kind = config.get("problem_type")
    return kind == "regression" or (kind is None and len(config.get("id2label") or (0, 1)) == 1)


def labels_of(config: Mapping[str, Any], network: spec.Network) -> tuple[str, ...]:
    """Names of the classes; none when the file has the Hub's placeholders or as many as another head."""
    named = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    labels = tuple(named[number] for number in sorted(named))
    outputs = {getattr(part, "outputs", 0) for head, part in network.heads.items() if head in ("classify", "tag")}
    placeholders = all(label == f"LABEL_{number}" for number, label in enumerate(labels))
    return labels if outputs == {len(labels)} and not placeholders else ()


def label_entries(network: spec.Network, heads: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    kinds = {"classify": "single_label_classification", "regress": "regression", "tag": None}
    entries: dict[str, Any] = {}
    for head in kinds.keys() & set(heads):
        outputs = getattr(network.heads[head], "outputs", 0)
        names = list(labels) if head != "regress" and labels else [f"LABEL_{number}" for number in range(outputs)]
        check(len(names) == outputs, f"{len(names)} labels for head '{head}' with {outputs} outputs: {', '.join(names)}")
        entries["id2label"] = {str(number): name for number, name in enumerate(names)}
        entries["label2id"] = {name: number for number, name in enumerate(names)}
        entries |= {"problem_type": kinds[head]} if kinds[head] else {}
    return entries

"""Which means against forgetting a stage of a recipe has: filled in where the recipe says nothing, and checked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from ziggurat.data.sources import Source, splits
from ziggurat.evaluate.frozen import probeable
from ziggurat.nn import spec as parts
from ziggurat.nn.depth import depths, top_of
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.train.adaptation import SAMPLE, Freeze
from ziggurat.train.lora import TARGETS, matrices
from ziggurat.train.stage import Stage
from ziggurat.train.tasks import columns_lacking
from ziggurat.tree import Node, nearest, tree


def measured(stages: Sequence[Node]) -> bool:
    """Say in every dapt and tapt stage what it may forget: the text of the pretrain stages it comes from. Left open (null) where that hangs on
    which start will be chosen. Whether a stage comes from somebody's checkpoint and has nothing to be measured on but the default
    sample."""
    kinds: dict[str, tuple[str, list[str], list[str]]] = {}
    sampled = False
    for node in stages:
        kind, data, init = (node.value[key].plain() if key in node.value else "" for key in ("stage", "data", "init"))
        starts = list(init.get("best_of") or ("",)) if isinstance(init, dict) else [init]
        read = [data] if isinstance(data, str) else list(data or ())
        found: dict[frozenset[str], list[str]] = {}
        for general, origin in (way for start in starts for way in _ways(start, kinds)):
            on = [n for n in dict.fromkeys(general) if n not in read] or list(dict.fromkeys(general))
            on = on or ([SAMPLE] if origin != "scratch" else [])
            found[frozenset(on)] = on
        kinds[node.value["name"].plain()] = kind, read, starts
        held = node.value.get("forgetting")
        given = dict(held.value) if held is not None and isinstance(held.value, dict) else {}
        named = given.pop("general", None)
        if kind not in ("dapt", "tapt") or (held is not None and held.value is False):
            continue
        if named is not None and named.value is not None:
            continue
        sampled = sampled or any(SAMPLE in on for on in found.values())
        if len(found) == 1:
            (on,) = found.values()
            general_text = tree(on, "the pretrain stages before" if on != [SAMPLE] else "a default general sample")
        else:
            general_text = Node(None, "of the start that is chosen")
        node.value["forgetting"] = Node({"general": general_text, **given}, held.where if held is not None else "default")
    return sampled


def _ways(start: str, earlier: Mapping[str, tuple[str, list[str], list[str]]]) -> Iterator[tuple[list[str], str]]:
    """(text of the pretrain stages, what it began with) of every way in which a start may come about."""
    if start not in earlier:
        yield [], start
        return
    kind, read, starts = earlier[start]
    rest = {name: stage for name, stage in earlier.items() if name != start}
    for general, origin in (way for before in starts for way in _ways(before, rest)):
        yield (read if kind == "pretrain" else []) + general, origin


def left_open(stage: Stage) -> bool:
    """Whether what a stage may forget is known only when its start, or that of a stage before it, is chosen."""
    return stage.stage in ("dapt", "tapt") and stage.forgetting is not None and stage.forgetting.general is None


def deciding(stage: Stage) -> dict[tuple[str, str], str]:
    """(field, source) -> setting: the sources whose held-out text decides which weights the stage hands on. Test rows never may."""
    held, between, found = stage.forgetting, stage.interpolate, dict[tuple[str, str], str]()
    general = (held.general if held is not None else None) or ()
    if stage.evaluate.chooses:
        found |= {("evaluate", name): "evaluate: {keep: best}" for name in stage.data}
    if held is not None and held.stop:
        found |= {("forgetting", name): "forgetting: {stop: true}" for name in general}
    if between is not None and between.share is None:
        limited = between.limit is not None or held is not None
        found |= {("interpolate", name): "interpolate" for name in (*stage.data, *(general if limited else ()))}
    return found


def problems(stage: Stage, sources: Mapping[str, Source], model: parts.Model | None = None) -> Iterator[tuple[Any, ...]]:
    """(field, message, places it was judged by ...) of a resolved stage; `model` is the system's, if there is one."""
    held, anchor = stage.forgetting, stage.anchor
    named: dict[str, tuple[str, ...]] = {
        "forgetting": (held.general if held is not None else None) or (),
        "replay": tuple(stage.replay),
        "nearest": tuple(stage.nearest),
        "anchor": (anchor.general if anchor is not None else None) or (),
    }
    for field, names in named.items():
        for name in names:
            if name not in sources:
                yield field, f"unknown source '{name}'; {nearest(name, sources)}", ("sources", name)
            elif field == "forgetting" and not {"valid", "test"} & set(splits(sources[name])):
                yield field, f"source '{name}' holds nothing out to measure on; give it `valid: 0.01`", ("sources", name)
    for (field, name), asks in deciding(stage).items():
        if field != "evaluate" and name in sources and "valid" not in splits(sources[name]):
            message = f"`{asks}` needs text to choose by, and source '{name}' has no `valid` split; give it `valid: file` or `valid: 0.1`"
            yield field, message, ("sources", name)
    for name, task in (held.tasks if held is not None else {}).items():
        yield from _task_problems(name, task, sources)
    if held is not None and stage.stage == "finetune" and (held.general or held.tasks):
        yield "forgetting", "a fine-tuned model has no language-model loss; it belongs in a stage of text"
    if held is not None and held.stop and stage.evaluate.every is None:
        yield "forgetting", "can stop the stage only where it is evaluated; set evaluate: {every: ...}"
    yet = " before its start is chosen" if left_open(stage) else ""
    if held is not None and held.stop and not held.general:
        yield "forgetting", f"has no general text to judge by{yet}; name a source: `general: ...`"
    more: dict[str, Collection[str]] = {"replay": stage.replay, "nearest": stage.nearest}
    for field, further in more.items():
        for name in further:
            if name in stage.data or (field == "nearest" and name in stage.replay):
                yield field, f"'{name}' is read by the stage already; name it once"
        if further and stage.stage == "finetune":
            yield field, "is text without labels, and a finetune stage reads labelled rows; it belongs in dapt or tapt"
    if sum(stage.replay.values()) >= 1:
        yield "replay", f"the shares add up to {sum(stage.replay.values()):g}: nothing is left for `data`"
    if anchor is not None and anchor.ewc and stage.objective is not None and stage.objective.labelled:
        yield (
            "anchor",
            "ewc weighs the weights by the stage's own objective on general text, which has no labels; l2 alone is for finetune",
        )
    elif anchor is not None and anchor.ewc and not stage.weighed:
        yield "anchor", f"ewc has no general text to weigh the weights on{yet}; name a source: `general: ...`"
    started = {
        "anchor": anchor,
        "distill": stage.distill,
        "freeze": stage.freeze,
        "lora": stage.lora,
        "interpolate": stage.interpolate,
        "forgetting": held if held is not None and held.stop else None,
    }
    for field in [name for name, value in started.items() if value is not None and stage.init == "scratch"]:
        yield field, "needs weights to start from, and this stage starts from scratch"
    if stage.optim.layer_decay != 1 and stage.init == "scratch":
        yield "optim", "layer_decay is for weights that were trained before, and this stage starts from scratch"
    if stage.lora is not None and (stage.freeze is not None or anchor is not None):
        yield "lora", "leaves the weights as they are already: take `freeze` and `anchor` out"
    frozen = stage.freeze is not None and stage.freeze.embeddings
    if stage.vocabulary is not None and (stage.lora is not None or frozen):
        means = "lora" if stage.lora is not None else "freeze: {embeddings: true}"
        yield "vocabulary", f"brings new rows that `{means}` would never train; take one of the two out"
    if stage.distill is not None and stage.objective is not None:
        for name in _wordless(stage.objective, model):
            yield "distill", f"keeps what a language model says at the rows asked for, and '{name}' asks for something else"
    if stage.distill is not None and stage.memory:
        yield "distill", "asks the start about a text without what went before; take `memory` out"
    general = (held.general if held is not None else None) or ()
    if stage.interpolate is not None and stage.interpolate.share is None and set(stage.data) <= set(general):
        yield (
            "interpolate",
            f"has no gain to choose a share by, for {', '.join(stage.data)} counts as general text; name it: interpolate: 0.8",
        )
    if stage.interpolate is not None and stage.stage == "finetune":
        yield "interpolate", "a fine-tuned head has no start to go back to; it belongs in a stage of text"


def lacking(stage: Stage, model: parts.Model) -> Iterator[tuple[str, str, str]]:
    """(field, message, hint): the layers and matrices that a stage means and the model it starts from does not have."""
    if stage.freeze is not None and stage.freeze.layers > (layers := top_of(model) - 1):
        message = f"there are {layers} layers, not {stage.freeze.layers}"
        yield "freeze", message, f"freeze: {{layers: {layers}}} means all of them"
    elif stage.freeze is not None and not _trains(stage.freeze, stage.objective, model):
        message = "nothing is left to train, for what the objective asks has no weights of its own"
        yield "freeze", message, "freeze fewer layers, or write `embeddings: false`"
    if stage.lora is not None:
        with torch.device("meta"):
            found = matrices(NetworkModel(parts.Network(model=model)))
        there = {name.rpartition(".")[2] for name in found}
        for target in [target for target in stage.lora.targets if target not in there]:
            hint = f"targets: {', '.join(name for name in TARGETS if name in there)}"
            yield "lora", f"the model has no matrices '{target}'", hint


def _trains(freeze: Freeze, objective: Objective | None, model: parts.Model) -> bool:
    """Whether something is left to be trained; that an objective does not suit the model is said elsewhere."""
    if objective is None or objective.misfits(model):
        return True
    with torch.device("meta"):
        network = NetworkModel(parts.Network(model=model, heads=dict(objective.heads(model))))
    deep, _ = depths(network, model)
    return any(depth > freeze.layers or (depth == 0 and not freeze.embeddings) for depth in deep.values())


def headless(stage: Stage, model: parts.Model, heads: Mapping[str, parts.Head]) -> Iterator[tuple[str, str, str]]:
    """(field, message, hint): what goes by the answers of a stage's start, where a head that gives them would be new. `model` is what the
    stage trains, `heads` are the start's."""
    held, anchor, objective = stage.forgetting, stage.anchor, stage.objective
    if objective is None or stage.stage == "finetune":  # there none of these asks the start
        return
    wanted = objective.heads(model)
    spoken = ["lm"] if "lm" in wanted else list(wanted)
    """Those whose loss gain and forgetting are counted in."""
    asked = {
        "interpolate": (stage.interpolate is not None, "goes back toward the start", spoken),
        "forgetting": (held is not None and held.stop, "`stop: true` compares with the start", spoken),
        "distill": (stage.distill is not None, "keeps what the start says", list(wanted)),
        "anchor": (anchor is not None and anchor.ewc > 0, "ewc weighs the weights by what the start says", list(wanted)),
    }
    hint = "train the head first, in a stage of its own on general text with `freeze: {layers: ...}`"
    for field, (wants, why, names) in asked.items():
        new = [name for name in names if heads.get(name) != wanted[name]] if wants else []
        for name in sorted({*new} & _with_weights(model, wanted)) if new else ():
            yield field, f"{why}, and that has no {'language-model head' if name == 'lm' else f'head {name!r}'}", hint


def _with_weights(model: parts.Model, heads: Mapping[str, parts.Head]) -> set[str]:
    """The heads with weights of their own: one that has none (GPT-2's says words by the table of the embeddings) is never new."""
    with torch.device("meta"):
        network = NetworkModel(parts.Network(model=model, heads=dict(heads)))
    return {name.split(".")[1] for name, _ in network.named_parameters() if name.startswith("heads.")}


def _wordless(objective: Objective, model: parts.Model | None) -> list[str]:
    """The heads of an objective whose answers are no words of the vocabulary; none are known without a model."""
    if objective.labelled or objective.kind == "rtd":
        return [objective.kind]
    if model is None or objective.misfits(model := objective.part_of(objective.equipped(model))):
        return []
    words = (parts.VocabHead, parts.BoundaryHead, parts.PoolerHead)
    return [name for name, head in objective.heads(model).items() if not isinstance(head, words)]


def _task_problems(name: str, task: Objective, sources: Mapping[str, Source]) -> Iterator[tuple[Any, ...]]:
    """What is wrong with a labelled source that a probe is to be asked about."""
    source, place = sources.get(name), ("sources", name)
    if source is None:
        yield "forgetting", f"unknown source '{name}'; {nearest(name, sources)}", place
        return
    if not probeable(task):
        yield "forgetting", f"a linear probe answers classify, regress and tag, not '{task.kind}'", place
    elif message := columns_lacking(task, name, source):
        yield "forgetting", message, place
    if not {"valid", "test"} & set(splits(source)):
        yield "forgetting", f"source '{name}' holds no rows out to be asked about; give it `test: file` or `test: 0.1`", place

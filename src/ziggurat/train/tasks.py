"""The tasks of a finetune stage: each as a stage of its own, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ziggurat.data.sources import Source, labelled, splits, writes
from ziggurat.objectives.base import Objective
from ziggurat.objectives.mixture import Mixture
from ziggurat.objectives.tasks import Tasks
from ziggurat.train.stage import Stage
from ziggurat.tree import nearest


def single(stage: Stage) -> dict[str, Stage]:
    """The stage as one of each of its tasks alone, by the source of the task: what is scored, and told, task by task."""
    if not isinstance(stage.objective, Tasks):
        return dict.fromkeys(stage.data, stage)
    parts = stage.objective.parts
    return {
        name: stage.model_copy(update={"data": {name: share}, "objective": parts[name], "temperature": None})
        for name, share in stage.data.items()
        if name in parts
    }


def several(stage: Stage) -> bool:
    """Whether it has more than one task."""
    return isinstance(stage.objective, Tasks)


def labels_of(objective: Objective) -> dict[str, Any]:
    """What a checkpoint says about the labels of its heads: `labels` of one task, and of several {task: labels} as `tasks`."""
    if isinstance(objective, Tasks):
        return {"labels": [], "tasks": {name: _names(part) for name, part in objective.parts.items()}}
    return {"labels": _names(objective)}


def _names(objective: Objective) -> list[str]:
    return list(getattr(objective, "label_names", tuple)())


def problems(stage: Stage, sources: Mapping[str, Source], supervised: bool) -> Iterator[tuple[Any, ...]]:
    """(field or "", message, places it was judged by ...) of a resolved finetune stage."""
    objective = stage.objective
    if objective is None:
        yield "", "has no objective; a finetune stage needs a labelled one, as in {kind: classify, labels: [neg, pos]}"
    elif not supervised:
        yield "objective", f"'{objective.kind}' has no labels; a finetune stage needs a labelled objective"
    if isinstance(objective, Mixture) and supervised:
        yield (
            "objective",
            "a mixture gives each document to any of its parts, and labelled rows are of one task; for several tasks write "
            "{kind: tasks, parts: {source: objective, ...}}",
        )
        return
    if isinstance(objective, Tasks):
        for name in objective.parts:
            if name not in stage.data:
                hint = nearest(name, stage.data) if stage.data else "it has none"
                yield "objective", f"the task '{name}' is no source of this stage; {hint}", ("sources", name)
        for name in stage.data:
            if name in sources and name not in objective.parts:
                yield "data", f"source '{name}' has no task; say in `objective.parts` what is learned from it", ("sources", name)
    elif len(stage.data) > 1:
        yield (
            "data",
            f"a finetune stage reads one source, not {len(stage.data)}; for a task a source write "
            "objective: {kind: tasks, parts: {source: objective, ...}}",
        )
    for name, one in single(stage).items():
        if name in sources:
            yield from _source_problems(one, name, sources[name])


def _columns(objective: Objective | None) -> tuple[str, ...]:
    """What the source of a task must declare beside `text`."""
    if objective is None:
        return ()
    return (*objective.columns, *(("group",) if getattr(objective, "metric", "") in ("f1_a", "group_em") else ()))


def columns_lacking(objective: Objective | None, name: str, source: Source) -> str:
    """What the source of a labelled task must declare and does not, as a sentence; empty if nothing."""
    if objective is not None and objective.writes:
        where = "name the column of what is to be written, as in columns: {text: ..., pair: ...}"
        return "" if writes(source) else f"source '{name}' has no second text; {where}"
    lacks = [c for c in _columns(objective) if getattr(source.columns, c) is None] if source.kind in ("files", "hub") else []
    if lacks:
        columns = ", ".join(f"{c}: ..." for c in ("text", *_columns(objective)))
        return (
            f"source '{name}' declares no {', '.join(f'`{c}`' for c in lacks)}; name their columns, as in columns: {{{columns}}}"
        )
    return "" if labelled(source) else f"source '{name}' declares no labels; name their column, as in columns: {{label: ...}}"


def _source_problems(stage: Stage, name: str, source: Source) -> Iterator[tuple[Any, ...]]:
    place = ("sources", name)
    if message := columns_lacking(stage.objective, name, source):
        yield "data", message, place
    if "test" not in splits(source):
        yield "data", f"source '{name}' has no `test` rows to score on; give it `test: file` or `test: 0.1`", place

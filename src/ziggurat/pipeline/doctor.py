"""`ziggurat doctor`: what is wrong with a recipe, its data and this machine before hours are spent on them.

`doctor` prepares (what `run` does first anyway, and keeps), reads the texts again, and begins every stage for a moment. `glance` is what
`run` does: only what finished shards tell in a second or two. Both write `doctor.json` into the run folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ziggurat.atomic import write_json
from ziggurat.config import dump
from ziggurat.errors import UserError
from ziggurat.log import duration
from ziggurat.pipeline.charts import count
from ziggurat.pipeline.estimate import Estimate, bare_start, estimate, scheduled, told, weighed
from ziggurat.pipeline.findings import Finding, leaks_of, of_budget, of_data, statistics, unread_of
from ziggurat.pipeline.labels import of_task
from ziggurat.pipeline.prepare import content
from ziggurat.pipeline.run import RUNS, Run, begin, load_recipe
from ziggurat.pipeline.session import session
from ziggurat.train.job import done
from ziggurat.train.recipe import Recipe
from ziggurat.train.tasks import single

log = logging.getLogger(__name__)

FILE = "doctor.json"
TIGHT = 0.8
"""Share of free memory or disk from which a run is tight."""
LEVELS = ("error", "warning", "note")
FORMAT = 2
"""Of the file: what another one holds was found by other rules."""
NOW = ("rows", "leaks", "stage", "memory", "disk")
"""Checks that are made anew with what is kept of the doctor's: of the machine, or of documents that are not in the shards."""


def doctor(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Examine a recipe; returns what `doctor.json` holds: `findings`, `sources` (one row a source and split) and `estimate`.

    A mistake that would end the run while it prepares is the one finding. Raises `UserError` for a recipe that is none.
    """
    recipe = load_recipe(path, overrides)
    folder = RUNS / recipe.name
    with session(folder) as signals:
        try:
            run = begin(recipe, folder, signals)
            scheduled(run, run.left(recipe.stages))
            recipe = run.recipe  # with starts that are chosen
        except UserError as error:
            found = [Finding("error", "prepare", f"recipe {recipe.name}", error.message, error.hint)]
            return _written(folder, {"recipe": mark(recipe, None), "full": True}, found, [], None)
        rows = statistics(recipe, run.prepared, full=True)
        found = [*of_data(recipe, run.prepared, rows, full=True), *_of_tasks(recipe, run)]
        dead = frozenset(
            s.title for s in recipe.stages if any(f.level == "error" and f.where.startswith(f"{s.title} on ") for f in found)
        )
        sizes = estimate(run, skipped=dead)
        found += [*_of_sizes(run, sizes), *_of_budgets(run, sizes)]
        return _written(folder, {"recipe": mark(recipe, run), "full": True}, found, rows, sizes)


def glance(run: Run) -> dict[str, Any]:
    """The same from finished shards alone, without a probe. What `doctor` found stays, if it was for the same recipe and data; memory, disk
    and leaks are always those of now."""
    own, before = mark(run.recipe, run), read(run.folder)
    full = bool(before.get("full")) and before.get("recipe") == own
    if full:
        leaks = {name: facts.get("leaks", 0) for name, facts in run.prepared.facts.items()}
        rows = [{**row, "leaks": leaks.get((row["source"], row["split"]), 0)} for row in before["sources"]]
        stay = [Finding(**f) for f in before["findings"] if f["check"] not in NOW]
        sizes = told(run, before["estimate"])
        found = [*unread_of(run.recipe, run.prepared), *leaks_of(run.prepared), *stay, *_of_sizes(run, sizes)]
    else:
        rows = statistics(run.recipe, run.prepared, full=False)
        found = [*of_data(run.recipe, run.prepared, rows, full=False), *_of_tasks(run.recipe, run)]
        sizes = weighed(run)
        found += [*_of_sizes(run, sizes), *_of_budgets(run, sizes)]
    return _written(run.folder, {"recipe": own, "full": full}, found, rows, sizes)


def read(folder: Path) -> dict[str, Any]:
    """What `doctor.json` of a run folder holds; empty if there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def mark(recipe: Recipe, run: Run | None) -> str:
    """Identifies a recipe and the data it was examined with."""
    data = {"/".join(name): content(shards) for name, shards in run.prepared.shards.items()} if run else {}
    return hashlib.sha256(json.dumps([FORMAT, dump(recipe), data], sort_keys=True).encode()).hexdigest()[:16]


def _written(
    folder: Path, about: Mapping[str, Any], found: Sequence[Finding], rows: Sequence[Mapping[str, Any]], sizes: Estimate | None
) -> dict[str, Any]:
    ordered = sorted(found, key=lambda f: LEVELS.index(f.level))
    whole = {**about, "findings": [asdict(f) for f in ordered], "sources": list(rows)}
    whole["estimate"] = sizes.as_dict() if sizes else None
    write_json(folder / FILE, whole)
    return whole


def _of_tasks(recipe: Recipe, run: Run) -> Iterator[Finding]:
    for stage in recipe.stages:
        if stage.stage == "finetune":
            model = bare_start(run, stage.init).model
            for one in single(stage).values():
                yield from of_task(one, run.prepared, model)


def _of_budgets(run: Run, sizes: Estimate) -> Iterator[Finding]:
    known = {stage.name: stage for stage in sizes.stages}
    for stage in run.recipe.stages:
        if stage.stage != "finetune":
            own = known[stage.title]
            yield from of_budget(stage, run.prepared, own.parameters, stage.init == "scratch", own.steps or None)


def _of_sizes(run: Run, sizes: Estimate) -> Iterator[Finding]:
    beside = len(list(run.folder.glob("worth/**/DONE"))) >= sum(stage.times - 1 for stage in sizes.stages)
    for stage in sizes.stages:
        if stage.error:
            yield Finding("error", "stage", f"stage {stage.name}", stage.error, stage.hint)
        if done(run.folder / stage.name) and (beside or stage.times == 1):
            continue  # it needs no memory any more
        share = stage.memory.total / max(sizes.room, 1)
        if share > TIGHT:
            level: Any = "error" if share > 1 else "warning"
            text = f"needs about {_bytes(stage.memory.total)} of memory beside the process, and {_bytes(sizes.room)} are free"
            hint = "smaller micro-batches (`batch`) with more `accumulate` train the same; or a smaller model, a shorter `length`"
            yield Finding(level, "memory", f"stage {stage.name}", text, hint)
    written = sum(path.stat().st_size for path in run.folder.glob("**/*.safetensors"))
    left = max(sizes.disk - written, 0)
    if left > TIGHT * sizes.free:
        level = "error" if left - sizes.unsure > sizes.free else "warning"
        text = f"checkpoints and exports will take about {_bytes(left)} more, and {_bytes(sizes.free)} are free"
        hint = "make room, keep fewer checkpoints (`save: {keep: 1}`), or fine-tune from fewer prefixes (`worth`)"
        yield Finding(level, "disk", str(run.folder), text, hint)


# --- what people see -----------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of the texts and the stages."""
    header = [
        "source",
        "split",
        "documents",
        "bytes",
        "characters",
        "tokens",
        "tokens each",
        "scripts",
        "copies",
        "near",
        "leaks",
    ]
    header += ["searched for held-out text"]
    made = [("The text", header, [_source(row) for row in found["sources"]])] if found["sources"] else []
    sizes = found.get("estimate")
    if sizes and any(stage["steps"] for stage in sizes["stages"]):
        header = ["stage", "runs", "parameters", "steps", "s/step", "tokens", "time", "memory", "disk"]
        made.append(("The run", header, [_stage(stage) for stage in sizes["stages"]]))
    return made


def summary(found: Mapping[str, Any]) -> list[str]:
    """One line on what the whole run takes, and one a finding."""
    sizes, lines = found.get("estimate"), []
    if sizes and any(stage["steps"] for stage in sizes["stages"]):
        lines.append(
            f"The whole run: about {duration(sizes['seconds'])}, {_bytes(sizes['memory'])} of memory, {_bytes(sizes['disk'])} of disk "
            f"({_bytes(sizes['room'])} and {_bytes(sizes['free'])} are free)."
            + (f" Not in the time: {', '.join(left)}." if (left := sizes.get("left_out")) else "")
        )
    return [*lines, *(str(Finding(**f)) for f in found["findings"])] + ([] if found["findings"] else ["No findings."])


def say(found: Mapping[str, Any]) -> None:
    """What `run` says before it begins: warnings. Raises `UserError` with all errors at once: a run that would fail, or whose numbers would
    mean nothing, does not begin."""
    findings = [Finding(**finding) for finding in found["findings"]]
    for finding in findings:
        if finding.level == "warning":
            log.warning("%s", finding)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise UserError("; ".join(f"{e.where}: {e.message}" for e in errors), "; ".join(dict.fromkeys(e.hint for e in errors)))


def failed(found: Mapping[str, Any]) -> bool:
    """Whether a finding is an error."""
    return any(finding["level"] == "error" for finding in found["findings"])


def _source(row: Mapping[str, Any]) -> list[str]:
    scripts = row.get("scripts", {})
    letters = sum(scripts.values())
    some = [f"{name} {n / letters:.0%}" for name, n in scripts.items() if n >= 0.01 * letters][:3]
    each, near, searched = row.get("lengths"), row.get("near", {}), row.get("searched")
    return [
        row["source"],
        row["split"],
        f"{row['documents']:,}",
        count(row["bytes"]),
        count(row["characters"]) if "characters" in row else "",
        count(row["tokens"]),
        f"{each['median']:,} ({each['p5']:,}-{each['p95']:,})" if each else "",
        ", ".join(some),
        f"{row['copies']:,}",
        f"{'about ' if near['sampled'] else ''}{near['later']:,} of {near['looked']:,}" if near else "",
        f"{row['leaks']:,}" if row["split"] != "test" else "",
        "" if searched is None else "all" if searched["whole"] else f"the first {count(searched['characters'])}",
    ]


def _stage(stage: Mapping[str, Any]) -> list[str]:
    timed = stage["steps"]
    return [
        stage["name"],
        str(stage["times"]),
        count(stage["parameters"]),
        f"{timed:,}" if timed else "",
        f"{stage['seconds_per_step']:.3g}" if timed else "",
        count(timed * stage["tokens_per_step"]) if timed else "",
        duration(stage["seconds"] * stage["times"]) if timed else "",
        _bytes(stage["memory"]["total"]),
        _bytes(stage["disk"] * stage["times"]),
    ]


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

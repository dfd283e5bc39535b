"""What decides a stage's result, written down when it begins: a folder that was begun with something else is not gone on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.atomic import write_json
from ziggurat.config import spelled
from ziggurat.errors import UserError
from ziggurat.train.keeping import WITHIN
from ziggurat.train.measured import BEFORE
from ziggurat.train.stage import Stage

if TYPE_CHECKING:
    from ziggurat.train.job import Job

FILE = "stage.json"
LINE = "interpolation.json"
"""What was found between a stage's start and what it trained (`pipeline/interpolation.py`)."""
CHOSEN_BY = "chosen_by"
"""The held-out text that chose weights while the stage trained."""
BUDGET = "budget.json"
"""The steps of a budget that had to be counted or measured (`train/budget.py`)."""
STEPS = "budget.steps"
"""The steps of a time budget that were measured elsewhere. They are written into BUDGET, not into FILE: where the stage measured them
itself it is no other stage."""
SHOWN = 8


def deciding(stage: Stage) -> dict[str, Any]:
    """What of a stage decides its result, as plain data. How weights are chosen is not there where none are: so it was written before
    they could be."""
    unfelt = () if stage.forgetting is not None and stage.forgetting.stop else ("forgetting",)
    written = {k: v for k, v in spelled(stage).items() if k not in ("save", "log_every", *unfelt)}
    unseen = ("context",) if stage.evaluate.chooses else ("context", "keep", "by")
    written["evaluate"] = {k: v for k, v in written["evaluate"].items() if k not in unseen}
    return written


def of(job: Job) -> dict[str, Any]:
    """What decides a job's result, as plain data."""
    tables = {name: table.digest for name, table in job.tables.items()}
    return {
        **({"tables": tables} if tables else {}),
        "stage": deciding(job.stage),
        "model": spelled(job.start.model),
        "system": job.system,
        "tokenizer": job.tokenizer.fingerprint,
        "seed": job.seed,
        **({STEPS: job.steps} if job.steps is not None else {}),
        **({"until": job.until} if job.until is not None else {}),
        **job.facts,
    }


def begun(folder: Path) -> bool:
    """Whether something was trained in a stage's folder that is gone on with: of a stage that was done before its last step no checkpoint
    but that of an evaluation may be left."""
    return any(folder.glob("step-*")) or (folder / "DONE").exists()


def keep(folder: Path, now: Mapping[str, Any]) -> None:
    """Write `now` (plain data) into a stage's folder, made if missing; raise `UserError` with the fields that changed when
    something was trained there with other settings."""
    before, after = _compared(folder, now)
    if before == after:
        return
    if changed := changes(folder, now):
        raise refused({folder: changed})
    folder.mkdir(parents=True, exist_ok=True)  # nothing is lost; what was measured for other settings goes
    for measured in (BUDGET, BEFORE, LINE, "fisher.safetensors"):
        (folder / measured).unlink(missing_ok=True)
    shutil.rmtree(folder / WITHIN, ignore_errors=True)
    write_json(folder / FILE, {k: v for k, v in now.items() if k != STEPS})


def changes(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """How `now` differs from what something was trained with in a folder, in lines; none where nothing was."""
    before, after = _compared(folder, now)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)] if begun(folder) else []
    lines = [f"  {key}: was {before.get(key, 'absent')!s:.80}, is {after.get(key, 'absent')!s:.80}" for key in changed[:SHOWN]]
    return lines + ([f"  and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else [])


def refused(found: Mapping[Path, Sequence[str]]) -> UserError:
    """What is said of folders that were begun with other settings, by what `changes` says of each; alike ones together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for folder, lines in found.items():
        alike.setdefault(tuple(lines), []).append(str(folder))
    said = [
        "\n".join([f"{', '.join(folders)} {'was' if len(folders) == 1 else 'were'} begun with other settings:", *lines])
        for lines, folders in alike.items()
    ]
    what = "this folder to begin the stage again" if len(found) == 1 else "these folders to begin the stages again"
    return UserError("\n".join(said), f"take the change back, give the recipe another `name`, or delete {what}")


def _compared(folder: Path, now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a folder was begun with and what is asked now, by field."""
    path = folder / FILE
    before = _flat(json.loads(path.read_text("utf-8"))) if path.exists() else {}
    after = _flat(json.loads(json.dumps(now)))
    if before:  # what an older folder does not say of its held-out text is not known to have changed
        after = {k: v for k, v in after.items() if k in before or not k.startswith(f"{CHOSEN_BY}.")}
    if before and STEPS in after and (folder / BUDGET).exists():
        before[STEPS] = json.loads((folder / BUDGET).read_text("utf-8"))["steps"]
    return before, after


def fingerprint(folder: Path) -> str:
    """What identifies a stage to those after it: the hash of its settings, its ancestors' included, and of the share of the way that it hands
    on, where another one was chosen at first."""
    content, path = json.loads((folder / FILE).read_text("utf-8")), folder / LINE
    line = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return digest([content, line["chosen"]] if line.get("first", line.get("chosen")) != line.get("chosen") else content)


def digest(content: Any) -> str:
    """A hash of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, one in value.items() for k, v in _flat(one, f"{place}.{key}" if place else key).items()}
    return {place: value}

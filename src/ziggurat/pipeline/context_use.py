"""Whether a stage's model uses a long context: its loss by position, and the same texts read in shorter windows.

A loss by position alone would also fall if later text were easier; so beside it stands the loss of the very same documents cut into the
shorter lengths of the recipe's other stages.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ziggurat.atomic import write_json
from ziggurat.data.subset import Subset
from ziggurat.evaluate.by_position import by_position
from ziggurat.evaluate.heldout import held_out, language_loss, main_loss
from ziggurat.nn.spec import VocabHead
from ziggurat.pipeline.charts import Series, line_chart
from ziggurat.pipeline.opened import open_checkpoint
from ziggurat.pipeline.prepare import content
from ziggurat.train import job as jobs
from ziggurat.train import settings
from ziggurat.train.loop import precision_of

if TYPE_CHECKING:
    from ziggurat.data.shards import Shards
    from ziggurat.pipeline.scoring import Scorer
    from ziggurat.train.recipe import Recipe
    from ziggurat.train.stage import Stage

log = logging.getLogger(__name__)

FILE = "context.json"
FIRST = 16
"""Where the first span of positions ends; each further one is twice as long, up to a multiple of the lengths."""


def edges(longest: int) -> list[int]:
    """0, 16, 32, 64 ... up to and with `longest`."""
    found = [0]
    step = FIRST
    while step < longest:
        found.append(step)
        step *= 2
    return [*found, longest]


def lengths(recipe: Recipe) -> list[int]:
    """The lengths of the recipe's text stages, ascending, each once."""
    return sorted({s.length for s in recipe.stages if s.stage != "finetune"})


def documents(shards: Shards | None, longest: int, tokens: int) -> Subset | None:
    """The first held-out documents of at least `longest` tokens, so many as hold `tokens`; None if there is none."""
    long = np.flatnonzero(shards.lengths() >= longest) if shards is not None else np.zeros(0, np.int64)
    if shards is None or not len(long):
        return None
    sizes = np.cumsum(shards.lengths("text", long))
    return Subset(shards, long[: int(np.searchsorted(sizes, tokens)) + 1])


def write(scorer: Scorer, stage: Stage, folder: Path, steps: int) -> None:
    """Measure the checkpoint that a text stage handed on: context.json in its folder, made anew where weights, texts or lengths are others."""
    path, objective = folder / FILE, stage.objective
    if not stage.evaluate.context or stage.stage == "finetune":
        return
    assert objective is not None
    held = [content(scorer.shards[name, "valid"]) for name in stage.data if (name, "valid") in scorer.shards]
    asked = settings.digest([settings.fingerprint(folder), steps, lengths(scorer.recipe), held])
    if path.exists() and json.loads(path.read_text("utf-8"))["asked"] == asked:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = precision_of(stage.precision, device)
    network = open_checkpoint(jobs.result(folder, steps)).build().to(device)
    all_lengths = lengths(scorer.recipe)
    longest = min(all_lengths[-1], network.spec.model.embed.positions.length)
    found: dict[str, Any] = {}
    for name in stage.data:
        some = documents(scorer.shards.get((name, "valid")), longest, stage.evaluate.tokens)
        if some is None:
            log.warning(
                "%s: no held-out document of %s has %d tokens: the use of context is not measured", stage.title, name, longest
            )
            continue
        by_length = {}
        for length in (n for n in all_lengths if n <= longest):
            numbers = held_out(network, objective, scorer.batches(some, objective, length, network.spec.model), dtype)
            by_length[length] = language_loss(numbers)
        target = main_loss(numbers)
        if not isinstance(network.spec.heads.get(objective.head_of(target)), VocabHead):
            log.warning("%s: no token is predicted in %s: the use of context is not measured", stage.title, name)
            continue
        spans = by_position(
            network, objective, scorer.batches(some, objective, longest, network.spec.model), target, edges(longest), dtype
        )
        found[name] = {"target": target, "documents": len(some), "lengths": by_length, "positions": [s._asdict() for s in spans]}
        said = ", ".join(f"{loss:.3f} in windows of {length}" for length, loss in by_length.items())
        log.info("%s: %d long held-out documents of %s: loss %s", stage.title, len(some), name, said)
    write_json(path, {"asked": asked, "found": found})


def read(folder: Path) -> dict[str, Any]:
    """What `write` has found; empty if it was not asked."""
    path = folder / FILE
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))["found"] if path.exists() else {}
    return found


def section(facts: Mapping[str, Any], table: Callable[..., str]) -> str:
    """The report's part: a line a stage over positions, and the losses at each length."""
    measured = [(s["name"], s["context"]) for s in facts.get("stages", ()) if s.get("context")]
    sources = list(dict.fromkeys(name for _, found in measured for name in found))
    out = []
    for source in sources:
        mine = [(stage, found[source]) for stage, found in measured if source in found]
        drawn = [
            Series(stage, [(p["stop"], p["loss"]) for p in one["positions"] if p["predictions"]], f"var(--series-{n % 5 + 1})")
            for n, (stage, one) in enumerate(mine)
        ]
        legend = "".join(f'<span><i style="background:{s.color}"></i>{escape(s.name)}</span>' for s in drawn)
        chart = line_chart(drawn, x_label="tokens before, at most", y_label="loss")
        columns = list(dict.fromkeys(str(length) for _, one in mine for length in one["lengths"]))
        rows = [
            [
                stage,
                *(
                    f"{loss:.3f}" if (loss := {str(k): v for k, v in one["lengths"].items()}.get(c)) is not None else ""
                    for c in columns
                ),
            ]
            for stage, one in mine
        ]
        header = ["after", *(f"windows of {c}" for c in columns)]
        title = f"{escape(source)}: {mine[0][1]['documents']:,} long documents"
        out.append(
            f'<div class="panel"><h3>{title}</h3><div class="legend">{legend}</div>{chart}</div>{table(header, [(row, "") for row in rows])}'
        )
    if not out:
        return ""
    said = (
        "Left, the loss by how much text stands before a token; right, the loss of the same held-out documents cut into shorter windows. Where longer "
        "windows have the lower loss, the model uses what is far away."
    )
    return f'<h2>Use of context</h2><p class="quiet">{said}</p>{"".join(out)}'

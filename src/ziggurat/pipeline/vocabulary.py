"""A stage's own tokenizer: the one of the stage before, with tokens mined from its text. Made once, with shards of its own.

vocabulary/<stage>/  made.json  added.json  tokenizer/  shards/<source>/<split>/
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ziggurat.atomic import write_json
from ziggurat.data import sources
from ziggurat.data.reading import Reading
from ziggurat.log import counted
from ziggurat.pipeline.prepare import Prepared, Tests, cut
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.vocabulary import Added, Extended, extend
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage

log = logging.getLogger(__name__)

FOLDER = "vocabulary"


def prepare_stages(recipe: Recipe, folder: Path, base: Prepared) -> dict[str, Prepared]:
    """What each stage reads, by its title: the run's own shards, or those of the tokenizer that it or a stage before it extended."""
    found: dict[str, Prepared] = {}
    for stage in recipe.stages:
        before = found.get(stage.init, base)
        found[stage.title] = before if stage.vocabulary is None else _extended(recipe, folder, stage, before)
    return found


def _extended(recipe: Recipe, folder: Path, stage: Stage, before: Prepared) -> Prepared:
    """Tokens mined from the stage's source, and shards cut with them; what is there and still true is kept."""
    spec, place, tests = stage.vocabulary, folder / FOLDER / stage.title, Tests(recipe)
    assert spec is not None
    name = spec.source or next(iter(stage.data))
    source = recipe.sources[name]
    text = hashlib.sha256(json.dumps([name, sources.fingerprint(source, "train"), tests.mark]).encode()).hexdigest()[:16]
    identity = {"spec": spec.model_dump(mode="json"), "tokenizer": before.tokenizer.fingerprint, "text": text}
    made = place / "made.json"
    known: dict[str, Any] = json.loads(made.read_text("utf-8")) if made.exists() else {}
    trained = any((folder / stage.title).glob("step-*"))
    if known == identity or (trained and {**known, "text": text} == identity):
        if known != identity:
            log.info("%s: its vocabulary stays as it is: the stage was trained with it before the recipe's sources changed", stage.title)
        found = _read(place)
    else:

        def texts() -> Iterator[str]:
            for document in tests.clean(source, "train", Reading(), []):
                yield from document.texts.values()

        log.info("%s: mining %s tokens from %s", stage.title, f"{spec.extend:,}", name)
        what = f"source '{name}' (stage {stage.title})"
        found = extend(before.tokenizer, counted(f"reading {name} for new tokens", texts()), spec, what=what)
        made.unlink(missing_ok=True)
        found.tokenizer.save(place / "tokenizer")
        write_json(place / "added.json", {"sample": dict(found.sample), "tokens": [asdict(a) for a in found.added]})
        write_json(made, identity)
    _say(stage.title, found)
    prepared = cut(recipe, place, found.tokenizer, _read_after(recipe, stage), tests)
    return replace(prepared, added=found.added, bought=dict(found.sample))


def _read(place: Path) -> Extended:
    kept = json.loads((place / "added.json").read_text("utf-8"))
    added = tuple(Added(a["token"], a["id"], tuple(a["pieces"]), a["count"]) for a in kept["tokens"])
    return Extended(Tokenizer.load(place / "tokenizer"), added, kept["sample"])


def _read_after(recipe: Recipe, stage: Stage) -> Collection[str]:
    """Sources whose training text is read with the stage's tokenizer: its own, those of stages behind it, and the task's, which is
    fine-tuned from every stage."""
    behind = {stage.title}
    for each in recipe.stages:
        behind |= {each.title} if each.init in behind else set()
    chosen = {name for each in recipe.stages if each.title in behind for name in each.data}
    tuned = [each for each in recipe.stages if each.stage == "finetune"]
    return chosen | set(tuned[-1].data if tuned else ())


def _say(title: str, found: Extended) -> None:
    f = found.sample
    before, after = (f[f"tokens_{when}"] / max(f["words"], 1) for when in ("before", "after"))
    shown = ", ".join(a.token for a in sorted(found.added, key=lambda a: (-a.count * (len(a.pieces) - 1), a.id))[:8])
    log.info(
        "%s: %s new tokens (%s, ...): %.3f -> %.3f tokens a word on the sample", title, f"{len(found.added):,}", shown, before, after
    )


def tokenizers_differ(read: Mapping[str, Prepared], base: Prepared) -> bool:
    """Whether the stages of a run cut their texts in different ways, so that losses a token cannot be compared."""
    return len({base.tokenizer.fingerprint, *(p.tokenizer.fingerprint for p in read.values())}) > 1

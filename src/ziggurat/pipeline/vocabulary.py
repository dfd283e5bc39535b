"""A stage's own tokenizer: the one of the stage before, with tokens mined from its text. Made once, with shards of its own.

vocabulary/<stage>/  made.json  added.json  tokenizer/  shards/<source>/<split>/
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ziggurat.atomic import write_json
from ziggurat.config import spelled
from ziggurat.data import sources
from ziggurat.data.reading import Reading
from ziggurat.errors import check
from ziggurat.evaluate.heldout import PER_BYTE
from ziggurat.log import counted
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.spec import Network
from ziggurat.pipeline.prepare import Prepared, TestTexts, cut
from ziggurat.pipeline.scoring import Scorer
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.vocabulary import Added, Extended, extend
from ziggurat.train.job import Outcome
from ziggurat.train.loop import precision_of
from ziggurat.train.measured import read_before
from ziggurat.train.recipe import Recipe
from ziggurat.train.settings import digest
from ziggurat.train.stage import Stage, candidates
from ziggurat.train.start import Start

log = logging.getLogger(__name__)

FOLDER = "vocabulary"
MEASURED = "vocabulary.json"
SHOWN = 24
"""New tokens that the report names."""


def prepare_stages(recipe: Recipe, folder: Path, base: Prepared) -> dict[str, Prepared]:
    """What each stage reads, by its title: the run's own shards, or those of the tokenizer that it or a stage before it extended."""
    found: dict[str, Prepared] = {}
    for stage in recipe.stages:
        starts = {name: found.get(name, base) for name in candidates(stage.init)}
        first = next(iter(starts.values()))
        check(
            all(one.tokenizer.fingerprint == first.tokenizer.fingerprint for one in starts.values()),
            f"{stage.title} chooses between {', '.join(starts)}, and they read different tokens: a vocabulary was extended on the way to some",
            "extend the vocabulary in a stage before all of them, or name one start",
        )
        found[stage.title] = first if stage.vocabulary is None else _extended(recipe, folder, stage, first)
    return found


def _extended(recipe: Recipe, folder: Path, stage: Stage, before: Prepared) -> Prepared:
    """Tokens mined from the stage's source, and shards cut with them; what is there and still true is kept."""
    spec, place, tests = stage.vocabulary, folder / FOLDER / stage.title, TestTexts(recipe)
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
            log.info(
                "%s: its vocabulary stays as it is: the stage was trained with it before the recipe's sources changed",
                stage.title,
            )
        found = _read(place)
    else:

        def texts() -> Iterator[str]:
            for document in tests.clean(source, "train", Reading(), []):
                yield from (*document.texts.values(), *(text for some in document.lists.values() for text in some))

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
    """Sources whose training text is read with the stage's tokenizer: its own, those of stages behind it, the task's, which is
    fine-tuned from every stage, and the control's."""
    behind = {stage.title}
    for each in recipe.stages:
        behind |= {each.title} if behind & set(candidates(each.init)) else set()
    chosen = {name for each in recipe.stages if each.title in behind for name in (*each.reads, *each.weighed)}
    tuned = [each for each in recipe.stages if each.stage == "finetune"]
    control = recipe.worth.control if recipe.worth is not None else None
    return chosen | set(tuned[-1].data if tuned else ()) | ({control} if control is not None else set())


def _say(title: str, found: Extended) -> None:
    f = found.sample
    before, after = (f[f"tokens_{when}"] / max(f["words"], 1) for when in ("before", "after"))
    shown = ", ".join(token for token, _ in telling(found.tokenizer, found.added)[:8])
    log.info(
        "%s: %s new tokens (%s, ...): %.3f -> %.3f tokens a word on the sample",
        title,
        f"{len(found.added):,}",
        shown,
        before,
        after,
    )


def telling(tokenizer: Tokenizer, added: Sequence[Added]) -> list[tuple[str, Added]]:
    """The new tokens as text, those first that save most."""
    return [(tokenizer.decode([a.id]).strip(), a) for a in sorted(added, key=lambda a: (-a.count * (len(a.pieces) - 1), a.id))]


@torch.no_grad()
def before(folder: Path, stage: Stage, start: Start, scorer: Scorer, parent: str) -> dict[str, float]:
    """The bits per byte of held-out text as the start reads it, with its own tokens: {source: bits}, kept in the stage's folder. Nothing
    for a start that has no head for it. `parent` identifies its weights."""
    path = folder / MEASURED
    identity = digest([spelled(stage), parent, scorer.tokenizer.fingerprint, scorer.measured(stage)])
    if path.exists() and (kept := json.loads(path.read_text("utf-8")))["identity"] == identity:
        return dict(kept["start"])
    assert stage.objective is not None
    objective, _ = scorer.asked_with(start.model, start.heads, stage.objective, stage)
    found: dict[str, float] = {}
    if not objective.misfits(start.model) and all(name in start.heads for name in objective.heads(start.model)):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = NetworkModel(Network(model=start.model, heads=dict(start.heads)))
        network.load_state_dict(dict(start.load()))
        losses = scorer.losses(network.eval().to(device), stage.objective, stage, precision_of(stage.precision, device))
        found = {source: numbers[PER_BYTE] for source, numbers in losses.items() if PER_BYTE in numbers}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"identity": identity, "start": found})
    return found


def facts(title: str, folder: Path, outcome: Outcome, old: Prepared, new: Prepared) -> dict[str, Any]:
    """What a stage's new tokens bought, for the report: tokens a word, unknown tokens and bits a byte of every source, before and after."""
    path = folder / MEASURED
    start = json.loads(path.read_text("utf-8"))["start"] if path.exists() else {}
    _, grown = read_before(folder)
    rows = {}
    for (name, split), shards in new.shards.items():
        if split == next(s for s in ("valid", "test", "train") if (name, s) in new.shards):  # the text whose loss is measured
            fits = {"before": old.shards[name, split].fertility, "after": shards.fertility}
            rows[name] = {
                "tokens_per_word": {when: fit.get("tokens_per_word") for when, fit in fits.items()},
                "unknown_share": {when: fit.get("unknown_share") for when, fit in fits.items()},
                "bits_per_byte": {
                    "start": start.get(name),
                    "new rows": grown.get(name, {}).get(PER_BYTE),
                    "after": outcome.held_out.get(name, {}).get(PER_BYTE),
                },
            }
    best = [[text, len(a.pieces), a.count] for text, a in telling(new.tokenizer, new.added)[:SHOWN]]
    return {"stage": title, "tokens": len(new.added), "sample": dict(new.bought), "examples": best, "sources": rows}


def tokenizers_differ(read: Mapping[str, Prepared], base: Prepared) -> bool:
    """Whether the stages of a run cut their texts in different ways, so that losses a token cannot be compared."""
    return len({base.tokenizer.fingerprint, *(p.tokenizer.fingerprint for p in read.values())}) > 1

"""What may be wrong with a recipe's data before anything is trained: unreadable rows, leaks, copies, starved objectives, labels, budgets.

Everything here reads finished shards and the facts kept with them; `full` also reads texts again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ziggurat.data import sources
from ziggurat.data.census import Census, copies, several_sentences
from ziggurat.data.leaks import Leak, LeakIndex
from ziggurat.data.near import near_duplicates
from ziggurat.data.reading import Reading
from ziggurat.data.shards import Shards
from ziggurat.data.subset import Subset
from ziggurat.objectives.base import Lack, Objective, Supply
from ziggurat.pipeline.prepare import Prepared, TestTexts, used
from ziggurat.pipeline.scoring import leading
from ziggurat.train.budget import mixture, planned
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.types import Document

UNREAD = 0.01
"""Share of unreadable rows above which a training or held-out split is not what its file says; of test rows every one counts."""
COPIES = 0.05
"""Share of exact copies, and of near duplicates twice as many, from which a corpus is worth cleaning."""
HELD = 0.02
"""Share of held-out documents in the training text from which their loss is not believed."""
HELD_COUNT = 10
"""So many of them are said however small their share is: chance puts none there, so the corpus has copies."""
PASSES = {"pretrain": 40, "dapt": 40, "tapt": 200}
"""Passes over a text after which more bring next to nothing (Muennighoff et al., 2023, find that at about 40); the little text of a
task is read about 100 times by those who introduced it (Gururangan et al., 2020)."""
PER_PARAMETER = 1.0
"""Tokens a parameter, from scratch, below which a smaller model learns as much; about 20 are compute-optimal (Hoffmann et al., 2022)."""
SCRIPT = 0.3
"""Share of a text's letters that make its script one of the text's own."""
CHARACTERS = 30_000_000
"""Characters of a source that are searched for held-out text."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do."""

    level: Literal["error", "warning", "note"]
    """error: the run would fail, or its numbers would mean nothing; warning: they would mislead; note: worth knowing."""
    check: str
    where: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.message}\n  -> {self.hint}"


def statistics(recipe: Recipe, prepared: Prepared, *, full: bool) -> list[dict[str, Any]]:
    """One row a source and split: counts, lengths, scripts, copies; near duplicates when `full`."""
    rows = []
    for (name, split), shards in prepared.shards.items():
        facts = prepared.facts.get((name, split), {})
        if full and "characters" not in facts:  # prepared by an earlier version
            census = Census()
            for _ in census.watch(sources.documents(recipe.sources[name], split)):  # type: ignore[arg-type]
                pass
            facts = {**facts, **census.facts()}
        lengths = shards.lengths("text")
        looked, several = several_sentences(shards)
        row: dict[str, Any] = {"source": name, "split": split, "documents": len(shards), "tokens": shards.tokens}
        row |= {"bytes": int(shards.bytes.astype(np.int64).sum()), "leaks": facts.get("leaks", 0)}
        row |= {key: facts[key] for key in ("characters", "scripts") if key in facts}
        if len(shards):
            quantiles = np.percentile(lengths, [0, 5, 50, 95, 100]).astype(int).tolist()
            row["lengths"] = dict(zip(("least", "p5", "median", "p95", "most"), quantiles))
        row["sentences"] = {"looked": looked, "several": several}
        row["copies"] = len(copies(np.asarray(shards.keys))[0])
        if full and split == "train":
            near = near_duplicates(shards)
            row["near"] = {"looked": near.looked, "later": near.later, "sampled": near.sampled}
            row["searched"] = {"characters": min(facts["characters"], CHARACTERS), "whole": facts["characters"] <= CHARACTERS}
        rows.append(row)
    return rows


def of_data(recipe: Recipe, prepared: Prepared, rows: Sequence[dict[str, Any]], *, full: bool) -> list[Finding]:
    """What is wrong with the texts; labelled rows are looked at by `labels`."""
    by_split = {(row["source"], row["split"]): row for row in rows}
    found = [*unread_of(recipe, prepared), *leaks_of(prepared), *_held_out(recipe, prepared, rows, full), *_duplicates(rows)]
    for stage in recipe.stages:
        found += [] if stage.stage == "finetune" else _text(stage, prepared, by_split)
    return [*found, *_unmeasured(recipe, prepared, by_split), *_scripts(recipe, by_split)]


def unread_of(recipe: Recipe, prepared: Prepared) -> Iterator[Finding]:
    """Rows that could not be read, from the facts kept with the shards, and test rows of which the tokenizer leaves nothing. A share is of rows
    that the training split has read, and said, before it."""
    for (name, split), facts in prepared.facts.items():
        dropped = prepared.shards[name, split].meta["dropped"] if split == "test" else 0
        if dropped:
            text = f"{dropped:,} of {facts.get('documents', 0):,} rows have no token that the tokenizer knows and are left out"
            hint = (
                "the score, that of the baselines too, is over the others alone: mend them, or take a tokenizer that reads them"
            )
            yield Finding("warning", "rows", f"source {name} ({split})", text, hint)
        bad, rows = facts.get("skipped", 0), facts.get("rows", 0) - facts.get("elsewhere", 0)
        own = split == "train" or sources.apart(recipe.sources[name], split) is not None  # type: ignore[arg-type]
        if (not own and (name, "train") in prepared.facts) or bad <= (0 if split == "test" else UNREAD * rows):
            continue
        some = f" ({'; '.join(facts['unread'][:3])})" if facts.get("unread") else ""
        text = f"{bad:,} of {rows:,} rows cannot be read and are left out{some}"
        hint = (
            "mend them, for the score is over the others alone" if split == "test" else "mend them, or take them out of the file"
        )
        yield Finding("warning", "rows", f"source {name} ({split})", text, hint)


def lacks(objective: Objective, texts: Shards | Subset, counted: tuple[int, int] | None = None) -> list[Lack]:
    """What texts lack for an objective; `counted` is what `several_sentences` says about them, if it was asked."""
    seen, several = counted or several_sentences(texts)
    marks = texts.meta["files"].get("text.marks.bin", {}).get("bytes", 0) // 24
    whole = math.ceil(several * len(texts) / seen) if seen else 0
    return objective.starved(Supply(len(texts), whole, marks))


def starved(stage: Stage, prepared: Prepared, row: dict[str, Any], name: str) -> list[Finding]:
    """What one source lacks for a stage's objective."""
    assert stage.objective is not None
    counted = row["sentences"]["looked"], row["sentences"]["several"]
    return [
        Finding("error" if lack.fatal else "warning", "objective", f"{stage.title} on {name}", lack.message, lack.hint)
        for lack in lacks(stage.objective, prepared.shards[name, "train"], counted)
    ]


def _unmeasured(recipe: Recipe, prepared: Prepared, by_split: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Finding]:
    """Held-out text in which an objective finds nothing to ask, though the text it is trained on feeds it."""
    stages = [s for s in recipe.stages if s.stage != "finetune" and s.objective is not None]
    for name in dict.fromkeys(n for s in stages for n in (*s.reads, *s.measures)):
        split = "valid" if (name, "valid") in prepared.shards else "test"
        if (name, split) not in prepared.shards:
            continue
        for stage in {repr(s.objective): s for s in reversed(stages)}.values():
            assert stage.objective is not None
            if name in stage.data and any(
                lack.level == "error" for lack in starved(stage, prepared, by_split[name, "train"], name)
            ):
                continue
            some = leading(prepared.shards[name, split], stage.evaluate.tokens)
            for lack in lacks(stage.objective, some):
                if lack.fatal:
                    text = f"{len(some):,} document(s) to measure {stage.title} on, and {lack.message}: its loss on them is missing, or a part of it"
                    hint = "hold out more text (`valid: 0.1`), or a file of whole documents (`valid: file`)"
                    yield Finding("warning", "held out", f"source {name} ({split})", text, hint)


def _text(stage: Stage, prepared: Prepared, by_split: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Finding]:
    for name in stage.data:
        row = by_split[name, "train"]
        lacks = starved(stage, prepared, row, name)
        yield from lacks
        if row["documents"] == 1 and not any(lack.level == "error" for lack in lacks):
            yield Finding(
                "warning", "corpus", f"source {name}", "is one document: nothing of it can be held out, and every pass is in one order",
                "say where its documents end: `txt: blank`, `txt: line`, or one row of a .jsonl file each",
            )  # fmt: skip


def passes(stage: Stage, prepared: Prepared, steps: int | None) -> dict[str, float]:
    """How often a text stage of `steps` steps reads each source."""
    if steps is None or stage.batch.tokens is None:
        return {}
    texts = prepared.read(stage)
    shares, read = mixture(stage, texts), steps * stage.batch.tokens * stage.accumulate
    return {name: read * share / sum(shares.values()) / max(texts[name].tokens, 1) for name, share in shares.items()}


def of_budget(stage: Stage, prepared: Prepared, parameters: int, fresh: bool, steps: int | None = None) -> list[Finding]:
    """Text read too often, and too little of it for a model from scratch."""
    steps = planned(stage) if steps is None else steps
    found = []
    for name, times in passes(stage, prepared, steps).items():
        if times > PASSES.get(stage.stage, math.inf):
            text = f"reads the source {times:,.0f} times"
            hint = f"give it more text, or end the stage earlier: beyond {PASSES[stage.stage]} passes a model only learns it by heart"
            found.append(Finding("warning", "budget", f"{stage.title} on {name}", text, hint))
    if fresh and steps is not None and stage.batch.tokens is not None and parameters:
        share = steps * stage.batch.tokens * stage.accumulate / parameters
        if share < PER_PARAMETER:
            text = f"{share:.2g} tokens a parameter ({parameters:,} parameters, from scratch); about 20 are compute-optimal"
            hint = "train longer, take a smaller model, or start from a checkpoint (`init`)"
            found.append(Finding("note", "budget", stage.title, text, hint))
    return found


def leaks_of(prepared: Prepared) -> Iterator[Finding]:
    """Documents that were left out because they hold test rows or other sources' held-out text."""
    for (name, split), facts in prepared.facts.items():
        count = facts.get("leaks", 0)
        if not count:
            continue
        some = [str(Leak(**example)) for example in facts.get("leak_examples", [])[:3]]
        read = count + facts.get("kept", 0)
        yield Finding(
            "warning", "leaks", f"source {name} ({split})",
            f"{count:,} of {read:,} documents hold test rows, or held-out text of other sources, or near duplicates of these ({'; '.join(some)})",
            "this run leaves them out; take them out of the corpus, for a model trained on it elsewhere has seen the test",
        )  # fmt: skip


def _held_out(recipe: Recipe, prepared: Prepared, rows: Sequence[dict[str, Any]], full: bool) -> Iterator[Finding]:
    """Held-out text that stands in training text: the same documents, and when `full` also near duplicates and quotations."""
    trained = used(recipe)  # what is held out of other sources is left out of training text, and counts as a leak
    valid = {n: shards for (n, split), shards in prepared.shards.items() if split == "valid" and n in trained and len(shards)}
    train = {name: shards for (name, split), shards in prepared.shards.items() if split == "train"}
    hits: dict[str, set[str]] = {name: set() for name in valid}
    some: dict[str, str] = {}
    if full and valid:
        tests = TestTexts(recipe)  # what the run leaves out is neither measured nor trained on
        held_out = (_named(name, d) for name in valid for d in tests.clean(recipe.sources[name], "valid", Reading(), []))
        index = LeakIndex(held_out, pieces=False)  # a sentence of a held-out document does not make its loss too low
        for name in train:
            size, block = 0, list[Document]()
            for document in tests.clean(recipe.sources[name], "train", Reading(), []):
                block.append(document)
                size += sum(map(len, document.texts.values()))
                if size > CHARACTERS:
                    break
            for leak in index.leaks(block):
                if leak is not None:
                    whose, _, which = leak.test.partition("\0")
                    hits[whose].add(leak.test)
                    some.setdefault(whose, f"; {replace(leak, test=which)}")
    else:
        for name, held in valid.items():
            for other in train.values():
                hits[name] |= set(map(str, np.flatnonzero(np.isin(held.keys, other.keys)).tolist()))
    partly = [row["source"] for row in rows if not row.get("searched", {}).get("whole", True)]
    searched = f" (of {', '.join(partly)} only the first {CHARACTERS:,} characters were searched)" if partly else ""
    for name, held in valid.items():
        if len(hits[name]) > HELD * len(held) or len(hits[name]) >= HELD_COUNT:
            yield Finding(
                "warning", "held out", f"source {name} (valid)",
                f"{len(hits[name]):,} of {len(held):,} held-out documents stand in training text{searched}{some.get(name, '')}: "
                "their loss will be too low",
                "take the copies out of the corpus, or hold out other documents (`valid:`)",
            )  # fmt: skip


def _named(name: str, document: Document) -> Document:
    return replace(document, id=f"{name}\0{document.id}", fields={})


def _duplicates(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        if row["split"] != "train" or not row["documents"]:
            continue
        exact = row["copies"] / row["documents"]
        near = row.get("near", {})
        share = near["later"] / near["looked"] if near.get("looked") else 0.0
        if exact > COPIES or share > 2 * COPIES:
            text = f"{row['copies']:,} of {row['documents']:,} documents are copies of others"
            about, sample = ("about ", ", by a sample") if near.get("sampled") else ("", "")
            text += f", {about}{share:.0%} near duplicates (of {near['looked']:,} looked at{sample})" if near else ""
            hint = "keep one of each: what stands twice is learnt by heart first (Lee et al., 2022)"
            yield Finding("warning", "duplicates", f"source {row['source']}", text, hint)


def _scripts(recipe: Recipe, by_split: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Finding]:
    """A task in a script that no text stage reads."""
    read: Counter[str] = Counter()
    for stage in recipe.stages:
        for name in stage.data if stage.stage in ("pretrain", "dapt") else ():
            read.update(by_split[name, "train"].get("scripts", {}))
    if not read:
        return
    for stage in recipe.stages:
        for name in stage.data if stage.stage == "finetune" else ():
            letters = by_split[name, "train"].get("scripts", {})
            for script, count in letters.items():
                if count > SCRIPT * sum(letters.values()) and read[script] < 0.01 * sum(read.values()):
                    yield Finding(
                        "warning", "languages", f"source {name}",
                        f"{count / sum(letters.values()):.0%} of its letters are {script}, and {read[script] / sum(read.values()):.1%} "
                        "of the text that the stages before are trained on",
                        "pre-train on text in the task's language",
                    )  # fmt: skip

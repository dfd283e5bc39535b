"""What a checkpoint says about the stages it comes from: one entry a stage, oldest first. Plain data, never a machine's paths.

    stage, name         pretrain, dapt, tapt, finetune, and what the recipe calls it; "import" for weights from outside
    objective           as a recipe would write it
    data                {source: {documents, tokens, weight, content, drawn, source}}; `content` identifies the tokens, labels and order of
                        the source's documents, `drawn` which of them were read where `examples` drew some, `source` the files they
                        were read from
    budget              {unit: amount}, as the recipe gives it
    settings            learning rate and its schedule, batch, length, dropout, precision
    steps, tokens, seconds, seed
    replay, nearest, anchor, distill, freeze, lora
                        what the stage did against forgetting, where it did
    memory              tokens of earlier text that it remembered, where it did
    vocabulary          how it looked for new tokens, where it did; new_tokens: how many it found, added when the stage is done
    versions            of the packages that decide about numbers
    ended               {why, trained, by, score}: where the weights are of an evaluation before the last step, `trained`; `why` as in
                        `keeping.Ended`; added when the stage is done
    held_out            {source: numbers} and, of a fine-tuning, test {source, metric, value, rows} (of several tasks tests {task: the same}): added when
                        the stage is done
    recipe, origins     name of the recipe, and {source: where its text is from}: added when the stage is done

Readers take every key as optional: checkpoints of earlier versions have fewer.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ziggurat import __version__
from ziggurat.config import spelled
from ziggurat.data.order import Corpus
from ziggurat.train.stage import Stage

MEANS = ("replay", "nearest", "anchor", "distill", "freeze", "lora", "memory", "vocabulary")
"""Fields of a stage that are repeated where they are set."""
SETTINGS = ("length", "batch", "accumulate", "dropout", "optim", "schedule", "precision")


def entry(
    stage: Stage, shards: Mapping[str, Corpus], contents: Mapping[str, str], seed: int, steps: int, tokens: int, seconds: float
) -> dict[str, Any]:
    """What is known while a stage trains. `contents`: what identifies the data of each source."""
    assert stage.objective is not None
    unit, amount = stage.budget
    written = spelled(stage)
    return {
        "stage": stage.stage,
        "name": stage.title,
        "objective": spelled(stage.objective),
        "data": {name: _data(stage, name, one, contents.get(name, "")) for name, one in shards.items()},
        "budget": {unit: amount},
        "settings": {name: written[name] for name in SETTINGS if name in written},
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "seed": seed,
        "versions": versions(),
        **{means: written[means] for means in MEANS if written.get(means)},
    }


def _data(stage: Stage, name: str, shards: Any, content: str) -> dict[str, Any]:
    found = {"documents": len(shards), "tokens": int(shards.tokens), "source": shards.meta.get("source", "")}
    found |= {"content": content} if content else {}
    found |= {"drawn": shards.meta["chosen"]} if stage.examples is not None and "chosen" in shards.meta else {}
    return found | ({"weight": stage.data[name].weight} if len(stage.data) > 1 and name in stage.data else {})


def versions() -> dict[str, str]:
    """Of the packages that decide about numbers."""
    named = {"ziggurat": __version__, "python": platform.python_version()}
    return named | {name: version(name) for name in ("torch", "tokenizers", "numpy")}

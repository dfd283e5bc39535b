"""Every system pre-trains on real text with its own objective: loss against the entropy of its answers, accuracy against the trivial answer.

    python benchmarks/systems.py [--tokens 3000000] [--size tiny] [--only bert,t5] [--write docs/results/systems.md]

Text: the docstrings of installed packages. Each system is a run of its own in runs/systems-<system>; a killed one goes on where it
was, and a finished one is only read. The entropy and the most frequent answer are those of the held-out answers themselves, which is
more than any constant answer learnt from the training text can reach. A target passes when its loss is at least `MARGIN_LOSS` below that entropy (below
it, where there are only a few answers) and its accuracy at least `MARGIN_ACCURACY` above the most frequent answer's share. Replaced token detection is judged by
F1 in the columns of accuracies, beside that of calling every token replaced (`replaced`).
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

MARGIN_LOSS, MARGIN_ACCURACY = 0.2, 0.03
FEW = 1.5
"""Entropy in nats below which there are only a few answers (sentence order, next sentence), where loss can hardly fall by the margin."""
KIND = {"bert": "wordpiece", "roberta": "bpe", "gpt2": "bpe", "t5": "unigram", "xlnet": "unigram"}
"""The tokenizer that a template is trained with."""
RATE = 1e-3
OWN: dict[str, dict[str, Any]] = {
    **{name: {"lr": 6e-4} for name in ("bart", "mass", "prophetnet", "prophetnet_lm")},
    **{name: {"lr": 6e-4, "times": 5 / 3} for name in ("structbert", "macbert", "modelx", "ernie2")},
    "albert": {"lr": 4e-4, "times": 4 / 3, "size": "mini"},
    "unilm2": {"times": 5 / 3},
    "ernie_gen": {"times": 2},
    "electra": {"times": 4, "model": {"generator_width": 64}},
}
"""What does not learn at `RATE` in `--tokens` tokens (measured: docs/log.md). A decoder with its norms after each part stays on the plateau of
the most frequent answers, and the order of sentences at chance (ALBERT's, of one layer's weights, in `tiny` whatever the rate); which tokens were replaced is learnt only when the generator has left its own
plateau. `lr`: the peak rate; `times`: how many times the tokens; `model`, `size`: dimensions."""


def recipe_of(system: str, args: argparse.Namespace) -> dict[str, Any]:
    from ziggurat.systems import SYSTEMS

    page, own = SYSTEMS[system], OWN.get(system, {})
    size = own.get("size", args.size)
    size = size if size in page.sizes else next(iter(page.sizes))
    return {
        "name": f"systems-{system}",
        "system": f"{system}/{size}",
        "model": own.get("model", {}),
        "tokenizer": {"kind": KIND.get(page.template, "wordpiece"), "vocab": 4000, "sample": 8_000_000},
        "sources": {"text": {"kind": "docstrings"}},
        "stages": [
            {
                "stage": "pretrain",
                "data": "text",
                "length": 128,
                "tokens": int(args.tokens * own.get("times", 1)),
                "batch": {"tokens": 1024},
                "optim": {"lr": own.get("lr", RATE)},
                "save": {"every": 500},
            }
        ],
    }


def differs() -> list[str]:
    """What `OWN` changes, systems that are alike together."""
    alike: dict[str, list[str]] = {}
    for system, own in OWN.items():
        said = [f"rate {own['lr']:g}"] if "lr" in own else []
        said += [f"{own['times']:.2g} times the tokens"] if "times" in own else []
        said += [f"size {own['size']}"] if "size" in own else []
        said += [f"{name} {value}" for name, value in own.get("model", {}).items()]
        alike.setdefault(", ".join(said), []).append(system)
    return [f"{', '.join(systems)}: {said}" for said, systems in alike.items()]


def asked_of(folder: Path) -> tuple[Any, Any]:
    """The objective of a finished run, and its held-out batches."""
    from ziggurat.config import load
    from ziggurat.data.loader import once
    from ziggurat.data.shards import Shards
    from ziggurat.evaluate.heldout import first
    from ziggurat.objectives.base import context_of
    from ziggurat.systems import model_of
    from ziggurat.text.tokenizer import Tokenizer
    from ziggurat.train.recipe import Recipe

    recipe = load(folder / "recipe.yaml", model=Recipe)
    stage, tokenizer = recipe.stages[0], Tokenizer.load(folder / "tokenizer")
    objective = stage.objective
    assert objective is not None
    ctx = context_of(model_of(recipe.system), tokenizer, stage.length, recipe.seed, objective.tables(tokenizer, folder))
    row = objective.rows(ctx)
    shards = Shards.open(folder / "shards" / "text" / "valid")
    return objective, first(once(shards, objective, ctx, row=row, tokens=max(2048, sum(row.values()))), stage.evaluate.tokens)


def trivial(folder: Path, target: str) -> tuple[float, float]:
    """Of the held-out answers to a target: their entropy in nats, and the share of the most frequent one."""
    answers = [np.asarray(batch.targets[target].value) for batch in asked_of(folder)[1] if target in batch.targets]
    counts = np.unique(np.concatenate(answers), return_counts=True)[1] if answers else np.ones(1)
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum()), float(share.max())


def replaced(folder: Path) -> tuple[float, float, float]:
    """Of replaced token detection on the second half of the held-out text: F1 where a token counts as replaced from the score on that was best on
    the first half, F1 of calling every token replaced, and the entropy of their share."""
    import torch

    from ziggurat.evaluate.heldout import to_device
    from ziggurat.pipeline.opened import open_checkpoint

    objective, batches = asked_of(folder)
    network = open_checkpoint(folder / "pretrain").build()
    scores, truths = [], []
    with torch.no_grad():
        for batch in batches:
            asked = objective.asked(network, to_device(batch, torch.device("cpu")))["rtd"]
            scores.append(network.logits(asked.head, asked.hidden, asked.streams, asked.target)[:, 0].numpy())
            truths.append(asked.target.value.numpy() > 0)
    half = len(scores) // 2
    (score, truth), (later, true) = (
        (np.concatenate(scores[s]), np.concatenate(truths[s])) for s in (slice(half), slice(half, None))
    )

    def f1(said: np.ndarray, gold: np.ndarray) -> float:
        return float(2 * (said & gold).sum() / (said.sum() + gold.sum()))

    best = max(np.quantile(score, np.linspace(0, 1, 201)), key=lambda threshold: f1(score >= threshold, truth))
    share = float(true.mean())
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    return f1(later >= best, true), f1(np.ones_like(true), true), float(entropy)


def judged(system: str, folder: Path) -> list[dict[str, Any]]:
    """One row a target of the finished stage."""
    outcome = json.loads((folder / "pretrain" / "outcome.json").read_text("utf-8"))
    found: Mapping[str, float] = outcome["held_out"]["text"]
    rows = []
    for target in [name for name in found if not name.endswith(("_accuracy", "_f1")) and name != "bits_per_byte"]:
        entropy, most = trivial(folder, target) if target != "rtd" else (0.0, 0.0)
        accuracy = found.get(f"{target}_accuracy")
        good = found[target] < (entropy if entropy < FEW else entropy - MARGIN_LOSS)
        if target == "rtd":  # its answers are made by the generator; what counts is F1
            accuracy, most, entropy = replaced(folder)
            good = found[target] < entropy
        good = good and (accuracy is None or accuracy >= most + MARGIN_ACCURACY)
        rows.append(
            {"system": system, "target": target, "loss": found[target], "entropy": entropy, "accuracy": accuracy, "most": most,
             "good": bool(good), "tokens": outcome["tokens"], "seconds": outcome["seconds"], "parameters": outcome["parameters"]}
        )  # fmt: skip
    return rows


def page(rows: list[dict[str, Any]], args: argparse.Namespace, failed: Mapping[str, str]) -> str:
    lines = [
        "# Every system, pre-trained for a few minutes",
        "",
        f"    make systems    # python benchmarks/systems.py --tokens {args.tokens} --size {args.size}",
        "",
        f"{time.strftime('%Y-%m-%d')}, seed 0, commit {args.commit}; {args.machine}; Python {platform.python_version()}, torch {version('torch')}.",
        "Text: docstrings of installed packages. Entropy and share of the most frequent answer are those of the held-out answers themselves. A row passes when",
        f"its loss is {MARGIN_LOSS} nats below that entropy (below it, where there are two or three answers) and its accuracy {MARGIN_ACCURACY} above that share. Of rtd the columns are F1, and F1 of calling every token replaced.",
        f"Steps of 1,024 tokens, peak rate {RATE:g}, size {args.size}, vocabulary 4,000; differently: "
        + "; ".join(differs())
        + ".",
        "",
        "| system | target | loss | entropy | accuracy | most frequent | parameters | tokens | tokens/s | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        accuracy = "" if r["accuracy"] is None else f"{r['accuracy']:.3f}"
        lines.append(
            f"| {r['system']} | {r['target']} | {r['loss']:.3f} | {r['entropy']:.3f} | {accuracy} | {r['most']:.3f} | {r['parameters'] / 1e6:.1f} M "
            f"| {r['tokens'] / 1e6:.2f} M | {r['tokens'] / r['seconds']:,.0f} | {'passes' if r['good'] else '**does not pass**'} |"
        )
    lines += [f"\n`{system}` did not run: {why}" for system, why in failed.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=3_000_000)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--only", default="")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--commit", default="of this tree")
    parser.add_argument("--machine", default="two cores")
    args = parser.parse_args()
    from ziggurat.errors import UserError
    from ziggurat.pipeline.run import run
    from ziggurat.systems import SYSTEMS

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for system in args.only.split(",") if args.only else SYSTEMS:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            json.dump(recipe_of(system, args), file)
            file.flush()
            try:
                folder = run(file.name)
            except UserError as error:
                failed[system] = error.message
                print(f"{system}: {error.message}", file=sys.stderr)
                continue
        rows += judged(system, folder)
        if args.write:  # what is done is written, whatever comes next
            args.write.write_text(page(rows, args, failed), "utf-8")
    print(page(rows, args, failed))
    sys.exit(bool(failed) or not all(r["good"] for r in rows))


if __name__ == "__main__":
    main()

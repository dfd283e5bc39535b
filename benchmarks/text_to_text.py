"""Every generative system, fine-tuned to write: E2E NLG (a restaurant's attributes -> a sentence) and SciTLDR (an abstract -> its one-sentence summary).

    ZIGGURAT_DATA=... python benchmarks/text_to_text.py [--task e2e-nlg] [--only t5,bart] [--write docs/results/text-to-text.md]

Each system starts from its own pre-training in runs/systems-<system> (`make systems`) and is asked in the way that training asked it. Each is a run of
its own, runs/<task>-<system>; a killed one goes on, a finished one is only read. Scores are those of the written test texts, best of several references
for ROUGE, all references for BLEU and chrF; beside them stand a copy of the source, the most frequent target, and the target of
the training example whose source is most alike (TF-IDF).
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

WRITERS = [
    "gpt",
    "gpt2",
    "gpt3",
    "unilm",
    "unilm2",
    "ernie_gen",
    "xlnet",
    "t5",
    "t5_1_1",
    "bart",
    "mass",
    "prophetnet",
    "prophetnet_lm",
]
TASKS: dict[str, dict[str, Any]] = {
    "e2e-nlg": {"text": "mr", "pair": "ref", "length": 160, "target": 80, "epochs": 4, "most": 70, "rows": None},
    "scitldr": {"text": "source", "pair": "target", "length": 384, "target": 80, "epochs": 2, "most": 50, "rows": 300},
}
METRICS = ("rouge_1", "rouge_2", "rouge_l", "bleu", "chrf")


def rows(path: Path, task: dict[str, Any], split: str) -> Iterator[dict[str, Any]]:
    """To learn from, each text with each reference; to be judged by, each text once with all its references."""
    found: dict[str, list[str]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            several = row[task["pair"]]
            found.setdefault(row[task["text"]], []).extend([several] if isinstance(several, str) else several)
    for text, several in found.items():
        yield from [{"text": text, "pair": one} for one in several] if split == "train" else [{"text": text, "pair": several}]


def prepare(name: str, data: Path) -> Path:
    """The task's files, made once in runs/."""
    folder = Path("runs") / f"{name}-data"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        made = folder / f"{split}.jsonl"
        if not made.exists():
            lines = [
                json.dumps(row, ensure_ascii=False) + "\n" for row in rows(data / name / f"{split}.jsonl.gz", TASKS[name], split)
            ]
            made.write_text("".join(lines), "utf-8")
    return folder


def recipe_of(system: str, name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from ziggurat.checkpoint import format as checkpoints
    from ziggurat.errors import UserError
    from ziggurat.evaluate.written import asked

    task, pretrained = TASKS[name], Path("runs") / f"systems-{system}" / "pretrain"
    found = checkpoints.latest(pretrained) if pretrained.exists() else None
    if found is None:
        raise UserError(f"{system} has no pre-training in {pretrained}", f"python benchmarks/systems.py --only {system}")
    card = checkpoints.card(found)
    how = asked(card.network.model, card.lineage[-1]["objective"])
    if how is None:
        raise UserError(f"{system} cannot be asked for a text", "leave it out")
    objective = how.model_dump(mode="json", exclude_unset=True)
    return {
        "name": f"{name}-{system}{args.suffix}",
        "system": system,
        "sources": {
            "task": {
                "path": str(folder / "train.jsonl"),
                "test": str(folder / "test.jsonl"),
                "columns": {"text": "text", "pair": "pair"},
                **({"test_rows": task["rows"]} if task["rows"] else {}),
            }
        },
        "stages": [
            {
                "stage": "finetune",
                "init": str(found),
                "data": "task",
                "length": task["length"],
                "epochs": args.epochs or task["epochs"],
                "objective": {
                    "kind": "seq2seq",
                    **objective,
                    "target": task["target"],
                    "metric": "rouge_l",
                    "generate": {"most": task["most"]},
                },
                "optim": {"lr": args.lr},
                "batch": {"documents": 16},
                "save": {"every": 200},
            }
        ],
        "worth": False,
    }


def scored(gold: list[Any], predicted: list[str]) -> dict[str, float]:
    from ziggurat.evaluate.text_scores import text_metric

    return {name: text_metric(name)(gold, predicted) for name in METRICS}


def trivial(folder: Path, chosen: Path) -> dict[str, dict[str, float]]:
    """Scores of what is written without a model, on the test rows of a finished run."""
    from ziggurat.data.sources import documents
    from ziggurat.evaluate.baselines import predict, tfidf
    from ziggurat.pipeline.run import load_recipe

    source = load_recipe(chosen / "recipe.yaml").sources["task"]
    train, test = list(documents(source, "train")), list(documents(source, "test"))
    texts, targets, asked = [d.texts["text"] for d in train], [d.texts["pair"] for d in train], [d.texts["text"] for d in test]
    gold = [d.fields.get("references", d.texts["pair"]) for d in test]
    guesses = predict("seq2seq", texts, targets, asked)
    x, y = tfidf(texts, asked)
    alike = (y.to_dense() @ x.to_dense().T).argmax(1).tolist()
    guesses["target of the most similar source"] = [targets[i] for i in alike]
    return {name: scored(gold, guess) for name, guess in guesses.items()}


def page(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    lines = [
        "# Text to text, every generative system in small",
        "",
        "    make systems && python benchmarks/text_to_text.py",
        "",
        f"{time.strftime('%Y-%m-%d')}, seed 0, commit {args.commit}; {args.machine}; Python {platform.python_version()}, torch {version('torch')}.",
        "Each system is the one of [systems.md](systems.md), pre-trained for a few minutes on docstrings, and fine-tuned in its own way of asking; greedy decoding.",
        "Percent. ROUGE takes the best of several references.",
    ]
    for name, table in found.items():
        task = TASKS[name]
        lines += ["", f"## {name}: {args.epochs or task['epochs']} epochs, length {task['length']}", ""]
        lines += [
            "| | asked by | ROUGE-1 | ROUGE-2 | ROUGE-L | BLEU | chrF | test texts | seconds |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for r in table:
            scores = " | ".join(f"{100 * r['scores'][m]:.1f}" for m in METRICS)
            lines.append(f"| {r['name']} | {r['asks']} | {scores} | {r['rows']} | {r['seconds']} |")
        examples = [r for r in table if r.get("example")]
        if examples:
            lines += ["", f"The first test source, `{examples[0]['source'][:160]}`, becomes:", ""]
            lines += [f"- {r['name']}: {r['example'][:200]}" for r in examples]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="e2e-nlg", help="with commas for several")
    parser.add_argument("--only", default="")
    parser.add_argument("--epochs", type=int, help="otherwise the task's")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--suffix", default="", help="behind the names of the run folders")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--commit", default="of this tree")
    parser.add_argument("--machine", default="two cores")
    args = parser.parse_args()
    if not os.environ.get("ZIGGURAT_DATA"):
        sys.exit("set ZIGGURAT_DATA to the folder with e2e-nlg and scitldr")
    from ziggurat.errors import UserError
    from ziggurat.pipeline.run import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in args.task.split(","):
        folder = prepare(name, Path(os.environ["ZIGGURAT_DATA"]))
        found[name] = []
        for system in args.only.split(",") if args.only else WRITERS:
            try:
                with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
                    recipe = recipe_of(system, name, folder, args)
                    json.dump(recipe, file)
                    file.flush()
                    ran = run(file.name)
            except UserError as error:
                print(f"{system}: {error.message}", file=sys.stderr)
                continue
            if not found[name]:
                rest = {"asks": "", "rows": "", "seconds": ""}
                found[name] = [{"name": n, "scores": s, **rest} for n, s in trivial(folder, ran).items()]
            said = json.loads((ran / "finetune" / "predictions.json").read_text("utf-8"))
            outcome = json.loads((ran / "finetune" / "outcome.json").read_text("utf-8"))
            first = next(iter(documents_of(ran)))
            found[name].append(
                {"name": system, "asks": recipe["stages"][0]["objective"].get("asks", "next"), "rows": len(said["gold"]),
                 "seconds": f"{outcome['seconds']:.0f}", "scores": scored(said["gold"], said["predicted"]),
                 "source": first, "example": said["predicted"][0]}
            )  # fmt: skip
            if args.write:
                args.write.write_text(page(found, args), "utf-8")
    print(page(found, args))


def documents_of(ran: Path) -> Iterator[str]:
    """The test sources of a finished run, in the order of its predictions."""
    from ziggurat.data.sources import documents
    from ziggurat.pipeline.run import load_recipe

    return (d.texts["text"] for d in documents(load_recipe(ran / "recipe.yaml").sources["task"], "test"))


if __name__ == "__main__":
    main()

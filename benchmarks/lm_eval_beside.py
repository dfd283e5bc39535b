"""An exported causal model in lm-evaluation-harness, beside our own scoring of the same checkpoint on the same questions (PIQA).

    pip install lm-eval && ZIGGURAT_DATA=... python benchmarks/lm_eval_beside.py CHECKPOINT [--rows 300] [--write docs/results/other-tools.md]

CHECKPOINT is a stage's folder, with its export in `hf`. Both put `Question: ...\\nAnswer:` before each solution and take the likelier one: by the sum of its
tokens' log-probabilities, and by that sum over its length in bytes (the questions are English, so bytes are characters). Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SUITE = """\
suite: beside
about: PIQA by likelihood
defaults: {{precision: fp32, length: 256}}
tasks:
  sum:
    local: &rows {{path: {rest}, test: {file}, columns: {{text: goal, choices: [sol1, sol2], label: label}}}}
    objective: {{kind: multiple_choice}}
    prompt: "Question: {{text}}\\nAnswer:"
  byte:
    local: *rows
    objective: {{kind: multiple_choice}}
    prompt: "Question: {{text}}\\nAnswer:"
    likelihood: {{by: byte}}
"""

HEAD = """\
# An exported model in other tools

    pip install lm-eval && ZIGGURAT_DATA=... python benchmarks/lm_eval_beside.py runs/systems-gpt2/pretrain --write docs/results/other-tools.md

The same checkpoint by lm-evaluation-harness (from the stage's `hf` folder; `add_bos_token=False`, or the harness lets the tokenizer put the token that ends a
text behind each prompt) and by `ziggurat evaluate`, on the same questions. sentence-transformers is a test of its own
(`tests/pipeline/test_hub_tools.py`), and so is peft (`tests/systems/test_adapter.py`, where it is installed).
"""


def clean(row: dict[str, Any]) -> bool:
    """Whether both tools read the same: white space around a text is kept by one and dropped by the other."""
    return all(row[name] == row[name].strip() for name in ("goal", "sol1", "sol2"))


def theirs(folder: Path, file: Path) -> dict[str, float]:
    """Accuracy by lm-evaluation-harness: `sum` and `byte`."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task: dict[str, Any] = {
        "task": "piqa_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    model = HFLM(pretrained=str(folder / "hf"), device="cpu", batch_size=16, dtype="float32", add_bos_token=False)
    found = lm_eval.simple_evaluate(model, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0)
    numbers = found["results"]["piqa_local"]
    return {"sum": numbers["acc,none"], "byte": numbers["acc_norm,none"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--commit", default="of this tree")
    args = parser.parse_args()
    import ziggurat as zg

    with tempfile.TemporaryDirectory() as place:
        file, suite = Path(place) / "piqa.jsonl", Path(place) / "beside.yaml"
        rest = Path(place) / "train.jsonl"  # the baselines'
        with gzip.open(Path(os.environ["ZIGGURAT_DATA"]) / "commonsense" / "piqa-dev.jsonl.gz", "rt", encoding="utf-8") as given:
            questions = [line for line in given if clean(json.loads(line))]
        file.write_text("".join(questions[: args.rows]), "utf-8")
        rest.write_text("".join(questions[args.rows :]), "utf-8")
        suite.write_text(SUITE.format(file=file, rest=rest), "utf-8")
        other = theirs(args.checkpoint, file)
        ours = zg.evaluate_suite([str(args.checkpoint)], str(suite), ["seeds=1", "answers=likelihood"])
    lines = [
        "| compared by | lm-evaluation-harness | ziggurat | majority |",
        "|---|---|---|---|",
    ]
    for result in ours.tasks:
        mine, most = (next(s.mean for s in result.models if s.kind == kind) for kind in ("checkpoint", "baseline"))
        lines.append(f"| {result.task} | {other[result.task]:.4f} | {mine:.4f} | {most:.4f} |")
    made = [
        f"{time.strftime('%Y-%m-%d')}, commit {args.commit}; lm-eval {version('lm-eval')}, transformers {version('transformers')}, torch {version('torch')}, float32.",
        f"{args.checkpoint.parent.name}, {args.rows} questions of PIQA, accuracy:",
        "",
        *lines,
    ]
    print("\n".join(made))
    if args.write:
        args.write.write_text("\n".join([HEAD, *made]) + "\n", "utf-8")


if __name__ == "__main__":
    main()

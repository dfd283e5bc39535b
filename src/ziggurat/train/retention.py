"""What a stage's recipe says against forgetting, made of its start: what is trained, how fast, what pulls back, what is distilled.

All of it follows from the start's weights, the recipe and the seed, so a resumed stage has the same; only LoRA's additions are state.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziggurat.context import Context
from ziggurat.data.loader import once
from ziggurat.evaluate.heldout import first
from ziggurat.log import ProgressBar
from ziggurat.nn.depth import depths
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import Objective
from ziggurat.train.anchor import Pull, fisher
from ziggurat.train.distill import Distilled, teacher_of
from ziggurat.train.loop import Trained
from ziggurat.train.lora import Adapters
from ziggurat.train.optim import build_optimizer
from ziggurat.train.start import number
from ziggurat.types import Batch

if TYPE_CHECKING:
    from ziggurat.train.job import Job

FISHER = "fisher.safetensors"
ADDED = "lora:"
"""Before the names of LoRA's additions among the optimizer's tensors."""
ROWS = 4
"""Packed rows of one batch for the Fisher information: few, for the square of a sum is noisier than a sum of squares."""


class Retention:
    """The means against forgetting of one stage, on a network that has the start's weights; `new` names parameters that are not of the start."""

    def __init__(self, folder: Path, job: Job, network: NetworkModel, objective: Objective, ctx: Context, new: list[str]):
        stage = job.stage
        self.stage, self.network = stage, network
        start = (
            {n: t.detach().clone() for n, t in network.state_dict().items() if n not in new}
            if stage.anchor or stage.distill
            else {}
        )
        self.objective: Trained = objective
        if stage.distill is not None:
            self.objective = Distilled(objective, teacher_of(network, start), stage.distill.weight, stage.distill.temperature)
        deep, top = depths(network, network.spec.model)
        if stage.freeze is not None:
            lowest, most = 0 if stage.freeze.embeddings else 1, stage.freeze.layers
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(not (lowest <= deep[name] <= most) or name in new)
        self.adapters: Adapters | None = None
        begun = any(name not in new for name, _ in network.named_parameters())
        if stage.lora is not None and begun:  # from scratch the matrices themselves are new, and trained
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name in new)
            draws, how = torch.Generator().manual_seed(number("lora", job.seed)), stage.lora
            self.adapters = Adapters(network, how.rank, how.alpha, how.targets, draws)
            deep, top = depths(network, network.spec.model)
        decay = stage.optim.layer_decay if begun else 1.0  # from scratch the lower layers know no more than the upper ones
        self.scales = {name: decay ** (top - depth) for name, depth in deep.items()} if decay != 1 else {}
        self.pull: Pull | None = None
        if stage.anchor is not None:
            information = _fisher(folder, job, network, objective, ctx) if stage.anchor.ewc else None
            self.pull = Pull(network, start, stage.anchor.l2, stage.anchor.ewc, information)
        self.undecayed = frozenset(start) if stage.anchor is not None and stage.anchor.l2 else frozenset()

    def optimizer(self) -> torch.optim.AdamW:
        """A fresh optimizer over what is trained."""
        optimizer = build_optimizer(self.network, self.stage.optim, scales=self.scales, undecayed=self.undecayed)
        if self.pull is not None:
            self.pull.attach(optimizer)
        return optimizer

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters as a checkpoint holds them."""
        return self.network.state_dict() if self.adapters is None else self.adapters.merged()

    def state(self) -> dict[str, Tensor]:
        """What a resumed stage needs besides weights and optimizer."""
        return {} if self.adapters is None else {ADDED + name: tensor for name, tensor in self.adapters.tensors().items()}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put back what `weights` and `state` took; returns what in `state` is the optimizer's."""
        if self.adapters is None:
            self.network.load_state_dict(dict(weights))
            return dict(state)
        self.adapters.load({n.removeprefix(ADDED): t for n, t in state.items() if n.startswith(ADDED)})
        own = self.network.state_dict()  # matrices and what is frozen are the start's; new heads were trained
        trained = [n for n, p in self.network.named_parameters() if p.requires_grad and n in weights]
        self.network.load_state_dict(own | {name: weights[name] for name in trained})
        return {name: tensor for name, tensor in state.items() if not name.startswith(ADDED)}

    def asked(self) -> AbstractContextManager[None]:
        """While it lasts, the network says what a checkpoint of it would say."""
        return nullcontext() if self.adapters is None else self.adapters.folded()


def _fisher(folder: Path, job: Job, network: NetworkModel, objective: Objective, ctx: Context) -> dict[str, Tensor]:
    """The Fisher information of the start on general text, made once for a stage."""
    path, anchor = folder / FISHER, job.stage.anchor
    assert anchor is not None
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        pass
    row, each = objective.rows(ctx), anchor.tokens // len(job.general)

    def batches() -> Iterator[Batch]:
        with ProgressBar(f"{job.title or job.stage.title}, Fisher information", anchor.tokens) as bar:
            seen = 0
            for shards in job.general.values():
                for batch in first(once(shards, objective, ctx, row=row, tokens=ROWS * sum(row.values())), each):
                    yield batch
                    bar.show(seen := seen + batch.live_tokens(), {})

    found = fisher(network, objective, batches(), number("fisher", job.seed))
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file({name: tensor.cpu().contiguous() for name, tensor in found.items()}, temporary)
    os.replace(temporary, path)
    return load_file(path)

"""Several tasks on one body: how their heads are called, and the model of one task alone.

The head `classify` of the task `sst2` is called `classify-sst2`. The pooler belongs to the body that tasks share: it has one name and one
set of weights, which all of them train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel

SHARED = ("pooler",)
"""Heads that all tasks read."""
OWN = ("classify", "regress", "tag", "choice", "span")
"""Heads that each task has for itself."""


class Alone(NamedTuple):
    """The network of one task and its tensors by name, as if it had been trained by itself."""

    network: spec.Network
    tensors: dict[str, Tensor]


def named(head: str, task: str) -> str:
    """What a task's head is called beside those of other tasks."""
    return head if head in SHARED else f"{head}-{task}"


def task_of(head: str) -> str:
    """The task of a head or target; empty where it is nobody's in particular."""
    kind, _, task = head.partition("-")
    return task if kind in OWN else ""


def tasks_of(network: spec.Network) -> tuple[str, ...]:
    """The tasks that have heads of their own; none in a model of one task."""
    return tuple(dict.fromkeys(task for head in network.heads if (task := task_of(head))))


def alone(network: spec.Network, tensors: Mapping[str, Tensor], task: str) -> Alone:
    """The body and the heads of one task, these under the names that a model of this task alone gives them.

    Raises:
        UserError: the network has no such task.
    """
    own = _own(network, task)
    heads = {new: network.heads[old] for old, new in own.items()}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("heads.")}
    for name, tensor in tensors.items():
        _, _, rest = name.partition("heads.")
        head, _, place = rest.partition(".")
        if name.startswith("heads.") and head in own:
            kept[f"heads.{own[head]}.{place}"] = tensor
    return Alone(spec.Network(model=network.model, heads=heads), kept)


def view(network: NetworkModel, task: str) -> NetworkModel:
    """The same without a copy: a network of one task whose weights are those of `network`, now and later."""
    own = _own(network.spec, task)
    with torch.device("meta"):
        seen = NetworkModel(
            spec.Network(model=network.spec.model, heads={new: network.spec.heads[old] for old, new in own.items()})
        )
    seen.model = network.model
    seen.heads = nn.ModuleDict({new: network.heads[old] for old, new in own.items()})
    seen.training = network.training
    return seen


def _own(network: spec.Network, task: str) -> dict[str, str]:
    """The heads of a task: {what they are called beside others: what they are called alone}."""
    own = {head: head.partition("-")[0] for head in network.heads if task_of(head) == task}
    if not own or not task:
        known = tasks_of(network)
        raise UserError(
            f"the model has no task '{task}'",
            f"its tasks: {', '.join(known)}" if known else "it is a model of one task, or of none: ask it without `task`",
        )
    if any(getattr(network.heads[head], "by", "") == "pooler" for head in own):
        own |= {head: head for head in SHARED if head in network.heads}
    return own

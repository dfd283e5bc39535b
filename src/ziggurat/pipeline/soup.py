"""The mean of checkpoints of one shape: a soup of fine-tunings with several seeds or rates (Wortsman et al., 2022a), or a fine-tuned model a
part of the way back to its start (WiSE-FT: Wortsman et al., 2022b).

The mean of weights makes sense where they lie in one basin: runs from the same start. It costs nothing at use, unlike the mean of answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziggurat import __version__
from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError, check
from ziggurat.nn.tasks import OWN, task_of
from ziggurat.pipeline.opened import Opened, called, in_hub_format, open_checkpoint
from ziggurat.systems.base import NoHubClass
from ziggurat.systems.hub import export_checkpoint

log = logging.getLogger(__name__)


def soup(folders: Sequence[Path | str], target: Path | str, weights: Sequence[float] = ()) -> Path:
    """Write the mean of checkpoints into `target` as a checkpoint, with its `hf/` where the system has a Hub class; returns `target`.

    folders: two or more checkpoints (ours, or in Hugging Face format) of one network and tokenizer. Heads, labels and objective are
        the last one's; a head that any other lacks stays as the last one has it.
    weights: one each, not negative; they are divided by their sum. Default: all alike.

    Raises:
        UserError: fewer than two; other shapes, tokenizers or labels; weights that do not fit; `target` is not empty.
    """
    place = Path(target)
    check(len(folders) > 1, "a soup needs two checkpoints or more", "name the folders of the checkpoints, then --to FOLDER")
    check(not place.exists() or not any(place.iterdir()), f"{place} is not empty", "name a folder that is new")
    part = _shares(weights, len(folders))
    opened = [open_checkpoint(folder) for folder in folders]
    *others, last = opened
    for folder, other in zip(folders, others):
        _alike(str(folder), other, str(folders[-1]), last)
    mixed = mean([o.tensors for o in opened], part)
    more: Mapping[str, Any] = {"labels": list(last.labels)}
    if not in_hub_format(last.folder):
        more = checkpoints.card(last.folder).more
    entry: dict[str, Any] = {
        "stage": "soup",
        "name": "soup",
        "objective": last.lineage[-1].get("objective") if last.lineage else None,
    }
    names = [called(str(folder)) for folder in folders]
    entry["of"] = [{"checkpoint": n, "weights": o.fingerprint, "share": s} for n, o, s in zip(names, opened, part)]
    entry["versions"] = {"ziggurat": __version__, "torch": torch.__version__}
    lineage = (*last.lineage, {k: v for k, v in entry.items() if v})
    write = last.tokenizer.save if last.tokenizer is not None else None
    card = checkpoints.Card(last.network, last.system, lineage, last.tokenizer.fingerprint if last.tokenizer else "", more)
    checkpoints.save(place, 0, card, mixed, state={}, tokenizer=write)
    for task in last.tasks or [""]:
        try:
            export_checkpoint(place, place / "hf" / task, task=task or None)
        except NoHubClass as error:
            log.info("%s: there is no folder hf: %s", place, error.message)
            break
    return place


def mean(parts: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of every tensor of the last part, summed in float64; one that another part lacks stays as it is."""
    *_, last = parts
    found = {}
    for name, tensor in last.items():
        every = [p[name] for p in parts if name in p and p[name].shape == tensor.shape]
        if len(every) < len(parts) or not tensor.is_floating_point():
            found[name] = tensor
        else:
            total = sum(share * one.double() for share, one in zip(weights, every, strict=True))
            assert isinstance(total, Tensor)
            found[name] = total.to(tensor.dtype)
    return found


def _alike(name: str, other: Opened, reference: str, last: Opened) -> None:
    """Raise `UserError` unless weights of one checkpoint mean in the other what they mean here."""
    heads = [n for n, head in other.network.heads.items() if last.network.heads.get(n, head) != head]
    different = "another network" if other.network.model != last.network.model else f"another head {heads[0]!r}" if heads else ""
    check(not different, f"{name} has {different} than {reference}", "only checkpoints of one shape have a mean")
    pair = [o.tokenizer.fingerprint for o in (other, last) if o.tokenizer is not None]
    check(len(set(pair)) < 2, f"{name} has another tokenizer than {reference}", "its ids mean other words")
    here, there = _labels(last), _labels(other)
    for head in [head for head in here if head in there]:
        check(
            here[head] == there[head],
            f"{name} has the labels {', '.join(there[head])}, and {reference} {', '.join(here[head])}",
            "the scores of a head have a mean where they are of the same labels in the same order",
        )


def _labels(opened: Opened) -> dict[str, tuple[str, ...]]:
    """Head -> the names of its classes, where they are known."""
    own = {head: task_of(head) for head in opened.network.heads if head.partition("-")[0] in OWN}
    named = {head: opened.tasks.get(task, ()) if task else opened.labels for head, task in own.items()}
    return {head: labels for head, labels in named.items() if labels}


def shares(text: str) -> list[float]:
    """`0.2,0.8` as numbers; raises `UserError` for others."""
    try:
        return [float(one) for one in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"--weights {text!r} is no list of numbers", "write them as in --weights 0.2,0.8") from None


def _shares(weights: Sequence[float], count: int) -> list[float]:
    if not weights:
        return [1 / count] * count
    check(len(weights) == count, f"{len(weights)} weights for {count} checkpoints", "give each checkpoint one")
    good = all(w >= 0 for w in weights) and sum(weights) > 0
    check(good, f"the weights {', '.join(f'{w:g}' for w in weights)} are no shares", "none may be negative, nor all zero")
    return [w / sum(weights) for w in weights]

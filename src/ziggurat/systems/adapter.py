"""LoRA's additions in the layout of `peft`: `adapter_config.json` and `adapter_model.safetensors`, which
`peft.PeftModel.from_pretrained(base, folder)` puts on the Hub's class of the base."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ziggurat.checkpoint import templates
from ziggurat.checkpoint.names import Line
from ziggurat.errors import check
from ziggurat.nn import spec
from ziggurat.systems import SYSTEMS, find, modelcard
from ziggurat.systems.base import NoHubClass, system_of
from ziggurat.systems.classes import headless, heads_wanted
from ziggurat.systems.hub import laid_out

PREFIX = "base_model.model."


def write_adapter(
    folder: Path,
    network: spec.Network,
    system: str,
    added: Mapping[str, tuple[Tensor, Tensor]],
    *,
    rank: int,
    alpha: float,
    base: str,
    new: Sequence[str] = (),
    tensors: Mapping[str, Tensor] | None = None,
    labels: Sequence[str] = (),
    lineage: Sequence[Mapping[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write what was added to a network's matrices.

    added   our module's name -> (first [rank, in], second [out, rank])
    base    what the additions belong to: a folder in Hugging Face format
    new     heads that were trained whole; `tensors` has the network's parameters by our names, with these as they are now
    labels, lineage, about
            for the model card, README.md, as in `hub.to_hub`; one that somebody else wrote is kept

    Where the Hub lays several of our matrices in one (GPT-2's queries, keys and values), their additions become one of so many times the rank.
    A new head is stored as the topmost modules that hold its parameters, with everything in them, such as a table that the head shares: peft
    takes the place of whole modules. Raises `UserError` when the Hub has no class for the network, stores a matrix in a form that no
    addition fits, or keeps a parameter of a new head in no module (BART's `final_logits_bias`).
    """
    page = find(system) or system_of(SYSTEMS, network.model)
    if not page.classes:
        raise NoHubClass(f"{page.name} has no classes on the Hub", "its checkpoints are read by ziggurat alone")
    architecture, chosen = heads_wanted(page, network, None, [])
    lines = page.named(chosen, network.model).bind(heads=getattr(network.model, "heads", 0)).lines
    bare = architecture == headless(page) or architecture in page.bare

    def hub(line: Line, binding: Mapping[str, str]) -> str:
        name = templates.fill(line.hub, dict(binding)).rpartition(".")[0]
        return name.removeprefix(page.names.prefix) if bare else name

    groups: dict[str, tuple[Line, dict[int, tuple[Tensor, Tensor]]]] = {}
    for module, pair in added.items():
        line, part, binding = _line(lines, f"{module}.weight", page.name)
        groups.setdefault(hub(line, binding), (line, {}))[1][part] = pair
    sizes = {len(parts) for _, parts in groups.values()}
    turned = {line.transposed for line, _ in groups.values()}
    check(
        len(sizes) == len(turned) == 1,
        f"the Hub's {page.name} lays some of the matrices together and others not: one adapter cannot hold both",
        "choose other targets; the sums are in the folder hf",
    )
    stored: dict[str, Tensor] = {}
    for name, (line, parts) in groups.items():
        first, second = _fused(line, parts)
        stored[f"{PREFIX}{name}.lora_A.weight"], stored[f"{PREFIX}{name}.lora_B.weight"] = first, second
    own = tuple(f"heads.{head}." for head in new)
    homes = {hub(*_line(lines, ours, page.name)[::2]) for ours in tensors or {} if ours.startswith(own)}
    check("" not in homes, f"the Hub's {page.name} keeps a parameter of the new head in no module", "its sum is in the folder hf")
    saved = sorted(home for home in homes if not home.startswith(tuple(f"{other}." for other in homes)))
    if saved:
        wanted = {n: t for n, t in (tensors or {}).items() if n.startswith(("model.", *(f"heads.{head}." for head in chosen)))}
        for name, tensor in laid_out(page, network.model, architecture, chosen, wanted, repeated=True).items():
            if name.startswith(tuple(f"{home}." for home in saved)):
                stored[f"{PREFIX}{name}"] = tensor.clone()  # one that is shared stands in the file more than once
    (times,) = sizes
    config = _config(base, rank * times, alpha * times, sorted(groups), saved, turned.pop())
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "adapter_model.safetensors.part"
    save_file(stored, temporary, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    facts = modelcard.Facts(
        page.name,
        architecture,
        sum(tensor.numel() for tensor in stored.values()),
        page.loads,
        labels=labels if {"classify", "tag"} & set(chosen) else (),
        lineage=lineage,
        about=about or {},
        rank=rank,
    )
    card = folder / "README.md"
    if not card.is_file() or modelcard.MARK in card.read_text("utf-8", "replace"):
        card.write_text(modelcard.page(facts), "utf-8")
    os.replace(temporary, folder / "adapter_model.safetensors")


def _line(lines: tuple[Line, ...], ours: str, system: str) -> tuple[Line, int, templates.Binding]:
    """The Hub's tensor that holds ours, and which part of it ours is."""
    hit = templates.first([((line, n), name) for line in lines for n, name in enumerate(line.ours)], ours)
    plain = hit is not None and not (hit[0][0].fold or hit[0][0].multiple or hit[0][0].zeros)
    check(plain, f"the Hub's {system} has no matrix of its own for {ours}", "its sum is in the folder hf")
    assert hit is not None
    (line, part), binding = hit
    return line, part, binding


def _fused(line: Line, parts: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One pair for matrices that lie end to end: the first ones stacked, the second ones on the diagonal at their places."""
    order = sorted(parts)
    first = torch.cat([parts[n][0] for n in order])
    rank, out = parts[order[0]][0].shape[0], parts[order[0]][1].shape[0]
    second = first.new_zeros(out * len(line.ours), rank * len(order))
    for column, n in enumerate(order):
        second[n * out : (n + 1) * out, column * rank : (column + 1) * rank] = parts[n][1]
    return first.contiguous(), second.contiguous()


def _config(base: str, rank: int, alpha: float, targets: list[str], saved: list[str], turned: bool) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": turned,
        "target_modules": targets,
        "modules_to_save": saved or None,
    }

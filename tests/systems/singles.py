"""What the parity tests of stacks alone share: a Hub class with every parameter moved, there, here and back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems.hub import Imported, from_hub, to_hub
from ziggurat.types import Stream, Target, Visibility

TOLERANCE, SPREAD = 1e-4, 1.0


def shake(module: torch.nn.Module, seed: int, size: float = 0.25) -> None:
    """Move every parameter, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def shake_all(module: torch.nn.Module, seed: int, *, buffers: bool = False) -> None:
    """Move every parameter (and buffer) by N(0, 0.05 to 0.3), each by its own scale."""
    generator = torch.Generator().manual_seed(seed)
    found = [b for b in module.buffers() if b.is_floating_point()] if buffers else []
    with torch.no_grad():
        for parameter in [*module.parameters(), *found]:
            least = 0.2 if parameter.ndim > 1 else 0.05  # smaller matrices would give every document much the same scores
            scale = least + (0.3 - least) * torch.rand((), generator=generator)
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def zeroed(network: NetworkModel) -> Iterator[str]:
    """The parameters' names; while one is looked at it is 0."""
    for key, parameter in network.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.zero_()
            yield key
            parameter.copy_(kept)


def documents(lengths: tuple[int, ...], vocab: int, *, low: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(low, vocab, (n,), generator=generator) for n in lengths]


def stream_of(ids: list[torch.Tensor], visibility: Any, segment: list[torch.Tensor] | None = None) -> Stream:
    bounds = torch.tensor([0, *(len(x) for x in ids)]).cumsum(0)
    kinds = torch.cat(segment) if segment else torch.zeros(int(bounds[-1]), dtype=torch.long)
    return Stream(torch.cat(ids), bounds, torch.cat([torch.arange(len(x)) for x in ids]), kinds, Visibility(visibility))


def padded(ids: list[torch.Tensor], pad: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, L] and its mask."""
    longest = max(map(len, ids))
    full, mask = torch.full((len(ids), longest), pad), torch.zeros(len(ids), longest, dtype=torch.long)
    for row, x in enumerate(ids):
        at = slice(longest - len(x), longest) if left else slice(0, len(x))
        full[row, at], mask[row, at] = x, 1
    return full, mask


@torch.no_grad()
def scores(network: NetworkModel, stream: Stream) -> dict[str, torch.Tensor]:
    streams = {"text": stream}
    hidden = network(streams)
    tokens, count = torch.arange(len(stream.content)), len(stream.bounds) - 1
    found = {"hidden": hidden["text"]}
    for name, head in network.spec.heads.items():
        each = not isinstance(head, spec.ClassHead | spec.PoolerHead)
        index = tokens if each else torch.arange(count)
        target = Target("text", index, index, torch.ones(len(index)), "token" if each else "document")
        if isinstance(head, spec.PoolerHead):
            found[name] = network.heads[name](hidden["text"][stream.bounds[:-1]])
        else:
            found[name] = network.logits(name, hidden, streams, target)
    return found


@torch.no_grad()
def their_scores(model: Any, inputs: dict[str, torch.Tensor], name: str | None = None) -> dict[str, torch.Tensor]:
    """By our heads' names, pads removed."""
    name = name or type(model).__name__
    mask = inputs["attention_mask"].bool()
    choice = name.endswith(("MultipleChoice", "DoubleHeadsModel"))
    # one question, a choice a document; what these classes do not lay out themselves they take laid out
    flat = {"ErnieForMultipleChoice": ("task_type_ids",), "OpenAIGPTDoubleHeadsModel": ("attention_mask", "position_ids")}.get(
        name, ()
    )
    out = model(**({k: v if k in flat else v[None] for k, v in inputs.items()} if choice else inputs))
    return named(model, out, mask)


def named(model: Any, out: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a class of the Hub says, by our heads' names: [T, ...] of tokens, pads removed, and [D, ...] of documents."""
    name = type(model).__name__
    if name == "ElectraForPreTraining":
        return {"rtd": out.logits[..., None][mask]}
    if name.endswith("MultipleChoice"):
        return {"choice": out.logits.reshape(-1, 1)}
    if name.endswith("DoubleHeadsModel"):
        return {"lm": out.logits.reshape(*mask.shape, -1)[mask], "choice": out.mc_logits.reshape(-1, 1)}
    if name == "AlbertForPreTraining":
        return {"lm": out.prediction_logits[mask], "sop": out.sop_logits}
    if name.endswith("ForPreTraining"):
        return {"lm": out.prediction_logits[mask], "nsp": out.seq_relationship_logits}
    if name.endswith(("QuestionAnswering", "QuestionAnsweringSimple")):
        return {"span": torch.stack([out.start_logits, out.end_logits], -1)[mask]}
    if name.endswith(("MaskedLM", "LMHeadModel", "CausalLM")):
        return {"lm": out.logits[mask]}
    if name.endswith("TokenClassification"):
        return {"tag": out.logits[mask]}
    if name.endswith("NextSentencePrediction"):
        return {"nsp": out.logits}
    if name.endswith("SequenceClassification"):
        return {"regress" if model.config.num_labels == 1 else "classify": out.logits}
    found = {"hidden": out.last_hidden_state[mask]}
    return found | ({} if getattr(out, "pooler_output", None) is None else {"pooler": out.pooler_output})


def agree(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], what: str) -> float:
    """The largest difference over all outputs that they have."""
    worst = 0.0
    for name, right in theirs.items():
        assert ours[name].shape == right.shape, name
        spread = (right.max(0).values - right.min(0).values).max().item()
        assert spread >= SPREAD, f"{what} {name}: spread {spread:.2g}"
        worst = max(worst, (ours[name] - right).abs().max().item())
    assert worst <= TOLERANCE, f"{what} differs by {worst:.2g}"
    print(f"{what}: {worst:.1e}", file=sys.stderr)
    return worst


def load(found: Imported) -> NetworkModel:
    network = NetworkModel(found.network)
    network.load_state_dict(found.tensors)
    return network.eval()


def both_ways(
    model: Any, system: str, stream: Stream, inputs: dict[str, torch.Tensor], tmp_path: Path, auto: Any = None
) -> NetworkModel:
    """The Hub's model imported, compared, exported, compared again; the tensors of both files are the same bits."""
    name = type(model).__name__
    model.save_pretrained(tmp_path / "theirs")
    found = from_hub(tmp_path / "theirs")
    assert found.system == system
    network = load(found)
    agree(scores(network, stream), their_scores(model, inputs), name)
    ids = {"pad_token_id": model.config.pad_token_id}
    written = to_hub(found.network, network.state_dict(), None, found.system, tmp_path / "ours", ids=ids)
    assert written.architecture == name
    back, info = (auto or type(model)).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is type(model)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    agree(scores(network, stream), their_scores(back.eval(), inputs), f"{name} back")
    a, b = load_file(tmp_path / "theirs" / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    if name == "OpenAIGPTDoubleHeadsModel":  # it stores the other name of the two; we write the table's, and it reads either
        a["transformer.tokens_embed.weight"] = a.pop("lm_head.weight")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    return network

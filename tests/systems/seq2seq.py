"""The same pairs of texts packed for us and padded for `transformers`, and what both say about them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from singles import SPREAD, TOLERANCE, zeroed
from torch import Tensor

from ziggurat.data.pack import pack
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems.drift import first_drift
from ziggurat.systems.hub import from_hub
from ziggurat.types import CAUSAL, FULL, Batch, Stream, Target

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCAB, LENGTH = 67, 160
LENGTHS = ((150, 3), (3, 141), (17, 17), (1, 1), (30, 2), (8, 60), (LENGTH, LENGTH), (2, 25))
"""Tokens of encoder and decoder; beyond the 128 from which T5's distances share a bucket."""
CPU = torch.device("cpu")


@dataclass
class Twins:
    batch: Batch
    """Documents end to end, not packed, in numpy."""
    ids: dict[str, Tensor]
    mask: dict[str, Tensor]

    def flat(self, name: str, x: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...], pads removed."""
        return x[self.mask[name].bool()]

    def packed(self) -> Batch:
        return pack(self.batch, {"encoder": LENGTH + 9, "decoder": LENGTH + 30}, 0)


def stream(rows: list[np.ndarray], visibility: Any) -> Stream:
    bounds = np.cumsum([0, *map(len, rows)])
    position = np.concatenate([np.arange(len(row)) for row in rows]).astype(np.int32)
    return Stream(np.concatenate(rows).astype(np.int32), bounds, position, np.zeros(len(position), np.int32), visibility)


def padded(rows: list[np.ndarray], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids, mask = np.full((len(rows), length), pad), np.zeros((len(rows), length), np.int64)
    for r, row in enumerate(rows):
        at = slice(length - len(row), length) if left else slice(0, len(row))
        ids[r, at], mask[r, at] = row, 1
    return torch.tensor(ids), torch.tensor(mask)


def twins(config: Any, *, same: bool = False, left: bool = False, seed: int = 0) -> Twins:
    """Random documents. `same`: both stacks read one text, which the end token (and nothing else) ends."""
    rng = np.random.default_rng(seed)
    encoder = [rng.integers(5, VOCAB, m) for m, _ in LENGTHS]
    decoder = [rng.integers(5, VOCAB, n) for _, n in LENGTHS]
    if same:
        for row in encoder:
            row[-1] = config.eos_token_id
        decoder = [np.append(config.decoder_start_token_id, row[:-1]) for row in encoder]
    batch = Batch(
        {"encoder": stream(encoder, FULL), "decoder": stream(decoder, CAUSAL)}, {}, np.arange(len(LENGTHS), dtype=np.uint64)
    )
    pairs = {"encoder": padded(encoder, config.pad_token_id, left), "decoder": padded(decoder, config.pad_token_id, left)}
    return Twins(batch, {k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()})


def where(network: NetworkModel, name: str) -> tuple[str, Any]:
    """The stream and the place a head answers at in the Hub's classes."""
    if isinstance(network.spec.heads[name], spec.ClassHead):
        return "decoder", "document"
    return ("encoder" if name == "tag" else "decoder"), "token"


@torch.no_grad()
def our_scores(network: NetworkModel, batch: Batch) -> dict[str, Tensor]:
    """Every head's scores by name, and `encoder` and `decoder`, the hidden vectors: documents in the order of their keys."""
    moved = to_device(batch, CPU)
    hidden = network(moved.streams)
    order = [int(np.flatnonzero(batch.keys == key)[0]) for key in range(len(LENGTHS))]
    rows = {n: torch.cat([torch.arange(*s.bounds[d : d + 2].tolist()) for d in order]) for n, s in moved.streams.items()}
    scores = {name: hidden[name][at] for name, at in rows.items()}
    for name in network.spec.heads:
        on, at = where(network, name)
        index = rows[on] if at == "token" else torch.tensor(order)
        target = Target(on, index, torch.zeros(len(index), dtype=torch.long), torch.ones(len(index)), at)
        scores[name] = network.logits(name, hidden, moved.streams, target)
    return scores


@torch.no_grad()
def their_scores(model: Any, t: Twins) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """The same from `transformers`, and the hidden states of both stacks."""
    name = type(model).__name__
    inputs: dict[str, Any] = {"input_ids": t.ids["encoder"], "attention_mask": t.mask["encoder"], "output_hidden_states": True}
    if name.endswith(("TokenClassification", "EncoderModel")):
        out = model(**inputs)
        hidden = {"encoder": [t.flat("encoder", h) for h in out.hidden_states]}
        if name.endswith("EncoderModel"):
            return {"encoder": t.flat("encoder", out.last_hidden_state)}, hidden
        return {"tag": t.flat("encoder", out.logits)}, hidden
    out = model(**inputs, decoder_input_ids=t.ids["decoder"], decoder_attention_mask=t.mask["decoder"], use_cache=False)
    hidden = {
        "encoder": [t.flat("encoder", h) for h in out.encoder_hidden_states],
        "decoder": [t.flat("decoder", h) for h in out.decoder_hidden_states],
    }
    scores = {"encoder": t.flat("encoder", out.encoder_last_hidden_state)}
    if name.endswith("ConditionalGeneration"):
        scores["lm"] = t.flat("decoder", out.logits)
    elif name.endswith("QuestionAnswering"):
        scores["span"] = t.flat("decoder", torch.stack([out.start_logits, out.end_logits], -1))
    elif name.endswith("SequenceClassification"):
        scores["regress" if model.config.num_labels == 1 else "classify"] = out.logits
    else:
        scores["decoder"] = t.flat("decoder", out.last_hidden_state)
    return scores, hidden


def assert_parity(network: NetworkModel, model: Any, t: Twins) -> float:
    """The largest difference over every output the Hub's class has, packed and not; fails naming the first module that drifts."""
    other, hidden = their_scores(model, t)
    worst = 0.0
    for batch in (t.batch, t.packed()):
        ours = our_scores(network, batch)
        for name, scores in other.items():
            assert ours[name].shape == scores.shape, name
            spread = (scores.max(0).values - scores.min(0).values).max().item()
            assert spread >= SPREAD, f"{name}: the scores spread by {spread:.2g} only"
            worst = max(worst, (ours[name] - scores).abs().max().item())
    if not worst <= TOLERANCE:
        drift = first_drift(network, to_device(t.batch, CPU).streams, hidden) or "no layer drifts: look at the head"
        pytest.fail(f"{type(model).__name__} differs by {worst:.2g}: {drift}")
    return worst


def network_of(part: spec.Network, tensors: dict[str, Tensor]) -> NetworkModel:
    model = NetworkModel(part)
    model.load_state_dict(tensors)
    return model.eval()


def read(folder: Path) -> tuple[Any, NetworkModel]:
    found = from_hub(folder)
    return found, network_of(found.network, found.tensors)


def reload(folder: Path, name: str) -> Any:
    """The folder through `from_pretrained`, with nothing missing and nothing left over."""
    found = getattr(transformers, name)
    model, info = found.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == name
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def both(name: str) -> bool:
    """Whether a class reads one text in both stacks."""
    return name.endswith(("SequenceClassification", "QuestionAnswering"))


def rewrite(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> None:
    """Make a folder look as somebody else's: other tensors, other entries (None: left out)."""
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    now = json.loads((folder / "config.json").read_text("utf-8")) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in now.items() if v is not None}), "utf-8")


def unseen(network: NetworkModel, model: Any, t: Twins) -> list[str]:
    """Parameters that can be 0 without breaking parity: ignored on one side, or of no effect."""
    right, _ = their_scores(model, t)
    found = []
    for key in zeroed(network):
        ours = our_scores(network, t.batch)
        if max((ours[k] - right[k]).abs().max().item() for k in right) <= TOLERANCE:
            found.append(key)
    return found

"""Every objective with a corpus to read and tiny networks of every system: what the laws are tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from ziggurat.context import Context, Layout, Vocab, mix
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import AnyObjective, Objective
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.types import Batch, Part, Tokens

CPU = torch.device("cpu")
VOCAB = Vocab(50, 0, 4, 1, 3, (0, 1, 2, 3, 4))
LAYOUTS = {
    "bert": Layout((2,), (3,), (3,), (0, 1)),
    "roberta": Layout((2,), (3, 3), (3,), (0, 0)),
    "gpt2": Layout((), (3,), (3,), (0, 0)),
}
LENGTH, ROW = 18, 24
EXAMPLES: dict[str, dict[str, Any]] = {
    "mlm": {"kind": "mlm"},
    "mlm-word": {"kind": "mlm", "unit": "word", "rate": 0.3},
    "mlm-ngram": {"kind": "mlm", "unit": "ngram", "rate": 0.3},
    "mlm-span": {"kind": "mlm", "unit": "span", "rate": {"start": 0.2, "end": 0.4}, "replace": [0.6, 0.2, 0.2]},
    "mlm-masks": {"kind": "mlm", "unit": "span", "replace": [1, 0, 0]},
    "mlm-static": {"kind": "mlm", "static": 2},
    "clm": {"kind": "clm"},
    "nsp": {"kind": "nsp"},
    "sop": {"kind": "sop", "short": 0.5},
    "joint-bert": {"kind": "joint", "parts": [{"kind": "mlm"}, {"kind": "nsp"}]},
    "joint-order": {"kind": "joint", "parts": [{"kind": "sop"}, {"kind": "mlm", "unit": "word"}], "weights": {"sop": 0.3}},
    "classify": {"kind": "classify", "labels": ["a", "b", "c"]},
    "classify-pair": {"kind": "classify", "labels": ["a", "b", "c"]},
    "regress": {"kind": "regress"},
    "tag": {"kind": "tag", "labels": ["O", "B", "I"]},
}
every_objective = pytest.mark.parametrize("name", EXAMPLES)
every_system = pytest.mark.parametrize("system", SYSTEMS)


def objective_of(name: str) -> Objective:
    return TypeAdapter(AnyObjective).validate_python(EXAMPLES[name])


def context(system: str = "bert", **other: Any) -> Context:
    visibility = SYSTEMS[system].model.visibility
    return Context(VOCAB, LAYOUTS[system], LENGTH, **{"visibility": visibility, "seed": 7, "progress": 0.5, **other})


def part_of(rng: np.random.Generator, sizes: np.ndarray) -> Part:
    """Documents of these many tokens; each first token of a word is marked with one of three labels."""
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n = int(bounds[-1])
    words, sentences = rng.random(n) < 0.6, rng.random(n) < 0.25
    words[bounds[:-1]] = sentences[bounds[:-1]] = True
    words |= sentences
    owner = np.repeat(np.arange(len(sizes)), sizes)
    first = np.flatnonzero(words)
    start = first - bounds[owner[first]]
    marks = np.stack([start, start + 1, rng.integers(0, 3, len(first))], 1)
    counts = np.concatenate([[0], np.cumsum(np.bincount(owner[first], minlength=len(sizes)))])
    return Part(rng.integers(5, 50, n).astype(np.int32), bounds, words, sentences, marks, counts, ("B", "I", "O"))


def corpus(name: str, n: int = 12, seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    parts = {"text": part_of(rng, rng.integers(4, 40, n))}
    if name == "classify-pair":
        parts["pair"] = part_of(rng, rng.integers(1, 20, n))
    label: list[Any] = rng.normal(size=n).tolist() if name == "regress" else [str(x) for x in rng.choice(list("abc"), n)]
    keys = mix(np.arange(n, dtype=np.uint64) + np.uint64(seed << 20))
    return Tokens(parts, keys, {"label": label, "id": [f"rows:{i}" for i in range(n)]})


def formed(name: str, system: str = "bert", seed: int = 0, n: int = 12) -> Batch:
    return objective_of(name).form(corpus(name, n, seed), context(system))


def made(name: str, system: str = "bert", seed: int = 0, n: int = 12) -> Batch:
    return objective_of(name).corrupt(formed(name, system, seed, n), context(system))


def network_of(
    system: str, objective: Objective | None = None, layers: int = 2, seed: int = 0, shaken: bool = True
) -> NetworkModel:
    """A tiny double-precision network with every parameter moved, so that nothing is zero or one by chance."""
    body = model_of(f"{system}/tiny", {"layers": layers, "width": 16, "heads": 2, "mlp": 24}, VOCAB.size)
    network = NetworkModel(spec.Network(model=body, heads=dict(objective.heads(body)) if objective else {})).double()
    g = torch.Generator().manual_seed(seed)
    network.initialise(g)
    if shaken:
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return network.eval()


def torched(batch: Batch) -> Batch:
    return to_device(batch, CPU)

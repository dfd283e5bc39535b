"""Every objective with a corpus to read and tiny networks of every system: what the laws are tried on."""

from __future__ import annotations

from dataclasses import replace
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
from ziggurat.objectives.tasks import Tasks
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.types import Batch, Part, Tokens, join_all

CPU = torch.device("cpu")
SENTINELS = {f"<extra_id_{n}>": 50 + n for n in range(9)}
VOCAB = Vocab(60, 0, 4, 1, 3, (0, 1, 2, 3, 4, *range(50, 60)), {**SENTINELS, "[ATTN]": 59})
LAYOUTS = {
    "bert": Layout((2,), (3,), (3,), (0, 1)),
    "roberta": Layout((2,), (3, 3), (3,), (0, 0)),
    "gpt2": Layout((), (3,), (3,), (0, 0)),
    "t5": Layout((), (3,), (3,), (0, 0)),
    "t5_1_1": Layout((), (3,), (3,), (0, 0)),
    "bart": Layout((2,), (3, 3), (3,), (0, 0)),
    "mass": Layout((2,), (3,), (3,), (0, 1)),
    "xlnet": Layout((), (3,), (3, 2), (0, 1), 2),
    "prophetnet": Layout((), (3,), (3,), (0, 0)),
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
    "multiple_choice": {"kind": "multiple_choice"},
    "multiple_choice-pair": {"kind": "multiple_choice", "labels": ["a", "b", "c"]},
    "question_answering-pair": {"kind": "question_answering", "question": 4},
    "question_answering-none-pair": {"kind": "question_answering", "question": 5, "stride": 2, "no_answer": True},
    "seq2seq-pair": {"kind": "seq2seq", "target": 7, "noise": 0.4},
    "seq2seq-mask-pair": {"kind": "seq2seq", "asks": "mask", "target": 7},
    "seq2seq-pseudo-pair": {"kind": "seq2seq", "asks": "pseudo", "noise": 0.3},
    "seq2seq-attn-pair": {"kind": "seq2seq", "asks": "attn", "noise": 0.5},
    "seq2seq-query-pair": {"kind": "seq2seq", "asks": "query", "noise": 0.3},
    "seq2seq-future-pair": {"kind": "seq2seq", "asks": "future", "noise": 0.4},
    "tasks": {
        "kind": "tasks",
        "parts": {
            "one": {"kind": "classify", "labels": ["a", "b", "c"]},
            "two": {"kind": "tag", "labels": ["O", "B", "I"]},
            "three": {"kind": "regress"},
        },
        "weights": {"two": 0.5},
    },
    "mac": {"kind": "mac", "rate": 0.3},
    "joint-mac": {"kind": "joint", "parts": [{"kind": "mac"}, {"kind": "sop"}]},
    "sbo": {"kind": "sbo"},
    "joint-span": {"kind": "joint", "parts": [{"kind": "mlm", "unit": "span", "rate": 0.3}, {"kind": "sbo", "size": 6}]},
    "word-order": {"kind": "word_order", "rate": 0.3},
    "sentence-structure": {"kind": "sentence_structure", "short": 0.5},
    "joint-struct": {
        "kind": "joint",
        "parts": [{"kind": "mlm"}, {"kind": "word_order", "rate": 0.3}, {"kind": "sentence_structure"}],
    },
    "prefix_lm": {"kind": "prefix_lm"},
    "prefix_lm-share": {"kind": "prefix_lm", "share": [0.3, 0.6]},
    "plm": {"kind": "plm"},
    "plm-word": {"kind": "plm", "unit": "word", "rate": 0.3, "alpha": 2, "reuse": 6},
    "plm-windows": {"kind": "plm", "pairs": False, "reverse": 0, "perm_size": 5},
    "unilm": {"kind": "unilm", "codes": [0, 0, 0, 0, 0, 0]},
    "unilm-masks": {"kind": "unilm", "codes": [0, 0, 0, 0, 0, 0], "modes": [0, 0.5, 0.25, 0.25], "replace": [1, 0, 0]},
    "pmlm": {"kind": "pmlm", "rate": 0.3},
    "pmlm-masks": {"kind": "pmlm", "rate": 0.3, "replace": [1, 0, 0]},
    "pmlm-par": {"kind": "pmlm", "ae": False, "rate": 0.3},
    "pmlm-ar": {"kind": "pmlm", "ae": False, "blocks": 0},
    "pmlm-ae": {"kind": "pmlm", "par": False},
    "ernie_gen": {"kind": "ernie_gen"},
    "ernie_gen-noise": {"kind": "ernie_gen", "noise": 0.5, "weight": 1, "fragments": [{"share": 1, "shortest": 1, "longest": 4}]},
    "ernie_gen-pair": {"kind": "ernie_gen", "target": "pair", "noise": 0.5},
    "rtd": {"kind": "rtd", "rate": 0.3},
    "rtd-word": {"kind": "rtd", "unit": "word", "rate": 0.3, "intact": 0.3, "weight": 5.0},
    "future-lm": {"kind": "future_lm"},
    "mixture": {"kind": "mixture", "parts": [{"kind": "mlm"}, {"kind": "prefix_lm"}, {"kind": "clm"}], "weights": [2, 1, 1]},
    "mixture-queries": {"kind": "mixture", "parts": [{"kind": "plm"}, {"kind": "mlm", "unit": "word"}], "until": [0, 1]},
    "mass": {"kind": "mass"},
    "mass-blocks": {"kind": "mass", "ratio": 0.3, "block": 6, "starts": [0, 0, 1], "cross": "all"},
    "mlm-mass": {"kind": "mlm_mass", "fragment": {"ratio": 0.3}},
    "mlm-mass-word": {"kind": "mlm_mass", "masked": {"unit": "word", "rate": 0.2}, "weights": {"mlm": 0.5}},
    "future": {"kind": "future", "block": 8, "ratio": 0.3},
    "future-three": {"kind": "future", "ngram": 3, "weights": [1, 0.5, 0.25], "block": 0},
    "t5": {"kind": "span_corruption", "mean": 1.5},
    "t5-roll": {"kind": "span_corruption", "rate": 0.4, "roll": True, "closing": True},
    "t5-iid": {"kind": "span_corruption", "noise": "iid", "rate": 0.3},
    "t5-drop": {"kind": "span_corruption", "variant": "drop_tokens", "rate": 0.3},
    "t5-mass": {"kind": "span_corruption", "variant": "mass_style"},
    "t5-bert": {"kind": "span_corruption", "variant": "bert_style"},
    "t5-deshuffling": {"kind": "span_corruption", "variant": "deshuffling"},
    "t5-prefix": {"kind": "span_corruption", "variant": "prefix_lm"},
    "bart": {"kind": "denoise"},
    "bart-command": {"kind": "denoise", "mean": 3.5, "random": 0.1},
    "bart-mask": {"kind": "denoise", "infill": 0, "permute": 0, "mask": 0.3},
    "bart-delete": {"kind": "denoise", "infill": 0, "permute": 0, "delete": 0.3},
    "bart-rotate": {"kind": "denoise", "infill": 0, "rotate": 1.0},
}
every_objective = pytest.mark.parametrize("name", EXAMPLES)
every_system = pytest.mark.parametrize("system", SYSTEMS)
TWINS = [name for name, system in SYSTEMS.items() if system.model.kind == "encoder_decoder"]
SINGLES = [name for name in SYSTEMS if name not in TWINS]
every_single = pytest.mark.parametrize("system", SINGLES)
every_twin = pytest.mark.parametrize("system", TWINS)


_MODELS = [repr((s.sized("tiny", vocab=VOCAB.size), s.template)) for s in SYSTEMS.values()]
SINGLE = [name for n, name in enumerate(SYSTEMS) if _MODELS[n] not in _MODELS[:n] and name not in TWINS]
"""Systems whose models are of one stack, or of two of which later objectives train one; of several with the same model (BERT,
StructBERT, MacBERT) the first."""


def objective_of(name: str) -> Objective:
    return TypeAdapter(AnyObjective).validate_python(EXAMPLES[name])


def homes(name: str) -> list[str]:
    """The systems on whose structure an objective makes sense."""
    structures = objective_of(name).structures
    single = SINGLE if "single" in structures else []
    return single + [n for n, s in SYSTEMS.items() if s.model.kind != "single" and s.model.kind in structures and n not in single]


def home(name: str) -> str:
    return homes(name)[0]


every_case = pytest.mark.parametrize(("name", "system"), [(name, system) for name in EXAMPLES for system in homes(name)])


def rows_of(name: str, system: str, times: int = 1) -> dict[str, int]:
    """Room for the longest example of each stream, and a little more."""
    return {stream: times * max(ROW, n + 3) for stream, n in objective_of(name).rows(context(system)).items()}


def context(system: str = "bert", **other: Any) -> Context:
    model, layout = SYSTEMS[system].model, LAYOUTS.get(system) or LAYOUTS[SYSTEMS[system].template]
    about: dict[str, Any] = {"visibility": model.visibility, "seed": 7, "progress": 0.5}
    if isinstance(model, spec.EncoderDecoder):
        start = {"pad": VOCAB.pad, "end": VOCAB.end, "first": next(iter(layout.first), None)}[model.start]
        about |= {"start": start, "streams": ("encoder", "decoder"), "words": model.words}
    return Context(VOCAB, layout, LENGTH, **{**about, **other})


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
    if name.endswith("-pair") or name == "question_answering":
        parts["pair"] = part_of(rng, rng.integers(1, 20, n))
    label: list[Any] = rng.normal(size=n).tolist() if name == "regress" else [str(x) for x in rng.choice(list("abc"), n)]
    # Far from the small numbers that windows are counted by: window i of document j would have the key of window j of document i.
    keys = mix(np.arange(n, dtype=np.uint64) + np.uint64((seed + 1) << 20))
    fields: dict[str, Any] = {"id": [f"rows:{i}" for i in range(n)]}
    if name.startswith("multiple_choice"):
        counts = rng.integers(3, 5, n)
        parts["choices"] = _listed(rng, counts)
        label = label if name.endswith("-pair") else [int(rng.integers(c)) for c in counts]
    if name.startswith("question_answering"):
        parts["pair"], fields["answers"] = _answered(rng, n, "none" in name)
    return Tokens(parts, keys, {"label": label, **fields}, "one" if name == "tasks" else "")


def _listed(rng: np.random.Generator, counts: np.ndarray) -> Part:
    """`counts` texts of 1 to 4 tokens for each document, each marked."""
    sizes = [rng.integers(1, 5, c) for c in counts]
    part = part_of(rng, np.array([s.sum() for s in sizes]))
    marks = np.concatenate([np.stack([np.cumsum(s) - s, np.cumsum(s), 0 * s], 1) for s in sizes])
    return replace(part, marks=marks, mark_bounds=np.cumsum([0, *counts]).astype(np.int64), labels=("choices",))


def _answered(rng: np.random.Generator, n: int, some: bool) -> tuple[Part, list[list[str]]]:
    """Contexts of 1 to 30 tokens with an answer marked in each, or in some."""
    sizes = rng.integers(1, 31, n)
    has = rng.random(n) < (0.6 if some else 1.0)
    starts = [int(rng.integers(size)) for size in sizes]
    marks = [(s, min(s + int(rng.integers(1, 4)), size), 0) for s, size, h in zip(starts, sizes.tolist(), has) if h]
    part = part_of(rng, sizes)
    part = replace(part, marks=np.array(marks, np.int64).reshape(-1, 3), mark_bounds=np.cumsum([0, *has]), labels=("answer",))
    return part, [["answer"] if h else [] for h in has]


def formed(name: str, system: str = "", seed: int = 0, n: int = 12) -> Batch:
    system = system or home(name)
    objective, ctx = objective_of(name), context(system)
    if isinstance(objective, Tasks):  # documents of every task
        some = {task: corpus(part.kind, n, seed + (k << 24)) for k, (task, part) in enumerate(objective.parts.items())}
        return join_all(objective.form(replace(tokens, source=task), ctx) for task, tokens in some.items())
    return objective.form(corpus(name, n, seed), ctx)


def made(name: str, system: str = "", seed: int = 0, n: int = 12) -> Batch:
    system = system or home(name)
    return objective_of(name).corrupt(formed(name, system, seed, n), context(system))


def network_of(
    system: str, objective: Objective | None = None, layers: int = 2, seed: int = 0, shaken: bool = True
) -> NetworkModel:
    """A tiny double-precision network with every parameter moved, so that nothing is zero or one by chance."""
    body = model_of(f"{system}/tiny", {"layers": layers, "width": 16, "heads": 2, "mlp": 24}, VOCAB.size)
    body = objective.part_of(body) if objective else body
    if objective and objective.extra:
        body = body.model_copy(update={"embed": body.embed.model_copy(update={"extra": objective.extra})})
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

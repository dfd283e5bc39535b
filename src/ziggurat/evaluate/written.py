"""Texts written by a model after texts that it reads: what `seq2seq` is scored with, and how other systems are asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ziggurat.context import Context
from ziggurat.data.pack import take
from ziggurat.evaluate.generate import generate
from ziggurat.evaluate.heldout import autocast
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.decoding import Decoding
from ziggurat.objectives.seq2seq import Seq2Seq
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.types import Tokens

AT_ONCE = 32
"""Texts written in one batch."""


def write(
    network: NetworkModel,
    objective: Seq2Seq,
    tokens: Tokens,
    tokenizer: Tokenizer,
    ctx: Context,
    how: Decoding | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """The text that the model writes after each of the documents, in their order; at most as many tokens as it has positions for.

    Texts of like length are written together. `how` is the objective's own `generate` by default.
    """
    how, way = how or objective.generate, objective.continuation(ctx)
    prompts = objective.prompts(tokens, ctx)
    read = prompts.streams.get("encoder", prompts.streams[way.stream])
    lengths, held = read.lengths, prompts.streams[way.stream].lengths
    draws = torch.Generator().manual_seed(how.seed)
    device = next(network.parameters()).device
    written = [""] * len(prompts)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), AT_ONCE):
        chosen = order[start : start + AT_ONCE]
        room = network.spec.model.embed.positions.length - int(held[chosen].max()) + (way.query is None)
        most = max(1, min(how.most, room))
        fits = how.model_copy(update={"most": most, "least": min(how.least, most - 1)})
        with autocast(device, dtype):
            found = generate(network, take(prompts, chosen), way, fits, draws)
        for d, ids in zip(chosen.tolist(), found, strict=True):
            written[d] = tokenizer.decode(ids).strip()
    return written


def asked(model: spec.Model, objective: Mapping[str, Any]) -> Seq2Seq | None:
    """How a model that was trained with `objective` (as a recipe writes it) is asked for a text; None if it cannot write one.

    A masked LM that reads both ways has never been asked for the next word. The parts of a `joint` or `mixture` are tried in turn.
    """
    if isinstance(model, spec.Adversaries):
        return None
    kind = objective.get("kind", "")
    if kind == "seq2seq":
        return Seq2Seq.model_validate(dict(objective))
    if isinstance(model, spec.EncoderDecoder):
        return Seq2Seq(asks="future", ngram=objective.get("ngram", 2)) if kind == "future" else Seq2Seq()
    match kind:
        case "unilm":
            codes = objective.get("codes", (0, 1, 4, 5, 2, 3))
            return Seq2Seq(asks="mask", segments=tuple(codes[2:4]))
        case "pmlm":
            return Seq2Seq(asks="pseudo", token=objective.get("pseudo", ""))
        case "ernie_gen":
            segment = objective.get("segment")
            return Seq2Seq(asks="attn", token=objective.get("token", ""), segments=None if segment is None else (0, segment))
        case "plm":
            return Seq2Seq(asks="query")
        case "clm" | "prefix_lm":
            return Seq2Seq()
        case "joint" | "mixture":
            return next((found for part in objective.get("parts", ()) if (found := asked(model, part))), None)
    return Seq2Seq() if model.visibility == "causal" else None

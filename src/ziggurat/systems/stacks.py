"""What the Hub's folders of encoder-decoders need besides names: the token a decoder begins with, and files of one stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ziggurat.context import Layout, Vocab
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems.base import STARTS, System, is_table

START = "decoder_start_token_id"
OTHER = {"encoder": "model.decoder.", "decoder": "model.encoder."}


def start_id(model: spec.Model, ids: Mapping[str, Any]) -> dict[str, int | None]:
    """The entry for the token that the decoder begins with, given those of the pad, the first and the end token."""
    if not isinstance(model, spec.EncoderDecoder):
        return {}
    return {START: next(ids[entry] for entry, ours in STARTS.items() if ours == model.start)}


def summary_note(model: spec.Model, vocab: Vocab, layout: Layout) -> list[str]:
    """What the user of an exported classifier should know: the Hub's classes of encoder-decoders read the decoder's state at the
    last end token of the text, ours at its last token."""
    if not isinstance(model, spec.EncoderDecoder):
        return []
    if layout.last[-1:] != (vocab.end,):
        return ["the tokenizer does not end texts with the end token, at which transformers reads the answer: append it"]
    if vocab.pad == vocab.end:
        return ["the pad token also ends documents: transformers scores one text at a time"]
    return []


def one_stack(tensors: Mapping[str, Tensor], alone: str) -> dict[str, Tensor]:
    """Without the other stack's tensors, where a class holds one stack alone."""
    return {name: t for name, t in tensors.items() if not alone or not name.startswith(OTHER[alone])}


def other_stack(network: spec.Network, alone: str, notes: list[str]) -> dict[str, Tensor]:
    """Fresh weights of the stack that a file lacks, always the same ones."""
    fresh = NetworkModel(network)
    fresh.initialise(torch.Generator().manual_seed(0))
    notes.append(f"the file holds the {alone} alone: the rest is drawn afresh and must be trained before it is used")
    return {name: t for name, t in fresh.state_dict().items() if name.startswith(OTHER[alone])}


def with_table(system: System, model: spec.Model, stored: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The tensors of a file with a table for the projection, where the configuration says it has its own and the file has none:
    `transformers` 5 ties it in a T5 1.1 that it made afresh."""
    stored, prefix = dict(stored), system.names.prefix
    for tie in system.heads["lm"]:
        if model.project.tied or not is_table(tie) or tie.hub in stored:
            continue
        table = next((stored[name] for name in (tie.of, tie.of.removeprefix(prefix)) if name in stored), None)
        if table is not None:
            stored[tie.hub] = table.clone()
            notes.append(f"{tie.hub} is not in the file: a copy of the embeddings was taken, as transformers does")
    return stored

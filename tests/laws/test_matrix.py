"""Every structure under every objective: it trains for a few steps, or one sentence says why it makes no sense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import CPU, VOCAB, context, corpus

from ziggurat.data.pack import pack
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import OBJECTIVES
from ziggurat.pipeline.matrix import STRUCTURES, matrix, objective_of, refusal
from ziggurat.systems import model_of
from ziggurat.train.loop import backward

DIALS = {"layers": 2, "width": 16, "heads": 2, "mlp": 32}
CELLS = [(structure, kind) for structure in STRUCTURES for kind in OBJECTIVES]


@pytest.mark.parametrize(("structure", "kind"), CELLS, ids=[f"{s}-{k}" for s, k in CELLS])
def test_it_trains_or_says_why_not(structure: str, kind: str) -> None:
    why = refusal(structure, kind)
    if why:
        assert len(why) > 40 and "\n" not in why and ": " in why, why  # a reason, not a code
        return
    system = STRUCTURES[structure]
    objective = objective_of(kind, structure)
    model = objective.equipped(model_of(f"{system}/tiny", DIALS, VOCAB.size))
    assert objective.misfits(model) == []
    ctx = context(system)
    tokens = objective.grouped(corpus("seq2seq-pair" if kind == "seq2seq" else kind))
    batch = pack(objective.corrupt(objective.form(tokens, ctx), ctx), objective.rows(ctx), VOCAB.pad)
    network = NetworkModel(spec.Network(model=model, heads=dict(objective.heads(model))))
    network.initialise(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=5e-3)
    losses = []
    for _ in range(6):
        losses.append(backward(network, objective, [batch], CPU, torch.float32)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_the_table_says_the_same() -> None:
    header, rows, notes = matrix()
    assert [h.split()[0] for h in header[1:]] == list(STRUCTURES) and [row[0] for row in rows] == list(OBJECTIVES)
    for row in rows:
        for structure, cell in zip(STRUCTURES, row[1:]):
            assert (cell == "yes") == (not refusal(structure, row[0]))
    numbers = {cell for row in rows for cell in row[1:] if cell != "yes"}
    assert {f"no ({n + 1})" for n in range(len(notes))} == numbers
    assert all(any(cell == "yes" for cell in row[1:]) for row in rows)  # no objective without a home

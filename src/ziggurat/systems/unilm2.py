"""UniLM v2 (Bao et al., 2020): BERT with a relative bias too, trained by pseudo-masked language modelling.

One table of biases by distance for the stack, T5's buckets for both sides, beside absolute positions; distances are differences of
position ids, which masks and pseudo masks share with the words they stand for. Today's `transformers` has no class for it. An
export is in the release's layout: q, k and v in one matrix, biases of q and v only (a bias of all keys adds the same number to
every score of a query, which softmax does not see; ours is left out on export and 0 on import), the bias table [heads, buckets].
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.checkpoint.names import NameMap, beside, fused, tied, transposed
from ziggurat.nn.spec import Buckets
from ziggurat.systems.base import knob
from ziggurat.systems.bert import BERT

HUB, OURS = "bert.encoder.layer.{i}.attention.self", "model.blocks.{i}.attention"
BIAS = "bert.rel_pos_bias.weight"

UNILM2 = replace(
    BERT,
    name="unilm2",
    paper="https://arxiv.org/abs/2002.12804",
    model=BERT.model.model_copy(update={"buckets": Buckets(count=32, longest=128)}),
    objective={"kind": "pmlm"},
    knobs=(*BERT.knobs, knob("rel_pos_bins", 32, "buckets.count"), knob("max_rel_pos", 128, "buckets.longest")),
    names=NameMap(
        [
            *(line for line in BERT.names.lines if ".attention.self." not in line.hub),
            fused(f"{HUB}.qkv_linear.weight", *(f"{OURS}.{x}.weight" for x in "qkv")),
            beside(f"{HUB}.q_bias", f"{OURS}.q.bias", f"{OURS}.k.bias"),
            (f"{HUB}.v_bias", f"{OURS}.v.bias"),
            transposed(BIAS, "model.buckets.table.weight"),
            tied("bert.encoder.rel_pos_bias.weight", BIAS),  # before the release's converter has moved it
        ],
        prefix="bert.",
    ),
    loads=False,
)

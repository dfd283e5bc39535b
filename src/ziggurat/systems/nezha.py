"""NEZHA (Wei et al., 2019): BERT without position embeddings; fixed sines of the clipped distance are added to keys and values instead.

`transformers` had it up to version 4; the folder that is written has that version's names. Its files carry the sines as a large buffer in every
layer, which says nothing that the configuration does not: it is ignored when read and left out when written.
"""

from __future__ import annotations

from ziggurat.checkpoint.names import IGNORED, NameMap
from ziggurat.nn.spec import Attention, Block, Embed, Functional, Init, LayerNorm, Pool, Single, Unplaced
from ziggurat.systems.base import System, knob
from ziggurat.systems.encoder import SIZES, TIED, encoder_classes, encoder_heads, encoder_knobs, encoder_names

NEZHA = System(
    name="nezha",
    paper="https://arxiv.org/abs/1909.00204",
    model=Single(
        vocab=21128,
        embed=Embed(positions=Unplaced(length=512), segments=2, norm=LayerNorm(eps=1e-12)),
        block=Block(attention=Attention(distances=Functional(clip=64)), norm=LayerNorm(eps=1e-12)),
        pool=Pool(at="first", by="pooler"),
        init=Init(truncated=True),
    ),
    sizes=SIZES,
    objective={"kind": "joint", "parts": [{"kind": "mlm", "unit": "word"}, {"kind": "nsp"}]},
    template="bert",
    knobs=(
        knob("vocab_size", 21128, "vocab"),
        *encoder_knobs("block.mlp.activation", "project.activation"),
        knob("max_relative_position", 64, "block.attention.distances.clip"),
    ),
    names=NameMap(
        [entry for entry in encoder_names("nezha").entries if "position" not in getattr(entry, "hub", "")],
        prefix="nezha.",
        ignored=(*IGNORED, "*.relative_positions_encoding.positions_encoding"),
    ),
    heads=encoder_heads("nezha"),
    classes=encoder_classes("Nezha", ""),
    fixed={"use_relative_position": True, "add_cross_attention": False},
    head_fixed=TIED,
    loads=False,
    pad=0,
)

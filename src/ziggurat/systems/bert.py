"""BERT (Devlin et al., 2019): a bidirectional encoder trained to fill masks and to tell whether B follows A.

Sizes below base are the published miniatures (Turc et al., 2019). The Hub's classes use the exact GELU, and so do we.
"""

from __future__ import annotations

from ziggurat.nn.spec import Block, Embed, Init, LayerNorm, Learned, Mlp, Pool, Single, VocabProjection
from ziggurat.systems.base import System, knob
from ziggurat.systems.encoder import FIXED, SIZES, TIED, encoder_classes, encoder_heads, encoder_knobs, encoder_names

BERT = System(
    name="bert",
    paper="https://arxiv.org/abs/1810.04805",
    model=Single(
        vocab=30522,
        embed=Embed(positions=Learned(length=512), segments=2, norm=LayerNorm(eps=1e-12)),
        block=Block(mlp=Mlp(activation="gelu"), norm=LayerNorm(eps=1e-12), norm_at="post"),
        project=VocabProjection(transform=True, bias=True, activation="gelu"),
        pool=Pool(at="first", by="pooler"),
        init=Init(std=0.02, truncated=True),
    ),
    sizes=SIZES,
    objective={"kind": "joint", "parts": [{"kind": "mlm"}, {"kind": "nsp"}]},
    template="bert",
    knobs=(knob("vocab_size", 30522, "vocab"), *encoder_knobs("block.mlp.activation", "project.activation")),
    names=encoder_names("bert"),
    heads=encoder_heads("bert"),
    classes=encoder_classes("Bert", "BertLMHeadModel"),
    fixed=FIXED,
    head_fixed=TIED,
    pad=0,
)

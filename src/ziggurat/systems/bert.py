"""BERT (Devlin et al., 2019): a bidirectional encoder trained to fill masks and to tell whether B follows A.

Sizes below base are the published miniatures (Turc et al., 2019). The Hub's classes use the exact GELU, and so do we.
"""

from __future__ import annotations

from ziggurat.checkpoint.names import Entry, tied
from ziggurat.nn.spec import Block, Embed, Init, LayerNorm, Learned, Mlp, Pool, Single, VocabProjection
from ziggurat.systems.base import System, knob
from ziggurat.systems.encoder import FIXED, SIZES, TIED, encoder_knobs, encoder_names

LM: tuple[Entry, ...] = (
    ("cls.predictions.transform.dense.{p}", "heads.lm.dense.{p}"),
    ("cls.predictions.transform.LayerNorm.{p}", "heads.lm.norm.{p}"),
    ("cls.predictions.bias", "heads.lm.bias"),
    tied("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    tied("cls.predictions.decoder.bias", "cls.predictions.bias"),
)

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
    heads={
        "pooler": (("bert.pooler.dense.{p}", "heads.pooler.dense.{p}"),),
        "lm": LM,
        "nsp": (("cls.seq_relationship.{p}", "heads.nsp.out.{p}"),),
        **{name: (("classifier.{p}", f"heads.{name}.out.{{p}}"),) for name in ("classify", "regress", "choice", "tag")},
        "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
    },
    classes={
        "BertForPreTraining": ("pooler", "lm", "nsp"),
        "BertForMaskedLM": ("lm",),
        "BertLMHeadModel": ("lm",),
        "BertForNextSentencePrediction": ("pooler", "nsp"),
        "BertForSequenceClassification": ("pooler", "classify"),
        "BertForMultipleChoice": ("pooler", "choice"),
        "BertForTokenClassification": ("tag",),
        "BertForQuestionAnswering": ("span",),
        "BertModel": ("pooler",),
    },
    fixed=FIXED,
    head_fixed=TIED,
    pad=0,
)

"""RoBERTa (Liu et al., 2019): BERT's encoder, trained longer to fill masks and nothing else.

Differences from BERT that matter for parity: positions are numbered from the pad id + 1, the vocabulary head always uses
the exact GELU, norms have eps 1e-5 in every released file (the Hub's class default is BERT's 1e-12), and document heads
bring their own dense layer. The multiple-choice class calls that layer a pooler; it is the same computation.
"""

from __future__ import annotations

from ziggurat.checkpoint.names import Entry, tied
from ziggurat.nn.spec import Block, Embed, Init, LayerNorm, Learned, Mlp, Pool, Single, VocabProjection
from ziggurat.systems.base import System, knob
from ziggurat.systems.encoder import FIXED, SIZES, TIED, encoder_knobs, encoder_names

LM: tuple[Entry, ...] = (
    ("lm_head.dense.{p}", "heads.lm.dense.{p}"),
    ("lm_head.layer_norm.{p}", "heads.lm.norm.{p}"),
    ("lm_head.bias", "heads.lm.bias"),
    tied("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    tied("lm_head.decoder.bias", "lm_head.bias"),
)


def document_head(name: str) -> tuple[Entry, ...]:
    return (
        ("classifier.dense.{p}", f"heads.{name}.dense.{{p}}"),
        ("classifier.out_proj.{p}", f"heads.{name}.out.{{p}}"),
    )


ROBERTA = System(
    name="roberta",
    paper="https://arxiv.org/abs/1907.11692",
    model=Single(
        vocab=50265,
        embed=Embed(positions=Learned(length=512, offset=2), segments=1, norm=LayerNorm(eps=1e-5)),
        block=Block(mlp=Mlp(activation="gelu"), norm=LayerNorm(eps=1e-5), norm_at="post"),
        project=VocabProjection(transform=True, bias=True, activation="gelu"),
        pool=Pool(at="first", by="dense"),
        init=Init(std=0.02),
    ),
    sizes=SIZES,
    objective={"kind": "mlm"},
    template="roberta",
    knobs=(knob("vocab_size", 50265, "vocab"), *encoder_knobs("block.mlp.activation")),
    names=encoder_names("roberta"),
    heads={
        "pooler": (("roberta.pooler.dense.{p}", "heads.pooler.dense.{p}"),),
        "lm": LM,
        "classify": document_head("classify"),
        "regress": document_head("regress"),
        "choice": (
            ("roberta.pooler.dense.{p}", "heads.choice.dense.{p}"),
            ("classifier.{p}", "heads.choice.out.{p}"),
        ),
        "tag": (("classifier.{p}", "heads.tag.out.{p}"),),
        "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
    },
    classes={
        "RobertaForMaskedLM": ("lm",),
        "RobertaForCausalLM": ("lm",),
        "RobertaForSequenceClassification": ("classify",),
        "RobertaForMultipleChoice": ("choice",),
        "RobertaForTokenClassification": ("tag",),
        "RobertaForQuestionAnswering": ("span",),
        "RobertaModel": ("pooler",),
    },
    fixed=FIXED,
    head_fixed=TIED,
    pad=1,
    pad_counts=True,
)

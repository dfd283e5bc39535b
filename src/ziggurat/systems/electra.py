"""ELECTRA (Clark et al., 2020): a small generator fills masks, and the encoder that is kept finds its fillings.

The generator has the discriminator's depth and a fraction of its width: a quarter in small and large, a third in base. Both read
one set of tables, of width 128 in small. The Hub has a class for each half: what it calls pre-training is the discriminator, its
masked LM the generator. An imported half is a model of one stack. Sizes below small are BERT's miniature shapes.
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.checkpoint.names import Entry, optional, tied
from ziggurat.nn.spec import Adversaries, Block, Dials, Embed, Init, LayerNorm, Learned, Mlp, Pool, Single, VocabProjection
from ziggurat.systems.base import HEAD_WIDTH, System, knob, sizes
from ziggurat.systems.encoder import FIXED, encoder_knobs, encoder_names

NORM = LayerNorm(eps=1e-12)
DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
"""What the Hub's class takes where it differs from BERT's."""
WIDEN = (optional(("electra.embeddings_project.{p}", "model.embed.widen.{p}")),)
"""Not there where tables and model are of one width."""


def halves(shape: dict[str, int], embedding: int, fraction: float) -> dict[str, int]:
    """The dials of a discriminator's shape with a generator of this fraction of its width (released code: heads of 64, at least
    one, and a feed-forward layer of 4 widths)."""
    width = round(fraction * shape["width"])
    own = {"layers": shape["layers"], "width": width, "heads": max(1, width // HEAD_WIDTH), "mlp": 4 * width}
    return {**shape, "embedding": embedding, **{f"generator_{dial}": value for dial, value in own.items()}}


SHAPES = sizes(tiny=(2, 128), mini=(4, 256), small=(12, 256), base=(12, 768), large=(24, 1024))
SIZES = {
    "tiny": halves(SHAPES["tiny"], 64, 1 / 4),
    "mini": halves(SHAPES["mini"], 128, 1 / 4),
    "small": halves(SHAPES["small"], 128, 1 / 4),
    "base": halves(SHAPES["base"], 768, 1 / 3),
    "large": halves(SHAPES["large"], 1024, 1 / 4),
}


def document_head(name: str) -> tuple[Entry, ...]:
    return (
        ("classifier.dense.{p}", f"heads.{name}.dense.{{p}}"),
        ("classifier.out_proj.{p}", f"heads.{name}.out.{{p}}"),
    )


LM: tuple[Entry, ...] = (
    ("generator_predictions.dense.{p}", "heads.lm.dense.{p}"),
    ("generator_predictions.LayerNorm.{p}", "heads.lm.norm.{p}"),
    ("generator_lm_head.bias", "heads.lm.bias"),
    tied("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
)

ELECTRA = System(
    name="electra",
    paper="https://arxiv.org/abs/2003.10555",
    model=Adversaries(
        discriminator=Single(
            vocab=30522,
            embed=Embed(width=768, positions=Learned(length=512), segments=2, norm=NORM),
            block=Block(mlp=Mlp(activation="gelu"), norm=NORM, norm_at="post"),
            project=VocabProjection(transform=True, bias=True, activation="gelu"),
            pool=Pool(at="first", by="dense", activation="gelu"),
            init=Init(std=0.02, truncated=True),
        ),
        generator=Dials(layers=12, width=256, heads=4, mlp=1024),
    ),
    sizes=SIZES,
    objective={"kind": "rtd"},
    template="bert",
    knobs=(
        knob("vocab_size", 30522, "vocab"),
        knob("embedding_size", 128, "embed.width"),
        *(replace(k, default=DEFAULTS.get(k.hub, k.default)) for k in encoder_knobs("block.mlp.activation")),
    ),
    names=encoder_names("electra") + WIDEN,
    heads={
        "rtd": (
            ("discriminator_predictions.dense.{p}", "heads.rtd.dense.{p}"),
            ("discriminator_predictions.dense_prediction.{p}", "heads.rtd.out.{p}"),
        ),
        "lm": LM,
        "classify": document_head("classify"),
        "regress": document_head("regress"),
        "choice": (
            ("sequence_summary.summary.{p}", "heads.choice.dense.{p}"),
            ("classifier.{p}", "heads.choice.out.{p}"),
        ),
        "tag": (("classifier.{p}", "heads.tag.out.{p}"),),
        "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
    },
    classes={
        "ElectraForPreTraining": ("rtd",),
        "ElectraForMaskedLM": ("lm",),
        "ElectraForCausalLM": ("lm",),
        "ElectraForSequenceClassification": ("classify",),
        "ElectraForMultipleChoice": ("choice",),
        "ElectraForTokenClassification": ("tag",),
        "ElectraForQuestionAnswering": ("span",),
        "ElectraModel": (),
    },
    fixed=FIXED,
    head_fixed={
        "lm": {"tie_word_embeddings": True},
        "choice": {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
    },
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob", "summary_last_dropout"),
    pad=0,
)

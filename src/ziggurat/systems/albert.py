"""ALBERT (Lan et al., 2020): BERT with tables of width 128, one layer's weights for all layers, and sentence order.

The released code and the Hub use the tanh form of GELU. Sizes below base are BERT's miniature shapes.
"""

from __future__ import annotations

from ziggurat.checkpoint.names import NameMap, tied
from ziggurat.nn.spec import Block, Embed, Init, LayerNorm, Learned, Mlp, Pool, Share, Single, VocabProjection
from ziggurat.systems.base import GELU, System, knob, sizes

HUB, OURS = "albert.encoder.albert_layer_groups.{i}.albert_layers.{j}", "model.blocks.{i}.{j}"
TABLES = "albert.embeddings"
NORM = LayerNorm(eps=1e-12)

ALBERT = System(
    name="albert",
    paper="https://arxiv.org/abs/1909.11942",
    model=Single(
        vocab=30000,
        embed=Embed(width=128, widen="always", positions=Learned(length=512), segments=2, norm=NORM),
        block=Block(mlp=Mlp(activation="gelu_tanh"), norm=NORM, norm_at="post"),
        share=Share(groups=1, inner=1),
        project=VocabProjection(transform=True, bias=True, activation="gelu_tanh"),
        pool=Pool(at="first", by="pooler"),
        init=Init(std=0.02, truncated=True),
    ),
    sizes={
        **sizes(tiny=(2, 128), mini=(4, 256), small=(4, 512), base=(12, 768), large=(24, 1024)),
        "xlarge": {"layers": 24, "width": 2048, "heads": 16, "mlp": 8192},
        "xxlarge": {"layers": 12, "width": 4096, "heads": 64, "mlp": 16384},
    },
    objective={"kind": "joint", "parts": [{"kind": "mlm", "unit": "ngram"}, {"kind": "sop"}]},
    template="bert",
    knobs=(
        knob("vocab_size", 30000, "vocab"),
        knob("embedding_size", 128, "embed.width"),
        knob("hidden_size", 4096, "width"),
        knob("num_hidden_layers", 12, "layers"),
        knob("num_hidden_groups", 1, "share.groups"),
        knob("inner_group_num", 1, "share.inner"),
        knob("num_attention_heads", 64, "heads"),
        knob("intermediate_size", 16384, "mlp"),
        knob("hidden_act", "gelu_new", "block.mlp.activation", "project.activation", values=GELU),
        knob("layer_norm_eps", 1e-12, "embed.norm.eps", "block.norm.eps"),
        knob("max_position_embeddings", 512, "embed.positions.length"),
        knob("type_vocab_size", 2, "embed.segments"),
        knob("initializer_range", 0.02, "init.std"),
    ),
    names=NameMap(
        [
            (f"{TABLES}.word_embeddings.weight", "model.embed.token.weight"),
            (f"{TABLES}.position_embeddings.weight", "model.embed.position.weight"),
            (f"{TABLES}.token_type_embeddings.weight", "model.embed.segment.weight"),
            (f"{TABLES}.LayerNorm.{{p}}", "model.embed.norm.{p}"),
            ("albert.encoder.embedding_hidden_mapping_in.{p}", "model.embed.widen.{p}"),
            (f"{HUB}.attention.query.{{p}}", f"{OURS}.attention.q.{{p}}"),
            (f"{HUB}.attention.key.{{p}}", f"{OURS}.attention.k.{{p}}"),
            (f"{HUB}.attention.value.{{p}}", f"{OURS}.attention.v.{{p}}"),
            (f"{HUB}.attention.dense.{{p}}", f"{OURS}.attention.out.{{p}}"),
            (f"{HUB}.attention.LayerNorm.{{p}}", f"{OURS}.attention_norm.{{p}}"),
            (f"{HUB}.ffn.{{p}}", f"{OURS}.mlp.up.{{p}}"),
            (f"{HUB}.ffn_output.{{p}}", f"{OURS}.mlp.down.{{p}}"),
            (f"{HUB}.full_layer_layer_norm.{{p}}", f"{OURS}.mlp_norm.{{p}}"),
        ],
        prefix="albert.",
    ),
    heads={
        "pooler": (("albert.pooler.{p}", "heads.pooler.dense.{p}"),),
        "lm": (
            ("predictions.dense.{p}", "heads.lm.dense.{p}"),
            ("predictions.LayerNorm.{p}", "heads.lm.norm.{p}"),
            ("predictions.bias", "heads.lm.bias"),
            tied("predictions.decoder.weight", f"{TABLES}.word_embeddings.weight"),
            tied("predictions.decoder.bias", "predictions.bias"),
        ),
        "sop": (("sop_classifier.classifier.{p}", "heads.sop.out.{p}"),),
        **{name: (("classifier.{p}", f"heads.{name}.out.{{p}}"),) for name in ("classify", "regress", "choice", "tag")},
        "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
    },
    classes={
        "AlbertForPreTraining": ("pooler", "lm", "sop"),
        "AlbertForMaskedLM": ("lm",),
        "AlbertForSequenceClassification": ("pooler", "classify"),
        "AlbertForMultipleChoice": ("pooler", "choice"),
        "AlbertForTokenClassification": ("tag",),
        "AlbertForQuestionAnswering": ("span",),
        "AlbertModel": ("pooler",),
    },
    fixed={"position_embedding_type": "absolute"},
    head_fixed={"lm": {"tie_word_embeddings": True}},
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"),
    pad=0,
)

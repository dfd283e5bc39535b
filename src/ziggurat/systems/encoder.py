"""What the Hub's BERT-shaped encoders have in common: names and configuration of the body."""

from __future__ import annotations

from collections.abc import Mapping

from ziggurat.checkpoint.names import Entry, NameMap, tied
from ziggurat.systems.base import CAUSAL, GELU, Knob, knob, sizes

SIZES = sizes(tiny=(2, 128), mini=(4, 256), small=(4, 512), medium=(8, 512), base=(12, 768), large=(24, 1024))
"""Published: base and large by both papers, the smaller ones as BERT miniatures (Turc et al., 2019)."""
FIXED = {"position_embedding_type": "absolute", "add_cross_attention": False}
TIED = {"lm": {"tie_word_embeddings": True}}


def encoder_names(prefix: str) -> NameMap:
    """Body names of the Hub's BERT-shaped encoders."""
    layer = f"{prefix}.encoder.layer.{{i}}"
    block = "model.blocks.{i}"
    return NameMap(
        [
            (f"{prefix}.embeddings.word_embeddings.weight", "model.embed.token.weight"),
            (f"{prefix}.embeddings.position_embeddings.weight", "model.embed.position.weight"),
            (f"{prefix}.embeddings.token_type_embeddings.weight", "model.embed.segment.weight"),
            (f"{prefix}.embeddings.LayerNorm.{{p}}", "model.embed.norm.{p}"),
            (f"{layer}.attention.self.query.{{p}}", f"{block}.attention.q.{{p}}"),
            (f"{layer}.attention.self.key.{{p}}", f"{block}.attention.k.{{p}}"),
            (f"{layer}.attention.self.value.{{p}}", f"{block}.attention.v.{{p}}"),
            (f"{layer}.attention.output.dense.{{p}}", f"{block}.attention.out.{{p}}"),
            (f"{layer}.attention.output.LayerNorm.{{p}}", f"{block}.attention_norm.{{p}}"),
            (f"{layer}.intermediate.dense.{{p}}", f"{block}.mlp.up.{{p}}"),
            (f"{layer}.output.dense.{{p}}", f"{block}.mlp.down.{{p}}"),
            (f"{layer}.output.LayerNorm.{{p}}", f"{block}.mlp_norm.{{p}}"),
        ],
        prefix=f"{prefix}.",
    )


def encoder_heads(prefix: str) -> Mapping[str, tuple[Entry, ...]]:
    """Head names of the Hub's BERT and of what keeps to it."""
    return {
        "pooler": ((f"{prefix}.pooler.dense.{{p}}", "heads.pooler.dense.{p}"),),
        "lm": (
            ("cls.predictions.transform.dense.{p}", "heads.lm.dense.{p}"),
            ("cls.predictions.transform.LayerNorm.{p}", "heads.lm.norm.{p}"),
            ("cls.predictions.bias", "heads.lm.bias"),
            tied("cls.predictions.decoder.weight", f"{prefix}.embeddings.word_embeddings.weight"),
            tied("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
        "nsp": (("cls.seq_relationship.{p}", "heads.nsp.out.{p}"),),
        **{name: (("classifier.{p}", f"heads.{name}.out.{{p}}"),) for name in ("classify", "regress", "choice", "tag")},
        "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
    }


def encoder_classes(family: str, causal: str) -> Mapping[str, tuple[str, ...]]:
    """Their classes, by the family's name in the Hub's (`Bert`) and its causal class."""
    return {
        f"{family}ForPreTraining": ("pooler", "lm", "nsp"),
        f"{family}ForMaskedLM": ("lm",),
        **({causal: ("lm",)} if causal else {}),
        f"{family}ForNextSentencePrediction": ("pooler", "nsp"),
        f"{family}ForSequenceClassification": ("pooler", "classify"),
        f"{family}ForMultipleChoice": ("pooler", "choice"),
        f"{family}ForTokenClassification": ("tag",),
        f"{family}ForQuestionAnswering": ("span",),
        f"{family}Model": ("pooler",),
    }


def encoder_knobs(*activations: str) -> tuple[Knob, ...]:
    """Configuration of the Hub's BERT-shaped encoders; `hidden_act` rules the places `activations`."""
    return (
        knob("hidden_size", 768, "width"),
        knob("num_hidden_layers", 12, "layers"),
        knob("num_attention_heads", 12, "heads"),
        knob("intermediate_size", 3072, "mlp"),
        knob("hidden_act", "gelu", *activations, values=GELU),
        knob("layer_norm_eps", 1e-12, "embed.norm.eps", "block.norm.eps"),
        knob("max_position_embeddings", 512, "embed.positions.length"),
        knob("type_vocab_size", 2, "embed.segments"),
        knob("initializer_range", 0.02, "init.std"),
        knob("is_decoder", False, "visibility", values=CAUSAL),
    )

"""What the Hub's BERT-shaped encoders have in common: names and configuration of the body."""

from __future__ import annotations

from ziggurat.checkpoint.names import NameMap
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

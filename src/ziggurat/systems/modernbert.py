"""ModernBERT (Warner et al., 2024): an encoder with rotary positions, gated feed-forward layers, norms first and without biases, in which two of
three layers see a window only.

Every head has BERT's transform (dense, activation, norm) before its own layer. `config.json` is read in its older form (a period of layers, two entries for the
bases of the rotation) and in that of transformers 5 (the kind of each layer, a map of rotations), and written so that both are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ziggurat.checkpoint.names import Entry, NameMap, fused, optional, tied
from ziggurat.errors import check
from ziggurat.nn.spec import (
    Attention,
    Block,
    Embed,
    Init,
    LayerNorm,
    Mlp,
    Pool,
    Rotary,
    Single,
    Unplaced,
    VocabProjection,
)
from ziggurat.systems.base import GELU, System, knob

HUB, OURS = "model.layers.{i}", "model.blocks.{i}"
KINDS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
THETA = {"global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
PERIOD = 3
NORM = LayerNorm(eps=1e-5, bias=False)


def layer_types(layers: int) -> list[str]:
    return ["sliding_attention" if i % PERIOD else "full_attention" for i in range(layers)]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of any age with one entry for each base of the rotation and for the window."""
    found = dict(config)
    layers, kinds = config.get("num_hidden_layers") or 22, config.get("layer_types")
    every = config.get("global_attn_every_n_layers") or PERIOD
    regular = (every == PERIOD or kinds is not None) and kinds in (None, layer_types(layers))
    check(regular, "config.json: its layers do not alternate as one global and two local ones", "such a model cannot be imported")
    for kind, entry in KINDS.items():
        rotation = (config.get("rope_parameters") or {}).get(kind) or {}
        plain = rotation.get("rope_type", "default") == "default" and not config.get("rope_scaling")
        check(plain, f"config.json: the rotation of {kind} is scaled, which is not supported", "it cannot be imported")
        found[entry] = float(rotation.get("rope_theta") or config.get(entry) or THETA[entry])
    found["sliding_window"] = (config.get("local_attention") or 128) // 2
    return found


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of transformers 5 beside the older ones."""
    made = {name: value for name, value in config.items() if name != "sliding_window"}
    made |= {
        "layer_types": layer_types(config["num_hidden_layers"]),
        "global_attn_every_n_layers": PERIOD,
        "local_attention": 2 * config["sliding_window"],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": config[entry]} for kind, entry in KINDS.items()},
    }
    return made


def transform(head: str) -> tuple[Entry, ...]:
    """The layer before a head's own, which every class of the Hub calls `head`."""
    ours = f"heads.{head}" if head == "lm" else f"heads.{head}.transform"
    return (
        ("head.dense.weight", f"{ours}.dense.weight"),
        optional(("head.dense.bias", f"{ours}.dense.bias")),
        ("head.norm.weight", f"{ours}.norm.weight"),
        optional(("head.norm.bias", f"{ours}.norm.bias")),
    )


def both(hub: str, ours: str) -> tuple[Entry, ...]:
    """A norm, or a matrix whose bias is there only where the configuration says so."""
    return (f"{hub}.weight", f"{ours}.weight"), optional((f"{hub}.bias", f"{ours}.bias"))


MODERNBERT = System(
    name="modernbert",
    paper="https://arxiv.org/abs/2412.13663",
    model=Single(
        vocab=50368,
        embed=Embed(positions=Unplaced(length=8192), segments=0, norm=NORM),
        block=Block(
            attention=Attention(bias=False), mlp=Mlp(activation="gelu", bias=False, gated=True), norm=NORM, norm_at="pre"
        ),
        pattern=(
            Attention(bias=False, distances=Rotary(base=160_000.0)),
            Attention(bias=False, distances=Rotary(base=10_000.0), window=64),
            Attention(bias=False, distances=Rotary(base=10_000.0), window=64),
        ),
        opening="plain",
        final_norm=NORM,
        project=VocabProjection(transform=True, bias=True, dense_bias=False),
        pool=Pool(at="first", by="transform"),
        init=Init(std=0.02, truncated=True, residual="scaled"),
    ),
    sizes={
        "tiny": {"layers": 3, "width": 128, "heads": 2, "mlp": 192},
        "mini": {"layers": 6, "width": 256, "heads": 4, "mlp": 384},
        "small": {"layers": 12, "width": 512, "heads": 8, "mlp": 768},
        "base": {"layers": 22, "width": 768, "heads": 12, "mlp": 1152},
        "large": {"layers": 28, "width": 1024, "heads": 16, "mlp": 2624},
    },
    objective={"kind": "mlm", "rate": 0.3},
    template="roberta",
    knobs=(
        knob("vocab_size", 50368, "vocab"),
        knob("hidden_size", 768, "width"),
        knob("num_hidden_layers", 22, "layers"),
        knob("num_attention_heads", 12, "heads"),
        knob("intermediate_size", 1152, "mlp"),
        knob("hidden_activation", "gelu", "block.mlp.activation", values=GELU),
        knob("classifier_activation", "gelu", "project.activation", values=GELU),
        knob("norm_eps", 1e-5, "embed.norm.eps", "block.norm.eps", "final_norm.eps"),
        knob("norm_bias", False, "embed.norm.bias", "block.norm.bias", "final_norm.bias"),
        knob("attention_bias", False, "block.attention.bias", *(f"pattern.{i}.bias" for i in range(PERIOD))),
        knob("mlp_bias", False, "block.mlp.bias"),
        knob("decoder_bias", True, "project.bias"),
        knob("classifier_bias", False, "project.dense_bias"),
        knob("max_position_embeddings", 8192, "embed.positions.length"),
        knob("sliding_window", 64, "pattern.1.window", "pattern.2.window"),
        knob("global_rope_theta", 160_000.0, "pattern.0.distances.base"),
        knob("local_rope_theta", 10_000.0, "pattern.1.distances.base", "pattern.2.distances.base"),
        knob("initializer_range", 0.02, "init.std"),
    ),
    reading=flat,
    writing=nested,
    names=NameMap(
        [
            ("model.embeddings.tok_embeddings.weight", "model.embed.token.weight"),
            *both("model.embeddings.norm", "model.embed.norm"),
            *(optional((f"{HUB}.attn_norm.{p}", f"{OURS}.attention_norm.{p}")) for p in ("weight", "bias")),  # not in layer 0
            fused(f"{HUB}.attn.Wqkv.weight", *(f"{OURS}.attention.{x}.weight" for x in "qkv")),
            optional(fused(f"{HUB}.attn.Wqkv.bias", *(f"{OURS}.attention.{x}.bias" for x in "qkv"))),
            *both(f"{HUB}.attn.Wo", f"{OURS}.attention.out"),
            *both(f"{HUB}.mlp_norm", f"{OURS}.mlp_norm"),
            fused(f"{HUB}.mlp.Wi.weight", f"{OURS}.mlp.up.weight", f"{OURS}.mlp.gate.weight"),
            optional(fused(f"{HUB}.mlp.Wi.bias", f"{OURS}.mlp.up.bias", f"{OURS}.mlp.gate.bias")),
            *both(f"{HUB}.mlp.Wo", f"{OURS}.mlp.down"),
            *both("model.final_norm", "model.final_norm"),
        ],
        prefix="model.",
    ),
    heads={
        "lm": (
            *transform("lm"),
            optional(("decoder.bias", "heads.lm.bias")),
            tied("decoder.weight", "model.embeddings.tok_embeddings.weight"),
        ),
        **{
            head: (*transform(head), ("classifier.{p}", f"heads.{head}.out.{{p}}"))
            for head in ("classify", "regress", "choice", "tag", "span")
        },
    },
    classes={
        "ModernBertForMaskedLM": ("lm",),
        "ModernBertForSequenceClassification": ("classify",),
        "ModernBertForMultipleChoice": ("choice",),
        "ModernBertForTokenClassification": ("tag",),
        "ModernBertForQuestionAnswering": ("span",),
        "ModernBertModel": (),
    },
    head_fixed={
        "lm": {"tie_word_embeddings": True},
        **{head: {"classifier_pooling": "cls"} for head in ("classify", "regress", "choice")},  # a mean over the text is not ours
    },
    dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
    pad=50283,
)

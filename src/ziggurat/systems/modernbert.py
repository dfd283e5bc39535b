"""ModernBERT (Warner et al., 2024): an encoder with rotary positions, gated feed-forward layers, norms first and without biases, in which two of
three layers see a window only. Files with another order of such layers, and with a mean over the text for their classifiers, are read too.

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
THETA = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
PERIOD, BAND = 3, 128
NORM = LayerNorm(eps=1e-5, bias=False)


def alternating(layers: int, every: int) -> list[str]:
    """The kinds of so many layers, of which the first and each `every`th behind it see the whole text."""
    return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]


def attention(kind: str, *, base: float | None = None, band: int = BAND, bias: bool = False) -> Attention:
    window = band // 2 if kind == "sliding_attention" else None
    return Attention(bias=bias, distances=Rotary(base=base or THETA[kind]), window=window)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of any age with an entry `pattern`: the attention of the layers, until it repeats."""
    layers, every = config.get("num_hidden_layers") or 22, config.get("global_attn_every_n_layers") or PERIOD
    kinds = config.get("layer_types") or alternating(layers, every)
    known = len(kinds) == layers and KINDS.keys() >= set(kinds)
    check(known, f"config.json: layer_types are not {layers} of {' and '.join(KINDS)}", "the file is damaged or of another model")
    if kinds == alternating(layers, every):
        order = alternating(every, every)
    else:
        order = next(kinds[:n] for n in range(1, layers + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    bases: dict[str, float] = {}
    for kind, entry in KINDS.items():
        rotation = (config.get("rope_parameters") or {}).get(kind) or {}
        plain = rotation.get("rope_type", "default") == "default" and not config.get("rope_scaling")
        check(plain, f"config.json: the rotation of {kind} is scaled, which is not supported", "it cannot be imported")
        bases[kind] = float(rotation.get("rope_theta") or config.get(entry) or THETA[kind])
    band, bias = config.get("local_attention") or BAND, bool(config.get("attention_bias"))
    return {**config, "pattern": [attention(kind, base=bases[kind], band=band, bias=bias).model_dump() for kind in order]}


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entry `pattern` as the Hub writes it: the kind of each layer, a map of rotations, the window, and the older period."""
    made = {name: value for name, value in config.items() if name != "pattern"}
    pattern = [Attention.model_validate(each) for each in config["pattern"]] or [attention("full_attention")]
    kinds = ["full_attention" if each.window is None else "sliding_attention" for each in pattern]
    found = {kind: each.distances for kind, each in zip(kinds, pattern, strict=True) if isinstance(each.distances, Rotary)}
    bases = {kind: found[kind].base if kind in found else THETA[kind] for kind in KINDS}
    band = next((2 * each.window for each in pattern if each.window is not None), BAND)
    made |= {"global_attn_every_n_layers": len(kinds)} if kinds == alternating(len(kinds), len(kinds)) else {}
    return made | {
        "layer_types": [kinds[i % len(kinds)] for i in range(config["num_hidden_layers"])],
        "local_attention": band,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        **{entry: bases[kind] for kind, entry in KINDS.items()},
    }


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
        pattern=tuple(attention(kind) for kind in alternating(PERIOD, PERIOD)),
        opening="plain",
        final_norm=NORM,
        project=VocabProjection(transform=True, bias=True, dense_bias=False),
        pool=Pool(at="mean", by="transform"),
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
        knob("attention_bias", False, "block.attention.bias"),
        knob("mlp_bias", False, "block.mlp.bias"),
        knob("decoder_bias", True, "project.bias"),
        knob("classifier_bias", False, "project.dense_bias"),
        knob("max_position_embeddings", 8192, "embed.positions.length"),
        knob("pattern", None, "pattern"),
        knob("classifier_pooling", "cls", "pool.at", values={"cls": "first", "mean": "mean"}),
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
    head_fixed={"lm": {"tie_word_embeddings": True}},
    dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
    pad=50283,
)

"""ProphetNet (Qi et al., 2020): an encoder-decoder that predicts several tokens ahead, and its decoder alone as a language model.

Norm after each part and on the embeddings, learned positions in both stacks, numbered from the pad id + 1. The decoder adds a bias
by distance that the query's content chooses. Its predicting streams start from the `extra` vectors; the objectives `future` and
`future_lm` lay them out. The Hub keeps one number of heads and one width of the feed-forward layer for each stack; ours are equal.

The bias of predicting rows follows the original release (and the Hub's own token-by-token generation). What the Hub's class
computes from a whole text is `order: hub` (docs/decisions.md); the entry `content_order` of `config.json`, which only we read and
write, remembers it. Files of the Hub lack it and are read as the release, by which the published weights were trained.

`tiny`, `mini` and `base` are BERT's and BART's shapes; large is published.
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.checkpoint.names import Entry, NameMap, tied
from ziggurat.nn.spec import (
    Attention,
    Block,
    ContentBuckets,
    Embed,
    EncoderDecoder,
    Init,
    LayerNorm,
    Learned,
    Mlp,
    Pool,
    Single,
    VocabProjection,
)  # fmt: skip
from ziggurat.systems.base import GELU, Knob, System, knob, sizes

WORDS = "prophetnet.word_embeddings.weight"
PROJECTIONS = {"query_proj": "q", "key_proj": "k", "value_proj": "v", "out_proj": "out"}
LONE = "it is one stack without its projection; {} holds it with what it was trained for"
FORWARD = {"intermediate": "up", "output": "down"}
ORDER = {"release": "release", "hub": "hub"}
NORM = LayerNorm(eps=1e-5)
EMBED = Embed(positions=Learned(length=511, offset=1), norm=NORM, extra=2)
SHAPES = sizes(tiny=(2, 128), mini=(4, 256), base=(6, 768), large=(12, 1024))


def knobs(distances: str) -> tuple[Knob, ...]:
    """What both classes share; `distances` is the place of the content buckets."""
    return (
        knob("vocab_size", 30522, "vocab"),
        knob("hidden_size", 1024, "width"),
        knob("max_position_embeddings", 512, "embed.positions.length"),
        knob("ngram", 2, "embed.extra"),
        knob("num_buckets", 32, f"{distances}.count"),
        knob("relative_max_distance", 128, f"{distances}.longest"),
        knob("content_order", "release", f"{distances}.order", values=ORDER),
        knob("activation_function", "gelu", "block.mlp.activation", values=GELU),
        knob("init_std", 0.02, "init.std"),
    )


def stack(side: str, i: str, ours: str) -> list[Entry]:
    """Names of one stack, which we call `ours`; `i` counts its layers."""
    hub = f"prophetnet.{side}"
    layer, block = f"{hub}.layers.{{{i}}}", f"{ours}.blocks.{{{i}}}"
    lines: list[Entry] = [
        tied(f"{hub}.word_embeddings.weight", WORDS),
        (f"{hub}.position_embeddings.weight", f"{ours}.embed.position.weight"),
        (f"{hub}.embeddings_layer_norm.{{p}}", f"{ours}.embed.norm.{{p}}"),
        *((f"{layer}.self_attn.{x}.{{p}}", f"{block}.attention.{y}.{{p}}") for x, y in PROJECTIONS.items()),
        (f"{layer}.self_attn_layer_norm.{{p}}", f"{block}.attention_norm.{{p}}"),
        *((f"{layer}.feed_forward.{x}.{{p}}", f"{block}.mlp.{y}.{{p}}") for x, y in FORWARD.items()),
        (f"{layer}.feed_forward_layer_norm.{{p}}", f"{block}.mlp_norm.{{p}}"),
    ]
    if side == "decoder":
        lines.append((f"{hub}.ngram_embeddings.weight", f"{ours}.embed.extra.weight"))
        lines.append((f"{layer}.self_attn.relative_pos_embeddings.{{p}}", f"{block}.attention.distances.read.{{p}}"))
    return lines


def cross(i: str, ours: str) -> list[Entry]:
    """Names of the decoder's attention to the encoder."""
    layer, block = f"prophetnet.decoder.layers.{{{i}}}", f"{ours}.blocks.{{{i}}}"
    lines: list[Entry] = [(f"{layer}.cross_attn.{x}.{{p}}", f"{block}.cross.{y}.{{p}}") for x, y in PROJECTIONS.items()]
    return [*lines, (f"{layer}.cross_attn_layer_norm.{{p}}", f"{block}.cross_norm.{{p}}")]


PROPHETNET = System(
    name="prophetnet",
    paper="https://arxiv.org/abs/2001.04063",
    model=EncoderDecoder(
        vocab=30522,
        embed=EMBED,
        block=Block(mlp=Mlp(activation="gelu"), norm=NORM, norm_at="post"),
        decoder_attention=Attention(distances=ContentBuckets()),
        project=VocabProjection(transform=False, bias=False),
        pool=Pool(at="last", by="dense"),
        start="end",
        init=Init(std=0.02),
    ),
    sizes={name: {**dials, "decoder_layers": dials["layers"]} for name, dials in SHAPES.items()},
    objective={"kind": "future"},
    template="prophetnet",
    knobs=(
        *knobs("decoder_attention.distances"),
        knob("num_encoder_layers", 12, "layers"),
        knob("num_decoder_layers", 12, "decoder_layers"),
        knob("num_encoder_attention_heads", 16, "heads"),
        knob("num_decoder_attention_heads", 16, "heads"),
        knob("encoder_ffn_dim", 4096, "mlp"),
        knob("decoder_ffn_dim", 4096, "mlp"),
    ),
    names=NameMap(
        [
            (WORDS, "model.token.weight"),
            *stack("encoder", "i", "model.encoder"),
            *stack("decoder", "j", "model.decoder"),
            *cross("j", "model.decoder"),
        ],
        prefix="prophetnet.",
    ),
    heads={"lm": (tied("lm_head.weight", WORDS),)},
    classes={"ProphetNetForConditionalGeneration": ("lm",), "ProphetNetModel": ()},
    refused={
        "ProphetNetEncoder": LONE.format("ProphetNetModel"),
        "ProphetNetDecoder": LONE.format("ProphetNetModel, or without an encoder ProphetNetForCausalLM,"),
    },
    fixed={"add_cross_attention": True},
    head_fixed={"lm": {"tie_word_embeddings": True}},
    dropouts=("dropout", "attention_dropout", "activation_dropout"),
    pad=0,
    pad_counts=True,
)

PROPHETNET_LM = replace(
    PROPHETNET,
    name="prophetnet_lm",
    hub="prophetnet",
    model=Single(
        vocab=30522,
        visibility="causal",
        embed=EMBED,
        block=Block(attention=Attention(distances=ContentBuckets()), mlp=Mlp(activation="gelu"), norm=NORM, norm_at="post"),
        project=VocabProjection(transform=False, bias=False),
        pool=Pool(at="last", by="plain"),
        init=Init(std=0.02),
    ),
    sizes=SHAPES,
    objective={"kind": "future_lm"},
    knobs=(
        *knobs("block.attention.distances"),
        knob("num_decoder_layers", 12, "layers"),
        knob("num_decoder_attention_heads", 16, "heads"),
        knob("decoder_ffn_dim", 4096, "mlp"),
    ),
    names=NameMap([(WORDS, "model.embed.token.weight"), *stack("decoder", "i", "model")], prefix="prophetnet."),
    classes={"ProphetNetForCausalLM": ("lm",), "ProphetNetDecoderWrapper": ()},
    fixed={"is_decoder": True, "is_encoder_decoder": False, "add_cross_attention": False},
    when={"is_encoder_decoder": False},
)

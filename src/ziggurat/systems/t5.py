"""T5 (Raffel et al., 2020) and its 1.1 release: an encoder-decoder with relative positions, trained to say what spans were cut out.

Norms have a scale alone and stand before each part, nothing has a bias, scores are not scaled, and each stack has one table of
biases by distance. 1.0 projects onto the token table, after a factor of width ** -0.5; 1.1 has gated layers, a table of its own for
the projection, and no factor. A model between the two (the factor with a table of its own) cannot be exported.

`tiny` and `mini` are BERT's miniature shapes; the rest are published. Heads may be wider or narrower than width / heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ziggurat.checkpoint.names import IGNORED, Entry, NameMap, tied
from ziggurat.nn.spec import (
    Attention,
    Block,
    Buckets,
    Embed,
    EncoderDecoder,
    Init,
    Mlp,
    Pool,
    RMSNorm,
    Unplaced,
    VocabProjection,
)  # fmt: skip
from ziggurat.systems.base import Knob, System, knob, twins

GATED = {False: {"wi": "up", "wo": "down"}, True: {"wi_0": "up", "wi_1": "gate", "wo": "down"}}
SCALED = {True: "width", False: "one"}
"""The Hub's `scale_decoder_outputs` -> ours."""


def _says_scaled(config: Mapping[str, Any]) -> bool:
    """Files older than `transformers` 5 say it by the tie alone."""
    return config.get("tie_word_embeddings") is not False


def model(mlp: Mlp, project: VocabProjection) -> EncoderDecoder:
    """T5's base, with what tells the two releases apart."""
    return EncoderDecoder(
        vocab=32128, width=768, layers=12, decoder_layers=12, heads=12, mlp=3072,
        embed=Embed(positions=Unplaced(length=512), norm=None),
        block=Block(
            attention=Attention(bias=False, head_width=64, scale="one"), mlp=mlp, norm=RMSNorm(eps=1e-6), norm_at="pre"
        ),
        buckets=Buckets(count=32, longest=128),
        final_norm=RMSNorm(eps=1e-6),
        project=project,
        pool=Pool(at="last", by="dense"),
        start="pad",
        words="encoder",
        init=Init(std=1.0, matrices="inputs"),
    )  # fmt: skip


def knobs(feed_forward: str, activation: str) -> tuple[Knob, ...]:
    return (
        knob("vocab_size", 32128, "vocab"),
        knob("d_model", 512, "width"),
        knob("d_kv", 64, "block.attention.head_width"),
        knob("d_ff", 2048, "mlp"),
        knob("num_layers", 6, "layers"),
        knob("num_decoder_layers", lambda config: config.get("num_layers", 6), "decoder_layers"),
        knob("num_heads", 8, "heads"),
        knob("n_positions", 512, "embed.positions.length"),
        knob("relative_attention_num_buckets", 32, "buckets.count"),
        knob("relative_attention_max_distance", 128, "buckets.longest"),
        knob("feed_forward_proj", "relu", "block.mlp.activation", values={feed_forward: activation}),
        knob("layer_norm_epsilon", 1e-6, "block.norm.eps", "final_norm.eps"),
        knob("initializer_factor", 1.0, "init.std"),
        # transformers 5 writes a tie whatever the model, and tells 1.1 by the factor; 4 reads the tie
        knob("tie_word_embeddings", True, "project.tied", told=False),
        knob("scale_decoder_outputs", _says_scaled, "project.scale", values=SCALED),
        knob("scale_decoder_outputs", _says_scaled, "project.tied"),
    )


def stack(side: str, i: str, gated: bool) -> list[Entry]:
    """Names of one stack; `i` counts its layers."""
    layer, block = f"transformer.{side}.block.{{{i}}}.layer", f"model.{side}.blocks.{{{i}}}"
    parts = [("SelfAttention", "attention"), *([("EncDecAttention", "cross")] if side == "decoder" else [])]
    lines: list[Entry] = [tied(f"transformer.{side}.embed_tokens.weight", "transformer.shared.weight")]
    for n, (hub, ours) in enumerate(parts):
        lines += [(f"{layer}.{n}.{hub}.{x}.weight", f"{block}.{ours}.{y}.weight") for x, y in zip("qkvo", ("q", "k", "v", "out"))]
        lines.append((f"{layer}.{n}.layer_norm.weight", f"{block}.{ours}_norm.weight"))
    last = len(parts)
    lines += [(f"{layer}.{last}.DenseReluDense.{x}.weight", f"{block}.mlp.{y}.weight") for x, y in GATED[gated].items()]
    lines.append((f"{layer}.{last}.layer_norm.weight", f"{block}.mlp_norm.weight"))
    bias = f"transformer.{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    lines.append((bias, f"model.{side}.buckets.table.weight"))
    lines.append((f"transformer.{side}.final_layer_norm.weight", f"model.{side}.final_norm.weight"))
    return lines


def names(gated: bool) -> NameMap:
    return NameMap(
        [("transformer.shared.weight", "model.token.weight"), *stack("encoder", "i", gated), *stack("decoder", "j", gated)],
        prefix="transformer.",
        ignored=(*IGNORED, "*.EncDecAttention.relative_attention_bias.weight"),  # in old files, and read by nobody
    )


def document_head(name: str) -> tuple[Entry, ...]:
    return (
        ("classification_head.dense.{p}", f"heads.{name}.dense.{{p}}"),
        ("classification_head.out_proj.{p}", f"heads.{name}.out.{{p}}"),
    )


HEADS: dict[str, tuple[Entry, ...]] = {
    "lm": (tied("lm_head.weight", "transformer.shared.weight"),),
    "classify": document_head("classify"),
    "regress": document_head("regress"),
    "tag": (("classifier.{p}", "heads.tag.out.{p}"),),
    "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
}
CLASSES: dict[str, tuple[str, ...]] = {
    "T5ForConditionalGeneration": ("lm",),
    "T5ForSequenceClassification": ("classify",),
    "T5ForTokenClassification": ("tag",),
    "T5ForQuestionAnswering": ("span",),
    "T5EncoderModel": (),
    "T5Model": (),
}
BARE = ("T5ForConditionalGeneration", "T5ForQuestionAnswering", "T5EncoderModel")
ALONE = {"T5ForTokenClassification": "encoder", "T5EncoderModel": "encoder"}
IDS = {"eos_token_id": 1, "decoder_start_token_id": 0}


def shapes(**sizes: tuple[int, int, int, int, int]) -> dict[str, dict[str, int]]:
    """Sizes from (width, mlp, heads, width of a head, layers of either stack)."""
    dials = ("width", "mlp", "heads", "head_width", "layers")
    return twins({name: dict(zip(dials, values, strict=True)) for name, values in sizes.items()})


T5 = System(
    name="t5",
    paper="https://arxiv.org/abs/1910.10683",
    model=model(Mlp(activation="relu", bias=False), VocabProjection(transform=False, bias=False, scale="width")),
    sizes=shapes(
        tiny=(128, 512, 2, 64, 2), mini=(256, 1024, 4, 64, 4), small=(512, 2048, 8, 64, 6), base=(768, 3072, 12, 64, 12),
        large=(1024, 4096, 16, 64, 24), xl=(1024, 16384, 32, 128, 24), xxl=(1024, 65536, 128, 128, 24),
    ),
    objective={"kind": "span_corruption"},
    template="t5",
    knobs=knobs("relu", "relu"),
    names=names(gated=False),
    heads=HEADS,
    classes=CLASSES,
    dropouts=("dropout_rate", "classifier_dropout"),
    bare=BARE,
    alone=ALONE,
    pad=0,
    ids=IDS,
)  # fmt: skip
"""`xl` and `xxl` are the models published as 3B and 11B."""

T5_1_1 = System(
    name="t5_1_1",
    paper="https://arxiv.org/abs/2002.05202",
    model=model(
        Mlp(activation="gelu_tanh", bias=False, gated=True), VocabProjection(transform=False, bias=False, tied=False)
    ).model_copy(update={"mlp": 2048}),
    sizes=shapes(
        tiny=(128, 320, 2, 64, 2), mini=(256, 640, 4, 64, 4), small=(512, 1024, 6, 64, 8), base=(768, 2048, 12, 64, 12),
        large=(1024, 2816, 16, 64, 24), xl=(2048, 5120, 32, 64, 24), xxl=(4096, 10240, 64, 64, 24),
    ),
    objective={"kind": "span_corruption"},
    template="t5",
    knobs=knobs("gated-gelu", "gelu_tanh"),
    names=names(gated=True),
    heads=HEADS,
    classes=CLASSES,
    dropouts=("dropout_rate", "classifier_dropout"),
    hub="t5",
    when={"feed_forward_proj": "gated-gelu"},
    bare=BARE,
    alone=ALONE,
    pad=0,
    ids=IDS,
)  # fmt: skip

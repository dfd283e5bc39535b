"""BART (Lewis et al., 2020): an encoder-decoder, norm after each part, trained to say a clean text from a noisy one.

Positions are learned, a table for each stack, and the third row is the first token's. The bias of the vocabulary head is the
Hub's `final_logits_bias`, a constant 0 in the released models. Documents are told by the decoder's state at the last token, when
both stacks read the same text.

`tiny` and `mini` are BERT's miniature shapes; base and large are published.
"""

from __future__ import annotations

from ziggurat.checkpoint.names import IGNORED, Entry, NameMap, one_row, optional, tied
from ziggurat.nn.spec import Block, Embed, EncoderDecoder, Init, LayerNorm, Learned, Mlp, Pool, VocabProjection
from ziggurat.systems.base import GELU, System, knob, sizes, twins

ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
SHARED = "model.shared.weight"
SCALE = {False: "one", True: "root"}
"""The Hub's `scale_embedding` -> ours."""


def stack(side: str, i: str) -> list[Entry]:
    """Names of one stack; `i` counts its layers."""
    layer, block = f"model.{side}.layers.{{{i}}}", f"model.{side}.blocks.{{{i}}}"
    parts = {"self_attn": "attention", **({"encoder_attn": "cross"} if side == "decoder" else {})}
    lines: list[Entry] = [
        tied(f"model.{side}.embed_tokens.weight", SHARED),
        (f"model.{side}.embed_positions.weight", f"model.{side}.embed.position.weight"),
        (f"model.{side}.layernorm_embedding.{{p}}", f"model.{side}.embed.norm.{{p}}"),
    ]
    for hub, ours in parts.items():
        lines += [(f"{layer}.{hub}.{x}.{{p}}", f"{block}.{ours}.{y}.{{p}}") for x, y in ATTENTION.items()]
        lines.append((f"{layer}.{hub}_layer_norm.{{p}}", f"{block}.{ours}_norm.{{p}}"))
    lines += [(f"{layer}.{x}.{{p}}", f"{block}.mlp.{y}.{{p}}") for x, y in (("fc1", "up"), ("fc2", "down"))]
    lines.append((f"{layer}.final_layer_norm.{{p}}", f"{block}.mlp_norm.{{p}}"))
    return lines


def document_head(name: str) -> tuple[Entry, ...]:
    return (
        ("classification_head.dense.{p}", f"heads.{name}.dense.{{p}}"),
        ("classification_head.out_proj.{p}", f"heads.{name}.out.{{p}}"),
    )


BART = System(
    name="bart",
    paper="https://arxiv.org/abs/1910.13461",
    model=EncoderDecoder(
        vocab=50265,
        embed=Embed(positions=Learned(length=1024, offset=2), norm=LayerNorm(eps=1e-5)),
        block=Block(mlp=Mlp(activation="gelu"), norm=LayerNorm(eps=1e-5), norm_at="post"),
        project=VocabProjection(transform=False, bias=True),
        pool=Pool(at="last", by="dense"),
        start="end",
        init=Init(std=0.02),
    ),
    sizes=twins(sizes(tiny=(2, 128), mini=(4, 256), base=(6, 768), large=(12, 1024))),
    objective={"kind": "denoise"},
    template="roberta",
    knobs=(
        knob("vocab_size", 50265, "vocab"),
        knob("d_model", 1024, "width"),
        knob("encoder_layers", 12, "layers"),
        knob("decoder_layers", 12, "decoder_layers"),
        knob("encoder_attention_heads", 16, "heads"),
        knob("decoder_attention_heads", 16, "heads"),
        knob("encoder_ffn_dim", 4096, "mlp"),
        knob("decoder_ffn_dim", 4096, "mlp"),
        knob("max_position_embeddings", 1024, "embed.positions.length"),
        knob("activation_function", "gelu", "block.mlp.activation", values=GELU),
        knob("scale_embedding", False, "embed.scale", values=SCALE),
        knob("init_std", 0.02, "init.std"),
    ),
    names=NameMap(
        [(SHARED, "model.token.weight"), *stack("encoder", "i"), *stack("decoder", "j")],
        prefix="model.",
        ignored=(*IGNORED, "*coder.version"),
    ),
    heads={
        "lm": (optional(one_row("final_logits_bias", "heads.lm.bias")), tied("lm_head.weight", SHARED)),
        "classify": document_head("classify"),
        "regress": document_head("regress"),
        "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
    },
    classes={
        "BartForConditionalGeneration": ("lm",),
        "BartForSequenceClassification": ("classify",),
        "BartForQuestionAnswering": ("span",),
        "BartModel": (),
    },
    refused={
        "BartForCausalLM": "it is the decoder with its attention to an encoder left out, and the decoder of ours always reads one"
    },
    head_fixed={"lm": {"tie_word_embeddings": True}},
    dropouts=("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"),
    pad=1,
    ids={"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
    repeats={"forced_eos_token_id": "eos_token_id"},  # its class takes 2 where the entry is absent
)

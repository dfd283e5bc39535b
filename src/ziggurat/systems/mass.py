"""MASS (Song et al., 2019), in the form of its release for summarisation: the decoder says a run of words that the encoder cannot see.

The network is BART's with token vectors multiplied by the root of the width, no bias of the projection, and a position table
that begins one row earlier. The decoder's tokens keep the positions they have in the text, which no class of the Hub can be
told; so `transformers` has no MASS, and an export has the names of the released fairseq checkpoints (fairseq 0.7.1, with q, k and
v in one matrix). A model that is only used on texts with positions from 0, as after a fine-tuning for generation, is also a
BART: `as_bart` writes it as one.

`base` (123 M) and `middle` (208 M) are published; `tiny` and `mini` are BERT's miniature shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ziggurat.checkpoint.names import IGNORED, Entry, NameMap, fused, tied
from ziggurat.nn.spec import Block, Embed, EncoderDecoder, Init, LayerNorm, Learned, Mlp, Network, Pool, VocabProjection
from ziggurat.systems.base import GELU, System, knob, sizes, twins

if TYPE_CHECKING:
    from torch import Tensor

TABLE = "encoder.embed_tokens.weight"
PARTS = {"encoder": {"self_attn": "attention"}, "decoder": {"self_attn": "attention", "encoder_attn": "cross"}}


def stack(side: str, i: str) -> list[Entry]:
    """Names of one stack; `i` counts its layers."""
    layer, block = f"{side}.layers.{{{i}}}", f"model.{side}.blocks.{{{i}}}"
    lines: list[Entry] = [
        (f"{side}.embed_positions.weight", f"model.{side}.embed.position.weight"),
        (f"{side}.emb_layer_norm.{{p}}", f"model.{side}.embed.norm.{{p}}"),
    ]
    for hub, ours in PARTS[side].items():
        for end in ("weight", "bias"):
            lines.append(fused(f"{layer}.{hub}.in_proj_{end}", *(f"{block}.{ours}.{x}.{end}" for x in "qkv")))
        lines.append((f"{layer}.{hub}.out_proj.{{p}}", f"{block}.{ours}.out.{{p}}"))
        lines.append((f"{layer}.{hub}_layer_norm.{{p}}", f"{block}.{ours}_norm.{{p}}"))
    lines += [(f"{layer}.{x}.{{p}}", f"{block}.mlp.{y}.{{p}}") for x, y in (("fc1", "up"), ("fc2", "down"))]
    lines.append((f"{layer}.final_layer_norm.{{p}}", f"{block}.mlp_norm.{{p}}"))
    return lines


MASS = System(
    name="mass",
    paper="https://arxiv.org/abs/1905.02450",
    model=EncoderDecoder(
        vocab=30522,
        embed=Embed(scale="root", positions=Learned(length=512, offset=1), norm=LayerNorm(eps=1e-5)),
        block=Block(mlp=Mlp(activation="gelu"), norm=LayerNorm(eps=1e-5), norm_at="post"),
        project=VocabProjection(transform=False, bias=False),
        pool=Pool(at="last", by="dense"),
        start="end",
        init=Init(std=0.02),
    ),
    sizes=twins(sizes(tiny=(2, 128), mini=(4, 256), base=(6, 768), middle=(6, 1024))),
    objective={"kind": "mass"},
    template="bert",
    knobs=(
        knob("encoder_embed_dim", 512, "width"),
        knob("decoder_embed_dim", 512, "width"),
        knob("encoder_ffn_embed_dim", 2048, "mlp"),
        knob("decoder_ffn_embed_dim", 2048, "mlp"),
        knob("encoder_layers", 6, "layers"),
        knob("decoder_layers", 6, "decoder_layers"),
        knob("encoder_attention_heads", 8, "heads"),
        knob("decoder_attention_heads", 8, "heads"),
        knob("activation_fn", "relu", "block.mlp.activation", values=GELU),
        knob("max_source_positions", 512, "embed.positions.length"),
        knob("max_target_positions", 512, "embed.positions.length"),
        knob("vocab_size", 30522, "vocab"),
    ),
    names=NameMap(
        [
            (TABLE, "model.token.weight"),
            tied("decoder.embed_tokens.weight", TABLE),
            *stack("encoder", "i"),
            *stack("decoder", "j"),
        ],
        ignored=(*IGNORED, "*coder.version"),
    ),
    heads={"lm": ()},
    classes={"TransformerMASSModel": ("lm",), "TransformerModel": ()},
    fixed={"share_all_embeddings": True},
    dropouts=("dropout", "attention_dropout", "activation_dropout"),
    loads=False,
    pad=0,
)


def as_bart(network: Network, tensors: Mapping[str, Tensor]) -> tuple[Network, dict[str, Tensor]]:
    """The same function of texts whose positions count from 0, as a model that `to_hub(..., system="bart")` can write.

    It is MASS no longer where positions do not: in its own pre-training the decoder's do not.
    """
    import torch

    body, own = network.model, dict(tensors)
    assert isinstance(body, EncoderDecoder), "MASS is an encoder-decoder"
    positions = body.embed.positions.model_copy(update={"offset": 2})
    for name in [name for name in own if name.endswith("embed.position.weight")]:
        own[name] = torch.cat([own[name].new_zeros(2 - body.embed.positions.offset, body.width), own[name]])
    if "lm" in network.heads:
        own["heads.lm.bias"] = own["model.token.weight"].new_zeros(body.vocab)
    project = body.project.model_copy(update={"bias": True})
    body = body.model_copy(update={"embed": body.embed.model_copy(update={"positions": positions}), "project": project})
    return network.model_copy(update={"model": body}), own

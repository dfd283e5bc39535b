"""GPT (Radford et al., 2018): the first one; a causal decoder with the norms behind, none on the embeddings and none at the end.

The Hub's configuration says "gelu" for the tanh form, in this class alone. Feed-forward layers are four widths, without an entry for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ziggurat.checkpoint.names import NameMap, fused, tied, transposed
from ziggurat.nn.spec import Block, Embed, Init, LayerNorm, Learned, Mlp, Pool, Single, VocabProjection
from ziggurat.systems.base import System, knob, sizes

HUB, OURS = "transformer.h.{i}", "model.blocks.{i}"
SUMMARY = {"summary_use_proj": True, "summary_activation": None, "summary_proj_to_labels": True}


def four_widths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without an entry for the feed-forward layer's width, which the Hub's class would not look at."""
    return {name: value for name, value in config.items() if name != "n_inner"}


GPT = System(
    name="gpt",
    hub="openai-gpt",
    paper="https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf",
    model=Single(
        vocab=40478,
        visibility="causal",
        embed=Embed(positions=Learned(length=512), segments=0, norm=None),
        block=Block(mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(eps=1e-5), norm_at="post"),
        project=VocabProjection(transform=False, bias=False),
        pool=Pool(at="last", by="plain"),
        init=Init(std=0.02),
    ),
    sizes=sizes(tiny=(2, 128), mini=(4, 256), base=(12, 768)),
    objective={"kind": "clm"},
    template="gpt2",
    knobs=(
        knob("vocab_size", 40478, "vocab"),
        knob("n_embd", 768, "width"),
        knob("n_layer", 12, "layers"),
        knob("n_head", 12, "heads"),
        knob("n_inner", lambda config: 4 * config.get("n_embd", 768), "mlp"),
        knob("n_positions", 512, "embed.positions.length"),
        knob(
            "afn", "gelu", "block.mlp.activation", values={"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
        ),
        knob("layer_norm_epsilon", 1e-5, "block.norm.eps"),
        knob("initializer_range", 0.02, "init.std"),
    ),
    reading=four_widths,
    writing=four_widths,
    names=NameMap(
        [
            ("transformer.tokens_embed.weight", "model.embed.token.weight"),
            ("transformer.positions_embed.weight", "model.embed.position.weight"),
            fused(f"{HUB}.attn.c_attn.{{p}}", *(f"{OURS}.attention.{x}.{{p}}" for x in "qkv"), transposed=True),
            transposed(f"{HUB}.attn.c_proj.{{p}}", f"{OURS}.attention.out.{{p}}"),
            (f"{HUB}.ln_1.{{p}}", f"{OURS}.attention_norm.{{p}}"),
            transposed(f"{HUB}.mlp.c_fc.{{p}}", f"{OURS}.mlp.up.{{p}}"),
            transposed(f"{HUB}.mlp.c_proj.{{p}}", f"{OURS}.mlp.down.{{p}}"),
            (f"{HUB}.ln_2.{{p}}", f"{OURS}.mlp_norm.{{p}}"),
        ],
        prefix="transformer.",
    ),
    heads={
        "lm": (tied("lm_head.weight", "transformer.tokens_embed.weight"),),
        "classify": (("score.weight", "heads.classify.out.weight"),),
        "regress": (("score.weight", "heads.regress.out.weight"),),
        "choice": (("multiple_choice_head.summary.{p}", "heads.choice.out.{p}"),),
    },
    classes={
        "OpenAIGPTLMHeadModel": ("lm",),
        "OpenAIGPTDoubleHeadsModel": ("lm", "choice"),
        "OpenAIGPTForSequenceClassification": ("classify",),
        "OpenAIGPTModel": (),
    },
    head_fixed={"lm": {"tie_word_embeddings": True}, "choice": {"summary_type": "cls_index", **SUMMARY}},
    dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"),
)

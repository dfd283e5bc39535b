"""XLNet (Yang et al., 2019): a bidirectional encoder trained to say tokens in a random order, with Transformer-XL's distances.

Positions and segments enter through attention alone, so a text may be of any length and segments may have any numbers. The class
token stands last, and what is read from a whole text is read there; the Hub's classes read the last column, so pads go on the left.
The Hub stores the matrices of attention as [width, heads, dim], the output's the same way round as the others and used transposed.
The authors' code has the tanh GELU, the Hub's class the exact one, and so do we. Sizes below base are BERT's miniature shapes.
"""

from __future__ import annotations

from ziggurat.checkpoint.names import Entry, NameMap, folded, tied
from ziggurat.nn.spec import Attention, Block, Embed, Init, LayerNorm, Mlp, Pool, Relative, Single, Unplaced, VocabProjection
from ziggurat.systems.base import GELU, System, knob
from ziggurat.systems.encoder import SIZES, TIED

HUB, OURS = "transformer.layer.{i}", "model.blocks.{i}"
SUMMARY = {"summary_type": "last", "summary_use_proj": True, "summary_activation": "tanh"}


def summary_head(name: str) -> tuple[Entry, ...]:
    return (
        ("sequence_summary.summary.{p}", f"heads.{name}.dense.{{p}}"),
        ("logits_proj.{p}", f"heads.{name}.out.{{p}}"),
    )


XLNET = System(
    name="xlnet",
    paper="https://arxiv.org/abs/1906.08237",
    model=Single(
        vocab=32000,
        embed=Embed(positions=Unplaced(length=512), segments=0, extra=1, norm=None),
        block=Block(
            attention=Attention(bias=False, distances=Relative()),
            mlp=Mlp(activation="gelu"),
            norm=LayerNorm(eps=1e-12),
            norm_at="post",
        ),
        project=VocabProjection(transform=False, bias=True),
        pool=Pool(at="last", by="dense"),
        init=Init(std=0.02),
    ),
    sizes=SIZES,
    objective={"kind": "plm"},
    template="xlnet",
    knobs=(
        knob("vocab_size", 32000, "vocab"),
        knob("d_model", 1024, "width"),
        knob("n_layer", 24, "layers"),
        knob("n_head", 16, "heads"),
        knob("d_inner", 4096, "mlp"),
        knob("ff_activation", "gelu", "block.mlp.activation", values=GELU),
        knob("layer_norm_eps", 1e-12, "block.norm.eps"),
        knob("initializer_range", 0.02, "init.std"),
        knob("attn_type", "bi", "visibility", values={"bi": "full", "uni": "causal"}),
    ),
    names=NameMap(
        [
            ("transformer.word_embedding.weight", "model.embed.token.weight"),
            folded("transformer.mask_emb", "model.embed.extra.weight", at=0, size=1),
            *(
                folded(f"{HUB}.rel_attn.{theirs}", f"{OURS}.attention.{ours}.weight", at=1, transposed=True)
                for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("r", "distances.r"))
            ),
            folded(f"{HUB}.rel_attn.o", f"{OURS}.attention.out.weight", at=1),
            (f"{HUB}.rel_attn.r_w_bias", f"{OURS}.attention.distances.content_bias"),
            (f"{HUB}.rel_attn.r_r_bias", f"{OURS}.attention.distances.distance_bias"),
            (f"{HUB}.rel_attn.r_s_bias", f"{OURS}.attention.distances.segment_bias"),
            (f"{HUB}.rel_attn.seg_embed", f"{OURS}.attention.distances.segment"),
            (f"{HUB}.rel_attn.layer_norm.{{p}}", f"{OURS}.attention_norm.{{p}}"),
            (f"{HUB}.ff.layer_1.{{p}}", f"{OURS}.mlp.up.{{p}}"),
            (f"{HUB}.ff.layer_2.{{p}}", f"{OURS}.mlp.down.{{p}}"),
            (f"{HUB}.ff.layer_norm.{{p}}", f"{OURS}.mlp_norm.{{p}}"),
        ],
        prefix="transformer.",
    ),
    heads={
        "lm": (("lm_loss.bias", "heads.lm.bias"), tied("lm_loss.weight", "transformer.word_embedding.weight")),
        **{name: summary_head(name) for name in ("classify", "regress", "choice")},
        "tag": (("classifier.{p}", "heads.tag.out.{p}"),),
        "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
    },
    classes={
        "XLNetLMHeadModel": ("lm",),
        "XLNetForSequenceClassification": ("classify",),
        "XLNetForMultipleChoice": ("choice",),
        "XLNetForTokenClassification": ("tag",),
        "XLNetForQuestionAnsweringSimple": ("span",),
        "XLNetModel": (),
    },
    refused={
        "XLNetForQuestionAnswering": "its scores of an end are made for each start of a beam, so it says no score for each token; "
        "XLNetForQuestionAnsweringSimple does, and XLNetModel takes the body out of such a file"
    },
    fixed={"clamp_len": -1, "same_length": False, "bi_data": False},
    head_fixed={**TIED, "classify": SUMMARY, "regress": SUMMARY, "choice": SUMMARY},
    dropouts=("dropout", "summary_last_dropout"),
    pad=5,
    pads="left",
)

"""GPT-2 (Radford et al., 2019): a causal decoder, norm first, trained to say the next token.

The Hub stores its matrices [in, out] (`Conv1D`), and q, k, v in one of them. The vocabulary head has no parameters of
its own. `tiny` and `mini` are BERT's miniature shapes; the rest are the published models (124 M, 355 M, 774 M, 1.6 B).
"""

from __future__ import annotations

from ziggurat.checkpoint.names import NameMap, fused, tied, transposed
from ziggurat.nn.spec import Block, Embed, Init, LayerNorm, Learned, Mlp, Pool, Single, VocabProjection
from ziggurat.systems.base import GELU, System, knob, sizes

HUB, OURS = "transformer.h.{i}", "model.blocks.{i}"
SUMMARY = {"summary_use_proj": True, "summary_activation": None, "summary_proj_to_labels": True}

GPT2 = System(
    name="gpt2",
    paper="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    model=Single(
        vocab=50257,
        visibility="causal",
        embed=Embed(positions=Learned(length=1024), segments=0, norm=None),
        block=Block(mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(eps=1e-5), norm_at="pre"),
        final_norm=LayerNorm(eps=1e-5),
        project=VocabProjection(transform=False, bias=False),
        pool=Pool(at="last", by="plain"),
        init=Init(std=0.02, residual="scaled"),
    ),
    sizes=sizes(tiny=(2, 128), mini=(4, 256), small=(12, 768), medium=(24, 1024), large=(36, 1280), xl=(48, 1600)),
    objective={"kind": "clm"},
    template="gpt2",
    knobs=(
        knob("vocab_size", 50257, "vocab"),
        knob("n_embd", 768, "width"),
        knob("n_layer", 12, "layers"),
        knob("n_head", 12, "heads"),
        knob("n_inner", lambda config: 4 * config.get("n_embd", 768), "mlp"),
        knob("n_positions", 1024, "embed.positions.length"),
        knob("activation_function", "gelu_new", "block.mlp.activation", values=GELU),
        knob("layer_norm_epsilon", 1e-5, "block.norm.eps", "final_norm.eps"),
        knob("initializer_range", 0.02, "init.std"),
    ),
    names=NameMap(
        [
            ("transformer.wte.weight", "model.embed.token.weight"),
            ("transformer.wpe.weight", "model.embed.position.weight"),
            (f"{HUB}.ln_1.{{p}}", f"{OURS}.attention_norm.{{p}}"),
            fused(f"{HUB}.attn.c_attn.{{p}}", *(f"{OURS}.attention.{x}.{{p}}" for x in "qkv"), transposed=True),
            transposed(f"{HUB}.attn.c_proj.{{p}}", f"{OURS}.attention.out.{{p}}"),
            (f"{HUB}.ln_2.{{p}}", f"{OURS}.mlp_norm.{{p}}"),
            transposed(f"{HUB}.mlp.c_fc.{{p}}", f"{OURS}.mlp.up.{{p}}"),
            transposed(f"{HUB}.mlp.c_proj.{{p}}", f"{OURS}.mlp.down.{{p}}"),
            ("transformer.ln_f.{p}", "model.final_norm.{p}"),
        ],
        prefix="transformer.",
    ),
    heads={
        "lm": (tied("lm_head.weight", "transformer.wte.weight"),),
        "classify": (("score.weight", "heads.classify.out.weight"),),
        "regress": (("score.weight", "heads.regress.out.weight"),),
        "choice": (("multiple_choice_head.summary.{p}", "heads.choice.out.{p}"),),
        "tag": (("classifier.{p}", "heads.tag.out.{p}"),),
        "span": (("qa_outputs.{p}", "heads.span.out.{p}"),),
    },
    classes={
        "GPT2LMHeadModel": ("lm",),
        "GPT2DoubleHeadsModel": ("lm", "choice"),
        "GPT2ForSequenceClassification": ("classify",),
        "GPT2ForTokenClassification": ("tag",),
        "GPT2ForQuestionAnswering": ("span",),
        "GPT2Model": (),
    },
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    head_fixed={"lm": {"tie_word_embeddings": True}, "choice": {"summary_type": "cls_index", **SUMMARY}},
    dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout", "classifier_dropout"),
)

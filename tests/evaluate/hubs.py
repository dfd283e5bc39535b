"""Random models of the Hub with every parameter moved, and the same weights in ours, renamed by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel

VOCAB, WIDTH, HEADS = 67, 16, 2
PAD, END = 1, 2


def shaken(model: Any, seed: int) -> Any:
    """Every parameter moved; with these seeds texts do not run in circles and end at different steps. The end token's row is longer
    than others, so that it is often the best one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_((0.1 if p.ndim < 2 else 0.5) * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        model.get_output_embeddings().weight[END] *= 1.5
    return model.double().eval()


def network(model: spec.Single | spec.EncoderDecoder, state: dict[str, Tensor]) -> NetworkModel:
    net = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).double()
    net.load_state_dict(state)
    return net.eval()


def gpt2(seed: int = 0) -> tuple[Any, NetworkModel]:
    import transformers

    torch.manual_seed(seed)

    from ziggurat.systems.gpt2 import GPT2

    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=3, n_head=HEADS, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=END, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    hub = shaken(transformers.GPT2LMHeadModel(config), seed)
    model = GPT2.read(config.to_dict())
    state = GPT2.names.to_ours({k: v for k, v in hub.state_dict().items() if k != "lm_head.weight"})
    return hub, network(model, state)  # type: ignore[arg-type]


def bart(seed: int = 0, **more: Any) -> tuple[Any, NetworkModel]:
    import transformers

    torch.manual_seed(seed)

    config = transformers.BartConfig(
        vocab_size=VOCAB, d_model=WIDTH, encoder_layers=2, decoder_layers=3, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, bos_token_id=0, pad_token_id=PAD, eos_token_id=END,
        decoder_start_token_id=END, **more,
    )  # fmt: skip
    hub = shaken(transformers.BartForConditionalGeneration(config), seed)
    norm = spec.LayerNorm(eps=1e-5)
    embed = spec.Embed(positions=spec.Learned(length=64, offset=2), norm=norm)
    model = spec.EncoderDecoder(
        vocab=VOCAB, width=WIDTH, layers=2, decoder_layers=3, heads=HEADS, mlp=24, embed=embed, block=spec.Block(norm=norm)
    )
    with torch.no_grad():
        for name, p in hub.named_parameters():  # else what a decoder says would hardly depend on what it said before
            if "decoder" in name and name.endswith("out_proj.weight"):
                p *= 0.2
        hub.final_logits_bias[0, END] += 1
        hub.final_logits_bias.add_(0.3 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    theirs = hub.state_dict()
    state = {"model.token.weight": theirs["model.shared.weight"], "heads.lm.bias": theirs["final_logits_bias"][0]}
    names = {
        "self_attn": "attention", "encoder_attn": "cross", "self_attn_layer_norm": "attention_norm",
        "encoder_attn_layer_norm": "cross_norm", "final_layer_norm": "mlp_norm", "q_proj": "q", "k_proj": "k", "v_proj": "v",
        "out_proj": "out", "fc1": "mlp.up", "fc2": "mlp.down", "layers": "blocks", "embed_positions": "embed.position",
        "layernorm_embedding": "embed.norm",
    }  # fmt: skip
    for name, value in theirs.items():
        if (".encoder." in name or ".decoder." in name) and "embed_tokens" not in name:
            state[".".join(names.get(part, part) for part in name.split("."))] = value
    return hub, network(model, state)


def t5(seed: int = 0, **more: Any) -> tuple[Any, NetworkModel]:
    """T5 1.0; with `feed_forward_proj="gated-gelu"` and untied tables T5 1.1."""
    import transformers

    torch.manual_seed(seed)

    gated = "gated" in more.get("feed_forward_proj", "")
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=WIDTH, d_kv=6, d_ff=24, num_layers=3, num_decoder_layers=3, num_heads=HEADS,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, dropout_rate=0.0, pad_token_id=PAD, eos_token_id=END,
        decoder_start_token_id=PAD, **more,
    )  # fmt: skip
    hub = transformers.T5ForConditionalGeneration(config)
    tied = bool(config.scale_decoder_outputs)
    if not tied:  # as released; a new model of the Hub's class has one table
        hub.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCAB, WIDTH))
    hub = shaken(hub, seed)
    norm = spec.RMSNorm(eps=1e-6)
    block = spec.Block(
        attention=spec.Attention(bias=False, head_width=6, scale="one"), norm=norm, norm_at="pre",
        mlp=spec.Mlp(activation="gelu_tanh" if gated else "relu", bias=False, gated=gated),
    )  # fmt: skip
    model = spec.EncoderDecoder(
        vocab=VOCAB, width=WIDTH, layers=3, decoder_layers=3, heads=HEADS, mlp=24, block=block, final_norm=norm, start="pad",
        embed=spec.Embed(positions=spec.Unplaced(length=512), norm=None), buckets=spec.Buckets(count=8, longest=12),
        project=spec.VocabProjection(transform=False, bias=False, tied=tied, scale="width" if tied else "one"),
    )  # fmt: skip
    theirs = hub.state_dict()
    state = {"model.token.weight": theirs["shared.weight"]}
    if not tied:
        state["heads.lm.table"] = theirs["lm_head.weight"]
    for side, count in (("encoder", 3), ("decoder", 3)):
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        state[f"model.{side}.buckets.table.weight"] = theirs[first]
        state[f"model.{side}.final_norm.weight"] = theirs[f"{side}.final_layer_norm.weight"]
        for i in range(count):
            hers, ours = f"{side}.block.{i}.layer", f"model.{side}.blocks.{i}"
            layers = [("SelfAttention", "attention"), *([("EncDecAttention", "cross")] if side == "decoder" else [])]
            for n, (name, mine) in enumerate(layers):
                for x, y in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
                    state[f"{ours}.{mine}.{y}.weight"] = theirs[f"{hers}.{n}.{name}.{x}.weight"]
                state[f"{ours}.{mine}_norm.weight"] = theirs[f"{hers}.{n}.layer_norm.weight"]
            n = len(layers)
            for x, y in (("wi_0", "up"), ("wi_1", "gate"), ("wi", "up"), ("wo", "down")):
                if (place := f"{hers}.{n}.DenseReluDense.{x}.weight") in theirs:
                    state[f"{ours}.mlp.{y}.weight"] = theirs[place]
            state[f"{ours}.mlp_norm.weight"] = theirs[f"{hers}.{n}.layer_norm.weight"]
    return hub, network(model, state)


def prophetnet(seed: int = 0) -> tuple[Any, NetworkModel]:
    """The pad is 0, as released: positions are numbered from the pad id + 1. The Hub's masks overflow in float64: it stays in float32."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.ProphetNetConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, encoder_ffn_dim=24, decoder_ffn_dim=24, num_encoder_layers=3, num_decoder_layers=3,
        num_encoder_attention_heads=HEADS, num_decoder_attention_heads=HEADS, max_position_embeddings=64, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, num_buckets=8, relative_max_distance=12, ngram=2, pad_token_id=0,
        eos_token_id=END, decoder_start_token_id=END, bos_token_id=END,
    )  # fmt: skip
    hub = shaken(transformers.ProphetNetForConditionalGeneration(config), seed)
    with torch.no_grad():
        for name, p in hub.named_parameters():
            if "decoder" in name and name.endswith("out_proj.weight"):
                p *= 0.2
    norm = spec.LayerNorm(eps=1e-5)
    embed = spec.Embed(positions=spec.Learned(length=63, offset=1), norm=norm, extra=2)
    model = spec.EncoderDecoder(
        vocab=VOCAB, width=WIDTH, layers=3, decoder_layers=3, heads=HEADS, mlp=24, embed=embed, block=spec.Block(norm=norm),
        decoder_attention=spec.Attention(distances=spec.ContentBuckets(count=8, longest=12)),
        project=spec.VocabProjection(transform=False, bias=False),
    )  # fmt: skip
    theirs = hub.state_dict()
    names = {
        "self_attn": "attention", "cross_attn": "cross", "self_attn_layer_norm": "attention_norm",
        "cross_attn_layer_norm": "cross_norm", "feed_forward_layer_norm": "mlp_norm", "query_proj": "q", "key_proj": "k",
        "value_proj": "v", "out_proj": "out", "feed_forward": "mlp", "intermediate": "up", "output": "down", "layers": "blocks",
        "position_embeddings": "embed.position", "embeddings_layer_norm": "embed.norm", "ngram_embeddings": "embed.extra",
        "relative_pos_embeddings": "distances.read", "prophetnet": "model",
    }  # fmt: skip
    state = {"model.token.weight": theirs["prophetnet.word_embeddings.weight"]}
    for name, value in theirs.items():
        if "word_embeddings" not in name and name != "lm_head.weight":
            state[".".join(names.get(part, part) for part in name.split("."))] = value
    return hub.float(), network(model, state)

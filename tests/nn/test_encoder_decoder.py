"""The encoder-decoder against the Hub's BART, and against a loop over documents: values, gradients, isolation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ziggurat.data.pack import pack
from ziggurat.nn.attention import AttentionLayer
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.spec import Block, Embed, EncoderDecoder, LayerNorm, Learned, Mlp, Network, VocabHead, class_heads
from ziggurat.systems import SYSTEMS
from ziggurat.types import CAUSAL, FOREVER, FULL, Batch, Stream, Target, Visibility, join_all

VOCAB, WIDTH, HEADS = 61, 16, 2
LENGTHS = ((9, 4), (3, 7), (1, 1), (12, 12), (5, 2), (16, 3))
ROWS = {"encoder": 16, "decoder": 12}


def bart() -> EncoderDecoder:
    norm = LayerNorm(eps=1e-5)
    embed = Embed(positions=Learned(length=24, offset=2), norm=norm)
    return EncoderDecoder(
        vocab=VOCAB, width=WIDTH, layers=2, decoder_layers=3, heads=HEADS, mlp=24, embed=embed, block=Block(norm=norm)
    )


def network(part: EncoderDecoder, seed: int = 0) -> NetworkModel:
    net = NetworkModel(Network(model=part, heads={"lm": VocabHead()})).double()
    generator = torch.Generator().manual_seed(seed)
    net.initialise(generator)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net.eval()


def stream(ids: np.ndarray, visibility: Visibility) -> Stream:
    n = len(ids)
    zero = np.zeros(n, np.int32)
    return Stream(ids.astype(np.int32), np.array([0, n]), np.arange(n, dtype=np.int32), zero, visibility)


def documents(seed: int = 0) -> list[Batch]:
    rng = np.random.default_rng(seed)
    made = []
    for number, (m, n) in enumerate(LENGTHS):
        source, target = rng.integers(0, VOCAB, m), rng.integers(0, VOCAB, n)
        at = np.flatnonzero(rng.random(n) < 0.4)
        asked = Target("decoder", at.astype(np.int64), rng.integers(0, VOCAB, len(at)), np.ones(len(at), np.float32))
        streams = {"encoder": stream(source, FULL), "decoder": stream(target, CAUSAL)}
        made.append(Batch(streams, {"lm": asked}, np.array([number], np.uint64)))
    return made


def torched(batch: Batch) -> Batch:
    return batch.map(lambda a: torch.from_numpy(np.ascontiguousarray(a)))


def hub(net: NetworkModel) -> Any:
    """The Hub's BART with the weights of `net`, renamed by hand."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=VOCAB, d_model=WIDTH, encoder_layers=2, decoder_layers=3, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=24, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).double().eval()
    state = {"model.shared.weight": net.model.table, "final_logits_bias": net.heads["lm"].bias[None]}
    for side in ("encoder", "decoder"):
        ours = dict(getattr(net.model, side).named_parameters())
        state[f"model.{side}.embed_positions.weight"] = ours.pop("embed.position.weight")
        for p in ("weight", "bias"):
            state[f"model.{side}.layernorm_embedding.{p}"] = ours.pop(f"embed.norm.{p}")
        names = {
            "attention": "self_attn", "cross": "encoder_attn", "attention_norm": "self_attn_layer_norm",
            "cross_norm": "encoder_attn_layer_norm", "mlp_norm": "final_layer_norm", "q": "q_proj", "k": "k_proj", "v": "v_proj",
            "out": "out_proj", "up": "fc1", "down": "fc2",
        }  # fmt: skip
        for name, value in ours.items():
            parts = [names.get(part, part) for part in name.split(".") if part != "mlp"]
            state[f"model.{side}.{'.'.join(parts).replace('blocks', 'layers')}"] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("embed_tokens" in name or "lm_head" in name for name in missing), (missing, unexpected)
    model.tie_weights()
    return model


@pytest.mark.parametrize("packed", [False, True])
def test_logits_are_those_of_bart(packed: bool) -> None:
    """Documents of different lengths in one pass; every logit of every decoder token."""
    net = network(bart())
    model, made = hub(net), documents()
    want = []
    with torch.no_grad():
        for d in made:
            ids = {name: torch.from_numpy(s.content).long()[None] for name, s in d.streams.items()}
            want.append(model(input_ids=ids["encoder"], decoder_input_ids=ids["decoder"], use_cache=False).logits[0])
    whole = join_all(made)
    batch = torched(pack(whole, ROWS, 0) if packed else whole)
    with torch.no_grad():
        hidden = net(batch.streams)["decoder"]
        logits = torch.nn.functional.linear(hidden, net.model.table, net.heads["lm"].bias)
    bounds = batch.streams["decoder"].bounds.tolist()
    keys = batch.keys.tolist()
    for number, expected in enumerate(want):
        j = keys.index(number)
        assert expected.max() - expected.min() > 1
        torch.testing.assert_close(logits[bounds[j] : bounds[j + 1]], expected, atol=1e-10, rtol=1e-10)


def gradients(net: NetworkModel, batch: Batch, *, few: bool) -> tuple[float, dict[str, Tensor]]:
    net.zero_grad(set_to_none=True)
    read = net.read(batch.streams, batch.targets.values()) if few else None
    hidden = net(batch.streams, read=read)
    loss = net.loss("lm", hidden, batch.streams, batch.targets["lm"]).total
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("pre", [False, True])
def test_a_packed_batch_has_the_loss_and_gradients_of_its_documents(few: bool, pre: bool) -> None:
    part = bart()
    if pre:
        block = Block(norm_at="pre", mlp=Mlp(activation="relu"))
        part = part.model_copy(update={"block": block, "final_norm": LayerNorm(eps=1e-5)})
    net, made = network(part), documents()
    total, summed = 0.0, dict[str, Tensor]()
    for d in made:
        if len(d.targets["lm"].index) == 0:
            continue
        loss, found = gradients(net, torched(d), few=False)
        total += loss
        summed = {name: g + summed.get(name, torch.zeros(())) for name, g in found.items()}
    loss, found = gradients(net, torched(pack(join_all(made), ROWS, 0)), few=few)
    assert loss == pytest.approx(total, rel=1e-12)
    assert found.keys() == summed.keys()
    for name, g in found.items():
        torch.testing.assert_close(g, summed[name], atol=1e-10, rtol=1e-9, msg=lambda said, name=name: f"{name}: {said}")


def test_a_decoder_does_not_see_encoder_slots_that_open_later() -> None:
    """MASS's restriction: slots that open at 1 are read by the encoder (clock 1), not by the decoder."""
    net, d = network(bart()), documents()[3]
    n = len(d.streams["encoder"].content)
    opens = np.zeros(n, np.int32)
    opens[[2, 5]] = 1
    one, zero = np.ones(n, np.int32), np.zeros(n, np.int32)
    closed = Visibility("custom", one, opens, np.full(n, FOREVER, np.int32), zero)
    encoder = replace(d.streams["encoder"], visibility=closed)
    shut = torched(replace(d, streams={**d.streams, "encoder": encoder}))
    grads = []
    for batch in (torched(d), shut):
        seen: list[Tensor] = []
        handle = net.model.decoder.blocks[0].cross.register_forward_hook(
            lambda module, given, kwargs, out, seen=seen: seen.append(kwargs["source"]), with_kwargs=True
        )
        hidden = net(batch.streams)
        source = hidden["encoder"]
        grads.append(torch.autograd.grad(hidden["decoder"].square().sum(), source)[0].abs().sum(1))
        handle.remove()
        assert seen[0] is source
    assert (grads[0] > 0).all()
    assert (grads[1][[2, 5]] == 0).all() and (grads[1][np.setdiff1d(np.arange(n), [2, 5])] > 0).all()


def test_negative_ids_are_learned_vectors() -> None:
    part = bart()
    part = part.model_copy(update={"embed": part.embed.model_copy(update={"extra": 2})})
    net = network(part)
    ids = np.array([5, -1, -2, -1])
    embed = net.model.decoder.embed
    batch = torched(Batch({"decoder": stream(ids, CAUSAL)}, {}, np.array([1], np.uint64)))
    plain = torch.stack([net.model.table[5], embed.extra.weight[0], embed.extra.weight[1], embed.extra.weight[0]])
    want = embed.norm(plain + embed.position.weight[2 + torch.arange(4)])
    torch.testing.assert_close(embed(batch.streams["decoder"], net.model.table), want)
    assert net.model.encoder.embed.extra is None


def test_an_encoder_alone_needs_no_decoder() -> None:
    """The same vectors as with one, and of the last layer only the rows that are read."""
    net, batch = network(bart()), torched(pack(join_all(documents()), ROWS, 0))
    few = torch.tensor([0, 5, 17, 40])
    with torch.no_grad():
        both = net(batch.streams)["encoder"]
        alone = net({"encoder": batch.streams["encoder"]}, keep=["encoder.blocks.0"])
        part = net({"encoder": batch.streams["encoder"]}, read={"encoder": few})["encoder"]
    assert set(alone) == {"encoder", "encoder.blocks.0"} and torch.equal(alone["encoder"], both)
    torch.testing.assert_close(part[few], both[few], atol=1e-12, rtol=1e-12)
    assert (part.abs().sum(1) > 0).sum() == len(few)


def test_token_vectors_may_be_scaled_before_the_sum() -> None:
    part = bart()
    scaled = part.model_copy(update={"embed": part.embed.model_copy(update={"scale": "root"})})
    net = network(scaled)
    ids = np.array([5, 7, 7])
    embed, batch = net.model.encoder.embed, torched(Batch({"encoder": stream(ids, FULL)}, {}, np.array([1], np.uint64)))
    want = embed.norm(WIDTH**0.5 * net.model.table[torch.from_numpy(ids)] + embed.position.weight[2 + torch.arange(3)])
    torch.testing.assert_close(embed(batch.streams["encoder"], net.model.table), want)


@pytest.mark.parametrize("system", ["t5", "t5_1_1", "bart", "mass"])
def test_dropout_reaches_every_place(system: str) -> None:
    """Embeddings, attention weights and residual parts of both stacks, and heads: each alone changes the outcome."""
    model = SYSTEMS[system].sized("tiny", {"layers": 2, "width": 16, "heads": 2, "mlp": 24}, VOCAB)
    net = NetworkModel(Network(model=model, heads=dict(class_heads(model, "classify", 3))))
    net.initialise(torch.Generator().manual_seed(0))
    batch, places = torched(join_all(documents())), {}
    asked = Target("decoder", torch.arange(6), torch.zeros(6, dtype=torch.long), torch.ones(6), "document")

    def scores() -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return net.logits("classify", net(batch.streams), batch.streams, asked)

    net.eval()
    still = scores()
    net.set_dropout(0.5)
    assert torch.equal(scores(), still)
    net.train()
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Dropout):
            places[name] = (module, "p")
        elif isinstance(module, AttentionLayer):
            places[name] = (module, "dropout")
    assert (
        len(places) == 2 + 2 + 2 + 2 + 4 + 1
    )  # embeddings, blocks, attention of the encoder, and of the decoder twice; the head
    for name, (module, field) in places.items():
        assert getattr(module, field) == 0.5
        net.set_dropout(0.0)
        assert torch.equal(scores(), still)
        setattr(module, field, 0.5)
        assert not torch.equal(scores(), still), name
        net.set_dropout(0.5)


@pytest.mark.parametrize("system", ["bart", "mass"])
def test_fresh_weights_are_normal(system: str) -> None:
    model = SYSTEMS[system].sized("tiny", {"layers": 2, "width": 64, "heads": 2, "mlp": 96}, 400)
    net = NetworkModel(Network(model=model, heads={"lm": VocabHead()}))
    net.initialise(torch.Generator().manual_seed(0))
    norms = {f"{n}.weight" for n, m in net.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    for name, p in net.named_parameters():
        if p.ndim > 1:
            assert float(p.detach().std()) == pytest.approx(0.02, rel=0.05), name
        else:
            assert (p == (1.0 if name in norms else 0.0)).all(), name

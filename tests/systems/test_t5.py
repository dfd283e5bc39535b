"""T5 1.0 and 1.1 against `transformers`: every class, both directions, packed and padded on either side, beyond 128 tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from seq2seq import CPU, VOCAB, assert_parity, both, network_of, read, reload, rewrite, their_scores, twins, unseen
from singles import shake_all

from ziggurat.errors import UserError
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.drift import first_drift
from ziggurat.systems.hub import to_hub

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": VOCAB, "d_model": 48, "d_kv": 20, "d_ff": 72, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip
"""Heads of 4 x 20 in a model of width 48, and stacks of different depth."""
KINDS: dict[str, dict[str, Any]] = {
    "t5": {"feed_forward_proj": "relu"},
    "t5_1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
CLASSES = list(SYSTEMS["t5"].classes)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_class = pytest.mark.parametrize("name", CLASSES)


def theirs(kind: str, name: str, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, name)(transformers.T5Config(**{**SHAPE, **KINDS[kind], "num_labels": 2, **more})).eval()
    if kind == "t5_1_1" and name.endswith("ConditionalGeneration"):
        # a model of this kind that transformers 5 makes afresh is tied, which no released one is
        model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn(VOCAB, 48))
    shake_all(model, seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".q.weight"):  # scores are not scaled: softmax of larger ones would blow rounding up
                parameter.mul_(0.15)
    return model


@every_class
@every_kind
def test_every_class_goes_both_ways(kind: str, name: str, tmp_path: Path) -> None:
    model = theirs(kind, name, seed=sum(map(ord, name)))
    model.save_pretrained(tmp_path / "theirs")
    found, network = read(tmp_path / "theirs")
    assert found.system == kind
    t = twins(model.config, same=both(name))
    gap = assert_parity(network, model, t)
    assert_parity(network, model, twins(model.config, same=both(name), left=True, seed=1))  # relative: any side may be padded
    ids = {key: getattr(model.config, key) for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    made = to_hub(found.network, network.state_dict(), None, found.system, tmp_path / "ours", ids=ids, architecture=name)
    assert made.architecture == name
    back = reload(tmp_path / "ours", name)
    assert_parity(network, back, t)
    a, b = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    print(f"{kind} {name}: {gap:.1e}")


def test_all_classes_of_this_transformers_are_covered() -> None:
    from transformers.models import t5

    models = {n for n in dir(t5) if isinstance(getattr(t5, n), type) and issubclass(getattr(t5, n), transformers.PreTrainedModel)}
    assert {n for n in models if "PreTrainedModel" not in n} == set(CLASSES)


@every_kind
@pytest.mark.parametrize("head", ["lm", "classify", "regress", "tag", "span"])
def test_our_own_models_are_what_transformers_loads(kind: str, head: str, tmp_path: Path) -> None:
    """Every weight moved; found without naming the system; other heads are left out with a note."""
    model = model_of(
        f"{kind}/tiny", {"layers": 2, "decoder_layers": 3, "width": 48, "heads": 4, "mlp": 72, "head_width": 20}, VOCAB
    )
    heads: dict[str, spec.Head] = {"lm": spec.VocabHead()}
    if head in ("classify", "regress"):
        heads |= spec.class_heads(model, head, 5 if head == "classify" else 1)
    elif head != "lm":
        heads[head] = spec.TokenHead(outputs={"tag": 7, "span": 2}[head])
    network = NetworkModel(spec.Network(model=model, heads=heads)).eval()
    network.initialise(torch.Generator().manual_seed(1))
    shake_all(network, 1)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.mul_(0.15 if key.endswith(".q.weight") else 1.0)
    written = to_hub(network.spec, network.state_dict(), None, None, tmp_path)
    endings = {
        "classify": "SequenceClassification",
        "regress": "SequenceClassification",
        "tag": "TokenClassification",
        "span": "QuestionAnswering",
    }
    name = "T5For" + endings.get(head, "ConditionalGeneration")
    assert written.architecture == name and ("has no place for the heads lm" in "".join(written.notes)) == (head != "lm")
    back = reload(tmp_path, name)
    assert (back.config.pad_token_id, back.config.eos_token_id, back.config.decoder_start_token_id) == (0, 1, 0)
    assert_parity(network, back, twins(back.config, same=both(name)))


def exported(kind: str, folder: Path, name: str = "T5ForConditionalGeneration") -> tuple[Any, dict[str, torch.Tensor]]:
    model = theirs(kind, name, seed=4)
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


def test_old_files_are_read(tmp_path: Path) -> None:
    """Repeated tables, and a bias of the attention to the encoder that no model reads."""
    model, tensors = exported("t5", tmp_path)
    shared = tensors["shared.weight"]
    tensors |= {f"{part}.weight": shared.clone() for part in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")}
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(32, 4)
    rewrite(tmp_path, tensors, scale_decoder_outputs=None, num_decoder_layers=2)
    assert_parity(read(tmp_path)[1], model, twins(model.config))


def test_the_tie_of_older_configurations_tells_the_release(tmp_path: Path) -> None:
    """transformers 4 wrote the tie, 5 the factor and a tie that says nothing; ours has both, and either reads it."""
    model, _ = exported("t5_1_1", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["tie_word_embeddings"] is True and config["scale_decoder_outputs"] is False
    assert_parity(read(tmp_path)[1], model, twins(model.config))
    rewrite(tmp_path, tie_word_embeddings=False, scale_decoder_outputs=None)
    found, network = read(tmp_path)
    assert_parity(network, model, twins(model.config))
    to_hub(found.network, network.state_dict(), None, found.system, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text("utf-8"))
    assert config["tie_word_embeddings"] is False and config["scale_decoder_outputs"] is False
    assert "lm_head.weight" in load_file(tmp_path / "ours" / "model.safetensors")


def test_a_release_1_1_that_was_made_afresh_is_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SHAPE, **KINDS["t5_1_1"])).eval()
    shake_all(model, 3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.mul_(0.15 if key.endswith(".q.weight") else 0.3 if key == "shared.weight" else 1.0)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    found, network = read(tmp_path)
    assert any("lm_head.weight is not in the file" in note for note in found.notes)
    assert_parity(network, model, twins(model.config))
    to_hub(found.network, network.state_dict(), None, found.system, tmp_path / "ours")
    assert_parity(network, reload(tmp_path / "ours", "T5ForConditionalGeneration"), twins(model.config))


@pytest.mark.parametrize("name", ["T5EncoderModel", "T5ForTokenClassification"])
def test_a_file_of_the_encoder_alone_says_so(name: str, tmp_path: Path) -> None:
    exported("t5", tmp_path, name)
    found, network = read(tmp_path)
    assert any("holds the encoder alone" in note for note in found.notes)
    assert len(network.model.decoder.blocks) == 2
    again, _ = read(tmp_path)
    assert all(torch.equal(found.tensors[k], again.tensors[k]) for k in found.tensors)


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        ("feed_forward_proj", "gated-silu", "feed_forward_proj is 'gated-silu'"),
        ("feed_forward_proj", "gelu", "feed_forward_proj is 'gelu'"),
        ("d_kv", 24, r"\[80, 48\] there, \[96, 48\]"),
        ("num_decoder_layers", 3, r"missing +model.decoder.blocks.2"),
        ("relative_attention_num_buckets", 16, r"\[32, 4\] there, \[16, 4\]"),
        ("decoder_start_token_id", 7, "begins with token 7"),
        ("architectures", ["T5ForCausalLM"], "no t5 class 'T5ForCausalLM'"),
    ],
)  # fmt: skip
def test_what_we_would_compute_otherwise_is_refused(entry: str, value: Any, says: str, tmp_path: Path) -> None:
    exported("t5", tmp_path)
    rewrite(tmp_path, **{entry: value})
    with pytest.raises(UserError, match=says):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"project": spec.VocabProjection(transform=False, bias=False, tied=False, scale="width")}, "project"),
        ({"project": spec.VocabProjection(transform=False, bias=True, scale="width")}, "project.bias"),
        ({"embed": spec.Embed(positions=spec.Learned(), norm=None)}, "embed.positions"),
        ({"final_norm": spec.RMSNorm(eps=1e-5)}, "layer_norm_epsilon"),
        ({"block": SYSTEMS["t5_1_1"].model.block}, "block.mlp.gated"),
    ],
)
def test_a_model_that_no_hub_class_computes_is_not_exported(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    model = model_of("t5/tiny").model_copy(update=change)
    network = NetworkModel(spec.Network(model=model))
    with pytest.raises(UserError, match=says):
        to_hub(network.spec, network.state_dict(), None, "t5", tmp_path / "out")


SLIPS: dict[str, dict[str, Any]] = {
    "scaled scores": {"block.attention.scale": "root"},
    "eps of the norms": {"block.norm.eps": 1e-2},
    "far distances": {"buckets.longest": 64},
    "no factor": {"project.scale": "one"},
    "another activation": {"block.mlp.activation": "gelu"},
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_wrong_spec_is_seen(slip: str, tmp_path: Path) -> None:
    model, _ = exported("t5", tmp_path)
    found, _ = read(tmp_path)
    dump = found.network.model_dump()
    for place, value in SLIPS[slip].items():
        node, (*path, last) = dump["model"], place.split(".")
        for part in path:
            node = node[part]
        node[last] = value
    network = network_of(spec.Network.model_validate(dump), found.tensors)
    with pytest.raises(pytest.fail.Exception, match="differs by"):
        assert_parity(network, model, twins(model.config))


@every_kind
@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "T5ForSequenceClassification"])
def test_every_single_parameter_matters(kind: str, name: str, tmp_path: Path) -> None:
    """Zeroing any one tensor breaks parity: none is ignored on either side."""
    model, _ = exported(kind, tmp_path, name)
    _, network = read(tmp_path)
    assert not unseen(network, model, twins(model.config, same=both(name)))


@pytest.mark.parametrize("place", ["encoder.embed", "encoder.blocks.1", "decoder.blocks.0", "decoder.blocks.1"])
def test_first_drift_names_the_stack_and_layer(place: str, tmp_path: Path) -> None:
    model, _ = exported("t5", tmp_path)
    _, network = read(tmp_path)
    t = twins(model.config)
    _, hidden = their_scores(model, t)
    streams = to_device(t.batch, CPU).streams
    assert first_drift(network, streams, hidden) is None
    with torch.no_grad():
        side, _, part = place.partition(".")
        stack = getattr(network.model, side)
        moved = network.model.token.weight if part == "embed" else stack.blocks[int(part[-1])].mlp.down.weight
        moved.add_(0.01)
    assert (first_drift(network, streams, hidden) or "").startswith(place)


@every_kind
def test_fresh_weights_are_as_wide_as_the_hubs(kind: str) -> None:
    """Every matrix and table by itself: queries smaller by the root of a head's width, because scores are not scaled."""
    dials = {"layers": 1, "decoder_layers": 1, "width": 96, "heads": 4, "mlp": 300, "head_width": 40}
    model = model_of(f"{kind}/tiny", dials, 500)
    heads = {"lm": spec.VocabHead(), **spec.class_heads(model, "classify", 50)}
    network = NetworkModel(spec.Network(model=model, heads=heads))
    network.initialise(torch.Generator().manual_seed(0))
    tensors = {k: v for k, v in network.state_dict().items() if not k.startswith("heads.lm")}
    ours = SYSTEMS[kind].named(("classify",), model).to_hub(tensors)
    config = transformers.T5Config(
        vocab_size=500, d_model=96, d_kv=40, d_ff=300, num_layers=1, num_heads=4, num_labels=50, decoder_start_token_id=0,
        **KINDS[kind],
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.T5ForSequenceClassification(config).state_dict()
    for name, tensor in ours.items():
        if tensor.ndim > 1:
            assert tensor.std().item() == pytest.approx(theirs[name].std().item(), rel=0.15), name
        else:
            assert torch.equal(tensor, theirs[name]), name

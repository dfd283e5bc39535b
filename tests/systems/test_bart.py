"""BART against `transformers`: every class, both directions, packed and padded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from seq2seq import LENGTH, VOCAB, assert_parity, both, read, reload, rewrite, twins, unseen
from singles import shake_all

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import to_hub

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": VOCAB, "d_model": 48, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 72, "decoder_ffn_dim": 72, "max_position_embeddings": LENGTH,
    "dropout": 0.0, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
CLASSES = list(SYSTEMS["bart"].classes)


def theirs(name: str, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, name)(transformers.BartConfig(**{**SHAPE, **more})).eval()
    shake_all(model, seed, buffers=True)
    return model


@pytest.mark.parametrize("more", [{}, {"scale_embedding": True, "activation_function": "gelu_new"}], ids=["plain", "scaled"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_goes_both_ways(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    model = theirs(name, seed=sum(map(ord, name)), **more)
    model.save_pretrained(tmp_path / "theirs")
    found, network = read(tmp_path / "theirs")
    assert found.system == "bart"
    t = twins(model.config, same=both(name))
    gap = assert_parity(network, model, t)
    ids = {key: SHAPE[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")}
    made = to_hub(found.network, network.state_dict(), None, found.system, tmp_path / "ours", ids=ids)
    assert made.architecture == name
    back = reload(tmp_path / "ours", name)
    assert_parity(network, back, t)
    a, b = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    print(f"{name}: {gap:.1e}")


def test_all_classes_of_this_transformers_are_covered() -> None:
    """But for a decoder that skips the attention to an encoder, which our stacks do not."""
    from transformers.models import bart

    models = {
        n for n in dir(bart) if isinstance(getattr(bart, n), type) and issubclass(getattr(bart, n), transformers.PreTrainedModel)
    }
    assert {n for n in models if "retrained" not in n.lower()} - set(SYSTEMS["bart"].refused) == set(CLASSES)


@pytest.mark.parametrize("head", ["lm", "classify", "regress", "span"])
def test_our_own_models_are_what_transformers_loads(head: str, tmp_path: Path) -> None:
    model = model_of("bart/tiny", {"layers": 2, "decoder_layers": 3, "width": 48, "heads": 4, "mlp": 72}, VOCAB)
    heads: dict[str, spec.Head] = {"lm": spec.VocabHead()}
    if head in ("classify", "regress"):
        heads |= spec.class_heads(model, head, 5 if head == "classify" else 1)
    elif head != "lm":
        heads[head] = spec.TokenHead(outputs=2)
    network = NetworkModel(spec.Network(model=model, heads=heads)).eval()
    network.initialise(torch.Generator().manual_seed(1))
    shake_all(network, 1, buffers=True)
    written = to_hub(network.spec, network.state_dict(), None, None, tmp_path)
    name = "BartFor" + {"lm": "ConditionalGeneration", "span": "QuestionAnswering"}.get(head, "SequenceClassification")
    assert written.architecture == name and ("has no place for the heads lm" in "".join(written.notes)) == (head != "lm")
    back = reload(tmp_path, name)
    assert [getattr(back.config, key) for key in list(SHAPE)[-4:]] == [1, 0, 2, 2] and back.config.forced_eos_token_id == 2
    assert_parity(network, back, twins(back.config, same=both(name)))


def test_old_files_are_read(tmp_path: Path) -> None:
    """Repeated tables, a version mark, and no bias of the projection where it is 0."""
    model = theirs("BartForConditionalGeneration", seed=2)
    model.final_logits_bias.zero_()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["final_logits_bias"]
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors["model.shared.weight"].clone()
    tensors["encoder.version"] = torch.tensor([3.0])
    rewrite(tmp_path, tensors)
    assert_parity(read(tmp_path)[1], model, twins(model.config))
    tensors["lm_head.weight"] += 1
    rewrite(tmp_path, tensors)
    with pytest.raises(UserError, match="differs from"):
        read(tmp_path)


def test_generation_ends_with_the_end_token_of_the_vocabulary(tmp_path: Path) -> None:
    """The Hub's class forces token 2 at the longest length, whatever the end token is, unless it is told."""
    model = model_of("bart/tiny", {"layers": 1, "width": 16, "heads": 2, "mlp": 24}, VOCAB)
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()}))
    network.initialise(torch.Generator().manual_seed(0))
    ids = {"pad_token_id": 5, "bos_token_id": 6, "eos_token_id": 7, "decoder_start_token_id": 7}
    to_hub(network.spec, network.state_dict(), None, None, tmp_path, ids=ids)
    back = reload(tmp_path, "BartForConditionalGeneration")
    said = back.generate(torch.tensor([[6, 20, 21, 7]]), max_new_tokens=3, num_beams=1, do_sample=False)[0].tolist()
    assert said[0] == 7 and said[-1] == 7 and 2 not in said


def test_another_first_token_of_the_decoder_is_kept(tmp_path: Path) -> None:
    theirs("BartForConditionalGeneration", decoder_start_token_id=0).save_pretrained(tmp_path)
    found, network = read(tmp_path)
    assert found.network.model.start == "first"
    for ids in ({key: found.config[key] for key in list(SHAPE)[-4:]}, None, {"pad_token_id": 1, "bos_token_id": 0}):
        to_hub(found.network, network.state_dict(), None, "bart", tmp_path / "ours", ids=ids)
        assert json.loads((tmp_path / "ours" / "config.json").read_text("utf-8"))["decoder_start_token_id"] == 0


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        ("activation_function", "silu", "activation_function is 'silu'"),
        ("decoder_ffn_dim", 80, "encoder_ffn_dim is 72, but decoder_ffn_dim 80"),
        ("decoder_attention_heads", 2, "encoder_attention_heads is 4, but decoder_attention_heads 2"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False"),
        ("decoder_layers", 3, r"missing +model.decoder.blocks.2"),
        ("max_position_embeddings", 80, r"\[162, 48\] there, \[82, 48\]"),
        ("decoder_start_token_id", 9, "begins with token 9"),
        ("architectures", ["BartForCausalLM"], "BartForCausalLM is neither read nor written"),
    ],
)
def test_what_we_would_compute_otherwise_is_refused(entry: str, value: Any, says: str, tmp_path: Path) -> None:
    theirs("BartForConditionalGeneration").save_pretrained(tmp_path)
    rewrite(tmp_path, **{entry: value})
    with pytest.raises(UserError, match=says):
        read(tmp_path)


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "BartForSequenceClassification"])
def test_every_single_parameter_matters(name: str, tmp_path: Path) -> None:
    """Zeroing any one tensor breaks parity, but for the bias of keys, which softmax does not see."""
    model = theirs(name, seed=6)
    model.save_pretrained(tmp_path)
    _, network = read(tmp_path)
    ignored = unseen(network, model, twins(model.config, same=both(name)))
    assert all(key.endswith(".k.bias") for key in ignored) and len(ignored) == 3 + 2 * 2

"""GPT against the Hub's classes: norms last, the tanh GELU under the name of the exact one, the odd tie of the model of two heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from singles import agree, both_ways, documents, load, padded, scores, shake, stream_of, their_scores

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import from_hub, to_hub

transformers = pytest.importorskip("transformers")

VOCAB, LENGTHS = 67, (38, 3, 17, 1, 30, 8, 40, 2)
DIALS = {"layers": 2, "width": 64, "heads": 4, "mlp": 256}


def theirs(name: str, **more: Any) -> Any:
    shape = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 40, "vocab_size": VOCAB, "pad_token_id": 2}
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.OpenAIGPTConfig(**{**shape, **more})).eval()
    shake(model, sum(map(ord, name)))
    return model


def texts(name: str, left: bool = False) -> tuple[Any, dict[str, torch.Tensor]]:
    ids = documents(LENGTHS, VOCAB)
    full, mask = padded(ids, 2, left=left)
    inputs = {
        "input_ids": full,
        "attention_mask": mask,
        "position_ids": padded([torch.arange(n) for n in LENGTHS], 0, left=left)[0],
    }
    if name.endswith("DoubleHeadsModel"):
        inputs["mc_token_ids"] = torch.tensor(LENGTHS) - 1
    return stream_of(ids, "causal"), inputs


@pytest.mark.parametrize("name", SYSTEMS["gpt"].classes)
def test_every_class_goes_both_ways(name: str, tmp_path: Path) -> None:
    stream, inputs = texts(name)
    both_ways(theirs(name), "gpt", stream, inputs, tmp_path)


@pytest.mark.parametrize("afn", ["relu", "silu", "swish"])
def test_other_activations(afn: str, tmp_path: Path) -> None:
    model = theirs("OpenAIGPTLMHeadModel", afn=afn)
    model.save_pretrained(tmp_path)
    stream, inputs = texts("OpenAIGPTLMHeadModel")
    agree(scores(load(from_hub(tmp_path)), stream), their_scores(model, inputs), afn)


def test_pads_on_the_left(tmp_path: Path) -> None:
    model = theirs("OpenAIGPTForSequenceClassification", num_labels=3)
    model.save_pretrained(tmp_path)
    stream, inputs = texts("OpenAIGPTForSequenceClassification", left=True)
    agree(scores(load(from_hub(tmp_path)), stream), their_scores(model, inputs), "left")


def test_gelu_is_the_tanh_form(tmp_path: Path) -> None:
    model = theirs("OpenAIGPTLMHeadModel")
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    stream, inputs = texts("OpenAIGPTLMHeadModel")
    assert found.network.model.block.mlp.activation == "gelu_tanh"
    network = load(found)
    for block in network.model.blocks:
        block.mlp.activation = torch.nn.functional.gelu
    with pytest.raises(AssertionError, match="differs by"):
        agree(scores(network, stream), their_scores(model, inputs), "exact")


def test_all_classes_are_covered() -> None:
    from transformers.models import openai

    public = {n for n in dir(openai) if isinstance(getattr(openai, n), type) and n.startswith("OpenAI")}
    models = {n for n in public if issubclass(getattr(openai, n), transformers.PreTrainedModel)} - {"OpenAIGPTPreTrainedModel"}
    assert models == set(SYSTEMS["gpt"].classes)


def test_the_model_of_two_heads_stores_the_projection(tmp_path: Path) -> None:
    theirs("OpenAIGPTDoubleHeadsModel").save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" in stored and "transformer.tokens_embed.weight" not in stored
    assert torch.equal(from_hub(tmp_path).tensors["model.embed.token.weight"], stored["lm_head.weight"])


def test_four_widths_or_no_export(tmp_path: Path) -> None:
    model = model_of("gpt/tiny", {**DIALS, "mlp": 96}, VOCAB)
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()}))
    with pytest.raises(UserError, match="mlp"):
        to_hub(network.spec, network.state_dict(), None, "gpt", tmp_path / "out")


def test_ours_is_what_transformers_loads(tmp_path: Path) -> None:
    model = model_of("gpt/tiny", DIALS, VOCAB)
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).eval()
    shake(network, 1)
    made = to_hub(network.spec, network.state_dict(), None, None, tmp_path, ids={"pad_token_id": 2})
    assert made.architecture == "OpenAIGPTLMHeadModel"
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    stream, inputs = texts("OpenAIGPTLMHeadModel")
    agree(scores(network, stream), their_scores(back, inputs), "gpt")

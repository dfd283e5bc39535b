"""ModernBERT against the Hub's classes: bands, two rotary bases, gates, configuration of either age."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from singles import agree, both_ways, documents, load, padded, scores, shake, stream_of, their_scores

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import from_hub, to_hub

transformers = pytest.importorskip("transformers")

VOCAB, LENGTHS = 67, (38, 3, 17, 1, 30, 8, 40, 2)
SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": VOCAB,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    "max_position_embeddings": 40, "local_attention": 10,
}  # fmt: skip


def theirs(name: str, **more: Any) -> Any:
    config = transformers.ModernBertConfig(**{**SHAPE, **more})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    shake(model, sum(map(ord, name)))
    return model


def texts(left: bool = False) -> tuple[Any, dict[str, torch.Tensor]]:
    ids = documents(LENGTHS, VOCAB)
    full, mask = padded(ids, 0, left=left)
    return stream_of(ids, "full"), {"input_ids": full, "attention_mask": mask}


@pytest.mark.parametrize("name", SYSTEMS["modernbert"].classes)
def test_every_class_goes_both_ways(name: str, tmp_path: Path) -> None:
    stream, inputs = texts()
    both_ways(theirs(name), "modernbert", stream, inputs, tmp_path)


def test_pads_on_the_left(tmp_path: Path) -> None:
    model = theirs("ModernBertForMaskedLM")
    model.save_pretrained(tmp_path)
    stream, inputs = texts(left=True)
    agree(scores(load(from_hub(tmp_path)), stream), their_scores(model, inputs), "left")


def test_all_classes_are_covered() -> None:
    from transformers.models import modernbert

    public = {n for n in dir(modernbert) if isinstance(getattr(modernbert, n), type) and n.startswith("ModernBert")}
    models = {n for n in public if issubclass(getattr(modernbert, n), transformers.PreTrainedModel)} - {
        "ModernBertPreTrainedModel"
    }
    assert models == set(SYSTEMS["modernbert"].classes)


@pytest.mark.parametrize("layers", [2, 5])
def test_ours_is_what_transformers_loads(layers: int, tmp_path: Path) -> None:
    model = model_of("modernbert/tiny", {"layers": layers, "width": 64, "heads": 4, "mlp": 96}, VOCAB)
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).eval()
    shake(network, 1)
    to_hub(network.spec, network.state_dict(), None, None, tmp_path, ids={"pad_token_id": 0})
    assert from_hub(tmp_path).network.model == model
    back = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    ids = documents((150, 3, 66, 65, 129), VOCAB)  # beyond the band of 64
    full, mask = padded(ids, 0)
    inputs = {"input_ids": full, "attention_mask": mask}
    agree(scores(network, stream_of(ids, "full")), their_scores(back, inputs), "modernbert")

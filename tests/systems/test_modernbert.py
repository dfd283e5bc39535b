"""ModernBERT against the Hub's classes: bands in any order, two rotary bases, gates, means, configuration of either age."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from singles import agree, both_ways, documents, load, padded, scores, shake, stream_of, their_scores

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import from_hub, to_hub

transformers = pytest.importorskip("transformers")

PAGE = SYSTEMS["modernbert"]
VOCAB, LENGTHS = 67, (38, 3, 17, 1, 30, 8, 40, 2)
SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": VOCAB,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    "max_position_embeddings": 40, "local_attention": 10,
}  # fmt: skip
OLD = {"global_rope_theta": 5_000.0, "local_rope_theta": 700.0, "local_attention": 20, "global_attn_every_n_layers": 3}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


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


@pytest.mark.parametrize("name", PAGE.classes)
def test_every_class_goes_both_ways(name: str, tmp_path: Path) -> None:
    stream, inputs = texts()
    both_ways(theirs(name), "modernbert", stream, inputs, tmp_path)


ORDERS: dict[str, dict[str, Any]] = {
    "every one": {"global_attn_every_n_layers": 1},
    "every second": {"global_attn_every_n_layers": 2},
    "every fourth": {"global_attn_every_n_layers": 4},
    "the first alone": {"global_attn_every_n_layers": 7},
    "no other word": {"layer_types": [GLOBAL, LOCAL, GLOBAL, LOCAL, GLOBAL]},
    "local first": {"layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL]},
    "no rule": {"layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL, LOCAL]},
    "windows only": {"layer_types": [LOCAL] * 5},
}


@pytest.mark.parametrize("order", ORDERS)
def test_layers_in_any_order(order: str, tmp_path: Path) -> None:
    stream, inputs = texts()
    model = theirs("ModernBertForMaskedLM", **ORDERS[order])
    network = both_ways(model, "modernbert", stream, inputs, tmp_path)
    body = network.spec.model
    assert isinstance(body, spec.Single)
    kinds = [GLOBAL if body.pattern[i % len(body.pattern)].window is None else LOCAL for i in range(body.layers)]
    assert kinds == model.config.layer_types and len(body.pattern) <= max(5, ORDERS[order].get("global_attn_every_n_layers", 0))
    assert PAGE.read(PAGE.write(body)) == body


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("head", ["SequenceClassification", "MultipleChoice"])
def test_a_mean_over_the_text(head: str, left: bool, tmp_path: Path) -> None:
    stream, inputs = texts(left)
    model = theirs(f"ModernBertFor{head}", classifier_pooling="mean")
    network = both_ways(model, "modernbert", stream, inputs, tmp_path)
    assert network.spec.model.pool.at == "mean"
    first = network.spec.model.model_copy(update={"pool": spec.Pool(at="first", by="transform")})
    other = NetworkModel(network.spec.model_copy(update={"model": first})).eval()
    other.load_state_dict(network.state_dict())
    name = next(iter(network.spec.heads))
    assert (scores(network, stream)[name] - scores(other, stream)[name]).abs().max() > 0.1, "the mean is not the first token"


def test_what_a_file_says_of_classifiers_waits_for_one(tmp_path: Path) -> None:
    """Published files say `mean` whatever class they are of; a task that is trained on them pools so, there as here."""
    transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**SHAPE, classifier_pooling="mean")).save_pretrained(
        tmp_path
    )
    found = from_hub(tmp_path)
    assert list(found.network.heads) == ["lm"] and found.network.model.pool.at == "mean"
    assert PAGE.write(found.network.model)["classifier_pooling"] == "mean"
    with pytest.raises(UserError, match="classifier_pooling is 'max'"):
        PAGE.read({"classifier_pooling": "max"})


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
    assert models == set(PAGE.classes)


@pytest.mark.parametrize("layers", [2, 5])
def test_ours_is_what_transformers_loads(layers: int, tmp_path: Path) -> None:
    """Texts beyond the window of 64 to either side."""
    model = model_of("modernbert/tiny", {"layers": layers, "width": 64, "heads": 4, "mlp": 96}, VOCAB)
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).eval()
    shake(network, 1)
    to_hub(network.spec, network.state_dict(), None, None, tmp_path, ids={"pad_token_id": 0})
    assert from_hub(tmp_path).network.model == model
    back = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    ids = documents((300, 3, 66, 65, 129), VOCAB)
    full, mask = padded(ids, 0)
    inputs = {"input_ids": full, "attention_mask": mask}
    agree(scores(network, stream_of(ids, "full")), their_scores(back, inputs), "modernbert")


def test_the_older_form_means_what_the_hub_takes_it_for() -> None:
    ours = PAGE.read(OLD | {"num_hidden_layers": 7, "local_rope_theta": None})
    theirs = transformers.ModernBertConfig(**OLD | {"num_hidden_layers": 7})
    assert isinstance(ours, spec.Single) and [a.window for a in ours.pattern] == [None, 10, 10]
    assert ours.pattern[0].distances == spec.Rotary(base=theirs.rope_parameters[GLOBAL]["rope_theta"])
    assert ours.pattern[1].distances == spec.Rotary(base=10_000.0)  # null: the default


def test_what_is_written_is_read_by_both() -> None:
    model = PAGE.sized("tiny", {"layers": 4})
    written = PAGE.write(model)
    assert written["global_attn_every_n_layers"] == 3 and written["local_attention"] == 128 and "pattern" not in written
    theirs = transformers.ModernBertConfig(**{k: v for k, v in written.items() if k != "model_type"})
    assert theirs.layer_types == [GLOBAL, LOCAL, LOCAL, GLOBAL]
    assert PAGE.read(written) == model


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"layer_types": ["full_attention"] * 21}, "layer_types are not 22 of"),
        ({"layer_types": ["chunked_attention"] * 22}, "layer_types are not 22 of"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotation of full_attention is scaled"),
    ],
)
def test_what_is_not_this_model_is_refused(entries: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        PAGE.read(entries)


@pytest.mark.parametrize(
    "change",
    [
        {0: {"window": 7}, 1: {"window": 9}},  # two windows
        {1: {"distances": spec.Rotary(base=9.0)}},  # local layers of two bases
        {0: {"distances": None}},
        {2: {"bias": True}},
    ],
)
def test_what_the_hub_has_no_words_for_is_not_written(change: dict[int, dict[str, Any]]) -> None:
    model = PAGE.sized("tiny")
    assert isinstance(model, spec.Single)
    pattern = tuple(each.model_copy(update=change.get(i, {})) for i, each in enumerate(model.pattern))
    with pytest.raises(UserError, match="have no model with this pattern"):
        PAGE.write(model.model_copy(update={"pattern": pattern}))

"""ERNIE 1.0 and 2.0 against the Hub's classes, task numbers included."""

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

VOCAB, LENGTHS = 67, (38, 3, 17, 1, 30, 8, 40, 2)
SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": VOCAB}


def theirs(name: str, **more: Any) -> Any:
    config = transformers.ErnieConfig(**{**SHAPE, "max_position_embeddings": 40, **more})
    config.is_decoder = name == "ErnieForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    shake(model, sum(map(ord, name)))
    return model


def texts(tasks: int, causal: bool, left: bool = False) -> tuple[Any, dict[str, torch.Tensor]]:
    """Documents in two segments, each of one task; the Hub counts positions by column unless told."""
    ids = documents(LENGTHS, VOCAB)
    segment = [(torch.arange(n) >= n // 2).long() for n in LENGTHS]
    task = [torch.full((n,), row % max(tasks, 1)) for row, n in enumerate(LENGTHS)]
    number = [2 * t + s for t, s in zip(task, segment, strict=True)]
    stream = stream_of(ids, "causal" if causal else "full", number)
    full, mask = padded(ids, 0, left=left)
    inputs = {"input_ids": full, "attention_mask": mask}
    for name, values in (("token_type_ids", segment), ("position_ids", [torch.arange(n) for n in LENGTHS])):
        inputs[name] = padded(values, 0, left=left)[0]
    if tasks:
        inputs["task_type_ids"] = padded(task, 0, left=left)[0]
    return stream, inputs


@pytest.mark.parametrize("tasks", [0, 3])
@pytest.mark.parametrize("name", SYSTEMS["ernie"].classes)
def test_every_class_goes_both_ways(name: str, tasks: int, tmp_path: Path) -> None:
    more = {"use_task_id": True, "task_type_vocab_size": tasks} if tasks else {}
    model = theirs(name, **more)
    stream, inputs = texts(tasks, name == "ErnieForCausalLM")
    both_ways(model, "ernie2" if tasks else "ernie", stream, inputs, tmp_path)


def test_all_classes_are_covered() -> None:
    from transformers.models import ernie

    public = {n for n in dir(ernie) if isinstance(getattr(ernie, n), type) and n.startswith("Ernie")}
    models = {n for n in public if issubclass(getattr(ernie, n), transformers.PreTrainedModel)} - {"ErniePreTrainedModel"}
    assert models == set(SYSTEMS["ernie"].classes) == set(SYSTEMS["ernie2"].classes)


def test_pads_on_the_left(tmp_path: Path) -> None:
    model = theirs("ErnieForTokenClassification", use_task_id=True)
    model.save_pretrained(tmp_path)
    stream, inputs = texts(3, causal=False, left=True)
    agree(scores(load(from_hub(tmp_path)), stream), their_scores(model, inputs), "left")


def test_the_task_matters(tmp_path: Path) -> None:
    """Task numbers that are left out are seen: the comparison can fail."""
    model = theirs("ErnieForMaskedLM", use_task_id=True)
    model.save_pretrained(tmp_path)
    stream, inputs = texts(3, causal=False)
    stream.segment.remainder_(2)
    with pytest.raises(AssertionError, match="differs by"):
        agree(scores(load(from_hub(tmp_path)), stream), their_scores(model, inputs), "no tasks")


@pytest.mark.parametrize("system", ["ernie", "ernie2"])
def test_ours_is_what_transformers_loads(system: str, tmp_path: Path) -> None:
    model = model_of(f"{system}/tiny", {"layers": 2, "width": 64, "heads": 4, "mlp": 96}, VOCAB)
    heads: dict[str, spec.Head] = {"lm": spec.VocabHead(), **spec.class_heads(model, "nsp", 2)}
    network = NetworkModel(spec.Network(model=model, heads=heads)).eval()
    shake(network, 1)
    made = to_hub(network.spec, network.state_dict(), None, system, tmp_path, ids={"pad_token_id": 0})
    assert made.architecture == "ErnieForPreTraining" and from_hub(tmp_path).system == system
    back = transformers.AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    stream, inputs = texts(model.embed.tasks, causal=False)
    agree(scores(network, stream), their_scores(back, inputs), system)


def test_a_model_with_tasks_is_not_ernie_1(tmp_path: Path) -> None:
    model = model_of("ernie2/tiny", {"layers": 2, "width": 64, "heads": 4, "mlp": 96}, VOCAB)
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()}))
    with pytest.raises(UserError, match=r"embed\.tasks"):
        to_hub(network.spec, network.state_dict(), None, "ernie", tmp_path / "out")

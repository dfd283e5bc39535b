"""ALBERT: which layer is which weights, what a file holds, and heads that have no class of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.structures import SingleModel
from ziggurat.systems import model_of
from ziggurat.systems.hub import from_hub, to_hub

DIALS = {"layers": 4, "width": 32, "heads": 2, "mlp": 48, "embedding": 12}


def network_of(heads: dict[str, spec.Head] | None = None, share: spec.Share | None = None, **dials: int) -> NetworkModel:
    model = model_of("albert/tiny", {**DIALS, **dials}, 60)
    assert isinstance(model, spec.Single)
    model = model.model_copy(update={"share": share or model.share})
    pair = {"lm": spec.VocabHead(), **spec.class_heads(model, "sop", 2)}
    network = NetworkModel(spec.Network(model=model, heads=pair if heads is None else heads)).eval()
    network.initialise(torch.Generator().manual_seed(0))
    return network


@pytest.mark.parametrize(
    ("layers", "groups", "inner", "want"),
    [
        (4, 1, 1, "0.0 0.0 0.0 0.0"),
        (4, 2, 1, "0.0 0.0 1.0 1.0"),
        (5, 2, 1, "0.0 0.0 0.0 1.0 1.0"),
        (5, 3, 1, "0.0 0.0 1.0 1.0 2.0"),
        (3, 2, 2, "0.0 0.1 0.0 0.1 1.0 1.1"),
        (2, 2, 3, "0.0 0.1 0.2 1.0 1.1 1.2"),
        (18, 14, 1, "0.0 0.0 1.0 2.0 3.0 3.0 4.0 5.0 6.0 6.0 7.0 8.0 9.0 10.0 10.0 11.0 12.0 13.0"),  # 9 / (18 / 14) is below 7
    ],
)
def test_layers_fall_into_groups_of_neighbours(layers: int, groups: int, inner: int, want: str) -> None:
    model = network_of(share=spec.Share(groups=groups, inner=inner), layers=layers).model
    assert isinstance(model, SingleModel)
    names = {id(block): name.removeprefix("blocks.") for name, block in model.named_modules()}
    assert " ".join(names[id(block)] for block in model.order) == want
    places = [int(i / (layers / groups)) for i in range(layers)]  # as the Hub's class counts them
    assert [int(place.split(".")[0]) for place in want.split()[::inner]] == places


def test_there_and_back_with_groups(tmp_path: Path) -> None:
    network = network_of(share=spec.Share(groups=2, inner=2))
    made = to_hub(network.spec, network.state_dict(), None, None, tmp_path)
    assert made.architecture == "AlbertForPreTraining" and not [n for n in made.notes if "left out" in n]
    found = from_hub(tmp_path)
    assert found.network == network.spec and found.system == "albert"
    assert all(torch.equal(found.tensors[name], t) for name, t in network.state_dict().items())
    stored = load_file(tmp_path / "model.safetensors")
    prefix = "albert.encoder.albert_layer_groups"
    groups = {name.removeprefix(f"{prefix}.")[:18] for name in stored if name.startswith(prefix)}
    assert groups == {f"{i}.albert_layers.{j}." for i in (0, 1) for j in (0, 1)}
    assert "predictions.decoder.weight" not in stored
    save_file({k: v for k, v in stored.items() if "groups.1.albert_layers.1.ffn.bias" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing +albert.encoder.albert_layer_groups.1.albert_layers.1.ffn.bias"):
        from_hub(tmp_path)


def test_heads_that_lie_in_the_file_come_along(tmp_path: Path) -> None:
    """The released files say AlbertForMaskedLM and hold the sentence-order head and the pooler too."""
    network = network_of()
    to_hub(network.spec, network.state_dict(), None, None, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text("utf-8").replace("AlbertForPreTraining", "AlbertForMaskedLM"), "utf-8")
    assert set(from_hub(tmp_path).network.heads) == {"lm", "pooler", "sop"}


def test_sentence_order_alone_has_no_class(tmp_path: Path) -> None:
    model = network_of().spec.model
    network = network_of(spec.class_heads(model, "sop", 2))
    made = to_hub(network.spec, network.state_dict(), None, None, tmp_path)
    assert made.architecture == "AlbertModel" and any("no place for the heads sop" in note for note in made.notes)


def test_layers_that_share_cannot_be_exported_as_bert(tmp_path: Path) -> None:
    network = network_of()
    with pytest.raises(UserError, match="share"):
        to_hub(network.spec, network.state_dict(), None, "bert", tmp_path)

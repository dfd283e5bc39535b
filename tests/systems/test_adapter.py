"""LoRA's additions in peft's layout: laid upon the base by peft's rule they are the merged export, and peft itself agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import model_of
from ziggurat.systems.adapter import write_adapter
from ziggurat.systems.hub import to_hub
from ziggurat.train.lora import Adapters

SMALL = {"layers": 2, "width": 32, "heads": 2, "mlp": 64}
CASES = {
    "bert": ("bert/tiny", ("q", "v", "up"), dict(lm=spec.VocabHead())),
    "gpt2": ("gpt2/tiny", ("q", "k", "v"), dict(lm=spec.VocabHead())),
    "gpt2-some": ("gpt2/tiny", ("q", "v"), dict(lm=spec.VocabHead())),
    **{
        f"{name}-new": (f"{name}/tiny", ("up", "down") if name == "xlnet" else ("q", "v"), dict(lm=spec.VocabHead()))
        for name in ("bert", "roberta", "albert", "modernbert", "xlnet")
    },
    "choice": ("gpt2/tiny", ("q", "k", "v"), dict(choice=spec.ClassHead(outputs=1, by="plain", bias=False))),
    "classify": ("bert/tiny", ("q", "out"), dict(pooler=spec.PoolerHead(), classify=spec.ClassHead(outputs=3))),
}


def made(folder: Path, case: str) -> tuple[spec.Network, str]:
    """The folders `base`, `merged` and `adapter` of a network with random additions (and, for `classify`, trained heads)."""
    name, targets, heads = CASES[case]
    system = name.partition("/")[0]
    network = NetworkModel(spec.Network(model=model_of(name, SMALL, 50), heads=heads))
    network.initialise(torch.Generator().manual_seed(0))
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    to_hub(network.spec, network.state_dict(), None, system, folder / "base", ids=ids)
    adapters = Adapters(network, 2, 6.0, targets, torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(2)
    for name_, tensor in adapters.tensors().items():
        tensor.copy_(0.3 * torch.randn(tensor.shape, generator=draw)) if name_.endswith("lora_b") else None
    new = [] if case in ("bert", "gpt2", "gpt2-some") else list(heads)
    trained = {n: p for n, p in network.named_parameters() if n.startswith("heads.") and new}
    with torch.no_grad():
        for p in trained.values():
            p.add_(0.1)
    to_hub(network.spec, adapters.merged(), None, system, folder / "merged", ids=ids)
    pairs = {n: (m.lora_a.detach(), m.lora_b.detach()) for n, m in adapters.added.items()}
    how: dict[str, Any] = {"rank": 2, "alpha": 6.0, "base": str(folder / "base")}
    write_adapter(folder / "adapter", network.spec, system, pairs, new=new, tensors=adapters.merged(), **how)
    return network.spec, system


@pytest.mark.parametrize("case", CASES)
def test_the_base_with_the_additions_is_the_merged_export(tmp_path: Path, case: str) -> None:
    """By peft's rule: W + lora_alpha / r * B A, transposed where `fan_in_fan_out` says so; `modules_to_save` replace the base's."""
    made(tmp_path, case)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text("utf-8"))
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    base, merged = (load_file(tmp_path / place / "model.safetensors") for place in ("base", "merged"))
    scale, found = config["lora_alpha"] / config["r"], dict[str, Tensor](base)
    for module in config["target_modules"]:
        a, b = (stored.pop(f"base_model.model.{module}.lora_{x}.weight") for x in "AB")
        assert a.shape[0] == b.shape[1] == config["r"]
        added = scale * b @ a
        found[f"{module}.weight"] = base[f"{module}.weight"] + (added.t() if config["fan_in_fan_out"] else added)
    for name, tensor in stored.items():
        plain = name.removeprefix("base_model.model.")
        assert plain.startswith(tuple(f"{home}." for home in config["modules_to_save"]))
        if plain in merged:
            found[plain] = tensor
        else:  # under its other name
            assert any(torch.equal(tensor, other) for other in merged.values()), name
    assert found.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(base[n], merged[n]) for n in merged)


def test_it_has_a_card(tmp_path: Path) -> None:
    """Of the same facts as an export's, without the folder of the base; a page of somebody's own stays."""
    network, system = made(tmp_path, "classify")
    lineage = [{"name": "finetune", "stage": "finetune", "recipe": "mine", "steps": 7}]
    how: dict[str, Any] = {"rank": 2, "alpha": 6.0, "base": str(tmp_path / "base"), "lineage": lineage}
    how |= {"labels": ("a", "b", "c"), "about": {"license": "mit", "base_model": "somebody/model"}}
    pairs = {"model.blocks.0.attention.q": (torch.zeros(2, 32), torch.zeros(32, 2))}
    write_adapter(tmp_path / "adapter", network, system, pairs, **how)
    _, front, body = (tmp_path / "adapter/README.md").read_text("utf-8").split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["library_name"] == "peft" and found["pipeline_tag"] == "text-classification"
    assert found["license"] == "mit" and found["base_model"] == "somebody/model"
    assert "# mine finetune" in body and "LoRA additions of rank 2, 128 parameters" in body and "made in 1 stage" in body
    assert 'PeftModel.from_pretrained(base, "FOLDER")' in body and "`a`, `b`, `c`" in body and "| finetune |" in body
    assert str(tmp_path) not in body
    (tmp_path / "adapter/README.md").write_text("# My own page\n", "utf-8")
    write_adapter(tmp_path / "adapter", network, system, pairs, **how)
    assert (tmp_path / "adapter/README.md").read_text("utf-8") == "# My own page\n"


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_it(tmp_path: Path, case: str) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    made(tmp_path, case)
    auto = getattr(transformers, json.loads((tmp_path / "base/config.json").read_text("utf-8"))["architectures"][0])
    adapted = peft.PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    merged = auto.from_pretrained(tmp_path / "merged").eval()
    plain = auto.from_pretrained(tmp_path / "base").eval()
    ids = torch.randint(2, 50, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs, ours, before = (m(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for m in (adapted, merged, plain))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert float((before - ours).abs().max()) > 1e-3


def test_matrices_laid_together_and_not(tmp_path: Path) -> None:
    network = NetworkModel(spec.Network(model=model_of("gpt2/tiny", SMALL, 50), heads={"lm": spec.VocabHead()}))
    adapters = Adapters(network, 2, 4.0, ("q", "k", "up"), torch.Generator())
    pairs = {n: (m.lora_a.detach(), m.lora_b.detach()) for n, m in adapters.added.items()}
    with pytest.raises(UserError, match="lays some of the matrices together and others not"):
        write_adapter(tmp_path / "a", network.spec, "gpt2", pairs, rank=2, alpha=4.0, base="b")


def test_a_new_parameter_that_lies_in_no_module(tmp_path: Path) -> None:
    network = NetworkModel(spec.Network(model=model_of("bart/tiny", SMALL, 50), heads={"lm": spec.VocabHead()}))
    adapters = Adapters(network, 2, 4.0, ("q",), torch.Generator())
    pairs = {n: (m.lora_a.detach(), m.lora_b.detach()) for n, m in adapters.added.items()}
    with pytest.raises(UserError, match="keeps a parameter of the new head in no module"):
        write_adapter(
            tmp_path / "a", network.spec, "bart", pairs, rank=2, alpha=4.0, base="b", new=["lm"], tensors=adapters.merged()
        )
    assert not (tmp_path / "a").exists()

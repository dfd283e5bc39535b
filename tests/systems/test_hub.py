"""Folders in Hugging Face format: files of every age are read, what we would compute otherwise is refused, ours load there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.base import context_of
from ziggurat.objectives.rewrite import echoed
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.base import NoHubClass
from ziggurat.systems.hub import export_checkpoint, from_hub, import_folder, to_hub
from ziggurat.text.tokenizer import Tokenizer
from ziggurat.text.train import TokenizerSpec, train_tokenizer
from ziggurat.types import Batch, Stream, Target, Visibility

DIALS = {"layers": 2, "width": 32, "heads": 2, "mlp": 48}
TEXTS = ["the ziggurat rises in stages", "each stage is smaller than the one below it", "sand, brick and reed", "塔 由 沙 聚 成"]
HELD = [name for name, system in SYSTEMS.items() if system.classes]
"""Systems that are written in somebody's layout."""
Heads = Callable[[spec.Single], dict[str, spec.Head]]


def network(system: str, heads: Heads = lambda model: {"lm": spec.VocabHead()}, vocab: int = 60, **more: Any) -> NetworkModel:
    dials = DIALS | ({"mlp": 4 * DIALS["width"]} if system == "gpt" else {})  # GPT-1's is four widths, always
    model = model_of(f"{system}/tiny", dials, vocab)
    if isinstance(model, spec.Adversaries):  # a folder holds one half; both: test_electra.py
        model = model.discriminator
    model = model.model_copy(update=more)
    found = NetworkModel(spec.Network(model=model, heads=heads(model))).eval()
    found.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in found.parameters():
            p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return found


def classes(model: spec.Single) -> dict[str, spec.Head]:
    return spec.class_heads(model, "classify", 3)


def export(
    folder: Path, system: str = "bert", heads: Heads = lambda model: {"lm": spec.VocabHead()}, **more: Any
) -> NetworkModel:
    ours = network(system, heads, **more)
    to_hub(ours.spec, ours.state_dict(), None, system, folder)
    return ours


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None, **config: Any) -> None:
    """Make a written folder look as somebody else's: other tensors, other entries (None: left out)."""
    if change is not None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    now = json.loads((folder / "config.json").read_text("utf-8")) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in now.items() if v is not None}), "utf-8")


def same(found: dict[str, Tensor], ours: NetworkModel) -> bool:
    state = ours.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize("system", HELD)
def test_there_and_back_is_the_same_model(system: str, tmp_path: Path) -> None:
    ours = export(tmp_path, system)
    found = from_hub(tmp_path)
    if system == "unilm2":  # its layout has no bias of keys, which softmax does not see; tests/systems/test_unilm.py
        for i in range(DIALS["layers"]):
            ours.get_parameter(f"model.blocks.{i}.attention.k.bias").data.zero_()
    assert same(found.tensors, ours) and SYSTEMS[found.system].model_type == SYSTEMS[system].model_type
    assert found.network.heads == ours.spec.heads
    assert found.network.model == ours.spec.model
    assert found.tokenizer is None and any("only the weights" in note for note in found.notes)


def test_shards_are_read(tmp_path: Path) -> None:
    ours = export(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for n, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{n + 1}-of-00002.safetensors"
        save_file({k: tensors[k] for k in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert same(from_hub(tmp_path).tensors, ours)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="has no model-00002-of-00002"):
        from_hub(tmp_path)


def test_old_bert_files_are_read(tmp_path: Path) -> None:
    """gamma and beta, buffers, the decoder stored beside what it repeats, half precision: as the oldest files are."""
    ours = export(tmp_path)

    def age(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        old = {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in tensors.items()
        }
        old["bert.embeddings.position_ids"] = torch.arange(512)[None]
        old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
        old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")  # some have only this one
        return old

    rewrite(tmp_path, age)
    assert same(from_hub(tmp_path).tensors, ours)
    rewrite(tmp_path, lambda tensors: {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()})
    found = from_hub(tmp_path)
    assert all(t.dtype == torch.float32 for t in found.tensors.values())
    assert any("float16" in note for note in found.notes)


def test_the_released_gpt2_file_is_read(tmp_path: Path) -> None:
    """It says GPT2LMHeadModel, but its names lack the prefix, and it carries the masks."""
    ours = export(tmp_path, "gpt2")

    def release(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k.removeprefix("transformer."): v for k, v in tensors.items()} | {
            f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8).tril() for i in range(2)
        }

    rewrite(tmp_path, release)
    found = from_hub(tmp_path)
    assert same(found.tensors, ours) and list(found.network.heads) == ["lm"]


def test_heads_that_lie_in_the_file_come_along(tmp_path: Path) -> None:
    """The released BERT says BertForMaskedLM and holds the next-sentence head too."""
    both: Heads = lambda model: {"lm": spec.VocabHead(), **spec.class_heads(model, "nsp", 2)}  # noqa: E731
    ours = export(tmp_path, "bert", both)
    rewrite(tmp_path, architectures=["BertForMaskedLM"])
    assert same(from_hub(tmp_path).tensors, ours)
    rewrite(tmp_path, architectures=None)
    assert set(from_hub(tmp_path).network.heads) == {"lm", "pooler", "nsp"}


def test_labels_come_along(tmp_path: Path) -> None:
    ours = network("roberta", classes)
    to_hub(ours.spec, ours.state_dict(), None, "roberta", tmp_path, labels=("neg", "中", "pos"))
    found = from_hub(tmp_path)
    assert found.labels == ("neg", "中", "pos")
    config = found.config
    assert config["id2label"] == {"0": "neg", "1": "中", "2": "pos"} and config["label2id"]["pos"] == 2
    assert config["problem_type"] == "single_label_classification"
    with pytest.raises(UserError, match="2 labels for head 'classify' with 3 outputs"):
        to_hub(ours.spec, ours.state_dict(), None, "roberta", tmp_path, labels=("neg", "pos"))
    assert from_hub(tmp_path).labels == ("neg", "中", "pos")  # the folder is as it was
    to_hub(ours.spec, ours.state_dict(), None, "roberta", tmp_path)
    assert from_hub(tmp_path).labels == ()  # placeholders are not names


@pytest.mark.parametrize(
    ("system", "entry", "value", "says"),
    [
        ("bert", "position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
        ("bert", "hidden_act", "silu", "hidden_act is 'silu'"),
        ("bert", "add_cross_attention", True, "add_cross_attention is True"),
        ("bert", "tie_word_embeddings", False, "tie_word_embeddings is False"),
        ("bert", "auto_map", {"AutoModel": "mine.Model"}, "its own model code"),
        ("bert", "model_type", "bertt", "did you mean bert"),
        ("bert", "architectures", ["BertForMaskLM"], "did you mean BertForMaskedLM"),
        ("bert", "num_attention_heads", 5, "width 32 is not a multiple of heads 5"),
        ("bert", "hidden_size", 64, r"token.weight: \[60, 32\] there, \[60, 64\] in the model"),
        ("bert", "num_hidden_layers", 3, r"missing +model.blocks.2"),
        ("bert", "vocab_size", 61, r"\[60, 32\] there, \[61, 32\]"),
        ("bert", "max_position_embeddings", 128, r"\[512, 32\] there, \[128, 32\]"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", "reorder_and_upcast_attn", True, "reorder_and_upcast_attn is True"),
        ("gpt2", "scale_attn_weights", False, "scale_attn_weights is False"),
        ("gpt2", "activation_function", "silu", "activation_function is 'silu'"),
        ("gpt2", "tie_word_embeddings", False, "tie_word_embeddings is False"),
    ],
)
def test_what_we_would_compute_otherwise_is_refused(system: str, entry: str, value: Any, says: str, tmp_path: Path) -> None:
    export(tmp_path, system)
    rewrite(tmp_path, **{entry: value})
    with pytest.raises(UserError, match=says):
        from_hub(tmp_path)


def test_robertas_pad_id_says_where_positions_begin(tmp_path: Path) -> None:
    export(tmp_path, "roberta")
    rewrite(tmp_path, pad_token_id=3)  # the same table, read from another row on: the longest document is shorter
    assert from_hub(tmp_path).network.model.embed.positions == spec.Learned(length=510, offset=4)
    rewrite(tmp_path, pad_token_id=None)  # left out: the Hub's class takes 1
    assert from_hub(tmp_path).network.model.embed.positions == spec.Learned(length=512, offset=2)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"pad_token_id": None}))  # null: it has none
    with pytest.raises(UserError, match="needs a pad_token_id"):
        from_hub(tmp_path)


def test_an_untied_headless_model_is_no_matter(tmp_path: Path) -> None:
    ours = export(tmp_path, "gpt2", classes)
    rewrite(tmp_path, tie_word_embeddings=False)
    assert same(from_hub(tmp_path).tensors, ours)


def test_other_tensors_are_refused_by_name(tmp_path: Path) -> None:
    export(tmp_path / "extra")
    rewrite(tmp_path / "extra", lambda t: t | {"bert.encoder.layer.0.attention.self.query.weightt": torch.zeros(2)})
    with pytest.raises(UserError, match=r"unknown +bert\.encoder\.layer\.0\.attention\.self\.query\.weightt"):
        from_hub(tmp_path / "extra")
    export(tmp_path / "less")
    rewrite(tmp_path / "less", lambda t: {k: v for k, v in t.items() if k != "bert.encoder.layer.1.output.dense.bias"})
    with pytest.raises(UserError, match=r"missing +bert\.encoder\.layer\.1\.output\.dense\.bias"):
        from_hub(tmp_path / "less")
    export(tmp_path / "untied")
    untied = {"cls.predictions.decoder.weight": torch.zeros(60, 32)}
    rewrite(tmp_path / "untied", lambda t: t | untied)
    with pytest.raises(UserError, match="differs from"):
        from_hub(tmp_path / "untied")


def test_folders_that_are_not_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"download it first"):
        from_hub("bert-base-uncased-nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        from_hub(tmp_path / "empty")
    export(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match="only safetensors are read"):
        from_hub(tmp_path / "pickled")
    export(tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or incomplete"):
        from_hub(tmp_path / "cut")
    export(tmp_path / "text")
    (tmp_path / "text" / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        from_hub(tmp_path / "text")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"block": spec.Block(norm_at="pre")}, "block.norm_at"),
        ({"block": spec.Block(norm=spec.LayerNorm(eps=1e-5))}, "layer_norm_eps"),
        ({"block": spec.Block(mlp=spec.Mlp(activation="relu"))}, "hidden_act"),
        ({"block": spec.Block(attention=spec.Attention(bias=False))}, "block.attention.bias"),
        ({"final_norm": spec.LayerNorm()}, "final_norm"),
        ({"project": spec.VocabProjection(transform=False)}, "project.transform"),
        ({"embed": spec.Embed(segments=2, positions=spec.Learned(offset=2))}, "embed.positions.offset"),
    ],
)
def test_a_model_that_no_hub_class_computes_is_not_exported(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    ours = network("bert", **change)
    with pytest.raises(UserError, match=says):
        to_hub(ours.spec, ours.state_dict(), None, "bert", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_system_is_found_from_the_model() -> None:
    from ziggurat.systems.base import system_of

    twins = {"ernie": "bert"}  # the same models under another name
    for name in HELD:
        system = SYSTEMS[twins.get(name, name)]
        assert system_of(SYSTEMS, model_of(f"{name}/tiny")).model_type == system.model_type
    with pytest.raises(UserError, match=r"gpt2: .*visibility"):
        system_of(SYSTEMS, model_of("gpt2/tiny").model_copy(update={"visibility": "full"}))


def test_a_band_is_in_no_class(tmp_path: Path) -> None:
    """GPT-3 alternates dense and banded layers; without bands it is what `gpt2` holds."""
    ours = network("gpt3")
    with pytest.raises(NoHubClass, match="gpt3 has no classes"):
        to_hub(ours.spec, ours.state_dict(), None, "gpt3", tmp_path / "a")
    with pytest.raises(NoHubClass, match="gpt2 classes have no model with this pattern"):
        to_hub(ours.spec, ours.state_dict(), None, "gpt2", tmp_path / "b")
    dense = network("gpt3", pattern=())
    to_hub(dense.spec, dense.state_dict(), None, "gpt2", tmp_path / "c")
    assert same(from_hub(tmp_path / "c").tensors, dense)


def test_several_task_heads_need_a_choice(tmp_path: Path) -> None:
    ours = network("bert", lambda model: {**classes(model), "tag": spec.TokenHead(outputs=4)})
    with pytest.raises(UserError, match="several task heads: classify, tag"):
        to_hub(ours.spec, ours.state_dict(), None, "bert", tmp_path)
    made = to_hub(ours.spec, ours.state_dict(), None, "bert", tmp_path, architecture="BertForTokenClassification")
    assert set(from_hub(tmp_path).network.heads) == {"tag"} and "classify" in made.notes[0]
    with pytest.raises(UserError, match="needs a head 'span'"):
        to_hub(ours.spec, ours.state_dict(), None, "bert", tmp_path, architecture="BertForQuestionAnswering")
    other = network("bert", lambda model: {"classify": spec.ClassHead(outputs=3, by="dense")})
    with pytest.raises(UserError, match="pools by 'dense'"):
        to_hub(other.spec, other.state_dict(), None, "bert", tmp_path)


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = export(tmp_path / "out")
    export(tmp_path / "out", "gpt2")
    assert from_hub(tmp_path / "out").system == "gpt2"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="not an export"):
        export(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ziggurat.systems.folder.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        to_hub(ours.spec, ours.state_dict(), None, "bert", tmp_path / "out")
    assert from_hub(tmp_path / "out").system == "gpt2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]


def trained(template: Any, vocab: int = 120) -> Tokenizer:
    kind: Any = {"gpt2": "bpe", "t5": "unigram"}.get(template, "wordpiece")
    size = {"bpe": 300, "unigram": 100 + vocab}.get(kind, vocab)
    made = TokenizerSpec(kind=kind, vocab=size, min_frequency=1)
    return train_tokenizer(made, iter(TEXTS * 3), template=template)


def packed(tokenizer: Tokenizer, texts: list[str], visibility: Any) -> Stream:
    """Texts with the layout's special tokens, end to end."""
    layout = tokenizer.layout
    rows = [[*layout.first, *map(int, e.ids), *layout.last] for e in tokenizer.encode(texts)]
    position = np.concatenate([np.arange(len(row)) for row in rows])
    content = np.array([i for row in rows for i in row])
    bounds = np.cumsum([0, *(len(row) for row in rows)])
    segment = np.zeros_like(content)
    segment[bounds[1:] - 1] = layout.summary or 0
    return Stream(content, bounds, position, segment, Visibility(visibility))


@pytest.mark.parametrize("system", [name for name in HELD if SYSTEMS[name].loads and "classify" in SYSTEMS[name].heads])
def test_from_text_to_scores_transformers_says_the_same(system: str, tmp_path: Path) -> None:
    """Our checkpoint, exported with its tokenizer, through nothing but Auto classes and raw text."""
    transformers = pytest.importorskip("transformers")
    tokenizer = trained(SYSTEMS[system].template)
    ours = network(system, classes, vocab=tokenizer.vocab.size + 5)
    card = checkpoints.Card(ours.spec, system, more={"labels": ["a", "b", "c"], "dropout": 0.0})
    checkpoints.save(tmp_path / "stage", 7, card, ours.state_dict(), state={}, tokenizer=tokenizer.save)
    made = export_checkpoint(tmp_path / "stage", tmp_path / "hf")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert getattr(model.config, SYSTEMS[system].dropouts[0]) == 0.0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.model_max_length == ours.spec.model.embed.positions.length
    ctx = context_of(ours.spec.model, tokenizer, 64)
    batch = Batch({"text": packed(tokenizer, TEXTS, ours.spec.model.visibility)}, {}, np.arange(len(TEXTS), dtype=np.uint64))
    streams = to_device(echoed(batch, ctx), torch.device("cpu")).streams
    documents = torch.arange(len(TEXTS))
    target = Target(ctx.streams[-1], documents, documents, torch.ones(len(TEXTS)), "document")
    with torch.no_grad():
        mine = ours.logits("classify", ours(streams), streams, target)
        if model.config.pad_token_id is None:
            other = torch.cat([model(**theirs(text, return_tensors="pt")).logits for text in TEXTS])
        else:
            other = model(**theirs(TEXTS, padding=True, return_tensors="pt")).logits
    assert torch.allclose(mine, other, atol=1e-4) and mine.std() > 0.1
    assert (model.config.pad_token_id is None) == any("one text at a time" in note for note in made.notes)


def test_a_pad_that_ends_documents_would_move_the_summary(tmp_path: Path) -> None:
    """Why config.json then names no pad: the Hub's class would score the token before the end."""
    transformers = pytest.importorskip("transformers")
    from types import SimpleNamespace

    ours = network("gpt2", classes)
    vocab, layout = SimpleNamespace(size=60, pad=9, end=9), SimpleNamespace(first=(), last=(9,), segments=(0, 0))
    tokenizer: Any = SimpleNamespace(vocab=vocab, layout=layout, save=lambda folder, model_max_length: None)
    made = to_hub(ours.spec, ours.state_dict(), tokenizer, "gpt2", tmp_path)
    assert any("one text at a time" in note for note in made.notes)
    ids = torch.tensor([[20, 31, 42, 9]])
    stream = Stream(ids[0], torch.tensor([0, 4]), torch.arange(4), torch.zeros(4, dtype=torch.long), Visibility("causal"))
    target = Target("text", torch.tensor([0]), torch.tensor([0]), torch.ones(1), "document")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        mine = ours.logits("classify", ours({"text": stream}), {"text": stream}, target)
        assert torch.allclose(model(ids).logits, mine, atol=1e-4)
        model.config.pad_token_id = 9
        assert not torch.allclose(model(ids).logits, mine, atol=1e-2)


def test_a_tokenizer_that_does_not_fit_the_model(tmp_path: Path) -> None:
    tokenizer = trained("bert")
    small = network("bert", vocab=tokenizer.vocab.size - 1)
    with pytest.raises(UserError, match="rows for them"):
        to_hub(small.spec, small.state_dict(), tokenizer, "bert", tmp_path / "a")
    roberta = network("roberta", vocab=tokenizer.vocab.size)
    assert "single texts only" in to_hub(roberta.spec, roberta.state_dict(), tokenizer, "roberta", tmp_path / "b").notes[0]
    gpt2 = network("gpt2", vocab=tokenizer.vocab.size)
    with pytest.raises(UserError, match="numbers segments"):
        to_hub(gpt2.spec, gpt2.state_dict(), tokenizer, "gpt2", tmp_path / "c")


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_import_and_export_commands(with_tokenizer: bool, tmp_path: Path) -> None:
    """A folder becomes a checkpoint and the checkpoint the same folder again, byte for byte in the weights."""
    tokenizer = trained("roberta")
    ours = network("roberta", classes, vocab=tokenizer.vocab.size)
    args: Any = (ours.spec, ours.state_dict(), tokenizer if with_tokenizer else None, "roberta", tmp_path / "hub")
    to_hub(*args, labels=("x", "y", "z"))
    folder, notes = import_folder(tmp_path / "hub", tmp_path / "ours")
    assert folder.parent == tmp_path / "ours"
    assert any("no tokenizer" in note for note in notes) != with_tokenizer
    saved = checkpoints.load(folder)
    assert saved.card.system == "roberta" and (saved.tokenizer is not None) == with_tokenizer
    assert same(saved.tensors, ours)
    made = export_checkpoint(folder, tmp_path / "again")
    assert made.architecture == "RobertaForSequenceClassification"
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    a, b = (json.loads((tmp_path / f / "config.json").read_text("utf-8")) for f in ("hub", "again"))
    assert a == b
    if with_tokenizer:
        a_ids, b_ids = (Tokenizer.load(tmp_path / f).encode(TEXTS) for f in ("hub", "again"))
        assert all(np.array_equal(x.ids, y.ids) for x, y in zip(a_ids, b_ids, strict=True))


def test_nothing_here_needs_transformers() -> None:
    import subprocess
    import sys

    program = "import sys; import ziggurat.systems.hub; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    program = "import sys; import ziggurat.systems; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

"""ELECTRA's two halves: each is what the Hub's class of it computes, alone and after import; sizes are the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ziggurat.checkpoint import format as checkpoints
from ziggurat.errors import UserError
from ziggurat.nn import halves, spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.replaced import Replaced
from ziggurat.systems import model_of
from ziggurat.systems.hub import export_checkpoint, from_hub, import_folder, to_hub
from ziggurat.types import Stream

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCAB = 67
LENGTHS = (30, 3, 17, 1, 40, 8, 2, 25)
DIALS = {"layers": 3, "width": 64, "heads": 4, "mlp": 96, "generator_width": 32, "generator_heads": 2, "generator_mlp": 80}


def network_of(embedding: int, seed: int = 0, **dials: int) -> NetworkModel:
    """Both halves with their heads, every parameter moved."""
    body = model_of("electra/tiny", {**DIALS, "embedding": embedding, **dials}, VOCAB)
    network = NetworkModel(spec.Network(model=body, heads=dict(Replaced().heads(body)))).eval()
    generator = torch.Generator().manual_seed(seed)
    network.initialise(generator)
    with torch.no_grad():
        for p in network.parameters():
            p.add_((0.25 if p.ndim > 1 else 0.1) * torch.randn(p.shape, generator=generator))
    return network


def packed(seed: int = 0) -> tuple[Stream, dict[str, Tensor]]:
    """The same pairs of texts for us, end to end, and for `transformers`, padded on the right."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, VOCAB, n) for n in LENGTHS]
    kinds = [(np.arange(n) >= n // 2).astype(np.int64) for n in LENGTHS]
    position = np.concatenate([np.arange(n) for n in LENGTHS])
    bounds = torch.tensor(np.cumsum([0, *LENGTHS]))
    flat = (torch.tensor(np.concatenate(ids)), bounds, torch.tensor(position), torch.tensor(np.concatenate(kinds)))
    shape = len(LENGTHS), max(LENGTHS)
    padded = {k: torch.zeros(shape, dtype=torch.long) for k in ("input_ids", "token_type_ids", "attention_mask")}
    for row, n in enumerate(LENGTHS):
        for name, values in ("input_ids", ids[row]), ("token_type_ids", kinds[row]), ("attention_mask", np.ones(n)):
            padded[name][row, :n] = torch.tensor(values)
    return Stream(*flat), padded


@torch.no_grad()
def ours(network: NetworkModel) -> dict[str, Tensor]:
    """Scores of both halves at every token."""
    stream, _ = packed()
    model: Any = network.model
    lm, rtd = network.heads["lm"], network.heads["rtd"]
    filled = lm(model.generator({"text": stream})["text"])
    return {
        "ElectraForMaskedLM": filled @ model.table.T + lm.bias,
        "ElectraForPreTraining": rtd(model.discriminator({"text": stream})["text"])[:, 0],
    }


@torch.no_grad()
def theirs(folder: Path, architecture: str) -> Tensor:
    _, inputs = packed()
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("architecture", ["ElectraForPreTraining", "ElectraForMaskedLM"])
@pytest.mark.parametrize("embedding", [48, 64, 32])
def test_each_half_is_the_hubs(embedding: int, architecture: str, tmp_path: Path) -> None:
    """With tables of another width than either half, of the discriminator's, and of the generator's."""
    network = network_of(embedding)
    mine = ours(network)[architecture]
    given = None if architecture == "ElectraForPreTraining" else architecture
    made = to_hub(network.spec, network.state_dict(), None, None, tmp_path, architecture=given)
    assert made.architecture == architecture
    assert any("discriminator alone" in note for note in made.notes) == (given is None)
    other = theirs(tmp_path, architecture)
    gap, spread = (mine - other).abs().max().item(), (mine.max(0).values - mine.min(0).values).max().item()
    print(f"{architecture} {embedding}: {gap:.1e} of {spread:.1f}")
    assert gap <= 1e-4 and spread >= 1

    found = from_hub(tmp_path)
    half = (halves.discriminator if given is None else halves.generator)(network.spec, network.state_dict())
    assert found.system == "electra" and found.network == half.network
    assert found.tensors.keys() == half.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in half.tensors.items())
    again = NetworkModel(found.network)
    again.load_state_dict(found.tensors)
    to_hub(found.network, again.state_dict(), None, "electra", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_checkpoints_of_both_halves_are_exported_one_by_one(tmp_path: Path) -> None:
    network = network_of(48)
    card = checkpoints.Card(network.spec, "electra")
    checkpoints.save(tmp_path / "stage", 7, card, network.state_dict(), state={})
    assert export_checkpoint(tmp_path / "stage", tmp_path / "d").architecture == "ElectraForPreTraining"
    made = export_checkpoint(tmp_path / "stage", tmp_path / "g", architecture="ElectraForMaskedLM")
    assert made.architecture == "ElectraForMaskedLM"
    folder, _ = import_folder(tmp_path / "g", tmp_path / "back")
    saved = checkpoints.load(folder)
    assert saved.card.system == "electra" and set(saved.card.network.heads) == {"lm"}
    assert isinstance(saved.card.network.model, spec.Single) and saved.card.network.model.width == 32


def test_a_half_needs_what_its_class_holds(tmp_path: Path) -> None:
    network = network_of(48)
    with pytest.raises(UserError, match="ElectraForTokenClassification needs a head 'tag'"):
        to_hub(network.spec, network.state_dict(), None, "electra", tmp_path, architecture="ElectraForTokenClassification")
    with pytest.raises(UserError, match="structure is adversaries"):
        from ziggurat.systems import SYSTEMS

        SYSTEMS["bert"].write(network.spec.model)


# The published generators by the Hub's own names.
GENERATORS: dict[str, dict[str, Any]] = {
    "small": {"embedding_size": 128, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256},
    "base": {"embedding_size": 768, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "large": {
        "embedding_size": 1024, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "num_hidden_layers": 24,
    },
}  # fmt: skip


@pytest.mark.parametrize("size", GENERATORS)
def test_generators_have_the_papers_size(size: str) -> None:
    model = model_of(f"electra/{size}")
    assert isinstance(model, spec.Adversaries)
    config = transformers.ElectraConfig(**GENERATORS[size])
    with torch.device("meta"):
        theirs = transformers.ElectraForMaskedLM(config)
        half = NetworkModel(spec.Network(model=model.generator_model, heads={"lm": spec.VocabHead()}))
        kept = NetworkModel(spec.Network(model=model.discriminator, heads={"rtd": spec.ReplacedHead()}))
        both = NetworkModel(spec.Network(model=model, heads=dict(Replaced().heads(model))))
    assert half.parameter_count() == sum(p.numel() for p in theirs.parameters())
    shared = sum(p.numel() for name, p in half.named_parameters() if name.startswith("model.embed.") and ".widen." not in name)
    assert both.parameter_count() == half.parameter_count() + kept.parameter_count() - shared


def test_the_generator_follows_the_dials() -> None:
    def generator(size: str, **dials: int) -> dict[str, int]:
        model = model_of(f"electra/{size}", dials)
        assert isinstance(model, spec.Adversaries)
        return model.generator.model_dump()

    assert generator("small") == {"layers": 12, "width": 64, "heads": 1, "mlp": 256}
    assert generator("small", layers=4) == {"layers": 4, "width": 64, "heads": 1, "mlp": 256}
    assert generator("small", width=1024) == {"layers": 12, "width": 256, "heads": 4, "mlp": 1024}
    assert generator("small", generator_width=128) == {"layers": 12, "width": 128, "heads": 2, "mlp": 512}
    assert generator("small", layers=4, generator_layers=2, generator_mlp=99) == {
        "layers": 2, "width": 64, "heads": 1, "mlp": 99,
    }  # fmt: skip
    assert generator("base", width=1024)["width"] == 341  # heads that divide it
    with pytest.raises(UserError, match="generator_layers, generator_width"):
        model_of("electra/small", {"generator_depth": 3})
    with pytest.raises(UserError, match="not a multiple"):
        model_of("electra/small", {"generator_heads": 3})


def test_halves_share_the_embeddings_and_nothing_else() -> None:
    network = network_of(48)
    names = set(network.state_dict())
    d = set(halves.discriminator(network.spec, network.state_dict()).tensors)
    g = set(halves.generator(network.spec, network.state_dict()).tensors)
    tables = {"model.embed.token.weight", "model.embed.position.weight", "model.embed.segment.weight"}
    shared = tables | {"model.embed.norm.weight", "model.embed.norm.bias"}
    assert len(names) == len(d) + len(g) - len(shared)
    assert shared <= d & g and {"model.embed.widen.weight", "model.embed.widen.bias"} <= d & g
    single = halves.discriminator(network.spec, network.state_dict())
    assert halves.discriminator(*single) == single and halves.generator(*single) == single

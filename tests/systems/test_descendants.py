"""StructBERT and MacBERT: BERT's model under other objectives. Their exports load as BERT; what BERT has no place for is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives import AnyObjective
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import from_hub, to_hub

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
DIALS = {"layers": 2, "width": 64, "heads": 2, "mlp": 96}


@pytest.mark.parametrize(("system", "left"), [("structbert", "sentence_structure"), ("macbert", "sop")])
def test_a_pretrained_model_loads_as_bert(system: str, left: str, tmp_path: Path) -> None:
    body = model_of(f"{system}/tiny", DIALS, 60)
    heads = dict(TypeAdapter(AnyObjective).validate_python(dict(SYSTEMS[system].objective)).heads(body))
    assert set(heads) == {"lm", "pooler", left}
    network = NetworkModel(spec.Network(model=body, heads=heads)).eval()
    generator = torch.Generator().manual_seed(0)
    network.initialise(generator)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    made = to_hub(network.spec, network.state_dict(), None, system, tmp_path, ids={"pad_token_id": 0})
    assert made.architecture == "BertForMaskedLM" and any(left in note and "left out" in note for note in made.notes)
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is transformers.BertForMaskedLM and not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(5, 60, (1, 23), generator=generator)
    from ziggurat.types import Stream

    stream = Stream(ids[0], torch.tensor([0, 23]), torch.arange(23), torch.zeros(23, dtype=torch.long))
    head = network.heads["lm"]
    with torch.no_grad():
        mine = head(network({"text": stream})["text"]) @ network.model.table.T + head.bias  # type: ignore[operator]
        other = model.eval()(ids).logits[0]
    assert (mine - other).abs().max() <= 1e-4 and mine.max() - mine.min() >= 1
    found = from_hub(tmp_path)
    assert found.system == "bert" and found.network.model == body


@pytest.mark.parametrize("system", ["structbert", "macbert"])
def test_fine_tuned_heads_are_berts(system: str, tmp_path: Path) -> None:
    body = model_of(f"{system}/tiny", DIALS, 60)
    network = NetworkModel(spec.Network(model=body, heads=spec.class_heads(body, "classify", 3)))
    network.initialise(torch.Generator().manual_seed(0))
    made = to_hub(network.spec, network.state_dict(), None, system, tmp_path, ids={"pad_token_id": 0})
    assert made.architecture == "BertForSequenceClassification"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(model) is transformers.BertForSequenceClassification and model.config.num_labels == 3


def test_macberts_vocabulary_is_the_chinese_one() -> None:
    assert model_of("macbert/base").vocab == 21128 and model_of("structbert/base").vocab == 30522

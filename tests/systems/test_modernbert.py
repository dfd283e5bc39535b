"""ModernBERT's configuration in all its forms; parity of every class is in tests/laws/test_parity.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ziggurat.errors import UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.systems import SYSTEMS
from ziggurat.systems.hub import from_hub, to_hub
from ziggurat.types import Stream, Visibility

transformers = pytest.importorskip("transformers")
OLD = {"global_rope_theta": 5_000.0, "local_rope_theta": 700.0, "local_attention": 20, "global_attn_every_n_layers": 3}


def test_the_older_form_means_what_the_hub_takes_it_for() -> None:
    ours = SYSTEMS["modernbert"].read(OLD | {"num_hidden_layers": 7, "local_rope_theta": None})
    theirs = transformers.ModernBertConfig(**OLD | {"num_hidden_layers": 7})
    assert isinstance(ours, spec.Single) and [a.window for a in ours.pattern] == [None, 10, 10]
    assert ours.pattern[0].distances == spec.Rotary(base=theirs.rope_parameters["full_attention"]["rope_theta"])
    assert ours.pattern[1].distances == spec.Rotary(base=10_000.0)  # null: the default


def test_what_is_written_is_read_by_both() -> None:
    page = SYSTEMS["modernbert"]
    model = page.sized("tiny", {"layers": 4})
    written = page.write(model)
    assert written["global_attn_every_n_layers"] == 3 and written["local_attention"] == 128 and "sliding_window" not in written
    theirs = transformers.ModernBertConfig(**{k: v for k, v in written.items() if k != "model_type"})
    assert theirs.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert page.read(written) == model


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"global_attn_every_n_layers": 2}, "do not alternate"),
        ({"layer_types": ["full_attention"] * 22}, "do not alternate"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotation of full_attention is scaled"),
    ],
)
def test_other_arrangements_are_refused(entries: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SYSTEMS["modernbert"].read(entries)


def test_a_mean_over_the_text_matters_to_classifiers_only(tmp_path: Path) -> None:
    """Published files say `mean` whatever class they are of."""
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = transformers.ModernBertConfig(**shape, **ids, classifier_pooling="mean")
    transformers.ModernBertForMaskedLM(config).save_pretrained(tmp_path / "lm")
    assert list(from_hub(tmp_path / "lm").network.heads) == ["lm"]
    transformers.ModernBertForSequenceClassification(config).save_pretrained(tmp_path / "classify")
    with pytest.raises(UserError, match="classifier_pooling is 'mean'"):
        from_hub(tmp_path / "classify")


@torch.no_grad()
def test_texts_longer_than_the_window(tmp_path: Path) -> None:
    """300 tokens, a window of 64 to either side."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    theirs = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**shape, **ids)).eval()
    for p in theirs.parameters():
        p += 0.3 * torch.randn(p.shape)
    theirs.save_pretrained(tmp_path / "a")
    found = from_hub(tmp_path / "a")
    net = NetworkModel(found.network).eval()
    net.load_state_dict(found.tensors)
    text = torch.randint(3, 40, (1, 300))
    stream = Stream(text[0].int(), torch.tensor([0, 300]), torch.arange(300).int(), torch.zeros(300).int(), Visibility("full"))
    hidden = net({"text": stream})["text"]
    ours = torch.nn.functional.linear(net.heads["lm"](hidden), net.model.table, net.heads["lm"].bias)
    other = theirs(input_ids=text).logits[0]
    assert (other.max(0).values - other.min(0).values).max() >= 1 and (ours - other).abs().max() <= 1e-4
    to_hub(found.network, net.state_dict(), None, "modernbert", tmp_path / "b", ids={"pad_token_id": 0})
    again = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path / "b").eval()
    assert (again(input_ids=text).logits[0] - ours).abs().max() <= 1e-4

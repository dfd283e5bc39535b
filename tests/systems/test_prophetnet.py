"""ProphetNet against the Hub's classes: every stream's logits, on batches that the objectives make, packed and not.

Predicting rows follow the original release, which the Hub's class does for one token at a time; where it reads a whole text it takes
the content bias of other rows. Both rules are tried: the release's with one method of the Hub's class written anew, and by the
Hub's own cached decoding; the Hub's as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ziggurat.context import Context, Layout, Vocab
from ziggurat.data.pack import pack
from ziggurat.errors import UserError
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.nn.visibility import plan
from ziggurat.objectives.future import Future, FutureLM
from ziggurat.systems import SYSTEMS, model_of
from ziggurat.systems.hub import from_hub, to_hub
from ziggurat.types import DEAD, Batch, Part, Tokens

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCE, SPREAD, VOCAB, LONGEST = 1e-4, 1.0, 67, 260
LENGTHS = (7, 258, 2, 31, 90)
CTX = Context(Vocab(VOCAB, 0, 4, 1, 3, (0, 1, 2, 3, 4)), Layout((2,), (3,), (3,), (0, 1)), LONGEST, seed=5)
CLASSES = ("ProphetNetForConditionalGeneration", "ProphetNetModel", "ProphetNetForCausalLM")
Pieces = list[tuple[Tensor, Tensor | None]]
"""For each document what the decoder (or the only stack) reads, and what the encoder reads."""


def release_bias(self: Any, hidden: Tensor, weights: Tensor, position: Tensor, bucket: Tensor) -> Tensor:
    """The bias of predicting rows from their own vectors: hidden [B, T, n, H], bucket [B, T, 2 T] -> [B, n, heads, T, 2 T]."""
    worth = self.relative_pos_embeddings(hidden).unflatten(-1, (self.num_buckets, self.num_attn_heads))
    table = torch.einsum("btgkh->bghtk", worth)
    at = bucket.long()[:, None, None].expand(*table.shape[:3], -1, -1)
    return table.gather(-1, at)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    attention = transformers.models.prophetnet.modeling_prophetnet.ProphetNetNgramSelfAttention
    monkeypatch.setattr(attention, "get_predict_relative_pos_embeddings", release_bias)
    yield


def theirs(name: str, ngram: int = 2, seed: int = 0, **more: Any) -> Any:
    """A small random model of the Hub with every parameter moved."""
    config = transformers.ProphetNetConfig(**{
        "decoder_start_token_id": 2,  # the end token, as in the published files; the class's default is its pad
        "vocab_size": VOCAB, "hidden_size": 48, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80, "num_encoder_layers": 2,
        "num_decoder_layers": 3, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "ngram": ngram,
        "max_position_embeddings": LONGEST + 3, "add_cross_attention": name != "ProphetNetForCausalLM", **more,
    })  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # What is the same for all rows (biases, norms) must not drown what tells them apart (the tables), or nothing is spread.
            size = 0.6 if key.endswith("_embeddings.weight") else 0.12
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of(name: str, ngram: int = 2, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """Texts as the objective lays them out. The hidden run begins the text, so that the decoder's positions count from 0, as the
    Hub's always do."""
    rng = np.random.default_rng(1)
    bounds = np.cumsum([0, *lengths])
    words = np.ones(bounds[-1], bool)
    none = np.zeros((0, 3), np.int64)
    part = Part(rng.integers(5, VOCAB, bounds[-1]).astype(np.int32), bounds, words, words, none, np.zeros(len(bounds), np.int64))
    tokens = Tokens({"text": part}, np.arange(len(lengths), dtype=np.uint64))
    causal = name == "ProphetNetForCausalLM"
    objective = FutureLM(ngram=ngram) if causal else Future(ngram=ngram, ratio=0.7, block=0, starts=(1, 0, 0))
    return objective.corrupt(objective.form(tokens, CTX), CTX)


def pieces(batch: Batch, ngram: int) -> Pieces:
    found: Pieces = []
    main = batch.streams.get("decoder", batch.streams.get("text"))
    assert main is not None
    for j in np.argsort(batch.keys):
        lo, hi = main.bounds[j : j + 2]
        ids = torch.from_numpy(main.content[lo : lo + (hi - lo) // (1 + ngram)]).long()[None]
        encoder = batch.streams.get("encoder")
        source = None
        if encoder is not None:
            source = torch.from_numpy(encoder.content[encoder.bounds[j] : encoder.bounds[j + 1]]).long()[None]
        found.append((ids, source))
    return found


@torch.no_grad()
def their_scores(model: Any, found: Pieces) -> list[dict[str, Tensor]]:
    """A document at a time: logits [n T, vocabulary] of all predicting rows, hidden vectors [(1 + n) T, width] of all rows."""
    made = []
    for ids, source in found:
        out = (
            model(input_ids=ids, use_cache=False)
            if source is None
            else model(input_ids=source, decoder_input_ids=ids, use_cache=False)
        )
        if type(model).__name__ == "ProphetNetModel":
            decoder = torch.cat([out.last_hidden_state[0], out.last_hidden_state_ngram[0]])
            made.append({"decoder": decoder, "encoder": out.encoder_last_hidden_state[0]})
            continue
        ahead = [] if out.logits_ngram is None else out.logits_ngram[0]
        made.append({"lm": torch.cat([out.logits[0], *ahead])})
    return made


@torch.no_grad()
def our_scores(network: NetworkModel, batch: Batch, *, few: bool = False) -> list[dict[str, Tensor]]:
    """The same, by document in the order of the keys; `few`: only what the targets read is computed."""
    there = to_device(batch, torch.device("cpu"))
    hidden = network(there.streams, read=network.read(there.streams, there.targets.values()) if few else None)
    (target,) = there.targets.values()
    scores = network.logits("lm", hidden, there.streams, target) if "lm" in network.heads else None
    made: dict[int, dict[str, Tensor]] = {}
    for j, key in enumerate(batch.keys):
        if key == DEAD:
            continue
        parts = {}
        for name, stream in there.streams.items():
            parts[name] = hidden[name][stream.bounds[j] : stream.bounds[j + 1]]
        if scores is not None:
            bounds = there.streams[target.stream].bounds
            parts["lm"] = scores[(bounds[j] <= target.index) & (target.index < bounds[j + 1])]
        made[int(key)] = parts
    return [made[key] for key in sorted(made)]


def gap(ours: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> float:
    worst = 0.0
    for mine, other in zip(ours, others, strict=True):
        for name, scores in other.items():
            assert mine[name].shape == scores.shape
            assert (scores.max(0).values - scores.min(0).values).max() >= SPREAD or len(scores) < 9
            worst = max(worst, (mine[name] - scores).abs().max().item())
    return worst


def network_of(part: spec.Network, tensors: dict[str, Tensor]) -> NetworkModel:
    network = NetworkModel(part)
    network.load_state_dict(tensors)
    return network.eval()


def ordered(part: spec.Network, order: str) -> spec.Network:
    """The same network with the content bias of predicting rows in another order."""
    dump = part.model_dump()
    attention = dump["model"].get("decoder_attention") or dump["model"]["block"]["attention"]
    attention["distances"]["order"] = order
    return spec.Network.model_validate(dump)


@pytest.mark.parametrize("ngram", [1, 2, 3])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_goes_both_ways(name: str, ngram: int, tmp_path: Path, release: None) -> None:
    model = theirs(name, ngram, seed=ngram)
    model.save_pretrained(tmp_path / "theirs")
    found = from_hub(tmp_path / "theirs")
    assert found.system == ("prophetnet_lm" if name.endswith("CausalLM") else "prophetnet")
    network, batch = network_of(found.network, found.tensors), batch_of(name, ngram)
    others = their_scores(model, pieces(batch, ngram))
    assert max(len(p[0][0]) for p in pieces(batch, ngram)) > 128 + ngram
    assert gap(our_scores(network, batch), others) <= TOLERANCE

    written = to_hub(found.network, found.tensors, None, found.system, tmp_path / "ours", ids={"pad_token_id": 0})
    assert written.architecture == name
    back, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    worst = gap(our_scores(network, batch), their_scores(back.eval(), pieces(batch, ngram)))
    a, b = load_file(tmp_path / "theirs" / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert worst <= TOLERANCE
    print(f"{name} ngram {ngram}: {worst:.1e}")


@pytest.mark.parametrize("order", ["release", "hub"])
@pytest.mark.parametrize("name", CLASSES)
def test_packed_rows(name: str, order: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Several documents a row, gaps, and only the rows that are read: against the patched class, and against it as it is."""
    if order == "release":
        request.getfixturevalue("release")
    model = theirs(name, seed=4)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    network, whole = network_of(ordered(found.network, order), found.tensors), batch_of(name)
    others = their_scores(model, pieces(whole, 2))
    rows = {name: int(np.diff(s.bounds).max()) + 40 for name, s in whole.streams.items()}
    packed = pack(whole, rows, 0)
    assert len(packed.streams[next(iter(rows))].content) > rows[next(iter(rows))]
    for batch, few in ((whole, False), (packed, False), (packed, True)):
        if few and name == "ProphetNetModel":
            continue
        worst = gap(our_scores(network, batch, few=few), others)
        assert worst <= TOLERANCE, (few, worst)
        print(f"{name} {order}: {worst:.1e}")


def test_all_classes_of_this_transformers_are_covered() -> None:
    room = transformers.models.prophetnet.modeling_prophetnet
    models = {n for n in dir(room) if n.startswith("ProphetNet") and issubclass(getattr(room, n), transformers.PreTrainedModel)}
    pages = [SYSTEMS[name] for name in ("prophetnet", "prophetnet_lm")]
    assert models - {"ProphetNetPreTrainedModel"} == {name for page in pages for name in (*page.classes, *page.refused)}


def test_the_two_orders_differ(tmp_path: Path) -> None:
    """What docs/decisions.md says: main stream and single steps agree, predicting rows of a whole text do not, and the Hub's leak."""
    model = theirs("ProphetNetModel", seed=4)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    batch = batch_of("ProphetNetModel")
    ours = our_scores(network_of(found.network, found.tensors), batch)
    others = their_scores(model, pieces(batch, 2))
    for mine, other in zip(ours, others, strict=True):
        steps = len(mine["decoder"]) // 3
        apart = (mine["decoder"] - other["decoder"]).abs().amax(1)
        assert apart[:steps].max() <= TOLERANCE
        assert (apart[steps:].max() <= TOLERANCE) == (steps == 1)
    print(
        "largest difference of hidden vectors:",
        max((a["decoder"] - b["decoder"]).abs().max().item() for a, b in zip(ours, others, strict=True)),
    )

    lm = theirs("ProphetNetForCausalLM", seed=4)
    ids = pieces(batch_of("ProphetNetForCausalLM"), 2)[3][0]
    other = ids.clone()
    at = ids.shape[1] // 4
    other[0, at] = 5 + (other[0, at] + 1) % 50
    with torch.no_grad():
        early = (lm(input_ids=ids, use_cache=False).logits - lm(input_ids=other, use_cache=False).logits)[0, :at].abs().amax(1)
    assert early.max() > 1e-2  # logits of a step that change with a later token


def test_the_hub_writes_by_the_releases_rule(tmp_path: Path) -> None:
    """Its cached decoding, one token at a time, gives stream 0 the logits that ours has for the whole text; nothing is patched."""
    # as many layers in either stack: the Hub's cache has as many as its encoder
    model = theirs("ProphetNetForConditionalGeneration", seed=6, num_encoder_layers=3)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    network, batch = network_of(found.network, found.tensors), batch_of("", lengths=(20, 200, 3))
    for mine, (ids, source) in zip(our_scores(network, batch), pieces(batch, 2), strict=True):
        steps, cache = [], None
        with torch.no_grad():
            memory = model.get_encoder()(source)
            for t in range(ids.shape[1]):
                out = model(encoder_outputs=memory, decoder_input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                steps.append(out.logits[0, 0])
        theirs_ = torch.stack(steps)
        assert theirs_.max() - theirs_.min() >= SPREAD
        worst = (mine["lm"][: len(theirs_)] - theirs_).abs().max().item()
        assert worst <= TOLERANCE
        print(f"cached decoding of {len(theirs_)} tokens: {worst:.1e}")


@pytest.mark.usefixtures("release")
def test_pads_on_the_hubs_side(tmp_path: Path) -> None:
    """Texts of different length in one batch of the Hub, padded behind. (Padded in front its encoder would number positions from
    the pads, and its decoder ignores its own mask in the positions.)"""
    model = theirs("ProphetNetForConditionalGeneration", seed=8)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    network, batch = network_of(found.network, found.tensors), batch_of("")
    both = [[p[side][0] for p in pieces(batch, 2)] for side in (1, 0)]  # type: ignore[index]
    source, target = (torch.nn.utils.rnn.pad_sequence(ids, batch_first=True) for ids in both)
    seen, asked = (torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in ids], batch_first=True) for ids in both)
    with torch.no_grad():
        out = model(
            input_ids=source, attention_mask=seen, decoder_input_ids=target, decoder_attention_mask=asked, use_cache=False
        )
    streams = torch.cat([out.logits[:, None], out.logits_ngram], 1)
    others = [{"lm": streams[j, :, : len(ids)].flatten(0, 1)} for j, ids in enumerate(both[1])]
    assert gap(our_scores(network, batch), others) <= TOLERANCE


def test_distances_of_the_streams() -> None:
    """From main rows the difference of steps; from predicting rows one further to main keys, and none to the row itself."""
    batch = to_device(batch_of(""), torch.device("cpu"))
    stream = batch.streams["decoder"]
    distance = plan(stream).distance()
    for j, (lo, hi) in enumerate(zip(stream.bounds[:-1].tolist(), stream.bounds[1:].tolist(), strict=True)):
        steps = (hi - lo) // 3
        at = torch.arange(steps)
        between = at - at[:, None]
        assert torch.equal(distance[j, :steps, :steps], between)
        for s in (1, 2):
            own = slice(s * steps, (s + 1) * steps)
            assert torch.equal(distance[j, own, :steps], between - 1)
            assert (distance[j, own, own].diagonal() == 0).all()


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize("name", ["ProphetNetForConditionalGeneration", "ProphetNetForCausalLM"])
@pytest.mark.parametrize("pad", [1, 5])
def test_positions_are_numbered_from_the_pad_id(name: str, pad: int, tmp_path: Path) -> None:
    model = theirs(name, seed=9, pad_token_id=pad, max_position_embeddings=LONGEST + 9)
    model.save_pretrained(tmp_path / "theirs")
    found = from_hub(tmp_path / "theirs")
    assert found.network.model.embed.positions == spec.Learned(length=LONGEST + 8 - pad, offset=pad + 1)
    network, batch = network_of(found.network, found.tensors), batch_of(name)
    assert gap(our_scores(network, batch), their_scores(model, pieces(batch, 2))) <= TOLERANCE
    to_hub(found.network, found.tensors, None, found.system, tmp_path / "ours")
    back = type(model).from_pretrained(tmp_path / "ours").eval()
    assert back.config.pad_token_id == pad
    assert gap(our_scores(network, batch), their_scores(back, pieces(batch, 2))) <= TOLERANCE


def test_the_order_is_remembered(tmp_path: Path) -> None:
    model = theirs("ProphetNetForConditionalGeneration", seed=3)
    model.save_pretrained(tmp_path / "theirs")
    found = from_hub(tmp_path / "theirs")
    hub = ordered(found.network, "hub")
    to_hub(hub, found.tensors, None, "prophetnet", tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text("utf-8"))["content_order"] == "hub"
    assert from_hub(tmp_path / "ours").network == hub


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("ProphetNetForConditionalGeneration", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("ProphetNetForCausalLM", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("ProphetNetForConditionalGeneration", {"activation_function": "silu"}, "activation_function is 'silu'"),
    ],
)
def test_what_we_would_compute_otherwise_is_refused(name: str, more: dict[str, Any], says: str, tmp_path: Path) -> None:
    theirs(name, **more).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=says):
        from_hub(tmp_path)


@pytest.mark.usefixtures("release")
@pytest.mark.parametrize("name", CLASSES)
def test_every_single_parameter_matters(name: str, tmp_path: Path) -> None:
    model = theirs(name, seed=2)
    model.save_pretrained(tmp_path)
    found = from_hub(tmp_path)
    network, batch = network_of(found.network, found.tensors), batch_of(name, lengths=(9, 40))
    others, unseen = their_scores(model, pieces(batch, 2)), []
    for key, parameter in network.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.zero_()
            if gap(our_scores(network, batch), others) <= TOLERANCE:
                unseen.append(key)
            parameter.copy_(kept)
    assert all(key.endswith(".k.bias") for key in unseen), unseen


def test_the_published_model_has_these_counts_and_entries() -> None:
    for name, cls, more in (
        ("prophetnet/large", "ProphetNetForConditionalGeneration", {}),
        (
            "prophetnet_lm/large",
            "ProphetNetForCausalLM",
            {"is_decoder": True, "is_encoder_decoder": False, "add_cross_attention": False},
        ),
    ):
        config = transformers.ProphetNetConfig(**more, decoder_start_token_id=2)
        model = model_of(name)
        with torch.device("meta"):
            count = sum(p.numel() for p in getattr(transformers, cls)(config).parameters())
            assert NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()})).parameter_count() == count
        system = SYSTEMS[name.partition("/")[0]]
        assert system.read(json.loads(config.to_json_string(use_diff=False))) == model == system.read({"pad_token_id": 0})

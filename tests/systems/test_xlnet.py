"""XLNet against the Hub's: two streams as one packed pass, segments, memory, pads on the left, lengths beyond 128.

On the Hub's side each document goes alone, with `perm_mask` and `target_mapping` made from the paper's rule; on ours all go at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ziggurat.context import Context, Layout, Vocab, mix
from ziggurat.data.pack import pack, take
from ziggurat.evaluate.heldout import to_device
from ziggurat.nn import spec
from ziggurat.nn.memory import Memory, layers_to_keep, remember
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.permuted import Permuted
from ziggurat.systems.hub import from_hub, to_hub
from ziggurat.types import DEAD, NEVER, Batch, Part, Stream, Tokens, Visibility, text_target

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

CPU = torch.device("cpu")
VOCABULARY, LAYERS, TOLERANCE = 67, 3, 1e-4
SHAPE = {"d_model": 64, "n_layer": LAYERS, "n_head": 4, "d_inner": 96, "vocab_size": VOCABULARY, "mem_len": 0}
VOCAB = Vocab(VOCABULARY, 5, 6, 0, 2, tuple(range(9)))
LAYOUT = Layout((), (4,), (4, 3), (0, 1), 2)


def theirs(name: str = "XLNetLMHeadModel", seed: int = 0, **more: Any) -> Any:
    """A Hub model with every parameter moved."""
    torch.manual_seed(seed)
    found = getattr(transformers, name)
    model = found(transformers.XLNetConfig(**SHAPE, **more)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_((0.25 if p.ndim > 1 else 0.1) * torch.randn(p.shape, generator=generator))
    return model


def ours(model: Any, folder: Path) -> NetworkModel:
    model.save_pretrained(folder)
    found = from_hub(folder)
    assert found.system == "xlnet"
    network = NetworkModel(found.network)
    network.load_state_dict(found.tensors)
    return network.eval()


def corpus(sizes: list[int], seed: int = 0) -> Tokens:
    """Documents of so many tokens, in words and sentences."""
    rng = np.random.default_rng(seed)
    bounds = np.cumsum([0, *sizes]).astype(np.int64)
    words, sentences = rng.random(bounds[-1]) < 0.6, rng.random(bounds[-1]) < 0.15
    words[bounds[:-1]] = sentences[bounds[:-1]] = True
    none = np.zeros((0, 3), np.int64), np.zeros(len(sizes) + 1, np.int64)
    ids = rng.integers(9, VOCABULARY, bounds[-1]).astype(np.int32)
    keys = mix(np.arange(len(sizes), dtype=np.uint64) + np.uint64(1000))
    return Tokens({"text": Part(ids, bounds, words | sentences, sentences, *none)}, keys)


def permuted(sizes: list[int], length: int, seed: int = 0, **how: Any) -> Batch:
    o = Permuted(**{"rate": 0.25, **how})
    ctx = Context(VOCAB, LAYOUT, length, seed=seed)
    return o.corrupt(o.form(corpus(sizes, seed), ctx), ctx)


@dataclass
class Alone:
    """One document as the Hub wants it, with `left` pads before it."""

    ids: Tensor
    segment: Tensor
    mask: Tensor
    perm: Tensor
    target: Tensor

    def inputs(self) -> dict[str, Tensor]:
        named = {"input_ids": self.ids, "token_type_ids": self.segment, "perm_mask": self.perm, "target_mapping": self.target}
        return {**{k: v[None] for k, v in named.items()}, "attention_mask": self.mask[None]}


def alone(batch: Batch, d: int, left: int = 0) -> Alone:
    """Document d with the masks of the release: ordinary tokens have rank -1, R(q) is a target's rank and others' rank + 1, and
    q may not see k if k is not ordinary and R(q) <= rank(k)."""
    s = batch.streams["text"]
    lo, hi = s.bounds[d : d + 2].tolist()
    n = int((s.content[lo:hi] >= 0).sum())
    rank = [int(x) - 1 for x in s.visibility.spelled(np.diff(s.bounds)).opens[lo : lo + n]]
    position = s.position[lo:hi].tolist()
    at = [position[:n].index(p) for p in position[n:]]
    own = [rank[i] if i in at else rank[i] + 1 for i in range(n)]
    perm, target = torch.zeros(left + n, left + n), torch.zeros(len(at), left + n)
    for q in range(n):
        for k in range(n):
            perm[left + q, left + k] = float(rank[k] >= 0 and own[q] <= rank[k])
    for row, i in enumerate(at):
        target[row, left + i] = 1
    ids = torch.full((left + n,), 5)
    segment, mask = torch.full((left + n,), 3), torch.zeros(left + n)
    ids[left:], segment[left:], mask[left:] = torch.tensor(s.content[lo : lo + n]), torch.tensor(s.segment[lo : lo + n]), 1
    return Alone(ids, segment, mask, perm, target)


@torch.no_grad()
def our_logits(network: NetworkModel, batch: Batch, memory: Memory | None = None, *, few: bool = False) -> dict[int, Tensor]:
    """Of each document by its key: the scores of its targets, [K, V]."""
    given = to_device(batch, CPU)
    targets = given.targets
    read = network.read(given.streams, targets.values()) if few else None
    hidden = network(given.streams, read=read, memory=memory)
    scores = network.logits("lm", hidden, given.streams, targets["plm"])
    owner = np.searchsorted(batch.streams["text"].bounds, batch.targets["plm"].index, side="right") - 1
    return {int(key): scores[torch.tensor(owner == d)] for d, key in enumerate(batch.keys.tolist()) if key != int(DEAD)}


def compare(mine: Tensor, other: Tensor) -> float:
    assert mine.shape == other.shape and (len(other) < 2 or other.max() - other.min() >= 1)
    return float((mine - other).abs().max()) if len(other) else 0.0


@pytest.mark.parametrize("left", [0, 7])
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {"sizes": [30, 11, 4, 52, 23], "length": 24},
        {"sizes": [300, 90, 150], "length": 290, "row": 512},
        {"sizes": [40, 33], "length": 40, "pairs": False},
        {"sizes": [80, 33, 60], "length": 40, "perm_size": 9, "rate": 0.4},
    ],
    ids=["pairs", "long", "windows", "blocks"],
)
def test_one_packed_pass_is_both_streams(how: dict[str, Any], left: int, few: bool, tmp_path: Path) -> None:
    """Documents with separators, segments and a class token, in rows with others, against the Hub's one by one."""
    how = dict(how)
    row = how.pop("row", 64)
    model = theirs(seed=left)
    network = ours(model, tmp_path)
    made = permuted(**how)
    assert set(made.streams["text"].segment.tolist()) == ({0, 2} if how.get("pairs") is False else {0, 1, 2})
    packed = pack(made, {"text": row}, 5)
    assert len(packed) > len(packed.streams["text"].content) // row  # rows hold several documents
    mine = our_logits(network, packed, few=few)
    worst = 0.0
    for d, key in enumerate(made.keys.tolist()):
        with torch.no_grad():
            other = model(**alone(made, d, left).inputs()).logits[0]
        worst = max(worst, compare(mine[int(key)], other))
    assert worst <= TOLERANCE
    longest = int((made.streams["text"].position).max()) + 1
    assert longest == how["length"] or longest > 200
    print(f"worst {worst:.1e}, longest {longest}")


def test_unpacked_is_packed(tmp_path: Path) -> None:
    network, made = ours(theirs(seed=1), tmp_path), permuted([30, 11, 4, 52], 24)
    loose, packed = our_logits(network, made), our_logits(network, pack(made, {"text": 64}, 5))
    assert loose.keys() == packed.keys()
    for key in loose:
        torch.testing.assert_close(loose[key], packed[key], atol=1e-5, rtol=1e-5)


def test_every_parameter_matters(tmp_path: Path) -> None:
    """The three biases, both segment vectors, the query vector and the rest: none is ignored on either side."""
    model = theirs(seed=2)
    network, made = ours(model, tmp_path), permuted([60, 31, 18], 32)
    with torch.no_grad():
        right = [model(**alone(made, d).inputs()).logits[0] for d in range(len(made))]

    def gap() -> float:
        mine = our_logits(network, made)
        return max(compare(mine[int(key)], other) for key, other in zip(made.keys.tolist(), right, strict=True))

    assert gap() <= TOLERANCE
    names = dict(network.named_parameters())
    assert {"content_bias", "distance_bias", "segment_bias", "segment"} <= {n.rsplit(".", 1)[-1] for n in names}
    assert "model.embed.extra.weight" in names and "heads.lm.bias" in names
    for name, p in names.items():
        kept = p.detach().clone()
        with torch.no_grad():
            p.zero_()
            assert gap() > TOLERANCE, name
            p.copy_(kept)


def plain_stream(ids: list[np.ndarray], segment: list[np.ndarray], kind: Any = "full") -> Stream:
    bounds = np.cumsum([0, *map(len, ids)])
    position = np.concatenate([np.arange(len(i)) for i in ids])
    return Stream(*(torch.tensor(x) for x in (np.concatenate(ids), bounds, position, np.concatenate(segment))), Visibility(kind))


@torch.no_grad()
def everywhere(network: NetworkModel, stream: Stream, memory: Memory | None = None) -> Tensor:
    streams = {"text": stream}
    count = len(stream.content)
    target = to_device(Batch({}, {"lm": text_target(np.arange(count), np.zeros(count, np.int64))}, np.zeros(0)), CPU).targets[
        "lm"
    ]
    return network.logits("lm", network(streams, memory=memory), streams, target)


def test_segments_are_any_integers(tmp_path: Path) -> None:
    model = theirs(seed=3)
    network, rng = ours(model, tmp_path), np.random.default_rng(0)
    ids = [rng.integers(9, VOCABULARY, n) for n in (21, 5, 140)]
    segment = [rng.choice([-4, 0, 7, 1000], len(i)) for i in ids]
    mine = everywhere(network, plain_stream(ids, segment)).split([len(i) for i in ids])
    for i, s, scores in zip(ids, segment, mine, strict=True):
        with torch.no_grad():
            other = model(input_ids=torch.tensor(i)[None], token_type_ids=torch.tensor(s)[None]).logits[0]
            without = model(input_ids=torch.tensor(i)[None]).logits[0]
        assert compare(scores, other) <= TOLERANCE and compare(scores, without) > 0.1
    same = [np.full(len(i), 9) for i in ids]
    for i, scores in zip(ids, everywhere(network, plain_stream(ids, same)).split([len(i) for i in ids]), strict=True):
        with torch.no_grad():
            assert compare(scores, model(input_ids=torch.tensor(i)[None]).logits[0]) <= TOLERANCE  # one segment is none


def test_from_left_to_right(tmp_path: Path) -> None:
    """`attn_type: uni` is a causal stack; and it goes back as it came."""
    model = theirs(seed=4, attn_type="uni")
    network, rng = ours(model, tmp_path / "a"), np.random.default_rng(0)
    assert network.spec.model.visibility == "causal"
    ids = [rng.integers(9, VOCABULARY, n) for n in (21, 1, 140)]
    mine = everywhere(network, plain_stream(ids, [i % 2 for i in ids], "causal")).split([len(i) for i in ids])
    to_hub(network.spec, network.state_dict(), None, "xlnet", tmp_path / "b")
    back = transformers.XLNetLMHeadModel.from_pretrained(tmp_path / "b").eval()
    assert back.config.attn_type == "uni"
    for i, scores in zip(ids, mine, strict=True):
        for hub in (model, back):
            with torch.no_grad():
                other = hub(input_ids=torch.tensor(i)[None], token_type_ids=torch.tensor(i % 2)[None]).logits[0]
            assert compare(scores, other) <= TOLERANCE


# Memory


@torch.no_grad()
def step(network: NetworkModel, batch: Batch, memory: Memory | None, **how: Any) -> tuple[dict[int, Tensor], Memory]:
    """Scores of a window and what its documents remember then."""
    given, names = to_device(batch, CPU), layers_to_keep(LAYERS)
    hidden = network(given.streams, keep=names, memory=memory)
    scores = our_logits(network, batch, memory)
    few = our_logits(network, batch, memory, few=True)
    for key in scores:
        torch.testing.assert_close(scores[key], few[key], atol=1e-5, rtol=1e-5)
    return scores, remember(hidden, given.streams["text"], names, before=memory, **how)


@pytest.mark.parametrize("row", [0, 96])
@pytest.mark.parametrize(("length", "reuse"), [(None, None), (15, None), (20, 6), (160, 130)])
def test_memory_is_the_hubs(length: int | None, reuse: int | None, row: int, tmp_path: Path) -> None:
    """Three windows of documents of different lengths, two streams each, with the memory of those before."""
    model = theirs(seed=5)
    network = ours(model, tmp_path)
    model.transformer.mem_len, model.transformer.reuse_len = length or 0, reuse
    sizes = [[33, 12, 5], [9, 40, 17], [21, 8, 30]]
    if reuse == 130:
        sizes, row = [[150, 9, 70], [60, 140, 3], [11, 12, 13]], row and 256
    windows = [permuted(s, 40 if reuse != 130 else 160, seed=n, pairs=False) for n, s in enumerate(sizes)]
    windows = [take(w, np.searchsorted(owner_of(w), np.arange(3))) for w in windows]  # the first window of each document
    windows = [replace(w, keys=np.array([11, 12, 13], np.uint64)) for w in windows]
    mems: list[Any] = [None] * 3
    memory, before = None, np.array([11, 12, 13])
    for number, w in enumerate(windows):
        laid = pack(w, {"text": row}, 5) if row else w
        if memory is not None:  # packing changes the order
            places = {int(key): d for d, key in enumerate(before.tolist())}
            memory = memory.take(torch.tensor([places.get(int(key), -1) for key in laid.keys.tolist()]))
            assert len(memory.position) == len(memory.hidden[0]) and not memory.hidden[0].requires_grad
        stream = to_device(laid, CPU).streams["text"]
        first = torch.from_numpy(laid.streams["text"].inside()) < (reuse or 10**6)
        mine, memory = step(network, laid, memory, length=length, rows=((stream.content >= 0) & first).nonzero()[:, 0])
        before = laid.keys
        bare = our_logits(network, laid)
        for d, key in enumerate(w.keys.tolist()):
            with torch.no_grad():
                out = model(**alone(w, d).inputs(), mems=mems[d], use_mems=True)
            mems[d] = out.mems
            assert compare(mine[int(key)], out.logits[0]) <= TOLERANCE
            assert number == 0 or compare(bare[int(key)], out.logits[0]) > 0.1  # it does say something
            own = memory.take(torch.tensor([before.tolist().index(key)]))
            for layer in range(LAYERS):
                torch.testing.assert_close(own.hidden[layer], out.mems[layer][:, 0], atol=TOLERANCE, rtol=0)


def owner_of(batch: Batch) -> np.ndarray:
    """Which document each window is of: windows of a document follow each other, and a full one is followed by the next."""
    s = batch.streams["text"]
    text = np.array([int((s.content[a:b] >= 0).sum()) for a, b in zip(s.bounds[:-1], s.bounds[1:], strict=True)])
    ends = np.append(text < text.max(), True)[:-1] if len(batch) > 3 else np.ones(len(batch), bool)
    return np.concatenate([[0], np.cumsum(ends)[:-1]])


def test_plain_windows_with_memory(tmp_path: Path) -> None:
    """No masks at all: a full and a causal stack, documents without a memory beside others with one."""
    rng = np.random.default_rng(1)
    first = [rng.integers(9, VOCABULARY, n) for n in (12, 30)]
    second = [rng.integers(9, VOCABULARY, n) for n in (9, 5, 20)]
    for kind, attention in (("full", "bi"), ("causal", "uni")):
        model = theirs(seed=6, attn_type=attention)
        network = ours(model, tmp_path / kind)
        zero = [np.zeros(len(i), np.int64) for i in first]
        stream = plain_stream(first, zero, kind)
        names = layers_to_keep(LAYERS)
        with torch.no_grad():
            memory = remember(network({"text": stream}, keep=names), stream, names).take(torch.tensor([1, -1, 0]))
        assert memory.bounds.tolist() == [0, 30, 30, 42]
        assert memory.position.tolist() == [*range(-30, 0), *range(-12, 0)]
        segment = [np.arange(len(i)) % 3 for i in second]
        mine = everywhere(network, plain_stream(second, segment, kind), memory).split([len(i) for i in second])
        for i, s, scores, before in zip(second, segment, mine, (first[1], None, first[0]), strict=True):
            with torch.no_grad():
                mems = None if before is None else model(input_ids=torch.tensor(before)[None], use_mems=True).mems
                kinds = torch.tensor(s)[None]
                other = model(input_ids=torch.tensor(i)[None], token_type_ids=kinds, mems=mems, use_mems=True).logits[0]
            assert compare(scores, other) <= TOLERANCE


def test_no_gradient_flows_into_memory(tmp_path: Path) -> None:
    network, made = ours(theirs(seed=7), tmp_path), to_device(permuted([60, 31, 18], 32), CPU)
    names = layers_to_keep(LAYERS)
    hidden = network(made.streams, keep=names)
    memory = remember(hidden, made.streams["text"], names)
    assert hidden["embed"].requires_grad and not any(h.requires_grad for h in memory.hidden)
    network.loss("lm", network(made.streams, memory=memory), made.streams, made.targets["plm"]).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_memory_sees_no_other_document(tmp_path: Path) -> None:
    network, made = ours(theirs(seed=8), tmp_path), permuted([60, 31, 18, 20], 32)
    packed = pack(made, {"text": 96}, 5)
    names = layers_to_keep(LAYERS)
    given = to_device(packed, CPU)
    with torch.no_grad():
        memory = remember(network(given.streams, keep=names), given.streams["text"], names)
    base, lost = our_logits(network, packed, memory), 1
    changed = torch.arange(len(packed))
    changed[lost] = -1
    other = our_logits(network, packed, memory.take(changed))
    for d, key in enumerate(packed.keys.tolist()):
        if key != int(DEAD):
            assert torch.allclose(base[key], other[key], atol=1e-5) == (d != lost)


def test_query_rows_are_no_memory(tmp_path: Path) -> None:
    made = permuted([60, 31, 18], 32)
    s = to_device(made, CPU).streams["text"]
    names = layers_to_keep(1)
    memory = remember({"embed": torch.arange(len(s.content))[:, None].float()}, s, names)
    assert (
        memory.hidden[0][:, 0].long().tolist()
        == np.flatnonzero(np.asarray(made.streams["text"].visibility.opens) != NEVER).tolist()
    )
    assert spec.Relative().segments

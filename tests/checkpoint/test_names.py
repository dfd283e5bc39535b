"""The name table: what it renames, what it refuses, and that it reads the same backwards."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.checkpoint.names import NameMap, fused, nearest, one_row, optional, padded, tied, transposed
from ziggurat.errors import UserError

# a made-up system that uses every kind of line
TABLE = NameMap(
    [
        padded("zig.wte.{p}", "model.embed.token.{p}", multiple=8),
        ("zig.wpe.weight", "model.embed.position.weight"),
        fused("zig.h.{i}.qkv.{p}", *(f"model.blocks.{{i}}.attention.{x}.{{p}}" for x in "qkv"), transposed=True),
        transposed("zig.h.{i}.up.{p}", "model.blocks.{i}.mlp.up.{p}"),
        fused("zig.h.{i}.pair.{p}", "model.blocks.{i}.a.{p}", "model.blocks.{i}.b.{p}"),
        ("zig.h.{i}.LayerNorm.{p}", "model.blocks.{i}.mlp_norm.{p}"),
        optional(("zig.pooler.{p}", "model.pooler.{p}")),
        optional(("classifier.{p}", "heads.{head}.out.{p}")),
        tied("lm_head.weight", "zig.wte.weight"),
    ],
    prefix="zig.",
).bind(vocab=5, head="mood")


def hub_state(layers: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """The made-up system's file, every number different."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "zig.wte.weight": (5, 4),
        "zig.wte.bias": (5,),
        "zig.wpe.weight": (7, 4),
        "zig.pooler.weight": (4, 4),
        "zig.pooler.bias": (4,),
    }
    for i in range(layers):
        shapes |= {
            f"zig.h.{i}.qkv.weight": (4, 12),
            f"zig.h.{i}.qkv.bias": (12,),
            f"zig.h.{i}.up.weight": (4, 6),
            f"zig.h.{i}.up.bias": (6,),
        }
        shapes |= {f"zig.h.{i}.pair.weight": (6, 4), f"zig.h.{i}.pair.bias": (6,)}
        shapes |= {f"zig.h.{i}.LayerNorm.weight": (4,), f"zig.h.{i}.LayerNorm.bias": (4,)}
    shapes |= {"classifier.weight": (2, 4), "classifier.bias": (2,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_vector_stored_as_one_row() -> None:
    table = NameMap([one_row("final_bias", "heads.lm.bias")])
    hub = {"final_bias": torch.arange(6.0)[None]}
    ours = table.to_ours(hub)
    assert ours["heads.lm.bias"].tolist() == [0, 1, 2, 3, 4, 5]
    same(table.to_hub(ours), hub)
    for wrong in (torch.zeros(6), torch.zeros(2, 6)):
        with pytest.raises(UserError, match=r"not \[1, n\]"):
            table.to_ours({"final_bias": wrong})


@settings(max_examples=20, deadline=None)
@given(layers=st.integers(1, 12), seed=st.integers(0, 2**31), pooler=st.booleans(), head=st.booleans())
def test_reads_the_same_backwards(layers: int, seed: int, pooler: bool, head: bool) -> None:
    hub = {
        name: tensor
        for name, tensor in hub_state(layers, seed).items()
        if (pooler or "pooler" not in name) and (head or "classifier" not in name)
    }
    ours = TABLE.to_ours(hub)
    same(TABLE.to_hub(ours), hub)
    same(TABLE.to_ours(TABLE.to_hub(ours)), ours)
    assert all(tensor.is_contiguous() for tensor in [*ours.values(), *TABLE.to_hub(ours).values()])
    assert len({tensor.untyped_storage().data_ptr() for tensor in ours.values()}) == len(ours)  # no two share memory


def test_values_land_where_they_should() -> None:
    hub = hub_state()
    ours = TABLE.to_ours(hub)
    weight, bias = hub["zig.h.1.qkv.weight"], hub["zig.h.1.qkv.bias"]
    for n, x in enumerate("qkv"):
        assert torch.equal(ours[f"model.blocks.1.attention.{x}.weight"], weight[:, 4 * n : 4 * n + 4].T)
        assert torch.equal(ours[f"model.blocks.1.attention.{x}.bias"], bias[4 * n : 4 * n + 4])
    assert torch.equal(ours["model.blocks.0.mlp.up.weight"], hub["zig.h.0.up.weight"].T)
    assert torch.equal(ours["model.embed.token.weight"], torch.cat([hub["zig.wte.weight"], torch.zeros(3, 4)]))
    assert torch.equal(ours["heads.mood.out.bias"], hub["classifier.bias"])
    inputs = torch.randn(3, 4)  # a Conv1D and a Linear give the same: x W + b
    mine = torch.nn.functional.linear(inputs, ours["model.blocks.1.attention.k.weight"], ours["model.blocks.1.attention.k.bias"])
    torch.testing.assert_close(mine, (inputs @ weight + bias)[:, 4:8])


def test_old_files() -> None:
    hub = hub_state()
    wanted = TABLE.to_ours(hub)
    old = {name.removeprefix("zig."): tensor for name, tensor in hub.items()}
    for i in range(2):
        old[f"h.{i}.LayerNorm.gamma"] = old.pop(f"h.{i}.LayerNorm.weight")
        old[f"h.{i}.LayerNorm.beta"] = old.pop(f"h.{i}.LayerNorm.bias")
        old[f"h.{i}.attn.bias"] = torch.ones(7, 7)
        old[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    old["embeddings.position_ids"] = torch.arange(7)
    same(TABLE.to_ours(old), wanted)


def test_ties() -> None:
    hub = hub_state()
    wanted = TABLE.to_ours(hub)
    same(TABLE.to_ours({"lm_head.weight": hub["zig.wte.weight"].clone(), **hub}), wanted)  # whichever comes first
    swapped = {("lm_head.weight" if name == "zig.wte.weight" else name): tensor for name, tensor in hub.items()}
    same(TABLE.to_ours(swapped), wanted)
    assert "lm_head.weight" not in TABLE.to_hub(wanted)
    with pytest.raises(UserError, match=r"lm_head.weight differs from zig.wte.weight"):
        TABLE.to_ours({**hub, "lm_head.weight": hub["zig.wte.weight"] + 1e-6})


@pytest.mark.parametrize(
    "lost", ["zig.h.1.up.weight", "zig.h.0.LayerNorm.bias", "zig.wpe.weight", "zig.wte.weight", "zig.h.1.qkv.bias"]
)
def test_a_missing_tensor_is_named(lost: str) -> None:
    hub = hub_state()
    tensor = hub.pop(lost)
    with pytest.raises(UserError, match=f"0 unknown, 1 missing\n  missing  {re.escape(lost)} "):
        TABLE.to_ours(hub)
    misspelt = lost.replace("zig.", "zag.")
    with pytest.raises(UserError) as error:
        TABLE.to_ours({**hub, misspelt: tensor})
    assert f"unknown  {misspelt} (nearest: " in str(error.value)
    assert f"missing  {lost} (nearest: {misspelt})" in str(error.value)


def test_an_unknown_name_comes_with_the_three_nearest() -> None:
    with pytest.raises(UserError) as error:
        TABLE.to_ours({**hub_state(), "zig.h.1.LayerNrm.weight": torch.zeros(4)})
    row = next(row for row in str(error.value).splitlines() if "LayerNrm" in row)
    names = row.partition("nearest: ")[2].rstrip(")").split(", ")
    assert names[0] == "zig.h.{i}.LayerNorm.{p}" and len(names) == 3


def test_a_whole_layer_missing() -> None:
    hub = {name: tensor for name, tensor in hub_state(3).items() if ".1." not in name}
    with pytest.raises(UserError, match="0 unknown, 8 missing"):
        TABLE.to_ours(hub)


def test_export_is_strict_too() -> None:
    ours = TABLE.to_ours(hub_state())
    for lost in ("model.blocks.0.attention.k.weight", "model.blocks.1.mlp.up.bias", "model.embed.position.weight"):
        with pytest.raises(UserError, match=f"0 unknown, 1 missing\n  missing  {re.escape(lost)} "):
            TABLE.to_hub({name: tensor for name, tensor in ours.items() if name != lost})
    with pytest.raises(UserError, match=r"unknown  model.blocks.0.attention.gate.weight"):
        TABLE.to_hub({**ours, "model.blocks.0.attention.gate.weight": torch.zeros(1)})


def test_an_optional_fused_line_is_not_left_out_by_halves() -> None:
    table = NameMap([optional(fused("kv.{p}", "k.{p}", "v.{p}"))])
    assert table.to_ours({}) == {} and table.to_hub({}) == {}
    with pytest.raises(UserError, match=r"missing  v\.weight"):
        table.to_hub({"k.weight": torch.zeros(2, 2)})


def test_wrong_shapes() -> None:
    with pytest.raises(UserError, match=r"zig.wte.weight has 6 rows, but the vocabulary has 5"):
        TABLE.to_ours({**hub_state(), "zig.wte.weight": torch.zeros(6, 4)})
    with pytest.raises(UserError, match=r"does not divide into 3 parts"):
        TABLE.to_ours({**hub_state(), "zig.h.0.qkv.weight": torch.zeros(4, 13)})


def test_heads_become_one_and_the_first_line_counts() -> None:
    table = NameMap([optional(("nsp.{p}", "heads.nsp.out.{p}")), optional(("classifier.{p}", "heads.{head}.out.{p}"))])
    ours = {f"heads.{name}.out.{p}": torch.randn(2) for name in ("nsp", "mood") for p in ("weight", "bias")}
    hub = table.to_hub(ours)
    assert torch.equal(hub["nsp.weight"], ours["heads.nsp.out.weight"])
    same(table.bind(head="mood").to_ours(hub), ours)
    with pytest.raises(ValueError, match="bind"):
        table.to_ours(hub)
    with pytest.raises(UserError, match=r"both become classifier.weight"):
        table.to_hub({**ours, "heads.other.out.weight": torch.zeros(2)})


def test_tables_that_cannot_be_read_backwards_are_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        NameMap([("a.{i}.{p}", "b.{p}")])


def test_inputs_are_left_alone() -> None:
    hub = hub_state()
    copy = {name: tensor.clone() for name, tensor in hub.items()}
    ours = TABLE.to_ours(hub)
    ours["model.blocks.0.attention.q.bias"].zero_()  # training in place must not write through to what was read
    ours["model.embed.token.bias"].zero_()
    same(hub, copy)


def test_gpt2_as_the_hub_has_it() -> None:
    """Names and shapes of transformers' GPT2LMHeadModel (2 layers, width 8, 11 items, 6 positions), and of its headless class."""
    shapes = {"wte.weight": (11, 8), "wpe.weight": (6, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
    for i in range(2):
        shapes |= {f"h.{i}.{norm}.{p}": (8,) for norm in ("ln_1", "ln_2") for p in ("weight", "bias")}
        shapes |= {f"h.{i}.attn.c_attn.weight": (8, 24), f"h.{i}.attn.c_attn.bias": (24,)}
        shapes |= {f"h.{i}.attn.c_proj.weight": (8, 8), f"h.{i}.attn.c_proj.bias": (8,)}
        shapes |= {f"h.{i}.mlp.c_fc.weight": (8, 32), f"h.{i}.mlp.c_fc.bias": (32,)}
        shapes |= {f"h.{i}.mlp.c_proj.weight": (32, 8), f"h.{i}.mlp.c_proj.bias": (8,)}
    headless = {name: torch.randn(shape) for name, shape in shapes.items()}
    hub = {f"transformer.{name}": tensor for name, tensor in headless.items()} | {"lm_head.weight": headless["wte.weight"]}
    block, attention = "transformer.h.{i}", "model.blocks.{i}.attention"
    table = NameMap(
        [
            ("transformer.wte.weight", "model.embed.token.weight"),
            ("transformer.wpe.weight", "model.embed.position.weight"),
            (f"{block}.ln_1.{{p}}", "model.blocks.{i}.attention_norm.{p}"),
            fused(f"{block}.attn.c_attn.{{p}}", *(f"{attention}.{x}.{{p}}" for x in "qkv"), transposed=True),
            transposed(f"{block}.attn.c_proj.{{p}}", f"{attention}.out.{{p}}"),
            (f"{block}.ln_2.{{p}}", "model.blocks.{i}.mlp_norm.{p}"),
            transposed(f"{block}.mlp.c_fc.{{p}}", "model.blocks.{i}.mlp.up.{p}"),
            transposed(f"{block}.mlp.c_proj.{{p}}", "model.blocks.{i}.mlp.down.{p}"),
            ("transformer.ln_f.{p}", "model.final_norm.{p}"),
            tied("lm_head.weight", "transformer.wte.weight"),
        ],
        prefix="transformer.",
    )
    ours = table.to_ours(hub)
    assert ours["model.blocks.1.mlp.up.weight"].shape == (32, 8)
    back = table.to_hub(ours)
    same({**back, "lm_head.weight": back["transformer.wte.weight"]}, hub)
    same(table.to_ours(headless), ours)


def test_nearest() -> None:
    assert nearest("attention.q", ["mlp.up", "attention.k", "attention.query", "norm"], 2) == ["attention.k", "attention.query"]
    assert nearest("x", []) == []

"""Shares of a mixture by the sizes of its sources."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from ziggurat.data.order import SHARES, TOKENS, Order, shares
from ziggurat.train.budget import mixture
from ziggurat.train.stage import Stage


class Sized(NamedTuple):
    tokens: int


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(None, 0.5), (1, 0.1), (2, 1 / (1 + 3)), (1.4286, 1 / (1 + 9**0.7)), (1e9, 0.5)],
)
def test_a_temperature_lifts_the_small_source(temperature: float | None, expected: float) -> None:
    """Of 900 and 100 tokens; multilingual BERT's exponent of 0.7 is a temperature of 1.4286."""
    shards: Any = {"large": Sized(900), "small": Sized(100)}
    found = shares(shards, {"large": 1, "small": 1}, temperature)
    assert found["small"] / sum(found.values()) == pytest.approx(expected, rel=1e-4)


def test_weights_come_on_top() -> None:
    shards: Any = {"a": Sized(400), "b": Sized(100)}
    found = shares(shards, {"a": 1, "b": 4}, 1)
    assert found["a"] == found["b"]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25])
def test_replay_has_its_share_of_the_tokens(share: float) -> None:
    """At every block's end, within one draw; draws of a small share are as much smaller, so the first block has it too."""

    class Texts:
        folder, parts = "", ("text",)

        def __init__(self, seed: int, documents: int, longest: int):
            self.sizes = np.random.default_rng(seed).integers(1, longest, documents)
            self.tokens = int(self.sizes.sum())

        def __len__(self) -> int:
            return len(self.sizes)

        def lengths(self, part: str, documents: np.ndarray) -> np.ndarray:
            found: np.ndarray = self.sizes[documents]
            return found

    shards: Any = {"domain": Texts(0, 5000, 900), "general": Texts(1, 700, 900)}
    stage = Stage(stage="dapt", data={"domain": {"weight": 3.0}}, replay={"general": share}, steps=1)
    found = mixture(stage, shards)
    assert found == pytest.approx({"domain": 1 - share, "general": share})
    order = Order(shards, found)
    place = order.start()
    for _ in range(30):
        _, place = order.block(place)
        domain, general = (c.tokens for c in place.cursors)
        draw = share / (1 - share) * TOKENS / SHARES + 2 * 900  # and the document that passes it
        assert abs(general - share * (domain + general)) <= draw
    assert place.cursors[1].epoch >= 1
    assert general / (domain + general) == pytest.approx(share, rel=0.01)
    two = Stage(stage="dapt", data={"a": {"weight": 1.0}, "b": {"weight": 3.0}}, replay={"c": 0.2}, steps=1)
    assert mixture(two, {n: Sized(10) for n in "abc"}) == pytest.approx({"a": 0.2, "b": 0.6, "c": 0.2})  # type: ignore[misc]

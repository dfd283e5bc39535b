"""Shares of a mixture by the sizes of its sources."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from ziggurat.data.order import shares


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

"""Learning rates, computed by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from ziggurat.errors import UserError
from ziggurat.train.schedule import length, misfit, rate


@dataclass(frozen=True)
class Schedule:
    kind: str = "linear"
    warmup: float = 0.0
    floor: float = 0.0
    decay: float = 0.1


def rates(steps: int, **values: object) -> list[float]:
    spec = Schedule(**values)  # type: ignore[arg-type]
    return [rate(step, steps=steps, spec=spec) for step in range(steps)]


def test_linear() -> None:
    assert rates(5) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert rates(7, warmup=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2])
    assert rates(5, floor=0.5) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])


def test_cosine() -> None:
    root = math.sqrt(0.5)
    assert rates(4, kind="cosine") == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2])
    assert rates(5, kind="cosine", warmup=1, floor=0.2) == pytest.approx([0.5, 1, 0.6 + 0.4 * root, 0.6, 0.6 - 0.4 * root])


def test_wsd() -> None:
    assert rates(10, kind="wsd", warmup=1, decay=0.4) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert rates(4, kind="wsd", decay=2, floor=0.5) == pytest.approx([1, 1, 1, 0.75])


def test_constant() -> None:
    assert rates(5, kind="constant", warmup=3, floor=0.3) == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert rates(3, kind="constant", decay=0.9, warmup=0.5) == pytest.approx([0.5, 1, 1])  # decay belongs to wsd alone


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_past_the_end_it_stays_at_the_floor(kind: str, floor: float) -> None:
    spec = Schedule(kind, 0.1, floor)
    for step in (50, 51, 1000):
        assert rate(step, steps=50, spec=spec) == pytest.approx(floor)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant"])
def test_up_then_down_and_no_update_wasted(kind: str) -> None:
    values = rates(37, kind=kind, warmup=0.3, decay=0.3)
    assert max(values) == values[11] == 1 and values[:12] == sorted(values[:12])
    assert values[11:] == sorted(values[11:], reverse=True) and min(values) > 0


def test_as_torch_after_the_warm_up() -> None:
    for kind in ("linear", "cosine"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs: torch.optim.lr_scheduler.LRScheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16)
        if kind == "linear":
            theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 16)
        for step in range(4, 20):
            assert rate(step, steps=20, spec=Schedule(kind, 4)) == pytest.approx(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()


def test_fractions() -> None:
    assert [length(part, 100) for part in (0, 0.06, 0.29, 0.999, 1, 7)] == [0, 6, 29, 99, 1, 7]
    assert length(0.1, 1) == 0
    assert rates(1, warmup=0.1) == [1.0]


def test_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="100 updates of warm-up in a stage of 50"):
        rate(0, steps=50, spec=Schedule(warmup=100))
    with pytest.raises(UserError, match="30 updates of warm-up and 30 of decay in a stage of 50"):
        rate(0, steps=50, spec=Schedule("wsd", 30, decay=0.6))


def test_what_cannot_fit_however_many_updates_there_are() -> None:
    assert misfit(None, Schedule("wsd", 0.7, decay=0.4)) == "a schedule with 0.7 of the stage for warm-up and 0.4 for decay"
    fit = [("wsd", 0.6, 0.4), ("linear", 0.7, 0.4), ("wsd", 100.0, 0.9), ("wsd", 0.9, 100.0)]  # for all that is known
    assert not any(misfit(None, Schedule(kind, warmup, decay=decay)) for kind, warmup, decay in fit)

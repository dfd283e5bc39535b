"""The loop: one step is one big batch, bad steps change nothing, and everything happens when the plan says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from ziggurat.errors import Stopped, UserError
from ziggurat.nn import spec
from ziggurat.nn.network import NetworkModel
from ziggurat.objectives.masked import Masked
from ziggurat.train import loop
from ziggurat.train.loop import Plan, Progress
from ziggurat.types import Batch, Loss, Stream, join, text_target

CPU = torch.device("cpu")


def network() -> NetworkModel:
    model = spec.Single(vocab=40, width=16, layers=1, heads=2, mlp=32)
    made = NetworkModel(spec.Network(model=model, heads={"lm": spec.VocabHead()}))
    made.initialise(torch.Generator().manual_seed(1))
    return made


def batch(seed: int, documents: int, asked: int) -> Batch:
    """Documents of 8 tokens; `asked` of all tokens are to be predicted."""
    draw, n = np.random.default_rng(seed), 8 * documents
    content, position = draw.integers(0, 40, n).astype(np.int32), np.tile(np.arange(8, dtype=np.int32), documents)
    stream = Stream(content, np.arange(0, n + 1, 8), position, np.zeros(n, np.int32), row=8)
    at = np.sort(draw.choice(n, asked, replace=False))
    return Batch({"text": stream}, {"mlm": text_target(at, content[at])}, np.arange(documents, dtype=np.uint64))


def gradients(model: NetworkModel) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_accumulation_is_the_big_batch() -> None:
    """Also where the micro-batches ask for different numbers of predictions, which a mean of means gets wrong."""
    few, many = batch(0, 2, 2), batch(1, 4, 19)
    one, two = network(), network()
    big = loop.backward(one, Masked(), [join(few, many)], CPU, torch.float32)
    parts = loop.backward(two, Masked(), [few, many], CPU, torch.float32)
    assert parts == pytest.approx(big, rel=1e-5) and big.keys() == {"mlm", "loss"}
    for a, b in zip(gradients(one), gradients(two), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    halves = [loop.backward(network(), Masked(), [part], CPU, torch.float32)["loss"] for part in (few, many)]
    assert abs(sum(halves) / 2 - big["loss"]) > 1e-3


class Plays:
    """Runs the loop on a tiny network and keeps what it did."""

    def __init__(self, steps: int, **changes: Any):
        self.network = network()
        self.said: list[tuple[Any, ...]] = []
        self.stops_at = changes.pop("stops_at", 0)
        self.objective: Masked = changes.pop("objective", Masked())
        dials = {"accumulate": 2, "clip": 1.0, "rate": lambda step: 0.01, "log_every": 2, "evaluate_every": 3, "save_every": 4}
        self.plan = Plan(steps, **{**dials, **changes})
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1.0)
        self.progress = Progress()

    def batches(self) -> Iterator[Batch]:
        n = 0
        while True:
            n += 1
            yield batch(n, 2, 5)

    def go(self) -> Progress:
        def write(step: int, numbers: Mapping[str, Any]) -> None:
            self.said.append(("line", step, *numbers))

        return loop.train(
            self.network, self.objective, self.batches(), self.optimizer, self.plan, self.progress,
            dtype=torch.float32,
            write=write,
            evaluate=lambda network: {"heldout": 1.0},
            save=lambda progress: self.said.append(("save", progress.step)),
            show=lambda progress, numbers: None,
            stop=lambda: self.progress.step == self.stops_at,
        )  # fmt: skip


def test_what_happens_when() -> None:
    plays = Plays(7)
    done = plays.go()
    line = ("mlm", "loss", "lr", "grad_norm", "tokens", "tokens_per_second")
    assert plays.said == [
        ("line", 2, *line),
        ("line", 3, "heldout"),
        ("line", 4, *line),
        ("save", 4),
        ("line", 6, *line),
        ("line", 6, "heldout"),
        ("line", 7, *line),
        ("save", 7),
    ]
    assert (done.step, done.tokens, done.since, [step for step, _ in done.curve]) == (7, 7 * 2 * 16, [], [2, 4, 6, 7])
    assert done.seconds > 0 and done.evaluating >= 0 and done.skipped == 0


def test_a_signal_saves_and_stops() -> None:
    plays = Plays(7, stops_at=3)
    with pytest.raises(Stopped):
        plays.go()
    assert plays.said[-1] == ("save", 3) and len(plays.progress.since) == 1
    plays = Plays(3, stops_at=3)  # there is nothing left to stop
    assert plays.go().step == 3 and plays.said[-1] == ("save", 3)


class Sick(Masked):
    """Loses its loss at some steps."""

    def losses(self, network: NetworkModel, batch: Batch) -> dict[str, Loss]:
        found = super().losses(network, batch)
        return {name: Loss(loss.total * math.nan, loss.count) for name, loss in found.items()}


def test_steps_without_a_finite_loss_change_nothing() -> None:
    plays = Plays(loop.SKIPS - 1, objective=Sick())
    before = [p.detach().clone() for p in plays.network.parameters()]
    done = plays.go()
    assert done.skipped == loop.SKIPS - 1 and not done.curve
    assert all(torch.equal(a, b) for a, b in zip(before, plays.network.parameters(), strict=True))
    with pytest.raises(UserError, match="diverged: 10 steps in a row"):
        Plays(50, objective=Sick()).go()


def test_measuring_leaves_the_weights_alone() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    made = loop.timed(model, Masked(), Plays(1).batches(), 2, optimizer, torch.float32, steps=4, limit=10.0)
    assert 1 <= len(made) <= 4 and all(0 < seconds < 5 and tokens > 0 for seconds, tokens in made)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_precision() -> None:
    assert loop.precision_of("fp32", CPU) == torch.float32 and loop.precision_of("bf16", CPU) == torch.bfloat16
    assert loop.precision_of("auto", CPU) in (torch.float32, torch.bfloat16)

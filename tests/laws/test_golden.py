"""What must not change unnoticed: the recipes as they resolve, and the first 20 losses of every system and objective.

A change of defaults or of mathematics shows here as a difference to a committed file. When it is meant, rewrite the files with
`python tests/laws/test_golden.py` and say so in the change log.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from examples import CPU, EXAMPLES, made, network_of, objective_of

from ziggurat.config import dump, load
from ziggurat.systems import SYSTEMS
from ziggurat.train.loop import backward
from ziggurat.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
STEPS = 20
CASES = [("bert", "joint-bert"), ("roberta", "mlm"), ("roberta", "mlm-span"), ("gpt2", "clm"), ("bert", "tag")]
CASES += [("albert", "mlm-ngram"), ("electra", "rtd"), ("structbert", "joint-struct"), ("macbert", "joint-mac")]
CASES += [("modelx", "joint-order"), ("ernie", "mlm-word"), ("ernie2", "mlm-word"), ("nezha", "mlm-word"), ("gpt", "clm")]
CASES += [("gpt3", "clm"), ("modernbert", "mlm"), ("xlnet", "plm"), ("unilm", "unilm"), ("unilm2", "pmlm")]
CASES += [("ernie_gen", "ernie_gen"), ("prophetnet", "future"), ("prophetnet_lm", "future-lm")]
CASES += [("t5", "t5"), ("t5_1_1", "t5"), ("bart", "bart"), ("mass", "mass"), ("bart", "classify"), ("t5", "tag")]


def resolved(recipe: Path) -> str:
    return dump(load(recipe, model=Recipe).resolved())


def curve(system: str, name: str) -> list[float]:
    """The losses of 20 steps of AdamW from a fixed start over two batches in turn."""
    objective = objective_of(name)
    torch.manual_seed(0)
    network = network_of(system, objective, shaken=False).float().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    batches = [made(name, system, seed) for seed in (0, 1)]
    losses = []
    for step in range(STEPS):
        means = backward(network, objective, [batches[step % len(batches)]], CPU, torch.float32)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(means["loss"], 6))
    return losses


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_resolve_as_they_did(recipe: Path) -> None:
    assert resolved(recipe) == (GOLDEN / f"{recipe.stem}.yaml").read_text("utf-8")


@pytest.mark.parametrize(("system", "name"), CASES, ids=[f"{s}-{n}" for s, n in CASES])
def test_the_first_losses_are_what_they_were(system: str, name: str) -> None:
    kept = json.loads((GOLDEN / "curves.json").read_text("utf-8"))[f"{system} {name}"]
    found = curve(system, name)
    assert found == pytest.approx(kept, rel=1e-4)
    assert found[-1] < found[0] * 0.95  # a curve that learns nothing would pin nothing


def test_every_example_and_system_is_known() -> None:
    assert {s for s, _ in CASES} == set(SYSTEMS) and {n for _, n in CASES} <= set(EXAMPLES)


if __name__ == "__main__":
    for path in RECIPES:
        (GOLDEN / f"{path.stem}.yaml").write_text(resolved(path), "utf-8")
    curves = {f"{system} {name}": curve(system, name) for system, name in CASES}
    (GOLDEN / "curves.json").write_text(json.dumps(curves, indent=1) + "\n", "utf-8")

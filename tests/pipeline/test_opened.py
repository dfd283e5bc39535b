"""What the starts of a recipe's stages lack of what those go by: said before anything is prepared or trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import RECIPE
from ziggurat.errors import UserError
from ziggurat.pipeline.doctor import doctor
from ziggurat.pipeline.run import run
from ziggurat.systems.hub import export_checkpoint

HEAD = RECIPE[: RECIPE.index("stages:")]
OUTSIDE = HEAD.replace("roberta/tiny", "roberta").replace("model:", "# model:").replace("tokenizer:", "# tokenizer:")
MEANS = {
    "distill": "distill: {weight: 0.5}",
    "anchor": "anchor: {ewc: 3, tokens: 100}",
    "forgetting": "forgetting: {stop: true}",
    "interpolate": "interpolate: 0.5",
}
OTHER = "objective: {kind: joint, parts: [{kind: mlm, unit: span}, {kind: sbo}]}"


def body(folder: Path) -> Path:
    """A folder of the pre-trained body alone."""
    return export_checkpoint(folder / "runs/small/pretrain", Path("body"), architecture="RobertaModel").folder


def written(head: str, *stages: str) -> str:
    Path("own.yaml").write_text(
        head + "stages:\n" + "".join(f"  - {{{stage}}}\n" for stage in stages) + "worth: false\n", "utf-8"
    )
    return "own.yaml"


def untouched() -> bool:
    return not [path for path in Path("runs/small").rglob("*") if path.is_dir()]


@pytest.mark.parametrize("field", MEANS)
def test_a_start_without_the_head(world: Path, finished: Path, field: str) -> None:
    own = f"stage: dapt, name: own, init: {body(finished)}, data: domain, steps: 2, forgetting: {{general: general}}"
    stage = own.replace("forgetting: {general: general}", "forgetting: {general: general, stop: true}")
    stage = stage if field == "forgetting" else f"{own}, {MEANS[field]}"
    first = f"stage: dapt, name: first, init: {body(finished)}, data: general, steps: 1, forgetting: {{general: domain}}"
    with pytest.raises(UserError, match=f"^own: {field}: .*and that has no language-model head\n.*train the head first"):
        run(written(OUTSIDE, first, stage))
    assert untouched()
    (found,) = doctor("own.yaml")["findings"]
    assert found["level"] == "error" and f"own: {field}: " in found["message"]


def test_a_head_beside_the_language_model(world: Path, finished: Path) -> None:
    """What a new head says is nothing to keep; gain and forgetting are counted in the loss of the head that was there."""
    own = f"stage: dapt, name: own, init: {finished}/runs/small/pretrain, data: domain, steps: 2, {OTHER}"
    for field in ("distill", "anchor"):
        general = ", forgetting: {general: general}"
        with pytest.raises(UserError, match=re.escape(f"own: {field}: ") + ".*and that has no head 'sbo'"):
            run(written(OUTSIDE, f"{own}, {MEANS[field]}{general}"))
    assert untouched()
    run(written(OUTSIDE, f"{own}, interpolate: 0.5, forgetting: {{general: general, stop: true, limit: 90}}"))


def test_a_head_of_an_earlier_stage(world: Path, finished: Path) -> None:
    """The head is trained first, and all means go by it; a fine-tuning between leaves none."""
    general = f"stage: pretrain, name: general, init: {body(finished)}, data: general, steps: 1, save: {{every: null}}"
    means = ", ".join(MEANS.values())
    run(written(OUTSIDE, general, f"stage: dapt, data: domain, steps: 2, {means}".replace("stop: true", "stop: true, limit: 90")))
    tuned = "stage: finetune, data: task, objective: {kind: classify, labels: [neg, pos]}, steps: 1"
    late = "stage: tapt, data: task, steps: 1, init: finetune, forgetting: {general: general}, distill: {weight: 0.5}"
    with pytest.raises(UserError, match="tapt: distill: keeps what the start says, and that has no language-model head"):
        run(written(OUTSIDE.replace("name: small", "name: late"), general, tuned, late))
    assert not Path("runs/late/general").exists()

"""Which weights of a stage are handed on: those of its last step, or of an evaluation before it.

The weights that may be handed on are kept as one checkpoint in the folder `within`: of the latest evaluation that is within the limit of forgetting
(where that stops the stage) and, with `evaluate: {keep: best}`, the best so far. What is known of it is read from that checkpoint alone, so
that a resumed stage judges as it did before. One that was killed behind its best evaluation passes it again: until then nothing is judged.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import format as checkpoints
from ziggurat.data.sources import Source, splits
from ziggurat.errors import UserError, check
from ziggurat.evaluate.heldout import HIGHER, main_loss
from ziggurat.train.adaptation import shift
from ziggurat.train.stage import Stage
from ziggurat.tree import nearest

log = logging.getLogger(__name__)

RESULT, WITHIN = checkpoints.RESULTS
"""Subfolders of a stage: weights between the start's and the trained ones, and those of an evaluation before the last step."""

Found = Mapping[str, Mapping[str, float]]
"""Source -> its held-out numbers."""


class Ended(Exception):
    """The last weights are not those that are handed on."""

    def __init__(self, why: str, found: dict[str, dict[str, float]]):
        """`why`: forgetting (beyond the limit), patience (no better evaluation for so long) or best (an earlier evaluation is better than the
        last step's). `found`: the numbers of the evaluation that says so."""
        self.why, self.found = why, found


@dataclass(frozen=True)
class Ending:
    """How a stage ended that handed on other weights than its last."""

    why: str
    """As in `Ended`."""
    step: int
    """The last step that was trained."""
    kept: int
    """The step of the weights that are handed on."""
    by: str
    score: float | None
    """The held-out number by which they were chosen; None where it was not asked for."""
    patience: int | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """The same as plain data, for the checkpoint's lineage."""
        chosen = {"by": self.by, "score": self.score} if self.score is not None else {}
        return {"why": self.why, "trained": self.step, **chosen}

    @property
    def sentence(self) -> str:
        """`no improvement for 3 evaluations, up to step 80; its result are the weights of step 50 (loss 1.234)`."""
        number = f" ({self.by} {self.score:.3f})" if self.score is not None else ""
        if self.why == "best":
            return f"its result are the weights of step {self.kept} of {self.step}, the best evaluation{number}"
        whole = f"its result are the weights of step {self.kept}{number}"
        if self.why == "patience":
            times = f"{self.patience} evaluations" if self.patience != 1 else "1 evaluation"
            return f"no improvement for {times}, up to step {self.step}; {whole}"
        return f"stopped at step {self.step}, which passed the limit of forgetting; {whole}"


def score(stage: Stage, found: Found, number: str = "") -> float:
    """The number that weights are chosen by (or `number`): that of the stage's own sources, their mean by the shares in `data`. Raises
    `UserError` where a source has no such number."""
    total, number = 0.0, number or stage.evaluate.by
    for name, share in stage.data.items():
        numbers = found.get(name, {})
        by = named(number, numbers)
        check(
            by in numbers,
            f"{stage.title}: evaluate.by: '{number}' is no number of the held-out text of source '{name}'",
            f"there are: loss, {', '.join(numbers)}" if numbers else "nothing of it is held out: give it more `valid` rows",
        )
        total += share.weight * numbers[by]
    return total / sum(share.weight for share in stage.data.values())


def named(by: str, numbers: Mapping[str, float]) -> str:
    """What `loss` and `accuracy` are called among a source's numbers; other names are themselves."""
    return {"loss": main_loss(numbers), "accuracy": f"{main_loss(numbers)}_accuracy"}.get(by, by)


def higher(by: str) -> bool:
    """Whether more of this number is better."""
    return f"_{by}".endswith(HIGHER)


class Keeping:
    """The weights of one stage that may be handed on; `before` are the held-out numbers of its start, {} if they were not measured."""

    def __init__(self, folder: Path, stage: Stage, title: str, before: Found):
        self.folder, self.stage, self.title, self.before = folder, stage, title, before
        self.limited = stage.forgetting is not None and stage.forgetting.stop
        self.step: int | None = None
        """Step of the weights that are kept."""
        self.best: float | None = None
        """Their score, if they are chosen by one."""
        if stage.evaluate.chooses and before:
            score(stage, before)  # a number that there is none of is an error now, not at the first evaluation

    def resume(self, steps: int) -> checkpoints.Saved | None:
        """The checkpoint that training goes on from; what is kept beside it is looked up. None: the stage begins."""
        found, kept = checkpoints.latest(self.folder), checkpoints.latest(self.folder / WITHIN)
        saved = checkpoints.load(found) if found is not None else None
        if kept is not None:
            state = checkpoints.load(kept).state
            self.step = int(state["progress"]["step"])
            self.best = score(self.stage, state["held_out"]) if self.stage.evaluate.chooses else None
        known = saved.state.get("kept") if saved is not None else None
        if saved is None or known is None or (self.step is not None and self.step >= known):
            return saved
        if saved.state["progress"]["step"] == steps and not (self.folder / WITHIN).exists():
            return saved  # removed at the end, for the last step was the best
        log.warning("%s: the weights it had kept are damaged or gone; it begins again", self.title)
        for step in sorted(self.folder.glob("step-*"), reverse=True):
            shutil.rmtree(step)
        self.drop()
        self.step = self.best = None
        return None

    def evaluated(self, step: int, found: dict[str, dict[str, float]], save: Callable[[], None]) -> None:
        """Keep the weights of an evaluation before the last step by `save` if they may be handed on. Raises `Ended`."""
        comparable = self._within(found)
        if self.step is not None and step <= self.step:
            return  # seen before this run was killed
        evaluate = self.stage.evaluate
        if self._better(found) if evaluate.chooses else self.limited and comparable:
            save()
            self.step, self.best = step, score(self.stage, found) if evaluate.chooses else None
        elif evaluate.patience is not None and self.step is not None:
            assert evaluate.every is not None  # the recipe was checked
            if (step - self.step) // evaluate.every >= evaluate.patience:
                raise Ended("patience", found)

    def last(self, found: dict[str, dict[str, float]]) -> None:
        """Judge the weights of the last step. Raises `Ended` if they are not those to hand on."""
        self._within(found)
        if self.stage.evaluate.chooses:
            if not self._better(found):
                raise Ended("best", found)
            self.best = score(self.stage, found)

    def back(self, ended: Ended, step: int) -> tuple[checkpoints.Saved, Ending]:
        """What is handed on in the place of the weights of `step`; raises `UserError` if nothing was kept."""
        kept = checkpoints.latest(self.folder / WITHIN)
        moved = shift(self.stage, self.before, ended.found)
        said = moved.sentence if moved is not None else ""
        if kept is None and ended.why == "forgetting":
            raise UserError(
                f"{self.title}: the first evaluation, at step {step}, is beyond the limit of forgetting: {said}",
                "evaluate more often (evaluate.every), lower optim.lr, add `replay`, or raise forgetting.limit",
            )
        if kept is None:
            raise UserError(
                f"{self.title}: up to step {step}, the last one, no evaluation had a finite {self.stage.evaluate.by} to choose by",
                "lower optim.lr or raise schedule.warmup",
            )
        saved, evaluate = checkpoints.load(kept), self.stage.evaluate
        ending = Ending(ended.why, step, saved.state["progress"]["step"], evaluate.by, self.best, evaluate.patience)
        return saved, ending

    def drop(self) -> None:
        """Remove what was kept, at once: half of it would look damaged."""
        if (self.folder / WITHIN).exists():
            gone = self.folder / f"tmp-{WITHIN}"
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(self.folder / WITHIN, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _within(self, found: dict[str, dict[str, float]]) -> bool:
        """Whether the weights could be compared with the start; raises `Ended` where they forgot too much and that stops the stage."""
        moved = shift(self.stage, self.before, found)
        if self.limited and moved is not None and moved.passed:
            raise Ended("forgetting", found)
        return moved is not None

    def _better(self, found: Found) -> bool:
        """Whether the score is better than that of all evaluations before; of equals the first is the best."""
        new = score(self.stage, found)
        if not math.isfinite(new):
            return False
        return self.best is None or (new > self.best if higher(self.stage.evaluate.by) else new < self.best)


def problems(stage: Stage, sources: Mapping[str, Source]) -> Iterator[tuple[Any, ...]]:
    """(field, message, places it was judged by ...) of a resolved stage."""
    evaluate = stage.evaluate
    if not evaluate.chooses:
        if evaluate.by != "loss":
            yield "evaluate", f"`by: {evaluate.by}` chooses nothing where the last weights are handed on; set keep: best"
        return
    asks = f"patience: {evaluate.patience}" if evaluate.patience is not None else "keep: best"
    if evaluate.every is None:
        yield "evaluate", f"`{asks}` chooses among evaluations; say how often there is one, as in evaluate: {{every: 100}}"
    for name in stage.data:
        if name in sources and "valid" not in splits(sources[name]):
            yield (
                "evaluate",
                f"`{asks}` needs rows to choose by, and source '{name}' has no `valid` ones; give it `valid: file` or `valid: 0.1`",
                ("sources", name),
            )
    kind = stage.objective.kind if stage.objective is not None else ""
    if kind in ("classify", "tag", "regress"):  # what others have is known when they are first measured
        known = ["loss", kind] + (["accuracy", f"{kind}_accuracy"] if kind != "regress" else [])
        if evaluate.by not in known:
            yield "evaluate", f"`by: {evaluate.by}` is no held-out number of '{kind}'; {nearest(evaluate.by, known)}"

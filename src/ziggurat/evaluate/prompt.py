"""How a model is asked for an answer without being trained for it: a question put in words, with solved ones before it (Brown et al., 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import Field

from ziggurat.config import Spec
from ziggurat.data.rows import joined
from ziggurat.errors import UserError, check


class Prompt(Spec):
    """How a question is put, and how many solved ones stand before it."""

    template: str = "{text}"
    """The question, with the names of a row's texts in braces: `Premise: {text}\\nHypothesis: {pair}\\nLabel:`."""
    shots: int = Field(0, ge=0)
    """Solved examples before each question; others for each question."""
    between: str = "\n\n"
    """What stands between two examples."""
    seed: int = Field(0, ge=0)
    """Draws the examples."""

    def texts(
        self, rows: Sequence[Mapping[str, str]], solved: Sequence[tuple[Mapping[str, str], str]] = (), joiner: str | None = None
    ) -> list[str]:
        """One prompt a row. `solved` are the rows to draw examples from, each with its right answer."""
        return [text for text, _ in self.fitting(rows, solved, lambda n, prompt: True, joiner)]

    def fitting(
        self,
        rows: Sequence[Mapping[str, str]],
        solved: Sequence[tuple[Mapping[str, str], str]],
        fits: Callable[[int, str], bool],
        joiner: str | None = None,
    ) -> list[tuple[str, int]]:
        """One prompt a row and the examples in it: the last ones of those drawn, as many as `fits` (of row and prompt) lets stand."""
        check(
            len(solved) >= self.shots,
            f"{self.shots} examples are asked for, and {len(solved)} solved rows are there",
            "lower `shots`, or give more training rows",
        )
        made = []
        for n, row in enumerate(rows):
            chosen = np.random.default_rng([self.seed, n]).permutation(len(solved))[: self.shots] if self.shots else ()
            answered = [(self._filled(solved[i][0]), solved[i][1]) for i in chosen]
            examples = [q + (joined(q, a) if joiner is None else joiner + a) for q, a in answered]
            for left_out in range(len(examples) + 1):
                prompt = self.between.join([*examples[left_out:], self._filled(row)])
                if left_out == len(examples) or fits(n, prompt):
                    made.append((prompt, len(examples) - left_out))
                    break
        return made

    def _filled(self, row: Mapping[str, str]) -> str:
        try:
            return self.template.format_map(row)
        except (KeyError, IndexError, ValueError) as error:
            has = ", ".join(f"{{{name}}}" for name in row)
            raise UserError(
                f"the template {self.template!r} cannot be filled: {error}", f"a row has {has}; write {{{{ for a brace"
            ) from error
